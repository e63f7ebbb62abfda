"""The loop that carries out a run's stages.

Rank 0 goes through the stages in order. It skips each one that is done under the same fingerprint, as long as everything
before it was skipped too: a stage that runs again makes all later ones run again. The other ranks of a torchrun job wait and
join the shared stages. An interrupted stage resumes by itself from what it finds in the run directory.
"""

from __future__ import annotations

import time

from distill.recipe.keys import Recipe
from distill.run.directory import RunDir
from distill.run.errors import Interrupted
from distill.run.parallel import job
from distill.run.plan import STAGES, stage_key
from distill.run.preflight import inputs
from distill.run.progress import Narrator
from distill.run.stages import WORK, Context


def carry_out(run: RunDir, recipe: Recipe, narrator: Narrator, until: str = "report") -> None:
    """Brings the run up to date, up to and including the stage `until`. On other ranks than 0: their share of it.

    Raises UsageError where the corpus or the weights have changed since the run read them, Interrupted on Ctrl-C.
    """
    context = Context(run, recipe, narrator)
    try:
        with job() as ranks:
            if ranks.leads:
                run.check_inputs(inputs(recipe))
                _carry_out_stages(context, until)
            while not ranks.leads and (name := ranks.called(narrator.stop)):
                WORK[name](context)
    except Interrupted:
        if ranks.leads:
            raise  # rank 0 reports it for the whole job


def _carry_out_stages(context: Context, until: str) -> None:
    run, narrator = context.run, context.narrator
    key, up_to_date = "", True
    for stage in STAGES:
        key = stage_key(stage, context.recipe, key)
        up_to_date = up_to_date and run.is_done(stage.name, key)
        if up_to_date:
            narrator.say(f"{stage.name}: up to date")
        else:
            if narrator.stop():
                raise Interrupted(f"before {stage.name}")
            started = time.perf_counter()
            if stage.shared:
                job().announce(stage.name)
            done = WORK[stage.name](context)
            run.finish(stage.name, key, done.outputs, time.perf_counter() - started, done.facts)
        if stage.name == until:
            return

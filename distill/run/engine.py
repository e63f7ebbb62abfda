"""The loop that carries out a run's stages.

Rank 0 goes through the stages in order. It skips each one that is done under the same fingerprint, as long as everything
before it was skipped too: a stage that runs again makes all later ones run again. The other ranks of a torchrun job wait and
join the shared stages. An interrupted stage resumes from its files in the run directory; of a finished one, frames and labels
that have changed are made again.
"""

import time
from itertools import takewhile

from distill.recipe.keys import Recipe
from distill.run import takeover
from distill.run.directory import RunDir
from distill.run.errors import Interrupted
from distill.run.machine.parallel import job
from distill.run.plan import STAGES, inputs, stage_keys
from distill.run.progress import Narrator
from distill.run.stages import WORK, Context
from distill.run.takeover import Source
from distill.training import checkpoint


def carry_out(run: RunDir, recipe: Recipe, narrator: Narrator, until: str = "report", source: Source | None = None) -> None:
    """Brings the run up to date, up to and including the stage `until`. On other ranks than 0: their share of it. source: another run,
    from which stages are taken over where they agree.

    Raises UsageError where the corpus or the weights have changed since the run read them, or another version was interrupted in
    a training that has to continue; Interrupted on Ctrl-C.
    """
    context = Context(run, recipe, narrator)
    try:
        with job() as ranks:
            if ranks.leads:
                if source and not run.manifest["stages"]:  # what that run has read need not be read again to be known
                    run.manifest.setdefault("inputs", {}).update(source.manifest.get("inputs", {}))
                run.check_inputs(inputs(recipe), narrator)
                _carry_out_stages(context, until, source)
            while not ranks.leads and (name := ranks.called(narrator.stop)):
                WORK[name](context)
    except Interrupted:
        if ranks.leads:
            raise  # rank 0 reports it for the whole job


def _carry_out_stages(context: Context, until: str, source: Source | None) -> None:
    run, narrator, keys = context.run, context.narrator, stage_keys(context.recipe)
    wanted = STAGES[: 1 + [stage.name for stage in STAGES].index(until)]
    done = list(takewhile(lambda stage: run.is_done(stage.name, keys[stage.name]), wanted))
    pending = wanted[len(done) :]
    # Another version may have left a training half done: reported before a stage has changed anything.
    unfinished = {"teach": "checkpoints/*_last.pt", "train": "checkpoints/last.pt"}
    for file in (file for stage in pending if stage.name in unfinished for file in run.path.glob(unfinished[stage.name])):
        checkpoint.check_resumable(file)
    for stage in pending:
        for name in run.discard_changed(stage.name, keys[stage.name]):
            narrator.say(f"{stage.name}: {name} is not as it was left, and is made again")
    for stage in done:
        narrator.say(f"{stage.name}: up to date")
    for stage in pending:
        if narrator.stop():
            raise Interrupted(f"before {stage.name}")
        started = time.perf_counter()
        if source and _can_be_taken(context, source, stage.name):
            outputs, facts = takeover.take(run, source, stage.name)
        else:
            if stage.shared:
                job().announce(stage.name)
            outputs, facts = WORK[stage.name](context)
        run.finish(stage.name, keys[stage.name], outputs, time.perf_counter() - started, facts, stage.rewrites)


def _can_be_taken(context: Context, source: Source, stage: str) -> bool:
    """Whether a stage is taken over from another run; says so, or why not."""
    if stage not in takeover.TAKEN:
        return False
    why = takeover.obstacle(source, context.recipe, stage, context.run.manifest["inputs"])
    context.narrator.say(f"{stage}: {f'not taken from {source.path}: {why}' if why else f'taken from {source.path}'}")
    return not why

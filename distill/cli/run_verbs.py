"""Verbs that carry out a run or one of its stages (`run`, `label`, `train`, ...), `eval` and `init`."""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from distill.cli import completion, costs, ending
from distill.cli.options import SHIPPED, CorpusOption, Output, RecipeArgument, RunOptions
from distill.cli.output import (
    interruptible,
    print_files,
    print_json,
    print_prose,
    print_rows,
    print_scores,
    print_text,
    shipped,
)
from distill.cli.which_run import choose_run, corpus_recipe, models_elsewhere
from distill.labels.members import fetched_files
from distill.opallowlist.foreign import toml_text
from distill.recipe.keys import PROTOCOLS, SECTIONS, Recipe
from distill.run.directory import RunDir
from distill.run.errors import Interrupted, UsageError
from distill.run.files import check_distinct, check_writable, read_json
from distill.run.machine import extras, parallel
from distill.run.progress import Narrator
from distill.students.release import release_model

if TYPE_CHECKING:
    from distill.run.estimate import Estimate
    from distill.run.takeover import Source

EVALUATED = f"a run, on another corpus with --root; a recipe; ONNX students; {SHIPPED}, where --root names a corpus"
COPIED = "copy a recipe that ships with this package"
BASELINES = "eval.baselines: image file pooled by mean, ema=ALPHA, max, motion-weighted; repeatable"


def run(
    *,
    recipe: RecipeArgument = None, corpus: CorpusOption = None, options: RunOptions,
    dry_run: Annotated[bool, Option("--dry-run", help="print what would be done, and stop")] = False, output: Output,
) -> None:  # fmt: skip
    """Everything: teach, label, train, export, evaluate, report. Run it again to continue where it stopped.

    Without arguments: the embedded default, a procedural corpus and a small teacher on the CPU.

    [bold]distill run --corpus dhf1k --root DHF1K --teacher maps --maps LABELS[/bold]
    """
    if not dry_run:
        _run_until("report", "run", recipe, corpus, options, output)
        return
    chosen = choose_run(recipe, corpus, options, Narrator(output.quiet))
    extras.require("train")  # before the import, which needs it
    from distill.run import plan

    rows = plan.dry_run(chosen.path, chosen.recipe, options.force)
    if options.source:
        from distill.run import takeover

        taken = takeover.stages_to_take(takeover.open_source(options.source, chosen.path), chosen.recipe)
        rows = [row | {"state": "take over"} if row["stage"] in taken and row["state"] != "done" else row for row in rows]
    cost = _estimate(chosen.recipe, rows, None if options.force else chosen.path)
    if output.as_json:
        print_json({"schema": 1, "run": str(chosen.path), "plan": rows, "estimate": cost and asdict(cost)})
        return
    table = []
    for row in rows:
        expected = cost.seconds.get(row["stage"]) if cost and row["state"] == "to do" else None
        time = costs.told(row["seconds"]) if row["state"] == "done" else f"~{costs.told(expected)}" if expected else ""
        what = "; ".join(filter(None, (row["about"], row["detail"])))
        table.append({"stage": row["stage"], "state": row["state"], "time": time, "what": what})
    print_rows(table, f"plan for {chosen.path}")
    if cost:
        print_prose(*costs.summary(cost, _to_do(rows), chosen.path))


def _to_do(rows: list[dict[str, Any]]) -> list[str]:
    return [row["stage"] for row in rows if row["state"] == "to do"]


def _estimate(recipe: Recipe, rows: list[dict[str, Any]], path: Path | None) -> "Estimate | None":
    """The cost of the stages that are to do; None where they take no time, or the corpus cannot be probed: its stage says why. path: of
    the run that is continued, if there is one."""
    from distill.run import estimate

    if not {"corpus", "frames", "teach", "label", "train"} & {*_to_do(rows)}:
        return None
    with suppress(UsageError):
        found = estimate.survey(recipe)
        cost = estimate.estimate(recipe, found, estimate.probe(recipe, found))
        return estimate.left(cost, recipe.train.steps, path) if path else cost
    return None


def stage_verb(stage: str, about: str) -> Callable[..., None]:
    """The verb that brings a run up to `stage`."""

    def verb(
        *,
        recipe: RecipeArgument = None, corpus: CorpusOption = None, options: RunOptions, output: Output
    ) -> None:  # fmt: skip
        _run_until(stage, stage, recipe, corpus, options, output)

    verb.__doc__ = f"{about} Does the earlier stages first, and skips what is done."
    return verb


def _run_until(
    stage: str, verb: str, recipe: Path | None, corpus: str | None, options: RunOptions, output: Output,
    per_clip: bool = False, table: Path | None = None,
) -> None:  # fmt: skip
    """Brings the run that the options describe up to a stage, and prints its results."""
    leads = parallel.rank() == 0
    narrator = Narrator(output.quiet or not leads)
    chosen = choose_run(recipe, corpus, options, narrator, verb)
    resolved, path = chosen.recipe, chosen.path
    extras.require("train")  # before the imports, which need it
    from distill.run.plan import check_ready

    check_ready(resolved)
    from distill.run import engine, takeover  # after the check, because torch takes seconds to import

    source = takeover.open_source(options.source, path) if options.source else None

    narrator = interruptible(narrator.quiet)
    try:
        with RunDir.create(path, resolved, options.force) as directory:
            narrator.say(f"run: {path}")
            if not directory.manifest["stages"] and "rebuilt" in directory.manifest:
                narrator.say(
                    "run: manifest.json was lost or damaged: all stages are done again, from the files that stand there"
                )
            if verb == "run" and not narrator.quiet:
                _say_plan(directory, source, narrator)
            for file in fetched_files(resolved.teacher):
                narrator.say(f"teacher: {file}, fetched, SHA-256 checked")
            engine.carry_out(directory, resolved, narrator, stage, source)
            if leads:
                _print_result(directory, stage, output.as_json, per_clip, table)
    except (Interrupted, KeyboardInterrupt) as error:
        launcher = ["torchrun", "--nproc-per-node", str(parallel.local_world()), "-m"] if parallel.world() > 1 else []
        command = shlex.join([*launcher, "distill", *(a for a in sys.argv[1:] if a != "--force")])
        kept = f"{error}; saved" if str(error) else "what was saved is kept"
        raise Interrupted(f"{kept}; continue with: {command}") from error


def _say_plan(directory: RunDir, source: "Source | None", narrator: Narrator) -> None:
    """What the run will take; nothing where little is left to do."""
    from distill.run import plan, takeover

    taken = takeover.stages_to_take(source, directory.recipe) if source else []
    rows = [row for row in plan.rows(directory.path, directory.recipe, directory.manifest) if row["stage"] not in taken]
    if cost := _estimate(directory.recipe, rows, directory.path):
        for line in costs.summary(cost, _to_do(rows), directory.path):
            narrator.say(f"plan: {line}")


def _print_result(directory: RunDir, stage: str, as_json: bool, per_clip: bool, table: Path | None) -> None:
    metrics = read_json(directory / "metrics.json") if stage in ("eval", "report") else None
    files = [p for name in ("export/*", "metrics.json", "report.html") for p in sorted(directory.path.glob(name))]
    if stage in ("teach", "train"):
        files = [directory / name for name in directory.manifest["stages"][stage]["outputs"]]
    elif stage == "label":
        files = [directory / "labels"]
    results = {}
    if metrics and metrics["predictors"]:
        from distill.evaluation.statistics import by_corpus
        from distill.evaluation.tables import write_csv

        results = by_corpus(metrics)
        if table:
            write_csv(table, results, per_clip)
    elif table:
        raise UsageError(f"--csv {table}: no held-out clip has fixations, so there are no scores to write")
    if as_json:
        seconds = {name: s["seconds"] for name, s in directory.manifest["stages"].items()}
        facts = {"run": str(directory.path), "stage": stage, "seconds": seconds, "scores": metrics and metrics["predictors"]}
        verdict = ending.verdict(directory, metrics) if stage == "report" and metrics else {}
        print_json({"schema": 1, **facts, **verdict, "files": [str(file) for file in files]})
    elif stage == "report" and metrics:
        said, next_steps = ending.lines(directory, metrics)
        print_prose(*said)
        print_text(*next_steps)
    else:
        for name, result in results.items():
            print_scores(name, result, per_clip)
        print_files(files or [directory.path])


def evaluate(
    *,
    targets: Annotated[list[Path] | None, Argument(metavar="RUN|RECIPE.toml|MODEL.onnx", help=EVALUATED)] = None,
    corpora: Annotated[list[str] | None, Option("--corpus", metavar="NAME", help="corpus.name; repeatable, with a --root each")] = None,
    options: RunOptions,
    baselines: Annotated[list[str] | None, Option("--baseline", metavar="KIND", help=BASELINES)] = None,
    protocol: Annotated[str | None, Option(help=f"eval.protocol: {', '.join(PROTOCOLS)}")] = None,
    per_clip: Annotated[bool, Option("--per-clip", help="also print the NSS of every clip")] = False,
    table: Annotated[Path | None, Option("--csv", metavar="FILE", help="write all values; of clips too with --per-clip")] = None,
    output: Output,
) -> None:  # fmt: skip
    """Score a run's ONNX files; or any ONNX students on all annotated clips of one corpus or several.

    Means with 95 % intervals over clips, and how the first model differs from every other predictor on the same clips.

    [bold]distill eval --root DHF1K[/bold] scores the student that ships with this package.

    [bold]distill eval STUDENT_step.onnx STUDENT.onnx --baseline ema=0.6 --root DHF1K --root AVIMOS[/bold]
    """
    targets, corpora = targets or [], corpora or []
    models = [target for target in targets if target.suffix.lower() == ".onnx"]
    if len(targets) > (len(models) or 1):
        raise UsageError(f"eval takes one run, or ONNX files; got {', '.join(map(str, targets))}")
    if not models and (models := models_elsewhere(next(iter(targets), None), options)):
        options = replace(options, out=None)
    check_writable({"--csv": table})
    check_distinct({"--csv": table}, [("MODEL" if path in models else "RECIPE", path) for path in (*targets, *models)])
    of_run = not models and (targets or options.out or not options.root)
    sets = [f"eval.protocol={toml_text(protocol)}"] if protocol else []
    if baselines or not of_run:  # ONNX files are pooled on request only: there may be no image file among them
        sets.append(f"eval.baselines={toml_text(baselines or [])}")
    options = replace(options, sets=[*sets, *(options.sets or [])])
    if of_run:
        if len(corpora) > 1:
            raise UsageError("a run has one --corpus; several parts are one name, as in dhf1k:1,images:0.5")
        recipe, corpus = next(iter(targets), None), next(iter(corpora), None)
        _run_until("eval", "eval", recipe, corpus, options, output, per_clip, table)
        return
    _refuse_options_of_runs(options)
    narrator = Narrator(output.quiet)
    _check_exist(models)
    resolved = corpus_recipe(corpora, options, narrator)
    from distill.evaluation.evaluate import evaluate_corpora
    from distill.evaluation.tables import write_csv

    models = models or [shipped(narrator), release_model("image")]
    results = evaluate_corpora(models, resolved, interruptible(output.quiet))
    if table:
        write_csv(table, results, per_clip)
    if output.as_json:
        name, result = next(iter(results.items()))
        print_json({"corpus": name, **result} if len(results) == 1 else {"schema": 2, "corpora": results})
        return
    for name, result in results.items():
        print_scores(name, result, per_clip)


def _check_exist(models: list[Path]) -> None:
    if lacking := next((path for path in models if not path.is_file()), None):
        raise UsageError(f"no model at {lacking}")


def _refuse_options_of_runs(options: RunOptions) -> None:
    given = {
        "--teacher": options.teacher, "--maps": options.maps, "--accept-licence": options.accept, "--out": options.out,
        "--force": options.force, "--from": options.source,
    }  # fmt: skip
    if useless := next((option for option, value in given.items() if value), ""):
        raise UsageError(f"{useless} applies to runs; here finished ONNX files are scored: leave it out")
    for text in options.sets or []:
        if (section := text.partition(".")[0].strip()) in SECTIONS.keys() - {"corpus", "eval"}:
            raise UsageError(f"--set {text}: [{section}] applies to runs; here finished ONNX files are scored: leave it out")


def init(
    *,
    folder: Annotated[Path, Argument(metavar="FOLDER", help="where to write recipe.toml")] = Path(),
    name: Annotated[str | None, Option("--from", metavar="NAME", help=COPIED, autocompletion=completion.recipe)] = None,
    listed: Annotated[bool, Option("--list", help="name the recipes that ship")] = False,
    output: Output,
) -> None:
    """Write a commented recipe: every key, its default, its meaning. Or a copy of one that ships, and of what it names.

    [bold]distill init my --from permissive[/bold] writes my/recipe.toml.
    """
    from distill.recipe import shipped as recipes

    if listed:
        if name or folder != Path():
            raise UsageError("--list writes nothing; leave FOLDER and --from out")
        if output.as_json:
            print_json({"schema": 1, "recipes": recipes.shipped()})
        else:
            print_rows([{"recipe": name, "what it is": about} for name, about in recipes.shipped().items()])
        return
    written = recipes.write_copy(name, folder) if name else recipes.write_default(folder)
    if output.as_json:
        print_json({"schema": 1, "files": [str(path) for path in written.files], "lacking": [str(p) for p in written.lacking]})
        return
    print_files(written.files)
    if written.lacking:
        names = ", ".join(map(str, written.lacking))
        Narrator(output.quiet).say(f"not there yet: {names}; put them there, or write into the recipe where yours are")

"""The command line: reads options, calls the pipeline, prints results, and turns errors into one line and an exit code.

Standard output is the result, standard error the narration. Exit codes: 0 done, 1 a gate or check failed, 2 could not
run, 130 interrupted and resumable. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill import __version__
from distill.recipe.files import load_recipe, to_toml
from distill.recipe.keys import PROTOCOLS, Recipe
from distill.run import parallel
from distill.run.directory import TRAIN_MODULES
from distill.run.errors import GateFailed, Interrupted, UsageError
from distill.run.progress import Narrator

PIPELINE, MODEL, HELP = "Pipeline", "Model", "Help"


class _InOrder(typer.core.TyperGroup):
    """Help lists verbs in the order in which a run goes; typer would put `teach`, which has verbs of its own, last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: (name != "run", name != "teach"))


app = typer.Typer(
    name="distill",
    cls=_InOrder,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="From eye-tracking video and a heavyweight teacher to a tiny recurrent saliency student, as verified ONNX.\n\n"
    "[bold]distill run[/bold] without arguments shows it all: a procedural corpus, a small teacher, CPU, a few minutes.",
    epilog="Exit codes: 0 done, 1 a gate or check failed, 2 could not run, 130 interrupted (the same command goes on).",
)

RecipeArgument = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE.toml]", help="recipe; `distill init` writes one", show_default=False)
]
CorpusOption = Annotated[
    str | None,
    typer.Option(
        "--corpus", help="corpus.name: dhf1k, gaze-table, ...; several: dhf1k:1,images:0.5", show_default=False
    ),
]
RootOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", help="corpus.root: the corpus's folder; repeated, one for each of several", show_default=False
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option("--teacher", help="teacher.name; `distill teachers` lists them; several: a+b", show_default=False),
]
MapsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--maps", help="teacher.maps: folder of soft labels; repeated, one for each corpus", show_default=False
    ),
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-licence",
        metavar="NAME",
        help="teacher.accept_licence: a teacher whose licence you have settled",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="run directory; default runs/CORPUS-TEACHER, with a recipe runs/NAME", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override any recipe key; repeatable", show_default=False),
]
ForceOption = Annotated[bool, typer.Option("--force", help="start over: replace the run in --out")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="no narration on standard error")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="CPU threads", min=1)]

EvalArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="MODEL.onnx|RECIPE.toml", help="ONNX students, or a recipe", show_default=False),
]
CorporaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus",
        help="corpus.name; repeated, with a --root each: several corpora, one table each",
        show_default=False,
    ),
]
BaselineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        metavar="KIND",
        help="eval.baselines: image file pooled by mean, ema=ALPHA, max, motion-weighted; repeatable",
        show_default=False,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option("--protocol", help=f"eval.protocol: {', '.join(PROTOCOLS)}", show_default=False),
]
PerClipOption = Annotated[bool, typer.Option("--per-clip", help="also the NSS of every clip")]
CsvOption = Annotated[
    Path | None,
    typer.Option(
        "--csv", metavar="FILE", help="write all values, one per line; of clips too with --per-clip", show_default=False
    ),
]
SizeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="WxH", help="frame size; repeatable; default 640x360, 1920x1080", show_default=False
    ),
]

LayoutOption = Annotated[
    str | None,
    typer.Option("--corpus", help="the corpus, where a look at its folders does not tell", show_default=False),
]
ShowOption = Annotated[
    str | None,
    typer.Option(
        "--show", metavar="CLIP", help="draw frames and gaze of a clip, or of a set of images", show_default=False
    ),
]
SheetOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="with --show: the PNG; default CLIP.png", show_default=False)
]

# What main() needs to know of the call in progress.
_call: dict[str, Any] = {"json": False, "resume": "", "told": False}


def _say_version(value: bool) -> None:
    if value:
        print(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_say_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    pass


def _resolve(
    recipe: Path | None, corpus: str | None, root: list[Path] | None, teacher: str | None, maps: list[Path] | None,
    accept: list[str] | None, out: Path | None, sets: list[str] | None,
) -> tuple[Recipe, Path]:  # fmt: skip
    """The recipe that the options name, and the run directory. A run directory may stand for its own recipe."""
    if recipe is not None and recipe.is_dir():
        if not (recipe / "manifest.json").exists():
            raise UsageError(f"{recipe} is a folder and no run; did you mean {recipe / 'recipe.toml'}?")
        recipe = recipe / "recipe.toml"
    if recipe is not None and (recipe.parent / "manifest.json").exists():
        out = out or recipe.parent  # a run's own recipe is that run
    given = {"corpus.name": corpus, "corpus.root": root, "teacher.name": teacher, "teacher.maps": maps}
    flags = [f"{n}={json.dumps(v if isinstance(v, str) else [str(p) for p in v])}" for n, v in given.items() if v]
    if accept:
        flags.append(f"teacher.accept_licence={json.dumps(accept)}")
    resolved = load_recipe(recipe, [*flags, *(sets or [])])
    if out is None:
        corpora = "+".join(part.partition(":")[0].strip() for part in resolved.corpus.name.split(","))
        name = f"{corpora}-{resolved.teacher.name.replace(':', '')}"
        if recipe is not None:  # what `distill init DIR` writes is always called recipe.toml: DIR tells it apart
            name = recipe.stem if recipe.name != "recipe.toml" else recipe.resolve().parent.name
        out = Path("runs") / name
    return resolved, out


def _run_until(
    until: str, recipe: Path | None, corpus: str | None, root: list[Path] | None, teacher: str | None, maps: list[Path] | None,
    accept: list[str] | None, out: Path | None, sets: list[str] | None, force: bool, as_json: bool, quiet: bool, dry_run: bool = False,
    per_clip: bool = False, table: Path | None = None,
) -> None:  # fmt: skip
    _call["json"] = as_json
    resolved, path = _resolve(recipe, corpus, root, teacher, maps, accept, out, sets)
    from distill.run import plan, preflight
    from distill.run.directory import RunDir

    if dry_run:
        rows = plan.dry_run(path, resolved, force)
        if as_json:
            _print_json({"schema": 1, "run": str(path), "plan": rows})
        else:
            _print_rows(rows, f"plan for {path}")
        return
    preflight.check_ready(resolved)
    from distill.run import engine

    _call["resume"] = _resume_command()
    stop = _stop_on_ctrl_c()
    leads = parallel.rank() == 0
    narrator = Narrator(quiet or not leads, stop)
    with RunDir.create(path, resolved, force) as run:
        narrator.say(f"run: {path}")
        engine.carry_out(run, resolved, narrator, until)
        if leads:
            _print_result(run, until, as_json, per_clip, table)


def _resume_command() -> str:
    arguments = [a for a in sys.argv[1:] if a != "--force"]
    if parallel.world() > 1:
        return shlex.join(["torchrun", "--nproc-per-node", str(parallel.local_world()), "-m", "distill", *arguments])
    return shlex.join(["distill", *arguments])


def _stop_on_ctrl_c() -> Callable[[], bool]:
    """The first Ctrl-C asks for an orderly end, the second ends at once."""
    asked = threading.Event()

    def handle(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if parallel.rank() == 0:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return asked.is_set


def _print_result(run: Any, until: str, as_json: bool, per_clip: bool, table: Path | None) -> None:
    from distill.run.files import read_json

    metrics = read_json(run / "metrics.json") if until in ("eval", "report") else None
    exported = sorted(str(p) for p in (run / "export").glob("*")) if (run / "export").is_dir() else []
    files = [*exported, *(str(run / n) for n in ("metrics.json", "report.html") if (run / n).exists())]
    scored = {}
    if metrics and metrics["predictors"]:
        from distill.evaluation.statistics import by_corpus
        from distill.evaluation.tables import write_csv

        scored = by_corpus(metrics)
        if table:
            write_csv(table, scored, per_clip)
    if as_json:
        scores = metrics["predictors"] if metrics else None
        stages = {name: s["seconds"] for name, s in run.manifest["stages"].items()}
        _print_json(
            {"schema": 1, "run": str(run.path), "stage": until, "seconds": stages, "scores": scores, "files": files}
        )
        return
    for name, result in scored.items():
        _print_scores(name, result, per_clip)
    for file in files:
        print(file)
    if not files:
        print(run.path)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_rows(rows: list[dict[str, str]], title: str = "") -> None:
    table = Table(title=title or None, title_justify="left", title_style="")
    for i, name in enumerate(rows[0] if rows else []):
        number = i > 0 and _numeric(rows, name)
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*(str(v) for v in row.values()))
    # A table that is piped is as wide as it needs to be.
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, width=width).print(table)


def _print_scores(name: str, result: dict[str, Any], per_clip: bool) -> None:
    """Tables of one corpus: scores, differences, clips if wanted. They fit the terminal; piped, nothing is left out."""
    from distill.evaluation.tables import clip_cells, difference_cells, score_cells

    skipped = result["frames_without_fixations"]
    title = (
        f"{name}: {len(result['clips'])} clips, {result['frames_scored']:,} frames"
        + (f", {skipped:,} without fixations skipped" if skipped else "")
        + f"\n{result['protocol']}: {result['about']}; 95 % intervals over clips"
    )
    tables = [(title, "predictor", score_cells(result))]
    if result["differences"]:
        of = result["differences"]["of"]
        tables.append((f"how {of} differs, on the same clips", of, difference_cells(result)))
    if per_clip:
        tables.append(("NSS, clip by clip", "clip", clip_cells(result)))
    for heading, head, cells in tables:
        _print_cells(heading, head, cells)


def _print_cells(heading: str, head: str, cells: list[Any]) -> None:
    """A table that fits the terminal; piped, nothing is left out."""
    from distill.evaluation import tables

    terminal = Console(highlight=False)
    rows, left = tables.fit_to_width(head, cells, terminal.width if terminal.is_terminal else None)
    table = Table()
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    print(heading)
    (terminal if terminal.is_terminal else Console(highlight=False, width=tables.table_width(rows))).print(table)
    if left:
        print(f"no room for {', '.join(left)}: a wider terminal, --csv and --json have them")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _numeric(rows: list[dict[str, str]], name: str) -> bool:
    return all(str(r[name]).replace(".", "").replace("-", "").replace(",", "").isdigit() for r in rows)


@app.command(rich_help_panel=PIPELINE)
def run(
    recipe: RecipeArgument = None, corpus: CorpusOption = None, root: RootOption = None, teacher: TeacherOption = None,
    maps: MapsOption = None, accept: AcceptOption = None, out: OutOption = None, sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and stop")] = False,
    force: ForceOption = False, as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Everything: teach, label, train, export, evaluate, report. Run it again to go on where it stopped.

    Without arguments: the embedded default, a procedural corpus and a small teacher on the CPU.

    [bold]distill run --corpus dhf1k --root DHF1K --teacher maps --maps LABELS[/bold]
    """
    _run_until("report", recipe, corpus, root, teacher, maps, accept, out, sets, force, as_json, quiet, dry_run)


def _stage_verb(name: str, about: str, under: typer.Typer = app, called: str = "") -> None:
    def verb(
        recipe: RecipeArgument = None, corpus: CorpusOption = None, root: RootOption = None, teacher: TeacherOption = None,
        maps: MapsOption = None, accept: AcceptOption = None, out: OutOption = None, sets: SetOption = None,
        force: ForceOption = False, as_json: JsonOption = False, quiet: QuietOption = False,
    ) -> None:  # fmt: skip
        _run_until(name, recipe, corpus, root, teacher, maps, accept, out, sets, force, as_json, quiet)

    verb.__doc__ = f"{about} Brings the run up to this stage: what comes before is done first, what is done is skipped."
    under.command(called or name, rich_help_panel=PIPELINE, hidden=bool(called))(verb)


class _Teach(typer.core.TyperGroup):
    """`distill teach [RECIPE.toml]` is the stage, told apart from the verbs below it by what its first word is not."""

    STAGE = "stage"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [self.STAGE, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.params = self.commands[self.STAGE].params  # help shows the stage's options beside the other verbs
        super().format_help(ctx, formatter)


teach = typer.Typer(
    cls=_Teach,
    help="Train the teacher, or open what is named; or prepare one. Brings the run up to this stage: what comes before is done "
    "first, what is done is skipped.",
)
app.add_typer(teach, name="teach", rich_help_panel=PIPELINE)
_stage_verb("teach", "Train the teacher, or open what is named.", teach, _Teach.STAGE)


@teach.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="published weights: .pt, .pth, .bin, .tar")],
    out: Annotated[Path, typer.Option("--out", "-o", help="what to write: FILE.safetensors")],
    kind: Annotated[str | None, typer.Option("--kind", help="what it is, where its keys do not tell", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Turn published weights into safetensors, checked key by key; no code in the file is run."""
    _call["json"] = as_json
    from distill.labels.convert import convert as write

    facts = write(source, out, kind)
    if as_json:
        _print_json({"schema": 1, **facts})
    else:
        _print_rows([{"": key, " ": _plain(value)} for key, value in facts.items()])


@teach.command("calibrate")
def calibrate(
    run: Annotated[Path, typer.Argument(help="a run with labels")],
    out: Annotated[Path, typer.Option("--out", "-o", help="what to write: a calibration, for teacher.calibration")],
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Fit a run's labels to its corpus: temperature, bias and blur, measured on clips that the fit had not seen.

    The labels of a run are taken over, calibrated, by [bold]--teacher maps --maps RUN/labels --set teacher.calibration=FILE[/bold]
    """
    _call["json"] = as_json
    from distill.evaluation.metrics import LABELS
    from distill.labels.calibrate import calibrate_run

    found = calibrate_run(run, out, Narrator(quiet, _stop_on_ctrl_c()))
    if as_json:
        _print_json({"schema": 1, "files": [str(out)], **found.to_dict()})
        return
    scores = {"as they are": found.before, "calibrated": found.after}
    _print_rows(
        [{"labels": name, **{LABELS[m]: f"{value:.3f}" for m, value in s.items()}} for name, s in scores.items()],
        f"{len(found.clips)} clips, {'each held out in turn' if found.held_out else 'the very clips of the fit'}",
    )
    its, verdict = found.fitted, "" if found.helps else ": no gain, so the labels stay as they are"
    print(f"temperature {its.temperature:.3g}, bias {its.bias:.3g}, blur {its.blur:g}{verdict}")
    print(out)


_stage_verb("label", "Write the teacher's soft labels.")
_stage_verb("train", "Train the student.")
_stage_verb("export", "Write, gate, compare and name the ONNX files.")
_stage_verb("report", "Write report.html.")


@app.command("eval", rich_help_panel=PIPELINE)
def evaluate(
    targets: EvalArgument = None,
    corpora: CorporaOption = None, root: RootOption = None, teacher: TeacherOption = None, maps: MapsOption = None,
    accept: AcceptOption = None, out: OutOption = None, baselines: BaselineOption = None, protocol: ProtocolOption = None,
    sets: SetOption = None, per_clip: PerClipOption = False, table: CsvOption = None, force: ForceOption = False,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Score the run's ONNX files; or any ONNX students on all annotated clips of one corpus or several.

    Means with 95 % intervals over clips, and how the first model differs from every other predictor on the same clips.

    [bold]distill eval STUDENT_step.onnx STUDENT.onnx --baseline ema=0.6 --corpus dhf1k --root A --corpus avimos --root B[/bold]
    """
    models = [target for target in targets or [] if target.suffix.lower() == ".onnx"]
    flags = [f"eval.protocol={json.dumps(protocol)}"] if protocol else []
    if baselines or models:  # ONNX files are pooled where that is asked for: there may be no image file among them
        flags.append(f"eval.baselines={json.dumps(baselines or [])}")
    if not models:
        if targets and len(targets) > 1:
            raise UsageError(f"eval takes one run, or ONNX files; got {', '.join(map(str, targets))}")
        if corpora and len(corpora) > 1:
            raise UsageError("a run has one --corpus; several parts are one name, as in dhf1k:1,images:0.5")
        target, corpus = targets[0] if targets else None, corpora[0] if corpora else None
        _run_until(
            "eval", target, corpus, root, teacher, maps, accept, out, [*flags, *(sets or [])], force, as_json, quiet,
            per_clip=per_clip, table=table,
        )  # fmt: skip
        return
    if len(models) < len(targets or []):
        raise UsageError(f"eval takes one run, or ONNX files; got {', '.join(map(str, targets or []))}")
    _call["json"] = as_json
    resolved, _ = _resolve(None, ",".join(corpora or ["dhf1k"]), root, None, None, None, None, [*flags, *(sets or [])])
    if not root:
        raise UsageError("which clips? give the corpus's folder with --root")
    from distill.evaluation.evaluate import evaluate_corpora
    from distill.evaluation.tables import write_csv

    results = evaluate_corpora(models, resolved, Narrator(quiet, _stop_on_ctrl_c()))
    if table:
        write_csv(table, results, per_clip)
    if as_json:
        first = next(iter(results))
        alone = {"corpus": first, **results[first]}
        _print_json(alone if len(results) == 1 else {"schema": 2, "corpora": results})
        return
    for name, result in results.items():
        _print_scores(name, result, per_clip)


@app.command(rich_help_panel=PIPELINE)
def init(
    folder: Annotated[Path, typer.Argument(help="where to write recipe.toml")] = Path(), as_json: JsonOption = False
) -> None:
    """Write a commented recipe: every key, its default, what it means."""
    _call["json"] = as_json
    path = folder / "recipe.toml"
    if path.exists():
        raise UsageError(f"{path} exists; remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(to_toml(Recipe(), comments=True), encoding="utf-8")
    _print_json({"schema": 1, "files": [str(path)]}) if as_json else print(path)


@app.command(rich_help_panel=MODEL)
def predict(
    video: Annotated[Path, typer.Argument(help="a video file")],
    model: Annotated[Path, typer.Option("--model", "-m", help="ONNX student, step or image file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="overlay video (.mp4, .avi), maps (.npy), or a folder of 8-bit PNGs")],
    threads: ThreadsOption = 1, as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Run a student over a video: an overlay to look at, or the maps themselves."""
    from distill.tools.predict import write_predictions

    _call["json"] = as_json
    path = write_predictions(video, model, out, threads, Narrator(quiet, _stop_on_ctrl_c()))
    _print_json({"schema": 1, "files": [str(path)]}) if as_json else print(path)


@app.command(rich_help_panel=MODEL)
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files")],
    size: SizeOption = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", help="CPU threads; repeatable; default 1", min=1, show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="timed frames of each model", min=1)] = 9,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="MODEL", help="base of the ratios; default: the last", show_default=False)
    ] = None,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Several models side by side, in one run, taking turns: time, peak memory, multiply-adds, share of the machine's ceiling.

    A model with state carries it. What else runs on the machine lowers every number.
    """
    _call["json"] = as_json
    from distill.tools.bench import measure

    found = measure(models, size or ["640x360", "1920x1080"], threads or [1], rounds, against, Narrator(quiet))
    if as_json:
        _print_json({"schema": 2, "rounds": rounds, **found.to_dict()})
        return
    for ceiling in found.ceilings:
        for size_ in dict.fromkeys(row.size for row in found.rows):
            rows = [row for row in found.rows if (row.size, row.threads) == (size_, ceiling.threads)]
            print(
                f"{size_}, {ceiling.threads} thread{'s' if ceiling.threads > 1 else ''}, {rounds} frames each, ratios to {found.against}"
            )
            _print_bench(rows)
        print(f"ceiling: {ceiling.gmac_per_s:.1f} GMAC/s, {ceiling.of}, the best of the same turns")
    print("MiB: peak of a process of its own, above onnxruntime and the frame")


def _print_bench(rows: list[Any]) -> None:
    """One size on so many threads: 80 columns are enough."""

    def short(value: float | None) -> str:
        return "-" if value is None else f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("model", overflow="fold")
    for head in (
        "median\nms",
        "p90\nms",
        "times\nfaster",
        "peak\nMiB",
        "of\nbase",
        "GMAC",
        "param-\neters",
        "of\nceiling",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.model.removesuffix(".onnx"), short(row.median_ms), short(row.p90_ms), short(row.speedup), short(row.peak_mib),
            short(row.memory_ratio), "-" if row.gmac is None else f"{row.gmac:.3f}", f"{row.parameters / 1e3:,.0f} K",
            "-" if row.ceiling_fraction is None else f"{row.ceiling_fraction:.0%}",
        )  # fmt: skip
    terminal = Console(highlight=False)
    (terminal if terminal.is_terminal else Console(highlight=False, width=100)).print(table)


@app.command(rich_help_panel=MODEL)
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="ONNX student in floating point, step or image file")],
    corpus: LayoutOption = None, root: RootOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder for the package; default MODEL_int8", show_default=False)
    ] = None,
    size: SizeOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="write it even where it is not faster, or its maps differ")] = False,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """A student in int8: ranges from clips of a corpus, what is lost measured on others; written only where it is faster.

    A package of its own: the model, its sibling in int8, and a sidecar by which the downstream opens that one.
    """
    _call["json"] = as_json
    if not root:
        raise UsageError("which clips? give the corpus's folder with --root")
    from distill.tools.inspect import corpus_in
    from distill.tools.quantize import quantise_file

    resolved, _ = _resolve(None, corpus or corpus_in(root[0]) or "dhf1k", root, None, None, None, None, None)
    folder = out or model.with_name(f"{model.stem}_int8")
    found = quantise_file(model, folder, resolved, size or ["640x360", "1920x1080"], keep, Narrator(quiet))
    if as_json:
        _print_json({"schema": 1, **found})
        return
    for size_, time in found["times"].items():
        print(
            f"{size_}, one thread: {time['float_ms']:.2f} ms in float, {time['int8_ms']:.2f} ms in int8, {time['speedup']:.2f} times "
            f"as fast, won {time['turns_won']:.0%} of the turns"
        )
    drift = found["drift"]
    print(
        f"maps differ by {drift['mean_abs']:.4f} in the mean and {drift['max_abs']:.3f} at most, and correlate by {drift['plcc']:.5f}, "
        f"over {drift['frames']} frames of {len(found['held_out'])} held-out clips"
    )
    if found["scores"]:
        _print_scores("held out", found["scores"], False)
    for file in found["files"]:
        print(file)


@app.command(rich_help_panel=MODEL)
def luma(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="image file of a run's export")],
    size: Annotated[
        list[str] | None, typer.Option("--size", metavar="WxH", help="the clip's size; repeatable: a file for each", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="folder to write to; default the model's", show_default=False)
    ] = None,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """A student for one frame size and luma alone, for consumers that know no other; gated, and compared with the image file.

    [bold]distill luma STUDENT.onnx --size 1920x1080[/bold] writes STUDENT_luma_1920x1080.onnx, its sidecar and registry entry.
    """
    _call["json"] = as_json
    from distill.tools.luma import write_luma

    made = write_luma(model, size or [], out, Narrator(quiet))
    if as_json:
        _print_json({"schema": 1, "made": made})
        return
    for one in made:
        gap = one["parity"]["max_abs"]
        print(f"{one['size']}: {one['bytes']:,} bytes, {gap:.1e} from the image file's maps at most")
        for file in one["files"]:
            print(file)


NeutralOption = Annotated[
    str,
    typer.Option(
        "--neutral",
        help="what stays as without a map: bits (the size, about), mean (the mean offset is 0), off (nothing)",
    ),
]


@app.command(rich_help_panel=MODEL)
def encode(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="a video file")],
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUTPUT]", help=".mp4, .mkv, ...; may be left out with --roi-out", show_default=False)
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="ONNX student, step or image file", show_default=False)] = None,
    map_: Annotated[
        str | None, typer.Option("--map", help="instead of a model: centre (a centred Gaussian), none", show_default=False)
    ] = None,
    codec: Annotated[str, typer.Option("--codec", help="x264 or x265")] = "x264",
    crf: Annotated[float | None, typer.Option("--crf", help="constant quality; default 23 (x264), 28 (x265)", show_default=False)] = None,
    bitrate: Annotated[int | None, typer.Option("--bitrate", help="kbit/s, instead of --crf", min=1, show_default=False)] = None,
    preset: Annotated[str, typer.Option("--preset", help="the encoder's")] = "medium",
    params: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="the encoder's own options; repeatable", show_default=False)
    ] = None,
    strength: Annotated[float, typer.Option("--strength", help="QP that a map moves a block at most, up and down", min=0, max=12)] = 4,
    block: Annotated[int, typer.Option("--block", help="pixels: 16, 32, 64")] = 16,
    prior: Annotated[float, typer.Option("--prior", help="share of a centred Gaussian in the map", min=0, max=1)] = 0.5,
    neutral: NeutralOption = "bits",
    cuts: Annotated[bool, typer.Option("--cuts/--no-cuts", help="scene cuts reset the model's state")] = True,
    roi_out: Annotated[
        Path | None, typer.Option("--roi-out", metavar="FILE", help="write the maps for another encoder", show_default=False)
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="of --roi-out: kvazaar (text, or *.bin), svt-av1, addroi", show_default=False)
    ] = None,
    video_only: Annotated[bool, typer.Option("--video-only", help="leave audio and subtitles out")] = False,
    threads: Annotated[int, typer.Option("--threads", help="of model and encoder; 0: one, and as many as it likes", min=0)] = 0,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Encode a video with more bits where people look: x264 or x265, a QP offset for every block of every frame.

    [bold]distill encode in.mp4 out.mp4 --model STUDENT_step.onnx --codec x265 --crf 26[/bold]
    """
    _call["json"] = as_json
    from distill.encoding import encode as encoding

    encoding.check_shaping(block, neutral)
    wanted = encoding.request(target, map_, (roi_out, format_))
    coding = encoding.Coding(codec, crf, bitrate, preset, tuple(params or ()), threads)
    shaping = encoding.Shaping(strength, block, neutral, prior=prior)
    maps = encoding.open_maps(model, map_, cuts, threads or 1)
    facts = encoding.encode(
        source, target, maps, coding, shaping, Narrator(quiet, _stop_on_ctrl_c()), wanted, video_only
    )
    if as_json:
        _print_json({"schema": 1, **facts})
        return
    offsets = facts["offsets"]
    if target:
        print(f"{facts['frames']} frames, {facts['bytes']:,} bytes of video, {facts['kbps']:g} kbit/s")
    if offsets:
        print(
            "QP offsets from {lowest:+d} to {highest:+d}, mean {mean:+.2f}; they change in {changes} frames".format(
                **offsets
            )
        )
    for file in facts["files"]:
        print(file)


@app.command(rich_help_panel=MODEL)
def bd(
    inputs: Annotated[list[Path] | None, typer.Argument(metavar="[INPUT...]", help="videos", show_default=False)] = None,
    models: Annotated[list[Path] | None, typer.Option("--model", "-m", help="ONNX student; repeatable", show_default=False)] = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", metavar="ONNX", help="says where people look where no gaze does; none of --model", show_default=False),
    ] = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="clips with gaze: corpus.name", show_default=False)] = None,
    root: Annotated[Path | None, typer.Option("--root", help="the corpus's folder", show_default=False)] = None,
    clips: Annotated[
        str | None, typer.Option("--clips", metavar="ID,ID", help="of the corpus; default: all with gaze", show_default=False)
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="of each clip, from its first", min=2)] = 100,
    codec: Annotated[str, typer.Option("--codec", help="x264 or x265")] = "x264",
    crfs: Annotated[str, typer.Option("--crf", metavar="N,N", help="the rates; two or more")] = "22,27,32,37",
    preset: Annotated[str, typer.Option("--preset", help="the encoder's")] = "medium",
    strength: Annotated[float, typer.Option("--strength", help="QP that a map moves a block at most, up and down", min=0, max=12)] = 4,
    block: Annotated[int, typer.Option("--block", help="pixels: 16, 32, 64")] = 16,
    prior: Annotated[float, typer.Option("--prior", help="share of a centred Gaussian in a model's map", min=0, max=1)] = 0.5,
    neutral: NeutralOption = "bits",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="PNG", help="draw the curves", show_default=False)] = None,
    table: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="write all values, one per line", show_default=False)] = None,
    threads: Annotated[int, typer.Option("--threads", help="of the encoder; 0: as many as it likes", min=0)] = 0,
    as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """What a map buys: BD-rate with a centred Gaussian's map and each model's, against none; all pixels alike, and where people look.

    [bold]distill bd --corpus dhf1k --root DHF1K --clips 601,602 --model STUDENT_step.onnx -o curves.png[/bold]
    """
    _call["json"] = as_json
    from distill.encoding import bd as measure
    from distill.encoding.encode import Coding, Shaping, check_shaping

    check_shaping(block, neutral)
    try:
        points = [float(text) for text in crfs.split(",")]
    except ValueError:
        raise UsageError(f"--crf {crfs}: numbers are wanted, as in 22,27,32,37") from None
    for file in (out, table):  # encodes take long: what cannot be written is told before
        if file and (file.is_dir() or any(parent.is_file() for parent in file.absolute().parents)):
            raise UsageError(f"{file} cannot be written: it is {'a folder' if file.is_dir() else 'below a file'}")
    narrator = Narrator(quiet, _stop_on_ctrl_c())
    takes = measure.sources(inputs or [], corpus, root, clips, frames, narrator)
    coding, shaping = Coding(codec, preset=preset, threads=threads), Shaping(strength, block, neutral, prior=prior)
    result = measure.compare(takes, measure.named(models or []), coding, shaping, points, narrator, judge)
    result["files"] = [str(path) for path in (out, table) if path]
    if out:
        measure.plot(result, out)
    if table:
        measure.write_csv(result, table)
    if as_json:
        _print_json({"schema": 1, **result})
    else:
        done = len(result["clips"])
        _print_cells(
            f"{codec} {preset}, CRF {crfs}, strength {strength:g}, against no map",
            "clip, map",
            measure.clip_cells(result),
        )
        if done > 1:
            few = "; of so few they are too narrow" if done < measure.FEW else ""
            _print_cells(f"mean over {done} clips, and 95 % intervals{few}", "map", measure.mean_cells(result))
            if result["differences"]:
                _print_cells("how maps differ, on the same clips", "", measure.difference_cells(result))
        for line in [*measure.legend(result), *result["files"]]:
            print(line)
    if result["unfinished"]:
        raise Interrupted(f"bd, after {len(result['clips'])} of {len(takes)} clips")


@app.command(rich_help_panel=HELP)
def teachers(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="one teacher in full", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Which teachers there are, what their licences allow, where their weights are to be had, and what they cost."""
    _call["json"] = as_json
    from distill.labels import catalogue

    entries = catalogue.entries(name)
    if as_json:
        _print_json({"schema": 1, "teachers": [dataclasses.asdict(entry) for entry in entries]})
    elif name is None:
        _print_rows([catalogue.row(entry) for entry in entries], "teachers")
        print("`distill teachers NAME` shows one in full; those without a licence want --accept-licence NAME")
    else:
        for entry in entries:
            _print_rows([{"": key, " ": value} for key, value in catalogue.details(entry).items()])


@app.command(rich_help_panel=HELP)
def inspect(
    path: Annotated[Path, typer.Argument(help="run directory, soft-label store, corpus root, or ONNX file")],
    corpus: LayoutOption = None,
    show: ShowOption = None,
    out: SheetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What is this run, store, corpus or model, and is it sound?

    Of a corpus: clips, frames, fixations, observers, what is missing or broken, and the blur of its maps.
    """
    _call["json"] = as_json
    from distill.tools.inspect import corpus_in, describe

    if name := corpus or corpus_in(path):
        _inspect_corpus(path, name, show, out, as_json, quiet)
        return
    if show:
        raise UsageError(f"--show is for the clips of a corpus, and {path} is none")
    facts = describe(path)
    if as_json:
        _print_json({"schema": 1, **facts})
    else:
        _print_rows(
            [{"": k, " ": _plain(v)} for k, v in facts.items()],
            str(path),
        )
    if str(facts.get("gate", "")).startswith("refused"):
        if as_json:
            raise typer.Exit(1)
        raise GateFailed(f"{path} is refused by the gate")


def _inspect_corpus(path: Path, name: str, show: str | None, out: Path | None, as_json: bool, quiet: bool) -> None:
    from distill.tools import look

    if out and not show:
        raise UsageError("-o is for --show CLIP, which draws one")
    found, facts = look.describe_corpus(path, name, Narrator(quiet, _stop_on_ctrl_c()).track)
    if show:
        facts["files"] = [str(look.write_sheet(found, show, out or Path(f"{show}.png")))]
    if as_json:
        _print_json({"schema": 1, **facts})
    else:
        _print_rows(look.rows(facts), str(path))
        _print_rows([{"": word, " ": value} for word, value in look.summary(facts).items()])
        for file in facts.get("files", []):
            print(file)
    if facts["broken"]:
        if as_json:
            raise typer.Exit(1)
        names = ",".join(facts["broken"])
        raise GateFailed(
            f"{len(facts['broken'])} clips cannot be used; restore them, or leave them out: --set corpus.skip={names}"
        )


@app.command(rich_help_panel=HELP)
def doctor(as_json: JsonOption = False) -> None:
    """What is this machine: versions, devices, what is missing."""
    _call["json"] = as_json
    from distill.tools.inspect import machine

    facts = machine()
    if as_json:
        _print_json({"schema": 1, **facts})
    else:
        _print_rows([{"": k, " ": str(v)} for k, v in facts.items()], "doctor")
    if facts["missing"]:
        raise GateFailed(f"{facts['missing']} not installed; pip install 'saliency-distill[train]'")


# --- exit codes ------------------------------------------------------------------------------------------------------

_CLICK_EXCEPTION = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """The console script: runs the command line and exits with the house's codes."""
    # Before torch loads its OpenMP: threads that spin while they wait cost a training step 3 to 20 times its time
    # on a machine where anything else runs, and gain nothing measurable where nothing does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        code = _report_error(error, debug)
    except KeyboardInterrupt:
        code = 130
    if code == 130 and not _call["told"]:  # typer turns a KeyboardInterrupt into an exit code
        _fail(_interrupted("at once"), 130)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 0
    _leave(code or 0)


def _leave(code: int) -> None:
    # The reader of a pipe may be gone: nothing more is written at exit.
    try:
        sys.stdout.close()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _report_error(error: Exception, debug: bool) -> int:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if debug:
        traceback.print_exception(error)
    if isinstance(error, _CLICK_EXCEPTION):
        return _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    if isinstance(error, GateFailed):
        return _fail(str(error), 1)
    if isinstance(error, Interrupted):
        return _fail(_interrupted(str(error)), 130)
    if isinstance(error, UsageError):
        return _fail(str(error), 2)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _fail(
            f"the disk is full{f' at {error.filename}' if error.filename else ''}; free some space and run the command again",
            2,
        )
    if isinstance(error, OSError):
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in TRAIN_MODULES:
        return _fail(f"{error.name} is not installed; pip install 'saliency-distill[train]'", 2)
    return _fail(f"internal error: {type(error).__name__}: {error}; --debug before the verb shows where", 2)


def _interrupted(where: str) -> str:
    return f"interrupted: {where}" + (f"; saved, this goes on: {_call['resume']}" if _call["resume"] else "")


def _fail(message: str, code: int) -> int:
    _call["told"] = True
    line = " ".join(message.split())
    if _call["json"]:
        _print_json({"schema": 1, "error": line, "exit_code": code})
    print(f"distill: {line}", file=sys.stderr)
    return code

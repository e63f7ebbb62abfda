"""The command line: reads options, calls the pipeline, prints results, and turns errors into one line and an exit code.

Standard output is the result, standard error the narration. Exit codes: 0 done, 1 a gate or check failed, 2 could not
run, 130 interrupted and resumable. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

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
from rich.console import Console
from rich.table import Table

from distill import __version__, config
from distill.errors import GateFailed, Interrupted, UsageError
from distill.progress import Narrator
from distill.run_dir import TRAIN_MODULES

PIPELINE, MODEL, HELP = "Pipeline", "Model", "Help"

app = typer.Typer(
    name="distill",
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
CorpusOption = Annotated[str | None, typer.Option("--corpus", help="corpus.name: synthetic, dhf1k", show_default=False)]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="corpus.root: the folder with video/ and annotation/", show_default=False)
]
TeacherOption = Annotated[str | None, typer.Option("--teacher", help="teacher.name: visage, maps", show_default=False)]
MapsOption = Annotated[
    Path | None, typer.Option("--maps", help="teacher.maps: folder of soft labels", show_default=False)
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
    Path | None,
    typer.Argument(metavar="[MODEL.onnx | RECIPE.toml]", help="an ONNX student, or a recipe", show_default=False),
]
SizeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="WxH", help="frame size; repeatable; default 640x360, 1920x1080", show_default=False
    ),
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
    recipe: Path | None, corpus: str | None, root: Path | None, teacher: str | None, maps: Path | None,
    out: Path | None, sets: list[str] | None,
) -> tuple[config.Recipe, Path]:  # fmt: skip
    """The recipe that the options name, and the run directory. A run directory may stand for its own recipe."""
    if recipe is not None and recipe.is_dir():
        if not (recipe / "manifest.json").exists():
            raise UsageError(f"{recipe} is a folder and no run; did you mean {recipe / 'recipe.toml'}?")
        recipe = recipe / "recipe.toml"
    if recipe is not None and (recipe.parent / "manifest.json").exists():
        out = out or recipe.parent  # a run's own recipe is that run
    given = {"corpus.name": corpus, "corpus.root": root, "teacher.name": teacher, "teacher.maps": maps}
    flags = [f"{name}={json.dumps(str(value))}" for name, value in given.items() if value is not None]
    resolved = config.load(recipe, [*flags, *(sets or [])])
    if out is None:
        name = f"{resolved.corpus.name}-{resolved.teacher.name}"
        if recipe is not None:  # what `distill init DIR` writes is always called recipe.toml: DIR tells it apart
            name = recipe.stem if recipe.name != "recipe.toml" else recipe.resolve().parent.name
        out = Path("runs") / name
    return resolved, out


def _run_until(
    until: str, recipe: Path | None, corpus: str | None, root: Path | None, teacher: str | None, maps: Path | None,
    out: Path | None, sets: list[str] | None, force: bool, as_json: bool, quiet: bool, dry_run: bool = False,
) -> None:  # fmt: skip
    _call["json"] = as_json
    resolved, path = _resolve(recipe, corpus, root, teacher, maps, out, sets)
    from distill import pipeline
    from distill.run_dir import RunDir

    if dry_run:
        rows = pipeline.plan(path, resolved, force)
        if as_json:
            _print_json({"schema": 1, "run": str(path), "plan": rows})
        else:
            _print_rows(rows, f"plan for {path}")
        return
    pipeline.check_ready(resolved)
    _call["resume"] = _resume_command()
    stop = _stop_on_ctrl_c()
    narrator = Narrator(quiet, stop)
    with RunDir.create(path, resolved, force) as run:
        narrator.say(f"run: {path}")
        pipeline.carry_out(run, resolved, narrator, until)
        _print_result(run, until, as_json)


def _resume_command() -> str:
    arguments = [a for a in sys.argv[1:] if a != "--force"]
    return shlex.join(["distill", *arguments])


def _stop_on_ctrl_c() -> Callable[[], bool]:
    """The first Ctrl-C asks for an orderly end, the second ends at once."""
    asked = threading.Event()

    def handle(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return asked.is_set


def _print_result(run: Any, until: str, as_json: bool) -> None:
    from distill.card import LABELS
    from distill.run_dir import read_json

    metrics = read_json(run / "metrics.json") if until in ("eval", "report") else None
    exported = sorted(str(p) for p in (run / "export").glob("*")) if (run / "export").is_dir() else []
    files = [*exported, *(str(run / n) for n in ("metrics.json", "report.html") if (run / n).exists())]
    if as_json:
        scores = metrics["predictors"] if metrics else None
        stages = {name: s["seconds"] for name, s in run.manifest["stages"].items()}
        _print_json(
            {"schema": 1, "run": str(run.path), "stage": until, "seconds": stages, "scores": scores, "files": files}
        )
        return
    if metrics and metrics["predictors"]:
        rows = [
            {"predictor": n, **{LABELS[m]: f"{s[m]:.3f}" for m in LABELS}} for n, s in metrics["predictors"].items()
        ]
        _print_rows(rows, f"{len(metrics['clips'])} validation clips, {metrics['frames_scored']} frames")
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


def _numeric(rows: list[dict[str, str]], name: str) -> bool:
    return all(str(r[name]).replace(".", "").replace("-", "").replace(",", "").isdigit() for r in rows)


@app.command(rich_help_panel=PIPELINE)
def run(
    recipe: RecipeArgument = None, corpus: CorpusOption = None, root: RootOption = None, teacher: TeacherOption = None,
    maps: MapsOption = None, out: OutOption = None, sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and stop")] = False,
    force: ForceOption = False, as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Everything: teach, label, train, export, evaluate, report. Run it again to go on where it stopped.

    Without arguments: the embedded default, a procedural corpus and a small teacher on the CPU.

    [bold]distill run --corpus dhf1k --root DHF1K --teacher maps --maps LABELS[/bold]
    """
    _run_until("report", recipe, corpus, root, teacher, maps, out, sets, force, as_json, quiet, dry_run)


def _stage_verb(name: str, about: str) -> None:
    def verb(
        recipe: RecipeArgument = None, corpus: CorpusOption = None, root: RootOption = None, teacher: TeacherOption = None,
        maps: MapsOption = None, out: OutOption = None, sets: SetOption = None, force: ForceOption = False,
        as_json: JsonOption = False, quiet: QuietOption = False,
    ) -> None:  # fmt: skip
        _run_until(name, recipe, corpus, root, teacher, maps, out, sets, force, as_json, quiet)

    verb.__doc__ = f"{about} Brings the run up to this stage: what comes before is done first, what is done is skipped."
    app.command(name, rich_help_panel=PIPELINE)(verb)


_stage_verb("teach", "Train the teacher.")
_stage_verb("label", "Write the teacher's soft labels.")
_stage_verb("train", "Train the student.")
_stage_verb("export", "Write, gate, compare and name the ONNX files.")
_stage_verb("report", "Write report.html.")


@app.command("eval", rich_help_panel=PIPELINE)
def evaluate(
    target: EvalArgument = None,
    corpus: CorpusOption = None, root: RootOption = None, teacher: TeacherOption = None, maps: MapsOption = None,
    out: OutOption = None, sets: SetOption = None, force: ForceOption = False, as_json: JsonOption = False, quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Score the run's ONNX files; or any ONNX student on all annotated clips of a corpus.

    [bold]distill eval MODEL.onnx --corpus dhf1k --root DIR[/bold]
    """
    if target is None or target.suffix.lower() != ".onnx":
        _run_until("eval", target, corpus, root, teacher, maps, out, sets, force, as_json, quiet)
        return
    _call["json"] = as_json
    resolved, _ = _resolve(None, corpus or "dhf1k", root, None, None, None, sets)
    from distill.corpora import open_corpus
    from distill.evaluate import centre_gaussian, load_predictor
    from distill.evaluate import evaluate as score

    if root is None:
        raise UsageError("which clips? give the corpus's folder with --root")
    validated = load_predictor(target).metadata.get("validation_clips")
    narrator = Narrator(quiet, _stop_on_ctrl_c())
    options = resolved.corpus
    found = open_corpus(options.name, Path(options.root), options.skip, narrator.track)
    clips = found.select(options.val_clips) if options.val_clips else list(found.clips)
    if validated and not options.val_clips:
        narrator.say(
            f"eval: all clips are scored; if {target.name} was trained on this corpus, only {validated} were held out: "
            f"--set corpus.val_clips={validated}"
        )
    result = score(
        {target.name: target},
        {"centred Gaussian": centre_gaussian},
        clips,
        resolved.eval.stride,
        resolved.eval.threads,
        narrator,
    )
    if as_json:
        _print_json(result)
        return
    from distill.card import LABELS

    rows = [{"predictor": n, **{LABELS[m]: f"{s[m]:.3f}" for m in LABELS}} for n, s in result["predictors"].items()]
    skipped = result["frames_without_fixations"]
    _print_rows(
        rows,
        f"{len(result['clips'])} clips, {result['frames_scored']} frames"
        + (f", {skipped} without fixations skipped" if skipped else ""),
    )


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
    path.write_text(config.to_toml(config.Recipe(), comments=True), encoding="utf-8")
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
    from distill.predict import write_predictions

    _call["json"] = as_json
    path = write_predictions(video, model, out, threads, Narrator(quiet, _stop_on_ctrl_c()))
    _print_json({"schema": 1, "files": [str(path)]}) if as_json else print(path)


@app.command(rich_help_panel=MODEL)
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files")],
    size: SizeOption = None,
    threads: ThreadsOption = 1,
    rounds: Annotated[int, typer.Option("--rounds", help="timed runs of each model", min=1)] = 9,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Latency of several models side by side: one run, taking turns, median. The last model is the ratio's base."""
    _call["json"] = as_json
    from distill.bench import measure

    rows = measure(models, size or ["640x360", "1920x1080"], threads, rounds)
    if as_json:
        _print_json({"schema": 1, "threads": threads, "rounds": rounds, "results": rows})
        return
    _print_rows(
        [
            {
                "size": r["size"],
                "model": r["model"],
                "median ms": f"{r['median_ms']:.2f}",
                f"x {models[-1].name}": f"{r['speedup']:.1f}",
            }
            for r in rows
        ],
        f"{threads} thread{'s' if threads > 1 else ''}, median of {rounds}",
    )


@app.command(rich_help_panel=HELP)
def inspect(
    path: Annotated[Path, typer.Argument(help="run directory, soft-label store, corpus root, or ONNX file")],
    as_json: JsonOption = False,
) -> None:
    """What is this run, store, corpus or model, and is it sound?"""
    _call["json"] = as_json
    from distill.inspect import describe

    facts = describe(path)
    if as_json:
        _print_json({"schema": 1, **facts})
    else:
        _print_rows(
            [{"": k, " ": v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)} for k, v in facts.items()],
            str(path),
        )
    if str(facts.get("gate", "")).startswith("refused"):
        if as_json:
            raise typer.Exit(1)
        raise GateFailed(f"{path} is refused by the gate")


@app.command(rich_help_panel=HELP)
def doctor(as_json: JsonOption = False) -> None:
    """What is this machine: versions, devices, what is missing."""
    _call["json"] = as_json
    from distill.inspect import machine

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

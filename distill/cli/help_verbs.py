"""Verbs around a run: `teachers`, `inspect` and `doctor` describe; `teachers fetch`, `teach convert` and `teach calibrate` prepare a
teacher."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distill.cli import completion
from distill.cli.options import SHIPPED, JsonOption, LayoutOption, Output
from distill.cli.output import interruptible, print_facts, print_files, print_json, print_rows, print_text, shipped
from distill.labels import fetched
from distill.labels.catalogue import details, entries, row
from distill.run.errors import GateFailed, Interrupted, UsageError
from distill.run.progress import Narrator

INSPECTED = f"run directory, soft-label store, corpus root, or ONNX file; {SHIPPED}"


def inspect(
    *,
    path: Annotated[Path | None, Argument(metavar="PATH", help=INSPECTED)] = None,
    corpus: LayoutOption = None,
    show: Annotated[str | None, Option(metavar="CLIP", help="draw frames and gaze of a clip, or of a set of images")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="with --show: the PNG; default CLIP.png")] = None,
    output: Output,
) -> None:  # fmt: skip
    """Describe a run directory, label store, corpus or ONNX file, and check it.

    For a corpus: clips, frames, fixations, observers, what is missing or broken, and the blur of its maps.
    """
    from distill.tools.inspect_files import corpus_in, describe

    path = path or shipped(Narrator(output.quiet))
    if out and not show:
        raise UsageError("-o names the drawing of --show CLIP; give both")
    name = corpus or corpus_in(path)
    if corpus and not path.is_dir():
        raise UsageError(f"--corpus names the layout of a corpus, and {path} is a file; leave it out")
    if not name:
        if show:
            raise UsageError(f"--show draws a clip of a corpus, and {path} is not a corpus")
        facts = describe(path)
        print_facts(facts, str(path), output.as_json)
        if damaged := facts.get("damaged"):
            more = f", and {len(damaged) - 1} more" if damaged[1:] else ""
            raise GateFailed(f"{path}: {damaged[0]}{more}; {facts['way out']}")
        if str(facts.get("gate", "")).startswith("refused"):
            raise GateFailed(f"{path} is refused by the gate")
        return
    from distill.tools.inspect_corpus import describe_corpus, summary, table_rows

    surveyed, facts = describe_corpus(path, name, interruptible(output.quiet).track, show or "")
    if show and not surveyed.clips:
        raise UsageError(f"--show: {next(iter(facts['broken'].values()))}")
    if show:
        from distill.tools.corpus_sheet import write_sheet

        facts["files"] = [str(write_sheet(surveyed, show, out or Path(f"{show}.png")))]
    if output.as_json:
        print_json({"schema": 1, **facts})
    else:
        print_rows(table_rows(facts), str(path))
        print_facts(summary(facts))
        print_files(facts.get("files", []))
    if broken := facts["broken"]:
        from distill.corpora.clips import counted, leaving_out

        them = "it" if len(broken) == 1 else "them"
        raise GateFailed(f"{counted(len(broken), 'clip')} cannot be used; restore {them}, or {leaving_out(broken)}")


def doctor(as_json: JsonOption = False) -> None:
    """What this machine is enough for: versions, extras, folders, device; and how to install what is missing.

    Exit code 1 only where nothing works, not even the gate.
    """
    from distill.tools.doctor import examine

    facts = examine()
    ways_out = {} if as_json else facts.pop("to install")
    print_facts(facts, "doctor", as_json)
    print_text(*(f"for {extra}: {command}" for extra, command in ways_out.items()))  # not in the table, which would break them
    if not facts["works"]:
        raise GateFailed(f"nothing works here, since the gate {facts['gate']}")


def catalogue(
    name: Annotated[str | None, Argument(metavar="NAME", help="one teacher in full", autocompletion=completion.teacher)] = None,
    as_json: JsonOption = False,
) -> None:
    """The teacher catalogue: what each licence allows, where the weights are published, and what labelling costs."""
    chosen = entries(name)
    if as_json:
        states = {entry: [fetched.facts(entry.name, file) for file in entry.published] for entry in chosen}
        print_json({"schema": 1, "teachers": [asdict(entry) | {"published": states[entry]} for entry in chosen]})
    elif name is None:
        print_rows([row(entry) for entry in chosen], "teachers")
        print_text("one in full: distill teachers NAME", "those without a licence need --accept-licence NAME")
    else:
        for entry in chosen:
            print_facts(details(entry) | {file.name: fetched.described(entry.name, file) for file in entry.published})


def fetch(
    *,
    name: Annotated[str, Argument(metavar="NAME", help="a teacher", autocompletion=completion.fetched_teacher)],
    file: Annotated[str | None, Argument(metavar="FILE", help="only this one of its files")] = None,
    url: Annotated[str | None, Option(metavar="URL", help="instead of the authors' page: URL or path of the file, or of a folder/")] = None,
    output: Output,
) -> None:  # fmt: skip
    """Fetch a teacher's published weights into the cache, where runs find them. Resumable; the SHA-256 of each file is checked.

    The cache is $SALIENCY_DISTILL_CACHE, or else saliency-distill in the system's cache folder.

    [bold]distill teachers fetch unisal --url https://mirror.example/unisal/[/bold]
    """
    entry = entries(name)[0]
    try:
        files = fetched.fetch(entry, file, url, Narrator(output.quiet))
    except KeyboardInterrupt:
        command = shlex.join(["distill", *sys.argv[1:]])
        raise Interrupted(f"what has come is kept; continue with: {command}") from None
    if output.as_json:
        new = [path.name for path, now in files.items() if now]
        print_json({"schema": 1, "teacher": name, "files": [str(path) for path in files], "fetched": new})
    else:
        print_files(files)


def convert(
    source: Annotated[Path, Argument(metavar="FILE", help="published weights: .pt, .pth, .bin, .tar")],
    out: Annotated[Path, Option("--out", "-o", help="file to write: FILE.safetensors")],
    kind: Annotated[str | None, Option(help="which network the weights are for, where their keys do not show it")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Turn published weights into safetensors, checked key by key; no code in the file is run."""
    from distill.labels.convert import convert as write

    print_facts(write(source, out, kind), as_json=as_json)


def calibrate(
    *,
    run: Annotated[Path, Argument(metavar="RUN", help="a run with labels")],
    out: Annotated[Path, Option("--out", "-o", help="file to write: a calibration, for teacher.calibration")],
    output: Output,
) -> None:  # fmt: skip
    """Fit a run's labels to its corpus: temperature, bias and blur, measured on clips held out of the fit.

    Use the calibrated labels with [bold]--teacher maps --maps RUN/labels --set teacher.calibration=FILE[/bold]
    """
    from distill.corpora.clips import counted
    from distill.evaluation.metrics import LABELS
    from distill.labels.calibrate import calibrate_run

    result = calibrate_run(run, out, interruptible(output.quiet))
    if output.as_json:
        print_json({"schema": 1, "files": [str(out)], **result.to_dict()})
        return
    scores = {"as they are": result.before, "calibrated": result.after}
    rows = [{"labels": name, **{LABELS[m]: f"{value:.3f}" for m, value in s.items()}} for name, s in scores.items()]
    measured = "each held out in turn" if result.held_out else "the same that the fit used"
    print_rows(rows, f"{counted(len(result.clips), 'clip')}, {measured}")
    fitted, verdict = result.fitted, "" if result.helps else ": no gain, so the labels stay as they are"
    print_text(f"temperature {fitted.temperature:.3g}, bias {fitted.bias:.3g}, blur {fitted.blur:g}{verdict}")
    print_text(out)

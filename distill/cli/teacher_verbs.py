"""Verbs about teachers: the catalogue, conversion of published weights, calibration of labels."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distill.cli.options import JsonOption, Output
from distill.cli.output import interruptible, print_facts, print_json, print_rows


def teachers(
    name: Annotated[str | None, Argument(metavar="[NAME]", help="one teacher in full")] = None, as_json: JsonOption = False
) -> None:  # fmt: skip
    """The teacher catalogue: what each licence allows, where the weights are published, and what labelling costs."""
    from distill.labels import catalogue

    entries = catalogue.entries(name)
    if as_json:
        print_json({"schema": 1, "teachers": [asdict(entry) for entry in entries]})
    elif name is None:
        print_rows([catalogue.row(entry) for entry in entries], "teachers")
        print("`distill teachers NAME` shows one in full; those without a licence need --accept-licence NAME")
    else:
        for entry in entries:
            print_facts(catalogue.details(entry))


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
    run: Annotated[Path, Argument(help="a run with labels")],
    out: Annotated[Path, Option("--out", "-o", help="file to write: a calibration, for teacher.calibration")],
    output: Output,
) -> None:  # fmt: skip
    """Fit a run's labels to its corpus: temperature, bias and blur, measured on clips held out of the fit.

    Use the calibrated labels with [bold]--teacher maps --maps RUN/labels --set teacher.calibration=FILE[/bold]
    """
    from distill.evaluation.metrics import LABELS
    from distill.labels.calibrate import calibrate_run

    found = calibrate_run(run, out, interruptible(output.quiet))
    if output.as_json:
        print_json({"schema": 1, "files": [str(out)], **found.to_dict()})
        return
    scores = {"as they are": found.before, "calibrated": found.after}
    print_rows(
        [{"labels": name, **{LABELS[m]: f"{value:.3f}" for m, value in s.items()}} for name, s in scores.items()],
        f"{len(found.clips)} clips, {'each held out in turn' if found.held_out else 'the very clips of the fit'}",
    )
    fitted, verdict = found.fitted, "" if found.helps else ": no gain, so the labels stay as they are"
    print(f"temperature {fitted.temperature:.3g}, bias {fitted.bias:.3g}, blur {fitted.blur:g}{verdict}")
    print(out)

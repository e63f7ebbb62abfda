"""What a run says at its end: whether the student is any good, what was proven, how fast it is, and what to do next.

A few lines; the tables are in `distill eval RUN`, in metrics.json and in the report.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.run.directory import RunDir
from distill.run.files import read_json, value_in

if TYPE_CHECKING:
    from distill.corpora.clips import Corpus

SHOWN = ("step", "teacher", "centred Gaussian", "mean training map")
"""The predictors whose scores are shown, the student first."""


def verdict(run: RunDir, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The findings as plain values, for JSON: verdict, parity, speed (None for a run of an earlier version)."""
    from distill.evaluation.verdict import comparisons, headline

    return {
        "verdict": headline(metrics),
        "outcomes": {c.against: c.outcome for c in comparisons(metrics)},
        "parity": read_json(run / "export" / f"{run.recipe.run.name}.parity.json"),
        "speed": run.manifest["stages"]["report"].get("speed"),
    }


def lines(run: RunDir, metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The end of a run in about five lines: sentences to be wrapped, and two lines with a path and a command, to be left whole."""
    from distill.corpora.clips import Corpus, counted  # needs OpenCV
    from distill.evaluation.statistics import scored_clips
    from distill.export.verification import largest_difference

    found, corpus = verdict(run, metrics), value_in(run / "corpus.json", Corpus.from_dict)
    parity, taken, scores = found["parity"], found["speed"], metrics["predictors"]
    clips = scored_clips(metrics)
    scored_on = counted(clips, "held-out clip") if corpus.held_out else f"{counted(clips, 'clip')}, not held out"
    shown = [name for name in SHOWN if name in scores]
    said = [found["verdict"]]
    for metric, label in (("nss", "NSS"), ("cc", "CC")):
        if values := [f"{scores[name][metric]:.3f} {_called(name)}" for name in shown if metric in scores[name]]:
            said.append(f"{label:4}{', '.join(values)}" + (f"; {scored_on}" if metric == "nss" else ""))
    said.append(f"gate passed; parity with PyTorch {largest_difference(parity):.1e} (at most {parity['tolerance']:.0e})")
    if taken:
        said[-1] += "; ms a frame, on one thread: " + ", ".join(f"{ms:g} at {size}" for size, ms in taken["ms"].items())
    return said, [f"report: {run / 'report.html'}", f"next: {_next(run, corpus)}"]


def _called(name: str) -> str:
    return "student" if name == "step" else name


def _next(run: RunDir, corpus: "Corpus") -> str:
    """The student on a video that it has not seen; where there is none, all scores."""
    model = run / "export" / f"{run.recipe.run.name}_step.onnx"
    unseen = corpus.select(corpus.val) if corpus.held_out else []
    videos = [Path(clip.video) for clip in unseen if not (clip.static or clip.shots)]
    if video := next((video for video in videos if video.is_file()), None):
        return f"distill predict {_quoted(video)} --model {_quoted(model)}"
    return f"distill eval {_quoted(run.path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

"""What a run says at its end: whether the student is any good, what was proven, how fast it is, and what to do next.

A few lines; the tables are in `distill eval RUN`, in metrics.json and in the report.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.run.directory import RunDir
from distill.run.files import read_json, value_in

SHOWN = ("step", "teacher", "centred Gaussian", "mean training map")
"""The predictors whose scores are shown, the student first."""


def verdict(run: RunDir, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The findings as plain values, for JSON: verdict, parity, speed (None for a run of an earlier version)."""
    from distill.evaluation.verdict import comparisons, headline

    compared = comparisons(metrics)
    return {
        "verdict": headline(compared),
        "outcomes": {c.against: c.outcome for c in compared},
        "parity": read_json(run / "export" / f"{run.recipe.run.name}.parity.json"),
        "speed": run.manifest["stages"]["report"].get("speed"),
    }


def lines(run: RunDir, metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The end of a run in about five lines: sentences, and what to do next, which can be copied to a shell as it is."""
    from distill.corpora.clips import counted  # needs OpenCV

    found = verdict(run, metrics)
    parity, taken, scores = found["parity"], found["speed"], metrics["predictors"]
    worst = max(parity[key] for key in ("image_max_abs", "step_max_abs", "zero_state_max_abs"))
    shown = [name for name in SHOWN if name in scores]
    said = [found["verdict"]]
    for metric, label in (("nss", "NSS"), ("cc", "CC")):
        if values := [f"{scores[name][metric]:.3f} {_called(name)}" for name in shown if metric in scores[name]]:
            clips = sum(clip["frames_scored"] > 0 for clip in metrics["clips"].values())
            said.append(f"{label:4}{', '.join(values)}" + (f"; {counted(clips, 'held-out clip')}" if metric == "nss" else ""))
    said.append(f"gate passed; parity with PyTorch {worst:.1e} (at most 1e-05)")
    if taken:
        said[-1] += "; ms a frame, on one thread: " + ", ".join(f"{ms:g} at {size}" for size, ms in taken["ms"].items())
    return said, [f"open {_quoted(run / 'report.html')}", f"next: {_next(run)}"]


def _called(name: str) -> str:
    return "student" if name == "step" else name


def _next(run: RunDir) -> str:
    """The student on a clip that it has not seen; where there is no video, all scores."""
    from distill.corpora.clips import Corpus

    corpus = value_in(run / "corpus.json", Corpus.from_dict)
    model = run / "export" / f"{run.recipe.run.name}_step.onnx"
    videos = [Path(clip.video) for clip in corpus.select((*corpus.val, *corpus.train)) if not (clip.static or clip.shots)]
    if video := next((video for video in videos if video.is_file()), None):
        return f"distill predict {_quoted(video)} --model {_quoted(model)}"
    return f"distill eval {_quoted(run.path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

"""Curves for the report, as SVG inside the page: text is text, lines take the page's colours, so they suit a light and a dark
page, and a printed one.

A chart is drawn by matplotlib in the light page's colours, each of which is then replaced by the name of the page's variable.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from distill.evaluation.metrics import LABELS
from distill.opallowlist.foreign import figure_text, printable

COLOURS = {"step": "#c2334d", "image": "#1f6f9f", "teacher": "#4d7d33", "text": "#1d2126", "line": "#d9dce1", "pale": "#b9bec6"}
"""Light colours by the name of the page's variable, `--step`."""
WIDTH = 4.6  # inches, about 440 px: letters stay legible on a phone


def _chart(height: float, draw: Any, name: str, about: str, ids: str) -> str:
    """The SVG of what `draw(axis)` draws, `about` it for those who do not see it. ids: what makes its ids unique in the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    text, line = COLOURS["text"], COLOURS["line"]
    style = {
        "svg.hashsalt": "distill", "svg.fonttype": "none",  # the same figure gives the same text
        "font.size": 10, "text.color": text, "axes.labelcolor": text, "axes.edgecolor": line, "xtick.color": text,
        "ytick.color": text, "xtick.major.size": 0, "ytick.major.size": 0, "grid.color": line, "axes.grid": True,
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 9, "axes.axisbelow": True,
    }  # fmt: skip
    buffer = io.StringIO()
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph")  # the browser draws the letters, with fonts of its own
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axis = figure.subplots()
        draw(axis)
        axis.set_title(figure_text(name), fontsize=10, loc="left", fontweight="bold")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _for_the_page(buffer.getvalue(), f"{name}. {about}", ids)


def _for_the_page(svg: str, about: str, ids: str) -> str:
    """The `<svg>` with the page's colours and ids of its own."""
    svg = svg[svg.index("<svg") :]
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{ids}-", svg)
    svg = re.sub(r"font-family: [^;\"]*(; ?)?", "", svg)  # as the page
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(printable(about), quote=True)}"', 1).strip()


def training_curves(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """From the lines of metrics.jsonl: the loss, CC with teacher and ground truth in training, and validation scores."""
    train, validation = [x for x in log if "loss" in x], [x for x in log if x.get("split") == "val"]

    def losses(axis: Any) -> None:
        steps, values = [x["step"] for x in train], [x["loss"] for x in train]
        axis.plot(steps, values, color=COLOURS["pale"], lw=0.7)
        axis.plot(steps, _smooth(values), color=COLOURS["step"], lw=1.8)
        axis.set_xlabel("step")

    def agreement(axis: Any) -> None:
        for name, colour, label in (("soft.cc", "teacher", "with the teacher"), ("truth.cc", "step", "with the observers")):
            seen = [x for x in train if name in x]  # a batch without annotated frames has no ground truth
            if seen:
                values = _smooth([1 - x[name] for x in seen])
                axis.plot([x["step"] for x in seen], values, color=COLOURS[colour], lw=1.8, label=label)
        if axis.lines:
            axis.legend()
        axis.set_xlabel("step")

    def scores(axis: Any) -> None:
        other = axis.twinx()
        for axes, name, colour in ((axis, "nss", "step"), (other, "cc", "image")):
            axes.plot([x["step"] for x in validation], [x[name] for x in validation], "o-", color=COLOURS[colour], ms=3.5)
            axes.set_ylabel(LABELS[name], color=COLOURS[colour])
            axes.tick_params(axis="y", colors=COLOURS[colour])
        other.grid(visible=False)
        axis.set_xlabel("step")

    charts = [
        _chart(2.5, losses, "Loss", "The training loss by step, each step and smoothed.", "loss"),
        _chart(2.5, agreement, "CC on training batches", "The correlation of the student's maps, by step, smoothed.", "cc"),
    ]
    if validation and "nss" in validation[0]:
        what = "NSS, left, and CC, right, of the averaged weights by step."
        charts.append(_chart(2.5, scores, "Scores on the validation clips", what, "val"))
    return charts


def _smooth(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """A moving average over `share` of the values."""
    if not len(values):  # the log was lost
        return np.zeros(0)
    window = max(1, int(len(values) * share))
    padded = np.pad(values, (window - 1, 0), mode="edge")
    return np.convolve(padded, np.ones(window) / window, "valid")


def differences(by_name: Mapping[str, Mapping[str, Any]], ids: str) -> list[str]:
    """Paired differences with their intervals, the step file minus each named predictor: a chart of NSS and one of CC."""

    def draw(metric: str, axis: Any) -> None:
        axis.axvline(0, color=COLOURS["text"], lw=0.8)
        for place, of in enumerate(reversed(list(by_name.values()))):
            mean, interval = of[metric]["mean"], of[metric]["interval"]
            if interval:
                axis.plot(interval, [place, place], color=COLOURS["step"], lw=2.2)
            axis.plot([mean], [place], "o", color=COLOURS["step"], ms=5.5)
            axis.annotate(f"{mean:+.3f}", (mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        axis.set_yticks(range(len(by_name)), reversed([figure_text(_short(f"minus {name}")) for name in by_name]))
        axis.set_ylim(-0.5, len(by_name) - 0.2)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(visible=False, axis="y")

    charts = []
    for metric in ("nss", "cc"):
        if all(metric in of for of in by_name.values()):
            means = "; ".join(f"minus {name}: {of[metric]['mean']:+.3f}" for name, of in by_name.items())
            height = 0.85 + 0.32 * len(by_name)
            about = f"Differences, the step file {means}."
            charts.append(_chart(height, lambda axis, m=metric: draw(m, axis), LABELS[metric], about, f"{ids}-{metric}"))
    return charts


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def nss_over_time(seconds: np.ndarray, by_name: Mapping[str, Sequence[float]], ids: str) -> str:
    """NSS of every scored frame of a clip, a curve for each predictor."""
    labels = {"teacher": "teacher", "image": "student, image file", "step": "student, step file"}
    shown = {name: label for name, label in labels.items() if name in by_name}

    def draw(axis: Any) -> None:
        for name, label in shown.items():
            axis.plot(seconds, by_name[name], color=COLOURS[name], lw=2 if name == "step" else 1.3, label=label)
        axis.set_xlabel("seconds")
        axis.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.02, -0.5), columnspacing=1.2, handlelength=1.4)

    return _chart(2.4, draw, "NSS over time", f"Curves of {', '.join(shown.values())}.", ids)

"""Pictures for the report and for `distill predict`: heat maps over frames, and curves as SVG."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from distill.evaluation.metrics import LABELS
from distill.opallowlist.foreign import figure_text

COLOURS = {"step": "#d1495b", "image": "#2e86ab", "teacher": "#6a994e"}
PICTURE_WIDTH = 300  # pixels


def overlay(frame: np.ndarray, saliency: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """A heat map over a darkened grey frame: uint8 `[H,W,3]`, `[h,w]` in [0, 1] -> uint8 `[H,W,3]`."""
    height, width = frame.shape[:2]
    s = np.clip(cv2.resize(saliency.astype(np.float32), (width, height)), 0, 1)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    base = 0.35 * frame + 0.45 * grey
    colours = cv2.applyColorMap(np.minimum(s * 256, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.clip(base + strength * s[..., None] * (colours - base), 0, 255).astype(np.uint8)


def peak_normalised(saliency: np.ndarray) -> np.ndarray:
    """A map divided by its maximum."""
    peak = float(saliency.max())
    return saliency / peak if peak > 0 else saliency


def with_fixations(frame: np.ndarray, density: np.ndarray, fixations: np.ndarray) -> np.ndarray:
    """The density map over a frame, with a dot at every fixation: uint8 `[H,W,3]`, `[H,W]`, bool `[H,W]`."""
    picture = overlay(frame, peak_normalised(density))
    radius = max(1, frame.shape[1] // 160)
    for y, x in zip(*np.nonzero(fixations), strict=True):
        cv2.circle(picture, (int(x), int(y)), radius, (120, 255, 255), -1, cv2.LINE_AA)
    return picture


def difference_map(difference: np.ndarray) -> np.ndarray:
    """Red where a difference of two maps is positive, blue where it is negative; full colour at 0.5: uint8 `[H,W,3]`."""
    from matplotlib import colormaps

    return (colormaps["RdBu_r"](np.clip(difference + 0.5, 0, 1))[..., :3] * 255).astype(np.uint8)


def data_uri(picture: np.ndarray) -> str:
    """A picture, uint8 RGB `[H,W,3]`, as a small JPEG inside a URI."""
    size = (PICTURE_WIDTH, round(PICTURE_WIDTH * picture.shape[0] / picture.shape[1]))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(11, height))


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": "distill"}):  # the same figure gives the same text
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=nothing)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def training_curves(log: Sequence[Mapping[str, Any]]) -> str:
    """The lines of metrics.jsonl: loss, CC with teacher and ground truth in training, and validation scores."""
    train, validation = [x for x in log if "loss" in x], [x for x in log if x.get("split") == "val"]
    figure = _figure(3.2)
    left, middle, right = figure.subplots(1, 3)
    steps, losses = [x["step"] for x in train], [x["loss"] for x in train]
    left.plot(steps, losses, color="#bbb", lw=0.6)
    left.plot(steps, _smooth(losses), color=COLOURS["step"], lw=1.6)
    left.set_title("loss")
    for name, colour, label in (("soft.cc", "teacher", "teacher"), ("truth.cc", "step", "ground truth")):
        seen = [x for x in train if name in x]  # a batch without annotated frames has no ground truth
        if seen:
            values = _smooth([1 - x[name] for x in seen])
            middle.plot([x["step"] for x in seen], values, color=COLOURS[colour], lw=1.4, label=label)
    middle.set_title("CC on training batches")
    if middle.lines:
        middle.legend(frameon=False, fontsize=8)
    if validation and "nss" in validation[0]:
        other = right.twinx()
        for axis, name, colour in ((right, "nss", COLOURS["step"]), (other, "cc", COLOURS["image"])):
            axis.plot([x["step"] for x in validation], [x[name] for x in validation], "o-", color=colour, ms=3)
            axis.set_ylabel(name.upper(), color=colour)
            axis.tick_params(axis="y", colors=colour)
        other.spines[["top", "right"]].set_visible(False)
    else:
        right.text(0.5, 0.5, "no validation clips", ha="center", transform=right.transAxes)
    right.set_title("validation, averaged weights")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
    return _svg(figure)


def _smooth(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """A moving average over `share` of the values."""
    if not len(values):  # the log was lost
        return np.zeros(0)
    window = max(1, int(len(values) * share))
    padded = np.pad(values, (window - 1, 0), mode="edge")
    return np.convolve(padded, np.ones(window) / window, "valid")


def differences(by_name: dict[str, dict[str, Any]]) -> str:
    """Paired differences of NSS and CC with their intervals: the step file minus each named predictor."""
    figure = _figure(0.8 + 0.3 * len(by_name))
    for axis, metric in zip(figure.subplots(1, 2, sharey=True), ("nss", "cc"), strict=True):
        for place, difference in enumerate(reversed(by_name.values())):
            mean, interval = difference[metric]["mean"], difference[metric]["interval"]
            if interval:
                axis.plot(interval, [place, place], color=COLOURS["step"], lw=2)
            axis.plot([mean], [place], "o", color=COLOURS["step"], ms=5)
            axis.annotate(f"{mean:+.3f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axis.axvline(0, color="#444", lw=0.8)
        axis.set_yticks(range(len(by_name)), reversed([figure_text(f"step minus {name}") for name in by_name]))
        axis.set_ylim(-0.6, len(by_name) - 0.2)
        axis.set_title(LABELS[metric], fontsize=10)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", alpha=0.25)
    return _svg(figure)


def nss_over_time(seconds: np.ndarray, by_name: Mapping[str, Sequence[float]]) -> str:
    """NSS of every scored frame of a clip, a curve for each predictor."""
    figure = _figure(2.2)
    axis = figure.subplots()
    for name in ("teacher", "image", "step"):
        if name in by_name:
            axis.plot(seconds, by_name[name], color=COLOURS[name], lw=1.6 if name == "step" else 1.1, label=name)
    axis.set(xlabel="seconds", ylabel="NSS")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))
    return _svg(figure)

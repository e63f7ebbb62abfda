"""Temporal pooling, which gives an image student a memory without training: baselines for the recurrent state.

    pooling, state = parse("ema=0.6"), None
    for frame in frames:
        pooled, state = pooling.step(image_student(frame), frame, state)

    mean              the mean of all maps so far
    ema=ALPHA         exponential moving average; ALPHA is the weight of the newest map
    max               the largest value so far, pixel by pixel
    motion-weighted   the mean of all maps so far, each weighted by how much its frame differs from the one before

These are the downstream's four aggregators (lusoris/vmaf, `vmaf-tune`), made causal: there one map is computed from eight
sampled frames, here one map per frame from the frames so far. Numpy only.
"""

import difflib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

KINDS = ("mean", "ema", "max", "motion-weighted")
STILL = 1e-6
"""Weight of a frame without motion, and of the first. The downstream gives the first frame a weight of 1, as if the whole
picture had changed from black to white; frame by frame, later maps would never outweigh that."""


class State(NamedTuple):
    """The state between two frames."""

    saliency: np.ndarray  # the pooled map, float32 [H,W]
    weight: float  # sum over all maps so far
    luma: np.ndarray | None  # of the last frame, float32 [H,W]; only for motion-weighted


@dataclass(frozen=True)
class Pooling:
    """One way of pooling. `alpha` is used by `ema` alone. Raises ValueError for an unknown kind or alpha outside (0, 1]."""

    kind: str
    alpha: float = 0.6

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1, cutoff=0.85)
            hint = (
                f"did you mean '{near[0].replace('ema', 'ema=ALPHA')}'?"
                if near
                else "known: mean, ema=ALPHA, max, motion-weighted"
            )
            raise ValueError(f"unknown baseline '{self.kind}'; {hint}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"the alpha of baseline ema must be above 0 and at most 1, got {self.alpha:g}")

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        return f"ema={self.alpha:g}" if self.kind == "ema" else self.kind

    def step(self, saliency: np.ndarray, frame: np.ndarray, state: State | None = None) -> tuple[np.ndarray, State]:
        """A frame's map, float `[H,W]`, and the frame, uint8 RGB `[H,W,3]` -> the pooled map, float32 `[H,W]`, the new state.

        Without a state the result is the map itself. Raises ValueError if the size changes within a stream.
        """
        if state is not None and state.saliency.shape != saliency.shape:
            raise ValueError(f"the maps of a stream must have one size; got {saliency.shape} after {state.saliency.shape}")
        luma = _luma(frame) if self.kind == "motion-weighted" else None
        weight = 1.0
        if luma is not None:
            weight = STILL if state is None else max(STILL, float(np.abs(luma - state.luma).mean()) / 255)
        total = weight + (state.weight if state else 0.0)
        if state is None:
            pooled = saliency.astype(np.float32)
        elif self.kind == "max":
            pooled = np.maximum(state.saliency, saliency)
        else:
            share = self.alpha if self.kind == "ema" else weight / total
            pooled = (state.saliency + np.float32(share) * (saliency - state.saliency)).astype(np.float32)
        return pooled, State(pooled, total, luma)


def parse(text: str) -> Pooling:
    """`mean`, `ema`, `ema=0.6`, `max` or `motion-weighted`. Raises ValueError for anything else."""
    kind, equals, value = text.strip().partition("=")
    if not equals:
        return Pooling(kind)
    if kind != "ema" and kind in KINDS:
        raise ValueError(f"baseline '{kind}' takes no number")
    try:
        alpha = float(value)
    except ValueError:
        raise ValueError(f"baseline ema needs a number, as in ema=0.6, got '{value}'") from None
    return Pooling(kind, alpha)


def _luma(frame: np.ndarray) -> np.ndarray:
    """BT.709 luma of uint8 RGB `[H,W,3]`: float32 `[H,W]`, 0 to 255."""
    return frame.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], np.float32)

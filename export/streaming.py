"""A student over a video as it comes: which frames it sees, whatever the video's frame rate, and where its state is reset.

    stream = Stream(Predictor("student_step.onnx"))
    for frame, seconds in frames:                 # uint8 RGB [H,W,3], its time stamp
        saliency = stream.map(frame, seconds)     # float32 [H,W] in [0, 1]
    stream.reset()                                # before another video

The frames of a `PlanePredictor` are Planes.

A step file's time constants hold at the frame rate in its metadata. Of a faster video it therefore sees only the frames
closest to its own rate, and each map is repeated until the next one. Of a slower video it sees every frame, and its state
decays more slowly than it should (`slowdown` says by how much). An image file sees every frame.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distill.export.yuv import Planes

ROWS, COLUMNS = 18, 32  # of the thumbnail that cuts are detected on
CHANGE = 18.0  # grey levels of 255
FACTOR = 3.0  # times the typical change of this shot


@dataclass(frozen=True)
class Shot:
    """The shot so far: its last thumbnail, and how much thumbnails typically change from frame to frame."""

    thumbnail: np.ndarray  # float32 [18,32], grey levels
    typical: float


def detect_cut(frame: np.ndarray, shot: Shot | None = None) -> tuple[bool, Shot]:
    """Whether a uint8 RGB frame `[H,W,3]`, or grey levels `[H,W]`, opens a new shot; and the shot with this frame, to pass in with
    the next.

    A cut is a mean change of grey level, on a thumbnail of 18x32, that is large (18 of 255) and three times what is typical of
    the shot. A dissolve is not one: it changes little from frame to frame, and the state adapts.
    """
    height, width = frame.shape[:2]
    rows, columns = min(ROWS, height), min(COLUMNS, width)  # a cell has at least one pixel
    cells = frame[: height // rows * rows, : width // columns * columns]
    thumbnail = cells.reshape(rows, height // rows, columns, width // columns, -1).mean((1, 3, 4), dtype=np.float32)
    if shot is None:
        return False, Shot(thumbnail, 0.0)
    change = float(np.abs(thumbnail - shot.thumbnail).mean())
    if change > CHANGE and change > FACTOR * shot.typical:
        return True, Shot(thumbnail, change / FACTOR)  # for a while, only a larger change is another cut
    return False, Shot(thumbnail, 0.8 * shot.typical + 0.2 * change)


class FramePredictor(Protocol):
    """What a stream needs of a `Predictor` or a `PlanePredictor`."""

    name: str
    stateful: bool
    metadata: dict[str, str]

    def reset(self) -> None: ...

    def predict(self, frame: Any, /) -> np.ndarray: ...


def frame_rate_of(metadata: Mapping[str, str], name: str) -> float | None:
    """The frames per second that the metadata of a model state, None where they state none. Raises ValueError, which calls the model
    `name`, where that is no number above 0."""
    stated = metadata.get("frame_rate")
    if not stated:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (rate := float(stated)) < math.inf:
            return rate
    raise ValueError(f"{name}: its metadata states frame_rate {stated[:40]!r}, which is no number above 0")


class Stream:
    """A predictor over one video. find_cuts: whether a cut resets it; `cuts` counts them. Raises ValueError where `frame_rate_of`
    does."""

    def __init__(self, predictor: FramePredictor, find_cuts: bool = True) -> None:
        self.predictor, self.find_cuts = predictor, find_cuts
        rate = frame_rate_of(predictor.metadata, predictor.name) if predictor.stateful else None
        self.period = 1 / rate if rate else 0.0  # seconds between frames that the model sees
        self.cuts = 0
        self.reset()

    def reset(self) -> None:
        """Drops state, shot and map: the next frame is treated as the first of a video."""
        self.predictor.reset()
        self._shot: Shot | None = None
        self._due = self._last = -np.inf
        self._map: np.ndarray | None = None
        self._size: tuple[int, ...] = ()  # of the frame that the map is of

    def slowdown(self, fps: float) -> float:
        """How many times more slowly than intended the state decays in a video of this rate; 1 where the rate is high enough."""
        return max(1.0, 1 / (self.period * fps)) if self.period else 1.0

    def rate_note(self, name: str, fps: float) -> str:
        """What the user of a video called `name` should know about its frame rate; empty where it is high enough."""
        if (slower := self.slowdown(fps)) <= 1.05:
            return ""
        rates = f"{name} has {fps:.4g} frames per second, the model's state is for {1 / self.period:.4g}"
        return f"{rates}: it will remember {slower:,.1f}x as long"

    def map(self, frame: np.ndarray | Planes, seconds: float) -> np.ndarray:
        """The saliency map for the next frame, uint8 RGB `[H,W,3]` or Planes at its time stamp -> float32 `[H,W]` in [0, 1], or the
        predictor's block map. A time stamp before the last one resets. Raises ValueError where the model does not take a frame of
        this size, and where its map is not finite."""
        cut = False
        if self.find_cuts:
            cut, self._shot = detect_cut(frame.grey() if isinstance(frame, Planes) else frame, self._shot)
            self.cuts += cut
        if cut or seconds < self._last:
            self.predictor.reset()
            self._map = None
        gap, self._last = seconds - self._last, seconds
        first = self._map is None or self._size != frame.shape[:2]
        if first or seconds + min(gap, self.period) / 2 >= self._due:  # the next frame would not be closer
            late = seconds + self.period / 2  # a rate close to the model's must not fall behind further and further
            self._due = seconds + self.period if first else max(self._due + self.period, late)
            self._map, self._size = self.predictor.predict(frame), frame.shape[:2]
            if not np.isfinite(self._map.min() + self._map.max()):
                raise ValueError(f"{self.predictor.name} gives NaN or infinity at {seconds:g} s; it cannot be used")
        assert self._map is not None
        return self._map

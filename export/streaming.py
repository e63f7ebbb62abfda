"""A student over a video as it comes: when it runs, when its memory ends, whatever the video's frame rate.

    stream = Stream(Predictor("student_step.onnx"))
    for frame, seconds in frames:                 # uint8 RGB [H,W,3], its time
        saliency = stream.map(frame, seconds)     # float32 [H,W] in [0, 1]
    stream.reset()                                # before another video

A student with state counts its memory in frames, of the rate in its metadata. Of a faster video it therefore sees every
other frame or so, whatever comes closest to its rate, and its map stands until the next; of a slower one it sees every
frame and remembers for longer (`slower` says by how much). A model without state sees every frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.export.runner import Predictor

ROWS, COLUMNS = 18, 32  # of the small picture that cuts are looked for in
CHANGE = 18.0  # grey levels of 255
SURPRISE = 3.0  # times what was usual in this shot


@dataclass(frozen=True)
class Shot:
    """What is remembered of a shot so far: its last small picture, and how much its pictures usually change."""

    picture: np.ndarray  # float32 [18,32], grey levels
    usual: float


def look(frame: np.ndarray, shot: Shot | None = None) -> tuple[bool, Shot]:
    """Whether a uint8 RGB frame `[H,W,3]` opens a new shot, and what to remember of it.

    A cut is a mean change of grey level, on a picture of 18x32, that is large (18 of 255) and three times what was usual
    in the shot. A dissolve is none: it changes little from frame to frame, and the state forgets by itself.
    """
    picture = _small(frame)
    if shot is None:
        return False, Shot(picture, 0.0)
    change = float(np.abs(picture - shot.picture).mean())
    if change > CHANGE and change > SURPRISE * shot.usual:
        return True, Shot(picture, change / SURPRISE)  # what follows a cut is one only where it is larger, for a while
    return False, Shot(picture, 0.8 * shot.usual + 0.2 * change)


def _small(frame: np.ndarray) -> np.ndarray:
    """Mean grey levels of 18x32 cells; of frames that are smaller than that, of their pixels."""
    height, width = frame.shape[:2]
    rows, columns = min(ROWS, height), min(COLUMNS, width)
    inside = frame[: height // rows * rows, : width // columns * columns]
    cells = inside.reshape(rows, inside.shape[0] // rows, columns, -1, 3)
    return cells.mean((1, 3, 4), dtype=np.float32)


class Stream:
    """A predictor over one video. find_cuts: whether a cut resets it; `cuts` counts them."""

    def __init__(self, predictor: Predictor, find_cuts: bool = True) -> None:
        self.predictor, self.find_cuts = predictor, find_cuts
        rate = predictor.metadata.get("frame_rate") if predictor.stateful else None
        self.period = 1 / float(rate) if rate else 0.0  # seconds between frames that the model sees
        self.cuts = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the history: the next frame is a first frame."""
        self.predictor.reset()
        self._shot: Shot | None = None
        self._due = self._last = -np.inf
        self._map: np.ndarray | None = None

    def slower(self, fps: float) -> float:
        """How many times longer than meant the model remembers in a video of this rate; 1 where the rate is reached."""
        return max(1.0, 1 / (self.period * fps)) if self.period else 1.0

    def map(self, frame: np.ndarray, seconds: float) -> np.ndarray:
        """The saliency map of the next frame, uint8 RGB `[H,W,3]` at its time -> float32 `[H,W]` in [0, 1].

        Times that go back reset. Raises ValueError where the model does not take a frame of this size.
        """
        cut = False
        if self.find_cuts:
            cut, self._shot = look(frame, self._shot)
            self.cuts += cut
        if cut or seconds < self._last:
            self.predictor.reset()
            self._map = None
        gap, self._last = seconds - self._last, seconds
        first = self._map is None or self._map.shape != frame.shape[:2]
        if first or seconds + min(gap, self.period) / 2 >= self._due:  # the next frame would not be closer
            late = seconds + self.period / 2  # a rate that is nearly the model's must not run ever further behind
            self._due = seconds + self.period if first else max(self._due + self.period, late)
            self._map = self.predictor.predict(frame)
        assert self._map is not None
        return self._map

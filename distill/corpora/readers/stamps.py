"""Time stamps of a video's frames: made to rise where they do not, and read as one frame rate, or as times of their own.

Times are in seconds from the first frame, float64. A container may round them to a millisecond (Matroska, WebM).
"""

import math
from collections.abc import Sequence

import numpy as np

TICK = 1e-3  # seconds: the coarsest unit in which containers keep times
RESET = 5  # frames; a stamp that falls back by more starts a new count, as at the joint of two recordings
LONGEST = 1.0  # seconds; a longer frame is a pause, and does not say how long others last
RATES = (0.5, 1000.0)  # frames per second that a header may state; others are no frame rates
USUAL = 30.0  # frames per second, where nothing says how long frames last


class Clock:
    """Turns the stamps of consecutive frames into times that start at 0 and rise. `repaired` counts those that did not.

    A frame without a stamp, or with one that is not later than the frame before, is put a step after it. Where stamps fall back by
    more than RESET, all later ones are moved on.
    """

    def __init__(self, stated_rate: float) -> None:
        self.repaired = 0
        self._step = 1 / (stated_rate if plausible(stated_rate) else USUAL)
        self._shift: float | None = None
        self._time = 0.0

    def time(self, stamp: float | None) -> float:
        """The time of the next frame. stamp: in seconds; None where the file has none."""
        if self._shift is None:  # the first frame
            self._shift = -(stamp or 0.0)
            return 0.0
        if stamp is None:
            self.repaired += 1
            self._time += self._step
            return self._time
        step = stamp + self._shift - self._time
        if step <= 0:
            self.repaired += 1
            if step < -RESET * self._step:
                self._shift, step = self._shift - step + self._step, self._step
            else:
                step = self._step / 2  # so that the next frame is later still
        elif step <= LONGEST:
            self._step = step
        self._time += step
        return self._time


def plausible(rate: float) -> bool:
    """Whether a stated number of frames per second can be one."""
    return RATES[0] <= rate <= RATES[1]


def rate_of(times: Sequence[float], stated: float) -> tuple[float, tuple[float, ...]]:
    """Frames per second, and the times of the frames where they do not have one rate (else empty).

    The stated rate where all times agree with it within a tick, else their mean rate where they agree with that, else the rate
    of the median interval. A browser states 1000 for whatever it records, and a phone a rate that it does not keep.
    """
    count, at = len(times), np.asarray(times)
    if count == 1:
        return (stated if plausible(stated) and stated < RATES[1] else USUAL), ()
    for rate in (stated, (count - 1) / at[-1]):
        if plausible(rate) and np.abs(at - np.arange(count) / rate).max() <= TICK + 1e-9:
            return float(rate), ()
    return 1 / float(np.median(np.diff(at))), tuple(round(float(t), 6) for t in at)


def position(seconds: np.ndarray, fps: float, times: Sequence[float] = ()) -> np.ndarray:
    """How many frames have been shown by these times: 3.5 is the middle of frame 3, counted from 0. Below 0 before the first.

    The last frame lasts as long as `fps` says. A time within half a tick of a frame's stamp is that stamp.
    """
    seconds = np.asarray(seconds, np.float64)
    if not len(times):
        return seconds * fps
    edges = np.append(times, times[-1] + 1 / fps)
    last = len(edges) - 1
    at = np.interp(seconds, edges, np.arange(last + 1.0))
    at = np.where(seconds < 0, seconds * fps, np.where(seconds > edges[-1], last + (seconds - edges[-1]) * fps, at))
    nearest = np.clip(np.rint(np.nan_to_num(at)), 0, last).astype(int)
    for edge in (nearest - 1, nearest, nearest + 1):  # a short interval beside a long one
        edge = np.clip(edge, 0, last)
        at = np.where(np.abs(seconds - edges[edge]) <= TICK / 2 + 1e-9, edge, at)
    return at


def sample(times: Sequence[float], rate: float) -> np.ndarray:
    """The frames closest to a steady `rate`, each once: numbers from 0, int `[N]`. Where frames are rarer, all of them."""
    at = np.asarray(times)
    ticks = np.arange(math.floor(at[-1] * rate + 0.5) + 1) / rate
    after = np.searchsorted(at, ticks).clip(0, len(at) - 1)
    before = (after - 1).clip(0)
    return np.unique(np.where(ticks - at[before] < at[after] - ticks, before, after))

"""All fixations of a clip as arrays, placed on its pixels. The readers deliver coordinates; `place` keeps the usable ones.

Whatever is not usable (outside the frame, NaN, after the last frame, duplicated) is dropped and counted, never silently.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from distill.corpora.clips import Clip

# Why points are dropped, as shown to the user.
OUTSIDE = "points outside the frame"
NAN = "points that are NaN"
LATE = "points after the last frame or before the first"
COPIED = "points of observers that are copies of another one"
UNREADABLE = "rows that cannot be read"
DUPLICATE = "duplicate rows"


class ClipFixations(NamedTuple):
    """A clip's fixations in the order of their frames: int32 `[N]` each; `frames` is how many frames are annotated."""

    frame: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    observers: np.ndarray | None
    frames: int
    dropped: dict[str, int]


def place(
    clip: Clip, frame: np.ndarray, x: np.ndarray, y: np.ndarray, observers: np.ndarray | None, dropped: Counter[str],
    frames: int | None = None,
) -> ClipFixations:  # fmt: skip
    """The points that lie in the frame, sorted by frame. Its right and lower edges belong to its last pixels.

    x, y: pixels, float `[N]`; frame: frame numbers `[N]`; observers: a number per person, -1 if unknown, or None.
    `dropped` holds what the reader has dropped already; `frames` defaults to the length of the clip.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    dropped[NAN] += int((~finite).sum())
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x <= clip.width) & (y >= 0) & (y <= clip.height)
    dropped[OUTSIDE] += int((finite & ~inside).sum())
    order = np.flatnonzero(finite & inside)
    order = order[np.argsort(frame[order], kind="stable")]
    frame = frame[order].astype(np.int32)
    rows = np.minimum(y[order], clip.height - 1).astype(np.int32)
    columns = np.minimum(x[order], clip.width - 1).astype(np.int32)
    if observers is not None:
        observers = observers[order].astype(np.int32)
        if (observers == -1).all():
            observers = None
        else:
            original = _not_copied(frame, rows, columns, observers)
            dropped[COPIED] += int((~original).sum())
            frame, rows, columns, observers = (a[original] for a in (frame, rows, columns, observers))
    reasons = {reason: count for reason, count in dropped.items() if count}
    return ClipFixations(frame, rows, columns, observers, clip.frames if frames is None else frames, reasons)


def _not_copied(frame: np.ndarray, rows: np.ndarray, columns: np.ndarray, observers: np.ndarray) -> np.ndarray:
    """A mask without the observers of three or more points who repeat an earlier observer point by point."""
    original = np.ones(len(frame), bool)
    seen: set[bytes] = set()
    for person in np.unique(observers):
        mine = observers == person
        if person < 0 or mine.sum() < 3:
            continue
        path = np.stack([frame[mine], rows[mine], columns[mine]]).tobytes()
        if path in seen:
            original &= ~mine
        seen.add(path)
    return original

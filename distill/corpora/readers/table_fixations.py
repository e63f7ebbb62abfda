"""A clip's fixations, from the rows of its table: every row is one and lasts for its duration, or a sample of a mouse's track."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import LATE, NAN, ClipFixations, place
from distill.corpora.readers.conventions import CLIP, FRACTIONS, FROM_BELOW, RECORDING, SCREEN, TRACKER
from distill.corpora.readers.table import Table, read
from distill.run.errors import UsageError

TRACK_HZ = 100.0  # AViMoS resamples mouse movements to this rate
ROUNDING = 1e-3  # frames; a time that falls short of a frame by less is a rounding error


def read_fixations(clip: Clip) -> ClipFixations:
    """Every row is a fixation, and covers the frames of its duration. Raises UsageError if times do not fit the video."""
    gaze, name, rows, dropped = _rows(clip)
    x, y = _pixels(clip, gaze, gaze.x[rows], gaze.y[rows])
    outside = (x < 0) | (y < 0) | (x > clip.width) | (y > clip.height)
    if gaze.space == SCREEN and outside.sum() > np.isfinite(x).sum() / 4:
        beyond = f"pixels of the screen, and many lie outside the {clip.width}x{clip.height} pixels of {name}"
        raise UsageError(f"{gaze.path}: `{gaze.columns.name('x')}` is in {beyond}; give x_px, y_px in pixels of the clip")
    when, duration, observer = gaze.when[rows], gaze.duration[rows], gaze.observer[rows]
    if clip.static:  # times do not matter: all fixations belong to the one frame
        return place(clip, np.zeros(len(x)), x, y, observer, dropped)
    by_frame = "frame" in gaze.columns.at
    if not by_frame:
        _check_clock(gaze, name, rows)
    timed = ~np.isnan(when)
    dropped[NAN] += int((~timed).sum())
    x, y, when, duration, observer = (values[timed] for values in (x, y, when, duration, observer))
    start = np.floor((when if by_frame else clip.position(when)) + ROUNDING)
    late = (start >= clip.frames) | (start < 0)
    dropped[LATE] += int(late.sum())
    if not by_frame and late.sum() > len(late) * (0.5 if gaze.columns.clock == CLIP else 0.1):
        length = f"the times of {name} run to {when.max():g} s, its video lasts {clip.seconds:.1f} s"
        if not gaze.columns.time_unit:
            raise UsageError(f"{gaze.path}: {length}; name the column time_ms or time_us")
        if gaze.columns.clock != CLIP:
            raise UsageError(f"{gaze.path}: {length}; {_counts_from(gaze)}")
    end = when + np.nan_to_num(duration) * (clip.fps if by_frame and gaze.columns.duration_unit else 1)
    last = np.floor((end if by_frame else clip.position(end)) - ROUNDING)  # the video may end before a fixation does
    count = np.where(late, 0, np.maximum(np.minimum(last, clip.frames - 1) - start, 0) + 1).astype(int)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x, y, start, observer = (np.repeat(values, count) for values in (x, y, start, observer))
    return place(clip, start + offset, x, y, observer, dropped)


def read_mouse_tracks(clip: Clip) -> ClipFixations:
    """Each observer's mouse track, resampled to 100 Hz by linear interpolation and moved back in time by `clip.lag`."""
    gaze, _, rows, dropped = _rows(clip)
    if not gaze.by_time:
        raise UsageError(f"{gaze.path} has no column for the time, or one for the frame too; mouse tracks need times alone")
    x, y, when, observer = (values[rows] for values in (gaze.x, gaze.y, gaze.when, gaze.observer))
    usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(when)
    dropped[NAN] += int((~usable).sum())
    sampled = []
    for person in np.unique(observer[usable]):
        mine = np.flatnonzero(usable & (observer == person))
        mine = mine[np.argsort(when[mine], kind="stable")]
        first, last = math.ceil(when[mine[0]] * TRACK_HZ), math.floor(when[mine[-1]] * TRACK_HZ)
        # A wrong time may lie years after the end of the clip.
        end = min(last, max(first - 1, math.ceil((clip.seconds + clip.lag) * TRACK_HZ)))
        dropped[LATE] += last - end
        ticks = np.arange(max(first, 0), end + 1) / TRACK_HZ
        track = (np.interp(ticks, when[mine], values[mine]) for values in (x, y))
        sampled.append(np.stack([ticks - clip.lag, *track, np.full(len(ticks), person)]))
    time, x, y, who = np.concatenate(sampled, 1) if sampled else np.zeros((4, 0))
    frame = np.floor(clip.position(time) + ROUNDING)
    # Samples before the lag has passed belong to no frame: they are not counted as lost.
    dropped[LATE] += int((frame >= clip.frames).sum())
    inside = (frame >= 0) & (frame < clip.frames)
    x, y = _pixels(clip, gaze, x[inside], y[inside])
    return place(clip, frame[inside], x, y, who[inside], dropped)


def _rows(clip: Clip) -> tuple[Table, str, slice, Counter[str]]:
    """The clip's table, its name there, its rows (none if the table does not mention it), and a count of those dropped."""
    gaze = read(Path(clip.fixations))
    name, rows = gaze.rows_of(Path(clip.video)) or (clip.name, slice(0, 0))
    return gaze, name, rows, Counter(gaze.dropped.get(name))


def _pixels(clip: Clip, gaze: Table, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if gaze.space not in (FRACTIONS, FROM_BELOW):
        return x, y
    # 0.57 of 100 is 56.99999999999999 in binary, and pixel 57.
    x, y = np.round(x * clip.width, 6), np.round(y * clip.height, 6)
    return x, clip.height - y if gaze.space == FROM_BELOW else y


def _check_clock(gaze: Table, name: str, rows: slice) -> None:
    """Raises UsageError where the times of a clip are not known to count from its first frame, or in which unit."""
    columns = gaze.columns
    if "time" not in columns.at:
        raise UsageError(f"{gaze.path} has no column for the frame or the time, and {name} is a video; add one")
    if columns.clock == RECORDING and not columns.time_unit:
        raise UsageError(
            f"{gaze.path}: {columns.exporter} writes `{columns.name('time')}` in milliseconds or microseconds, depending on its version, "
            "and the rows do not tell which; name the unit: time_ms or time_us"
        )
    if columns.clock == TRACKER or (columns.clock == RECORDING and _one_after_another(gaze, rows)):
        raise UsageError(f"{gaze.path}: {_counts_from(gaze)}")


def _counts_from(gaze: Table) -> str:
    columns = gaze.columns
    way_out = "add a column time_ms or frame_index that counts from the first frame of each clip"
    return f"`{columns.name('time')}` of {columns.exporter} counts from {columns.clock}; {way_out}"


def _one_after_another(gaze: Table, rows: slice) -> bool:
    """Whether somebody saw this clip and others at times that do not overlap: then one clock runs through all of them."""
    here = np.zeros(len(gaze.when), bool)
    here[rows] = True
    for person in np.unique(gaze.observer[rows]):
        known = np.isfinite(gaze.when) & (gaze.observer == person)
        when, elsewhere = gaze.when[known & here], gaze.when[known & ~here]
        if len(when) and len(elsewhere) and not ((elsewhere >= when.min()) & (elsewhere <= when.max())).any():
            return True
    return False

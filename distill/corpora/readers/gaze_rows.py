"""From the rows of a table (distill.corpora.readers.table) to a clip's fixations: rows that are fixations, and mouse tracks."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import LATE, NAN, ClipFixations, place
from distill.corpora.readers import table
from distill.run.errors import UsageError

TRACK_HZ = 100.0  # AViMoS resamples mouse movements to this rate
ROUNDING = 1e-3  # frames; a time that falls short of a frame by less is a rounding error


def read_fixations(clip: Clip) -> ClipFixations:
    """Every row is a fixation, and covers the frames of its duration. Raises UsageError if times do not fit the video."""
    gaze, name, rows, dropped = _rows(clip)
    x, y = _pixels(clip, gaze, gaze.x[rows], gaze.y[rows])
    when, duration = gaze.when[rows], gaze.duration[rows]
    observer = gaze.observer[rows] if gaze.observers else None
    if clip.static:  # times do not matter: all fixations belong to the one frame
        return place(clip, np.zeros(len(x)), x, y, observer, dropped)
    if not {"frame", "time"} & set(gaze.columns.at):
        raise UsageError(f"{gaze.path} has no column for the frame or the time, and {name} is a video; add one")
    rate = 1.0 if "frame" in gaze.columns.at else clip.fps
    timed = ~np.isnan(when)
    dropped[NAN] += int((~timed).sum())
    x, y, when, duration = (values[timed] for values in (x, y, when, duration))
    observer = None if observer is None else observer[timed]
    start = np.floor(when * rate + ROUNDING)
    late = (start >= clip.frames) | (start < 0)
    dropped[LATE] += int(late.sum())
    if late.sum() > len(late) / 2 and "time" in gaze.columns.at and not gaze.columns.time_unit:
        raise UsageError(
            f"{gaze.path}: the times of {name} run to {when.max():g}, its video lasts {clip.frames / clip.fps:.1f} s; "
            "name the column time_ms or time_us"
        )
    last = np.floor((when + np.nan_to_num(duration)) * rate - ROUNDING)  # the video may end before a fixation does
    count = np.where(late, 0, np.maximum(np.minimum(last, clip.frames - 1) - start, 0) + 1).astype(int)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x, y, start = (np.repeat(values, count) for values in (x, y, start))
    return place(clip, start + offset, x, y, None if observer is None else np.repeat(observer, count), dropped)


def read_mouse_tracks(clip: Clip) -> ClipFixations:
    """Each observer's mouse track, resampled to 100 Hz by linear interpolation and moved back in time by `clip.lag`."""
    gaze, _, rows, dropped = _rows(clip)
    if "time" not in gaze.columns.at:
        raise UsageError(f"{gaze.path} has no column for the time; mouse tracks need one")
    x, y, when, observer = (values[rows] for values in (gaze.x, gaze.y, gaze.when, gaze.observer))
    usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(when)
    dropped[NAN] += int((~usable).sum())
    sampled = []
    for person in np.unique(observer[usable]):
        mine = np.flatnonzero(usable & (observer == person))
        mine = mine[np.argsort(when[mine], kind="stable")]
        ticks = np.arange(math.ceil(when[mine[0]] * TRACK_HZ), math.floor(when[mine[-1]] * TRACK_HZ) + 1) / TRACK_HZ
        track = (np.interp(ticks, when[mine], values[mine]) for values in (x, y))
        sampled.append(np.stack([ticks - clip.lag, *track, np.full(len(ticks), person)]))
    time, x, y, who = np.concatenate(sampled, 1) if sampled else np.zeros((4, 0))
    frame = np.floor(time * clip.fps + ROUNDING)
    # Samples before the lag has passed belong to no frame: they are not counted as lost.
    dropped[LATE] += int((frame >= clip.frames).sum())
    inside = (frame >= 0) & (frame < clip.frames)
    x, y = _pixels(clip, gaze, x[inside], y[inside])
    return place(clip, frame[inside], x, y, who[inside] if gaze.observers else None, dropped)


def _rows(clip: Clip) -> tuple[table.Table, str, slice, Counter[str]]:
    """The clip's table, its name there, its rows (none if the table does not mention it), and a count of those dropped."""
    gaze = table.read(Path(clip.fixations))
    name, rows = gaze.rows_of(Path(clip.video)) or (clip.name, slice(0, 0))
    return gaze, name, rows, Counter(gaze.dropped.get(name))


def _pixels(clip: Clip, gaze: table.Table, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (x * clip.width, y * clip.height) if gaze.normalised else (x, y)

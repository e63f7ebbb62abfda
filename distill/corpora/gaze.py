"""Where observers looked, in pixels of the clip, read from whatever it is kept in. A clip's `annotation` says what:

    png      a folder of binary fixation maps, one per frame in the order of their numbers
    mat      the same as MATLAB matrices, variable I (DHF1K)
    json     fixations.json: for every frame a list of [row, column]; a pixel counts as often as it is listed (AViMoS)
    table    rows of a CSV file, see distill.corpora.readers.table
    tracks   a table of mouse movements: resampled to 100 Hz, moved back by the hand's lag (AViMoS)
    export   raw gaze of an SMI eye tracker, a folder per observer (DHF1K's exportdata_train)

The first two are read frame by frame, the others clip by clip. Frames count from 0. What cannot be used - outside the
frame, NaN, after the end, there twice - is dropped and counted, never silently.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distill.corpora.readers import images, table
from distill.corpora.readers.matlab import read_variable
from distill.run.errors import UsageError

if TYPE_CHECKING:
    from distill.corpora.clips import Clip

# What was dropped or is odd, in the words a person reads.
OUTSIDE, NAN, LATE = (
    "points outside the frame",
    "points that are NaN",
    "points after the last frame or before the first",
)
COPIED = "points of observers that are copies of another one"
TRACK_HZ = 100.0  # to which AViMoS resamples mouse movements
# DHF1K's screen, and the video's place on it: as wide as the screen, centred (record_mapping.m).
SCREEN_WIDTH, SCREEN_HEIGHT = 1440, 900


class Points(NamedTuple):
    """Fixations of one frame, in pixels of the clip: int32 `[N]` each. A pixel that was fixated twice stands there twice.

    `observers` numbers who looked, the same number for the same person within a clip; None where that is not known.
    """

    rows: np.ndarray
    columns: np.ndarray
    observers: np.ndarray | None = None


class Gaze(NamedTuple):
    """A clip's fixations, in the order of their frames: int32 `[N]` each; `frames` is how many the annotation covers."""

    frame: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    observers: np.ndarray | None
    frames: int
    troubles: dict[str, int]


def points(clip: Clip, index: int) -> Points:
    """Where observers looked in frame `index` of an annotated clip."""
    if clip.annotation in MAPS:
        rows, columns = np.nonzero(MAPS[clip.annotation][1](clip, index))
        return Points(rows.astype(np.int32), columns.astype(np.int32))
    gaze = whole(clip)
    start, end = np.searchsorted(gaze.frame, [index, index + 1])
    observers = None if gaze.observers is None else gaze.observers[start:end]
    return Points(gaze.rows[start:end], gaze.columns[start:end], observers)


# --- frame by frame --------------------------------------------------------------------------------------------------


def map_file(clip: Clip, index: int) -> Path:
    """The file that holds the fixation map of a frame."""
    names = images.listing(clip.fixations, (MAPS[clip.annotation][0],))
    if len(names) < clip.annotated_frames:
        raise UsageError(
            f"{clip.fixations} holds {len(names)} fixation maps, it held {clip.annotated_frames} when the corpus was read; "
            "restore them, or start over with --force"
        )
    return Path(clip.fixations) / names[index]


def _png(clip: Clip, index: int) -> np.ndarray:
    way_out = f"restore it or leave clip {clip.id} out with corpus.skip"
    return images.read_gray(map_file(clip, index), (clip.height, clip.width), way_out)


def _mat(clip: Clip, index: int) -> np.ndarray:
    path = map_file(clip, index)
    matrix = read_variable(path, "I")
    if matrix.shape != (clip.height, clip.width):
        size = "x".join(map(str, matrix.shape[::-1]))
        raise UsageError(f"{path} is {size} px, its video {clip.width}x{clip.height}; they must agree")
    return matrix


# How each kind of map ends, and what reads it.
MAPS: dict[str, tuple[str, Callable[[Clip, int], np.ndarray]]] = {"png": (".png", _png), "mat": (".mat", _mat)}


# --- clip by clip ----------------------------------------------------------------------------------------------------


def whole(clip: Clip) -> Gaze:
    """All fixations of a clip whose annotation is not kept frame by frame; the last few clips are remembered."""
    try:
        return _whole(clip, Path(clip.fixations).stat().st_mtime_ns)
    except OSError as error:
        raise UsageError(f"{clip.fixations} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=16)
def _whole(clip: Clip, _changed: int) -> Gaze:
    return WHOLE[clip.annotation](clip)


def _json(clip: Clip) -> Gaze:
    path = Path(clip.fixations)
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
        lengths = [len(frame) for frame in frames]
        flat = np.array([point for frame in frames for point in frame], np.float64)
        if flat.shape != (sum(lengths), 2) and flat.size:
            raise ValueError(f"points of shape {list(flat.shape[1:])}")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no list of frames with [row, column] points: {error}") from None
    flat = flat.reshape(-1, 2)
    index = np.repeat(np.arange(len(frames)), np.array(lengths, int))
    return _placed(clip, index, flat[:, 1], flat[:, 0], None, Counter(), len(frames))


def _table(clip: Clip) -> Gaze:
    found, name, rows = _rows(clip)
    x, y = _pixels(clip, found, found.x[rows], found.y[rows])
    when, duration, observer = found.when[rows], found.duration[rows], _observers(found, rows)
    troubles = Counter(found.unusable.get(name, Counter()))
    if clip.static:  # when does not matter: all fixations are of the one frame
        return _placed(clip, np.zeros(len(x)), x, y, observer, troubles)
    if not {"frame", "time"} & set(found.columns.at):
        raise UsageError(f"{found.path} has no column for the frame or the time, and {name} is a video")
    scale = 1.0 if found.by_frame else clip.fps
    lost = np.isnan(when)
    troubles[NAN] += int(lost.sum())
    x, y, when, duration = (values[~lost] for values in (x, y, when, duration))
    observer = None if observer is None else observer[~lost]
    start = np.floor(when * scale + 1e-3)  # a rounding error before a frame is of that frame
    late = (start >= clip.frames) | (start < 0)
    troubles[LATE] += int(late.sum())
    if late.sum() > len(late) / 2 and "time" in found.columns.at and not found.columns.time_unit:
        raise UsageError(
            f"{found.path}: the times of {name} run to {when.max():g}, its video lasts {clip.frames / clip.fps:.1f} s; "
            "name the column time_ms or time_us"
        )
    last = np.floor((when + np.nan_to_num(duration)) * scale - 1e-3)  # the video may end before a fixation does
    count = np.where(late, 0, np.maximum(np.minimum(last, clip.frames - 1) - start, 0) + 1).astype(int)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x, y, index = (np.repeat(values, count) for values in (x, y, start))
    return _placed(clip, index + offset, x, y, None if observer is None else np.repeat(observer, count), troubles)


def _tracks(clip: Clip) -> Gaze:
    """Mouse movements: every observer's track resampled to 100 Hz by linear interpolation, and moved back in time."""
    found, name, rows = _rows(clip)
    if "time" not in found.columns.at:
        raise UsageError(f"{found.path} has no column for the time; mouse tracks need one")
    x, y, when = (values[rows] for values in (found.x, found.y, found.when))
    observer = found.observer[rows]
    troubles = Counter(found.unusable.get(name, Counter()))
    usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(when)
    troubles[NAN] += int((~usable).sum())
    sampled = []
    for person in np.unique(observer[usable]):
        mine = np.flatnonzero(usable & (observer == person))
        mine = mine[np.argsort(when[mine], kind="stable")]
        ticks = np.arange(math.ceil(when[mine[0]] * TRACK_HZ), math.floor(when[mine[-1]] * TRACK_HZ) + 1) / TRACK_HZ
        track = (np.interp(ticks, when[mine], values[mine]) for values in (x, y))
        sampled.append(np.stack([ticks - clip.lag, *track, np.full(len(ticks), person)]))
    time, x, y, who = np.concatenate(sampled, 1) if sampled else np.zeros((4, 0))
    index = np.floor(time * clip.fps + 1e-3)
    # What was drawn before the lag had passed belongs to no frame: that is no loss.
    troubles[LATE] += int((index >= clip.frames).sum())
    inside = (index >= 0) & (index < clip.frames)
    x, y = _pixels(clip, found, x[inside], y[inside])
    return _placed(clip, index[inside], x, y, who[inside] if found.observers else None, troubles)


def _rows(clip: Clip) -> tuple[table.Table, str, slice]:
    """The clip's table, its name there, and its rows; none where the table does not speak of it."""
    found = table.read(Path(clip.fixations))
    name, rows = found.rows_of(Path(clip.video)) or (clip.name, slice(0, 0))
    return found, name, rows


def _observers(found: table.Table, rows: slice) -> np.ndarray | None:
    return found.observer[rows] if found.observers else None


def _pixels(clip: Clip, found: table.Table, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (x * clip.width, y * clip.height) if found.normalised else (x, y)


def _export(clip: Clip) -> Gaze:
    """Raw gaze as DHF1K's record_mapping.m maps it: samples that belong to fixations, each in the frame it falls into.

    A sample on the edge between two frames is of neither. The script indexes a matrix with all rows and all columns of a
    frame's samples at once, which marks every crossing of the two; here each sample is one point.
    """
    number = int(clip.name)
    scale = clip.width / SCREEN_WIDTH
    margin = (SCREEN_HEIGHT - clip.height / scale) / 2
    troubles: Counter[str] = Counter()
    indices, xs, ys, who = [], [], [], []
    for person, path in enumerate(export_files(Path(clip.fixations), number)):
        time, x, y = _fixation_samples(path, troubles)
        position = clip.fps * time / 1e6
        index = np.floor(position)
        usable = index != position
        troubles[LATE] += int((usable & (index >= clip.frames)).sum())
        usable &= index < clip.frames
        # MATLAB counts pixels from 1, and the script drops what is on the first or beyond the last.
        x, y = np.floor(scale * x[usable] + 0.5), np.floor(scale * (y[usable] - margin) + 0.5)
        inside = (x > 0) & (x < clip.width) & (y > 0) & (y < clip.height)
        troubles[OUTSIDE] += int((~inside).sum())
        indices.append(index[usable][inside])
        xs.append(x[inside] - 1)
        ys.append(y[inside] - 1)
        who.append(np.full(int(inside.sum()), person))
    if not indices:
        raise UsageError(f"{clip.fixations} has no gaze of clip {clip.id}")
    index, x, y, observers = (np.concatenate(values) for values in (indices, xs, ys, who))
    return _placed(clip, index, x, y, observers, troubles)


def export_files(folder: Path, number: int) -> list[Path]:
    """The files of clip `number`, one per observer: P01/P01_Trail001.txt, or P001/P001_Trail0001.txt in the script's words."""
    people = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[:1] == "P" and p.name[1:].isdigit())
    return [
        path
        for person in people
        for path in dict.fromkeys(person / f"{person.name}_Trail{number:0{digits}d}.txt" for digits in (3, 4))
        if path.is_file()
    ]


def _fixation_samples(path: Path, troubles: Counter[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Microseconds since the first sample, x and y on the screen, of the samples that belong to fixations."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    words = [word.strip().lower() for word in lines[0].split("\t")] if lines else []
    at = (0, 1, 2, 3)  # time, x, y, event
    if "l por x [px]" in words:
        at = (0, words.index("l por x [px]"), words.index("l por y [px]"), words.index("l event info"))
    rows, begin = [], None
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) <= at[3] or cells[1] == "MSG":
            continue
        try:
            time, x, y = (float(cells[i]) for i in at[:3])
        except ValueError:
            troubles["rows that cannot be read"] += 1
            continue
        begin = time if begin is None else begin
        if cells[at[3]].strip()[:1] == "F":
            rows.append((time - begin, x, y))
    return tuple(np.array(rows, np.float64).reshape(-1, 3).T)  # type: ignore[return-value]


def _placed(
    clip: Clip, index: np.ndarray, x: np.ndarray, y: np.ndarray, observers: np.ndarray | None, troubles: Counter[str],
    frames: int | None = None,
) -> Gaze:  # fmt: skip
    """Points that lie in the frame, sorted by frame. The frame's right and lower edge belong to its last pixels."""
    finite = np.isfinite(x) & np.isfinite(y)
    troubles[NAN] += int((~finite).sum())
    with np.errstate(invalid="ignore"):
        inside = (x >= 0) & (x <= clip.width) & (y >= 0) & (y <= clip.height)
    troubles[OUTSIDE] += int((finite & ~inside).sum())
    order = np.flatnonzero(finite & inside)
    order = order[np.argsort(index[order], kind="stable")]
    index = index[order].astype(np.int32)
    rows = np.minimum(y[order], clip.height - 1).astype(np.int32)
    columns = np.minimum(x[order], clip.width - 1).astype(np.int32)
    if observers is not None:
        observers = observers[order].astype(np.int32)
        if (known := np.unique(observers))[:1].tolist() == [-1] and len(known) == 1:
            observers = None
        else:
            own = _own(index, rows, columns, observers)
            troubles[COPIED] += int((~own).sum())
            index, rows, columns, observers = (a[own] for a in (index, rows, columns, observers))
    covered = clip.frames if frames is None else frames
    return Gaze(index, rows, columns, observers, covered, {k: n for k, n in troubles.items() if n})


def _own(index: np.ndarray, rows: np.ndarray, columns: np.ndarray, observers: np.ndarray) -> np.ndarray:
    """Which points are not of an observer whose three or more points are, one by one, those of an earlier observer."""
    own = np.ones(len(index), bool)
    seen: dict[bytes, Any] = {}
    for person in np.unique(observers):
        mine = observers == person
        if person < 0 or mine.sum() < 3:
            continue
        what = np.stack([index[mine], rows[mine], columns[mine]]).tobytes()
        if what in seen:
            own &= ~mine
        seen[what] = person
    return own


WHOLE: dict[str, Callable[[Clip], Gaze]] = {"json": _json, "table": _table, "tracks": _tracks, "export": _export}

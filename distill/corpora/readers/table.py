"""Tables of gaze: one CSV file with a row per fixation or sample. Common names of columns are recognised:

    clip | image | video | stimulus ...      the file's name, with or without its suffix
    x, y | x_norm, y_norm | gaze_x ...       pixels of the clip, or fractions of its width and height
    frame | time, time_ms, time_us           when; a still image needs neither
    duration, duration_ms ...                optional; without it, a row belongs to one frame
    observer | subject | participant ...     who

The separator is comma, semicolon or tab; .gz is unpacked. `read` keeps columns of numbers, not rows of text, so that a
table of ten million samples fits in memory. `read_fixations` and `read_mouse_tracks` make a clip's fixations of its rows.
"""

import csv
import gzip
import io
import math
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import DUPLICATE, LATE, NAN, UNREADABLE, ClipFixations, place
from distill.run.errors import UsageError

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
COLUMN_NAMES = {
    "clip": "clip clip_id clip_name video video_id video_name image image_id image_name img stimulus stimulus_name stimuli "
    "filename file file_name media media_name",
    "frame": "frame frame_index frame_number frame_id frame_no frame_nr",
    "time": "time t timestamp onset start start_time fixation_start time_s timestamp_s onset_s start_s t_s seconds "
    "time_ms timestamp_ms onset_ms start_ms t_ms ms time_us timestamp_us onset_us start_us t_us us",
    "x": "x x_px x_pixel x_pix gaze_x gazex fix_x fixation_x pos_x x_pos por_x x_norm norm_x norm_pos_x x_normalized x_rel "
    "gaze_x_norm fixation_x_norm",
    "y": "y y_px y_pixel y_pix gaze_y gazey fix_y fixation_y pos_y y_pos por_y y_norm norm_y norm_pos_y y_normalized y_rel "
    "gaze_y_norm fixation_y_norm",
    "observer": "observer observer_id subject subject_id subj participant participant_id user user_id viewer person",
    "duration": "duration dur duration_s dur_s duration_ms dur_ms fixation_duration fixation_duration_ms duration_us dur_us",
    "order": "order index fixation_index fixation_number fixation_id fix_number fix_index number",
}
COLUMN_OF = {name: column for column, names in COLUMN_NAMES.items() for name in names.split()}
NUMERIC = ("x", "y", "frame", "time", "duration", "order")
UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0, "seconds": 1.0}
MISSING = {"", "nan", "na", "n/a", "null", "none", ".", "-", "nd"}
TRACK_HZ = 100.0  # AViMoS resamples mouse movements to this rate
ROUNDING = 1e-3  # frames; a time that falls short of a frame by less is a rounding error


@dataclass(frozen=True)
class Columns:
    """The columns of the file and their units. `time_unit` and `duration_unit` are in seconds, 0 where not stated."""

    at: dict[str, int]  # position of each recognised column
    separator: str
    normalised: bool | None  # fractions of the size, not pixels; None: the values decide
    from_zero: bool  # frames are numbered from 0; False: the values decide
    time_unit: float
    duration_unit: float


@dataclass(frozen=True)
class Table:
    """The rows, sorted by clip. Arrays are float64 `[N]`, NaN where a cell is empty; `observer` is int32 `[N]`, -1: unknown."""

    path: Path
    columns: Columns
    normalised: bool
    clips: dict[str, tuple[int, int]]  # first row and the one after the last, by the name in the table
    x: np.ndarray
    y: np.ndarray
    when: np.ndarray  # seconds, or frame numbers from 0; NaN where the table has neither
    duration: np.ndarray  # seconds, or frames where the table counts in frames
    observer: np.ndarray
    dropped: dict[str, Counter[str]]  # rows by clip and reason
    notes: list[str]  # how ambiguous columns were read

    @cached_property
    def _by_file(self) -> dict[str, str]:
        """Names in the table by the last part of their path, with and without suffix; "" where several share it."""
        names: dict[str, str] = {}
        for name in self.clips:
            for short in {Path(name).name, Path(name).stem}:
                names[short] = "" if short in names else name
        return names

    def rows_of(self, file: Path) -> tuple[str, slice] | None:
        """The name of a clip's file in the table, and its rows; None if the table does not mention it."""
        exact = (f"{file.parent.name}/{file.name}", file.name, file.stem)
        for name in (*exact, self._by_file.get(file.name, ""), self._by_file.get(file.stem, "")):
            if name in self.clips:
                return name, slice(*self.clips[name])
        return None


def columns_of(path: Path) -> Columns | None:
    """The columns of a file that looks like a gaze table (it has clip, x and y); None for other files."""
    start = _bytes(path, 1 << 14)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = start.decode(encoding, "replace").splitlines()
    return _recognise(lines[0]) if lines else None


def only_table(folder: Path) -> Path | None:
    """The gaze table in a folder; None if there is none. Raises UsageError if there are several."""
    files = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(SUFFIXES) and p.is_file()]
    tables = [path for path in files if columns_of(path)]
    if len(tables) > 1:
        raise UsageError(f"{folder} holds several gaze tables, {tables[0].name} and {tables[1].name}; keep one of them")
    return tables[0] if tables else None


def read(path: Path) -> Table:
    """The table, cached until the file changes. Raises UsageError for an unusable header or a table without usable rows."""
    return _read(path, path.stat().st_mtime_ns if path.exists() else 0)


def _bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None


def _text(path: Path) -> tuple[str, list[str]]:
    """The text of the file, and a note if it is not UTF-8."""
    data = _bytes(path)
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"), []
    except UnicodeDecodeError:
        line = data.count(b"\n", 0, next(i for i, byte in enumerate(data) if byte > 127)) + 1
        return data.decode("cp1252", "replace"), [f"{path.name} is not UTF-8 (line {line}): read as Windows-1252"]


def _recognise(header: str) -> Columns | None:
    separator = max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=separator))
    plain = [name.strip().lower().replace(" ", "_").replace("[", "").replace("]", "") for name in names]
    at: dict[str, int] = {}
    for i, name in enumerate(plain):
        if name in COLUMN_OF:
            at.setdefault(COLUMN_OF[name], i)
    if not {"clip", "x", "y"} <= set(at):
        return None
    x = plain[at["x"]]
    normalised = True if "norm" in x or "rel" in x else False if "px" in x or "pix" in x else None
    from_zero = "frame" in at and plain[at["frame"]] == "frame_index"
    units = (UNITS.get(plain[at[c]].rsplit("_", 1)[-1], 0.0) if c in at else 0.0 for c in ("time", "duration"))
    return Columns(at, separator, normalised, from_zero, *units)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Perhaps it has a decimal comma; ValueError if it is not a number at all.
        return math.nan if text.strip().lower() in MISSING else float(text.replace(",", "."))


@cache
def _clip_name(cell: str) -> str:
    return Path(cell.strip().replace("\\", "/")).as_posix()


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int) -> Table:
    text, notes = _text(path)
    lines = io.StringIO(text, newline="")
    header = lines.readline()
    columns = _recognise(header)
    if columns is None:
        raise UsageError(
            f"{path} has no columns for clip, x and y; its header is {header.strip()[:120]!r}; use for example "
            "`clip,frame,x,y,observer` or `image,subject,x_norm,y_norm`"
        )
    at, numeric = columns.at, [name for name in NUMERIC if name in columns.at]
    rows: dict[str, array[Any]] = {"clip": array("i"), "observer": array("i"), **{name: array("d") for name in numeric}}
    clips: dict[str, int] = {}  # numbers of the clips
    observers: dict[str, int] = {}
    unreadable: Counter[int] = Counter()
    for row in csv.reader(lines, delimiter=columns.separator):
        if not any(row):
            continue
        cell = row[at["clip"]] if len(row) > at["clip"] else ""
        clip = clips.setdefault(_clip_name(cell), len(clips))
        try:
            person = row[at["observer"]].strip() if "observer" in at else ""
            values = [_number(row[at[name]]) for name in numeric]
        except (ValueError, IndexError):
            unreadable[clip] += 1
            continue
        rows["clip"].append(clip)
        rows["observer"].append(observers.setdefault(person, len(observers)) if person else -1)
        for name, value in zip(numeric, values, strict=True):
            rows[name].append(value)
    if not rows["clip"]:
        raise UsageError(f"{path} has a header, but no row that can be read")
    dropped = {name: Counter({UNREADABLE: unreadable[n]}) for name, n in clips.items() if n in unreadable}
    arrays = {name: np.frombuffer(values, values.typecode) for name, values in rows.items()}
    return _table(path, columns, clips, arrays, dropped, notes)


def _table(
    path: Path, columns: Columns, clips: dict[str, int], rows: dict[str, np.ndarray], dropped: dict[str, Counter[str]],
    notes: list[str],
) -> Table:  # fmt: skip
    """The table of rows in the order of the file: sorted by clip, without duplicates, numbers in one unit."""
    order = np.argsort(rows["clip"], kind="stable")
    rows = {name: values[order] for name, values in rows.items()}
    edges = np.searchsorted(rows["clip"], np.arange(len(clips) + 1))
    # The same person cannot look twice at one time: such a row is a copying mistake.
    if "observer" in columns.at and {"frame", "time", "order"} & set(columns.at):
        keep = np.ones(len(order), bool)
        for name, number in clips.items():
            mine = slice(edges[number], edges[number + 1])
            keep[mine] = _first_of_each(np.stack([a[mine] for column, a in rows.items() if column != "clip"], 1))
            if duplicates := int((~keep[mine]).sum()):
                dropped.setdefault(name, Counter())[DUPLICATE] += duplicates
        rows = {name: values[keep] for name, values in rows.items()}
        edges = np.searchsorted(rows["clip"], np.arange(len(clips) + 1))

    normalised = columns.normalised
    if normalised is None:
        values = np.abs(np.concatenate([rows["x"], rows["y"]]))
        values = values[np.isfinite(values)]
        # In pixels, values below 1 would all be on the first pixel. A few points beyond the border are allowed for.
        normalised = bool(len(values)) and float(np.quantile(values, 0.9)) <= 1.0
        unit = "fractions of the size" if normalised else "pixels"
        notes.append(f"x and y of {path.name} are read as {unit}, judging by their values")
    when = nothing = np.full(len(rows["x"]), np.nan)
    duration = rows.get("duration", nothing)
    if "frame" in rows:
        first = 0 if columns.from_zero or np.nanmin(rows["frame"], initial=1) < 1 else 1
        when = rows["frame"] - first
        if not columns.from_zero:
            notes.append(f"frames of {path.name} are numbered from {first}")
    elif "time" in rows:
        when = rows["time"] * (columns.time_unit or 1.0)
        # A duration whose column names no unit is in the unit of the time.
        duration = duration * (columns.duration_unit or columns.time_unit or 1.0)
    spans = {name: (int(edges[c]), int(edges[c + 1])) for name, c in clips.items()}
    return Table(path, columns, normalised, spans, rows["x"], rows["y"], when, duration, rows["observer"], dropped, notes)


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Whether each row `[N,k]` (observer, x, y, ...) is the first of its kind; rows without x or y are counted elsewhere."""
    first = np.zeros(len(rows), bool)
    first[np.unique(np.nan_to_num(rows, nan=-1e300), axis=0, return_index=True)[1]] = True
    return first | np.isnan(rows[:, 1]) | np.isnan(rows[:, 2])


def read_fixations(clip: Clip) -> ClipFixations:
    """Every row is a fixation, and covers the frames of its duration. Raises UsageError if times do not fit the video."""
    gaze, name, rows, dropped = _rows(clip)
    x, y = _pixels(clip, gaze, gaze.x[rows], gaze.y[rows])
    when, duration, observer = gaze.when[rows], gaze.duration[rows], gaze.observer[rows]
    if clip.static:  # times do not matter: all fixations belong to the one frame
        return place(clip, np.zeros(len(x)), x, y, observer, dropped)
    if not {"frame", "time"} & set(gaze.columns.at):
        raise UsageError(f"{gaze.path} has no column for the frame or the time, and {name} is a video; add one")
    rate = 1.0 if "frame" in gaze.columns.at else clip.fps
    timed = ~np.isnan(when)
    dropped[NAN] += int((~timed).sum())
    x, y, when, duration, observer = (values[timed] for values in (x, y, when, duration, observer))
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
    x, y, start, observer = (np.repeat(values, count) for values in (x, y, start, observer))
    return place(clip, start + offset, x, y, observer, dropped)


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
    return place(clip, frame[inside], x, y, who[inside], dropped)


def _rows(clip: Clip) -> tuple[Table, str, slice, Counter[str]]:
    """The clip's table, its name there, its rows (none if the table does not mention it), and a count of those dropped."""
    gaze = read(Path(clip.fixations))
    name, rows = gaze.rows_of(Path(clip.video)) or (clip.name, slice(0, 0))
    return gaze, name, rows, Counter(gaze.dropped.get(name))


def _pixels(clip: Clip, gaze: Table, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (x * clip.width, y * clip.height) if gaze.normalised else (x, y)

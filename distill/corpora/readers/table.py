"""Tables of gaze: one CSV file with a row per fixation or sample. Common names of columns are recognised:

    clip | image | video | stimulus ...      the file's name, with or without its suffix
    x, y | x_norm, y_norm | gaze_x ...       pixels of the clip, or fractions of its width and height
    frame | time, time_ms, time_us           when; a still image needs neither
    duration, duration_ms ...                optional; without it, a row belongs to one frame
    observer | subject | participant ...     who

The separator is comma, semicolon or tab; .gz is unpacked. `read` keeps columns of numbers, not rows of text, so that a
table of ten million samples fits in memory. Rows that are dropped are counted in `Table.dropped`, by clip.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from distill.corpora.fixations import DUPLICATE, UNREADABLE
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
UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0, "seconds": 1.0}
MISSING = {"", "nan", "na", "n/a", "null", "none", ".", "-", "nd"}


@dataclass(frozen=True)
class Columns:
    """The columns of the file and their units. `time_unit` and `duration_unit` are in seconds, 0 where not stated."""

    at: dict[str, int]  # position of each recognised column
    names: tuple[str, ...]
    separator: str
    normalised: bool | None  # fractions of the size, not pixels; None: the values decide
    from_zero: bool  # frames are numbered from 0; False: the values decide
    time_unit: float = 0.0
    duration_unit: float = 0.0


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
    observers: int  # how many there are
    dropped: dict[str, Counter[str]] = field(default_factory=dict)  # rows by clip and reason
    notes: tuple[str, ...] = ()  # how ambiguous columns were read

    @property
    def by_frame(self) -> bool:
        return "frame" in self.columns.at

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


def _bytes(path: Path, limit: int = -1) -> bytes:
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed:
            return packed.read(limit)
    with path.open("rb") as file:
        return file.read(limit)


def _open_text(path: Path) -> tuple[io.TextIOBase, str]:
    """The file as text, and a note if it is not UTF-8."""
    data = _bytes(path)
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if data.startswith(mark):
            try:
                return io.StringIO(data.decode(encoding), newline=""), ""
            except UnicodeDecodeError:
                break
    bad = next(i for i in range(len(data)) if data[i] > 127)
    line = data.count(b"\n", 0, bad) + 1
    note = f"{path.name} is not UTF-8 (line {line}): read as Windows-1252"
    return io.StringIO(data.decode("cp1252", "replace"), newline=""), note


def columns_of(path: Path) -> Columns | None:
    """The columns of a file that looks like a gaze table (it has clip, x and y); None for other files."""
    try:
        raw = _bytes(path, 1 << 14)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = raw.decode(encoding, "replace").splitlines()
    return _recognise(lines[0]) if lines else None


def _recognise(header: str) -> Columns | None:
    separator = max(",;\t", key=header.count)
    names = tuple(next(csv.reader([header], delimiter=separator)))
    plain = [name.strip().lower().replace(" ", "_").replace("[", "").replace("]", "") for name in names]
    at: dict[str, int] = {}
    for i, name in enumerate(plain):
        if name in COLUMN_OF:
            at.setdefault(COLUMN_OF[name], i)
    if "x" not in at or "y" not in at or "clip" not in at:
        return None
    x = plain[at["x"]]
    normalised = True if "norm" in x or "rel" in x else False if "px" in x or "pix" in x else None
    from_zero = "frame" in at and plain[at["frame"]] == "frame_index"

    def unit(column: str) -> float:
        return UNITS.get(plain[at[column]].rsplit("_", 1)[-1], 0.0) if column in at else 0.0

    return Columns(at, names, separator, normalised, from_zero, unit("time"), unit("duration"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        text = text.strip().lower()
        if text in MISSING:
            return math.nan
        return float(text.replace(",", "."))  # a decimal comma; ValueError if it is not a number at all


def read(path: Path) -> Table:
    """The table, cached until the file changes. Raises UsageError for an unusable header or a table without usable rows."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int) -> Table:
    text, note = _open_text(path)
    header = text.readline()
    columns = _recognise(header)
    if columns is None:
        raise UsageError(
            f"{path} has no columns for clip, x and y; its header is {header.strip()[:120]!r}; use for example "
            "`clip,frame,x,y,observer` or `image,subject,x_norm,y_norm`"
        )
    clips: dict[str, int] = {}
    observers: dict[str, int] = {}
    names: list[str] = [name for name in ("x", "y", "frame", "time", "duration", "order") if name in columns.at]
    numbers = {name: array("d") for name in names}
    whose, who = array("i"), array("i")
    codes: dict[str, int] = {}  # number of the clip that a cell names, by its text
    unreadable: Counter[int] = Counter()
    width = max(columns.at.values()) + 1
    at = columns.at
    for row in csv.reader(text, delimiter=columns.separator):
        if not any(row):
            continue
        cell = row[at["clip"]] if len(row) > at["clip"] else ""
        if cell not in codes:
            clip = Path(cell.strip().replace("\\", "/")).as_posix()
            codes[cell] = clips.setdefault(clip, len(clips))
        number = codes[cell]
        try:
            if len(row) < width:
                raise ValueError
            values = [_number(row[at[name]]) for name in names]
        except ValueError:
            unreadable[number] += 1
            continue
        for name, value in zip(names, values, strict=True):
            numbers[name].append(value)
        whose.append(number)
        person = row[at["observer"]].strip() if "observer" in at else ""
        who.append(observers.setdefault(person, len(observers)) if person else -1)
    if not whose:
        raise UsageError(f"{path} has a header, but no row that can be read")
    dropped = {clip: Counter({UNREADABLE: unreadable[n]}) for clip, n in clips.items() if n in unreadable}
    return _sorted(path, columns, clips, numbers, whose, who, len(observers), dropped, note)


def _sorted(
    path: Path, columns: Columns, clips: dict[str, int], numbers: dict[str, array[float]], whose: array[int],
    who: array[int], observers: int, dropped: dict[str, Counter[str]], note: str,
) -> Table:  # fmt: skip
    """The table of rows read one by one: sorted by clip, without duplicates, numbers in one unit."""
    code = np.frombuffer(whose, np.int32)
    arrays = {name: np.frombuffer(values, np.float64) for name, values in numbers.items()}
    notes = [note] if note else []
    order = np.argsort(code, kind="stable")
    code, observer = code[order], np.frombuffer(who, np.int32)[order]
    arrays = {name: values[order] for name, values in arrays.items()}

    edges = np.searchsorted(code, np.arange(len(clips) + 1))
    # The same person cannot look twice at one time: such a row is a copying mistake.
    if "observer" in columns.at and {"frame", "time", "order"} & set(columns.at):
        keep = np.ones(len(code), bool)
        for name, number in clips.items():
            rows = slice(edges[number], edges[number + 1])
            keep[rows] = _first_of_each(np.stack([observer[rows], *(a[rows] for a in arrays.values())], 1))
            if duplicates := int((~keep[rows]).sum()):
                dropped.setdefault(name, Counter())[DUPLICATE] += duplicates
        code, observer = code[keep], observer[keep]
        arrays = {name: values[keep] for name, values in arrays.items()}
        edges = np.searchsorted(code, np.arange(len(clips) + 1))

    normalised = columns.normalised
    if normalised is None:
        values = np.abs(np.concatenate([arrays["x"], arrays["y"]]))
        values = values[np.isfinite(values)]
        # In pixels, values below 1 would all be on the first pixel. A few points beyond the border are allowed for.
        normalised = bool(len(values)) and float(np.quantile(values, 0.9)) <= 1.0
        unit = "fractions of the size" if normalised else "pixels"
        notes.append(f"x and y of {path.name} are read as {unit}, judging by their values")
    nothing = np.full(len(code), np.nan)
    when, duration = nothing, arrays.get("duration", nothing)
    if "frame" in arrays:
        first = 0 if columns.from_zero or np.nanmin(arrays["frame"], initial=1) < 1 else 1
        when = arrays["frame"] - first
        if not columns.from_zero:
            notes.append(f"frames of {path.name} are numbered from {first}")
    elif "time" in arrays:
        when = arrays["time"] * (columns.time_unit or 1.0)
        # A duration whose column names no unit is in the unit of the time.
        duration = duration * (columns.duration_unit or columns.time_unit or 1.0)
    spans = {name: (int(edges[c]), int(edges[c + 1])) for name, c in clips.items()}
    return Table(
        path, columns, normalised, spans, arrays["x"], arrays["y"], when, duration, observer, observers, dropped,
        tuple(notes),
    )  # fmt: skip


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Whether each row of `[N,k]` is the first of its kind; rows without x or y (NaN) are counted elsewhere."""
    first = np.zeros(len(rows), bool)
    first[np.unique(np.nan_to_num(rows, nan=-1e300), axis=0, return_index=True)[1]] = True
    return first | np.isnan(rows[:, 1]) | np.isnan(rows[:, 2])

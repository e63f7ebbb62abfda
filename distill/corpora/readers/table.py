"""Tables of gaze: one CSV file with a row per fixation or sample, in whatever words its owner chose.

    clip | image | video | stimulus ...      whose row it is: a file's name, with or without its suffix
    x, y | x_norm, y_norm | gaze_x ...       pixels of the clip, or shares of its width and height
    frame | time, time_ms, time_us           when; a still image needs neither
    duration, duration_ms ...                how long it lasted; without it, a row is of one frame
    observer | subject | participant ...     who

The separator is comma, semicolon or tab; .gz is unpacked. `read` keeps columns of numbers, not rows of text, so that a
table of ten million samples fits in memory. What a row cannot be used for is counted in `Table.unusable`, by clip.
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

from distill.run.errors import UsageError

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
WORDS = {
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
NAMES = {word: column for column, words in WORDS.items() for word in words.split()}
UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0, "seconds": 1.0}
NO_NUMBER = {"", "nan", "na", "n/a", "null", "none", ".", "-", "nd"}


@dataclass(frozen=True)
class Columns:
    """Which column of the file is which, and in what unit. `time_unit` and `duration_unit` are seconds, 0 where unstated."""

    at: dict[str, int]
    names: tuple[str, ...]
    separator: str
    normalised: bool | None  # None: the values decide
    from_zero: bool | None  # frame numbers
    time_unit: float = 0.0
    duration_unit: float = 0.0


@dataclass(frozen=True)
class Table:
    """The rows, sorted by clip. Arrays are float64 `[N]`, NaN where a cell is empty; `observer` int32 `[N]`, -1: unknown."""

    path: Path
    columns: Columns
    normalised: bool
    from_zero: bool
    clips: dict[str, tuple[int, int]]  # first row and the one after the last, by the name in the table
    x: np.ndarray
    y: np.ndarray
    when: np.ndarray  # seconds, or frame numbers from 0; NaN where the table has neither
    duration: np.ndarray  # seconds, or frames where the table counts in frames
    observer: np.ndarray
    observers: int
    unusable: dict[str, Counter[str]] = field(default_factory=dict)  # by clip
    remarks: tuple[str, ...] = ()

    @property
    def by_frame(self) -> bool:
        return "frame" in self.columns.at

    @cached_property
    def _by_file(self) -> dict[str, str]:
        """Names in the table by the last part of their path, with and without suffix, where that means one of them."""
        found: dict[str, str] = {}
        for name in self.clips:
            for short in {Path(name).name, Path(name).stem}:
                found[short] = "" if short in found else name
        return found

    def rows_of(self, file: Path) -> tuple[str, slice] | None:
        """The name that a clip's file has in the table, and its rows; None where it has none."""
        exact = (f"{file.parent.name}/{file.name}", file.name, file.stem)
        short = (self._by_file.get(file.name, ""), self._by_file.get(file.stem, ""))
        for name in (*exact, *short):
            if name in self.clips:
                return name, slice(*self.clips[name])
        return None


def _bytes(path: Path, most: int = -1) -> bytes:
    if path.suffix == ".gz":
        with gzip.open(path, "rb") as packed:
            return packed.read(most)
    with path.open("rb") as file:
        return file.read(most)


def _open_text(path: Path) -> tuple[io.TextIOBase, str]:
    """The file as text, and a remark where it is not UTF-8."""
    data = _bytes(path)
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if data.startswith(mark):
            try:
                return io.StringIO(data.decode(encoding), newline=""), ""
            except UnicodeDecodeError:
                break
    bad = next(i for i in range(len(data)) if data[i] > 127)
    line = data.count(b"\n", 0, bad) + 1
    return (
        io.StringIO(data.decode("cp1252", "replace"), newline=""),
        f"{path.name} is not UTF-8 (line {line}): read as Windows-1252",
    )


def columns_of(path: Path) -> Columns | None:
    """The columns of a file that looks like a gaze table: it has x and y; None for other files."""
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
    words = [name.strip().lower().replace(" ", "_").replace("[", "").replace("]", "") for name in names]
    at: dict[str, int] = {}
    for i, word in enumerate(words):
        if word in NAMES:
            at.setdefault(NAMES[word], i)
    if "x" not in at or "y" not in at or "clip" not in at:
        return None
    x = words[at["x"]]
    normalised = True if "norm" in x or "rel" in x else False if "px" in x or "pix" in x else None
    from_zero = True if "frame" in at and words[at["frame"]] == "frame_index" else None

    def unit(column: str) -> float:
        return UNITS.get(words[at[column]].rsplit("_", 1)[-1], 0.0) if column in at else 0.0

    return Columns(at, names, separator, normalised, from_zero, unit("time"), unit("duration"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        text = text.strip().lower()
        if text in NO_NUMBER:
            return math.nan
        return float(text.replace(",", "."))  # a decimal comma; ValueError where it is no number at all


def read(path: Path) -> Table:
    """The table. Raises UsageError where it has no usable header or not one row. Remembered until the file changes."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int) -> Table:
    text, remark = _open_text(path)
    header = text.readline()
    columns = _recognise(header)
    if columns is None:
        raise UsageError(
            f"{path} has no columns for clip, x and y; its header is {header.strip()[:120]!r}, want for example "
            "`clip,frame,x,y,observer` or `image,subject,x_norm,y_norm`"
        )
    clips: dict[str, int] = {}
    observers: dict[str, int] = {}
    names: list[str] = [name for name in ("x", "y", "frame", "time", "duration", "order") if name in columns.at]
    numbers = {name: array("d") for name in names}
    whose, who = array("i"), array("i")
    codes: dict[str, int] = {}  # of a cell, as it is written
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
        watcher = row[at["observer"]].strip() if "observer" in at else ""
        who.append(observers.setdefault(watcher, len(observers)) if watcher else -1)
    if not whose:
        raise UsageError(f"{path} has a header and not one row that can be read")
    unusable = {
        clip: Counter({"rows that cannot be read": unreadable[n]}) for clip, n in clips.items() if n in unreadable
    }
    return _sorted(path, columns, clips, numbers, whose, who, len(observers), unusable, remark)


def _sorted(
    path: Path, columns: Columns, clips: dict[str, int], numbers: dict[str, array[float]], whose: array[int],
    who: array[int], observers: int, unusable: dict[str, Counter[str]], remark: str,
) -> Table:  # fmt: skip
    code = np.frombuffer(whose, np.int32)
    arrays = {name: np.frombuffer(values, np.float64) for name, values in numbers.items()}
    remarks = [remark] if remark else []
    order = np.argsort(code, kind="stable")
    code, watcher = code[order], np.frombuffer(who, np.int32)[order]
    arrays = {name: values[order] for name, values in arrays.items()}

    edges = np.searchsorted(code, np.arange(len(clips) + 1))
    # A row that stands there twice is a copying mistake, where the same person could not have looked twice.
    if "observer" in columns.at and {"frame", "time", "order"} & set(columns.at):
        keep = np.ones(len(code), bool)
        for name, number in clips.items():
            rows = slice(edges[number], edges[number + 1])
            keep[rows] = _first_of_each(np.stack([watcher[rows], *(a[rows] for a in arrays.values())], 1))
            if dropped := int((~keep[rows]).sum()):
                unusable.setdefault(name, Counter())["duplicate rows"] += dropped
        code, watcher = code[keep], watcher[keep]
        arrays = {name: values[keep] for name, values in arrays.items()}
        edges = np.searchsorted(code, np.arange(len(clips) + 1))

    normalised = columns.normalised
    if normalised is None:
        values = np.abs(np.concatenate([arrays["x"], arrays["y"]]))
        values = values[np.isfinite(values)]
        # Nobody looks at the first pixel only; glances past the border do not make shares into pixels.
        normalised = bool(len(values)) and float(np.quantile(values, 0.9)) <= 1.0
        remarks.append(
            f"x and y of {path.name} are {'shares of the size' if normalised else 'pixels'}, by their values"
        )
    nothing = np.full(len(code), np.nan)
    from_zero, when, duration = True, nothing, arrays.get("duration", nothing)
    if "frame" in arrays:
        from_zero = (
            columns.from_zero if columns.from_zero is not None else bool(np.nanmin(arrays["frame"], initial=1) < 1)
        )
        when = arrays["frame"] - (0 if from_zero else 1)
        if columns.from_zero is None:
            remarks.append(f"frames of {path.name} count from {0 if from_zero else 1}")
    elif "time" in arrays:
        when = arrays["time"] * (columns.time_unit or 1.0)
        # A duration without a unit of its own is in the unit of the time.
        duration = duration * (columns.duration_unit or columns.time_unit or 1.0)
    spans = {name: (int(edges[c]), int(edges[c + 1])) for name, c in clips.items()}
    return Table(
        path, columns, normalised, from_zero, spans, arrays["x"], arrays["y"], when, duration, watcher, observers,
        unusable, tuple(remarks),
    )  # fmt: skip


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Whether each row `[N,k]` is the first of its kind; rows without a place (NaN) are left for another count."""
    first = np.zeros(len(rows), bool)
    first[np.unique(np.nan_to_num(rows, nan=-1e300), axis=0, return_index=True)[1]] = True
    return first | np.isnan(rows[:, 1]) | np.isnan(rows[:, 2])

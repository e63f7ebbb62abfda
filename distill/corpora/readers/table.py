"""Tables of gaze: a text file with a row per fixation or sample, an exporter's or your own. A table needs columns for

    clip | image | video | stimulus ...      the file's name, with or without its suffix
    x, y | x_norm, y_norm | gaze_x ...       pixels of the clip, or fractions of its width and height
    frame | time, time_ms, time_us           when; a still image needs neither
    duration, duration_ms ...                optional; without it, a row belongs to one frame
    observer | subject | participant ...     who

and distill.corpora.readers.conventions knows what else they are called. The separator is comma, semicolon, tab or bar; lines of
comments (#, %, //) and `sep=;` are skipped; .gz is unpacked. `read` keeps columns of numbers, not rows of text, so that a table of
ten million samples fits in memory. A row that cannot be read is dropped and named by its line; it never moves another row.
"""

import csv
import gzip
import io
import math
import re
import unicodedata
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from distill.corpora.clips import counted
from distill.corpora.fixations import DUPLICATE, UNREADABLE
from distill.corpora.readers.conventions import FRACTIONS, LOST, ON_SCREEN, PIXELS, RECORDING, SCREEN, Columns, recognise
from distill.run.errors import UsageError

PREFERRED = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SUFFIXES = (*PREFERRED, ".txt", ".tab", ".txt.gz", ".tab.gz")
UNREAD = (".xlsx", ".xls", ".ods", ".asc", ".edf", ".idf", ".parquet", ".feather", ".mat", ".sav", ".h5", ".hdf5")
NUMERIC = ("x", "y", "frame", "time", "duration", "order", *ON_SCREEN)
MISSING = {"", "nan", "na", "n/a", "null", "none", ".", "-", "--", "nd"}
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
LOST_AT = (0.0, -1.0, -999.0, -9999.0, -32768.0, 1e8)  # trackers give lost gaze these values, in x and y alike
ONE_CLIP = "the clip"  # stands for the name where a table has no column for it
COMMENTS = ("#", "%", "//")
HEADER_WITHIN = 100  # lines; exporters put facts of the recording before the header
NAMED_ROWS = 3  # of those that cannot be read


@dataclass(frozen=True)
class Table:
    """The rows, sorted by clip. Arrays are float64 `[N]`, NaN where a cell is empty; `observer` is int32 `[N]`, -1: unknown."""

    path: Path
    columns: Columns
    space: str  # what x and y are measured in, see conventions
    clips: dict[str, tuple[int, int]]  # first row and the one after the last, by the name in the table
    x: np.ndarray
    y: np.ndarray
    when: np.ndarray  # seconds, or frame numbers from 0; NaN where the table has neither
    duration: np.ndarray  # seconds, or frames where the table counts in frames
    observer: np.ndarray
    dropped: dict[str, Counter[str]]  # rows by clip and reason
    notes: list[str]  # how columns were read, and which rows were not

    @cached_property
    def _by_file(self) -> dict[str, str]:
        """Names in the table by the last part of their path, with and without suffix; "" where several share it."""
        names: dict[str, str] = {}
        for name in self.clips:
            for short in {Path(name).name, Path(name).stem}:
                names[short] = "" if short in names else name
        return names

    @property
    def by_time(self) -> bool:
        """Whether rows say when by the time, not by the frame."""
        return "time" in self.columns.at and "frame" not in self.columns.at

    def rows_of(self, file: Path) -> tuple[str, slice] | None:
        """The name of a clip's file in the table, and its rows; None if the table does not mention it. A table that names no clips
        is of one."""
        if "clip" not in self.columns.at:
            return ONE_CLIP, slice(0, len(self.x))
        folder, whole, stem = map(_composed, (file.parent.name, file.name, file.stem))
        for name in (f"{folder}/{whole}", whole, stem, self._by_file.get(whole, ""), self._by_file.get(stem, "")):
            if name in self.clips:
                return name, slice(*self.clips[name])
        return None


def only_table(folder: Path, one_clip: bool = False) -> Path | None:
    """The gaze table in a folder; None if there is none. Raises UsageError if there are several.

    one_clip: without one that names clips, an exporter's table that does not."""
    found = {path: columns_of(path) for path in _files(folder, SUFFIXES)}
    tables = [path for path, columns in found.items() if not columns.lacks]
    if one_clip and not tables:
        tables = [path for path, columns in found.items() if columns.exporter and columns.lacks == ["clip"]]
    if len(tables) > 1:
        tables = [path for path in tables if path.name.lower().endswith(PREFERRED)] or tables
    if len(tables) > 1:
        raise UsageError(f"{folder} holds several gaze tables, {tables[0].name} and {tables[1].name}; keep one of them")
    return tables[0] if tables else None


def why_none(folder: Path) -> list[str]:
    """What keeps each file in a folder from being a gaze table: which columns are not there, with its header, or its format."""
    reasons = []
    for path in _files(folder, SUFFIXES):
        try:
            columns = columns_of(path)
        except UsageError as error:
            reasons.append(str(error))
            continue
        if len(columns.names) > 2 or path.name.lower().endswith(PREFERRED):  # a licence is no table
            reasons.append(f"{path.name} {_lacking(columns)}")
    return reasons + [f"{path.name} is in a format that is not read: save it as CSV" for path in _files(folder, UNREAD)]


def _lacking(columns: Columns) -> str:
    names = ", ".join(name.strip() for name in columns.names if name.strip())
    return f"has no column that is known as {' or '.join(columns.lacks)}; its header: {names[:200] or 'empty'}"


def read(path: Path) -> Table:
    """The table, cached until the file changes. Raises UsageError for an unusable header, a quote that is not closed, or a table
    without usable rows."""
    stat = path.stat() if path.exists() else None
    return _read(path, stat and (stat.st_mtime_ns, stat.st_size))


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(suffixes) and p.name[0] != "." and p.is_file()]


def _bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None


def _text(path: Path, data: bytes) -> tuple[str, list[str]]:
    """The text of a file, and a note if it is not Unicode."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace"), []
    if b"\0" in data[:2]:  # UTF-16 without its mark: the header is plain letters
        return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", "replace"), []
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        line = data.count(b"\n", 0, next(i for i, byte in enumerate(data) if byte > 127)) + 1
        return data.decode("cp1252", "replace"), [f"{path.name} is not UTF-8 (line {line}): read as Windows-1252"]


@dataclass(frozen=True)
class _Header:
    columns: Columns
    separator: str
    line: int  # from 1


def columns_of(path: Path) -> Columns:
    """The columns of a file, by its first lines."""
    return _find_header(io.StringIO(_text(path, _bytes(path, 1 << 16))[0], newline="")).columns


def _find_header(lines: io.StringIO) -> _Header:
    """The first line that names all needed columns, in a comment too; else the first that is neither comment nor blank.

    `lines` is left after it."""
    separator, best, after = "", _Header(Columns((), {}), ",", 0), 0
    for number in range(1, HEADER_WITHIN + 1):
        line = lines.readline()
        if not line:
            break
        if not re.search(r"[^\W\d_]", line):  # a header has letters
            continue
        if stated := re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE):
            separator = stated[1]
            continue
        comment = line.lstrip().startswith(COMMENTS)
        used = separator or max(",;\t|", key=line.count)
        try:
            names = next(csv.reader([line.lstrip(" #%/") if comment else line], delimiter=used), [])
        except csv.Error:
            continue
        header = _Header(recognise(names), used, number)
        if not header.columns.lacks:
            return header
        if not best.line and not comment and any(names):
            best, after = header, lines.tell()
    lines.seek(after)
    return best


def _reads_commas(text: str, separator: str) -> bool:
    """Whether numbers have decimal commas, judging by the start of the table: 10,5 and 1.024,5 do; 1,024 may be a thousand, and is
    where commas separate cells or other numbers have decimal points."""
    numbers = re.findall(r'(?<=[;\t|\n"])[+-]?[\d.,]+(?=[;\t|\r\n"])', text[: 1 << 20])
    with_comma = [number for number in numbers if "," in number]
    with_point = separator == "," or any("." in number and number.rfind(".") > number.rfind(",") for number in numbers)
    return any(not THOUSANDS.fullmatch(number) for number in with_comma) or (bool(with_comma) and not with_point)


def _number(text: str) -> float:
    """A number with a decimal point; thousands may be set apart by commas, blanks or apostrophes."""
    try:
        return float(text)
    except ValueError:
        if text.strip().lower() in MISSING:
            return math.nan
        text = re.sub(r"(?<=\d)[\s'\u2019](?=\d{3})", "", text)
        return float(text.replace(",", "") if THOUSANDS.fullmatch(text.strip()) else text)


def _comma_number(text: str) -> float:
    """A number with a decimal comma, or a point where it sets no thousands apart."""
    if "," in text or re.fullmatch(r"\s*[+-]?\d{1,3}(\.\d{3}){2,}\s*", text):
        text = text.replace(".", "").replace(",", ".")
    return _number(text)


def _composed(name: str) -> str:
    """macOS stores file names with accents apart from their letters (NFD)."""
    return unicodedata.normalize("NFC", name)


@cache
def _clip_name(cell: str) -> str:
    return _composed(Path(cell.strip().replace("\\", "/")).as_posix()) if cell.strip() else ""


def _rows(path: Path, lines: io.StringIO, header: _Header) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header that are not blank, each with its line. Raises UsageError for a quote that is not closed on its line:
    it would swallow the rows after it."""
    reader = csv.reader(lines, delimiter=header.separator)
    line = header.line
    try:
        for row in reader:
            if header.line + reader.line_num > line + 1 or (row and row[-1].endswith(("\n", "\r"))):
                raise UsageError(f"{path}: a quote that opens on line {line + 1} is not closed there; close it or remove it")
            line += 1
            if any(row):
                yield line, row
    except csv.Error as error:
        raise UsageError(f"{path}: line {line + 1} cannot be read ({error}); is a quote not closed there?") from None


def _fault(row: list[str], columns: Columns, number: Callable[[str], float]) -> str:
    """Why a row cannot be read."""
    for name in (name for name in NUMERIC if name in columns.at and columns.at[name] < len(row)):
        cell = row[columns.at[name]]
        try:
            bad = number(cell) < 0 and name == "frame"
        except ValueError:
            bad = True
        if bad:
            return f"{columns.name(name)} is {cell.strip()[:40]!r}"
    return f"it has {counted(len(row), 'cell')}, the header has {len(columns.names)}"


def _in_frame_0(row: list[str], columns: Columns, number: Callable[[str], float]) -> bool:
    """Whether a row that cannot be read shows that frames are numbered from 0, so that its loss moves no other row."""
    try:
        return 0 <= number(row[columns.at["frame"]]) < 1
    except (KeyError, ValueError, IndexError):
        return False


@lru_cache(maxsize=8)
def _read(path: Path, _changed: tuple[int, int] | None) -> Table:
    text, notes = _text(path, _bytes(path))
    lines = io.StringIO(text if text.endswith("\n") else text + "\n", newline="")
    header = _find_header(lines)
    columns = header.columns
    if "x" in columns.lacks or "y" in columns.lacks or (columns.lacks and not columns.exporter):
        raise UsageError(f"{path} {_lacking(columns)}; use for example `clip,frame,x,y,observer`")
    at, numeric, width = columns.at, [name for name in NUMERIC if name in columns.at], len(columns.names)
    places, frame = [at[name] for name in numeric], numeric.index("frame") if "frame" in numeric else -1
    number = _comma_number if _reads_commas(text, header.separator) else _number
    rows: dict[str, array[Any]] = {"clip": array("i"), "observer": array("i"), **{name: array("d") for name in numeric}}
    clips: dict[str, int] = {}  # numbers of the clips
    observers: dict[str, int] = {}
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    first_frame, of_clip = 0 if columns.from_zero else 1, at.get("clip", -1)
    faults: list[str] = []
    for line, row in _rows(path, lines, header):
        name = ONE_CLIP if of_clip < 0 else _clip_name(row[of_clip]) if of_clip < len(row) else ""
        try:
            person = row[at["observer"]].strip() if "observer" in at else ""
            values = [number(row[place]) for place in places]
            if (len(row) > width and any(row[width:])) or (frame >= 0 and values[frame] < 0):
                raise ValueError
            reason = next((reason for place, reason, test in columns.marks if test(row[place])), "")
        except (ValueError, IndexError):
            if row[0].lstrip().startswith(COMMENTS):
                continue
            faults.append(f"line {line}: {_fault(row, columns, number)}" if len(faults) < NAMED_ROWS else "")
            values, reason = [], UNREADABLE
            first_frame = 0 if _in_frame_0(row, columns, number) else first_frame
        if values and frame >= 0 and values[frame] < 1:
            first_frame = 0
        clip = clips.setdefault(name, len(clips))
        if reason:
            dropped[name][reason] += 1
            continue
        rows["clip"].append(clip)
        rows["observer"].append(observers.setdefault(person, len(observers)) if person else -1)
        for column, value in zip(numeric, values, strict=True):
            rows[column].append(value)
    named = "; ".join(faults[:NAMED_ROWS]) + (f" and {len(faults) - NAMED_ROWS} more" if len(faults) > NAMED_ROWS else "")
    if not rows["clip"]:
        raise UsageError(f"{path} has a header, but no row that can be read" + (f" ({named})" if named else ""))
    if faults:
        notes.append(f"{path.name}: {counted(len(faults), 'row')} cannot be read ({named})")
    arrays = {name: np.frombuffer(values, values.typecode) for name, values in rows.items()}
    return _table(path, columns, clips, arrays, first_frame, dropped, notes)


def _table(
    path: Path, columns: Columns, clips: dict[str, int], rows: dict[str, np.ndarray], first_frame: int,
    dropped: dict[str, Counter[str]], notes: list[str],
) -> Table:  # fmt: skip
    """The table of rows in the order of the file: sorted by clip, without duplicates and lost gaze, numbers in one unit."""
    order = np.argsort(rows["clip"], kind="stable")
    # Numbers that no tracker writes would overflow when they are multiplied.
    sane = {name: np.where(np.abs(rows[name]) < 1e30, rows[name], np.nan) for name in NUMERIC if name in rows}
    rows = {name: values[order] for name, values in (rows | sane).items()}
    rows = _without(rows, (rows["x"] == rows["y"]) & np.isin(rows["x"], LOST_AT), LOST, clips, dropped)
    # The same person cannot look twice at one time: such a row is a copying mistake.
    if "observer" in columns.at and {"frame", "time", "order"} & set(columns.at):
        parts = np.split(np.arange(len(rows["clip"])), np.searchsorted(rows["clip"], np.arange(1, len(clips))))
        first = [_first_of_each(np.stack([a[part] for name, a in rows.items() if name != "clip"], 1)) for part in parts]
        rows = _without(rows, ~np.concatenate(first), DUPLICATE, clips, dropped)
    edges = np.searchsorted(rows["clip"], np.arange(len(clips) + 1))
    if "left" in rows:
        with np.errstate(divide="ignore", invalid="ignore"):
            rows |= {"x": (rows["x"] - rows["left"]) / rows["wide"], "y": (rows["y"] - rows["top"]) / rows["high"]}
        columns = replace(columns, space=FRACTIONS)
    space = _space(path, columns, rows["x"], rows["y"])
    if columns.exporter:
        unit = "pixels of the screen, moved and scaled by the place of the clip there" if "left" in rows else space
        notes.append(f"{path.name} is read as an export of {columns.exporter}: `{columns.name('x')}` is in {unit}")
    elif not columns.space:
        notes.append(f"x and y of {path.name} are read as {space}, judging by their values")
    if by_steps := columns.clock == RECORDING and not columns.time_unit and _unit(rows):
        columns = replace(columns, time_unit=by_steps)
        unit = "milliseconds" if by_steps == 1e-3 else "microseconds"
        notes.append(f"`{columns.name('time')}` of {path.name} is read in {unit}, judging by its steps")
    when = nothing = np.full(len(rows["x"]), np.nan)
    if "frame" in rows:
        when = rows["frame"] - first_frame
        if not columns.from_zero:
            notes.append(f"frames of {path.name} are numbered from {first_frame}")
    elif "time" in rows:
        when = rows["time"] * (columns.time_unit or 1.0)
    # A duration whose column names no unit is in that of the time, or in frames.
    unit_of_when = 1.0 if "frame" in rows else columns.time_unit or 1.0
    duration = rows.get("duration", nothing) * (columns.duration_unit or unit_of_when)
    spans = {name: (int(edges[c]), int(edges[c + 1])) for name, c in clips.items()}
    return Table(path, columns, space, spans, rows["x"], rows["y"], when, duration, rows["observer"], dropped, notes)


def _unit(rows: dict[str, np.ndarray]) -> float:
    """The unit of the times of an eye tracker of 20 to 2000 Hz: 1e-3, 1e-6, or 0 where the steps between rows do not tell."""
    same = (np.diff(rows["clip"]) == 0) & (np.diff(rows["observer"]) == 0)
    steps = np.diff(rows["time"])[same]
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    return 1e-3 if 0 < step <= 50 else 1e-6 if step >= 5000 else 0.0


def _without(
    rows: dict[str, np.ndarray], those: np.ndarray, reason: str, clips: dict[str, int], dropped: dict[str, Counter[str]]
) -> dict[str, np.ndarray]:
    """The rows but those, which are counted by clip."""
    counts = np.bincount(rows["clip"][those], minlength=len(clips))
    for name, number in clips.items():
        dropped[name][reason] += int(counts[number])
    return {name: values[~those] for name, values in rows.items()} if those.any() else rows


def _first_of_each(rows: np.ndarray) -> np.ndarray:
    """Whether each row `[N,k]` (observer, x, y, ...) is the first of its kind; rows without x or y are counted elsewhere."""
    first = np.zeros(len(rows), bool)
    first[np.unique(np.nan_to_num(rows, nan=-1e300), axis=0, return_index=True)[1]] = True
    return first | np.isnan(rows[:, 1]) | np.isnan(rows[:, 2])


def _space(path: Path, columns: Columns, x: np.ndarray, y: np.ndarray) -> str:
    """What x and y are measured in. Raises UsageError where the values contradict the name, or have their origin in the middle."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values)]
    if not len(values):
        return columns.space or PIXELS
    # In pixels, values below 1 would all be on the first pixel. A few points beyond the border are allowed for.
    small = float(np.quantile(np.abs(values), 0.9)) <= 1.0
    space = columns.space or (FRACTIONS if small else PIXELS)
    found = f"{columns.name('x')} and {columns.name('y')} of {path} run from {values.min():g} to {values.max():g}"
    way_out = "name the columns x_px, y_px or x_norm, y_norm, counted from the top left corner"
    if (small and (values % 1).any()) if space in (PIXELS, SCREEN) else float(np.median(np.abs(values))) > 2:
        raise UsageError(f"{found}: they cannot be {space}; {way_out}")
    if not columns.exporter and len(x) > 7 and np.mean((x < 0) | (y < 0)) > 0.25:
        raise UsageError(f"{found}: their origin is in the middle; {way_out}")
    return space

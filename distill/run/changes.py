"""Whether files have changed since they were recorded, for the manifest of a run.

A file counts as unchanged while its size and its time of change are those recorded. Where only the time differs, as after a copy,
its content decides. So a change is missed only where it keeps both size and time, or keeps the size and happens to keep the CRC.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.run.files import fingerprint


def record_of(path: Path) -> dict[str, Any]:
    """What `has_changed` needs to know about a file; plain values."""
    state = path.stat()
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "crc32": _crc32(path)}


def has_changed(path: Path, record: dict[str, Any] | int) -> bool:
    """Whether a file is missing or differs from its record. A record that is a number, of an earlier version, is the size."""
    if not path.is_file():
        return True
    state = path.stat()
    if isinstance(record, int):
        return state.st_size != record
    same = state.st_size == record["bytes"] and (state.st_mtime_ns == record["mtime_ns"] or _crc32(path) == record["crc32"])
    return not same


def is_current(path: Path, record: dict[str, Any] | int) -> bool:
    """Whether the record tells that a file has not changed without reading it."""
    return not isinstance(record, int) and path.stat().st_mtime_ns == record["mtime_ns"]


def files_in(paths: Iterable[Path]) -> list[str]:
    """The files among `paths` and those below its folders, each once, sorted; what does not exist is left out. Not as `Path`s, which
    sort slowly: a corpus may have a million."""
    found = set[str]()
    for path in paths:
        below = (f"{folder}{os.sep}{name}" for folder, _, names in os.walk(path) for name in names)
        found.update(below if path.is_dir() else [str(path)] if path.exists() else [])
    return sorted(found)


def fingerprint_of_stats(files: Iterable[str]) -> str:
    """Changes with the names, sizes and times of change of the files."""
    states = ((file, Path(file).stat()) for file in files)
    return fingerprint([[file, state.st_size, state.st_mtime_ns] for file, state in states])


def fingerprint_of_contents(files: Iterable[str]) -> str:
    """Changes with the names and contents of the files."""
    return fingerprint([[file, _crc32(Path(file))] for file in files])


def _crc32(path: Path) -> str:
    """In hex. Three times as fast as a SHA, and enough against damage and edits."""
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"

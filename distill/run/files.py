"""Files that get their name only when they are complete, arrays that are open only while they are read, and JSON.

The pipeline writes files through `atomic_together` alone, and replaces folders through `atomic_folder`. Until then a file is
called `.STEM.PID-MACHINE.tmp.SUFFIX`. Where a process was killed such files stay; the next one that writes to the folder
removes them.
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
import platform
import re
import shutil
import tempfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distill.opallowlist.foreign import json_text
from distill.run.errors import UsageError

T = TypeVar("T")
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # a folder may be shared, and a process of another machine may be alive
TEMPORARY = re.compile(r"\..+\.(\d+)(?:-([0-9a-f]{8}))?\.tmp(\.[^.]*)?")


@contextlib.contextmanager
def atomic_together(*paths: Path) -> Iterator[list[Path]]:
    """Temporary paths beside `paths` to write to; at the end of the block all files are synced, then all are renamed.

    If the block raises, the temporary files are removed and files at `paths` stay as they were. Suffixes are kept, because
    some writers choose the format by it. Missing folders above `paths` are made. Raises UsageError where a path is a device or
    a pipe: the file would take its place.
    """
    for path in paths:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.absolute())
    temporaries = [path.with_name(f".{path.stem}.{os.getpid()}-{MACHINE}.tmp{path.suffix}") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """`atomic_together` for one file."""
    with atomic_together(path) as [temporary]:
        yield temporary


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; at the end of the block it takes its place. If the block raises, all stays as it was. Where
    the process is killed between the two, the old folder is at `.NAME.PID-MACHINE.old`."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}-{MACHINE}.{kind}") for kind in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.replace(old)  # under a name that nobody removes, until the new one has its own
        try:
            temporary.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
        if old.exists():
            old.replace(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's folder for them (TMPDIR), for the length of the block. Those of killed processes are removed."""
    if os.name == "posix":  # elsewhere signal 0 ends a process
        for left in Path(tempfile.gettempdir()).glob(f"distill-*-{MACHINE}-*"):
            process = left.name.split("-")[1]
            if process.isdecimal() and not _is_alive(int(process)):
                shutil.rmtree(left, ignore_errors=True)
    prefix = f"distill-{os.getpid()}-{MACHINE}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def with_final_names(text: str) -> str:
    """A message with the names that temporary files in it were to get."""
    return re.sub(r"(?<![\w.])\.((?:(?!\s\.)[^/\n])+?)\.\d+-[0-9a-f]{8}\.tmp", r"\1", text)


def is_temporary(name: str) -> bool:
    """Whether `atomic` leaves files of this kind when its process is killed."""
    return bool(TEMPORARY.fullmatch(name))


@lru_cache  # once per folder and process: folders of labels hold many files
def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes of this machine that are no longer alive."""
    if os.name != "posix":  # elsewhere signal 0 ends a process
        return
    with contextlib.suppress(OSError):  # a folder that may not be listed can still be written to
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and match[2] in (None, MACHINE) and not _is_alive(int(match[1])):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def check_writable(outputs: Mapping[str, Path | None]) -> None:
    """Raises UsageError where a file cannot be written at an output's path, each given with its option: a folder is there, or a file
    above it, or the folder that it or its folders would be made in does not let anyone write. For work that takes long."""
    for what, path in ((what, path) for what, path in outputs.items() if path):
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if path.is_dir():
            raise UsageError(f"{what} {path} cannot be written: it is a folder")
        if not above.is_dir():
            raise UsageError(f"{what} {path} cannot be written: it is below a file")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UsageError(f"{what} {path} cannot be written: {above} lets no file be made in it")


def check_distinct(outputs: Mapping[str, Path | None], inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Raises UsageError where an output is an input or another output, through links and relative paths too; each with its option.

    Outputs whose names differ only in case or in the form of their accents count as one: on many file systems they are. Raises
    it for devices and pipes, too.
    """
    named = [(what, path) for what, path in outputs.items() if path]
    for index, (what, path) in enumerate(named):
        _check_replaceable(path)
        for other, taken in [*named[:index], *inputs]:
            if taken and _is_same(path, taken):
                raise UsageError(f"{what} {path} is the same file as {other} {taken}; name another file")


def _check_replaceable(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():  # folders are written into
        raise UsageError(f"{path} is a device or a pipe, which a file would replace; name a file to write")


def _is_same(one: Path, other: Path) -> bool:
    first, second = (Path(os.path.realpath(path)) for path in (one, other))  # `new/../clip.mp4` too, before `new` is made
    if first.exists() and second.exists():
        return first.samefile(second)
    names = [unicodedata.normalize("NFC", str(path)).casefold() for path in (first, second)]
    return names[0] == names[1] and not first.exists() and not second.exists()  # what exists is not what does not


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: none gets its name before all are complete."""
    with atomic_together(*files) as temporaries:
        for temporary, data in zip(temporaries, files.values(), strict=True):
            temporary.write_bytes(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file. It is made in memory first: numpy does not report a full disk, a plain write does."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getbuffer())


def map_array(path: Path) -> np.memmap:
    """A .npy file as an array that is read where it is used. Raises ValueError for any other content, OSError without a file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python: tokenize.TokenError, SyntaxError, TypeError ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


@dataclass(frozen=True)
class ArrayFile:
    """A .npy file that is open only while it is read: a corpus has more files than a process may keep open. Indexing returns
    a copy of the selected part; `[:]` the whole array. Only the header is kept between reads."""

    path: Path

    @cached_property
    def _layout(self) -> dict[str, Any]:
        try:
            array = map_array(self.path)
        except ValueError as error:
            raise UsageError(f"{self.path} is damaged ({error}); remove it and run the command again") from None
        order: Any = "F" if array.flags.fnc else "C"
        return {"dtype": array.dtype, "shape": array.shape, "offset": array.offset, "order": order}

    def __getitem__(self, index: Any) -> np.ndarray:
        layout = self._layout
        with self.path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # np.memmap does the same in four times the time
        part = np.ndarray(buffer=memory, **layout)[index]
        return part if part.base is None else np.array(part)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._layout["shape"]

    def __len__(self) -> int:
        return self.shape[0]

    def is_whole(self, length: int | None = None) -> bool:
        """Whether the file exists, is as long as its header says, and the array has `length` entries, where it is given."""
        try:
            array = map_array(self.path)
        except (OSError, ValueError):
            return False
        return self.path.stat().st_size == array.offset + array.nbytes and length in (None, len(array) if array.ndim else None)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_bytes(path, json_text(value).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UsageError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run the command again to make it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}; remove it and run the command again") from None


def value_in(path: Path, build: Callable[[Any], T]) -> T:
    """What `build` makes of the value in a JSON file. Raises UsageError as `read_json`, and where the value is not as expected."""
    value = read_json(path)
    try:
        return build(value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({one_line(error)}); remove it and run the command again") from None


def one_line(error: Exception) -> str:
    """The kind and the message of an exception."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any part (plain values) changes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

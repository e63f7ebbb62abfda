"""Reads the bytes to check, from a path, from bytes or from a model in memory. None of them is trusted.

A file's kind and size are checked before it is read, and nothing beyond the size limit is read. Standard library only.
"""

import os
import stat
from pathlib import Path
from typing import Protocol, TypeAlias

from distill.opallowlist.report import Violation

MAX_BYTES = 50 * 1024 * 1024
"""Largest file that the downstream loads: 52,428,800 bytes."""

LFS = b"version https://git-lfs.github.com/spec/"

# Files that are not models: (offset, signature, what it is, way out).
_SIGNATURES = (
    (0, b"PK\x03\x04", "a zip archive (PyTorch checkpoints are zips)", "export it: torch.onnx.export"),
    *(
        (0, bytes((0x80, protocol)), "a pickle (as old PyTorch checkpoints are)", "export it: torch.onnx.export")
        for protocol in (2, 3, 4, 5)
    ),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"\x89HDF", "an HDF5 file", "convert it to ONNX"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX"),
    (4, b"ORTM", "an ONNX Runtime .ort file", "check the .onnx that it was made from"),
)


class InMemoryModel(Protocol):
    """The methods of `onnx.ModelProto` that are needed."""

    def ByteSize(self) -> int: ...

    def SerializeToString(self) -> bytes: ...


Source: TypeAlias = str | os.PathLike[str] | bytes | InMemoryModel
"""A path, the bytes of a file, or an `onnx.ModelProto`."""


class Unreadable(OSError):
    """The file could not be opened or read, so there is no verdict. The message names it and the system's reason."""


def read(source: Source, max_bytes: int) -> bytes | Violation:
    """The content of `source`, or why it is refused unread: not a regular file, empty, over `max_bytes`. Raises Unreadable."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _sized(bytes(source), max_bytes)
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source), max_bytes)
    if not hasattr(source, "SerializeToString"):
        raise TypeError(f"check() needs a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    size = source.ByteSize()
    if size > max_bytes:  # measured before serialising, which would need as much memory again
        return _too_large(size, max_bytes)
    return _sized(source.SerializeToString(), max_bytes)


def explain(data: bytes) -> tuple[str, str] | None:
    """What `data`, which is not an ONNX model, seems to be, and the way out; None if unknown."""
    for offset, signature, what, way_out in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return what, way_out
    head = data[:512].lstrip()
    if head[:1] == b"<" and b"html" in head.lower():
        return "an HTML page (a download that needed a login, or a link to a viewer)", "download the raw file"
    if not head or any(byte < 0x20 and byte not in b"\t\r\n" for byte in head):
        return None
    try:
        head[:-4].decode("utf-8")  # the cut may split a character
    except UnicodeDecodeError:
        return None
    return "a text file", "give the binary .onnx file"


def _read_file(path: Path, max_bytes: int) -> bytes | Violation:
    try:
        # A pipe would block on open, a device might never end; so only stat is used on them.
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            return Violation("directory", "a directory, not a model", remedy="name the files: DIR/*.onnx")
        if not stat.S_ISREG(kind.st_mode):
            return Violation("not-a-file", "a pipe, socket or device, not a regular file", remedy="save the model to a file")
        if kind.st_size > max_bytes:
            return _too_large(kind.st_size, max_bytes)
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)  # the file may grow meanwhile
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise Unreadable(f"{path}: cannot be read ({reason})") from error
    return _sized(data, max_bytes)


def _sized(data: bytes, max_bytes: int) -> bytes | Violation:
    if not data:
        return Violation("empty", "empty, 0 bytes", remedy="an export that failed leaves such files; run it again")
    if len(data) > max_bytes:
        return _too_large(len(data), max_bytes)
    return data


def _too_large(size: int, max_bytes: int) -> Violation:
    return Violation(
        "too-large", f"{size:,} bytes; at most {max_bytes:,} are loaded", remedy="store weights as float16 or int8"
    )

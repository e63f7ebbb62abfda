"""Reads one numeric variable from a MATLAB file of version 5 to 7 (MathWorks, MAT-File Format, "Level 5").

A file is a header of 128 bytes followed by elements: a type, a length, data padded to 8 bytes. An element may be
compressed (zlib). A matrix is an element whose data are elements again: flags, dimensions, name, numbers.
scipy.io.loadmat (1.17) cannot be used: one wrong byte, an unknown number type, crashes the process.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill.run.errors import UsageError

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # mxDOUBLE_CLASS to mxUINT64_CLASS; below are cells, structures, text and sparse


def read_variable(path: Path, name: str) -> np.ndarray:
    """The matrix `name`, in its stored shape. Raises UsageError for another kind of file, or if it has no such matrix."""
    try:
        data = path.read_bytes()
        if data[:10] == b"MATLAB 7.3" or data[:4] == b"\x89HDF":
            raise UsageError(f"{path} is a MATLAB 7.3 (HDF5) file; save it again with `save -v7`")
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise UsageError(f"{path} is not a MATLAB file")
        names = []
        for outer, content in _elements(data[128:], order):
            for kind, body in _elements(zlib.decompress(content), order) if outer == COMPRESSED else [(outer, content)]:
                if kind == MATRIX:
                    stored_name, matrix = _matrix(body, order)
                    if stored_name == name and matrix is not None:
                        return matrix
                    names.append(stored_name)
    except (OSError, zlib.error, struct.error, ValueError, IndexError) as error:
        raise UsageError(f"{path} cannot be read as a MATLAB file: {error}") from None
    raise UsageError(f"{path} has no numeric matrix {name}; it holds {', '.join(names) or 'nothing'}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a small element: type and length share four bytes, up to four bytes of data follow
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
        else:
            start, at = at + 8, at + 8 + length + (-length % 8 if kind != COMPRESSED else 0)
        if start + length > len(data):
            raise ValueError("the file is truncated")
        yield kind, data[start : start + length]


def _matrix(body: bytes, order: str) -> tuple[str, np.ndarray | None]:
    elements = list(_elements(body, order))
    flags = struct.unpack_from(order + "I", elements[0][1])[0]
    shape = np.frombuffer(elements[1][1], order + "i4")
    name = elements[2][1].decode("ascii", "replace")
    if (flags & 0xFF) not in NUMERIC_CLASSES:
        return name, None
    kind, numbers = elements[3]
    if kind not in NUMBERS:
        raise ValueError(f"unknown number type {kind}")
    return name, np.frombuffer(numbers, order + NUMBERS[kind]).reshape(tuple(shape), order="F")

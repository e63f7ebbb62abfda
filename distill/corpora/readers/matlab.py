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
MOST_FILLED = 1 << 26  # numbers of a sparse matrix; a damaged file may state any size
WAY_OUT = "restore it, or leave the clip out with corpus.skip"
SPARSE_CLASS, NUMERIC_CLASSES = 5, range(6, 16)  # mxDOUBLE_CLASS to mxUINT64_CLASS; others are cells, structures and text


def read_variable(path: Path, name: str) -> np.ndarray:
    """The matrix `name`, in its stored shape, a sparse one filled. Raises
    UsageError for another kind of file, or if it has no such matrix."""
    try:
        data = path.read_bytes()
        if data[:10] == b"MATLAB 7.3" or data[:4] == b"\x89HDF":
            raise UsageError(f"{path} is a MATLAB 7.3 (HDF5) file; save it again with `save -v7`")
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise UsageError(f"{path} is not a MATLAB file; {WAY_OUT}")
        names = []
        for outer, content in _elements(data[128:], order):
            for kind, body in _elements(zlib.decompress(content), order) if outer == COMPRESSED else [(outer, content)]:
                if kind == MATRIX:
                    stored_name, matrix = _matrix(body, order)
                    if stored_name == name and matrix is not None:
                        return matrix
                    names.append(stored_name)
    except (OSError, zlib.error, struct.error, ValueError, IndexError) as error:
        raise UsageError(f"{path} cannot be read as a MATLAB file: {error}; {WAY_OUT}") from None
    if name in names:
        raise UsageError(f"{path}: {name} is no numeric matrix; save it as one")
    raise UsageError(
        f"{path} has no numeric matrix {name}; it holds {', '.join(names) or 'nothing'}; save the matrix as {name}"
    )


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
    if (flags & 0xFF) == SPARSE_CLASS:
        return name, _filled(elements[3:], order, tuple(shape.tolist()))
    if (flags & 0xFF) not in NUMERIC_CLASSES:
        return name, None
    return name, _numbers(elements[3], order).reshape(tuple(shape), order="F")


def _filled(elements: list[tuple[int, bytes]], order: str, shape: tuple[int, ...]) -> np.ndarray:
    """A sparse matrix `[H,W]` from its rows, the first element of every column, and the values that are not 0."""
    rows, starts, values = (_numbers(element, order) for element in elements[:3])
    size = "x".join(map(str, shape))
    if len(shape) != 2:
        raise ValueError(f"its sparse matrix is {size}, and a map has two dimensions")
    if shape[0] * shape[1] > MOST_FILLED:
        raise ValueError(f"its sparse matrix is {size}, more than {MOST_FILLED:,} numbers")
    damaged = ValueError(f"the indices of its sparse matrix, {size}, are damaged")
    if min(shape) < 0 or "f" in (rows.dtype.kind, starts.dtype.kind) or len(starts) != shape[1] + 1:
        raise damaged
    counts: np.ndarray = np.diff(starts.astype(np.int64))
    rows, values = rows[: starts[-1]], values[: starts[-1]]
    outside = ((rows < 0) | (rows >= shape[0])).any()
    if starts[0] or (counts < 0).any() or outside or not len(rows) == len(values) == starts[-1]:
        raise damaged
    matrix = np.zeros(shape, values.dtype)
    matrix[rows, np.repeat(np.arange(shape[1]), counts)] = values
    return matrix


def _numbers(element: tuple[int, bytes], order: str) -> np.ndarray:
    kind, numbers = element
    if kind not in NUMBERS:
        raise ValueError(f"unknown number type {kind}")
    return np.frombuffer(numbers, order + NUMBERS[kind])

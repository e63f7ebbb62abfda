"""Per-block QP offsets in the words of each encoder: kvazaar, SVT-AV1, and FFmpeg's `addroi`.

    kvazaar    --roi FILE            every frame: columns, rows, then the offsets in QP row by row; text, or binary for *.bin
    svt-av1    --roi-map-file FILE   a line where the map changes: frame number, then offsets in qindex of all 64-pixel blocks
    addroi     a command line        one map for the whole clip: ffmpeg has no file of maps over time

Offsets are int `[rows, columns]` as `distill.export.blocks.qp_offsets` gives them: QP on the scale of 0 to 51.
"""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distill.run.files import atomic

FORMATS = ("kvazaar", "svt-av1", "addroi")
SVT_BLOCK, SVT_LEVELS = 64, 8
QINDEX_PER_QP = 4  # AV1's qindex runs to 255 where the QP of its command line runs to 63
QINDEX_MOST = 255


def kvazaar_text(offsets: np.ndarray) -> bytes:
    """One frame of a kvazaar ROI file: `columns rows` and the offsets, raster order, a line for each row of blocks."""
    rows, columns = offsets.shape
    lines = [f"{columns} {rows}", *(" ".join(map(str, row)) for row in offsets.tolist())]
    return ("\n".join(lines) + "\n").encode()


def kvazaar_binary(offsets: np.ndarray) -> bytes:
    """The same for a file whose name ends in .bin: two little-endian int32, then an int8 for each block."""
    rows, columns = offsets.shape
    if np.abs(offsets).max() > 127:
        raise ValueError(f"kvazaar's binary offsets are int8; got {offsets.min()} to {offsets.max()}")
    return np.array([columns, rows], "<i4").tobytes() + offsets.astype(np.int8).tobytes()


def svt_event(frame: int, offsets: np.ndarray) -> bytes:
    """A line of a SVT-AV1 ROI map file, in force from this frame (counted from 0) until the next line.

    offsets: QP, for all blocks of 64 pixels, at most 8 different values. Where all are below zero they are raised until the
    highest is zero: SVT-AV1 warns that the stream may not decode otherwise.
    Raises ValueError for more than 8 values.
    """
    if (levels := len(np.unique(offsets))) > SVT_LEVELS:
        raise ValueError(f"SVT-AV1 takes at most {SVT_LEVELS} different offsets a frame; got {levels}")
    qindex = (offsets - min(0, int(offsets.max()))) * QINDEX_PER_QP
    qindex = np.clip(qindex, -QINDEX_MOST, QINDEX_MOST)
    return (" ".join(map(str, [frame, *qindex.ravel().tolist()])) + "\n").encode()


def rectangles(offsets: np.ndarray, block: int, size: tuple[int, int]) -> list[tuple[int, int, int, int, int]]:
    """The map as rectangles (x, y, width, height in pixels, offset), few of them; the first that covers a pixel counts.

    Blocks of the commonest offset are the last rectangle, all of the frame, which is left out where that offset is zero.
    size: height and width of the frame in pixels.
    """
    values, counts = np.unique(offsets, return_counts=True)
    common = int(values[counts.argmax()])
    height, width = size
    done: list[tuple[int, int, int, int, int]] = []
    open_: dict[
        tuple[int, int, int], int
    ] = {}  # runs of the row before (start, end, offset), and the row they began in
    for row in range(offsets.shape[0] + 1):
        now = _runs(offsets[row], common) if row < offsets.shape[0] else []
        for run in [r for r in open_ if r not in now]:
            (start, end, value), top = run, open_.pop(run)
            x, y = start * block, top * block
            done.append((x, y, min(end * block, width) - x, min(row * block, height) - y, value))
        for run in now:
            open_.setdefault(run, row)
    return [*done, (0, 0, width, height, common)] if common else done


def _runs(row: np.ndarray, common: int) -> list[tuple[int, int, int]]:
    """Start, end and value of the runs of equal offsets in a row, other than the commonest."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    runs = [(start, end, int(row[start])) for start, end in pairwise(edges)]
    return [run for run in runs if run[2] != common]


def addroi(offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> list[str]:
    """The map as arguments of `addroi` filters, one after the other; see `rectangles`.

    bits: of a sample. The filter takes shares of the encoder's QP range, which is 51 and 6 for every bit above 8.
    """
    scale = 51 + 6 * (bits - 8)
    return [
        f"{x}:{y}:{width}:{height}:{value / scale:.6f}"
        for x, y, width, height, value in rectangles(offsets, block, size)
    ]


def addroi_command(source: Path, offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> bytes:
    """An ffmpeg command line that encodes the clip with one map for all of its frames, by libx264."""
    filters = ",".join(f"addroi={arguments}" for arguments in addroi(offsets, block, size, bits)) or "null"
    command = ["ffmpeg", "-i", str(source), "-vf", filters, "-c:v", "libx264", "-aq-mode", "1", "-crf", "23"]
    return (shlex.join([*command, "-c:a", "copy", "out.mp4"]) + "\n").encode()


class RoiFile:
    """Maps over time, written frame by frame as `kvazaar` or `svt-av1` wants them; a context manager.

    The file gets its name only when the block ends well.
    """

    def __init__(self, path: Path, format_: str) -> None:
        self.path, self.format = path, format_
        self.frames = 0
        self._last: np.ndarray | None = None
        self._named = ExitStack()

    def __enter__(self) -> RoiFile:
        temporary = self._named.enter_context(atomic(self.path))
        self._file = self._named.enter_context(temporary.open("wb"))
        return self

    def add(self, offsets: np.ndarray) -> None:
        """The offsets of the next frame."""
        if self.format == "kvazaar":
            binary = self.path.suffix.lower() == ".bin"
            self._file.write(kvazaar_binary(offsets) if binary else kvazaar_text(offsets))
        elif self._last is None or not np.array_equal(offsets, self._last):  # a line stays in force until the next
            self._file.write(svt_event(self.frames, offsets))
        self._last = offsets
        self.frames += 1

    def __exit__(self, *error: Any) -> None:
        self._named.__exit__(*error)

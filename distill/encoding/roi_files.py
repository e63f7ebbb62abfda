"""QP offsets in the file format of each encoder: kvazaar, SVT-AV1, and FFmpeg's `addroi`.

    kvazaar    --roi FILE            every frame: columns, rows, then the offsets in QP row by row; text, or binary for *.bin
    svt-av1    --roi-map-file FILE   a line where the map changes: frame number, then offsets in qindex of all 64-pixel blocks
    addroi     a command line        one map for the whole clip: ffmpeg has no file of maps over time

Offsets are int `[rows, columns]` as `distill.encoding.qp_offsets` gives them: QP on the scale of 0 to 51.
"""

import shlex
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np

from distill.run.files import atomic

FORMATS = ("kvazaar", "svt-av1", "addroi")
SVT_BLOCK, SVT_LEVELS = 64, 8
QINDEX_PER_QP = 4  # AV1's qindex ranges to 255, the QP of its command line to 63
QINDEX_MAX = 255


def kvazaar_text(offsets: np.ndarray) -> bytes:
    """One frame of a kvazaar ROI file: `columns rows` and the offsets, in raster order, one line per row of blocks."""
    rows, columns = offsets.shape
    lines = [f"{columns} {rows}", *(" ".join(map(str, row)) for row in offsets.tolist())]
    return ("\n".join(lines) + "\n").encode()


def kvazaar_binary(offsets: np.ndarray) -> bytes:
    """The same for a file named *.bin: columns and rows as little-endian int32, then one int8 per block."""
    rows, columns = offsets.shape
    if np.abs(offsets).max() > 127:
        raise ValueError(f"kvazaar's binary offsets are int8; got {offsets.min()} to {offsets.max()}")
    return np.array([columns, rows], "<i4").tobytes() + offsets.astype(np.int8).tobytes()


def svt_event(frame: int, offsets: np.ndarray) -> bytes:
    """A line of an SVT-AV1 ROI map file, valid from this frame (counted from 0) until the next line.

    offsets: QP, for all blocks of 64 pixels, at most 8 different values. Where all are negative they are raised until the highest
    is zero: SVT-AV1 warns that the stream may not decode otherwise.
    Raises ValueError for more than 8 values.
    """
    if (levels := len(np.unique(offsets))) > SVT_LEVELS:
        raise ValueError(f"SVT-AV1 takes at most {SVT_LEVELS} different offsets a frame; got {levels}")
    qindex = np.clip((offsets - min(0, int(offsets.max()))) * QINDEX_PER_QP, -QINDEX_MAX, QINDEX_MAX)
    return (" ".join(map(str, [frame, *qindex.ravel().tolist()])) + "\n").encode()


def rectangles(offsets: np.ndarray, block: int, size: tuple[int, int]) -> list[tuple[int, int, int, int, int]]:
    """The offsets as few rectangles (x, y, width, height in pixels, offset); the first that covers a pixel counts.

    The most common offset is the last rectangle, which covers the whole frame and is left out where that offset is zero.
    size: height and width of the frame in pixels.
    """
    values, counts = np.unique(offsets, return_counts=True)
    common = int(values[counts.argmax()])
    height, width = size
    done: list[tuple[int, int, int, int, int]] = []
    growing: dict[tuple[int, int, int], int] = {}  # runs of the previous row (start, end, offset), and their first row
    for row in range(offsets.shape[0] + 1):
        runs = _runs(offsets[row], common) if row < offsets.shape[0] else []
        for run in [r for r in growing if r not in runs]:
            (start, end, value), top = run, growing.pop(run)
            x, y = start * block, top * block
            done.append((x, y, min(end * block, width) - x, min(row * block, height) - y, value))
        for run in runs:
            growing.setdefault(run, row)
    return [*done, (0, 0, width, height, common)] if common else done


def _runs(row: np.ndarray, common: int) -> list[tuple[int, int, int]]:
    """Start, end and value of the runs of equal offsets in a row, without the most common offset."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    runs = [(start, end, int(row[start])) for start, end in pairwise(edges)]
    return [run for run in runs if run[2] != common]


def addroi(offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> list[str]:
    """The arguments of a chain of `addroi` filters that set the offsets; see `rectangles`.

    bits: bits per sample. The filter takes shares of the encoder's QP range, which is 51, plus 6 for every bit above 8.
    """
    scale = 51 + 6 * (bits - 8)
    return [f"{x}:{y}:{width}:{height}:{value / scale:.6f}" for x, y, width, height, value in rectangles(offsets, block, size)]


def addroi_command(source: Path, offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> bytes:
    """An ffmpeg command line that encodes the clip with one map for all of its frames, by libx264."""
    filters = ",".join(f"addroi={arguments}" for arguments in addroi(offsets, block, size, bits)) or "null"
    command = ["ffmpeg", "-i", str(source), "-vf", filters, "-c:v", "libx264", "-aq-mode", "1", "-crf", "23"]
    return (shlex.join([*command, "-c:a", "copy", "out.mp4"]) + "\n").encode()


class RoiFile(ExitStack):
    """Offsets over time, written frame by frame in the format of `kvazaar` or `svt-av1`; a context manager.

    The file gets its name only when the block ends without an error.
    """

    def __init__(self, path: Path, format_: str) -> None:
        super().__init__()
        self.format, self.binary = format_, path.suffix.lower() == ".bin"
        self.frames = 0
        self._last: np.ndarray | None = None
        self._file = self.enter_context(self.enter_context(atomic(path)).open("wb"))

    def add(self, offsets: np.ndarray) -> None:
        """The offsets of the next frame."""
        if self.format == "kvazaar":
            self._file.write(kvazaar_binary(offsets) if self.binary else kvazaar_text(offsets))
        elif self._last is None or not np.array_equal(offsets, self._last):  # a line is valid until the next
            self._file.write(svt_event(self.frames, offsets))
        self._last = offsets
        self.frames += 1

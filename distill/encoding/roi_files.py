"""QP offsets in the file format of each encoder: kvazaar, SVT-AV1, FFmpeg's `addroi`, and a plain one for programs.

    kvazaar    --roi FILE            every frame: columns, rows, then the offsets in QP row by row; text, or binary for *.bin
    svt-av1    --roi-map-file FILE   a line where the map changes: frame number, then offsets in qindex of all 64-pixel blocks
    addroi     a command line        one map for the whole clip: ffmpeg has no file of maps over time
    int8       for own programs      a header, then one byte per block and frame: NVENC's qpDeltaMap and similar arrays

Offsets are int `[rows, columns]` as `distill.encoding.qp_offsets` gives them: QP on the scale of 0 to 51.
"""

import shlex
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.run.files import atomic

FORMATS = ("kvazaar", "svt-av1", "addroi", "int8")
GOPS = (0, 8, 16)  # of kvazaar: no reordering, and the lengths of its B-frame pyramids
INT8_HEADER = struct.Struct("<8s6I")  # INT8_MAGIC, block, width, height, columns, rows, frames; little-endian, 32 bytes
INT8_MAGIC = b"QPDELTA1"
# Blocks in pixels of the encoders that have but one size. kvazaar reads one value for each of these, from any grid.
OWN_BLOCK = {"kvazaar": 64, "svt-av1": 64}
SVT_LEVELS = 8
QINDEX_PER_QP = 4  # AV1's qindex ranges to 255, the QP of its command line to 63
QINDEX_MAX = 255


@dataclass(frozen=True)
class RoiOutput:
    """A file of offsets for another encoder. gop: of kvazaar, see `coding_order`."""

    path: Path
    format: str
    gop: int = 16


def kvazaar_text(offsets: np.ndarray) -> bytes:
    """One frame of a kvazaar ROI file: `columns rows` and the offsets, in raster order, one line per row of blocks."""
    rows, columns = offsets.shape
    lines = [f"{columns} {rows}", *(" ".join(map(str, row)) for row in offsets.tolist())]
    return ("\n".join(lines) + "\n").encode()


def kvazaar_binary(offsets: np.ndarray) -> bytes:
    """The same for a file named *.bin: columns and rows as little-endian int32, then one int8 per block."""
    rows, columns = offsets.shape
    return np.array([columns, rows], "<i4").tobytes() + int8_bytes(offsets)


def coding_order(gop: int) -> list[int]:
    """The order in which kvazaar codes a group of pictures, and reads their maps: numbers from 1 in the order of display.

    gop: the group's length, a power of 2, or 0 where nothing is reordered. The first frame of a video stands alone before the
    first group. A shorter last group is coded in the same order, without the pictures that it lacks. See kvazaar's src/gop.h.
    """

    def between(first: int, last: int) -> list[int]:
        middle = (first + last) // 2
        return [middle, *between(first, middle), *between(middle, last)] if last - first > 1 else []

    return [gop, *between(0, gop)] if gop else [1]


def svt_event(frame: int, offsets: np.ndarray) -> bytes:
    """A line of an SVT-AV1 ROI map file, valid from this frame (counted from 0) until the next line.

    offsets: QP, for all blocks of 64 pixels. A line may hold 8 different values: where there are more, each offset becomes the
    nearest of 8 levels, evenly spaced from the lowest to the highest. Where all are negative they are raised until the highest is
    zero: SVT-AV1 warns that the stream may not decode otherwise.
    """
    qindex = np.clip((offsets - min(0, int(offsets.max()))) * QINDEX_PER_QP, -QINDEX_MAX, QINDEX_MAX)
    if len(np.unique(qindex)) > SVT_LEVELS:
        levels = np.round(np.linspace(qindex.min(), qindex.max(), SVT_LEVELS)).astype(int)
        qindex = levels[np.abs(qindex[..., None] - levels).argmin(-1)]
    return (" ".join(map(str, [frame, *qindex.ravel().tolist()])) + "\n").encode()


def int8_bytes(offsets: np.ndarray) -> bytes:
    """One signed byte per block, row by row. Raises ValueError for offsets beyond -127 and 127."""
    if np.abs(offsets).max() > 127:
        raise ValueError(f"the file's offsets are int8; got {offsets.min()} to {offsets.max()}")
    return offsets.astype(np.int8).tobytes()


def rectangles(offsets: np.ndarray, block: int, size: tuple[int, int]) -> np.ndarray:
    """The offsets as few rectangles int `[rectangles, 5]` (x, y, width, height in pixels, offset); the first on a pixel counts.

    The most common offset is the last rectangle, which covers the whole frame and is left out where that offset is zero.
    size: height and width of the frame in pixels.
    """
    height, width = size
    columns = offsets.shape[1]
    values, counts = np.unique(offsets, return_counts=True)
    common = int(values[counts.argmax()])
    starts = np.ones(offsets.shape, bool)
    starts[:, 1:] = np.diff(offsets) != 0
    first = np.flatnonzero(starts)  # the first block of every run of equal offsets in a row, and the end of the run
    end = np.append(first[1:], offsets.size)
    # Runs as columns [start, end, offset, row], sorted so that equal ones of consecutive rows are neighbours: one rectangle.
    runs = np.stack([first % columns, (end - 1) % columns + 1, offsets.ravel()[first], first // columns])
    runs = runs[:, runs[2] != common]
    runs = runs[:, np.lexsort(runs[::-1])]
    top = np.ones(runs.shape[1], bool)
    top[1:] = (np.diff(runs) != [[0], [0], [0], [1]]).any(0)
    left, right, value, upper = runs[:, top]
    lower = runs[3, np.roll(top, -1)] + 1
    x, y = left * block, upper * block
    found = np.stack([x, y, np.minimum(right * block, width) - x, np.minimum(lower * block, height) - y, value], 1)
    return np.vstack([found, [0, 0, width, height, common]]) if common else found


def addroi(offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> list[str]:
    """The arguments of a chain of `addroi` filters that set the offsets; see `rectangles`.

    bits: bits per sample. The filter takes shares of the encoder's QP range, which is 51, plus 6 for every bit above 8.
    """
    scale = 51 + 6 * (bits - 8)
    return [f"{x}:{y}:{width}:{height}:{value}/{scale}" for x, y, width, height, value in rectangles(offsets, block, size)]


def addroi_command(source: Path, offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> bytes:
    """An ffmpeg command line that encodes the clip with one map for all of its frames, by libx264.

    Offsets are of the frames as stored, which ffmpeg would turn upright before its filters.
    """
    filters = ",".join(f"addroi={arguments}" for arguments in addroi(offsets, block, size, bits)) or "null"
    command = ["ffmpeg", "-noautorotate", "-i", str(source), "-vf", filters, "-c:v", "libx264", "-aq-mode", "1", "-crf", "23"]
    return (shlex.join([*command, "-c:a", "copy", "out.mp4"]) + "\n").encode()


class RoiFile(ExitStack):
    """Offsets over time, written frame by frame, in every format but `addroi`; a context manager.

    The file gets its name only when the block ends without an error.
    """

    def __init__(self, roi: RoiOutput, size: tuple[int, int], block: int) -> None:
        """size: height and width of the video in pixels; block: side of the offsets' blocks."""
        super().__init__()
        self.format, self.binary = roi.format, roi.path.suffix.lower() == ".bin"
        self.frames = 0
        self._size, self._block = size, block
        self._order = coding_order(roi.gop)
        self._group: list[np.ndarray] = []  # of kvazaar: what waits for the end of its group
        self._last: np.ndarray | None = None
        self._file = self.enter_context(self.enter_context(atomic(roi.path)).open("wb"))
        self.push(self._finish)

    def add(self, offsets: np.ndarray) -> None:
        """The offsets of the next frame, in the order of display."""
        if self.format == "kvazaar":
            self._group.append(offsets)
            if self.frames == 0 or len(self._group) == len(self._order):
                self._write_group()
        elif self.format == "int8":
            if self.frames == 0:
                self._file.write(self._int8_header(offsets))
            self._file.write(int8_bytes(offsets))
        elif self._last is None or not np.array_equal(offsets, self._last):  # a line is valid until the next
            self._file.write(svt_event(self.frames, offsets))
        self._last = offsets
        self.frames += 1

    def _write_group(self) -> None:
        for number in self._order:
            if number <= len(self._group):
                offsets = self._group[number - 1]
                self._file.write(kvazaar_binary(offsets) if self.binary else kvazaar_text(offsets))
        self._group.clear()

    def _int8_header(self, offsets: np.ndarray) -> bytes:
        height, width = self._size
        rows, columns = offsets.shape
        return INT8_HEADER.pack(INT8_MAGIC, self._block, width, height, columns, rows, self.frames)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write_group()
            if self.format == "int8" and self._last is not None:  # now the number of frames is known
                self._file.seek(0)
                self._file.write(self._int8_header(self._last))

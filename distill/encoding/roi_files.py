"""QP offsets in the file format of each encoder: kvazaar, SVT-AV1, and FFmpeg's `addroi`.

    kvazaar    --roi FILE            every frame: columns, rows, then the offsets in QP row by row; text, or binary for *.bin
    svt-av1    --roi-map-file FILE   a line where the map changes: frame number, then offsets in qindex of all 64-pixel blocks
    addroi     a command line        one map for the whole clip: ffmpeg has no file of maps over time

Offsets are int `[rows, columns]` as `distill.encoding.qp_offsets` gives them: QP on the scale of 0 to 51.
"""

import shlex
from contextlib import ExitStack
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

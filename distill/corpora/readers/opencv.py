"""Videos through OpenCV, where PyAV is not installed. It does not know mirrored display matrices, nor where sound ends.

FFmpeg inside OpenCV gets only names that are plain ASCII: it ends the process on others.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.readers.frames import Frame, codec_name
from distill.run.errors import UsageError
from distill.run.machine.extras import how_to_install

PTS = getattr(cv2, "CAP_PROP_PTS", -1)  # since OpenCV 4.11; in frames at the stated rate
WITHOUT_TIMES = b"AVI "  # at byte 8: see distill.corpora.readers.pyav.in_order


@contextlib.contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """An absolute path of ASCII characters for a file to read or to write: its own, or that of a link to it."""
    absolute = str(path.absolute())
    if absolute.isascii():
        yield absolute
        return
    with tempfile.TemporaryDirectory() as folder:
        suffix = path.suffix if path.suffix.isascii() else ""
        link = Path(folder) / f"video{suffix}"
        link.symlink_to(absolute)
        yield str(link)


def header(path: Path) -> tuple[int, int, int, float]:
    """Frames, height, width and frames per second as the header states them; 0 or less where it does not."""
    capture, which = _open(path), (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
    frames, height, width = (int(capture.get(number)) for number in which)
    return frames, height, width, float(capture.get(cv2.CAP_PROP_FPS))


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise UsageError(f"{path}: no such video" + ("; it is a folder" if path.is_dir() else ""))
    with plain_name(path) as name:
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UsageError(_not_read(path))
    return capture


def _not_read(path: Path) -> str:
    codec = f"OpenCV may lack its codec ({codec_name(path)}), and PyAV reads more: {how_to_install('encode')}"
    return f"{path}: no frame of it decodes; is it complete? {codec}"


class Video:
    """A video file, for one pass over its frames: see distill.corpora.readers.frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rate, self.timed, self.lost = 0.0, True, 0
        self._end = 0.0
        self._stated: float | None = None

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown. Raises UsageError for a file that cannot be read."""
        capture = _open(self.path)
        with self.path.open("rb") as file:
            self.timed = file.read(12)[8:] != WITHOUT_TIMES
        self.rate = float(capture.get(cv2.CAP_PROP_FPS))
        count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # of a stated duration, or negative
        self._stated = count / self.rate if self.rate > 0 and count > 0 else None
        size = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        number, start = 0, 0.0
        while capture.grab():
            stamp, number = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, number + 1
            if self.rate > 0:
                if number == 1:  # stamps count from the first frame, durations do not
                    start = max(0.0, capture.get(PTS) / self.rate)
                self._end = max(self._end, start + stamp + 1 / self.rate if self.timed else number / self.rate)
            yield Frame(stamp if stamp or number == 1 else None, size, partial(self._rgb, capture, number))
        if not number:
            raise UsageError(_not_read(self.path))

    def _rgb(self, capture: cv2.VideoCapture, number: int) -> np.ndarray:
        ok, bgr = capture.retrieve()
        if not ok:
            raise UsageError(f"{self.path}: frame {number} does not decode; re-encode the video or leave the clip out")
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def ends(self) -> tuple[float, float] | None:
        """After the last frame: where the file ends and where its header says it does, in seconds; None if it does not say."""
        return None if self._stated is None else (self._end, self._stated)


def write(path: Path, codec: str, fps: float, size: Sequence[int], frames: Iterable[np.ndarray]) -> int:
    """Writes uint8 RGB frames `[H,W,3]` of (height, width) `size` at one rate, and returns how many. codec: its four characters.

    Raises UsageError if the file cannot be opened.
    """
    with plain_name(path) as name:
        writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*codec), fps, (size[1], size[0]))
    if not writer.isOpened():
        raise UsageError(f"cannot write {path}; does the folder exist, is it writable, is the disk full?")
    count = 0
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        count += 1
    writer.release()
    return count

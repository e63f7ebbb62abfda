"""Frames of a video file, of a folder of images, or of one still image, in order.

OpenCV's seeking is not frame-exact and its frame count is a guess, so frames are only ever read from the start and
counted by reading.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.readers import images
from distill.run.errors import UsageError

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".y4m")


def _open(path: Path) -> cv2.VideoCapture:
    if not path.exists():
        raise UsageError(f"{path}: no such video")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UsageError(f"{path} does not open as a video; is it complete?")
    return capture


def probe(path: Path) -> tuple[int, int, int, float]:
    """Frames (counted by decoding), height, width in pixels, frames per second.

    Raises UsageError where the file does not open, or not one frame decodes.
    """
    capture = _open(path)
    try:
        ok, frame = capture.read()
        if not ok:
            raise UsageError(f"{path} opens, but not one frame decodes; is it complete?")
        frames = 1
        while capture.grab():
            frames += 1
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        stated = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # from the header, often off by a few
    finally:
        capture.release()
    if frames < 0.95 * stated - 2:
        raise UsageError(f"{path} ends early: {frames} frames decode, its header states {stated}; is it complete?")
    if not 0.5 <= fps <= 1000:
        raise UsageError(f"{path} states {fps:g} frames per second; re-encode it with its true rate")
    return frames, frame.shape[0], frame.shape[1], fps


def probe_folder(folder: Path) -> tuple[int, int, int]:
    """Frames, height and width of a folder of numbered images; headers are read, nothing is decoded.

    Raises UsageError where there are none, numbers leave a gap, or sizes differ.
    """
    names = images.listing(folder)
    if not names:
        raise UsageError(f"{folder} holds no images ({', '.join(images.SUFFIXES)})")
    images.check_numbers(folder, names)
    size = images.size_of(folder / names[0])
    for name in names[1:]:
        if (other := images.size_of(folder / name)) != size:
            raise UsageError(
                f"{folder / name} is {other[1]}x{other[0]} px, {names[0]} is {size[1]}x{size[0]}; a clip has one size"
            )
    return len(names), *size


def read_frames(path: Path, stride: int = 1) -> Iterator[np.ndarray]:
    """Every `stride`-th frame from the first, uint8 RGB `[H,W,3]`, of a video, a folder of images, or an image."""
    if path.is_dir():
        return (images.read_rgb(path / name) for name in images.listing(path)[::stride])
    if path.suffix.lower() in images.SUFFIXES:
        return iter([images.read_rgb(path)])
    return _read_video(path, stride)


def _read_video(path: Path, stride: int) -> Iterator[np.ndarray]:
    capture = _open(path)
    try:
        index = 0
        while capture.grab():
            if index % stride == 0:
                ok, frame = capture.retrieve()
                if not ok:
                    raise UsageError(
                        f"{path}: frame {index + 1} does not decode; re-encode the video or leave the clip out"
                    )
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1
    finally:
        capture.release()


class _Film(threading.local):
    """The one video that a thread reads single frames of, and how far it has read."""

    key: tuple[Path, int] | None = None
    capture: cv2.VideoCapture
    index = -1
    image: np.ndarray


_film = _Film()
MEAN = np.full((1, 3), 1 / 3, np.float32)


def gray_frame(path: Path, index: int) -> np.ndarray:
    """Frame `index` of a video of grey maps, uint8 `[H,W]`: the mean of its channels.

    Reading on is cheap, going back starts over: seeking is not exact. Raises UsageError where the video is shorter.
    """
    key = (path, path.stat().st_mtime_ns if path.exists() else 0)
    if _film.key != key or index < _film.index:
        _film.key, _film.capture, _film.index = key, _open(path), -1
    while _film.index < index:
        if not _film.capture.grab():
            read, _film.key = _film.index + 1, None
            raise UsageError(f"{path} ends after {read} frames, frame {index + 1} was asked for; is it complete?")
        _film.index += 1
        if _film.index == index:
            ok, image = _film.capture.retrieve()
            if not ok:
                _film.key = None
                raise UsageError(f"{path}: frame {index + 1} does not decode; restore the file")
            _film.image = cv2.transform(image, MEAN)
    return _film.image


def stated(path: Path) -> tuple[int, int, int]:
    """Frames, height and width that a video's header states; the frames may be off by a few."""
    capture = _open(path)
    try:
        wanted = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
        frames, height, width = (int(capture.get(which)) for which in wanted)
    finally:
        capture.release()
    return frames, height, width


class Writer:
    """Writes uint8 RGB frames `[H,W,3]` to a video file; the suffix chooses the codec (.avi: MJPEG, .mp4: MPEG-4)."""

    CODECS = {".avi": "MJPG", ".mp4": "mp4v"}

    def __init__(self, path: Path, fps: float, size: Sequence[int]) -> None:
        codec = self.CODECS.get(path.suffix.lower())
        if codec is None:
            raise UsageError(f"cannot write {path}: the suffix must be one of {', '.join(self.CODECS)}")
        height, width = size
        self.path = path
        self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
        if not self.writer.isOpened():
            raise UsageError(f"cannot write {path}; is the folder there and writable, the disk full?")

    def write(self, frame: np.ndarray) -> None:
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self.writer.release()

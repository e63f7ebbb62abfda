"""Frames of a video file, of a folder of images, or of one still image, in order; and a writer of video files.

OpenCV's seeking is not frame-exact and its frame count is an estimate, so frames are always read from the start and counted
by reading.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    capture = _open(path)
    try:
        yield capture
    finally:
        capture.release()


def probe(path: Path) -> tuple[int, int, int, float]:
    """Frames (counted by decoding), height and width in pixels, frames per second.

    Raises UsageError if the file does not open, no frame decodes, or it ends early.
    """
    with _opened(path) as capture:
        ok, frame = capture.read()
        if not ok:
            raise UsageError(f"{path} opens, but no frame decodes; is it complete?")
        frames = 1
        while capture.grab():
            frames += 1
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        in_header = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # often off by a few
    if frames < 0.95 * in_header - 2:
        raise UsageError(f"{path} ends early: {frames} frames decode, its header states {in_header}; is it complete?")
    if not 0.5 <= fps <= 1000:
        raise UsageError(f"{path} states {fps:g} frames per second; re-encode it with its true rate")
    return frames, frame.shape[0], frame.shape[1], fps


def probe_folder(folder: Path) -> tuple[int, int, int]:
    """Frames, height and width of a folder of numbered images; only headers are read.

    Raises UsageError if there are none, their numbers have a gap, or sizes differ.
    """
    names = images.listing(folder)
    if not names:
        raise UsageError(f"{folder} holds no images ({', '.join(images.SUFFIXES)})")
    images.check_numbers(folder, names)
    size = images.size_of(folder / names[0])
    images.check_sizes(folder, names[1:], size, names[0])
    return len(names), *size


def read_frames(path: Path, stride: int = 1) -> Iterator[np.ndarray]:
    """Every `stride`-th frame from the first, uint8 RGB `[H,W,3]`, of a video, a folder of images, or an image."""
    if path.is_dir():
        return (images.read_rgb(path / name) for name in images.listing(path)[::stride])
    if path.suffix.lower() in images.SUFFIXES:
        return iter([images.read_rgb(path)])
    return _read_video(path, stride)


def _read_video(path: Path, stride: int) -> Iterator[np.ndarray]:
    with _opened(path) as capture:
        index = 0
        while capture.grab():
            if index % stride == 0:
                ok, frame = capture.retrieve()
                if not ok:
                    way_out = "re-encode the video or leave the clip out"
                    raise UsageError(f"{path}: frame {index + 1} does not decode; {way_out}")
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1


class _OpenVideo(threading.local):
    """The video from which a thread reads single frames, and its position: the last frame read."""

    key: tuple[Path, int] | None = None
    capture: cv2.VideoCapture
    index = -1
    image: np.ndarray


_open_video = _OpenVideo()
MEAN = np.full((1, 3), 1 / 3, np.float32)


def read_gray_frame(path: Path, index: int) -> np.ndarray:
    """Frame `index` of a video of grey maps, uint8 `[H,W]`: the mean of its channels.

    Reading forward is cheap, going back reads from the start. Raises UsageError if the video is shorter.
    """
    video = _open_video
    key = (path, path.stat().st_mtime_ns if path.exists() else 0)
    if video.key != key or index < video.index:
        video.key, video.capture, video.index = key, _open(path), -1
    while video.index < index:
        if not video.capture.grab():
            read, video.key = video.index + 1, None
            raise UsageError(f"{path} ends after {read} frames, before frame {index + 1}; is it complete?")
        video.index += 1
        if video.index == index:
            ok, image = video.capture.retrieve()
            if not ok:
                video.key = None
                raise UsageError(f"{path}: frame {index + 1} does not decode; restore the file")
            video.image = cv2.transform(image, MEAN)
    return video.image


def read_header(path: Path) -> tuple[int, int, int]:
    """Frames, height and width according to a video's header; the number of frames may be off by a few."""
    properties = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
    with _opened(path) as capture:
        frames, height, width = (int(capture.get(which)) for which in properties)
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
            raise UsageError(f"cannot write {path}; does the folder exist, is it writable, is the disk full?")

    def write(self, frame: np.ndarray) -> None:
        self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self.writer.release()

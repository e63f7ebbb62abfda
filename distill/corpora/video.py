"""Frames of a video file, of a folder of images, or of one still image, in order; and writing a video file.

OpenCV's seeking is not frame-exact and its frame count is an estimate, so frames are always read from the start and counted
by reading.
"""

import errno
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.readers import images
from distill.run.errors import UsageError
from distill.run.files import atomic

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".y4m")
CODECS = {".avi": "MJPG", ".mp4": "mp4v"}  # to write


def _open(path: Path) -> cv2.VideoCapture:
    if not path.exists():
        raise UsageError(f"{path}: no such video")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UsageError(f"{path} does not open as a video; is it complete?")
    return capture


def probe(path: Path) -> tuple[int, int, int, float]:
    """Frames (counted by decoding), height and width in pixels, frames per second.

    Raises UsageError if the file does not open, no frame decodes, or it ends early.
    """
    capture = _open(path)
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
    if path.is_dir() or path.suffix.lower() in images.SUFFIXES:
        files = [path / name for name in images.listing(path)] if path.is_dir() else [path]
        yield from map(images.read_rgb, files[::stride])
        return
    capture, index = _open(path), 0
    while capture.grab():
        if index % stride == 0:
            ok, frame = capture.retrieve()
            if not ok:
                raise UsageError(f"{path}: frame {index + 1} does not decode; re-encode the video or leave the clip out")
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
    if video.key == key and index == video.index:
        return video.image
    if video.key != key or index < video.index:
        video.capture, video.index = _open(path), -1
    video.key = None  # after an error, reading starts over
    while video.index < index:
        if not video.capture.grab():
            raise UsageError(f"{path} ends after {video.index + 1} frames, before frame {index + 1}; is it complete?")
        video.index += 1
    ok, image = video.capture.retrieve()
    if not ok:
        raise UsageError(f"{path}: frame {index + 1} does not decode; restore the file")
    video.key, video.image = key, cv2.transform(image, MEAN)
    return video.image


def read_header(path: Path) -> tuple[int, int, int]:
    """Frames, height and width according to a video's header; the number of frames may be off by a few."""
    capture, which = _open(path), (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
    frames, height, width = (int(capture.get(number)) for number in which)
    return frames, height, width


def write_video(path: Path, fps: float, size: Sequence[int], frames: Iterable[np.ndarray]) -> None:
    """Writes uint8 RGB frames `[H,W,3]` of (height, width) `size` to a video file; its suffix chooses one of CODECS.

    Raises UsageError if the file cannot be written, OSError if the disk is full.
    """
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
    with atomic(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), codec, fps, (size[1], size[0]))
        if not writer.isOpened():
            raise UsageError(f"cannot write {path}; does the folder exist, is it writable, is the disk full?")
        count = 0
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            count += 1
        writer.release()
        if probe(temporary)[0] != count:  # the writer does not report a full disk
            raise OSError(errno.ENOSPC, "the video is not complete", str(path))

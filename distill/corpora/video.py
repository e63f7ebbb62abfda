"""Frames of a video file, decoded in order.

OpenCV's seeking is not frame-exact and its frame count is a guess, so frames are only ever read from the start and
counted by reading.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from distill.errors import UsageError

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


def read_frames(path: Path, stride: int = 1) -> Iterator[np.ndarray]:
    """Every `stride`-th frame from the first, uint8 RGB `[H,W,3]`."""
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

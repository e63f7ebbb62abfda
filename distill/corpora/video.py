"""Frames of a video file, of a folder of images, or of one still image, in order, with their times; and writing a video file.

Frames are always read from the start, and counted and timed by reading: seeking is not frame-exact, the frame count of a container
is an estimate, and the rate that it states may be anything. PyAV reads where it is installed, else OpenCV: the same frames, pixels
and times.
"""

import errno
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from distill.corpora.readers import images, opencv, stamps
from distill.corpora.readers.frames import Frame, Video
from distill.run.errors import UsageError
from distill.run.files import atomic
from distill.run.machine.extras import how_to_install

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".y4m")
CODECS = {".avi": "MJPG", ".mp4": "mp4v"}  # to write

# What is wrong with a video that can be used all the same, as shown to the user.
UNDECODED = "parts of the video that do not decode"
REPAIRED = "time stamps that do not rise, repaired"


@cache
def has_pyav() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def _reader() -> Any:
    if has_pyav():
        from distill.corpora.readers import pyav

        return pyav
    return opencv


def _open(path: Path) -> Video:
    return _reader().Video(path)


class Facts(NamedTuple):
    """What one pass over a video tells."""

    frames: int
    height: int
    width: int
    fps: float  # frames per second; of the median interval where they have no one rate
    times: tuple[float, ...] = ()  # of the frames where they have no one rate: seconds from the first one
    troubles: dict[str, int] = {}
    planes: bool = False  # whether all frames of `decoded` have planes

    def time_of(self, index: int) -> float:
        """When a frame is shown, in seconds from the first one."""
        return self.times[index] if self.times else index / self.fps


def probe(path: Path) -> Facts:
    """Decodes a video once, and counts and times its frames.

    Raises UsageError if the file does not open, no frame decodes, its size changes, or it ends early.
    """
    video, size, times, planes = _open(path), (0, 0), [], path.suffix.lower() not in images.SUFFIXES
    clock: stamps.Clock | None = None
    for number, frame in enumerate(video.frames()):
        clock = clock or stamps.Clock(video.rate)
        size = frame.size if number == 0 else size
        _check_size(path, number, frame.size, size)
        planes = planes and frame.planes is not None
        times.append(clock.time(frame.stamp) if video.timed else float(number))
    if clock is None:
        raise UsageError(f"{path} opens, but no frame decodes; is it complete?")
    troubles = {UNDECODED: video.lost, REPAIRED: clock.repaired}
    if video.timed:
        fps, own_times = stamps.rate_of(times, video.rate)
    elif stamps.plausible(video.rate):
        fps, own_times = video.rate, ()
    else:
        raise UsageError(f"{path} states {video.rate:g} frames per second; re-encode it with its true rate")
    ends = video.ends()
    if ends and ends[0] < 0.95 * ends[1] - 2 / fps:
        where = f"its {len(times)} frames end at {ends[0]:.2f} s, its header says {ends[1]:.2f} s"
        sound = "" if has_pyav() else f" If it has sound that is longer, read it with PyAV: {how_to_install('encode')}"
        raise UsageError(f"{path} ends early: {where}; is it complete?{sound}")
    return Facts(len(times), *size, fps, own_times, {kind: count for kind, count in troubles.items() if count}, planes)


def _check_size(path: Path, number: int, size: tuple[int, ...], first: tuple[int, ...]) -> None:
    if size != first:
        sizes = f"is {size[1]}x{size[0]}, those before {first[1]}x{first[0]}"
        raise UsageError(f"{path}: frame {number + 1} {sizes}; scale it to one size first, with ffmpeg -vf scale")


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


def read_frames(path: Path, stride: int = 1, start: int = 0) -> Iterator[np.ndarray]:
    """The frames of `decoded`, uint8 RGB `[H,W,3]`."""
    return (frame.rgb() for frame in decoded(path, stride, start))


def decoded(path: Path, stride: int = 1, start: int = 0) -> Iterator[Frame]:
    """Every `stride`-th frame from frame `start` of a video, a folder of images, or an image. Its pixels can be had until the next one
    is read; of the frames left out none are converted."""
    if path.is_dir() or path.suffix.lower() in images.SUFFIXES:
        files = [path / name for name in images.listing(path)] if path.is_dir() else [path]
        for file in files[start::stride]:
            yield Frame(None, images.size_of(file), partial(images.read_rgb, file))
        return
    size: tuple[int, ...] = ()
    for number, frame in enumerate(_open(path).frames()):
        size = size or frame.size
        _check_size(path, number, frame.size, size)
        if number >= start and (number - start) % stride == 0:
            yield frame


class _OpenVideo(threading.local):
    """The video from which a thread reads single frames, and its position: the last frame read."""

    key: tuple[Path, int] | None = None
    frames: Iterator[Frame]
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
        video.frames, video.index = _open(path).frames(), -1
    video.key, frame = None, None  # after an error, reading starts over
    while video.index < index:
        frame = next(video.frames, None)
        if frame is None:
            raise UsageError(f"{path} ends after {video.index + 1} frames, before frame {index + 1}; is it complete?")
        video.index += 1
    assert frame is not None
    video.key, video.image = key, cv2.transform(frame.rgb(), MEAN)
    return video.image


def read_header(path: Path) -> tuple[int, int, int, float]:
    """Frames, height, width and frames per second of a video, without decoding it where its header states them; the number of frames
    may be off by a few. The rate is 0 where what is stated cannot be one."""
    frames, height, width, rate = _reader().header(path)
    return (frames, height, width, rate if stamps.plausible(rate) else 0.0) if frames > 0 else probe(path)[:4]


def writes_h264(path: Path) -> bool:
    """Whether a video that is written to this path is H.264, which browsers play, with frames at any times; else it has one rate."""
    return path.suffix.lower() == ".mp4" and has_pyav()


def write_video(
    path: Path, fps: float, size: Sequence[int], frames: Iterable[np.ndarray], times: Sequence[float] = ()
) -> None:  # fmt: skip
    """Writes uint8 RGB frames `[H,W,3]` of (height, width) `size` to a video file; its suffix chooses one of CODECS.

    An .mp4 is H.264 where PyAV is installed, else MPEG-4 by OpenCV.
    times: of the frames, in seconds from the first, where they have no one rate. An .mp4 by PyAV has them as they are; other files
    have the one rate `fps`, and frames are repeated to keep the time.
    Raises UsageError if the file cannot be written, OSError if the disk is full.
    """
    with atomic(path) as temporary:
        if writes_h264(path):
            count = _reader().write(temporary, fps, size, frames, times)
        else:
            count = opencv.write(temporary, CODECS[path.suffix.lower()], fps, size, _steady(frames, fps, times))
        if probe(temporary).frames != count:  # the writers do not report a full disk
            raise OSError(errno.ENOSPC, "the video is not complete", str(path))


def _steady(frames: Iterable[np.ndarray], fps: float, times: Sequence[float]) -> Iterator[np.ndarray]:
    """The frames at a steady rate: each as often as it is shown."""
    if not len(times):
        yield from frames
        return
    starts = np.rint(np.append(times, times[-1] + 1 / fps) * fps).astype(int)
    for frame, often in zip(frames, np.diff(starts), strict=True):
        yield from [frame] * int(often)

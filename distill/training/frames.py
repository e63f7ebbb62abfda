"""Training data of the student and the tiny ViSAGE: clips at twice the student's working resolution and the training frame rate.

    frames/CLIP.frames.npy    uint8 [T,2h,2w,3]; scaled by the student's own entry up to its last pooling, so that training
                              sees what the graph sees, and a crop of it stays sharp
    frames/CLIP.truth.npy     float32 [T,2,h/2,w/2]: density (maximum 1) and fixation counts, on twice the logits' grid;
                              annotated clips only

A still image has one frame. A frame without fixations or without annotation has a truth of zeros.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from distill.corpora import Clip, fixation_points
from distill.corpora.readers import stamps
from distill.run.files import ArrayFile
from distill.run.machine.parallel import usable_cores
from distill.run.progress import cancelling_pool
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import fit_to_twice
from distill.training.cache import Cached, array_files, fill, small_density

MOST_THREADS = 16  # that decode; more would wait for Python's lock
FRAMES_AT_ONCE = 4000  # in memory, of all clips that are being decoded: 0.3 MB each at the default size, thrice when written


@dataclass(frozen=True)
class CachedClip(Cached):
    """A clip as training reads it. frames uint8 `[T,2h,2w,3]`, truth float32 `[T,2,h/2,w/2]` or None, both on disk."""

    truth: ArrayFile | None

    @property
    def fps(self) -> float:
        """Cached frames per second, at the median rate where the rate varies."""
        return self.clip.fps / self.stride

    @cached_property
    def _sampled(self) -> np.ndarray:
        return np.asarray(sampled_frames(self.clip, self.stride))

    def video_frames(self, index: np.ndarray) -> np.ndarray:
        return self._sampled[index] if self.clip.times else super().video_frames(index)

    def seconds_apart(self, index: np.ndarray, stride: int) -> float:
        """The mean time from one of these cached frames to the next; they are `stride` apart."""
        if not self.clip.times or len(index) < 2:
            return stride / self.fps
        times = np.asarray(self.clip.times)[self.video_frames(index)]
        return float(np.abs(np.diff(times)).mean()) or stride / self.fps

    def at_working_size(self, index: np.ndarray) -> np.ndarray:
        """Some frames as the student's entry gives them, uint8 `[n,h,w,3]`."""
        twice = self.frames[index]
        n, height, width, _ = twice.shape
        return np.rint(twice.reshape(n, height // 2, 2, width // 2, 2, 3).mean((2, 4), np.float32)).astype(np.uint8)


def names(clip: Clip) -> list[str]:
    """The files of a clip in the cache."""
    return [file.path.name for file in _files(Path(), clip)]


def stride_for(clip: Clip, sample_fps: float) -> int:
    """Frames of the video from one cached frame to the next, at the median rate where the rate varies."""
    return max(1, round(clip.fps / sample_fps))


def sampled_frames(clip: Clip, stride: int) -> range | np.ndarray:
    """The numbers of the frames that are cached: every `stride`-th; where the rate varies, those closest to the same steady rate in
    real time, each once, as the shipped student sees a video (distill.export.streaming)."""
    steady = stride == 1 or not clip.times
    return range(0, clip.frames, stride) if steady else stamps.sample(clip.times, clip.fps / stride)


def cache(folder: Path, clip: Clip, student: TinyUNetConfig, sample_fps: float) -> None:
    """Decodes a clip into the cache, unless it is there."""

    def convert(index: int, frame: np.ndarray) -> list[np.ndarray]:
        frames = to_twice(frame, student)[None]
        return [_truth(clip, index, student)[None], frames] if clip.annotated_frames else [frames]

    fill(_files(folder, clip)[::-1], clip, sampled_frames(clip, stride_for(clip, sample_fps)), convert)


def cache_all(folder: Path, clips: Sequence[Clip], student: TinyUNetConfig, sample_fps: float) -> Generator[Clip, None, None]:
    """Decodes clips into the cache, several at once in threads, and yields each, in order. To be closed where it is left early:
    then clips that are being decoded are finished."""

    def cached(clip: Clip) -> Clip:
        cache(folder, clip, student, sample_fps)
        return clip

    longest = max((clip.frames // stride_for(clip, sample_fps) for clip in clips), default=0)
    threads = max(1, min(MOST_THREADS, usable_cores(), FRAMES_AT_ONCE // max(1, longest)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # in each thread: the operations on one frame are too small to be divided
    try:
        with cancelling_pool(threads) as pool:
            yield from pool.map(cached, clips)
    finally:
        torch.set_num_threads(before)


def load(folder: Path, clip: Clip, sample_fps: float) -> CachedClip:
    """A clip of the cache; its files are opened when they are read."""
    frames, *truth = _files(folder, clip)
    return CachedClip(clip, stride_for(clip, sample_fps), frames, truth[0] if truth else None)


def _files(folder: Path, clip: Clip) -> list[ArrayFile]:
    return array_files(folder, clip, ("frames", "truth") if clip.annotated_frames else ("frames",))


def to_twice(frame: np.ndarray, student: TinyUNetConfig) -> np.ndarray:
    """uint8 `[H,W,3]` -> uint8 `[2 height,2 width,3]` by the student's entry."""
    frame_BCHW = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    twice = fit_to_twice(frame_BCHW, student.height, student.width)
    return twice[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def on_logit_grid(truth: np.ndarray) -> np.ndarray:
    """Truth of some frames on the logits' own grid: `[n,2,h/2,w/2]` -> `[n,2,h/4,w/4]`. The maximum density is 1 again, and
    the sum of the counts does not change."""
    n, _, rows, columns = truth.shape
    cells = truth.reshape(n, 2, rows // 2, 2, columns // 2, 2)
    density, counts = cells[:, 0].mean((2, 4)), cells[:, 1].sum((2, 4))
    return np.stack([density / np.maximum(density.max((1, 2), keepdims=True), 1e-8), counts], 1)


def _truth(clip: Clip, index: int, student: TinyUNetConfig) -> np.ndarray:
    rows, columns = student.height // 2, student.width // 2
    truth = np.zeros((2, rows, columns), np.float32)
    points = fixation_points(clip, index)
    if points is None or not len(points.rows):
        return truth
    y, x = points.rows * (student.height / clip.height), points.columns * (student.width / clip.width)
    cells = np.minimum((y / 2).astype(int), rows - 1), np.minimum((x / 2).astype(int), columns - 1)
    np.add.at(truth[1], cells, 1)
    small = np.zeros((student.height, student.width), np.float32)
    np.add.at(small, (y.astype(int), x.astype(int)), 1)
    density = cv2.resize(small_density(clip, index, small), (columns, rows), interpolation=cv2.INTER_AREA)
    truth[0] = density / max(float(density.max()), 1e-8)
    return truth

"""Decoded clips on disk: each is decoded once, to FOLDER/CLIP.KIND.npy, one array for each kind.

The modules that read them define kinds and sizes: frames.py for the student, visage_windows.py and unisal.py for teachers.
Frame j of a cache is frame j * stride of the video, or where the frame rate varies, of the student's cache the j-th of
`sampled_frames`; frames and gaze of the same instants have the same index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from distill.corpora import SIGMA, Clip, blur
from distill.corpora.gaze import stored_density
from distill.run.files import ArrayFile, write_array
from distill.training.loop import Place


@dataclass(frozen=True)
class Cached:
    """A clip in a cache."""

    clip: Clip
    stride: int
    frames: ArrayFile

    def place(self, index: np.ndarray) -> Place:
        """Cached frames, as an error message names them."""
        return self.clip.id, (self.video_frames(index) + 1).tolist()

    def video_frames(self, index: np.ndarray) -> np.ndarray:
        """The numbers of cached frames in the video, from 0."""
        return index * self.stride


def array_files(folder: Path, clip: Clip, kinds: Sequence[str]) -> list[ArrayFile]:
    """A clip's files in a cache, whether they exist or not."""
    return [ArrayFile(folder / f"{clip.id}.{kind}.npy") for kind in kinds]


def fill(
    files: Sequence[ArrayFile], clip: Clip, numbers: range | np.ndarray, convert: Callable[[int, np.ndarray], Sequence[np.ndarray]]
) -> None:  # fmt: skip
    """Writes a clip's arrays, in this order, unless all are whole.

    numbers: of the frames that are read, from 0. convert: a frame's number and pixels -> its part of each array, `[n,...]`; that of
    the last array has one entry.
    """
    *others, frames = files
    if frames.is_whole(len(numbers)) and all(file.is_whole() for file in others):
        return
    # The frames first: a video that ends too early is noticed where its end is read.
    if isinstance(numbers, range):
        parts = [convert(number, frame) for frame, number in zip(clip.read(numbers.step), numbers, strict=False)]
    else:
        chosen = np.isin(np.arange(clip.frames), numbers)
        parts = [convert(number, frame) for number, frame in compress(enumerate(clip.read()), chosen)]
    for file, arrays in zip(files, zip(*parts, strict=True), strict=True):
        write_array(file.path, np.concatenate(arrays))


def small_density(clip: Clip, index: int, counts: np.ndarray) -> np.ndarray:
    """A frame's density map, float32, unnormalised: the corpus's own at full size; without one, fixation counts `[h,w]` of
    the whole frame blurred, at a small size many times cheaper than at full size."""
    stored = stored_density(clip, index)
    return blur(counts, SIGMA * counts.shape[1]) if stored is None else stored

"""Decoded clips on disk: each is decoded once, to FOLDER/CLIP.KIND.npy, one array for each kind.

What the kinds are, and at which size, says who reads them: frames.py for the student, visage_windows.py and unisal.py for
teachers. Frames and gaze of the same instants have the same index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distill.corpora import SIGMA, Clip, blur, density_map
from distill.run.files import ArrayFile, write_array


def array_files(folder: Path, clip: Clip, kinds: Sequence[str]) -> list[ArrayFile]:
    """A clip's files in a cache, whether they exist or not."""
    return [ArrayFile(folder / f"{clip.id}.{kind}.npy") for kind in kinds]


def fill(files: Sequence[ArrayFile], decode: Callable[[], Sequence[np.ndarray]]) -> None:
    """Writes a clip's arrays, in this order, unless all exist."""
    if not all(file.path.exists() for file in files):
        for file, array in zip(files, decode(), strict=True):
            write_array(file.path, array)


def small_density(clip: Clip, index: int, counts: np.ndarray) -> np.ndarray:
    """A frame's density map, float32, unnormalised: the corpus's own at full size; without one, fixation counts `[h,w]` of
    the whole frame blurred, at a small size many times cheaper than at full size."""
    return density_map(clip, index, counts) if clip.maps else blur(counts, SIGMA * counts.shape[1])

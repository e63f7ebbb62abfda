"""What the fine-tuning of ViSAGE reads: every annotated clip once decoded, at the trunk's input size and sampling rate.

    frames/visage/CLIP.frames.npy     uint8 [n,3,px,px], as the teacher prepares them
    frames/visage/CLIP.density.npy    uint8 [n,out,out], largest value 255: 8 bits, as the published training reads them
    frames/visage/CLIP.points.npy     int32 [k,3]: frame, row and column of every fixation, on the grid of the maps

Frame j here is frame j * stride of the video. A window is `length` of them in a row; a clip that is shorter repeats its
last one, as when labelling.

Legend: B windows · T frames · C channels · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from distill.corpora import SIGMA, Clip, Points, blur, density_map, fixation_points
from distill.run.files import write_array
from distill.teachers.visage import VisageConfig, resize
from distill.training.frames import ArrayFile

BLUR_WIDTH = 640  # pixels, at most: more than any trunk's input


@dataclass(frozen=True)
class WindowClip:
    """An annotated clip in the cache."""

    clip: Clip
    stride: int
    frames: ArrayFile
    density: ArrayFile
    points: ArrayFile


@dataclass(frozen=True)
class Windows:
    """Some windows of some clips."""

    frames_BTCHW: Tensor  # uint8
    density_BTHW: Tensor  # float32, largest value 1
    fixations_BTHW: Tensor  # float32, how often each cell was fixated
    counts_BT: Tensor  # bool: the frame is one of the clip's, not a repeated last one, and somebody looked at it
    places: list[str]  # clip and frames, for errors


def cache(folder: Path, clip: Clip, config: VisageConfig) -> None:
    """Decodes an annotated clip into the cache, unless it is there."""
    frames_path, density_path, points_path = _paths(folder, clip)
    if frames_path.exists() and density_path.exists() and points_path.exists():
        return
    stride, px, side = config.stride(clip.fps), config.trunk.px, config.out_px
    frames, densities, points = [], [], []
    for j, frame in enumerate(clip.read(stride)):
        if j * stride >= clip.annotated_frames:
            break
        frames.append(resize(frame[None], px)[0].numpy())
        found = fixation_points(clip, j * stride)
        density = np.zeros((side, side), np.uint8)
        if found is not None and len(found.rows):
            small = cv2.resize(_density(clip, j * stride, found), (side, side), interpolation=cv2.INTER_AREA)
            density = np.rint(small * (255 / max(float(small.max()), 1e-8))).astype(np.uint8)
            rows, columns = found.rows * side // clip.height, found.columns * side // clip.width
            points.append(np.stack([np.full_like(rows, j), rows, columns], axis=1))
        densities.append(density)
    for path, array in (
        (density_path, np.stack(densities)),
        (points_path, np.concatenate(points) if points else np.zeros((0, 3), np.int32)),
        (frames_path, np.stack(frames)),
    ):
        write_array(path, array)


def _density(clip: Clip, index: int, found: Points) -> np.ndarray:
    """The density map of a frame, float32: the corpus's own at full size, else blurred at 640 px, many times cheaper."""
    if clip.maps:
        fixations = np.zeros((clip.height, clip.width), bool)
        fixations[found.rows, found.columns] = True
        return density_map(clip, index, fixations)
    width = min(clip.width, BLUR_WIDTH)
    height = max(1, round(clip.height * width / clip.width))
    counts = np.zeros((height, width), np.float32)
    np.add.at(counts, (found.rows * height // clip.height, found.columns * width // clip.width), 1)
    return blur(counts, SIGMA * width)


def load(folder: Path, clip: Clip, config: VisageConfig) -> WindowClip:
    return WindowClip(clip, config.stride(clip.fps), *map(ArrayFile, _paths(folder, clip)))


def _paths(folder: Path, clip: Clip) -> tuple[Path, Path, Path]:
    return folder / f"{clip.id}.frames.npy", folder / f"{clip.id}.density.npy", folder / f"{clip.id}.points.npy"


def read(places: Sequence[tuple[WindowClip, int]], length: int) -> Windows:
    """The windows of `length` frames that start at these frames of these clips."""
    frames, densities, counts, fixations, said = [], [], [], [], []
    for cached, start in places:
        total = len(cached.frames)
        index = np.minimum(np.arange(start, start + length), total - 1)
        frames.append(torch.from_numpy(cached.frames[index]))
        density = cached.density[index]
        densities.append(torch.from_numpy(density).float() / 255)
        counts.append(torch.from_numpy((np.arange(start, start + length) < total) & density.any((1, 2))))
        fixations.append(torch.from_numpy(_fixations(cached, index, density.shape)))
        first, last = (int(i) * cached.stride + 1 for i in (index[0], index[-1]))
        said.append(f"clip {cached.clip.id} frames {first} to {last}")
    return Windows(torch.stack(frames), torch.stack(densities), torch.stack(fixations), torch.stack(counts), said)


def _fixations(cached: WindowClip, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How often each cell was fixated, float32 `[T,H,W]`."""
    points = cached.points[:]
    maps = np.zeros(shape, np.float32)
    for t, j in enumerate(index):
        first, last = np.searchsorted(points[:, 0], [j, j + 1])  # frames stand in order
        np.add.at(maps[t], (points[first:last, 1], points[first:last, 2]), 1)
    return maps


def drawn(clips: Sequence[WindowClip], length: int, batch: int, seed: int, step: int) -> list[tuple[WindowClip, int]]:
    """A step's windows: every clip once per epoch, in an order of that epoch's, at a random place. As published.

    A pure function of (seed, step).
    """
    places = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, turn = divmod(position, len(clips))
        cached = clips[int(np.random.default_rng([seed, 2, epoch]).permutation(len(clips))[turn])]
        place = np.random.default_rng([seed, 3, position])
        places.append((cached, int(place.integers(0, max(1, len(cached.frames) - length + 1)))))
    return places


def spread(clips: Sequence[WindowClip], length: int, each: int) -> list[tuple[WindowClip, int]]:
    """`each` windows of every clip, from its first to its last frame at even distances; one of a clip that is short."""
    places = []
    for cached in clips:
        room = max(0, len(cached.frames) - length)
        starts = dict.fromkeys(int(i * room / max(1, each - 1)) for i in range(each))
        places += [(cached, start) for start in starts]
    return places

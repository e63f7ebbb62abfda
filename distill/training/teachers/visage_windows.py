"""Training data of ViSAGE's fine-tuning: annotated clips at the trunk's input size and sampling rate, and windows of them.

    frames/visage/CLIP.frames.npy     uint8 [n,3,px,px], as the teacher prepares them
    frames/visage/CLIP.density.npy    uint8 [n,out,out], maximum 255: 8 bits, as the published training reads them
    frames/visage/CLIP.points.npy     int32 [k,3]: frame, row and column of every fixation, on the grid of the maps

A window is `length` consecutive frames; a clip that is shorter repeats its last frame, as when labelling.

Legend: B windows · T frames · C channels · H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from distill.corpora import Clip, fixation_points
from distill.run.files import ArrayFile
from distill.teachers.visage import VisageConfig, resize
from distill.training.cache import Cached, array_files, fill, small_density
from distill.training.loop import Place

BLUR_WIDTH = 640  # pixels, at most: more than any trunk's input


@dataclass(frozen=True)
class WindowClip(Cached):
    """An annotated clip in the cache."""

    density: ArrayFile
    points: ArrayFile


@dataclass(frozen=True)
class Windows:
    """Some windows of some clips."""

    frames_BTCHW: Tensor  # uint8
    density_BTHW: Tensor  # float32, maximum 1
    fixations_BTHW: Tensor  # float32, how often each cell was fixated
    counts_BT: Tensor  # bool: the frame is the clip's, not a repeated last one, and has fixations
    places: list[Place]


def cache(folder: Path, clip: Clip, config: VisageConfig) -> WindowClip:
    """Decodes an annotated clip into the cache, unless it is there."""
    stride, side = config.stride(clip.fps), config.out_px
    width = min(clip.width, BLUR_WIDTH)
    height = max(1, round(clip.height * width / clip.width))

    def convert(index: int, frame: np.ndarray) -> tuple[np.ndarray, ...]:
        density, points = np.zeros((side, side), np.uint8), np.zeros((0, 3), np.int32)
        gaze = fixation_points(clip, index)
        if gaze is not None and len(gaze.rows):
            counts = np.zeros((height, width), np.float32)
            np.add.at(counts, (gaze.rows * height // clip.height, gaze.columns * width // clip.width), 1)
            small = cv2.resize(small_density(clip, index, counts), (side, side), interpolation=cv2.INTER_AREA)
            density = np.rint(small * (255 / max(float(small.max()), 1e-8))).astype(np.uint8)
            rows, columns = gaze.rows * side // clip.height, gaze.columns * side // clip.width
            points = np.stack([np.full_like(rows, index // stride), rows, columns], axis=1)
        return density[None], points, resize(frame[None], config.trunk.px).numpy()

    density, points, frames = files = array_files(folder, clip, ("density", "points", "frames"))
    fill(files, clip, range(0, clip.annotated_frames, stride), convert)
    return WindowClip(clip, stride, frames, density, points)


def read(starts: Sequence[tuple[WindowClip, int]], length: int) -> Windows:
    """The windows of `length` frames that start at these frames of these clips."""
    frames, densities, counts, fixations, places = [], [], [], [], []
    for cached, start in starts:
        total = len(cached.frames)
        index = np.minimum(np.arange(start, start + length), total - 1)
        frames.append(torch.from_numpy(cached.frames[index]))
        density = cached.density[index]
        densities.append(torch.from_numpy(density).float() / 255)
        counts.append(torch.from_numpy((np.arange(start, start + length) < total) & density.any((1, 2))))
        points, fixated = cached.points[:], np.zeros(density.shape, np.float32)
        for t, j in enumerate(index):
            first, last = np.searchsorted(points[:, 0], [j, j + 1])  # sorted by frame
            np.add.at(fixated[t], (points[first:last, 1], points[first:last, 2]), 1)
        fixations.append(torch.from_numpy(fixated))
        places.append(cached.place(index))
    return Windows(torch.stack(frames), torch.stack(densities), torch.stack(fixations), torch.stack(counts), places)


def draw(clips: Sequence[WindowClip], length: int, batch: int, seed: int, step: int) -> list[tuple[WindowClip, int]]:
    """A step's windows, as clip and first frame: every clip once per epoch, in a new order, at a random start. As published.

    A pure function of (seed, step).
    """
    starts = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, turn = divmod(position, len(clips))
        cached = clips[int(np.random.default_rng([seed, 2, epoch]).permutation(len(clips))[turn])]
        rng = np.random.default_rng([seed, 3, position])
        starts.append((cached, int(rng.integers(0, max(1, len(cached.frames) - length + 1)))))
    return starts


def spread(clips: Sequence[WindowClip], length: int, each: int) -> list[tuple[WindowClip, int]]:
    """`each` windows of every clip, evenly from its first to its last frame; a single one where the clip is short."""
    starts = []
    for cached in clips:
        room = max(0, len(cached.frames) - length)
        starts += [(cached, first) for first in dict.fromkeys(int(i * room / max(1, each - 1)) for i in range(each))]
    return starts

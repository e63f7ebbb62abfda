"""What training reads: every clip once decoded, at twice the student's working resolution and the training frame rate.

    frames/CLIP.frames.npy    uint8 [T,2h,2w,3]; scaled by the student's own entry up to its last pooling, so that training
                              sees what the graph sees, and a crop of it stays sharp
    frames/CLIP.truth.npy     float32 [T,2,h/2,w/2]: density (largest value 1) and fixation counts, on twice the logits' grid;
                              annotated clips only

Frame j here is frame j * stride of the video; a still image has the one. A frame without fixations, or without
annotation, has a truth of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from distill.corpora import SIGMA, Clip, blur, density_map, fixation_map, fixation_points
from distill.run.files import ArrayFile as ArrayFile  # exported too: callers import it from here
from distill.run.files import write_array
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import fit_to_twice


@dataclass(frozen=True)
class CachedClip:
    """A clip as training reads it. frames uint8 `[T,2h,2w,3]`, truth float32 `[T,2,h/2,w/2]` or None, both on disk."""

    clip: Clip
    stride: int
    frames: ArrayFile
    truth: ArrayFile | None

    @property
    def fps(self) -> float:
        return self.clip.fps / self.stride

    def at_working_size(self, index: np.ndarray) -> np.ndarray:
        """Some frames as the student's entry gives them, uint8 `[n,h,w,3]`."""
        twice = self.frames[index]
        n, height, width, _ = twice.shape
        return np.rint(twice.reshape(n, height // 2, 2, width // 2, 2, 3).mean((2, 4), np.float32)).astype(np.uint8)


def names(clip: Clip) -> list[str]:
    """The files of a clip in the cache."""
    return [f"{clip.id}.frames.npy", *([f"{clip.id}.truth.npy"] if clip.annotated_frames else [])]


def stride_for(clip: Clip, sample_fps: float) -> int:
    """Frames of the video from one cached frame to the next."""
    return max(1, round(clip.fps / sample_fps))


def cache(folder: Path, clip: Clip, student: TinyUNetConfig, sample_fps: float) -> None:
    """Decodes a clip into the cache, unless it is there."""
    frames_path, truth_path = _paths(folder, clip)
    if frames_path.exists() and (truth_path.exists() or not clip.annotated_frames):
        return
    stride = stride_for(clip, sample_fps)
    frames, truths = [], []
    for j, frame in enumerate(clip.read(stride)):
        frames.append(to_twice(frame, student))
        if clip.annotated_frames:
            truths.append(_truth(clip, j * stride, student))
    if truths:
        write_array(truth_path, np.stack(truths))
    write_array(frames_path, np.stack(frames))  # last: where it stands, both are complete


def load(folder: Path, clip: Clip, sample_fps: float) -> CachedClip:
    frames_path, truth_path = _paths(folder, clip)
    truth = ArrayFile(truth_path) if clip.annotated_frames else None
    return CachedClip(clip, stride_for(clip, sample_fps), ArrayFile(frames_path), truth)


def _paths(folder: Path, clip: Clip) -> tuple[Path, Path]:
    return folder / f"{clip.id}.frames.npy", folder / f"{clip.id}.truth.npy"


def to_twice(frame: np.ndarray, student: TinyUNetConfig) -> np.ndarray:
    """uint8 `[H,W,3]` -> uint8 `[2 height,2 width,3]` by the student's entry."""
    frame_BCHW = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    twice = fit_to_twice(frame_BCHW, student.height, student.width)
    return twice[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def on_the_grid(truth: np.ndarray) -> np.ndarray:
    """Truth of some frames on the logits' own grid: `[n,2,h/2,w/2]` -> `[n,2,h/4,w/4]`; its largest density is 1 again, and
    counts stay counts."""
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
    y, x = points.rows, points.columns
    scale_y, scale_x = student.height / clip.height, student.width / clip.width
    np.add.at(
        truth[1],
        (np.minimum((y * scale_y / 2).astype(int), rows - 1), np.minimum((x * scale_x / 2).astype(int), columns - 1)),
        1,
    )
    if clip.maps and (fixations := fixation_map(clip, index)) is not None:
        density = density_map(clip, index, fixations)
    else:  # the blur at the working resolution: the same density, many times cheaper
        small = np.zeros((student.height, student.width), np.float32)
        np.add.at(small, ((y * scale_y).astype(int), (x * scale_x).astype(int)), 1)
        density = blur(small, SIGMA * student.width)
    density = cv2.resize(density, (columns, rows), interpolation=cv2.INTER_AREA)
    truth[0] = density / max(float(density.max()), 1e-8)
    return truth

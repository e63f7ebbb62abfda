"""Batches for the student: single frames, or windows of clips, each a pure function of (seed, rank, step).

    draw_frames, draw_windows   reads frames (uint8) and targets from the caches, on the CPU; draws how each stream is varied
    vary                        moves them to the device, and varies them there

They are varied as consumers vary them: random crops first (augmentation), then full frames, which keep the centre bias;
mirrored, and decoded with another YUV matrix, chroma gain and brightness.

Legend: B streams · T frames of a window · C channels · h, w working pixels or cells of the logits' grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.recipe.keys import Train
from distill.run.files import ArrayFile
from distill.students import TinyUNetConfig
from distill.teachers.frames import IMAGENET, on_device
from distill.training.frames import CachedClip
from distill.training.loop import Place

START_SHARE = 1 / 3  # of the streams start where their clip does: the onset can only be learned there
KR_KB = ((0.299, 0.114), (0.2126, 0.0722))
"""Luma coefficients of red and blue: ITU-R BT.601 and BT.709. Consumers decode with either, whatever was encoded."""


@dataclass(frozen=True)
class Sample:
    """A clip to train on: its cached frames and truth, the teacher's logits of those frames, and how often it is drawn."""

    cached: CachedClip
    labels: ArrayFile | np.ndarray  # float16 [T of the video, h, w]
    weight: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """One window of every stream as the caches hold it, on the CPU, and how it is varied."""

    twice_BTHWC: Tensor  # uint8, at twice the working resolution
    targets_BT3hw: Tensor  # the teacher's saliency, density, fixation counts; on twice the logits' grid
    affine_B23: Tensor  # crop and mirror
    matrix_B33: Tensor  # of colours in [0, 255]
    offset_B3: Tensor
    dt_B: Tensor
    starts_B: Tensor
    places: list[Place]


@dataclass
class Batch:
    """One window of every stream, varied, on the device."""

    frames_BTChw: Tensor  # ImageNet-normalised
    soft_BThw: Tensor  # the teacher's saliency, sigmoid of its logits
    density_BThw: Tensor
    fixations_BThw: Tensor
    dt_B: Tensor  # seconds between frames
    starts_B: Tensor  # bool: whether the stream starts where its clip does
    places: list[Place]


@dataclass
class View:
    """A stream's clip, the cached frames it shows, and how they are varied."""

    sample: Sample
    index: np.ndarray
    dt: float  # seconds between frames
    starts: bool  # whether the stream starts where the clip does
    affine_23: Tensor  # crop and mirror
    colour: tuple[Tensor, Tensor]  # matrix and offset


def draw_frames(
    samples: Sequence[Sample], config: Train, student: TinyUNetConfig, seed: tuple[int, int], step: int, crop: float = 1.0
) -> Drawn:
    """Single frames from all clips. seed: the run's, and the rank. crop: the crop's smallest side, as a share of the frame's."""
    rng = np.random.default_rng([*seed, 0, step])
    views = []
    for i in _draw_samples(rng, samples, config.frames):
        index = rng.integers(len(samples[i].cached.frames), size=1)
        views.append(View(samples[i], index, 0.0, False, crop_and_flip(rng, config, crop), vary_colour(rng, config)))
    return _read(views, student)


def draw_windows(samples: Sequence[Sample], config: Train, student: TinyUNetConfig, seed: tuple[int, int], step: int) -> Drawn:
    """A window of each of `config.batch` streams. For `config.windows` steps the streams follow the same clips, window by
    window; then new clips are drawn."""
    episode, window = divmod(step, config.windows)
    rng = np.random.default_rng([*seed, 1, episode])
    views, length = [], config.window * config.windows
    for i in _draw_samples(rng, samples, config.batch):
        cached = samples[i].cached
        total = len(cached.frames)
        stride = int(rng.integers(1, 3)) if total >= 2 * length else 1  # half the frame rate, at times
        start = int(rng.integers(0, max(1, total - stride * length + 1))) if rng.random() > START_SHARE else 0
        index = reflect(start + stride * (np.arange(config.window) + window * config.window), total)
        affine, colour = crop_and_flip(rng, config, 1.0), vary_colour(rng, config)
        views.append(View(samples[i], index, cached.seconds_apart(index, stride), start == 0, affine, colour))
    return _read(views, student)


def _draw_samples(rng: np.random.Generator, samples: Sequence[Sample], count: int) -> np.ndarray:
    """Indices of `count` samples, drawn by weight."""
    ends = np.cumsum([sample.weight for sample in samples])
    return np.searchsorted(ends / ends[-1], rng.random(count), side="right").clip(max=len(samples) - 1)


def _read(views: Sequence[View], student: TinyUNetConfig) -> Drawn:
    shape, fine = (len(views), len(views[0].index)), (student.height // 2, student.width // 2)
    # Filled in place: most of the time goes into memory that is touched for the first time.
    twice_BTHWC = torch.empty((*shape, 2 * student.height, 2 * student.width, 3), dtype=torch.uint8)
    targets_BT3hw, places = torch.zeros((*shape, 3, *fine)), []
    for view, twice_THWC, targets_T3hw in zip(views, twice_BTHWC, targets_BT3hw, strict=True):
        cached = view.sample.cached
        twice_THWC[:] = torch.from_numpy(cached.frames[view.index])
        labels = torch.from_numpy(view.sample.labels[cached.video_frames(view.index)].astype(np.float32))
        targets_T3hw[:, :1] = F.interpolate(torch.sigmoid(labels)[:, None], size=fine, mode="bilinear", antialias=True)
        if cached.truth is not None:
            targets_T3hw[:, 1:] = torch.from_numpy(cached.truth[view.index])
        places.append(cached.place(view.index))
    matrix_B33, offset_B3 = (torch.stack(part) for part in zip(*(view.colour for view in views), strict=True))
    affine_B23 = torch.stack([view.affine_23 for view in views])
    dt_B, starts_B = torch.tensor([view.dt for view in views]), torch.tensor([view.starts for view in views])
    return Drawn(twice_BTHWC, targets_BT3hw, affine_B23, matrix_B33 / 255, offset_B3, dt_B, starts_B, places)


def vary(drawn: Drawn, student: TinyUNetConfig, device: torch.device) -> Batch:
    """The batch on the device. The frames travel as uint8; from pinned memory the device's work before them goes on meanwhile."""
    affine_B23, matrix_B33, offset_B3, dt_B, starts_B = (
        x.to(device, non_blocking=True)
        for x in (drawn.affine_B23, drawn.matrix_B33, drawn.offset_B3, drawn.dt_B, drawn.starts_B)
    )
    twice_BTHWC, targets_BT3hw = (x.to(device, non_blocking=True) for x in (drawn.twice_BTHWC, drawn.targets_BT3hw))
    twice_BTCHW = twice_BTHWC.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    # Sampled from twice the size: of a full frame that is the entry's last pooling, and a crop stays sharp.
    small_BTChw = warp(twice_BTCHW, affine_B23, (student.height, student.width))
    small_BTChw = torch.einsum("bdc,btchw->btdhw", matrix_B33, small_BTChw) + offset_B3[:, None, :, None, None]
    soft_BThw, density_BThw, fixations_BThw = warp(targets_BT3hw, affine_B23, student.grid).unbind(2)
    mean_3HW, std_3HW = on_device(IMAGENET, device)
    frames_BTChw = (small_BTChw.clamp(0, 1) - mean_3HW) / std_3HW
    return Batch(frames_BTChw, soft_BThw, density_BThw, fixations_BThw, dt_B, starts_B, drawn.places)


def reflect(index: np.ndarray, total: int) -> np.ndarray:
    """Indices reflected at the ends of a clip of `total` frames: streams run through a short clip forwards and backwards."""
    last = total - 1
    return last - np.abs(index % max(1, 2 * last) - last)


def crop_and_flip(rng: np.random.Generator, config: Train, crop: float) -> Tensor:
    """The affine map `[2,3]` of one stream, in grid_sample's coordinates: a crop of sides from `crop` to 1, maybe mirrored."""
    sides = np.ones(2)
    if crop < 1:  # a share of the frame, up to a fifth wider or higher than it
        aspect = math.exp(rng.uniform(-0.2, 0.2))
        sides = np.minimum(1.0, rng.uniform(crop, 1.0) * np.array([aspect, 1 / aspect]))
    centre = rng.uniform(-1, 1, 2) * (1 - sides)
    mirror = -1.0 if config.flip and rng.random() < 0.5 else 1.0
    return torch.tensor([[mirror * sides[0], 0, centre[0]], [0, sides[1], centre[1]]], dtype=torch.float32)


def warp(x_BTCHW: Tensor, affine_B23: Tensor, size: tuple[int, int]) -> Tensor:
    """Applies each stream's affine map to all its frames, and samples them at `size`."""
    B, T, C, H, W = x_BTCHW.shape
    grid = F.affine_grid(affine_B23, [B, 1, *size], align_corners=False)
    # The border is repeated: a crop ends inside the frame, but its last half pixel samples beyond it.
    flat = F.grid_sample(x_BTCHW.reshape(B, T * C, H, W), grid, padding_mode="border", align_corners=False)
    return flat.reshape(B, T, C, *size)


def _rgb_to_yuv(kr: float, kb: float) -> np.ndarray:
    kg = 1 - kr - kb
    blue = [-0.5 * kr / (1 - kb), -0.5 * kg / (1 - kb), 0.5]
    red = [0.5, -0.5 * kg / (1 - kr), -0.5 * kb / (1 - kr)]
    return np.array([[kr, kg, kb], blue, red])


def vary_colour(rng: np.random.Generator, config: Train) -> tuple[Tensor, Tensor]:
    """The effect of another YUV matrix, chroma gains and brightness on RGB in [0, 1]: a matrix `[3,3]` and an offset `[3]`."""
    if not config.colour:
        return torch.eye(3), torch.zeros(3)
    encode, decode = (_rgb_to_yuv(*KR_KB[int(rng.integers(2))]) for _ in range(2))
    gains = np.diag([rng.uniform(0.8, 1.2), *rng.uniform(0.7, 1.3, 2)])
    matrix = np.linalg.inv(decode) @ gains @ encode
    return torch.tensor(matrix, dtype=torch.float32), torch.full((3,), float(rng.uniform(-0.08, 0.08)))


def normalise(twice_THWC: Tensor) -> Tensor:
    """Cached frames, uint8 `[T,2h,2w,3]` -> ImageNet-normalised `[T,3,h,w]`, as the student's entry gives them."""
    small = F.avg_pool2d(twice_THWC.permute(0, 3, 1, 2) / 255, 2)
    mean_3HW, std_3HW = on_device(IMAGENET, small.device)
    return (small - mean_3HW) / std_3HW

"""Teachers that label the last frame of a window, which slides over the clip frame by frame: TASED-Net and SalFoM.

    frames to label: every `every`-th, and the last  ->  the window of each, in batches  ->  one saliency map per window
    frames in between: interpolated                  ->  every map scaled to a maximum of 1  ->  logits

Both were released at `every` = 1: one pass of the whole network per frame, though windows share all frames but one. What
windows can share exactly is what the network computes from each frame alone, its first layer; all later layers look
across time, both ways, and meet the window's edges. So labelling every second frame costs half, and the maps between
are mixtures of their neighbours.

The networks were trained with losses that do not see a map's scale (the KL divergence of maps that sum to 1), and their
authors divide each map by its maximum. So does this file: a saliency of 1 is as salient as the frame gets.
"""

import hashlib
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.windows import BatchSize, to_cpu

Net = TypeVar("Net", bound=nn.Module)

CLIP_EPS = 1e-6
"""Saliency is held in [eps, 1 - eps], where its logits are finite."""


def check_frames(frames: np.ndarray | Tensor) -> None:
    """ValueError unless `frames` are RGB, `uint8 [T, H, W, 3]`, at least one."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape) < 1:
        raise ValueError(f"the clip has shape {list(frames.shape)}; a teacher wants [T, H, W, 3] with T of at least 1")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"the clip holds {frames.dtype}; a teacher wants RGB frames as uint8, 0 to 255")


def anchors(count: int, every: int) -> np.ndarray:
    """The frames of `count` that get a window of their own: 0, every, 2·every ... and the last."""
    return np.unique(np.append(np.arange(0, count, every), count - 1))


def slide(
    count: int,
    every: int,
    window: Callable[[int, int], np.ndarray],
    saliency_of: Callable[[Tensor], Tensor],
    batch: BatchSize,
) -> Tensor:
    """Logits of all `count` frames of a clip, `float32 [count, h, w]` on the CPU.

    `window(frame, count)` gives the numbers of the frames that the network sees in order to label `frame`, `[T]`;
    `saliency_of` a batch of such windows, int64 `[B, T]`, gives their maps `[B, h, w]`, at least 0, at any scale. On the
    CPU it is called from several threads at once.
    """
    labelled = anchors(count, every)
    windows_KT = torch.from_numpy(np.stack([window(frame, count) for frame in labelled.tolist()]))
    maps_Khw = scale_to_one(torch.stack(list(batch.passes(saliency_of, windows_KT))))
    if every > 1:
        frames = np.arange(count)
        before = np.searchsorted(labelled, frames, side="right") - 1
        after = np.minimum(before + 1, len(labelled) - 1)
        share = (frames - labelled[before]) / np.maximum(labelled[after] - labelled[before], 1)
        before_T, after_T, share_T = (torch.from_numpy(given).to(maps_Khw.device) for given in (before, after, share))
        maps_Khw = scale_to_one(torch.lerp(maps_Khw[before_T], maps_Khw[after_T], share_T.float()[:, None, None]))
    return to_cpu(maps_Khw.clamp_(CLIP_EPS, 1 - CLIP_EPS).logit_())


def average_cells(maps_Nhw: Tensor, cell: int) -> Tensor:
    """The mean of every `cell` x `cell` pixels: `[N, h, w]` -> `[N, h/cell, w/cell]`, both divisible."""
    return F.avg_pool2d(maps_Nhw.unsqueeze(1), cell).squeeze(1)


def scale_to_one(maps_Nhw: Tensor) -> Tensor:
    """Each map divided by its maximum; a map of zeros stays one."""
    return maps_Nhw / maps_Nhw.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps_Nhw.dtype).tiny)


def blur(maps_Nhw: Tensor, sigma: float, radius: int, mirror: Literal["symmetric", "reflect"]) -> Tensor:
    """A Gaussian of `sigma` pixels, cut at `radius`, over maps mirrored at their edges.

    `symmetric` repeats the row at the edge itself, which is scipy's habit; `reflect` does not, OpenCV's.
    """
    tap = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (tap / tap.sum()).to(maps_Nhw)
    for dim in (1, 2):
        place = torch.from_numpy(np.pad(np.arange(maps_Nhw.shape[dim]), radius, mode=mirror))
        padded = maps_Nhw.index_select(dim, place.to(maps_Nhw.device))
        shape = (1, 1, -1, 1) if dim == 1 else (1, 1, 1, -1)
        maps_Nhw = F.conv2d(padded.unsqueeze(1), kernel.view(shape)).squeeze(1)
    return maps_Nhw


def fingerprint(description: str, net: nn.Module) -> str:
    """SHA-256, in hex, of a description and all weights: the same numbers give the same print anywhere."""
    digest = hashlib.sha256(description.encode())
    for key, value in sorted(net.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"\n{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def random_net(build: Callable[[], Net], seed: int) -> Net:
    """What `build` makes, with random weights by `seed` that carry a signal through to the output (He et al., 2015)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return net

"""Teachers that label the last frame of a window, which slides over the clip frame by frame: TASED-Net and SalFoM.

    frames to label: every `every`-th, and the last  ->  the window of each, in batches  ->  one saliency map per window
    frames in between: interpolated                  ->  every map scaled to a maximum of 1  ->  logits

Both networks were released with `every` = 1: one pass per frame, although neighbouring windows share all frames but one.
They can share only the first layers, which see one frame at a time; all later layers mix frames and depend on the window's
edges. So labelling every second frame costs half, with interpolated maps in between.

Both networks were trained with losses that ignore a map's scale (KL divergence of maps that sum to 1), and their authors
divide each map by its maximum. So does this file: a saliency of 1 means "as salient as this frame gets".
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import PLAIN, Inference, Teacher
from distill.teachers.weights import load_state_dict_exact, read_weights, with_counters
from distill.teachers.windows import BatchSize, Device, exact_float32, to_cpu

# Shape suffixes: K labelled frames · B windows of a batch · T frames of a window or clip · N · h, w pixels of a map


class SlidingConfig(Protocol):
    """The part of a network's configuration that says how windows slide."""

    @property
    def every(self) -> int:
        """Frames from one window to the next, at least 1."""

    @property
    def cell(self) -> int:
        """Pixels of the network's map, each way, that are averaged into one cell of the labels."""


Net = TypeVar("Net", bound=nn.Module)
Config = TypeVar("Config", bound=SlidingConfig)

CLIP_EPS = 1e-6
"""Saliency is clamped to [eps, 1 - eps], where its logits are finite."""


class LastFrameTeacher(Teacher, ABC, Generic[Net, Config]):
    """A clip in, logits for every frame out. Windows hold consecutive frames, whatever the frame rate.

    A subclass states the network (`build`, `windows_logits`), the window of a frame (`window`) and the input (`prepare`).
    """

    NAME: ClassVar[str]
    CONFIG: type[Config]

    def __init__(
        self, net: Net, config: Config | None = None, *, name: str | None = None, device: Device = "cpu", how: Inference = PLAIN
    ) -> None:
        """`net` is moved to `device`. `how.overlap` has no effect: windows already share all frames but one."""
        self.name = name or self.NAME
        self.net = net.to(device, torch.float32).eval()
        self.config = config or self.CONFIG()
        self.device = torch.device(device)
        self.how = how
        self.batch = BatchSize(self.device, how.batch)
        self.exact = how.precision == "fp32"
        """Compute in full float32; see `exact_float32`."""

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: Device = "cpu", config: Config | None = None, *, how: Inference = PLAIN
    ) -> Self:
        """The teacher with the authors' weights. Raises ValueError, one line, for any other file."""
        config = config or cls.CONFIG()
        with torch.device("meta"):
            net = cls.build(config)
        load_state_dict_exact(net, with_counters(net, read_weights(path)), source=str(path))
        return cls(net, config, device=device, how=how)

    @classmethod
    def random(cls, seed: int = 0, device: Device = "cpu", config: Config | None = None, *, how: Inference = PLAIN) -> Self:
        """The teacher with random weights, for smoke tests; they carry a signal to the output (He et al., 2015)."""
        config = config or cls.CONFIG()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls.build(config)
            for parameter in net.parameters():
                if parameter.ndim > 1:
                    nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        return cls(net, config, name=f"{cls.NAME}(random)", device=device, how=how)

    @classmethod
    @abstractmethod
    def build(cls, config: Config) -> Net:
        """The network that `config` describes."""

    @staticmethod
    @abstractmethod
    def window(frame: int, count: int) -> np.ndarray:
        """The numbers of the frames, of a clip of `count`, that the network sees to label `frame`: int64 `[T]`."""

    @abstractmethod
    def windows_logits(self, frames: Tensor, rows_BT: Tensor) -> Tensor:
        """Prepared frames, all different, and which of them each window holds -> logits of last frames `[B, h, w]`."""

    @abstractmethod
    def finish(self, saliency_Bhw: Tensor) -> Tensor:
        """The authors' post-processing of saliency maps in [0, 1], `[B, h, w]`, if the configuration includes it."""

    @torch.inference_mode()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """A whole clip's prepared frames `[T,...]` -> logits, `float32 [T, h/cell, w/cell]` on the CPU."""
        frames = inputs.to(self.device, non_blocking=True)

        def saliency(windows_BT: Tensor) -> Tensor:
            unique = torch.unique(windows_BT, return_inverse=True)  # on the CPU: a GPU would have to finish all its work first
            needed_N, rows_BT = (part.to(self.device, non_blocking=True) for part in unique)
            maps_Bhw = self.finish(self.windows_logits(frames[needed_N], rows_BT).float().sigmoid())
            return F.avg_pool2d(maps_Bhw.unsqueeze(1), self.config.cell).squeeze(1)

        with exact_float32(self.exact):
            return slide(len(frames), self.config.every, self.window, saliency, self.batch)


def slide(
    count: int, every: int, window: Callable[[int, int], np.ndarray], saliency_of: Callable[[Tensor], Tensor], batch: BatchSize
) -> Tensor:
    """Logits of all `count` frames of a clip, `float32 [count, h, w]` on the CPU.

    `window(frame, count)` gives the numbers of the frames that the network sees to label `frame`, `[T]`. `saliency_of`
    maps a batch of such windows, int64 `[B, T]`, to maps `[B, h, w]`, non-negative, at any scale; on the CPU it is
    called from several threads at once.
    """
    labelled = np.unique(np.append(np.arange(0, count, every), count - 1))
    windows_KT = torch.from_numpy(np.stack([window(frame, count) for frame in labelled.tolist()]))
    maps_Khw = scale_to_one(torch.stack(list(batch.passes(saliency_of, windows_KT))))
    if every > 1:
        frames = np.arange(count)
        before = np.searchsorted(labelled, frames, side="right") - 1
        after = np.minimum(before + 1, len(labelled) - 1)
        share = (frames - labelled[before]) / np.maximum(labelled[after] - labelled[before], 1)
        before_T, after_T, share_T = (
            torch.from_numpy(a).to(maps_Khw.device, non_blocking=True) for a in (before, after, share)
        )
        maps_Khw = scale_to_one(torch.lerp(maps_Khw[before_T], maps_Khw[after_T], share_T.float()[:, None, None]))
    return to_cpu(maps_Khw.clamp_(CLIP_EPS, 1 - CLIP_EPS).logit_())


def scale_to_one(maps_Nhw: Tensor) -> Tensor:
    """Each map divided by its maximum; a map of zeros stays as it is."""
    return maps_Nhw / maps_Nhw.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps_Nhw.dtype).tiny)


def blur(maps_Nhw: Tensor, sigma: float, radius: int, mirror: Literal["symmetric", "reflect"]) -> Tensor:
    """Maps `[N, h, w]` blurred by a Gaussian of `sigma` pixels, truncated at `radius`, mirrored at their edges.

    `symmetric` repeats the edge row, as scipy does by default; `reflect` does not, as OpenCV does by default.
    """
    kernel = _gaussian(sigma, radius, maps_Nhw.device).to(maps_Nhw.dtype)
    for dim in (1, 2):
        padded = maps_Nhw.index_select(dim, _mirrored(maps_Nhw.shape[dim], radius, mirror, maps_Nhw.device))
        shape = (1, 1, -1, 1) if dim == 1 else (1, 1, 1, -1)
        maps_Nhw = F.conv2d(padded.unsqueeze(1), kernel.view(shape)).squeeze(1)
    return maps_Nhw


# Both are cached for the reason that `frames.on_device` gives.


@cache
def _gaussian(sigma: float, radius: int, device: torch.device) -> Tensor:
    """Weights that sum to 1, float64 `[2 radius + 1]`."""
    with torch.inference_mode(False):
        tap = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
        return (tap / tap.sum()).to(device)


@cache
def _mirrored(size: int, radius: int, mirror: Literal["symmetric", "reflect"], device: torch.device) -> Tensor:
    """The places `[radius + size + radius]` of a row's values when it is continued by mirroring."""
    with torch.inference_mode(False):
        return torch.from_numpy(np.pad(np.arange(size), radius, mode=mirror)).to(device)

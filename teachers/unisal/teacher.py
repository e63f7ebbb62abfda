"""The UNISAL teacher: frames in, one map of logits per frame out."""

import itertools
import json
import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.teachers import Teacher
from distill.teachers.frames import IMAGENET, check_frames, on_device, resize
from distill.teachers.unisal.frozen import frozen
from distill.teachers.unisal.net import BLUR, SIZES, STATIC_DOMAIN, UnisalNet
from distill.teachers.weights import fingerprint, load_state_dict_exact, read_weights
from distill.teachers.windows import Device, exact_float32, sampling_stride, to_cpu

# Shape suffixes: S streams · N frames of a stream · T frames of the clip · C channels · H, W pixels

SAMPLE_FPS = 6.0
"""Frames per second that the recurrence was trained at: every 5th of DHF1K's 30, every 4th of the others' 24."""

OUT_STRIDE = 4
"""Pixels of the network's input per cell of the labels: after the blur a 16th of the cells correlate by 0.999 with all."""

EPS = 1e-6
"""Label probabilities are clamped to [eps, 1 - eps], where their logits are finite."""


def input_size(domain: str, height: int, width: int) -> tuple[int, int]:
    """The height and width at which UNISAL sees a frame of `height` x `width` pixels.

    The domain's size (`SIZES`) for DHF1K's 16:9 and SALICON's 4:3, and for all videos of Hollywood and UCFSports, whose
    aspect is not preserved, as published. Otherwise the size n·32 x m·32, with n, m in 7..13 and n·m in 100..120, whose
    aspect is nearest.
    """
    aspect = height / width
    native = {"DHF1K": 9 / 16, "SALICON": 3 / 4}.get(domain)
    if native is None or math.isclose(aspect, native, rel_tol=0.01):
        return SIZES[domain]
    sides = [(n, m) for n, m in itertools.product(range(7, 14), repeat=2) if 100 <= n * m <= 120]
    n, m = min(sides, key=lambda side: abs(math.log(side[0] / side[1] / aspect)))
    return 32 * n, 32 * m


def scale(frames: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    """`uint8 [n, H, W, 3]` -> `uint8 [n, *size, 3]`, the aspect ratio not preserved, by an antialiased Lanczos filter.

    Published with Pillow's filter. torch's, on bytes, rounds differently (on video 0.01 grey levels on average, 2 at
    most) and takes a tenth of the time; OpenCV's is not antialiased and differs by 1 level on average, up to 64.
    """
    return resize(frames, *size, mode="lanczos").permute(0, 2, 3, 1).contiguous()


def stream_count(fps: float) -> int:
    """The number of interleaved streams of a video at `fps` frames per second. ValueError unless `fps` is positive."""
    return sampling_stride(fps, SAMPLE_FPS)


def normalise(frames: Tensor) -> Tensor:
    """uint8 RGB `[..., H, W, 3]` -> the network's input, float32 `[..., 3, H, W]`: (x / 255 - mean) / std per channel."""
    width = frames.shape[-2]
    mean, std = (constant.flatten().repeat(width) for constant in on_device(IMAGENET, frames.device))
    # Along whole rows of interleaved channels a CPU takes a fifth of the time that it takes with a channel's constants.
    rows = frames.flatten(-2).float().div_(255).sub_(mean).div_(std)
    return rows.unflatten(-1, (width, 3)).movedim(-1, -3)


def mask_logits(log_density: Tensor) -> Tensor:
    """Log-densities `[..., H, W]` -> finite logits of the densities divided by their largest value in the frame."""
    relative = log_density - log_density.amax((-2, -1), keepdim=True)
    return torch.logit(relative.exp(), eps=EPS)


class Unisal(Teacher):
    """The teacher: a clip in, logits for every frame out.

    A video is sampled at 6 frames per second, so a 30 fps clip is five interleaved streams, run as one batch, each with
    its hidden state: frames 0, 5, 10, ... are one stream, frames 1, 6, 11, ... the next. The domain SALICON treats every
    frame as an image. So does a clip of a single frame, with SALICON's parameters unless `stills` names another domain.

    `static` is the share of the static path, which bypasses the recurrence and sees each frame alone, in the mean of both
    paths' logits: what an ensemble of the two gives, with one pass of the encoder.
    """

    def __init__(
        self,
        net: UnisalNet,
        domain: str = "DHF1K",
        *,
        name: str = "unisal",
        device: Device = "cpu",
        batch_frames: int | None = None,
        static: float = 0.0,
        stills: str = STATIC_DOMAIN,
    ) -> None:
        """`net` is moved to `device`; its weights are taken over when a clip is first labelled. `batch_frames`: the most
        frames per pass; None: a default for the device.

        `stills`: the domain of clips of a single frame. ValueError for an unknown domain, or a `static` outside [0, 1].
        """
        for name_of_domain in (domain, stills):
            if name_of_domain not in SIZES:
                raise ValueError(f"UNISAL has no domain {name_of_domain!r}; its domains are {', '.join(SIZES)}")
        if not 0 <= static <= 1:
            raise ValueError(f"the static path's share is {static}; it must lie in [0, 1]")
        device = torch.device(device)
        if batch_frames is None:
            batch_frames = 5 if device.type == "cpu" else 160  # a CPU is fastest while the features fit its cache
        if batch_frames < 1:
            raise ValueError(f"batch_frames is {batch_frames}; it must be at least 1")
        self.name = name
        # Channels last on a CPU, as the frames are; a GPU has no good float32 kernels for that, depthwise ones least of all.
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.net = net.to(device, memory_format=layout)  # type: ignore[call-overload]
        self._frozen: dict[str, UnisalNet] = {}
        self.domain, self.stills = domain, stills
        self.static = 1.0 if domain == STATIC_DOMAIN else static
        self.device = device
        self.batch_frames = batch_frames

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """`uint8 [n, H, W, 3]` RGB -> `uint8 [n, h, w, 3]` at the domain's `input_size`. ValueError for anything but frames."""
        check_frames(frames)
        return scale(frames, input_size(self.domain, *frames.shape[1:3]))

    @torch.inference_mode()
    @exact_float32()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """A clip's prepared frames `[T, h, w, 3]` -> `float32 [T, h/4, w/4]` on the CPU.

        The logits' sigmoid is the density divided by its largest value in the frame.
        """
        T, height, width, _ = inputs.shape
        size = (height // OUT_STRIDE, width // OUT_STRIDE)
        domain, share = (self.stills, 1.0) if T == 1 else (self.domain, self.static)
        net = self.network(domain)
        streams = min(stream_count(fps), T)
        frames = inputs.to(self.device, non_blocking=True)
        numbers = torch.arange(math.ceil(T / streams) * streams, device=self.device)  # those from T on fill up
        logits_THW = torch.empty(len(numbers), *size, device=self.device)
        for part_SN in numbers.view(-1, streams).T.chunk(math.ceil(streams / self.batch_frames)):
            hidden = None
            for step_SN in part_SN.split(max(1, self.batch_frames // len(part_SN)), 1):
                frames_SNCHW = normalise(frames[step_SN.clamp(max=T - 1)])
                if self.device.type != "cpu":
                    frames_SNCHW = frames_SNCHW.contiguous()
                if 0 < share < 1:
                    recurrent, static, hidden = net.both_paths(frames_SNCHW, domain, hidden=hidden, size=size)
                    logits_SNHW = mask_logits(recurrent).lerp_(mask_logits(static), share)
                else:
                    density_SNHW, hidden = net(frames_SNCHW, domain, static=share == 1, hidden=hidden, size=size)
                    logits_SNHW = mask_logits(density_SNHW)
                logits_THW[step_SN] = logits_SNHW
        return to_cpu(logits_THW[:T])

    def network(self, domain: str) -> UnisalNet:
        """The network for inference in a domain, made when it is first needed."""
        if domain not in self._frozen:
            self._frozen[domain] = frozen(self.net, domain)
        return self._frozen[domain]

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the domain, the conventions, the static path's share if any, and all weights."""
        conventions: list[object] = [self.domain, SIZES, SAMPLE_FPS, OUT_STRIDE, EPS]
        if self.static and self.domain != STATIC_DOMAIN:
            conventions.append(self.static)
        if self.stills != STATIC_DOMAIN:
            conventions.append(self.stills)
        return fingerprint(json.dumps(conventions), self.net)

    @classmethod
    def load(cls, path: str | os.PathLike[str], domain: str = "DHF1K", *, device: Device = "cpu", **options: Any) -> "Unisal":
        """The teacher of a weights file in the released layout. ValueError, one line, for any other file."""
        state = read_weights(path)
        with torch.device("meta"):
            net = UnisalNet()
        load_state_dict_exact(net, state, source=str(path))
        return cls(net, domain, device=device, **options)

    @classmethod
    def random(cls, seed: int, domain: str = "DHF1K", *, device: Device = "cpu", **options: Any) -> "Unisal":
        """The teacher with random weights, for smoke tests; they carry a signal to the map (He et al., 2015)."""
        net = UnisalNet()
        generator = torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (BLUR, BLUR):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return cls(net, domain, device=device, **options)

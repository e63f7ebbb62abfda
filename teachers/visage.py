"""ViSAGE: two experts on the taps of a video trunk, fused in logit space, and the teacher made of them.

    frames -> preprocess -> InternVideo2, four taps -> expert 1: temporal gate, CLS FiLM, centre prior -> fuse -> logits
                                                    -> expert 2: multi-scale fusion, auxiliary heads   ->

The experts are those of ViSAGE (2026), layer for layer and name for name, at any width. `VisageNet` joins trunk and
experts: with one shared trunk it trains from scratch (the small teacher of the default run); with a trunk per expert it
holds the released pair, each with its own LoRA merged in. `Visage` is what the pipeline sees: clip in, one map of
logits per frame out.

Layer numbers in names (5, 11, 17, 23) are those of the released keys; they mean the four taps, shallow to deep.
This file knows torch and numpy alone.
"""

import dataclasses
import hashlib
import json
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.internvideo2 import EXTRAS, InternVideo2, InternVideo2Config, LoadAccount, load_state_dict_exact
from distill.teachers.lora import merge_lora

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width; lower-case h, w: the token grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of the trunk's input: RGB in [0, 1], the constants of CLIP (Radford et al., 2021)."""

FUSION_EPS = 1e-6
"""Probabilities are held in [eps, 1 - eps] when experts are fused, as released: none can outvote the rest alone."""

AUX_HEADS = ("p23", "p17", "p11")
FUSIONS = ("logit", "mean", "max")

CHUNK_PIXELS = 4 * 1920 * 1080
"""Pixels resized at a time: about 100 MB as float32."""

FILE_FORMAT = "saliency-distill visage 1"
"""What `Visage.save` writes first and `Visage.load` insists on."""


@dataclass(frozen=True)
class VisageConfig:
    """Shape of the ensemble and how it samples a video. The defaults are the small one that trains from scratch."""

    trunk: InternVideo2Config = field(
        default_factory=lambda: InternVideo2Config(
            heads=2, px=96, patch=8, layer_scale_init=0.1, pos_embed_init=0.5, dct_init=True
        )
    )
    """The video trunk; its `frames` and `px` are the ensemble's window and input size."""
    shared_trunk: bool = True
    """One trunk under both experts; False gives each its own, as the released pair with LoRA merged needs."""
    taps: tuple[int, ...] = (0, 1, 2, 3)
    """The four blocks the experts read, shallow to deep, counted from 0."""
    reduced_width: int = 24
    """Channels of each tap after its reducer."""
    embed_width: int = 24
    """Channels inside both decoders."""
    head_width_1: int = 8
    """Hidden channels of expert 1's head."""
    head_width_2: int = 8
    """Hidden channels of expert 2's main and auxiliary heads."""
    norm_groups: int = 8
    """Groups of expert 2's GroupNorms (released: 32)."""
    out_px: int = 48
    """Side of the square saliency map, pixels."""
    logit_init: float = -3.0
    """Where the logits start in training from scratch: sigmoid(-3) = 0.05, about a density map's mean."""
    prior_init: float = 2.0
    """Where the weight of expert 1's centre prior starts, in logits (released: 0)."""
    sample_fps: float = 8.0
    """Frame rate at which windows sample a video, per second (released: 5)."""
    fusion: str = "logit"
    """How the experts are fused: `logit`, `mean` or `max`; see `fuse`."""
    weights: tuple[float, ...] = (0.5, 0.5)
    """Weight of each expert in the fusion."""

    def __post_init__(self) -> None:
        for name in ("reduced_width", "embed_width", "head_width_1", "head_width_2", "norm_groups", "out_px"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"VisageConfig.{name} is {value!r}; it must be a whole number of at least 1")
        if len(self.taps) != 4 or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"VisageConfig.taps {self.taps} must be four different blocks, shallow to deep")
        if self.taps[0] < 0 or self.taps[-1] >= self.trunk.depth:
            raise ValueError(f"VisageConfig.taps {self.taps} reach outside the trunk's {self.trunk.depth} blocks")
        for name in ("embed_width", "head_width_2"):
            if getattr(self, name) % self.norm_groups:
                raise ValueError(
                    f"VisageConfig.{name} {getattr(self, name)} does not divide into norm_groups {self.norm_groups}"
                )
        if not (math.isfinite(self.sample_fps) and self.sample_fps > 0):
            raise ValueError(f"VisageConfig.sample_fps is {self.sample_fps}; it must be a positive number")
        if self.fusion not in FUSIONS:
            raise ValueError(f"VisageConfig.fusion is {self.fusion!r}; known are {', '.join(FUSIONS)}")
        if len(self.weights) != 2 or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise ValueError(f"VisageConfig.weights {self.weights} must be two numbers >= 0, not both 0")

    @classmethod
    def released(cls, size: str = "6B", **fields: Any) -> "VisageConfig":
        """The released layout (trunk 6B, taps after blocks 11, 23, 35, 47), or the same on a smaller named trunk."""
        trunk = InternVideo2Config.of(size, frames=20, px=224)
        quarter = trunk.depth // 4
        layout: dict[str, Any] = {
            "trunk": trunk,
            "shared_trunk": False,
            "taps": tuple(quarter * n - 1 for n in (1, 2, 3, 4)),
            "reduced_width": 1024,
            "embed_width": 256,
            "head_width_1": 128,
            "head_width_2": 128,
            "norm_groups": 32,
            "out_px": 224,
            "prior_init": 0.0,
            "sample_fps": 5.0,
        }
        return cls(**(layout | fields))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for JSON or a weights file; `from_dict` takes them back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VisageConfig":
        """The inverse of `to_dict`; an unknown or ill-typed field is a ValueError."""
        try:
            fields = dict(values)
            fields["trunk"] = InternVideo2Config(**fields["trunk"])
            fields |= {name: tuple(fields[name]) for name in ("taps", "weights") if name in fields}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a VisageConfig: {error}; write it with VisageConfig.to_dict") from error

    def stride(self, fps: float) -> int:
        """Frames of a video at `fps` frames per second from one sampled frame to the next."""
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"the clip's frame rate is {fps}; it must be a positive number of frames per second")
        return max(1, round(fps / self.sample_fps))


# ---------------------------------------------------------------------------------------------------------- expert 1


class ResBlend3d(nn.Module):
    """Two 3x3x3 convolutions with a shortcut around them, normalised over the batch."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv3d(channels_in, channels, 1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y_BCThw = F.relu(self.bn1(self.conv1(x_BCThw)))
        return F.relu(self.bn2(self.conv2(y_BCThw)) + self.shortcut(x_BCThw))


class TemporalAttention(nn.Module):
    """A gate per channel and frame from the deepest tap: what it sees decides when the other taps count."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        gate_BCT = torch.sigmoid(self.conv(x_BCThw.mean(dim=(3, 4))))
        return gate_BCT[..., None, None]


class Projection(nn.Module):
    """A pointwise convolution, under the name the released keys give it.

    The released layer would also resize to its neighbour's grid, but all taps of this trunk share one.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels_in, channels, 1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y_BCThw: Tensor = self.proj(x_BCThw)
        return y_BCThw


class CenterBias(nn.Module):
    """weight · exp(−((x − cx)² + (y − cy)²) / 2σ²) with x, y in [−1, 1]: four learned numbers added to the logits."""

    xx: Tensor
    yy: Tensor

    def __init__(self, out_px: int, weight: float) -> None:
        super().__init__()
        self.cx = nn.Parameter(torch.tensor(0.0))
        self.cy = nn.Parameter(torch.tensor(0.0))
        self.sigma = nn.Parameter(torch.tensor(0.5))
        self.weight = nn.Parameter(torch.tensor(float(weight)))
        yy, xx = torch.meshgrid(*(torch.linspace(-1, 1, out_px) for _ in "yx"), indexing="ij")
        self.register_buffer("xx", xx.contiguous())
        self.register_buffer("yy", yy.contiguous())

    def forward(self) -> Tensor:
        distance_HW = (self.xx - self.cx) ** 2 + (self.yy - self.cy) ** 2
        return self.weight * torch.exp(-distance_HW / (2 * self.sigma**2))


class Decoder1(nn.Module):
    """Expert 1's decoder: deep to shallow, each tap gated by the deepest, which enters in no other way."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        reduced, embed, head = config.reduced_width, config.embed_width, config.head_width_1
        self.out_px = config.out_px
        self.temp_attn = TemporalAttention(reduced)
        self.proj23_attn = nn.Conv3d(reduced, embed, 1)
        self.upsample5 = Projection(reduced, embed)
        self.upsample11 = Projection(reduced, embed)
        self.proj17 = nn.Conv3d(reduced, embed, 1)
        self.conv17 = ResBlend3d(embed, embed)
        self.blend11 = ResBlend3d(2 * embed, embed)
        self.blend5 = ResBlend3d(2 * embed, embed)
        self.final_head = nn.Sequential(
            nn.Conv2d(embed, head, 3, padding=1, bias=False),
            nn.BatchNorm2d(head),
            nn.ReLU(),
            nn.Conv2d(head, 1, 3, padding=1),
        )
        self.center_bias = CenterBias(config.out_px, config.prior_init)
        start_head(self.final_head, config.logit_init)

    def forward(self, taps: Sequence[Tensor], gamma_BC111: Tensor, beta_BC111: Tensor) -> Tensor:
        f5, f11, f17, f23 = taps
        attention = self.proj23_attn(self.temp_attn(f23))
        a17 = self.conv17(self.proj17(f17) * attention)
        a11 = self.blend11(torch.cat((self.upsample11(f11) * attention, a17), dim=1))
        a5 = self.blend5(torch.cat((self.upsample5(f5) * attention, a11), dim=1))
        a5 = a5 * (1 + gamma_BC111) + beta_BC111
        prior_HW: Tensor = self.center_bias()
        return map_frames(self.final_head, a5, self.out_px) + prior_HW


class Expert1(nn.Module):
    """Temporal gate, FiLM from the CLS token, learned centre prior."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        self.config = config
        self.dim_reducers = dim_reducers(config)
        self.decoder = Decoder1(config)
        self.film_gamma = nn.Linear(config.trunk.width, config.embed_width)
        self.film_beta = nn.Linear(config.trunk.width, config.embed_width)
        for film in (self.film_gamma, self.film_beta):
            nn.init.zeros_(film.weight)
            nn.init.zeros_(film.bias)

    def forward(self, streams: Sequence[Tensor]) -> Tensor:
        """Four token streams `[B, 1 + T·h·w, D]` of the trunk -> logits `[B, T, out_px, out_px]`."""
        cls_BD = streams[-1][:, 0]
        gamma_BC, beta_BC = self.film_gamma(cls_BD), self.film_beta(cls_BD)
        taps = reduce_taps(self.dim_reducers, streams, self.config.trunk)
        logits_BTHW: Tensor = self.decoder(taps, gamma_BC[..., None, None, None], beta_BC[..., None, None, None])
        return logits_BTHW


# ---------------------------------------------------------------------------------------------------------- expert 2


class NormedProjection(nn.Module):
    """Pointwise convolution, GroupNorm, GELU."""

    def __init__(self, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv3d(channels_in, channels, 1, bias=False), nn.GroupNorm(groups, channels), nn.GELU()
        )

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y_BCThw: Tensor = self.block(x_BCThw)
        return y_BCThw


class TemporalGate(nn.Module):
    """A gate per channel and frame out of the features it gates."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv1d(channels, channels, 1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        gate_BCT = torch.sigmoid(self.pointwise(self.depthwise(x_BCThw.mean(dim=(3, 4)))))
        return x_BCThw * gate_BCT[..., None, None]


class Residual3d(nn.Module):
    """Two 3x3x3 convolutions with a shortcut around them, normalised over groups of channels."""

    def __init__(self, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(channels_in, channels, 1, bias=False), nn.GroupNorm(groups, channels)
            )

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y_BCThw = F.gelu(self.norm1(self.conv1(x_BCThw)))
        return F.gelu(self.norm2(self.conv2(y_BCThw)) + self.shortcut(x_BCThw))


class Head2(nn.Module):
    """From decoder features to logits: once over space and time, then enlarged, then frame by frame."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        embed, head, groups = config.embed_width, config.head_width_2, config.norm_groups
        self.out_px = config.out_px
        self.pre_2d = nn.Sequential(
            nn.Conv3d(embed, head, 3, padding=1, bias=False), nn.GroupNorm(groups, head), nn.GELU()
        )
        self.head_2d = nn.Sequential(
            nn.Conv2d(head, head, 3, padding=1, bias=False),
            nn.GroupNorm(groups, head),
            nn.GELU(),
            nn.Conv2d(head, 1, 3, padding=1),
        )
        start_head(self.head_2d, config.logit_init)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        return map_frames(self.head_2d, self.pre_2d(x_BCThw), self.out_px)


class Decoder2(nn.Module):
    """Expert 2's decoder: all taps fused deep to shallow, with an auxiliary head at each of the deeper three steps."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        reduced, embed, groups = config.reduced_width, config.embed_width, config.norm_groups
        self.proj5 = NormedProjection(reduced, embed, groups)
        self.proj11 = NormedProjection(reduced, embed, groups)
        self.proj17 = NormedProjection(reduced, embed, groups)
        self.proj23 = NormedProjection(reduced, embed, groups)
        self.temporal_gate = TemporalGate(embed)
        self.refine23 = Residual3d(embed, embed, groups)
        self.fuse17 = Residual3d(2 * embed, embed, groups)
        self.fuse11 = Residual3d(2 * embed, embed, groups)
        self.fuse5 = Residual3d(2 * embed, embed, groups)
        self.refine3d = nn.Sequential(Residual3d(embed, embed, groups), Residual3d(embed, embed, groups))
        self.main_head = Head2(config)
        self.aux_heads = nn.ModuleDict({name: Head2(config) for name in AUX_HEADS})

    def forward(self, taps: Sequence[Tensor], aux: bool) -> tuple[Tensor, dict[str, Tensor]]:
        f5, f11, f17, f23 = taps
        p23 = self.refine23(self.temporal_gate(self.proj23(f23)))
        p17 = self.fuse17(torch.cat((self.proj17(f17), p23), dim=1))
        p11 = self.fuse11(torch.cat((self.proj11(f11), p17), dim=1))
        p5 = self.fuse5(torch.cat((self.proj5(f5), p11), dim=1))
        logits_BTHW = self.main_head(self.refine3d(p5))
        steps = zip(AUX_HEADS, (p23, p17, p11), strict=True)
        return logits_BTHW, {name: self.aux_heads[name](step) for name, step in steps} if aux else {}


class Expert2(nn.Module):
    """Multi-scale fusion with auxiliary heads, which serve training only."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        self.config = config
        self.dim_reducers = dim_reducers(config)
        self.decoder = Decoder2(config)

    def forward(self, streams: Sequence[Tensor], aux: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Four token streams `[B, 1 + T·h·w, D]` -> logits `[B, T, out_px, out_px]`, and with `aux` those of the
        auxiliary heads `p23`, `p17`, `p11`, of the same shape."""
        logits_BTHW, auxiliary = self.decoder(reduce_taps(self.dim_reducers, streams, self.config.trunk), aux)
        return logits_BTHW, auxiliary


# ------------------------------------------------------------------------------------------- what both experts share


def dim_reducers(config: VisageConfig) -> nn.ModuleList:
    """One pointwise convolution per tap, from the trunk's width to the decoders'."""
    return nn.ModuleList(nn.Conv3d(config.trunk.width, config.reduced_width, 1) for _ in config.taps)


def reduce_taps(reducers: nn.ModuleList, streams: Sequence[Tensor], trunk: InternVideo2Config) -> list[Tensor]:
    """Token streams `[B, 1 + T·h·w, D]` -> features `[B, C, T, h, w]`; the CLS token stays behind."""
    shape = (trunk.frames, trunk.grid, trunk.grid)
    return [
        reducer(stream_BND[:, 1:].transpose(1, 2).reshape(len(stream_BND), trunk.width, *shape))
        for reducer, stream_BND in zip(reducers, streams, strict=True)
    ]


def map_frames(head: nn.Module, x_BCThw: Tensor, px: int) -> Tensor:
    """Enlarge features `[B, C, T, h, w]` to `px` x `px`, then run a 2-D `head` on each frame -> `[B, T, px, px]`.

    Bilinear frame by frame is the released trilinear step, whose time axis keeps its length.
    """
    frames = x_BCThw.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(px, px), mode="bilinear", align_corners=False)
    logits_BTHW: Tensor = head(frames).view(len(x_BCThw), -1, px, px)
    return logits_BTHW


def start_head(head: nn.Sequential, logit: float) -> None:
    """Let a head that trains from scratch start near the constant `logit`, with enough slope to learn from."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.weight[0].numel()))
    nn.init.constant_(last.bias, logit)


def fuse(logits: Sequence[Tensor], weights: Sequence[float], mode: str = "logit") -> Tensor:
    """Experts' logits, all of one shape -> the ensemble's logits of that shape.

    `logit`: the weighted mean of the logits, as released. `mean`: the logit of the weighted mean probability. `max`:
    the largest of those whose weight is not 0. First each logit is held within ±log((1 − eps) / eps), as released.
    """
    if len(logits) != len(weights):
        raise ValueError(f"{len(logits)} experts are to be fused with {len(weights)} weights; give one weight each")
    bound = math.log((1 - FUSION_EPS) / FUSION_EPS)
    shares = [weight / sum(weights) for weight in weights]
    held = [expert.float().clamp(-bound, bound) for expert in logits]
    if mode == "logit":
        return torch.stack([share * expert for share, expert in zip(shares, held, strict=True)]).sum(0)
    if mode == "mean":
        mean = torch.stack([share * expert.sigmoid() for share, expert in zip(shares, held, strict=True)]).sum(0)
        return mean.logit(eps=FUSION_EPS)
    if mode == "max":
        return torch.stack([expert for share, expert in zip(shares, held, strict=True) if share > 0]).amax(0)
    raise ValueError(f"unknown fusion {mode!r}; known are {', '.join(FUSIONS)}")


# ---------------------------------------------------------------------------------------------------------- ensemble


class VisageOutput(NamedTuple):
    """Logits of one forward pass, each `[B, T, out_px, out_px]`."""

    logits1: Tensor
    """Expert 1."""
    logits2: Tensor
    """Expert 2."""
    aux: dict[str, Tensor]
    """Expert 2's auxiliary heads `p23`, `p17`, `p11`; empty unless asked for."""
    fused: Tensor
    """The ensemble."""


class VisageNet(nn.Module):
    """Trunk, or trunks, and both experts."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        self.config = config
        self.trunks = nn.ModuleList(InternVideo2(config.trunk) for _ in range(1 if config.shared_trunk else 2))
        self.expert1 = Expert1(config)
        self.expert2 = Expert2(config)

    def forward(self, clip_BCTHW: Tensor, aux: bool | None = None) -> VisageOutput:
        """A window of normalised RGB frames `[B, 3, T, px, px]` (see `preprocess`) -> logits of every frame.

        The auxiliary heads run in training mode, or when `aux` says so.
        """
        streams1 = self.trunks[0](clip_BCTHW, self.config.taps)
        streams2 = streams1 if self.config.shared_trunk else self.trunks[1](clip_BCTHW, self.config.taps)
        logits1 = self.expert1(streams1)
        logits2, auxiliary = self.expert2(streams2, self.training if aux is None else aux)
        fused = fuse((logits1, logits2), self.config.weights, self.config.fusion)
        return VisageOutput(logits1, logits2, auxiliary, fused)

    def load_expert(self, number: int, state: Mapping[str, Tensor], *, alpha: float = 128.0) -> LoadAccount:
        """Load a released expert, 1 or 2, its LoRA merged into its trunk; every key is accounted for.

        `state` has the released names. Where the file leaves the frozen trunk out, the base's tensors under their
        published names belong in the same dict, with `pos_embed` fitted to the window (`resize_pos_embed`).
        """
        if self.config.shared_trunk:
            raise ValueError(
                "released experts were tuned with a trunk each; build the ensemble with VisageConfig.shared_trunk=False"
            )
        expert = {1: self.expert1, 2: self.expert2}.get(number)
        if expert is None:
            raise ValueError(f"there is no expert {number}; they are 1 and 2")
        pair = nn.ModuleDict({"trunk": self.trunks[number - 1], "expert": expert})
        own = ("dim_reducers.", "decoder.", "film_gamma.", "film_beta.")
        merged = {
            f"expert.{key}" if key.startswith(own) else f"trunk.{key}": value
            for key, value in merge_lora(state, alpha=alpha).items()
        }
        extras = [f"trunk.{name}" for name in EXTRAS]
        return load_state_dict_exact(pair, merged, drop=extras, source=f"the state of expert {number}")


# ----------------------------------------------------------------------------------------------------------- teacher


def preprocess(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> the trunk's input, `float32 [T, 3, px, px]`, normalised by CLIP's constants.

    A plain square resize, as released: the aspect ratio is not kept. Bilinear, antialiased where it shrinks. Works
    through a few frames at a time, so full-size video needs little memory.
    """
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in (CLIP_MEAN, CLIP_STD))
    resized_TCHW = torch.empty(len(frames), 3, px, px)
    step = max(1, CHUNK_PIXELS // (frames.shape[1] * frames.shape[2]))
    for start in range(0, len(frames), step):
        chunk_THWC = torch.as_tensor(frames[start : start + step])
        chunk_TCHW = chunk_THWC.permute(0, 3, 1, 2).float() / 255
        small_TCHW = F.interpolate(chunk_TCHW, size=(px, px), mode="bilinear", align_corners=False, antialias=True)
        resized_TCHW[start : start + step] = (small_TCHW - mean) / std
    return resized_TCHW


def cut_windows(count: int, stride: int, length: int) -> list[np.ndarray]:
    """Frame numbers of each window over a clip of `count` frames, so that every frame is in exactly one.

    For each offset 0..stride-1 every stride-th frame from there on, cut into runs of `length`; the last run of an
    offset may be shorter.
    """
    windows = []
    for offset in range(min(stride, count)):
        sampled = np.arange(offset, count, stride)
        windows += [sampled[start : start + length] for start in range(0, len(sampled), length)]
    return windows


class Visage:
    """The teacher: a clip in, the ensemble's logits for every frame out.

    A clip is sampled at `config.sample_fps` from every offset in turn, in windows that do not overlap; the last window
    of each is filled up by repeating its last frame, and what comes out for the filling is dropped.
    """

    def __init__(
        self,
        net: nn.Module,
        config: VisageConfig,
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        batch_windows: int = 2,
    ) -> None:
        """`net` maps `[B, 3, T, px, px]` to a `VisageOutput`, as `VisageNet` does; it is moved to `device`."""
        if batch_windows < 1:
            raise ValueError(f"batch_windows is {batch_windows}; it must be at least 1")
        self.name = name
        self.net = net.to(device)
        self.config = config
        self.device = torch.device(device)
        self.batch_windows = batch_windows

    @torch.inference_mode()
    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """`uint8 [T, H, W, 3]` RGB at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape) < 1:
            raise ValueError(
                f"the clip has shape {list(frames.shape)}; a teacher wants [T, H, W, 3] with T of at least 1"
            )
        if frames.dtype not in (np.uint8, torch.uint8):
            raise ValueError(f"the clip holds {frames.dtype}; a teacher wants RGB frames as uint8, 0 to 255")
        trunk = self.config.trunk
        windows = cut_windows(len(frames), self.config.stride(fps), trunk.frames)
        logits_THW = torch.empty(len(frames), self.config.out_px, self.config.out_px)
        was_training = self.net.training
        self.net.eval()
        try:
            for start in range(0, len(windows), self.batch_windows):
                batch = windows[start : start + self.batch_windows]
                filled = [np.pad(window, (0, trunk.frames - len(window)), mode="edge") for window in batch]
                frames_NCHW = preprocess(frames[np.concatenate(filled)], trunk.px).to(self.device)
                clip_BCTHW = frames_NCHW.view(len(batch), trunk.frames, 3, trunk.px, trunk.px).transpose(1, 2)
                fused_BTHW = self.net(clip_BCTHW).fused.float().cpu()
                for window, fused_THW in zip(batch, fused_BTHW, strict=True):
                    logits_THW[window] = fused_THW[: len(window)]
        finally:
            self.net.train(was_training)
        return logits_THW

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration and all weights: the same numbers give the same print anywhere."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for key, value in sorted(self.net.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and weights into one file, whole or not at all; `Visage.load` reads it."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        state = {key: value.detach().cpu() for key, value in self.net.state_dict().items()}
        try:
            with temporary.open("wb") as file:
                torch.save({"format": FILE_FORMAT, "config": self.config.to_dict(), "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        batch_windows: int = 2,
    ) -> "Visage":
        """The teacher that `save` wrote. No code in the file is run."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{path} is not a teacher's weights file ({type(error).__name__}); train it again"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} does not hold a {FILE_FORMAT!r} teacher; write one with Visage.save")
        config = VisageConfig.from_dict(content["config"])
        with torch.device("meta"):
            net = VisageNet(config)
        load_state_dict_exact(net, content["state"], source=str(path))
        return cls(net, config, name=name, device=device, batch_windows=batch_windows)

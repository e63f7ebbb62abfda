"""ViSAGE: two experts on the taps of a video trunk, fused in logit space, and the teacher made of them.

    frames -> preprocess -> InternVideo2, four taps -> expert 1: temporal gate, CLS FiLM, centre prior -> fuse -> logits
                                                    -> expert 2: multi-scale fusion, auxiliary heads   ->

The experts are those of ViSAGE (2026), layer for layer and name for name, at any width. `VisageNet` joins them and the
trunk in one of three ways, from as many files as there are experts or from scratch:

    shared_trunk, lora_rank 0     one trunk, one pass: the small teacher of the default run
    shared_trunk, lora_rank 64    one trunk in memory, a LoRA per expert, one pass per expert: the released pair
    shared_trunk=False            a trunk per expert with its LoRA merged in: less work, memory for all of them

`Visage` is what the pipeline sees: clip in, one map of logits per frame out.

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
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import PLAIN, Inference
from distill.teachers.internvideo2 import (
    EXTRAS,
    InternVideo2,
    InternVideo2Config,
    fit_to_window,
    load_trunk,
    trunk_state,
)
from distill.teachers.lora import Lora, merge_lora, plain_name
from distill.teachers.weights import LoadAccount, load_state_dict_exact, read_weights
from distill.teachers.windows import BatchSize, cut_windows, exact_convolutions, infer

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width; lower-case h, w: the token grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of the trunk's input: RGB in [0, 1], the constants of CLIP (Radford et al., 2021)."""

FUSION_EPS = 1e-6
"""Probabilities are held in [eps, 1 - eps] when experts are fused, as released: none can outvote the rest alone."""

AUX_HEADS = ("p23", "p17", "p11")
FUSIONS = ("logit", "mean", "max")

FILE_FORMAT = "saliency-distill visage 2"
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
    experts: tuple[int, ...] = (1, 2)
    """Which of the two kinds each expert of the ensemble is, in order; any number of them."""
    shared_trunk: bool = True
    """One trunk under all experts; False gives each its own, with its LoRA merged in."""
    lora_rank: int = 0
    """Rank of each expert's own LoRA over the shared trunk (released: 64); 0: the experts read the same streams."""
    lora_alpha: float = 128.0
    """A LoRA counts alpha / rank times."""
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
    """Weight of each expert in the fusion, in their order."""

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
        if not self.experts or not set(self.experts) <= KINDS.keys():
            raise ValueError(f"VisageConfig.experts {self.experts} must each be of kind {' or '.join(map(str, KINDS))}")
        if not isinstance(self.lora_rank, int) or self.lora_rank < 0 or (self.lora_rank and not self.shared_trunk):
            raise ValueError(
                f"VisageConfig.lora_rank is {self.lora_rank}; it must be a whole number, and 0 without a shared trunk"
            )
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise ValueError(f"VisageConfig.lora_alpha is {self.lora_alpha}; it must be a positive number")
        if len(self.weights) != len(self.experts) or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise ValueError(
                f"VisageConfig.weights {self.weights} must be {len(self.experts)} numbers >= 0, one per expert, not all 0"
            )

    @classmethod
    def released(cls, size: str = "6B", **fields: Any) -> "VisageConfig":
        """The released layout (trunk 6B, taps after blocks 11, 23, 35, 47), or the same on a smaller named trunk.

        `fields` override single fields; weights are equal unless given.
        """
        trunk = InternVideo2Config.of(size, frames=20, px=224)
        quarter = trunk.depth // 4
        shared, count = fields.get("shared_trunk", True), len(fields.get("experts", (1, 2)))
        layout: dict[str, Any] = {
            "trunk": trunk,
            "lora_rank": 64 if shared else 0,
            "weights": (1 / count,) * count,
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
            fields |= {name: tuple(fields[name]) for name in ("taps", "experts", "weights") if name in fields}
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
        cls_BD = streams[-1][:, 0].to(self.film_gamma.weight.dtype)
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
    shape, dtype = (trunk.frames, trunk.grid, trunk.grid), next(reducers.parameters()).dtype
    return [
        reducer(stream_BND[:, 1:].to(dtype).transpose(1, 2).unflatten(2, shape))
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


KINDS: dict[int, type[Expert1] | type[Expert2]] = {1: Expert1, 2: Expert2}
"""The experts, by the number of their kind."""

EXPERT_KEYS = ("dim_reducers.", "decoder.", "film_gamma.", "film_beta.")
"""What begins an expert's own keys in a released file; all else is its trunk's."""


# ---------------------------------------------------------------------------------------------------------- ensemble


class VisageOutput(NamedTuple):
    """Logits of one forward pass, each `[B, T, out_px, out_px]`."""

    experts: tuple[Tensor, ...]
    """Each expert's, in the configuration's order."""
    aux: dict[str, Tensor]
    """The auxiliary heads `p23`, `p17`, `p11` of the last expert of kind 2; empty unless asked for."""
    fused: Tensor
    """The ensemble's."""


class VisageNet(nn.Module):
    """Trunk, or trunks, and the experts. The trunk may be bfloat16 while the experts are float32, as released."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.experts)
        self.trunks = nn.ModuleList(InternVideo2(config.trunk) for _ in range(1 if config.shared_trunk else count))
        self.loras = nn.ModuleList(
            Lora(config.trunk, config.lora_rank, config.lora_alpha) for _ in range(count if config.lora_rank else 0)
        )
        self.experts = nn.ModuleList(KINDS[kind](config) for kind in config.experts)

    def trunk(self, number: int) -> InternVideo2:
        """The shared trunk, number 0, or that of an expert, counted from 0."""
        trunk = self.trunks[number]
        assert isinstance(trunk, InternVideo2)
        return trunk

    def forward(self, clip_BCTHW: Tensor, aux: bool | None = None) -> VisageOutput:
        """A window of normalised RGB frames `[B, 3, T, px, px]` (see `preprocess`) -> logits of every frame.

        The auxiliary heads run in training mode, or when `aux` says so.
        """
        clip_BCTHW = clip_BCTHW.to(self.trunk(0).cls_token.dtype)
        auxiliary: dict[str, Tensor] = {}
        logits: list[Tensor] = []
        streams: list[Tensor] = []
        for number, expert in enumerate(self.experts):
            if not streams or self.loras or not self.config.shared_trunk:
                trunk = self.trunk(0 if self.config.shared_trunk else number)
                streams = trunk(clip_BCTHW, self.config.taps, self.loras[number] if self.loras else None)
            if isinstance(expert, Expert1):
                logits.append(expert(streams))
            else:
                logits_BTHW, auxiliary = expert(streams, self.training if aux is None else aux)
                logits.append(logits_BTHW)
        return VisageOutput(tuple(logits), auxiliary, fuse(logits, self.config.weights, self.config.fusion))

    def load_expert(self, number: int, state: Mapping[str, Tensor], *, source: str = "") -> LoadAccount:
        """Load a released expert's tensors as expert `number`, counted from 1; every key is accounted for.

        Its LoRA goes beside the shared trunk, or, with a trunk per expert, merged into that expert's own. `state` has
        the released names. Trunk tensors in it must be those of the trunk that the net holds; a net on the meta device
        takes them over. With a trunk per expert, a file that leaves the frozen trunk out wants the base's tensors in
        the same dict, under their published names, with `pos_embed` fitted to the window (`fit_to_window`).
        """
        if not 1 <= number <= len(self.experts):
            raise ValueError(f"there is no expert {number}; the ensemble has {len(self.experts)}")
        source = source or f"the state of expert {number}"
        kind, expected = expert_kind(state, source), self.config.experts[number - 1]
        if kind != expected:
            raise ValueError(
                f"{source} is an expert of kind {kind}; the ensemble's number {number} is of kind {expected}"
            )
        if self.config.shared_trunk and not self.loras:
            raise ValueError(
                f"{source} was tuned on a trunk of its own; build the ensemble with VisageConfig.lora_rank above 0, or "
                "shared_trunk=False"
            )
        own = {key: value for key, value in state.items() if key.startswith(EXPERT_KEYS)}
        rest = {key: value for key, value in state.items() if key not in own}
        accounts = [load_state_dict_exact(self.experts[number - 1], own, source=source)]
        if self.loras:
            lora = self.loras[number - 1]
            assert isinstance(lora, Lora)
            accounts.append(lora.load_released(rest, source=source))
            base = {plain_name(key): value for key, value in rest.items() if ".lora_" not in key}
            if base:
                accounts.append(self._same_trunk(base, source))
        else:
            try:
                merged = merge_lora(rest, alpha=self.config.lora_alpha)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
            accounts.append(load_trunk(self.trunk(number - 1), merged, source=source))
        return LoadAccount(sum(a.loaded for a in accounts), tuple(key for a in accounts for key in a.dropped))

    def _same_trunk(self, base: Mapping[str, Tensor], source: str) -> LoadAccount:
        """Load the first trunk, or see that `base` is the trunk that is held: it must serve every expert."""
        trunk = self.trunk(0)
        held = trunk.state_dict()
        if any(value.is_meta for value in held.values()):
            return load_trunk(trunk, base, source=source)
        for key, value in base.items():
            if key in held and not torch.equal(value.to(held[key]), held[key]):
                raise ValueError(
                    f"{source} brings another trunk, first {key!r}; with a trunk per expert it loads "
                    "(VisageConfig.shared_trunk=False)"
                )
        return LoadAccount(0, tuple(base))


def expert_kind(state: Mapping[str, Tensor], source: str = "the state") -> int:
    """1 or 2: which expert the released names belong to."""
    if "film_gamma.weight" in state:
        return 1
    if "decoder.main_head.pre_2d.0.weight" in state:
        return 2
    raise ValueError(
        f"{source} is no ViSAGE expert: it has neither 'film_gamma.weight' (kind 1) nor "
        f"'decoder.main_head.pre_2d.0.weight' (kind 2); its first key is {next(iter(state), 'none')!r}"
    )


def load_released(
    config: VisageConfig,
    base: str | os.PathLike[str],
    experts: Sequence[str | os.PathLike[str]],
    *,
    orig_t_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VisageNet:
    """The ensemble of a published InternVideo2 file and released experts' files.

    `orig_t_size`: frames that the base was trained with (4 for stage 2). `dtype`: what the trunk is held in. The net is
    built without memory and takes over the files' tensors, moved to `device` one by one: beside the net itself no more
    than one tensor is ever in memory, since the files are mapped. Raises ValueError, one line that names file and key.
    """
    if len(experts) != len(config.experts):
        raise ValueError(f"{len(experts)} files are given for an ensemble of {len(config.experts)} experts")
    with torch.device("meta"):
        net = VisageNet(config)
    published = {key: value for key, value in trunk_state(read_weights(base)).items() if not key.startswith(EXTRAS)}
    published = fit_to_window(published, config.trunk, orig_t_size=orig_t_size, source=str(base))
    if config.shared_trunk:
        published = {key: value.to(device, dtype) for key, value in published.items()}
        load_trunk(net.trunk(0), published, source=str(base))
    for number, path in enumerate(experts, 1):
        state = read_weights(path)
        if not config.shared_trunk and not any(plain_name(key) == "cls_token" for key in state):
            state = published | state
        net.load_expert(number, state, source=str(path))
    net.trunks.to(dtype)
    return net.to(device)


def random_net(
    config: VisageConfig,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> VisageNet:
    """An ensemble that has learned nothing, for trials of speed and machinery: `seed` decides it, on one kind of device.

    Built where and as it is to run, `dtype` being the trunk's: nothing else is ever in memory.
    """
    with torch.device("meta"):
        net = VisageNet(config)
    net.trunks.to(dtype)
    net.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for key, value in net.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=1 / math.sqrt(value[0].numel()), generator=generator)
        else:
            value.fill_(key.endswith(("weight", "gamma", "sigma", "running_var")))
    return net


# ----------------------------------------------------------------------------------------------------------- teacher


def preprocess(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> the trunk's input, `float32 [T, 3, px, px]`, normalised by CLIP's constants."""
    return normalise(resize(frames, px))


def resize(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> `uint8 [T, 3, px, px]`, each frame by itself.

    A plain square resize, as released: the aspect ratio is not kept. Bilinear, antialiased where it shrinks. Raises
    ValueError for anything but frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape) < 1:
        raise ValueError(f"the clip has shape {list(frames.shape)}; a teacher wants [T, H, W, 3] with T of at least 1")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"the clip holds {frames.dtype}; a teacher wants RGB frames as uint8, 0 to 255")
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    return F.interpolate(
        frames.permute(0, 3, 1, 2), size=(px, px), mode="bilinear", align_corners=False, antialias=True
    ).contiguous()


def normalise(frames_TCHW: Tensor) -> Tensor:
    """RGB frames `uint8 [..., 3, H, W]` -> `float32`, by CLIP's constants, on the frames' device."""
    mean, std = _clip_constants(frames_TCHW.device)
    return (frames_TCHW.float() / 255 - mean) / std


@cache
def _clip_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: to bring them there for every batch would wait each time for all that the device has to do.
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return mean, std


def to_bf16(net: nn.Module) -> nn.Module:
    """`net` with its weights in bfloat16, in place, and so all that flows between its layers; returned as well.

    Instead of autocast, under which torch casts all weights anew for every clip, and norms and enlarges in float32, with a
    copy there and back around each. Inside their kernels norms and products add up in float32 either way. What is kept:
    running statistics and the four numbers of the centre prior, which cost nothing.
    """
    for module in net.modules():
        if not isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | CenterBias):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16)
    return net


class Visage:
    """The teacher: a clip in, the ensemble's logits for every frame out.

    A clip is sampled at `config.sample_fps` from every offset in turn; `teachers/windows.py` says how windows are cut,
    filled up and averaged. Without overlap that is what was released.
    """

    def __init__(
        self,
        net: nn.Module,
        config: VisageConfig,
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
    ) -> None:
        """`net` maps `[B, 3, T, px, px]` to a `VisageOutput`, as `VisageNet` does; it is moved to `device`.

        At precision `bf16` its weights become bfloat16 as well; see `to_bf16`.
        """
        self.name = name
        self.net = (to_bf16(net) if how.precision == "bf16" else net).to(device)
        self.config = config
        self.device = torch.device(device)
        self.how = how
        self.batch = BatchSize(self.device, how.batch)
        self._forward = torch.compile(self.net) if how.compile else self.net

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """`uint8 [n, H, W, 3]` RGB -> `uint8 [n, 3, px, px]`; see `resize`."""
        return resize(frames, self.config.trunk.px)

    @torch.inference_mode()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """`uint8 [T, 3, px, px]` from `prepare`, at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        length = self.config.trunk.frames
        windows = cut_windows(len(inputs), self.config.stride(fps), length, self.how.overlap)
        was_training = self.net.training
        self.net.eval()
        try:
            with exact_convolutions() if self.how.precision == "fp32" else nullcontext():
                return infer(self._windows, inputs, windows, length, self.batch)
        finally:
            self.net.train(was_training)

    def _windows(self, frames_BTCHW: Tensor) -> Tensor:
        """Windows `uint8 [B, T, 3, px, px]` -> the ensemble's logits `[B, T, out_px, out_px]`."""
        fused_BTHW: Tensor = self._forward(normalise(frames_BTCHW).transpose(1, 2)).fused
        return fused_BTHW

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """`uint8 [T, H, W, 3]` RGB at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration, overlap, precision and all weights: equal wherever those are."""
        how = {"overlap": self.how.overlap, "precision": self.how.precision}
        digest = hashlib.sha256(json.dumps([self.config.to_dict(), how], sort_keys=True).encode())
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
    def released(
        cls,
        base: str | os.PathLike[str],
        experts: Sequence[str | os.PathLike[str]],
        size: str = "6B",
        *,
        dtype: torch.dtype = torch.float32,
        orig_t_size: int = 4,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
        **fields: Any,
    ) -> "Visage":
        """The released layout on a trunk of `size`, from a published base and any number of experts' files.

        Which kind an expert is, its keys say. `fields` are VisageConfig's, for instance `weights`, `fusion`, or
        `shared_trunk=False` to merge each LoRA into a trunk of its own. See `load_released` for the rest.
        """
        kinds = tuple(expert_kind(read_weights(path), str(path)) for path in experts)
        config = VisageConfig.released(size, experts=kinds, **fields)
        net = load_released(config, base, experts, orig_t_size=orig_t_size, dtype=dtype, device=device)
        return cls(net, config, name=name, device=device, how=how)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
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
        return cls(net, config, name=name, device=device, how=how)

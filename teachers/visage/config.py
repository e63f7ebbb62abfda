"""The shape of a ViSAGE ensemble, and how it samples a video. Plain values; a run's manifest and a weights file keep them."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.teachers import require_whole_numbers
from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.windows import sampling_stride

EXPERT_KINDS = (1, 2)
"""The two expert architectures of the release; see `experts.py`."""

FUSIONS = ("logit", "mean", "max")
"""How logits of several experts become one; see `net.fuse`."""


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
    """Kind of each expert, 1 or 2, in order; any number of experts."""
    shared_trunk: bool = True
    """One trunk under all experts; False: a trunk per expert, with its LoRA merged in."""
    lora_rank: int = 0
    """Rank of each expert's LoRA over the shared trunk (released: 64); 0: all experts read the same streams."""
    lora_alpha: float = 128.0
    """The scale of a LoRA's output is alpha / rank."""
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
    """Initial logits for training from scratch: sigmoid(-3) = 0.05, about the mean of a density map."""
    prior_init: float = 2.0
    """Initial weight of expert 1's centre prior, in logits (released: 0)."""
    sample_fps: float = 8.0
    """Frame rate at which windows sample a video, per second (released: 5)."""
    fusion: str = "logit"
    """How the experts are fused: `logit`, `mean` or `max`; see `fuse`."""
    weights: tuple[float, ...] = (0.5, 0.5)
    """Weight of each expert in the fusion, in their order."""

    def __post_init__(self) -> None:
        require_whole_numbers(self, "reduced_width", "embed_width", "head_width_1", "head_width_2", "norm_groups", "out_px")
        if len(self.taps) != 4 or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"VisageConfig.taps {self.taps} must be four different blocks, shallow to deep")
        if self.taps[0] < 0 or self.taps[-1] >= self.trunk.depth:
            raise ValueError(f"VisageConfig.taps {self.taps} reach outside the trunk's {self.trunk.depth} blocks")
        for name in ("embed_width", "head_width_2"):
            if (width := getattr(self, name)) % self.norm_groups:
                raise ValueError(f"VisageConfig.{name} {width} does not divide into norm_groups {self.norm_groups}")
        for name in ("sample_fps", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"VisageConfig.{name} is {getattr(self, name)}; it must be a positive number")
        if self.fusion not in FUSIONS:
            raise ValueError(f"VisageConfig.fusion is {self.fusion!r}; known are {', '.join(FUSIONS)}")
        if not self.experts or not set(self.experts) <= set(EXPERT_KINDS):
            raise ValueError(f"VisageConfig.experts {self.experts} must each be of kind 1 or 2")
        if not isinstance(self.lora_rank, int) or self.lora_rank < 0 or (self.lora_rank and not self.shared_trunk):
            raise ValueError(f"VisageConfig.lora_rank is {self.lora_rank}; it must be whole, and 0 without a shared trunk")
        if len(self.weights) != len(self.experts) or min(self.weights) < 0 or not sum(self.weights) > 0:
            count = len(self.experts)
            raise ValueError(f"VisageConfig.weights {self.weights} must be {count} numbers >= 0, one per expert, not all 0")

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
        """Plain values for JSON or a weights file; `from_dict` reads them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

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
        return sampling_stride(fps, self.sample_fps)

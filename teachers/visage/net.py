"""The ViSAGE network: one trunk or several, the experts on top, and the fusion of their logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.teachers.internvideo2 import InternVideo2
from distill.teachers.lora import Lora
from distill.teachers.visage.config import FUSIONS, VisageConfig
from distill.teachers.visage.experts import KINDS, Expert1

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width; lower-case h, w: the token grid

FUSION_EPS = 1e-6
"""Probabilities are clamped to [eps, 1 - eps] before fusion, as released, so that no expert can outvote the rest alone."""


class VisageOutput(NamedTuple):
    """Logits of one forward pass, each `[B, T, out_px, out_px]`."""

    experts: tuple[Tensor, ...]
    """Of each expert, in the configuration's order."""
    aux: dict[str, Tensor]
    """Of the auxiliary heads `p23`, `p17`, `p11` of the last expert of kind 2; empty unless requested."""
    fused: Tensor
    """Of the ensemble."""


class VisageNet(nn.Module):
    """One or several trunks, and the experts. The trunk may be bfloat16 while the experts are float32, as released."""

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

        The auxiliary heads run in training mode unless `aux` says otherwise.
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


def fuse(logits: Sequence[Tensor], weights: Sequence[float], mode: str = "logit") -> Tensor:
    """Experts' logits, all of one shape -> the ensemble's logits of that shape.

    `logit`: the weighted mean of the logits, as released. `mean`: the logit of the weighted mean probability. `max`:
    the largest logit among the experts whose weight is not 0. Before that, each logit is clamped to ±log((1 − eps) / eps),
    as released. ValueError for an unknown mode, or unless there is one weight per expert.
    """
    if len(logits) != len(weights):
        raise ValueError(f"{len(logits)} experts are to be fused with {len(weights)} weights; give one weight each")
    bound = math.log((1 - FUSION_EPS) / FUSION_EPS)
    shares = [weight / sum(weights) for weight in weights]
    clamped = [expert.float().clamp(-bound, bound) for expert in logits]
    if mode == "logit":
        return torch.stack([share * expert for share, expert in zip(shares, clamped, strict=True)]).sum(0)
    if mode == "mean":
        mean = torch.stack([share * expert.sigmoid() for share, expert in zip(shares, clamped, strict=True)]).sum(0)
        return mean.logit(eps=FUSION_EPS)
    if mode == "max":
        return torch.stack([expert for share, expert in zip(shares, clamped, strict=True) if share > 0]).amax(0)
    raise ValueError(f"unknown fusion {mode!r}; known are {', '.join(FUSIONS)}")

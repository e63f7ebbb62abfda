"""LoRA (Hu et al., 2022): an expert's fine-tuning of the trunk, as low-rank pairs beside the frozen weights.

A wrapped layer W of the released files is three tensors, `base_layer.weight`, `lora_A.default.weight` and
`lora_B.default.weight`, and computes W x + (alpha / r) · B (A x). There are two ways to run it:

    Lora         side branches, passed to the trunk's forward; one trunk in memory serves every expert
    merge_lora   the products added to a copy of the trunk's weights; plain layers and less work, but a trunk per expert

Merging into a shared trunk and un-merging after each pass is not an option: in bfloat16 a merged sum is rounded, so a
change below 1/512 of a weight is lost and un-merging does not restore the base. The side branches are what the authors'
code computes, can be trained, and cost r·(in + out) multiplications beside in·out: 2.7 % more at 6B with the released r = 64.

Written here, not taken from the library peft: peft depends on transformers, and these pairs must run on a trunk that is
shared between experts and may be on the meta device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.weights import LoadAccount, load_state_dict_exact

if TYPE_CHECKING:
    from distill.teachers.internvideo2 import InternVideo2Config

TRUNK_PREFIX = "encoder.vision_encoder.base_model.model."
"""Prefix of the trunk's keys in the released experts' files."""

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""The layers of a block that have side branches, and their names in the trunk."""

UNUSED = "clip_projector.cross_attn.proj"
"""A wrapped layer of the released files that no tap depends on; their wrapper selected layers by the name's suffix."""


class LoraPair(nn.Module):
    """The side branch of one layer: y + (alpha / r) · B (A (dropout x)), in the type of y."""

    def __init__(self, a: Tensor, b: Tensor, alpha: float, dropout: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout = alpha / len(a), dropout
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The layer's input `x` `[..., in]` and output `y` `[..., out]` -> the output with LoRA; `y` changes in place.

        For the patch embedding, a convolution, `x` has the pixels of one patch in each row.
        """
        return self.parts([y], x)[0]

    def parts(self, ys: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        """The same for an output in parts of equal width, in the order of its channels, each a tensor of its own."""
        dtype = ys[0].dtype
        x = F.dropout(x.to(dtype), self.dropout, self.training)
        a, b = self.lora_A.flatten(1).to(dtype), self.lora_B.flatten(1).to(dtype)
        down_NR = F.linear(x, a).flatten(0, -2)
        # One product that accumulates into y: at r = 64 memory bandwidth is the limit, not arithmetic.
        return [
            y.flatten(0, -2).addmm_(down_NR, part.T, alpha=self.scale).view_as(y)
            for y, part in zip(ys, b.chunk(len(ys)), strict=True)
        ]


class BlockLora(nn.Module):
    """The side branches of one block, one per layer."""

    def __init__(self, config: InternVideo2Config, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()

        def pair(wide_in: int, wide_out: int) -> LoraPair:
            return LoraPair(torch.empty(rank, wide_in), torch.empty(wide_out, rank), alpha, dropout)

        self.qkv = pair(config.width, 3 * config.width)
        self.proj = pair(config.width, config.width)
        self.fc1 = pair(config.width, config.mlp_width)
        self.fc2 = pair(config.mlp_width, config.width)


class Lora(nn.Module):
    """One expert's side branches for a whole trunk: `trunk(clip, taps, lora)`. Initially without effect (B = 0)."""

    def __init__(self, config: InternVideo2Config, rank: int = 64, alpha: float = 128.0, dropout: float = 0.0) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"a LoRA of rank {rank} has no branches; its rank must be at least 1")
        patch = (1, config.patch, config.patch)
        a, b = torch.empty(rank, 3, *patch), torch.empty(config.width, rank, 1, 1, 1)
        self.patch_embed = LoraPair(a, b, alpha, dropout)
        self.blocks = nn.ModuleList(BlockLora(config, rank, alpha, dropout) for _ in range(config.depth))

    def released_state(self) -> dict[str, Tensor]:
        """The pairs under the names of the released files; `load_released` reads them."""
        names = self._names()
        return {names[key]: value for key, value in self.state_dict().items()}

    def load_released(self, state: Mapping[str, Tensor], *, source: str = "the state dict") -> LoadAccount:
        """Load the pairs of a released expert's tensors, every LoRA key accounted for; other keys are ignored."""
        pairs = {key: value for key, value in state.items() if ".lora_" in key}
        unused = (f"{TRUNK_PREFIX}{UNUSED}.",)
        return load_state_dict_exact(self, pairs, drop=unused, source=source, names=self._names())

    def _names(self) -> dict[str, str]:
        """This module's key -> released key."""
        names = {}
        for key in self.state_dict():
            *layer, half = key.split(".")
            place = "patch_embed.proj" if len(layer) == 1 else f"blocks.{layer[1]}.block.{LAYERS[layer[2]]}"
            names[key] = f"{TRUNK_PREFIX}{place}.{half}.default.weight"
        return names


def plain_name(key: str) -> str:
    """The trunk's name for a released key: without the wrappers of the encoder, of checkpointing and of LoRA."""
    name = key.removeprefix(TRUNK_PREFIX)
    if name.startswith("blocks."):
        name = name.replace(".block.", ".", 1)
    return name.replace(".base_layer.", ".")


def merge_lora(state: Mapping[str, Tensor], *, alpha: float = 128.0) -> dict[str, Tensor]:
    """`state` with plain trunk names (`plain_name`), and every LoRA pair added to its weight. A pure function.

    Keys outside the trunk are unchanged. Linear and convolution weights are merged the same way: A maps the inputs of one output
    position to r numbers, B is pointwise. The rank r is A's first dimension; `alpha` is 128 as released (with r = 64, a
    factor of 2). The product is computed in float32 and cast to the weight's type.

    The released files omit the frozen trunk: add the base's tensors, under their published names, to `state` first. The
    pooling head's pair is ignored if its weight is missing. ValueError names the layer that is incomplete or does not fit.
    """
    merged: dict[str, Tensor] = {}
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for key, value in state.items():
        name = plain_name(key)
        if pair := re.fullmatch(r"(.*)\.lora_([AB])\.default\.weight", name):
            (down if pair[2] == "A" else up)[pair[1]] = value
        elif name in merged:
            raise ValueError(f"the trunk weight {name!r} occurs twice; give the base's or the expert's, not both")
        else:
            merged[name] = value
    for layer in sorted(down.keys() | up.keys()):
        if layer not in down or layer not in up:
            half = "lora_B" if layer in down else "lora_A"
            raise ValueError(f"the LoRA of {layer!r} has no {half}.default.weight; the file is incomplete")
        a_RI, b_OR = down[layer].float().flatten(1), up[layer].float().flatten(1)
        weight = merged.get(f"{layer}.weight")
        if weight is None and layer == UNUSED:
            continue
        if weight is None:
            raise ValueError(f"the LoRA of {layer!r} has no base weight; add the frozen trunk's tensors to the state")
        rank = len(a_RI)
        if b_OR.shape[1] != rank or (len(b_OR), a_RI.shape[1]) != weight.flatten(1).shape:
            a, b, w = (list(tensor.shape) for tensor in (down[layer], up[layer], weight))
            raise ValueError(f"the LoRA of {layer!r}, B {b} by A {a}, does not fit its weight {w}")
        delta = ((alpha / rank) * (b_OR @ a_RI)).view(weight.shape)
        merged[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    return merged

"""The UMT video encoder, SalFoM's backbone: a plain vision transformer over all patches of 16 frames at once.

    frames -> embed: a token per patch of 16x16 pixels, frame by frame -> + position -> blocks -> tokens

It is the fine-tuned encoder of *Unmasked Teacher* (Li et al., 2023) with patches of one frame each, sizes B and L, name for
name, including the unused classification head that the files contain. Two windows can share only `embed` of a frame, one
five-hundredth of the work: positions within the window are added before the first block, which attends over all tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import require_whole_numbers

# Shape suffixes: B batch · N frames · T time · P patches of a frame · D width · C channels · H, W pixels
# A heads · S tokens of a window · K width of a head

PUBLISHED_FRAMES = 8
"""Frames of the first training of the published weights; position embeddings of other lengths are interpolated from it."""


@dataclass(frozen=True)
class UmtConfig:
    """Shape of the encoder. `UmtConfig.of("L")` is SalFoM's."""

    width: int
    """Channels of a token, D."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads, each `width / heads` wide. An MLP is four times as wide as `width`."""
    frames: int = 16
    """Frames of one window."""
    px: int = 224
    """Side of the square input, pixels."""
    patch: int = 16
    """Side of one patch, pixels."""
    classes: int = 400
    """Outputs of the classification head, which is unused."""

    def __post_init__(self) -> None:
        require_whole_numbers(self, "width", "depth", "heads", "frames", "px", "patch", "classes")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"UmtConfig.width {self.width} does not divide into {self.heads} heads and into pairs")
        if self.px % self.patch:
            raise ValueError(f"UmtConfig.px {self.px} is not a multiple of the patch side {self.patch}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.px // self.patch

    @classmethod
    def of(cls, size: str, **fields: Any) -> "UmtConfig":
        """The named size, `B` or `L`."""
        if size not in SIZES:
            raise ValueError(f"unknown UMT size {size!r}; known are {', '.join(SIZES)}")
        width, depth, heads = SIZES[size]
        return cls(width, depth, heads, **fields)


# size: (width, depth, heads), as published.
SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16)}


class Attention(nn.Module):
    """Self-attention over all tokens. Queries and values have a bias; a bias of keys would cancel in the softmax."""

    def __init__(self, config: UmtConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv_BSD = F.linear(x_BSD, self.qkv.weight, bias)
        q_BASK, k_BASK, v_BASK = qkv_BSD.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y_BASK = F.scaled_dot_product_attention(q_BASK, k_BASK, v_BASK)
        return self.proj(y_BASK.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """A block's two-layer perceptron, four times as wide as the stream; SalFoM's decoder uses it too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BSD)))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: UmtConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attn(self.norm1(x_BSD))
        return x_BSD + self.mlp(self.norm2(x_BSD))


class PatchEmbed(nn.Module):
    """A token per patch and frame."""

    def __init__(self, config: UmtConfig) -> None:
        super().__init__()
        side = (1, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.width, side, side)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        weight = self.proj.weight[:, :, 0]
        return F.conv2d(frames_NCHW, weight, self.proj.bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


class Umt(nn.Module):
    """The encoder: `embed`, then `forward`. There is no final norm: SalFoM reads the residual stream."""

    def __init__(self, config: UmtConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(sinusoid_pos_embed(config.width, config.frames, config.grid))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.fc_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        """Normalised RGB frames `[N, 3, px, px]` -> tokens `[N, P, D]`, independent of the window. ValueError for other shapes."""
        side = self.config.px
        if frames_NCHW.ndim != 4 or tuple(frames_NCHW.shape[1:]) != (3, side, side):
            raise ValueError(f"UMT got frames of shape {list(frames_NCHW.shape)}; it needs [N, 3, {side}, {side}]")
        return self.patch_embed(frames_NCHW)

    def forward(self, tokens_BTPD: Tensor) -> Tensor:
        """Windows of embedded frames `[B, frames, P, D]` -> the residual stream after the last block, same shape."""
        if tokens_BTPD.shape[1] != self.config.frames:
            raise ValueError(f"UMT got windows of {tokens_BTPD.shape[1]} frames; it needs {self.config.frames}")
        x_BSD = tokens_BTPD.flatten(1, 2) + self.pos_embed
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return x_BSD.unflatten(1, tokens_BTPD.shape[1:3])


def sinusoid_pos_embed(width: int, frames: int, grid: int) -> Tensor:
    """The initial position embedding `[1, frames·grid·grid, width]`; training changes it, so files contain their own.

    Alternating sines and cosines (Vaswani et al., 2017) over the consecutive patches of 8 frames, interpolated linearly to
    another number of frames, as published.
    """
    position_S = torch.arange(PUBLISHED_FRAMES * grid * grid, dtype=torch.float64)
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    phase = position_S[:, None] * rate
    table_SD = torch.stack((phase.sin(), phase.cos()), dim=2).flatten(1).float()
    by_time = table_SD.view(PUBLISHED_FRAMES, -1).T.unsqueeze(0)
    return F.interpolate(by_time, size=frames, mode="linear")[0].T.reshape(1, -1, width)

"""The InternVideo2 video encoder: a plain vision transformer over all patches of all frames of a window at once.

ViSAGE reads its residual stream after a few chosen blocks (the "taps"); there is no final norm and no head. The layout and
the key names are those of the published files (Wang et al., *InternVideo2*, 2024), so that they load by name; the
arithmetic is plain PyTorch without fused kernels.

The published weights work only with three details that no key name shows: the norms of queries and keys run over the full
width, all heads together; the MLP's GELU is the tanh approximation, because the weights were trained with a fused MLP that
has no other; LayerScale multiplies in float32.

In bfloat16 the norms and LayerScale compute in float32 inside one kernel each and round once. An expert's LoRA runs as side
branches (`lora.py`) passed to each call: the trunk's weights never change, so one trunk serves every expert.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.teachers import require_whole_numbers
from distill.teachers.lora import BlockLora, Lora
from distill.teachers.weights import LoadAccount, load_state_dict_exact

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width · A heads · K width of one head

EXTRAS = (
    "clip_pos_embed", "img_pos_embed", "clip_img_pos_embed", "mae_pos_embed",
    "clip_projector.", "clip_decoder.", "final_clip_decoder.", "mae_decoder.", "fc_norm.", "head.",
)  # fmt: skip
"""Keys (or prefixes, with a dot) of published files that no tap depends on: heads of pre-training and classification."""


@dataclass(frozen=True)
class InternVideo2Config:
    """Shape of one trunk. `InternVideo2Config.of("L", frames=20)` starts from the table of sizes."""

    width: int = 64
    """Channels of a token, D."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads; they share `width` evenly."""
    mlp_width: int = 256
    """Hidden channels of a block's MLP."""
    frames: int = 8
    """Frames of one window, T. One token row per frame: patches do not span time."""
    px: int = 112
    """Side of the square input, pixels."""
    patch: int = 14
    """Side of one patch, pixels."""
    layer_scale_init: float = 1e-5
    """Initial LayerScale. The published 1e-5 is for deep trunks trained long; a small one needs about 0.1."""
    pos_embed_init: float = 1.0
    """Scale of the initial position embedding, 1 as published. The embedding hides the content of a token at first; a trunk
    trained for minutes learns faster with less of it."""
    dct_init: bool = False
    """Initialise the patch embedding with a cosine basis (see `dct_patches`) instead of randomly, to train from scratch."""

    def __post_init__(self) -> None:
        require_whole_numbers(self, "width", "depth", "heads", "mlp_width", "frames", "px", "patch")
        if self.width % self.heads:
            raise ValueError(f"InternVideo2Config.width {self.width} does not divide into {self.heads} heads")
        if self.width % 16:
            raise ValueError(f"InternVideo2Config.width {self.width} is not a multiple of 16; see sincos_pos_embed")
        if self.px % self.patch:
            raise ValueError(f"InternVideo2Config.px {self.px} is not a multiple of the patch side {self.patch}")
        for name in ("layer_scale_init", "pos_embed_init"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"InternVideo2Config.{name} is {getattr(self, name)}; it must lie in (0, 1]")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.px // self.patch

    @classmethod
    def of(cls, size: str, *, frames: int = 8, px: int = 224, **fields: Any) -> "InternVideo2Config":
        """The named size (`tiny`, `S`, `B`, `L`, `1B`, `6B`), for windows of `frames` frames of `px` x `px` pixels."""
        if size not in SIZES:
            raise ValueError(f"unknown InternVideo2 size {size!r}; known are {', '.join(SIZES)}")
        shape = dict(zip(("width", "depth", "heads", "mlp_width"), SIZES[size], strict=True))
        return cls(**(shape | {"frames": frames, "px": px} | fields))


# size: (width, depth, heads, MLP width); all but `tiny` as published.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 4, 4, 256),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "1B": (1408, 40, 16, 6144),
    "6B": (3200, 48, 25, 12800),
}


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, in float32 whatever the stream's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # torch computes a half-precision rms_norm in float32, but requires equal types.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=1e-6)


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch: stream + branch · gamma.

    One fused operation in float32, rounded once: at gamma 1e-5 a half-precision product would lose the branch.
    """

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, stream: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(stream, branch.to(stream.dtype), self.gamma.to(stream.dtype))


class Attention(nn.Module):
    """Self-attention over all tokens of the window."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = RMSNorm(config.width)
        self.k_norm = RMSNorm(config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor, lora: BlockLora | None = None) -> Tensor:
        # Three products, because parts of one would be strided, and the norms would copy them first.
        parts = [F.linear(x_BND, weight) for weight in self.qkv.weight.chunk(3)]
        q_BND, k_BND, v_BND = parts if lora is None else lora.qkv.parts(parts, x_BND)
        q_BANK, k_BANK, v_BANK = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q_norm(q_BND), self.k_norm(k_BND), v_BND)
        )
        y_BANK = F.scaled_dot_product_attention(q_BANK, k_BANK, v_BANK)
        return linear(self.proj, y_BANK.transpose(1, 2).flatten(2), lora, "proj")


class Mlp(nn.Module):
    """The block's two-layer perceptron."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BND: Tensor, lora: BlockLora | None = None) -> Tensor:
        hidden_BNE = F.gelu(linear(self.fc1, x_BND, lora, "fc1"), approximate="tanh")
        return linear(self.fc2, hidden_BNE, lora, "fc2")


def linear(layer: nn.Module, x: Tensor, lora: nn.Module | None, name: str) -> Tensor:
    """`layer(x)`, plus the side branch that `lora` has for the layer under `name`."""
    y: Tensor = layer(x)
    return y if lora is None else getattr(lora, name)(y, x)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width, config.layer_scale_init)
        self.norm2 = RMSNorm(config.width)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width, config.layer_scale_init)

    def forward(self, x_BND: Tensor, lora: BlockLora | None = None) -> Tensor:
        x_BND = self.ls1(x_BND, self.attn(self.norm1(x_BND), lora))
        return self.ls2(x_BND, self.mlp(self.norm2(x_BND), lora))


class PatchEmbed(nn.Module):
    """One token per patch and frame."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        side = (1, config.patch, config.patch)
        self.proj = nn.Conv3d(3, config.width, kernel_size=side, stride=side)
        if config.dct_init:
            basis = dct_patches(config.width, config.patch)
            with torch.no_grad():
                self.proj.weight[: len(basis)] = basis.unsqueeze(2)

    def forward(self, clip_BCTHW: Tensor, lora: Lora | None = None) -> Tensor:
        # A product of patches and weights: a bfloat16 convolution over three channels is slow in cuDNN, and some versions lack it.
        side = self.proj.kernel_size[-1]
        cut_BCThpwp = clip_BCTHW.unflatten(4, (-1, side)).unflatten(3, (-1, side))
        patches_BNP = cut_BCThpwp.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        tokens_BND = F.linear(patches_BNP, self.proj.weight.flatten(1), self.proj.bias)
        return tokens_BND if lora is None else lora.patch_embed(tokens_BND, patches_BNP)


class InternVideo2(nn.Module):
    """The trunk: a window of frames in, token streams after the tapped blocks out.

    Built under `with torch.device("meta")` it takes no memory; `load_state_dict_exact` then assigns a file's tensors.
    """

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        """Recompute the activations inside blocks in the backward pass instead of storing them."""
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        pos_embed = sincos_pos_embed(config.width, config.frames, config.grid)
        self.pos_embed = nn.Parameter(config.pos_embed_init * pos_embed)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, clip_BCTHW: Tensor, taps: Sequence[int], lora: Lora | None = None) -> list[Tensor]:
        """The residual stream after each block in `taps` (counted from 0), in the given order.

        `clip_BCTHW`: normalised RGB `[B, 3, frames, px, px]`. `lora`: the side branches to run with. Each result is
        `[B, 1 + frames·grid·grid, width]`: the CLS token, then the patches by time, row and column. Blocks after the last
        tap do not run. ValueError for a clip of another shape, or a tap that is not a block.
        """
        config = self.config
        expected = (3, config.frames, config.px, config.px)
        if clip_BCTHW.ndim != 5 or tuple(clip_BCTHW.shape[1:]) != expected:
            raise ValueError(
                f"the video trunk got a clip of shape {list(clip_BCTHW.shape)}; "
                f"its configuration needs [B, {', '.join(map(str, expected))}]"
            )
        if not taps or min(taps) < 0 or max(taps) >= config.depth:
            raise ValueError(f"taps {list(taps)} are not blocks of a trunk with {config.depth} of them, counted from 0")
        tokens_BND = self.patch_embed(clip_BCTHW, lora)
        cls_B1D = self.cls_token.expand(len(tokens_BND), -1, -1)
        x_BND = torch.cat((cls_B1D, tokens_BND), dim=1) + self.pos_embed
        streams: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(taps) + 1]):
            branches = None if lora is None else lora.blocks[index]
            if self.checkpointing and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, branches, use_reentrant=False)
            else:
                x_BND = block(x_BND, branches)
            if index in taps:
                streams[index] = x_BND
        return [streams[tap] for tap in taps]


def sincos_pos_embed(width: int, frames: int, grid: int) -> Tensor:
    """The initial position embedding `[1, 1 + frames·grid·grid, width]`: sines and cosines, zero for the CLS token.

    The first quarter of the channels encodes time, the rest position (half of it column, half row), as published.
    """

    def waves(positions_N: Tensor, channels: int) -> Tensor:
        rate = 10000.0 ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
        phase = positions_N.double()[:, None] * rate
        return torch.cat((phase.sin(), phase.cos()), dim=1)

    t, y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, (frames, grid, grid)), indexing="ij"))
    in_time, in_space = width // 4, width * 3 // 8
    patches_ND = torch.cat((waves(t, in_time), waves(x, in_space), waves(y, in_space)), dim=1)
    return torch.cat((torch.zeros(1, width), patches_ND.float())).unsqueeze(0)


def dct_patches(width: int, patch: int) -> Tensor:
    """The `width` lowest-frequency patterns of a 2-D cosine transform in colour, `[<= width, 3, patch, patch]`.

    They are whitened for natural images, whose amplitudes fall as 1/f (Field, 1987), so that all filters respond with about
    equal variance. Random filters respond mostly to brightness, and training would spend its first hundreds of steps
    learning edges. The colour axes are lightness and two opponent axes, these up to half of lightness's frequency.
    """
    wave = torch.arange(patch, dtype=torch.float64)
    basis = torch.cos(math.pi / patch * torch.outer(wave, wave + 0.5)) * math.sqrt(2 / patch)
    basis[0] /= math.sqrt(2)  # orthonormal rows
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    places = itertools.product(range(3), range(patch), range(patch))
    patterns = sorted((math.hypot(v, u) * (2 if colour else 1), colour, v, u) for colour, v, u in places)
    filters = []
    for _, colour, v, u in patterns[:width]:
        # 1/f whitening; a patch's mean contains all frequencies below one cycle. Opponent contrast is about a third.
        gain = max(0.5, math.hypot(v, u)) * 2 / patch * (3 if colour else 1)
        filters.append(gain * colours[colour].view(3, 1, 1) * torch.outer(basis[v], basis[u]))
    return torch.stack(filters).float()


def resize_pos_embed(
    pos_embed: Tensor, config: InternVideo2Config, *, orig_t_size: int, orig_grid: int | None = None
) -> Tensor:
    """A position embedding `[1, 1 + T·h·w, D]` resized for `config`: linearly over time, then bicubically over space.

    `orig_t_size` is the number of frames the file was trained with, 4 for stage 2, 8 for stage 1 and the distilled models;
    the tensor does not show it. `orig_grid` is the file's patches per side where they differ from `config.grid`. ValueError
    if the tensor has another size.
    """
    grid = config.grid if orig_grid is None else orig_grid
    count, width = pos_embed.shape[1] - 1, pos_embed.shape[2]
    if count != orig_t_size * grid * grid:
        frames, rest = divmod(count, grid * grid)
        way_out = "nor any other number of frames; set orig_t_size and orig_grid to the file's values"
        if not rest:
            way_out = f"but {frames} frames; set orig_t_size={frames}"
        expected = f"orig_t_size={orig_t_size} frames of {grid}x{grid}"
        raise ValueError(f"pos_embed holds {count} patch positions, which is not {expected} {way_out}")
    if (orig_t_size, grid) == (config.frames, config.grid):
        return pos_embed
    cls_11D, patches_1ND = pos_embed[:, :1].float(), pos_embed[:, 1:].float()
    by_time = patches_1ND.reshape(orig_t_size, grid * grid * width).T.unsqueeze(0)  # [1, h·w·D, T]
    by_time = F.interpolate(by_time, size=config.frames, mode="linear", align_corners=False)
    maps_TDHW = by_time[0].T.reshape(config.frames, grid, grid, width).permute(0, 3, 1, 2)
    if grid != config.grid:
        maps_TDHW = F.interpolate(maps_TDHW, size=(config.grid, config.grid), mode="bicubic", align_corners=False)
    patches_1ND = maps_TDHW.permute(0, 2, 3, 1).reshape(1, -1, width)
    return torch.cat((cls_11D, patches_1ND), dim=1).to(pos_embed.dtype)


def trunk_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The video encoder's tensors of a published file (see `read_weights`), under the names this module uses.

    Of a multi-modal file these are the keys under `vision_encoder.`, without text and audio encoders and projections.
    """
    prefix = "vision_encoder."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or dict(state)


def fit_to_window(
    state: Mapping[str, Tensor], config: InternVideo2Config, *, orig_t_size: int | None = None, source: str = "the state dict"
) -> dict[str, Tensor]:
    """`state` with its position embedding, if it has one, fitted to `config` by `resize_pos_embed`.

    Without `orig_t_size` the file must have been trained with the window's number of frames. Errors name `source`.
    """
    pos_embed = state.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3:  # loading reports it
        return dict(state)
    try:
        fitted = resize_pos_embed(pos_embed, config, orig_t_size=orig_t_size or config.frames)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return {**state, "pos_embed": fitted}


def load_trunk(
    trunk: InternVideo2, state: Mapping[str, Tensor], *, orig_t_size: int | None = None, source: str = "the state dict"
) -> LoadAccount:
    """Load `state` (published names, see `trunk_state`) into `trunk`, every key accounted for; see `fit_to_window`."""
    state = fit_to_window(state, trunk.config, orig_t_size=orig_t_size, source=source)
    return load_state_dict_exact(trunk, state, drop=EXTRAS, source=source)

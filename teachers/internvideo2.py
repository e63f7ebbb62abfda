"""The InternVideo2 video encoder: a plain vision transformer over all patches of all frames of a window at once.

Everything ViSAGE looks at comes from here: the residual stream, read ("tapped") after a few chosen blocks. There is no
final norm and no head. The layout and the key names are those of the published files (Wang et al., *InternVideo2*,
2024), so that they load by name; the arithmetic is plain PyTorch and needs no fused kernels.

Three details decide whether the published weights work, and no key name tells them:
the norms of queries and keys run over the full width, all heads together; the MLP's GELU is the tanh form, for the
weights were trained with a fused MLP that has only that one; LayerScale multiplies in float32.

This file knows torch alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width · A heads · K width of one head

# What published files hold beside the trunk: heads of the pre-training, which no tap depends on.
EXTRAS = (
    "clip_pos_embed",
    "img_pos_embed",
    "clip_img_pos_embed",
    "clip_projector.",
    "clip_decoder.",
    "final_clip_decoder.",
)


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
    """Start of the LayerScale. The published 1e-5 is for deep trunks trained long; a small one wants about 0.1."""
    pos_embed_init: float = 1.0
    """Size of the position embedding's start, 1 as published. It is a constant that every token carries beside what it
    sees; a trunk trained for minutes sees sooner with less of it."""
    dct_init: bool = False
    """Start the patch embedding as a cosine basis (see `dct_patches`) instead of at random. For training from scratch."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_width", "frames", "px", "patch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"InternVideo2Config.{name} is {value!r}; it must be a whole number of at least 1")
        if self.width % self.heads:
            raise ValueError(f"InternVideo2Config.width {self.width} does not divide into {self.heads} heads")
        if self.width % 16:
            raise ValueError(
                f"InternVideo2Config.width {self.width} is not a multiple of 16, which the position embedding's split "
                "into time (1/4) and space (3/4) sine-cosine pairs needs"
            )
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
        width, depth, heads, mlp_width = SIZES[size]
        return cls(
            **{
                "width": width,
                "depth": depth,
                "heads": heads,
                "mlp_width": mlp_width,
                "frames": frames,
                "px": px,
                **fields,
            }
        )


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
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), eps=1e-6).to(x.dtype)


class LayerScale(nn.Module):
    """A learned gain per channel, multiplied in float32: at 1e-5 a half-precision product would lose it."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.gamma.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention over all tokens of the window."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = RMSNorm(config.width)
        self.k_norm = RMSNorm(config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, dim=-1)
        q_BANK, k_BANK, v_BANK = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q_norm(q_BND), self.k_norm(k_BND), v_BND)
        )
        y_BANK = F.scaled_dot_product_attention(q_BANK, k_BANK, v_BANK)
        y_BND: Tensor = self.proj(y_BANK.transpose(1, 2).flatten(2))
        return y_BND


class Mlp(nn.Module):
    """The block's two-layer perceptron."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        y_BND: Tensor = self.fc2(F.gelu(self.fc1(x_BND), approximate="tanh"))
        return y_BND


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

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.ls1(self.attn(self.norm1(x_BND)))
        y_BND: Tensor = x_BND + self.ls2(self.mlp(self.norm2(x_BND)))
        return y_BND


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

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        tokens_BND: Tensor = self.proj(clip_BCTHW).flatten(2).transpose(1, 2)
        return tokens_BND


class InternVideo2(nn.Module):
    """The trunk: a window of frames in, token streams after the tapped blocks out.

    Built under `with torch.device("meta")` it takes no memory, whatever the size; `load_state_dict_exact` then puts
    the file's own tensors in place.
    """

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
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

    def forward(self, clip_BCTHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """The residual stream after each block in `taps` (counted from 0), in the order asked.

        `clip_BCTHW`: normalised RGB `[B, 3, frames, px, px]`. Each result is `[B, 1 + frames·grid·grid, width]`: the
        CLS token, then the patches, time slowest, rows before columns. Blocks after the last tap do not run.
        """
        config = self.config
        expected = (3, config.frames, config.px, config.px)
        if clip_BCTHW.ndim != 5 or tuple(clip_BCTHW.shape[1:]) != expected:
            raise ValueError(
                f"the video trunk got a clip of shape {list(clip_BCTHW.shape)}; "
                f"its configuration wants [B, {', '.join(map(str, expected))}]"
            )
        if not taps or min(taps) < 0 or max(taps) >= config.depth:
            raise ValueError(f"taps {list(taps)} are not blocks of a trunk with {config.depth} of them, counted from 0")
        tokens_BND = self.patch_embed(clip_BCTHW)
        cls_B1D = self.cls_token.expand(len(tokens_BND), -1, -1)
        x_BND = torch.cat((cls_B1D, tokens_BND), dim=1) + self.pos_embed
        streams: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(taps) + 1]):
            x_BND = block(x_BND)
            if index in taps:
                streams[index] = x_BND
        return [streams[tap] for tap in taps]


def sincos_pos_embed(width: int, frames: int, grid: int) -> Tensor:
    """The position embedding's start `[1, 1 + frames·grid·grid, width]`: sines and cosines, zero for the CLS token.

    The first quarter of the channels tells the time, the rest the place (half of it column, half row), as published.
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
    """The coarsest `width` patterns of a two-dimensional cosine transform in colour, `[<= width, 3, patch, patch]`.

    Each is a filter whose output varies by about as much as any other's on natural images, whose amplitudes fall as 1/f
    (Field, 1987). A random start sees little but brightness, and spends its first hundreds of steps finding edges. The
    colours are lightness and two opponent axes; colour is taken up to half the frequency of lightness.
    """
    wave = torch.arange(patch, dtype=torch.float64)
    basis = torch.cos(math.pi / patch * torch.outer(wave, wave + 0.5)) * math.sqrt(2 / patch)
    basis[0] /= math.sqrt(2)  # orthonormal rows
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    patterns = sorted(
        (math.hypot(v, u) * (2 if colour else 1), colour, v, u)
        for colour in range(3)
        for v in range(patch)
        for u in range(patch)
    )
    filters = []
    for _, colour, v, u in patterns[:width]:
        # 1/f whitening; a patch's mean stands for all that is below one cycle. Opponent contrast is about a third.
        gain = max(0.5, math.hypot(v, u)) * 2 / patch * (3 if colour else 1)
        filters.append(gain * colours[colour].view(3, 1, 1) * torch.outer(basis[v], basis[u]))
    return torch.stack(filters).float()


def resize_pos_embed(
    pos_embed: Tensor, config: InternVideo2Config, *, orig_t_size: int, orig_grid: int | None = None
) -> Tensor:
    """A position embedding `[1, 1 + T·h·w, D]` fitted to `config`: linear over time, then bicubic over space.

    `orig_t_size` is the number of frames the file was trained with, 4 for stage 2 and 8 for stage 1 and the distilled
    ones; it cannot be read off the tensor, so it must be said. `orig_grid` is the file's patches per side where they
    differ from `config.grid`.
    """
    grid = config.grid if orig_grid is None else orig_grid
    count, width = pos_embed.shape[1] - 1, pos_embed.shape[2]
    if count != orig_t_size * grid * grid:
        fits = f"{count // grid**2} frames" if count % grid**2 == 0 else "another grid as well"
        raise ValueError(
            f"pos_embed holds {count} patch positions, but orig_t_size={orig_t_size} frames of {grid}x{grid} patches "
            f"make {orig_t_size * grid * grid}; {fits} would fit: set orig_t_size (and orig_grid) to the file's own"
        )
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


class LoadAccount(NamedTuple):
    """What became of a file's keys."""

    loaded: int
    """Keys that went into the module: all of the module's."""
    dropped: tuple[str, ...]
    """Keys left out by name, known not to matter."""


def trunk_state(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """The video encoder's tensors out of a published file's content, under the names this module uses.

    Unwraps `model` or `module`, takes what is under `vision_encoder.` where a multi-modal file has that, and leaves the
    text and audio encoders and their projections behind.
    """
    for wrapper in ("model", "module"):
        if isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
    prefix = "vision_encoder."
    if any(key.startswith(prefix) for key in raw):
        return {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    return dict(raw)


def load_trunk(
    trunk: InternVideo2, state: Mapping[str, Tensor], *, orig_t_size: int | None = None, orig_grid: int | None = None
) -> LoadAccount:
    """Load `state` (names as published, see `trunk_state`) into `trunk`, every key accounted for.

    Where `orig_t_size` is given the position embedding is first fitted to the trunk by `resize_pos_embed`.
    """
    state = dict(state)
    if orig_t_size is not None and "pos_embed" in state:
        state["pos_embed"] = resize_pos_embed(
            state["pos_embed"], trunk.config, orig_t_size=orig_t_size, orig_grid=orig_grid
        )
    return load_state_dict_exact(trunk, state, drop=EXTRAS)


def load_state_dict_exact(
    module: nn.Module, state: Mapping[str, Tensor], *, drop: Sequence[str] = (), source: str = "the state dict"
) -> LoadAccount:
    """Load `state` into `module` if it holds exactly the module's keys, beside those that `drop` names.

    An entry of `drop` is a key, or with a dot at its end a prefix. Anything missing, left over or of another shape is a
    ValueError that names `source`, the first such key of each kind and how many there are, and nothing is loaded. A
    module on the meta device takes over the tensors themselves; any other copies from them.
    """
    dropped = tuple(
        key for key in state if any(key == name or (name.endswith(".") and key.startswith(name)) for name in drop)
    )
    kept = {key: value for key, value in state.items() if key not in dropped}
    own = module.state_dict()
    missing = [key for key in own if key not in kept]
    unexpected = [key for key in kept if key not in own]
    reshaped = [key for key in own if key in kept and kept[key].shape != own[key].shape]
    if missing or unexpected or reshaped:
        faults = []
        if missing:
            faults.append(
                f"{len(missing)} keys are missing, first {missing[0]!r} of shape {list(own[missing[0]].shape)}"
            )
        if reshaped:
            key = reshaped[0]
            faults.append(
                f"{len(reshaped)} keys have another shape, first {key!r}: {list(kept[key].shape)}, "
                f"expected {list(own[key].shape)}"
            )
        if unexpected:
            faults.append(f"{len(unexpected)} keys are unexpected, first {unexpected[0]!r}")
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults)}")
    on_meta = any(tensor.is_meta for tensor in own.values())
    module.load_state_dict(kept, assign=on_meta)
    return LoadAccount(loaded=len(kept), dropped=dropped)

"""SalFoM: a large video transformer that maps 16 frames to the saliency of the last one.

    frames -> UMT, 16 frames of 14x14 tokens -> attention in time at each pixel: 16 -> 8 -> 4 -> 1 frames ──┐
                                             -> 3-D convolutions, 16 -> 8 -> 4 -> 2 -> 1 frames ────────────┼-> fuse
                                             -> 16 -> 1 frame at once, then 2-D convolutions ───────────────┘

The network is the released one (Moradi et al., *SalFoM*, 2024), layer for layer and name for name, including unused layers,
so that the authors' file loads. The branches are connected: the second adds the first's features at 8 and at 4 frames, the
third adds the second's, folded over time.

Cost: the encoder attends over all tokens of a window in every block, so windows that share 15 frames can share only the
patch embedding, which is computed once per frame and batch. Labelling every n-th frame (`every`) costs one n-th.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import require_whole_numbers
from distill.teachers.frames import IMAGENET, normalise, resize
from distill.teachers.last_frame import LastFrameTeacher, blur
from distill.teachers.umt import Mlp, Umt, UmtConfig
from distill.teachers.weights import fingerprint

# Shape suffixes: B batch · N frames or sequences · T time · C channels · H, W pixels · P patches of a frame · D width
# A heads · K width of a head · R windows in time

WINDOW = 16
"""Frames of a window; the decoder halves their number four times."""


@dataclass(frozen=True)
class SalfomConfig:
    """Shape of the encoder, and how it labels a video. The defaults are as released, except `cell` and `finish`."""

    encoder: UmtConfig = field(default_factory=lambda: UmtConfig.of("L"))
    """The released weights are of size L."""
    every: int = 1
    """Frames from one window to the next; maps in between are interpolated."""
    cell: int = 4
    """Each cell of the labels is the mean of `cell` x `cell` pixels of the network's map."""
    finish: tuple[int, int] | None = None
    """Height and width of the video, to resize maps to that size and blur them over 11 pixels, as the authors do before
    saving. None skips this, because it makes no visible difference at the labels' resolution."""

    def __post_init__(self) -> None:
        if self.encoder.frames != WINDOW:
            raise ValueError(f"SalfomConfig.encoder has windows of {self.encoder.frames} frames; it must be {WINDOW}")
        require_whole_numbers(self, "every")
        sides = self.finish or (self.side, self.side)
        if len(sides) != 2 or min(sides) < 1 or self.cell < 1 or any(side % self.cell for side in sides):
            raise ValueError(f"SalfomConfig.cell {self.cell!r} does not divide a map of {'x'.join(map(str, sides))}")

    @property
    def side(self) -> int:
        """Side of the network's map, pixels: 16 for each patch."""
        return 16 * self.encoder.grid


class TimeAttention(nn.Module):
    """Self-attention within short windows in time, with a learned bias per distance in time."""

    relative_position_index: Tensor

    def __init__(self, width: int, run: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2 * run - 1, heads))
        self.register_buffer("relative_position_index", relative_positions(run))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_NRTC: Tensor, mask_RTT: Tensor | None) -> Tensor:
        """Windows `[N, R, T, C]` -> the same shape; `mask_RTT` is added to the attention logits of each window."""
        run = x_NRTC.shape[2]
        q, k, v = self.qkv(x_NRTC).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each [N, R, A, T, K]
        bias_TTA = self.relative_position_bias_table[self.relative_position_index[:run, :run]]
        attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias_TTA.permute(2, 0, 1)
        if mask_RTT is not None:
            attention = attention + mask_RTT.unsqueeze(1)
        return self.proj((attention.softmax(-1) @ v).transpose(2, 3).flatten(3))


def relative_positions(run: int) -> Tensor:
    """`[run, run]`: i - j, shifted so that the smallest is 0."""
    step = torch.arange(run)
    return step[:, None] - step[None, :] + run - 1


class TimeBlock(nn.Module):
    """A Swin block whose windows are one pixel wide (Liu et al., *Video Swin Transformer*, 2022)."""

    def __init__(self, width: int, run: int, shift: int, heads: int = 8) -> None:
        super().__init__()
        self.run, self.shift = run, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = TimeAttention(width, run, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x_NTC: Tensor) -> Tensor:
        x_NTC = x_NTC + self._attend(self.norm1(x_NTC))
        return x_NTC + self.mlp(self.norm2(x_NTC))

    def _attend(self, x_NTC: Tensor) -> Tensor:
        steps = x_NTC.shape[1]
        run = min(self.run, steps)
        if not self.shift or run == steps:
            return self.attn(x_NTC.unflatten(1, (-1, run)), None).flatten(1, 2)
        # Shifted windows: the last one contains the end of the sequence and its start, which are masked from each other.
        at_end = torch.arange(run, device=x_NTC.device) < run - self.shift
        mask_RTT = x_NTC.new_zeros(steps // run, run, run)
        mask_RTT[-1] = -100.0 * (at_end[:, None] != at_end[None, :])
        y_NRTC = self.attn(x_NTC.roll(-self.shift, 1).unflatten(1, (-1, run)), mask_RTT)
        return y_NRTC.flatten(1, 2).roll(self.shift, 1)


class TimeTransformer(nn.Module):
    """Merges every `run` frames into one, then six blocks of attention in time, separately for each pixel."""

    def __init__(self, inputs: int, width: int, run: int) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv3d(inputs, width, (run, 1, 1), (run, 1, 1))))
        blocks = [TimeBlock(width, run, run // 2 if number % 2 else 0) for number in range(6)]
        self.layers = nn.Sequential(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.norm = nn.LayerNorm(width)  # unused

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = self.patch_embed(x_BCTHW)
        batch, _, _, height, width = x_BCTHW.shape
        x_NTC = self.layers(x_BCTHW.permute(0, 3, 4, 2, 1).flatten(0, 2))
        return x_NTC.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2)


def larger(x: Tensor, times: int) -> Tensor:
    """Images or clips up-sampled `times` in space, bilinearly."""
    if x.ndim == 4:
        return F.interpolate(x, scale_factor=times, mode="bilinear")
    return F.interpolate(x, scale_factor=(1, times, times), mode="trilinear")


class SalfomNet(nn.Module):
    """Encoder and decoder; 402,945,443 parameters at the released size."""

    def __init__(self, encoder: UmtConfig) -> None:
        super().__init__()
        width = encoder.width
        self.encoder = Umt(encoder)

        conv = partial(nn.Conv3d, bias=False)
        halve = partial(conv, kernel_size=(2, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1))
        flat = partial(conv, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        fold = partial(nn.Conv3d, kernel_size=(3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        image = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)

        self.conv_1 = flat(width, 512)
        self.conv_2 = halve(512, 256)
        self.conv_3 = flat(256, 128)
        self.conv_4 = halve(128, 64)
        self.conv_5 = halve(64, 32)
        self.conv_6 = halve(32, 16)
        self.conv_7, self.conv_8, self.conv_9 = image(48, 32), image(32, 16), image(16, 1)

        self.transformer_1 = TimeTransformer(width, 256, 2)
        self.transformer_2 = TimeTransformer(256, 64, 2)
        self.transformer_3 = TimeTransformer(64, 16, 4)

        self.conv_t1_1, self.conv_t1_2 = halve(width, width), halve(width, width)
        self.conv_t1_3, self.conv_t1_4 = halve(width, width), halve(width, width)
        self.conv_t2_1, self.conv_t2_2, self.conv_t2_3 = fold(256, 256), fold(256, 256), fold(256, 256)
        self.conv_t3_1, self.conv_t3_2 = fold(64, 64), fold(64, 64)
        self.conv_t3_3 = fold(64, 64)  # unused
        self.conv_2D_1, self.conv_2D_2, self.conv_2D_3 = image(width, 512), image(512, 256), image(256, 256)
        self.conv_2D_4, self.conv_2D_5, self.conv_2D_6 = image(256, 128), image(128, 64), image(64, 64)
        self.conv_2D_7, self.conv_2D_8, self.conv_2D_9 = image(64, 32), image(32, 16), image(16, 16)
        self.final_map = nn.Conv2d(2, 1, 1)  # unused

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Windows of 16 normalised RGB frames `[B, 3, 16, px, px]` -> logits of the last frames `[B, side, side]`."""
        tokens_NPD = self.encoder.embed(clip_BCTHW.transpose(1, 2).flatten(0, 1))
        return self.from_tokens(tokens_NPD.unflatten(0, (len(clip_BCTHW), -1)))

    def from_tokens(self, tokens_BTPD: Tensor) -> Tensor:
        """Windows of frames embedded by `encoder.embed`, `[B, 16, P, D]` -> logits `[B, side, side]`."""
        grid = self.encoder.config.grid
        y_BTPD = self.encoder(tokens_BTPD)
        return self.decode(y_BTPD.unflatten(2, (grid, grid)).permute(0, 4, 1, 2, 3))

    def decode(self, y_BCTHW: Tensor) -> Tensor:
        """The encoder's tokens as features `[B, D, 16, grid, grid]` -> logits `[B, 16·grid, 16·grid]`."""
        of_8 = self.transformer_1(y_BCTHW)
        of_4 = larger(self.transformer_2(of_8), 4)
        by_attention = larger(self.transformer_3(of_4), 4).squeeze(2)

        at_8 = F.relu(self.conv_2(F.relu(self.conv_1(y_BCTHW)))) + of_8
        z = larger(F.relu(self.conv_3(at_8)), 2)
        at_4 = larger(F.relu(self.conv_4(z)), 2) + of_4
        z = larger(F.relu(self.conv_5(at_4)), 2)
        by_volume = larger(F.relu(self.conv_6(z)), 2).squeeze(2)

        z = y_BCTHW
        for halve in (self.conv_t1_1, self.conv_t1_2, self.conv_t1_3, self.conv_t1_4):
            z = F.relu(halve(z))
        z = z.squeeze(2)
        for conv in (self.conv_2D_1, self.conv_2D_2, self.conv_2D_3):
            z = F.relu(conv(z))
        for fold in (self.conv_t2_1, self.conv_t2_2, self.conv_t2_3):
            at_8 = F.relu(fold(at_8))
        z = F.relu(self.conv_2D_4(z + at_8.squeeze(2)))
        z = larger(F.relu(self.conv_2D_5(z)), 2)
        z = larger(F.relu(self.conv_2D_6(z)), 2)
        for fold in (self.conv_t3_1, self.conv_t3_2):
            at_4 = F.relu(fold(at_4))
        z = F.relu(self.conv_2D_7(z + at_4.squeeze(2)))
        z = larger(F.relu(self.conv_2D_8(z)), 2)
        by_image = larger(F.relu(self.conv_2D_9(z)), 2)

        fused = torch.cat((by_image, by_attention, by_volume), dim=1)
        return self.conv_9(F.relu(self.conv_8(F.relu(self.conv_7(fused))))).squeeze(1)


def window(frame: int, count: int) -> np.ndarray:
    """The 16 frames that end with `frame`; before the clip's start its first frame repeats, as released."""
    return np.maximum(np.arange(frame - WINDOW + 1, frame + 1), 0)


class Salfom(LastFrameTeacher[SalfomNet, SalfomConfig]):
    """The teacher; `load` reads the authors' `SalFoM_DHF1K.pth`."""

    NAME = "salfom"
    CONFIG = SalfomConfig
    window = staticmethod(window)

    def __init__(self, net: SalfomNet, config: SalfomConfig | None = None, **options: Any) -> None:
        super().__init__(net, config, **options)
        if net.encoder.config != self.config.encoder:
            raise ValueError(f"the network's encoder is {net.encoder.config}, not {self.config.encoder}")
        self._from_tokens = torch.compile(self.net.from_tokens) if self.how.compile else self.net.from_tokens

    @classmethod
    def build(cls, config: SalfomConfig) -> SalfomNet:
        return SalfomNet(config.encoder)

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """RGB frames, `uint8 [n, H, W, 3]` -> `uint8 [n, 3, px, px]`; a plain square resize, as released."""
        side = self.config.encoder.px
        return resize(frames, side, side).contiguous()

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration, the precision and all weights."""
        return fingerprint(f"salfom 1 {self.config} {self.how.precision}", self.net)

    def windows_logits(self, frames: Tensor, rows_BT: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.how.precision == "bf16"):
            tokens_NPD = self.net.encoder.embed(normalise(frames, IMAGENET))
            return self._from_tokens(tokens_NPD[rows_BT])

    def finish(self, saliency_Bhw: Tensor) -> Tensor:
        return saliency_Bhw if self.config.finish is None else finish(saliency_Bhw, self.config.finish)


def finish(maps_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The authors' post-processing: maps resized to `size` (height, width) bilinearly, then blurred over 11x11 pixels."""
    scaled = F.interpolate(maps_BHW.unsqueeze(1), size, mode="bilinear").squeeze(1)
    return blur(scaled, 2.0, 5, "reflect")

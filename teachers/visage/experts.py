"""The two experts of ViSAGE: decoders from four token streams of the trunk to one map of logits per frame.

Expert 1 gates its features over time, modulates them with the CLS token (FiLM) and adds a learned centre prior.
Expert 2 fuses all scales and has auxiliary heads for training. Module names are those of the released files.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.visage.config import VisageConfig

# Shape suffixes: B batch · T time · C channels · H, W pixels · N tokens · D width; lower-case h, w: the token grid, g its side
# F frames of all windows · O channels of a convolution · v, u rows and columns of its kernel

AUX_HEADS = ("p23", "p17", "p11")
"""Expert 2's auxiliary heads, named after the tap at which each reads the decoder."""


class EnlargingConv(nn.Conv2d):
    """A 3x3 convolution of features enlarged to `px` x `px`, bilinear, without making the enlarged features.

    Both are linear, so the nine products of weights and features happen on the small grid `g` x `g`. A matrix `[px, 3g]` along
    each axis then enlarges and shifts them (`enlarging_matrix`). The result is the same but for rounding. At the released size
    it takes a twentieth of the arithmetic or less, and no memory for the features that would go in, up to 4 GB in a pass.
    """

    def __init__(self, channels_in: int, channels: int, px: int) -> None:
        super().__init__(channels_in, channels, 3, padding=1, bias=False)
        self.px = px

    def forward(self, x_FCgg: Tensor) -> Tensor:
        """`[F, C, g, g]` -> `[F, channels, px, px]`."""
        kernels_OvuC = self.weight.permute(0, 2, 3, 1)
        products_FhwOvu = F.linear(x_FCgg.permute(0, 2, 3, 1), kernels_OvuC.flatten(0, 2)).unflatten(3, (-1, 3, 3))
        products_FOuwvh = products_FhwOvu.permute(0, 3, 5, 2, 4, 1)
        matrix = enlarging_matrix(x_FCgg.shape[-1], self.px, x_FCgg.device).to(products_FOuwvh)
        rows_FOuwH = F.linear(products_FOuwvh.flatten(4), matrix)
        # Contiguous: as strided it would be one small product for each frame and channel.
        return F.linear(rows_FOuwH.flatten(2, 3).mT.contiguous(), matrix)


def enlarging_matrix(size: int, px: int, device: torch.device) -> Tensor:
    """`[px, 3 * size]`: what each of `size` samples, under each of three kernel positions, adds to each of `px` pixels.

    The rows are those of a linear interpolation, shifted by a pixel to either side, zero beyond the border.
    """
    linear = F.interpolate(torch.eye(size, device=device)[None], size=px, mode="linear", align_corners=False)[0].T
    return F.pad(linear, (0, 0, 1, 1)).unfold(0, px, 1).permute(2, 0, 1).flatten(1)


class ConvToOne(nn.Conv2d):
    """A 3x3 convolution to one channel, as one product for all nine weights and a sum, in float32, of nine shifted maps.

    A GPU's convolution would first copy the features, gigabytes at full size, to another layout.
    """

    def __init__(self, channels_in: int) -> None:
        super().__init__(channels_in, 1, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        """`[F, C, H, W]` -> `[F, 1, H, W]`."""
        kernel_9C = self.weight[0].flatten(1).T
        products_F9N = torch.bmm(kernel_9C.expand(len(x_FCHW), -1, -1), x_FCHW.flatten(2))
        height, width = x_FCHW.shape[2:]
        framed_F9HW = F.pad(products_F9N.unflatten(2, (height, width)), (1, 1, 1, 1))
        assert self.bias is not None
        logits_FHW = self.bias.float()
        for number, map_FHW in enumerate(framed_F9HW.unbind(1)):
            top, left = divmod(number, 3)
            logits_FHW = logits_FHW + map_FHW[:, top : top + height, left : left + width]
        return logits_FHW.unsqueeze(1)


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
    """A gate per channel and frame, computed from the deepest tap and applied to the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        gate_BCT = torch.sigmoid(self.conv(x_BCThw.mean(dim=(3, 4))))
        return gate_BCT[..., None, None]


def projection(channels_in: int, channels: int) -> nn.Sequential:
    """A pointwise convolution. The released layer also resizes to its neighbour's grid; all taps of this trunk share one."""
    return nn.Sequential(OrderedDict(proj=nn.Conv3d(channels_in, channels, 1)))


class CenterBias(nn.Module):
    """Centre prior added to the logits: weight · exp(−((x − cx)² + (y − cy)²) / 2σ²), x and y in [−1, 1], all four learned."""

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
    """Expert 1's decoder, deep to shallow: each tap is gated by the deepest, which has no other effect."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        reduced, embed, head = config.reduced_width, config.embed_width, config.head_width_1
        self.temp_attn = TemporalAttention(reduced)
        self.proj23_attn = nn.Conv3d(reduced, embed, 1)
        self.upsample5 = projection(reduced, embed)
        self.upsample11 = projection(reduced, embed)
        self.proj17 = nn.Conv3d(reduced, embed, 1)
        self.conv17 = ResBlend3d(embed, embed)
        self.blend11 = ResBlend3d(2 * embed, embed)
        self.blend5 = ResBlend3d(2 * embed, embed)
        self.final_head = nn.Sequential(
            EnlargingConv(embed, head, config.out_px), nn.BatchNorm2d(head), nn.ReLU(), ConvToOne(head)
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
        return map_frames(self.final_head, a5) + self.center_bias()


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
        return self.decoder(taps, gamma_BC[..., None, None, None], beta_BC[..., None, None, None])


def normed_conv(channels_in: int, channels: int, groups: int, kernel: int = 1) -> nn.Sequential:
    """3-D convolution, GroupNorm, GELU."""
    conv = nn.Conv3d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, channels), nn.GELU())


class TemporalGate(nn.Module):
    """A gate per channel and frame, computed from the features it gates."""

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
            pointwise = nn.Conv3d(channels_in, channels, 1, bias=False)
            self.shortcut = nn.Sequential(pointwise, nn.GroupNorm(groups, channels))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        y_BCThw = F.gelu(self.norm1(self.conv1(x_BCThw)))
        return F.gelu(self.norm2(self.conv2(y_BCThw)) + self.shortcut(x_BCThw))


class Head2(nn.Module):
    """From decoder features to logits: one convolution over space and time, then a 2-D head per frame, which enlarges."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        embed, head, groups = config.embed_width, config.head_width_2, config.norm_groups
        self.pre_2d = normed_conv(embed, head, groups, kernel=3)
        self.head_2d = nn.Sequential(
            EnlargingConv(head, head, config.out_px), nn.GroupNorm(groups, head), nn.GELU(), ConvToOne(head)
        )
        start_head(self.head_2d, config.logit_init)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        return map_frames(self.head_2d, self.pre_2d(x_BCThw))


class Decoder2(nn.Module):
    """Expert 2's decoder: all taps fused deep to shallow, with an auxiliary head at each of the deeper three steps."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        reduced, embed, groups = config.reduced_width, config.embed_width, config.norm_groups
        projections = (nn.Sequential(OrderedDict(block=normed_conv(reduced, embed, groups))) for _ in range(4))
        self.proj5, self.proj11, self.proj17, self.proj23 = projections
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
    """Multi-scale fusion, with auxiliary heads for training."""

    def __init__(self, config: VisageConfig) -> None:
        super().__init__()
        self.config = config
        self.dim_reducers = dim_reducers(config)
        self.decoder = Decoder2(config)

    def forward(self, streams: Sequence[Tensor], aux: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Four token streams `[B, 1 + T·h·w, D]` -> logits `[B, T, out_px, out_px]`, and with `aux` those of the
        auxiliary heads `p23`, `p17`, `p11`, of the same shape."""
        return self.decoder(reduce_taps(self.dim_reducers, streams, self.config.trunk), aux)


def dim_reducers(config: VisageConfig) -> nn.ModuleList:
    """One pointwise convolution per tap, from the trunk's width to the decoders'."""
    return nn.ModuleList(nn.Conv3d(config.trunk.width, config.reduced_width, 1) for _ in config.taps)


def reduce_taps(reducers: nn.ModuleList, streams: Sequence[Tensor], trunk: InternVideo2Config) -> list[Tensor]:
    """Token streams `[B, 1 + T·h·w, D]` -> features `[B, C, T, h, w]`, without the CLS token."""
    shape, dtype = (trunk.frames, trunk.grid, trunk.grid), next(reducers.parameters()).dtype
    return [
        reducer(stream_BND[:, 1:].to(dtype).transpose(1, 2).unflatten(2, shape))
        for reducer, stream_BND in zip(reducers, streams, strict=True)
    ]


def map_frames(head: nn.Module, x_BCThw: Tensor) -> Tensor:
    """Run a 2-D `head` on each frame of `[B, C, T, h, w]` -> `[B, T, px, px]`.

    Its bilinear up-sampling per frame equals the released trilinear one, because the number of frames stays the same.
    """
    return head(x_BCThw.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x_BCThw), -1)).squeeze(2)


def start_head(head: nn.Sequential, logit: float) -> None:
    """Initialise a head's last convolution so that its output starts near `logit`, with a gradient large enough to learn."""
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.weight[0].numel()))
    nn.init.constant_(last.bias, logit)


KINDS: dict[int, type[Expert1] | type[Expert2]] = {1: Expert1, 2: Expert2}
"""The experts, by the number of their kind."""

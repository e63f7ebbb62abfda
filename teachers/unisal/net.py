"""The UNISAL network. Domain and static input are arguments of every call; see the package's docstring for the structure.

A call with one frame is one step of a video unless it says `static`.
"""

import itertools
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers.weights import load_state_dict_exact, read_weights, with_counters

# Shape suffixes: B batch · S streams · T time · C channels · H, W pixels; lower-case h, w: cells of a coarser grid

SIZES = {"DHF1K": (224, 384), "Hollywood": (224, 416), "UCFSports": (256, 384), "SALICON": (288, 384)}
"""The domains, and the height and width their frames are scaled to."""

STATIC_DOMAIN = "SALICON"
"""The domain of images; the others are of video."""

BLUR = 41
"""Side of the last convolution, pixels."""

Norm = Callable[[int], nn.Module]
"""Channels -> a norm."""


class DomainNorm(nn.Module):
    """A batch norm per domain. Images come in larger batches, so their running averages move faster, as released."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for domain in SIZES:
            momentum = 0.1 if domain == STATIC_DOMAIN else 0.01
            self.add_module(f"bn_{domain}", nn.BatchNorm2d(channels, momentum=momentum))

    def forward(self, x_BChw: Tensor, domain: str) -> Tensor:
        return self.get_submodule(f"bn_{domain}")(x_BChw)


class Chain(nn.Sequential):
    """A sequence of layers; those that depend on the domain get it as an argument."""

    def forward(self, x: Tensor, domain: str) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, domain) if isinstance(layer, (DomainNorm, Chain, InvertedResidual)) else layer(x)
        return x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise 3x3, project without a nonlinearity (Sandler et al., 2018)."""

    def __init__(self, channels_in: int, channels: int, widen: int, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        width = channels_in * widen
        layers: list[nn.Module] = []
        if widen != 1:
            layers = [nn.Conv2d(channels_in, width, 1, bias=False), norm(width), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            norm(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False),
            norm(channels),
        ]
        self.conv = Chain(*layers)
        self.residual = stride == 1 and channels_in == channels
        if widen != 1:
            start_convolutions(self)

    def forward(self, x_BChw: Tensor, domain: str) -> Tensor:
        y_BChw: Tensor = self.conv(x_BChw, domain)
        return x_BChw + y_BChw if self.residual else y_BChw


def start_convolutions(module: nn.Module) -> None:
    """He initialisation over the outputs (fan-out), as in the published MobileNetV2."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)))


def each_frame(function: Callable[..., Tensor], one_by_one: bool, *features_BTChw: Tensor) -> Tensor:
    """Apply `function` to the features of every frame of every stream: `[B, C, h, w]` in and out.

    `one_by_one`, as published for training, runs one time step after another: batch norms then average over the batch
    alone, because frames of one video are too correlated for batch statistics.
    """
    if one_by_one:
        steps = zip(*(x_BTChw.unbind(1) for x_BTChw in features_BTChw), strict=True)
        return torch.stack([function(*step) for step in steps], 1)
    return function(*(x_BTChw.flatten(0, 1) for x_BTChw in features_BTChw)).unflatten(0, features_BTChw[0].shape[:2])


class MobileNetV2(nn.Module):
    """The backbone up to its last convolution, with two taps (Sandler et al., 2018)."""

    # Expansion, channels, blocks, stride of the first block.
    TABLE = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    TAPS = (7, 14)

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        layers: list[nn.Module] = [Chain(nn.Conv2d(3, 32, 3, 2, 1, bias=False), norm(32), nn.ReLU6(inplace=True))]
        channels_in = 32
        for widen, channels, blocks, first_stride in self.TABLE:
            for block in range(blocks):
                stride = first_stride if block == 0 and len(layers) not in self.TAPS else 1
                layers.append(InvertedResidual(channels_in, channels, widen, norm, stride))
                channels_in = channels
        layers.append(Chain(nn.Conv2d(channels_in, 1280, 1, bias=False), norm(1280), nn.ReLU6(inplace=True)))
        self.features = nn.ModuleList(layers)
        start_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised frames `[B, 3, H, W]` -> 1280 channels at 1/32 of their size, 160 at 1/16, 64 at 1/8.

        A tap is read before the next stride: its block runs at stride 1, and only every other row and column is passed on.
        Blocks without a tap stride in their 3x3 instead, at a quarter of the cost.
        """
        taps = []
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW, STATIC_DOMAIN)  # any domain: the backbone's norms are shared
            if number in self.TAPS:
                taps.append(x_BCHW)
                x_BCHW = x_BCHW[..., ::2, ::2]
        return x_BCHW, taps[1], taps[0]


class ConvGRUCell(nn.Module):
    """A convolutional GRU; each convolution is a depthwise 3x3, then pointwise."""

    # Six paths, from input x or hidden state h to a gate or the new content: convolution, norm, gain.
    PATHS = {
        "r_x": ("w_r", "norm_r_x", "a_r_x"), "r_h": ("u_r", "norm_r_h", "a_r_h"),
        "z_x": ("w_z", "norm_z_x", "a_z_x"), "z_h": ("u_z", "norm_z_h", "a_z_h"),
        "h_x": ("w", "norm_out_x", "a_h_x"), "h_h": ("u", "norm_out_h", "a_h_h"),
    }  # fmt: skip
    b_r: Tensor
    b_z: Tensor
    b_h: Tensor
    drop_mask_1: Tensor

    def __init__(self, channels: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        for conv, norm, gain in self.PATHS.values():
            separable = OrderedDict[str, nn.Module](
                conv_dw=nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                sep_bn=DomainNorm(channels),
                sep_relu=nn.ReLU6(inplace=True),
                conv_sep=nn.Conv2d(channels, channels, 1, bias=False),
            )
            self.add_module(conv, Chain(separable))
            self.add_module(norm, DomainNorm(channels))
            self.register_parameter(gain, nn.Parameter(torch.ones(channels, 1, 1)))
        for bias in ("b_r", "b_z", "b_h"):
            self.register_parameter(bias, nn.Parameter(torch.zeros(channels, 1, 1)))
        self.register_buffer("drop_mask_1", torch.ones(3, channels))

    def path(self, domain: str, name: str, x_BChw: Tensor) -> Tensor:
        """One of PATHS applied to features `[B, C, h, w]`."""
        conv, norm, gain = self.PATHS[name]
        return self.get_parameter(gain) * self.get_submodule(norm)(self.get_submodule(conv)(x_BChw, domain), domain)

    def forward(self, x_BTChw: Tensor, hidden_BChw: Tensor | None, domain: str) -> tuple[Tensor, Tensor]:
        """Input and previous state (None at a video's start) -> the state after every frame, and after the last."""
        r_x, z_x, h_x = (
            each_frame(partial(self.path, domain, name), self.training, x_BTChw).unbind(1) for name in ("r_x", "z_x", "h_x")
        )
        hidden = torch.zeros_like(r_x[0]) if hidden_BChw is None else hidden_BChw
        if self.training:  # recurrent dropout: one mask for all time steps of a gradient step
            keep = torch.full_like(self.drop_mask_1, 1 - self.dropout)
            self.drop_mask_1 = torch.bernoulli(keep) / keep
        states = []
        for step in range(len(r_x)):
            seen = [hidden * mask[:, None, None] for mask in self.drop_mask_1] if self.training else [hidden] * 3
            r = torch.sigmoid(r_x[step] + self.path(domain, "r_h", seen[0]) + self.b_r)
            z = torch.sigmoid(z_x[step] + self.path(domain, "z_h", seen[1]) + self.b_z)
            content = torch.tanh(h_x[step] + r * self.path(domain, "h_h", seen[2]) + self.b_h)
            hidden = (1 - z) * hidden + z * content
            states.append(hidden)
        return torch.stack(states, 1), hidden


class UnisalNet(nn.Module):
    """The whole network, all four domains: 3,714,872 parameters, 835 entries of state."""

    def __init__(self) -> None:
        super().__init__()
        for domain in SIZES:
            self.register_parameter(f"coarse_gaussians_{domain.lower()}", nn.Parameter(start_gaussians()))
        self.cnn = MobileNetV2()
        plain: Norm = lambda channels: nn.BatchNorm2d(channels, momentum=0.01)  # noqa: E731
        self.post_cnn = Chain(OrderedDict(inv_res=InvertedResidual(1280 + 16, 256, 1, plain)))
        self.rnn = nn.ModuleDict({"cell_list": nn.ModuleList([ConvGRUCell(256)])})
        self.post_rnn = pointwise(256, 256)
        self.skip_2x = skip(160, 128)
        self.upsampling_2 = Chain(OrderedDict(inv_res=InvertedResidual(256 + 128, 128, 2, DomainNorm)))
        self.skip_4x = skip(64, 64)
        self.post_upsampling_2 = Chain(OrderedDict(inv_res=InvertedResidual(128 + 64, 64, 2, DomainNorm)))
        kernel = gaussian_maps(torch.tensor([[[0.5, -2.0], [0.5, -2.0]]]), BLUR, BLUR)[None]
        for domain in SIZES:
            smoothing = nn.Conv2d(1, 1, BLUR, bias=False)
            smoothing.weight = nn.Parameter(kernel / kernel.sum())
            self.add_module(f"adaptation_{domain.lower()}", nn.Sequential(nn.Conv2d(64, 1, 1)))
            self.add_module(f"smoothing_{domain.lower()}", smoothing)

    def forward(
        self,
        frames_BTCHW: Tensor,
        domain: str,
        *,
        static: bool,
        hidden: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised RGB `[B, T, 3, H, W]` -> log-densities `[B, T, H, W]` and the hidden state after the last frame.

        H and W are multiples of 32; ValueError otherwise. Every map is a log-density: its exp sums to 1. `size` (height,
        width) resizes the maps. `static` frames bypass the recurrence, each independent of the others. Other frames, even
        a single one, continue the video of the state `hidden` (`[B, 256, H/32, W/32]`, None at its start).
        """
        x_BTChw, *taps = self.features(frames_BTCHW, domain)
        if not static:
            x_BTChw, hidden = self.recur(x_BTChw, hidden, domain)
        return self.log_densities(x_BTChw, taps, domain, size), hidden

    def both_paths(
        self, frames_BTCHW: Tensor, domain: str, *, hidden: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, with one pass of the encoder for both: recurrent log-densities, static ones, the hidden state."""
        x_BTChw, *taps = self.features(frames_BTCHW, domain)
        recurrent_BTChw, hidden = self.recur(x_BTChw, hidden, domain)
        recurrent, static = (self.log_densities(x, taps, domain, size) for x in (recurrent_BTChw, x_BTChw))
        return recurrent, static, hidden

    def features(self, frames_BTCHW: Tensor, domain: str) -> tuple[Tensor, Tensor, Tensor]:
        """Frames -> 256 channels at 1/32 of their size, and the backbone's taps at 1/16 and 1/8."""
        if frames_BTCHW.shape[-2] % 32 or frames_BTCHW.shape[-1] % 32:
            raise ValueError(f"UNISAL needs frames with sides that are multiples of 32, got {list(frames_BTCHW.shape)}")
        deep, at_16, at_8 = (x.unflatten(0, frames_BTCHW.shape[:2]) for x in self.cnn(frames_BTCHW.flatten(0, 1)))
        return each_frame(partial(self.encode, domain), self.training, deep), at_16, at_8

    def recur(self, x_BTChw: Tensor, hidden: Tensor | None, domain: str) -> tuple[Tensor, Tensor]:
        """The 256 channels with what the recurrence adds to them, and the hidden state after the last frame."""
        states_BTChw, hidden = self.rnn.get_submodule("cell_list.0")(x_BTChw, hidden, domain)
        return x_BTChw + each_frame(partial(self.post_rnn, domain=domain), self.training, states_BTChw), hidden

    def log_densities(self, x_BTChw: Tensor, taps: Sequence[Tensor], domain: str, size: tuple[int, int] | None) -> Tensor:
        """256 channels and the backbone's taps -> log-densities `[B, T, H, W]`."""
        maps_BTHW = each_frame(partial(self.decode, domain), self.training, x_BTChw, *taps)[:, :, 0]
        if size:
            maps_BTHW = F.interpolate(maps_BTHW, size=size, mode="bilinear", align_corners=False)
        return maps_BTHW.flatten(2).log_softmax(2).view_as(maps_BTHW)

    def encode(self, domain: str, deep_BChw: Tensor) -> Tensor:
        """The backbone's last features and the domain's centre priors -> 256 channels."""
        priors_Chw = gaussian_maps(self.get_parameter(f"coarse_gaussians_{domain.lower()}"), *deep_BChw.shape[-2:])
        with_priors = torch.cat([deep_BChw, priors_Chw.expand(len(deep_BChw), -1, -1, -1)], 1)
        return self.post_cnn(with_priors, domain)

    def decode(self, domain: str, x_BChw: Tensor, at_16: Tensor, at_8: Tensor) -> Tensor:
        """256 channels at 1/32 and the backbone's taps -> maps `[B, 1, H, W]`, not yet normalised."""
        x_BChw = self.upsampling_2(torch.cat([twice(x_BChw), self.skip_2x(at_16, domain)], 1), domain)
        x_BChw = self.post_upsampling_2(torch.cat([twice(x_BChw), self.skip_4x(at_8, domain)], 1), domain)
        x_BChw = self.get_submodule(f"adaptation_{domain.lower()}")(x_BChw)
        return blur_8x(x_BChw, self.get_parameter(f"smoothing_{domain.lower()}.weight"))


def pointwise(channels_in: int, channels: int) -> Chain:
    """A pointwise convolution, a norm per domain, ReLU6."""
    return Chain(nn.Conv2d(channels_in, channels, 1, bias=False), DomainNorm(channels), nn.ReLU6(inplace=True))


def skip(channels_in: int, channels: int) -> Chain:
    """From a tap to the decoder."""
    reduction = Chain(nn.Conv2d(2 * channels_in, channels, 1), DomainNorm(channels))
    return Chain(OrderedDict(expansion=pointwise(channels_in, 2 * channels_in), dropout=nn.Dropout2d(0.6), reduction=reduction))


def twice(x_BChw: Tensor) -> Tensor:
    """Up-sampled twice, bilinearly: `[B, C, h, w]` -> `[B, C, 2h, 2w]`."""
    return F.interpolate(x_BChw, scale_factor=2, mode="bilinear", align_corners=False)


def start_gaussians() -> Tensor:
    """Initial values of the 16 priors, `[16, (y, x), (mean, log std)]`: a 3x3 grid, three bars each way, one wide."""
    thirds = (0.25, 0.5, 0.75)
    narrow, wide = -1.5, 0.0
    return torch.tensor(
        [
            *([[y, narrow], [x, narrow]] for y, x in itertools.product(thirds, thirds)),
            *([[0.5, wide], [x, narrow]] for x in thirds),
            *([[y, narrow], [0.5, wide]] for y in thirds),
            [[0.5, wide], [0.5, wide]],
        ]
    )


def gaussian_maps(gaussians_N22: Tensor, height: int, width: int, peak: float = 6.0) -> Tensor:
    """Parameters `[N, (y, x), (mean, log std)]`, as shares of the frame's sides -> maps `[N, height, width]`."""
    axes = []
    for axis, length in enumerate((height, width)):
        mean_N1, log_std_N1 = gaussians_N22[:, axis, :1], gaussians_N22[:, axis, 1:]
        place = torch.linspace(0, 1, length, device=gaussians_N22.device, dtype=gaussians_N22.dtype)
        axes.append(torch.exp(-(((place - mean_N1) / log_std_N1.exp()) ** 2) / 2))
    return peak * axes[0][:, :, None] * axes[1][:, None, :]


def blur_8x(x_B1hw: Tensor, kernel_11KK: Tensor) -> Tensor:
    """Enlarge 8 times by repetition, then convolve, the border repeated: `[B, 1, h, w]` -> `[B, 1, 8h, 8w]`.

    A kernel of 41 pixels covers at most 7 cells of equal pixels per side, so the output at each of the 8x8 offsets within
    a cell is a 7x7 convolution of the cells, with the kernel's weights summed per cell: 1/34 of the multiplications.
    """
    places, rows = torch.arange(8, device=x_B1hw.device), torch.arange(BLUR, device=x_B1hw.device)
    cell_PK = (places[:, None] + rows - BLUR // 2).div(8, rounding_mode="floor") + 3
    is_in_PrK = F.one_hot(cell_PK, 7).to(kernel_11KK).mT  # offset within a cell, cell, row of the kernel
    sums = is_in_PrK.flatten(0, 1) @ kernel_11KK[0, 0] @ is_in_PrK.flatten(0, 1).T
    kernels = sums.view(8, 7, 8, 7).transpose(1, 2)
    padded = F.pad(x_B1hw, (3, 3, 3, 3), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernels.reshape(64, 1, 7, 7)), 8)


def load_trunk(net: UnisalNet, path: str | os.PathLike[str]) -> None:
    """Load ImageNet weights of MobileNetV2 (`mobilenet_v2.pth.tar`) into the backbone. ValueError for any other file."""
    state = read_weights(path)
    load_state_dict_exact(net.cnn, with_counters(net.cnn, state), drop=["classifier."], source=str(path))

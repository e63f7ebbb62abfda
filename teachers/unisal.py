"""UNISAL: one small network for images and video, with a few parameters of its own for each kind of data.

    frames -> MobileNetV2 + learned centre priors -> post-CNN -> + ConvGRU -> decoder with two skips -> 41x41 blur -> log-density
                                                        static input bypasses the recurrence ^

Four kinds of data, the *domains* DHF1K, Hollywood, UCFSports and SALICON, share all convolutions but have their own
batch norms, priors, last convolution and blur (Droste, Jiao and Noble, *Unified Image and Video Saliency Modeling*,
2020). `UnisalNet` is that network, name for name, so that the released `weights_best.pth` loads; the domain, and whether
the input is static, are arguments of every call: a one-frame call is a step of a video unless it says otherwise.
`Unisal` is what the pipeline sees: a clip in, one map of logits per frame out.

A video is seen at 6 frames per second: a 30 fps clip is five interleaved streams, each with a hidden state of its own.
They run as one batch. This file knows torch and numpy alone.
"""

import itertools
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.teachers.last_frame import check_frames, fingerprint
from distill.teachers.weights import load_state_dict_exact, read_weights

# Shape suffixes: B batch · S streams · T time · C channels · H, W pixels; lower-case h, w: cells of a coarser grid

SIZES = {"DHF1K": (224, 384), "Hollywood": (224, 416), "UCFSports": (256, 384), "SALICON": (288, 384)}
"""The domains, and the height and width their frames are scaled to."""

STATIC_DOMAIN = "SALICON"
"""The domain of images; the others are of video."""

SAMPLE_FPS = 6.0
"""Frames per second that the recurrence was trained at: every 5th of DHF1K's 30, every 4th of the others' 24."""

OUT_STRIDE = 4
"""Pixels of the network's input per cell of the labels: after the blur a 16th of the cells correlate by 0.999 with all."""

EPS = 1e-6
"""Label probabilities are held in [eps, 1 - eps], where their logits are finite."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Normalisation of the input: RGB in [0, 1], the constants of ImageNet."""

BLUR = 41
"""Side of the last convolution, pixels."""

Norm = Callable[[int], nn.Module]
"""Channels -> a norm."""


# --------------------------------------------------------------------------------------------------- building blocks


class DomainNorm(nn.Module):
    """A batch norm per domain. Images come in larger batches, so their averages may move faster, as released."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for domain in SIZES:
            momentum = 0.1 if domain == STATIC_DOMAIN else 0.01
            self.add_module(f"bn_{domain}", nn.BatchNorm2d(channels, momentum=momentum))

    def forward(self, x_BChw: Tensor, domain: str) -> Tensor:
        normalised: Tensor = self.get_submodule(f"bn_{domain}")(x_BChw)
        return normalised


class Chain(nn.Sequential):
    """Layers one after the other; those that depend on the domain are told which it is."""

    def forward(self, x: Tensor, domain: str) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, domain) if isinstance(layer, (DomainNorm, Chain, InvertedResidual)) else layer(x)
        return x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, 3x3 per channel, narrow without a nonlinearity (Sandler et al., 2018)."""

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
    """He's start over the outputs, as MobileNetV2 was published with."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)))


def each_frame(function: Callable[..., Tensor], one_by_one: bool, *features_BTChw: Tensor) -> Tensor:
    """Apply `function` to the features of every frame of every stream: `[B, C, h, w]` in and out.

    In training time step after time step, as published: a batch norm then averages over the batch alone, and frames of
    one video, nearly equal, do not stand in for different ones.
    """
    if one_by_one:
        steps = zip(*(x_BTChw.unbind(1) for x_BTChw in features_BTChw), strict=True)
        return torch.stack([function(*step) for step in steps], 1)
    return function(*(x_BTChw.flatten(0, 1) for x_BTChw in features_BTChw)).unflatten(0, features_BTChw[0].shape[:2])


# -------------------------------------------------------------------------------------------------------- the network


class MobileNetV2(nn.Module):
    """The trunk, to the last convolution, with two taps."""

    # Widened by, channels, blocks, stride of the first block.
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

        A tap is read before its block's stride: the block runs at stride 1, then every other row and column goes on.
        For blocks that nobody taps that is a stride in their 3x3, at a quarter of the cost.
        """
        taps = []
        for number, layer in enumerate(self.features):
            x_BCHW = layer(x_BCHW, STATIC_DOMAIN)  # whichever: the trunk's norms are of all domains
            if number in self.TAPS:
                taps.append(x_BCHW)
                x_BCHW = x_BCHW[..., ::2, ::2]
        return x_BCHW, taps[1], taps[0]


class ConvGRUCell(nn.Module):
    """A gated recurrent unit on maps; its convolutions are 3x3 per channel, then pointwise."""

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
        conv, norm, gain = self.PATHS[name]
        y_BChw: Tensor = self.get_submodule(norm)(self.get_submodule(conv)(x_BChw, domain), domain)
        return self.get_parameter(gain) * y_BChw

    def forward(self, x_BTChw: Tensor, hidden_BChw: Tensor | None, domain: str) -> tuple[Tensor, Tensor]:
        """The input and the state before it, None at a video's start -> the state after every frame, and the last."""
        r_x, z_x, h_x = (
            each_frame(partial(self.path, domain, name), self.training, x_BTChw).unbind(1)
            for name in ("r_x", "z_x", "h_x")
        )
        hidden = torch.zeros_like(r_x[0]) if hidden_BChw is None else hidden_BChw
        if self.training:  # recurrent dropout: the same channels are dropped for as long as the gradient flows
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


class ConvGRU(nn.Module):
    """One cell, under the name it is released by."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList([ConvGRUCell(channels)])

    def forward(self, x_BTChw: Tensor, hidden_BChw: Tensor | None, domain: str) -> tuple[Tensor, Tensor]:
        states: tuple[Tensor, Tensor] = self.cell_list[0](x_BTChw, hidden_BChw, domain)
        return states


class UnisalNet(nn.Module):
    """The whole network, all four domains: 3,714,872 parameters, 835 entries of state."""

    def __init__(self) -> None:
        super().__init__()
        for domain in SIZES:
            self.register_parameter(f"coarse_gaussians_{domain.lower()}", nn.Parameter(start_gaussians()))
        self.cnn = MobileNetV2()
        plain: Norm = lambda channels: nn.BatchNorm2d(channels, momentum=0.01)  # noqa: E731
        self.post_cnn = Chain(OrderedDict(inv_res=InvertedResidual(1280 + 16, 256, 1, plain)))
        self.rnn = ConvGRU(256)
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

        H and W are multiples of 32. Every map is a density's logarithm: its exp sums to 1. `size`, a height and width,
        scales the maps. `static` frames bypass the recurrence, each for itself. Otherwise they continue the video that
        `hidden` (`[B, 256, H/32, W/32]`, None at its start) is from, be it by one frame alone.
        """
        if frames_BTCHW.shape[-2] % 32 or frames_BTCHW.shape[-1] % 32:
            raise ValueError(f"UNISAL wants frames with sides that are multiples of 32, not {list(frames_BTCHW.shape)}")
        deep, at_16, at_8 = (x.unflatten(0, frames_BTCHW.shape[:2]) for x in self.cnn(frames_BTCHW.flatten(0, 1)))
        x_BTChw = each_frame(partial(self.encode, domain), self.training, deep)
        if not static:
            states_BTChw, hidden = self.rnn(x_BTChw, hidden, domain)
            x_BTChw = x_BTChw + each_frame(partial(self.post_rnn, domain=domain), self.training, states_BTChw)
        maps_BTHW = each_frame(partial(self.decode, domain), self.training, x_BTChw, at_16, at_8)[:, :, 0]
        if size:
            maps_BTHW = F.interpolate(maps_BTHW, size=size, mode="bilinear", align_corners=False)
        return maps_BTHW.flatten(2).log_softmax(2).view_as(maps_BTHW), hidden

    def encode(self, domain: str, deep_BChw: Tensor) -> Tensor:
        """The trunk's end, beside it the domain's priors -> 256 channels."""
        priors_Chw = gaussian_maps(self.get_parameter(f"coarse_gaussians_{domain.lower()}"), *deep_BChw.shape[-2:])
        with_priors = torch.cat([deep_BChw, priors_Chw.expand(len(deep_BChw), -1, -1, -1)], 1)
        encoded: Tensor = self.post_cnn(with_priors, domain)
        return encoded

    def decode(self, domain: str, x_BChw: Tensor, at_16: Tensor, at_8: Tensor) -> Tensor:
        """256 channels at 1/32 and the trunk's taps -> maps `[B, 1, H, W]`, not yet normalised."""
        x_BChw = self.upsampling_2(torch.cat([twice(x_BChw), self.skip_2x(at_16, domain)], 1), domain)
        x_BChw = self.post_upsampling_2(torch.cat([twice(x_BChw), self.skip_4x(at_8, domain)], 1), domain)
        x_BChw = self.get_submodule(f"adaptation_{domain.lower()}")(x_BChw)
        return blur_8x(x_BChw, self.get_parameter(f"smoothing_{domain.lower()}.weight"))


def pointwise(channels_in: int, channels: int) -> Chain:
    return Chain(nn.Conv2d(channels_in, channels, 1, bias=False), DomainNorm(channels), nn.ReLU6(inplace=True))


def skip(channels_in: int, channels: int) -> Chain:
    """From a tap to the decoder."""
    reduction = Chain(nn.Conv2d(2 * channels_in, channels, 1), DomainNorm(channels))
    return Chain(
        OrderedDict(expansion=pointwise(channels_in, 2 * channels_in), dropout=nn.Dropout2d(0.6), reduction=reduction)
    )


def twice(x_BChw: Tensor) -> Tensor:
    return F.interpolate(x_BChw, scale_factor=2, mode="bilinear", align_corners=False)


def start_gaussians() -> Tensor:
    """Where the 16 priors start, `[16, (y, x), (mean, log std)]`: a 3x3 grid, three bars each way, one wide."""
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
    """`[N, (y, x), (mean, log std)]`, the frame's sides being 1 -> maps `[N, height, width]`."""
    axes = []
    for axis, length in enumerate((height, width)):
        mean_N1, log_std_N1 = gaussians_N22[:, axis, :1], gaussians_N22[:, axis, 1:]
        place = torch.linspace(0, 1, length, device=gaussians_N22.device, dtype=gaussians_N22.dtype)
        axes.append(torch.exp(-(((place - mean_N1) / log_std_N1.exp()) ** 2) / 2))
    return peak * axes[0][:, :, None] * axes[1][:, None, :]


def blur_8x(x_B1hw: Tensor, kernel_11KK: Tensor) -> Tensor:
    """Enlarge 8 times by repetition, then convolve, the border repeated: `[B, 1, h, w]` -> `[B, 1, 8h, 8w]`.

    Under a kernel of 41 pixels lie at most 7 equal cells a side, so each of the 8x8 places within a cell is a 7x7
    convolution of the cells, with the kernel's weights summed per cell: the same numbers for 1/34 of the products.
    """
    places, rows = torch.arange(8, device=x_B1hw.device), torch.arange(BLUR, device=x_B1hw.device)
    cell_PK = (places[:, None] + rows - BLUR // 2).div(8, rounding_mode="floor") + 3
    is_in_PKR = F.one_hot(cell_PK, 7).to(kernel_11KK)  # place within a cell, row of the kernel, cell under it
    kernels = torch.einsum("pjr,qks,jk->pqrs", is_in_PKR, is_in_PKR, kernel_11KK[0, 0])
    padded = F.pad(x_B1hw, (3, 3, 3, 3), mode="replicate")
    return F.pixel_shuffle(F.conv2d(padded, kernels.reshape(64, 1, 7, 7)), 8)


def load_trunk(net: UnisalNet, path: str | os.PathLike[str]) -> None:
    """Load ImageNet weights of MobileNetV2 (`mobilenet_v2.pth.tar`) into the trunk. ValueError for what does not fit."""
    state = read_weights(path)
    # Older files do without the counters of the batch norms, which nothing reads.
    counters = {key: value for key, value in net.cnn.state_dict().items() if key.endswith("num_batches_tracked")}
    load_state_dict_exact(net.cnn, counters | state, drop=["classifier."], source=str(path))


def gmac(height: int, width: int) -> float:
    """Billions of multiply-accumulates that one frame of a video costs at an input of `height` x `width` pixels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UnisalNet().eval()(torch.empty(1, 1, 3, height, width), "DHF1K", static=False)
    return counter.get_total_flops() / 2e9


# -------------------------------------------------------------------------------------------------------- the teacher


def input_size(domain: str, height: int, width: int) -> tuple[int, int]:
    """Height and width that UNISAL sees a frame of `height` x `width` pixels at.

    The domain's own for DHF1K's 16:9 and SALICON's 4:3, and for all videos of Hollywood and UCFSports, squeezed as
    published; else, of the sizes n·32 x m·32 with n, m in 7..13 and n·m in 100..120, that with the nearest aspect.
    """
    aspect = height / width
    native = {"DHF1K": 9 / 16, "SALICON": 3 / 4}.get(domain)
    if native is None or math.isclose(aspect, native, rel_tol=0.01):
        return SIZES[domain]
    sides = [(n, m) for n, m in itertools.product(range(7, 14), repeat=2) if 100 <= n * m <= 120]
    n, m = min(sides, key=lambda side: abs(math.log(side[0] / side[1] / aspect)))
    return 32 * n, 32 * m


def scale(frames: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    """`uint8 [n, H, W, 3]` -> `uint8 [n, *size, 3]`, the aspect ratio not kept, by an antialiased Lanczos filter.

    Published with Pillow's. torch's, on bytes, differs from it by a rounding here and there (0.01 grey levels on average,
    2 at most, on video) and takes a tenth of the time; OpenCV's is not antialiased and differs by 1 level, up to 64.
    """
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    frames_NCHW = F.interpolate(frames.permute(0, 3, 1, 2), size=size, mode="lanczos", antialias=True)
    return frames_NCHW.permute(0, 2, 3, 1).contiguous()


def stream_count(fps: float) -> int:
    """Frames of a video at `fps` frames per second from one that a stream sees to its next: so many streams."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"the clip's frame rate is {fps}; it must be a positive number of frames per second")
    return max(1, round(fps / SAMPLE_FPS))


def normalise(frames: Tensor) -> Tensor:
    """uint8 RGB `[..., H, W, 3]` -> the network's input, float32 `[..., 3, H, W]`."""
    mean, std = (torch.tensor(constants, device=frames.device) for constants in (MEAN, STD))
    return ((frames.float() / 255 - mean) / std).movedim(-1, -3)


class Unisal:
    """The teacher: a clip in, logits for every frame out.

    Frames 0, 5, 10, ... of a 30 fps clip are one stream, frames 1, 6, 11, ... the next. The domain SALICON looks at each
    frame for itself; so does a clip of a single frame, with SALICON's parameters, whatever the domain.
    """

    def __init__(
        self,
        net: UnisalNet,
        domain: str = "DHF1K",
        *,
        name: str = "unisal",
        device: torch.device | str = "cpu",
        batch_frames: int | None = None,
    ) -> None:
        """`net` is moved to `device`. `batch_frames`: how many go through it at a time, about; None: as the device likes."""
        if domain not in SIZES:
            raise ValueError(f"UNISAL has no domain {domain!r}; its domains are {', '.join(SIZES)}")
        device = torch.device(device)
        if batch_frames is None:
            batch_frames = 8 if device.type == "cpu" else 160  # a CPU is fastest while the features fit its cache
        if batch_frames < 1:
            raise ValueError(f"batch_frames is {batch_frames}; it must be at least 1")
        self.name = name
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
        self.domain = domain
        self.device = device
        self.batch_frames = batch_frames

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """`uint8 [n, H, W, 3]` RGB -> `uint8 [n, h, w, 3]`, at the domain's `input_size`. ValueError for what is no frames."""
        check_frames(frames)
        return scale(frames, input_size(self.domain, *frames.shape[1:3]))

    @torch.inference_mode()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """A clip's prepared frames `[T, h, w, 3]` -> `float32 [T, h/4, w/4]` on the CPU.

        The logits' sigmoid is the density divided by its largest value in the frame.
        """
        T, height, width, _ = inputs.shape
        size = (height // OUT_STRIDE, width // OUT_STRIDE)
        streams = min(stream_count(fps), T)
        static = T == 1 or self.domain == STATIC_DOMAIN
        domain = STATIC_DOMAIN if static else self.domain
        step = max(1, self.batch_frames // streams) * streams
        logits_THW = torch.empty(T, *size)
        hidden = None
        was_training = self.net.training
        self.net.eval()
        try:
            for start in range(0, T, step):
                # Consecutive frames are one step of all streams. The last step may lack some: they see its last frame.
                count = min(step, T - start)
                wanted_TS = torch.arange(start, start + math.ceil(count / streams) * streams).view(-1, streams)
                frames_STCHW = normalise(inputs[wanted_TS.T.clamp(max=T - 1)].to(self.device))
                density_STHW, hidden = self.net(frames_STCHW, domain, static=static, hidden=hidden, size=size)
                relative = density_STHW - density_STHW.amax((2, 3), keepdim=True)
                in_order = torch.logit(relative.exp(), eps=EPS).transpose(0, 1).flatten(0, 1)
                logits_THW[start : start + count] = in_order[:count].cpu()
        finally:
            self.net.train(was_training)
        return logits_THW

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """`uint8 [T, H, W, 3]` RGB at `fps` frames per second -> `float32 [T, h/4, w/4]` on the CPU."""
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the domain, the conventions and all weights."""
        conventions = [self.domain, SIZES, SAMPLE_FPS, OUT_STRIDE, EPS]
        return fingerprint(json.dumps(conventions), self.net)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], domain: str = "DHF1K", *, device: torch.device | str = "cpu"
    ) -> "Unisal":
        """The teacher of a weights file in the released layout. Raises ValueError for what is none, or does not fit."""
        state = read_weights(path)
        with torch.device("meta"):
            net = UnisalNet()
        load_state_dict_exact(net, state, source=str(path))
        return cls(net, domain, device=device)

    @classmethod
    def random(cls, seed: int, domain: str = "DHF1K", *, device: torch.device | str = "cpu") -> "Unisal":
        """A teacher that has learned nothing, for trials; its weights carry a signal through to the map (He et al., 2015)."""
        net = UnisalNet()
        generator = torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (BLUR, BLUR):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return cls(net, domain, device=device)

"""TASED-Net: a 3-D convolutional network that maps 32 frames to the saliency of the last one.

    frames -> S3D encoder, pooled in space and time -> decoder, unpooled in space -> time reduced to 1 -> logits
                  └ switches: the positions of spatial maxima ─────┘

The network is the released second version (Min and Corso, *TASED-Net*, 2019), layer for layer and name for name, so that
the authors' file loads. Instead of skip connections, the decoder takes the positions of spatial maxima from the encoder,
determined by separate poolings over all time. Where two pooled cells claim the same pixel the later one wins, as released;
CUDA does not guarantee that order, so on a GPU those labels may vary between runs.

Cost: from the second layer on the network mixes frames in both directions, up to the window's edges, so windows can share
only the first convolution, which sees one frame at a time; it runs once per frame and batch.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import require_whole_numbers
from distill.teachers.frames import check_frames
from distill.teachers.last_frame import LastFrameTeacher, blur
from distill.teachers.weights import fingerprint

# Shape suffixes: B batch · N frames · T time · C channels · H, W pixels

WINDOW = 32
"""Frames of a window."""


@dataclass(frozen=True)
class TasedConfig:
    """How the network labels a video. The defaults are as released, except `cell`."""

    height: int = 224
    """Rows of the network's input and of its map, a multiple of 32."""
    width: int = 384
    """Columns, a multiple of 32. The network is convolutional and takes any such size; it was trained at the default."""
    every: int = 1
    """Frames from one window to the next; maps in between are interpolated."""
    smooth: bool = True
    """Blur the map as the authors do before saving it: rounded down to 8 bits, then a Gaussian of 7 pixels."""
    cell: int = 4
    """Each cell of the labels is the mean of `cell` x `cell` pixels of the map, which the blur leaves without finer detail."""

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if not isinstance(value, int) or value < 32 or value % 32:
                raise ValueError(f"TasedConfig.{name} is {value!r}; it must be a multiple of 32")
        require_whole_numbers(self, "every")
        if self.cell not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"TasedConfig.cell is {self.cell!r}; it must be 1, 2, 4, 8, 16 or 32")


# The layers are the released 3-D ones, but each works either in space or in time, so they run as 2-D operations. Features
# are [B, T, C, H, W] with the channels last in memory; without a copy they are a batch of images [B·T, C, H, W], and also a
# batch of images [B, C, T, H·W] of frames by pixels.


def in_space(function: Callable[[Tensor], Tensor], x_BTCHW: Tensor) -> Tensor:
    """Apply a function of images `[N, C, H, W]` to each frame."""
    return function(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])


def in_time(function: Callable[[Tensor], Tensor], x_BTCHW: Tensor) -> Tensor:
    """Apply a function of images `[B, C, T, H·W]`, whose rows are frames, that keeps the number of columns."""
    y_BCTN = function(x_BTCHW.transpose(1, 2).flatten(3))
    return y_BCTN.unflatten(3, x_BTCHW.shape[3:]).transpose(1, 2)


class SpaceConv(nn.Conv3d):
    """A convolution over `size` x `size` pixels of each frame."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, (1, size, size), (1, stride, stride), (0, size // 2, size // 2), bias=bias)

    def of_images(self, x_NCHW: Tensor) -> Tensor:
        """The convolution of images `[N, C, H, W]`."""
        return F.conv2d(x_NCHW, self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        return in_space(self.of_images, x_BTCHW)


class TimeConv(nn.Conv3d):
    """A convolution over `size` frames of each pixel."""

    def __init__(self, channels: int, size: int, stride: int, padding: int) -> None:
        super().__init__(channels, channels, (size, 1, 1), (stride, 1, 1), (padding, 0, 0), bias=False)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        weight, stride, padding = self.weight[..., 0], self.stride[:2], self.padding[:2]
        return in_time(lambda x_BCTN: F.conv2d(x_BCTN, weight, None, stride, padding), x_BTCHW)


class Spread(nn.ConvTranspose3d):
    """A transposed convolution of each frame, which up-samples it `stride` times."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (1, size, size), (1, stride, stride), bias=False)
        self.edge = (size - stride) // 2

    def forward(self, x_BTCHW: Tensor) -> Tensor:  # type: ignore[override]
        weight, stride = self.weight[:, :, 0], self.stride[1:]
        return in_space(lambda x_NCHW: F.conv_transpose2d(x_NCHW, weight, None, stride, self.edge), x_BTCHW)


class NormRelu(nn.BatchNorm3d):
    """Batch norm with the trained statistics, then ReLU in place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)

    def of_images(self, x_NCHW: Tensor) -> Tensor:
        """Norm and ReLU of images `[N, C, H, W]`."""
        return F.batch_norm(x_NCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps).relu_()

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        return in_space(self.of_images, x_BTCHW)


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """A pointwise convolution, norm, ReLU."""
    return nn.Sequential(OrderedDict(conv=SpaceConv(inputs, outputs), bn=NormRelu(outputs)))


class SeparateConv(nn.Module):
    """A convolution in space, then one in time, each with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_s = SpaceConv(inputs, outputs, size, stride)
        self.bn_s = NormRelu(outputs)
        self.conv_t = TimeConv(outputs, size, stride, size // 2)
        self.bn_t = NormRelu(outputs)

    def of_images(self, x_NCHW: Tensor) -> Tensor:
        """The spatial half, on images `[N, C, H, W]`."""
        return self.bn_s.of_images(self.conv_s.of_images(x_NCHW))

    def of_pixels(self, x_BTCHW: Tensor) -> Tensor:
        """The temporal half, on each pixel."""
        return self.bn_t(self.conv_t(x_BTCHW))

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        return self.of_pixels(in_space(self.of_images, x_BTCHW))


class Pool(nn.Module):
    """Max pooling over 3x3 pixels with `stride`, and over three frames with `stride_in_time` unless that is 0."""

    def __init__(self, stride: int, stride_in_time: int = 0) -> None:
        super().__init__()
        self.stride, self.stride_in_time = stride, stride_in_time

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        y_BTCHW = in_space(lambda x_NCHW: F.max_pool2d(x_NCHW, 3, self.stride, 1), x_BTCHW)
        if not self.stride_in_time:
            return y_BTCHW
        return in_time(lambda y_BCTN: F.max_pool2d(y_BCTN, (3, 1), (self.stride_in_time, 1), (1, 0)), y_BTCHW)


class Mixed(nn.Module):
    """An Inception block: four branches, concatenated. `widths`: branch 0; 1 reduced, full; 2 reduced, full; 3."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        w0, w1_reduced, w1, w2_reduced, w2, w3 = widths
        self.branch0 = nn.Sequential(pointwise(inputs, w0))
        self.branch1 = nn.Sequential(pointwise(inputs, w1_reduced), SeparateConv(w1_reduced, w1, 3))
        self.branch2 = nn.Sequential(pointwise(inputs, w2_reduced), SeparateConv(w2_reduced, w2, 3))
        self.branch3 = nn.Sequential(Pool(1, 1), pointwise(inputs, w3))

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([branch(x_BTCHW) for branch in branches], dim=2)


class TasedNet(nn.Module):
    """Encoder and decoder, for inference only: norms use their trained statistics. 21,260,693 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.base1 = nn.Sequential(SeparateConv(3, 64, 7, 2), Pool(2), pointwise(64, 64), SeparateConv(64, 192, 3))
        self.base2 = nn.Sequential(Mixed(192, (64, 96, 128, 16, 32, 32)), Mixed(256, (128, 128, 192, 32, 96, 64)))
        self.base3 = nn.Sequential(
            Mixed(480, (192, 96, 208, 16, 48, 64)),
            Mixed(512, (160, 112, 224, 24, 64, 64)),
            Mixed(512, (128, 128, 256, 24, 64, 64)),
            Mixed(512, (112, 144, 288, 32, 64, 64)),
            Mixed(528, (256, 160, 320, 32, 128, 128)),
        )
        self.base4 = nn.Sequential(Mixed(832, (256, 160, 320, 32, 128, 128)), Mixed(832, (384, 192, 384, 48, 128, 128)))
        relu = nn.Identity()  # keeps the released numbering; NormRelu includes the ReLU
        self.convtsp1 = nn.Sequential(
            SpaceConv(1024, 1024), NormRelu(1024), relu,
            Spread(1024, 832, 3), NormRelu(832), relu,
        )  # fmt: skip
        self.convtsp2 = nn.Sequential(Spread(832, 480, 3), NormRelu(480), relu)
        self.convtsp3 = nn.Sequential(Spread(480, 192, 3), NormRelu(192), relu)
        self.convtsp4 = nn.Sequential(
            Spread(192, 64, 4, 2), NormRelu(64), relu,
            TimeConv(64, 2, 2, 0), NormRelu(64), relu,
            Spread(64, 4, 1), NormRelu(4), relu,
            TimeConv(4, 2, 2, 0), NormRelu(4), relu,
            Spread(4, 4, 4, 2), SpaceConv(4, 1, bias=True),
        )  # fmt: skip

    def stem(self, frames_NCHW: Tensor) -> Tensor:
        """The layers that see single frames: RGB in [-1, 1], `[N, 3, H, W]` -> `[N, 64, H/2, W/2]`."""
        first = self.base1[0]
        assert isinstance(first, SeparateConv)
        return first.of_images(frames_NCHW.contiguous(memory_format=torch.channels_last))

    def from_stem(self, stems_BTCHW: Tensor) -> Tensor:
        """All other layers: windows of stem features `[B, 32, 64, H/2, W/2]` -> logits of the last frames `[B, H, W]`."""
        first = self.base1[0]
        assert isinstance(first, SeparateConv)
        y_BTCHW = self.base1[1:](first.of_pixels(stems_BTCHW))
        fine = pooled_in_time(y_BTCHW, 4)
        y_BTCHW = self.base2(Pool(2)(y_BTCHW))
        middle = pooled_in_time(y_BTCHW, 4)
        y_BTCHW = pooled_in_time(self.base3(Pool(2, 2)(y_BTCHW)), 2)
        batch = y_BTCHW.shape[:2]
        y_NCHW, coarse_switches = F.max_pool2d(y_BTCHW.flatten(0, 1), 2, return_indices=True)

        z_NCHW = self.convtsp1(self.base4(y_NCHW.unflatten(0, batch))).flatten(0, 1)
        z_BTCHW = F.max_unpool2d(z_NCHW, coarse_switches, [2, 2]).unflatten(0, batch)
        z_BTCHW = unpooled(self.convtsp2(z_BTCHW), middle)
        z_BTCHW = unpooled(self.convtsp3(z_BTCHW), fine)
        return self.convtsp4(z_BTCHW)[:, 0, 0]

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Windows of RGB frames in [-1, 1], `[B, 3, 32, H, W]` -> logits of the last frames `[B, H, W]`. ValueError for others."""
        batch, channels, frames, height, width = clip_BCTHW.shape
        if (channels, frames, height % 32, width % 32) != (3, WINDOW, 0, 0):
            shape = list(clip_BCTHW.shape)
            raise ValueError(f"TASED-Net got a clip of shape {shape}; it needs [B, 3, {WINDOW}, H, W], multiples of 32")
        stems_NCHW = self.stem(clip_BCTHW.transpose(1, 2).flatten(0, 1))
        return self.from_stem(stems_NCHW.unflatten(0, (batch, frames)))


def pooled_in_time(x_BTCHW: Tensor, frames: int) -> Tensor:
    """The maximum over every `frames` frames."""
    return x_BTCHW.unflatten(1, (-1, frames)).amax(2)


def unpooled(z_BTCHW: Tensor, x_BTCHW: Tensor) -> Tensor:
    """Each value placed where `x_BTCHW`, twice as large, has the maximum of the value's 3x3 cell; zeros elsewhere."""
    switches = F.max_pool2d(x_BTCHW.flatten(0, 1), 3, 2, 1, return_indices=True)[1]
    size = list(x_BTCHW.shape[3:])
    return in_space(lambda z_NCHW: F.max_unpool2d(z_NCHW, switches, [3, 3], [2, 2], [1, 1], size), z_BTCHW)


def window(frame: int, count: int) -> np.ndarray:
    """The 32 frames, of `count`, that label `frame`, which comes last.

    These are the frame and the 31 before it; for the first 31 frames of a clip, the frame and the 31 after it, in reverse:
    both as released. A clip of less than 63 frames that ends before those 31 is continued by reflection, one of the two
    ways to lengthen a clip that the authors mention.
    """
    if frame >= WINDOW - 1:
        return np.arange(frame - WINDOW + 1, frame + 1)
    ahead = np.arange(frame + WINDOW - 1, frame - 1, -1)
    turn = max(1, 2 * (count - 1))  # period of the reflected clip
    return np.minimum(ahead % turn, turn - ahead % turn)


class Tased(LastFrameTeacher[TasedNet, TasedConfig]):
    """The teacher; `load` reads the authors' `TASED_v2.pt`.

    Always float32: max-unpooling depends on which value is largest, and bfloat16 makes ties of many different values.
    """

    NAME = "tased"
    CONFIG = TasedConfig
    window = staticmethod(window)

    def __init__(self, net: TasedNet, config: TasedConfig | None = None, **options: Any) -> None:
        super().__init__(net, config, **options)
        self.exact = True
        self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._from_stem = torch.compile(self.net.from_stem) if self.how.compile else self.net.from_stem

    @classmethod
    def build(cls, config: TasedConfig) -> TasedNet:
        return TasedNet()

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """RGB frames, `uint8 [n, H, W, 3]` -> `uint8 [n, height, width, 3]`.

        Bilinear, the aspect ratio not preserved, as released. Frames of at least twice DHF1K's 640x360 are first averaged
        down by a whole number to about that size, because bilinear sampling of larger ones would skip pixels.
        """
        check_frames(frames)
        shrink = min(frames.shape[1] // 360, frames.shape[2] // 640)
        prepared = np.empty((len(frames), self.config.height, self.config.width, 3), np.uint8)
        for image, out in zip(np.asarray(frames), prepared, strict=True):
            if shrink > 1:
                size = (image.shape[1] // shrink, image.shape[0] // shrink)
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            cv2.resize(image, (self.config.width, self.config.height), dst=out, interpolation=cv2.INTER_LINEAR)
        return torch.from_numpy(prepared)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration and all weights."""
        return fingerprint(f"tased 1 {self.config}", self.net)

    def windows_logits(self, frames: Tensor, rows_BT: Tensor) -> Tensor:
        stems_NCHW = self.net.stem(frames.permute(0, 3, 1, 2).float() * (2 / 255) - 1)
        stems_BTHWC = stems_NCHW.permute(0, 2, 3, 1)[rows_BT]  # gathered with the channels last, as in memory
        return self._from_stem(stems_BTHWC.permute(0, 1, 4, 2, 3))

    def finish(self, saliency_Bhw: Tensor) -> Tensor:
        return smooth(saliency_Bhw) if self.config.smooth else saliency_Bhw


def smooth(maps_BHW: Tensor) -> Tensor:
    """The authors' post-processing: maps in [0, 1] rounded down to 8 bits, then blurred, sigma 7, truncated at 4 sigma."""
    return blur((maps_BHW * 255).floor() / 255, 7.0, 28, "symmetric")

"""The student's encoder: a slim MobileNetV2, from a frame at the working resolution to features at 1/4, 1/8 and 1/16 of it.

Its blocks are those of MobileNetV2 (Sandler et al. 2018) up to the last at 1/16, at the same strides and with the same
channels by default, but with fewer hidden channels. So it can start as a pruned copy of a trained one (`distill.training.start`).
"""

from collections.abc import Callable

from torch import Tensor, nn

from distill.students import TinyUNetConfig

EXPAND = 6
"""Hidden channels of MobileNetV2's blocks, as a multiple of a block's input; no block of ours has more."""


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: Callable[..., nn.Module] | None = nn.ReLU6,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, unless `act` is None, an activation; the padding keeps the size at stride 1."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act(inplace=True)] if act else []))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project (Sandler et al. 2018); residual where input and output have one shape. Without `expand`
    the inputs are the hidden channels."""

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int = 1, expand: bool = True) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.expand = conv_bn(inputs, hidden) if expand else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.project = conv_bn(hidden, outputs, act=None)
        if self.residual:
            nn.init.zeros_(self.project[1].weight)  # type: ignore[arg-type]  # a residual block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def stage(inputs: int, outputs: int, blocks: int, expand: float, stride: int = 2) -> nn.Sequential:
    """Blocks of `expand` times `outputs` hidden channels, but not more than MobileNetV2 has; the first has the stride."""
    channels = [inputs, *[outputs] * blocks]
    return nn.Sequential(
        *(
            InvertedResidual(channels[i], outputs, min(EXPAND * channels[i], round(expand * outputs)), 1 if i else stride)
            for i in range(blocks)
        )
    )


class Encoder(nn.Module):
    """Five stages, each a Sequential of blocks: at 1/2, 1/4, 1/8 and 1/16, and a deeper one at 1/16."""

    def __init__(self, config: TinyUNetConfig) -> None:
        super().__init__()
        c2, *widths = config.widths
        self.stem = conv_bn(3, 2 * c2, 3, stride=2)
        self.at_2 = InvertedResidual(2 * c2, c2, 2 * c2, expand=False)
        inputs = (c2, *widths)
        self.at_4, self.at_8, self.at_16, self.deep = (
            stage(inputs[i], widths[i], config.blocks[i], config.expand[i], stride=1 if i == 3 else 2) for i in range(4)
        )

    def first(self) -> tuple[nn.Module, ...]:
        """The layers up to 1/4: most of the arithmetic, few of the parameters, and features that serve any picture."""
        return self.stem, self.at_2, self.at_4

    def forward(self, frames_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised frames `[B,3,height,width]` -> features at 1/16 (the deep ones), 1/8 and 1/4."""
        at_4 = self.at_4(self.at_2(self.stem(frames_BCHW)))
        at_8 = self.at_8(at_4)
        return self.deep(self.at_16(at_8)), at_8, at_4

"""UNISAL for inference: a copy of the network for one domain, its batch norms folded into the convolutions before them.

With fixed statistics a norm is a scale and a shift per channel, which the weights and the bias before it can take over. The
copy has a `UnisalNet`'s methods, and its maps up to rounding. It takes 0.4 of the time on a CPU thread, mostly because of oneDNN:
with one thread, torch passes pointwise convolutions to MKL, which is half as fast on some CPUs.
"""

import copy

import torch
from torch import Tensor, nn

from distill.teachers.unisal.net import Chain, ConvGRUCell, DomainNorm, UnisalNet

WIDE = (1, 2, 3, 4)
"""The backbone's layers with the largest features, 3 to 8 MB per frame. On a CPU they run frame by frame: a few fill its cache,
and blocks above 32 MB cost page faults, because glibc returns them to the system."""


class Convolution(nn.Module):
    """A convolution and what follows it: a norm with fixed statistics, and ReLU6."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, gain: Tensor | None = None, relu6: bool = False) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None and not isinstance(conv.padding, str)
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        if gain is not None:
            scale, bias = scale * gain.flatten(), bias * gain.flatten()
        self.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        self.padding, self.stride, self.groups = conv.padding, conv.stride, conv.groups
        self.relu6 = relu6

    def forward(self, x_BChw: Tensor) -> Tensor:
        if x_BChw.device.type == "cpu" and torch.backends.mkldnn.is_available():
            y = torch.mkldnn_convolution(x_BChw, self.weight, self.bias, self.padding, self.stride, (1, 1), self.groups)
        else:
            y = torch.conv2d(x_BChw, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y.clamp_(0, 6) if self.relu6 else y


class FrameByFrame(nn.Module):
    """A layer of the backbone that takes one frame after another."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BChw: Tensor, domain: str) -> Tensor:
        return torch.cat([self.layer(frame, domain) for frame in x_BChw.split(1)])


@torch.no_grad()
def frozen(net: UnisalNet, domain: str) -> UnisalNet:
    """A copy of `net` for inference in `domain` alone. It shares no memory with `net` and cannot be trained."""
    result = copy.deepcopy(net).eval().requires_grad_(False)
    for chain in [module for module in result.modules() if isinstance(module, Chain)]:
        _fold(chain, domain)
    for cell in [module for module in result.modules() if isinstance(module, ConvGRUCell)]:
        for conv, norm, gain in cell.PATHS.values():
            last = cell.get_submodule(f"{conv}.conv_sep")
            assert isinstance(last, nn.Conv2d)
            folded = Convolution(last, _norm(cell.get_submodule(norm), domain), cell.get_parameter(gain))
            cell.get_submodule(conv).add_module("conv_sep", folded)
            cell.add_module(norm, Chain())
            cell.register_parameter(gain, nn.Parameter(torch.ones_like(folded.bias[0]), requires_grad=False))
    if folded.bias.device.type == "cpu":
        for number in WIDE:
            result.cnn.features[number] = FrameByFrame(result.cnn.features[number])
    return result


def _fold(chain: Chain, domain: str) -> None:
    """Puts one `Convolution` in place of a convolution, a norm and ReLU6 that follow each other."""
    layers = [*chain.named_children(), ("", None), ("", None)]
    for (name, conv), (norm_name, norm), (relu_name, relu) in zip(layers, layers[1:], layers[2:], strict=False):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, (DomainNorm, nn.BatchNorm2d)):
            followed = isinstance(relu, nn.ReLU6)
            chain.add_module(name, Convolution(conv, _norm(norm, domain), relu6=followed))
            for absorbed in (norm_name, relu_name)[: 1 + followed]:
                delattr(chain, absorbed)


def _norm(norm: nn.Module, domain: str) -> nn.BatchNorm2d:
    """The batch norm of a domain, or the one of all."""
    chosen = norm.get_submodule(f"bn_{domain}") if isinstance(norm, DomainNorm) else norm
    assert isinstance(chosen, nn.BatchNorm2d)
    return chosen

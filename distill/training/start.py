"""Starts the student's encoder as a slim copy of its teacher's, UNISAL's MobileNetV2.

What the teacher's encoder knows comes from ImageNet and from every saliency database it was trained on; a small corpus does
not teach a new encoder as much. The student has the same blocks at the same strides, up to the last at 1/16, but most have
fewer hidden channels. So each block is copied, and pruned where the student's is slimmer:

1. Hidden channels are removed one by one, each time the one whose loss adds least to the squared error of the block's
   output, with the projection refitted to the channels that are left (the criterion of Optimal Brain Surgeon, Hassibi and
   Stork 1993, applied to channels).
2. The last refit, ridge regression on the teacher's own output of that block, becomes the projection. Its input is what the
   pruned blocks before it give, so that a block also corrects the errors of those before it.

Everything is computed in closed form from a few hundred of the corpus's own frames, within seconds.

Shape suffixes: N frames · C channels · h, w cells · M = N h w positions · K hidden channels, O output channels
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.students.encoder import Encoder
from distill.students.tiny_unet import TinyUNet
from distill.teachers.unisal.net import MobileNetV2

Block = Any  # of either network: nn.Module knows neither its layers nor their indices

FIRST_BLOCKS, LAST_BLOCK = 3, 13
"""The trunk's blocks up to 1/4 of its input, and its last at 1/16."""
RIDGE = 1e-4  # of the mean variance of a hidden channel
AT_ONCE = 16  # frames


def blocks_of(encoder: Encoder) -> list[Block]:
    """The encoder's blocks, in order."""
    return [encoder.at_2, *encoder.at_4, *encoder.at_8, *encoder.at_16, *encoder.deep]


def feature_loss(deep_NChw: Tensor, at_4_NChw: Tensor, trunk: MobileNetV2) -> Tensor:
    """How far deep features are from the trunk's: the squared error in units of each channel's variance, mean over all.

    at_4_NChw: the features at 1/4, which a started student shares with the trunk; the trunk's blocks continue from them.
    """
    with torch.no_grad():
        target = at_4_NChw.detach()
        for number in range(FIRST_BLOCKS + 1, 1 + LAST_BLOCK):
            target = _after(trunk, number, target)
        variance = target.var((0, 2, 3), keepdim=True) + 1e-3
    return ((deep_NChw - target).square() / variance).mean()


def _after(trunk: MobileNetV2, number: int, x_NChw: Tensor) -> Tensor:
    """The output of one of the trunk's blocks. Where the trunk strides after the block, so does this."""
    stride = 2 if number in MobileNetV2.TAPS else 1
    return trunk.features[number](x_NChw, "")[..., ::stride, ::stride]


@torch.no_grad()
def start_from(student: TinyUNet, trunk: MobileNetV2, frames_NCHW: Tensor) -> float:
    """Copies and prunes the trunk's first blocks into the student's encoder, in place.

    frames_NCHW: normalised, at the working resolution; at least a hundred, of different clips. Returns the error of the deep
    features: the squared error over the variance of the trunk's, 0 where nothing had to be pruned. ValueError for a student
    whose blocks are not the trunk's.
    """
    encoder, device = student.encoder, student.prior.device
    ours: list[Block] = blocks_of(encoder)
    theirs: list[Block] = list(trunk.features)[1 : 1 + len(ours)]
    _check(ours, theirs)
    was_training = student.training
    student.eval()
    encoder.stem.load_state_dict(trunk.features[0].state_dict())
    x = [encoder.stem(part.to(device)) for part in frames_NCHW.split(AT_ONCE)]
    wanted = list(x)
    for number, (block, source) in enumerate(zip(ours, theirs, strict=True), 1):
        wanted = [_after(trunk, number, part) for part in wanted]
        _copy(block, source, _pruned(block, source, x, wanted))
        x = [block(part) for part in x]
    student.train(was_training)
    errors = sum(float((a - b).square().sum()) for a, b in zip(x, wanted, strict=True))
    whole = torch.cat(wanted)
    return errors / float((whole - whole.mean((0, 2, 3), keepdim=True)).square().sum())


def _check(ours: Sequence[Block], theirs: Sequence[Block]) -> None:
    for number, (block, source) in enumerate(zip(ours, theirs, strict=True), 1):
        conv = block.project[0].weight, source.conv[-2].weight
        if len(conv[0]) != len(conv[1]):
            raise ValueError(
                f"block {number} of the student's encoder has {len(conv[0])} channels, of the teacher's {len(conv[1])}; "
                "to start from it, leave student.widths and student.blocks at their defaults"
            )


Fit = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Kept hidden channels `[K]`, the projection `[O,K]`, mean and variance of what it gives and the mean that it should have, `[O]`."""


def _pruned(block: Block, source: Block, x: Sequence[Tensor], wanted: Sequence[Tensor]) -> Fit | None:
    """The channels to keep of a block and its new projection; None where it keeps all.

    x: the inputs of the student's block; wanted: what the teacher's block gives on its own inputs."""
    keep = block.project[0].weight.shape[1]
    weight = source.conv[-2].weight
    if keep == weight.shape[1]:
        return None
    hidden: Any = nn.Sequential(*list(source.conv)[:-2])
    stride = block.depthwise[0].stride[0]
    depthwise = hidden[3]
    was, depthwise.stride = depthwise.stride, (stride, stride)
    parts = [(rows(hidden(part)), rows(out - part if block.residual else out)) for part, out in zip(x, wanted, strict=True)]
    depthwise.stride = was
    inputs_MC, outputs_MO = (torch.cat(part).double() for part in zip(*parts, strict=True))
    mean_C, mean_O = inputs_MC.mean(0), outputs_MO.mean(0)
    inputs_MC, outputs_MO = inputs_MC - mean_C, outputs_MO - mean_O
    gram_CC, cross_CO = inputs_MC.T @ inputs_MC / len(inputs_MC), inputs_MC.T @ outputs_MO / len(inputs_MC)
    gram_CC += RIDGE * gram_CC.diag().mean() * torch.eye(len(gram_CC), dtype=torch.float64, device=gram_CC.device)
    kept_K = most_useful(gram_CC, cross_CO, keep)
    weight_KO = torch.linalg.solve(gram_CC[kept_K][:, kept_K], cross_CO[kept_K])
    variance_O = (inputs_MC[:, kept_K] @ weight_KO).var(0)
    return kept_K, weight_KO.T, mean_C[kept_K] @ weight_KO, variance_O, mean_O


def rows(x_NChw: Tensor) -> Tensor:
    """Features `[N,C,h,w]` as one row per position, `[M,C]`."""
    return x_NChw.permute(0, 2, 3, 1).flatten(0, 2)


def most_useful(gram_CC: Tensor, cross_CO: Tensor, count: int) -> Tensor:
    """Which `count` of C regressors to keep, in ascending order, found by removing one at a time.

    gram_CC: their second moments, invertible; cross_CO: those with the O targets. Removing regressor j from a least-squares
    fit W adds |W_j|^2 / (G^-1)_jj to its squared error; the inverse is then updated in place of being computed again.
    """
    kept, inverse = list(range(len(gram_CC))), torch.linalg.inv(gram_CC)
    while len(kept) > count:
        cost = (inverse @ cross_CO[kept]).square().sum(1) / inverse.diag()
        j = int(cost.argmin())
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        rest = [i for i in range(len(kept)) if i != j]
        inverse = inverse[rest][:, rest]
        kept.pop(j)
    return torch.tensor(kept, device=gram_CC.device)


def _copy(block: Block, source: Block, fit: Fit | None) -> None:
    """Sets a block's weights to its source's, or to those of the channels that are kept, with the new projection."""
    *hidden, weight, norm = list(source.conv)
    convolutions = [block.depthwise] if isinstance(block.expand, nn.Identity) else [block.expand, block.depthwise]
    kept_K = torch.arange(weight.weight.shape[1]) if fit is None else fit[0]
    for target, start in zip(convolutions, range(0, len(hidden), 3), strict=True):
        target[0].weight.copy_(hidden[start].weight[kept_K])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(target[1], name).copy_(getattr(hidden[start + 1], name)[kept_K])
    if fit is None:
        block.project[0].weight.copy_(weight.weight)
        block.project[1].load_state_dict(norm.state_dict())
        return
    _, weight_OK, mean_O, variance_O, wanted_O = fit
    target = block.project[1]
    block.project[0].weight.copy_(weight_OK[:, :, None, None])
    # The norm has the statistics of what the projection gives, as if it had been trained; it changes only the mean.
    target.running_mean.copy_(mean_O)
    target.running_var.copy_(variance_O)
    target.weight.copy_((variance_O + target.eps).sqrt())
    target.bias.copy_(wanted_O)

"""Saliency losses on logits, frame by frame.

    frame_losses    for the student, and for the tiny ViSAGE that trains from scratch
    visage_losses   the published losses of ViSAGE, for fine-tuning it

Both are losses of sigmoid(logits), the map that ships, not of a softmax of the logits. The student's targets are non-negative
maps of any scale, densities or a teacher's maps; each loss normalises them as its definition says.

Legend: N frames · h, w cells of the logits' grid.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8
VISAGE_EPS = 1e-7
VISAGE_WEIGHTS = {"kl": 10.0, "cc": 2.0, "sim": 1.0, "bce": 1.0}  # as published; NSS has weight 0 there and is left out
VISAGE_AUX_WEIGHTS = {"p23": 0.10, "p17": 0.15, "p11": 0.20}  # of expert 2's auxiliary heads, by name
FIXATION_GAIN = 3.0  # added per fixation to the weight 1 of its pixel in the published cross-entropy


def frame_losses(
    logits_Nhw: Tensor, target_Nhw: Tensor, fixations_Nhw: Tensor | None, weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum per frame `[N]`, and its unweighted parts `[N]`.

    target_Nhw: non-negative, any scale. fixations_Nhw: fixation counts, for NSS (skipped without them).
    weights: of `kl`, `cc`, `sim`, `nss`, `bce`.
    """
    logits, target = logits_Nhw.flatten(1), target_Nhw.flatten(1)
    saliency = torch.sigmoid(logits)
    p = saliency / (saliency.sum(1, keepdim=True) + EPS)
    q = target / (target.sum(1, keepdim=True) + EPS)
    s, t = (x - x.mean(1, keepdim=True) for x in (saliency, target))
    peaked = target / (target.amax(1, keepdim=True) + EPS)
    parts = {
        # KL(target || prediction), Bylinskii et al. 2019
        "kl": (q * (torch.log(q + EPS) - torch.log(p + EPS))).sum(1),
        "cc": 1 - (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1) + EPS),
        "sim": 1 - torch.minimum(p, q).sum(1),
        "bce": F.binary_cross_entropy_with_logits(logits, peaked, reduction="none").mean(1),
    }
    if fixations_Nhw is not None and weights.get("nss"):
        fixations = fixations_Nhw.flatten(1)
        z = (saliency - saliency.mean(1, keepdim=True)) / (saliency.std(1, keepdim=True) + 1e-4)
        parts["nss"] = -(z * fixations).sum(1) / (fixations.sum(1) + EPS)
    total = sum((weights[name] * value for name, value in parts.items() if weights.get(name)), logits.new_zeros(len(logits)))
    return total, parts


def visage_losses(logits_Nhw: Tensor, density_Nhw: Tensor, fixations_Nhw: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each frame as ViSAGE (2026) trained with, `[N]`, and its unweighted parts `[N]`:

        10 KL(g || p) + 2 (1 - CC) + (1 - SIM) + BCE weighted by (1 + 3 f)

    density_Nhw: g, in [0, 1] with maximum 1. fixations_Nhw: fixation counts per cell; f is their 3x3 maximum. Without
    them only the dense terms remain, KL, CC and SIM: the loss of an auxiliary head. p is clamped to [1e-7, 1 - 1e-7], and
    1e-7 is added in every quotient and logarithm, where the published code adds it. Computed in float32.
    """
    eps = VISAGE_EPS
    p = torch.sigmoid(logits_Nhw.float()).flatten(1).clamp(eps, 1 - eps)
    g = density_Nhw.float().flatten(1).clamp(0, 1)
    p_share = p / (p.sum(1, keepdim=True) + eps)
    g_share = g / (g.sum(1, keepdim=True) + eps)
    p_centred, g_centred = p - p.mean(1, keepdim=True), g - g.mean(1, keepdim=True)
    energies = p_centred.square().sum(1) * g_centred.square().sum(1)
    parts = {
        "kl": (g_share * torch.log(g_share / (p_share + eps) + eps)).sum(1),
        "cc": 1 - (p_centred * g_centred).sum(1) / torch.sqrt(energies + eps),
        "sim": 1 - torch.minimum(p_share, g_share).sum(1),
    }
    if fixations_Nhw is not None:
        near = F.max_pool2d(fixations_Nhw.float()[:, None], 3, stride=1, padding=1).flatten(1)
        cost = -(g * torch.log(p) + (1 - g) * torch.log1p(-p))
        parts["bce"] = (cost * (1 + FIXATION_GAIN * near)).mean(1)
    total = torch.stack([VISAGE_WEIGHTS[name] * value for name, value in parts.items()]).sum(0)
    return total, parts

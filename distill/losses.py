"""Saliency losses on logits, frame by frame.

The student ships sigmoid(logits), so the losses look at that map, not at a softmax of the logits. Targets are
non-negative maps of any scale: densities or a teacher's maps; each loss normalises as its definition wants.

Legend: N frames · h, w cells of the logits' grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8


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
    parts = {
        # KL(target || prediction), Bylinskii et al. 2019
        "kl": (q * (torch.log(q + EPS) - torch.log(p + EPS))).sum(1),
        "cc": 1 - _correlation(saliency, target),
        "sim": 1 - torch.minimum(p, q).sum(1),
        "bce": F.binary_cross_entropy_with_logits(
            logits, target / (target.amax(1, keepdim=True) + EPS), reduction="none"
        ).mean(1),
    }
    if fixations_Nhw is not None and weights.get("nss"):
        fixations = fixations_Nhw.flatten(1)
        z = (saliency - saliency.mean(1, keepdim=True)) / (saliency.std(1, keepdim=True) + 1e-4)
        parts["nss"] = -(z * fixations).sum(1) / (fixations.sum(1) + EPS)
    total = sum(
        (weights[name] * value for name, value in parts.items() if weights.get(name)), logits.new_zeros(len(logits))
    )
    return total, parts


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two `[N,n]` tensors, `[N]`."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)

"""Several teachers as one: the weighted mean of their logits, member by member on the same frames.

The mean is taken in logit space and in floating point, as ViSAGE fuses its experts: a member that is sure counts for more
than one that hesitates. Members keep their own preprocessing, rate and windows; where their maps differ in size, they are
brought to the largest, bilinearly. Each member's logits are first held within +-log((1 - eps) / eps), so that none can
outvote the rest alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from distill.teachers import Prepared, Teacher

EPS = 1e-6
BOUND = math.log((1 - EPS) / EPS)
CHUNK = 64  # maps resized at a time


class Ensemble:
    """A teacher made of teachers.

    members: at least one. weights: one positive number each; only their ratios count.
    """

    def __init__(self, name: str, members: Sequence[Teacher], weights: Sequence[float]) -> None:
        if not members or len(members) != len(weights) or min(weights) <= 0:
            raise ValueError(
                f"an ensemble of {len(members)} teachers wants one positive weight each, got {list(weights)}"
            )
        self.name, self.members = name, tuple(members)
        self.shares = tuple(weight / sum(weights) for weight in weights)

    def prepare(self, frames: np.ndarray | Tensor) -> tuple[Prepared, ...]:
        """uint8 RGB `[n,H,W,3]` -> what each member wants to see of them, in the members' order."""
        return tuple(member.prepare(frames) for member in self.members)

    def infer(self, inputs: Prepared, fps: float) -> Tensor:
        """A whole clip as `prepare` gives it -> float32 logits `[T,h,w]` on the largest member's grid."""
        mean: Tensor | None = None
        for member, share, prepared in zip(self.members, self.shares, inputs, strict=True):
            logits = member.infer(prepared, fps).clamp(-BOUND, BOUND).mul_(share)
            if mean is None:
                mean = logits
                continue
            if logits[0].numel() > mean[0].numel():
                mean, logits = logits, mean
            for start in range(0, len(mean), CHUNK):
                part = mean[start : start + CHUNK]
                part += resized(logits[start : start + CHUNK], (part.shape[1], part.shape[2]))
        assert mean is not None
        return mean

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """uint8 RGB `[T,H,W,3]` -> float32 logits `[T,h,w]`."""
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        """Changes with any member's labels and with the weights' ratios."""
        parts = [f"{member.fingerprint()} {share:.9g}" for member, share in zip(self.members, self.shares, strict=True)]
        return hashlib.sha256("\n".join(["ensemble 1", *parts]).encode()).hexdigest()


def resized(maps_Thw: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `[T,h,w]` on another grid: bilinear, averaged where it shrinks."""
    if maps_Thw.shape[1:] == size:
        return maps_Thw
    return F.interpolate(maps_Thw[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]

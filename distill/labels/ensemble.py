"""Several teachers as one: the weighted mean of their logits.

The mean is taken over logits in floating point, as ViSAGE fuses its experts, so a confident member counts for more than a
hesitant one. Each member keeps its own preprocessing, frame rate and windows. Smaller maps are resized to the largest
bilinearly. Logits are clamped to +-log((1 - eps) / eps) first, so that no member alone can outvote the others.

An ensemble of a teacher and its `Mirrored` self favours neither side: teacher.flip.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from distill.labels.calibration import BOUND
from distill.teachers import Prepared, Teacher

CHUNK = 64  # maps resized at a time


class Ensemble(Teacher):
    """A teacher made of teachers. members: at least one. weights: a positive number for each; only their ratios matter."""

    def __init__(self, name: str, members: Sequence[Teacher], weights: Sequence[float]) -> None:
        self.name, self.members = name, tuple(members)
        self.shares = tuple(weight / sum(weights) for weight in weights)

    def prepare(self, frames: np.ndarray | Tensor) -> tuple[Prepared, ...]:
        """uint8 RGB `[n,H,W,3]` -> the prepared input of each member, in the members' order."""
        return tuple(member.prepare(frames) for member in self.members)

    def infer(self, inputs: Prepared, fps: float) -> Tensor:
        """A whole clip from `prepare` -> float32 logits `[T,h,w]` on the largest member's grid."""
        mean: Tensor | None = None
        for member, share, prepared in zip(self.members, self.shares, inputs, strict=True):
            logits = member.infer(prepared, fps).clamp(-BOUND, BOUND).mul_(share)
            if mean is None:
                mean = logits
                continue
            if logits[0].numel() > mean[0].numel():
                mean, logits = logits, mean
            for start in range(0, len(mean), CHUNK):
                part, other = mean[start : start + CHUNK], logits[start : start + CHUNK, None]
                size = (part.shape[1], part.shape[2])
                if other.shape[2:] != size:
                    other = F.interpolate(other, size, mode="bilinear", align_corners=False, antialias=True)
                part += other[:, 0]
        assert mean is not None
        return mean

    def fingerprint(self) -> str:
        """Changes with any member's labels and with the ratios of the weights."""
        parts = [f"{member.fingerprint()} {share:.9g}" for member, share in zip(self.members, self.shares, strict=True)]
        return hashlib.sha256("\n".join(["ensemble 1", *parts]).encode()).hexdigest()


class Mirrored(Teacher):
    """A teacher that sees every frame mirrored, left for right; its maps are mirrored back."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.name = teacher, teacher.name

    def prepare(self, frames: np.ndarray | Tensor) -> Prepared:
        """uint8 RGB `[n,H,W,3]` -> the teacher's prepared input of the mirrored frames."""
        return self.teacher.prepare(frames.flip(2) if isinstance(frames, Tensor) else np.ascontiguousarray(frames[:, :, ::-1]))

    def infer(self, inputs: Prepared, fps: float) -> Tensor:
        """A whole clip from `prepare` -> float32 logits `[T,h,w]`, placed as in the frames that were given."""
        return self.teacher.infer(inputs, fps).flip(2)

    def fingerprint(self) -> str:
        """Changes with the teacher's labels."""
        return hashlib.sha256(f"mirrored 1 {self.teacher.fingerprint()}".encode()).hexdigest()

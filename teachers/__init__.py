"""Teachers: from a clip to saliency logits, one map per frame.

Two kinds, both torch-free to name here:

    Teacher   computes:  uint8 RGB frames [T,H,W,3] and their rate -> float32 logits [T,h,w]
    Lookup    looks up:  a clip's id and frame count               -> float32 logits [T,h,w]

A teacher owns its preprocessing, its sampling rate, its windows and their overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["TEACHERS", "Lookup", "Teacher"]


class Teacher(Protocol):
    """Anything that turns a clip into logits."""

    name: str

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """uint8 RGB `[T,H,W,3]` at `fps` frames per second -> float32 `[T,h,w]`, one per frame, before the sigmoid."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the labels would."""
        ...


class Lookup(Protocol):
    """Soft labels that were computed elsewhere."""

    name: str

    def logits(self, clip_id: str, frames: int) -> Tensor:
        """The logits of a clip of `frames` frames, float32 `[T,h,w]`."""
        ...

    def fingerprint(self) -> str: ...


TEACHERS = {
    "visage": "two experts on a shared InternVideo2-style trunk, tiny, trained here from scratch",
    "maps": "soft labels computed elsewhere: teacher.maps is a folder of CLIP.npz, or of PNG folders per clip",
}

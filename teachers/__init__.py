"""Teachers: from a clip to saliency logits, one map per frame.

Two kinds, both torch-free to name here:

    Teacher   computes:  uint8 RGB frames [T,H,W,3] and their rate -> float32 logits [T,h,w]
    Lookup    looks up:  a clip's id and frame count               -> float32 logits [T,h,w]

A teacher works in two steps, so that decoding runs ahead of the network and no clip is ever held at full size:

    frames, a few at a time -> prepare -> what the network sees, small   (worker threads, CPU)
    a whole clip of that    -> infer   -> logits                         (the accelerator)

It owns its preprocessing, its sampling rate and its windows; `Inference` tells it how to run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["PLAIN", "Inference", "Lookup", "Prepared", "Teacher"]

Prepared: TypeAlias = "Tensor | tuple[Prepared, ...]"
"""Frames as a network sees them: `[n,...]`, or a tuple of such, one for each of several networks."""


@dataclass(frozen=True)
class Inference:
    """How a teacher runs its network. A teacher leaves alone what does not apply to it."""

    overlap: float = 0.0
    """Share of a window that the next window sees again, in [0, 1); see `teachers/windows.py`."""
    precision: str = "fp32"
    """`fp32`, or `bf16`: weights, and what flows between layers, in bfloat16."""
    compile: bool = False
    """Run the network through torch.compile."""
    batch: int = 0
    """Windows at once; 0: what the memory of a CUDA device takes; on the CPU two for each of torch's threads."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"Inference.overlap is {self.overlap}; it must lie in [0, 1)")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"Inference.precision is {self.precision!r}; it must be fp32 or bf16")
        if self.batch < 0:
            raise ValueError(f"Inference.batch is {self.batch}; it must be at least 0")


PLAIN = Inference()


class Teacher(Protocol):
    """Anything that turns a clip into logits."""

    name: str

    def prepare(self, frames: np.ndarray | Tensor) -> Prepared:
        """Consecutive frames, uint8 RGB `[n,H,W,3]` -> what the network sees of them, `[n,...]` on the CPU.

        Small, uint8 where it can be. Frame by frame: a clip may come in pieces of any length. Called from several
        threads at once. Raises ValueError for anything but frames.
        """
        ...

    def infer(self, inputs: Any, fps: float) -> Tensor:
        """A whole clip's prepared frames `[T,...]` at `fps` frames per second -> float32 logits `[T,h,w]` on the CPU.

        One map per frame, before the sigmoid, whose value is mask-like: 1 = as salient as this frame gets.
        """
        ...

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """`infer(prepare(frames), fps)`: uint8 RGB `[T,H,W,3]` -> float32 `[T,h,w]`."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the labels would."""
        ...


class Lookup(Protocol):
    """Soft labels that were computed elsewhere."""

    name: str

    def logits(self, name: str, frames: int, part: str = "") -> Tensor:
        """The logits of the clip that `part` of a corpus calls `name`, of `frames` frames, float32 `[T,h,w]`."""
        ...

    def fingerprint(self) -> str: ...

"""Teachers: from a clip to saliency logits, one map per frame.

There are two interfaces; importing them needs no torch:

    Teacher   computes:  uint8 RGB frames [T,H,W,3] and their rate -> float32 logits [T,h,w]
    Lookup    looks up:  a clip's name, its part, its frame count  -> float32 logits [T,h,w]

A teacher works in two steps, so that decoding runs ahead of the network and no clip is held in memory at full size:

    a few frames at a time         -> prepare -> the network's input, small   (worker threads, CPU)
    a whole clip of prepared input -> infer   -> logits                       (the accelerator)

It owns its preprocessing, its sampling rate and its windows; `Inference` holds the options for running them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Prepared: TypeAlias = "Tensor | tuple[Prepared, ...]"
"""A network's input frames: `[n,...]`, or a tuple of those for several networks."""


@dataclass(frozen=True)
class Inference:
    """How a teacher runs its network. A teacher ignores options that do not apply to it."""

    overlap: float = 0.0
    """Share of a window that the next window repeats, in [0, 1); see `windows.py`."""
    precision: str = "fp32"
    """`fp32`, or `bf16`: weights and activations in bfloat16."""
    compile: bool = False
    """Run the network through torch.compile."""
    batch: int = 0
    """Windows per pass; 0: as many as fit into a CUDA device's memory, on the CPU two for each of torch's threads."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"Inference.overlap is {self.overlap}; it must lie in [0, 1)")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"Inference.precision is {self.precision!r}; it must be fp32 or bf16")
        if self.batch < 0:
            raise ValueError(f"Inference.batch is {self.batch}; it must be at least 0")


PLAIN = Inference()


def require_whole_numbers(config: object, *names: str) -> None:
    """ValueError unless the named fields of a configuration are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name} is {value!r}; it must be a whole number of at least 1")


class Teacher(Protocol):
    """Anything that turns a clip into logits. The teachers in this package inherit `logits`."""

    name: str

    def prepare(self, frames: np.ndarray | Tensor) -> Prepared:
        """Consecutive frames, uint8 RGB `[n,H,W,3]` -> the network's input `[n,...]` on the CPU, uint8 where possible.

        Frames are independent of each other: a clip may come in pieces of any length. Called from several threads at
        once. Raises ValueError for anything but frames.
        """
        ...

    def infer(self, inputs: Any, fps: float) -> Tensor:
        """A whole clip's prepared frames `[T,...]` at `fps` frames per second -> float32 logits `[T,h,w]` on the CPU.

        One map per frame, before the sigmoid. Saliency is mask-like: 1 = as salient as this frame gets.
        """
        ...

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """uint8 RGB `[T,H,W,3]` at `fps` frames per second -> float32 `[T,h,w]` on the CPU."""
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that decides the labels: another value means other labels."""
        ...


class Lookup(Protocol):
    """Soft labels that were computed elsewhere, by clip."""

    name: str

    def has(self, name: str, part: str = "") -> bool:
        """Whether there are labels for the clip that `part` of a corpus calls `name`; they may still be damaged."""
        ...

    def places(self, name: str, part: str = "") -> list[str]:
        """The files, and the folders with a slash at the end, in which the labels of a clip are looked for."""
        ...

    def logits(self, name: str, frames: int, part: str = "") -> Tensor:
        """The logits of the clip that `part` of a corpus calls `name`, of `frames` frames, float32 `[T,h,w]`."""
        ...

    def fingerprint(self) -> str:
        """Another value means other labels."""
        ...

"""A calibration: three numbers that match a teacher's maps to the sharpness and level of a corpus's density maps.

    calibrated logits = blur(logits) / temperature + bias

Temperature and bias shape the sigmoid of the logits. `blur` is a Gaussian's sigma as a share of the width; below 0 it
sharpens by unsharp masking. `calibrate.py` fits the three; a recipe applies them with teacher.calibration.

Legend: N maps · T frames of one clip · h, w cells of the logits' grid.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.run.errors import UsageError
from distill.run.files import read_json
from distill.teachers import Lookup, Prepared, Teacher

BOUND = math.log((1 - 1e-6) / 1e-6)  # logits are clamped to +-BOUND
CHUNK = 64  # maps blurred at a time


@dataclass(frozen=True)
class Calibration:
    """The three numbers that fit a teacher's logits to a corpus. The defaults change nothing."""

    temperature: float = 1.0  # logits are divided by it; above 1 maps become flatter
    bias: float = 0.0  # added to the logits after that
    blur: float = 0.0  # sigma as a share of the width; below 0 the maps are sharpened by as much

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; it must be a number above 0")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias is {self.bias}; it must be a number")
        if not -0.2 <= self.blur <= 0.2:
            raise ValueError(f"blur is {self.blur}; it must lie in [-0.2, 0.2], a share of the width")

    def apply(self, logits_Thw: Tensor) -> Tensor:
        """Logits `[T,h,w]` -> calibrated logits `[T,h,w]`, float32; they are clamped to the logits of 1e-6 and 1 - 1e-6 first."""
        if self == IDENTITY:
            return logits_Thw.float()
        out = torch.empty(logits_Thw.shape)
        for start in range(0, len(out), CHUNK):
            clamped = logits_Thw[start : start + CHUNK].float().clamp(-BOUND, BOUND)
            out[start : start + CHUNK] = blurred(clamped, self.blur) / self.temperature + self.bias
        return out

    def to_dict(self) -> dict[str, float]:
        """Plain values, for `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            return cls(**{name: float(value) for name, value in dict(values).items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a calibration: {error}") from None


IDENTITY = Calibration()


def blurred(maps_Nhw: Tensor, share: float) -> Tensor:
    """Maps `[N,h,w]` under a Gaussian of sigma `share` of their width; below 0: maps plus their difference from the blurred ones."""
    if not share:
        return maps_Nhw
    sigma = abs(share) * maps_Nhw.shape[2]
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=maps_Nhw.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps_Nhw[:, None], (radius,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    return smooth if share > 0 else 2 * maps_Nhw - smooth


class Calibrated:
    """A teacher or a lookup with calibrated labels, and with a fingerprint that changes with the calibration."""

    def __init__(self, teacher: Teacher | Lookup, calibration: Calibration) -> None:
        self.teacher: Any = teacher
        self.calibration, self.name = calibration, teacher.name

    def prepare(self, frames: np.ndarray | Tensor) -> Prepared:
        return self.teacher.prepare(frames)

    def infer(self, inputs: Prepared, fps: float) -> Tensor:
        return self.calibration.apply(self.teacher.infer(inputs, fps))

    def logits(self, *args: Any) -> Tensor:
        return self.calibration.apply(self.teacher.logits(*args))

    def has(self, *args: Any) -> bool:
        return self.teacher.has(*args)

    def places(self, *args: Any) -> list[str]:
        return self.teacher.places(*args)

    def fingerprint(self) -> str:
        """The teacher's own where the calibration changes nothing."""
        own = self.teacher.fingerprint()
        if self.calibration == IDENTITY:
            return own
        return hashlib.sha256(f"{own} {json.dumps(self.calibration.to_dict())}".encode()).hexdigest()


def load(path: Path, fingerprint: str) -> Calibration:
    """The calibration in a file that `calibrate.save` wrote, for the teacher with this fingerprint.

    Raises UsageError for another file, and for the calibration of another teacher.
    """
    values = read_json(path)
    try:
        name, fitted_to = values["teacher"]["name"], values["teacher"]["fingerprint"]
        calibration = Calibration.from_dict(values["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a calibration ({error}); `distill teach calibrate` writes one") from None
    if fitted_to != fingerprint:
        raise UsageError(
            f"{path} was fitted to teacher {name} ({str(fitted_to)[:12]}), this one is {fingerprint[:12]}; calibrate again"
        )
    return calibration

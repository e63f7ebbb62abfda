"""A trained student as the two graphs that ship, verified: image mode and step mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from distill.export.graph import image_graph, step_graph
from distill.export.parity import SIZES, Parity, Sizes, compare
from distill.export.verification import verify
from distill.students.tiny_unet import TinyUNet


@dataclass(frozen=True)
class Verified:
    """Two graphs that passed everything, the comparison with PyTorch, and the gate's reports by mode."""

    image: onnx.ModelProto
    step: onnx.ModelProto
    parity: Parity
    gate: dict[str, Any]

    def files(self, name: str) -> dict[str, bytes]:
        """The content of `NAME.onnx` and `NAME_step.onnx`, by file name; the caller writes them."""
        models = {f"{name}.onnx": self.image, f"{name}_step.onnx": self.step}
        return {file: model.SerializeToString(deterministic=True) for file, model in models.items()}


def export_student(
    student: TinyUNet,
    fps: float,
    metadata: dict[str, str],
    real_frames: Sequence[np.ndarray] = (),
    sizes: Sizes = SIZES,
    length: int = 8,
) -> Verified:
    """Writes both graphs in memory and verifies them, with parity as in `distill.export.parity.compare`.

    Raises ExportRefused naming every failure.
    """
    student = student.eval()
    image, step = image_graph(student, metadata), step_graph(student, fps, metadata)
    parity, gate = verify(
        {"image": (image, "saliency-image"), "step": (step, "saliency-step")},
        lambda: compare(student, image, step, fps, real_frames, sizes, length),
    )
    return Verified(image, step, parity, gate)

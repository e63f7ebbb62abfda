"""The trained student that ships with this package: both ONNX files, and what lies beside them. Needs no torch.

    saliency_student.onnx, saliency_student_step.onnx    image mode and streaming, with their sidecars (.json)
    saliency_student.registry.json                       their entries for the downstream's registry
    saliency_student.md, saliency_student.toml           model card: scores, limits, licence chain; the recipe
    saliency_student.attribution.csv                     source, author and licence of every file that it was trained on

They are the files of a run's `export/` folder. The command line runs them where no model is named.
"""

from pathlib import Path
from typing import Literal

NAME = "saliency_student"


def release_model(mode: Literal["step", "image"] = "step") -> Path:
    """The path of the shipped ONNX file: `step` streams with a state, `image` takes one frame at a time."""
    return Path(__file__).with_name(f"{NAME}{'_step' if mode == 'step' else ''}.onnx")

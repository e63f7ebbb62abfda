"""A trained student as the two graphs that ship, image mode and step mode, verified against the PyTorch student.

Parity: the graphs and the student compute the same maps, at several sizes, on random and on real frames, over a streamed
sequence, where errors would accumulate, and after a reset. The state must also change the map: an exporter that folded the
state away would otherwise pass.

Legend: B batch · C channels · H, W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from distill.export.graph import image_graph, step_graph
from distill.export.runner import Predictor, largest_gap, normalise
from distill.export.verification import TOLERANCE, verify
from distill.students.tiny_unet import TinyUNet, fit_to_working_size, resize_linear

Frames = Sequence[np.ndarray]
Sizes = Sequence[tuple[int, int]]
# Height x width: the smallest, odd, portrait, a common small size, and full HD.
SIZES: Sizes = ((16, 16), (97, 131), (217, 333), (360, 640), (1080, 1920))


@dataclass(frozen=True)
class Parity:
    """What was compared, and the largest absolute differences found."""

    sizes: list[list[int]]
    frames: int
    image_max_abs: float
    step_max_abs: float
    zero_state_max_abs: float  # step file without history against the image file
    state_effect: float  # how much the state changes the last map; must not be zero
    tolerance: float = TOLERANCE

    @property
    def failures(self) -> list[str]:
        limits = {
            "image file against PyTorch": self.image_max_abs,
            "step file against PyTorch over the sequence": self.step_max_abs,
            "step file at zero state against the image file": self.zero_state_max_abs,
        }
        failed = [f"{what}: {x:.3g} > {self.tolerance:g}" for what, x in limits.items() if not x <= self.tolerance]
        if not self.state_effect > 0:
            failed.append("the state has no effect on the step file's map")
        return failed


@torch.no_grad()
def torch_maps(student: TinyUNet, inputs: Iterable[np.ndarray], dt: float | None) -> list[np.ndarray]:
    """The student's maps in PyTorch, `[1,1,H,W]` in [0, 1], for normalised `[1,3,H,W]` frames. dt: seconds between frames;
    None for image mode."""
    maps, state = [], student.zero_state()
    decay = student.decay(torch.tensor([dt])) if dt is not None else None
    for array in inputs:
        frame_BCHW = torch.from_numpy(array)
        small = fit_to_working_size(frame_BCHW, student.config.height, student.config.width)
        logits, state = (student.image(small), state) if decay is None else student.step(small, state, decay)
        maps.append(resize_linear(torch.sigmoid(logits), *frame_BCHW.shape[-2:]).numpy())
    return maps


def compare(
    student: TinyUNet,
    image: ModelProto,
    step: ModelProto,
    fps: float,
    frames: Frames = (),
    sizes: Sizes = SIZES,
    length: int = 8,
) -> Parity:
    """Runs both graphs and the student (eval mode, float32, CPU) on the same frames. frames: uint8 RGB `[H,W,3]` of one clip,
    streamed at their own size; beside them, `length` random frames are streamed at each of `sizes` (height, width)."""
    image_runner, step_runner = Predictor(image.SerializeToString()), Predictor(step.SerializeToString())
    rng = np.random.default_rng(0)
    sequences = [[rng.standard_normal((1, 3, *size), np.float32) for _ in range(length)] for size in sizes]
    sequences += [[normalise(frame) for frame in frames]] if len(frames) else []
    image_gap = step_gap = zero_gap = effect = 0.0
    for inputs in sequences:
        few = inputs[:2]  # image mode has nothing that could accumulate
        from_image = [image_runner.run(x) for x in few]
        image_gap = max(image_gap, largest_gap(from_image, torch_maps(student, few, None)))
        step_runner.reset()
        from_step = [step_runner.run(x) for x in inputs]
        step_gap = max(step_gap, largest_gap(from_step, torch_maps(student, inputs, 1 / fps)))
        step_runner.reset()
        first_frames = [from_step[0], step_runner.run(few[-1])]
        zero_gap = max(zero_gap, largest_gap(first_frames, [from_image[0], from_image[-1]]))
        effect = max(effect, largest_gap([from_step[-1]], [image_runner.run(inputs[-1])]))
    shapes = [list(sequence[0].shape[-2:]) for sequence in sequences]
    return Parity(shapes, sum(map(len, sequences)), image_gap, step_gap, zero_gap, effect)


@dataclass(frozen=True)
class Verified:
    """Two graphs that passed everything, the comparison with PyTorch, and the gate's reports by mode."""

    image: ModelProto
    step: ModelProto
    parity: Parity
    gate: dict[str, Any]

    def files(self, name: str) -> dict[str, bytes]:
        """The content of `NAME.onnx` and `NAME_step.onnx`, by file name; the caller writes them."""
        models = {f"{name}.onnx": self.image, f"{name}_step.onnx": self.step}
        return {file: model.SerializeToString(deterministic=True) for file, model in models.items()}


def export_student(
    student: TinyUNet, fps: float, metadata: dict[str, str], frames: Frames = (), sizes: Sizes = SIZES, length: int = 8
) -> Verified:
    """Writes both graphs in memory and verifies them, with parity as in `compare`. Raises ExportRefused naming every failure."""
    student = student.eval()
    image, step = image_graph(student, metadata), step_graph(student, fps, metadata)
    parity, gate = verify(
        {"image": (image, "saliency-image"), "step": (step, "saliency-step")},
        lambda: compare(student, image, step, fps, frames, sizes, length),
    )
    return Verified(image, step, parity, gate)

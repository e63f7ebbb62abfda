"""Parity: the ONNX graphs and the PyTorch student compute the same maps.

Checked at several sizes, on random and on real frames, over a streamed sequence (where an error would accumulate), for a
reset, and for a state that matters (an exporter that folded the state away would otherwise pass).

Legend: B batch · C channels · H, W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch

from distill.export.limits import TOLERANCE
from distill.export.runner import Predictor, normalise
from distill.students.tiny_unet import TinyUNet, fit_to_working_size, resize_linear

# Height x width: the smallest, odd, portrait, a common small size, and full HD.
SIZES: tuple[tuple[int, int], ...] = ((16, 16), (97, 131), (217, 333), (360, 640), (1080, 1920))


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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def torch_maps(student: TinyUNet, inputs: Iterable[np.ndarray], dt: float | None) -> list[np.ndarray]:
    """The student's own maps for normalised `[1,3,H,W]` frames; dt None is image mode, else seconds between frames."""
    maps, state = [], student.zero_state()
    keep = student.decay(torch.tensor([dt])) if dt is not None else None
    for array in inputs:
        frame_BCHW = torch.from_numpy(array)
        small = fit_to_working_size(frame_BCHW, student.config.height, student.config.width)
        if keep is None:
            logits = student.image(small)
        else:
            logits, state = student.step(small, state, keep)
        maps.append(resize_linear(torch.sigmoid(logits), *frame_BCHW.shape[-2:]).numpy())
    return maps


def compare(
    student: TinyUNet,
    image: onnx.ModelProto,
    step: onnx.ModelProto,
    fps: float,
    real_frames: Sequence[np.ndarray] = (),
    sizes: Sequence[tuple[int, int]] = SIZES,
    length: int = 8,
    seed: int = 0,
) -> Parity:
    """Runs both graphs and the student (eval mode, float32, CPU) on the same frames.

    real_frames: uint8 RGB `[H,W,3]` of one clip, streamed at their own size; random frames of `length` steps are
    streamed at each of `sizes`.
    """
    image_runner, step_runner = Predictor(image.SerializeToString()), Predictor(step.SerializeToString())
    rng = np.random.default_rng(seed)
    sequences = [[rng.standard_normal((1, 3, *size), np.float32) for _ in range(length)] for size in sizes]
    if len(real_frames):
        sequences.append([normalise(frame) for frame in real_frames])

    def gap(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> float:
        # A NaN must not hide behind max(): it is reported as an infinite gap.
        return max(float(np.nan_to_num(np.abs(x - y).max(), nan=np.inf)) for x, y in zip(a, b, strict=True))

    image_gap = step_gap = zero_gap = effect = 0.0
    for inputs in sequences:
        few = inputs[:2]  # image mode has nothing that could accumulate
        from_image = [image_runner.run(x) for x in few]
        image_gap = max(image_gap, gap(from_image, torch_maps(student, few, None)))
        step_runner.reset()
        from_step = [step_runner.run(x) for x in inputs]
        step_gap = max(step_gap, gap(from_step, torch_maps(student, inputs, 1 / fps)))
        step_runner.reset()
        zero_gap = max(zero_gap, gap([from_step[0], step_runner.run(few[-1])], [from_image[0], from_image[-1]]))
        effect = max(effect, gap([from_step[-1]], [image_runner.run(inputs[-1])]))
    return Parity(
        sizes=[list(s[0].shape[-2:]) for s in sequences],
        frames=sum(map(len, sequences)),
        image_max_abs=image_gap,
        step_max_abs=step_gap,
        zero_state_max_abs=zero_gap,
        state_effect=effect,
    )

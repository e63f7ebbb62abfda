"""Any ONNX saliency model as a teacher: an image model, or a step model with its state carried through the clip.

A student can thus teach a smaller one (a teacher assistant). The model's first input must be `input` f32 [1,3,H,W],
ImageNet-normalised, and its first output `saliency_map` f32 [1,1,H,W] in [0, 1].
"""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from distill.export.runner import Predictor
from distill.run.files import sha256_of
from distill.teachers import Teacher

MAX_INPUT = 640  # greatest width of its input in pixels: label stores keep far smaller maps
MAX_WIDTH = 160  # greatest width of its maps; larger ones are averaged before the logit
MULTIPLE = 8  # both sides of its input are multiples of 8: students with three poolings and skips need that
EPS = 1e-6


class OnnxTeacher(Teacher):
    """The maps of an ONNX file, as logits. Raises ValueError for a file that is not a saliency model."""

    name = "onnx"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} does not exist; name an ONNX file")
        self.predictor = Predictor(path, threads=torch.get_num_threads())
        self._digest = sha256_of(path)

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 RGB `[n,H,W,3]` -> uint8 `[n,h,w,3]`: at most 640 px wide, both sides multiples of 8."""
        frames = np.asarray(frames)
        height, width = frames.shape[1:3]
        scale = min(1.0, MAX_INPUT / width)
        size = tuple(max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))
        if size == (width, height):
            return torch.from_numpy(np.ascontiguousarray(frames))
        method = cv2.INTER_AREA if size[0] * size[1] <= width * height else cv2.INTER_LINEAR
        return torch.from_numpy(np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames]))

    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """A whole clip's prepared frames -> float32 logits `[T,h,w]`, at most 160 px wide.

        The model sees every frame, whatever `fps`, as it does in its application.
        """
        self.predictor.reset()
        maps = []
        for number, frame in enumerate(inputs.numpy(), 1):
            saliency = self.predictor.predict(frame)
            if saliency.min() < -EPS or saliency.max() > 1 + EPS:  # a NaN passes; the label store refuses it
                raise ValueError(
                    f"{self.predictor.name} gives values from {saliency.min():.3g} to {saliency.max():.3g} for frame {number}, "
                    "where a saliency map is in [0, 1]; end the model in a sigmoid"
                )
            if saliency.shape[1] > MAX_WIDTH:
                size = (MAX_WIDTH, max(1, round(saliency.shape[0] * MAX_WIDTH / saliency.shape[1])))
                saliency = cv2.resize(saliency, size, interpolation=cv2.INTER_AREA)
            maps.append(saliency)
        return torch.logit(torch.from_numpy(np.stack(maps)), eps=EPS)

    def fingerprint(self) -> str:
        """SHA-256 of the file and of the sizes at which it runs."""
        return hashlib.sha256(f"onnx {MAX_INPUT} {MAX_WIDTH} {MULTIPLE} {self._digest}".encode()).hexdigest()

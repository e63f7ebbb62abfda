"""The ONNX files that are scored: loading one, the frame sizes that it takes, a frame's map."""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

from distill.export.planes import PlanePredictor
from distill.export.runner import Predictor
from distill.run.errors import UsageError


def load_predictor(path: Path, threads: int = 1) -> Predictor:
    """Raises UsageError where the file is missing or not a saliency student."""
    if not path.is_file():
        raise UsageError(f"no model at {path}" + ("; it is a folder" if path.is_dir() else ""))
    try:
        return Predictor(path, threads)
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_on_planes(path: Path, output: str, threads: int = 1) -> Predictor | PlanePredictor:
    """A student for the planes of decoded frames; `output` is `map` or `block-map`. Another project's takes RGB frames, and gives
    whole maps. Raises UsageError as `load_predictor`."""
    predictor = load_predictor(path, threads)
    try:
        return PlanePredictor(path, output, threads)
    except ValueError:
        return predictor


def size_multiple(predictor: Predictor) -> int:
    """The smallest power of two, up to 32, that a model's frame sizes must be multiples of; 1 where no size works. Students
    of other projects may take multiples of 8 only, and should still be scored on the same clips."""
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4  # failures are expected here
    for multiple in (1, 2, 4, 8, 16, 32):
        frame = np.zeros((1, 3, 64 + multiple, 96 + multiple), np.float32)
        try:
            if predictor.session.run(predictor.outputs, {"input": frame}, quiet)[0].shape == (1, 1, *frame.shape[2:]):
                return multiple
        except Exception:  # onnxruntime's exceptions have no common base class
            continue
    return 1


def predict(predictor: Predictor, frame: np.ndarray, multiple: int) -> np.ndarray:
    """The map of the next frame: uint8 RGB `[H,W,3]` -> float32 `[H,W]`. A frame whose size is not a multiple of `multiple` is
    extended at the right and at the bottom; the map is cropped to the frame."""
    height, width = frame.shape[:2]
    if height % multiple == width % multiple == 0:
        return predictor.predict(frame)
    extended = cv2.copyMakeBorder(frame, 0, -height % multiple, 0, -width % multiple, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(predictor.predict(extended)[:height, :width])

"""Streams frames through a shipped ONNX file with onnxruntime, and carries the state; needs no torch.

    predictor = Predictor("student_step.onnx")
    for saliency in predictor.stream(frames):   # uint8 [H,W,3] RGB -> float32 [H,W] in [0, 1]
        ...
    predictor.reset()                           # at a scene cut, or before another video

A file with the output `state_out` is a step file; an image file has no state to carry.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

# What every consumer of these files applies to RGB in [0, 1] before `input`.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
_GAIN, _BIAS = 1 / (255 * IMAGENET_STD), -IMAGENET_MEAN / IMAGENET_STD


def normalise(frame: np.ndarray) -> np.ndarray:
    """A uint8 RGB frame `[H,W,3]` as ImageNet-normalised float32 `[1,3,H,W]`."""
    height, width = frame.shape[:2]
    out = np.empty((1, 3, height, width), np.float32)
    for channel in range(3):
        np.multiply(frame[..., channel], _GAIN[channel], out=out[0, channel], dtype=np.float32)
        out[0, channel] += _BIAS[channel]
    return out


def largest_gap(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest absolute difference of maps, pair by pair; infinite where one is NaN, which max() alone would hide."""
    return max(float(np.nan_to_num(np.abs(a - b).max(), nan=np.inf)) for a, b in zip(ours, theirs, strict=True))


def open_session(model: str | Path | bytes, name: str, threads: int) -> ort.InferenceSession:
    """A session on the CPU for the model, which messages call `name`. Raises ValueError where it does not load."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # It warns of the optional input, and raises its errors beside printing them with raw names.
    options.log_severity_level = 4
    try:
        source = model if isinstance(model, bytes) else str(model)
        if isinstance(source, str) and any("\ud800" <= c <= "\udfff" for c in source):
            source = Path(source).read_bytes()  # onnxruntime takes only names in UTF-8
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ValueError(f"{name} does not load in onnxruntime: {str(error).splitlines()[0]}") from None


class Predictor:
    """A saliency student in onnxruntime on the CPU, with the state of one stream in `state`; None before the first frame.

    model: path of an ONNX file, or its bytes. threads: intra-op threads, 0 for onnxruntime's default.
    Raises ValueError where the file does not load or is not a saliency student.
    """

    def __init__(self, model: str | Path | bytes, threads: int = 1) -> None:
        name = "the model" if isinstance(model, bytes) else str(model)
        self.session = open_session(model, name, threads)
        inputs = [i.name for i in self.session.get_inputs()]
        outputs = [o.name for o in self.session.get_outputs()]
        if inputs[:1] != ["input"] or outputs[:1] != ["saliency_map"]:
            raise ValueError(
                f"{name} is not a saliency student: its inputs are {inputs} and its outputs {outputs}; "
                "`input` and `saliency_map` must come first"
            )
        self.name, self.stateful = name, "state_out" in outputs
        self.outputs = ["saliency_map", "state_out"] if self.stateful else ["saliency_map"]
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self._start = {  # of a file of one size, whose state is a required input
            i.name: np.zeros(i.shape, np.float32)
            for i in self.session.get_inputs()
            if i.name == "state_in" and all(isinstance(side, int) for side in i.shape)
        }
        self.state: np.ndarray | None = None

    def reset(self) -> None:
        """Drops the state: the next frame is treated as the first of a video."""
        self.state = None

    def predict(self, frame: np.ndarray) -> np.ndarray:
        """The saliency map of the next frame: uint8 RGB `[H,W,3]` -> float32 `[H,W]` in [0, 1]."""
        return self.run(normalise(frame))[0, 0]

    def run(self, input_1CHW: np.ndarray) -> np.ndarray:
        """The same for a normalised float32 `[1,3,H,W]`; returns `[1,1,H,W]`. Raises ValueError where the model does not take
        a frame of this size."""
        feed = {"input": input_1CHW, **self._start}
        if self.state is not None:
            feed["state_in"] = self.state
        try:
            results = self.session.run(self.outputs, feed)
        except Exception as error:  # as above
            height, width = input_1CHW.shape[2:]
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} does not run at {width}x{height}: {reason}") from None
        if results[0].shape != (1, 1, *input_1CHW.shape[2:]):
            given, wrong = list(input_1CHW.shape), list(results[0].shape)
            raise ValueError(f"{self.name} gives a map of shape {wrong} for a frame of {given}")
        if self.stateful:
            self.state = results[1]
        return results[0]

    def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The maps of consecutive frames, the state carried from one to the next."""
        for frame in frames:
            yield self.predict(frame)

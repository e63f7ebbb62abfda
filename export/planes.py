"""A student over the planes of decoded frames, the state carried; no RGB frame is made. Needs onnx and onnxruntime.

    stream = Stream(PlanePredictor("student_step.onnx"))
    for planes, seconds in frames:                 # Planes, its time stamp
        blocks = stream.map(planes, seconds)       # float32 [ceil(H/16),ceil(W/16)] in [0, 1]

The graph for the planes is made in memory from an image or step file, for the size and the colour of the first frame, and
again where these change.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from distill.export.core import core_of
from distill.export.runner import open_session
from distill.export.variants import Variant, variant_graph
from distill.export.yuv import Planes


class PlanePredictor:
    """A student on planes in onnxruntime on the CPU, with the state of one stream in `state`; None before the first frame.

    model: path of an image or step file, or its bytes. output: `block-map`, the means of 16x16 px of the map, or `map`. threads:
    intra-op threads, 0 for onnxruntime's default. Raises ValueError where it is not a file of this exporter, and for another output.
    """

    def __init__(self, model: str | Path | bytes, output: str = "block-map", threads: int = 1) -> None:
        self.name = "the model" if isinstance(model, bytes) else str(model)
        self._variant, self.threads = Variant("yuv420", output=output), threads
        try:
            self._model = onnx.load_from_string(model if isinstance(model, bytes) else Path(model).read_bytes())
            core_of(self._model)
        except Exception as error:  # protobuf's errors share no base class with ExportRefused
            raise ValueError(f"{self.name}: {str(error).splitlines()[0]}") from None
        self.stateful = any(value.name == "state_out" for value in self._model.graph.output)
        self._zeros = [onnx.numpy_helper.to_array(t) for t in self._model.graph.initializer if t.name == "state_in"]
        self.metadata = {prop.key: prop.value for prop in self._model.metadata_props}
        self.state: np.ndarray | None = None
        self._session: ort.InferenceSession | None = None  # runs `_variant`, once that has the size of a frame

    def reset(self) -> None:
        """Drops the state: the next frame is treated as the first of a video."""
        self.state = None

    def predict(self, planes: Planes) -> np.ndarray:
        """The map of the next frame, float32 in [0, 1]: `[ceil(H/16),ceil(W/16)]`, or `[H,W]` for the output `map`."""
        variant = replace(self._variant, size=planes.shape, colour=planes.colour)
        if self._session is None or self._variant != variant:
            graph = variant_graph(self._model, variant, integer=True)
            self._session, self._variant = open_session(graph.SerializeToString(), self.name, self.threads), variant
        feed: dict[str, np.ndarray] = {
            name: np.ascontiguousarray(getattr(planes, name))[None, None] for name in ("y", "u", "v")
        }
        for zero in self._zeros:
            feed["state_in"] = zero if self.state is None else self.state
        try:
            saliency, *states = self._session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            height, width = planes.shape
            raise ValueError(f"{self.name} does not run at {width}x{height}: {str(error).splitlines()[0]}") from None
        if states:
            self.state = states[0]
        return saliency[0, 0]

"""A shipped ONNX file in int8: static QuantizeLinear/DequantizeLinear pairs, ranges measured on frames; torch-free.

    int8 = quantise(onnx.load("student_step.onnx"), clips)   # clips: uint8 RGB frames, streamed with the state carried
    drift(original, int8, held_out)                          # how far the maps went

Static, because the downstream accepts no operator that measures ranges as it runs. Weights are int8, one scale for each
output channel, in 7 bits: where a CPU has AVX2 and no VNNI, products of 8 bits saturate. Activations are uint8.

What is rounded is the body, Conv, Add and Relu. What stays in floating point, because 8 bits would show:
    the entry     scaling, and the first convolution that reads the frame
    the exit      from the last convolution on: logits, sigmoid, map
    the memory    whatever stands next to the state: a running average that moves by less than half a step of 1/255 would
                  stand still
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto

from distill.export.errors import ExportRefused
from distill.export.limits import MAX_BYTES
from distill.export.runner import Predictor, normalise
from distill.opallowlist import check

ROUNDED = ("Conv", "Add", "Relu")
SIZES = ((16, 16), (97, 131), (360, 640))  # height, width: the smallest, an odd one, a common one


@dataclass(frozen=True)
class Drift:
    """How far the maps of one file are from another's over streamed frames; maps are in [0, 1]."""

    frames: int
    max_abs: float
    mean_abs: float
    plcc: float  # Pearson's correlation of all values of all maps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantise(
    model: onnx.ModelProto, clips: Iterable[Iterable[np.ndarray]], every: int = 4, note: str = ""
) -> onnx.ModelProto:
    """`model` in int8, checked and gated; its ranges are those of every `every`-th frame of the clips.

    clips: uint8 RGB frames `[H,W,3]`; each clip is streamed from its start, the state carried by the model in float.
    note: what the frames were, for the metadata.
    Raises ExportRefused where the model does not run on the frames, or the result does not pass the checker, the gate and its
    contract, or does not run.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    nodes = rounded_nodes(model.graph)
    if not any(node.op_type == "Conv" for node in nodes):
        raise ExportRefused("there is no convolution between the entry and the logits that int8 could make faster")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, path = Path(folder) / "original.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, original)
        try:
            quantize_static(
                original,
                path,
                _Frames(model, clips, every),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(ROUNDED),
                nodes_to_quantize=[node.name for node in nodes],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ExportRefused(f"onnxruntime's quantiser gave up: {str(error).splitlines()[0]}") from None
        int8 = onnx.load(path)
    del int8.graph.value_info[:]
    int8.producer_name, int8.producer_version = model.producer_name, model.producer_version
    source = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    properties = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(
        int8, {**properties, "quant_mode": "static", "quant_source_sha256": source, "quant_calibration_set": note}
    )
    if failures := refusals(int8, model):
        raise ExportRefused("; ".join(failures))
    return int8


def refusals(int8: onnx.ModelProto, original: onnx.ModelProto) -> list[str]:
    """Why a quantised file may not ship; empty where it may."""
    failures = []
    try:
        onnx.checker.check_model(int8, full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        failures.append(f"onnx.checker: {str(error).splitlines()[0]}")
    stateful = any(value.name == "state_out" for value in original.graph.output)
    report = check(int8, contract="saliency-step" if stateful else "saliency-image")
    failures += [str(violation) for violation in report.violations]
    versions = [(m.ir_version, [(o.domain, o.version) for o in m.opset_import]) for m in (int8, original)]
    if versions[0] != versions[1]:
        failures.append(f"IR and opsets are {versions[0]}, the original's are {versions[1]}")
    if (size := int8.ByteSize()) > MAX_BYTES:
        failures.append(f"{size:,} bytes, more than the {MAX_BYTES:,} of the contract")
    if failures:
        return failures
    try:
        runners = Predictor(int8.SerializeToString()), Predictor(original.SerializeToString())
    except ValueError as error:
        return [str(error)]
    for size in SIZES:
        with contextlib.suppress(ValueError):  # other projects' students do not run at every size
            runners[1].reset()
            runners[1].run(_noise(*size))
            failures += _trouble(runners[0], *size)
    return failures


def _trouble(runner: Predictor, height: int, width: int) -> list[str]:
    runner.reset()
    try:
        maps = [runner.run(_noise(height, width, seed)) for seed in range(3)]
    except ValueError as error:
        return [str(error)]
    if not all(np.isfinite(m).all() and m.min() >= 0 and m.max() <= 1 for m in maps):
        return [f"at {width}x{height} the map is not within [0, 1]"]
    return []


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, height, width), np.float32)


def drift(original: onnx.ModelProto, int8: onnx.ModelProto, clips: Iterable[Iterable[np.ndarray]]) -> Drift:
    """The differences of the maps over clips (uint8 RGB frames `[H,W,3]`), each file carrying its own state."""
    one, other = Predictor(original.SerializeToString()), Predictor(int8.SerializeToString())
    frames, largest, total = 0, 0.0, 0.0
    moments = np.zeros(6)  # sums of 1, x, y, xx, xy, yy
    for clip in clips:
        one.reset()
        other.reset()
        for frame in clip:
            x, y = (np.float64(predictor.predict(frame)) for predictor in (one, other))
            gap = np.abs(x - y)
            frames, largest, total = frames + 1, max(largest, float(gap.max())), total + float(gap.mean())
            moments += (x.size, x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum())
    if not frames:
        raise ValueError("there are no frames to compare on")
    return Drift(frames, largest, total / frames, _pearson(moments / moments[0]))


def _pearson(means: np.ndarray) -> float:
    """The correlation of two series from the means of 1, x, y, xx, xy, yy; 0 where one of them never changes."""
    _, x, y, xx, xy, yy = means
    spread = (xx - x * x) * (yy - y * y)
    return float((xy - x * y) / np.sqrt(spread)) if spread > 0 else 0.0


# --- what is rounded -------------------------------------------------------------------------------------------------


def rounded_nodes(graph: onnx.GraphProto) -> list[NodeProto]:
    """The nodes of the body: Conv, Add and Relu beyond the first convolution of frame and state, before the last of map and state.

    A value is rounded for all that read it: if the first convolution were rounded, the luma of the frame would be too.
    A convolution is one with a bias: those without are the student's fixed kernels, which unfold and fold the state.
    """
    kept = {
        *_reach(graph, ["input", "state_in"], forward=True),
        *_reach(graph, ["saliency_map"], forward=False),
        *_reach(graph, ["state_out"], forward=False),
    }
    weights = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    chosen, rounded = list[NodeProto](), set[str]()
    for index, node in enumerate(graph.node):
        if index in kept or not node.name or node.op_type not in ROUNDED:
            continue
        if node.op_type == "Conv" and not (_is_conv(node) and node.input[1] in weights):
            continue
        if node.op_type == "Relu" and node.input[0] not in rounded:
            continue
        chosen.append(node)
        rounded.update(node.output)
    return chosen


def _is_conv(node: NodeProto) -> bool:
    return node.op_type == "Conv" and len(node.input) > 2


def _reach(graph: onnx.GraphProto, names: list[str], forward: bool) -> set[int]:
    """Indices of the nodes between the named values and the next convolution, that one included."""
    reached, values = set[int](), set(names)
    nodes = list(enumerate(graph.node))
    for index, node in nodes if forward else reversed(nodes):  # nodes stand in the order in which they run
        here, there = (node.input, node.output) if forward else (node.output, node.input)
        if values.intersection(here):
            reached.add(index)
            values.update(() if _is_conv(node) else filter(None, there))
    return reached


# --- onnxruntime's quantiser -----------------------------------------------------------------------------------------


class _Frames:
    """What the calibration feeds: chosen frames of streamed clips, with the state that the original had before each."""

    def __init__(self, model: onnx.ModelProto, clips: Iterable[Iterable[np.ndarray]], every: int) -> None:
        self.predictor = Predictor(model.SerializeToString())
        self.feeds = self._stream(clips, every)

    def _stream(self, clips: Iterable[Iterable[np.ndarray]], every: int) -> Iterator[dict[str, np.ndarray]]:
        for clip in clips:
            self.predictor.reset()
            state: dict[str, np.ndarray] = {}
            for index, frame in enumerate(clip):
                feed = {"input": normalise(frame), **state}
                if index % every == 0:
                    yield feed
                if self.predictor.stateful:
                    results = self.predictor.session.run(["state_out"], feed)
                    state = {"state_in": results[0]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.feeds


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser advises on the root logger, and warns of the optional input as any session does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)
        logging.disable(before)

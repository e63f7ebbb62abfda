"""A shipped ONNX file in int8: static QuantizeLinear/DequantizeLinear pairs, ranges measured on frames; needs no torch.

    int8 = quantise(onnx.load("student_step.onnx"), clips)   # clips: uint8 RGB frames, streamed with the state carried
    drift(original, int8, held_out)                          # differences of the maps

Static, because the downstream accepts no operator that measures ranges at run time. Weights are int8, with one scale per
output channel, in 7 bits: on CPUs with AVX2 but without VNNI, sums of 8-bit products saturate. Activations are uint8.

The body is rounded: its Conv, Add and Relu. What stays in floating point, because 8 bits would show in the map:
    the entry     scaling, and the first convolution that reads the frame
    the exit      from the last convolution on: logits, sigmoid, map
    the memory    what reads and writes the state: a running average whose update is smaller than half a step of 1/255 would
                  never move
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort

from distill.export.runner import Predictor, normalise
from distill.export.verification import ExportRefused, verify

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDED = ("Conv", "Add", "Relu", "Clip")
SIZES = ((16, 16), (97, 131), (360, 640))  # height, width: the smallest, an odd one, a common one


@dataclass(frozen=True)
class Drift:
    """How far the maps of one file are from another's over streamed frames; maps are in [0, 1]."""

    frames: int
    max_abs: float
    mean_abs: float
    plcc: float  # Pearson's correlation of all values of all maps


def quantise(model: onnx.ModelProto, clips: Iterable[Iterable[np.ndarray]], every: int = 4, note: str = "") -> onnx.ModelProto:
    """`model` in int8; its ranges are those of every `every`-th frame of the clips.

    It is verified: beside the common checks, IR and opset are the original's, and it runs wherever that does.

    clips: uint8 RGB frames `[H,W,3]`; each clip is streamed from its start, with the state of the floating-point model.
    note: what the frames are, for the metadata.
    Raises ExportRefused where the model does not run on the frames, or where the result fails a check, naming every failure.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    chosen = rounded_nodes(model)
    if not any(node.op_type == "Conv" and node.name in chosen for node in model.graph.node):
        raise ExportRefused("there is no convolution between the entry and the logits that int8 could make faster")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, path = Path(folder) / "original.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, original)
        feeds = _feeds(Predictor(model.SerializeToString()), clips, every)
        try:
            quantize_static(
                original, path, SimpleNamespace(get_next=lambda: next(feeds, None)), quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(ROUNDED), nodes_to_quantize=chosen, per_channel=True, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExportRefused(f"onnxruntime's quantiser failed: {str(error).splitlines()[0]}") from None
        int8 = onnx.load(path)
    del int8.graph.value_info[:]
    int8.producer_name, int8.producer_version = model.producer_name, model.producer_version
    source = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    properties = {p.key: p.value for p in model.metadata_props}
    properties |= {"quant_mode": "static", "quant_source_sha256": source, "quant_calibration_set": note}
    onnx.helper.set_model_props(int8, properties)
    contract = "saliency-step" if any(value.name == "state_out" for value in model.graph.output) else "saliency-image"
    new, old = [(m.ir_version, [(o.domain, o.version) for o in m.opset_import]) for m in (int8, model)]
    changed = [f"int8: IR and opsets are {new}, the original's are {old}"] if new != old else []
    verify({"int8": (int8, contract)}, lambda: _try_sizes(int8, model), changed)
    return int8


@dataclass(frozen=True)
class _Trials:
    """Where a quantised graph does not run, or gives maps outside [0, 1]."""

    failures: list[str]


def _try_sizes(int8: onnx.ModelProto, original: onnx.ModelProto) -> _Trials:
    """Runs three frames of noise at each of SIZES where the original runs."""
    runner, reference = Predictor(int8.SerializeToString()), Predictor(original.SerializeToString())
    failures = list[str]()
    for height, width in SIZES:
        reference.reset()
        runner.reset()
        with contextlib.suppress(ValueError):  # other projects' students do not run at every size
            noise = [np.random.default_rng(seed).standard_normal((1, 3, height, width), np.float32) for seed in range(3)]
            reference.run(noise[0])
            try:
                maps = np.stack([runner.run(frame) for frame in noise])
                if not (np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1):
                    failures.append(f"at {width}x{height} the map is not within [0, 1]")
            except ValueError as error:
                failures.append(str(error))
    return _Trials(failures)


def drift(original: onnx.ModelProto, int8: onnx.ModelProto, clips: Iterable[Iterable[np.ndarray]]) -> Drift:
    """The differences of the maps over clips (uint8 RGB frames `[H,W,3]`), each file carrying its own state."""
    float_runner, int8_runner = Predictor(original.SerializeToString()), Predictor(int8.SerializeToString())
    frames, largest, total = 0, 0.0, 0.0
    moments = np.zeros(6)  # sums of 1, x, y, xx, xy, yy
    for clip in clips:
        float_runner.reset()
        int8_runner.reset()
        for frame in clip:
            x, y = (np.float64(predictor.predict(frame)) for predictor in (float_runner, int8_runner))
            gap = np.abs(x - y)
            frames, largest, total = frames + 1, max(largest, float(gap.max())), total + float(gap.mean())
            moments += (x.size, x.sum(), y.sum(), (x * x).sum(), (x * y).sum(), (y * y).sum())
    if not frames:
        raise ValueError("there are no frames to compare on")
    _, mean_x, mean_y, xx, xy, yy = moments / moments[0]
    spread = (xx - mean_x * mean_x) * (yy - mean_y * mean_y)
    plcc = float((xy - mean_x * mean_y) / np.sqrt(spread)) if spread > 0 else 0.0  # 0 where one of them never changes
    return Drift(frames, largest, total / frames, plcc)


def rounded_nodes(model: onnx.ModelProto) -> list[str]:
    """The names of the body's nodes: Conv, Add, Relu and Clip after the first convolution of the frame and of the state, and before
    the last convolution of the map and of the state.

    A value is rounded for all that read it: if the first convolution were rounded, the luma of the frame would be too.
    """
    import onnx_ir as ir

    graph = ir.from_proto(model).graph
    in_float = _up_to_convolutions([v for v in graph.inputs if v.name in ("input", "state_in")], forward=True)
    in_float |= _up_to_convolutions([v for v in graph.outputs if v.name in ("saliency_map", "state_out")], forward=False)
    chosen: list[ir.Node] = []
    for node in graph:
        if node in in_float or not node.name or node.op_type not in ROUNDED:
            continue
        if node.op_type == "Conv" and not (
            _is_learned(node) and node.inputs[1].is_initializer() and not node.inputs[1].is_graph_input()
        ):
            continue
        if node.op_type in ("Relu", "Clip") and node.inputs[0].producer() not in chosen:
            continue
        chosen.append(node)
    return [node.name for node in chosen]


def _is_learned(node: ir.Node) -> bool:
    """Whether it is a learned convolution. Fixed kernels, which unfold the state or take the luma of the frame, have no bias;
    learned ones have, since BatchNorm is folded into them."""
    return node.op_type == "Conv" and len(node.inputs) > 2


def _up_to_convolutions(values: list[ir.Value], forward: bool) -> set[ir.Node]:
    """The nodes between the values and the next learned convolutions, those included."""
    reached: set[ir.Node] = set()
    while values:
        value = values.pop()
        producer = value.producer()
        for node in value.consumers() if forward else [producer] if producer else []:
            if node not in reached:
                reached.add(node)
                beyond = node.outputs if forward else node.inputs
                values += [] if _is_learned(node) else [value for value in beyond if value is not None]
    return reached


def _feeds(predictor: Predictor, clips: Iterable[Iterable[np.ndarray]], every: int) -> Iterator[dict[str, np.ndarray]]:
    """The inputs to calibrate on: every `every`-th frame of streamed clips, with the state that the original had before it."""
    for clip in clips:
        state: dict[str, np.ndarray] = {}
        for index, frame in enumerate(clip):
            feed = {"input": normalise(frame), **state}
            if index % every == 0:
                yield feed
            if predictor.stateful:
                state = {"state_in": predictor.session.run(["state_out"], feed)[0]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences onnxruntime's quantiser: it gives advice on the root logger, and its sessions warn of the optional input."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)
        logging.disable(before)

"""A shipped image file for one frame size, with luma alone as input; needs no torch.

    luma = luma_graph(onnx.load("student.onnx"), height=1080, width=1920)   # f32 [1,1,1080,1920] in and out
    parity = verify_luma(luma, onnx.load("student.onnx"))                   # gated, and compared; or ExportRefused

For consumers that have no colour and no dynamic shapes (the downstream's `vmaf_roi --saliency-model`). `input` is the Y
plane as it is stored, over 255. In the graph, limited range (16 to 235) becomes grey, R = G = B = (255 y - 16) / 219,
clipped to [0, 1], then ImageNet-normalised as every consumer of the image file does it. The student is the image
file's own, node by node; its entry and its exit are rewritten for the one size. Pooling and linear scaling are
averages, so they may run on one channel, which becomes three at the working resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from distill.export.resolution import to_working_size
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, Predictor, largest_gap
from distill.export.verification import TOLERANCE, ExportRefused, verify

if TYPE_CHECKING:
    import onnx_ir as ir

    from distill.export.writer import Writer

BLACK, WHITE = 16, 235  # luma of limited range, of 255
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class LumaParity:
    """How far the maps are from the image file's for the same grey frames; maps are in [0, 1]."""

    frames: int
    max_abs: float
    tolerance: float = TOLERANCE

    @property
    def failures(self) -> list[str]:
        message = f"luma file against image file: {self.max_abs:.3g} > {self.tolerance:g}"
        return [] if self.max_abs <= self.tolerance else [message]


def luma_graph(image: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """The graph for frames of `width` x `height` luma: `input` f32 `[1,1,H,W]` -> `saliency_map` f32 `[1,1,H,W]`.

    image: an image file as `image_graph` writes it, in floating point or int8; its metadata are kept.
    Raises ExportRefused for another model.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import GraphBuilder

    from distill.export.writer import Writer

    model = ir.from_proto(image)
    graph = model.graph
    frame, small, working_size, pooling = _core(graph)
    graph.inputs.clear()
    graph.outputs.clear()
    graph.name = "saliency_student_luma"
    writer = Writer(GraphBuilder(graph))
    entry, leave = writer.within("entry"), writer.within("exit")
    plane = writer.builder.input("input", ir.DataType.FLOAT, [1, 1, height, width])
    heights = [node.attributes["kernel_shape"].as_ints()[0] for node in pooling if node.op_type == "AveragePool"]
    kernels = [height for height in heights if height > 1]  # of a pooling in two steps, the first has its height
    frame.replace_all_uses_with(_enter(entry, plane, (height, width), working_size, kernels))
    shape = leave.ints([1, 1, height, width], "map_shape")
    writer.output(leave.resize(small, "saliency_map", shape=shape), [1, 1, height, width])
    for node in pooling:
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)  # the pass below keeps values that a branch reads, even one that it removes
    common.RemoveUnusedNodesPass()(model)
    graph.sort()
    return writer.model(model.metadata_props, image.producer_name)


def _enter(writer: Writer, plane: ir.Value, size: Size, working_size: Size, kernels: list[int]) -> ir.Value:
    """The plane as a normalised RGB frame at the working resolution, f32 `[1,3,working height,working width]`."""
    constants = {"luma_gain": 255 / (WHITE - BLACK), "luma_bias": -BLACK / (WHITE - BLACK), "black": 0.0, "white": 1.0}
    gain, bias, black, white = (writer.node("Constant", [], name, value_float=x) for name, x in constants.items())
    unlimited = writer.node("Add", [writer.node("Mul", [plane, gain], "stretched"), bias], "unlimited")
    pooled = writer.node("Clip", [unlimited, black, white], "grey")
    fits = min(side // (2 * working) for side, working in zip(size, working_size, strict=True))
    if kernel := max((k for k in kernels if k <= fits), default=0):
        pooled = writer.pool(pooled, kernel, "pooled")
    small = to_working_size(writer, pooled, 1, *working_size, "small_grey")
    gains = writer.initializer((1 / IMAGENET_STD).reshape(1, 3, 1, 1), "imagenet_gain")
    biases = writer.initializer((-IMAGENET_MEAN / IMAGENET_STD).reshape(1, 3, 1, 1), "imagenet_bias")
    return writer.node("Add", [writer.node("Mul", [small, gains], "scaled"), biases], "frame")


def _core(graph: ir.Graph) -> tuple[ir.Value, ir.Value, Size, list[ir.Node]]:
    """Finds the student between entry and exit by its neighbours: the frame that its first convolution reads comes from the
    entry's choice of a pooling, a scaling to twice the working resolution and a pooling; a scaling reads its map.

    Returns the frame, the map, the working height and width, and the nodes of the pooling's branches.
    """
    import onnx_ir as ir

    first = next((node for node in graph if node.op_type == "Conv"), None)
    entry = _chain(first.inputs[0], "AveragePool", "Resize", "If") if first else []
    leave = _chain(graph.outputs[0], "Resize") if len(graph.inputs) == len(graph.outputs) == 1 else []
    shape = entry[1].inputs[3] if entry and len(entry[1].inputs) == 4 else None
    sizes = ir.convenience.get_const_tensor(shape) if shape is not None else None
    if not leave or sizes is None or sizes.size != 4:
        raise ExportRefused("it is not an image file of this exporter: a luma file is made from NAME.onnx of a run's export")
    height, width = (int(size) // 2 for size in sizes.numpy()[2:])
    graphs = (attribute.as_graph() for attribute in entry[2].attributes.values())
    branches = [node for branch in graphs for node in ir.traversal.RecursiveGraphIterator(branch)]
    return entry[0].outputs[0], leave[0].inputs[0], (height, width), branches


def _chain(value: ir.Value | None, *op_types: str) -> list[ir.Node]:
    """The nodes that computed the value, last first, along first inputs; empty where they are of other types."""
    nodes: list[ir.Node] = []
    for op_type in op_types:
        node = value.producer() if value is not None else None
        if node is None or node.op_type != op_type:
            return []
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def verify_luma(luma: onnx.ModelProto, image: onnx.ModelProto) -> LumaParity:
    """Verifies the graph, and that its shapes are fixed and its maps the image file's on the same grey frames. Raises
    ExportRefused naming every failure."""
    dynamic = [f"luma: the shape of {name} is not fixed" for name in _dynamic(luma)]
    return verify({"luma": (luma, "saliency-luma")}, lambda: compare_luma(luma, image), dynamic)[0]


def _dynamic(model: onnx.ModelProto) -> list[str]:
    """Values whose shape does not follow from the graph alone."""
    import onnx_ir as ir

    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph
    values = (value for node in inferred for value in node.outputs)
    return [str(value.name) for value in values if value.shape is None or not value.shape.is_static()]


def compare_luma(luma: onnx.ModelProto, image: onnx.ModelProto) -> LumaParity:
    """Runs both on frames of every luma value from 0 to 255: noise, a ramp, black, white, one bright spot."""
    luma_runner, image_runner = Predictor(luma.SerializeToString()), Predictor(image.SerializeToString())
    height, width = (dim.dim_value for dim in luma.graph.input[0].type.tensor_type.shape.dim[2:])
    frames = list(_test_frames(height, width))
    ours = [luma_runner.run(frame[None, None] / np.float32(255)) for frame in frames]
    return LumaParity(len(frames), largest_gap(ours, [image_runner.run(grey(frame)) for frame in frames]))


def grey(frame: np.ndarray) -> np.ndarray:
    """A limited-range luma plane, uint8 `[H,W]`, as the image file's input: ImageNet-normalised float32 `[1,3,H,W]`."""
    level = np.clip((frame.astype(np.float32) - BLACK) / (WHITE - BLACK), 0, 1)
    return ((level - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None])[None]


def _test_frames(height: int, width: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    yield rng.integers(0, 256, (height, width), np.uint8)
    yield (255 * (x + y) / max(height + width - 2, 1)).astype(np.uint8)
    yield np.full((height, width), BLACK, np.uint8)
    yield np.full((height, width), 255, np.uint8)
    spot = np.exp(-((y - height / 3) ** 2 + (x - width / 3) ** 2) / (height * width / 100))
    yield (BLACK + (WHITE - BLACK) * spot).astype(np.uint8)

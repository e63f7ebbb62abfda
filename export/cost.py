"""The cost of an ONNX graph at one frame size: multiply-adds and parameters, without running it.

    cost = count(onnx.load("student.onnx"), 1080, 1920)
    cost.macs, cost.parameters          # multiply-adds of one frame, numbers stored in the file
    cost.by_op                          # {"Conv": 61_000_000, ...}

Conv, ConvTranspose, Gemm and MatMul are counted, where FLOP = 2 x multiply-adds; biases, activations, pooling, scaling and
element-wise arithmetic are not. The frame's size is written into a copy of the graph, and onnxscript folds what depends on
nothing else: arithmetic on shapes, and every `If` that such a frame decides. What is left has fixed shapes, which onnx
infers. A graph of QuantizeLinear and DequantizeLinear counts like the floating-point graph that it was made from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnx_ir as ir

# Inputs that configure an operator; values stored for them are not parameters of the model.
SETTINGS = {"Resize": (1, 2, 3), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Clip": (1, 2), "Pad": (1, 2)}


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one frame, in all and by operator; parameters of the whole file."""

    macs: int
    parameters: int
    by_op: dict[str, int]


def count(model: onnx.ModelProto, height: int, width: int) -> Cost:
    """The cost of one frame of `height` x `width` pixels; a state has the shape of its initializer.

    The model's first required input is the frame, of rank 4; its dynamic axes get this size. No other input may have dynamic
    axes.
    Raises ValueError, naming the node, where a shape is not known before the model runs.
    """
    by_op = Counter[str]()
    for node in _folded(model, height, width):
        where = f"{node.op_type} {node.name}"
        if node.op_type == "If":
            raise ValueError(f"{where}: the frame's size does not decide which branch is taken")
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"{where}: operators of {node.domain} are not counted")
        if multiply_adds := MACS.get(node.op_type):
            shapes = [_shape(value, where) for value in (*node.inputs[:2], node.outputs[0])]
            by_op[node.op_type] += multiply_adds(node, *shapes)
    return Cost(sum(by_op.values()), parameters(model), dict(by_op))


def parameters(model: onnx.ModelProto) -> int:
    """Numbers that the file stores: floating-point weights, biases and maps, and the integers that are dequantised.

    BatchNorm counts as folded where it is. The default state is not a parameter, nor are values that configure an operator: scales
    of Resize, scales and zero points of quantisation. Fixed kernels cannot be distinguished from learned ones; they count.
    """
    import onnx_ir as ir

    total = 0
    for graph in (loaded := ir.from_proto(model)).graphs():
        constants = [node.outputs[0] for node in graph if node.op_type == "Constant"]
        for value in (*graph.initializers.values(), *constants):
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or value in loaded.graph.inputs:
                continue
            users = [use.node.op_type for use in value.uses() if use.idx not in SETTINGS.get(use.node.op_type, ())]
            if users if tensor.dtype.is_floating_point() else "DequantizeLinear" in users:
                total += tensor.size
    return total


def _folded(model: onnx.ModelProto, height: int, width: int) -> list[ir.Node]:
    """The nodes that run for a frame of this size, with the shapes that they then have."""
    import onnx_ir as ir
    from onnxscript import optimizer

    copied = ir.from_proto(model)
    for value in copied.graph.initializers.values():
        value.shape = value.const_value.shape
    required = [value for value in copied.graph.inputs if not value.is_initializer()]
    for place, value in enumerate(required):
        shape = list(value.shape or ())
        if place == 0 and len(shape) == 4:
            frame = (1, None, height, width)
            shape = [size if isinstance(size, int) else given for size, given in zip(shape, frame, strict=True)]
        value.shape = ir.Shape(shape)
        if not value.shape.is_static():
            raise ValueError(f"the shape of the input {value.name!r} does not follow from the frame's")
    for node in copied.graph.all_nodes():
        node.name = node.name or node.outputs[0].name  # folding numbers the nodes that have no name
        for value in node.outputs:
            value.shape = None  # a stored shape may be symbolic
    try:
        optimizer.inline(copied)
        optimizer.fold_constants(copied, onnx_shape_inference=True)
    except Exception as error:  # a damaged graph can raise anything in onnxscript
        raise ValueError(f"the graph does not fold: {str(error).splitlines()[0]}") from None
    return list(copied.graph)


def _shape(value: ir.Value, where: str) -> list[int]:
    if value.shape is None or not value.shape.is_static():
        raise ValueError(f"{where}: the shape of {value.name!r} does not follow from the frame's size")
    return list(value.shape.numpy())


# By the node and the shapes of its first two inputs and its output. Weights are [outputs, inputs / group, kernel...], those of
# ConvTranspose [inputs, outputs / group, kernel...].
MACS: dict[str, Callable[[ir.Node, list[int], list[int], list[int]], int]] = {
    "Conv": lambda node, x, weights, y: math.prod(y) * math.prod(weights[1:]),
    "ConvTranspose": lambda node, x, weights, y: math.prod(x) * math.prod(weights[1:]),
    "Gemm": lambda node, a, b, y: math.prod(y) * a[0 if node.attributes.get_int("transA", 0) else 1],
    "MatMul": lambda node, a, b, y: math.prod(y) * a[-1],
}

"""What an ONNX graph costs at one frame size: multiply-adds and parameters, without running it.

    cost = count(onnx.load("student.onnx"), 1080, 1920)
    cost.macs, cost.parameters          # multiply-adds of one frame, numbers stored in the file
    cost.by_op                          # {"Conv": 61_000_000, ...}

Counted are Conv, ConvTranspose, Gemm and MatMul, where FLOP = 2 x multiply-adds; biases, activations, pooling, scaling and
element-wise arithmetic are not. Shapes are followed node by node with onnx's own inference, and arithmetic on shapes is
computed, so that graphs for any frame size count too; of an `If` the branch that such a frame takes is counted. A graph of
QuantizeLinear and DequantizeLinear counts like the graph in floating point that it came from. Needs onnx and numpy alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

FEW = 64  # elements of a value that is computed and not only shaped: shapes, and what is derived from them
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# Inputs that configure an operator; what stands there is no parameter of the model.
SETTINGS = {
    "Resize": (1, 2, 3), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Clip": (1, 2), "Pad": (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one frame, in all, by operator and by node; parameters of the whole file."""

    macs: int
    parameters: int
    by_op: dict[str, int]
    by_node: dict[str, int]


def count(model: onnx.ModelProto, height: int, width: int) -> Cost:
    """The cost of one frame of `height` x `width` pixels; a state has the shape of its initializer.

    The model's first required input is the frame, of rank 4; where it is for any size, it is for this one. No other input
    may have dynamic axes.
    Raises ValueError, naming the node, where a shape cannot be told without running the model.
    """
    walk = _Walk(_opset(model))
    graph = model.graph
    walk.constants(graph.initializer)
    frames = [value for value in graph.input if value.name not in walk.known]
    for place, value in enumerate(frames):
        dims = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        if place == 0 and len(dims) == 4:
            dims = [size or given for size, given in zip(dims, (1, None, height, width), strict=True)]
        if not all(dims):
            raise ValueError(f"the shape of the input {value.name!r} is not told by the frame's")
        walk.types[value.name] = helper.make_tensor_type_proto(value.type.tensor_type.elem_type, dims)
    walk.through(graph.node)
    by_op = Counter[str]()
    for (op, _), macs in walk.macs.items():
        by_op[op] += macs
    by_node = {name: macs for (_, name), macs in walk.macs.items()}
    return Cost(sum(by_op.values()), parameters(model), dict(by_op), by_node)


def parameters(model: onnx.ModelProto) -> int:
    """Numbers that the file stores: floating-point weights, biases and maps, and the integers that are dequantised.

    BatchNorm counts as folded where it is. The default state is no parameter, nor is what configures an operator: scales
    of Resize, scales and zero points of quantisation. Fixed kernels cannot be told from learned ones; they count.
    """
    stored = dict[str, tuple[int, int]]()  # name: type, elements
    uses = dict[str, list[tuple[str, int]]]()
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            stored[tensor.name] = tensor.data_type, math.prod(tensor.dims)
        for node in graph.node:
            if node.op_type == "Constant":
                value = _constant(node)
                stored[node.output[0]] = helper.np_dtype_to_tensor_dtype(value.dtype), value.size
            for place, name in enumerate(node.input):
                uses.setdefault(name, []).append((node.op_type, place))
    total = 0
    for name in stored.keys() - {value.name for value in model.graph.input}:
        data_type, elements = stored[name]
        works = [(op, place) for op, place in uses.get(name, []) if place not in SETTINGS.get(op, ())]
        if data_type in FLOATS:
            total += elements if works else 0
        else:
            total += elements if any(op == "DequantizeLinear" for op, _ in works) else 0
    return total


# --- following shapes ------------------------------------------------------------------------------------------------


@dataclass
class _Walk:
    """What is known of every value so far: its type and shape, and its content where that is small and constant."""

    opset: int
    types: dict[str, TypeProto] = field(default_factory=dict)
    known: dict[str, np.ndarray] = field(default_factory=dict)
    macs: dict[tuple[str, str], int] = field(default_factory=dict)

    def constants(self, tensors: Iterable[TensorProto]) -> None:
        for tensor in tensors:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            self.known[tensor.name] = numpy_helper.to_array(tensor)

    def learn(self, name: str, value: np.ndarray) -> None:
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        self.known[name] = value

    def through(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            if node.op_type == "If":
                self._branch(node)
            elif node.op_type == "Constant":
                self.learn(node.output[0], _constant(node))
            elif node.op_type == "Shape" and not node.attribute:
                self.learn(node.output[0], np.array(self.shape(node.input[0], node), np.int64))
            elif node.input and all(not name or self._small(name) for name in node.input):
                self._compute(node)
            else:
                self._infer(node)

    def _small(self, name: str) -> bool:
        return name in self.known and self.known[name].size <= FEW

    def _branch(self, node: NodeProto) -> None:
        condition = self.known.get(node.input[0])
        if condition is None:
            raise ValueError(f"{_at(node)}: which branch is taken is not told by the frame's size")
        name = "then_branch" if condition.item() else "else_branch"
        taken = next(attribute.g for attribute in node.attribute if attribute.name == name)
        self.constants(taken.initializer)
        self.through(taken.node)
        for inner, outer in zip(taken.output, node.output, strict=True):
            if inner.name in self.types:
                self.types[outer] = self.types[inner.name]
            if inner.name in self.known:
                self.known[outer] = self.known[inner.name]

    def _compute(self, node: NodeProto) -> None:
        """A node of which everything is known: arithmetic on shapes."""
        given = {name: self.known[name] for name in node.input if name}
        inputs = [helper.make_value_info(name, self.types[name]) for name in given]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        alone = helper.make_model(
            helper.make_graph([node], "alone", inputs, outputs), opset_imports=[helper.make_opsetid("", self.opset)]
        )
        try:
            results = ReferenceEvaluator(alone).run(None, given)
        except Exception:  # the reference has not every operator at every opset; its content may never be asked for
            self._infer(node)
            return
        for value, result in zip(outputs, results, strict=True):
            self.learn(value.name, np.asarray(result))
        self._tally(node)

    def _infer(self, node: NodeProto) -> None:
        types = {name: self.types[name] for name in node.input if name in self.types}
        data = {name: numpy_helper.from_array(self.known[name], name) for name in node.input if self._small(name)}
        try:
            schema = defs.get_schema(node.op_type, self.opset, node.domain)
            found = shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=[helper.make_opsetid(node.domain, self.opset)]
            )
        except Exception as error:  # onnx's own share no base class
            raise ValueError(f"{_at(node)}: {str(error).strip().splitlines()[0]}") from None
        self.types.update(found)
        self._tally(node)

    def shape(self, name: str, node: NodeProto) -> list[int]:
        value = self.types.get(name)
        dims = list(value.tensor_type.shape.dim) if value is not None and value.tensor_type.HasField("shape") else None
        if dims is None or not all(d.HasField("dim_value") for d in dims):
            raise ValueError(f"{_at(node)}: the shape of {name!r} is not told by the frame's size")
        return [d.dim_value for d in dims]

    def _tally(self, node: NodeProto) -> None:
        multiply_adds = MACS.get(node.op_type)
        if multiply_adds:
            name = node.name or node.output[0]
            shapes = [self.shape(value, node) for value in (*node.input[:2], node.output[0])]
            self.macs[node.op_type, name] = multiply_adds(node, *shapes)


def _conv(node: NodeProto, x: list[int], weights: list[int], y: list[int]) -> int:
    return math.prod(y) * math.prod(weights[1:])  # weights: [outputs, inputs / group, kernel...]


def _conv_transpose(node: NodeProto, x: list[int], weights: list[int], y: list[int]) -> int:
    return math.prod(x) * math.prod(weights[1:])  # weights: [inputs, outputs / group, kernel...]


def _gemm(node: NodeProto, a: list[int], b: list[int], y: list[int]) -> int:
    transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transA"), 0)
    return math.prod(y) * a[0 if transposed else 1]


def _mat_mul(node: NodeProto, a: list[int], b: list[int], y: list[int]) -> int:
    return math.prod(y) * a[-1]


MACS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _mat_mul}


def _constant(node: NodeProto) -> np.ndarray:
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.array(value, np.float32 if attribute.name.startswith("value_float") else np.int64)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _at(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"

"""Takes the student out of an image or step file, so that it can have another entry and exit; plain protobuf, needs onnx alone.

    core = core_of(onnx.load("student_step.onnx"))
    nodes = Nodes()
    ...                                     # a new entry, which ends in the value core.frame
    nodes.extend(core)
    ...                                     # a new exit, which starts at the value core.small
    model = nodes.model(core, inputs, outputs)

The core is the file's own, node by node: a frame at the working resolution and perhaps a state -> the map at a quarter of the
working resolution, and the next state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from distill.export.verification import IR_VERSION, OPSET, ExportRefused

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class CoreGraph:
    """A student between its entry and its exit."""

    frame: str
    """The value that the entry computes: ImageNet-normalised RGB at the working resolution, f32 `[1,3,h,w]`."""
    small: str
    """The value that the exit reads: the map, f32 `[1,1,small height,small width]`."""
    working_size: Size
    small_size: Size
    kernels: tuple[int, ...]
    """Of the entry's first pooling, largest first."""
    state: onnx.ValueInfoProto | None
    """`state_in`; None for an image file."""
    source: onnx.ModelProto


@dataclass
class Nodes:
    """A graph under construction: nodes in order, and the constants that they read."""

    static: bool = False
    """Of a file of one size, for runtimes that want nothing else: the state is a required input, and nothing is broadcast that
    OpenCV cannot."""
    scope: str = "entry"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Appends a node with one output called `name`, which it returns."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], f"/{self.scope}/{name}", **attributes))
        return name

    def constant(self, array: np.ndarray | Sequence[int], name: str) -> str:
        """Stores an array, or int64 numbers, under a name, which it returns."""
        stored = array if isinstance(array, np.ndarray) else np.array(array, np.int64)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(stored), name)
        return name

    def pool(self, value: str, kernel: Sequence[int], name: str) -> str:
        """The mean of every rectangle of `kernel`, height and width; what no whole rectangle covers is left out."""
        return self.node("AveragePool", [value], name, kernel_shape=kernel, strides=kernel)

    def resize(self, value: str, size: str, name: str) -> str:
        """Linear, half-pixel scaling to `size`, int64 `[4]`."""
        inputs = [value, "", "", size]
        return self.node("Resize", inputs, name, mode="linear", coordinate_transformation_mode="half_pixel")

    def branch(self, name: str, output: str) -> onnx.GraphProto:
        """These nodes as a branch of an `If` that gives frames f32 `[1,3,h,w]`; the constants stay with the outer graph."""
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 3, "h", "w"])
        return helper.make_graph(self.nodes, name, [], [value])

    def extend(self, core: CoreGraph) -> None:
        """Appends the nodes of the core."""
        reached = {core.small, *(["state_out"] if core.state is not None else [])}
        kept = []
        for node in reversed(core.source.graph.node):  # in topological order, so each node stands before its readers
            if reached & set(node.output) and core.frame not in node.output:
                kept.append(node)
                reached |= {name for name in node.input if name != core.frame}
        self.nodes += _expanded(kept[::-1], core.source, self.constants) if self.static else kept[::-1]

    def model(
        self, core: CoreGraph, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
    ) -> onnx.ModelProto:
        """The finished model, with the source's metadata; the state is its last input and output. Where the model is static, nothing
        backs `state_in`, which OpenCV, OpenVINO and TensorRT take for a constant otherwise."""
        states: list[list[onnx.ValueInfoProto]] = [[], []]
        if core.state is not None:
            states = [[core.state], [value for value in core.source.graph.output if value.name == "state_out"]]
        read = {name for node in self.nodes for name in node.input}
        read -= {"state_in"} if self.static else set()
        theirs = [tensor for tensor in core.source.graph.initializer if tensor.name in read]
        graph = helper.make_graph(
            self.nodes, name, [*inputs, *states[0]], [*outputs, *states[1]], [*self.constants.values(), *theirs]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = core.source.producer_name
        model.metadata_props.extend(core.source.metadata_props)
        return model


def _expanded(
    nodes: list[onnx.NodeProto], source: onnx.ModelProto, constants: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """The nodes, without two kinds of broadcasting. A sum of different shapes has its smaller operand expanded: OpenCV 5 takes a sum
    after a convolution for a residual, and refuses it if the shapes differ ("add Expand"). A constant `[1,1,1,1]` becomes `[1]`: MNN
    3.6 applies it to only one in four values of a channel."""
    inferred = onnx.shape_inference.infer_shapes(source)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    numbers = {tensor.name: tensor for tensor in source.graph.initializer if list(tensor.dims) == [1] * 4}
    result = []
    for node in nodes:
        first, second = ([*node.input] + [""] * 2)[:2]
        if node.op_type == "Add" and first in shapes and second in shapes and shapes[first] != shapes[second]:
            small, large = sorted((first, second), key=lambda name: int(np.prod(shapes[name])))
            shape = numpy_helper.from_array(np.array(shapes[large], np.int64), f"{small}.shape")
            constants[shape.name] = shape
            result.append(helper.make_node("Expand", [small, shape.name], [f"{small}.expanded"], f"{node.name}/expand"))
            node = helper.make_node("Add", [f"{small}.expanded", large], list(node.output), node.name)
        elif node.op_type in ("Add", "Sub", "Mul", "Div") and numbers.keys() & set(node.input):
            names = {name: f"{name}.number" for name in node.input if name in numbers}
            for name, number in names.items():
                constants[number] = numpy_helper.from_array(numpy_helper.to_array(numbers[name]).reshape(1), number)
            node = helper.make_node(node.op_type, [names.get(name, name) for name in node.input], list(node.output), node.name)
        result.append(node)
    return result


def require_state(model: onnx.ModelProto) -> onnx.TensorProto | None:
    """Removes the default of `state_in`, in place, and returns it; None where there is none. ONNX Runtime for the web refuses an
    input that has a default, and OpenVINO takes it for a constant."""
    default = next((value for value in model.graph.initializer if value.name == "state_in"), None)
    if default is not None:
        model.graph.initializer.remove(default)
    return default


def pooling_steps(kernel: int) -> list[list[int]]:
    """The kernels, height and width, that pool squares of `kernel` x `kernel` one after the other.

    ONNX Runtime's pooling is vectorised up to a horizontal stride of 2. By 4, two steps are therefore faster (an RGB frame of 1080p
    in the whole file: 7.8 ms instead of 10.2), by 8 slower (2160p: 36 ms instead of 19): frames of that size do not stay in a cache.
    """
    return [[4, 2], [1, 2]] if kernel == 4 else [[kernel, kernel]]


def core_of(model: onnx.ModelProto) -> CoreGraph:
    """Finds the student between entry and exit by its neighbours: the frame that its first convolution reads comes from the
    entry's choice of a pooling, a scaling to twice the working resolution and a pooling; a scaling reads its map. Raises
    ExportRefused for a model that `distill.export.graph` has not written."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    sizes = {node.output[0]: list(node.attribute[0].ints) for node in graph.node if node.op_type == "Constant"}
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    entry = _chain(makers, first.input[0], "AveragePool", "Resize", "If") if first else []
    leave = _chain(makers, graph.output[0].name, "Resize") if graph.output else []
    twice = sizes.get(entry[1].input[3], []) if entry and len(entry[1].input) == 4 else []
    inputs = {value.name: value for value in graph.input}
    wanted = ({"input"}, {"input", "state_in"})[len(graph.output) == 2]
    if not leave or len(twice) != 4 or set(inputs) != wanted or len(graph.output) > 2:
        raise ExportRefused(
            "it is not an image or step file of this exporter; a variant is made from NAME.onnx or NAME_step.onnx"
        )
    height, width = (side // 2 for side in twice[2:])
    pools = [node for node in _nested(entry[2]) if node.op_type == "AveragePool"]
    heights = {next(a for a in node.attribute if a.name == "kernel_shape").ints[0] for node in pools}
    kernels = tuple(sorted((k for k in heights if k > 1), reverse=True))  # of a pooling in two steps, the first has its height
    return CoreGraph(
        entry[0].output[0],
        leave[0].input[0],
        (height, width),
        (height // 4, width // 4),
        kernels,
        inputs.get("state_in"),
        model,
    )


def _chain(makers: dict[str, onnx.NodeProto], value: str, *op_types: str) -> list[onnx.NodeProto]:
    """The nodes that computed the value, last first, along first inputs; empty where they are of other types."""
    nodes = []
    for op_type in op_types:
        node = makers.get(value)
        if node is None or node.op_type != op_type:
            return []
        nodes.append(node)
        value = node.input[0]
    return nodes


def _nested(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes in the branches of an `If`, at any depth."""
    inner = [each for attribute in node.attribute for each in attribute.g.node]
    return inner + [deeper for each in inner for deeper in _nested(each)]

"""Writes a student as ONNX: opset 17, IR 8, default domain, one file, allow-listed operators only.

The student is traced with torch.fx and every operation of the trace is looked up in `EMIT`, a table of the few operations
that a student may use; one that is not there is refused by name. What does not depend on the input is folded into
initializers, BatchNorm into its convolution. Written by hand rather than by torch.onnx because the contract is exact
(opset, IR, no metadata of the exporting machine, byte-identical for identical weights) and does not move with torch's
version.

Around that core stand the entry and the exit (any frame size to the working resolution and back), as ONNX text below.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper, parser
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.export.errors import ExportRefused
from distill.export.limits import IR_VERSION, OPSET
from distill.students.tiny_unet import ENTRY_KERNELS, TinyUNet

# Pools by the largest kernel that leaves at least twice the working resolution, scales linearly to exactly twice, pools
# by 2. `If` takes no copy of the frame on the branch that runs, and the untaken branches cost nothing.
ENTRY = """
entry (float[1,3,height,width] input) => (float[1,3,{height},{width}] frame) {{
  frame_shape = Shape(input)
  two = Constant<value_ints=[2]>()
  four = Constant<value_ints=[4]>()
  frame_size = Slice(frame_shape, two, four)
  twice_size = Constant<value_ints=[{twice_height},{twice_width}]>()
  ratio = Div(frame_size, twice_size)
  fits = ReduceMin<keepdims=1>(ratio)
  {pool}
  twice_shape = Constant<value_ints=[1,3,{twice_height},{twice_width}]>()
  twice = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(pooled, , , twice_shape)
  frame = AveragePool<kernel_shape=[2,2], strides=[2,2]>(twice)
}}
"""

EXIT = """
exit (float[1,1,{height},{width}] small, int64[2] frame_size) => (float[1,1,height,width] saliency_map) {{
  one_one = Constant<value_ints=[1,1]>()
  map_shape = Concat<axis=0>(one_one, frame_size)
  saliency_map = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(small, , , map_shape)
}}
"""


def image_graph(student: TinyUNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The image-mode graph: `input` f32 `[1,3,H,W]` -> `saliency_map` f32 `[1,1,H,W]`; no state anywhere."""
    return _model(student, None, metadata)


def step_graph(student: TinyUNet, fps: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """The streaming graph for `fps` frames per second.

    `input` and `state_in` (optional: a zero initializer backs it) -> `saliency_map`, `state_out`.
    """
    return _model(student, fps, metadata)


class _ImageMode(nn.Module):
    def __init__(self, student: TinyUNet) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame: Tensor) -> Tensor:
        return torch.sigmoid(self.student.image(frame))


class _StepMode(nn.Module):
    def __init__(self, student: TinyUNet, fps: float) -> None:
        super().__init__()
        self.student = student
        self.keep = student.keep(torch.tensor([1 / fps])).detach()

    def forward(self, frame: Tensor, state_in: Tensor) -> tuple[Tensor, Tensor]:
        logits, state_out = self.student.step(frame, state_in, self.keep)
        return torch.sigmoid(logits), state_out


def _model(student: TinyUNet, fps: float | None, metadata: dict[str, str]) -> onnx.ModelProto:
    config = student.config
    student = copy.deepcopy(student).cpu().float().eval()
    fold_batch_norm(student)
    frame, state = torch.zeros(1, 3, config.height, config.width), student.zero_state()
    if fps is None:
        core = trace(_ImageMode(student), {"frame": frame}, ["small"])
    else:
        core = trace(_StepMode(student, fps), {"frame": frame, "state_in": state}, ["small", "state_out"])

    sizes = {"height": config.height, "width": config.width}
    entry = parser.parse_graph(
        ENTRY.format(**sizes, twice_height=2 * config.height, twice_width=2 * config.width, pool=_pooling("pooled"))
    )
    grid_height, grid_width = config.grid
    exit_ = parser.parse_graph(EXIT.format(height=grid_height, width=grid_width))

    nodes = [*_named(entry, "entry"), *core.nodes, *_named(exit_, "exit")]
    inputs, outputs, initializers = list(entry.input), list(exit_.output), list(core.initializers)
    if fps is not None:
        inputs.append(helper.make_tensor_value_info("state_in", TensorProto.FLOAT, list(config.state_shape)))
        outputs.append(helper.make_tensor_value_info("state_out", TensorProto.FLOAT, list(config.state_shape)))
        # A zero initializer of the same name makes the input optional: without it, there is no history.
        initializers.append(numpy_helper.from_array(state.numpy(), "state_in"))
    graph = helper.make_graph(nodes, "saliency_student", inputs, outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="saliency-distill"
    )
    helper.set_model_props(model, metadata)
    return model


def _pooling(output: str, kernels: tuple[int, ...] = ENTRY_KERNELS) -> str:
    """The entry's choice of a pooling kernel, as ONNX text: nested `If`, since comparisons are not on the list."""
    if not kernels:
        return f"{output} = Identity(input)"
    k, smaller = kernels[0], kernels[1:]
    return f"""
    k{k} = Constant<value_ints=[{k}]>()
    fits{k} = Div(fits, k{k})
    is{k} = Cast<to={TensorProto.BOOL}>(fits{k})
    {output} = If(is{k}) <
      then_branch = pool{k} () => (float[1,3,h,w] by{k}) {{
        by{k} = AveragePool<kernel_shape=[{k},{k}], strides=[{k},{k}]>(input)
      }},
      else_branch = below{k} () => (float[1,3,h,w] less{k}) {{ {_pooling(f"less{k}", smaller)} }}
    >"""


def _named(graph: onnx.GraphProto, scope: str) -> list[onnx.NodeProto]:
    """The graph's nodes, named by scope and output, so that a report can say where one is."""
    for node in graph.node:
        node.name = f"/{scope}/{node.output[0]}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _named(attribute.g, scope)
    return list(graph.node)


def fold_batch_norm(module: nn.Module) -> None:
    """Folds every BatchNorm that follows a convolution in a Sequential into that convolution, in place."""
    for child in module.modules():
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], child[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    child[i], child[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


# --- the writer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A value of the trace: its example tensor, and its name in the graph, or None while it is a constant."""

    tensor: Any
    name: str | None = None


@dataclass
class Core:
    """Nodes and initializers written so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    named: set[str] = field(default_factory=set)

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output.replace('.', '/')}", **attributes))
        return output

    def constant(self, array: np.ndarray | Tensor, name: str) -> str:
        if name not in self.named:
            array = array.detach().numpy() if isinstance(array, Tensor) else array
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            self.named.add(name)
        return name

    def operand(self, value: Value, name: str) -> str:
        return value.name if value.name is not None else self.constant(value.tensor, name)


def trace(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> Core:
    """Writes `module` as ONNX nodes from the named example inputs to the named outputs.

    Raises ExportRefused where the module uses an operation that is not in `EMIT`.
    """
    traced = fx.symbolic_trace(module)
    core, values = Core(), dict[fx.Node, Value]()
    examples = iter(inputs.items())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            name, tensor = next(examples)
            values[node] = Value(tensor, name)
        elif node.op == "get_attr":
            values[node] = Value(operator.attrgetter(node.target)(traced))
        elif node.op == "output":
            returned = node.args[0] if isinstance(node.args[0], tuple) else (node.args[0],)
            for result, name in zip(returned, outputs, strict=True):
                core.node("Identity", [core.operand(values[result], f"{name}.constant")], name)
        else:
            values[node] = _emit(core, traced, node, values)
    return core


def _emit(core: Core, traced: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    lookup: Any = values.__getitem__
    args: Any = fx.node.map_arg(node.args, lookup)
    kwargs: Any = fx.node.map_arg(node.kwargs, lookup)
    target: Any = node.target
    if node.op == "call_module":
        target = traced.get_submodule(target)
    elif node.op == "call_method":
        target = getattr(torch.Tensor, target)
    with torch.no_grad():
        tensor = target(
            *fx.node.map_aggregate(args, lambda a: a.tensor if isinstance(a, Value) else a),
            **fx.node.map_aggregate(kwargs, lambda a: a.tensor if isinstance(a, Value) else a),
        )
    flat: list[Value] = []
    fx.node.map_aggregate((args, kwargs), lambda a: flat.append(a) if isinstance(a, Value) else None)
    # A constant: what it is made of does not depend on the input, or only its shape does.
    if all(value.name is None for value in flat) or target in (torch.ones_like, torch.zeros_like):
        return Value(tensor)
    if isinstance(target, nn.Identity):
        return flat[0]
    emit = EMIT.get(type(target)) if isinstance(target, nn.Module) else EMIT.get(target)
    if emit is None:
        known = ", ".join(sorted(getattr(op, "__name__", str(op)) for op in EMIT))
        raise ExportRefused(
            f"the student uses {getattr(target, '__name__', target)} at {node.name}, which the ONNX writer does not "
            f"know; use one of: {known}, or add it to EMIT in export/graph.py"
        )
    name = f"{node.target}" if node.op == "call_module" else node.name
    name = name if all(name not in n.output for n in core.nodes) else f"{name}.{node.name}"
    return Value(tensor, emit(core, name, target, args, kwargs))


Emit = Callable[[Core, str, Any, tuple[Any, ...], dict[str, Any]], str]


def _conv(core: Core, name: str, conv: nn.Conv2d, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    inputs = [args[0].name, core.constant(conv.weight, f"{name}.weight")]
    if conv.bias is not None:
        inputs.append(core.constant(conv.bias, f"{name}.bias"))
    if isinstance(conv.padding, str) or conv.dilation != (1, 1):
        raise ExportRefused(
            f"the convolution at {name} pads by name or is dilated; the ONNX writer knows plain numbers"
        )
    (kh, kw), (ph, pw) = conv.kernel_size, conv.padding
    return core.node(
        "Conv", inputs, name, kernel_shape=[kh, kw], strides=list(conv.stride), pads=[ph, pw, ph, pw], group=conv.groups
    )


def _fixed_conv(op: str) -> Emit:
    """A convolution whose kernels are a constant of the student's, without bias or padding."""

    def emit(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        value, kernels = args
        if kernels.name is not None or not kwargs.keys() <= {"stride", "groups"}:
            raise ExportRefused(
                f"the student convolves with {sorted(kwargs)} at {name}; the ONNX writer knows fixed kernels, stride, groups"
            )
        size, stride = list(kernels.tensor.shape[2:]), [kwargs.get("stride", 1)] * 2
        weights = core.constant(kernels.tensor, f"{name}.weight")
        return core.node(
            op, [value.name, weights], name, kernel_shape=size, strides=stride, group=kwargs.get("groups", 1)
        )

    return emit


def _unary(op: str) -> Emit:
    return lambda core, name, target, args, kwargs: core.node(op, [args[0].name], name)


def _binary(op: str) -> Emit:
    def emit(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        operands = []
        for side, value in enumerate(args):
            value = value if isinstance(value, Value) else Value(torch.tensor(float(value)))
            operands.append(core.operand(value, f"{name}.operand{side}"))
        return core.node(op, operands, name)

    return emit


def _cat(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    operands = [core.operand(value, f"{name}.operand{i}") for i, value in enumerate(args[0])]
    return core.node("Concat", operands, name, axis=args[1])


def _slice(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    value, index = args
    if not all(isinstance(i, slice) and i.step is None for i in index):
        raise ExportRefused(f"the student indexes with {index} at {name}; the ONNX writer knows plain slices")
    axes = [axis for axis, i in enumerate(index) if i != slice(None)]
    bounds = [(index[axis].start or 0, index[axis].stop) for axis in axes]
    starts = np.array([start for start, _ in bounds], np.int64)
    stops = np.array(
        [value.tensor.shape[axis] if stop is None else stop for axis, (_, stop) in zip(axes, bounds, strict=True)]
    )
    return core.node(
        "Slice",
        [
            value.name,
            core.constant(starts, f"{name}.starts"),
            core.constant(stops.astype(np.int64), f"{name}.stops"),
            core.constant(np.array(axes, np.int64), f"{name}.axes"),
        ],
        name,
    )


def _interpolate(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if kwargs.get("mode") != "bilinear" or kwargs.get("align_corners"):
        raise ExportRefused(
            f"the student interpolates with {kwargs} at {name}; the ONNX writer knows bilinear, half-pixel"
        )
    scale = float(kwargs["scale_factor"])
    scales = core.constant(np.array([1, 1, scale, scale], np.float32), f"{name}.scales")
    return core.node(
        "Resize", [args[0].name, "", scales], name, mode="linear", coordinate_transformation_mode="half_pixel"
    )


def _global_pool(core: Core, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if args[1] != 1:
        raise ExportRefused(f"the student pools to {args[1]} at {name}; the ONNX writer knows pooling to 1")
    return core.node("GlobalAveragePool", [args[0].name], name)


EMIT: dict[Any, Emit] = {
    nn.Conv2d: _conv,
    F.conv2d: _fixed_conv("Conv"),
    F.conv_transpose2d: _fixed_conv("ConvTranspose"),
    nn.ReLU: _unary("Relu"),
    F.relu: _unary("Relu"),
    torch.sigmoid: _unary("Sigmoid"),
    torch.Tensor.abs: _unary("Abs"),
    operator.add: _binary("Add"),
    operator.sub: _binary("Sub"),
    operator.mul: _binary("Mul"),
    operator.truediv: _binary("Div"),
    torch.Tensor.mul: _binary("Mul"),  # how fx records a constant tensor on the left
    operator.getitem: _slice,
    torch.cat: _cat,
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _global_pool,
}

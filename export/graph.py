"""Writes a student as ONNX: opset 17, IR 8, default domain, one file, allow-listed operators only.

The student is traced with torch.fx, and every operation of the trace is looked up in `EMIT`, a table of the few operations
that a student may use; any other is refused by name. What does not depend on the input is folded into initializers,
BatchNorm into its convolution. The entry and the exit (any frame size to the working resolution and back) are in
`distill.export.resolution`.

The operators are emitted through onnxscript's GraphBuilder and not by torch.onnx: its exporter stays at opset 18, and with
dynamic sizes it specialised the entry's branch to the example frame without a word. On the core of fixed size it agrees
with this one, which a test checks.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.export.errors import ExportRefused
from distill.export.resolution import enter, leave
from distill.export.writer import Writer
from distill.students.tiny_unet import ENTRY_KERNELS, TinyUNet

if TYPE_CHECKING:
    import onnx_ir as ir


def image_graph(student: TinyUNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The image-mode graph: `input` f32 `[1,3,H,W]` -> `saliency_map` f32 `[1,1,H,W]`; no state anywhere.

    Raises ExportRefused where the student uses an operation that is not in `EMIT`; so does `step_graph`.
    """
    return _model(student, None, metadata)


def step_graph(student: TinyUNet, fps: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """The streaming graph for `fps` frames per second.

    `input` and `state_in` (optional: a zero initializer backs it) -> `saliency_map`, `state_out`.
    """
    return _model(student, fps, metadata)


class ImageMode(nn.Module):
    """The core of the image graph: a frame at the working resolution -> the map at a quarter of it."""

    def __init__(self, student: TinyUNet) -> None:
        super().__init__()
        self.student = student

    def forward(self, frame: Tensor) -> Tensor:
        return torch.sigmoid(self.student.image(frame))


class StepMode(nn.Module):
    """The core of the step graph: the same, with the state before and after the frame."""

    def __init__(self, student: TinyUNet, fps: float) -> None:
        super().__init__()
        self.student = student
        self.keep = student.keep(torch.tensor([1 / fps])).detach()

    def forward(self, frame: Tensor, state_in: Tensor) -> tuple[Tensor, Tensor]:
        logits, state_out = self.student.step(frame, state_in, self.keep)
        return torch.sigmoid(logits), state_out


def _model(student: TinyUNet, fps: float | None, metadata: dict[str, str]) -> onnx.ModelProto:
    import onnx_ir as ir

    config = student.config
    student = copy.deepcopy(student).cpu().float().eval()
    fold_batch_norm(student)
    writer = Writer.new("saliency_student")
    builder = writer.builder
    frame = builder.input("input", ir.DataType.FLOAT, [1, 3, "height", "width"])
    working, frame_size = enter(writer.within("entry"), frame, config.height, config.width, ENTRY_KERNELS)
    example = torch.zeros(1, 3, config.height, config.width)
    if fps is None:
        [small] = trace(writer, ImageMode(student), [(example, working)], ["small"])
    else:
        # A zero initializer of the same name makes the input optional: without it, there is no history.
        zero = student.zero_state()
        state_in = builder.input("state_in", const_value=ir.tensor(zero.numpy(), name="state_in"))
        inputs = [(example, working), (zero, state_in)]
        small, state_out = trace(writer, StepMode(student, fps), inputs, ["small", "state_out"])
    writer.output(leave(writer.within("exit"), small, frame_size), [1, 1, "height", "width"])
    if fps is not None:
        writer.output(state_out, config.state_shape)
    return writer.model(metadata)


def fold_batch_norm(module: nn.Module) -> None:
    """Folds every BatchNorm that follows a convolution in a Sequential into that convolution, in place."""
    for child in module.modules():
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], child[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    child[i], child[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


# --- following the trace ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """A value of the trace: what it is for the example input, and its value in the graph, None for a constant."""

    example: Any
    value: ir.Value | None = None


def trace(
    writer: Writer, module: nn.Module, inputs: Sequence[tuple[Tensor, ir.Value]], outputs: Sequence[str]
) -> list[ir.Value]:
    """Writes `module` as ONNX nodes; returns its results under the names `outputs`.

    inputs: an example of each argument, and the value in the graph that stands for it.
    Raises ExportRefused where the module uses an operation that is not in `EMIT`.
    """
    traced = fx.symbolic_trace(module)
    arguments = iter(inputs)
    values, called = dict[fx.Node, Traced](), set[str]()
    results: list[ir.Value] = []
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = Traced(*next(arguments))
        elif node.op == "get_attr":
            values[node] = Traced(operator.attrgetter(node.target)(traced))
        elif node.op == "output":
            returned = node.args[0] if isinstance(node.args[0], tuple) else (node.args[0],)
            for result, name in zip(returned, outputs, strict=True):
                results.append(writer.node("Identity", [_operand(writer, values[result], f"{name}.constant")], name))
        else:
            name = str(node.target) if node.op == "call_module" else node.name
            values[node] = _emit(writer, traced, node, values, f"{name}.{node.name}" if name in called else name)
            called.add(name)
    return results


def _emit(writer: Writer, traced: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Traced], name: str) -> Traced:
    lookup: Any = values.__getitem__
    args: Any = fx.node.map_arg(node.args, lookup)
    kwargs: Any = fx.node.map_arg(node.kwargs, lookup)
    target: Any = node.target
    if node.op == "call_module":
        target = traced.get_submodule(target)
    elif node.op == "call_method":
        target = getattr(torch.Tensor, target)
    operands: list[Traced] = []

    def example_of(argument: Any) -> Any:
        if not isinstance(argument, Traced):
            return argument
        operands.append(argument)
        return argument.example

    with torch.no_grad():
        example = target(*fx.node.map_aggregate(args, example_of), **fx.node.map_aggregate(kwargs, example_of))
    # A constant: nothing that it is made of depends on the input, or only the input's shape matters.
    if all(operand.value is None for operand in operands) or target in (torch.ones_like, torch.zeros_like):
        return Traced(example)
    if isinstance(target, nn.Identity):
        return operands[0]
    emit = EMIT.get(type(target)) if isinstance(target, nn.Module) else EMIT.get(target)
    if emit is None:
        known = ", ".join(sorted(getattr(op, "__name__", str(op)) for op in EMIT))
        raise ExportRefused(
            f"the student uses {getattr(target, '__name__', target)} at {node.name}, which the ONNX writer does not "
            f"know; use one of: {known}, or add it to EMIT in export/graph.py"
        )
    return Traced(example, emit(writer, name, target, args, kwargs))


def _operand(writer: Writer, traced: Traced, name: str) -> ir.Value:
    """The value in the graph; a constant is stored under `name`."""
    return _store(writer, traced.example, name) if traced.value is None else traced.value


def _store(writer: Writer, tensor: Tensor, name: str) -> ir.Value:
    return writer.initializer(tensor.detach().numpy(), name)


# --- the operations that a student may use ---------------------------------------------------------------------------

Args, Kwargs = tuple[Any, ...], dict[str, Any]
Emit = Callable[[Writer, str, Any, Args, Kwargs], "ir.Value"]


def _conv(writer: Writer, name: str, conv: nn.Conv2d, args: Args, kwargs: Kwargs) -> ir.Value:
    if isinstance(conv.padding, str) or conv.dilation != (1, 1):
        raise ExportRefused(f"the convolution at {name} is dilated or names its padding; the ONNX writer knows neither")
    inputs = [args[0].value, _store(writer, conv.weight, f"{name}.weight")]
    if conv.bias is not None:
        inputs.append(_store(writer, conv.bias, f"{name}.bias"))
    kernel, stride, pads = list(conv.kernel_size), list(conv.stride), list(conv.padding) * 2
    return writer.node("Conv", inputs, name, kernel_shape=kernel, strides=stride, pads=pads, group=conv.groups)


def _fixed_conv(op_type: str) -> Emit:
    """A convolution whose kernels are constants of the student, without bias or padding."""

    def emit(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
        value, kernels = args
        if kernels.value is not None or not kwargs.keys() <= {"stride", "groups"}:
            raise ExportRefused(
                f"the student convolves with {sorted(kwargs)} at {name}; the ONNX writer knows fixed kernels, stride, groups"
            )
        size, stride = list(kernels.example.shape[2:]), [kwargs.get("stride", 1)] * 2
        inputs = [value.value, _store(writer, kernels.example, f"{name}.weight")]
        return writer.node(op_type, inputs, name, kernel_shape=size, strides=stride, group=kwargs.get("groups", 1))

    return emit


def _elementwise(op_type: str) -> Emit:
    """An operator of one or two operands; numbers and constants are stored."""

    def emit(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
        operands = [arg if isinstance(arg, Traced) else Traced(torch.tensor(float(arg))) for arg in args]
        return writer.node(op_type, [_operand(writer, o, f"{name}.operand{i}") for i, o in enumerate(operands)], name)

    return emit


def _cat(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
    operands = [_operand(writer, operand, f"{name}.operand{i}") for i, operand in enumerate(args[0])]
    return writer.node("Concat", operands, name, axis=args[1])


def _slice(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
    traced, index = args
    if not all(isinstance(i, slice) and i.step is None for i in index):
        raise ExportRefused(f"the student indexes with {index} at {name}; the ONNX writer knows plain slices")
    axes = [axis for axis, i in enumerate(index) if i != slice(None)]
    sizes = traced.example.shape
    bounds = {
        "starts": [index[axis].start or 0 for axis in axes],
        "stops": [sizes[axis] if index[axis].stop is None else index[axis].stop for axis in axes],
        "axes": axes,
    }
    stored = [writer.initializer(np.array(values, np.int64), f"{name}.{what}") for what, values in bounds.items()]
    return writer.node("Slice", [traced.value, *stored], name)


def _interpolate(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
    if kwargs.get("mode") != "bilinear" or kwargs.get("align_corners"):
        raise ExportRefused(
            f"the student interpolates with {kwargs} at {name}; the ONNX writer knows bilinear, half-pixel"
        )
    scale = float(kwargs["scale_factor"])
    scales = writer.initializer(np.array([1, 1, scale, scale], np.float32), f"{name}.scales")
    return writer.resize(args[0].value, name, scales=scales)


def _global_pool(writer: Writer, name: str, target: Any, args: Args, kwargs: Kwargs) -> ir.Value:
    if args[1] != 1:
        raise ExportRefused(f"the student pools to {args[1]} at {name}; the ONNX writer knows pooling to 1")
    return writer.node("GlobalAveragePool", [args[0].value], name)


EMIT: dict[Any, Emit] = {
    nn.Conv2d: _conv,
    F.conv2d: _fixed_conv("Conv"),
    F.conv_transpose2d: _fixed_conv("ConvTranspose"),
    nn.ReLU: _elementwise("Relu"),
    F.relu: _elementwise("Relu"),
    torch.sigmoid: _elementwise("Sigmoid"),
    torch.Tensor.abs: _elementwise("Abs"),
    operator.add: _elementwise("Add"),
    operator.sub: _elementwise("Sub"),
    operator.mul: _elementwise("Mul"),
    operator.truediv: _elementwise("Div"),
    torch.Tensor.mul: _elementwise("Mul"),  # how fx records a constant tensor on the left
    operator.getitem: _slice,
    torch.cat: _cat,
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _global_pool,
}

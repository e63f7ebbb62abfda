"""Writes a student as ONNX: opset 17, IR 8, default domain, one file, allow-listed operators only.

The student is traced with torch.fx, and every operation of the trace is looked up in `EMIT`, a table of the few operations
that a student may use; any other is refused by name. What does not depend on the input is folded into initializers,
BatchNorm into its convolution. The entry and the exit (any frame size to the working resolution and back) are in
`distill.export.resolution`.

The operators are emitted through onnxscript's GraphBuilder and not by torch.onnx: its exporter stays at opset 18, and with
dynamic sizes it silently specialised the entry's branch to the example frame. On the core of fixed size it agrees
with this one, which a test checks.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.export.resolution import enter, leave
from distill.export.verification import ExportRefused
from distill.export.writer import Writer
from distill.students.tiny_unet import ENTRY_KERNELS, TinyUNet


def image_graph(student: TinyUNet, metadata: dict[str, str]) -> onnx.ModelProto:
    """The image-mode graph: `input` f32 `[1,3,H,W]` -> `saliency_map` f32 `[1,1,H,W]`; no state anywhere. Raises
    ExportRefused where the student uses an operation that is not in `EMIT`; so does `step_graph`."""
    return _model(student, None, metadata)


def step_graph(student: TinyUNet, fps: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """The streaming graph for `fps` frames per second. `input` and `state_in` (optional: a zero initializer backs it) ->
    `saliency_map`, `state_out`."""
    return _model(student, fps, metadata)


class Core(nn.Module):
    """The network between entry and exit: a frame at the working resolution -> the map at a quarter of it. With `fps`, frames
    per second, the state before the frame comes beside the frame, and the state after it beside the map."""

    def __init__(self, student: TinyUNet, fps: float | None) -> None:
        super().__init__()
        self.student = student
        self.keep = None if fps is None else student.decay(torch.tensor([1 / fps])).detach()

    def forward(self, frame: Tensor, state_in: Any = None) -> Any:
        if self.keep is None:
            return torch.sigmoid(self.student.image(frame))
        logits, state_out = self.student.step(frame, state_in, self.keep)
        return torch.sigmoid(logits), state_out


def _model(student: TinyUNet, fps: float | None, metadata: dict[str, str]) -> onnx.ModelProto:
    config = student.config
    student = copy.deepcopy(student).cpu().float().eval()
    fold_batch_norm(student)
    writer = Writer.new("saliency_student")
    builder = writer.builder
    frame = builder.input("input", ir.DataType.FLOAT, [1, 3, "height", "width"])
    working, frame_size = enter(writer.within("entry"), frame, config.height, config.width, ENTRY_KERNELS)
    inputs = [working]
    if fps is not None:  # a zero initializer of the same name makes the state optional: without it, there is no history
        zero = ir.tensor(student.zero_state().numpy(), name="state_in")
        inputs.append(builder.input("state_in", const_value=zero))
    small, *states = trace(writer, Core(student, fps), inputs, ["small", "state_out"][: len(inputs)])
    writer.output(leave(writer.within("exit"), small, frame_size), [1, 1, "height", "width"])
    for state in states:
        writer.output(state, config.state_shape)
    return writer.model(metadata)


def fold_batch_norm(module: nn.Module) -> None:
    """Folds every BatchNorm that follows a convolution in a Sequential into that convolution, in place."""
    for child in module.modules():
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], child[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    child[i], child[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


@dataclass(frozen=True)
class Call:
    """An operation of the trace, to be written as one node. Its arguments are values of the graph; constants are tensors."""

    writer: Writer
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def node(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Appends a node named after the operation; returns its output."""
        return self.writer.node(op_type, inputs, self.name, **attributes)

    def store(self, array: Tensor | np.ndarray, what: str) -> ir.Value:
        """Stores a constant as the initializer `NAME.what`."""
        array = array.detach().numpy() if isinstance(array, Tensor) else array
        return self.writer.initializer(array, f"{self.name}.{what}")

    def operands(self, arguments: Sequence[Any]) -> list[ir.Value]:
        """The arguments as values of the graph; numbers and constants are stored."""
        tensors = [torch.tensor(float(a)) if isinstance(a, int | float) else a for a in arguments]
        return [self.store(a, f"operand{i}") if isinstance(a, Tensor) else a for i, a in enumerate(tensors)]

    def refusal(self, problem: str, known: str) -> ExportRefused:
        """The error for an operation whose arguments cannot be written."""
        return ExportRefused(f"the student {problem} at {self.name}; the ONNX writer knows {known}")


def trace(writer: Writer, module: nn.Module, inputs: Sequence[ir.Value], outputs: Sequence[str]) -> list[ir.Value]:
    """Writes `module`, applied to values of known shapes, as ONNX nodes; returns its results under the names `outputs`.
    Raises ExportRefused where the module uses an operation that is not in `EMIT`."""
    returned = _Trace(writer, module).run(*inputs)
    results = returned if isinstance(returned, tuple) else (returned,)
    calls = [Call(writer, name, None, (result,), {}) for name, result in zip(outputs, results, strict=True)]
    return [call.node("Identity", call.operands(call.args)) for call in calls]


class _Trace(fx.Interpreter):
    """Runs the module's trace: computes constants, and writes every operation that depends on the input."""

    def __init__(self, writer: Writer, module: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(module))
        self.extra_traceback = False  # or fx adds the node's Python source to a refusal
        self.writer, self.names = writer, set[str]()

    def run_node(self, n: fx.Node) -> Any:
        self.name = str(n.target) if n.op == "call_module" else n.name
        self.name += f".{n.name}" if self.name in self.names else ""  # a module that is called twice
        self.names.add(self.name)
        return super().run_node(n)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.call_function(self.fetch_attr(target), args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.call_function(getattr(Tensor, target), args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        values: list[ir.Value] = []
        fx.node.map_aggregate((args, kwargs), lambda a: values.append(a) if isinstance(a, ir.Value) else None)
        if not values:
            with torch.no_grad():
                return target(*args, **kwargs)
        emit = EMIT.get(type(target)) if isinstance(target, nn.Module) else EMIT.get(target)
        if emit is None:
            known = ", ".join(sorted(getattr(op, "__name__", str(op)) for op in EMIT))
            raise ExportRefused(
                f"the student uses {getattr(target, '__name__', target)} at {self.name}, which the ONNX writer does not "
                f"know; use one of: {known}, or add it to EMIT in export/graph.py"
            )
        return emit(Call(self.writer, self.name, target, args, kwargs))


def _conv(call: Call) -> ir.Value:
    conv = call.target
    if isinstance(conv.padding, str) or conv.dilation != (1, 1):
        raise call.refusal("uses a convolution that is dilated or padded by name", "numbers of pixels, no dilation")
    inputs = [call.args[0], call.store(conv.weight, "weight")]
    if conv.bias is not None:
        inputs.append(call.store(conv.bias, "bias"))
    kernel, stride, pads = list(conv.kernel_size), list(conv.stride), list(conv.padding) * 2
    return call.node("Conv", inputs, kernel_shape=kernel, strides=stride, pads=pads, group=conv.groups)


def _fixed_conv(op_type: str, call: Call) -> ir.Value:
    """A convolution whose kernels are constants of the student, without bias or padding."""
    value, kernels = call.args
    if not isinstance(kernels, Tensor) or not call.kwargs.keys() <= {"stride", "groups"}:
        raise call.refusal(f"convolves with {sorted(call.kwargs)}", "fixed kernels, stride, groups")
    inputs = [value, call.store(kernels, "weight")]
    kernel, stride = list(kernels.shape[2:]), [call.kwargs.get("stride", 1)] * 2
    return call.node(op_type, inputs, kernel_shape=kernel, strides=stride, group=call.kwargs.get("groups", 1))


def _elementwise(op_type: str, call: Call) -> ir.Value:
    return call.node(op_type, call.operands(call.args))


def _slice(call: Call) -> ir.Value:
    value, index = call.args
    if not all(isinstance(i, slice) and i.step is None for i in index):
        raise call.refusal(f"indexes with {index}", "plain slices")
    axes = [axis for axis, i in enumerate(index) if i != slice(None)]
    starts = [index[axis].start or 0 for axis in axes]
    stops = [value.shape[axis] if index[axis].stop is None else index[axis].stop for axis in axes]
    bounds = {"starts": starts, "stops": stops, "axes": axes}
    return call.node("Slice", [value, *(call.store(np.array(bound, np.int64), what) for what, bound in bounds.items())])


def _interpolate(call: Call) -> ir.Value:
    if call.kwargs.get("mode") != "bilinear" or call.kwargs.get("align_corners"):
        raise call.refusal(f"interpolates with {call.kwargs}", "bilinear, half-pixel")
    scale = float(call.kwargs["scale_factor"])
    scales = call.store(np.array([1, 1, scale, scale], np.float32), "scales")
    return call.writer.resize(call.args[0], call.name, scales=scales)


def _global_pool(call: Call) -> ir.Value:
    if call.args[1] != 1:
        raise call.refusal(f"pools to {call.args[1]}", "pooling to 1")
    return call.node("GlobalAveragePool", [call.args[0]])


EMIT: dict[Any, Callable[[Call], Any]] = {
    nn.Identity: lambda call: call.args[0],
    torch.ones_like: lambda call: torch.ones(tuple(call.args[0].shape)),  # constants, since shapes are fixed
    torch.zeros_like: lambda call: torch.zeros(tuple(call.args[0].shape)),
    nn.Conv2d: _conv,
    F.conv2d: partial(_fixed_conv, "Conv"),
    F.conv_transpose2d: partial(_fixed_conv, "ConvTranspose"),
    nn.ReLU: partial(_elementwise, "Relu"),
    F.relu: partial(_elementwise, "Relu"),
    nn.ReLU6: lambda call: call.node("Clip", call.operands([*call.args, 0, 6])),
    torch.sigmoid: partial(_elementwise, "Sigmoid"),
    torch.Tensor.abs: partial(_elementwise, "Abs"),
    operator.add: partial(_elementwise, "Add"),
    operator.sub: partial(_elementwise, "Sub"),
    operator.mul: partial(_elementwise, "Mul"),
    operator.truediv: partial(_elementwise, "Div"),
    torch.Tensor.mul: partial(_elementwise, "Mul"),  # how fx records a constant tensor on the left
    operator.getitem: _slice,
    torch.cat: lambda call: call.node("Concat", call.operands(call.args[0]), axis=call.args[1]),
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _global_pool,
}

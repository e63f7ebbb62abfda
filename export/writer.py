"""Writes ONNX graphs through onnxscript's GraphBuilder: opset 17, IR 8, names that a gate report can use.

    writer = Writer.new("saliency_student")
    frame = writer.builder.input("input", ir.DataType.FLOAT, [1, 3, "height", "width"])
    half = writer.node("AveragePool", [frame], "half", kernel_shape=[2, 2], strides=[2, 2])
    writer.output(half, [1, 3, "h", "w"])
    model = writer.model({"license": "MIT"})   # an onnx.ModelProto

The same calls give the same bytes in every process, whatever the machine. This module needs no torch; onnxscript takes
seconds to import and is not needed to run a file, so import this module only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import GraphBuilder

from distill.export.core import pooling_steps
from distill.export.verification import IR_VERSION, OPSET


@dataclass(frozen=True)
class Writer:
    """A graph under construction. Nodes are named `SCOPE/VALUE` after the value that they compute."""

    builder: GraphBuilder
    scope: str = ""

    @classmethod
    def new(cls, name: str) -> Writer:
        """A writer of an empty graph."""
        return cls(GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)))

    def within(self, scope: str) -> Writer:
        """A writer of the same graph in the scope `/scope`."""
        return Writer(self.builder, f"/{scope}")

    def node(self, op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """Appends a node with one output called `name`, which it returns."""
        path = f"{self.scope}/{name.replace('.', '/')}"
        value = getattr(self.builder.op, op_type)(*inputs, _name=path, **attributes)
        value.name = name
        return value

    def initializer(self, array: np.ndarray, name: str) -> ir.Value:
        """Stores an array in the graph."""
        return self.builder.initializer(ir.tensor(np.ascontiguousarray(array), name=name), name)

    def ints(self, values: Sequence[int], name: str) -> ir.Value:
        """A Constant node of int64: sizes, which are not parameters of the student."""
        return self.node("Constant", [], name, value_ints=list(values))

    def pool(self, value: ir.Value, kernel: int, name: str) -> ir.Value:
        """The mean of every square of `kernel` x `kernel`."""
        *first, last = pooling_steps(kernel)
        for step in first:
            value = self.node("AveragePool", [value], f"{name}_pairs", kernel_shape=step, strides=step)
        return self.node("AveragePool", [value], name, kernel_shape=last, strides=last)

    def resize(self, value: ir.Value, name: str, scales: ir.Value | None = None, shape: ir.Value | None = None) -> ir.Value:
        """Linear, half-pixel scaling by `scales`, f32 `[4]`, or to `shape`, int64 `[4]`."""
        inputs = [value, None, scales] if shape is None else [value, None, None, shape]
        return self.node("Resize", inputs, name, mode="linear", coordinate_transformation_mode="half_pixel")

    def branch(self, name: str, shape: Sequence[int | str], write: Callable[[Writer], ir.Value]) -> ir.Graph:
        """A branch of an `If`: the graph of what `write` appends and returns; it may use the values of this graph."""
        output = ir.Value(type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        return self.builder.subgraph(lambda op: write(Writer(op.builder, self.scope)), [], [output], name=name)

    def output(self, value: ir.Value, shape: Sequence[int | str]) -> None:
        """Makes a float value an output of the graph. `shape` is stated: shape inference does not know the names of dynamic axes."""
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        self.builder.add_output(value, value.name)

    def model(self, metadata: Mapping[str, str], producer: str = "saliency-distill") -> onnx.ModelProto:
        """The finished model: unique names, the given metadata, and no mark of the exporter on nodes and values."""
        graph = self.builder.graph
        for node in graph.all_nodes():  # inferred shapes are not stored: consumers infer them for their sizes
            for value in (value for value in node.outputs if not value.is_graph_output()):
                value.type = value.shape = None
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name=producer, metadata_props=dict(metadata))
        common.NameFixPass()(model)  # across branches too: some runtimes join their scopes
        common.ClearMetadataAndDocStringPass()(model)
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]  # of the initializers, which have their shapes
        return proto

"""Reading and extending an `onnx.ModelProto`, for the mutations of it."""

from collections.abc import Callable
from random import Random
from typing import TypeAlias

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from distill.opallowlist import load_list

Mutation: TypeAlias = Callable[[Random, ModelProto], None]

LISTED = sorted(load_list("libvmaf").ops)
FORBIDDEN = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} - set(LISTED))


def graphs(model: ModelProto) -> list[GraphProto]:
    """The main graph and all subgraphs below it."""
    found, todo = [], [model.graph]
    while todo:
        graph = todo.pop()
        found.append(graph)
        for node in graph.node:
            for attribute in node.attribute:
                todo += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return found


def any_graph(rng: Random, model: ModelProto) -> GraphProto:
    return rng.choice(graphs(model))


def any_node(rng: Random, model: ModelProto, op: str = "") -> NodeProto:
    """A random node (of the operator `op`, if there is one); one is added to a model without nodes."""
    nodes = [node for graph in graphs(model) for node in graph.node]
    if not nodes:
        return model.graph.node.add(op_type="Relu")
    return rng.choice([node for node in nodes if node.op_type == op] or nodes)


def scalar(value: int, dtype: int = TensorProto.INT64, name: str = "") -> TensorProto:
    return helper.make_tensor(name, dtype, [], [value])


def add_constant(graph: GraphProto, name: str, value: TensorProto) -> None:
    value.name = name
    graph.initializer.append(value)


def insert(rng: Random, graph: GraphProto, node: NodeProto) -> None:
    graph.node.insert(rng.randrange(len(graph.node) + 1), node)


def external(tensor: TensorProto) -> TensorProto:
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    return tensor

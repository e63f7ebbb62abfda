"""Mutations of the model: what hostile or broken exporters put where the gate, the checker and the runtimes look.

A mutation is a function `(rng, model) -> None` that changes an `onnx.ModelProto` in place. `tensors.py` has those of tensors
and attributes.
"""

from collections.abc import Callable
from random import Random
from typing import TypeAlias

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

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


# --- operators and domains


def forbidden_operator(rng: Random, model: ModelProto) -> None:
    """At random depth; with a listed operator's domain, attributes and wiring in half of the cases."""
    if rng.random() < 0.4:
        nest(rng, model, levels=rng.randrange(1, 8))
    if rng.random() < 0.5:
        any_node(rng, model).op_type = rng.choice(FORBIDDEN)
    else:
        graph = any_graph(rng, model)
        insert(rng, graph, helper.make_node(rng.choice(FORBIDDEN), [], ["unused_forbidden"]))


def spelled(rng: Random, name: str) -> str:
    """`name` as it may look to a reader but not to a comparison."""
    alike = {"a": "а", "e": "е", "o": "о", "c": "с", "p": "р", "x": "х", "A": "А", "C": "С", "M": "М", "S": "Ѕ", "I": "І"}
    at = rng.randrange(len(name) + 1)
    return rng.choice(
        (
            name.lower(), name.upper(), name.swapcase(), f" {name}", f"{name} ", f"{name}\n", f"{name}\0", f"\0{name}",
            f"{name}\0Floor", name[:at] + "\0" + name[at:], name[:at] + "\u200b" + name[at:], f"\ufeff{name}", f"ai.onnx.{name}",
            "".join(alike.get(c, c) for c in name), "", name * 20, "A" * rng.choice((126, 127, 128, 129)), f"{name}:1", f"::{name}",
        )
    )  # fmt: skip


def renamed_operator(rng: Random, model: ModelProto) -> None:
    node = any_node(rng, model)
    node.op_type = spelled(rng, node.op_type or "Relu")


def renamed_domain(rng: Random, model: ModelProto) -> None:
    domains = (
        "ai.onnx", "ai.onnx", "AI.ONNX", "ai.onnx ", " ai.onnx", "ai.onnx\0", "\0", " ", "onnx", "ai.onnx.ml", "com.microsoft",
        "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten", "custom",
        "аi.onnx", "d" * 300,
    )  # fmt: skip
    domain = rng.choice(domains)
    any_node(rng, model).domain = domain
    if rng.random() < 0.5:
        model.opset_import.add(domain=domain, version=rng.choice((1, 17)))


# --- header


def opset(rng: Random, model: ModelProto) -> None:
    if not model.opset_import:
        model.opset_import.add(version=17)
    version = rng.choice(
        (-1, -17, 0, 1, 6, 7, 8, 9, 10, 12, 13, 16, 18, 20, 21, 22, 23, 99, 1 << 31, (1 << 63) - 1, -(1 << 63))
    )
    way = rng.randrange(5)
    if way == 0:
        model.opset_import[0].version = version
    elif way == 1:
        model.opset_import.add(domain=rng.choice(("", "ai.onnx")), version=rng.choice((version, model.opset_import[0].version)))
    elif way == 2:
        del model.opset_import[:]
    elif way == 3:
        model.opset_import[0].domain = rng.choice(("ai.onnx", "com.microsoft", "ai.onnx.ml", " "))
    else:
        model.opset_import.add(domain=rng.choice(("com.microsoft", "ai.onnx.ml", "custom", "")), version=version)
        if rng.random() < 0.3:
            del model.opset_import[0]


def ir_version(rng: Random, model: ModelProto) -> None:
    model.ir_version = rng.choice(
        (-1, 0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 13, 14, 99, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, -(1 << 63))
    )
    if rng.random() < 0.1:
        model.ClearField("ir_version")


# --- subgraphs


def nest(rng: Random, model: ModelProto, levels: int | None = None) -> None:
    """Puts a node of the main graph into If or Loop bodies, around the depth that is accepted."""
    levels = levels or rng.choice((1, 2, 3, 6, 7, 8, 9, 10, 20))
    with_output = [i for i, node in enumerate(model.graph.node) if len(node.output) == 1 and node.output[0]]
    if not with_output:
        return
    at = rng.choice(with_output)
    core = NodeProto()
    core.CopyFrom(model.graph.node[at])
    for name, dtype in (("nest_cond", TensorProto.BOOL), ("nest_trips", TensorProto.INT64)):
        if all(tensor.name != name for tensor in model.graph.initializer):
            add_constant(model.graph, name, scalar(1, dtype))
    result = core.output[0]
    unique = f"{rng.getrandbits(32):x}"
    looped = rng.random() < 0.3
    nodes = [core]
    for level in range(levels):
        inner = f"n{unique}_{level}"
        nodes[-1].output[0] = inner
        result_info = helper.make_empty_tensor_value_info(inner)
        if looped and level % 2:
            trips, go = f"m{unique}_{level}", f"g{unique}_{level}"
            count = rng.choice((1, 2, 1024)) if level < 4 else 1
            head = helper.make_node("Constant", [], [trips], value=scalar(count))
            again = helper.make_node("Identity", [f"{go}_in"], [go])
            inputs = [helper.make_tensor_value_info(f"i{unique}_{level}", TensorProto.INT64, [])]
            inputs.append(helper.make_tensor_value_info(f"{go}_in", TensorProto.BOOL, []))
            outputs = [helper.make_tensor_value_info(go, TensorProto.BOOL, []), result_info]
            body = helper.make_graph([*nodes, again], f"loop{level}", inputs, outputs)
            last = f"s{unique}_{level}"
            nodes = [head, helper.make_node("Loop", [trips, "nest_cond"], [last], body=body)]
            # A scan output has one axis more: the last iteration's part is taken, so that ranks stay as they are.
            zero = helper.make_node("Constant", [], [f"z{unique}_{level}"], value=scalar(0))
            nodes += [zero, helper.make_node("Gather", [last, f"z{unique}_{level}"], [result], axis=0)]
        else:
            plain = NodeProto()
            plain.CopyFrom(core)
            plain.output[0] = inner
            branch = helper.make_graph(nodes, f"then{level}", [], [result_info])
            other = helper.make_graph([plain], "else", [], [result_info])
            nodes = [helper.make_node("If", ["nest_cond"], [result], then_branch=branch, else_branch=other)]
    nodes[-1].output[0] = result
    del model.graph.node[at]
    for offset, node in enumerate(nodes):
        model.graph.node.insert(at + offset, node)


def trip_count(rng: Random, model: ModelProto) -> None:
    """A Loop's trip count in every form and hiding place."""
    loops = [(graph, node) for graph in graphs(model) for node in graph.node if node.op_type == "Loop" and node.input]
    if not loops:
        model.graph.CopyFrom(onnx.parser.parse_graph(COUNTING_LOOP))
        loops = [(model.graph, model.graph.node[1])]
    graph, loop = rng.choice(loops)
    count = rng.choice((0, 1, 3, 1024, 1025, 50_000, 1 << 31, -1, (1 << 63) - 1))
    constant = next((node for node in graph.node if loop.input[0] in node.output and node.attribute), None)
    way = rng.choice(sorted(TRIP_WAYS))
    if constant is None or way not in ("in place", "second value", "type", "other attribute", "extra output"):
        graph.node.insert(0, helper.make_node("Constant", [], [f"t{rng.getrandbits(32):x}"], value=scalar(count)))
        constant = graph.node[0]
        loop.input[0] = constant.output[0]
    TRIP_WAYS[way](rng, model, graph, loop, constant, count)


COUNTING_LOOP = """
counting (float[2] x) => (float[2] y, int64 iterations) <bool cond = {1}, int64 zero = {0}> {
  trips = Constant <value = int64 {3}> ()
  y, iterations = Loop (trips, cond, x, zero) <
    body = body (int64 i, bool go, float[2] a, int64 n) => (bool again, float[2] b, int64 m) <int64 one = {1}> {
      again = Identity (go)
      b = Neg (a)
      m = Add (n, one)
    }>
}"""


def _in_place(rng, model, graph, loop, constant, count):
    tensor = constant.attribute[0].t
    tensor.CopyFrom(TensorProto(data_type=TensorProto.INT64, dims=rng.choice(([], [1], [1, 1], [0], [2], [-1], [1] * 9))))
    raw = (count & ((1 << 64) - 1)).to_bytes(8, "little")
    way = rng.randrange(8)
    if way in (0, 1, 2):
        tensor.int64_data.append(count)
    if way in (1, 3, 4):
        tensor.raw_data = rng.choice((raw, raw, raw[:4], raw + raw, b""))
    if way == 5:
        tensor.data_type = rng.choice((TensorProto.INT32, TensorProto.UINT64, TensorProto.FLOAT, 0, 99))
        rng.choice((tensor.int32_data, tensor.int64_data, tensor.uint64_data, tensor.double_data)).append(
            abs(count) % (1 << 31)
        )
    if way == 6:
        tensor.int64_data.extend([3, count])
    if way == 7:
        tensor.int32_data.append(3)
        tensor.int64_data.append(count)


def _second_value(rng, model, graph, loop, constant, count):
    """The tensor says 3, another attribute the count, in either order."""
    names = rng.choice(("value", "value_int", "value_ints", "value_float", "sparse_value", "Value", "value ", ""))
    extra = helper.make_attribute(names or "value", rng.choice((count % (1 << 62), [count % (1 << 62)], scalar(count))))
    small = helper.make_attribute("value", scalar(3))
    del constant.attribute[:]
    constant.attribute.extend(rng.choice(([small, extra], [extra, small], [extra])))


def _type(rng, model, graph, loop, constant, count):
    """One attribute with several values: `type` says which one counts, and not all readers ask."""
    attribute = constant.attribute[0]
    attribute.CopyFrom(helper.make_attribute("value", scalar(3)))
    attribute.name = rng.choice(("value", "value", "value_int", "value_ints", "value_float", "sparse_value"))
    attribute.type = rng.randrange(15)
    if rng.random() < 0.2:
        attribute.ClearField("type")
    fill = rng.randrange(5)
    if fill == 0:
        attribute.i = count
    elif fill == 1:
        attribute.ints.append(count)
    elif fill == 2:
        attribute.tensors.append(scalar(count))
    elif fill == 3:
        attribute.f = float(count)
    else:
        attribute.sparse_tensor.values.CopyFrom(helper.make_tensor("v", TensorProto.INT64, [1], [count]))


def _other_attribute(rng, model, graph, loop, constant, count):
    del constant.attribute[:]
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.INT64, [1], [count]), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1]
    )
    forms = {
        "value_int": count,
        "value_ints": [count],
        "value_float": float(count),
        "sparse_value": sparse,
        "value_string": "3",
    }
    name = rng.choice(sorted(forms))
    constant.attribute.append(helper.make_attribute(name, forms[name]))


def _extra_output(rng, model, graph, loop, constant, count):
    graph.node.insert(rng.randrange(len(graph.node) + 1), helper.make_node("Identity", [loop.input[0]], [loop.input[0]]))
    constant.attribute[0].CopyFrom(helper.make_attribute("value", scalar(count)))


def _initializer(rng, model, graph, loop, constant, count):
    add_constant(graph, constant.output[0], scalar(count))
    if rng.random() < 0.7:
        graph.node.remove(constant)


def _computed(rng, model, graph, loop, constant, count):
    name = f"c{rng.getrandbits(32):x}"
    op = rng.choice(("Identity", "Neg", "Abs", "Cast", "Reshape", "Dropout"))
    node = helper.make_node(op, [constant.output[0]], [name], **({"to": TensorProto.INT64} if op == "Cast" else {}))
    graph.node.insert(1, node)
    loop.input[0] = name


def _outer(rng, model, graph, loop, constant, count):
    graph.node.remove(constant)
    model.graph.node.insert(0, constant)


def _input(rng, model, graph, loop, constant, count):
    graph.input.append(helper.make_tensor_value_info(constant.output[0], TensorProto.INT64, []))
    if rng.random() < 0.7:
        graph.node.remove(constant)


def _omitted(rng, model, graph, loop, constant, count):
    if rng.random() < 0.5:
        loop.input[0] = ""
    else:
        del loop.input[:]
    if rng.random() < 0.3 and loop.input:
        loop.input[1 % len(loop.input)] = ""


def _external(rng, model, graph, loop, constant, count):
    tensor = constant.attribute[0].t
    tensor.external_data.add(key="location", value="count.bin")
    if rng.random() < 0.5:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("int64_data")


TRIP_WAYS = {
    "in place": _in_place, "second value": _second_value, "type": _type, "other attribute": _other_attribute, "extra output": _extra_output,
    "initializer": _initializer, "computed": _computed, "outer": _outer, "input": _input, "omitted": _omitted, "external": _external,
}  # fmt: skip


def branches(rng: Random, model: ModelProto) -> None:
    """Subgraphs that are missing, empty, given as lists, on operators without any, or with inputs and outputs of other number."""
    node = any_node(rng, model, rng.choice(("If", "Loop")))
    graphs_of = [attribute for attribute in node.attribute if attribute.HasField("g")]
    way = rng.randrange(6)
    extra = helper.make_graph([helper.make_node("Relu", ["x"], ["hidden"])], "extra", [], [])
    if way == 0 or not graphs_of:
        name = rng.choice(("then_branch", "else_branch", "body", "extra"))
        node.attribute.append(helper.make_attribute(name, rng.choice((extra, [extra, extra]))))
    elif way == 1:
        node.attribute.remove(rng.choice(graphs_of))
    elif way == 2:
        rng.choice(graphs_of).g.Clear()
    elif way == 3:
        graph = rng.choice(graphs_of).g
        some = rng.choice((graph.input, graph.output))
        if some and rng.random() < 0.5:
            del some[rng.randrange(len(some))]
        else:
            some.add().CopyFrom(helper.make_tensor_value_info(rng.choice(("x", "u", "fresh")), TensorProto.FLOAT, None))
    elif way == 4:
        attribute = rng.choice(graphs_of)
        attribute.graphs.add().CopyFrom(attribute.g)
        if rng.random() < 0.5:
            attribute.ClearField("g")
            attribute.type = AttributeProto.GRAPHS
    else:
        rng.choice(graphs_of).g.name = ""


def function(rng: Random, model: ModelProto) -> None:
    """A local function, called or not, named like a listed operator or not."""
    name, domain = rng.choice(("F", "Softsign", "Relu")), rng.choice(("local", "", "ai.onnx"))
    body = [helper.make_node(rng.choice(("Floor", "Relu", "Abs")), ["a"], ["b"])]
    made = helper.make_function(domain, name, ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    if rng.random() < 0.3:
        made.attribute_proto.append(helper.make_attribute("alpha", external(scalar(1))))
    if rng.random() < 0.3:
        made.node[0].attribute.append(helper.make_attribute("g", any_graph(rng, model)))
    model.functions.append(made)
    if rng.random() < 0.7:
        node = any_node(rng, model)
        node.op_type, node.domain = name, domain
        if domain:
            model.opset_import.add(domain=domain, version=1)
    model.ir_version = max(model.ir_version, 8)


def training_info(rng: Random, model: ModelProto) -> None:
    training = model.training_info.add()
    if rng.random() < 0.7:
        rng.choice((training.algorithm, training.initialization)).CopyFrom(any_graph(rng, model))
    if rng.random() < 0.3:
        training.update_binding.add(key="x", value="y")


def external(tensor: TensorProto) -> TensorProto:
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    return tensor


MUTATIONS: dict[str, Mutation] = {
    "forbidden operator": forbidden_operator,
    "renamed operator": renamed_operator,
    "renamed domain": renamed_domain,
    "opset": opset,
    "IR version": ir_version,
    "nested If and Loop": nest,
    "trip count": trip_count,
    "branches": branches,
    "local function": function,
    "training graph": training_info,
}

"""Mutations of the model: what hostile or broken exporters put where the gate, the checker and the runtimes look.

A mutation is a function `(rng, model) -> None` that changes an `onnx.ModelProto` in place. `trips` has those of a Loop's trip
count, `values` those of tensors, attributes, names and shapes.
"""

from random import Random

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from tests.opallowlist.fuzzing.models import FORBIDDEN, Mutation, add_constant, any_graph, any_node, external, insert, scalar
from tests.opallowlist.fuzzing.trips import trip_count

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

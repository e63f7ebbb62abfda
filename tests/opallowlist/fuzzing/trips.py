"""Mutations of a Loop's trip count: every form and hiding place of the number, and of another beside it."""

from random import Random

import onnx
from onnx import ModelProto, TensorProto, helper

from tests.opallowlist.fuzzing.models import add_constant, graphs, scalar

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

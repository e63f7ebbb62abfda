"""Mutations of tensors, attributes, names and shapes: `(rng, model) -> None`, in place, as in `structure`."""

from collections.abc import Iterator
from random import Random

from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper

from tests.opallowlist.fuzzing.models import LISTED, Mutation, any_graph, any_node, external, graphs, scalar

STORAGE = ("float_data", "int32_data", "int64_data", "uint64_data", "double_data", "string_data", "raw_data")


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every dense tensor in initializers and attributes."""
    for graph in graphs(model):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t


def any_tensor(rng: Random, model: ModelProto) -> TensorProto:
    return rng.choice(list(tensors(model)) or [model.graph.initializer.add(name="added", data_type=TensorProto.FLOAT)])


# --- tensors


def external_data(rng: Random, model: ModelProto) -> None:
    """In every place that can hold a tensor, by location, by the flag alone, or both."""
    graph, node = any_graph(rng, model), any_node(rng, model)
    attribute = node.attribute.add(name=rng.choice(("value", "alpha", "hidden")), type=AttributeProto.TENSOR)
    way = rng.randrange(9)
    if way < 3:
        node.attribute.remove(attribute)
        tensor = any_tensor(rng, model)
    elif way == 3:
        tensor = attribute.t
    elif way == 4:
        tensor, attribute.type = attribute.tensors.add(), AttributeProto.TENSORS
    elif way == 5:
        attribute.type = AttributeProto.SPARSE_TENSOR
        tensor = rng.choice((attribute.sparse_tensor.values, attribute.sparse_tensor.indices))
    elif way == 6:
        attribute.type = AttributeProto.GRAPH
        tensor = attribute.g.initializer.add(name="w")
    elif way == 7:
        node.attribute.remove(attribute)
        sparse = graph.sparse_initializer.add()
        tensor = rng.choice((sparse.values, sparse.indices))
    else:
        node.attribute.remove(attribute)
        tensor = model.functions.add(name="F", domain="local").attribute_proto.add(name="a").t
    form = rng.randrange(5)
    if form < 2:
        external(tensor)
    elif form == 2:
        tensor.external_data.add(
            key=rng.choice(("location", "offset", "checksum", "")), value=rng.choice(("../w", "/etc/passwd", ""))
        )
    elif form == 3:
        tensor.data_location = TensorProto.EXTERNAL
    else:
        tensor.external_data.add(key="offset", value="0")


def sparse(rng: Random, model: ModelProto) -> None:
    """As initializer or attribute, whole or with parts missing, of wrong size or out of range."""
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [2], rng.choice(([0, 2], [2, 0], [0, 0], [0, 99], [-1, 1 << 40])))
    if rng.random() < 0.2:
        indices = helper.make_tensor("at", TensorProto.INT64, [2, 2], [0, 0, 1, 1])
    made = helper.make_sparse_tensor(values, indices, rng.choice(([4], [2, 2], [1 << 20, 1 << 20], [-1], [])))
    way = rng.randrange(6)
    if way == 0:
        made.ClearField(rng.choice(("values", "indices", "dims")))
    elif way == 1:
        rng.choice((made.values, made.indices)).ClearField(rng.choice(("dims", "data_type", "float_data", "int64_data")))
    elif way == 2:
        made.values.data_type = rng.choice((0, 6, 8, 99))
    elif way == 3:
        made = SparseTensorProto()
    place = rng.randrange(4)
    graph, node = any_graph(rng, model), any_node(rng, model)
    if place < 2:
        graph.sparse_initializer.append(made)
        if place and graph.initializer:
            made.values.name = graph.initializer[0].name
            if rng.random() < 0.5:
                del graph.initializer[0]
    elif place == 2:
        node.op_type = "Constant"
        del node.input[:], node.attribute[:]
        node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(made)
    else:
        attribute = node.attribute.add(name="s", type=rng.choice((AttributeProto.SPARSE_TENSORS, AttributeProto.SPARSE_TENSOR)))
        attribute.sparse_tensors.append(made)


def data_that_does_not_fit(rng: Random, model: ModelProto) -> None:
    tensor = any_tensor(rng, model)
    way = rng.randrange(8)
    filled = [name for name in STORAGE if getattr(tensor, name)]
    if way == 0:
        for name in filled:
            tensor.ClearField(name)
    elif way == 1 and filled:
        name = rng.choice(filled)
        data = getattr(tensor, name)
        longer, shorter = list(data) + list(data)[:1], list(data)[:-1]
        _set(tensor, name, rng.choice((longer, shorter)))
    elif way == 2:
        name = rng.choice(STORAGE)
        _set(tensor, name, [1, 0, 0, 0] if name not in filled else list(getattr(tensor, name)))
    elif way == 3:
        tensor.data_type = rng.choice((0, *range(1, 30), 99, -1, (1 << 31) - 1))
    elif way == 4:
        dims = list(tensor.dims)
        at = rng.randrange(len(dims) + 1)
        value = rng.choice((-1, 0, 1, 2, 1 << 31, 1 << 32, 1 << 62, -(1 << 63), (1 << 63) - 1))
        tensor.dims[:] = rng.choice(([*dims[:at], value, *dims[at:]], [*dims[:at], value, *dims[at + 1 :]], dims[1:]))
    elif way == 5:  # a product that wraps around to the right size, and one that takes long to compute
        tensor.dims[:] = rng.choice(([1 << 32, 1 << 32, *tensor.dims], [-1, -1, *tensor.dims], [(1 << 63) - 1] * 60_000))
    elif way == 6:
        name = rng.choice(STORAGE)
        values = list(getattr(tensor, rng.choice(filled))) if filled else [1]
        for other in filled:
            tensor.ClearField(other)
        _set(tensor, name, values)
    else:
        dtype = rng.choice((21, 22, 23, 25, 26, 2, 9, 10, 16, 17, 24, 14, 15))
        size = rng.choice((0, 1, 2, 3, 4, 8, 16, 32))
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=dtype, dims=[rng.choice((1, 2, 3, 4))], raw_data=bytes(size)))


def _set(tensor: TensorProto, name: str, values: list) -> None:
    """`values` in the storage field `name`, as far as it can hold them."""
    if name == "raw_data":
        tensor.raw_data = b"".join(v if isinstance(v, bytes) else int(v).to_bytes(8, "little", signed=True)[:1] for v in values)
    elif name == "string_data":
        tensor.string_data[:] = [v if isinstance(v, bytes) else str(v).encode() for v in values]
    else:
        convert = float if name in ("float_data", "double_data") else lambda v: abs(int(v)) % (1 << 31)
        getattr(tensor, name)[:] = [convert(v) for v in values if not isinstance(v, bytes)]


def shape_that_fits(rng: Random, model: ModelProto) -> None:
    """Ranks and sizes of weights changed with their data: only shape inference can tell."""
    tensor = any_tensor(rng, model)
    dims = rng.choice(
        ([1, *tensor.dims], [*tensor.dims, 1], [1] * 9 + list(tensor.dims), list(tensor.dims)[::-1], [0, *tensor.dims])
    )
    if 0 in dims:
        for name in STORAGE:
            tensor.ClearField(name)
    tensor.dims[:] = dims


# --- attributes

EXTREME_INTS = (-(1 << 63), -99, -2, -1, 0, 1, 2, 3, 99, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)


def attribute_type(rng: Random, model: ModelProto) -> None:
    """Wrong, absent or unknown types, names given twice, several values, references."""
    nodes = [node for graph in graphs(model) for node in graph.node if node.attribute]
    node = rng.choice(nodes or [any_node(rng, model)])
    if not node.attribute:
        node.attribute.append(helper.make_attribute("axis", 1))
    attribute = rng.choice(node.attribute)
    way = rng.randrange(7)
    if way == 0:
        attribute.ClearField("type")
    elif way == 1:
        attribute.type = rng.randrange(15)
    elif way == 2:
        again = node.attribute.add()
        again.CopyFrom(
            rng.choice((attribute, helper.make_attribute(attribute.name, rng.choice((1, [1], 1.0, "a", scalar(1))))))
        )
    elif way == 3:
        attribute.ref_attr_name = rng.choice(("x", attribute.name))
    elif way == 4:
        value = rng.choice((1, 2.0, b"linear", b"cubic", [1, 2], [0.5], ["linear"], scalar(3), [scalar(3)]))
        other = helper.make_attribute(attribute.name, value)
        kept = attribute.type
        attribute.MergeFrom(other)
        attribute.type = rng.choice((kept, other.type))
    elif way == 5:
        attribute.name = rng.choice(("", "Mode", "mode ", "unknown", "mode\0", "value", "axis"))
    else:
        for field, _ in attribute.ListFields():
            if field.name not in ("name", "type") and rng.random() < 0.7:
                attribute.ClearField(field.name)


def attribute_value(rng: Random, model: ModelProto) -> None:
    """Extreme values and lengths, which no rule of the gate covers: the runtimes have to."""
    every = [attribute for graph in graphs(model) for node in graph.node for attribute in node.attribute]
    every = [
        a for a in every if a.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING)
    ]
    if not every or rng.random() < 0.2:
        every = [any_node(rng, model).attribute.add(name=rng.choice(("axis", "group", "mode", "to")), type=AttributeProto.INT)]
    attribute = rng.choice(every)
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(EXTREME_INTS)
    elif attribute.type == AttributeProto.INTS:
        at = rng.randrange(len(attribute.ints) + 1)
        attribute.ints[at : at + rng.randrange(2)] = [rng.choice(EXTREME_INTS)] * rng.choice((0, 1, 1, 5))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((float("nan"), float("inf"), -1e38, 0.0))
    else:
        attribute.s = rng.choice((b"", b"cubic", b"LINEAR", b"linear\0", b"area", b"nearest ", b"\xff", b"x" * 5000))


# --- names


def names(rng: Random, model: ModelProto) -> None:
    """Duplicates, shadowing, forward and outward references, names of odd spelling."""
    way = rng.randrange(10)
    graph, node = any_graph(rng, model), any_node(rng, model)
    every = [name for g in graphs(model) for n in g.node for name in (*n.input, *n.output)] + ["fresh"]
    if way == 0 and graph.initializer:
        again = graph.initializer.add()
        again.CopyFrom(rng.choice(list(graph.initializer)[:-1]))
    elif way == 1:
        for some in rng.sample(list(graph.node), min(2, len(graph.node))):
            some.name = "same"
    elif way == 2 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(every)
    elif way == 3 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(every)
    elif way == 4:  # a branch defines or declares an outer name
        inner = rng.choice(graphs(model))
        name = rng.choice(every) or "x"
        kind = rng.randrange(3)
        if kind == 0:
            inner.initializer.append(scalar(1, TensorProto.FLOAT, name))
        elif kind == 1:
            inner.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        else:
            inner.node.insert(0, helper.make_node("Constant", [], [name], value_float=1.0))
    elif way == 5:
        old = rng.choice(every)
        new = rng.choice(("", " ", "a\0b", "ä", "x" * 5000, "../x", rng.choice(every)))
        for g in graphs(model):
            for n in g.node:
                n.input[:] = [new if name == old else name for name in n.input]
                if rng.random() < 0.9:
                    n.output[:] = [new if name == old else name for name in n.output]
    elif way == 6 and graph.output:
        rng.choice(graph.output).name = rng.choice((*every, ""))
    elif way == 7 and graph.input:
        value = rng.choice(graph.input)
        rng.choice((graph.input, graph.output, graph.value_info)).add().CopyFrom(value)
    elif way == 8 and len(graph.node) > 1:
        moved = graph.node.pop(rng.randrange(len(graph.node)))
        graph.node.insert(rng.randrange(len(graph.node) + 1), moved)
    else:
        graph.name = rng.choice(("", "a\0", graph.name))
        node.name = rng.choice(("", "x" * 70_000, "a\nb"))


def arity(rng: Random, model: ModelProto) -> None:
    """Inputs and outputs removed, added or left empty."""
    node = any_node(rng, model)
    some = rng.choice((node.input, node.output))
    way = rng.randrange(4)
    if way == 0 and some:
        del some[rng.randrange(len(some))]
    elif way == 1:
        some.append(rng.choice(("", *node.input, "fresh")))
    elif way == 2 and some:
        some[rng.randrange(len(some))] = ""
    else:
        del some[:]


# --- interface and shapes


def value_type(rng: Random, model: ModelProto) -> None:
    """Types and dims of inputs, outputs and value_info."""
    graph = any_graph(rng, model)
    value = rng.choice([*graph.input, *graph.output, *graph.value_info] or [graph.value_info.add(name="v")])
    tensor = value.type.tensor_type
    way = rng.randrange(7)
    if way == 0:
        value.ClearField("type")
    elif way == 1:
        tensor.elem_type = rng.choice((0, 1, 7, 8, 9, 10, 11, 16, 20, 23, 99, -1))
    elif way == 2:
        tensor.ClearField("shape")
    elif way == 3:
        made = rng.choice((helper.make_sequence_type_proto, helper.make_optional_type_proto))(
            helper.make_tensor_type_proto(1, [1])
        )
        value.type.CopyFrom(made)
    elif way == 4:
        value.type.sparse_tensor_type.elem_type = 1
    elif way == 5:
        tensor.shape.dim.add(dim_value=rng.choice((-1, 0, 1, 1 << 40, (1 << 63) - 1)))
    else:
        for dim in tensor.shape.dim:
            if rng.random() < 0.5:
                dim.Clear() if rng.random() < 0.3 else setattr(dim, "dim_value", rng.choice((-1, 0, 1, 2, 3, 1 << 40)))
            elif rng.random() < 0.3:
                dim.dim_param = rng.choice(("", "H", "N\0", "x" * 300))


def many(rng: Random, model: ModelProto) -> None:
    """Much of one thing: the check has to stay fast and small."""
    count = rng.choice((1_000, 2_000, 5_000, 20_000))
    way = rng.randrange(8)
    if way == 0:
        for number in range(count):
            model.graph.node.add(op_type="Floor" if number % 2 else f"Op{number}", output=[f"f{number}"])
    elif way == 1:
        any_tensor(rng, model).dims.extend([rng.choice((1, 2, (1 << 63) - 1))] * count)
    elif way == 2:
        any_node(rng, model).input.extend([f"i{number}" for number in range(count)])
    elif way == 3:
        for number in range(count):
            model.graph.initializer.append(scalar(number, name=f"s{number % (count - rng.randrange(2))}"))
    elif way == 4:
        any_node(rng, model).attribute.extend([helper.make_attribute(f"a{number % 500}", number) for number in range(count)])
    elif way == 5:
        loop = helper.make_node("Loop", ["x", ""], ["y"])
        for number in range(count):
            model.graph.node.add().CopyFrom(loop)
            model.graph.node[-1].output[0] = f"l{number}"
    elif way == 6:
        branch = helper.make_graph([], "empty", [], [])
        any_node(rng, model).attribute.extend([helper.make_attribute(f"g{number}", branch) for number in range(count)])
    else:
        model.opset_import.extend([helper.make_opsetid(f"d{number}", 1) for number in range(count)])


def harmless(rng: Random, model: ModelProto) -> None:
    """What no reader minds: documentation, metadata, an unused name, default values spelled out."""
    way = rng.randrange(5)
    if way == 0:
        model.doc_string = "text\0 <b>" * 100
    elif way == 1:
        model.metadata_props.add(key="licence", value="x")
    elif way == 2:
        any_node(rng, model).doc_string = "\u202e text"
    elif way == 3:
        model.producer_name, model.model_version = "fuzz", 1 << 40
    else:
        for tensor in tensors(model):
            tensor.doc_string = "weights"


def another_listed_operator(rng: Random, model: ModelProto) -> None:
    """In the place of a node: types, ranks and attributes rarely fit."""
    any_node(rng, model).op_type = rng.choice(LISTED)


MUTATIONS: dict[str, Mutation] = {
    "external data": external_data,
    "sparse tensor": sparse,
    "data that does not fit": data_that_does_not_fit,
    "shape that fits": shape_that_fits,
    "attribute type": attribute_type,
    "attribute value": attribute_value,
    "names": names,
    "inputs and outputs of a node": arity,
    "another listed operator": another_listed_operator,
    "types and dims of values": value_type,
    "much of one thing": many,
    "harmless": harmless,
}

"""Property tests: a forbidden operator is found wherever it is planted, and the reader agrees with protobuf."""

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from distill.opallowlist import check, load_list
from distill.opallowlist.reading import messages, wire

LISTED = sorted(load_list("libvmaf").ops - {"Loop", "If", "Resize"})
KNOWN = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
FORBIDDEN = [name for name in KNOWN if name not in load_list("libvmaf")]

repeatable = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


def node(op: str, name: str = "", domain: str = "") -> onnx.NodeProto:
    """A node with as few inputs, outputs and attributes as the operator may have in opset 21."""
    schema = onnx.defs.get_schema(op, 21, "")
    value = {"INT": 1, "INTS": [1], "STRING": "s", "TENSOR": helper.make_tensor("t", TensorProto.FLOAT, [], [1])}
    given = {name: value[attribute.type.name] for name, attribute in schema.attributes.items() if attribute.required}
    if op == "Constant":
        given = {"value": value["TENSOR"]}
    return helper.make_node(op, ["x"] * schema.min_input, ["y"] * schema.min_output, name=name, domain=domain, **given)


allowed_nodes = st.builds(node, st.sampled_from(LISTED), names, st.sampled_from(["", "ai.onnx"]))
containers = st.sampled_from(["If.then_branch", "If.else_branch", "Loop.body", "Relu.graphs"])
roots = st.sampled_from(["main", "functions/local.F", "training_info[0].algorithm"])


@st.composite
def graphs(draw, depth: int) -> onnx.GraphProto:
    """A graph of listed operators, at most `depth` levels of subgraphs deep."""
    nodes = draw(st.lists(allowed_nodes, max_size=4))
    if depth and draw(st.booleans()):
        branches = [draw(graphs(depth - 1)) for _ in range(2)]
        nodes.insert(
            draw(st.integers(0, len(nodes))),
            helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        )
    return helper.make_graph(nodes, f"g{draw(names)}", [], [])


def wrapped(container: str, inner: onnx.GraphProto, other: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that carry `inner` as the container says."""
    if container == "Loop.body":
        count = helper.make_node("Constant", [], ["m"], value=helper.make_tensor("m", TensorProto.INT64, [], [2]))
        return [count, helper.make_node("Loop", ["m", "c"], ["y"], body=inner)]
    if container == "Relu.graphs":
        node = helper.make_node("Relu", ["x"], ["y"])
        node.attribute.append(helper.make_attribute("graphs", [other, inner]))
        return [node]
    branches = {"then_branch": other, "else_branch": other, container.split(".")[1]: inner}
    return [helper.make_node("If", ["c"], ["y"], **branches)]


@st.composite
def planted(draw, op: st.SearchStrategy[str]) -> tuple[onnx.ModelProto, str, int, str]:
    """A random nested model with one node of `op` somewhere: (model, its graph path, its index, its operator)."""
    bad = draw(op)
    chain = draw(st.lists(containers, max_size=8))
    graph = draw(graphs(0))
    index = draw(st.integers(0, len(graph.node)))
    graph.node.insert(index, helper.make_node(bad, ["x"], ["y"]))
    path = ""
    for container in reversed(chain):
        outer = draw(graphs(0))
        nodes = wrapped(container, graph, draw(graphs(0)))
        at = draw(st.integers(0, len(outer.node)))
        for offset, node in enumerate(nodes):
            outer.node.insert(at + offset, node)
        step = f"{container.split('.')[0]}_{at + len(nodes) - 1}.{container.split('.')[1]}"
        path = f"/{step}{'[1]' if container == 'Relu.graphs' else ''}{path}"
        graph = outer
    root = draw(roots)
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=21)
    model.graph.CopyFrom(graph if root == "main" else draw(graphs(2)))
    if root.startswith("functions"):
        model.functions.add(name="F", domain="local").node.extend(graph.node)
    elif root.startswith("training"):
        model.training_info.add().algorithm.CopyFrom(graph)
    connect(model)
    return model, root + path, index, bad


def connect(model: onnx.ModelProto) -> None:
    """Give every output a name of its own, every input a definition, every branch and body the outputs that its node has.

    Then nothing else is wrong with the model.
    """
    for name in "xc":
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    roots = [model.graph, *model.functions, *(training.algorithm for training in model.training_info)]
    todo = [(root, 0) for root in roots]
    count = 0
    while todo:
        graph, results = todo.pop()
        graph.node.extend(helper.make_node("Constant", [], ["y"], value_int=1) for _ in range(results))
        for node in graph.node:
            count += 1
            if all(graph is not root for root in roots):
                node.domain = ""  # only outside subgraphs may it be spelt out
            if node.op_type == "Loop":
                node.input[0] = f"v{count - 1}"  # the Constant before it
            node.output[:] = [f"v{count}"] if node.output else []
            node.name = f"{count} {node.name}" if node.name else ""
            for attribute in node.attribute:
                todo += [(inner, 0) for inner in attribute.graphs]
                if attribute.HasField("g"):
                    todo.append((attribute.g, 2 if node.op_type == "Loop" else 1))
                if node.op_type == "Loop":
                    inputs = [helper.make_tensor_value_info(f"{name}{count}", TensorProto.FLOAT, None) for name in "ik"]
                    attribute.g.input.extend(inputs)
        if results:
            names = [node.output[0] for node in graph.node[-results:]]
            graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)


@repeatable
@given(planted(st.sampled_from(FORBIDDEN)))
def test_a_forbidden_operator_is_always_found_where_it_is(case):
    model, path, index, op = case
    violations = [v for v in check(model).violations if v.rule in ("op", "scan")]
    assert [(v.op_type, v.path, v.index) for v in violations] == [(op, path, index)]


@repeatable
@given(planted(st.text(min_size=1, max_size=40).filter(lambda name: name not in load_list("libvmaf").ops)))
def test_any_unlisted_name_is_found(case):
    model, path, index, op = case
    [violation] = [v for v in check(model).violations if v.rule in ("op", "scan", "op-name")]
    assert (violation.op_type, violation.path, violation.index) == (op, path, index)


@repeatable
@given(planted(st.just("Relu")))
def test_an_allowed_operator_is_never_refused(case):
    model, path, _, _ = case
    report = check(model)
    expected = {"main": set(), "func": {"local-function"}, "trai": {"training-info"}}[path[:4]]
    no_such_attribute = {"definition"} if "/Relu" in path else set()
    assert {v.rule for v in report.violations} == expected | no_such_attribute, str(report.violations)


@repeatable
@given(graphs(4), st.integers(-(2**63), 2**63 - 1), names)
def test_the_reader_agrees_with_protobuf(graph, version, text):
    model = onnx.ModelProto(ir_version=version, graph=graph, producer_name=text)
    model.opset_import.add(domain=text, version=version)
    ours = wire.decode(model.SerializeToString())
    assert ours.ir_version == version and ours.opset_import[0].version == version
    assert ours.opset_import[0].domain == text

    def same(mine: messages.Graph, theirs: onnx.GraphProto) -> None:
        assert [node.op_type for node in mine.node] == [node.op_type for node in theirs.node]
        assert [node.name for node in mine.node] == [node.name for node in theirs.node]
        for a, b in zip(mine.node, theirs.node, strict=True):
            assert list(a.input) == list(b.input) and len(a.attribute) == len(b.attribute)
            for left, right in zip(a.attribute, b.attribute, strict=True):
                if right.HasField("g"):
                    same(left.g, right.g)

    same(ours.graph, graph)


@repeatable
@given(st.binary(max_size=200))
def test_any_bytes_get_a_verdict_and_protobuf_reads_what_is_accepted(data):
    try:
        wire.decode(data)
    except wire.Malformed:
        assert not check(data).ok
    else:
        onnx.ModelProto.FromString(data)

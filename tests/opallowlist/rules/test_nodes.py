"""Attributes with one reading, and nodes that are what their operator is: the checker's verdict, and the reason by name."""

import onnx
import pytest
from onnx import AttributeProto, TensorProto, defs, helper

from distill.opallowlist import check, load_list
from distill.opallowlist.reading.messages import Node
from distill.opallowlist.rules.nodes import TYPES, definition_problems, first_opset
from distill.opallowlist.rules.scan import OPSETS

ONE = helper.make_tensor("t", TensorProto.FLOAT, [], [1])


def written(parameters) -> str:
    """The letters of operators.txt."""
    letters = {defs.OpSchema.FormalParameterOption.Single: "1", defs.OpSchema.FormalParameterOption.Optional: "?"}
    return "".join(letters.get(p.option, "+" if p.min_arity else "*") for p in parameters)


def test_the_table_is_that_of_onnx():
    from distill.opallowlist.rules.nodes import _operators

    assert set(_operators()) == load_list("libvmaf").ops
    for name, versions in _operators().items():
        history = [s.since_version for s in defs.get_all_schemas_with_history() if s.name == name and s.domain == ""]
        assert first_opset(name) <= OPSETS[0] or first_opset(name) == min(history), name
        for opset in OPSETS:
            ours = [version for version in versions if version.first_opset <= opset]
            if not ours:
                assert opset < min(history)
                continue
            schema = defs.get_schema(name, opset, "")
            assert (ours[-1].inputs, ours[-1].outputs) == (written(schema.inputs), written(schema.outputs)), (name, opset)
            assert ours[-1].attributes == {key: TYPES[value.type.name] for key, value in schema.attributes.items()}
            assert ours[-1].required == {key for key, value in schema.attributes.items() if value.required}
            few = Node(op_type=name, input=["x"] * (schema.min_input - 1), output=["y"] * schema.min_output)
            assert any("inputs" in problem for problem in definition_problems(few, opset)) == (schema.min_input > 0)


def test_attribute_types_are_those_of_onnx():
    assert {name: number for name, number in AttributeProto.AttributeType.items() if number} == TYPES


def verdict(node: onnx.NodeProto, image: onnx.ModelProto) -> tuple[set[str], bool]:
    """The gate's rules and whether the checker accepts, for a model with `node` added; `c` and `x` may be its inputs."""
    image.graph.node.insert(1, node)
    try:
        onnx.checker.check_model(image)
    except onnx.checker.ValidationError:
        return {violation.rule for violation in check(image).violations}, False
    return {violation.rule for violation in check(image).violations}, True


def attribute(**fields) -> AttributeProto:
    made = AttributeProto(name=fields.pop("name", "axis"), type=fields.pop("type", AttributeProto.INT))
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(made, name).extend(value)
        elif isinstance(value, onnx.TensorProto):
            getattr(made, name).CopyFrom(value)
        else:
            setattr(made, name, value)
    if made.type == AttributeProto.UNDEFINED:
        made.ClearField("type")
    return made


ATTRIBUTES = {
    "one value": ([attribute(i=1)], True),
    "an absent number, which is 0": ([attribute()], True),
    "an internal one besides": ([attribute(i=1), attribute(name="__hint", i=1)], True),
    "no type": ([attribute(i=1, type=0)], False),
    "no name": ([attribute(i=1), attribute(name="", i=1)], False),
    "a value of another type": ([attribute(f=1.0)], False),
    "another type": ([attribute(f=1.0, type=AttributeProto.FLOAT)], False),
    "two values": ([attribute(i=1, f=1.0)], False),
    "a number and a list": ([attribute(i=1, ints=[1])], False),
    "a list for a number": ([attribute(ints=[1], type=AttributeProto.INTS)], False),
    "a tensor besides": ([attribute(i=1, t=ONE)], False),
    "a string besides": ([attribute(i=1, s=b"")], False),
    "strings besides": ([attribute(i=1, strings=[b"a"])], False),
    "floats besides": ([attribute(i=1, floats=[1.0])], False),
    "twice": ([attribute(i=1), attribute(i=1)], False),
    "unknown": ([attribute(i=1), attribute(name="axes", i=1)], False),
    "missing": ([], False),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(image, name):
    attributes, accepted = ATTRIBUTES[name]
    node = helper.make_node("Concat", ["c"], ["r"])
    node.attribute.extend(attributes)
    rules, by_checker = verdict(node, image)
    assert by_checker == accepted == (not rules) and rules <= {"attribute", "definition"}, rules


@pytest.mark.parametrize(
    "fields", [{}, {"i": 1, "type": AttributeProto.TENSOR}, {"t": ONE, "type": AttributeProto.INT}, {"ref_attr_name": "a"}]
)
def test_a_constant_without_its_tensor(image, fields):
    node = helper.make_node("Constant", [], ["r"])
    node.attribute.append(attribute(name="value", **{"type": AttributeProto.TENSOR} | fields))
    assert "attribute" in verdict(node, image)[0]


@pytest.mark.parametrize("values", [{}, {"value_int": 1, "value_float": 1.0}, {"value": ONE, "value_int": 1}])
def test_a_constant_has_one_value(image, values):
    """Neither the checker nor ONNX Runtime minds a second; which one counts is the reader's choice."""
    rules, _ = verdict(helper.make_node("Constant", [], ["r"], **values), image)
    assert rules == {"definition"}


def test_references_to_attributes_are_for_functions(image):
    node = helper.make_node("Concat", ["c"], ["r"])
    node.attribute.append(attribute(ref_attr_name="a"))
    assert verdict(node, image)[0] == {"attribute"}
    image.graph.node.remove(node)
    image.functions.add(name="F", domain="local").node.append(node)
    assert {violation.rule for violation in check(image).violations} == {"local-function"}


@pytest.mark.parametrize(
    ("node", "accepted"),
    [
        (helper.make_node("Clip", ["c"], ["r"]), True),
        (helper.make_node("Clip", ["c", "", ""], ["r"]), True),
        (helper.make_node("Clip", ["", "w"], ["r"]), False),
        (helper.make_node("Clip", ["c", "", "", ""], ["r"]), False),
        (helper.make_node("Sum", ["c"] * 9, ["r"]), True),
        (helper.make_node("Sum", [], ["r"]), False),
        (helper.make_node("MaxPool", ["c"], ["r", ""], kernel_shape=[1, 1]), True),
        (helper.make_node("MaxPool", ["c"], ["", "r"], kernel_shape=[1, 1]), False),
        (helper.make_node("MaxPool", ["c"], ["r", "", ""], kernel_shape=[1, 1]), False),
        (helper.make_node("Constant", ["c"], ["r"], value=ONE), False),
    ],
)
def test_inputs_and_outputs(image, node, accepted):
    rules, by_checker = verdict(node, image)
    assert by_checker == accepted and rules == (set() if accepted else {"definition"})


def layer_norm(*inputs: str, **attributes) -> onnx.NodeProto:
    return helper.make_node("LayerNormalization", ["c", *inputs], ["r"], **attributes)


@pytest.mark.parametrize(
    ("node", "accepted"),
    [
        *((layer_norm("w", axis=axis), -64 <= axis <= 63) for axis in (-(1 << 63), -65, -64, 63, 64, (1 << 63) - 1)),
        *((layer_norm(*inputs), inputs != ["w", ""]) for inputs in (["w"], ["w", "w"], ["w", ""])),
        *((helper.make_node("GatherND", ["c", "w"], ["r"], batch_dims=number), number == 0) for number in (-2, 0, 64)),
        *((helper.make_node("Conv", ["c", "w"], ["r"], group=number), number == 1) for number in (-1, 0, 1)),
        *((helper.make_node("Conv", ["c", "w"], ["r"], strides=[1, number]), number == 1) for number in (-1, 0, 1)),
        *((helper.make_node("MaxPool", ["c"], ["r"], kernel_shape=[number, 1]), number == 1) for number in (0, 1)),
    ],
)
def test_numbers_that_crash_runtimes(image, node, accepted):
    """Not given to the checker, which some of them crash."""
    image.graph.node.append(node)
    assert [violation.rule for violation in check(image).violations] == ([] if accepted else ["definition"])


def test_no_empty_name_stands_for_one_of_many(image):
    """The checker accepts these; ONNX Runtime crashes on the sum when it runs, and on a Loop with such an output."""
    rules, _ = verdict(helper.make_node("Sum", ["c", "", "c"], ["r"]), image)
    assert rules == {"definition"}
    branch = helper.make_graph([helper.make_node("Relu", ["c"], ["t"])], "b", [], [])
    del image.graph.node[1]
    rules, _ = verdict(helper.make_node("If", ["c"], [""], then_branch=branch, else_branch=branch), image)
    assert "definition" in rules


def test_a_bias_is_left_out_and_not_empty(image):
    """ONNX Runtime (1.22 and 1.32) crashes while it loads the second, if all outputs have names."""
    for inputs, rules in ((["c", "w"], set()), (["c", "w", ""], {"definition"})):
        del image.graph.node[1:-1]
        assert verdict(helper.make_node("LayerNormalization", inputs, ["a", "b", "r"]), image)[0] == rules


SUBGRAPHS = {
    # the node's outputs, carried values, the body's inputs and outputs
    "one value": ("y = Loop (m, ok, x)", "int64 i, bool c, float[2] v", "bool d, float[2] w", True),
    "a scan output": ("y, z = Loop (m, ok, x)", "int64 i, bool c, float[2] v", "bool d, float[2] w, float[2] u", True),
    "an input less": ("y = Loop (m, ok, x)", "int64 i, bool c", "bool d, float[2] w", False),
    "an input more": ("y = Loop (m, ok, x)", "int64 i, bool c, float[2] v, float[2] v2", "bool d, float[2] w", False),
    "an output less": ("y = Loop (m, ok, x)", "int64 i, bool c, float[2] v", "bool d", False),
    "an output more": ("y = Loop (m, ok, x)", "int64 i, bool c, float[2] v", "bool d, float[2] w, float[2] u", False),
    "fewer outputs than values": (
        "y = Loop (m, ok, x, x)", "int64 i, bool c, float[2] v, float[2] v2", "bool d, float[2] w", False
    ),  # aborts ONNX Runtime 1.22
}  # fmt: skip


@pytest.mark.parametrize("name", SUBGRAPHS)
def test_bodies_of_loops(name):
    node, inputs, outputs, accepted = SUBGRAPHS[name]
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <bool ok = {{1}}> {{
          m = Constant <value = int64 {{2}}> ()
          {node} <body: graph = b ({inputs}) => ({outputs}) {{ d = Identity (c)  w = Relu (x)  u = Relu (w) }}> }}""")
    assert {violation.rule for violation in check(model).violations} == (set() if accepted else {"definition"})


@pytest.mark.parametrize(
    ("inputs", "outputs", "accepted"),
    [("", "float[2] t", True), ("", "", False), ("", "float[2] t, float[2] u", False), ("float[2] i", "float[2] t", False)],
)
def test_branches(inputs, outputs, accepted):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <bool ok = {{1}}> {{
          y = If (ok) <then_branch: graph = a ({inputs}) => ({outputs}) {{ t = Relu (x)  u = Relu (x) }},
                       else_branch: graph = b () => (float[2] e) {{ e = Tanh (x) }}> }}""")
    assert {violation.rule for violation in check(model).violations} == (set() if accepted else {"definition"})


def test_operators_of_other_lists_are_not_judged(image, tmp_path):
    (tmp_path / "ops.txt").write_text("Conv Sigmoid Where")
    image.graph.node.insert(1, helper.make_node("Where", ["c"], ["r"]))
    assert check(image, allowlist=tmp_path / "ops.txt").ok

"""Names that are used, defined and returned; compared with ONNX Runtime, which refuses to load the others."""

import csv
import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import check

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[2] / "golden")) / "scanner"


def broken(model: onnx.ModelProto) -> list[str]:
    return [f"{v.place}: {v.message}" for v in check(model).violations if v.rule == "wiring"]


def test_a_correctly_wired_model_has_no_violations(image, step):
    assert broken(image) == broken(step) == []


def test_an_undefined_input(image):
    image.graph.node[1].input[0] = "gone"
    assert broken(image) == ["main: Sigmoid_1: input 'gone' is defined nowhere before this node"]


def test_nodes_out_of_order(image):
    image.graph.node.insert(0, image.graph.node.pop(1))
    assert broken(image) == ["main: Sigmoid_0: input 'c' is defined nowhere before this node"]


def test_an_output_that_no_node_computes(image):
    image.graph.output[0].name = "gone"
    assert broken(image) == ["main: output 'gone' is computed nowhere in this graph"]


def test_names_defined_twice(image):
    image.graph.node.insert(1, helper.make_node("Relu", ["c"], ["c"]))
    image.graph.node.append(helper.make_node("Relu", ["c"], ["input"]))
    image.graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [1]))
    assert broken(image) == [
        "main: 'input' is an input 2 times",
        "main: Relu_1: 'c' is defined twice",
        "main: Relu_3: 'input' is defined twice",
    ]


def test_a_key_of_the_metadata_given_twice(image):
    image.metadata_props.add(key="licence", value="BSD")
    image.metadata_props.add(key="card", value="x" * 70_000)
    assert check(image).ok
    image.metadata_props.add(key="licence", value="none")
    [violation] = check(image).violations
    assert violation.rule == "metadata" and "'licence' 2 times" in violation.message
    with pytest.raises(onnx.checker.ValidationError, match="duplicate keys"):
        onnx.checker.check_model(image)


def test_empty_names_are_omitted_arguments(image):
    image.graph.node[0].input.append("")
    image.graph.node.append(helper.make_node("Dropout", ["c"], ["", ""]))
    assert broken(image) == []


def test_initializers_and_inputs_may_be_outputs_and_inputs(image):
    image.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    image.graph.output.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, None))
    image.graph.sparse_initializer.add().values.name = "s"
    image.graph.node.append(helper.make_node("Relu", ["s"], ["t"]))
    assert broken(image) == []


def branch(output: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def test_subgraphs_see_the_graphs_around_them(image):
    inner = helper.make_node(
        "If", ["flag"], ["i"], then_branch=branch("t", helper.make_node("Relu", ["c"], ["t"])), else_branch=branch("c")
    )
    outer = helper.make_node(
        "If",
        ["flag"],
        ["o"],
        then_branch=branch("i", inner),
        else_branch=branch("e", helper.make_node("Add", ["c", "lost"], ["e"])),
    )
    image.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    image.graph.node.append(outer)
    image.graph.node.append(helper.make_node("Relu", ["t"], ["u"]))
    assert broken(image) == [
        "main/If_2.else_branch: Add_0: input 'lost' is defined nowhere before this node",
        "main/If_2.then_branch/If_0.else_branch: output 'c' is computed nowhere in this graph",
        "main: Relu_3: input 't' is defined nowhere before this node",
    ]


def test_onnx_runtime_agrees(image, step):
    """Models reported as broken do not load; accepted golden files do."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4

    def loads(model: bytes) -> bool:
        try:
            runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception:  # its exceptions have no common base
            return False
        return True

    with (GOLDEN / "verdicts.csv").open(newline="") as file:
        accepted = [row["file"] for row in csv.DictReader(file) if row["strict_gate"] == "accept"]
    for name in accepted:
        assert loads((GOLDEN / name).read_bytes()), name
    assert loads(image.SerializeToString()) and loads(step.SerializeToString())
    for damage in (
        test_an_undefined_input,
        test_an_output_that_no_node_computes,
        test_names_defined_twice,
        test_subgraphs_see_the_graphs_around_them,
    ):
        model = onnx.ModelProto.FromString(image.SerializeToString())
        damage(model)
        assert not loads(model.SerializeToString()), damage.__name__

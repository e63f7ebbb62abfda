"""Small files that the gate once got wrong: a traceback, a hang, a bypass, a crash of the runtime, a refusal without reason.

Each is kept with its right verdict: the rules that refuse it, or none.
"""

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from distill.opallowlist import check

CASES = Path(__file__).parent / "cases"

VERDICTS = {
    "01_negative_opset_traceback": {"opset"},
    "03_trip_count_bypass_type_INT": {"attribute", "loop-trip-count"},
    "03b_trip_count_bypass_type_INTS": {"attribute", "loop-trip-count"},
    "04_sparse_index_out_of_range_segv_ort122": {"sparse"},
    "06_sparse_no_indices": {"sparse"},
    "07_sparse_indices_without_data": {"sparse"},
    "08_sparse_values_without_data": {"sparse"},
    "09_duplicate_initializer": {"wiring"},
    "10_float_data_too_short": {"tensor-data"},
    "11_initializer_without_data": {"tensor-data"},
    "12_subgraph_uses_own_ifs_output": {"wiring"},
    "13_subgraph_redefines_outer_name": {"wiring"},
    "14_int4_raw_data_of_wrong_size": {"tensor-data"},
    "16_subgraph_uses_later_node": {"wiring"},
    "a2_trip_unpacked_first": {"tensor-data", "loop-trip-count"},
    "b3_trip_no_type": {"attribute", "loop-trip-count"},
    "t1_attribute_twice": {"attribute"},
    "t2_unknown_attribute": {"definition"},
    "t4_mode_strings": {"attribute"},
    "w1_node_empty_output": {"definition"},
    "w2_node_no_output": {"definition"},
    "w3_node_no_input": {"definition"},
    "w4_node_too_many_inputs": {"definition"},
    "w5_if_without_branches": {"definition"},
    "v2_subgraph_uses_later_value": {"wiring"},
    "x2_float_data_long": {"tensor-data"},
    "x7_type_99_float_data": {"tensor-data"},
    "x8_type_int64_in_float_data": {"tensor-data"},
    "y1_input_without_type": {"value-type"},
    "z2_sparse_bomb": {"sparse"},
    "opset22": {"opset"},  # the downstream's registry takes 7 to 21
    "unpacked_float_state_zero": set(),
    "unpacked_int64_trip_count": set(),
}


def test_every_file_has_a_verdict():
    assert {path.stem for path in CASES.glob("*.onnx")} == set(VERDICTS)


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict(name):
    report = check(CASES / f"{name}.onnx")
    assert {violation.rule for violation in report.violations} == VERDICTS[name], [str(v) for v in report.violations]


def test_an_unpacked_state_of_zeros_keeps_the_contract():
    assert check(CASES / "unpacked_float_state_zero.onnx", contract="saliency-step").ok


@pytest.mark.parametrize("size", [1 << 62, 1])
def test_02_a_hundred_thousand_axes(image, size):
    """A product of them all would take half an hour, and the interpreter could not be interrupted."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[size] * 100_000, float_data=[1])
    image.graph.initializer.append(tensor)
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    k = helper.make_tensor_value_info("k", TensorProto.FLOAT, None)
    branch = helper.make_graph([constant], "b", [], [k])
    image.graph.node.append(helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch))
    violations = check(image).violations
    assert [violation.rule for violation in violations] == ["tensor-data"] * 3
    assert all("100,000 axes" in violation.message and len(str(violation)) < 400 for violation in violations)

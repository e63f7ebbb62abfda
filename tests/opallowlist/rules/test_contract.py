"""The contracts: names, types, axes, order, the optional state, and its own dimension names."""

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.opallowlist import CONTRACTS, check

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def refused(model, contract):
    """The rules broken, but for the names that a test leaves dangling when it renames one end."""
    return {violation.rule for violation in check(model, contract=contract).violations} - {"wiring"}


def text(graph: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(header + graph)


def set_dim(value: onnx.ValueInfoProto, axis: int, size: int | str | None) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    if isinstance(size, int):
        dim.dim_value = size
    elif size is not None:
        dim.dim_param = size


def back(model: onnx.ModelProto, array: list, shape: list[int], dtype: int = TensorProto.FLOAT) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "state_in":
            tensor.CopyFrom(helper.make_tensor("state_in", dtype, shape, array))


def test_the_smallest_models_keep_their_contracts(image, step):
    assert check(image, contract="saliency-image").ok
    assert check(step, contract="saliency-step").ok
    assert check(image, contract="saliency").contract == "saliency-image"
    assert check(step, contract="saliency").contract == "saliency-step"
    assert not check(image, contract="saliency-step").ok
    assert not check(step, contract="saliency-image").ok


def test_unknown_contracts_name_the_nearest(image):
    with pytest.raises(ValueError, match=r"unknown contract 'saliency-imge'; did you mean 'saliency-image'\?"):
        check(image, contract="saliency-imge")
    with pytest.raises(ValueError, match=f"there are {', '.join(CONTRACTS)}"):
        check(image, contract="xyz")


@pytest.mark.parametrize("name", ["Input", "x", ""])
def test_the_input_is_called_input(image, name):
    image.graph.input[0].name = name
    assert refused(image, "saliency-image") == {"contract-inputs"}


def test_a_second_required_input_is_refused(image):
    image.graph.input.append(helper.make_tensor_value_info("fps", TensorProto.FLOAT, [1]))
    assert refused(image, "saliency-image") == {"contract-inputs"}


def test_initializers_among_the_inputs(image):
    image.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 3, 1, 1]))
    assert refused(image, "saliency-image") == {"contract-inputs"}
    image.ir_version = 3  # where every initializer has to be listed
    assert check(image, contract="saliency-image").ok


def test_an_input_with_a_default_is_not_required(image):
    image.graph.initializer.append(helper.make_tensor("input", TensorProto.FLOAT, [1, 3, 1, 1], [0, 0, 0]))
    assert "contract-inputs" in refused(image, "saliency-image")


def test_the_output_is_called_saliency_map(image):
    image.graph.output[0].name = "c"
    assert refused(image, "saliency-image") == {"contract-outputs"}


@pytest.mark.parametrize(("which", "axis"), [("input", 0), ("input", 1), ("output", 0), ("output", 1)])
@pytest.mark.parametrize("size", [7, "N", None, -1])
def test_batch_and_channels_are_fixed(image, which, axis, size):
    set_dim(getattr(image.graph, which)[0], axis, size)
    assert refused(image, "saliency-image") == {"contract-shape"}


@pytest.mark.parametrize("which", ["input", "output"])
@pytest.mark.parametrize("axis", [2, 3])
def test_height_and_width_are_dynamic(image, which, axis):
    set_dim(getattr(image.graph, which)[0], axis, 256)
    assert refused(image, "saliency-image") == {"contract-shape"}
    set_dim(getattr(image.graph, which)[0], axis, None)
    assert check(image, contract="saliency-image").ok, "unset is dynamic too"


def test_height_and_width_are_not_one_symbol(image):
    set_dim(image.graph.input[0], 3, "H")
    assert refused(image, "saliency-image") == {"contract-shape"}


@pytest.mark.parametrize("which", ["input", "output"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8, 0, 99])
def test_element_types(image, which, dtype):
    getattr(image.graph, which)[0].type.tensor_type.elem_type = dtype
    unknown = {"value-type"} if dtype in (0, 99) else set()
    assert refused(image, "saliency-image") == {"contract-type"} | unknown


def test_ranks_and_missing_types(image):
    value = image.graph.input[0]
    value.type.tensor_type.shape.dim.add().dim_value = 1
    assert refused(image, "saliency-image") == {"contract-type"}
    value.type.tensor_type.ClearField("shape")
    assert refused(image, "saliency-image") == {"contract-type"}
    value.ClearField("type")
    assert refused(image, "saliency-image") == {"contract-type", "value-type"}
    value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    assert refused(image, "saliency-image") == {"contract-type"}


def test_frames_are_not_stacked_inside():
    graph = """agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map) <int64[1] ax = {1}, float[1,3,1,1] w = {1,1,1}> {
        r = Relu (input)  u = Unsqueeze (r, ax)  s = Squeeze (u, ax)  c = Conv (s, w)  saliency_map = Sigmoid (c) }"""
    violation = check(text(graph), contract="saliency-image").violations[0]
    assert (violation.rule, violation.op_type, violation.index) == ("contract-rank", "Unsqueeze", 1)
    old = graph.replace("Unsqueeze (r, ax)", "Unsqueeze <axes = [1]> (r)").replace("(u, ax)", "(u)")
    header = '<ir_version: 8, opset_import: ["" : 11]>'
    assert refused(text(old, header), "saliency-image") == {"contract-rank"}


def test_unsqueeze_of_small_tensors_and_pixel_shuffles_are_fine():
    graph = """agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map)
    <int64[2] ax = {0, 3}, int64[6] six = {1, 1, 2, 2, 8, 8}, int64[4] four = {1, 1, 16, 16}, float[1,3,1,1] w = {1,1,1}> {
        a = Constant <value = int64[2] {0, 3}> ()
        g = GlobalAveragePool (input)  sq = Squeeze (g, ax)  u = Unsqueeze (sq, a)  m = Mul (input, u)
        r = Reshape (m, six)  t = Transpose <perm = [0, 1, 4, 2, 5, 3]> (r)  f = Reshape (t, four)
        c = Conv (m, w)  saliency_map = Sigmoid (c) }"""
    assert check(text(graph), contract="saliency-image").ok


def test_a_required_state_is_refused(step):
    del step.graph.initializer[1]
    report = check(step, contract="saliency-step")
    assert {violation.rule for violation in report.violations} == {"contract-inputs"}
    assert "zero initializer" in report.violations[0].remedy


def test_the_state_is_an_input(step):
    del step.graph.input[1]
    assert refused(step, "saliency-step") == {"contract-state"}


def test_other_optional_inputs_are_refused(step):
    step.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [1, 3, 1, 1]))
    assert refused(step, "saliency-step") == {"contract-state"}


def test_optional_inputs_need_ir_4(step):
    step.ir_version = 3
    assert refused(step, "saliency-step") == {"contract-state"}
    step.ir_version = 4
    assert check(step, contract="saliency-step").ok


@pytest.mark.parametrize("names", [["state_out", "saliency_map"], ["saliency_map"], ["saliency_map", "state"]])
def test_outputs_and_their_order(step, names):
    values = {value.name: value for value in step.graph.output}
    values["state"] = helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 1, "p", "q"])
    outputs = [values[name] for name in names]
    del step.graph.output[:]
    step.graph.output.extend(outputs)
    assert refused(step, "saliency-step") == {"contract-outputs"}


@pytest.mark.parametrize(
    "dtype_and_values", [(TensorProto.FLOAT, [1.0]), (TensorProto.FLOAT, [-0.0]), (TensorProto.FLOAT, [1e-45])]
)
@pytest.mark.parametrize("raw", [True, False])
def test_the_default_state_is_zero(step, dtype_and_values, raw):
    dtype, values = dtype_and_values
    back(step, values, [1, 1, 1, 1], dtype)
    tensor = step.graph.initializer[1]
    if raw:
        tensor.raw_data = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("float_data")
    assert refused(step, "saliency-step") == {"contract-state"}


def test_a_default_with_missing_or_double_data_is_refused(step):
    tensor = step.graph.initializer[1]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    assert refused(step, "saliency-step") == {"contract-state", "tensor-data"}
    tensor.raw_data = b"\0\0\0\0"
    assert check(step, contract="saliency-step").ok
    tensor.float_data[:] = [5.0]
    assert refused(step, "saliency-step") == {"contract-state", "tensor-data"}


def test_the_default_has_the_declared_type_and_shape(step):
    back(step, [0], [1, 1, 1, 1], TensorProto.DOUBLE)
    assert refused(step, "saliency-step") == {"contract-state"}
    back(step, [0, 0], [1, 2, 1, 1])
    assert refused(step, "saliency-step") == {"contract-state"}
    back(step, [0], [1])
    assert refused(step, "saliency-step") == {"contract-state"}


def test_a_second_default_is_refused(step):
    step.graph.initializer.append(helper.make_tensor("state_in", TensorProto.FLOAT, [1, 1, 1, 1], [1]))
    assert refused(step, "saliency-step") == {"contract-state"}
    del step.graph.initializer[1:]
    step.graph.sparse_initializer.add().values.name = "state_in"
    assert refused(step, "saliency-step") == {"contract-state", "sparse"}


def test_a_state_of_fixed_size(step):
    for value in (step.graph.input[1], step.graph.output[1]):
        set_dim(value, 2, 9)
        set_dim(value, 3, 16)
    back(step, [0] * 144, [1, 1, 9, 16])
    assert check(step, contract="saliency-step").ok
    set_dim(step.graph.output[1], 3, 15)
    assert refused(step, "saliency-step") == {"contract-state"}
    set_dim(step.graph.output[1], 3, None)
    assert refused(step, "saliency-step") == {"contract-state"}


def test_a_state_declared_1x1_cannot_be_carried(step):
    set_dim(step.graph.input[1], 2, 1)
    set_dim(step.graph.input[1], 3, 1)
    report = check(step, contract="saliency-step")
    assert "cannot be fed back" in report.violations[0].message


def test_a_state_of_unset_axes(step):
    for value in (step.graph.input[1], step.graph.output[1]):
        set_dim(value, 2, None)
        set_dim(value, 3, None)
    assert check(step, contract="saliency-step").ok


@pytest.mark.parametrize(("axis", "size"), [(0, "N"), (0, 2), (1, "C"), (1, None), (1, 0), (2, 0), (3, -1)])
def test_the_states_axes(step, axis, size):
    set_dim(step.graph.output[1], axis, size)
    assert "contract-shape" in refused(step, "saliency-step")


@pytest.mark.parametrize("name", ["h", "w", "H", "W", "q"])
def test_the_state_shares_no_dimension_name(step, name):
    set_dim(step.graph.output[1], 2, name)
    assert refused(step, "saliency-step") == {"contract-dim-names"}


def test_value_info_counts_as_sharing(step):
    step.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 1, "p", "other"]))
    report = check(step, contract="saliency-step")
    assert report.violations[0].message == "dimension name 'p' occurs at state_out[2], c[2]"


def test_a_contract_on_a_refused_model_still_reports_content(image):
    image.graph.node[0].op_type = "Floor"
    image.graph.input[0].name = "x"
    assert refused(image, "saliency") == {"op", "contract-inputs"}


def test_no_graph_no_contract():
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=17)
    assert {v.rule for v in check(model, contract="saliency").violations} == {"no-graph"}


# --- luma: one channel, one size --------------------------------------------------------------------------------------

LUMA = """agraph (float[1,1,90,160] input) => (float[1,1,90,160] saliency_map) { saliency_map = Sigmoid (input) }"""


@pytest.fixture
def luma():
    return text(LUMA)


def test_the_smallest_luma_model_keeps_its_contract_and_no_other(luma, image, step):
    assert check(luma, contract="saliency-luma").ok and check(luma, contract="saliency").contract == "saliency-luma"
    assert "contract-shape" in refused(luma, "saliency-image") and not check(luma, contract="saliency-step").ok
    assert "contract-shape" in refused(image, "saliency-luma") and not check(step, contract="saliency-luma").ok


@pytest.mark.parametrize("which", ["input", "output"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [7, 3, 0, -1, "N", None])
def test_every_axis_of_luma_is_fixed_and_the_sizes_are_one(luma, which, axis, size):
    set_dim(getattr(luma.graph, which)[0], axis, size)
    assert refused(luma, "saliency-luma") == {"contract-shape"}


def test_luma_of_another_type_rank_or_name(luma):
    luma.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert refused(luma, "saliency-luma") == {"contract-type"}
    assert refused(text(LUMA.replace("1,1,90,160] input", "90,160] input")), "saliency-luma") == {"contract-type"}
    assert refused(text(LUMA.replace("input", "luma")), "saliency-luma") == {"contract-inputs"}
    assert refused(text(LUMA.replace("saliency_map", "map")), "saliency-luma") == {"contract-outputs"}


def test_a_second_input_of_a_luma_model(luma):
    luma.graph.input.append(helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [1]))
    assert refused(luma, "saliency-luma") == {"contract-inputs"}


def test_one_channel_of_any_size_is_no_luma_model(luma):
    for axis in (2, 3):
        set_dim(luma.graph.input[0], axis, "HW"[axis - 2])
    assert refused(luma, "saliency") == {"contract-shape"}

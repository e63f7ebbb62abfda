"""The contracts of variants: planes of any size or of one, RGB frames of one size, maps and block maps, a state or none."""

import onnx
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import check

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
PLANES = """agraph (uint8[1,1,H,W] y, uint8[1,1,h,w] u, uint8[1,1,i,j] v) => (float[1,1,H,W] saliency_map) {
  f = Cast <to = 1> (y) saliency_map = Sigmoid (f) }"""
SIZES = {"H,W": "37,70", "h,w": "19,35", "i,j": "19,35"}
STATE = (
    ("v) =>", "v, float[1,4,2,3] state_in) =>"),
    ("saliency_map) {", "saliency_map, float[1,4,2,3] state_out) {"),
    ("saliency_map = S", "state_out = Sigmoid (state_in) saliency_map = S"),
)


def text(graph):
    return onnx.parser.parse_model(HEADER + graph)


def replaced(graph, *pairs):
    for old, new in pairs:
        assert old in graph
        graph = graph.replace(old, new)
    return graph


def refused(graph, contract="saliency-yuv420"):
    model = graph if isinstance(graph, onnx.ModelProto) else text(graph)
    return {violation.rule for violation in check(model, contract=contract).violations} - {"wiring"}


FIXED = replaced(PLANES, *SIZES.items())
NV12 = replaced(FIXED, ("uint8[1,1,19,35] u, uint8[1,1,19,35] v", "uint8[1,19,35,2] uv"))
BLOCKS = replaced(FIXED, ("[1,1,37,70] saliency_map", "[1,1,3,5] block_map"), ("saliency_map =", "block_map ="))
RGB = "agraph (float[1,3,37,70] input) => (float[1,1,37,70] saliency_map) { saliency_map = ReduceMean <axes = [1]> (input) }"


@pytest.mark.parametrize("graph", [PLANES, FIXED, NV12, BLOCKS, replaced(FIXED, *STATE), replaced(PLANES, *STATE)])
def test_planes_keep_the_contract_and_no_other(graph):
    assert not refused(graph) and check(text(graph), contract="saliency").contract == "saliency-yuv420"
    for other in ("saliency-image", "saliency-step", "saliency-luma", "saliency-fixed"):
        assert refused(graph, other)


def test_the_state_may_have_a_default_of_zeros():
    model = text(replaced(PLANES, *STATE))
    model.graph.initializer.append(helper.make_tensor("state_in", TensorProto.FLOAT, [1, 4, 2, 3], [0.0] * 24))
    assert not refused(model)
    model.graph.initializer[0].float_data[5] = 1
    assert refused(model) == {"contract-state"}


@pytest.mark.parametrize(
    ("pairs", "rule"),
    [
        ([("uint8[1,1,19,35] u", "uint8[1,1,18,35] u")], "contract-shape"),
        ([("uint8[1,1,19,35] u", "uint8[1,1,h,w] u")], "contract-shape"),
        ([("uint8[1,1,37,70] y", "uint8[1,3,37,70] y")], "contract-shape"),
        ([("uint8[1,1,37,70] y", "uint8[1,1,H,70] y")], "contract-shape"),
        ([("float[1,1,37,70]", "float[1,1,37,71]")], "contract-shape"),
        ([("uint8[1,1,37,70] y", "float[1,1,37,70] y")], "contract-type"),
        ([("uint8[1,1,37,70] y", "uint16[1,1,37,70] y")], "contract-type"),
        ([("uint8[1,1,37,70] y", "uint8[1,37,70] y")], "contract-type"),
        ([("35] u,", "35] cb,")], "contract-inputs"),
        ([("35] v)", "35] v, uint8[1] a)")], "contract-inputs"),
        ([("saliency_map", "map")], "contract-outputs"),
        ([STATE[0]], "contract-outputs"),
    ],
)
def test_what_deviates_is_refused(pairs, rule):
    assert rule in refused(replaced(FIXED, *pairs))


def test_dynamic_planes_name_their_axes_apart():
    assert refused(replaced(PLANES, ("uint8[1,1,H,W] y", "uint8[1,1,H,H] y"))) == {"contract-shape"}
    assert refused(replaced(PLANES, ("float[1,1,H,W]", "float[1,1,37,W]"))) == {"contract-shape"}
    assert refused(replaced(PLANES, ("uint8[1,1,h,w] u", "uint8[1,1,H,w] u"))) == {"contract-shape"}  # half of itself


def test_a_state_without_a_default_has_one_size():
    model = text(replaced(FIXED, *STATE))
    for value in (model.graph.input[-1], model.graph.output[-1]):
        value.type.tensor_type.shape.dim[2].Clear()
    assert refused(model) == {"contract-shape"}
    model.graph.initializer.append(helper.make_tensor("state_in", TensorProto.FLOAT, [1, 4, 1, 3], [0.0] * 12))
    assert not refused(model)


def test_a_frame_of_one_size_is_fixed_only_where_that_is_asked_for():
    assert not refused(RGB, "saliency-fixed") and refused(RGB, "saliency") == {"contract-shape"}
    assert refused(RGB.replace("37,70", "H,W"), "saliency-fixed") == {"contract-shape"}
    assert refused(RGB.replace("1,3,37", "1,1,37"), "saliency-fixed") == {"contract-shape"}


@pytest.mark.parametrize("graph", [PLANES, FIXED, NV12])
def test_they_are_run(graph):
    graph = replaced(
        graph,
        ("f = Cast", "g = Cast"),
        ("saliency_map = S", "k = Constant <value = float {255}> () f = Div (g, k) saliency_map = S"),
    )
    assert check(text(graph), contract="saliency-yuv420", load=True).ok
    wrong = text(graph.replace("Sigmoid", "Neg"))
    [violation] = check(wrong, contract="saliency-yuv420", load=True).violations
    assert "saliency_map has values from -1 to" in violation.message

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch.utils.flop_counter import FlopCounterMode

from distill.export.cost import count, parameters
from distill.export.graph import image_graph, step_graph
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet

SMALL = TinyUNetConfig(height=32, width=64, widths=(4, 8, 8, 12, 16), state_channels=8)


def graph(nodes, inputs, weights):
    """A model of these nodes; weights by name, as shapes."""
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    ins = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", ins, [out], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("node", "weights", "macs"),
    [
        # 3 -> 16 channels, 3x3, stride 2 on 40x60: every one of 16x20x30 results takes 3x3x3.
        (
            helper.make_node("Conv", ["input", "w", "b"], ["y"], strides=[2, 2], pads=[1] * 4),
            {"w": (16, 3, 3, 3), "b": (16,)}, 16 * 20 * 30 * 27,
        ),
        (helper.make_node("Conv", ["input", "w"], ["y"], group=3, pads=[2] * 4), {"w": (6, 1, 5, 5)}, 6 * 40 * 60 * 25),
        # Transposed: every one of 3x40x60 inputs goes into 8 channels of 2x2, whatever the stride makes of them.
        (helper.make_node("ConvTranspose", ["input", "w"], ["y"], strides=[2, 2]), {"w": (3, 8, 2, 2)}, 3 * 40 * 60 * 8 * 4),
        (helper.make_node("MatMul", ["input", "w"], ["y"]), {"w": (60, 7)}, 3 * 40 * 60 * 7),
        (helper.make_node("Relu", ["input"], ["y"]), {}, 0),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)  # fmt: skip
def test_counts_computed_by_hand(node, weights, macs):
    cost = count(graph([node], {"input": [1, 3, "h", "w"]}, weights), 40, 60)
    assert cost.macs == macs and cost.by_op == ({node.op_type: macs} if macs else {})
    assert cost.parameters == sum(int(np.prod(shape)) for shape in weights.values())


@pytest.mark.parametrize(("transposed", "shape"), [(0, [5, 20]), (1, [20, 5])])
def test_gemm_counts_its_inner_axis(transposed, shape):
    gemm = helper.make_node("Gemm", ["a", "w"], ["y"], transA=transposed)
    assert count(graph([gemm], {"a": shape}, {"w": (20, 7)}), 1, 1).macs == 5 * 20 * 7


BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,h,w] input) => (float[1,c,oh,ow] y)
   <float[4,3,1,1] thin = {1,1,1,1,1,1,1,1,1,1,1,1}, float[2,3,1,1] thick = {1,1,1,1,1,1}> {
  shape = Shape(input)
  two = Constant<value_ints=[2]>()
  three = Constant<value_ints=[3]>()
  rows = Slice(shape, two, three)
  hundred = Constant<value_ints=[100]>()
  hundreds = Div(rows, hundred)
  large = Cast<to=9>(hundreds)
  y = If(large) <
    then_branch = a () => (float[1,2,p,q] ya) {
      half = AveragePool<kernel_shape=[2,2], strides=[2,2]>(input)
      ya = Conv(half, thick)
    },
    else_branch = b () => (float[1,4,r,s] yb) { yb = Conv(input, thin) }
  >
}
"""


def test_only_the_branch_of_an_if_that_runs_is_counted():
    model = parser.parse_model(BRANCHES)
    assert count(model, 99, 40).macs == 4 * 3 * 99 * 40
    assert count(model, 200, 40).macs == 2 * 3 * 100 * 20
    assert count(model, 99, 40).parameters == 18  # the file holds both


def test_a_shape_known_only_at_run_time_is_named():
    model = parser.parse_model(BRANCHES)
    model.graph.node[6].input[0] = "input"  # the branch depends on the picture
    with pytest.raises(ValueError, match=r"If y: the frame's size does not decide which branch"):
        count(model, 99, 40)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="late")
    nodes = [helper.make_node("NonZero", ["input"], ["i"]), helper.make_node("Gather", ["input", "i"], ["x"], axis=3), conv]
    with pytest.raises(ValueError, match=r"Conv late"):
        count(graph(nodes, {"input": [1, 3, "h", "w"]}, {"w": (2, 3, 1, 1)}), 8, 8)
    with pytest.raises(ValueError, match=r"the input 'other'"):
        count(graph([helper.make_node("Add", ["input", "other"], ["y"])], {"input": [1, 3, 8, 8], "other": ["n"]}, {}), 8, 8)


@pytest.mark.parametrize("mode", ["image", "step"])
def test_torch_counts_the_same_for_the_student(mode):
    student = TinyUNet(SMALL).eval()
    frame, keep = torch.zeros(1, 3, SMALL.height, SMALL.width), student.decay(torch.tensor([0.04]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student.image(frame) if mode == "image" else student.step(frame, student.zero_state(), keep)
    model = image_graph(student, {}) if mode == "image" else step_graph(student, 25.0, {})
    costs = [count(model, *size) for size in ((16, 16), (97, 131), (360, 640), (1080, 1920))]
    assert {2 * cost.macs for cost in costs} == {counter.get_total_flops()}  # whatever the frame's size


def test_settings_and_the_default_state_are_not_parameters():
    nodes = [
        helper.make_node("Resize", ["state_in", "", "scales"], ["big"], mode="nearest"),
        helper.make_node("Add", ["input", "big"], ["sum"]),
        helper.make_node("Mul", ["sum", "gain"], ["y"]),
    ]
    model = graph(
        nodes,
        {"input": [1, 3, "h", "w"], "state_in": [1, 3, 1, 1]},
        {"state_in": (1, 3, 1, 1), "scales": (4,), "gain": (3, 1, 1)},
    )
    assert parameters(model) == 3


def test_a_quantised_file_counts_like_its_original(golden):
    cost = count(onnx.load(golden / "scanner" / "ok_qdq.onnx"), 360, 640)
    assert cost.macs == 3 * 360 * 640 and cost.parameters == 4  # 1x1, three channels to one, with a bias


def test_the_peers_counts_are_the_known_ones(shared):
    cost = count(onnx.load(shared / "peers" / "saliency_student_v2.onnx"), 1080, 1920)
    assert (round(cost.macs / 1e9, 3), cost.parameters) == (34.729, 123_425)

import logging

import numpy as np
import onnx
import pytest
from onnx import helper

from distill.export.graph import image_graph, step_graph
from distill.export.quantize import drift, quantise, rounded_nodes
from distill.export.runner import Predictor
from distill.export.verification import ExportRefused
from distill.opallowlist import check
from tests.helpers import lively, moving_blobs


@pytest.fixture(scope="module")
def graphs():
    student = lively()
    return {"image": image_graph(student, {"license": "x"}), "step": step_graph(student, 25.0, {"license": "x"})}


@pytest.fixture(scope="module")
def int8(graphs):
    return {mode: quantise(model, moving_blobs(range(4)), every=2, note="four blobs") for mode, model in graphs.items()}


@pytest.mark.parametrize("mode", ["image", "step"])
def test_int8_keeps_the_contract_and_adds_only_static_pairs(graphs, int8, mode):
    report = check(int8[mode], contract=f"saliency-{mode}")
    assert report.ok and int8[mode].ir_version == 8
    assert [(o.domain, o.version) for o in int8[mode].opset_import] == [("", 17)]
    before, after = ({node.op_type for node in m.graph.node} for m in (graphs[mode], int8[mode]))
    assert after - before == {"QuantizeLinear", "DequantizeLinear"}
    properties = {p.key: p.value for p in int8[mode].metadata_props}
    assert properties["license"] == "x" and properties["quant_mode"] == "static"
    assert properties["quant_calibration_set"] == "four blobs" and len(properties["quant_source_sha256"]) == 64


@pytest.mark.parametrize("mode", ["image", "step"])
def test_the_maps_stay_near_and_not_equal_on_frames_that_gave_no_range(graphs, int8, mode):
    gap = drift(graphs[mode], int8[mode], moving_blobs(range(10, 13)))
    assert gap.frames == 24 and 0 < gap.mean_abs < 0.01 and gap.mean_abs < gap.max_abs < 0.1
    one, other = (
        np.ravel([m for clip in moving_blobs(range(10, 13)) for m in streamed(model, clip)])
        for model in (graphs[mode], int8[mode])
    )
    assert gap.plcc == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6) and 0.9 < gap.plcc < 1


def streamed(model, clip):
    return list(Predictor(model.SerializeToString()).stream(clip))


def test_a_map_that_never_changes_correlates_with_nothing(graphs):
    model = onnx.ModelProto()
    model.CopyFrom(graphs["image"])
    for node in model.graph.node:
        if node.output[0] == "small":
            zero = helper.make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
            model.graph.initializer.append(zero)
            node.op_type = "Mul"
            node.input.append("zero")
    assert drift(graphs["image"], model, moving_blobs([0], frames=2)).plcc == 0
    assert drift(graphs["image"], graphs["image"], moving_blobs([0], frames=2)).plcc == pytest.approx(1)


def test_weights_have_a_scale_for_every_channel_and_seven_bits(int8):
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in int8["image"].graph.initializer}
    rounded = {name: a for name, a in stored.items() if a.dtype == np.int8 and a.ndim == 4}
    assert rounded and all(np.abs(a).max() <= 64 for a in rounded.values())
    pairs = [n for n in int8["image"].graph.node if n.op_type == "DequantizeLinear" and n.input[0] in rounded]
    assert all(stored[n.input[1]].shape == (rounded[n.input[0]].shape[0],) for n in pairs)


def test_nodes_of_the_state_and_of_the_map_stay_in_float(graphs, int8):
    chosen = set(rounded_nodes(graphs["step"]))
    assert "/student/encoder/at_4/0/depthwise/0" in chosen and "/student/at_8/depthwise/0" in chosen
    assert (
        not {"/student/encoder/stem/0", "/student/head", "/student/memory/write", "/student/motion/say", "/conv2d", "/conv2d_1"}
        & chosen
    )
    made_by = {output: node for node in int8["step"].graph.node for output in node.output}
    assert made_by["saliency_map"].op_type == "Resize"
    for name in ("saliency_map", "state_out"):  # no rounding between the last convolutions and what comes out
        todo, seen = [name], set()
        while todo:
            node = made_by.get(todo.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            assert node.op_type != "DequantizeLinear", node.output[0]
            todo += [] if node.op_type == "Conv" and len(node.input) > 2 else list(node.input)


def test_a_slow_average_still_moves(graphs, int8):
    """In 8 bits an average that moves by a hundredth of its gap a frame never arrives."""
    [frames] = moving_blobs([3], frames=60)
    states = []
    for model in (graphs["step"], int8["step"]):
        predictor = Predictor(model.SerializeToString())
        for frame in [frames[0]] * 5 + [frames[-1]] * 120:
            predictor.predict(frame)
        states.append(predictor.state)
    assert np.abs(states[0] - states[1]).mean() < 0.02 * np.abs(states[0]).mean()


def test_a_graph_without_a_body_is_refused(graphs):
    model = onnx.ModelProto()
    model.CopyFrom(graphs["image"])
    model.graph.ClearField("node")
    model.graph.node.append(helper.make_node("ReduceMean", ["input"], ["saliency_map"], axes=[1], name="mean"))
    with pytest.raises(ExportRefused, match="no convolution"):
        quantise(model, moving_blobs([0]))


def test_a_graph_refused_by_the_gate_is_not_returned(graphs, monkeypatch):
    monkeypatch.setattr("distill.export.verification.MAX_BYTES", 10)
    with pytest.raises(ExportRefused, match="more than the 10 of the contract"):
        quantise(graphs["image"], moving_blobs([0], frames=2))


def test_the_quantiser_is_silent_and_restores_logging(graphs, caplog, capfd):
    before = logging.root.manager.disable
    quantise(graphs["step"], moving_blobs([0], frames=2))
    assert not caplog.records and capfd.readouterr().err == "" and logging.root.manager.disable == before


def test_a_model_that_does_not_take_the_frames_is_a_one_line_error(graphs):
    model = onnx.ModelProto()
    model.CopyFrom(graphs["image"])
    for axis, size in ((2, 64), (3, 64)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    with pytest.raises(ExportRefused, match="quantiser failed"):
        quantise(model, moving_blobs([0]))
    with pytest.raises(ExportRefused, match="quantiser failed: No data"):
        quantise(graphs["image"], [])


def test_a_comparison_needs_frames(graphs):
    with pytest.raises(ValueError, match="no frames"):
        drift(graphs["image"], graphs["image"], [])

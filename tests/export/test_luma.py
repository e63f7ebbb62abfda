"""The luma graph: one size, fixed shapes, the image file's maps of grey frames."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from distill.export.graph import image_graph, step_graph
from distill.export.runner import Predictor, normalise
from distill.export.student import torch_maps
from distill.export.variant_parity import compare_variant, grey, verify_variant
from distill.export.variants import Variant, variant_graph
from distill.export.verification import ExportRefused
from distill.opallowlist import check
from tests.helpers import lively


def luma_graph(model, height, width):
    return variant_graph(model, Variant("luma", (height, width)))


def verify_luma(luma, image):
    return verify_variant(luma, image, Variant("luma", size_of(luma)))


def size_of(luma):
    height, width = (dim.dim_value for dim in luma.graph.input[0].type.tensor_type.shape.dim[2:])
    return height or 64, width


@pytest.fixture(scope="module")
def image():
    return image_graph(lively(), {"license": "x"})


def planes(height, width, count=2):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width), np.uint8))


def feed(plane):
    """As the downstream does: the plane as it is, over 255."""
    return plane[None, None].astype(np.float32) / 255


# Each of the entry's kernels, none at all, and sizes that nothing divides; the working size is 64x32.
SIZES = [(16, 16), (17, 33), (97, 131), (130, 300), (260, 530), (529, 1031), (64, 128), (1080, 1920)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_it_is_the_image_file_on_grey_frames_and_pytorch(image, height, width):
    luma = luma_graph(image, height, width)
    assert verify_luma(luma, image).max_abs <= 1e-6
    one = Predictor(luma.SerializeToString())
    for plane in planes(height, width):
        ours = one.run(feed(plane))
        [theirs] = torch_maps(lively(), [grey(plane)], None)
        assert ours.shape == (1, 1, height, width) and np.abs(ours - theirs).max() <= 1e-5
        assert 0 <= ours.min() < ours.max() <= 1


def test_grey_is_what_a_colour_consumer_gets_from_limited_range():
    ramp = np.arange(256, dtype=np.uint8)[None]
    rgb = np.clip((ramp.astype(float) - 16) * 255 / 219, 0, 255)  # BT.601 and 709 alike where chroma is neutral
    exact = (rgb[..., None] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(grey(ramp)[0], exact.transpose(2, 0, 1), atol=1e-6)
    assert np.allclose(grey(np.full((2, 2), 235, np.uint8)), normalise(np.full((2, 2, 3), 255, np.uint8)), atol=1e-5)
    assert np.allclose(grey(np.full((2, 2), 16, np.uint8)), normalise(np.zeros((2, 2, 3), np.uint8)), atol=1e-5)


def test_it_is_gated_static_and_keeps_the_contract(image):
    luma = luma_graph(image, 97, 131)
    onnx.checker.check_model(luma, full_check=True)
    assert check(luma, contract="saliency-luma").ok and not check(luma, contract="saliency-image").ok
    assert luma.ir_version == 8 and [(o.domain, o.version) for o in luma.opset_import] == [("", 17)]
    assert {node.op_type for node in luma.graph.node} <= {
        *(node.op_type for node in image.graph.node), "Mul", "Clip", "Identity", "AveragePool", "Expand",
    }  # fmt: skip
    assert not {"If", "Shape"} & {node.op_type for node in luma.graph.node}
    assert {p.key: p.value for p in luma.metadata_props} == {"license": "x"}
    again = luma_graph(image, 97, 131)
    assert luma.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)


def test_it_takes_no_other_size_and_no_colour(image):
    one = Predictor(luma_graph(image, 97, 131).SerializeToString())
    for shape in ((1, 1, 97, 132), (1, 1, 98, 131), (1, 3, 97, 131)):
        with pytest.raises(ValueError, match="does not run at"):
            one.run(np.zeros(shape, np.float32))


def test_other_models_are_refused(image, golden):
    for model in (onnx.load(golden / "scanner" / "ok_qdq.onnx"), luma_graph(image, 32, 32)):
        with pytest.raises(ExportRefused, match="not an image or step file of this exporter"):
            luma_graph(model, 64, 64)
    with pytest.raises(ExportRefused, match=r"step file, and consumers of luma files carry no state; make one from NAME.onnx"):
        luma_graph(step_graph(lively(), 25.0, {}), 64, 64)
    with pytest.raises(ExportRefused, match="one frame size"):
        variant_graph(image, Variant("luma"))


@pytest.mark.parametrize("what", ["weights", "operator", "shape", "bytes", "range"])
def test_wrong_graphs_are_refused(image, what, monkeypatch):
    luma, message = luma_graph(image, 64, 96), ""
    if what == "weights":
        luma = luma_graph(image_graph(lively(seed=1), {}), 64, 96)
        message = "its maps against the source file's"
    elif what == "range":  # full range in place of limited
        for tensor in luma.graph.initializer:
            if tensor.name == "luma_gain":
                tensor.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "luma_gain"))
        message = "its maps against the source file's"
    elif what == "operator":
        luma.graph.node[-1].output[0] = "unrounded"
        luma.graph.node.append(helper.make_node("Floor", ["unrounded"], ["saliency_map"]))
        message = "Floor"
    elif what == "shape":
        luma.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
        message = "must be fixed"
    else:
        monkeypatch.setattr("distill.export.verification.MAX_BYTES", 10)
        message = "more than the 10"
    with pytest.raises(ExportRefused, match=message):
        verify_luma(luma, image)


def test_nan_fails_parity(image):
    luma = luma_graph(image, 32, 32)
    for tensor in luma.graph.initializer:
        if tensor.name == "imagenet_bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full((1, 3, 1, 1), np.nan, np.float32), "imagenet_bias"))
    assert not compare_variant(luma, image, Variant("luma", (32, 32))).max_abs <= 1


def test_running_and_editing_files_needs_no_torch_and_imports_onnxscript_late():
    modules = ", ".join(f"distill.{name}" for name in (
        "export.variants", "export.variant_parity", "export.planes", "export.quantize", "export.cost", "export.streaming",
        "export.verification", "tools.variants", "opallowlist",
    ))  # fmt: skip
    code = f"import sys, {modules}; assert not {{'torch', 'onnxscript', 'onnx_ir'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

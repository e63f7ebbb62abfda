"""Variants of a student: planes in, one size, block maps; the maps of the source file, and of the PyTorch twin."""

from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from distill.encoding.qp_offsets import block_means
from distill.export.graph import image_graph, step_graph
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, Predictor, largest_gap, open_session
from distill.export.variants import BLOCK, Variant, variant_graph, yuv420_graph
from distill.export.verification import ExportRefused
from distill.export.yuv import MATRICES, Colour, half_size
from distill.opallowlist import check
from distill.students.tiny_unet import ENTRY_KERNELS, resize_linear
from tests.helpers import SMALL, lively

FPS = 25.0
# The working size is 32x64: none of the entry's kernels, each of them, and sizes that nothing divides.
SIZES = [(16, 16), (17, 33), (97, 131), (130, 259), (261, 531), (529, 1031)]


@pytest.fixture(scope="module")
def step():
    return step_graph(lively(), FPS, {"license": "x", "frame_rate": "25"})


def planes(height, width, depth=8, count=3):
    """Random planes of consecutive frames: y `[1,1,H,W]`, u and v `[1,1,h,w]`."""
    rng = np.random.default_rng(0)
    half = half_size((height, width))
    kind = np.uint8 if depth == 8 else np.uint16
    return [
        {
            name: rng.integers(0, 2**depth, (1, 1, *size)).astype(kind)
            for name, size in (("y", (height, width)), ("u", half), ("v", half))
        }
        for _ in range(count)
    ]


def streamed(model, frames):
    """The first output for every frame, with the state fed back."""
    session, maps = open_session(model.SerializeToString(), "a variant", 1), []
    shapes = [i.shape for i in session.get_inputs() if i.name == "state_in"]
    feed = {"state_in": np.zeros(shapes[0], np.float32)} if shapes else {}
    for frame in frames:
        saliency, *states = session.run(None, {**frame, **feed})
        feed = {"state_in": states[0]} if states else feed
        maps.append(saliency)
    return maps


def frame_of_planes(y, chroma, height, width, kr, kb, colour):
    """The entry in PyTorch: samples as float, luma `[1,1,H,W]`, chroma (U, V) `[1,2,ceil(H/2),ceil(W/2)]` -> the normalised RGB frame
    at the working resolution. kr, kb: weights of red and blue in luma, as in ITU-R BT.709-6, 3.2 to 3.4."""
    fits = min(y.shape[-2] // (2 * height), y.shape[-1] // (2 * width))
    kernel = next((kernel for kernel in ENTRY_KERNELS if kernel <= fits), 1)
    luma = F.avg_pool2d(y, kernel)
    twice = [2 * side for side in chroma.shape[-2:]]
    chroma = F.avg_pool2d(chroma, kernel // 2) if kernel > 1 else resize_linear(chroma, *twice)
    rows, columns = luma.shape[-2:]
    small = resize_linear(torch.cat([luma, chroma[..., :rows, :columns]], 1), 2 * height, 2 * width)
    small = F.avg_pool2d(small, 2)
    unit, most = 2 ** (colour.depth - 8), 2**colour.depth - 1
    black, luma_levels, chroma_levels = (16 * unit, 219 * unit, 224 * unit) if colour.range == "limited" else (0, most, most)
    luma = (small[:, :1] - black) / luma_levels
    blue, red = ((small[:, 1:] - 128 * unit) / chroma_levels).chunk(2, 1)
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    mean, std = (torch.from_numpy(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.cat([r, g, b], 1).clamp(0, 1) - mean) / std


@torch.no_grad()
def twin_maps(frames, colour):
    student, maps = lively(), []
    state, decay = student.zero_state(), student.decay(torch.tensor([1 / FPS]))
    kr, kb = MATRICES[colour.matrix]
    for frame in frames:
        y, u, v = (torch.from_numpy(frame[name].astype(np.float32)) for name in "yuv")
        size = student.config.height, student.config.width
        small = frame_of_planes(y, torch.cat([u, v], 1), *size, kr, kb, colour)
        logits, state = student.step(small, state, decay)
        maps.append(resize_linear(torch.sigmoid(logits), *y.shape[-2:]).numpy())
    return maps


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_a_plane_file_is_the_pytorch_twin_over_a_sequence(step, size):
    frames, colour = planes(*size), Colour("bt709")
    expected = twin_maps(frames, colour)
    pairs = [{"y": f["y"], "uv": np.stack([f["u"][0], f["v"][0]], -1)} for f in frames]
    for fixed in (None, size):
        assert largest_gap(streamed(variant_graph(step, Variant("yuv420", fixed, "map", colour)), frames), expected) <= 1e-5
        assert largest_gap(streamed(variant_graph(step, Variant("nv12", fixed, "map", colour)), pairs), expected) <= 1e-5
        blocks = streamed(variant_graph(step, Variant("yuv420", fixed, "block-map", colour)), frames)
        assert largest_gap(blocks, [block_means(saliency[0, 0], BLOCK) for saliency in expected]) <= 1e-5
    fast = streamed(yuv420_graph(step, colour, "map", size, integer=True), frames)
    assert largest_gap(fast, expected) <= 1e-5


@pytest.mark.parametrize(
    "colour",
    [Colour("bt601"), Colour("bt709", "full"), Colour("bt2020", "limited", 10), Colour("bt2020", "full", 10)],
    ids=lambda c: f"{c.matrix}-{c.range}-{c.depth}",
)
def test_matrix_range_and_depth(step, colour):
    frames = planes(130, 259, colour.depth)
    assert largest_gap(streamed(yuv420_graph(step, colour, size=(130, 259)), frames), twin_maps(frames, colour)) <= 1e-5


def test_colours_that_everybody_knows():
    gain, bias = Colour("bt709").to_rgb()
    for sample, rgb in (((16, 128, 128), (0, 0, 0)), ((235, 128, 128), (1, 1, 1)), ((63, 102, 240), (1, 0, 0))):
        assert gain @ sample + bias == pytest.approx(rgb, abs=0.01)  # red: (63, 102, 240), rounded to integers
    with pytest.raises(ValueError, match=r"bt470 is unknown; there are bt601, bt709, bt2020"):
        Colour("bt470")


def test_a_file_of_one_size_is_static_and_an_rgb_file_of_one_size_is_the_source(step):
    for kind in ("rgb", "yuv420"):
        for output in ("map", "block-map"):
            model = variant_graph(step, Variant(kind, (97, 131), output))
            onnx.checker.check_model(model, full_check=True)
            assert not {"If", "Shape", "Div"} & {n.op_type for n in model.graph.node if n.name.startswith(("/entry", "/exit"))}
            assert check(model).ok and {p.key for p in model.metadata_props} == {"license", "frame_rate"}
    frames = [{"input": np.random.default_rng(n).standard_normal((1, 3, 529, 1031), np.float32)} for n in range(3)]
    source = Predictor(step.SerializeToString())
    expected = [source.run(frame["input"]) for frame in frames]
    fixed = variant_graph(step, Variant("rgb", (529, 1031)))
    assert largest_gap(streamed(fixed, frames), expected) <= 1e-6
    runner = Predictor(fixed.SerializeToString())  # which starts with zeros
    assert largest_gap([runner.run(frame["input"]) for frame in frames], expected) <= 1e-6


@pytest.mark.parametrize("size", [(64, 96), (130, 260)])
def test_chroma_of_another_size_is_refused_not_cropped(step, size):
    [frame] = planes(*size, count=1)
    for shape in (size, (size[0], size[1] // 2)):  # of 4:4:4, of 4:2:2
        wrong = {**frame, **{name: np.zeros((1, 1, *shape), np.uint8) for name in "uv"}}
        with pytest.raises(Exception, match="chroma"):  # onnxruntime's exceptions share no base class
            streamed(yuv420_graph(step, Colour()), [wrong])


def test_an_image_file_has_plane_files_without_state():
    model = yuv420_graph(image_graph(lively(), {}), Colour())
    assert [o.name for o in model.graph.output] == ["saliency_map"] and [i.name for i in model.graph.input] == ["y", "u", "v"]
    assert len(streamed(model, planes(97, 131))) == 3


def test_other_models_are_refused(step, golden):
    for model in (onnx.load(golden / "scanner" / "ok_qdq.onnx"), yuv420_graph(step, Colour())):
        with pytest.raises(ExportRefused, match="not an image or step file of this exporter"):
            yuv420_graph(model, Colour())
    with pytest.raises(ExportRefused, match="one frame size"):
        variant_graph(step, Variant("rgb"))


def test_a_variant_checks_itself():
    with pytest.raises(ValueError, match="input yuv444 is unknown; there are rgb, yuv420, nv12, luma"):
        Variant("yuv444", (64, 64))
    with pytest.raises(ValueError, match="output blocks is unknown; there are map, block-map"):
        Variant("yuv420", None, "blocks")


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 computes these operators in another way")
@pytest.mark.parametrize("kind", ["rgb", "yuv420", "nv12"])
def test_opencv_streams_a_file_of_one_size(kind):
    config = replace(SMALL, height=128, width=224)  # OpenCV 5.0.0 is wrong on the smaller student's maps of 1x2 px
    step, size = step_graph(lively(config), FPS, {}), (261, 531)
    frames = planes(*size)
    if kind == "rgb":
        frames = [{"input": np.random.default_rng(n).standard_normal((1, 3, *size), np.float32)} for n in range(3)]
    elif kind == "nv12":
        frames = [{"y": f["y"], "uv": np.stack([f["u"][0], f["v"][0]], -1)} for f in frames]
    for output in ("map", "block-map"):
        model = variant_graph(step, Variant(kind, size, output))
        net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
        state, maps = np.zeros(config.state_shape, np.float32), []
        for frame in frames:
            for name, array in {**frame, "state_in": state}.items():
                net.setInput(array, name)
            saliency, state = (np.array(array) for array in net.forward([model.graph.output[0].name, "state_out"]))
            maps.append(saliency)
        assert largest_gap(maps, streamed(model, frames)) <= 1e-5

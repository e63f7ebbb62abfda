"""A student over decoded planes: maps of blocks, the state carried, cuts found."""

import numpy as np
import pytest

from distill.export.graph import step_graph
from distill.export.planes import PlanePredictor
from distill.export.streaming import Stream
from distill.export.yuv import Colour, Planes
from tests.helpers import lively

SIZE = (150, 270)


@pytest.fixture(scope="module")
def step():
    return step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString()


def shots(*lengths, colour=None, size=SIZE):
    """Planes of several shots, each a different still texture with some noise."""
    rng = np.random.default_rng(0)
    for length in lengths:
        still = rng.integers(16, 200, (15, 27)).repeat(10, 0).repeat(10, 1)[: size[0], : size[1]]
        for _ in range(length):
            y = (still + rng.integers(0, 10, still.shape)).astype(np.uint8)
            yield Planes(y, y[::2, ::2] // 2 + 64, 192 - y[::2, ::2] // 2, colour or Colour())


def test_state_is_carried_and_a_cut_drops_it(step):
    frames = list(shots(3, 2))
    stream = Stream(PlanePredictor(step))
    maps = [stream.map(frame, n / 25) for n, frame in enumerate(frames)]
    assert stream.cuts == 1 and maps[0].shape == (10, 17) and 0 <= np.min(maps) < np.max(maps) <= 1
    fresh = PlanePredictor(step)
    assert np.array_equal(fresh.predict(frames[3]), maps[3]) and not np.array_equal(
        maps[1], PlanePredictor(step).predict(frames[1])
    )
    assert np.array_equal(fresh.predict(frames[4]), maps[4])


def test_views_with_strides_give_the_same_map(step):
    [frame] = shots(1)
    padded = [np.zeros((plane.shape[0], 320), np.uint8) for plane in (frame.y, frame.u, frame.v)]
    for wide, plane in zip(padded, (frame.y, frame.u, frame.v), strict=True):
        wide[:, : plane.shape[1]] = plane
    views = [wide[:, : plane.shape[1]] for wide, plane in zip(padded, (frame.y, frame.u, frame.v), strict=True)]
    assert np.array_equal(PlanePredictor(step).predict(Planes(*views, Colour())), PlanePredictor(step).predict(frame))
    turned = frame.turned(lambda plane: plane[::-1].swapaxes(0, 1))
    assert PlanePredictor(step).predict(turned).shape == (17, 10)


def test_size_and_colour_may_change_and_the_state_stays(step):
    predictor = PlanePredictor(step, "map")
    [frame], [other], [small] = shots(1), shots(1, colour=Colour("bt601")), shots(1, size=(100, 200))
    assert predictor.predict(frame).shape == SIZE and predictor.state is not None
    for changed in (other, small):
        alone, without = PlanePredictor(step, "map"), PlanePredictor(step, "map").predict(changed)
        alone.state = predictor.state
        ours = predictor.predict(changed)
        assert (
            ours.shape == changed.shape and np.array_equal(ours, alone.predict(changed)) and not np.array_equal(ours, without)
        )
    state = predictor.state
    as_601 = predictor.predict(other)
    predictor.state = state
    assert not np.array_equal(predictor.predict(Planes(other.y, other.u, other.v, Colour())), as_601)


def test_a_model_that_is_none_of_ours_is_one_line(tmp_path, golden):
    with pytest.raises(ValueError, match=r"ok_qdq.onnx: it is not an image or step file"):
        PlanePredictor(golden / "scanner" / "ok_qdq.onnx")
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x.onnx"):
        PlanePredictor(tmp_path / "x.onnx")


def test_an_unknown_output_is_refused(step):
    with pytest.raises(ValueError, match="output blocks is unknown; there are map, block-map"):
        PlanePredictor(step, "blocks")


@pytest.mark.parametrize(
    ("form", "depth", "space", "range_", "colour"),
    [
        ("yuv420p", 8, 1, 1, Colour("bt709")),
        ("yuv420p", 8, 2, 0, Colour("bt601")),
        ("yuvj420p", 8, 6, 0, Colour("bt601", "full")),
        ("nv12", 8, 9, 2, Colour("bt2020", "full")),
        ("yuv420p10le", 10, 9, 1, Colour("bt2020", "limited", 10)),
    ],
)
def test_the_planes_of_a_decoded_frame(form, depth, space, range_, colour):
    av = pytest.importorskip("av")
    from distill.corpora.readers.pyav import planes_of

    frame = av.VideoFrame(70, 38, form)
    frame.colorspace, frame.color_range = space, range_
    rng = np.random.default_rng(0)
    kind = np.uint16 if depth > 8 else np.uint8
    sizes = [(38, 70), (19, 70)] if form == "nv12" else [(38, 70), (19, 35), (19, 35)]
    written = [rng.integers(0, 2**depth, size).astype(kind) for size in sizes]
    for plane, samples in zip(frame.planes, written, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : samples.nbytes // len(samples)] = samples.view(np.uint8)
        plane.update(padded.tobytes())
    planes = planes_of(frame)
    chroma = (written[1][:, ::2], written[1][:, 1::2]) if form == "nv12" else written[1:]
    assert planes.colour == colour and planes.shape == (38, 70)
    for made, samples in zip((planes.y, planes.u, planes.v), (written[0], *chroma), strict=True):
        assert made.dtype == kind and np.array_equal(made, samples)
    assert planes_of(av.VideoFrame(64, 64, "yuv444p")) is None

"""The map of a decoded frame: from its planes for a student of ours, from RGB for what else gives maps."""

import numpy as np
import pytest

av = pytest.importorskip("av")

from distill.encoding.maps import luma_of, map_of, open_maps  # noqa: E402
from distill.encoding.qp_offsets import block_means, grid  # noqa: E402
from distill.export.graph import step_graph  # noqa: E402
from distill.export.runner import Predictor  # noqa: E402
from distill.export.streaming import Stream  # noqa: E402
from tests.helpers import lively  # noqa: E402


def picture(height, width, seed=0):
    """Smooth texture, uint8 RGB."""
    y, x = np.mgrid[:height, :width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    return np.stack([128 + 90 * np.sin(x / (17 + 5 * n) + phase) * np.cos(y / 23) for n, phase in enumerate(phases)], 2).astype(
        np.uint8
    )


def decoded(rgb, format_):
    return av.VideoFrame.from_ndarray(rgb).reformat(format=format_)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "step.onnx"
    path.write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    return path


@pytest.mark.parametrize("format_", ["yuv420p", "yuvj420p", "nv12", "yuv420p10le", "yuv422p", "yuv444p", "bgr0"])
@pytest.mark.parametrize("size", [(96, 160), (97, 203)])
def test_a_student_sees_planes_and_gives_the_block_means_of_its_map(step, format_, size):
    rgb = picture(*size)
    size = (size[0] - size[0] % 2, size[1] - size[1] % 2)  # of the part that is encoded
    of_planes = map_of(decoded(rgb, format_), size, open_maps(step, None), 0.0)
    whole = Stream(Predictor(step)).map(np.ascontiguousarray(rgb[: size[0], : size[1]]), 0.0)
    assert of_planes.values.shape == grid(size, 16) and of_planes.cell == 16
    assert np.abs(of_planes.values - block_means(whole, 16)).max() < 0.01  # chroma is subsampled, and samples are rounded


def test_another_model_and_a_function_see_small_upright_rgb(step):
    def mean_of(rgb, seconds):
        shapes.append(rgb.shape)
        return np.full(rgb.shape[:2], seconds)

    shapes = []
    frame = decoded(picture(722, 1280), "yuv420p")
    result = map_of(frame, (720, 1280), mean_of, 0.5)
    assert shapes == [(360, 640, 3)] and result.values.shape == (360, 640) and result.cell is None
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        map_of(frame, (720, 1280), mean_of, 1.5)


def test_a_turned_frame_is_seen_upright_and_its_map_is_as_it_is_stored(step):
    class Turned:
        """A frame whose display matrix turns it by a quarter."""

        def __init__(self, frame):
            self.frame, self.side_data = (
                frame,
                {"DISPLAYMATRIX": np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], np.int32).tobytes()},
            )

        def __getattr__(self, name):
            return getattr(self.frame, name)

    stored = picture(96, 160)
    turned = map_of(Turned(decoded(stored, "yuv420p")), (96, 160), open_maps(step, None), 0.0)
    upright = map_of(decoded(np.ascontiguousarray(np.rot90(stored, -1)), "yuv420p"), (160, 96), open_maps(step, None), 0.0)
    assert turned.values.shape == (6, 10) and turned.cell is None
    assert np.abs(turned.values - np.rot90(upright.values)).max() < 2e-3


@pytest.mark.parametrize("format_", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv444p"])
def test_luma_is_in_grey_levels_and_at_most_as_wide_as_a_model_sees(format_):
    rgb = np.full((724, 1280, 3), 90, np.uint8)
    rgb[720:] = 255
    luma = luma_of(decoded(rgb, format_), (720, 1280))
    assert luma.shape == (360, 640) and luma.dtype == np.float32 and np.abs(luma - 90).max() < 1.5

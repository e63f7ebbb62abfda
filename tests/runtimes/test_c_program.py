"""docs/block_map.c, built and run: the block maps of Python, and one line for what it cannot read."""

import subprocess

import numpy as np
import onnx
import pytest

from distill.export import release_model
from distill.export.planes import PlanePredictor
from distill.export.variants import Variant, variant_graph
from distill.export.yuv import Colour, Planes
from tests.helpers import ROOT
from tests.runtimes.compiling import build, needs_header
from tests.runtimes.streams import largest_difference, pictures

SIZE = (131, 203)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build("gcc", "c99", ROOT / "docs" / "block_map.c", tmp_path_factory.mktemp("c") / "block_map")


def saved(path, source, size):
    onnx.save(variant_graph(onnx.load(release_model(source)), Variant("yuv420", size, "block-map")), path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Planes of an odd size, and the same as YUV4MPEG2."""
    model = variant_graph(onnx.load(release_model()), Variant("yuv420", SIZE))
    feeds = pictures(model, SIZE, 12)
    path = tmp_path_factory.mktemp("clip") / "clip.y4m"
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{SIZE[1]} H{SIZE[0]} F25:1 Ip A1:1 C420jpeg XYSCSS=420JPEG\n".encode())
        for feed in feeds:
            file.write(b"FRAME\n" + b"".join(feed[name].tobytes() for name in "yuv"))
    return [Planes(*(feed[name][0, 0] for name in "yuv"), Colour()) for feed in feeds], path


def run(program, model, path):
    with path.open("rb") as file:
        return subprocess.run([program, model], stdin=file, capture_output=True, text=True, timeout=60)


@needs_header
@pytest.mark.parametrize(("source", "size"), [("step", None), ("step", SIZE), ("image", None)])
def test_the_c_program_prints_pythons_block_maps(program, clip, tmp_path, source, size):
    frames, path = clip
    result = run(program, saved(tmp_path / "model.onnx", source, size), path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    printed = [np.array([row.split() for row in text.splitlines()], float) for text in result.stdout.strip().split("\n\n")]
    predictor = PlanePredictor(release_model(source))
    expected = [predictor.predict(frame) for frame in frames]
    assert len(printed) == len(expected) == 12 and printed[0].shape == (9, 13)
    assert largest_difference(printed, expected) <= 1e-5


@needs_header
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF", "standard input is no YUV4MPEG2"),
        (b"YUV4MPEG2 W640 F25:1\n", "no YUV4MPEG2 of 16 to 8192 px a side"),
        (b"YUV4MPEG2 W8193 H48\n", "no YUV4MPEG2 of 16 to 8192 px a side"),
        (b"YUV4MPEG2 W64 H48 C420p9 XYSCSS=420P9\n", "the video has more than 8 bits"),
        (b"YUV4MPEG2 W64 H48 C420p10\n", "the video has more than 8 bits"),
        (b"YUV4MPEG2 W64 H48 C420paldv\nFRAME\nabc", "a frame is cut off"),
        (b"YUV4MPEG2 W64 H48 C422\n", "the video is not 4:2:0"),
        (b"YUV4MPEG2 W64 H48\nFRAME\nabc", "a frame is cut off"),
        (b"YUV4MPEG2 W64 H48\nFRAME\n" + bytes(64 * 72), "Got invalid dimensions for input: y"),
    ],
)
def test_wrong_input_ends_the_c_program(program, tmp_path, content, message):
    (tmp_path / "clip.y4m").write_bytes(content)
    result = run(program, saved(tmp_path / "model.onnx", "step", (96, 64)), tmp_path / "clip.y4m")
    assert result.returncode == 2 and message in result.stderr, result.stderr

"""`distill predict` on videos as they come: times, mirrors, names, codecs."""

import os
import shutil

import cv2
import numpy as np
import onnx
import pytest

from distill.corpora.video import probe, read_frames, write_video
from distill.export.graph import step_graph
from tests.corpora.test_video import VARIABLE, timed
from tests.helpers import image_model, invoke, lively


@pytest.fixture
def model(tmp_path):
    return image_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", [b"walk.mp4", b"caf\xe9.mp4", b"a:b.mkv"])
def test_an_overlay_keeps_the_times_of_its_video(tmp_path, model, name):
    timed(tmp_path / os.fsdecode(name), VARIABLE)
    result = invoke("predict", os.fsdecode(name), "--model", model, "--out", os.fsdecode(b"o\xe9.mp4"), cwd=tmp_path)
    assert (
        result.returncode == 0 and "the frame rate varies around 30.3 per second; each frame keeps its time\n" in result.stderr
    )
    assert probe(tmp_path / os.fsdecode(b"o\xe9.mp4")).times == pytest.approx(VARIABLE, abs=1e-3)
    model = model.rename(tmp_path / os.fsdecode(b"m\xe9.onnx"))
    result = invoke("predict", os.fsdecode(name), "--model", model, "--out", "o.avi", cwd=tmp_path)
    assert "each frame keeps its time: o.avi has one rate, and repeats frames" in result.stderr
    facts = probe(tmp_path / "o.avi")
    assert facts.frames / facts.fps == pytest.approx(VARIABLE[-1] + 0.033, abs=0.02)


def test_a_codec_that_nothing_reads_is_named(tmp_path, model, monkeypatch):
    from distill.corpora import video

    path = timed(tmp_path / "v.mp4", VARIABLE[:3])
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz1"))
    result = invoke("predict", path, "--model", model, "--out", tmp_path / "o.mp4")
    assert (
        result.returncode == 2
        and "v.mp4: its codec is xyz1, which the FFmpeg in PyAV does not decode; convert it" in result.stderr
    )
    monkeypatch.setattr(video, "has_pyav", lambda: False)
    result = invoke("predict", path, "--model", model, "--out", tmp_path / "o.mp4")
    assert result.returncode == 2 and "OpenCV may lack its codec (xyz1), and PyAV reads more: pip install" in result.stderr


def wide_model(path):
    """A model whose map is the mean of the normalised channels: outside [0, 1]."""
    model = onnx.load(image_model(path))
    del model.graph.node[1]
    model.graph.node[0].output[0] = "saliency_map"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("form", "size", "turn", "of_planes"),
    [
        ("yuv420p", (640, 1090), None, True), ("yuv420p10le", (96, 160), None, True), ("yuv420p", (96, 160), 90, True),
        ("yuv444p", (96, 160), None, False), ("rgb24", (96, 160), None, False),
    ],
)  # fmt: skip
def test_maps_from_planes_are_those_from_rgb(tmp_path, narrator, monkeypatch, form, size, turn, of_planes):
    pytest.importorskip("av")
    from distill.corpora import video
    from distill.tools.predict import PlanePredictor, write_predictions
    from tests.encoding.test_encode import write_clip

    (tmp_path / "step.onnx").write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    write_clip(tmp_path / "v.mov", 3, size, form, codec="png" if form == "rgb24" else "libx264", rotation=turn)
    assert video.probe(tmp_path / "v.mov").planes == of_planes
    maps, seen = {}, []
    predict = PlanePredictor.predict
    monkeypatch.setattr(PlanePredictor, "predict", lambda self, planes: seen.append(planes) or predict(self, planes))
    for reader in (True, False):
        monkeypatch.setattr(video, "has_pyav", lambda reader=reader: reader)
        write_predictions(tmp_path / "v.mov", tmp_path / "step.onnx", tmp_path / f"{reader}.npy", 1, narrator)
        maps[reader] = np.load(tmp_path / f"{reader}.npy").astype(float)
    assert len(seen) == 3 * of_planes and np.abs(maps[True] - maps[False]).max() < 0.02


@pytest.mark.parametrize("out", ["folder", "o.npy", "o.mp4"])
def test_a_map_outside_its_range_is_refused_and_nothing_is_written(tmp_path, out):
    timed(tmp_path / "v.mp4", VARIABLE[:3])
    result = invoke("predict", tmp_path / "v.mp4", "--model", wide_model(tmp_path / "w.onnx"), "--out", tmp_path / out)
    assert result.returncode == 2 and "v.mp4: frame 1: a saliency map must lie in [0, 1]; got " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "w.onnx"]


def test_a_folder_of_maps_is_replaced_whole_or_not_at_all(tmp_path, model):
    timed(tmp_path / "v.mp4", VARIABLE[:3])
    folder = tmp_path / "maps"
    for name in ("00001.png", "00004.png"):
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((2, 2), np.uint8))
    before = (folder / "00001.png").read_bytes()
    damaged = shutil.copy(tmp_path / "v.mp4", tmp_path / "cut.mp4")
    assert invoke("predict", damaged, "--model", wide_model(tmp_path / "w.onnx"), "--out", folder).returncode == 2
    assert (folder / "00001.png").read_bytes() == before
    assert invoke("predict", tmp_path / "v.mp4", "--model", model, "--out", folder).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["00001.png", "00002.png", "00003.png"]


def test_an_overlay_is_h264_that_plays_while_it_loads(tmp_path):
    av = pytest.importorskip("av")
    picture = np.zeros((49, 81, 3), np.uint8)
    picture[:, 40:] = 200, 40, 90
    write_video(tmp_path / "o.mp4", 30000 / 1001, (49, 81), [picture] * 3)
    data = (tmp_path / "o.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "o.mp4")) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 82, 50)
        assert video.average_rate == 30000 / 1001 or abs(float(video.average_rate) - 30000 / 1001) < 1e-9
    assert np.abs(next(read_frames(tmp_path / "o.mp4"))[:49, 60].astype(int) - picture[:, 60]).max() < 6


def test_without_pyav_the_overlay_says_what_it_is(tmp_path, model, monkeypatch):
    from distill.corpora import video

    timed(tmp_path / "v.mp4", VARIABLE[:3])
    monkeypatch.setattr(video, "has_pyav", lambda: False)
    result = invoke("predict", tmp_path / "v.mp4", "--model", model, "--out", tmp_path / "o.mp4")
    assert (
        result.returncode == 0
        and "o.mp4 is MPEG-4 part 2, which browsers do not play; with PyAV it is H.264: pip " in result.stderr
    )

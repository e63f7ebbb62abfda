"""`distill predict` on videos as they come: times, mirrors, names, codecs."""

import os

import pytest

from distill.corpora.video import probe
from tests.corpora.test_video import VARIABLE, timed
from tests.helpers import image_model, invoke


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

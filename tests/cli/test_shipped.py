"""The verbs without a model: they run the student that ships with this package, and say so on standard error."""

import json
import shutil

import numpy as np
import pytest

from distill.corpora.video import decoded, probe, write_video
from distill.export import release_model
from distill.export.planes import PlanePredictor
from tests.helpers import invoke, moving_blobs

SAYS = "model: saliency_student_step.onnx, which ships with this package"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, 25.0, (48, 80), next(moving_blobs([0])))
    return path


@pytest.mark.parametrize("verb", ["predict", "encode", "bd", "bench", "variant", "luma", "inspect"])
def test_the_help_says_which_student_runs_by_default(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert "default: the student that ships with this package" in invoke(verb, "--help").stdout


def test_predict_writes_an_overlay_into_this_folder(clip, tmp_path):
    result = invoke("predict", clip, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "clip_saliency.mp4\n") and SAYS in result.stderr
    assert probe(tmp_path / "clip_saliency.mp4")[:3] == (8, 48, 80)


def test_predict_gives_the_maps_of_the_shipped_file_and_narration_stays_out_of_json(clip, tmp_path):
    result = invoke("predict", clip, "--out", tmp_path / "maps.npy", "--json")
    assert json.loads(result.stdout)["files"] == [str(tmp_path / "maps.npy")] and SAYS in result.stderr
    predictor = PlanePredictor(release_model(), "map")
    expected = np.stack([predictor.predict(frame.planes) for frame in decoded(clip)])
    assert np.allclose(np.load(tmp_path / "maps.npy"), expected, atol=1e-3)
    quiet = invoke("predict", clip, "--out", tmp_path / "maps.npy", "--quiet")
    assert quiet.stderr == ""


def test_a_model_that_is_named_is_the_one_that_runs(clip, tmp_path):
    shutil.copy(release_model("image"), tmp_path / "mine.onnx")
    result = invoke("predict", clip, "--model", tmp_path / "mine.onnx", "--out", tmp_path / "maps.npy")
    assert result.returncode == 0 and "ships with" not in result.stderr
    assert np.load(tmp_path / "maps.npy").shape == (8, 48, 80)


def test_encode_and_bd_use_it_unless_a_map_is_named(clip, tmp_path):
    result = invoke("encode", clip, tmp_path / "o.mp4", "--json")
    assert result.returncode == 0 and SAYS in result.stderr and json.loads(result.stdout)["offsets"], result.stderr
    result = invoke("encode", clip, tmp_path / "o.mp4", "--map", "centre")
    assert result.returncode == 0 and "model:" not in result.stderr
    result = invoke("encode", clip, tmp_path / "o.mp4", "--map", "centre", "--model", release_model())
    assert result.returncode == 2 and "give one of --model ONNX, --map centre and --map none" in result.stderr


def test_bench_measures_both_files():
    result = invoke("bench", "--size", "64x48", "--rounds", "1", "--json")
    assert result.returncode == 0 and "model: saliency_student.onnx, which ships" in result.stderr and SAYS in result.stderr
    assert [row["model"] for row in json.loads(result.stdout)["results"]] == [
        "saliency_student.onnx",
        "saliency_student_step.onnx",
    ]


def test_luma_writes_into_this_folder(tmp_path):
    result = invoke("luma", "--size", "64x48", cwd=tmp_path)
    assert result.returncode == 0 and "model: saliency_student.onnx, which ships" in result.stderr, result.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".json"} and not list(
        release_model().parent.glob("*luma*")
    )


def test_inspect_describes_it():
    facts = json.loads(invoke("inspect", "--json").stdout)
    assert facts["gate"] == "accepted" and facts["license"]


def test_predict_drops_the_state_at_a_scene_cut_and_says_where_the_rate_is_low(tmp_path):
    scenes = [np.full((48, 80, 3), grey, np.uint8) for grey in (40, 200)]
    scenes[0][8:24, 8:32], scenes[1][20:40, 40:72] = 220, 20
    write_video(tmp_path / "cut.avi", 10.0, (48, 80), [scenes[0]] * 6 + [scenes[1]] * 3)
    result = invoke("predict", tmp_path / "cut.avi", "--out", tmp_path / "maps.npy")
    assert "cut.avi has 10 frames per second, the model's state is for" in result.stderr
    image = PlanePredictor(release_model("image"), "map")
    alone = [image.predict(frame.planes) for frame in decoded(tmp_path / "cut.avi")]
    maps = np.load(tmp_path / "maps.npy")
    for index in (0, 6):  # without history the step file gives the image file's map
        assert np.allclose(maps[index], alone[index], atol=1e-3)
    assert np.abs(maps[7] - alone[7]).max() > 2e-3

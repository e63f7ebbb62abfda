"""What each extra is enough for: verbs in a process that cannot import what the other extras install."""

import json

import pytest

from distill.corpora.video import write_video
from distill.export import release_model
from distill.run.machine.extras import EXTRAS, how_to_install
from distill.tools.demo import RUNTIME
from tests.helpers import make_clip, moving_blobs, without


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, 25.0, (48, 80), next(moving_blobs([0])))
    return path


@pytest.mark.parametrize("out", ["o.mp4", "o.npy", "maps"])
def test_predict_needs_only_its_extra(clip, tmp_path, out):
    result = without(EXTRAS["train"] + EXTRAS["encode"], "predict", clip, "--out", tmp_path / out)
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / out}\n"), result.stderr


def test_demo_needs_no_extra(tmp_path):
    for name in RUNTIME.values():
        (tmp_path / name).touch()
    modules = EXTRAS["train"] + EXTRAS["encode"] + EXTRAS["predict"]
    result = without(modules, "demo", "--runtime", tmp_path, "--save", tmp_path / "page")
    assert result.returncode == 0 and (tmp_path / "page" / "index.html").is_file(), result.stderr


def test_encode_needs_only_its_extra(clip, tmp_path):
    result = without(EXTRAS["train"], "encode", clip, tmp_path / "o.mp4")
    assert result.returncode == 0 and (tmp_path / "o.mp4").stat().st_size > 0, result.stderr


def test_bd_needs_only_the_extra_of_encode(clip):
    result = without(EXTRAS["train"], "bd", clip, "--crf", "20,40", "--preset", "ultrafast")
    assert result.returncode == 0 and "saliency_student_step.onnx" in result.stdout, result.stderr


def test_curves_need_matplotlib_and_say_so_before_the_encodes(clip, tmp_path):
    result = without(EXTRAS["train"], "bd", clip, "--out", tmp_path / "curves.png")
    assert result.returncode == 2 and result.stderr.endswith("which is not installed; pip install matplotlib\n")


def test_eval_of_a_file_needs_only_the_extra_of_predict(tmp_path):
    corpus = make_clip(tmp_path / "c")
    modules = EXTRAS["train"] + EXTRAS["encode"]
    result = without(modules, "eval", release_model(), "--corpus", "dhf1k", "--root", corpus, "--json", "--quiet")
    assert result.returncode == 0 and "nss" in json.loads(result.stdout)["predictors"]["saliency_student_step.onnx"], (
        result.stderr
    )


def test_bench_needs_only_the_extra_of_predict():
    result = without(EXTRAS["train"] + EXTRAS["encode"], "bench", "--size", "64x48", "--rounds", "1", "--json")
    assert result.returncode == 0 and f"not counted; that needs more: {how_to_install('train')}" in result.stderr
    assert all(row["gmac"] is None and row["median_ms"] > 0 for row in json.loads(result.stdout)["results"])


def test_inspect_needs_no_extra():
    everything = [module for modules in EXTRAS.values() for module in modules]
    result = without(everything, "inspect", "--json")
    assert result.returncode == 0 and json.loads(result.stdout)["gate"] == "accepted", result.stderr


def test_without_its_extra_a_verb_names_it(clip, tmp_path):
    everything = [module for modules in EXTRAS.values() for module in modules]
    for arguments, extra in (
        (("predict", clip), "predict"),
        (("encode", clip, tmp_path / "o.mp4"), "encode"),
        (("bd", clip), "encode"),
        (("bench",), "predict"),
        (("quantize", "m.onnx"), "train"),
        (("run",), "train"),
    ):
        result = without(everything, *arguments)
        assert result.returncode == 2 and f"not installed; {how_to_install(extra)}" in result.stderr, result.stderr

"""The int8 file of a student: on clips of a corpus, and only where it is faster."""

import json

import numpy as np
import onnx
import pytest

from distill import config, quantize
from distill.corpora import open_corpus
from distill.errors import GateFailed, UsageError
from distill.export.graph import step_graph
from distill.opallowlist import check
from distill.progress import Narrator
from distill.quantize import quantise_file, race, split
from tests.export.test_export import lively
from tests.test_cli import distill


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "student_step.onnx"
    onnx.save(step_graph(lively(), 25.0, {"license": "x", "validation_clips": "0002"}), path)
    return path


@pytest.fixture
def recipe(tiny_root):
    return config.load(None, ["corpus.name=dhf1k", f"corpus.root={tiny_root}", "eval.stride=8"])


def result_of(speedup, won):
    return {"float_ms": 2.0, "int8_ms": 2.0 / speedup, "speedup": speedup, "turns_won": won, "faster": won >= 2 / 3}


def test_a_faster_file_is_written_with_what_it_lost(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr(quantize, "race", lambda *_: result_of(1.2, 1.0))
    found = quantise_file(student, tmp_path / "s.int8.onnx", recipe, ["64x48"], False, narrator)
    assert [p.name for p in tmp_path.iterdir()] == ["s.int8.onnx"] and check(
        tmp_path / "s.int8.onnx", contract="saliency-step"
    ).ok
    assert not set(found["calibration"]) & set(found["held_out"]) and found["drift"]["frames"] == 24 * len(
        found["held_out"]
    )
    assert 0 < found["drift"]["mean_abs"] < found["drift"]["max_abs"] < 0.2
    scores = found["scores"]["predictors"]
    assert abs(scores["int8"]["cc"] - scores["float"]["cc"]) < 0.05 and found["scores"]["differences"]["of"] == "int8"
    assert json.loads(json.dumps(found)) == found


def test_a_slower_one_leaves_no_file_unless_it_is_kept(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr(
        quantize, "race", lambda model, int8, size, _: result_of(*((1.2, 1.0) if size == "64x48" else (0.9, 0.2)))
    )
    out = tmp_path / "s.int8.onnx"
    with pytest.raises(
        GateFailed, match=r"not faster in int8 \(0.90 times as fast at 96x64\); nothing was written, --keep"
    ):
        quantise_file(student, out, recipe, ["64x48", "96x64"], False, narrator)
    assert not list(tmp_path.iterdir())
    assert quantise_file(student, out, recipe, ["64x48", "96x64"], True, narrator)["times"]["96x64"]["speedup"] == 0.9
    assert out.exists()


def test_what_the_gate_refuses_leaves_no_file(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr("distill.export.quantize.MAX_BYTES", 10)
    with pytest.raises(GateFailed, match=r"in int8 is refused: .* more than the 10"):
        quantise_file(student, tmp_path / "s.int8.onnx", recipe, [], False, narrator)
    assert not list(tmp_path.iterdir())


def test_clips_that_calibrate_are_never_those_that_compare(recipe):
    clips = list(
        open_corpus("dhf1k", recipe.corpus.root, track=Narrator(quiet=True).track, options=recipe.corpus).clips
    )
    for validated in ("", clips[1].id, "elsewhere", ",".join(clip.id for clip in clips)):
        calibrating, held_out = split(clips, validated)
        assert calibrating and held_out and not {c.id for c in calibrating} & {c.id for c in held_out}
        assert (held_out == [clips[1]]) == (validated == clips[1].id)
    assert split(clips, f"dhf1k.{clips[1].name},images.7")[1] == [clips[1]]  # as a run on several corpora calls it
    assert len(split(clips[:2], "")[0]) == 1
    with pytest.raises(UsageError, match="at least two clips"):
        split(clips[:1], "")


def test_the_race_is_between_the_two_files(student):
    found = race(student, student, "64x48", Narrator(quiet=True))
    assert found["speedup"] == pytest.approx(1, abs=0.9) and 0 <= found["turns_won"] <= 1
    assert found["faster"] == (found["turns_won"] >= 2 / 3) and np.isfinite(found["float_ms"])


def test_wrong_input_is_one_line(student, recipe, tiny_root, golden, tmp_path, narrator):
    with pytest.raises(UsageError, match="is the file that is read"):
        quantise_file(student, student, recipe, [], False, narrator)
    with pytest.raises(UsageError, match="quantised already"):
        quantise_file(golden / "scanner" / "ok_qdq.onnx", tmp_path / "o.onnx", recipe, [], False, narrator)
    result = distill("quantize", str(student))
    assert result.returncode == 2 and "which clips? give the corpus's folder with --root" in result.stderr
    result = distill("quantize", "none.onnx", "--root", str(tiny_root))
    assert result.returncode == 2 and "no model at none.onnx" in result.stderr


def test_the_command_writes_and_tells(student, tiny_root, tmp_path):
    out = tmp_path / "s.int8.onnx"
    result = distill(
        "quantize", str(student), "--root", str(tiny_root), "-o", str(out), "--size", "64x48", "--keep", "--quiet"
    )
    assert result.returncode == 0, result.stderr
    assert out.exists() and "times as fast, won" in result.stdout and "held-out clips" in result.stdout
    assert result.stdout.splitlines()[-1] == str(out)

"""The int8 file of a student: on clips of a corpus, and only where it is faster."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from distill.corpora import open_corpus
from distill.export.graph import step_graph
from distill.export.quantize import Drift
from distill.opallowlist import check
from distill.recipe.files import load_recipe
from distill.run.errors import GateFailed, UsageError
from distill.run.progress import Narrator
from distill.tools import quantize
from distill.tools.quantize import quantise_file, race, split
from tests.downstream import c_opens, tuner, validate
from tests.helpers import distill, invoke, lively


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "student_step.onnx"
    onnx.save(step_graph(lively(), 25.0, {"license": "x", "validation_clips": "0002"}), path)
    return path


@pytest.fixture
def recipe(tiny_root):
    return load_recipe(None, ["corpus.name=dhf1k", f"corpus.root={tiny_root}", "eval.stride=8"])


def result_of(speedup, won):
    return {"float_ms": 2.0, "int8_ms": 2.0 / speedup, "speedup": speedup, "turns_won": won, "faster": won >= 2 / 3}


def test_a_faster_file_is_written_with_its_drift(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr(quantize, "race", lambda *_: result_of(1.2, 1.0))
    found = quantise_file(student, tmp_path / "p", recipe, ["64x48"], False, narrator)
    names = ["student_step.int8.onnx", "student_step.int8.registry.json", "student_step.json", "student_step.onnx"]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == names == sorted(Path(p).name for p in found["files"])
    assert check(found["file"], contract="saliency-step").ok and found["drift"]["plcc"] > 0.99
    assert not set(found["calibration"]) & set(found["held_out"]) and found["drift"]["frames"] == 24 * len(found["held_out"])
    assert 0 < found["drift"]["mean_abs"] < found["drift"]["max_abs"] < 0.2
    scores = found["scores"]["predictors"]
    assert abs(scores["int8"]["cc"] - scores["float"]["cc"]) < 0.05 and found["scores"]["differences"]["of"] == "int8"
    assert json.loads(json.dumps(found)) == found


def test_a_slower_one_leaves_no_file_unless_it_is_kept(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr(
        quantize, "race", lambda model, int8, size, _: result_of(*((1.2, 1.0) if size == "64x48" else (0.9, 0.2)))
    )
    out = tmp_path / "p"
    with pytest.raises(GateFailed, match=r"not faster in int8 \(0.90 times as fast at 96x64\); nothing was written, --keep"):
        quantise_file(student, out, recipe, ["64x48", "96x64"], False, narrator)
    assert not list(tmp_path.iterdir())
    assert quantise_file(student, out, recipe, ["64x48", "96x64"], True, narrator)["times"]["96x64"]["speedup"] == 0.9
    assert out.exists()


@pytest.mark.parametrize("sidecar_text", ['{"kind": "nr", "frame_rate": 25.0, "metrics": {"nss": 2}}', "[", '"frame_rate"'])
def test_entries_valid_for_int8_are_carried_over(student, recipe, tmp_path, narrator, monkeypatch, sidecar_text):
    monkeypatch.setattr(quantize, "race", lambda *_: result_of(1.2, 1.0))
    model = tmp_path / student.name
    model.write_bytes(student.read_bytes())
    model.with_suffix(".json").write_text(sidecar_text, encoding="utf-8")
    quantise_file(model, tmp_path / "out", recipe, ["64x48"], False, narrator)
    sidecar = json.loads((tmp_path / "out" / f"{student.stem}.json").read_text(encoding="utf-8"))
    assert sidecar.get("frame_rate") == (25.0 if "nr" in sidecar_text else None) and "metrics" not in sidecar
    assert sidecar["quant_mode"] == "static"


def test_the_package_is_one_that_the_downstream_accepts_and_opens_in_int8(
    student, recipe, tiny_root, tmp_path, narrator, monkeypatch
):
    monkeypatch.setattr(quantize, "race", lambda *_: result_of(1.2, 1.0))
    before = {path: path.read_bytes() for path in student.parent.iterdir()}
    found = quantise_file(student, tmp_path, recipe, ["64x48"], False, narrator)
    model, int8 = tmp_path / "student_step.onnx", tmp_path / "student_step.int8.onnx"
    [entry] = validate(tmp_path / "student_step.int8.registry.json").values()
    assert entry["quant_mode"] == "static" and entry["int8_sha256"] == found["sha256"] and entry["license"] == "x"
    stated = {prop.key: prop.value for prop in onnx.load(int8).metadata_props}
    note = f"4 clips of dhf1k:{tiny_root.name}, every 4th of the first 24 frames, min-max"
    assert entry["quant_calibration_set"] == note == stated["quant_calibration_set"]
    assert entry["quant_accuracy_budget_plcc"] == 0.01 >= 1 - found["drift"]["plcc"]
    assert model.read_bytes() == student.read_bytes() and c_opens(model) == int8 and c_opens(int8) == int8
    x = np.random.default_rng(0).standard_normal((1, 3, 48, 64), np.float32)
    assert not np.array_equal(tuner(model, x), tuner(c_opens(model), x))  # callers without the loader get what they name
    assert before == {path: path.read_bytes() for path in student.parent.iterdir()}
    int8.unlink()
    with pytest.raises(AssertionError):
        c_opens(model)  # why the files are a package, and stay together


def test_maps_that_differ_too_much_leave_no_file_unless_they_are_kept(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr(quantize, "race", lambda *_: result_of(1.2, 1.0))
    monkeypatch.setattr(quantize, "drift", lambda *_: Drift(24, 0.5, 0.1, 0.9712))
    with pytest.raises(GateFailed, match=r"not the same in int8 \(the maps correlate by 0.9712, at least 0.99 is required\)"):
        quantise_file(student, tmp_path / "p", recipe, ["64x48"], False, narrator)
    assert not list(tmp_path.iterdir())
    quantise_file(student, tmp_path / "p", recipe, ["64x48"], True, narrator)
    [entry] = validate(tmp_path / "p" / "student_step.int8.registry.json").values()
    assert entry["quant_accuracy_budget_plcc"] == 0.03


def test_a_graph_refused_by_the_gate_leaves_no_file(student, recipe, tmp_path, narrator, monkeypatch):
    monkeypatch.setattr("distill.export.verification.MAX_BYTES", 10)
    with pytest.raises(GateFailed, match=r"in int8 is refused: .* more than the 10"):
        quantise_file(student, tmp_path / "p", recipe, [], False, narrator)
    assert not list(tmp_path.iterdir())


def test_clips_that_calibrate_are_never_those_that_compare(recipe):
    clips = list(open_corpus("dhf1k", recipe.corpus.root, track=Narrator(quiet=True).track, options=recipe.corpus).clips)
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


def test_wrong_input_is_a_one_line_error(student, recipe, tiny_root, golden, tmp_path, narrator):
    for folder in (student, student.parent):
        with pytest.raises(UsageError, match="name a folder, and another one than the model"):
            quantise_file(student, folder, recipe, [], False, narrator)
    with pytest.raises(UsageError, match="quantised already"):
        quantise_file(golden / "scanner" / "ok_qdq.onnx", tmp_path / "o", recipe, [], False, narrator)
    result = invoke("quantize", str(student))
    assert result.returncode == 2 and "which clips? give the corpus's folder with --root" in result.stderr
    result = invoke("quantize", "none.onnx", "--root", str(tiny_root))
    assert result.returncode == 2 and "no model at none.onnx" in result.stderr


def test_the_command_writes_and_reports(student, tiny_root, tmp_path):
    out = tmp_path / "p"
    result = distill("quantize", str(student), "--root", str(tiny_root), "-o", str(out), "--size", "64x48", "--keep", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "times as fast, faster in" in result.stdout and "held-out clips" in result.stdout
    assert {str(file) for file in out.iterdir()} == set(result.stdout.splitlines()[-4:])

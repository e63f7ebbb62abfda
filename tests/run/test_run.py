"""A small run from end to end: the files it writes, that it resumes, and that a kill costs only time."""

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock

from distill.opallowlist import check
from distill.recipe.files import load_recipe
from distill.run.files import write_together
from tests.downstream import validate
from tests.helpers import TINY, distill, invoke, make_clip, running
from tests.reporting.page import faults

SETS = [part for override in TINY for part in ("--set", override)]
# Labelling and training long enough to be killed in the middle.
SLOW = [*SETS, "--set", "synthetic.frames=60", "--set", "synthetic.clips=6", "--set", "train.steps=24"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "one"
    result = distill("run", "--out", path, *SETS)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 9 and max(map(len, lines[:-2])) <= 100, result.stdout
    assert "centred Gaussian" in lines[0] and "gate passed; parity with PyTorch" in result.stdout
    assert re.search(r"on one thread: [\d.]+ at 640x360, [\d.]+ at 1920x1080", " ".join(lines)), result.stdout
    assert "(at most 1e-05)" in result.stdout and "; 1 held-out clip" in result.stdout
    assert lines[-2] == f"report: {path}/report.html" and lines[-1].startswith("next: distill predict ")
    predicted = invoke(*shlex.split(lines[-1])[2:], cwd=path.parent)  # as printed
    assert predicted.returncode == 0 and predicted.stdout.endswith("_saliency.mp4\n"), predicted.stderr
    return path


def test_a_run_writes_all_its_files(finished):
    for name in ("recipe.toml", "manifest.json", "metrics.jsonl", "metrics.json", "report.html", "checkpoints/best.pt"):
        assert (finished / name).stat().st_size > 0, name
    names = {p.name for p in (finished / "export").iterdir()}
    assert names == {
        *("student.onnx", "student_step.onnx", "student.json", "student_step.json"),
        *("student.md", "student.registry.json", "student.parity.json", "student.toml"),
    }  # fmt: skip
    assert len(list((finished / "labels").glob("*.npy"))) == 5
    assert not list(finished.rglob(".*.tmp*"))


def test_the_files_ship_with_proof_and_provenance(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for mode, suffix in (("image", ""), ("step", "_step")):
        path = finished / "export" / f"student{suffix}.onnx"
        assert check(path, contract=f"saliency-{mode}").ok
        props = {p.key: p.value for p in onnx.load(path).metadata_props}
        assert {"license", "training_corpus", "teacher", "frame_rate", "git_revision", "metrics", "gate_tau_seconds"} <= set(
            props
        )
        assert props["license"] == "BSD-2-Clause-Patent" and props["frame_rate"] == "24"
        assert json.loads(props["metrics"])[mode]["nss"] == pytest.approx(metrics["predictors"][mode]["nss"], abs=1e-3)
        assert str(finished).encode() not in path.read_bytes()
    parity = json.loads((finished / "export" / "student.parity.json").read_text())
    assert max(parity["image_max_abs"], parity["step_max_abs"], parity["zero_state_max_abs"]) <= 1e-5


def test_the_sidecar_is_what_the_downstream_parses(finished):
    """Its C side takes the first textual occurrence of a key."""
    text = (finished / "export" / "student.json").read_text()
    for key, value in (
        ("kind", "nr"),
        ("name", "vmaf_tiny_student"),
        ("input_name", "input"),
        ("output_name", "saliency_map"),
        ("quant_mode", "fp32"),
    ):
        assert re.search(rf'"{key}":\s*"([^"]*)"', text).group(1) == value
    assert re.search(r'"onnx_opset":\s*(\d+)', text).group(1) == "17"


def test_the_registry_entries_are_what_the_downstreams_tests_accept(finished):
    entries = validate(finished / "export" / "student.registry.json")
    assert set(entries) == {"student", "student_step"} and all(entry["quant_mode"] == "fp32" for entry in entries.values())


def test_stamping_the_metrics_changes_no_node_and_no_weight(finished):
    from distill.export.graph import step_graph
    from distill.reporting.provenance import load_student

    student, _ = load_student(finished / "checkpoints" / "best.pt", load_recipe(finished / "recipe.toml"))
    fresh, shipped = step_graph(student, 24.0, {}), onnx.load(finished / "export" / "student_step.onnx")
    assert fresh.graph.SerializeToString(deterministic=True) == shipped.graph.SerializeToString(deterministic=True)


def test_the_report_needs_no_other_file(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not faults(page)
    for wanted in (
        "centred Gaussian",
        "mean training map",
        "teacher",
        "student, step file",
        "data:image/jpeg;base64",
        "data:image/webp;base64",
        "<svg",
        "says little about real video",
    ):
        assert wanted in page, wanted


def test_running_again_does_nothing_and_another_configuration_is_refused(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    again = distill("run", "--out", finished, *SETS)
    assert again.returncode == 0 and again.stderr.count("up to date") == 9
    same = distill("run", finished / "recipe.toml", "--out", finished)  # the resolved recipe is the run
    assert same.returncode == 0
    other = distill("run", "--out", finished, *SETS, "--set", "train.lr=0.5")
    assert other.returncode == 2 and "train.lr: 0.003 -> 0.5" in other.stderr
    assert f"another directory: --out {finished}-2 --from {finished} takes over what agrees" in other.stderr
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_in_use_by_another_process_is_refused(finished):
    with FileLock(finished / ".lock"):
        result = distill("run", "--out", finished, *SETS)
    assert result.returncode == 2 and "another process is working in" in result.stderr


def test_a_stage_that_lost_a_file_runs_again(finished):
    (finished / "labels" / "003.npy").unlink()
    (finished / "export" / "student.onnx").write_bytes(b"x")  # damaged, not only missing
    assert distill("run", "--out", finished, *SETS).returncode == 0
    assert check(finished / "export" / "student.onnx").ok and (finished / "labels" / "003.npy").exists()
    props = {p.key: p.value for p in onnx.load(finished / "export" / "student.onnx").metadata_props}
    assert "nss" in props["metrics"]  # and what follows it: the file carries its scores again


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("checkpoints/best.pt", 0, "best.pt is not as train left it"),
        ("checkpoints/best.pt", 300, "best.pt is not as train left it"),
        ("labels/store.json", 9, "store.json cannot be read"),
        ("recipe.toml", 0, "recipe.toml is not as the run wrote it"),  # what is left is TOML, of other settings
    ],
)
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, name, size, message):
    shutil.copytree(finished, tmp_path / "run")
    os.truncate(next((tmp_path / "run").glob(name)), size)
    result = invoke("report", tmp_path / "run", "--quiet")
    assert result.returncode == 2 and message in result.stderr and "internal" not in result.stderr, result.stderr


def test_a_run_keeps_its_recipe_when_the_file_is_lost_or_cut_off(finished, tmp_path):
    shutil.copytree(finished, run := tmp_path / "run")
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    cut = text.index("[train]") + 4
    os.truncate(run / "recipe.toml", cut)
    for _ in range(2):
        again = invoke("run", run)
        assert again.returncode == 0 and again.stderr.count("up to date") == 9, again.stderr
        assert (run / "recipe.toml").read_text(encoding="utf-8") == text
        (run / "recipe.toml").unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["recipe"]  # an earlier version
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "recipe.toml").write_text(text[:cut], encoding="utf-8")
    result = invoke("run", run)
    assert result.returncode == 2 and f"restore it, or start over in another directory: --out {run}-2" in result.stderr


def test_a_run_takes_over_what_agrees_from_another_one(finished, tmp_path):
    run = tmp_path / "run"
    plan = json.loads(invoke("run", "--from", finished, "--out", run, "--set", "train.steps=13", "--dry-run", "--json").stdout)
    assert [row["stage"] for row in plan["plan"] if row["state"] == "take over"] == ["frames", "teach", "label"]
    for _ in range(2):  # killed before it noted what it took, and started again
        result = invoke("label", "--from", finished, "--out", run, "--set", "train.steps=13")
        assert result.returncode == 0, result.stderr
        assert all(f"{stage}: taken from {finished}" in result.stderr for stage in ("frames", "teach", "label"))
        assert f"corpus: not taken from {finished}: a synthetic corpus lies in its own run" in result.stderr
        stages = json.loads((run / "manifest.json").read_text())["stages"]
        assert stages["label"]["from"] == str(finished) and len(stages["frames"]["outputs"]) == 10
        for name in ("labels/003.npy", "frames/003.frames.npy"):
            assert (run / name).samefile(finished / name), name
        assert not (run / "labels/store.json").samefile(finished / "labels/store.json")
        (run / "manifest.json").write_text(json.dumps({"schema": 2, "created": "", "stages": {}}))
    again = invoke("label", run)
    assert again.returncode == 0 and "5 of 5 clips are in the store" in again.stderr
    other = invoke(
        "train", "--from", finished, "--out", tmp_path / "other", "--set", "label.overlap=0.5", "--set", "synthetic.seed=8"
    )
    assert f"frames: not taken from {finished}: synthetic.seed is 8 here and 7 there" in other.stderr, other.stderr


def test_frames_are_taken_where_only_the_teacher_is_another_one(finished, tmp_path):
    maps = ["--from", finished, "--out", tmp_path / "run", "--teacher", "maps", "--maps", finished / "labels"]
    plan = json.loads(invoke("run", *maps, "--dry-run", "--json").stdout)["plan"]
    assert [row["stage"] for row in plan if row["state"] == "take over"] == ["frames"]
    result = invoke("label", *maps)
    assert result.returncode == 0 and f"frames: taken from {finished}\n" in result.stderr, result.stderr
    assert f"label: not taken from {finished}: teacher.name is 'maps' here and 'visage' there" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "none", "--out", "x"], "--from none holds no run; give the folder of one"),
        (["--from", "RUN"], "starts another run; give its directory with --out"),
        (["--from", "RUN", "--out", "RUN"], "is the run itself"),
    ],
)
def test_a_run_that_gives_nothing_is_refused(finished, tmp_path, arguments, message):
    result = invoke("run", *(finished if a == "RUN" else a for a in arguments), cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def test_out_alone_takes_the_recipe_of_the_run_there(finished):
    for verb in ("run", "eval", "report"):
        again = invoke(verb, "-o", finished)
        assert again.returncode == 0 and again.stderr.count("up to date") >= 8, again.stderr


@pytest.mark.parametrize("left", [None, "", '{"schema": 2, "created": "x", "stages": {"corpus": {"fingerprint": 1}}}'])
def test_a_run_that_lost_its_manifest_is_done_again_from_what_stands(finished, tmp_path, left):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "manifest.json").unlink()
    if left is not None:
        (run / "manifest.json").write_text(left, encoding="utf-8")
    labels = {path: path.stat().st_mtime_ns for path in run.glob("labels/*.npy")}
    other = invoke("run", "--out", run, "--set", "run.seed=7", "--quiet")
    assert other.returncode == 2 and "holds a run with another configuration (run.seed" in other.stderr
    result = distill("label", run)
    assert result.returncode == 0 and "manifest.json was lost or damaged: all stages are done again" in result.stderr
    assert "5 of 5 clips are in the store" in result.stderr and labels == {path: path.stat().st_mtime_ns for path in labels}
    assert {"rebuilt", "stages"} <= json.loads((run / "manifest.json").read_text(encoding="utf-8")).keys()


def test_a_folder_with_anything_else_in_it_is_no_run(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "manifest.json").unlink()
    (run / "thesis.tex").touch()
    for force in ([], ["--force"]):
        result = invoke("run", "--out", run, *force)
        assert result.returncode == 2 and "is not empty and holds no run" in result.stderr and (run / "recipe.toml").exists()


@pytest.mark.parametrize("call", [1, 2, 3])
def test_files_that_belong_together_are_all_complete_before_one_is_named(tmp_path, monkeypatch, call):
    old, new = ({tmp_path / name: f"{age} {name}".encode() for name in ("a.onnx", "a_step.onnx")} for age in ("old", "new"))
    write_together(old)
    calls, fsync = [], os.fsync

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.EIO, "the disk fails")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk fails") if call < 3 else contextlib.nullcontext():
        write_together(new)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == (old if call < 3 else new)


def test_an_export_that_fails_between_its_files_leaves_the_old_pair(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, run := tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    for stage in ("export", "eval", "report"):
        del manifest["stages"][stage]
    (run / "manifest.json").write_text(json.dumps(manifest))
    pair = {run / "export" / "student.onnx": b"old image", run / "export" / "student_step.onnx": b"old step"}
    write_together(pair)
    write = Path.write_bytes

    def fail(path, data):
        if "student_step" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    result = invoke("export", "--out", run, *SETS)
    assert result.returncode == 2 and "the disk is full" in result.stderr, result.stderr
    assert {path: path.read_bytes() for path in pair} == pair and not list(run.rglob(".*.tmp*"))


def as_an_earlier_version_left_it(run, target, *unfinished):
    """A copy of a run: schema 1, some stages not done, and resume files without a format."""
    shutil.copytree(run, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["schema"] = 1
    for stage in unfinished:
        del manifest["stages"][stage]
    (target / "manifest.json").write_text(json.dumps(manifest))
    last = torch.load(target / "checkpoints" / "last.pt", weights_only=True)
    assert last.pop("format") == 2
    torch.save(last, target / "checkpoints" / "last.pt")
    return target


def test_a_finished_run_of_an_earlier_version_is_continued(finished, tmp_path):
    whole = as_an_earlier_version_left_it(finished, tmp_path / "whole")
    again = distill("run", "--out", whole, *SETS)
    assert again.returncode == 0 and again.stderr.count("up to date") == 9, again.stderr
    unreported = as_an_earlier_version_left_it(finished, tmp_path / "part", "export", "eval", "report")
    again = distill("run", "--out", unreported, *SETS)
    assert again.returncode == 0 and again.stderr.count("up to date") == 6, again.stderr
    assert (unreported / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


def test_a_training_that_an_earlier_version_left_half_done_is_refused_at_the_start(finished, tmp_path):
    run = as_an_earlier_version_left_it(finished, tmp_path / "run", "label", "train", "export", "eval", "report")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock"}
    again = distill("run", "--out", run, *SETS)
    assert again.returncode == 2 and "up to date" not in again.stderr
    last = again.stderr.strip().splitlines()[-1]
    assert "checkpoints/last.pt was written by another version" in last and "--force" in last
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.name != ".lock"}
    labelled = distill("label", "--out", run, *SETS)  # no training is needed for that
    assert labelled.returncode == 0 and "label: 120 frames in" not in labelled.stderr, labelled.stderr
    (run / "checkpoints" / "last.pt").rename(run / "checkpoints" / "visage_last.pt")
    (run / "checkpoints" / "visage.pt").unlink()
    again = distill("teach", "--out", run, *SETS)
    assert again.returncode == 2 and "checkpoints/visage_last.pt was written by another version" in again.stderr


def test_a_run_of_a_newer_version_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["schema"] == 2
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"schema": 3}))
    result = distill("run", "--out", tmp_path / "run", *SETS)
    assert result.returncode == 2 and "a newer version of saliency-distill made the run in" in result.stderr


def test_input_that_changed_under_a_run_is_noticed(tmp_path):
    from tests.helpers import make_clip

    for i in (1, 2, 3):
        make_clip(tmp_path / "c", f"00{i}", frames=8, annotated=8)
    groups = tmp_path / "groups.csv"
    groups.write_text("001,a\n002,b\n", encoding="utf-8")
    call = [
        "train",
        "--corpus",
        "dhf1k",
        "--root",
        tmp_path / "c",
        "--out",
        tmp_path / "r",
        *SETS,
        "--set",
        f"corpus.groups={groups}",
    ]
    assert distill(*call).returncode == 0
    groups.write_text("001,a\n002,a\n", encoding="utf-8")
    result = distill(*call)
    assert result.returncode == 2 and "groups.csv changed since" in result.stderr
    groups.write_text("001,a\n002,b\n", encoding="utf-8")
    make_clip(tmp_path / "c", "004", frames=8, annotated=8)
    result = distill(*call)
    assert result.returncode == 2 and "the corpus at" in result.stderr and "--force" in result.stderr


def test_the_advice_of_an_early_error_can_be_followed(tmp_path):
    from tests.helpers import make_clip

    for i in (1, 2, 3):
        make_clip(tmp_path / "c", f"00{i}", frames=8, annotated=8)
    (tmp_path / "c/annotation/0002/fixation/0004.png").unlink()
    call = ["train", "--corpus", "dhf1k", "--root", tmp_path / "c", "--out", tmp_path / "r", *SETS]
    advice = re.search(r"--set corpus.skip=002", distill(*call).stderr)
    assert advice and distill(*call, *advice[0].split()).returncode == 0


def test_eval_of_a_file_agrees_with_the_run(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    held_out = json.dumps(json.loads((finished / "corpus.json").read_text())["val"])
    result = distill(
        "eval", finished / "export" / "student_step.onnx", "--corpus", "synthetic", "--root", finished / "corpus",
        "--set", f"corpus.val_clips={held_out}", "--json", "--quiet",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["predictors"]["student_step.onnx"] == metrics["predictors"]["step"]


@pytest.mark.parametrize("out", ["o.mp4", "o.avi", "o.npy", "maps"])
def test_predict_writes_pictures_and_maps(finished, tmp_path, out):
    from distill.corpora.video import probe

    video = finished / "corpus" / "video" / "001.avi"
    result = invoke("predict", video, "--model", finished / "export" / "student_step.onnx", "--out", tmp_path / out)
    assert result.returncode == 0, result.stderr
    if out.endswith("npy"):
        maps = np.load(tmp_path / out)
        assert maps.shape == (24, 64, 96) and maps.min() >= 0 and maps.max() <= 1
    elif out == "maps":
        assert len(list((tmp_path / out).glob("*.png"))) == 24
    else:
        assert probe(tmp_path / out)[:3] == (24, 64, 96)


def test_predict_does_not_overwrite_its_input_or_a_foreign_folder(finished, tmp_path):
    video, model = tmp_path / "v.avi", finished / "export" / "student_step.onnx"
    shutil.copy(finished / "corpus" / "video" / "001.avi", video)
    before = video.read_bytes()
    assert "is the same file as VIDEO" in invoke("predict", video, "--model", model, "--out", video).stderr
    assert "holds other files" in invoke("predict", video, "--model", model, "--out", finished).stderr
    assert video.read_bytes() == before and not list(finished.glob("*.png"))
    (tmp_path / "thesis").write_text("long")
    assert "thesis is a file" in invoke("predict", video, "--model", model, "--out", tmp_path / "thesis").stderr
    assert (tmp_path / "thesis").read_text() == "long"


def test_a_runs_own_recipe_is_that_run(finished):
    result = distill("run", finished / "recipe.toml")
    assert result.returncode == 0 and result.stderr.count("up to date") == 9
    result = invoke("run", finished / "labels")
    assert result.returncode == 2 and "is a folder and no run; a corpus is named as `distill run --root " in result.stderr


def test_a_run_is_scored_on_another_corpus(finished, tmp_path):
    manifest, other = (finished / "manifest.json").read_bytes(), make_clip(tmp_path / "other")
    for run in ([finished], ["--out", finished], [finished / "recipe.toml"]):
        result = invoke("eval", *run, "--root", other, "--json")
        assert result.returncode == 0, result.stderr
        scored = json.loads(result.stdout)
        assert scored["corpus"] == "dhf1k:other" and {"student_step.onnx", "student.onnx"} < scored["predictors"].keys()
    assert (finished / "manifest.json").read_bytes() == manifest
    result = invoke("eval", "--root", other, "--out", tmp_path / "new")
    assert result.returncode == 2 and "holds no run; leave --out out" in result.stderr and not (tmp_path / "new").exists()


def test_a_teacher_that_needs_gaze_is_refused_before_anything_is_read(tmp_path):
    make_clip(tmp_path / "films", annotated=0)
    result = invoke("run", "--root", tmp_path / "films" / "video", "--dry-run")
    assert result.returncode == 2 and "no clip of videos has any; choose one that comes trained" in result.stderr


def test_a_dry_run_says_what_would_run_again_after_a_file_was_lost(finished):
    lost = finished / "checkpoints" / "best.pt"
    content = lost.read_bytes()
    lost.unlink()
    rows = json.loads(invoke("run", finished / "recipe.toml", "--dry-run", "--json").stdout)["plan"]
    lost.write_bytes(content)
    assert [row["stage"] for row in rows if row["state"] == "to do"] == ["train", "export", "eval", "report"]


def test_inspect_of_a_refused_model_fails(golden):
    result = invoke("inspect", golden / "scanner" / "bad_op_Celu.onnx")
    assert result.returncode == 1 and "refused" in result.stdout


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    "name", ["checkpoints/best.pt", "export/student.onnx", "frames/002.frames.npy", "labels/002.npy", "metrics.json"]
)
def test_inspect_names_the_damaged_files_of_a_run(finished, tmp_path, name, manifest):
    shutil.copytree(finished, run := tmp_path / "a run")
    if not manifest:
        (run / "manifest.json").unlink()
    assert invoke("inspect", run).returncode == 0
    os.truncate(run / name, 100)
    result = invoke("inspect", run, "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["damaged"] == [
        f"{name} is changed" if manifest else f"{name} does not open"
    ]
    assert name in result.stderr and f"distill run '{run}'" in result.stderr


def test_bench_and_inspect_read_the_files_of_a_run(finished):
    model = finished / "export" / "student.onnx"
    rows = json.loads(distill("bench", model, model, "--size", "64x48", "--rounds", "2", "--json").stdout)["results"]
    assert len(rows) == 2 and all(row["median_ms"] > 0 for row in rows)
    assert "--size must be WIDTHxHEIGHT" in invoke("bench", model, "--size", "64").stderr
    for path, kind in (
        (finished, "run"),
        (finished / "labels", "soft-label store"),
        (finished / "corpus", "corpus, DHF1K's layout"),
        (model, "ONNX model"),
    ):
        assert json.loads(invoke("inspect", path, "--json").stdout)["kind"] == kind


# --- killed and continued --------------------------------------------------------------------------------------------


def start(path):
    return running(sys.executable, "-m", "distill", "run", "--out", path, *SLOW, env={**os.environ, "NO_COLOR": "1"})


def wait_for(process, condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)


def steps(path):
    log = path / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_kill_9_in_labelling_and_in_training_changes_no_number(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(whole) as process:
        _, narration = process.communicate(timeout=240)
    assert process.returncode == 0, narration

    with start(killed) as process:
        wait_for(process, lambda: len(list((killed / "labels").glob("*.npy"))) >= 1)
        process.kill()
    labelled = len(list((killed / "labels").glob("*.npy")))
    assert 1 <= labelled < 6 and "label" not in json.loads((killed / "manifest.json").read_text())["stages"]

    with start(killed) as process:
        wait_for(process, lambda: steps(killed) >= 10)
        process.kill()
    assert steps(killed) < 24

    with start(killed) as process:
        _, narration = process.communicate(timeout=240)
    assert process.returncode == 0, narration
    assert re.search(r"continuing at step \d+ of 24", narration)
    for name in ("metrics.json", "metrics.jsonl", "export/student_step.onnx", "export/student.onnx", "labels/006.npy"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(killed.rglob(".*.tmp*"))


def test_ctrl_c_saves_and_exits_130_with_the_command_that_resumes(tmp_path):
    with start(tmp_path / "run") as process:
        wait_for(process, lambda: steps(tmp_path / "run") >= 5)
        process.send_signal(signal.SIGINT)
        _, narration = process.communicate(timeout=60)
    assert process.returncode == 130, narration
    last = narration.strip().splitlines()[-1]
    assert "interrupted: training, after step" in last and f"distill run --out {tmp_path / 'run'}" in last
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()

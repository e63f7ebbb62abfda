"""What changed since a run read or wrote it: same-size edits, damaged caches, copies without their time stamps."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.recipe.files import load_recipe
from distill.run import changes, engine, plan
from distill.run.directory import RunDir
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from tests.corpora import writers
from tests.helpers import TINY


def touch(path: Path) -> None:
    """Gives a file another time of change, as an edit or a copy does."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))


def edit(path: Path, at: int = -1) -> None:
    """Changes one byte, and not the size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    touch(path)


def test_a_file_has_changed_with_its_content_not_with_its_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    record = json.loads(json.dumps(changes.record_of(path)))
    assert not changes.has_changed(path, record) and changes.is_current(path, record)
    touch(path)
    assert not changes.has_changed(path, record) and not changes.is_current(path, record)
    edit(path)
    assert changes.has_changed(path, record) and changes.has_changed(tmp_path / "b", record)
    assert not changes.has_changed(path, 3) and changes.has_changed(path, 4)  # the size, as an earlier version recorded
    path.write_bytes(b"three")
    assert changes.has_changed(path, record)


@pytest.fixture
def recipe(tmp_path):
    """Three clips with fixation and density maps, a table of gaze, labels for all of them, and a file of groups."""
    for number in (1, 2, 3):
        writers.official(tmp_path / "dhf1k", number)
    writers.images(tmp_path / "images")
    for n in (1, 2, 3):
        for path, frames in ((tmp_path / "maps/dhf1k", 6), (tmp_path / "maps/images/images", 1)):
            path.mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(n).integers(0, 256, (frames, 6, 8), np.uint8)
            np.savez(path / f"{n:03d}.npz", maps=values, peak=np.ones(frames, np.float32))
    (tmp_path / "groups.csv").write_text("dhf1k.001,a\ndhf1k.002,b\n", encoding="utf-8")
    values = {
        "corpus.name": "dhf1k,images", "corpus.root": [str(tmp_path / "dhf1k"), str(tmp_path / "images")], "teacher.name": "maps",
        "teacher.maps": str(tmp_path / "maps"), "corpus.groups": str(tmp_path / "groups.csv"),
    }  # fmt: skip
    tiny = [override for override in TINY if not override.startswith("synthetic")]
    return load_recipe(None, [*tiny, *(f"{key}={json.dumps(value)}" for key, value in values.items())])


INPUTS = {
    "groups.csv": "the groups in",
    "maps/dhf1k/002.npz": "the maps in",
    "images/fixations.csv": "the corpus at",
    "images/img/002.jpg": "the corpus at",
    "dhf1k/video/003.avi": "the corpus at",
    "dhf1k/annotation/0002/fixation/0004.png": "the corpus at",
    "dhf1k/annotation/0002/maps/0004.png": "the corpus at",
}


def test_one_byte_of_any_input_is_noticed_and_a_copy_is_not_a_change(tmp_path, recipe, narrator, monkeypatch):
    with RunDir.create(tmp_path / "run", recipe) as run:
        run.check_inputs(plan.inputs(recipe), narrator)
        edit(tmp_path / "groups.csv", 8)
        run.check_inputs(plan.inputs(recipe), narrator)  # no stage has used it yet
        run.finish("corpus", "key", [], 0.0, {})
        for name, what in INPUTS.items():
            content, state = (tmp_path / name).read_bytes(), (tmp_path / name).stat()
            edit(tmp_path / name, 8)
            with pytest.raises(
                UsageError, match=f"^{what} .*{name.split('/')[0]}.* changed since .* read it; choose another --out"
            ):
                run.check_inputs(plan.inputs(recipe), narrator)
            (tmp_path / name).write_bytes(content)
            os.utime(tmp_path / name, ns=(state.st_atime_ns, state.st_mtime_ns + 5))
            run.check_inputs(plan.inputs(recipe), narrator)
        for path in changes.files_in([tmp_path / "dhf1k", tmp_path / "images", tmp_path / "maps"]):
            touch(Path(path))
        run.check_inputs(plan.inputs(recipe), narrator)
        monkeypatch.setattr(changes, "fingerprint_of_contents", lambda files: pytest.fail("was read again"))
        run.check_inputs(plan.inputs(recipe), narrator)


def test_the_inputs_of_a_teacher_are_its_weights_and_its_calibration(tmp_path, recipe):
    teacher = dataclasses.replace(recipe.teacher, name="unisal", maps="", weights=("unisal=u.pth",), calibration="c.json")
    inputs = plan.inputs(dataclasses.replace(recipe, teacher=teacher))
    assert inputs["the weights unisal=u.pth"] == [Path("u.pth")] and inputs["the calibration in c.json"] == [Path("c.json")]


@pytest.fixture
def labelled(tmp_path, recipe, narrator):
    """A run that has labelled its clips."""
    with RunDir.create(tmp_path / "run", recipe) as run:
        engine.carry_out(run, recipe, narrator, until="label")
    return tmp_path / "run"


def carry_on(path, recipe, capsys):
    """Continues a run to its labels, and returns what it said."""
    capsys.readouterr()
    with RunDir.create(path, recipe) as run:
        engine.carry_out(run, recipe, Narrator(), until="label")
    return capsys.readouterr().err


def test_damaged_caches_are_made_again_and_copies_are_used(tmp_path, recipe, labelled, capsys):
    whole = {path: path.read_bytes() for path in labelled.rglob("*.npy")}
    frames, truth, labels, empty = (
        labelled / name
        for name in (
            "frames/dhf1k.001.frames.npy",
            "frames/dhf1k.002.truth.npy",
            "labels/dhf1k.002.npy",
            "labels/images.003.npy",
        )
    )
    frames.write_bytes(frames.read_bytes()[:-100])
    edit(truth)
    edit(labels, 150)
    empty.write_bytes(b"")
    said = carry_on(labelled, recipe, capsys)
    for path in (frames, truth, labels, empty):
        stage = {"labels": "label"}.get(path.parent.name, path.parent.name)
        assert f"{stage}: {path.relative_to(labelled)} is not as it was left, and is made again" in said
    assert said.count("made again") == 4 and "corpus: up to date" in said
    assert whole == {path: path.read_bytes() for path in labelled.rglob("*.npy")}

    copy = tmp_path / "copy"
    shutil.copytree(labelled, copy, copy_function=shutil.copyfile)  # without the times of change
    assert carry_on(copy, recipe, capsys).count("up to date") == 5
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != ".lock"}
    assert carry_on(copy, recipe, capsys).count("up to date") == 5
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != ".lock"}


def test_damaged_caches_of_an_unfinished_stage_are_made_again(recipe, labelled, capsys):
    whole = {path: path.read_bytes() for path in labelled.rglob("*.npy")}
    manifest = json.loads((labelled / "manifest.json").read_text(encoding="utf-8"))
    del manifest["stages"]["frames"], manifest["stages"]["label"]
    (labelled / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    names = ("frames/dhf1k.001.truth.npy", "frames/dhf1k.002.frames.npy", "labels/dhf1k.003.npy")
    truncated, shorter, other = (labelled / name for name in names)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    np.save(shorter, np.load(shorter)[:1])
    np.save(other, np.load(other)[:4])
    assert "label: 5 of 6 clips are in the store" in carry_on(labelled, recipe, capsys)
    assert whole == {path: path.read_bytes() for path in labelled.rglob("*.npy")}


def test_a_changed_checkpoint_is_named_and_kept(tmp_path, recipe, narrator):
    with RunDir.create(tmp_path / "run", recipe) as run:
        best = run / "checkpoints" / "best.pt"
        best.parent.mkdir()
        best.write_bytes(b"weights")
        run.finish("train", "key", ["checkpoints/best.pt"], 0.0, {})
        edit(best)
        assert not run.is_done("train", "key") and run.discard_changed("train", "another key") == []
        with pytest.raises(UsageError, match=r"best\.pt is not as train left it; restore it, or remove it to train again"):
            run.discard_changed("train", "key")
        best.unlink()
        assert run.discard_changed("train", "key") == []


def test_a_run_of_an_earlier_version_is_recorded_anew(recipe, labelled, capsys):
    path = labelled / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["inputs"] = dict.fromkeys(manifest["inputs"], "0123456789abcdef")
    for stage in manifest["stages"].values():
        stage["outputs"] = {name: record["bytes"] for name, record in stage["outputs"].items()}
    recorded, old = path.read_text(encoding="utf-8"), json.dumps(manifest)
    path.write_text(old, encoding="utf-8")
    assert carry_on(labelled, recipe, capsys).count("up to date") == 5
    assert json.loads(path.read_text(encoding="utf-8"))["stages"] == json.loads(recorded)["stages"]

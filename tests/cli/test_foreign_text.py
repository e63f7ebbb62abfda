"""Every verb on files with hostile names: nothing that it prints or writes is markup, terminal control, HTML or a formula."""

import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from distill.cli.app import VERBS
from distill.cli.exits import run_command
from distill.corpora.video import write_video
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from tests.helpers import TINY, distill, invoke, make_clip, save_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")

EVIL = "=1+1 [red] [bold]\x1b]0;evil\x07\x1b[31m <img src=x> $x_{$ |a| \u202eb :smile: {x}"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
HTML = re.compile("<img src=x>")
TABLES, OTHERS = {"teach": "stage", "teachers": "catalogue"}, {"fetch", "convert", "calibrate"}
"""Verbs that are no commands of their own; and those below `teach` and `teachers`."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus whose clips and folder have hostile names, and a run on it, whose student has one too."""
    folder = tmp_path_factory.mktemp("evil")
    root, rng = folder / EVIL, np.random.default_rng(0)
    root.mkdir()
    with (root / "gaze.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["clip", "frame", "x", "y", "observer"])
        for name in (f"{EVIL}{i}" for i in range(4)):
            write_video(folder / "t.avi", 25.0, (64, 96), rng.integers(0, 255, (24, 64, 96, 3), np.uint8))
            (folder / "t.avi").rename(root / f"{name}.avi")
            table.writerows([name, t, *rng.integers(0, 60, 2), f"{EVIL}{who}"] for t in range(24) for who in range(3))
        table.writerow(["[/red]", 0, 1, 1, "o"])
    run = invoke("run", "--root", root, "--corpus", "gaze-table", "--out", folder / "run", *(f"--set={s}" for s in TINY))
    assert run.returncode == 0, run.stderr
    shutil.copy(folder / "run/export/student_step.onnx", folder / f"{EVIL}_step.onnx")
    shutil.copy(folder / "run/export/student.onnx", folder / f"{EVIL}.onnx")
    check(run)
    return folder


def check(result, *shows):
    for text in (result.stdout, result.stderr):
        assert not RAW.search(text), repr(text)
    assert "MarkupError" not in result.stderr and "internal error" not in result.stderr, result.stderr
    for text in shows:
        assert text in result.stdout + result.stderr


CLIP, MODEL = f"{EVIL}/{EVIL}0.avi", f"{EVIL}.onnx"
COMMANDS = {
    "run": ["run", "run"],
    "label": ["label", "run"],
    "train": ["train", "run"],
    "export": ["export", "run"],
    "report": ["report", "run"],
    "stage": ["teach", "run"],
    "eval": ["eval", MODEL, "--corpus", "gaze-table", "--root", EVIL, "--per-clip", "--csv", f"{EVIL}.csv"],
    "init": ["init", f"{EVIL}.init"],
    "predict": ["predict", CLIP, "-m", MODEL],
    "demo": ["demo", "-m", MODEL, "--save", f"{EVIL}.demo", "--runtime", f"{EVIL}.npm"],
    "bench": ["bench", MODEL, "--size", "32x32", "--rounds", "1"],
    "quantize": ["quantize", MODEL, "--root", EVIL, "--size", "64x32"],
    "variant": ["variant", MODEL, "--size", "64x48"],
    "luma": ["luma", MODEL, "--size", "64x48"],
    "encode": ["encode", CLIP, f"{EVIL}.mp4", "-m", MODEL, "--roi-out", f"{EVIL}.sh", "--format", "addroi"],
    "bd": ["bd", CLIP, "-m", MODEL, "--frames", "4", "--crf", "22,40", "--preset", "ultrafast", "--csv", f"{EVIL}.bd.csv", "-o", "c.png"],
    "inspect": ["inspect", EVIL],
    "doctor": ["doctor"],
    "catalogue": ["teachers", EVIL],
    "fetch": ["teachers", "fetch", EVIL],
    "convert": ["teach", "convert", MODEL, "-o", f"{EVIL}.safetensors"],
    "calibrate": ["teach", "calibrate", "run", "-o", f"{EVIL}.json"],
    "a sheet": ["inspect", EVIL, "--show", f"{EVIL}0", "-o", "sheet.png"],
    "a model": ["inspect", MODEL],
    "a run": ["inspect", "run"],
    "labels": ["inspect", "run/labels"],
    "no such clip": ["inspect", EVIL, "--show", f"{EVIL}9"],
    "no such option": ["predict", f"--{EVIL}"],
    "no such verb": [EVIL],
    "no such key": ["run", "--set", f"{EVIL}.x=1"],
}  # fmt: skip


def test_every_verb_is_here():
    assert {name for verbs in VERBS.values() for name in verbs} | {"stage", "catalogue", "fetch", "convert", "calibrate"} <= {
        *COMMANDS
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_no_verb_prints_or_writes_it_raw(made, name):
    plain, in_json = (invoke(*COMMANDS[name], *more, cwd=made) for more in ([], ["--json"]))
    check(plain)
    check(in_json)
    assert isinstance(json.loads(in_json.stdout), dict), "one object"
    for path in made.rglob("*"):
        if path.suffix in (".md", ".html", ".csv", ".json", ".toml", ".jsonl") and path.name != "gaze.csv":
            text = path.read_text(encoding="utf-8")
            assert not RAW.search(text), path
            assert path.suffix not in (".md", ".html") or not HTML.search(text), path
            assert path.suffix != ".csv" or not any(
                cell.startswith("=") for row in csv.reader(io.StringIO(text)) for cell in row
            )


def test_names_are_shown_whole(made, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # the folder's name is of any length
    shown = EVIL.encode("unicode_escape").decode("ascii")
    assert shown in invoke("inspect", made / EVIL, cwd=made).stdout
    assert "[/red]" in invoke("inspect", made / EVIL, cwd=made).stdout
    clips = json.loads(invoke("inspect", made / EVIL, "--json", cwd=made).stdout)["per_clip"]
    assert [clip["id"] for clip in clips] == [f"{EVIL}{i}" for i in range(4)], "JSON is exact"


def test_onnxruntime_prints_no_name_of_a_node(tmp_path):
    """In a process of its own: it writes to the file descriptor."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["m", "other"], ["c"], axis=1, name="\x1b[2Jnode"),
        helper.make_node("ReduceMean", ["c"], ["d"], axes=[1], keepdims=1),
        helper.make_node("Sigmoid", ["d"], ["saliency_map"]),
    ]
    save_model(tmp_path / "m.onnx", nodes, [numpy_helper.from_array(np.zeros((1, 1, 7, 7), np.float32), "other")])
    make_clip(tmp_path)
    result = distill("predict", "video/001.avi", "-m", "m.onnx", "-o", "o.npy", cwd=tmp_path)
    assert result.returncode == 2 and r"Name:'\x1b[2Jnode'" in result.stderr
    assert not RAW.search(result.stdout + result.stderr)


def test_live_bars_and_messages_are_literal():
    narrator, name = Narrator(), "Cats [dQw4w9WgXcQ] [/red] :smile: \x1b]0;evil\x07.mp4"
    file = io.StringIO()
    narrator.console = Console(file=file, force_terminal=True, width=300, markup=False, emoji=False, highlight=False)
    narrator.live = True
    with narrator.bar(name, 2) as bar:
        bar.advance(note=name)
    narrator.say(name)
    assert "\x1b]0" not in file.getvalue() and "\x07" not in file.getvalue()
    assert file.getvalue().count(r"Cats [dQw4w9WgXcQ] [/red] :smile: \x1b]0;evil\x07.mp4") >= 3


def test_a_traceback_is_literal_too(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise UsageError(f"no {EVIL}")

    monkeypatch.setattr("distill.cli.which_run.load_recipe", fail)
    monkeypatch.chdir(tmp_path)
    assert run_command(["--debug", "run"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and not RAW.search(err)

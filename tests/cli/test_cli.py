"""The command line as users run it: in a separate process."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli.options import RunOptions
from distill.cli.which_run import choose_run
from distill.run.machine.extras import how_to_install
from distill.run.progress import Narrator
from distill.students.release import release_model
from tests.helpers import distill, gaze_corpus, invoke, make_clip


def test_help_has_examples_and_imports_no_torch():
    code = (
        "import sys\nfrom distill.cli.app import app\n"
        "try: app(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'cv2', 'matplotlib', 'onnx'} & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for verb in (
        "run",
        "teach",
        "label",
        "train",
        "export",
        "eval",
        "report",
        "init",
        "predict",
        "demo",
        "bench",
        "inspect",
        "doctor",
        "teachers",
        "quantize",
        "variant",
        "luma",
        "encode",
        "bd",
    ):
        assert verb in result.stdout


def test_the_command_line_surface_is_frozen():
    """New settings belong in the recipe, not in flags."""
    import typer.main

    from distill.cli.app import app

    command = typer.main.get_command(app)
    groups = [command.commands[name] for name in ("teach", "teachers")]
    verbs = {name: verb for group in (command, *groups) for name, verb in group.commands.items() if verb not in groups}
    flags = {
        name: sorted(o for p in verb.params for o in p.opts if o.startswith("--") and o != "--help")
        for name, verb in verbs.items()
    }
    stage = [
        "--accept-licence",
        "--corpus",
        "--force",
        "--from",
        "--json",
        "--maps",
        "--out",
        "--quiet",
        "--root",
        "--set",
        "--teacher",
    ]
    assert flags == {
        "run": sorted([*stage, "--dry-run"]), "stage": stage, "label": stage, "train": stage, "export": stage, "report": stage,
        "eval": sorted([*stage, "--baseline", "--csv", "--per-clip", "--protocol"]), "init": ["--from", "--json", "--list", "--quiet"],
        "predict": ["--json", "--model", "--out", "--quiet", "--threads"],
        "demo": ["--json", "--model", "--open", "--port", "--quiet", "--runtime", "--save"],
        "bench": ["--against", "--json", "--quiet", "--rounds", "--size", "--threads"],
        "quantize": ["--corpus", "--json", "--keep", "--out", "--quiet", "--root", "--size"],
        "variant": ["--depth", "--input", "--json", "--matrix", "--out", "--output", "--quiet", "--range", "--size"],
        "luma": ["--json", "--out", "--quiet", "--size"],
        "encode": sorted([
            "--model", "--map", "--codec", "--crf", "--bitrate", "--preset", "--param", "--mapping", "--strength", "--block", "--prior",
            "--neutral", "--cuts", "--roi-out", "--format", "--gop", "--video-only", "--threads", "--json", "--quiet", "--two-pass",
            "--maxrate", "--bufsize", "--tune", "--profile", "--container",
        ]),
        "bd": sorted([
            "--model", "--corpus", "--root", "--clips", "--frames", "--start", "--jobs", "--measures", "--observers", "--strengths",
            "--rate-control", "--bitrate", "--codec", "--crf", "--preset", "--mapping", "--strength", "--block", "--prior", "--neutral",
            "--judge", "--out", "--csv", "--threads", "--json", "--quiet",
        ]),
        "inspect": ["--corpus", "--json", "--out", "--quiet", "--show"], "doctor": ["--json"],
        "catalogue": ["--json"], "fetch": ["--json", "--quiet", "--url"],
        "convert": ["--json", "--kind", "--out"], "calibrate": ["--json", "--out", "--quiet"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--corpus", "dhf1"], "unknown corpus 'dhf1'; did you mean 'dhf1k'?"),
        (["run", "--teacher", "visag"], "unknown teacher 'visag'; did you mean 'visage'?"),
        (["run", "--corpus", "dhf1k"], "needs --root"),
        (["run", "--corpus", "dhf1k", "--root", "nowhere"], "nowhere is not a folder"),
        (["run", "--corpus", "dhf1k", "--root", "empty"], "has no video/ folder"),
        (["run", "--teacher", "unisal+tsed"], "unknown teacher 'tsed'; did you mean 'tased'?"),
        (["run", "--teacher", "unisal"], "teacher unisal needs its weights: `distill teachers fetch unisal` puts"),
        (["run", "--teacher", "tased", "--set", "teacher.weights=none.pt"], "none.pt does not exist"),
        (
            ["run", "--teacher", "salfom", "--set", "teacher.weights=random"],
            "none stated); if you may use it, add --accept-licence salfom",
        ),
        (["run", "--accept-licence", "salfom"], "--accept-licence salfom: this run's teacher is visage"),
        (["teach", "--corpus", "synthetic", "--teacher", "visag"], "unknown teacher 'visag'; did you mean 'visage'?"),
        (["teach", "none.toml"], "no recipe at none.toml"),
        (["teach", "convert", "none.pth", "-o", "w.safetensors"], "none.pth does not exist"),
        (["teach", "calibrate", "empty", "-o", "c.json"], "empty is not a run with labels"),
        (["teachers", "unisol"], "unknown teacher 'unisol'; did you mean 'unisal'?"),
        (["run", "--teacher", "maps"], "needs --maps"),
        (["run", "--teacher", "maps", "--maps", "nowhere"], "nowhere is not a folder"),
        (["run", "--set", "train.epochs=3"], "unknown key 'train.epochs'"),
        (["run", "none.toml"], "no recipe at none.toml"),
        (["run", "--set", "run.device=cuda:99", "--out", "x"], "CUDA devices are visible"),
        (["run", "--out", "foreign"], "is not empty and holds no run"),
        (["run", "--out", "foreign", "--force"], "is not empty and holds no run"),
        (["run", "--out", "page", "--force"], "is not empty and holds no run"),
        (["eval", "none.onnx", "--root", "empty"], "no model at none.onnx"),
        (["predict", "none.mp4", "--model", "none.onnx", "--out", "o.mp4"], "no model at none.onnx"),
        (["bench", "none.onnx"], "no model at none.onnx"),
        (["luma", "none.onnx", "--size", "64x48"], "no model at none.onnx"),
        (["luma", "none.onnx"], "give it with --size"),
        (["variant", "none.onnx"], "no model at none.onnx"),
        (["inspect", "empty"], "is not a run directory"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious", encoding="utf-8")
    (tmp_path / "page" / "labels").mkdir(parents=True)
    (tmp_path / "page" / "manifest.json").write_text('{"name": "somebody else\'s"}', encoding="utf-8")
    (tmp_path / "page" / ".keep.tmp").write_text("mine", encoding="utf-8")
    if arguments[:3] == ["run", "--set", "run.device=cuda:99"]:
        arguments = [
            *arguments,
            *(f"--set={s}" for s in ("synthetic.clips=2", "synthetic.frames=4", "synthetic.height=32", "synthetic.width=64")),
        ]
    result = invoke(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("distill: ") and not result.stdout
    assert (tmp_path / "foreign" / "thesis.tex").read_text(encoding="utf-8") == "precious"
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    assert {p.name for p in (tmp_path / "page").iterdir()} == {"labels", "manifest.json", ".keep.tmp"}
    assert not (tmp_path / "runs").exists()


def test_a_broken_corpus_stops_before_training_and_in_json(tmp_path):
    make_clip(tmp_path / "c")
    (tmp_path / "c" / "annotation/0001/fixation/0002.png").unlink()
    result = invoke("run", "--corpus", "dhf1k", "--root", tmp_path / "c", "--json", "--out", tmp_path / "o", "--quiet")
    answer = json.loads(result.stdout)
    assert result.returncode == answer["exit_code"] == 2 and "0003.png where 0002.png should be" in answer["error"]
    assert not (tmp_path / "o" / "corpus.json").exists()


def test_a_student_that_cannot_ship_fails_in_seconds_with_exit_1(tmp_path):
    wide = ["--set", "student.widths=[64,96,160,256,256]", "--set", "student.state_channels=256"]
    result = invoke("run", "--out", tmp_path / "o", *wide)
    assert result.returncode == 1 and "more than the 2,000,000 of the contract" in result.stderr
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [".lock", "manifest.json", "recipe.toml"]


def test_init_writes_a_recipe_once(tmp_path):
    first, again = invoke("init", tmp_path), invoke("init", tmp_path)
    assert first.returncode == 0 and (tmp_path / "recipe.toml").read_text(encoding="utf-8").count("#") > 40
    assert again.returncode == 2 and "exists" in again.stderr
    plan = invoke("run", tmp_path / "recipe.toml", "--dry-run", "--json", cwd=tmp_path)
    assert [row["state"] for row in json.loads(plan.stdout)["plan"]] == ["to do"] * 9
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    import errno

    from distill.cli import exits as cli

    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "labels" / "001.npy"))
    assert cli.describe_error(error)[1] == 2


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    """A real full file system, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        result = distill("run", "--out", disk / "run", "--set", "synthetic.clips=40")
        assert result.returncode == 2, result.stderr
        assert "the disk is full" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
        corpus = disk / "run" / "corpus"
        for video in corpus.glob("video/[0-9]*"):  # what has its name is whole
            pngs = list((corpus / "annotation" / f"{int(video.stem):04d}" / "fixation").iterdir())
            assert len(pngs) == 72 and all(p.stat().st_size for p in pngs)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_version():
    assert distill("--version").stdout.startswith("distill ")


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        *(("onnxruntime", "predict"), ("cv2", "predict"), ("av.video", "encode"), ("scipy.interpolate", "encode")),
        *(
            ("torch", "train"),
            ("jinja2", "train"),
            ("filelock", "train"),
            ("onnxscript", "train"),
            ("safetensors.torch", "train"),
        ),
    ],
)
def test_a_missing_module_names_its_extra(module, extra):
    from distill.cli.exits import describe_error

    message, code = describe_error(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert (message, code) == (f"{module} is not installed; {how_to_install(extra)}", 2)


def test_teachers_are_listed_on_80_columns_and_in_json():
    table = distill("teachers").stdout
    assert max(map(len, table.splitlines()[:-1])) <= 80
    for name in ("visage tiny", "visage 6B", "unisal", "tased", "salfom", "onnx", "maps"):
        assert name in table
    listed = {(t["name"], t["size"]): t for t in json.loads(invoke("teachers", "--json").stdout)["teachers"]}
    assert listed["unisal", ""]["weights"] == "Apache-2.0" and listed["unisal", ""]["parameters"] == 3_714_872
    assert "https://github.com/rdroste/unisal" in invoke("teachers", "unisal").stdout


def test_the_help_of_teach_shows_the_stage_and_the_other_verbs():
    text = distill("teach", "--help").stdout
    for wanted in ("RECIPE.toml", "--teacher", "--accept-licence", "convert", "calibrate"):
        assert wanted in text


def test_the_gate_is_a_separate_command():
    result = subprocess.run(
        [str(Path(sys.executable).with_name("opallowlist")), "--help"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0 and "check" in result.stdout


def test_a_root_alone_is_read_as_the_corpus_that_it_holds(tmp_path):
    root, other = make_clip(tmp_path / "mine"), gaze_corpus(tmp_path / "other")
    result = invoke("run", "--root", root, "--root", other, "--dry-run", "--json", cwd=tmp_path)
    assert result.returncode == 0 and json.loads(result.stdout)["run"] == "runs/dhf1k+gaze-table-visage"
    assert f"corpus: {root}: DHF1K's layout, 1 clip; as --corpus dhf1k" in result.stderr
    assert f"corpus: {other}: images or videos with a gaze table, 6 clips; as --corpus gaze-table" in result.stderr
    recipe = tmp_path / "r.toml"
    text = '[corpus]\nname = "videos"\n[teacher]\nname = "unisal"\nweights = "unisal=random"\n'
    recipe.write_text(text, encoding="utf-8")  # a recipe's own corpus is not guessed again
    result = invoke("run", recipe, "--root", root / "video", "--dry-run", "--json", cwd=tmp_path)
    assert result.returncode == 0 and "corpus:" not in result.stderr, result.stderr


def test_a_root_that_holds_no_corpus_is_refused_with_what_it_holds(tmp_path):
    make_clip(tmp_path / "data" / "mine")
    (tmp_path / "data" / "notes.txt").touch()
    for verb in (["run"], ["eval"], ["bd"], ["quantize", "m.onnx"]):
        result = invoke(*verb, "--root", "data", cwd=tmp_path)
        assert result.returncode == 2 and "it holds mine/, notes.txt; did you mean --root data/mine?" in result.stderr


@pytest.mark.parametrize("verb", ["teach", "label", "train", "export", "eval", "report"])
def test_only_run_has_a_default_and_the_other_verbs_ask_which_run(tmp_path, verb):
    result = invoke(verb, cwd=tmp_path)
    assert result.returncode == 2 and "which run? none is under runs/" in result.stderr
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    (tmp_path / "runs" / "a b" / "manifest.json").write_text('{"schema": 2, "created": "", "stages": {}}', encoding="utf-8")
    result = invoke(verb, "--out", "new", cwd=tmp_path)
    assert (
        result.returncode == 2
        and f"new holds no run; which run? give a run or a recipe, as in `distill {verb} 'runs/a b'`" in (result.stderr)
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval", "MODEL", "--root", "x", "--teacher", "unisal"],
            "--teacher applies to runs; here finished ONNX files are scored",
        ),
        (["eval", "MODEL", "--root", "x", "--out", "y"], "--out applies to runs; here finished"),
        (["eval", "MODEL", "--root", "x", "--set", "train.steps=3"], "--set train.steps=3: [train] applies to runs; here"),
        (["run", "--maps", "x"], "--maps is read by the teacher maps, and this run's is visage; add --teacher maps"),
        (["run", "--set", "teacher.maps=x"], "--set teacher.maps is read by the teacher maps, and this run's is visage"),
        (["inspect", "--corpus", "dhf1k"], "--corpus names the layout of a corpus"),
        (["bd", "--clips", "001"], "--clips names clips with gaze; give their folder with --root"),
    ],
)
def test_an_option_without_effect_is_an_error(tmp_path, arguments, message):
    model = release_model()
    result = invoke(*(model if a == "MODEL" else a for a in arguments), cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def test_maps_can_be_emptied_for_another_teacher():
    chosen = choose_run(None, None, RunOptions(sets=["teacher.maps=[]"]), Narrator(quiet=True))
    assert chosen.recipe.teacher.maps == () and chosen.recipe.teacher.name == "visage"


def test_the_scores_of_a_model_cannot_take_its_place(tmp_path):
    model, recipe = tmp_path / "m.onnx", tmp_path / "r.toml"
    shutil.copy(release_model(), model)
    recipe.write_text("[train]\nsteps = 3\n", encoding="utf-8")
    before = model.read_bytes()
    for arguments, message in (
        ([model, "--root", tmp_path, "--csv", model], f"--csv {model} is the same file as MODEL {model}; name another file"),
        ([recipe, "--csv", recipe], f"--csv {recipe} is the same file as RECIPE {recipe}"),
        ([model, "--root", tmp_path, "--csv", tmp_path], f"--csv {tmp_path} cannot be written: it is a folder"),
        ([recipe, "--csv", recipe / "x.csv"], "cannot be written: it is below a file"),
    ):
        result = invoke("eval", *arguments)
        assert result.returncode == 2 and message in result.stderr, result.stderr
    assert model.read_bytes() == before and recipe.read_text(encoding="utf-8").startswith("[train]")


@pytest.mark.parametrize(("key", "names"), [("skip", "001,0099"), ("val_clips", "0099")])
def test_a_dry_run_knows_the_clips_of_the_synthetic_corpus(key, names):
    result = invoke("run", "--dry-run", "--set", f"corpus.{key}={names}")
    assert result.returncode == 2 and f"corpus.{key} names '0099', which is not in the" in result.stderr, result.stderr


def test_a_hash_can_be_copied_from_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = invoke("inspect", release_model())
    assert re.search(r"^recipe_sha256 +[0-9a-f]{64}$", shown.stdout, re.M), shown.stdout
    others = [line for line in shown.stdout.splitlines() if not line.startswith("recipe_sha256")]
    assert max(map(len, others)) <= 80

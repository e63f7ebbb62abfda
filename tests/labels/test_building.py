"""Teachers built from a recipe, and labelling with each of them through the command line."""

import functools
import json

import numpy as np
import onnx
import pytest
import torch

from distill.labels import building
from distill.labels.building import open_teacher, try_out
from distill.labels.calibration import BOUND
from distill.labels.licences import check_licences
from distill.labels.members import check, source
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError
from distill.teachers import PLAIN, umt
from distill.teachers.unisal import Unisal, UnisalNet
from tests.helpers import invoke


@pytest.mark.parametrize("name", ["visage", "unisal", "tased"])
def test_random_weights_are_the_same_every_time(tmp_path, name):
    recipe = load_recipe(None, [f"teacher.name={name}", "teacher.weights=random"])
    state = torch.get_rng_state()
    prints = {open_teacher(recipe, torch.device("cpu"), tmp_path).fingerprint() for _ in range(2)}
    assert len(prints) == 1 and torch.equal(torch.get_rng_state(), state)


def test_a_file_of_the_authors_layout_opens(tmp_path):
    torch.save({"state_dict": UnisalNet().state_dict()}, tmp_path / "u.pth")
    recipe = load_recipe(None, ["teacher.name=unisal", f"teacher.weights={tmp_path / 'u.pth'}", "teacher.domain=SALICON"])
    check(recipe)
    assert list(try_out(recipe, torch.device("cpu"), PLAIN)) == ["unisal, u.pth"]
    opened = open_teacher(recipe, torch.device("cpu"), tmp_path)
    assert isinstance(opened, Unisal) and opened.domain == "SALICON"


def test_the_static_path_and_the_mirror_image_are_in_the_label_store(tmp_path):
    sets = ["teacher.name=unisal", "teacher.weights=random"]
    recipes = [load_recipe(None, [*sets, *more]) for more in ([], ["teacher.static=0.5"], ["teacher.flip=true"])]
    plain, half, mirrored = (open_teacher(recipe, torch.device("cpu"), tmp_path) for recipe in recipes)
    assert half.static == 0.5 and len({teacher.fingerprint() for teacher in (plain, half, mirrored)}) == 3
    variant = open_teacher(load_recipe(None, ["teacher.name=unisal@DHF1K", *sets[1:]]), torch.device("cpu"), tmp_path)
    assert (plain.stills, variant.stills) == ("SALICON", "DHF1K")
    assert mirrored.name == "unisal" and mirrored.members[0].fingerprint() == plain.fingerprint()
    assert [source(recipe) for recipe in recipes[1:]] == [
        "unisal, RANDOM WEIGHTS, static path 0.5",
        "unisal, RANDOM WEIGHTS; each frame mirrored as well",
    ]


def test_a_published_size_opens_with_its_fusion(tmp_path):
    small = ("frames=4", "px=28", "out_px=16", "reduced_width=16", "embed_width=16", "head_width=8", "norm_groups=4", "rank=4")
    sets = ["teacher.size=S", "teacher.weights=random", "teacher.fusion=max", *(f"teach.{s}" for s in small)]
    recipe = load_recipe(None, [*sets, "teacher.expert_weights=[1,3]"])
    check(recipe)
    opened = open_teacher(recipe, torch.device("cpu"), tmp_path)
    assert opened.config.fusion == "max" and opened.config.weights == (1, 3)
    assert opened.logits(np.zeros((5, 32, 32, 3), np.uint8), 24).shape == (5, 16, 16)
    with pytest.raises(UsageError, match="expert"):
        open_teacher(load_recipe(None, [*sets, "teacher.expert_weights=[1,2,3]"]), torch.device("cpu"), tmp_path)


def test_a_teachers_own_settings_are_checked(tmp_path):
    recipe = load_recipe(None, ["teacher.name=unisal", "teacher.weights=random", "teacher.domain=DHF1"])
    with pytest.raises(UsageError, match="its domains are DHF1K, Hollywood"):
        open_teacher(recipe, torch.device("cpu"), tmp_path)


# --- labelling with each, through the command line ---

TWO_CLIPS = [
    "synthetic.clips=2", "synthetic.frames=4", "synthetic.height=64", "synthetic.width=96", "synthetic.observers=6",
    "student.height=32", "student.width=64", "student.widths=[4,8,8,12,16]", "student.state_channels=8",
    "teacher.every=4",
]  # fmt: skip


def distill(*arguments):
    """Exit code, and what is on standard error."""
    result = invoke(*arguments)
    return result.returncode, result.stderr


def label_with(out, *sets):
    return distill("label", "--corpus", "synthetic", "--out", out, *(f"--set={s}" for s in (*TWO_CLIPS, *sets)))


def smaller_windows(monkeypatch):
    """TASED-Net on small frames and SalFoM on a small encoder: at full size a window of theirs takes seconds."""
    small = umt.UmtConfig(width=32, depth=2, heads=2, px=48)
    monkeypatch.setattr(building, "TasedConfig", functools.partial(building.TasedConfig, height=64, width=96))
    monkeypatch.setattr(umt.UmtConfig, "of", lambda size: small)


@pytest.mark.parametrize(
    "sets",
    [
        ("teacher.name=unisal", "teacher.weights=random"),
        ("teacher.name=tased", "teacher.weights=random"),
        ("teacher.name=salfom", "teacher.weights=random", "teacher.accept_licence=salfom"),
        ("teacher.name=onnx", "teacher.weights={step}", "teacher.accept_licence=onnx"),
        (
            "teacher.name=unisal:2+onnx+onnx",
            'teacher.weights=["onnx={step}","unisal=random","onnx={image}"]',
            "teacher.accept_licence=onnx",
        ),
    ],
    ids=lambda sets: sets[0].partition("=")[2],
)
def test_each_teacher_labels_a_corpus_and_resumes(tmp_path, monkeypatch, students, sets):
    smaller_windows(monkeypatch)
    sets = [s.replace("{step}", str(students["step"])).replace("{image}", str(students["image"])) for s in sets]
    code, stderr = label_with(tmp_path / "run", *sets)
    assert code == 0, stderr
    files = sorted((tmp_path / "run" / "labels").glob("*.npy"))
    before = [file.read_bytes() for file in files]
    logits = np.load(files[0])
    assert len(files) == 2 and logits.shape[0] == 4 and logits.astype(np.float32).std() > 0
    description = json.loads((tmp_path / "run" / "labels" / "store.json").read_text())["teacher"]
    random = [name for name in ("unisal", "tased", "salfom") if name in description["name"]]
    assert description["random"] == random and ("RANDOM WEIGHTS" in stderr) == (
        "RANDOM WEIGHTS" in description["source"]
    ) == bool(random)
    files[1].unlink()
    code, stderr = label_with(tmp_path / "run", *sets)
    assert code == 0 and "1 of 2 clips are in the store" in stderr, stderr
    assert [file.read_bytes() for file in files] == before


def test_a_student_of_random_weights_ships_with_a_warning(tmp_path, with_metadata):
    more = (
        "train.steps=2", "train.batch=1", "train.window=2", "train.windows=1", "train.validate_every=2", "report.clips=0",
    )  # fmt: skip
    sets = (*TWO_CLIPS, *more, "teacher.name=visage+onnx", "export.license=MIT")
    chain = '[["corpus far", "CC BY 4.0"]]'
    assistant = with_metadata(tmp_path / "ta.onnx", license="MIT", license_chain=chain)
    weights = f'teacher.weights=["visage=random","onnx={assistant}"]'
    code, stderr = distill(
        "export", "--corpus", "synthetic", "--out", tmp_path / "r", *(f"--set={s}" for s in (*sets, weights))
    )
    assert code == 0, stderr
    card = (tmp_path / "r" / "export" / "student.md").read_text()
    assert "the teacher had random weights (visage)" in card
    assert "| these weights | MIT |" in card and "| teacher visage tiny | BSD-2-Clause-Patent |" in card
    assert "| ta.onnx: corpus far | CC BY 4.0 |" in card and str(tmp_path) not in card
    props = {p.key: p.value for p in onnx.load(tmp_path / "r" / "export" / "student_step.onnx").metadata_props}
    sidecar = json.loads((tmp_path / "r" / "export" / "student.json").read_text())
    parts = [part for part, _ in json.loads(props["license_chain"])]
    assert parts == [entry["part"] for entry in sidecar["license_chain"]] == [
        "corpus synthetic", "teacher visage tiny", "teacher onnx: ta.onnx", "ta.onnx: corpus far",
    ]  # fmt: skip
    check_licences(Teacher(name="onnx", weights=(str(tmp_path / "r" / "export" / "student.onnx"),)))  # a link of the next chain


def test_labels_of_another_run_are_reused_and_calibrated(tmp_path, students):
    sets = ("teacher.name=onnx", f"teacher.weights={students['step']}", "teacher.accept_licence=onnx")
    assert label_with(tmp_path / "a", *sets)[0] == 0
    code, stderr = distill("teach", "calibrate", tmp_path / "a", "-o", tmp_path / "c.json")
    assert code == 0 and json.loads((tmp_path / "c.json").read_text())["teacher"]["name"] == "onnx", stderr
    values = json.loads((tmp_path / "c.json").read_text())
    values["calibration"] = {"temperature": 2.0, "bias": 1.0, "blur": 0.0}
    (tmp_path / "c.json").write_text(json.dumps(values))
    again = ("teacher.name=maps", f"teacher.maps={tmp_path / 'a' / 'labels'}", f"teacher.calibration={tmp_path / 'c.json'}")
    assert label_with(tmp_path / "b", *again)[0] == 0
    a, b = (np.load(tmp_path / run / "labels" / "001.npy").astype(np.float32) for run in "ab")
    assert np.allclose(b, np.clip(a, -BOUND, BOUND) / 2 + 1, atol=1e-2)
    description = [json.loads((tmp_path / run / "labels" / "store.json").read_text())["teacher"] for run in "ab"]
    assert description[1]["calibration"]["bias"] == 1 and description[0]["fingerprint"] != description[1]["fingerprint"]
    assert (
        description[1]["chain"] == description[0]["chain"]
        and description[1]["source"] == "onnx, step.onnx; labels of another run"
    )
    _, stderr = distill("teach", "calibrate", tmp_path / "b", "-o", tmp_path / "d.json")
    assert "are calibrated already" in stderr
    other = ("teacher.name=unisal", "teacher.weights=random", again[2])
    code, stderr = label_with(tmp_path / "x", *other)
    assert code == 2 and "was fitted to teacher onnx" in stderr and not (tmp_path / "x" / "corpus.json").exists()


def broken(path, kind):
    if kind == "page":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>", encoding="utf-8")
        return
    state = UnisalNet().state_dict()
    if kind == "missing":
        del state["post_rnn.0.weight"]
    if kind == "width":
        state["post_rnn.0.weight"] = torch.zeros(255, 256, 1, 1)
    torch.save(state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("page", "is a web page, not weights"),
        ("truncated", "truncated"),
        ("missing", "missing 1, first 'post_rnn.0.weight' of shape [256, 256, 1, 1]"),
        ("width", "'post_rnn.0.weight': [255, 256, 1, 1], expected [256, 256, 1, 1]"),
    ],
)
def test_bad_weights_stop_before_anything_long(tmp_path, kind, message):
    broken(tmp_path / "w.pth", kind)
    sets = ("teacher.name=unisal", f"teacher.weights={tmp_path / 'w.pth'}")
    code, stderr = label_with(tmp_path / "run", *sets)
    last = stderr.strip().splitlines()[-1]
    assert code == 2 and last.startswith("distill: ") and message in last and "w.pth" in last
    assert not (tmp_path / "run" / "corpus.json").exists()

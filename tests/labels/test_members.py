"""Parsing a recipe's [teacher] section, and reporting what is missing before a run."""

import re

import pytest

from distill.labels.licences import check_licences
from distill.labels.members import check, file_names, members, weights_fingerprints
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError


def names(options):
    return [(m.name, m.entry.size, m.weight, {k: v for k, v in m.files.items() if v}) for m in members(options)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [("visage", "tiny", 1.0, {})]),
        ({"name": "unisal", "weights": ("u.pth",)}, [("unisal", "", 1.0, {"": "u.pth"})]),
        (
            {"name": "unisal:2+tased:0.5", "weights": ("tased=t.pt", "unisal=random")},
            [("unisal", "", 2.0, {"": "random"}), ("tased", "", 0.5, {"": "t.pt"})],
        ),
        (
            {"name": "visage", "size": ("6B",), "weights": ("visage.base=b", "visage.expert1=1", "visage.expert2=2")},
            [("visage", "6B", 1.0, {"base": "b", "expert1": "1", "expert2": "2"})],
        ),
        (
            {"name": "visage", "size": ("S",), "weights": ("random",)},
            [("visage", "S", 1.0, {"base": "random", "expert1": "random", "expert2": "random"})],
        ),
        (
            {"name": "visage+unisal", "size": ("visage=B",), "weights": ("visage=random", "unisal=u")},
            [
                ("visage", "B", 1.0, {"base": "random", "expert1": "random", "expert2": "random"}),
                ("unisal", "", 1.0, {"": "u"}),
            ],
        ),
        (
            {"name": "onnx+onnx:3", "weights": ("onnx=a.onnx", "onnx=b.onnx")},
            [("onnx", "", 1.0, {"": "a.onnx"}), ("onnx", "", 3.0, {"": "b.onnx"})],
        ),
    ],
)
def test_a_recipe_names_teachers(keys, expected):
    assert names(Teacher(**keys)) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "unisol"}, "unknown teacher 'unisol'; did you mean 'unisal'?"),
        ({"name": "unisal+"}, "unknown teacher ''"),
        ({"name": "unisal:x"}, "'x' is not a weight; write NAME:NUMBER with a number above 0"),
        ({"name": "unisal:0"}, "'0' is not a weight"),
        ({"name": "unisal:nan"}, "'nan' is not a weight"),
        ({"name": "maps+unisal"}, "teacher maps reads stored labels and cannot join an ensemble; use it alone"),
        (
            {"name": "unisal+tased", "weights": ("u.pth",)},
            "teacher.weights: which teacher is 'u.pth' for? write NAME=u.pth, where NAME is unisal or tased",
        ),
        ({"name": "unisal", "weights": ("tased=t",)}, "teacher.weights: unknown name 'tased'"),
        (
            {"name": "unisal", "weights": ("unisal=a", "unisal=b")},
            "teacher.weights gives unisal=b, but teacher.name has no further 'unisal'",
        ),
        ({"name": "visage", "size": ("7B",)}, "teacher visage has no size '7B'; sizes: tiny, S, B, L, 1B, 6B"),
        ({"name": "unisal", "size": ("L",)}, "teacher unisal has no size 'L'; leave it out"),
        ({"name": "maps", "weights": ("x",)}, "which teacher is 'x' for? write NAME=x"),
    ],
)
def test_unknown_names_are_refused(keys, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        members(Teacher(**keys))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["teacher.name=tased"],
            "teacher tased needs its weights: --set teacher.weights=tased=FILE; the authors' page is https:",
        ),
        (["teacher.size=6B"], "needs its weights: --set teacher.weights=visage.base=FILE,visage.expert1=FILE"),
        (["teacher.size=6B", "teach.finetune=true"], "--set teacher.weights=visage.base=FILE;"),
        (["teacher.name=unisal", "teacher.weights=nowhere.pth"], "nowhere.pth does not exist; name a weights file"),
        (["teacher.name=unisal", "teacher.weights=."], "is a folder; name a weights file"),
        (["teacher.calibration=c.json"], "c.json does not exist; `distill teach calibrate` writes one"),
        (["teacher.name=maps", "teacher.maps=m", "teacher.flip=true"], "teacher.flip mirrors the frames that a teacher sees"),
        (["teach.finetune=true"], "teach.finetune is for unisal and for visage of a published size"),
        (["teacher.name=salfom", "teacher.weights=random"], "--accept-licence salfom"),
        (
            ["teacher.name=onnx", "teacher.weights=random"],
            "teacher onnx has no random weights; name an ONNX file in teacher.weights",
        ),
        (["teacher.accept_licence=salfon"], "--accept-licence salfon: this run's teacher is visage"),
    ],
)
def test_what_is_missing_stops_before_a_run(sets, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        recipe = load_recipe(None, sets)
        check(recipe)
        check_licences(recipe.teacher)


def test_weights_are_relative_to_the_recipes_folder(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "r.toml").write_text(
        '[teacher]\nname = "unisal+tased"\nweights = ["unisal=w/u.pth", "tased=random"]\n', encoding="utf-8"
    )
    recipe = load_recipe(tmp_path / "r" / "r.toml")
    assert recipe.teacher.weights == (f"unisal={tmp_path}/r/w/u.pth", "tased=random")
    assert load_recipe(None, ["teacher.weights=random"]).teacher.weights == ("random",)
    assert file_names(recipe.teacher) == ["unisal=u.pth", "tased=random"]


def test_a_changed_weights_file_has_another_fingerprint(tmp_path):
    file = tmp_path / "u.pth"
    options = Teacher(name="unisal", weights=(str(file),))
    fingerprints = []
    for content in (b"a" * 10, b"a" * 9 + b"b", b"a" * 11):
        file.write_bytes(content)
        fingerprints.append(*weights_fingerprints(options).values())
    assert len(set(fingerprints)) == 3

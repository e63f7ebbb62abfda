"""Parsing a recipe's [teacher] section, and reporting what is missing before a run."""

import re

import pytest

from distill.labels.catalogue import entries
from distill.labels.licences import check_licences
from distill.labels.members import check, check_parts, members, teams
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError
from distill.teachers.unisal import SIZES


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
            "teacher.weights gives unisal=b, but no further teacher takes 'unisal'",
        ),
        ({"name": "visage", "size": ("7B",)}, "teacher visage has no size '7B'; sizes: tiny, S, B, L, 1B, 6B"),
        ({"name": "unisal", "size": ("L",)}, "teacher unisal has no size 'L'; leave it out"),
        ({"name": "unisal@SALICN"}, "teacher unisal has no variant 'SALICN'; did you mean 'SALICON'?"),
        ({"name": "unisal@"}, "teacher unisal has no variant ''; known: DHF1K, Hollywood, UCFSports, SALICON"),
        ({"name": "tased@DHF1K:2"}, "teacher tased has no variant 'DHF1K'; write tased alone"),
        ({"name": "unisal@DHF1K", "weights": ("unisal@SALICON=x",)}, "unknown name 'unisal@SALICON'; did you mean 'unisal'?"),
        ({"name": "unisal@DHF1K", "weights": ("unisal@DHF1K=x", "unisal=y")}, "gives unisal=y, but no further teacher takes"),
        ({"name": "unisal", "parts": ("images",)}, "teacher.parts: 'images' is not PART=TEACHER, as in images=unisal@SALICON"),
        (
            {"name": "unisal", "parts": ("images=tased", "images=onnx")},
            "teacher.parts names the part 'images' twice; keep one of images=tased and images=onnx",
        ),
        (
            {"name": "unisal", "parts": ("images=maps",)},
            "teacher maps reads stored labels and cannot be one of several teachers",
        ),
        ({"name": "unisal", "parts": ("images=unisol",)}, "unknown teacher 'unisol'; did you mean 'unisal'?"),
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
        (
            ["teacher.name=unisal", "teacher.parts=images=tased", "teacher.weights=random"],
            "which teacher is 'random' for? write NAME=random, where NAME is unisal or tased",
        ),
        (
            ["teacher.name=unisal", "teacher.parts=images=salfom", 'teacher.weights=["unisal=random", "salfom=random"]'],
            "--accept-licence salfom",
        ),
        (["teacher.parts=images=unisal@SALICON"], "teacher unisal needs its weights: `distill teachers fetch unisal`, or"),
        (
            [
                "teacher.name=unisal",
                "teacher.parts=images=unisal@SALICON",
                "teacher.weights=random",
                f"teacher.calibration={__file__}",
            ],
            "teacher.calibration is fitted to one teacher, and teacher.parts names others",
        ),
        (
            [
                "teacher.name=unisal",
                "teacher.parts=images=unisal@SALICON",
                "teacher.weights=unisal@SALICON=random",
                "teach.finetune=true",
            ],
            "the run trains unisal once, for all its variants and parts; give it one set of weights",
        ),
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


def test_one_weights_file_serves_all_variants_without_their_own():
    options = Teacher(
        name="unisal@DHF1K:2+unisal@Hollywood+unisal",
        parts=("images=unisal@SALICON", "videos=unisal@DHF1K+tased", "images-2=unisal@SALICON"),
        weights=("unisal=best", "unisal@SALICON=ft", "tased=t", "unisal@DHF1K=a", "unisal@DHF1K=b"),
    )
    of_parts = {team.parts: [(m.full_name, m.weight, m.files[""]) for m in team.members] for team in teams(options)}
    assert of_parts == {
        (): [("unisal@DHF1K", 2, "a"), ("unisal@Hollywood", 1, "best"), ("unisal", 1, "best")],
        ("images", "images-2"): [("unisal@SALICON", 1, "ft")],
        ("videos",): [("unisal@DHF1K", 1, "b"), ("tased", 1, "t")],
    }
    assert members(options)[3].given == {"unisal@SALICON": "ft"}
    one = Teacher(name="unisal@DHF1K+unisal@Hollywood", parts=("images=unisal@SALICON",), weights=("best",))
    assert {m.files[""] for m in members(one)} == {"best"}
    same = Teacher(name="unisal", parts=("images=unisal",), weights=("best",))
    assert [team.parts for team in teams(same)] == [()]


def test_variants_are_the_domains_of_the_network():
    assert entries("unisal")[0].variants == tuple(SIZES)


def test_parts_must_be_in_the_corpus():
    options = Teacher(name="unisal", parts=("images=unisal@SALICON", "images-2=unisal"))
    check_parts(options, ["dhf1k", "images", "images-2"])
    check_parts(options, ["images", "images-2"])
    with pytest.raises(UsageError, match=r"teacher\.parts: the corpus has no part 'images-2'; did you mean 'images'\?"):
        check_parts(options, ["dhf1k", "images"])
    with pytest.raises(UsageError, match=r"names every part of the corpus, so teacher\.name unisal labels nothing"):
        check_parts(Teacher(name="unisal", parts=("images=unisal@SALICON",)), ["images"])


def test_weights_are_relative_to_the_recipes_folder(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "r.toml").write_text(
        '[teacher]\nname = "unisal+tased"\nweights = ["unisal=w/u.pth", "tased=random"]\n', encoding="utf-8"
    )
    recipe = load_recipe(tmp_path / "r" / "r.toml")
    assert recipe.teacher.weights == (f"unisal={tmp_path}/r/w/u.pth", "tased=random")
    assert load_recipe(None, ["teacher.weights=random"]).teacher.weights == ("random",)

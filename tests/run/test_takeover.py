"""What the files of a stage depend on, and why one is not taken over."""

import pytest

from distill.recipe.files import load_recipe
from distill.run.plan import inputs
from distill.run.takeover import TAKEN, Source, ingredients, obstacle
from tests.helpers import make_clip


def unaffected(*sets, teacher="unisal"):
    """The stages whose ingredients do not change with these settings."""
    base = [f"teacher.name={teacher}", "teacher.weights=x.pth", "corpus.name=dhf1k", "corpus.root=/c"]
    before, after = load_recipe(None, base), load_recipe(None, [*base, *sets])
    return [stage for stage in TAKEN if ingredients(before, stage) == ingredients(after, stage)]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ("train.steps=7", TAKEN[:4]),
        ("student.widths=[8,16,24,32,32]", TAKEN[:4]),
        ("student.height=128", ("corpus", "teach", "label")),
        ("train.sample_fps=4", ("corpus", "teach", "label")),
        ("label.overlap=0.5", TAKEN[:3]),
        ("teacher.flip=true", TAKEN[:2]),
        ("corpus.val=0.3", ()),
        ("eval.stride=3", TAKEN),
        ("run.threads=1", TAKEN),
        ("run.name=other", TAKEN),
        ("synthetic.clips=3", TAKEN),
        ("corpus.attribution=/a.csv", TAKEN),
        ("run.seed=1", TAKEN[:4]),
    ],
)
def test_a_change_costs_the_stages_that_depend_on_it(changed, kept):
    assert unaffected(changed) == list(kept)


def test_a_teacher_that_the_run_trains_depends_on_its_frames():
    options = ["corpus.name=dhf1k", "corpus.root=/c"]
    before, after = load_recipe(None, options), load_recipe(None, [*options, "train.sample_fps=4"])
    assert all(ingredients(before, stage) != ingredients(after, stage) for stage in ("frames", "teach", "label", "train"))


def test_what_stands_in_the_way_is_said(tmp_path):
    corpus = make_clip(tmp_path / "c")
    recipe = load_recipe(None, ["corpus.name=dhf1k", f"corpus.root={corpus}"])
    other = load_recipe(recipe, ["train.steps=3", "train.lr=0.1"])
    read = f"the corpus at {corpus}"
    source = Source(tmp_path, {"stages": {}, "inputs": {read: {"stats": "1", "contents": "a"}}}, other)
    assert obstacle(source, recipe, "train") == "train.steps is 400 here and 3 there and 1 more"
    assert obstacle(source, recipe, "frames") == "it is not done there"
    changed = {read: {"stats": "2", "contents": "b"}}
    assert obstacle(source, recipe, "frames", changed) == f"{read} changed since"


def test_an_input_stands_in_the_way_of_the_stages_that_read_it_and_of_later_ones(tmp_path):
    corpus = make_clip(tmp_path / "c")
    groups, calibration = tmp_path / "g.csv", tmp_path / "calibration.json"
    recipe = load_recipe(None, [
        "corpus.name=dhf1k", f"corpus.root={corpus}", "teacher.name=maps", f"teacher.maps={tmp_path / 'm'}",
        f"teacher.calibration={calibration}", f"corpus.groups={groups}",
    ])  # fmt: skip
    known = {what: {"contents": "a"} for what in inputs(recipe)}
    assert [what.split()[1] for what in known] == ["corpus", "groups", "maps", "calibration"]

    def refused(lacking):
        """The stages that are refused because the other run did not read this."""
        there = {what: of for what, of in known.items() if lacking not in what}
        source = Source(tmp_path, {"stages": {}, "inputs": there}, recipe)
        why = {stage: obstacle(source, recipe, stage, now) for now in (known, None) for stage in TAKEN}
        return [stage for stage, text in why.items() if text.endswith("was not read there")]

    assert refused("the groups") == refused("the corpus") == list(TAKEN)
    assert refused("the maps") == refused("the calibration") == ["label", "train"]
    assert refused("the weights") == []

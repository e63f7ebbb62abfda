"""The plan of a run: what a change makes it do again."""

import json
from itertools import pairwise

from distill.recipe.files import differences, load_recipe
from distill.recipe.keys import Recipe
from distill.run.plan import stage_keys


def test_texts_that_ship_may_change_after_the_training(tmp_path):
    notes, table = tmp_path / "notes.md", tmp_path / "who.csv"
    options = [f"export.notes={json.dumps(str(notes))}", f"corpus.attribution={json.dumps(str(table))}"]
    keys = []
    for text, lines in (("first", "x"), ("second", "x"), ("second", "y")):
        notes.write_text(text, encoding="utf-8")
        table.write_text(lines, encoding="utf-8")
        keys.append(stage_keys(load_recipe(None, options)))
    for before, after in pairwise(keys):
        assert [stage for stage in before if before[stage] != after[stage]] == ["export", "eval", "report"]


def test_a_run_continues_with_or_without_tensorboard():
    without = load_recipe(None, ["run.tensorboard=off"])
    assert (
        without.run.tensorboard == "off"
        and differences(Recipe(), without) == []
        and stage_keys(without) == stage_keys(Recipe())
    )

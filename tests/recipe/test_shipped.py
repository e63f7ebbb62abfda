"""The recipes that ship: what copies of them hold, and what is left for the user to put there."""

import json
from dataclasses import replace

import pytest

from distill.recipe import shipped
from distill.recipe.files import load_recipe, portable, to_toml
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError
from tests.helpers import ROOT, invoke

NAMES = list(shipped.shipped())


def test_all_recipes_of_the_checkout_ship_with_a_sentence_each():
    assert {ROOT / "recipes" / f"{name}.toml" for name in NAMES} == {*(ROOT / "recipes").rglob("*.toml")}
    assert all(20 < len(about) < 160 and not about.endswith(".") for about in shipped.shipped().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_recipe_and_names_nothing_outside_its_folder(name, tmp_path):
    written = shipped.write_copy(name, tmp_path / "my")
    assert written.files[0] == tmp_path / "my" / "recipe.toml" and written.lacking
    original, copy = load_recipe(ROOT / "recipes" / f"{name}.toml"), load_recipe(written.files[0])
    assert portable(copy) == portable(replace(original, export=replace(original.export, notes="")))
    texts = [path.read_text(encoding="utf-8") for path in written.files]
    assert not any('"../' in text or '"shared/' in text or "release.notes.md" in text for text in texts)
    paths = [copy.corpus.root, copy.teacher.maps, copy.corpus.groups, copy.corpus.attribution, copy.export.notes]
    for path in (p for value in paths for p in ((value,) if isinstance(value, str) else value) if p):
        assert path.startswith(str(tmp_path / "my")), path
    assert all(path.is_file() for path in written.files) and not any(path.exists() for path in written.lacking)


def test_a_recipe_says_what_its_folders_hold():
    for path in (ROOT / "recipes").glob("*.toml"):
        head = path.read_text(encoding="utf-8").partition("\n[")[0]
        assert "Write where your" in head, path.name
        recipe = load_recipe(path)
        for value in (recipe.corpus.root, recipe.teacher.maps):
            for folder in (value,) if isinstance(value, str) else value:
                assert not folder or any(f"#     {part} " in head for part in folder.split("/")[-2:]), (path.name, folder)


def test_what_is_there_is_not_called_lacking(tmp_path):
    (tmp_path / "my" / "data" / "hevc-gaze").mkdir(parents=True)
    written = shipped.write_copy("hevc-gaze", tmp_path / "my")
    assert written.lacking == [tmp_path / "my" / "data" / "labels" / "tinyhd-m" / "hevc-gaze"]
    assert {path.name for path in written.files} == {"recipe.toml", "hevc-gaze.groups.csv"}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "hevc-gaze.groups.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"hevc-gaze\.groups\.csv exists; remove it, or name another folder"):
        shipped.write_copy("hevc-gaze", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hevc-gaze.groups.csv"]


def test_the_default_recipe_states_every_key(tmp_path):
    written = shipped.write_default(tmp_path)
    assert written == ([tmp_path / "recipe.toml"], [])
    assert written.files[0].read_text(encoding="utf-8") == to_toml(Recipe(), comments=True)


def test_init_lists_and_copies(tmp_path):
    assert json.loads(invoke("init", "--list", "--json").stdout)["recipes"] == shipped.shipped()
    table = invoke("init", "--list").stdout
    assert all(name in table for name in NAMES)
    result = invoke("init", "my", "--from", "ablations/no-crops", cwd=tmp_path)
    assert result.stdout.split() == ["my/recipe.toml", "my/short.toml", "my/hevc-gaze-joint.toml", "my/hevc-gaze.groups.csv"]
    assert "not there yet: my/data/hevc-gaze, my/data/images" in result.stderr
    files = json.loads(invoke("init", "yours", "--from", "permissive", "--json", cwd=tmp_path).stdout)
    assert files == {
        "schema": 1, "files": ["yours/recipe.toml"], "lacking": [f"yours/data/{n}" for n in ("images", "dhf1k-mini", "clips")],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "no-crops"], "unknown recipe 'no-crops'; did you mean 'ablations/no-crops'?"),
        (["--list", "--from", "release"], "--list writes nothing; leave FOLDER and --from out"),
    ],
)
def test_wrong_use_of_init_is_named(arguments, message, tmp_path):
    result = invoke("init", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and not [*tmp_path.iterdir()]

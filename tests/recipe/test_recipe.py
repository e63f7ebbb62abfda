from pathlib import Path

import pytest

from distill.recipe.files import differences, load_recipe, portable, to_toml
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_the_commented_recipe_is_the_defaults(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(Recipe(), comments=True), encoding="utf-8")
    assert load_recipe(path) == Recipe()


def test_a_resolved_recipe_reads_back(tmp_path):
    recipe = load_recipe(None, ["train.lr=1e-4", 'corpus.val_clips=["003","004"]', "student.widths=[4,8,8,12,16]"])
    (tmp_path / "r.toml").write_text(to_toml(recipe), encoding="utf-8")
    again = load_recipe(tmp_path / "r.toml")
    assert again == recipe and again.corpus.val_clips == ("003", "004") and again.student.widths == (4, 8, 8, 12, 16)


def test_a_recipe_states_only_differences_from_its_base(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "first.toml").write_text('[train]\nsteps = 7\nlr = 0.5\n[corpus]\nroot = "gaze"', encoding="utf-8")
    (tmp_path / "second.toml").write_text('base = "sub/first.toml"\n[train]\nlr = 0.25', encoding="utf-8")
    (tmp_path / "third.toml").write_text('base = "second.toml"\n[train]\nema = 0.5', encoding="utf-8")
    recipe = load_recipe(tmp_path / "third.toml", ["train.warmup=0.2"])
    assert (recipe.train.steps, recipe.train.lr, recipe.train.ema, recipe.train.warmup) == (7, 0.25, 0.5, 0.2)
    assert recipe.corpus.root == str(tmp_path / "sub" / "gaze")
    (tmp_path / "sub" / "first.toml").write_text('base = "../third.toml"', encoding="utf-8")
    with pytest.raises(UsageError, match=r"third\.toml builds on itself, over .*first\.toml"):
        load_recipe(tmp_path / "third.toml")
    (tmp_path / "second.toml").write_text('base = "none.toml"', encoding="utf-8")
    with pytest.raises(UsageError, match=r"second\.toml builds on .*none\.toml, which does not exist"):
        load_recipe(tmp_path / "third.toml")
    (tmp_path / "second.toml").write_text("base = 3", encoding="utf-8")
    with pytest.raises(UsageError, match="`base` must be the path of another recipe, got 3"):
        load_recipe(tmp_path / "second.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_recipe_loads(path):
    assert isinstance(load_recipe(path), Recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("trian.steps=3", "unknown section 'trian'; did you mean 'train'?"),
        ("train.zzz=3", "unknown key 'train.zzz'; keys of [train]: steps, frames_first"),
        ("teacher.window=3", "unknown key 'teacher.window'; did you mean 'train.window'?"),
        ("train.steps=1.5", "'train.steps' must be int, got 1.5"),
        ("train.flip=1", "'train.flip' must be bool, got 1"),
        ("train.lr=-1", "train.lr must be at least 0"),
        ("train.lr=nan", "train.lr must be finite"),
        ("train.parts=memory,gate", "train.parts are memory, motion and onset, got 'gate'"),
        ("train.parts=[]", "nothing learns from clips"),
        ("train.clips_lr=0", "nothing learns from clips"),
        ("train.lr=0", "train.lr is 0"),
        ("train.keep=first", "train.keep must be best or last, got 'first'"),
        ("corpus.split=mine", "corpus.split must be official or share, got 'mine'"),
        ("teach.precision=fp8", "teach.precision must be auto, bf16 or fp32, got 'fp8'"),
        ("train.ema=1.0", "train.ema must be at most 0.9999"),
        ("unisal.frames=0", "unisal.frames must be at least 1, got 0"),
        ("unisal.epochs=0", "unisal.epochs must be at least 1, got 0"),
        ("student.width=100", "student.width must be a multiple of 32"),
        ("run.name=My Student", "run.name may hold lower case letters"),
        ("steps=3", "--set takes section.key=value"),
        ("train.steps", "--set takes section.key=value"),
    ],
)
def test_a_wrong_override_gets_a_suggestion(override, message):
    with pytest.raises(UsageError) as error:
        load_recipe(None, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstepz = 3", "did you mean 'train.steps'?"),
        ("train = 3", "'train' is a section"),
        ("[train", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert message in str(error.value) and "mine.toml" in str(error.value)


def test_a_mark_of_byte_order_is_read_over(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert load_recipe(tmp_path / "r.toml").train.steps == 7


@pytest.mark.parametrize(
    ("content", "byte"), [('[corpus]\nname = "é"'.encode("latin-1"), 18), ("[corpus]".encode("utf-16"), 1)]
)
def test_a_recipe_in_another_encoding_says_which_to_use(tmp_path, content, byte):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(UsageError, match=rf"r\.toml is not UTF-8 \(byte {byte}\); save it as UTF-8"):
        load_recipe(tmp_path / "r.toml")


def test_nesting_without_end_is_a_sentence(tmp_path):
    deep = "[" * 20_000 + "]" * 20_000
    (tmp_path / "r.toml").write_text(f"[train]\nsteps = {deep}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"r\.toml cannot be read: its arrays or tables are nested too deep"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(UsageError, match=r"'train\.steps' must be int"):
        load_recipe(None, [f"train.steps={deep}"])


@pytest.mark.parametrize("value", ['"caf\udce9"', '["plain", "caf\udce9"]'])
def test_a_name_that_is_not_utf_8_is_refused(value):
    with pytest.raises(UsageError, match=r"corpus\.root is not UTF-8, and a recipe is; rename what it names"):
        load_recipe(None, [f"corpus.root={value}"])


def test_a_missing_recipe_names_the_way_out(tmp_path):
    with pytest.raises(UsageError, match="distill init"):
        load_recipe(tmp_path / "none.toml")


def test_relative_paths_belong_to_the_recipe_and_bare_words_are_strings(tmp_path):
    (tmp_path / "r.toml").write_text('[corpus]\nname = "dhf1k"\nroot = "data"', encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.toml", ["teacher.name=maps", "teacher.maps=labels"])
    assert recipe.corpus.root == str(tmp_path / "data")
    assert recipe.teacher.maps == str(Path.cwd() / "labels")


def test_differences_are_named():
    assert differences(Recipe(), load_recipe(None, ["train.steps=7"])) == ["train.steps: 400 -> 7"]


def test_the_portable_recipe_is_the_same_from_every_folder_and_machine(tmp_path):
    texts = []
    for folder, machine in (("a", ["run.threads=1", "run.device=cpu", "label.workers=7", "eval.threads=3"]), ("b/c", [])):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "r.toml").write_text(
            '[corpus]\nname = "dhf1k,images"\nroot = ["../x/gaze", "stills"]\n[teacher]\nname = "unisal"\n'
            'weights = ["unisal=w/u.pth"]\n[export]\nnotes = "n.md"',
            encoding="utf-8",
        )
        texts.append(to_toml(portable(load_recipe(tmp_path / folder / "r.toml", machine))))
    assert texts[0] == texts[1] and str(tmp_path) not in texts[0]
    assert 'root = ["gaze", "stills"]' in texts[0] and 'weights = ["unisal=u.pth"]' in texts[0]
    (tmp_path / "shipped.toml").write_text(texts[0], encoding="utf-8")
    assert to_toml(portable(load_recipe(tmp_path / "shipped.toml"))) == texts[0]
    assert to_toml(portable(load_recipe(tmp_path / "shipped.toml", ["train.steps=7"]))) != texts[0]
    assert 'weights = ["random"]' in to_toml(portable(load_recipe(None, ["teacher.weights=random"])))


@pytest.mark.parametrize("key", ["train.steps", "synthetic.observers", "label.batch"])
def test_whole_numbers_are_bounded(key):
    with pytest.raises(UsageError, match=rf"{key} must be at most \d+, got 99999999999999999999"):
        load_recipe(None, [f"{key}=99999999999999999999"])

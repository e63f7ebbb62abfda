"""Several corpora together: their names, weights, roots, splits and labels."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from distill.corpora import Corpus, fixation_points, open_corpus, parts_of, split
from distill.recipe import keys
from distill.recipe.files import load_recipe, to_toml
from distill.run import engine, plan
from distill.run.changes import files_in
from distill.run.directory import RunDir
from distill.run.errors import UsageError
from distill.teachers.maps import MapsTeacher
from tests.corpora import writers
from tests.helpers import TINY, distill


@pytest.fixture
def two(tmp_path):
    """Four clips in DHF1K's layout, two sets of five images."""
    for number in range(1, 5):
        writers.official(tmp_path / "gaze", number)
    for name in ("osie", "street"):
        writers.images(tmp_path / "pictures" / name, 5)
    return [tmp_path / "gaze", tmp_path / "pictures"]


def test_clips_are_called_after_their_part(two):
    corpus = open_corpus("dhf1k:1,images:0.5", two)
    assert [c.id for c in corpus.clips][:5] == ["dhf1k.001", "dhf1k.002", "dhf1k.003", "dhf1k.004", "images.osie.001"]
    assert corpus.weights == {"dhf1k": 1.0, "images": 0.5} and corpus.title == "dhf1k:gaze + images:pictures"
    assert {(c.corpus, c.static) for c in corpus.clips} == {("dhf1k", False), ("images", True)}
    assert (corpus["dhf1k.002"].name, corpus["images.street.004"].name) == ("002", "street/004")
    assert fixation_points(corpus["images.street.004"], 0).columns.tolist() == [32, 33, 32, 33]
    assert Corpus.from_dict(json.loads(json.dumps(corpus.to_dict()))) == corpus
    assert corpus.median_fps == 30.0  # still images have no rate


def test_one_part_keeps_its_names(two):
    corpus = open_corpus("dhf1k:3", two[0])
    assert [c.id for c in corpus.clips] == ["001", "002", "003", "004"] and corpus.weights == {"dhf1k": 3.0}


def test_the_same_corpus_twice_gets_two_names(two, tmp_path):
    with pytest.raises(UsageError, match=r"names .* twice; give it once, with a larger weight: dhf1k:2"):
        parts_of("dhf1k,dhf1k", [two[0], two[0]])
    for name, again in (("dhf1k,dhf1k", two[0] / ".." / two[0].name), ("gaze-table,images", two[0])):  # one layout
        with pytest.raises(UsageError, match="twice"):
            parts_of(name, [two[0], again])
    copy = shutil.copytree(two[0], tmp_path / "copy")
    corpus = open_corpus("dhf1k,dhf1k:2", [two[0], copy])
    assert corpus.weights == {"dhf1k": 1.0, "dhf1k-2": 2.0}
    assert len({c.id for c in corpus.clips}) == 8 and corpus["dhf1k-2.001"].name == "001"


def test_each_part_is_split_separately(two):
    corpus = open_corpus("dhf1k,images", two)
    for seed in range(5):
        parts = split(corpus, 0.2, seed=seed)
        held = [parts[i].corpus for i in parts.val]
        assert (held.count("dhf1k"), held.count("images")) == (1, 2) and len(parts.train) == 11 and parts.held_out


def test_a_part_with_one_clip_trains(two):
    for number in (2, 3, 4):
        (two[0] / "video" / f"{number:03d}.avi").unlink()
    parts = split(open_corpus("dhf1k,images", two), 0.2)
    assert "dhf1k.001" in parts.train and all(i.startswith("images") for i in parts.val) and parts.held_out


def test_videos_without_gaze_only_train(tmp_path, two):
    for name in ("river.mp4", "street.avi"):
        writers.video(tmp_path / "free" / name, 4)
    corpus = open_corpus("dhf1k:1,images:0.5,videos:0.2", [*two, tmp_path / "free"])
    assert corpus["videos.river"].annotated_frames == 0 and corpus.weights["videos"] == 0.2
    parts = split(corpus, 0.2)
    assert {"videos.river", "videos.street"} <= set(parts.train)
    (tmp_path / "free" / "river.avi").write_bytes((tmp_path / "free" / "street.avi").read_bytes())
    with pytest.raises(UsageError, match=r"river\.avi and .*river\.mp4 would be one clip, river; rename one of them"):
        open_corpus("videos", tmp_path / "free")
    with pytest.raises(UsageError, match=r"pictures holds no videos \(\."):
        open_corpus("videos", two[1])


def test_a_held_out_image_is_not_filmed_either(two):
    corpus = open_corpus("images,pans,photos", [two[1]] * 3)
    assert [sum(c.corpus == part for c in corpus.clips) for part in ("images", "pans", "photos")] == [10, 10, 10]
    assert corpus.median_fps == 30.0 and Corpus.from_dict(json.loads(json.dumps(corpus.to_dict()))) == corpus
    parts = split(corpus, 0.2)
    held = {corpus[i].video for i in parts.val}
    assert len(held) == 2 and not held & {path for c in parts.select(parts.train) for path in (c.video, *c.shots)}
    assert sum(i.startswith("photos") for i in parts.train) == 8


def test_groups_may_name_clips_as_their_part_does(tmp_path, two):
    groups = tmp_path / "groups.csv"
    groups.write_text("001,a\n002,a\ndhf1k.003,b\n004,b\n", encoding="utf-8")
    parts = split(open_corpus("dhf1k,images", two), 0.5, groups=groups)
    assert {i for i in parts.val if i.startswith("dhf1k")} in ({"dhf1k.001", "dhf1k.002"}, {"dhf1k.003", "dhf1k.004"})
    with pytest.raises(UsageError, match=r"row 1: 001 may be dhf1k\.001 or dhf1k-2\.001; give the full id"):
        split(open_corpus("dhf1k,dhf1k", [two[0], shutil.copytree(two[0], tmp_path / "copy")]), 0.5, groups=groups)


def test_clips_are_skipped_and_held_out_by_their_full_id(two):
    corpus = open_corpus("dhf1k,images", two, options=keys.Corpus(skip=["images.osie.001", "dhf1k.004"]))
    assert len(corpus.clips) == 12
    parts = split(corpus, 0.2, ["dhf1k.002"])
    assert parts.val == ("dhf1k.002",) and len(parts.train) == 11
    with pytest.raises(UsageError, match=r"corpus\.skip names '004', which is not in .*gaze, .*pictures"):
        open_corpus("dhf1k,images", two, options=keys.Corpus(skip=["004"]))


@pytest.mark.parametrize(
    ("name", "roots", "message"),
    [
        ("dhf1k,images", ["a"], "has 2 parts, and --root names 1 folder"),
        ("dhf1k", ["a", "b"], "has 1 part, and --root names 2 folders"),
        ("dhf1k:1,image:0.5", ["a", "b"], "unknown corpus 'image'; did you mean 'images'"),
        ("dhf1k:one,images", ["a", "b"], "has the weight 'one'; give a number above 0"),
        ("dhf1k:0,images", ["a", "b"], "has the weight '0'"),
        ("dhf1k:,images", ["a", "b"], "has the weight ''"),
        ("synthetic,images", ["a", "b"], "the synthetic corpus cannot be a part of others"),
    ],
)
def test_an_invalid_mixture_is_a_one_line_error(name, roots, message):
    with pytest.raises(UsageError, match=message):
        parts_of(name, roots)


def test_a_recipe_holds_one_root_or_a_list(tmp_path):
    toml = '[corpus]\nname = "dhf1k,images"\nroot = ["a", "/b"]\n[teacher]\nmaps = "m"\n'
    (tmp_path / "r.toml").write_text(toml, encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.corpus.root == (str(tmp_path / "a"), "/b") and recipe.teacher.maps == str(tmp_path / "m")
    assert load_recipe(None, ['corpus.root=["x"]']).corpus.root.endswith("/x")
    again = tmp_path / "again.toml"
    again.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe


# --- labels ----------------------------------------------------------------------------------------------------------


def write_labels(folder):
    """Labels of the clips and of both sets, as three teachers write them."""
    rng = np.random.default_rng(0)
    for name in ("001", "002", "003", "004"):
        (folder / "gaze").mkdir(parents=True, exist_ok=True)
        maps = rng.integers(1, 256, (6, 6, 8), np.uint8)
        np.savez(folder / "gaze" / f"{name}.npz", maps=maps, peak=np.full(6, 0.5, np.float32))
    (folder / "pictures").mkdir()
    for i, name in enumerate(("osie", "street")):
        maps = np.stack([np.full((6, 8), 10 * n + 100 * i, np.uint8) for n in (1, 2, 3, 4, 5)])
        names = np.array([f"{n:03d}.jpg" for n in (1, 2, 3, 4, 5)])
        np.savez(folder / "pictures" / f"{name}.npz", names=names, maps=maps, peak=np.full(5, 0.8, np.float32))
    return folder


def test_a_still_image_gets_its_row_of_the_sets_labels(tmp_path):
    folder = write_labels(tmp_path)
    teacher = MapsTeacher({"dhf1k": folder / "gaze", "images": folder / "pictures"})
    assert teacher.logits("002", 6, "dhf1k").shape == (6, 6, 8)
    for name, value in (("osie/003", 30), ("street/003", 130), ("street/005", 150)):
        logits = teacher.logits(name, 1, "images")
        assert logits.shape == (1, 6, 8) and np.allclose(logits.sigmoid(), value / 255 * 0.8, atol=1e-4)
    assert teacher.has("osie/001", "images") and not teacher.has("osie/006", "images")
    assert not teacher.has("003", "images")  # two sets have one
    with pytest.raises(ValueError, match="has nothing for clip osie/009"):
        teacher.logits("osie/009", 1, "images")
    (folder / "pictures" / "street.npz").unlink()
    teacher = MapsTeacher(folder / "pictures")
    assert np.allclose(teacher.logits("003", 1).sigmoid(), 30 / 255 * 0.8, atol=1e-4) and not teacher.has("003.b")


def recipe_of(two, *maps):
    name, roots = "dhf1k:1,images:0.5", [str(root) for root in two]
    values = {"corpus.name": name, "corpus.root": roots, "teacher.name": "maps", "teacher.maps": [str(m) for m in maps]}
    return load_recipe(None, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def test_the_run_finds_the_labels_of_every_part(tmp_path, two):
    labels = write_labels(tmp_path / "labels")
    for maps in ([labels / "gaze", labels / "pictures"], [labels]):
        rows = plan.dry_run(tmp_path / "run", recipe_of(two, *maps))
        assert rows[1]["detail"] == "14 clips" and all(row["state"] == "to do" for row in rows)
    inputs = {what: files_in(paths) for what, paths in plan.inputs(recipe_of(two, labels)).items()}
    assert list(inputs) == [f"the corpus at {two[0]}", f"the corpus at {two[1]}", f"the maps in {labels}"]
    assert str(two[1] / "osie" / "fixations.csv") in inputs[f"the corpus at {two[1]}"]
    shutil.rmtree(labels / "gaze")
    with pytest.raises(UsageError, match=r"has nothing for clip dhf1k\.001 and 3 more"):
        plan.dry_run(tmp_path / "run", recipe_of(two, labels))
    unlabelled = recipe_of(two, labels)
    gaze = dataclasses.replace(unlabelled, corpus=dataclasses.replace(unlabelled.corpus, name="images", root=str(two[1])))
    with pytest.raises(UsageError, match=r"001 and 9 more: there is no .*; did you mean --maps .*pictures\?"):
        plan.check_ready(gaze)
    with pytest.raises(UsageError, match="names 3 folders, the corpus has 2 parts"):
        plan.dry_run(tmp_path / "run", recipe_of(two, labels, labels, labels))
    with pytest.raises(UsageError, match="has 2 parts, and --root names 1 folder"):
        plan.dry_run(tmp_path / "run", recipe_of(two[:1], labels))


def test_videos_and_images_are_labelled_and_trained_on_together(tmp_path, two, narrator):
    recipe = recipe_of(two, write_labels(tmp_path / "labels"))
    tiny = [*(o for o in TINY if not o.startswith("synthetic")), "train.steps=4", "corpus.val=0.2"]
    recipe = dataclasses.replace(load_recipe(None, tiny), corpus=recipe.corpus, teacher=recipe.teacher)
    plan.check_ready(recipe)
    with RunDir.create(tmp_path / "run", recipe) as run:
        engine.carry_out(run, recipe, narrator, until="train")
        corpus = Corpus.from_dict(json.loads((run / "corpus.json").read_text(encoding="utf-8")))
        for clip in corpus.clips:
            labels, cached = (np.load(run / "labels" / f"{clip.id}.npy"), np.load(run / "frames" / f"{clip.id}.frames.npy"))
            assert len(labels) == clip.frames and len(cached) == (1 if clip.static else 2)  # 6 frames at 8 of 30 per second
        assert (run / "checkpoints" / "best.pt").is_file()
    assert corpus.weights == {"dhf1k": 1.0, "images": 0.5} and len(corpus.val) == 3


def test_roots_and_maps_are_repeated_on_the_command_line(tmp_path, two):
    labels = write_labels(tmp_path / "labels")
    roots = [word for root in two for word in ("--root", root)]
    maps = ["--maps", labels / "gaze", "--maps", labels / "pictures"]
    command = ["run", "--corpus", "dhf1k:1,images:0.5", *roots, "--teacher", "maps", *maps, "--dry-run", "--json"]
    result = distill(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["run"] == "runs/dhf1k+images-maps"

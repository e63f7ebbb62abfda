"""What a run will take: the disk exactly, the time roughly; and less of both where it goes on."""

from dataclasses import replace

import pytest

from distill.recipe.files import load_recipe
from distill.run.errors import UsageError
from distill.run.estimate import RELATIVE_SPEED, Estimate, Speed, Survey, estimate, left, probe, survey
from distill.run.plan import check_ready
from distill.training import frames
from tests.helpers import gaze_corpus, make_clip

SPEED = Speed(decode=0.01, cache=0.02, train=0.005, gmac=100.0, on="cpu (no CUDA device visible), 2 threads")
SMALL = ("student.height=32", "student.width=64")


def test_the_frames_of_a_corpus_are_counted_and_their_place_on_disk_is_exact(tmp_path):
    from distill.corpora import open_corpus

    for name in ("001", "002", "003"):
        make_clip(tmp_path / "c", name, frames=25, annotated=25)
    stills = gaze_corpus(tmp_path / "s")
    recipe = load_recipe(None, [*SMALL, "corpus.name=dhf1k,images", f'corpus.root=["{tmp_path}/c","{stills}"]'])
    found = survey(recipe)
    assert (found.frames, found.cached, found.annotated) == (3 * 25 + 6, 3 * 9 + 6, 1.0) and len(found.sample) == 3
    cost = estimate(recipe, found, SPEED)
    corpus = open_corpus(recipe.corpus.name, recipe.corpus.root)
    for clip in corpus.clips:
        frames.cache(tmp_path / "frames", clip, recipe.student, recipe.train.sample_fps)
    files = list((tmp_path / "frames").glob("*.npy"))
    assert cost.disk["frames"] == sum(file.stat().st_size - 128 for file in files)  # a header each


def test_times_follow_from_the_probe():
    recipe = load_recipe(
        None, ["train.steps=100", "train.frames_first=0.5", "train.frames=10", "train.batch=2", "train.window=10"]
    )
    cost = estimate(recipe, Survey(6000, 2000, 1.0, 640 * 360, ()), SPEED)
    assert cost.seconds["train"] == pytest.approx((50 * 10 + 50 * 20) * SPEED.train)
    slow = replace(SPEED, decode=1e-4)  # so that decoding does not decide
    assert cost.seconds["label"] == pytest.approx(6000 * SPEED.decode / 2) and cost.seconds["corpus"] == pytest.approx(30)
    cost = estimate(recipe, Survey(6000, 2000, 1.0, 640 * 360, ()), slow)
    assert cost.seconds["label"] == pytest.approx(6000 * 0.174 / RELATIVE_SPEED / 100)
    maps = load_recipe(None, ["teacher.name=maps", "teacher.maps=x"])
    assert estimate(maps, Survey(6000, 2000, 1.0, 640 * 360, ()), SPEED).seconds["label"] == 0


def test_a_gpu_labels_no_faster_than_videos_decode_and_mirrored_frames_take_twice_as_long():
    def on_gpu(*sets, decode=1e-5):
        recipe = load_recipe(None, ["teacher.name=unisal", *sets])
        return estimate(recipe, Survey(28_200, 9400, 1.0, 640 * 360, ()), replace(SPEED, decode=decode)).gpu

    assert on_gpu()["label"] == pytest.approx(10) and on_gpu("teacher.flip=true")["label"] == pytest.approx(20)
    assert on_gpu(decode=0.01)["label"] == pytest.approx(141)
    assert "train" in on_gpu() and "train" not in on_gpu("student.height=128", "student.width=224")  # one size was measured


def test_the_probe_measures_and_leaves_no_trace():
    import torch

    recipe = load_recipe(None, [*SMALL, "student.widths=[4,8,8,12,16]", "student.state_channels=8"])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = probe(recipe, survey(recipe))
    assert torch.equal(torch.get_rng_state(), before) and min(speed.cache, speed.train, speed.gmac) > 0


def test_all_clips_in_an_official_test_set_are_told_apart_from_no_clips(tmp_path):
    make_clip(tmp_path, "701", annotated=6)
    sets = ["corpus.name=dhf1k", f"corpus.root={tmp_path}"]
    for used in (survey, check_ready):
        with pytest.raises(UsageError, match=r"official test set; --set corpus\.split=share uses them"):
            used(load_recipe(None, sets))
        used(load_recipe(None, [*sets, "corpus.split=share"]))


def test_a_run_that_goes_on_has_less_to_spend(tmp_path):
    cost = Estimate(
        100, {"corpus": 5.0, "frames": 100.0, "label": 200.0, "train": 300.0}, {"frames": 8000, "label": 1000}, (), "cpu",
        {"label": 10.0, "train": 30.0},
    )  # fmt: skip
    assert left(cost, 100, tmp_path / "new") == cost
    for name, size in (
        ("frames/1.frames.npy", 1500),
        ("frames/1.truth.npy", 500),
        ("labels/1.npy", 1200),
        ("labels/store.json", 9),
        ("frames/.2.frames.npy.7-0123abcd.tmp.npy", 400),  # of a process that was killed
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n{"step": 25}\n', encoding="utf-8")
    assert left(cost, 100, tmp_path).seconds["train"] == 300  # without a checkpoint it starts again
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    now = left(cost, 100, tmp_path)
    assert now.seconds == {"corpus": 5, "frames": 75, "label": 0, "train": 225} and now.gpu == {"label": 0, "train": 22.5}
    assert now.disk == {"frames": 6000, "label": 0}
    assert left(cost, 10, tmp_path).seconds["train"] == 0

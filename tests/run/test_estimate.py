"""What a run will take: the disk exactly, the time roughly, and how both are said."""

from pathlib import Path

import pytest

from distill.recipe.files import load_recipe
from distill.run.estimate import Estimate, Speed, Survey, estimate, probe, summary, survey, told, told_bytes
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
    assert cost.seconds["label"] == pytest.approx(6000 * 0.174 / 0.25 / 100) and cost.seconds["corpus"] == pytest.approx(30)
    maps = load_recipe(None, ["teacher.name=maps", "teacher.maps=x"])
    assert estimate(maps, Survey(6000, 2000, 1.0, 640 * 360, ()), SPEED).seconds["label"] == 0


def test_the_probe_measures_and_leaves_no_trace():
    import torch

    recipe = load_recipe(None, [*SMALL, "student.widths=[4,8,8,12,16]", "student.state_channels=8"])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    speed = probe(recipe, survey(recipe))
    assert torch.equal(torch.get_rng_state(), before) and min(speed.cache, speed.train, speed.gmac) > 0


def test_what_is_left_to_do_is_said_in_words():
    cost = Estimate(100, {"frames": 90.0, "label": 7200.0, "train": 600.0}, {"frames": 10**18, "labels": 5_000_000}, ("teach",),
                    "cpu", {"label": 60.0, "train": 590.0})  # fmt: skip
    said = summary(cost, ["frames", "label", "train"], Path("nowhere/run"))
    assert said[0] == "about 2.2 h on cpu: frames 90 s, label 2 h, train 10 min; teach not estimated"
    assert (
        "frames 1000000000 GB, labels 5 MB" in said[1]
        and "NOT ENOUGH" in said[2]
        and said[3].endswith("as measured: label 60 s")
    )
    assert summary(cost, ["report"], Path()) == []
    assert [told(s) for s in (0.5, 99, 6000, 200_000)] == ["1 s", "99 s", "1.7 h", "2.3 days"]
    assert [told_bytes(b) for b in (0, 5.5e5, 2e6, 2.2e10)] == ["0 kB", "550 kB", "2 MB", "22 GB"]

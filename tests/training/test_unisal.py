"""UNISAL's training on a tiny corpus of videos and images: it learns, resumes exactly, and keeps the domains apart."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from distill.corpora import Clip
from distill.recipe.keys import Unisal as UnisalConfig
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.teachers.unisal import Unisal, UnisalNet, scale
from distill.training.loop import TrainingContext
from distill.training.teachers import unisal as module
from distill.training.teachers.unisal import cache, density_losses, domain_of, plan, train_unisal, windows

RECIPE = UnisalConfig(epochs=2, batch=2, frames=3, images=2)
CPU = torch.device("cpu")
HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos of 6 frames, 12 per second, and three images: a bright spot, upper left, that everybody looks at."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    made = []
    for name in ("a", "b", "x", "y", "z"):
        static = name in "xyz"
        frames = 1 if static else 6
        (root / name / "fixations").mkdir(parents=True)
        for t in range(frames):
            row, column = 10 + 5 * rng.random(), 16 + 8 * rng.random()
            y, x = np.mgrid[:HEIGHT, :WIDTH]
            spot = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 60)
            frame = (40 + 200 * spot[..., None] + rng.integers(0, 8, (HEIGHT, WIDTH, 3))).clip(0, 255)
            cv2.imwrite(str(root / name / f"{t + 1:04d}.png"), frame.astype(np.uint8))
            fixations = np.zeros((HEIGHT, WIDTH), np.uint8)
            fixations[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2] = 255
            cv2.imwrite(str(root / name / "fixations" / f"{t + 1:04d}.png"), fixations)
        video = root / name / "0001.png" if static else root / name
        made.append(
            Clip(
                name, str(video), frames, HEIGHT, WIDTH, 12.0, str(root / name / "fixations"),
                annotated_frames=frames, static=static, corpus="pictures" if static else "films",
            )
        )  # fmt: skip
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A smaller input: the same network in a fraction of the time."""
    monkeypatch.setattr(module.unisal, "input_size", lambda domain, height, width: (64, 96))
    monkeypatch.setattr(module, "FROZEN_EPOCHS", 1)


def train(clips, folder, recipe=RECIPE, stop=lambda: False, **options):
    context = TrainingContext(folder, CPU, 0, Narrator(quiet=True, stop=stop))
    return train_unisal(clips, recipe, context, folder / "frames", **options)


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "weights_best.pth"
    torch.save(Unisal.random(5).net.state_dict(), path)
    return path


def test_the_cache_holds_what_the_network_will_see(clips, tmp_path):
    material = cache(tmp_path, clips[0], "DHF1K")
    assert material.frames.shape == (3, 64, 96, 3)  # every second one of six
    third = list(clips[0].read())[2]
    assert np.array_equal(material.frames[1], scale(third[None], (64, 96))[0].numpy())
    density, fixations = material.truth[1]
    assert density.max() == 255 and fixations.max() == 1 and fixations.sum() >= 9
    peak = np.unravel_index(density.argmax(), density.shape)
    assert np.abs(np.argwhere(fixations).mean(0) - peak).max() < 3
    half = cache(tmp_path, replace(clips[0], id="half", annotated_frames=3), "DHF1K")
    assert len(half.frames) == len(half.truth) == 2  # what nobody annotated teaches nothing
    written = (tmp_path / "a.frames.npy").stat().st_mtime_ns
    cache(tmp_path, clips[0], "DHF1K")
    assert (tmp_path / "a.frames.npy").stat().st_mtime_ns == written


def test_training_lowers_the_loss(clips, tmp_path, monkeypatch):
    losses = []

    def spy(*arguments):
        value = density_losses(*arguments)
        losses.append(value.mean().item())
        return value

    monkeypatch.setattr(module, "density_losses", spy)
    train(clips, tmp_path, replace(RECIPE, epochs=8, lr=0.1, lr_decay=0.9, frames=2))
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(clips, tmp_path):
    whole = train(clips, tmp_path / "whole").net.state_dict()
    asked = iter([False] * 8 + [True] * 3)  # five times while the clips are cached
    with pytest.raises(Interrupted, match="after step"):
        train(clips, tmp_path / "parts", stop=lambda: next(asked, False))
    assert (tmp_path / "parts" / "unisal_last.pt").exists() and not (tmp_path / "parts" / "unisal.pt").exists()
    parts = train(clips, tmp_path / "parts").net.state_dict()
    assert not changed(whole, parts)
    assert not (tmp_path / "parts" / "unisal_last.pt").exists()
    loaded = Unisal.load(tmp_path / "parts" / "unisal.pt", "SALICON").net.state_dict()
    assert not changed(parts, loaded)


def test_videos_train_their_own_domain_alone(clips, tmp_path, released, monkeypatch):
    monkeypatch.setattr(module, "FROZEN_EPOCHS", 0)
    start = torch.load(released)
    recipe = replace(RECIPE, epochs=1, domains=("films=Hollywood",))
    after = train(clips[:2], tmp_path, recipe, start=released).net.state_dict()
    moved = changed(start, after)
    assert not [key for key in moved if any(other in key.lower() for other in ("dhf1k", "ucfsports", "salicon"))]
    for part in ("bn_Hollywood", "gaussians_hollywood", "adaptation_hollywood", "smoothing_hollywood", "cnn.", "rnn."):
        assert [key for key in moved if part in key], part
    assert not [key for key in moved if key.startswith("cnn.") and "running" in key]  # the trunk's norms are fixed


def test_images_train_salicon_and_leave_the_recurrence_alone(clips, tmp_path, released):
    start = torch.load(released)
    moved = changed(start, train(clips[2:], tmp_path, start=released).net.state_dict())
    assert [key for key in moved if "bn_SALICON" in key]
    assert not [key for key in moved if key.startswith(("rnn.", "post_rnn."))]
    assert not [key for key in moved if any(other in key.lower() for other in ("dhf1k", "hollywood", "ucfsports"))]


def test_a_trained_trunk_is_frozen_at_first(clips, tmp_path, released):
    start = torch.load(released)
    frozen = train(clips, tmp_path / "frozen", replace(RECIPE, epochs=1), start=released).net.state_dict()
    assert not [key for key in changed(start, frozen) if key.startswith("cnn.")]
    fresh = train(clips, tmp_path / "fresh", replace(RECIPE, epochs=1)).net
    torch.manual_seed(0)
    assert changed(UnisalNet().cnn.state_dict(), fresh.cnn.state_dict())


def test_plan(clips, tmp_path):
    materials = [cache(tmp_path, clip, domain_of(clip, {})) for clip in clips]
    recipe = replace(RECIPE, windows=3)
    epochs = [plan(materials, recipe, 0, epoch) for epoch in range(4)]
    for batches in epochs:
        assert len(batches) == 3 + 2  # 2 videos x 3 windows in twos; 3 images in twos
        seen = [i for batch in batches for i in batch]
        assert seen.count(0) == seen.count(1) == 3 and {2, 3, 4} <= set(seen)
        assert all(len({materials[i].kind for i in batch}) == 1 for batch in batches)
    assert epochs[0] == plan(materials, recipe, 0, 0) and epochs[0] != epochs[1]


def test_windows_of_short_clips_and_images(clips, tmp_path):
    film, picture = (cache(tmp_path, clip, domain_of(clip, {})) for clip in (clips[0], clips[2]))
    batch = windows([film, film], 5, np.random.default_rng(0))
    frames = batch.frames_BTHWC
    assert frames.shape == (2, 5, 64, 96, 3) and batch.truth_BT2HW.shape == (2, 5, 2, 64, 96)
    assert torch.equal(frames[0, 2], frames[0, 4]) and not torch.equal(frames[0, 1], frames[0, 2])
    assert batch.places == [("a", [1, 3, 5, 5, 5])] * 2
    batch = windows([picture], 5, np.random.default_rng(0))
    assert batch.frames_BTHWC.shape == (1, 1, 64, 96, 3) and batch.places == [("x", [1])]


def test_losses_against_their_definitions(monkeypatch):
    monkeypatch.setattr(module, "NSS_WEIGHT", 0.3)
    monkeypatch.setattr(module, "CC_WEIGHT", 0.2)
    rng = np.random.default_rng(3)
    p, q = rng.random((2, 2, 6, 7))
    p, q = (x / x.sum((1, 2), keepdims=True) for x in (p, q))
    fixations = (rng.random((2, 6, 7)) < 0.2).astype(float)
    found = density_losses(*(torch.tensor(x, dtype=torch.float32) for x in (np.log(p), 40 * q, fixations)))
    for n in range(2):
        kl = (q[n] * np.log(q[n] / p[n])).sum()
        cc = np.corrcoef(p[n].ravel(), q[n].ravel())[0, 1]
        nss = ((p[n] - p[n].mean()) / p[n].std(ddof=1))[fixations[n] > 0].mean()
        assert found[n].item() == pytest.approx(kl - 0.3 * nss - 0.2 * cc, abs=1e-4)


def test_domains(clips):
    assert domain_of(clips[0], {}) == "DHF1K" and domain_of(clips[2], {"pictures": "DHF1K"}) == "SALICON"
    assert domain_of(clips[0], {"films": "UCFSports"}) == "UCFSports"
    with pytest.raises(UsageError, match="films"):
        domain_of(clips[0], {"films": "SALICON"})


def test_untrainable_input_is_refused(clips, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="annotated"):
        train([replace(clips[0], annotated_frames=0)], tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        train(clips[:1], tmp_path, start=tmp_path / "none.pth")
    with pytest.raises(UsageError, match="does not exist"):
        train(clips[:1], tmp_path, trunk=tmp_path / "none.pth.tar")
    with pytest.raises(UsageError, match=r"not finite at step \d+: clip [abxyz] frames? \d.*; try a smaller unisal\.lr"):
        monkeypatch.setattr(module.UnisalTask, "max_norm", 1e20)
        train(clips, tmp_path / "diverged", replace(RECIPE, epochs=8, lr=1e20))

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill import frames
from distill.config import Train
from distill.corpora import open_corpus
from distill.errors import Interrupted, UsageError
from distill.progress import Narrator
from distill.students import TinyUNetConfig
from distill.train import Sample, _colour, _there_and_back, draw, learning_rate, train, warp

STUDENT = TinyUNetConfig(height=32, width=64, widths=(8, 8, 12, 16), state_channels=8)
CONFIG = Train(steps=6, batch=2, window=3, windows=2, validate_every=3, checkpoint_every=2, sample_fps=12.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(tiny_root, tmp_path_factory):
    """Every clip of the tiny corpus, cached, with labels that say the same as the truth."""
    folder = tmp_path_factory.mktemp("frames")
    result = []
    for clip in open_corpus("synthetic", tiny_root).clips:
        frames.cache(folder, clip, STUDENT, CONFIG.sample_fps)
        cached = frames.load(folder, clip, CONFIG.sample_fps)
        labels = np.repeat(cached.truth[:, 0], cached.stride, 0)[: clip.frames]
        result.append(Sample(cached, (8 * labels - 4).astype(np.float16)))
    return result


def run(samples, folder, config=CONFIG, narrator=None, seed=0):
    folder.mkdir(exist_ok=True)
    clips = [s.cached for s in samples]
    return train(
        samples[1:],
        clips[:1],
        config,
        STUDENT,
        folder,
        folder / "metrics.jsonl",
        CPU,
        seed,
        narrator or Narrator(quiet=True),
    )


def weights(folder, name="last.pt"):
    return torch.load(folder / name, weights_only=True)["student"]


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_cache_holds_what_the_graph_will_see(samples, tiny_root):
    from distill.corpora import fixation_map
    from distill.frames import to_working_size

    cached = samples[0].cached
    assert cached.stride == 2 and cached.frames.shape == (12, 32, 64, 3) and cached.truth.shape == (12, 2, 8, 16)
    decoded = list(cached.clip.read(2))
    assert np.array_equal(cached.frames[3], to_working_size(decoded[3], STUDENT))
    for j in range(12):
        seen = fixation_map(cached.clip, 2 * j)
        assert cached.truth[j, 1].sum() == seen.sum()
        assert cached.truth[j, 0].max() == (1 if seen.any() else 0)


def test_training_lowers_the_loss(samples, tmp_path):
    plain = replace(CONFIG, flip=False, crop=1.0, colour=False)
    run(samples[:2], tmp_path, replace(plain, steps=50, validate_every=50, checkpoint_every=50, lr=1e-2))
    losses = [line["loss"] for line in log(tmp_path) if "loss" in line]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_what_a_step_sees_follows_from_seed_and_step(samples):
    a, b = (draw(samples, CONFIG, STUDENT, 0, 3, CPU) for _ in range(2))
    assert torch.equal(a.frames_BTChw, b.frames_BTChw) and a.places == b.places
    assert not torch.equal(a.frames_BTChw, draw(samples, CONFIG, STUDENT, 1, 3, CPU).frames_BTChw)


def test_windows_of_one_stream_follow_each_other(samples):
    plain = replace(CONFIG, crop=1.0, colour=False)
    first, second = (draw(samples, plain, STUDENT, 0, step, CPU) for step in (2, 3))
    for (clip, before), (same, after) in zip(first.places, second.places, strict=True):
        assert clip == same
        steps = np.diff([*before, *after])
        assert len(set(abs(steps))) == 1  # one stride throughout, also over the border


def test_flip_and_crop_move_frames_and_targets_together():
    picture = torch.zeros(1, 1, 1, 32, 64)
    picture[..., 8:16, 8:16] = 1
    target = torch.nn.functional.avg_pool2d(picture[0], 4)[None]
    theta = torch.tensor([[[-0.8, 0.0, 0.1], [0.0, 0.7, -0.2]]])
    moved = torch.nn.functional.avg_pool2d(warp(picture, theta)[0], 4)[None]
    assert (moved - warp(target, theta)).abs().mean() < 0.02 and moved.sum() > 1


def test_colour_changes_keep_grey_grey():
    for seed in range(5):
        matrix, _ = _colour(np.random.default_rng(seed))
        grey = matrix @ torch.full((3,), 0.5)
        assert torch.allclose(grey, grey.mean().expand(3), atol=1e-5)


def test_short_clips_are_walked_there_and_back():
    assert _there_and_back(np.arange(8), 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1]
    assert _there_and_back(np.arange(3), 1).tolist() == [0, 0, 0]


def test_the_learning_rate_rises_and_falls():
    config = replace(CONFIG, steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(s, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.02
    assert np.argmax(rates) in (9, 10)


def test_an_interrupted_run_ends_with_the_same_weights(samples, tmp_path):
    run(samples, tmp_path / "whole")
    calls = []

    def third_call():
        calls.append(1)
        return len(calls) == 3

    with pytest.raises(Interrupted, match="after step 3 of 6"):
        run(samples, tmp_path / "parts", narrator=Narrator(quiet=True, stop=third_call))
    run(samples, tmp_path / "parts")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(
        torch.equal(v, weights(tmp_path / "parts", "best.pt")[k])
        for k, v in weights(tmp_path / "whole", "best.pt").items()
    )
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


def test_lines_that_a_kill_left_behind_are_dropped(samples, tmp_path):
    run(samples, tmp_path)
    whole = log(tmp_path)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1}\n{"step": 10, "lo')
    torch.save(saved, tmp_path / "last.pt")
    run(samples, tmp_path)
    assert log(tmp_path) == whole


def test_nan_stops_before_the_weights_and_names_the_frame(samples, tmp_path):
    spoiled = samples[1].labels.copy()
    spoiled[:] = np.nan
    run(samples, tmp_path, replace(CONFIG, steps=2))
    before = weights(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"the loss is not finite at step \d+: clip 002, frame \d+; the last good checkpoint is .*last\.pt",
    ):
        run([samples[0], replace(samples[1], labels=spoiled)], tmp_path, replace(CONFIG, steps=6))
    after = weights(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_frames_without_truth_learn_from_soft_labels_alone(samples):
    from distill.students.tiny_unet import TinyUNet
    from distill.train import forward, mixed_loss

    batch = draw(samples, CONFIG, STUDENT, 0, 0, CPU)
    batch.density_BThw[:] = 0
    batch.fixations_BThw[:] = 0
    student = TinyUNet(STUDENT)
    logits, _ = forward(student, batch, None, CONFIG)
    weights_ = {"kl": 1.0, "cc": 1.0, "sim": 0.0, "nss": 1.0, "bce": 0.0}
    mixed, _ = mixed_loss(logits, batch, replace(CONFIG, soft_weight=0.3), weights_)
    soft, _ = mixed_loss(logits, batch, replace(CONFIG, soft_weight=1.0), weights_)
    assert torch.isfinite(mixed).all() and torch.allclose(mixed, soft)


def test_image_streams_carry_no_state(samples):
    from distill.students.tiny_unet import TinyUNet
    from distill.train import forward

    student = TinyUNet(STUDENT).eval()
    batch = draw(samples, CONFIG, STUDENT, 0, 0, CPU)
    logits, state = forward(student, batch, None, replace(CONFIG, image_share=0.5))
    assert (state[0] == 0).all() and (state[1, -1] == 1).all()
    assert torch.allclose(logits[0], student.image(batch.frames_BTChw[0])[:, 0], atol=1e-5)

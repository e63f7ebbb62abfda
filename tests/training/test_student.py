import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.recipe.keys import Train
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.students import TinyUNetConfig
from distill.teachers.unisal import Unisal
from distill.training import checkpoint, frames, student
from distill.training.batches import Sample, crop_and_flip, draw_frames, draw_windows, reflect, vary, vary_colour, warp
from distill.training.loop import TrainingContext
from distill.training.student import CLIPS, FRAMES, LR_FACTORS, learning_rates, mixed_loss, parameter_groups, train
from tests.helpers import ROOT, running

STUDENT = TinyUNetConfig(height=32, width=64, widths=(4, 8, 8, 12, 16), state_channels=8)
CONFIG = Train(steps=6, frames=6, batch=2, window=3, windows=2, validate_every=3, checkpoint_every=2, sample_fps=12.0)
CPU = torch.device("cpu")


def tiny_samples(root, folder):
    """Every clip of the tiny corpus, cached, with labels equal to the truth."""
    result = []
    for clip in open_corpus("synthetic", root).clips:
        frames.cache(folder, clip, STUDENT, CONFIG.sample_fps)
        cached = frames.load(folder, clip, CONFIG.sample_fps)
        labels = np.repeat(cached.truth[:, 0], cached.stride, 0)[: clip.frames]
        result.append(Sample(cached, (8 * labels - 4).astype(np.float16)))
    return result


@pytest.fixture(scope="module")
def samples(tiny_root, tmp_path_factory):
    return tiny_samples(tiny_root, tmp_path_factory.mktemp("frames"))


def run(samples, folder, config=CONFIG, narrator=None, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    clips = [s.cached for s in samples]
    context = TrainingContext(folder, CPU, seed, narrator or Narrator(quiet=True))
    return train(samples[1:], clips[:1], config, STUDENT, context, folder / "metrics.jsonl")


def on_cpu(drawn):
    return vary(drawn, STUDENT, CPU)


def weights(folder, name="last.pt"):
    saved = torch.load(folder / name, weights_only=True)
    return saved["live"]["student"] if name == "last.pt" else saved["student"]


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_cache_holds_what_the_graph_will_see(samples, tiny_root):
    from distill.corpora import fixation_map
    from distill.training.frames import on_logit_grid, to_twice

    cached = samples[0].cached
    assert cached.stride == 2 and cached.frames.shape == (12, 64, 128, 3) and cached.truth.shape == (12, 2, 16, 32)
    decoded = list(cached.clip.read(2))
    assert np.array_equal(cached.frames[3], to_twice(decoded[3], STUDENT))
    for j in range(12):
        seen = fixation_map(cached.clip, 2 * j)
        assert cached.truth[j, 1].sum() == seen.sum()
        assert cached.truth[j, 0].max() == (1 if seen.any() else 0)
        assert on_logit_grid(cached.truth[j : j + 1]).shape == (1, 2, 8, 16)
        assert on_logit_grid(cached.truth[j : j + 1])[0, 1].sum() == seen.sum()


def test_training_lowers_the_loss(samples, tmp_path):
    plain = replace(CONFIG, flip=False, colour=False)
    run(samples[:2], tmp_path, replace(plain, steps=60, frames_first=1.0, validate_every=60, checkpoint_every=60, lr=1e-2))
    losses = [line["loss"] for line in log(tmp_path) if "loss" in line]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_batches_follow_from_seed_and_step(samples):
    for draw in (draw_frames, draw_windows):
        a, b = (draw(samples, CONFIG, STUDENT, (0, 0), 3) for _ in range(2))
        assert torch.equal(on_cpu(a).frames_BTChw, on_cpu(b).frames_BTChw) and a.places == b.places
        assert not torch.equal(a.twice_BTHWC, draw(samples, CONFIG, STUDENT, (1, 0), 3).twice_BTHWC)


def test_single_frames_come_from_everywhere_by_weight(samples):
    heavy = [replace(samples[0], weight=3.0), *samples[1:]]
    drawn = [c for step in range(60) for c, _ in draw_frames(heavy, CONFIG, STUDENT, (0, 0), step).places]
    assert {c for c, _ in zip(drawn, range(360), strict=False)} == {s.cached.clip.id for s in samples}
    share = drawn.count(samples[0].cached.clip.id) / len(drawn)
    assert share == pytest.approx(3 / (2 + len(samples)), abs=0.08)


def test_an_uncropped_frame_is_what_the_entry_gives(samples):
    from distill.export.runner import normalise
    from distill.students.tiny_unet import fit_to_working_size

    plain = replace(CONFIG, flip=False, colour=False)
    batch = on_cpu(draw_frames(samples[:1], plain, STUDENT, (0, 0), 0))
    for (_, (number,)), frame in zip(batch.places, batch.frames_BTChw[:, 0], strict=True):
        decoded = list(samples[0].cached.clip.read())[number - 1]
        wanted = fit_to_working_size(torch.from_numpy(normalise(decoded)), STUDENT.height, STUDENT.width)[0]
        assert (frame - wanted).abs().max() < 0.01  # the cache rounds to whole grey levels


def test_windows_of_one_stream_follow_each_other(samples):
    plain = replace(CONFIG, colour=False)
    first, second = (draw_windows(samples, plain, STUDENT, (0, 0), step) for step in (2, 3))
    for (clip, before), (same, after) in zip(first.places, second.places, strict=True):
        assert clip == same
        steps = np.diff([*before, *after])
        assert len(set(abs(steps))) == 1  # one stride throughout, also over the border


def test_streams_start_anywhere_in_a_clip_and_often_at_its_start(samples):
    short = replace(CONFIG, window=2)  # of clips of 12 frames
    batches = [draw_windows(samples, short, STUDENT, (0, 0), 2 * n) for n in range(60)]
    firsts = [numbers[0] for batch in batches for _, numbers in batch.places]
    begins = [bool(b) for batch in batches for b in batch.starts_B]
    assert begins == [first == 1 for first in firsts] and len(set(firsts)) > 4
    assert 0.25 < np.mean(begins) < 0.65  # a third, and those that fell there by chance


def test_crops_come_first_and_whole_frames_after_them(samples, tmp_path, monkeypatch):
    sides = [crop_and_flip(np.random.default_rng(n), CONFIG, 0.6).abs()[[0, 1], [0, 1]] for n in range(200)]
    assert (
        min(float(s.min()) for s in sides) >= 0.6 * np.exp(-0.2) - 1e-6 and np.mean([float(s.min()) < 1 for s in sides]) > 0.9
    )
    assert torch.equal(crop_and_flip(np.random.default_rng(0), CONFIG, 1.0).abs()[:, :2], torch.eye(2))
    seen = []

    def remembering(*given):
        seen.append(given[-1])
        return draw_frames(*given)

    monkeypatch.setattr(student, "draw_frames", remembering)
    run(samples, tmp_path, replace(CONFIG, steps=8, frames_first=0.75, cropped=0.5, crop=0.7))
    assert seen == [0.7, 0.7, 0.7, 1.0, 1.0, 1.0]


def test_flip_and_crop_move_frames_and_targets_together():
    picture = torch.zeros(1, 1, 1, 32, 64)
    picture[..., 8:16, 8:16] = 1
    target = torch.nn.functional.avg_pool2d(picture[0], 4)[None]
    theta = torch.tensor([[[-0.8, 0.0, 0.1], [0.0, 0.7, -0.2]]])
    moved = torch.nn.functional.avg_pool2d(warp(picture, theta, (32, 64))[0], 4)[None]
    assert (moved - warp(target, theta, (8, 16))).abs().mean() < 0.02 and moved.sum() > 1


def test_colour_changes_keep_grey_grey():
    for seed in range(5):
        matrix, _ = vary_colour(np.random.default_rng(seed), CONFIG)
        grey = matrix @ torch.full((3,), 0.5)
        assert torch.allclose(grey, grey.mean().expand(3), atol=1e-5)


def test_short_clips_are_reflected_at_their_ends():
    assert reflect(np.arange(8), 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1]
    assert reflect(np.arange(3), 1).tolist() == [0, 0, 0]


def test_the_learning_rates_rise_and_fall_in_each_phase():
    config = replace(CONFIG, steps=200, lr=1.0, clips_lr=0.5, image_lr=0.1, warmup=0.1)
    rates = [learning_rates(phase, step, 100, config) for phase in (FRAMES, CLIPS) for step in range(100)]
    image, temporal = [r["image"] for r in rates], [r["memory"] for r in rates]
    assert image[0] == pytest.approx(0.1) and max(image) == pytest.approx(1.0) and image[99] < 0.02
    assert np.argmax(image) in (9, 10) and max(image[100:]) == pytest.approx(0.1)
    assert not any(temporal[:100]) and max(temporal) == pytest.approx(0.5) and temporal[-1] < 0.01
    assert all(r["motion"] == 5 * r["memory"] and r["onset"] == 20 * r["memory"] for r in rates)
    some = learning_rates(CLIPS, 50, 100, replace(config, parts=("onset",)))
    assert some["onset"] > 0 and some["memory"] == some["motion"] == 0


def test_every_parameter_learns_in_its_part():
    from distill.students.tiny_unet import TinyUNet, parameter_count

    net = TinyUNet(STUDENT)
    groups = parameter_groups(net, CONFIG.weight_decay)
    sizes = {part: sum(p.numel() for g in groups if g["part"] == part for p in g["params"]) for part in LR_FACTORS}
    assert sizes == {part: parameter_count(getattr(net, part)) for part in LR_FACTORS}
    assert sum(p.numel() for g in groups for p in g["params"]) == parameter_count(net)
    still = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
    assert {id(net.row), id(net.column), id(net.prior), id(net.onset.where)} <= still


def test_clips_train_the_temporal_part_and_hold_the_rest(samples, tmp_path):
    run(samples, tmp_path, replace(CONFIG, steps=12, frames_first=0.5, keep="last"))
    first, final = weights(tmp_path, "image.pt"), weights(tmp_path, "best.pt")
    temporal = {k for k in first if k.startswith(("memory.", "onset.", "motion."))}
    assert all(torch.equal(first[k], final[k]) for k in first.keys() - temporal)
    assert not torch.equal(first["motion.say.weight"], final["motion.say.weight"])
    assert not torch.equal(first["memory.add.weight"], final["memory.add.weight"])
    assert not torch.equal(first["onset.where"], final["onset.where"])


def test_the_image_student_keeps_learning_with_image_lr(samples, tmp_path):
    run(samples, tmp_path, replace(CONFIG, steps=12, frames_first=0.5, image_lr=0.1, keep="last"))
    first, final = weights(tmp_path, "image.pt"), weights(tmp_path, "best.pt")
    assert not torch.equal(first["head.weight"], final["head.weight"])
    assert torch.equal(
        first["encoder.stem.1.running_mean"], final["encoder.stem.1.running_mean"]
    )  # BatchNorm keeps its statistics


def test_a_copied_encoder_keeps_its_first_layers_and_learns_slowly_after_them(samples, tmp_path):
    config, trunk = replace(CONFIG, steps=12, frames_first=0.5, start="teacher", keep="last"), Unisal.random(0).net.cnn
    context = TrainingContext(tmp_path, CPU, 0, Narrator(quiet=True))
    student = TinyUNetConfig(height=32, width=64, expand=(6.0, 4.0, 1.0, 0.5), state_channels=8)
    train(samples, [], config, student, context, tmp_path / "metrics.jsonl", trunk)
    final = weights(tmp_path)
    for ours, theirs in (("stem.0.weight", "0.0.weight"), ("stem.1.running_mean", "0.1.running_mean")):
        assert torch.equal(final[f"encoder.{ours}"], trunk.features.state_dict()[theirs])
    assert torch.equal(final["encoder.at_4.1.project.0.weight"], trunk.features[3].conv[6].weight)
    assert not torch.equal(final["encoder.at_8.0.depthwise.1.weight"], torch.ones(128))
    losses = [line for line in log(tmp_path) if "loss" in line]
    assert [line["phase"] for line in losses if "features" in line] == ["frames"] * 6
    rates = learning_rates(FRAMES, 30, 100, config)
    assert rates["first"] == 0 < rates["encoder"] == pytest.approx(0.2 * rates["image"])
    plain = learning_rates(FRAMES, 30, 100, CONFIG)
    assert plain["first"] == plain["encoder"] == plain["image"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_either_phase_may_be_left_out(samples, tmp_path, share):
    run(samples, tmp_path, replace(CONFIG, frames_first=share))
    assert {line["phase"] for line in log(tmp_path) if "loss" in line} == {"frames" if share else "clips"}
    assert (tmp_path / "best.pt").exists()


def test_still_images_train_the_image_student_alone(samples, tmp_path):
    still = [replace(s, cached=replace(s.cached, frames=s.cached.frames[:1], truth=s.cached.truth[:1])) for s in samples]
    run([*samples[:1], *still], tmp_path)
    assert (tmp_path / "best.pt").exists()
    batch = draw_frames(still, CONFIG, STUDENT, (0, 0), 0)
    assert {tuple(numbers) for _, numbers in batch.places} == {(1,)}


@pytest.mark.parametrize("at", [3, 8])  # among frames, and in the middle of an episode of clips
def test_an_interrupted_run_ends_with_the_same_weights(samples, tmp_path, at):
    longer = replace(CONFIG, steps=10, windows=3)
    run(samples, tmp_path / "whole", longer)
    calls = []

    def enough():
        calls.append(1)
        return len(calls) == at

    with pytest.raises(Interrupted, match=f"after step {at} of 10"):
        run(samples, tmp_path / "parts", longer, narrator=Narrator(quiet=True, stop=enough))
    run(samples, tmp_path / "parts", longer)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(
        torch.equal(v, weights(tmp_path / "parts", "best.pt")[k]) for k, v in weights(tmp_path / "whole", "best.pt").items()
    )
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


def test_log_lines_left_by_a_kill_are_dropped(samples, tmp_path):
    run(samples, tmp_path)
    whole = log(tmp_path)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1}\n{"step": 10, "lo')
    torch.save(saved, tmp_path / "last.pt")
    run(samples, tmp_path)
    assert log(tmp_path) == whole


def test_nan_stops_before_the_update_and_names_the_frame(samples, tmp_path):
    spoiled = samples[1].labels.copy()
    spoiled[:] = np.nan
    run(samples, tmp_path, replace(CONFIG, steps=2))
    before = weights(tmp_path)
    with pytest.raises(
        UsageError, match=r"the loss is not finite at step \d+: clip 002, frame \d+; the last good checkpoint is .*last\.pt"
    ):
        run([samples[0], replace(samples[1], labels=spoiled)], tmp_path, replace(CONFIG, steps=6))
    after = weights(tmp_path)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("number", [None, 1, 3])  # None: before resume files had a format
def test_a_resume_file_of_another_version_is_refused(samples, tmp_path, number):
    run(samples, tmp_path, replace(CONFIG, steps=2))
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    checkpoint.check_resumable(tmp_path / "last.pt")
    torch.save(saved | {"format": number} if number else {"step": 2, "student": {}}, tmp_path / "last.pt")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"last\.pt was written by another version .*another --out.*--force"):
        run(samples, tmp_path, replace(CONFIG, steps=4))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_weights_of_another_version_are_a_one_line_error(samples, tmp_path):
    run(samples, tmp_path, replace(CONFIG, steps=2))
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    del saved["live"]["student"]["onset.where"]
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(UsageError, match=r"last\.pt does not fit this version's network .*onset\.where.*--force"):
        run(samples, tmp_path, replace(CONFIG, steps=4))


def test_frames_without_truth_learn_from_soft_labels_alone(samples):
    from distill.students.tiny_unet import TinyUNet

    batch = on_cpu(draw_windows(samples, CONFIG, STUDENT, (0, 0), 0))
    batch.density_BThw[:] = 0
    batch.fixations_BThw[:] = 0
    logits = TinyUNet(STUDENT)(batch.frames_BTChw, None, batch.dt_B)[0][:, :, 0]
    config = replace(CONFIG, kl=1.0, cc=1.0, sim=0.0, nss=1.0, bce=0.0)
    mixed, parts = mixed_loss(logits, batch, replace(config, soft_weight=0.3))
    soft, _ = mixed_loss(logits, batch, replace(config, soft_weight=1.0))
    assert torch.isfinite(mixed).all() and torch.allclose(mixed, soft)
    assert all(torch.isnan(value) == name.startswith("truth.") for name, value in parts.items())  # not logged


RANK = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, {checkout!r})
from distill.run.machine.collectives import process_group
from distill.run.machine.parallel import job
from tests.training.test_student import CONFIG, run, tiny_samples
with job() as ranks, process_group(torch.device("cpu")):
    torch.set_num_threads(1)
    samples = tiny_samples(Path({root!r}), Path({out!r}) / f"frames{{ranks.rank}}")
    folder = Path({out!r}) / "run"
    run(samples, folder, replace(CONFIG, keep="last"))
"""


def test_two_processes_train_one_student(samples, tiny_root, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(checkout=str(ROOT), root=str(tiny_root), out=str(tmp_path)))
    (tmp_path / "run").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    with running(*launch, env=os.environ | {"OMP_NUM_THREADS": "1"}) as ranks:
        _, error = ranks.communicate(timeout=200)
    assert ranks.returncode == 0, error[-2000:]
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["step"] == CONFIG.steps and len(saved["states"]) == 2
    assert not torch.equal(*saved["states"])  # each walked along clips of its own
    run(samples, tmp_path / "alone", replace(CONFIG, keep="last"))
    together, alone = weights(tmp_path / "run"), weights(tmp_path / "alone")
    assert not torch.equal(together["encoder.stem.0.weight"], alone["encoder.stem.0.weight"])  # it saw twice as much
    with pytest.raises(UsageError, match="was written by 2 processes, this job has 1"):
        run(samples, tmp_path / "run", replace(CONFIG, steps=8, keep="last"))

"""Both stages on a trunk of a few thousand weights: what learns, what is frozen, what is kept, and that it resumes."""

import copy
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.recipe.keys import Teach
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.visage import VisageConfig, load_released
from distill.teachers.weights import read_weights
from distill.training.loop import Moment, TrainingContext, fit, update_average
from distill.training.schedules import visage_rate
from distill.training.teachers import fine_tune as ts
from distill.training.teachers import visage_windows
from tests.helpers import running

TRUNK = InternVideo2Config(width=16, depth=4, heads=2, mlp_width=32, frames=4, px=16, patch=8, layer_scale_init=0.5)
SHAPE = VisageConfig(
    trunk=TRUNK, lora_rank=2, lora_alpha=4.0, reduced_width=8, embed_width=8, norm_groups=4, out_px=12, sample_fps=12.0,
    prior_init=0.0,
)  # fmt: skip
CONFIG = Teach(
    precision="fp32",
    stage1_steps=3, stage2_steps=3, batch=2, rank=2, alpha=4.0, lr=1e-2, lr_decoder=1e-2, lr_lora=1e-2,
    validate_every=2, checkpoint_every=1, val_windows=2,
)  # fmt: skip
CPU = torch.device("cpu")
EXPERTS = ("expert 1", "expert 2")


@pytest.fixture(scope="module")
def cached(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    clips = open_corpus("synthetic", tiny_root).clips[:3]
    for clip in clips:
        visage_windows.cache(folder, clip, SHAPE)
    return [visage_windows.cache(folder, clip, SHAPE) for clip in clips]


def trunk(seed=0):
    torch.manual_seed(seed)
    return InternVideo2(TRUNK)


def task(cached, folder, config=CONFIG, narrator=None, trunk_=None, starts=(None, None), validation=True):
    context = TrainingContext(folder, CPU, 0, narrator or Narrator(quiet=True))
    val = cached[:1] if validation else []
    return ts.TwoStages(cached[1:], val, config, SHAPE, trunk_ or trunk(), starts, config.precision, context)


def train(cached, folder, *given, **more):
    folder.mkdir(exist_ok=True)
    made = task(cached, folder, *given, **more)
    return fit(made, folder / "visage.jsonl")


def after(steps):
    """A narrator whose user presses Ctrl-C during that step."""
    calls = []
    return Narrator(quiet=True, stop=lambda: calls.append(1) is None and len(calls) == steps)


def stopped(cached, folder, steps, config=CONFIG, **more):
    """The resume file of a run that is interrupted after a number of further steps."""
    with pytest.raises(Interrupted, match="teaching, after step"):
        train(cached, folder, config, after(steps), **more)
    return torch.load(folder / "visage_last.pt", weights_only=True)


def log(folder):
    return [json.loads(line) for line in (folder / "visage.jsonl").read_text().splitlines()]


def kept(folder):
    return [read_weights(folder / "visage" / f"expert{n}.safetensors") for n in (1, 2)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def changed(before, now):
    return {key for key in before if not torch.equal(before[key], now[key])}


# --- what learns -----------------------------------------------------------------------------------------------------


def test_the_loss_falls_in_both_stages(cached, tmp_path):
    points = cached[1].points[:]
    one = replace(
        cached[1], frames=cached[1].frames[:4], density=cached[1].density[:4], points=points[points[:, 0] < 4]
    )  # one window, over and over
    config = replace(CONFIG, stage1_steps=20, stage2_steps=20, batch=1, dropout=0.0, validate_every=20, checkpoint_every=20)
    train([cached[0], one], tmp_path, config)
    lines = [line for line in log(tmp_path) if "lr" in line]
    for n in (1, 2):
        first, second = ([line[f"loss{n}"] for line in lines if line["stage"] == stage] for stage in (1, 2))
        assert len(first) == len(second) == 20
        assert np.mean(first[-3:]) < 0.7 * np.mean(first[:3])
        # From where stage 1 came to; expert 2 pays its auxiliary heads there alone.
        assert np.mean(second[-3:]) < 0.9 * np.mean(second[:3])


def test_stage_1_trains_the_experts_alone(cached, tmp_path):
    still = trunk()
    before = copy.deepcopy(still.state_dict())
    start, later = (stopped(cached, tmp_path, 1, trunk_=still)["live"] for _ in range(2))
    assert same(still.state_dict(), before)
    for n in EXPERTS:
        moved = changed(start[n], later[n])
        assert all(key.startswith("expert.") for key in moved)
        parameters = {key for key in start[n] if not re.search(r"center_bias\.(xx|yy)|num_batches|^lora", key)}
        assert parameters <= moved, f"these of {n} never learn: {sorted(parameters - moved)[:3]}"


def test_stage_2_trains_lora_and_decoders_with_norms_and_auxiliary_heads_frozen(cached, tmp_path):
    still = trunk()
    before = copy.deepcopy(still.state_dict())
    start, later = (stopped(cached, tmp_path, n, trunk_=still)["live"] for n in (4, 1))
    assert same(still.state_dict(), before)
    for n in EXPERTS:
        moved = changed(start[n], later[n])
        rest = {key for key in start[n] if key not in moved}
        assert all(re.search(r"aux_heads|running_|num_batches|center_bias\.(xx|yy)", key) for key in rest), rest
        assert not any(re.search(r"aux_heads|running_", key) for key in moved)
        assert len([key for key in moved if key.startswith("lora.")]) == 2 * (1 + 4 * TRUNK.depth)


def test_lora_has_its_own_learning_rate(cached, tmp_path):
    config = replace(CONFIG, stage1_steps=0, stage2_steps=4, lr_decoder=0.0, warmup=0.0)
    start, later = (stopped(cached, tmp_path, 1, config)["live"] for _ in range(2))
    for n in EXPERTS:
        assert all(key.startswith("lora.") for key in changed(start[n], later[n]))


def gradients(made):
    return [p.grad for trainer in made.trainers for p in trainer.parameters() if p.grad is not None]


def test_gradient_checkpointing_changes_no_gradient(cached, tmp_path):
    windows = visage_windows.read([(cached[0], 0), (cached[1], 2)], TRUNK.frames)
    found = []
    for recompute in (False, True):
        made = task(cached, tmp_path, replace(CONFIG, recompute=recompute, dropout=0.5))
        made.enter(phase=1)
        for trainer in made.trainers:
            for pair in trainer.lora.modules():
                if hasattr(pair, "lora_B"):
                    torch.nn.init.normal_(pair.lora_B, std=0.1)
        torch.manual_seed(2)  # of dropout, which the second pass must repeat
        made.backward(windows, Moment(0, 1, 0))
        found.append(gradients(made))
    assert len(found[0]) == len(found[1]) > 100
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_fewer_windows_at_once_give_the_same_gradients(cached, tmp_path):
    windows = visage_windows.read([(cached[0], 0), (cached[1], 10)], TRUNK.frames)  # the second has repeated frames
    found = []
    for at_once in (0, 1):
        made = task(cached, tmp_path, replace(CONFIG, at_once=at_once, dropout=0.0))
        made.enter(phase=1)
        losses = made.backward(windows, Moment(0, 1, 0)).values
        found.append(({name: value.item() for name, value in losses.items()}, gradients(made)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_bfloat16_trains_float32_weights_on_a_bfloat16_trunk(cached, tmp_path):
    config = replace(CONFIG, precision="bf16", stage1_steps=1, stage2_steps=1)
    train(cached, tmp_path, config, trunk_=trunk().to(torch.bfloat16))
    states = kept(tmp_path)
    assert {value.dtype for state in states for key, value in state.items() if "num_batches" not in key} == {torch.float32}
    assert all(np.isfinite(line["loss1"]) for line in log(tmp_path) if "loss1" in line)


def test_the_trunk_computes_in_its_own_type_under_autocast():
    """On CUDA autocast turns what norms return into float32; here it may turn anything."""
    seen = []
    net = trunk().to(torch.bfloat16)
    for module in net.modules():
        module.register_forward_hook(lambda _, given, out: seen.append(torch.is_autocast_enabled("cpu")))
    clip = torch.zeros(1, 3, TRUNK.frames, TRUNK.px, TRUNK.px)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streams = ts.trunk_streams(net, clip, SHAPE.taps)
    assert {stream.dtype for stream in streams} == {torch.bfloat16} and seen and not any(seen)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_average_is_kept(cached, tmp_path):
    config = replace(CONFIG, stage1_steps=2, validate_every=1)
    saved = stopped(cached, tmp_path, 1, config, validation=False)
    for n, state in zip(EXPERTS, kept(tmp_path), strict=True):
        average, live = saved["averages"][n], saved["live"][n]
        assert all(
            torch.equal(state[key.removeprefix("expert.")], average[key]) for key in average if key.startswith("expert.")
        )
        assert changed(average, live)


def test_the_average_moves_by_its_decay():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * a.weight + 0.1 * b.weight
    update_average(a, b, 0.9)
    torch.testing.assert_close(a.weight, expected)


def test_each_expert_keeps_its_best(cached, tmp_path, monkeypatch):
    scores = iter([{"cc1": 0.1, "cc2": 0.1}, {"cc1": 0.3, "cc2": 0.2}, {"cc1": 0.2, "cc2": 0.4}])
    states = []

    def validate(self, phase):
        states.append([copy.deepcopy(a.expert.state_dict()) for a in self.averages.values()])
        return next(scores)

    monkeypatch.setattr(ts.TwoStages, "validate", validate)
    progress = train(cached, tmp_path, replace(CONFIG, stage1_steps=2, stage2_steps=0, validate_every=1))
    assert progress.step == 2 and list(progress.kept.values()) == [0.3, 0.4]
    first, second = kept(tmp_path)
    assert all(torch.equal(first[key], value) for key, value in states[1][0].items())
    assert all(torch.equal(second[key], value) for key, value in states[2][1].items())
    assert changed(states[1][0], states[2][0])


def test_stage_2_starts_from_the_best_of_stage_1(cached, tmp_path, monkeypatch):
    scores = iter([0.0, 0.5, 0.4, 0.3])
    states = []

    def validate(self, phase):
        states.append([copy.deepcopy(a.state_dict()) for a in self.averages.values()])
        score = next(scores)
        return {"cc1": score, "cc2": score}

    monkeypatch.setattr(ts.TwoStages, "validate", validate)
    config = replace(CONFIG, stage1_steps=2, stage2_steps=1, validate_every=1, lr_decoder=0.0, lr_lora=0.0, weight_decay=0.0)
    train(cached, tmp_path, config)
    for n in (0, 1):
        assert same(states[3][n], states[1][n]) and changed(states[2][n], states[1][n])


def test_a_kept_expert_loads_in_the_released_layout(cached, tmp_path):
    base = trunk()
    progress = train(cached, tmp_path, trunk_=base)
    files = [tmp_path / "visage" / f"expert{n}.safetensors" for n in (1, 2)]
    weights = tmp_path / "base.pt"
    torch.save({"module": {f"vision_encoder.{key}": value for key, value in base.state_dict().items()}}, weights)
    net = load_released(SHAPE, weights, files, orig_t_size=TRUNK.frames).eval()
    prefix = "encoder.vision_encoder.base_model.model."
    lora = {key for key in read_weights(files[0]) if key.startswith(prefix)}
    assert f"{prefix}patch_embed.proj.lora_A.default.weight" in lora
    assert f"{prefix}blocks.3.block.mlp.fc2.lora_B.default.weight" in lora and len(lora) == 2 * (1 + 4 * TRUNK.depth)

    class AsTrainer(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, trunk_, clip, streams):
            return net(clip).experts[self.number], {}

    made = task(cached, tmp_path, trunk_=base)
    made.averages = {n: AsTrainer(i) for i, n in enumerate(EXPERTS)}
    scores = made.validate(phase=1)
    assert [scores["cc1"], scores["cc2"]] == pytest.approx(list(progress.kept.values()), abs=1e-5)


def test_an_expert_starts_from_its_file(cached, tmp_path):
    train(cached, tmp_path / "a")
    starts = [tmp_path / "a" / "visage" / f"expert{n}.safetensors" for n in (1, 2)]
    config = replace(CONFIG, stage1_steps=0, stage2_steps=1, lr_decoder=0.0, lr_lora=0.0, weight_decay=0.0)
    train(cached, tmp_path / "b", config, starts=starts)
    for a, b in zip(kept(tmp_path / "a"), kept(tmp_path / "b"), strict=True):
        assert same(a, b)


# --- going on --------------------------------------------------------------------------------------------------------


SPARSE = replace(CONFIG, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(cached, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(cached, folder, SPARSE)
    return folder


def ends_alike(whole, parts):
    assert all(same(a, b) for a, b in zip(kept(whole), kept(parts), strict=True))
    assert log(whole) == log(parts)


@pytest.mark.parametrize("stops", [(1, 1), (3, 1)])
def test_an_interrupted_run_ends_with_the_same_weights(cached, tmp_path, whole, stops):
    for n in stops:
        stopped(cached, tmp_path, n, SPARSE)
    train(cached, tmp_path, SPARSE)
    ends_alike(whole, tmp_path)


@pytest.mark.parametrize("step", [2, 6])  # before the first checkpoint, and after the last
def test_a_killed_run_resumes_at_its_last_checkpoint(cached, tmp_path, whole, monkeypatch, step):
    steps = []

    def killed(*given):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt
        return backward(*given)

    backward = ts.TwoStages.backward
    monkeypatch.setattr(ts.TwoStages, "backward", killed)
    with pytest.raises(KeyboardInterrupt):
        train(cached, tmp_path, SPARSE)
    monkeypatch.setattr(ts.TwoStages, "backward", backward)
    with (tmp_path / "visage.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(cached, tmp_path, SPARSE)
    ends_alike(whole, tmp_path)


def test_a_gradient_that_is_not_finite_stops_before_the_update(cached, tmp_path):
    stopped(cached, tmp_path, 2)
    before = (tmp_path / "visage_last.pt").read_bytes()
    broken = trunk()
    broken.patch_embed.proj.weight.data[0, 0] = torch.nan
    with pytest.raises(
        UsageError, match=r"gradient of expert 1 is not finite at step 3: clip 00\d frames \d+ to \d+.*last good"
    ):
        train(cached, tmp_path, trunk_=broken)
    assert (tmp_path / "visage_last.pt").read_bytes() == before


def test_the_learning_rate_rises_from_a_hundredth_and_falls_to_a_millionth():
    rates = [visage_rate(step, 100, 1e-4, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6) and rates[10] == max(rates) == pytest.approx(1e-4)
    assert 1e-6 < rates[-1] < 1.2e-6
    assert visage_rate(0, 1, 1e-4, 0.1) == pytest.approx(1e-4)  # one step: no time to rise


# --- several processes -----------------------------------------------------------------------------------------------

RANK = """
import hashlib, os, sys
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from distill.training.teachers import visage_windows, fine_tune as ts
from distill.training.loop import TrainingContext, fit
from distill.corpora import open_corpus
from distill.recipe.keys import Teach
from distill.run.errors import Interrupted
from distill.run.progress import Narrator
from distill.teachers.internvideo2 import InternVideo2
from distill.teachers.visage import VisageConfig

root, cache, out, rank, shape, teach, stop = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{out}/store", timedelta(seconds=120), 2, int(rank))
shape, teach = VisageConfig.from_dict(eval(shape)), Teach(**eval(teach))
clips = [visage_windows.cache(Path(cache), clip, shape) for clip in open_corpus("synthetic", Path(root)).clips[:3]]
torch.manual_seed(0)
steps = []
narrator = Narrator(quiet=True, stop=lambda: steps.append(1) is None and rank == "1" and len(steps) == int(stop))
context = TrainingContext(Path(out), torch.device("cpu"), 0, narrator)
task = ts.TwoStages(clips[1:], clips[:1], teach, shape, InternVideo2(shape.trunk), [None, None], "fp32", context)
try:
    fit(task, Path(out) / "visage.jsonl")
except Interrupted as interrupted:
    print(interrupted)
digest = hashlib.sha256()
for trainer in task.trainers:
    for key, value in trainer.named_parameters():
        digest.update(value.detach().numpy().tobytes())
print(digest.hexdigest())
sys.stdout.flush()
dist.destroy_process_group()
os._exit(0)  # an interpreter that ends while a thread of gloo still does is aborted
"""


def two_processes(cached, folder, config, stop=0):
    """The output of each of two processes: two lines if process 1 is stopped after a number of steps."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    root, cache = Path(cached[0].clip.video).parents[1], cached[0].frames.path.parent
    call = [sys.executable, "-c", RANK, root, cache, folder]
    last = [repr(SHAPE.to_dict()), repr(asdict(config)), stop]
    with running(*call, 0, *last) as first, running(*call, 1, *last) as second:
        ranks = first, second
        said = [process.communicate(timeout=240) for process in ranks]
    for process, (_, error) in zip(ranks, said, strict=True):
        assert process.returncode == 0, error
    return [out.splitlines() for out, _ in said]


def test_two_processes_agree_stop_together_and_train_what_one_does(cached, tmp_path):
    config = replace(CONFIG, stage1_steps=2, stage2_steps=2, dropout=0.0)
    first, second = two_processes(cached, tmp_path / "two", config, stop=3)  # the second alone is told to stop
    assert first == second and first[0] == "teaching, after step 3 of 4"
    first, second = two_processes(cached, tmp_path / "two", config)
    assert first == second and len(first) == 1
    train(cached, tmp_path / "one", config)
    one, two = ([line for line in log(tmp_path / name) if "lr" in line] for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    # Expert 1's BatchNorms see each process's windows alone in stage 1; expert 2 has none.
    assert [line["loss2"] for line in one] == pytest.approx([line["loss2"] for line in two], rel=2e-3)
    a, b = (torch.cat([v.flatten().double() for v in kept(tmp_path / name)[1].values()]) for name in ("one", "two"))
    assert (a - b).norm() < 1e-3 * a.norm()


def test_a_batch_that_does_not_divide_is_refused(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(ts, "rank_and_world", lambda: (0, 3))
    with pytest.raises(UsageError, match=r"teach\.batch 2 does not divide over 3 processes"):
        train(cached, tmp_path)

"""The training loop on a task of one weight: phases, intervals, what is kept, the guard."""

import json

import pytest
import torch

from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.training import checkpoint
from distill.training.loop import Losses, Moment, Task, TrainingContext, fit, moment

CPU = torch.device("cpu")


class Line(Task):
    """Moves one weight by SGD towards 1, or towards what `targets` has for a step."""

    name, lr_key, resume_file, checkpoint_every, ema = "test", "test.lr", "last.pt", 2, 0.0
    labels, kept_files = ({}, {}), ({"phase0": "score"}, {"phase1": "score"})

    def __init__(self, context, phase_steps=(2, 3), targets=None):
        self.context, self.phase_steps, self.targets, self.entered, self.loaded = (context, phase_steps, targets or {}, [], [])
        torch.manual_seed(0)
        self.module = torch.nn.Linear(1, 1, bias=False)
        self.modules = {"line": self.module}

    def enter(self, phase):
        self.entered.append(phase)
        return torch.optim.SGD(self.module.parameters(), momentum=0.9)

    def learning_rates(self, at):
        return [0.1]

    def draw(self, at):
        return torch.tensor([[self.targets.get(at.step, 1.0)]])

    def backward(self, batch, at):
        each = (self.module(torch.ones(1, 1)) - batch) ** 2
        each.mean().backward()
        values = {"loss": each.mean(), "known": each.sum(), "nothing": torch.tensor(torch.nan)}
        return Losses(values, [("a", [5, 7]), ("b", [9])], each if self.targets.get("frames") else None)

    def validate(self, phase):
        return {"score": float(self.averages["line"].weight)}

    def keep(self, name, scores, step):
        (self.context.folder / name).write_text(json.dumps([step, scores["score"]]))

    def load_kept(self, phase):
        self.loaded.append(phase)


def context(folder, stop=lambda: False):
    return TrainingContext(folder, CPU, 0, Narrator(quiet=True, stop=stop))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def train(folder, stop=lambda: False, **options):
    task = Line(context(folder, stop), **options)
    return task, fit(task, folder / "log.jsonl")


def test_the_phase_of_a_step():
    assert [moment((2, 0, 3), step) for step in (0, 1, 2, 4)] == [
        Moment(0, 0, 0), Moment(1, 0, 1), Moment(2, 2, 0), Moment(4, 2, 2)
    ]  # fmt: skip
    assert moment((0, 0), 0) == Moment(0, 1, 0)


def test_phases_end_with_a_validation_and_start_from_what_was_kept(tmp_path):
    task, progress = train(tmp_path)
    assert task.entered == [0, 1] and task.loaded == [0]
    assert (progress.step, list(progress.kept)) == (5, ["phase0", "phase1"])
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 5, 5]
    assert [line["step"] for line in lines if line.get("split") == "val"] == [2, 5]
    assert lines[0].keys() == {"step", "lr", "loss", "known"}  # a mean of nothing is left out


@pytest.mark.parametrize("at", [1, 2, 3])  # in a phase, at its end, and behind it
def test_a_stopped_training_continues_with_the_same_numbers(tmp_path, at):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _ = train(tmp_path / "whole")
    calls = []
    with pytest.raises(Interrupted, match=f"teaching, after step {at} of 5"):
        train(tmp_path / "parts", lambda: calls.append(1) is None and len(calls) == at)
    parts, progress = train(tmp_path / "parts")
    assert progress.first == at and torch.equal(parts.module.weight, whole.module.weight)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_a_training_whose_kept_files_are_gone_starts_again(tmp_path):
    train(tmp_path)
    (tmp_path / "phase0").unlink()
    assert train(tmp_path)[1].first == 0
    assert len(log(tmp_path)) == 7


@pytest.mark.parametrize("frames", [False, True])
def test_the_guard_stops_before_the_update_and_names_the_frames(tmp_path, frames):
    targets = {"frames": frames, 3: torch.inf}
    where = (
        "the loss is not finite at step 4: clip a, frame 5;"
        if frames
        else ("the gradient of line is not finite at step 4: clip a frames 5 to 7, clip b frame 9;")
    )
    with pytest.raises(UsageError, match=rf"teach: {where} the last good checkpoint is .*last\.pt; try a smaller test\.lr"):
        train(tmp_path, targets=targets)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    assert [line["step"] for line in log(tmp_path) if "loss" in line] == [1, 2, 3]

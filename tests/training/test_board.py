"""TensorBoard's files: what they hold, and that a continued training shows each step once."""

import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from distill.run.errors import Interrupted, UsageError
from distill.run.machine.extras import how_to_install
from distill.training.board import Board, Events, available
from distill.training.loop import fit
from tests.training.test_loop import Line, context


def board(folder):
    return Board(folder / "tensorboard", lambda frame, saliency: 255 - frame)


def read(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def steps(folder, tag):
    return [event.step for event in read(folder / "tensorboard" / "test").Scalars(tag)]


def train(folder, stop=lambda: False):
    pytest.importorskip("tensorboard")
    fit(Line(replace(context(folder, stop), board=board(folder))), folder / "log.jsonl")


def test_it_holds_the_numbers_of_the_log(tmp_path):
    train(tmp_path)
    events = read(tmp_path / "tensorboard" / "test")
    assert set(events.Tags()["scalars"]) == {"train/lr", "train/loss", "train/known", "val/score"}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    of_steps = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(of_steps)
    assert [event.step for event in events.Scalars("val/score")] == [2, 5]


def test_a_continued_training_shows_each_step_once(tmp_path):
    calls = []
    with pytest.raises(Interrupted):
        train(tmp_path, lambda: calls.append(1) is None and len(calls) == 3)
    with Events(board(tmp_path), "test", 3) as late:  # what a training wrote behind its last checkpoint, and was killed
        late.scalars(4, "train", {"loss": 9.0})
        late.scalars(5, "train", {"loss": 9.0})
    [*_, last] = sorted((tmp_path / "tensorboard" / "test").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-5])
    assert steps(tmp_path, "train/loss") == [1, 2, 3, 4]
    train(tmp_path)
    losses = [event.value for event in read(tmp_path / "tensorboard" / "test").Scalars("train/loss")]
    assert len(losses) == 5 and max(losses) < 9
    assert steps(tmp_path, "train/loss") == [1, 2, 3, 4, 5] and steps(tmp_path, "val/score") == [2, 5]
    (tmp_path / "last.pt").unlink()  # it starts again
    train(tmp_path)
    assert steps(tmp_path, "train/loss") == [1, 2, 3, 4, 5]


def test_frames_stand_above_their_maps(tmp_path):
    pytest.importorskip("tensorboard")
    frame = np.full((6, 10, 3), 200, np.uint8)
    with Events(board(tmp_path), "test", -1) as events:
        events.pictures(7, [(frame, np.zeros((2, 3)))] * 3)
    [image] = read(tmp_path / "tensorboard" / "test").Images("val/maps")
    assert (image.step, image.height, image.width) == (7, 12, 30)


def test_without_the_package_nothing_is_written_and_only_on_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    assert not available("auto", said.append) and not available("off", said.append) and said == []
    assert not available("on", said.append)
    assert len(said) == 1 and said[0].endswith(how_to_install("tensorboard"))
    with Events(None, "test", -1) as events:
        events.scalars(1, "train", {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_off_writes_nothing_where_it_is_installed():
    pytest.importorskip("tensorboard")
    assert not available("off", print) and available("auto", print)


def test_an_error_in_the_first_validation_ends_the_writer(tmp_path):
    pytest.importorskip("tensorboard")

    class Broken(Line):
        validate_start = True

        def validate(self, phase):
            raise UsageError("broken")

    threads = threading.active_count()
    with pytest.raises(UsageError, match="broken"):
        fit(Broken(replace(context(tmp_path), board=board(tmp_path))))
    assert threading.active_count() == threads

"""Training on a device other than the CPU, played by torch's `meta`: like a GPU it refuses tensors of the CPU, and unlike a GPU
it also refuses to be waited for (`.item()`, `bool()`, an index by a mask). And the threads that draw batches ahead for a GPU."""

import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.recipe.keys import Teacher
from distill.recipe.keys import Unisal as UnisalConfig
from distill.run.progress import Narrator
from distill.students import TinyUNetConfig
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.unisal import UnisalNet
from distill.teachers.visage import VisageConfig
from distill.training import ahead, checkpoint, fine_tune, loop, unisal, visage_windows
from distill.training.loop import Moment, TrainingContext
from distill.training.student import CLIPS, FRAMES, StudentTask
from distill.training.visage import TinyVisage
from tests.training.test_student import CONFIG as STUDENT_CONFIG
from tests.training.test_student import STUDENT, tiny_samples
from tests.training.test_two_stages import CONFIG, SHAPE

META = torch.device("meta")


@pytest.fixture(scope="module")
def samples(tiny_root, tmp_path_factory):
    return tiny_samples(tiny_root, tmp_path_factory.mktemp("frames"))


@pytest.fixture
def context(tmp_path):
    return TrainingContext(tmp_path, META, 0, Narrator(quiet=True))


def stays_there(task, *moments):
    """Steps with these moments; the CPU learns nothing of their results."""
    for at in moments:
        optimizer = task.enter(at.phase)
        losses = task.backward(task.batch(task.draw(at), at), at)
        assert losses.values and all(value.is_meta for value in losses.values.values())
        for module in task.modules.values():
            torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], task.max_norm)
            loop.update_average(module, module, 0.9, task.average_buffers)
        optimizer.step()


def test_a_step_of_the_student_does_not_wait_for_its_device(samples, context):
    shape = TinyUNetConfig(height=STUDENT.height, width=STUDENT.width)  # else of the trunk's channels
    task = StudentTask(samples, [], STUDENT_CONFIG, shape, context)
    task.trunk = UnisalNet().cnn.to(META)
    stays_there(task, Moment(0, FRAMES, 0), Moment(4, CLIPS, 0), Moment(5, CLIPS, 1))


def test_a_step_of_the_tiny_visage_does_not_wait_for_its_device(samples, context):
    trunk = InternVideo2Config(width=16, depth=4, heads=2, mlp_width=32, frames=4, px=16, patch=8)
    small = VisageConfig(trunk=trunk, reduced_width=8, embed_width=8, norm_groups=4, out_px=12)
    stays_there(TinyVisage([s.cached for s in samples], Teacher(), small, context), Moment(0, 0, 0))


def test_a_step_of_unisal_does_not_wait_for_its_device(tiny_root, context):
    clips = [unisal.cache(context.folder, clip, "DHF1K") for clip in open_corpus("synthetic", tiny_root).clips[:1]]
    net = UnisalNet().to(META)
    stays_there(unisal.UnisalTask(clips, UnisalConfig(frames=2, batch=1), net, False, context), Moment(0, 0, 0))


def test_a_step_of_fine_tuning_does_not_wait_for_its_device(tiny_root, context, monkeypatch):
    monkeypatch.setattr(fine_tune, "autocast", lambda *_: contextlib.nullcontext())  # not known for this device
    clips = [visage_windows.cache(context.folder, clip, SHAPE) for clip in open_corpus("synthetic", tiny_root).clips[:2]]
    trunk = InternVideo2(SHAPE.trunk).to(META)
    config = replace(CONFIG, recompute=False)  # which would look for the device's random numbers
    task = fine_tune.TwoStages(clips, [], config, SHAPE, trunk, [None, None], "fp32", context)
    stays_there(task, Moment(0, 0, 0), Moment(3, 1, 0))


def test_a_resumed_optimizer_counts_its_steps_on_the_cpu(samples, context, monkeypatch):
    """AdamW reads the count of every weight in every step; `load_state_dict` leaves it where the file was loaded to."""
    places = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path, device="cpu", mapped=False: places.append(device) or load(path))
    cpu = replace(context, device=torch.device("cpu"))
    for steps in (2, 4):
        task = StudentTask(samples, [], replace(STUDENT_CONFIG, steps=steps, frames_first=1.0), STUDENT, cpu)
        loop.fit(task)
    assert places and set(places) == {"cpu"}
    counts = {state["step"] for state in task.optimizer.state_dict()["state"].values()}
    assert all(count.device.type == "cpu" for count in counts)


@dataclass(frozen=True)
class Data:
    inner: tuple
    name: str


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device for `drawn_ahead`; pinned memory is marked by a name."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1000)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 8)
    return torch.device("cuda", 0)


def test_batches_for_a_gpu_are_drawn_ahead_in_order(gpu):
    started = []

    def draw(number):
        started.append(threading.current_thread().name)
        time.sleep(0.002 * (number % 3))
        return Data((torch.tensor(number), [number]), "x")

    before = torch.get_num_threads()
    with contextlib.closing(ahead.drawn_ahead(draw, itertools.count(), gpu)) as batches:
        seen = list(itertools.islice(batches, 20))
    assert [int(data.inner[0]) - 1000 for data in seen] == [data.inner[1][0] for data in seen] == list(range(20))
    assert threading.main_thread().name not in started and len(set(started)) > 1
    assert len(started) <= 20 + ahead.MOST_THREADS + 1  # no endless queue
    assert torch.get_num_threads() == before


def test_an_error_in_drawing_comes_up_at_its_step(gpu):
    def draw(number):
        if number == 3:
            raise ValueError("the fourth")
        return np.float32(number)

    batches = ahead.drawn_ahead(draw, range(9), gpu)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(batches)


def test_on_the_cpu_nothing_is_drawn_ahead():
    drawn = []
    batches = ahead.drawn_ahead(lambda number: drawn.append(number) or number, range(9), torch.device("cpu"))
    assert (next(batches), next(batches), drawn) == (0, 1, [0, 1])

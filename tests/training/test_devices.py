"""Training on a device other than the CPU, played by torch's `meta`: like a GPU it refuses tensors of the CPU, and unlike a GPU
it also refuses to be waited for (`.item()`, `bool()`, an index by a mask). And the processes that draw batches ahead for a GPU."""

import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from distill.corpora import open_corpus
from distill.recipe.keys import Teacher
from distill.recipe.keys import Unisal as UnisalConfig
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.students import TinyUNetConfig
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.unisal import UnisalNet
from distill.teachers.visage import VisageConfig
from distill.training import ahead, checkpoint, loop
from distill.training.loop import Moment, TrainingContext
from distill.training.student import CLIPS, FRAMES, StudentTask
from distill.training.teachers import fine_tune, unisal, visage_windows
from distill.training.teachers.visage import TinyVisage
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


GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a CUDA device, four cores and much shared memory, for `drawn_ahead`; what it says. Nothing is pinned."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(ahead, "DataLoader", lambda *a, **options: DataLoader(*a, **options | {"pin_memory": False}))
    monkeypatch.setattr(DataLoader, "check_worker_number_rationality", lambda loader: None)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 4)
    monkeypatch.setattr(ahead, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    return []


def test_batches_for_a_gpu_are_drawn_ahead_in_order_by_processes(gpu):
    started = multiprocessing.Value("i", 0)
    own = os.getpid()

    def draw(number):
        with started:
            started.value += 1
        time.sleep(0.002 * (number % 3))
        leaves_ctrl_c = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return Data((torch.tensor(number), torch.zeros(0), [number], (os.getpid(), leaves_ctrl_c)), "x")

    state = torch.get_rng_state()
    with contextlib.closing(ahead.drawn_ahead(draw, itertools.count(), GPU, gpu.append)) as batches:
        seen = [data.inner for data in itertools.islice(batches, 20)]
    assert [int(tensor) for tensor, *_ in seen] == [numbers[0] for _, _, numbers, _ in seen] == list(range(20))
    assert seen[0][3][0] == own  # to see its size
    assert len({process for *_, (process, _) in seen[1:]} - {own}) == 3
    assert all(leaves_ctrl_c for *_, (_, leaves_ctrl_c) in seen[1:])
    assert started.value <= 20 + 3 * ahead.EACH  # no endless queue
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), state) and not gpu


def test_processes_that_hang_are_ended(gpu, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.05)  # seconds that each gets to end by itself

    def draw(number):
        if number > 3:
            time.sleep(3600)
        return number

    with contextlib.closing(ahead.drawn_ahead(draw, range(99), GPU, gpu.append)) as batches:
        assert [next(batches) for _ in range(3)] == [0, 1, 2]
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_an_error_in_drawing_comes_up_at_its_step_as_it_is(gpu):
    def draw(number):
        if number == 3:
            raise UsageError("the fourth")
        return np.float32(number)

    batches = ahead.drawn_ahead(draw, range(9), GPU, gpu.append)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UsageError, match=r"^the fourth$"):
        next(batches)


@pytest.mark.parametrize(("free", "workers"), [(10**5, 0), (3 * 10**6, 1)])
def test_without_shared_memory_less_or_nothing_is_drawn_ahead(gpu, monkeypatch, free, workers):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    batches = ahead.drawn_ahead(lambda number: (torch.full((10**5,), number), os.getpid()), range(5), GPU, gpu.append)
    seen = list(batches)
    assert [int(tensor[0]) for tensor, _ in seen] == list(range(5))
    assert len({process for _, process in seen} - {os.getpid()}) == workers
    assert f"{workers} of 3 processes draw batches ahead" in gpu[0] and "--shm-size" in gpu[0]


def test_what_finds_no_shared_memory_is_drawn_again(gpu, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    batches = ahead.drawn_ahead(lambda number: (torch.tensor(number), os.getpid()), range(5), GPU, gpu.append)
    assert [(int(tensor), process) for tensor, process in batches] == [(number, os.getpid()) for number in range(5)]


def test_tensors_of_a_batch_are_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1000)
    pinned = ahead.Item(0, Data((torch.tensor(1), [torch.tensor(2)]), "x")).pin_memory()
    assert (int(pinned.drawn.inner[0]), int(pinned.drawn.inner[1][0]), pinned.drawn.name) == (1001, 2, "x")


@pytest.mark.parametrize("device", [torch.device("cpu"), GPU])
def test_on_the_cpu_and_without_linux_nothing_is_drawn_ahead(gpu, monkeypatch, device):
    monkeypatch.setattr(ahead, "SHARED_MEMORY", "/nowhere")
    drawn = []
    batches = ahead.drawn_ahead(lambda number: drawn.append(number) or number, range(9), device, gpu.append)
    assert (next(batches), next(batches), drawn) == (0, 1, [0, 1])


def test_batches_from_processes_train_the_same_student(samples, context, gpu, monkeypatch):
    logs = []
    for name in ("plain", "ahead"):
        here = replace(context, folder=context.folder / name, device=torch.device("cpu"))
        here.folder.mkdir()
        loop.fit(StudentTask(samples, [], STUDENT_CONFIG, STUDENT, here), here.folder / "metrics.jsonl")
        logs.append((here.folder / "metrics.jsonl").read_bytes())
        monkeypatch.setattr(loop, "drawn_ahead", lambda draw, moments, _, say: ahead.drawn_ahead(draw, moments, GPU, say))
    assert logs[0] == logs[1]

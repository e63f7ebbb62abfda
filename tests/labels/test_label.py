"""Labelling: what is decoded ahead, what is stored, and that labels depend neither on threads nor on ranks."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.corpora import open_corpus
from distill.labels.labelling import CHUNK, computed_by, decode, inference, label, looked_up_in, share_out
from distill.labels.store import LabelStore
from distill.recipe.files import load_recipe
from distill.recipe.keys import Label
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.teachers import Inference
from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.visage import Visage, VisageConfig, VisageNet
from tests.helpers import TINY, invoke, running

ME = {"name": "me", "fingerprint": "a" * 16, "source": "test", "license": "x"}


@dataclass(frozen=True)
class FakeClip:
    """Frames of one gray: clip 3's frame 7 is 37."""

    id: str
    frames: int = 10
    fps: float = 25.0
    corpus: str = ""

    @property
    def name(self):
        return self.id

    def read(self, stride=1):
        for t in range(self.frames):
            yield np.full((4, 6, 3), 10 * int(self.id) + t, np.uint8)


@dataclass
class FakeTeacher:
    """Its labels are the gray values; it remembers what it was given."""

    name: str = "fake"
    pieces: list[int] = field(default_factory=list)
    prepared: int = 0
    inferred: int = 0
    most_ahead: int = 0

    def prepare(self, frames):
        assert frames.dtype == np.uint8 and frames.shape[1:] == (4, 6, 3)
        self.pieces.append(len(frames))
        self.prepared += len(frames)
        self.most_ahead = max(self.most_ahead, self.prepared - self.inferred)
        return torch.from_numpy(frames[:, 0, 0])

    def infer(self, inputs, fps):
        assert fps == 25.0
        time.sleep(0.02)  # decoding gets as far ahead as it may
        self.inferred += len(inputs)
        return inputs[:, :1, None].float()


def stored(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.npy"))}


# --- decoding ahead ---------------------------------------------------------------------------------------------------


def test_a_clip_is_prepared_a_few_frames_at_a_time():
    teacher = FakeTeacher()
    inputs = decode(FakeClip("1", frames=19), teacher)
    assert teacher.pieces == [CHUNK, CHUNK, 3]
    assert inputs.dtype == torch.uint8 and inputs[:, 0].tolist() == [10 + t for t in range(19)]


def test_an_ensembles_members_are_prepared_side_by_side():
    class Two(FakeTeacher):
        def prepare(self, frames):
            return super().prepare(frames), (torch.from_numpy(frames[:, :1]).float(),)

    one, (two,) = decode(FakeClip("1", frames=19), Two())
    assert one.shape == (19, 3) and two.shape == (19, 1, 6, 3) and two.dtype == torch.float32
    assert one[:, 0].tolist() == two[:, 0, 0, 0].tolist() == [10 + t for t in range(19)]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_the_workers_clips_are_decoded_ahead(workers):
    teacher, clips = FakeTeacher(), [FakeClip(str(i)) for i in range(9)]
    for clip, logits in zip(clips, computed_by(teacher, workers)(clips), strict=True):
        assert logits[:, 0, 0].tolist() == [10 * int(clip.id) + t for t in range(10)]
    # what is ahead, and the clip in work
    assert 10 < teacher.most_ahead <= 10 * (workers + 1)


def test_decoding_stops_when_labelling_does():
    over = threading.Event()
    over.set()
    with pytest.raises(Interrupted):
        decode(FakeClip("1"), FakeTeacher(), over=over)


def test_errors_name_the_clip():
    class Blind(FakeTeacher):
        def prepare(self, frames):
            raise ValueError("frames are too small")

    class Full(FakeTeacher):
        def infer(self, inputs, fps):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 is full. Long advice. More.")

    with pytest.raises(UsageError, match="clip 4: teacher fake: frames are too small"):
        list(computed_by(Blind())([FakeClip("4")]))
    with pytest.raises(
        UsageError, match=r"clip 4: .* not even one window .*Tried to allocate 9 GiB.*smaller teacher"
    ) as caught:
        list(computed_by(Full())([FakeClip("4")]))
    assert "advice" not in str(caught.value) and "\n" not in str(caught.value)


# --- storing ----------------------------------------------------------------------------------------------------------


def test_labels_are_stored_clip_by_clip_and_labelling_resumes_at_the_next(tmp_path, narrator):
    store, clips = LabelStore.create(tmp_path, ME), [FakeClip(str(i)) for i in range(5)]
    teacher = FakeTeacher()
    assert label(clips[:2], store, computed_by(teacher), narrator) == 2
    assert label(clips, store, computed_by(teacher), narrator) == 3
    assert label(clips, store, computed_by(teacher), narrator) == 0
    assert teacher.inferred == 50
    assert store.read("3", 10)[:, 0, 0].tolist() == [30] * 10, "no logit means anything beyond 30"
    assert store.read("0", 10)[:, 0, 0].tolist() == list(range(10))


def test_an_interrupt_stores_the_clip_in_work(tmp_path):
    asked = iter([False, True])
    store, clips = LabelStore.create(tmp_path, ME), [FakeClip(str(i)) for i in range(5)]
    with pytest.raises(Interrupted, match="labelling, after clip 1, 2 of 5"):
        label(clips, store, computed_by(FakeTeacher()), Narrator(quiet=True, stop=lambda: next(asked)))
    assert stored(tmp_path).keys() == {"0.npy", "1.npy"}
    assert threading.active_count() < 10


def test_a_teacher_with_too_few_maps_or_nan_is_refused(tmp_path, narrator):
    class Short(FakeTeacher):
        def infer(self, inputs, fps):
            return super().infer(inputs, fps)[:-1]

    class Nan(FakeTeacher):
        def infer(self, inputs, fps):
            return super().infer(inputs, fps) / 0

    store = LabelStore.create(tmp_path, ME)
    with pytest.raises(UsageError, match="teacher me gave 9 maps for clip 1 of 10 frames"):
        label([FakeClip("1")], store, computed_by(Short()), narrator)
    with pytest.raises(UsageError, match="gave NaN or infinity for clip 0, frame 1"):  # in the thread that writes
        label([FakeClip("0"), FakeClip("1")], store, computed_by(Nan()), narrator)
    assert stored(tmp_path) == {}


def test_looked_up_labels_are_stored_the_same_way(tmp_path, narrator):
    class Maps:
        def has(self, name, part):
            return name != "2"

        def logits(self, name, frames, part):
            if name == "2":
                raise ValueError("nothing for clip 2; add it")
            return torch.zeros(frames, 2, 3)

    store = LabelStore.create(tmp_path, ME)
    with pytest.raises(UsageError, match="nothing for clip 2"):
        label([FakeClip("1"), FakeClip("2")], store, looked_up_in(Maps()), narrator)
    assert stored(tmp_path).keys() == {"1.npy"} and store.read("1", 10).shape == (10, 2, 3)


def test_progress_shows_speed_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill.run.progress.PLAIN_SECONDS", 0.0)
    store, clips = LabelStore.create(tmp_path, ME), [FakeClip(str(i)) for i in range(3)]
    label(clips, store, computed_by(FakeTeacher()), Narrator())
    stderr = capsys.readouterr().err
    assert re.search(r"label: 20/30 frames, 0:0\d left [\d.e+]+ frames/s clip 1", stderr)
    assert re.search(r"label: 30 frames in \d+ s, [\d.e+]+ frames/s", stderr)


# --- how --------------------------------------------------------------------------------------------------------------


def test_auto_precision_follows_the_device():
    assert inference(Label(), torch.device("cpu")) == Inference(0.0, "fp32", False, 0)
    assert inference(Label(), torch.device("cuda")).precision == "bf16"
    assert inference(Label(precision="bf16", overlap=0.5, batch=3), torch.device("cpu")) == Inference(0.5, "bf16", False, 3)
    with pytest.raises(UsageError, match=r"label\.precision must be auto, bf16 or fp32, got 'fp8'"):
        load_recipe(None, ["label.precision=fp8"])


# --- threads and ranks ------------------------------------------------------------------------------------------------


def test_clips_are_shared_out_by_frames_and_each_once():
    clips = [FakeClip(str(i), frames) for i, frames in enumerate([10, 300, 20, 150, 160, 30, 10])]
    shares = share_out(clips, 2)
    assert [[clip.id for clip in share] for share in shares] == [["1", "5", "0"], ["4", "3", "2", "6"]]
    assert [sum(clip.frames for clip in share) for share in shares] == [340, 340]
    mixed = [FakeClip(str(i), frames, corpus=part) for i, (frames, part) in enumerate([(9, "b"), (8, "a"), (7, "b"), (6, "a")])]
    assert [[clip.id for clip in share] for share in share_out([*mixed, FakeClip("4", 30)], 2)][1] == ["1", "3", "0", "2"]
    assert share_out(clips, 1) == [clips], "one process keeps the corpus's order"
    assert share_out(clips[:1], 3) == [clips[:1], [], []]


def test_labels_do_not_depend_on_the_threads_or_the_workers(tmp_path, tiny_root, narrator):
    torch.manual_seed(0)
    shape = VisageConfig(trunk=InternVideo2Config(heads=2, frames=4, px=48, patch=8, layer_scale_init=0.5), out_px=24)
    net = VisageNet(shape)
    clips = open_corpus("synthetic", tiny_root).clips
    before, made = torch.get_num_threads(), []
    try:
        for number, (threads, workers, batch) in enumerate([(1, 1, 0), (3, 2, 0), (2, 1, 7)]):
            torch.set_num_threads(threads)
            store = LabelStore.create(tmp_path / str(number), ME)
            label(clips, store, computed_by(Visage(net, shape, how=Inference(batch=batch)), workers), narrator)
            made.append(stored(tmp_path / str(number)))
    finally:
        torch.set_num_threads(before)
    assert len(made[0]) == len(clips) and made[0] == made[1] == made[2]


SETS = [part for override in TINY for part in ("--set", override)]

# What each rank does under torchrun: `distill`, with a note of every clip that it stores. DIES kills it in the middle.
RANK = """
import os, signal, sys, time
from pathlib import Path
from distill import cli
from distill.labels import store as soft_labels
from distill.run.machine import parallel

write, notes = soft_labels.LabelStore.write, Path(os.environ["NOTES"])

def noted(store, clip_id, logits):
    write(store, clip_id, logits)
    with notes.open("a") as file:
        file.write(f"{parallel.rank()} {clip_id}\\n")
    if os.environ.get("DIES") == str(parallel.rank()):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("PAUSE", 0)))

soft_labels.LabelStore.write = noted
sys.argv[0] = "distill"
cli.main()
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run whose teacher is ready, and its labels by one process."""
    path = tmp_path_factory.mktemp("taught")
    result = invoke("teach", "--corpus", "synthetic", "--out", path / "run", *SETS)
    assert result.returncode == 0, result.stderr
    shutil.copytree(path / "run", path / "alone")
    result = invoke("label", "--out", path / "alone", *SETS)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture
def torchrun(tmp_path):
    """Starts `distill label` of two ranks on a run directory."""

    def start(out: Path, **environment: str) -> subprocess.Popen[str]:
        script = tmp_path / "rank.py"
        script.write_text(RANK)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        command = [*launch, "label", "--corpus", "synthetic", "--out", out, *SETS]
        said = {"NOTES": str(tmp_path / "notes"), "NO_COLOR": "1", **environment}
        return jobs.enter_context(running(*command, env=os.environ | said))

    with contextlib.ExitStack() as jobs:
        yield start


def notes_of(path):
    return [line.split() for line in (path / "notes").read_text().splitlines()]


def test_two_ranks_write_the_same_labels_as_one_process(taught, tmp_path, torchrun):
    out, stderr = (job := torchrun(tmp_path / "run")).communicate(timeout=240)
    assert job.returncode == 0, stderr
    assert stored(tmp_path / "run" / "labels") == stored(taught / "alone" / "labels")
    who = [(path / "labels" / "store.json").read_bytes() for path in (tmp_path / "run", taught / "alone")]
    assert who[0] == who[1], "the teacher that rank 0 trains is the one that a process alone trains"
    notes = notes_of(tmp_path)
    assert sorted(clip for _, clip in notes) == [f"00{i}" for i in range(1, 6)], "each clip once"
    assert {rank for rank, _ in notes} == {"0", "1"}
    assert stderr.count("label: 120 frames in") == 1 and "2 ranks" in stderr
    assert out.splitlines() == [str(tmp_path / "run" / "labels")]
    again = invoke("label", "--out", tmp_path / "run", *SETS)  # the manifest is whole
    assert again.returncode == 0 and "label: up to date" in again.stderr


def test_a_rank_that_is_killed_ends_the_job_and_another_run_completes_it(taught, tmp_path, torchrun):
    shutil.copytree(taught / "run", tmp_path / "run")
    job = torchrun(tmp_path / "run", DIES="1", PAUSE="0.5")
    _, stderr = job.communicate(timeout=240)
    assert job.returncode != 0
    labels = stored(tmp_path / "run" / "labels")
    assert 1 <= len(labels) < 5, stderr
    first = notes_of(tmp_path)
    _, stderr = (job := torchrun(tmp_path / "run")).communicate(timeout=240)
    assert job.returncode == 0, stderr
    assert f"label: {len(labels)} of 5 clips are in the store" in stderr
    assert stored(tmp_path / "run" / "labels") == stored(taught / "alone" / "labels")
    assert sorted(clip for _, clip in notes_of(tmp_path)) == [f"00{i}" for i in range(1, 6)], first
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_ctrl_c_ends_all_ranks_after_the_clip_in_work(taught, tmp_path, torchrun):
    shutil.copytree(taught / "run", tmp_path / "run")
    job = torchrun(tmp_path / "run", PAUSE="1")
    end = time.monotonic() + 120
    while not stored(tmp_path / "run" / "labels"):
        assert job.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)  # to torchrun, as a terminal does; it passes it on
    _, stderr = job.communicate(timeout=120)
    assert job.returncode != 0 and stderr.count("interrupted: ") == 1
    assert re.search(r"interrupted: labelling, after clip 00\d, \d of 5.*torchrun --nproc-per-node 2 -m distill label", stderr)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    for name, content in stored(tmp_path / "run" / "labels").items():
        assert content == (taught / "alone" / "labels" / name).read_bytes()

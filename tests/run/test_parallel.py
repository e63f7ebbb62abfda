"""Ranks of one job, as threads over one store. Real processes under torchrun: tests/labels/test_label.py."""

import sys
import threading

import pytest
import torch.distributed as dist

from distill.run.errors import Interrupted, UsageError
from distill.run.machine import device, parallel
from distill.run.machine.parallel import Job
from tests.helpers import running


def never():
    return False


@pytest.fixture
def job(monkeypatch):
    """`job(2)`: a job of two ranks, as each of them sees it."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 0)]))
    monkeypatch.setattr(parallel, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(parallel, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")

    def jobs(world):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        made = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            made.append(Job())
        return made

    return jobs


def together(*works):
    """Runs each in its own thread; returns what each returned or raised."""
    results = [None] * len(works)

    def run(i, work):
        try:
            results[i] = work()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, work)) for i, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a rank waits forever"
    return results


def follow(this, work, stop=never):
    """Runs a rank other than 0: every stage that it is called into."""

    def run():
        done = []
        with this:
            while name := this.called(stop):
                done.append(work(this, name))
        return done

    return run


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "3")  # some clusters set it on every node
    this = Job()
    assert (this.rank, this.world, parallel.local_rank(), parallel.local_world()) == (0, 1, 0, 1) and this.leads
    with this:
        this.announce("label")
        assert this.agree("what", lambda: [1], never) == [1]
        this.finish(never)
        assert this.ended() is None


def test_other_ranks_join_the_announced_stages_and_end_with_rank_0(job):
    first, *others = job(3)
    total = []

    def lead():
        with first:
            for name, amount in (("label", 1), ("train", 10)):
                first.announce(name)
                assert first.agree("what", lambda name=name: {"of": name}, never) == {"of": name}
                first.count("frames", amount)
                first.finish(never)
                total.append(first.count("frames", 0))
        return "led"

    def work(this, name):
        assert this.agree("what", lambda: pytest.fail("rank 0 decides"), never) == {"of": name}
        this.count("frames", 100)
        this.finish(never)
        return name

    led, *followed = together(lead, *(follow(this, work) for this in others))
    assert led == "led" and followed == [["label", "train"]] * 2
    assert total == [201, 210], "what is counted in one stage is not counted in the next"


def test_rank_0_waits_for_all_and_reports_failures(job):
    first, second = job(2)

    def lead():
        with first:
            first.announce("label")
            first.finish(never)

    def work(this, name):
        raise UsageError("clip 7 is damaged; leave it out")

    led, followed = together(lead, follow(second, work))
    assert str(followed) == "clip 7 is damaged; leave it out"
    assert isinstance(led, UsageError)
    assert str(led) == "rank 1 of 2: clip 7 is damaged; leave it out; run the same command again to resume"


def test_when_rank_0_fails_the_others_end_silently(job):
    first, second = job(2)

    def lead():
        with first:
            raise UsageError("no such corpus")

    led, followed = together(lead, follow(second, lambda *_: None))
    assert str(led) == "no such corpus" and followed == []


def test_when_rank_0_fails_inside_a_stage_the_others_are_interrupted(job):
    first, second = job(2)

    def lead():
        with first:
            first.announce("label")
            raise UsageError("no weights")

    led, followed = together(lead, follow(second, lambda this, _: this.agree("what", lambda: 1, never)))
    assert str(led) == "no weights" and isinstance(followed, Interrupted)


def test_an_interrupt_ends_the_wait(job):
    first, second = job(2)

    def lead():
        with first:
            first.announce("label")
            first.finish(lambda: True)

    led, followed = together(lead, follow(second, lambda this, _: this.agree("what", lambda: 1, never)))
    assert isinstance(led, Interrupted) and isinstance(followed, Interrupted)
    assert second.ended() is not None


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_without_a_heartbeat_ends_the_job(job, monkeypatch, gone):
    monkeypatch.setattr(parallel, "LOST_SECONDS", 0.2)
    jobs = job(2)

    def lead():
        with jobs[0]:
            jobs[0].announce("label")
            jobs[0].finish(never)

    (error,) = together(follow(jobs[1], lambda *_: None) if gone == 0 else lead)
    assert isinstance(error, UsageError) and f"rank {gone} of 2 has sent no heartbeat for 0 s" in str(error)


def test_ranks_take_the_machines_gpus_in_turn_and_share_its_cores(monkeypatch):
    import os

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert device.choose("auto") == (torch.device("cuda:0"), "cuda:0 (GPU number 0)")
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "5"}.items():
        monkeypatch.setenv(name, value)
    assert device.choose("auto") == (torch.device("cuda:1"), "cuda:1 (GPU number 1)")
    assert device.choose("cuda") == (torch.device("cuda:1"), "cuda:1 (requested)")
    assert device.choose("cuda:0") == (torch.device("cuda:0"), "cuda:0 (requested)")
    before = torch.get_num_threads()
    try:
        assert device.set_threads(0) == torch.get_num_threads() == 3 and device.set_threads(2) == 2
        assert device.set_threads(0, alone=True) == 16
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "total"), [(1, 1), (2, 11)])  # one of its own too: so NCCL runs on one GPU
def test_the_process_group_of_training_adds_up(tmp_path, processes, total):
    script = tmp_path / "add.py"
    script.write_text(
        "import torch\n"
        "from distill.run.machine.collectives import process_group\n"
        "from distill.run.machine.parallel import job\n"
        "with job() as ranks:\n"
        "    for unit in (1.0, 2.0):\n"
        "        with process_group(torch.device('cpu')):\n"
        "            x = torch.tensor([unit * 10**ranks.rank])\n"
        "            torch.distributed.all_reduce(x)\n"
        f"            assert x.item() == {total} * unit, x\n"
        "        assert not torch.distributed.is_initialized()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(script)]
    with running(*launch) as ranks:
        _, error = ranks.communicate(timeout=120)
    assert ranks.returncode == 0, error

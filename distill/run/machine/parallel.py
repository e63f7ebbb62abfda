"""The processes (ranks) of a torchrun job: which of them this is, how they work on one run together, and its CPU cores.

    torchrun --nproc-per-node 2 -m distill label ...

Rank 0 leads: it alone holds the run directory's lock, writes the manifest and narrates. The other ranks wait until rank 0
announces a stage in which all take part, do their share, and wait again. All see the same run directory.

They exchange messages through the job's key-value store and poll it while they wait. Collective operations would not do: they
block without noticing Ctrl-C, and their timeout would have to outlast hours of training on rank 0. A waiting rank also ends
when another has failed, or has sent no heartbeat for a minute (torchrun ends the job sooner where it sees a process die).

Without torchrun a process is rank 0 of 1. Naming a rank imports no torch.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from distill.run.errors import Interrupted, UsageError

T = TypeVar("T")
POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 5.0
LOST_SECONDS = 60.0  # without a heartbeat: the rank is lost


def under_torchrun() -> bool:
    """Whether torchrun started this process. It alone sets the run's id; some clusters set RANK on every node."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _variable(name: str, default: int) -> int:
    return int(os.environ[name]) if under_torchrun() else default


def rank() -> int:
    """The number of this process in the job, from 0."""
    return _variable("RANK", 0)


def world() -> int:
    """How many processes the job has, on all machines."""
    return _variable("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return _variable("LOCAL_RANK", 0)


def local_world() -> int:
    """How many processes the job has on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1)


def usable_cores() -> int:
    """CPU cores that this process may use; all of the machine's where the system has no affinity (macOS, Windows)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@cache
def job() -> Job:
    """The job that this process belongs to."""
    return Job()


class Job:
    """The job as this rank sees it. `with job:` around the work tells the other ranks how it ended."""

    def __init__(self) -> None:
        import torch.distributed as dist  # not at the top: the command line asks for its rank, and starts without torch

        self.rank, self.world, self.leads = rank(), world(), rank() == 0
        self._stage = 0  # counts shared stages, the same on all ranks: keys of one stage start with it
        self._heartbeats: dict[int, tuple[int, float]] = {}  # count and when it last changed, by rank
        self._over = threading.Event()
        self.store: Any = dist.HashStore()  # type: ignore[attr-defined]
        if self.world > 1:
            timeout = timedelta(seconds=LOST_SECONDS)
            self.store, _, _ = next(iter(dist.rendezvous("env://", timeout=timeout)))  # type: ignore[attr-defined]

    def __enter__(self) -> Job:
        if self.world > 1:
            threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over.set()
        if self.world == 1 or (error is None and not self.leads):
            return
        how = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed" if error else "done"
        with suppress(RuntimeError):  # torchrun is gone, and the store with it
            self.store.set("end", json.dumps([how, f"rank {self.rank} of {self.world}: {error}"]))

    def _send_heartbeats(self) -> None:
        with suppress(RuntimeError):  # torchrun is gone, and the store with it
            while not self._over.wait(HEARTBEAT_SECONDS):
                self.store.add(f"heartbeat {self.rank}", 1)

    def ended(self) -> list[str] | None:
        """How the job ended (`done`, `interrupted`, `failed`) and why, once rank 0 is done or any rank has failed."""
        return json.loads(self.store.get("end")) if self._has("end") else None

    def announce(self, stage: str) -> None:
        """Rank 0 calls the other ranks into a stage."""
        self._stage += 1
        self.store.set(f"stage {self._stage}", stage)

    def called(self, stop: Callable[[], bool]) -> str | None:
        """The next stage that rank 0 announces; None at the end of the job."""
        self._stage += 1
        key = f"stage {self._stage}"
        self._wait_until(lambda: self._has(key) or self.ended() is not None, stop)
        return self.store.get(key).decode() if self._has(key) else None

    def agree(self, what: str, value: Callable[[], T], stop: Callable[[], bool]) -> T:
        """Rank 0's value (plain, for JSON), on every rank."""
        key = f"{self._stage} {what}"
        if self.leads:
            self.store.set(key, json.dumps(decided := value()))
            return decided
        self._wait_until(lambda: self._has(key), stop)
        return json.loads(self.store.get(key))

    def count(self, what: str, amount: int) -> int:
        """Adds to a number that all ranks share, and returns the sum."""
        return self.store.add(f"{self._stage} {what}", amount)

    def finish(self, stop: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """The end of a shared stage: rank 0 waits until every rank is here."""
        self.store.set(f"{self._stage} done {self.rank}", "")
        if self.leads:
            all_ranks = [f"{self._stage} done {other}" for other in range(self.world)]
            self._wait_until(lambda: self._has(*all_ranks), stop, meanwhile)

    def _has(self, *keys: str) -> bool:
        try:
            return bool(self.store.check(list(keys)))
        except RuntimeError:
            raise UsageError("torchrun has ended before this rank; run the same command again to resume") from None

    def _wait_until(
        self, arrived: Callable[[], bool], stop: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Raises Interrupted on Ctrl-C or where rank 0 has ended, UsageError on rank 0 where another rank has failed or is lost."""
        while not arrived():
            if end := self.ended():
                how, why = end
                if how == "failed" and self.leads:  # reported by rank 0 for the job; the other ranks end silently
                    raise UsageError(f"{why}; run the same command again to resume")
                raise Interrupted(why)
            if stop():
                raise Interrupted("waiting for other ranks")
            for other in range(1, self.world) if self.leads else [0]:
                self._check_heartbeat(other)
            meanwhile()
            time.sleep(POLL_SECONDS)

    def _check_heartbeat(self, other: int) -> None:
        beats, now = self.store.add(f"heartbeat {other}", 0), time.monotonic()
        last, changed_at = self._heartbeats.setdefault(other, (beats, now))
        if beats != last:
            self._heartbeats[other] = beats, now
        elif now - changed_at > LOST_SECONDS:
            lost = f"rank {other} of {self.world} has sent no heartbeat for {LOST_SECONDS:.0f} s"
            raise UsageError(f"{lost}; run the same command again to resume")

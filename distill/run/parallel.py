"""The processes of a torchrun job: which of them this is, and how they work on one run together.

    torchrun --nproc-per-node 2 -m distill label ...

Rank 0 leads: it alone holds the run directory's lock, writes the manifest and speaks. The others follow: they wait until it
announces a stage in which all ranks share, work in that, and wait again. All see the same run directory.

They talk through the job's key-value store, not by collective operations. Those block without hearing Ctrl-C, and want a
time limit, which rank 0's hours of training would break. Waiting here is asking again: it hears Ctrl-C, and ends when another
rank failed, or has given no heartbeat for a minute (torchrun itself kills the job sooner where it sees a rank die).
`Job.group` gives training its process group over the same store.

Naming a rank needs no torch; without torchrun a process is rank 0 of 1 and nothing here costs anything.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from distill.run.errors import Interrupted, UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ASK_SECONDS = 0.1  # between two looks at what another rank may have said
BEAT_SECONDS = 5.0  # between two heartbeats
LOST_SECONDS = 60.0  # without a heartbeat: the rank is gone


def _of_the_job(name: str, alone: int) -> int:
    # Only torchrun sets the run's id; RANK alone may mean anything on a cluster.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else alone


def rank() -> int:
    """This process among all of the job, from 0."""
    return _of_the_job("RANK", 0)


def world() -> int:
    """Processes of the job, on all machines."""
    return _of_the_job("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process among those on its machine, from 0."""
    return _of_the_job("LOCAL_RANK", 0)


def local_world() -> int:
    """Processes of the job on this machine."""
    return _of_the_job("LOCAL_WORLD_SIZE", 1)


@cache
def job() -> Job:
    """The job that this process belongs to."""
    return Job()


class Job:
    """All ranks of the job, seen from this one. `with job:` around the work lets the others know how it ended."""

    def __init__(self) -> None:
        self.rank, self.world = rank(), world()
        self._stage = 0  # shared stages so far, alike on all ranks: what they say is filed under it
        self._groups = 0
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._store: Any = None
        if self.world > 1:
            import torch.distributed as dist

            found = dist.rendezvous("env://", timeout=timedelta(seconds=LOST_SECONDS))  # type: ignore[attr-defined]
            self._store, _, _ = next(iter(found))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    # --- how it begins and ends ---------------------------------------------------------------------------------------

    def __enter__(self) -> Job:
        if self.world > 1:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self.world == 1 or (error is None and not self.leads):
            return
        how = "done" if error is None else "failed"
        if isinstance(error, Interrupted | KeyboardInterrupt):
            how = "interrupted"
        try:
            self._store.set("end", json.dumps([how, f"rank {self.rank} of {self.world}: {error}"]))
        except RuntimeError:  # the store went with torchrun
            return

    def _beat(self) -> None:
        beats = 0
        while not self._over.wait(BEAT_SECONDS if beats else 0):
            beats += 1
            try:
                self._store.set(f"alive {self.rank}", str(beats))
            except RuntimeError:
                return

    def ended(self) -> tuple[str, str] | None:
        """How the work ended for all, once one rank is through or has failed: `done`, `interrupted` or `failed`, and why."""
        if self.world == 1 or not self._said("end"):
            return None
        how, why = json.loads(self._store.get("end"))
        return how, why

    def stopped(self) -> bool:
        """Whether another rank was interrupted or has failed: there is no use in going on."""
        return self.ended() is not None

    # --- what ranks say to each other ---------------------------------------------------------------------------------

    def announce(self, stage: str) -> None:
        """Rank 0 calls the others into a stage."""
        self._stage += 1
        if self.world > 1:
            self._store.set(f"stage {self._stage}", stage)

    def called(self, stop: Callable[[], bool]) -> str | None:
        """The next stage that rank 0 calls the others into; None when there is none to come."""
        self._stage += 1
        key = f"stage {self._stage}"
        while not self._said(key):
            if self.ended():
                return None
            self._wait(stop, [0])
        return self._store.get(key).decode()

    def agree(self, what: str, value: Callable[[], T], stop: Callable[[], bool]) -> T:
        """Rank 0's value (plain, for JSON), on every rank."""
        if self.world == 1:
            return value()
        key = f"{self._stage} {what}"
        if self.leads:
            decided = value()
            self._store.set(key, json.dumps(decided))
            return decided
        while not self._said(key):
            self._raise_if_ended()
            self._wait(stop, [0])
        return json.loads(self._store.get(key))

    def count(self, what: str, amount: int) -> int:
        """Adds to a number that all ranks share; returns it."""
        return self._store.add(f"{self._stage} {what}", amount) if self.world > 1 else amount

    def finish(self, stop: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """The end of a shared stage: rank 0 waits here until every rank has come."""
        if self.world == 1:
            return
        self._store.set(f"{self._stage} done {self.rank}", "")
        while self.leads:
            late = [r for r in range(1, self.world) if not self._said(f"{self._stage} done {r}")]
            if not late:
                return
            self._raise_if_ended()
            self._wait(stop, late)
            meanwhile()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _said(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError:
            raise UsageError("torchrun has ended under this rank; the same command goes on") from None

    def _raise_if_ended(self) -> None:
        if end := self.ended():
            how, why = end
            # Of a failure the rank that failed has spoken, and rank 0 speaks for the job: the others end in silence.
            raise UsageError(f"{why}; the same command goes on") if how == "failed" and self.leads else Interrupted(why)

    def _wait(self, stop: Callable[[], bool], others: list[int]) -> None:
        """A short while. Raises Interrupted when the user wants it to end, UsageError when one of `others` is gone."""
        if stop():
            raise Interrupted("waiting for other ranks")
        now = time.monotonic()
        for other in others:
            key = f"alive {other}"
            sign = self._store.get(key) if self._said(key) else b""
            last, since = self._heard.get(other, (None, now))
            if sign != last:
                self._heard[other] = sign, now
            elif now - since > LOST_SECONDS:
                raise UsageError(
                    f"rank {other} of {self.world} has given no heartbeat for {LOST_SECONDS:.0f} s; the same command goes on"
                )
        time.sleep(ASK_SECONDS)

    # --- for training -------------------------------------------------------------------------------------------------

    @contextmanager
    def group(self, device: torch.device) -> Iterator[None]:
        """torch.distributed's default process group, for DistributedDataParallel: gloo on the CPU, NCCL beside it on CUDA."""
        if self.world == 1:
            yield
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._groups += 1  # as on the other ranks: each group has its own corner of the store
        store = dist.PrefixStore(f"group {self._groups}", self._store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)
        try:
            yield
        finally:
            dist.destroy_process_group()

"""Draws the next steps' data while a GPU computes: in processes, and into pinned memory, from which copies run beside the kernels.

Threads in their place would share Python's lock with the one that launches the kernels, and slow it down. On the CPU nothing is
drawn ahead: it would take the cores from the model.
"""

import multiprocessing
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.run.machine.parallel import local_world, usable_cores

T = TypeVar("T")
MOST_WORKERS = 8
EACH = 2  # batches that a worker is ahead
SHARED_MEMORY = "/dev/shm"  # holds a batch from its worker until it is pinned


def drawn_ahead(
    draw: Callable[[T], Any], moments: Iterable[T], device: torch.device, say: Callable[[str], None]
) -> Generator[Any, None, None]:
    """`draw(moment)` of all moments, in order. For a CUDA device it is called in forked processes, ahead of need, and must not
    touch the device; the tensors are then in pinned memory. To be closed where it is left early."""
    upcoming = iter(moments)
    if device.type == "cuda" and (first := next(upcoming, None)) is not None:
        drawn = draw(first)
        workers = _workers(drawn, say)
        yield drawn
        if workers:
            yield from _from_workers(draw, upcoming, device, workers)
    yield from map(draw, upcoming)


def _workers(drawn: Any, say: Callable[[str], None]) -> int:
    """How many processes draw: one for each core that is left, if there is shared memory for batches like `drawn`."""
    if "fork" not in multiprocessing.get_all_start_methods() or not Path(SHARED_MEMORY).is_dir():  # not on Linux
        return 0
    cores = min(MOST_WORKERS, max(1, usable_cores() // local_world() - 1))
    free = shutil.disk_usage(SHARED_MEMORY).free
    room = free // local_world() // ((EACH + 1) * len(pickle.dumps(drawn)))
    if room < cores:
        say(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free: {room} of {cores} processes draw batches ahead; a container has more with "
            "docker's --shm-size"
        )
    return min(cores, room)


def _from_workers(
    draw: Callable[[T], Any], moments: Iterable[T], device: torch.device, workers: int
) -> Generator[Any, None, None]:
    before, others = torch.get_num_threads(), multiprocessing.active_children()
    loader = DataLoader(
        _Steps(draw), sampler=moments, batch_size=None, collate_fn=_unchanged, num_workers=workers, prefetch_factor=EACH,
        pin_memory=True, multiprocessing_context="fork", worker_init_fn=_leave_signals, generator=torch.Generator(),
    )  # fmt: skip
    with torch.cuda.device(device), warnings.catch_warnings():  # else its thread would open a context on the first GPU
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)  # no lock that `draw` needs is held
        batches = iter(loader)
    started = [process for process in multiprocessing.active_children() if process not in others]
    try:
        for item in batches:
            yield draw(item.at) if item.drawn is None else item.drawn
    finally:
        del batches  # tells the processes to end, and waits for some seconds
        for process in started:
            process.kill()  # one that does not, as where its disk is silent: this process could not end without it
            process.join()
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Item:
    """What comes from a worker."""

    at: Any
    drawn: Any = None

    def pin_memory(self) -> "Item":  # called by DataLoader
        return replace(self, drawn=of_each_tensor(self.drawn, Tensor.pin_memory))


class _Steps(Dataset[Item]):
    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def __getitem__(self, at: Any) -> Item:
        try:
            return Item(at, of_each_tensor(self.draw(at), Tensor.share_memory_))
        except Exception:
            return Item(at)  # no shared memory, or an error: to be drawn, or raised, where it is needed


def _unchanged(item: Any) -> Any:
    return item


def _leave_signals(_: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach every process: the one that trains ends the workers when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def of_each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor of it, in dataclasses and tuples, replaced by the function's result."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(of_each_tensor(part, function) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: of_each_tensor(getattr(value, field.name), function) for field in fields(value)})
    return value

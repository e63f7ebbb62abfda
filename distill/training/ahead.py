"""Draws the next steps' data while a GPU computes: in threads, into pinned memory, from which copies run beside the kernels.

On the CPU nothing is drawn ahead: threads would take the cores from the model.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill.run.parallel import local_world, usable_cores

T = TypeVar("T")
MOST_THREADS = 4  # more would wait for Python's lock


def drawn_ahead(draw: Callable[[T], Any], moments: Iterable[T], device: torch.device) -> Generator[Any, None, None]:
    """`draw(moment)` of all moments, in order. On a CUDA device it is called from several threads, ahead of need; its tensors
    are then in pinned memory. To be closed where it is left early."""
    if device.type != "cuda":
        yield from map(draw, moments)
        return

    def pinned(moment: T) -> Any:
        with torch.cuda.device(device):  # a thread of its own would open a context on the first GPU
            return pin(draw(moment))

    threads = max(1, min(MOST_THREADS, usable_cores() // local_world() - 1))
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "draw", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Any]] = deque()
    upcoming = iter(moments)
    try:
        waiting.extend(pool.submit(pinned, moment) for moment in islice(upcoming, threads + 1))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(pinned, moment) for moment in islice(upcoming, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def pin(value: Any) -> Any:
    """The value with every tensor of it, in dataclasses and tuples, in pinned memory."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, tuple):
        return tuple(map(pin, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: pin(getattr(value, field.name)) for field in fields(value)})
    return value

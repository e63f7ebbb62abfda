"""What the processes of a training job tell each other, over torch.distributed's default group.

Without a group a process is number 0 of 1 and nothing here costs anything. `Crew.group` (ranks.py) makes the group.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def total_of(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def average(tensors: Iterable[Tensor]) -> None:
    """The mean over processes, in place, in one message: for gradients and statistics of a small network."""
    if not distributed.is_initialized():
        return
    some = list(tensors)
    flat = total_of(torch.cat([tensor.reshape(-1) for tensor in some])) / place()[1]
    for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def everyones(tensor: Tensor | None) -> list[Tensor | None]:
    """Each process's tensor, in their order, on the CPU; for what is small and differs between them."""
    rank, ranks = place()
    found: list[Tensor | None] = [None] * ranks
    found[rank] = None if tensor is None else tensor.cpu()
    if ranks > 1:
        distributed.all_gather_object(found, found[rank])
    return found


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any process says so: all stop after the same step."""
    return bool(total_of(torch.tensor(float(flag), device=device)).item()) if distributed.is_initialized() else flag


def wait() -> None:
    """Until all processes are here. On the CPU: NCCL's barrier would take a GPU for it."""
    total_of(torch.zeros(1))

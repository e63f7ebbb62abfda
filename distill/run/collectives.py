"""What the processes of a training job tell each other, over torch.distributed's default group.

Without a group a process is number 0 of 1 and nothing here costs anything. `Job.group` (parallel.py) makes the group.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over processes, in rank_and_world."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """The mean over processes, in rank_and_world, in one message: for gradients and statistics of a small network."""
    if not distributed.is_initialized():
        return
    some = list(tensors)
    flat = sum_over_ranks(torch.cat([tensor.reshape(-1) for tensor in some])) / rank_and_world()[1]
    for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def gather_from_ranks(tensor: Tensor | None) -> list[Tensor | None]:
    """Each process's tensor, in their order, on the CPU; for what is small and differs between them."""
    rank, ranks = rank_and_world()
    found: list[Tensor | None] = [None] * ranks
    found[rank] = None if tensor is None else tensor.cpu()
    if ranks > 1:
        distributed.all_gather_object(found, found[rank])
    return found


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether any process says so: all stop after the same step."""
    return (
        bool(sum_over_ranks(torch.tensor(float(flag), device=device)).item()) if distributed.is_initialized() else flag
    )


def wait_for_ranks() -> None:
    """Until all processes are here. On the CPU: NCCL's barrier would take a GPU for it."""
    sum_over_ranks(torch.zeros(1))

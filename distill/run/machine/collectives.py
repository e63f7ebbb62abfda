"""The process group of a training job, and what its ranks compute together, over torch.distributed's default group.

Without a group a process is rank 0 of 1, and every function here returns at once.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, distributed

from distill.run.machine.parallel import job, under_torchrun

_GROUPS = count()  # the same on all ranks; keeps the store's keys of successive groups apart


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The default process group of a torchrun job, even of a single process, for the length of the block: gloo on the CPU, NCCL
    too on CUDA."""
    if not under_torchrun():
        yield
        return
    this = job()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL, and memory that names no device
    store = distributed.PrefixStore(f"group {next(_GROUPS)}", this.store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=this.rank, world_size=this.world)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """This process's rank in the group, and how many ranks it has."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """The mean over ranks, in place, in one message: for gradients and statistics of a small network."""
    if not distributed.is_initialized():
        return
    some = list(tensors)
    flat = sum_over_ranks(torch.cat([tensor.reshape(-1) for tensor in some])) / rank_and_world()[1]
    for tensor, mean in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def gather_from_ranks(tensor: Tensor | None) -> list[Tensor | None]:
    """The tensor of every rank, in order, on the CPU; for small ones."""
    rank, ranks = rank_and_world()
    tensors: list[Tensor | None] = [None] * ranks
    tensors[rank] = None if tensor is None else tensor.cpu()
    if ranks > 1:
        distributed.all_gather_object(tensors, tensors[rank])
    return tensors


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank, so that all stop after the same step. On the CPU, where no kernel has to be awaited."""
    return bool(sum_over_ranks(torch.tensor(float(flag))).item())


def wait_for_ranks() -> None:
    """Returns when all ranks are here. An all-reduce on the CPU: NCCL's barrier would occupy a GPU."""
    sum_over_ranks(torch.zeros(1))

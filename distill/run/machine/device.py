"""The device and the CPU threads of a run, and the reason for the choice."""

import torch

from distill.run.errors import UsageError
from distill.run.machine.parallel import local_rank, local_world, usable_cores


def choose(wanted: str) -> tuple[torch.device, str]:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`, and the reason. Raises UsageError where there is no such device. The
    ranks of a torchrun job take the CUDA devices of their machine in turn, unless one is named."""
    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu"), "cpu (no CUDA device visible)"
        device = _this_ranks_gpu()
        return device, f"{device} ({torch.cuda.get_device_name(device)})"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"run.device '{wanted}' is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"run.device '{wanted}' is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"run.device is '{wanted}', but {torch.cuda.device_count()} CUDA devices are visible; use auto or cpu")
    if wanted == "cuda":
        device = _this_ranks_gpu()
    return device, f"{device} (requested)"


def _this_ranks_gpu() -> torch.device:
    # With an index: plain "cuda" is GPU 0 on every rank.
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def set_threads(threads: int, alone: bool = False) -> int:
    """Sets torch's number of CPU threads, and returns it.

    0: one for each usable core. The ranks of a torchrun job on one machine divide the cores, unless this one works `alone`
    while the others wait; then it rounds as a process without torchrun does.
    """
    threads = threads or max(1, usable_cores() // (1 if alone else local_world()))
    torch.set_num_threads(threads)
    return threads

"""Which device a run uses, and why."""

from __future__ import annotations

import os

import torch

from distill.errors import UsageError


def choose(wanted: str) -> tuple[torch.device, str]:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`, and the reason. Raises UsageError where it is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"cuda ({torch.cuda.get_device_name()})"
        return torch.device("cpu"), "cpu (no CUDA device visible)"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"run.device '{wanted}' is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"run.device '{wanted}' is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"run.device is '{wanted}', but {torch.cuda.device_count()} CUDA devices are visible; use auto or cpu"
        )
    return device, f"{wanted} (asked for)"


def set_threads(threads: int) -> int:
    """Sets torch's CPU threads (0: all cores that this process may use); returns how many."""
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads

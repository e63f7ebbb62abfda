"""Checkpoints: tensors, numbers and strings in one file, whole or not at all; loading one never runs code.

A resume file, from which training continues, has the key `format`: FORMAT for this version; the oldest lack it. Files that
later stages read (best.pt, visage.pt, unisal.pt) have no such key and are the same in all versions.
"""

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill.run.errors import UsageError
from distill.run.files import atomic, write_bytes
from distill.teachers.weights import read_weights

FORMAT = 2


def save(path: Path, values: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all."""
    buffer = io.BytesIO()  # torch does not report a full disk, a plain write does
    torch.save(values, buffer)
    write_bytes(path, buffer.getbuffer())


def load(path: Path, device: torch.device | str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """The saved values; `mapped` reads tensors only when they are used. Raises UsageError where missing or damaged."""
    try:
        values = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run the command again to make it") from None
    except Exception as error:  # torch raises a dozen kinds of them for damaged files, OSError and AssertionError among them
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is not a checkpoint ({reason}); remove it and run the command again") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not one of our checkpoints; remove it and run the command again")
    return values


def check_resumable(path: Path) -> None:
    """Raises UsageError where another version wrote the resume file, or it is damaged; it is not read as a whole."""
    if load(path, mapped=True).get("format") != FORMAT:
        raise UsageError(
            f"{path} was written by another version of saliency-distill; choose another --out, or start over with --force"
        )


def write_tensors(
    path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None, verify: bool = False
) -> None:
    """A safetensors file, whole or not at all, without a second copy in memory. verify: it is read back and compared first.

    Raises UsageError where the disk is full, or the written file differs.
    """
    tensors, seen = {}, set[int]()
    for key, value in state.items():
        tensors[key] = value.detach().cpu().contiguous()
        memory = tensors[key].untyped_storage().data_ptr()
        if memory in seen:  # safetensors refuses tensors that share memory
            tensors[key] = tensors[key].clone()
        seen.add(memory)
    try:
        with atomic(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(tensors, temporary, metadata)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
            if verify and not _holds(temporary, tensors):
                raise UsageError(f"{path}: the written file differs from its source; try another disk")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} could not be written: {error}") from None


def _holds(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    with suppress(ValueError):  # not even a weights file
        written = read_weights(path)
        return written.keys() == tensors.keys() and all(
            written[key].dtype == value.dtype and torch.equal(written[key], value) for key, value in tensors.items()
        )
    return False


def restore(module: torch.nn.Module, values: dict[str, Tensor], path: Path) -> None:
    """Loads weights. Raises UsageError where their shapes differ: another version wrote them, or another configuration."""
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:24])
        raise UsageError(
            f"{path} does not fit this version's network ({reason} ...); choose another --out, or start over with --force"
        ) from None

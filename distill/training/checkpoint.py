"""Checkpoints: tensors, numbers and strings in one file, whole or not at all; loading one never runs code.

A resume file, from which training continues, has the key `format`: FORMAT for this version, none before there was one. Files
that later stages read (best.pt, visage.pt, unisal.pt) have no such key and are the same in all versions.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from distill.run.errors import UsageError
from distill.run.files import atomic, write_bytes

FORMAT = 2
RESUME_FILES = {"teach": ("visage_last.pt", "unisal_last.pt"), "train": ("last.pt",)}
"""Of each stage that trains, in the run's folder of checkpoints. Only the student's stays when its stage is done."""


def save(path: Path, values: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch does not report a full disk, a plain write does
    torch.save(values, buffer)
    write_bytes(path, buffer.getbuffer())


def load(path: Path, device: torch.device | str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """The saved values; `mapped` reads tensors only when they are used. Raises UsageError where missing or damaged."""
    try:
        values = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run the command again to make it") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is not a checkpoint ({reason}); remove it and run the command again") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not one of our checkpoints; remove it and run the command again")
    return values


def save_for_resume(path: Path, values: dict[str, Any]) -> None:
    save(path, {"format": FORMAT} | values)


def load_for_resume(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What training continues from. Raises UsageError for a file of another version."""
    check_resumable(path)
    return load(path, device)


def check_resumable(path: Path) -> None:
    """Raises UsageError where another version wrote the resume file, or it is damaged; it is not read as a whole."""
    if load(path, mapped=True).get("format") != FORMAT:
        raise UsageError(
            f"{path} was written by another version of saliency-distill, and training cannot continue from it; "
            "choose another --out, or start over with --force"
        )


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all, without a second copy in memory."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        with atomic(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.torch.save_file(tensors, temporary, metadata)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be written: {error}") from None


def last_good(path: Path) -> str:
    """What a run that must stop still has, for its error message."""
    return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"


def restore(module: torch.nn.Module, values: dict[str, Tensor], path: Path) -> None:
    """Loads weights. Raises UsageError where their shapes differ: another version wrote them, or another configuration."""
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:24])
        raise UsageError(
            f"{path} does not fit this version's network ({reason} ...); choose another --out, or start over with --force"
        ) from None

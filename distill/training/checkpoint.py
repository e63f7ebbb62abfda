"""Checkpoints: tensors, numbers and strings in one file, whole or not at all; no code in it is ever run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from distill.run.errors import UsageError
from distill.run.files import write_bytes


def save(path: Path, values: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch does not say that a disk is full, a plain write does
    torch.save(values, buffer)
    write_bytes(path, buffer.getbuffer())


def kept(path: Path) -> str:
    """What a run that must stop still has, for its last words."""
    return f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"


def restore(module: torch.nn.Module, values: dict[str, torch.Tensor], path: Path) -> None:
    """Loads weights. Raises UsageError where they are of another shape: an earlier version's, or another student's."""
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:24])
        raise UsageError(
            f"{path} does not fit this version's student ({reason} ...); choose another --out, or start over with --force"
        ) from None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The saved values. Raises UsageError for a file that is missing or damaged."""
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; run the command again to make it") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is no checkpoint ({reason}); remove it and run the command again") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no checkpoint of ours; remove it and run the command again")
    return values

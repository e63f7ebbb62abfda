"""The golden cases of the teachers: official key names, weights made by rule, outputs of the authors' own code."""

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden")) / "teachers"

Arrays = dict[str, np.ndarray]


def _stored(name: str) -> Arrays:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def golden_arrays() -> Callable[[str], Arrays]:
    """name -> the stored inputs and outputs."""
    return _stored


@pytest.fixture(scope="session")
def golden_state() -> Callable[[str], dict[str, Tensor]]:
    """name -> the official state dict: its key names, filled by the golden cases' rule."""

    def load(name: str) -> dict[str, Tensor]:
        spec = json.loads((GOLDEN / f"{name}.keys.json").read_text(encoding="utf-8"))
        stored = _stored(name)
        state = {}
        for key, shape in spec["shapes"].items():
            given = stored.get(f"given/{key}")
            value = _fill(key, shape, spec["salt"], spec.get("gain", {})) if given is None else given
            state[key] = torch.from_numpy(np.asarray(value))
        return state

    return load


def _fill(key: str, shape: list[int], salt: str, gain: dict[str, float]) -> np.ndarray:
    if "num_batches" in key:
        return np.zeros(shape, np.int64)
    rng = np.random.RandomState(zlib.crc32(f"{salt}:{key}".encode()) & 0x7FFFFFFF)
    noise = np.asarray(rng.standard_normal(shape), np.float32)
    if key.endswith("running_var"):
        value = 1 + 0.1 * abs(noise)
    elif key.endswith("running_mean"):
        value = 0.1 * noise
    elif len(shape) <= 1:
        scale = any(word in key for word in ("norm", "bn", "gamma")) and key.endswith(("weight", "gamma"))
        value = 1 + 0.1 * noise if scale else 0.1 * noise
    else:
        default = 0.05 if key.endswith("final_head.3.weight") else 30 if key.endswith("head_2d.3.weight") else 1.5
        value = noise * (gain.get(key, default) / math.sqrt(math.prod(shape[1:])))
    return np.asarray(value, np.float32)

"""The golden cases of the teachers: official key names, weights made by rule, outputs of the authors' own code."""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden")) / "teachers"

Arrays = dict[str, np.ndarray]

SCALES_BY_ENDING = ("unisal", "tased", "salfom")
"""Cases in which a one-dimensional tensor is a scale, near 1, where its key ends with `weight`; see the rule."""


def _stored(name: str) -> Arrays:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def golden_arrays() -> Callable[[str], Arrays]:
    """name -> the stored inputs and outputs."""
    return _stored


@pytest.fixture(scope="session")
def golden_state() -> Callable[..., dict[str, Tensor]]:
    """name -> the official state dict: its key names, filled by the golden cases' rule.

    `known` are values that the architecture gives, by key; the stored ones come first.
    """

    def load(name: str, known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        spec = json.loads((GOLDEN / f"{name}.keys.json").read_text(encoding="utf-8"))
        given = dict(known or {})
        given |= {key[6:]: torch.from_numpy(value) for key, value in _stored(name).items() if key.startswith("given/")}

        def value(key: str, shape: list[int]) -> Tensor:
            if key in given:
                return given[key]
            return torch.from_numpy(_fill(key, shape, spec["salt"], spec.get("gain", {}), name in SCALES_BY_ENDING))

        with ThreadPoolExecutor(2) as pool:  # numpy lets go of the interpreter while it draws
            return dict(zip(spec["shapes"], pool.map(value, *zip(*spec["shapes"].items(), strict=True)), strict=True))

    return load


@pytest.fixture(scope="session")
def golden_input() -> Callable[[str], Tensor]:
    """name -> the input of a case that stores its shape alone."""

    def load(name: str) -> Tensor:
        salt = json.loads((GOLDEN / f"{name}.keys.json").read_text(encoding="utf-8"))["salt"]
        rng = np.random.RandomState(zlib.crc32(f"input:{salt}".encode()) & 0x7FFFFFFF)
        return torch.from_numpy(rng.standard_normal(_stored(name)["input_shape"]).astype(np.float32))

    return load


def _fill(key: str, shape: list[int], salt: str, gain: dict[str, float], scales_by_ending: bool) -> np.ndarray:
    if "num_batches" in key:
        return np.zeros(shape, np.int64)
    rng = np.random.RandomState(zlib.crc32(f"{salt}:{key}".encode()) & 0x7FFFFFFF)
    noise = np.asarray(rng.standard_normal(shape), np.float32)
    if key.endswith("running_var"):
        value = 1 + 0.1 * abs(noise)
    elif key.endswith("running_mean"):
        value = 0.1 * noise
    elif len(shape) <= 1:
        named = any(word in key for word in ("norm", "bn", "gamma")) and key.endswith(("weight", "gamma"))
        scale = key.endswith("weight") if scales_by_ending else named
        value = 1 + 0.1 * noise if scale else 0.1 * noise
    else:
        default = 0.05 if key.endswith("final_head.3.weight") else 30 if key.endswith("head_2d.3.weight") else 1.5
        value = noise * (gain.get(key, default) / math.sqrt(math.prod(shape[1:])))
    return np.asarray(value, np.float32)

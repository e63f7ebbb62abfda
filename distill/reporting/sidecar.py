"""Sidecars and registry entries in the downstream's format (lusoris/vmaf: `model/tiny/registry.json`, its schema, its loader).

What decides there, and is kept to here:

    the loader, in C, takes the first textual occurrence of a key, nested or not, and knows no escapes: the keys that it
        reads stand first, at the top, with plain values
    `BASE.onnx` has its sidecar beside it, `BASE.json`, of at most 1 MiB
    a quant_mode other than fp32 makes the loader open `BASE.int8.onnx` in the place of `BASE.onnx`, and fail where that is
        missing; the registry then wants the checksum of both
    the schema refuses unknown keys, ids and file names that are not plain, and texts that are too long
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.export.limits import OPSET
from distill.run.files import write_json

ID_LENGTH, LICENSE_LENGTH, DESCRIPTION_LENGTH, NOTES_LENGTH, CALIBRATION_LENGTH = 64, 128, 256, 512, 256
BUDGET = 0.01  # house value: by how much Pearson's correlation of float and int8 outputs may fall short of 1


@dataclass(frozen=True)
class Int8:
    """The sibling `BASE.int8.onnx` of a file in floating point."""

    sha256: str
    calibration: str  # what its ranges were measured on
    budget: float = BUDGET


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex, as the registry wants it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identifier(stem: str, room: int = 0) -> str:
    """A file's stem as the registry takes ids and base names: lower case, digits, `-` and `_`, `room` characters to spare.

    Raises ValueError where nothing is left of it, or too much.
    """
    name = re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).lstrip("_-")
    if not name:
        raise ValueError(f"the name '{stem}' has neither letters a to z nor digits; give the file another")
    if len(name) > ID_LENGTH - room:
        raise ValueError(f"the name '{stem}' has more than {ID_LENGTH - room} characters; give the file a shorter one")
    return name


def write_sidecar(
    model: Path,
    about: str,
    license_: str,
    chain: Sequence[tuple[str, str]],
    more: Mapping[str, Any],
    quant_mode: str = "fp32",
) -> Path:
    """Writes `BASE.json` beside `BASE.onnx`; returns its path. chain: parts and their licences. more: what else is to be known."""
    path = model.with_suffix(".json")
    write_json(
        path,
        {
            "kind": "nr",
            "name": f"vmaf_tiny_{model.stem}",
            "input_name": "input",
            "output_name": "saliency_map",
            "onnx_opset": OPSET,
            "quant_mode": quant_mode,
            "notes": about,
            "license": license_,
            "license_chain": [{"part": part, "license": its} for part, its in chain],
            **more,
        },
    )
    return path


def registry_entry(model: Path, license_: str, about: str, notes: str, int8: Int8 | None = None) -> dict[str, Any]:
    """The registry's entry of `BASE.onnx`; with `int8`, of that and its sibling, which the loader then opens."""
    entry = {
        "id": model.stem,
        "kind": "nr",
        "onnx": model.name,
        "sha256": sha256(model),
        "opset": OPSET,
        "quant_mode": "static" if int8 else "fp32",
        "license": _shortened(license_, LICENSE_LENGTH, " … (in full: sidecar)"),
        "description": _shortened(about, DESCRIPTION_LENGTH),
        "notes": _shortened(notes, NOTES_LENGTH),
    }
    if int8:
        entry["int8_sha256"] = int8.sha256
        entry["quant_calibration_set"] = _shortened(int8.calibration, CALIBRATION_LENGTH)
        entry["quant_accuracy_budget_plcc"] = int8.budget
    return entry


def write_registry(path: Path, entries: Sequence[dict[str, Any]]) -> Path:
    write_json(path, {"schema_version": 1, "models": list(entries)})
    return path


def _shortened(text: str, most: int, ending: str = "…") -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - len(ending)].rstrip() + ending


def origin_of(properties: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """Licence and licence chain, as the metadata of an ONNX file state them."""
    try:
        chain = [(str(part), str(its)) for part, its in json.loads(properties.get("license_chain", "[]"))]
    except (ValueError, TypeError):
        chain = []
    return properties.get("license") or "not stated", chain

"""Sidecars and registry entries in the downstream's format (lusoris/vmaf: `model/tiny/registry.json`, its schema, its loader).

The downstream's rules, which this module follows:

    the loader, in C, takes the first textual occurrence of a key, nested or not, and decodes no escapes: the keys that it reads
        come first, at the top level, with plain values
    the sidecar of `BASE.onnx` is `BASE.json` beside it, of at most 1 MiB
    a quant_mode other than fp32 makes the loader open `BASE.int8.onnx` in place of `BASE.onnx`, and fail if it is missing; the
        registry must then have the checksums of both
    the schema refuses unknown keys, ids and file names with other than plain characters, and long texts
    its registry test, stricter than the schema, wants a sigstore_bundle in every entry. Its own entries name
        `BASE.onnx.sigstore.json`, present or not, and so do ours. There is no such file, and the notes say so: the loader's
        verification fails, as it does without the name
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.export.verification import OPSET
from distill.run.files import sha256_of, write_json

ID_LENGTH, LICENSE_LENGTH, DESCRIPTION_LENGTH, NOTES_LENGTH, CALIBRATION_LENGTH = 64, 128, 256, 512, 256
UNSIGNED = "Not signed: sigstore_bundle names a file that does not exist."
BUDGET = 0.01  # the correlation of float and int8 outputs may be this much below 1; our own value


@dataclass(frozen=True)
class Int8:
    """The int8 sibling `BASE.int8.onnx` of a float file."""

    sha256: str
    calibration: str  # the data that its ranges were measured on
    budget: float = BUDGET


def identifier(stem: str, room: int = 0) -> str:
    """A file's stem as an id or base name of the registry: lower case, digits, `-` and `_`; `room` characters can be
    appended. Raises ValueError where nothing remains of it, or too much."""
    name = re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).lstrip("_-")
    if not name:
        raise ValueError(f"the name '{stem}' has neither letters a to z nor digits; give the file another")
    if len(name) > ID_LENGTH - room:
        raise ValueError(f"the name '{stem}' has more than {ID_LENGTH - room} characters; give the file a shorter one")
    return name


def write_sidecar(
    model: Path, about: str, license_: str, chain: Sequence[tuple[str, str]], more: Mapping[str, Any], quant_mode: str = "fp32"
) -> Path:  # fmt: skip
    """Writes `BASE.json` beside `BASE.onnx`; returns its path. chain: parts and their licences. more: further keys."""
    path = model.with_suffix(".json")
    keys = {
        "kind": "nr", "name": f"vmaf_tiny_{model.stem}", "input_name": "input", "output_name": "saliency_map",
        "onnx_opset": OPSET, "quant_mode": quant_mode, "notes": about, "license": license_,
        "license_chain": [{"part": part, "license": licence} for part, licence in chain],
    }  # fmt: skip
    write_json(path, {**keys, **more})
    return path


def registry_entry(model: Path, license_: str, about: str, notes: str, int8: Int8 | None = None) -> dict[str, Any]:
    """The registry entry of `BASE.onnx`; with `int8`, of the pair, of which the loader opens the int8 file."""
    entry = {
        "id": model.stem, "kind": "nr", "onnx": model.name, "sha256": sha256_of(model), "opset": OPSET,
        "quant_mode": "static" if int8 else "fp32",
        "license": _shortened(license_, LICENSE_LENGTH, " … (in full: sidecar)"),
        "description": _shortened(about, DESCRIPTION_LENGTH),
        "notes": f"{_shortened(notes, NOTES_LENGTH - len(UNSIGNED) - 1)} {UNSIGNED}".lstrip(),
        "sigstore_bundle": f"{model.name}.sigstore.json",
    }  # fmt: skip
    if int8:
        entry["int8_sha256"] = int8.sha256
        entry["quant_calibration_set"] = _shortened(int8.calibration, CALIBRATION_LENGTH)
        entry["quant_accuracy_budget_plcc"] = int8.budget
    return entry


def write_registry(path: Path, entries: Sequence[dict[str, Any]]) -> Path:
    """Writes the entries as a registry of the downstream; returns its path."""
    write_json(path, {"schema_version": 1, "models": list(entries)})
    return path


def _shortened(text: str, most: int, ending: str = "…") -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - len(ending)].rstrip() + ending


def origin_of(properties: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
    """Licence and licence chain from the metadata properties of an ONNX file."""
    try:
        chain = [(str(part), str(licence)) for part, licence in json.loads(properties.get("license_chain", "[]"))]
    except (ValueError, TypeError):
        chain = []
    return properties.get("license") or "not stated", chain

"""What a path is, or this machine: facts for a person or a bug report."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from distill.run.directory import MANIFEST, environment, missing_modules
from distill.run.errors import UsageError
from distill.run.files import read_json
from distill.run.parallel import usable_cores


def describe(path: Path) -> dict[str, Any]:
    """Facts about a run directory, a soft-label store or an ONNX file. Raises UsageError for others.

    A corpus is looked at more closely: see `corpus_in` and distill.tools.look.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_file() and path.suffix == ".onnx":
        return _model(path)
    if (path / MANIFEST).is_file():
        return _run(path)
    if (path / "store.json").is_file():
        return _store(path)
    raise UsageError(f"{path} is no run directory, soft-label store, corpus root or .onnx file{_HINT}")


_HINT = "; a corpus whose layout is not seen can be named with --corpus"


def corpus_in(path: Path) -> str | None:
    """The corpus in whose layout a folder is; None where it is a run, a store, or in none."""
    if not path.is_dir() or (path / MANIFEST).is_file() or (path / "store.json").is_file():
        return None
    from distill.tools.look import guess

    return guess(path)


def _run(path: Path) -> dict[str, Any]:
    manifest = read_json(path / MANIFEST)
    facts: dict[str, Any] = {
        "kind": "run",
        "created": manifest["created"],
        "device": manifest.get("device", "not chosen yet"),
    }
    for name, stage in manifest["stages"].items():
        facts[name] = f"done in {stage['seconds']} s"
    if (path / "metrics.json").exists():
        for name, scores in read_json(path / "metrics.json")["predictors"].items():
            facts[f"score: {name}"] = ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
    return facts


def _store(path: Path) -> dict[str, Any]:
    import numpy as np

    teacher = read_json(path / "store.json")["teacher"]
    files = sorted(path.glob("*.npy"))
    shapes, broken, frames = Counter[str](), list[str](), 0
    for file in files:
        try:
            logits = np.load(file, mmap_mode="r")
        except ValueError:
            broken.append(file.name)
            continue
        frames += len(logits)
        shapes[f"{logits.shape[1]}x{logits.shape[2]} {logits.dtype}"] += 1
        if not np.isfinite(logits).all():
            broken.append(file.name)
    return {
        "kind": "soft-label store", "teacher": teacher["name"], "source": teacher["source"], "fingerprint": teacher["fingerprint"],
        "clips": len(files), "frames": frames, "maps": dict(shapes), "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1),
        "broken or NaN": broken or "none",
    }  # fmt: skip


def _model(path: Path) -> dict[str, Any]:
    import onnx

    from distill.opallowlist import check

    report = check(path)
    facts: dict[str, Any] = {
        "kind": "ONNX model",
        "gate": "accepted" if report.ok else "refused: " + "; ".join(map(str, report.violations)),
    }
    if report.ok:
        model = onnx.load(path)
        facts["bytes"] = path.stat().st_size
        facts["opset"], facts["ir"] = model.opset_import[0].version, model.ir_version
        facts["inputs"] = [f"{v.name} {_shape(v)}" for v in model.graph.input]
        facts["outputs"] = [f"{v.name} {_shape(v)}" for v in model.graph.output]
        facts |= {p.key: p.value for p in model.metadata_props}
    return facts


def _shape(value: Any) -> str:
    return str([d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim])


def machine() -> dict[str, Any]:
    """Versions, device, disk, and which packages of the `train` extra are missing (a comma-separated string)."""
    facts: dict[str, Any] = dict(environment())
    facts["cores"] = usable_cores()
    facts["free disk here"] = f"{shutil.disk_usage('.').free / 1e9:.0f} GB"
    missing = missing_modules()
    if "torch" not in missing:
        from distill.run.device import choose

        facts["device"] = choose("auto")[1]
    facts["missing"] = ", ".join(missing)
    return facts

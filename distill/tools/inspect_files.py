"""Facts about a run directory, a soft-label store or an ONNX file. `inspect_corpus` describes a corpus."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.opallowlist import check
from distill.run.directory import MANIFEST
from distill.run.errors import UsageError
from distill.run.files import map_array, value_in

STORE = "store.json"


def describe(path: Path) -> dict[str, Any]:
    """Facts about a run directory, a soft-label store or an ONNX file. Raises UsageError for anything else."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_file() and path.suffix == ".onnx":
        return _describe_model(path)
    if (path / MANIFEST).is_file():
        return _describe_run(path)
    if (path / STORE).is_file():
        return _describe_store(path)
    raise UsageError(
        f"{path} is not a run directory, soft-label store, corpus root or .onnx file; "
        "name a corpus whose layout is not recognised with --corpus"
    )


def corpus_in(path: Path) -> str | None:
    """The name of the corpus whose layout a folder has; None for a run, a store, and anything else."""
    if not path.is_dir() or (path / MANIFEST).is_file() or (path / STORE).is_file():
        return None
    from distill.corpora import detect_corpus  # needs OpenCV, which a gate-only install lacks

    return detect_corpus(path)


def _describe_run(path: Path) -> dict[str, Any]:
    def of_manifest(manifest: Any) -> dict[str, str]:
        facts = {"kind": "run", "created": manifest["created"], "device": manifest.get("device", "not chosen yet")}
        return facts | {name: f"done in {stage['seconds']} s" for name, stage in manifest["stages"].items()}

    def of_metrics(metrics: Any) -> dict[str, str]:
        predictors = metrics["predictors"].items()
        return {f"score: {name}": ", ".join(f"{k} {v:.3f}" for k, v in scores.items()) for name, scores in predictors}

    facts = value_in(path / MANIFEST, of_manifest)
    return facts | (value_in(path / "metrics.json", of_metrics) if (path / "metrics.json").exists() else {})


def _describe_store(path: Path) -> dict[str, Any]:
    teacher = value_in(path / STORE, lambda store: {name: store["teacher"][name] for name in ("name", "source", "fingerprint")})
    files = sorted(path.glob("*.npy"))
    shapes, broken, frames = Counter[str](), list[str](), 0
    for file in files:
        with contextlib.suppress(ValueError):
            logits = map_array(file)
            if logits.ndim == 3 and logits.dtype.kind == "f" and np.isfinite(logits).all():
                frames += len(logits)
                shapes[f"{logits.shape[1]}x{logits.shape[2]} {logits.dtype}"] += 1
                continue
        broken.append(file.name)
    return {
        "kind": "soft-label store", "teacher": teacher["name"], "source": teacher["source"], "fingerprint": teacher["fingerprint"],
        "clips": len(files), "frames": frames, "maps": dict(shapes), "megabytes": round(sum(f.stat().st_size for f in files) / 1e6, 1),
        "broken or NaN": broken or "none",
    }  # fmt: skip


def _describe_model(path: Path) -> dict[str, Any]:
    report = check(path)
    if not report.ok:
        return {"kind": "ONNX model", "gate": "refused: " + "; ".join(map(str, report.violations))}
    model = onnx.load(path)
    return {
        "kind": "ONNX model", "gate": "accepted", "bytes": path.stat().st_size,
        "opset": model.opset_import[0].version, "ir": model.ir_version,
        "inputs": [f"{v.name} {_shape(v)}" for v in model.graph.input],
        "outputs": [f"{v.name} {_shape(v)}" for v in model.graph.output],
    } | {p.key: p.value for p in model.metadata_props}  # fmt: skip


def _shape(value: Any) -> str:
    return str([d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim])

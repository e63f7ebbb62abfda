"""Facts about a run directory, a soft-label store or an ONNX file. `inspect_corpus` describes a corpus."""

import contextlib
import shlex
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import onnx

from distill.opallowlist import check
from distill.run.changes import has_changed
from distill.run.directory import MANIFEST, is_run, manifest_of, recipe_of
from distill.run.errors import UsageError
from distill.run.files import ArrayFile, map_array, read_json, value_in

STORE = "store.json"


def describe(path: Path) -> dict[str, Any]:
    """Facts about a run directory, a soft-label store or an ONNX file. Raises UsageError for anything else."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_file() and path.suffix == ".onnx":
        return _describe_model(path)
    if (path / MANIFEST).is_file() or is_run(path):
        return _describe_run(path)
    if (path / STORE).is_file():
        return _describe_store(path)
    raise UsageError(
        f"{path} is not a run directory, soft-label store, corpus root or .onnx file; "
        "name a corpus whose layout is not recognised with --corpus"
    )


def corpus_in(path: Path) -> str | None:
    """The name of the corpus whose layout a folder has; None for a run, a store, and anything else."""
    if not path.is_dir() or (path / MANIFEST).is_file() or (path / STORE).is_file() or is_run(path):
        return None
    from distill.corpora import detect_corpus  # needs OpenCV, which a gate-only install lacks

    return detect_corpus(path)


def _describe_run(path: Path) -> dict[str, Any]:
    """What a run has done, its scores, and the files that are not as it left them. Without a manifest, the files that do not open."""

    def of_metrics(metrics: Any) -> dict[str, str]:
        predictors = metrics["predictors"].items()
        return {f"score: {name}": ", ".join(f"{k} {v:.3f}" for k, v in scores.items()) for name, scores in predictors}

    facts: dict[str, Any] = {"kind": "run"}
    if (manifest := manifest_of(path)) is None:
        facts["manifest"] = "lost or damaged: a run of it is done again from the files that stand there"
        damaged = [f"{file.relative_to(path)} does not open" for file in sorted(path.rglob("*")) if not _opens(file)]
    else:
        facts |= {"created": manifest["created"], "device": manifest.get("device", "not chosen yet")}
        facts |= {name: f"done in {stage['seconds']} s" for name, stage in manifest["stages"].items()}
        outputs = {name: record for stage in manifest["stages"].values() for name, record in stage["outputs"].items()}
        changed = [name for name, record in outputs.items() if has_changed(path / name, record)]
        damaged = [f"{name} is {'changed' if (path / name).exists() else 'missing'}" for name in changed]
    with contextlib.suppress(UsageError):  # then it is among the damaged
        facts |= value_in(path / "metrics.json", of_metrics) if (path / "metrics.json").exists() else {}
    try:
        recipe_of(path)
    except UsageError as error:
        damaged.append(str(error))
    if damaged:
        remove = "remove it and " if any(name.startswith("checkpoints/") for name in damaged) else ""
        facts["damaged"] = damaged
        facts["way out"] = f"restore it, or {remove}make it again: distill run {shlex.quote(str(path))}"
    return facts


def _opens(file: Path) -> bool:
    """Whether a file of a run is whole, as far as its kind shows it."""
    match file.suffix:
        case ".npy":
            return ArrayFile(file).is_whole()
        case ".onnx":
            return check(file).ok
        case ".pt":
            return is_zipfile(file)
        case ".json" if file.name != MANIFEST:
            with contextlib.suppress(UsageError):
                read_json(file)
                return True
            return False
    return True


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

"""What goes with the two ONNX files, so that they can be trusted and loaded: metadata, sidecars, registry, model card.

The sidecar and the registry entry are in the downstream's format (lusoris/vmaf: `model/tiny/registry.json` and its
schema). Its C side finds sidecar keys by their first textual occurrence, so the keys it reads stand first and at the top.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from distill import __version__, scores
from distill.export.ship import sha256
from distill.metrics import LABELS
from distill.run_dir import atomic, write_json


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from."""

    name: str
    license: str
    corpus: str
    corpus_license: str
    teacher: str
    teacher_license: str
    teacher_chain: tuple[tuple[str, str], ...]  # what the teacher is made of, part by part, and the licence of each
    train_clips: tuple[str, ...]
    val_clips: tuple[str, ...]
    held_out: bool
    fps: float
    parameters: int
    working_size: tuple[int, int]
    tau_seconds: tuple[float, float, float]  # shortest, median, longest time constant of the gate
    step: int
    recipe_fingerprint: str

    @property
    def chain(self) -> list[tuple[str, str]]:
        """What the student was made from, part by part, and the licence of each."""
        return [(f"corpus {self.corpus}", self.corpus_license), *self.teacher_chain]


def git_revision() -> str:
    """The revision of the code that made the file, `-dirty` if it was changed since, `unknown` outside its checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside somebody else's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def metadata(origin: Provenance, metrics: dict[str, Any] | None) -> dict[str, str]:
    """Metadata properties of both files; strings, as ONNX wants."""
    props = {
        "name": origin.name,
        "task": "video-saliency",
        "license": origin.license,
        "training_corpus": f"{origin.corpus} ({len(origin.train_clips)} clips; licence: {origin.corpus_license})",
        "teacher": f"{origin.teacher} (licence: {origin.teacher_license})",
        "license_chain": json.dumps(origin.chain, ensure_ascii=False),
        "validation_clips": ",".join(origin.val_clips) if origin.held_out else "",
        "frame_rate": f"{origin.fps:g}",
        "gate_tau_seconds": "shortest {:.3g}, median {:.3g}, longest {:.3g}".format(*origin.tau_seconds),
        "git_revision": git_revision(),
        "distill_version": __version__,
        "recipe": origin.recipe_fingerprint,
        "parameters": str(origin.parameters),
        "working_size": "{}x{}".format(*origin.working_size),
        "input": "RGB in [0,1], normalised with ImageNet mean (0.485,0.456,0.406) and std (0.229,0.224,0.225), NCHW",
        "metrics": "not evaluated",
    }
    if metrics is not None and metrics["predictors"]:
        props["metrics"] = json.dumps(
            {k: _rounded(v) for k, v in metrics["predictors"].items() if k in ("step", "image")}
        )
        props["metrics_protocol"] = metrics["protocol"]
    return props


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def write_package(
    folder: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None, caveats: list[str]
) -> list[Path]:
    """Stamps the metadata into both ONNX files and writes sidecars, registry and card beside them; returns all paths.

    Stamping changes no node and no weight. Called after export, and again when the metrics are known.
    """
    models = {"image": folder / f"{origin.name}.onnx", "step": folder / f"{origin.name}_step.onnx"}
    props = metadata(origin, metrics)
    for path in models.values():
        model = onnx.load(path)
        onnx.helper.set_model_props(model, props)
        with atomic(path) as file:
            file.write(model.SerializeToString(deterministic=True))
    sidecars = {mode: path.with_suffix(".json") for mode, path in models.items()}
    for mode, path in sidecars.items():
        write_json(path, _sidecar(mode, origin, parity, metrics))
    registry, card = folder / f"{origin.name}.registry.json", folder / f"{origin.name}.md"
    write_json(
        registry,
        {"schema_version": 1, "models": [_registry_entry(mode, path, origin) for mode, path in models.items()]},
    )
    with atomic(card) as file:
        file.write(_card(origin, models, parity, metrics, caveats).encode())
    return [*models.values(), *sidecars.values(), registry, card]


def _sidecar(mode: str, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None) -> dict[str, Any]:
    suffix = "" if mode == "image" else "_step"
    return {
        "kind": "nr",
        "name": f"vmaf_tiny_{origin.name}{suffix}",
        "input_name": "input",
        "output_name": "saliency_map",
        "onnx_opset": 17,
        "quant_mode": "fp32",
        "notes": f"Video saliency, {'one frame at a time' if mode == 'image' else 'streaming with one recurrent state'}; "
        f"{origin.parameters} parameters, working resolution {origin.working_size[0]}x{origin.working_size[1]}.",
        "license": origin.license,
        "license_chain": [{"part": part, "license": license_} for part, license_ in origin.chain],
        "frame_rate": origin.fps,
        "gate_tau_seconds": list(origin.tau_seconds),
        "training": {
            "corpus": origin.corpus,
            "teacher": origin.teacher,
            "clips": list(origin.train_clips),
            "step": origin.step,
        },
        "parity": parity,
        "metrics": _rounded(metrics["predictors"][mode]) if metrics else None,
        "metrics_protocol": metrics["protocol"] if metrics else None,
    }


def _registry_entry(mode: str, path: Path, origin: Provenance) -> dict[str, Any]:
    return {
        "id": path.stem[:64],
        "kind": "nr",
        "onnx": path.name,
        "sha256": sha256(path),
        "opset": 17,
        "quant_mode": "fp32",
        "license": origin.license[:128],
        "description": f"Tiny video saliency student, {mode} mode: where people look, as a map in [0,1] per pixel."[
            :256
        ],
        "notes": f"Distilled from {origin.teacher} on {origin.corpus}."[:512],
    }


CARD = """\
---
license: "{license}"
library_name: onnx
tags: [video-saliency, eye-tracking, onnx]
---

# {name}

## Purpose

Predicts where people look in a video, as a map in [0, 1] per pixel, small and fast enough for a video encoder to move
bits there. The map is not scaled per frame: where nothing stands out, it stays low.

| file | for | bytes | sha256 |
| --- | --- | --- | --- |
| `{image}` | one frame at a time, no state | {image_bytes:,} | `{image_sha256}` |
| `{step}` | streaming at {fps:g} frames per second | {step_bytes:,} | `{step_sha256}` |

{parameters:,} parameters; opset 17, IR 8; any frame size, worked on at {height}x{width}. The gate's time constants run from
{tau_shortest:.2g} to {tau_longest:.2g} s (median {tau_median:.2g} s).

```python
import onnxruntime as ort

options = ort.SessionOptions()
options.log_severity_level = 3  # onnxruntime warns of the optional input; it is meant
session = ort.InferenceSession("{step}", options)
feed = {{}}
for x in frames:  # float32 [1,3,H,W], ImageNet-normalised RGB
    saliency, state = session.run(["saliency_map", "state_out"], {{"input": x, **feed}})
    feed = {{"state_in": state}}  # feed = {{}} after a scene cut: no state means no history
```

## Data

Trained on {train_clips} clips of {corpus} with soft labels of {teacher}; step {trained_steps} was the best by validation.
Validation clips: {val_clips}.

## Metrics

{metrics}

## Limits

{limits}

## Licence chain

| part | licence |
| --- | --- |
| these weights | {license} |
{chain}
"""


def _card(
    origin: Provenance,
    models: dict[str, Path],
    parity: dict[str, Any],
    metrics: dict[str, Any] | None,
    caveats: list[str],
) -> str:
    evaluated = "Not evaluated."
    if metrics is not None and metrics["predictors"]:
        evaluated = "\n".join([
            f"These ONNX files through onnxruntime, {metrics['frames_scored']:,} frames of {len(metrics['clips'])} validation "
            f"clips, by the protocol `{metrics['protocol']}`: {metrics['about']}. In brackets: 95 % intervals over clips.",
            *[line for part, result in scores.parts(metrics).items() for line in _scores_of(part, result)],
        ])  # fmt: skip
    limits = [
        *caveats,
        "A prediction of average free viewing; individuals, tasks and sound are not modelled.",
        f"PyTorch and onnxruntime agree to {max(parity['image_max_abs'], parity['step_max_abs']):.1e} "
        f"(largest absolute difference over {parity['frames']} frames).",
    ]
    image, step = models["image"], models["step"]
    shortest, median, longest = origin.tau_seconds
    return CARD.format(
        name=origin.name,
        license=origin.license,
        image=image.name,
        image_bytes=image.stat().st_size,
        image_sha256=sha256(image),
        step=step.name,
        step_bytes=step.stat().st_size,
        step_sha256=sha256(step),
        fps=origin.fps,
        parameters=origin.parameters,
        height=origin.working_size[0],
        width=origin.working_size[1],
        tau_shortest=shortest,
        tau_median=median,
        tau_longest=longest,
        train_clips=len(origin.train_clips),
        val_clips=", ".join(origin.val_clips) or "none",
        corpus=origin.corpus,
        teacher=origin.teacher,
        chain="\n".join(f"| {part} | {license_} |" for part, license_ in origin.chain),
        trained_steps=origin.step,
        metrics=evaluated,
        limits="\n".join(f"- {limit}" for limit in limits),
    )


def _scores_of(part: str, result: dict[str, Any]) -> list[str]:
    """One corpus in Markdown: its table, and what the state is worth."""
    worth = []
    for name, values in (result["differences"] or {"from": {}})["from"].items():
        if name.startswith("image"):
            mean, interval = values["nss"]["mean"], scores.bracket(values["nss"]["interval"], "nss", sign=True)
            worth.append(f"- NSS of the step file less {name}, on the same clips: {mean:+.3f} {interval}".rstrip())
    return ["", f"{part}, {len(result['clips'])} clips:", "", *table(result), "", *worth]


def table(result: dict[str, Any]) -> list[str]:
    """The scores as a Markdown table, the best value of each column in bold, NSS with its interval."""
    shown = scores.shown(result)
    lines = ["| predictor | " + " | ".join(LABELS[m] for m in shown) + " |", "| --- |" + " --- |" * len(shown)]
    best = {m: scores.best(result, m) for m in shown}
    for name, values in result["predictors"].items():
        cells = []
        for m in shown:
            cell = scores.number(values.get(m), m)
            cell = f"**{cell}**" if m in values and values[m] == best[m] else cell
            span = scores.bracket(result["intervals"][name].get(m), m) if m == "nss" else ""
            cells.append(f"{cell} {span}".rstrip())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines

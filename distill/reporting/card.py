"""What goes with the two ONNX files, so that they can be trusted and loaded: metadata, sidecars, registry, model card.

The model card has five points: purpose, data, metrics, limits, licence chain. It is written for a stranger who has nothing
but these files; what is not known is said to be unknown.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from distill import __version__
from distill.evaluation import statistics, tables
from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS
from distill.reporting.sidecar import registry_entry, sha256, write_registry, write_sidecar
from distill.run.files import write_bytes

LISTED = 2000  # names of training clips in a sidecar, which the downstream reads up to 1 MiB
SHOWN = 12  # names of clips in the card


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from."""

    name: str
    license: str
    corpus: str
    corpus_license: str
    corpus_chain: tuple[tuple[str, str], ...]  # the parts of the corpus, and the licence of each
    teacher: str
    teacher_license: str
    teacher_chain: tuple[tuple[str, str], ...]  # what the teacher is made of, part by part, and the licence of each
    restricted: tuple[str, ...]  # parts of the chain whose licence is not known to let everybody use them for anything
    train_clips: tuple[str, ...]
    val_clips: tuple[str, ...]
    held_out: bool
    fps: float
    parameters: int
    working_size: tuple[int, int]
    tau_seconds: tuple[float, float, float]  # shortest, median, longest time constant of the gate
    step: int
    chosen: bool  # the step is the one that did best on the validation clips, not simply the last
    recipe_fingerprint: str

    @property
    def chain(self) -> list[tuple[str, str]]:
        """What the student was made from, part by part, and the licence of each."""
        return [*((f"corpus {part}", license_) for part, license_ in self.corpus_chain), *self.teacher_chain]


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
    if metrics := _if_any(metrics):
        props["metrics"] = json.dumps(
            {k: _rounded(v) for k, v in metrics["predictors"].items() if k in ("step", "image")}
        )
        props["metrics_protocol"] = metrics["protocol"]
    return props


def _if_any(metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """The metrics, or None where nothing was scored."""
    return metrics if metrics and metrics["predictors"] else None


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def write_package(
    folder: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None, caveats: list[str]
) -> list[Path]:
    """Stamps the metadata into both ONNX files and writes sidecars, registry and card beside them; returns all paths.

    Stamping changes no node and no weight. Called after export, and again when the metrics are known.
    """
    metrics = _if_any(metrics)
    models = {"image": folder / f"{origin.name}.onnx", "step": folder / f"{origin.name}_step.onnx"}
    props = metadata(origin, metrics)
    for path in models.values():
        model = onnx.load(path)
        onnx.helper.set_model_props(model, props)
        write_bytes(path, model.SerializeToString(deterministic=True))
    sidecars = [_sidecar(mode, path, origin, parity, metrics) for mode, path in models.items()]
    made_from = f"Distilled from {origin.teacher} on {origin.corpus}."
    about = "Tiny video saliency student, {} mode: where people look, as a map in [0,1] per pixel."
    registry = write_registry(
        folder / f"{origin.name}.registry.json",
        [registry_entry(path, origin.license, about.format(mode), made_from) for mode, path in models.items()],
    )
    card = folder / f"{origin.name}.md"
    write_bytes(card, _card(origin, models, parity, metrics, caveats, props["git_revision"]).encode())
    return [*models.values(), *sidecars, registry, card]


def _sidecar(mode: str, path: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None) -> Path:
    return write_sidecar(
        path,
        f"Video saliency, {'one frame at a time' if mode == 'image' else 'streaming with one recurrent state'}; "
        f"{origin.parameters} parameters, working resolution {origin.working_size[0]}x{origin.working_size[1]}.",
        origin.license,
        origin.chain,
        {
            "frame_rate": origin.fps,
            "gate_tau_seconds": list(origin.tau_seconds),
            "training": {
                "corpus": origin.corpus,
                "teacher": origin.teacher,
                "clip_count": len(origin.train_clips),
                "clips": list(origin.train_clips) if len(origin.train_clips) <= LISTED else None,
                "step": origin.step,
            },
            "parity": parity,
            "metrics": _rounded(metrics["predictors"][mode]) if metrics else None,
            "metrics_protocol": metrics["protocol"] if metrics else None,
        },
    )


CARD = """\
---
license: {license_yaml}
library_name: onnx
tags: [video-saliency, eye-tracking, onnx]
---

# {name}

## Purpose

Predicts where people look in a video, as a map in [0, 1] per pixel, small and fast enough for a video encoder to move
bits there. The map is not scaled per frame: where nothing stands out, it stays low. It is made for that; it says nothing
about a single viewer, and nobody has tested it for anything that a person's rights or safety hang on.

| file | for | bytes | sha256 |
| --- | --- | --- | --- |
| `{image}` | one frame at a time, no state | {image_bytes:,} | `{image_sha256}` |
| `{step}` | streaming at {fps:g} frames per second | {step_bytes:,} | `{step_sha256}` |

{parameters:,} parameters; opset 17, IR 8. Frames of any size from 16x16 to 4096x2304 go in and a map of the same size comes
out; inside, they are worked on at {width}x{height}. The memory's time constants run from {tau_shortest:.2g} to {tau_longest:.2g} s
(median {tau_median:.2g} s).

```python
import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.log_severity_level = 3  # onnxruntime warns of the optional input; it is meant
session = ort.InferenceSession("{step}", options)
mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
feed = {{}}
for frame in frames:  # uint8 [H,W,3], RGB
    x = ((np.float32(frame) / 255 - mean) / std).transpose(2, 0, 1)[None]
    saliency, state = session.run(["saliency_map", "state_out"], {{"input": x, **feed}})  # saliency: [1,1,H,W]
    feed = {{"state_in": state}}  # feed = {{}} after a scene cut: no state means no history
```

## Data

- Trained on {train_clips} of {corpus}.
- Soft labels: {teacher}.
- Kept: step {trained_steps}, {chosen}.
- Validation clips: {val_clips}.
- Made by saliency-distill {version}, git revision {revision}, recipe {recipe}.

## Metrics

{metrics}

## Limits

{limits}

## Licence chain

{terms}

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
    revision: str,
) -> str:
    image, step = models["image"], models["step"]
    shortest, median, longest = origin.tau_seconds
    return CARD.format(
        name=origin.name,
        license=_cell(origin.license),
        license_yaml=json.dumps(origin.license, ensure_ascii=False),  # a JSON string is a YAML string
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
        train_clips=_counted(origin.train_clips),
        val_clips=_few(origin.val_clips),
        corpus=_cell(origin.corpus),
        teacher=_cell(origin.teacher),
        version=__version__,
        revision=revision,
        recipe=origin.recipe_fingerprint,
        chain="\n".join(f"| {_cell(part)} | {_cell(license_)} |" for part, license_ in origin.chain),
        terms=_terms(origin),
        trained_steps=origin.step,
        chosen="the best by CC on the validation clips" if origin.chosen else "the last",
        metrics=_metrics(metrics),
        limits="\n".join(f"- {limit}" for limit in _limits(origin, parity, metrics, caveats)),
    )


def _metrics(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "Not evaluated: how well these files predict is not known."
    columns = tables.metrics_in(metrics)
    lower = [LABELS[m] for m in columns if not HIGHER_IS_BETTER[m]]
    return "\n".join([
        f"These ONNX files through onnxruntime, {metrics['frames_scored']:,} frames of {_counted(metrics['clips'], 'validation clip')}, "
        f"by the protocol `{metrics['protocol']}`: {metrics['about']}. In brackets: 95 % intervals over clips. Higher is better"
        + (f", but for {' and '.join(lower)}" if lower else "")
        + "; the best of each column is bold. `step` and `image` are these files; `image + ...` is the image file with its maps "
        "pooled over time.",
        *[line for part, result in statistics.by_corpus(metrics).items() for line in _scores_of(part, result)],
    ])  # fmt: skip


def _limits(
    origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None, caveats: list[str]
) -> list[str]:
    limits = [f"**Caution:** {caveat}." for caveat in caveats]
    if metrics:
        count = len(metrics["clips"])
        if count < SHOWN:
            limits.append(
                f"Scored on {_counted(metrics['clips'])}: too few to rank predictors that lie close together."
            )
        if origin.chosen and origin.held_out:
            limits.append("The step was chosen on the clips that are scored here, which flatters the scores.")
    return [
        *limits,
        "A prediction of average free viewing; individuals, tasks and sound are not modelled.",
        f"Content unlike its corpus ({_cell(origin.corpus)}) is untested.",
        f"The step file takes {origin.fps:g} frames per second for granted: at another rate its memory is too long or too short.",
        f"PyTorch and onnxruntime agree to {max(parity['image_max_abs'], parity['step_max_abs']):.1e} "
        f"(largest absolute difference over {parity['frames']} frames).",
    ]


def _terms(origin: Provenance) -> str:
    """What the chain means for whoever passes these files on."""
    said = ["The weights were learned from these parts; the licence in the first line is what their maker states."]
    if origin.license.startswith("not stated"):
        said = ["Nobody has stated a licence for these weights; the parts that they were learned from are:"]
    if origin.restricted:
        parts = ", ".join(_cell(part) for part in origin.restricted)
        said.append(
            f"**Not every part has a licence that is known here to let everybody use it for anything: {parts}.** Settle what "
            "that means before passing the files on."
        )
    return " ".join(said)


def _cell(text: str) -> str:
    """Text that ends no line and no cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _counted(clips: Sequence[str] | dict[str, Any], noun: str = "clip") -> str:
    return f"{len(clips):,} {noun}{'' if len(clips) == 1 else 's'}"


def _few(clips: Sequence[str]) -> str:
    if not clips:
        return "none"
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN:,} more" if len(clips) > SHOWN else "")


def _scores_of(part: str, result: dict[str, Any]) -> list[str]:
    """One corpus in Markdown: its table, and what the state is worth."""
    worth = []
    for name, values in (result["differences"] or {"from": {}})["from"].items():
        if name.startswith("image"):
            mean, interval = values["nss"]["mean"], tables.format_interval(values["nss"]["interval"], "nss", sign=True)
            worth.append(f"- NSS of the step file less {name}, on the same clips: {mean:+.3f} {interval}".rstrip())
    return ["", f"{part}, {_counted(result['clips'])}:", "", *table(result), "", *worth]


def table(result: dict[str, Any]) -> list[str]:
    """The scores as a Markdown table, the best value of each column in bold, NSS with its interval."""
    shown = tables.metrics_in(result)
    lines = ["| predictor | " + " | ".join(LABELS[m] for m in shown) + " |", "| --- |" + " --- |" * len(shown)]
    best = {m: tables.best(result, m) for m in shown}
    for name, values in result["predictors"].items():
        cells = []
        for m in shown:
            cell = tables.format_value(values.get(m), m)
            cell = f"**{cell}**" if m in values and values[m] == best[m] else cell
            span = tables.format_interval(result["intervals"][name].get(m), m) if m == "nss" else ""
            cells.append(f"{cell} {span}".rstrip())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines

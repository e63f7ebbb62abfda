"""The package of a student: both ONNX files with their metadata, sidecars, a registry and the model card.

NAME.onnx, NAME_step.onnx    one frame at a time; streaming
NAME.json, NAME_step.json    sidecars
NAME.registry.json           entries for the downstream's registry
NAME.md                      model card
"""

from pathlib import Path
from typing import Any

import onnx

from distill.reporting.model_card import model_card
from distill.reporting.provenance import Provenance, metadata, rounded
from distill.reporting.sidecar import registry_entry, write_registry, write_sidecar
from distill.run.files import write_bytes, write_together

CLIPS_LISTED = 2000  # names of training clips in a sidecar, of which the downstream reads 1 MiB


def write_package(
    folder: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None, caveats: list[str]
) -> list[Path]:
    """Writes the metadata into both ONNX files, and everything else beside them; returns all paths.

    Nodes and weights stay as they are. It is called after the export, and again when the metrics are known. parity: as
    `export.parity.Parity.to_dict` gives it. metrics: as in metrics.json, None if not evaluated.
    """
    metrics = metrics if metrics and metrics["predictors"] else None
    models = {"image": folder / f"{origin.name}.onnx", "step": folder / f"{origin.name}_step.onnx"}
    properties = metadata(origin, metrics)
    graphs = {path: onnx.load(path) for path in models.values()}
    for graph in graphs.values():
        onnx.helper.set_model_props(graph, properties)
    write_together({path: graph.SerializeToString(deterministic=True) for path, graph in graphs.items()})
    sidecars = [_write_sidecar(mode, path, origin, parity, metrics) for mode, path in models.items()]
    about = "Tiny video saliency student, {} mode: where people look, as a map in [0,1] per pixel."
    notes = f"Distilled from {origin.teacher} on {origin.corpus}."
    registry = write_registry(
        folder / f"{origin.name}.registry.json",
        [registry_entry(path, origin.license, about.format(mode), notes) for mode, path in models.items()],
    )
    card = folder / f"{origin.name}.md"
    write_bytes(card, model_card(origin, models, parity, metrics, caveats, properties["git_revision"]).encode())
    return [*models.values(), *sidecars, registry, card]


def _write_sidecar(mode: str, path: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None) -> Path:
    about = (
        f"Video saliency, {'one frame at a time' if mode == 'image' else 'streaming with one recurrent state'}; "
        f"{origin.parameters} parameters, working resolution {origin.working_size[0]}x{origin.working_size[1]}."
    )
    training = {
        "corpus": origin.corpus, "teacher": origin.teacher, "clip_count": len(origin.train_clips),
        "clips": list(origin.train_clips) if len(origin.train_clips) <= CLIPS_LISTED else None, "step": origin.step,
    }  # fmt: skip
    more = {
        "frame_rate": origin.fps, "gate_tau_seconds": list(origin.tau_seconds), "training": training, "parity": parity,
        "metrics": rounded(metrics["predictors"][mode]) if metrics else None,
        "metrics_protocol": metrics["protocol"] if metrics else None,
    }  # fmt: skip
    return write_sidecar(path, about, origin.license, origin.chain, more)

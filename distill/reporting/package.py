"""The package of a student: both ONNX files with their metadata, sidecars, a registry and the model card.

NAME.onnx, NAME_step.onnx    one frame at a time; streaming
NAME.json, NAME_step.json    sidecars
NAME.registry.json           entries for the downstream's registry
NAME.toml                    the recipe; its SHA-256 is stated in the files above
NAME.attribution.csv         source, author and licence of every clip, if the recipe has them
NAME.md                      model card, for readers who have only these files; what is unknown is stated as unknown. It
                             includes the notes of the recipe, whose pictures lie beside it as NAME.PICTURE
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import onnx

from distill import __version__
from distill.corpora.attribution import COLUMNS, Attribution
from distill.corpora.clips import first_few
from distill.evaluation import statistics, tables, verdict
from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS
from distill.export.verification import largest_difference
from distill.opallowlist.foreign import csv_text
from distill.reporting.notes import read_notes
from distill.reporting.provenance import Provenance, metadata, rounded
from distill.reporting.rendering import render
from distill.reporting.sidecar import registry_entry, write_registry, write_sidecar
from distill.run.files import sha256_of, write_together

CREDITS = 3  # authors and sources that a row of the card names
CLIPS_LISTED = 2000  # names of training clips in a sidecar, of which the downstream reads 1 MiB


def write_package(
    folder: Path, origin: Provenance, parity: dict[str, Any], metrics: dict[str, Any] | None, caveats: list[str],
    notes: Path | None = None,
) -> list[Path]:  # fmt: skip
    """Writes the metadata into both ONNX files, and everything else beside them; returns all paths.

    Nodes and weights stay as they are. It is called after the export, and again when the metrics are known. parity: the fields
    of `export.student.Parity`. metrics: as in metrics.json, None if not evaluated. notes: Markdown for the card.
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
    made_from = f"Distilled from {origin.teacher} on {origin.corpus}."
    entries = [registry_entry(path, origin.license, about.format(mode), made_from) for mode, path in models.items()]
    registry = write_registry(folder / f"{origin.name}.registry.json", entries)
    card = folder / f"{origin.name}.md"
    text, pictures = read_notes(notes, origin.name) if notes else ("", {})
    page = _model_card(origin, models, parity, metrics, caveats, properties["git_revision"], text)
    texts = {folder / f"{origin.name}.toml": origin.recipe.encode(), card: page.encode()}
    texts |= {folder / name: content for name, content in pictures.items()}
    if origin.attribution:
        texts[folder / f"{origin.name}.attribution.csv"] = _attribution_table(origin.attribution)
    write_together(texts)
    return [*models.values(), *sidecars, registry, *texts]


def _attribution_table(lines: Sequence[Attribution]) -> bytes:
    return csv_text([COLUMNS, *map(astuple, lines)]).encode()


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
        "recipe_sha256": origin.recipe_sha256, "frame_rate": origin.fps,
        "gate_tau_seconds": list(origin.tau_seconds), "training": training, "parity": parity,
        "metrics": rounded(metrics["predictors"][mode]) if metrics else None,
        "metrics_protocol": metrics["protocol"] if metrics else None,
    }  # fmt: skip
    return write_sidecar(path, about, origin.license, origin.chain, more)


def _model_card(
    origin: Provenance, models: Mapping[str, Path], parity: Mapping[str, Any], metrics: Mapping[str, Any] | None,
    caveats: Sequence[str], revision: str, notes: str,
) -> str:  # fmt: skip
    """The card in Markdown. models: the ONNX files by mode, `image` and `step`. metrics: as in metrics.json, None if not
    evaluated."""
    files = {
        mode: {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for mode, path in models.items()
    }
    columns = tables.metrics_in(metrics) if metrics else []
    return render(
        "model_card.md", origin=origin, **files, version=__version__, revision=revision, metrics=metrics,
        val_clips=first_few(origin.val_clips, 12) or "none",
        lower_is_better=[LABELS[m] for m in columns if not HIGHER_IS_BETTER[m]],
        verdict=verdict.headline(metrics) if metrics and verdict.comparisons(metrics) else "",
        parts=[_part(name, part) for name, part in statistics.by_corpus(metrics).items()] if metrics else [], caveats=caveats,
        enough_clips=statistics.ENOUGH_CLIPS, parity=parity, max_abs=largest_difference(parity), notes=notes,
        credits=_credits(origin.attribution),
    )  # fmt: skip


def _credits(lines: Sequence[Attribution]) -> list[dict[str, Any]]:
    """The attribution in brief: a row for each folder and licence, with the authors and sources as far as they are few."""
    groups: dict[tuple[str, str], list[Attribution]] = {}
    for line in lines:
        groups.setdefault((line.folder, line.licence), []).append(line)
    return [
        {
            "folder": folder, "licence": licence, "files": len(group),
            "authors": _few([line.author for line in group]), "sources": _few([line.source for line in group]),
        }
        for (folder, licence), group in groups.items()
    ]  # fmt: skip


def _few(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return "; ".join(different) if len(different) <= CREDITS else f"{len(different):,} in the table"


def _part(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One corpus: its table of scores, and the difference that the recurrent state makes."""
    nss = {other: of["nss"] for other, of in statistics.gains_of_state(result).items()}
    differences = [(n, d["mean"], tables.format_interval(d["interval"], "nss", sign=True)) for n, d in nss.items()]
    return {"name": name, "clips": result["clips"], **tables.score_table(result), "differences": differences}

"""The model card, NAME.md: purpose, data, metrics, limits, licence chain.

It is written for a stranger who has only these files. It states what is not known as not known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import __version__
from distill.evaluation import statistics, tables
from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS
from distill.reporting.provenance import Provenance
from distill.reporting.rendering import first_names, render
from distill.reporting.sidecar import sha256

ENOUGH_CLIPS = 12  # with fewer, the card warns against ranking predictors


def model_card(
    origin: Provenance, models: Mapping[str, Path], parity: Mapping[str, Any], metrics: Mapping[str, Any] | None,
    caveats: Sequence[str], revision: str,
) -> str:  # fmt: skip
    """The card in Markdown. models: the ONNX files by mode, `image` and `step`. metrics: as in metrics.json, None if not
    evaluated."""
    files = {mode: {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for mode, path in models.items()}
    columns = tables.metrics_in(metrics) if metrics else []
    return render(
        "model_card.md", origin=origin, **files, version=__version__, revision=revision, metrics=metrics,
        val_clips=first_names(origin.val_clips), lower_is_better=[LABELS[m] for m in columns if not HIGHER_IS_BETTER[m]],
        parts=[_part(name, part) for name, part in statistics.by_corpus(metrics).items()] if metrics else [], caveats=caveats,
        enough_clips=ENOUGH_CLIPS, parity=parity, max_abs=max(parity["image_max_abs"], parity["step_max_abs"]),
    )  # fmt: skip


def _part(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One corpus: its table of scores, and the difference that the recurrent state makes."""
    nss = {other: of["nss"] for other, of in statistics.differences_in(result).items() if other.startswith("image")}
    differences = [(n, d["mean"], tables.format_interval(d["interval"], "nss", sign=True)) for n, d in nss.items()]
    return {"name": name, "clips": result["clips"], **tables.score_table(result), "differences": differences}

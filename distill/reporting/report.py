"""The report of a run: one HTML file with scores, curves and maps, which needs no other file.

This module collects the content, `drawings` draws figures, `templates/report.html.j2` is the layout.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.corpora import Clip, Corpus, density_map, fixation_map
from distill.evaluation import statistics, tables
from distill.evaluation.metrics import HIGHER_IS_BETTER
from distill.evaluation.predictors import load_predictor
from distill.export.runner import Predictor
from distill.labels.store import LabelStore
from distill.recipe.keys import Recipe
from distill.reporting import drawings
from distill.reporting.drawings import data_uri, overlay, peak_normalised
from distill.reporting.provenance import Provenance
from distill.reporting.rendering import render
from distill.run.directory import RunDir
from distill.run.files import read_json, write_bytes
from distill.run.progress import Narrator

FRAMES_SHOWN = 5  # of each clip
NAMES = {"step": "student, step file", "image": "student, image file"}

# A picture in a row of a clip's sheet: its data URI, and a note below it.
Picture = tuple[str, str]


def write(
    run: RunDir, recipe: Recipe, corpus: Corpus, labels: LabelStore, origin: Provenance, taken: Mapping[str, Any],
    narrator: Narrator,
) -> None:  # fmt: skip
    """Writes `report.html` from the files of an evaluated run. The maps of `report.clips` validation clips are computed again.
    taken: as `speed.measure` returns it."""
    metrics = read_json(run / "metrics.json")
    parity = read_json(run / "export" / f"{origin.name}.parity.json")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [clip for clip in corpus.select(corpus.val) if clip.id in metrics["clips"]][: recipe.report.clips]
    step, image = (load_predictor(run / "export" / f"{origin.name}{suffix}.onnx") for suffix in ("_step", ""))
    tracked = narrator.track(shown, "report", len(shown))
    clips = [_clip(clip, metrics["clips"][clip.id], labels, step, image) for clip in tracked]
    page = render(
        "report.html", origin=origin, steps=recipe.train.steps, caveats=metrics["caveats"], parts=score_parts(metrics),
        curves=drawings.training_curves(log), clips=clips, clip_scores=tables.clip_cells(metrics) if metrics["predictors"] else [],
        checks=_checks(origin, parity, taken, run), recipe=shlex.quote(str(run.path / "recipe.toml")), seed=recipe.run.seed,
        manifest=run.manifest,
    )  # fmt: skip
    write_bytes(run / "report.html", page.encode())


def score_parts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of every corpus, with the drawing of the difference that the recurrent state makes; none if nothing was
    scored."""
    parts = []
    for title, result in statistics.by_corpus(metrics).items() if metrics["predictors"] else ():
        table = tables.score_table(result)
        heads = zip(table["columns"], ("↑" if HIGHER_IS_BETTER[m] else "↓" for m in table["metrics"]), strict=True)
        rows = [(NAMES.get(name, name), cells) for name, cells in table["rows"]]
        gains = statistics.gains_of_state(result)
        drawing = drawings.differences(gains) if gains else None
        remarks = statistics.remarks(result)
        parts.append(
            {"title": title, "result": result, "remarks": remarks, "heads": list(heads), "rows": rows, "drawing": drawing}
        )
    return parts


def _clip(clip: Clip, result: Mapping[str, Any], labels: LabelStore, step: Predictor, image: Predictor) -> dict[str, Any]:
    """A clip's frames and maps at a few times, and its NSS over time."""
    shown = np.unique(np.linspace(clip.frames * 0.08, clip.frames - 1, FRAMES_SHOWN).astype(int))
    logits = labels.read(clip.id, clip.frames)[shown].astype(np.float32)
    teacher = dict(zip(shown.tolist(), 1 / (1 + np.exp(-logits)), strict=True))
    rows: dict[str, list[Picture]] = {}
    step.reset()
    for index, frame in enumerate(clip.read()):
        from_step = step.predict(frame)  # every frame, for its state
        if index in teacher:
            for name, picture in _pictures(clip, index, frame, teacher[index], from_step, image.predict(frame)).items():
                rows.setdefault(name, []).append(picture)
    page: dict[str, Any] = {"id": clip.id, "seconds": [f"{clip.time_of(index):.1f} s" for index in shown], "rows": rows}
    page |= {"scored": bool(result["frames_scored"]), "over_time": None}
    if page["scored"] and not clip.static:
        seconds = np.array([clip.time_of(index) for index in result["frames"]])
        page["over_time"] = drawings.nss_over_time(seconds, result["nss_over_time"])
        page["gain"] = result["scores"]["step"]["nss"] - result["scores"]["image"]["nss"]
    return page


def _pictures(
    clip: Clip, index: int, frame: np.ndarray, teacher: np.ndarray, step: np.ndarray, image: np.ndarray
) -> dict[str, Picture]:
    """One frame, and the maps of it: the observers', the teacher's, the student's."""

    def heat(saliency: np.ndarray) -> str:
        return data_uri(overlay(frame, peak_normalised(saliency)))

    fixations, gaze = fixation_map(clip, index), frame
    if fixations is not None and fixations.any():
        gaze = drawings.with_fixations(frame, density_map(clip, index, fixations), fixations)
    return {
        "frame": (data_uri(frame), ""),
        "fixations": (data_uri(gaze), ""),
        "teacher": (heat(teacher), ""),
        "student, step": (heat(step), f"peak {step.max():.2f}"),
        "student, image": (heat(image), f"peak {image.max():.2f}"),
        "step minus image": (data_uri(drawings.difference_map(step - image)), ""),
    }


def _checks(origin: Provenance, parity: Mapping[str, Any], taken: Mapping[str, Any], run: RunDir) -> dict[str, str]:
    """The results of verification, and facts about the ONNX files."""
    shortest, median, longest = origin.tau_seconds
    return {
        "PyTorch and onnxruntime": f"{max(parity['image_max_abs'], parity['step_max_abs']):.2e} "
        f"largest absolute difference over {parity['frames']} frames at {len(parity['sizes'])} sizes",
        "step file without history and image file": f"{parity['zero_state_max_abs']:.2e} largest absolute difference",
        "gate": "passed: operators, graph features, contract",
        "time for a frame": f"{', '.join(f'{ms:g} ms at {size}' for size, ms in taken['ms'].items())}; one thread, {taken['processor']}",
        "frame rate of the step file": f"{origin.fps:g} per second",
        "time constants of the recurrent state": f"{shortest:.2g} to {longest:.2g} s, median {median:.2g} s",
        "licence of the weights": origin.license,
        "files": ", ".join(sorted(path.name for path in (run / "export").iterdir())),
    }

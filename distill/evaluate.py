"""Scores ONNX files on clips: through onnxruntime, frame by frame, the state carried. What is scored is what ships.

Every frame runs, every `stride`-th is scored at the video's own size. Frames without fixations have no score; they are
counted. A clip's score is the mean over its frames, the result the mean over clips.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill import metrics
from distill.corpora import Clip, density_map, fixation_map
from distill.errors import Interrupted, UsageError
from distill.export.runner import Predictor
from distill.progress import Narrator, cancelling_pool

# A map of any size for a frame of a clip, [h,w]; what a baseline or a teacher predicts there.
Reference = Callable[[Clip, int], np.ndarray]


def centre_gaussian(clip: Clip, index: int) -> np.ndarray:
    """A centred Gaussian, sigma 22 % of each side: the baseline that every model must beat."""
    y = (np.arange(clip.height) + 0.5) / clip.height - 0.5
    x = (np.arange(clip.width) + 0.5) / clip.width - 0.5
    return np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.22**2)).astype(np.float32)


def evaluate(
    models: Mapping[str, Path],
    references: Mapping[str, Reference],
    clips: Sequence[Clip],
    stride: int,
    threads: int,
    narrator: Narrator,
) -> dict[str, Any]:
    """Scores models (by display name) and references on annotated clips.

    Returns `{"predictors": {name: mean scores}, "clips": {id: {...}}, "frames_scored", "frames_without_fixations",
    "stride", "protocol"}`. Raises UsageError for a model that does not load or clips without any fixation.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError("no clip has fixations to score against; give a corpus with annotation/NNNN/fixation/")
    threads = threads or len(os.sched_getaffinity(0))

    def one(clip: Clip) -> dict[str, Any]:
        return _score_clip(models, references, clip, stride, narrator.stop)

    with cancelling_pool(threads) as pool:
        results = narrator.track(pool.map(one, annotated), "eval", len(annotated))
        by_clip = {clip.id: result for clip, result in zip(annotated, results, strict=True)}
    scored = {i: r for i, r in by_clip.items() if r["frames_scored"]}
    if not scored:
        raise UsageError(
            "not one scored frame has fixations; check the annotation, or score more frames with eval.stride"
        )
    names = [*models, *references]
    return {
        "schema": 1,
        "protocol": "video size, sigma 12.74/640 of the width, SIM after min-max, AUC-Judd without jitter, mean over clips",
        "stride": stride,
        "frames_scored": sum(r["frames_scored"] for r in by_clip.values()),
        "frames_without_fixations": sum(r["frames_without_fixations"] for r in by_clip.values()),
        "predictors": {
            name: {m: float(np.mean([r["scores"][name][m] for r in scored.values()])) for m in metrics.NAMES}
            for name in names
        },
        "clips": by_clip,
    }


def _score_clip(
    models: Mapping[str, Path],
    references: Mapping[str, Reference],
    clip: Clip,
    stride: int,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    predictors = {name: load_predictor(path) for name, path in models.items()}
    names = [*models, *references]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    frames: list[int] = []
    empty = 0
    for index, frame in enumerate(clip.read()):
        due = index % stride == 0
        if stop():
            raise Interrupted(f"eval, in clip {clip.id}")
        try:  # a model without state sees only the frames that are scored; one with state sees all of them
            maps = {name: p.predict(frame) for name, p in predictors.items() if due or p.stateful}
        except ValueError as error:
            raise UsageError(f"clip {clip.id}: {error}") from None
        fixations = fixation_map(clip, index) if due else None
        if fixations is None:
            continue
        if not fixations.any():
            empty += 1
            continue
        density = density_map(clip, index, fixations)
        for name, reference in references.items():
            maps[name] = cv2.resize(reference(clip, index), (clip.width, clip.height), interpolation=cv2.INTER_LINEAR)
        for name in names:
            try:
                scores[name].append(metrics.score(maps[name], density, fixations))
            except ValueError as error:
                raise UsageError(f"{name}, clip {clip.id}, frame {index + 1}: {error}") from None
        frames.append(index)
    return {
        "frames_scored": len(frames),
        "frames_without_fixations": empty,
        "scores": {
            name: {m: float(np.mean([s[m] for s in scores[name]])) for m in metrics.NAMES} if frames else {}
            for name in names
        },
        "frames": frames,
        "nss_over_time": {name: [round(s["nss"], 4) for s in scores[name]] for name in names},
    }


def load_predictor(path: Path, threads: int = 1) -> Predictor:
    """Raises UsageError where the file is missing or no saliency student."""
    if not path.is_file():
        raise UsageError(f"no model at {path}" + ("; it is a folder" if path.is_dir() else ""))
    try:
        return Predictor(path, threads)
    except ValueError as error:
        raise UsageError(str(error)) from None

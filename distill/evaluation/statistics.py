"""From the scores of single clips to means, bootstrap intervals and paired differences.

    summarise(clips, frames, names, protocol)   predictors, intervals, differences: what metrics.json and --json hold
    merge(results)                              one result of several corpora; `by_corpus` takes it apart again

An interval is a 95 % bootstrap percentile interval over clips (Efron and Tibshirani 1993): frames of one clip are not
independent, clips nearly are. Two predictors are compared by their differences on the same clips, which is far more
sensitive than two intervals side by side. The draws are seeded: the same scores give the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from distill.evaluation.protocols import PROTOCOLS, Protocol

DRAWS = 2000

# Scores of one clip: predictor -> metric -> value; a metric that does not apply to the clip is absent.
ClipScores = Mapping[str, Mapping[str, float]]


def mean_and_interval(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, list[float] | None]:
    """The mean over clips and its 95 % interval, `[low, high]`; None as interval of a single clip.

    weights: frames per clip, to average over frames instead of clips.
    """
    x = np.asarray(values, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    mean = float(x @ w / w.sum())
    if len(x) < 2:
        return mean, None
    drawn = _draws(len(x))
    low, high = np.percentile((x * w)[drawn].sum(1) / w[drawn].sum(1), [2.5, 97.5])
    return mean, [float(low), float(high)]


@lru_cache(maxsize=4)
def _draws(clips: int) -> np.ndarray:
    """The clips of every bootstrap sample, `[DRAWS,clips]`; the same for all predictors and metrics."""
    return np.random.default_rng(0).integers(clips, size=(DRAWS, clips))


def interval_over_frames(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of one clip's mean over its frames, `[low, high]`; None for fewer than 8 frames.

    Consecutive frames are correlated, so blocks of 2 n^(1/3) frames are drawn: the moving-block bootstrap (Künsch, Annals of
    Statistics 17, 1989). It shows how well this clip was measured, not how other clips would score.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 8:
        return None
    length = min(len(x) // 2, round(2 * len(x) ** (1 / 3)))
    sums = np.cumsum(np.concatenate([[0.0], x]))
    means = (sums[length:] - sums[:-length]) / length  # of every block
    drawn = np.random.default_rng(0).integers(len(means), size=(DRAWS, math.ceil(len(x) / length)))
    low, high = np.percentile(means[drawn].mean(1), [2.5, 97.5])
    return [float(low), float(high)]


def summarise(
    clips: Mapping[str, ClipScores], frames: Mapping[str, int], names: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    """Means and intervals of all predictors, and the differences between the first predictor and each other one.

    clips: scores by clip id. frames: scored frames by clip id. Returns
    `{"predictors": {name: {metric: mean}}, "intervals": {name: {metric: [low, high]}},
    "differences": {"of": name, "from": {name: {metric: {"mean", "interval"}}}}}`. A difference is the first predictor's score
    minus the other's, over the clips that have both. A metric that no clip has is absent, and so is an interval over one
    clip.
    """

    def over_clips(value: Callable[[ClipScores], float | None]) -> tuple[float, list[float] | None] | None:
        values = {clip: v for clip, scores in clips.items() if (v := value(scores)) is not None}
        weights = [frames[clip] for clip in values] if protocol.average == "frames" else None
        return mean_and_interval(list(values.values()), weights) if values else None

    predictors: dict[str, dict[str, float]] = {name: {} for name in names}
    intervals: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    differences: dict[str, dict[str, Any]] = {name: {} for name in names[1:]}
    for metric in protocol.metrics:
        for name in names:
            if result := over_clips(partial(_value, name, metric)):
                predictors[name][metric], interval = result
                if interval:
                    intervals[name][metric] = interval
        for name in names[1:]:
            if result := over_clips(partial(_difference, names[0], name, metric)):
                differences[name][metric] = {"mean": result[0], "interval": result[1]}
    return {
        "predictors": predictors,
        "intervals": intervals,
        "differences": {"of": names[0], "from": differences} if len(names) > 1 else None,
    }


def _value(name: str, metric: str, scores: ClipScores) -> float | None:
    return scores.get(name, {}).get(metric)


def _difference(one: str, other: str, metric: str, scores: ClipScores) -> float | None:
    a, b = _value(one, metric, scores), _value(other, metric, scores)
    return None if a is None or b is None else a - b


def summarise_clips(clips: Mapping[str, Any], names: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """`summarise` for the entries of a result's `clips`; clips without a scored frame are left out."""
    scored = {i: clip for i, clip in clips.items() if clip["frames_scored"]}
    scores, frames = ({i: clip[key] for i, clip in scored.items()} for key in ("scores", "frames_scored"))
    return summarise(scores, frames, names, protocol)


def merge(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One result from those of several corpora: the summary of all clips, and under `parts` each corpus's result with the
    ids of its clips in place of the clips. The result of a single corpus is returned as it is."""
    first = next(iter(results.values()))
    if len(results) == 1:
        return first
    clips = {i: clip for result in results.values() for i, clip in result["clips"].items()}
    names = list(dict.fromkeys(name for result in results.values() for name in result["predictors"]))
    return {
        **first,
        **{key: sum(r[key] for r in results.values()) for key in ("frames_scored", "frames_without_fixations")},
        **summarise_clips(clips, names, PROTOCOLS[first["protocol"]]),
        "clips": clips,
        "parts": {part: {**result, "clips": list(result["clips"])} for part, result in results.items()},
    }


def by_corpus(result: Mapping[str, Any], single: str = "validation clips") -> dict[str, dict[str, Any]]:
    """The results that `merge` was given, by corpus; the result of a single corpus is named `single`."""
    if "parts" not in result:
        return {single: dict(result)}
    clips = result["clips"]
    return {name: {**part, "clips": {i: clips[i] for i in part["clips"]}} for name, part in result["parts"].items()}

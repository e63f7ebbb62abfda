"""From the scores of single clips to means, bootstrap intervals and paired differences.

    summarise(clips, names, protocol)   predictors, intervals, differences: what metrics.json and --json hold
    merge(results)                      one result of several corpora; `by_corpus` takes it apart again

An interval is a 95 % bootstrap percentile interval over clips (Efron and Tibshirani 1993): frames of one clip are not
independent, clips nearly are. Two predictors are compared by their differences on the same clips, which is far more
sensitive than two intervals side by side. The draws are seeded: the same scores give the same intervals.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from distill.corpora.clips import counted
from distill.evaluation.protocols import PROTOCOLS, Protocol

DRAWS = 2000
ENOUGH_CLIPS = 12
"""With fewer, intervals are too narrow to rely on: those of 95 % hold the mean of normal scores in 90 % of cases with 12 clips, in
83 % with 5, in 51 % with 2."""
COUNTS = {
    "frames_scored": "",
    "frames_without_fixations": "without fixations were not scored",
    "fixation_maps_left_out": "with an unusable fixation map were not scored",
    "density_maps_rebuilt": "with an unusable density map were scored against their blurred fixations",
}
"""How many frames, of a clip or in all: the keys in a result, and what `remarks` says of them."""


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores must know about the ground truth: `3 frames without fixations were not scored`."""
    return [f"{counted(n, 'frame')} {what}" for key, what in COUNTS.items() if what and (n := result.get(key, 0))]


def scored_clips(result: Mapping[str, Any]) -> int:
    """How many clips have scores: others have no fixations in the frames to score."""
    return sum(clip["frames_scored"] > 0 for clip in result["clips"].values())


def mean_and_interval(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, list[float] | None]:
    """The mean over clips and its 95 % interval, `[low, high]`; None as interval of a single clip. weights: frames per clip,
    to average over frames instead of clips."""
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


def summarise(clips: Mapping[str, Any], names: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """Means and intervals of all predictors, and the differences between the first predictor and each other one.

    clips: by id, `{"frames_scored": n, "scores": {predictor: {metric: value}}}`; a metric that does not apply to a clip is
    absent. Returns `{"predictors": {name: {metric: mean}}, "intervals": {name: {metric: [low, high]}},
    "differences": {"of": name, "from": {name: {metric: {"mean", "interval"}}}}}`. A difference is the first predictor's score
    minus the other's, over the clips that have both. A metric that no clip has is absent, and so is an interval over one
    clip.
    """
    scored = {i: clip["scores"] for i, clip in clips.items() if clip["frames_scored"]}
    predictors: dict[str, dict[str, float]] = {name: {} for name in names}
    intervals: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    differences: dict[str, dict[str, Any]] = {name: {} for name in names[1:]}

    def over_clips(values: Mapping[str, float]) -> tuple[float, list[float] | None]:
        weights = [clips[i]["frames_scored"] for i in values] if protocol.average == "frames" else None
        return mean_and_interval(list(values.values()), weights)

    for metric in protocol.metrics:
        by_name = {name: {i: s[name][metric] for i, s in scored.items() if metric in s.get(name, {})} for name in names}
        first = by_name[names[0]]
        for name, values in by_name.items():
            if values:
                predictors[name][metric], interval = over_clips(values)
                if interval:
                    intervals[name][metric] = interval
            if name != names[0] and (of_both := {i: first[i] - value for i, value in values.items() if i in first}):
                mean, interval = over_clips(of_both)
                differences[name][metric] = {"mean": mean, "interval": interval}
    paired = {"of": names[0], "from": differences} if len(names) > 1 else None
    return {"predictors": predictors, "intervals": intervals, "differences": paired}


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
        **{key: sum(r.get(key, 0) for r in results.values()) for key in COUNTS},
        **summarise(clips, names, PROTOCOLS[first["protocol"]]),
        "clips": clips,
        "parts": {part: {**result, "clips": list(result["clips"])} for part, result in results.items()},
    }


def by_corpus(result: Mapping[str, Any], single: str = "validation clips") -> dict[str, dict[str, Any]]:
    """The results that `merge` was given, by corpus; the result of a single corpus is named `single`."""
    if "parts" not in result:
        return {single: dict(result)}
    clips = result["clips"]
    return {name: {**part, "clips": {i: clips[i] for i in part["clips"]}} for name, part in result["parts"].items()}


def gains_of_state(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`differences_in` to the image file and the poolings of its maps; none where all clips are still images, on which both
    files agree."""
    videos = result["frames_scored"] > len(result["clips"])
    return {name: of for name, of in differences_in(result).items() if videos and name.startswith("image") and "nss" in of}


def differences_in(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The differences between the first predictor and each other one, by the other's name; none for a single predictor."""
    return (result["differences"] or {"from": {}})["from"]

"""From the points of curves to BD-rates, and from those of single clips to means, intervals and paired differences.

Intervals are bootstrap intervals over clips; two maps are compared by their differences on the same clips
(`distill.evaluation.statistics`).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from distill.encoding.bd.measures import QUALITIES
from distill.evaluation.statistics import mean_and_interval

NO_MAP, CENTRE, OBSERVERS = "no map", "centred Gaussian", "half of the observers"


def gains(points: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """BD-rates and the change of size at equal CRF or bitrate, in per cent, of every map against none; and why a BD-rate is left out."""
    rates: dict[str, dict[str, float]] = {title: {} for title in points if title != NO_MAP}
    left_out: dict[str, dict[str, str]] = {}
    sizes: dict[str, float] = {}
    for title in rates:
        with_map = points[title]
        for quality in (q for q in QUALITIES if q in with_map[0]):
            reference, tested = ([(p["kbps"], p[quality]) for p in curve] for curve in (points[NO_MAP], with_map))
            try:
                rates[title][quality] = bd_rate(reference, tested)
            except ValueError as error:
                left_out.setdefault(title, {})[quality] = str(error)
        ratios = [p["kbps"] / q["kbps"] for p, q in zip(with_map, points[NO_MAP], strict=True)]
        sizes[title] = float(np.expm1(np.mean(np.log(ratios))) * 100)
    return {"bd_rate": rates, "size": sizes, "left_out": left_out}


def bd_rate(reference: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]]) -> float:
    """How much more rate `tested` needs than `reference` for the same quality, in per cent; negative where it needs less.

    Both are points (rate above zero, quality), two or more each, in any order; the mean is over the qualities that both reach.
    G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33, 2001, with the monotone cubics of
    Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5, 1984) as in the common test conditions of HEVC; the original fits one cubic.
    Raises ValueError where there are fewer points, quality does not rise with rate, or the curves have no quality in common.
    """
    curves = []  # log rate over quality
    for points in (reference, tested):
        rate, quality = np.array(sorted(points), float).T
        if len(rate) < 2 or rate[0] <= 0 or (np.diff(quality) <= 0).any() or (np.diff(rate) <= 0).any():
            raise ValueError("a curve needs two points or more, with rates above zero and qualities that rise with them")
        curves.append(PchipInterpolator(quality, np.log(rate)))
    low, high = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if low >= high:
        raise ValueError("the two curves have no quality in common; more rates, further apart, may overlap")
    integrals = [curve.integrate(low, high) for curve in curves]
    return float(np.expm1((integrals[1] - integrals[0]) / (high - low)) * 100)


def summary(clips: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Over clips: means, and how maps differ on the same clips, each with its 95 % interval (none for a single clip).

    groups: titles of maps that are compared with each other, the Gaussian first.
    Returns {"mean": {title: {measure: {mean, interval, clips, better}}}, "differences": [{map, less, measure: {mean, interval,
    clips, better}}]}. Measures are the BD-rates of QUALITIES and `size`, in per cent. A difference is the BD-rate of `map` less
    that of `less`, in percentage points; better: the number of clips on which it is below zero. Within a group, every map is
    compared with the Gaussian and with those named after it.
    """

    def of(title: str, facts: Mapping[str, Any]) -> dict[str, float]:
        return {**facts["bd_rate"][title], "size": facts["size"][title]} if title in facts["size"] else {}

    measures = {title: [of(title, facts) for facts in clips.values()] for group in groups for title in group}
    differences = []
    for first, *others in groups:
        for one, other in [*((title, first) for title in others), *combinations(others, 2)]:
            pairs = zip(measures[one], measures[other], strict=True)
            paired = [{k: a[k] - b[k] for k in a.keys() & b.keys()} for a, b in pairs]
            if over := _over_clips(paired):
                differences.append({"map": one, "less": other, **over})
    means = {title: _over_clips(of_map) for title, of_map in measures.items()}
    return {"mean": {title: over for title, over in means.items() if over}, "differences": differences}


def _over_clips(clips: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    result = {}
    for measure in (*QUALITIES, "size"):
        if values := [of_clip[measure] for of_clip in clips if measure in of_clip]:
            mean, interval = mean_and_interval(values)
            result[measure] = {"mean": mean, "interval": interval, "clips": len(values), "better": sum(v < 0 for v in values)}
    return result

"""What the scores of a run say in a sentence: whether the student beats the maps that do not depend on the frame, and whether
its step file beats its image file.

    verdict.headline(metrics)                   # of metrics.json: "Beats the centred Gaussian and the mean training map."
    compared = verdict.comparisons(metrics)
    verdict.differences(compared[0])            # ["NSS +0.81 [+0.62, +1.01]", "CC +0.21 [+0.15, +0.27]"]

Paired differences of NSS on the same clips decide, with their 95 % intervals: better where the interval lies above 0, worse
where it lies below 0. One clip alone has no interval, and decides nothing; of a few the headline says that they are too few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.evaluation import statistics, tables
from distill.evaluation.metrics import LABELS

MAPS = {"centred Gaussian": "the centred Gaussian", "mean training map": "the mean training map"}
"""The references that do not depend on the frame, as a sentence calls them."""
IMAGE_FILE = "its own image file"

OUTCOMES = {
    "better": "beats", "worse": "is worse than", "unclear": "is not clearly better or worse than",
    "unknown": "one clip alone cannot tell whether it beats",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The step file against one other predictor, on the same clips."""

    against: str  # as a sentence calls it
    outcome: str  # a key of OUTCOMES
    by_metric: Mapping[str, Mapping[str, Any]]  # `{"mean", "interval"}` of nss, and of cc where it was scored


def comparisons(result: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons with the two maps and, where there are videos, with the image file; none where nothing was scored."""
    if not result["predictors"]:
        return []
    named = {name: (called, of) for name, of in statistics.differences_in(result).items() if (called := MAPS.get(name))}
    if "image" in (gains := statistics.gains_of_state(result)):
        named["image"] = IMAGE_FILE, gains["image"]
    return [
        Comparison(called, _outcome(of["nss"]["interval"]), {m: of[m] for m in ("nss", "cc") if m in of})
        for called, of in named.values()
        if "nss" in of
    ]


def _outcome(interval: Sequence[float] | None) -> str:
    if not interval:
        return "unknown"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def headline(result: Mapping[str, Any]) -> str:
    """`Beats the centred Gaussian and the mean training map; is not clearly better or worse than its own image file.`"""
    if not (compared := comparisons(result)):
        return "Nothing to compare with." if result["predictors"] else "Nothing was scored."
    by_outcome = {outcome: [c.against for c in compared if c.outcome == outcome] for outcome in OUTCOMES}
    text = "; ".join(f"{OUTCOMES[outcome]} {_listed(names)}" for outcome, names in by_outcome.items() if names)
    clips = statistics.scored_clips(result)
    few = f" ({clips} clips: too few to be sure)" if 1 < clips < statistics.ENOUGH_CLIPS else ""
    return f"{text[0].upper()}{text[1:]}{few}."


def differences(comparison: Comparison) -> list[str]:
    """`["NSS +0.812 [+0.621, +1.013]", "CC +0.211 [+0.150, +0.270]"]`."""
    shown = []
    for metric, of in comparison.by_metric.items():
        interval = tables.format_interval(of["interval"], metric, sign=True)
        shown.append(f"{LABELS[metric]} {tables.format_value(of['mean'], metric, sign=True)} {interval}".rstrip())
    return shown


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))

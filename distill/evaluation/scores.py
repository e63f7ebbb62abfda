"""From the scores of clips to what is said of predictors: means, intervals, paired differences, tables.

    summary(clips, names, protocol)       -> predictors, intervals, differences   (what metrics.json and --json hold)
    fitted(head, score_cells(result), 80) -> rows of text that fit a terminal
    write_csv(path, results)              -> the same and more, one value per line

An interval is a 95 % bootstrap percentile interval over clips (Efron and Tibshirani 1993): frames of one clip are no
independent draws, clips nearly are. Two predictors are compared by the differences on the same clips, which is far sharper
than two intervals side by side. The draws are seeded: the same scores give the same intervals.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS, PROTOCOLS, Protocol
from distill.run.files import write_bytes

DRAWS = 2000
DECIMALS = {"flicker": 4}

# Scores of one clip: predictor -> metric -> value; a metric that the clip cannot have is not there.
ClipScores = Mapping[str, Mapping[str, float]]


def mean_and_interval(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, list[float] | None]:
    """The mean over clips and its 95 % interval, `[low, high]`; no interval for a single clip. weights: frames per clip,
    where frames are averaged and not clips."""
    x = np.asarray(values, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    mean = float(x @ w / w.sum())
    if len(x) < 2:
        return mean, None
    drawn = _draws(len(x))
    low, high = np.percentile((x * w)[drawn].sum(1) / w[drawn].sum(1), [2.5, 97.5])
    return mean, [float(low), float(high)]


def interval_over_frames(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of one clip's mean over its frames, `[low, high]`, by a moving-block bootstrap (Kuensch, Annals of
    Statistics 17, 1989): frames that follow each other are alike, so runs of them are drawn, 2 n^(1/3) long. None for fewer
    than 8 frames. It says how well the clip was measured, not what another clip would give.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 8:
        return None
    length = min(len(x) // 2, round(2 * len(x) ** (1 / 3)))
    sums = np.cumsum(np.concatenate([[0.0], x]))
    means = (sums[length:] - sums[:-length]) / length  # of every run
    drawn = np.random.default_rng(0).integers(len(means), size=(DRAWS, math.ceil(len(x) / length)))
    low, high = np.percentile(means[drawn].mean(1), [2.5, 97.5])
    return [float(low), float(high)]


@lru_cache(maxsize=4)
def _draws(clips: int) -> np.ndarray:
    """Which clips every draw is made of, `[DRAWS,clips]`: the same for all predictors and metrics."""
    return np.random.default_rng(0).integers(clips, size=(DRAWS, clips))


def summary(
    clips: Mapping[str, ClipScores], frames: Mapping[str, int], names: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    """Means, intervals, and how the first predictor differs from each other one.

    clips: by clip id, scores by predictor. frames: scored frames of each clip. Returns
    `{"predictors": {name: {metric: mean}}, "intervals": {name: {metric: [low, high]}},
    "differences": {"of": name, "from": {name: {metric: {"mean", "interval"}}}}}`. A difference is the first predictor's score
    less the other's, over the clips that both have. A value that no clip has is not there; nor is an interval over one clip.
    """

    def over_clips(value: Callable[[ClipScores], float | None]) -> tuple[float, list[float] | None] | None:
        found = {clip: v for clip, scores in clips.items() if (v := value(scores)) is not None}
        weights = [frames[clip] for clip in found] if protocol.average == "frames" else None
        return mean_and_interval(list(found.values()), weights) if found else None

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


def merged(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One result of those of several corpora: `predictors` and the rest over all clips, and under `parts` the same for each
    corpus, with the ids of its clips in place of the clips. One corpus stays what it is."""
    first = next(iter(results.values()))
    if len(results) == 1:
        return first
    clips = {i: clip for result in results.values() for i, clip in result["clips"].items()}
    scored = {i: clip for i, clip in clips.items() if clip["frames_scored"]}
    names = list(dict.fromkeys(name for result in results.values() for name in result["predictors"]))
    return {
        **first,
        **{key: sum(r[key] for r in results.values()) for key in ("frames_scored", "frames_without_fixations")},
        **summary(
            {i: clip["scores"] for i, clip in scored.items()},
            {i: clip["frames_scored"] for i, clip in scored.items()},
            names,
            PROTOCOLS[first["protocol"]],
        ),
        "clips": clips,
        "parts": {part: {**result, "clips": list(result["clips"])} for part, result in results.items()},
    }


def parts(result: Mapping[str, Any], whole: str = "validation clips") -> dict[str, dict[str, Any]]:
    """The results that `merged` was given, by corpus; one of a single corpus is called `whole`."""
    if "parts" not in result:
        return {whole: dict(result)}
    return {
        part: {**its, "clips": {i: result["clips"][i] for i in its["clips"]}} for part, its in result["parts"].items()
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def shown(result: Mapping[str, Any]) -> list[str]:
    """The metrics that a result has at all, in the protocol's order."""
    return [m for m in PROTOCOLS[result["protocol"]].metrics if any(m in s for s in result["predictors"].values())]


def best(result: Mapping[str, Any], metric: str) -> float | None:
    """The best mean among the predictors; None for flicker: a map that never changes has none, which is no merit alone."""
    found = [s[metric] for s in result["predictors"].values() if metric in s and metric != "flicker"]
    return (max if HIGHER_IS_BETTER[metric] else min)(found) if found else None


def number(value: float | None, metric: str, sign: bool = False) -> str:
    """`1.234`, `–` where there is none."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{DECIMALS.get(metric, 3)}f}"


def bracket(interval: Sequence[float] | None, metric: str, sign: bool = False) -> str:
    """`[1.201, 1.266]`, empty where there is none."""
    return f"[{', '.join(number(v, metric, sign) for v in interval)}]" if interval else ""


# Of every row: its name, and value and interval by column.
Cells = list[tuple[str, dict[str, tuple[str, str]]]]


def score_cells(result: Mapping[str, Any]) -> Cells:
    """Means and intervals of every predictor."""
    return [
        (
            name,
            {LABELS[m]: (number(s.get(m), m), bracket(result["intervals"][name].get(m), m)) for m in shown(result)},
        )
        for name, s in result["predictors"].items()
    ]


def difference_cells(result: Mapping[str, Any]) -> Cells:
    """The first predictor less each other one."""
    rows: Cells = []
    for name, found in (result["differences"] or {"from": {}})["from"].items():
        pairs = {m: found.get(m) or {"mean": None, "interval": None} for m in shown(result)}
        cells = {LABELS[m]: (number(d["mean"], m, True), bracket(d["interval"], m, True)) for m, d in pairs.items()}
        rows.append((f"less {name}", cells))
    return rows


def clip_cells(result: Mapping[str, Any]) -> Cells:
    """NSS of every predictor on every clip that has any, with intervals over the clip's frames; the worst clip of the first
    predictor first."""
    names = list(result["predictors"])
    scored = {i: c for i, c in result["clips"].items() if c["frames_scored"]}
    order = sorted(scored, key=lambda i: scored[i]["scores"][names[0]]["nss"])
    return [
        (i, {"frames": (str(scored[i]["frames_scored"]), "")} | {n: _clip_cell(scored[i], n) for n in names})
        for i in order
    ]  # fmt: skip


def _clip_cell(clip: Mapping[str, Any], name: str) -> tuple[str, str]:
    over_time = clip.get("nss_over_time", {}).get(name)
    interval = interval_over_frames(over_time) if over_time else None
    return number(clip["scores"].get(name, {}).get("nss"), "nss"), bracket(interval, "nss")


NAME_WIDTH = 24  # to which a column of names may fold in a narrow terminal


def fitted(head: str, cells: Cells, width: int | None) -> tuple[list[dict[str, str]], list[str]]:
    """Rows for a table of at most `width` characters, None for as wide as it gets; and the columns that found no room.

    Where intervals do not fit beside their values, half of their width stands below. One column is always there.
    """
    columns = list(cells[0][1]) if cells else []
    wide = [{head: name, **{c: " ".join(filter(None, row[c])) for c in columns}} for name, row in cells]
    if width is None or needs(wide, NAME_WIDTH) <= width:
        return wide, []
    narrow = [{head: name, **{c: _below(*row[c]) for c in columns}} for name, row in cells]
    for count in range(len(columns), 0, -1):
        rows = [{key: row[key] for key in (head, *columns[:count])} for row in narrow]
        if count == 1 or needs(rows, NAME_WIDTH) <= width:
            return rows, columns[count:]
    return narrow, []


def _below(value: str, interval: str) -> str:
    if not interval:
        return value
    low, high = (float(end) for end in interval.strip("[]").split(", "))
    decimals = len(value.partition(".")[2])
    return f"{value}\n±{(high - low) / 2:.{decimals}f}"


def needs(rows: Sequence[Mapping[str, str]], name_width: int = 1000) -> int:
    """Characters that a table of these rows takes, the lines between its columns included, if names fold at `name_width`."""
    widths = [max(len(line) for row in rows for line in (key, *row[key].split("\n"))) for key in rows[0]]
    return 1 + sum(3 + w for w in (min(widths[0], name_width), *widths[1:]))


# --- files -----------------------------------------------------------------------------------------------------------

COLUMNS = ("corpus", "protocol", "clip", "frames", "predictor", "minus", "metric", "value", "low", "high")


def write_csv(path: Path, results: Mapping[str, Mapping[str, Any]], per_clip: bool) -> None:
    """One value per line. `clip` is empty for means over clips; `minus` names what was subtracted, if anything.

    results: by corpus. per_clip: also the scores of every clip.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for corpus, result in results.items():
        lines.writerows((corpus, result["protocol"], *row) for row in _csv_rows(result, per_clip))
    write_bytes(path, text.getvalue().encode())


def _csv_rows(result: Mapping[str, Any], per_clip: bool) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name, scores in result["predictors"].items():
        for metric, value in scores.items():
            low, high = result["intervals"][name].get(metric) or ("", "")
            rows.append(("", result["frames_scored"], name, "", metric, value, low, high))
    differences = result["differences"] or {"of": "", "from": {}}
    for name, found in differences["from"].items():
        for metric, value in found.items():
            low, high = value["interval"] or ("", "")
            rows.append(("", result["frames_scored"], differences["of"], name, metric, value["mean"], low, high))
    for clip, scored in result["clips"].items() if per_clip else ():
        for name, scores in scored["scores"].items():
            rows += [(clip, scored["frames_scored"], name, "", m, v, "", "") for m, v in scores.items()]
    return rows

"""Results as tables: cells for the command line, the report and the model card; one value per line as CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS
from distill.evaluation.protocols import PROTOCOLS
from distill.evaluation.statistics import differences_in, interval_over_frames
from distill.opallowlist.foreign import csv_text
from distill.run.files import write_bytes

DECIMALS = {"flicker": 4}


class Cell(NamedTuple):
    """What a column shows of a row: a value, and where it has one its interval, whole and as half of its width."""

    value: str
    interval: str = ""
    half: str = ""


Row = dict[str, Cell]
"""Cells by column."""
Cells = list[tuple[str, Row]]
"""The rows of a table by name."""


def metrics_in(result: Mapping[str, Any]) -> list[str]:
    """The metrics that any predictor of the result has, in the protocol's order."""
    return [m for m in PROTOCOLS[result["protocol"]].metrics if any(m in s for s in result["predictors"].values())]


def format_value(value: float | None, metric: str, sign: bool = False) -> str:
    """`1.234`; `–` for None."""
    return cell(value, None, _form(metric, sign)).value


def format_interval(interval: Sequence[float] | None, metric: str, sign: bool = False) -> str:
    """`[1.201, 1.266]`; empty for None."""
    return cell(None, interval, _form(metric, sign)).interval


def _form(metric: str, sign: bool = False) -> str:
    return f"{'+' if sign else ''}.{DECIMALS.get(metric, 3)}f"


def cell(value: float | None, interval: Sequence[float] | None, form: str) -> Cell:
    """A value and its interval, None for what is not there, as `format` shows numbers of this form: `+.3f`."""
    shown = "–" if value is None else format(value, form)
    if not interval:
        return Cell(shown)
    low, high = interval
    return Cell(shown, f"[{low:{form}}, {high:{form}}]", f"±{(high - low) / 2:{form.lstrip('+')}}")


def _row(shown: Sequence[str], means: Mapping[str, Any], intervals: Mapping[str, Any], sign: bool = False) -> Row:
    return {LABELS[m]: cell(means.get(m), intervals.get(m), _form(m, sign)) for m in shown}


def score_cells(result: Mapping[str, Any]) -> Cells:
    """Means and intervals of every predictor."""
    shown, intervals = metrics_in(result), result["intervals"]
    return [(name, _row(shown, means, intervals[name])) for name, means in result["predictors"].items()]


def difference_cells(result: Mapping[str, Any]) -> Cells:
    """The first predictor minus each other one."""
    shown, rows = metrics_in(result), []
    for name, of in differences_in(result).items():
        means, intervals = ({m: d[key] for m, d in of.items()} for key in ("mean", "interval"))
        rows.append((f"minus {name}", _row(shown, means, intervals, sign=True)))
    return rows


def score_table(result: Mapping[str, Any]) -> dict[str, Any]:
    """`score_cells` with the best value of each column marked: `{"metrics": [metric], "columns": [label],
    "rows": [(predictor, [{"value", "interval", "half", "best"}])]}`. Flicker has no best: a constant map has none, which alone is no
    merit."""
    shown, scores = metrics_in(result), result["predictors"]
    best = {m: (max if HIGHER_IS_BETTER[m] else min)(s[m] for s in scores.values() if m in s) for m in shown if m != "flicker"}
    rows = []
    for name, cells in score_cells(result):
        columns = zip(shown, cells.values(), strict=True)
        marked = [{**c._asdict(), "best": m in best and scores[name].get(m) == best[m]} for m, c in columns]
        rows.append((name, marked))
    return {"metrics": shown, "columns": [LABELS[m] for m in shown], "rows": rows}


def clip_cells(result: Mapping[str, Any]) -> Cells:
    """NSS of every predictor on every scored clip, with intervals over the clip's frames; the first predictor's worst clip
    comes first."""
    names = list(result["predictors"])
    scored = {i: c for i, c in result["clips"].items() if c["frames_scored"]}
    order = sorted(scored, key=lambda i: scored[i]["scores"][names[0]]["nss"])
    rows: Cells = []
    for i in order:
        row = {"frames": Cell(str(scored[i]["frames_scored"]))}
        for name in names:
            interval = interval_over_frames(scored[i].get("nss_over_time", {}).get(name, ()))
            value = scored[i]["scores"].get(name, {}).get("nss")
            row[name] = cell(value, interval, _form("nss"))
        rows.append((i, row))
    return rows


COLUMNS = ("corpus", "protocol", "clip", "frames", "predictor", "minus", "metric", "value", "low", "high")


def write_csv(path: Path, results: Mapping[str, Mapping[str, Any]], per_clip: bool) -> None:
    """Writes one value per line. `clip` is empty for means over clips; `minus` names the predictor that was subtracted.
    results: by corpus. per_clip: write the scores of every clip, too."""
    lines = [(corpus, result["protocol"], *row) for corpus, result in results.items() for row in _csv_rows(result, per_clip)]
    write_bytes(path, csv_text([COLUMNS, *lines]).encode())


def _csv_rows(result: Mapping[str, Any], per_clip: bool) -> list[tuple[Any, ...]]:
    frames, no_interval = result["frames_scored"], ("", "")
    rows: list[tuple[Any, ...]] = []
    for name, scores in result["predictors"].items():
        intervals = result["intervals"][name]
        rows += [("", frames, name, "", m, v, *(intervals.get(m) or no_interval)) for m, v in scores.items()]
    for name, of in differences_in(result).items():
        first = result["differences"]["of"]
        rows += [("", frames, first, name, m, d["mean"], *(d["interval"] or no_interval)) for m, d in of.items()]
    for clip, scored in result["clips"].items() if per_clip else ():
        for name, scores in scored["scores"].items():
            rows += [(clip, scored["frames_scored"], name, "", m, v, *no_interval) for m, v in scores.items()]
    return rows

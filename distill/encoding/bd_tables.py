"""The results of `compare` as tables, CSV and curves."""

from pathlib import Path
from typing import Any

from distill.encoding.compare import NO_MAP, QUALITIES
from distill.evaluation.tables import Cells
from distill.opallowlist.foreign import csv_text, figure_text
from distill.run.files import atomic, write_bytes

FEW_CLIPS = 8  # with fewer, bootstrap intervals are too narrow
LABELS = {"plain": "PSNR", "gaze": "by gaze", "judge": "by proxy", "size": "size"}
COLUMNS = ("clip", "weights", "map", "less", "measure", "value", "low", "high", "clips", "better")
PLOT_COLUMNS = 6
PLOT_STYLE = {
    "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 8,
    "axes.grid": True, "grid.alpha": 0.3, "lines.marker": "o", "lines.markersize": 3,
}  # fmt: skip


def clip_cells(result: dict[str, Any]) -> Cells:
    """A row per clip and map: BD-rates, and the change of size at equal CRF, in per cent; for `tables.fit_to_width`."""
    cells: Cells = []
    for clip, facts in result["clips"].items():
        for title, rates in facts["bd_rate"].items():
            values = {**rates, "size": facts["size"][title]}
            row = {label: (_signed(values.get(key)), "") for key, label in _labels(result).items()}
            cells.append((f"{clip}, {title}", row))
    return cells


def mean_cells(result: dict[str, Any]) -> Cells:
    """Means over clips with their intervals."""
    return [(title, _interval_cells(result, measures)) for title, measures in result["mean"].items()]


def difference_cells(result: dict[str, Any]) -> Cells:
    """How maps differ, with intervals."""
    return [(f"{pair['map']} less {pair['less']}", _interval_cells(result, pair)) for pair in result["differences"]]


def _labels(result: dict[str, Any]) -> dict[str, str]:
    """The measures that a result has, and the headings of their columns."""
    return {key: label for key, label in LABELS.items() if any(key in of_map for of_map in result["mean"].values())}


def _interval_cells(result: dict[str, Any], measures: dict[str, Any]) -> dict[str, tuple[str, str]]:
    cells = {}
    for key, label in _labels(result).items():
        measure = measures.get(key, {"mean": None, "interval": None})
        interval = f"[{', '.join(map(_signed, measure['interval']))}]" if measure["interval"] else ""
        cells[label] = (_signed(measure["mean"]), interval)
    return cells


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def legend(result: dict[str, Any]) -> list[str]:
    """The meaning of the columns, and the weights of each clip."""
    lines = ["BD-rate in per cent, negative saves rate. PSNR: over all pixels equally, by which a map can only lose"]
    clips = result["clips"]
    weights = {"gaze": "where observers looked", "judge": f"the map of {result['judge']}, a model, not observers"}
    for by, where in weights.items():
        if names := [name for name, facts in clips.items() if facts["weights"]["by"] == by]:
            lines.append(f"{LABELS[by]}: weighted by {where}; {len(names)} of {len(clips)} clips: {', '.join(names)}")
    return [*lines, "size: its change at equal CRF"]


def write_csv(result: dict[str, Any], path: Path) -> None:
    """One value per line, in per cent: of clips, then over clips (`clip` is empty) with the ends of their intervals."""
    lines: list[tuple[Any, ...]] = [COLUMNS]
    for clip, facts in result["clips"].items():
        weights = facts["weights"]["judge"] or facts["weights"]["by"] or ""
        for title, rates in facts["bd_rate"].items():
            for measure, value in {**rates, "size": facts["size"][title]}.items():
                lines.append((clip, weights, title, "", measure, value, "", "", "", ""))
    means = [{"map": title, "less": "", **measures} for title, measures in result["mean"].items()]
    for row in (*means, *result["differences"]):
        for measure in LABELS:
            if over := row.get(measure):
                ends = over["interval"] or ("", "")
                lines.append(("", "", row["map"], row["less"], measure, over["mean"], *ends, over["clips"], over["better"]))
    write_bytes(path, csv_text(lines).encode())


def plot(result: dict[str, Any], path: Path) -> None:
    """Curves of all clips, quality over rate, as a PNG: whole frames above, weighted ones below."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    clips = result["clips"]
    across, rows = min(PLOT_COLUMNS, len(clips)), 1 + any(facts["weights"]["by"] for facts in clips.values())
    down = -(-len(clips) // across) * rows
    with rc_context(PLOT_STYLE), atomic(path) as temporary:
        figure = Figure((max(3.2 * across + 0.4, 5), 2.8 * down + 0.6), layout="constrained")
        for index, (name, facts) in enumerate(clips.items()):
            for below, quality in enumerate(q for q in QUALITIES if q in facts["points"][NO_MAP][0]):
                axis = figure.add_subplot(down, across, (index // across * rows + below) * across + index % across + 1)
                for title, points in facts["points"].items():
                    axis.plot([p["kbps"] for p in points], [p[quality] for p in points], label=figure_text(title))
                axis.set(xscale="log", title=f"{figure_text(name)}: {QUALITIES[quality]}", xlabel="kbit/s", ylabel="dB")
                rates = [p["kbps"] for p in facts["points"][NO_MAP]]
                axis.set_xticks(rates, [f"{rate:.0f}" for rate in rates])
                axis.minorticks_off()
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(temporary, format="png", dpi=110)

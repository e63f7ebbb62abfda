"""The results of `compare` as tables, CSV and curves."""

from pathlib import Path
from typing import Any

from distill.corpora.clips import counted
from distill.encoding.bd.measures import QUALITIES
from distill.encoding.bd.summary import NO_MAP
from distill.encoding.qp_offsets import MAPPINGS
from distill.evaluation.tables import Cells, Row, cell
from distill.opallowlist.foreign import csv_text
from distill.reporting.lettering import fonts, lettered
from distill.run.files import atomic, write_bytes

LABELS = {key: quality.label for key, quality in QUALITIES.items()} | {"size": "size"}
FORM = "+.1f"  # of per cent
DRAWN = ("plain", "gaze", "judge", "vmaf")  # the curves of a clip, one below the other
COLUMNS = ("clip", "weights", "map", "less", "measure", "value", "low", "high", "clips", "better")
PLOT_COLUMNS = 6
PLOT_STYLE = {
    "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 8,
    "axes.grid": True, "grid.alpha": 0.3, "lines.marker": "o", "lines.markersize": 3,
}  # fmt: skip


def clip_cells(result: dict[str, Any]) -> Cells:
    """A row per clip and map: BD-rates, and the change of size at equal CRF or bitrate, in per cent."""
    cells: Cells = []
    for clip, facts in result["clips"].items():
        for title, rates in facts["bd_rate"].items():
            values = {**rates, "size": facts["size"][title]}
            row = {label: cell(values.get(key), None, FORM) for key, label in _labels(result).items()}
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


def _interval_cells(result: dict[str, Any], measures: dict[str, Any]) -> Row:
    over = {label: measures.get(key, {"mean": None, "interval": None}) for key, label in _labels(result).items()}
    return {label: cell(measure["mean"], measure["interval"], FORM) for label, measure in over.items()}


def legend(result: dict[str, Any]) -> list[str]:
    """The meaning of the columns, and the weights of each clip."""
    lines = ["BD-rate in per cent, negative saves rate. PSNR: all pixels count equally, by which maps usually lose"]
    clips = result["clips"]
    halved = ", half of them; the others are a map" if any(f["weights"].get("halves") for f in clips.values()) else ""
    weights = {"gaze": f"where observers looked{halved}", "judge": f"the map of {result['judge']}, a model, not observers"}
    for by, where in weights.items():
        if names := [name for name, facts in clips.items() if facts["weights"]["by"] == by]:
            lines.append(f"{LABELS[by]}: PSNR weighted by {where}; {len(names)} of {len(clips)} clips: {', '.join(names)}")
    at_equal = "CRF" if result["rate_control"] == "crf" else "bitrate asked for"
    meanings = {
        "vmaf_neg": "NEG: VMAF-NEG", "yuv": "YUV: PSNR of all planes, 6:1:1; all others: of luma",
        "size": f"size: its change at equal {at_equal}",
    }  # fmt: skip
    return [*lines, "; ".join(text for key, text in meanings.items() if key in _labels(result))]


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
    """A PNG: of one strength the curves of all clips, quality over rate; of several, what every map gains over what it costs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    several = len(result["maps"]) > len({of_map["map"] for of_map in result["maps"].values()})
    with rc_context(PLOT_STYLE | fonts()), atomic(path) as temporary:
        figure = Figure(layout="constrained")
        (_draw_frontier if several else _draw_curves)(result, figure)
        figure.savefig(temporary, format="png", dpi=110)


def _draw_curves(result: dict[str, Any], figure: Any) -> None:
    clips = result["clips"]
    drawn = [key for key in DRAWN if any(key in facts["points"][NO_MAP][0] for facts in clips.values())]
    across, rows = min(PLOT_COLUMNS, len(clips)), len(drawn)
    down = -(-len(clips) // across) * rows
    figure.set_size_inches(max(3.2 * across + 0.4, 5), 2.8 * down + 0.6)
    for index, (name, facts) in enumerate(clips.items()):
        for below, quality in enumerate(drawn):
            if quality not in facts["points"][NO_MAP][0]:
                continue
            axis = figure.add_subplot(down, across, (index // across * rows + below) * across + index % across + 1)
            for title, points in facts["points"].items():
                axis.plot([p["kbps"] for p in points], [p[quality] for p in points], label=lettered(title))
            unit = "points" if quality == "vmaf" else "dB"
            axis.set(xscale="log", title=f"{lettered(name)}: {QUALITIES[quality].title}", xlabel="kbit/s", ylabel=unit)
            rates = [p["kbps"] for p in facts["points"][NO_MAP]]
            axis.set_xticks(rates, [f"{rate:.0f}" for rate in rates])
            axis.minorticks_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def frontier(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What each map and mapping gains and costs by its strength: {name: [{title, strength, cost, gain, usual}]}. cost: mean BD-rate
    of PSNR; gain: that of PSNR weighted by gaze, or by a proxy where no clip has gaze; both in per cent, over the same clips. usual:
    whether the strength is the mapping's own."""
    by = "gaze" if any("gaze" in mean for mean in result["mean"].values()) else "judge"
    curves: dict[str, list[dict[str, Any]]] = {}
    for title, of_map in result["maps"].items():
        rates = [facts["bd_rate"].get(title, {}) for facts in result["clips"].values()]
        if pairs := [(of_clip["plain"], of_clip[by]) for of_clip in rates if {"plain", by} <= of_clip.keys()]:
            cost, gain = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
            usual = of_map["strength"] == MAPPINGS[of_map["mapping"]].strength
            point = {"title": title, "strength": of_map["strength"], "cost": cost, "gain": gain, "usual": usual}
            curves.setdefault(f"{of_map['map']}, {of_map['mapping']}", []).append(point)
    return curves


def _draw_frontier(result: dict[str, Any], figure: Any) -> None:
    axis = figure.add_subplot()
    figure.set_size_inches(6.4, 4.8)
    for name, points in frontier(result).items():
        costs, gains = [p["cost"] for p in points], [p["gain"] for p in points]
        (line,) = axis.plot(costs, gains, label=lettered(name))
        for point in points:
            axis.annotate(
                f"{point['strength']:g}", (point["cost"], point["gain"]), (4, 4), textcoords="offset points", fontsize=7
            )
            if point["usual"]:
                axis.plot(point["cost"], point["gain"], "o", markersize=9, fillstyle="none", color=line.get_color())
    axis.set(
        title=f"{counted(len(result['clips']), 'clip')}, by strength; the ring is the default", xlabel="whole-frame PSNR: BD-rate, %",
        ylabel="weighted PSNR: BD-rate, %",
    )  # fmt: skip
    axis.legend()

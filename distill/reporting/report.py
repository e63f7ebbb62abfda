"""The report of a run: one HTML file that needs nothing else. Numbers, curves, and pictures of what the student sees."""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed, or asked for

from matplotlib import colormaps
from matplotlib.figure import Figure

from distill.corpora import Clip, Corpus, density_map, fixation_map
from distill.evaluation import statistics, tables
from distill.evaluation.metrics import HIGHER_IS_BETTER, LABELS
from distill.evaluation.predictors import load_predictor
from distill.labels.store import LabelStore
from distill.recipe.keys import Recipe
from distill.reporting.card import Provenance
from distill.run.directory import RunDir
from distill.run.files import read_json, write_bytes
from distill.run.progress import Narrator

COLOURS = {
    "step": "#d1495b",
    "image": "#2e86ab",
    "teacher": "#6a994e",
    "centred Gaussian": "#9a8c98",
    "mean training map": "#c9ada7",
}
COLUMNS = 5  # frames shown of each clip
WIDTH = 300  # pixels of one picture

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #3a7d44; }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; font-size: 1.2rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .35rem; vertical-align: top; text-align: right; border-bottom: 1px solid var(--line) }
td:first-child, th:first-child { text-align: left; white-space: nowrap } .best { font-weight: 700; color: var(--good) }
.interval { font-size: .7rem; font-weight: 400; opacity: .65; white-space: nowrap; color: CanvasText }
.scroll { overflow-x: auto } .muted { opacity: .7 } .warn { border-left: 4px solid #d19a2e; padding: .4rem .8rem; background: var(--soft) }
.sheet { display: grid; gap: 3px; grid-template-columns: 7rem repeat(var(--n), minmax(110px, 1fr));
  align-items: center; overflow-x: auto; font-size: .85rem }
.sheet img { width: 100%; display: block; border-radius: 2px } figure { margin: 1rem 0 }
figcaption { opacity: .75; font-size: .9rem }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 3px }
"""


def write(
    run: RunDir, recipe: Recipe, corpus: Corpus, labels: LabelStore, origin: Provenance, narrator: Narrator
) -> None:
    """Writes `report.html` from the files of a run that is evaluated."""
    metrics = read_json(run / "metrics.json")
    parity = read_json(run / "export" / f"{origin.name}.parity.json")
    parts = [
        f"<h1>{html.escape(origin.name)}</h1>",
        f'<p class="muted">{origin.parameters:,} parameters, distilled from {html.escape(origin.teacher)} on '
        f"{html.escape(origin.corpus)}; step {origin.step} of {recipe.train.steps}"
        f"{' was the best by validation' if origin.chosen else ''}.</p>",
        *[f'<p class="warn">{html.escape(c)}</p>' for c in metrics["caveats"]],
        _scores(metrics),
        _curves(run / "metrics.jsonl"),
    ]
    shown = [clip for clip in corpus.select(corpus.val) if clip.id in metrics["clips"]][: recipe.report.clips]
    step_model = run / "export" / f"{origin.name}_step.onnx"
    if shown:
        parts.append(
            "<h2>What it sees</h2><p>Bright is salient. Dots are the observers' fixations. Every map is scaled to "
            "its maximum, which stands below the student's; its state runs from the first frame.</p>"
        )
    for clip in narrator.track(shown, "report", len(shown)):
        parts.append(_sheet(clip, labels, step_model, run / "export" / f"{origin.name}.onnx"))
        parts.append(_over_time(clip, metrics["clips"][clip.id]))
    parts += [_per_clip(metrics), _proof(origin, parity, run), _reproduce(run, recipe)]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">' \
           f"<title>{html.escape(origin.name)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>"  # fmt: skip
    write_bytes(run / "report.html", page.encode())


NAMES = {"step": "student, step file", "image": "student, image file"}


def _scores(metrics: dict[str, Any]) -> str:
    if not metrics["predictors"]:
        return "<h2>Scores</h2><p>No validation clip has fixations: nothing was scored.</p>"
    by_part = statistics.by_corpus(metrics)
    return "<h2>Scores</h2>" + "".join(
        (f"<h3>{html.escape(part)}</h3>" if len(by_part) > 1 else "") + _scores_of(result) for part, result in by_part.items()
    )  # fmt: skip


def _scores_of(result: dict[str, Any]) -> str:
    shown = tables.metrics_in(result)
    best = {m: tables.best(result, m) for m in shown}
    head = "".join(f"<th>{LABELS[m]} {'↑' if HIGHER_IS_BETTER[m] else '↓'}</th>" for m in shown)
    rows = [f"<tr><th>predictor</th>{head}</tr>"]
    for (name, cells), values in zip(tables.score_cells(result), result["predictors"].values(), strict=True):
        marks = ["best" if m in values and values[m] == best[m] else "" for m in shown]
        rows.append(_row(NAMES.get(name, name), cells, marks))
    skipped = result["frames_without_fixations"]
    note = f"; {skipped:,} frames without fixations were not scored" if skipped else ""
    return (
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
        f'<p class="muted">{result["frames_scored"]:,} frames of {len(result["clips"])} clips{note}. The ONNX files, through '
        f"onnxruntime, state carried. Below each value its 95 % interval over clips. Protocol {result['protocol']}: "
        f"{html.escape(result['about'])}.</p>{_differences(result)}"
    )


def _differences(result: dict[str, Any]) -> str:
    """Dots and whiskers: the step file less the image file and each of its poolings, in NSS and CC."""
    if all(clip["frames_scored"] <= 1 for clip in result["clips"].values()):
        return ""  # still images, where all of them are the same
    found = {n: d for n, d in result["differences"]["from"].items() if n.startswith("image") and "nss" in d}
    figure = Figure(figsize=(11, 0.8 + 0.3 * len(found)))
    for axis, metric in zip(figure.subplots(1, 2, sharey=True), ("nss", "cc"), strict=True):
        for place, difference in enumerate(reversed(found.values())):
            mean, interval = difference[metric]["mean"], difference[metric]["interval"]
            axis.plot(interval or [mean, mean], [place, place], color=COLOURS["step"], lw=2)
            axis.plot([mean], [place], "o", color=COLOURS["step"], ms=5)
            axis.annotate(f"{mean:+.3f}", (mean, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        axis.axvline(0, color="#444", lw=0.8)
        axis.set_yticks(range(len(found)), reversed([f"step less {name}" for name in found]))
        axis.set_ylim(-0.6, len(found) - 0.2)
        axis.set_title(LABELS[metric], fontsize=10)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", alpha=0.25)
    return (
        f"<figure>{_svg(figure)}<figcaption>What the state is worth: the step file less the image file, and less its maps "
        "pooled over time, on the same clips, with 95 % intervals. Right of the line the step file is better.</figcaption></figure>"
    )


def _row(name: str, cells: dict[str, tuple[str, str]], marks: list[str]) -> str:
    values = []
    for (value, interval), mark in zip(cells.values(), marks, strict=True):
        below = f'<div class="interval">{interval.strip("[]").replace(", ", "…")}</div>' if interval else ""
        values.append(f'<td class="{mark}">{value}{below}</td>')
    return f"<tr><td>{html.escape(name)}</td>{''.join(values)}</tr>"


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _curves(log: Path) -> str:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train, val = [x for x in lines if "loss" in x], [x for x in lines if x.get("split") == "val"]
    figure = Figure(figsize=(11, 3.2))
    left, middle, right = figure.subplots(1, 3)
    steps = [x["step"] for x in train]
    left.plot(steps, [x["loss"] for x in train], color="#bbb", lw=0.6)
    left.plot(steps, _smooth([x["loss"] for x in train]), color=COLOURS["step"], lw=1.6)
    left.set_title("loss")
    for name, colour in (("soft.cc", COLOURS["teacher"]), ("truth.cc", COLOURS["step"])):
        seen = [x for x in train if name in x]  # a batch without annotated frames has no truth
        if not seen:
            continue
        middle.plot(
            [x["step"] for x in seen],
            _smooth([1 - x[name] for x in seen]),
            color=colour,
            lw=1.4,
            label={"soft.cc": "teacher", "truth.cc": "ground truth"}[name],
        )
    middle.set_title("CC with, in training")
    middle.legend(frameon=False, fontsize=8)
    if val and "nss" in val[0]:
        other = right.twinx()
        for axis, name, colour in ((right, "nss", COLOURS["step"]), (other, "cc", COLOURS["image"])):
            axis.plot([x["step"] for x in val], [x[name] for x in val], "o-", color=colour, ms=3)
            axis.set_ylabel(name.upper(), color=colour)
            axis.tick_params(axis="y", colors=colour)
        other.spines[["top", "right"]].set_visible(False)
    else:
        right.text(0.5, 0.5, "no validation clips", ha="center", transform=right.transAxes)
    right.set_title("validation, averaged weights")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
    return f"<h2>Training</h2>{_svg(figure)}"


def _smooth(values: list[float], share: float = 0.05) -> np.ndarray:
    window = max(1, int(len(values) * share))
    padded = np.pad(values, (window - 1, 0), mode="edge")
    return np.convolve(padded, np.ones(window) / window, "valid")


def overlay(frame: np.ndarray, saliency: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """A heat map over a darkened grey frame: uint8 `[H,W,3]`, `[h,w]` in [0, 1] -> uint8 `[H,W,3]`."""
    height, width = frame.shape[:2]
    s = np.clip(cv2.resize(saliency.astype(np.float32), (width, height)), 0, 1)[..., None]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    base = 0.35 * frame + 0.45 * grey
    heat = colormaps["inferno"](s[..., 0])[..., :3].astype(np.float32) * 255
    return np.clip(base + strength * s * (heat - base), 0, 255).astype(np.uint8)


def mask_like(density: np.ndarray) -> np.ndarray:
    """A map divided by its maximum."""
    top = float(density.max())
    return density / top if top > 0 else density


def _picture(frame: np.ndarray, note: str = "") -> str:
    small = cv2.resize(frame, (WIDTH, round(WIDTH * frame.shape[0] / frame.shape[1])), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    below = f'<div class="muted">{note}</div>' if note else ""
    return f'<div><img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">{below}</div>'


def _sheet(clip: Clip, labels: LabelStore, step_model: Path, image_model: Path) -> str:
    wanted = np.unique(np.linspace(clip.frames * 0.08, clip.frames - 1, COLUMNS).astype(int))
    step, image = load_predictor(step_model), load_predictor(image_model)
    logits = labels.read(clip.id, clip.frames)
    rows: dict[str, list[str]] = {
        "frame": [],
        "fixations": [],
        "teacher": [],
        "student, step": [],
        "student, image": [],
        "what the state adds": [],
    }
    for index, frame in enumerate(clip.read()):
        from_step = step.predict(frame)
        if index not in wanted:
            continue
        from_image = image.predict(frame)
        fixations = fixation_map(clip, index)
        truth = frame
        if fixations is not None and fixations.any():
            truth = overlay(frame, mask_like(density_map(clip, index, fixations)))
            for y, x in zip(*np.nonzero(fixations), strict=True):
                cv2.circle(truth, (int(x), int(y)), max(1, clip.width // 160), (120, 255, 255), -1, cv2.LINE_AA)
        teacher = 1 / (1 + np.exp(-logits[index].astype(np.float32)))
        rows["frame"].append(_picture(frame))
        rows["fixations"].append(_picture(truth))
        rows["teacher"].append(_picture(overlay(frame, mask_like(teacher))))
        rows["student, step"].append(_picture(overlay(frame, mask_like(from_step)), f"peak {from_step.max():.2f}"))
        rows["student, image"].append(_picture(overlay(frame, mask_like(from_image)), f"peak {from_image.max():.2f}"))
        rows["what the state adds"].append(_picture(_signed(from_step - from_image)))
    cells = [f"<div></div>{''.join(f'<div>{i / clip.fps:.1f} s</div>' for i in wanted)}"]
    cells += [f"<div>{name}</div>{''.join(pictures)}" for name, pictures in rows.items()]
    return f'<h3>Clip {html.escape(clip.id)}</h3><div class="sheet" style="--n:{len(wanted)}">{"".join(cells)}</div>'


def _signed(difference: np.ndarray) -> np.ndarray:
    """Red where the state adds saliency, blue where it takes it away; full colour at a difference of 0.5."""
    return (colormaps["RdBu_r"](np.clip(difference + 0.5, 0, 1))[..., :3] * 255).astype(np.uint8)


def _over_time(clip: Clip, result: dict[str, Any]) -> str:
    if not result["frames_scored"]:
        return '<p class="muted">No scored frame of this clip has fixations.</p>'
    if clip.static:
        return ""
    seconds = np.array(result["frames"]) / clip.fps
    figure = Figure(figsize=(11, 2.2))
    axis = figure.subplots()
    for name in ("teacher", "image", "step"):
        if name in result["nss_over_time"]:
            axis.plot(
                seconds,
                result["nss_over_time"][name],
                color=COLOURS[name],
                lw=1.6 if name == "step" else 1.1,
                label=name,
            )
    axis.set_xlabel("seconds")
    axis.set_ylabel("NSS")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))
    gain = result["scores"]["step"]["nss"] - result["scores"]["image"]["nss"]
    return f"<figure>{_svg(figure)}<figcaption>The state over time: on this clip it is worth {gain:+.3f} NSS.</figcaption></figure>"


def _per_clip(metrics: dict[str, Any]) -> str:
    cells = tables.clip_cells(metrics) if metrics["predictors"] else []
    if not cells:
        return ""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in cells[0][1])
    rows = "".join(_row(clip, row, [""] * len(row)) for clip, row in cells)
    return (
        "<h2>Clip by clip</h2><p>NSS, the hardest clip for the student first; in brackets 95 % intervals over the clip's frames.</p>"
        f'<div class="scroll"><table><tr><th>clip</th>{head}</tr>{rows}</table></div>'
    )


def _proof(origin: Provenance, parity: dict[str, Any], run: RunDir) -> str:
    tau = origin.tau_seconds
    facts = {
        "PyTorch against onnxruntime": f"{max(parity['image_max_abs'], parity['step_max_abs']):.2e} "
        f"largest absolute difference over {parity['frames']} frames at {len(parity['sizes'])} sizes",
        "step file without history against image file": f"{parity['zero_state_max_abs']:.2e}",
        "gate": "passed: operators, graph features, contract",
        "frame rate of the step file": f"{origin.fps:g} per second",
        "time constants of the gate": f"{tau[0]:.2g} to {tau[2]:.2g} s, median {tau[1]:.2g} s",
        "licence of the weights": origin.license,
        "files": ", ".join(sorted(p.name for p in (run / "export").iterdir())),
    }
    rows = "".join(f'<tr><td>{k}</td><td style="text-align:left">{html.escape(v)}</td></tr>' for k, v in facts.items())
    return f'<h2>Proof</h2><div class="scroll"><table>{rows}</table></div>'


def _reproduce(run: RunDir, recipe: Recipe) -> str:
    environment = ", ".join(f"{k} {v}" for k, v in run.manifest["environment"].items())
    seconds = "; ".join(f"{name} {stage['seconds']:.0f} s" for name, stage in run.manifest["stages"].items())
    return (
        f"<h2>Again</h2><p><code>distill run {html.escape(shlex.quote(str(run.path / 'recipe.toml')))} --out elsewhere</code></p>"
        f'<p class="muted">seed {recipe.run.seed}; {html.escape(run.manifest.get("device", ""))}; {html.escape(environment)}</p>'
        f'<p class="muted">{html.escape(seconds)}</p>'
    )

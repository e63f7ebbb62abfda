"""The report of a run: one HTML file with the verdict, scores, curves and maps, which needs no other file.

This module collects the content; `drawings` makes pictures, `charts` curves, `words` explains; `templates/report.html.j2` is the
layout.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.corpora import Clip, Corpus, density_map, fixation_map
from distill.corpora.clips import counted
from distill.evaluation import statistics, tables, verdict
from distill.evaluation.metrics import HIGHER_IS_BETTER
from distill.evaluation.predictors import load_predictor
from distill.export.runner import Predictor
from distill.export.verification import largest_difference
from distill.labels.store import LabelStore
from distill.recipe.keys import Recipe
from distill.reporting import charts, drawings, words
from distill.reporting.drawings import data_uri, overlay, peak_normalised
from distill.reporting.provenance import Provenance
from distill.reporting.rendering import render
from distill.run.directory import RunDir
from distill.run.files import read_json, write_bytes
from distill.run.progress import Narrator

FRAMES_SHOWN = 5  # of each clip
LOOP_FPS, LOOP_SECONDS = 6, 5

# A picture in a row of a clip's sheet: its data URI, what it shows, and a note below it.
Picture = tuple[str, str, str]


def write(
    run: RunDir, recipe: Recipe, corpus: Corpus, labels: LabelStore, origin: Provenance, taken: Mapping[str, Any],
    narrator: Narrator,
) -> None:  # fmt: skip
    """Writes `report.html` from the files of an evaluated run. The maps of `report.clips` validation clips are computed again.
    taken: as `tools.speed.measure` returns it."""
    metrics = read_json(run / "metrics.json")
    parity = read_json(run / "export" / f"{origin.name}.parity.json")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ranks, count = ranked(metrics["clips"]), recipe.report.clips
    step, image = (load_predictor(run / "export" / f"{origin.name}{suffix}.onnx") for suffix in ("_step", ""))
    shown = corpus.select(choose_clips(metrics["clips"], count))
    tracked = narrator.track(shown, "report", len(shown))
    pages = [
        {"rank": ranks.get(clip.id, ""), **_clip(clip, f"clip-{n}", metrics["clips"][clip.id], labels, step, image)}
        for n, clip in enumerate(tracked)
    ]
    videos = [clip for clip in corpus.select(ranks) if not clip.static] if count else []
    middle = videos[len(videos) // 2] if videos else None
    loop = {"rank": ranks[middle.id], **_loop(middle, labels, step)} if middle else None
    page = render(
        "report.html", origin=origin, steps=recipe.train.steps, caveats=metrics["caveats"], summary=summary(metrics, taken),
        badges=badges(origin, metrics, parity), parts=score_parts(metrics), curves=charts.training_curves(log), clips=pages,
        loop_clip=loop, clip_scores=tables.clip_cells(metrics) if metrics["predictors"] else [], words=words,
        checks=_checks(origin, parity, taken, run), recipe=shlex.quote(str(run.path / "recipe.toml")),
        seed=recipe.run.seed, manifest=run.manifest,
    )  # fmt: skip
    write_bytes(run / "report.html", page.encode())


def ranked(clips: Mapping[str, Any]) -> dict[str, str]:
    """The scored clips, from the student's best to its worst by NSS, and the rank of each in words; none of a single one."""
    scored = [i for i, clip in clips.items() if clip["frames_scored"]]
    order = sorted(scored, key=lambda i: -clips[i]["scores"]["step"]["nss"])
    if len(order) < 2:
        return dict.fromkeys(order, "")
    between = [f"number {place} of {len(order)}" for place in range(2, len(order))]
    return dict(zip(order, ["the best", *between, "the worst"], strict=True))


def choose_clips(clips: Mapping[str, Any], count: int) -> list[str]:
    """The clips to show, `count` at most: from the best to the worst, evenly between; a single one is the median. Where no clip
    was scored, the first ones."""
    order = list(ranked(clips))
    if not order:
        return list(clips)[:count]
    last = len(order) - 1
    places = np.linspace(0, last, count) if count > 1 else [last / 2] * count
    return [order[place] for place in dict.fromkeys(round(place) for place in places)]


def summary(metrics: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict, the figures that matter most, and the student's best and worst clips."""
    compared, predictors, figures = verdict.comparisons(metrics), metrics["predictors"], []
    for metric in ("nss", "cc") if predictors else ():
        if metric in (own := predictors["step"]):
            interval = tables.format_interval(metrics["intervals"]["step"].get(metric), metric)
            others = [
                (name, predictors[name][metric])
                for name in ("teacher", "centred Gaussian")
                if metric in predictors.get(name, {})
            ]
            figures.append((metric, tables.format_value(own[metric], metric), interval, others))
    order = list(ranked(metrics["clips"]))
    ends = {"best": order[0], "worst": order[-1]} if len(order) > 1 else {}
    return {
        "headline": verdict.headline(metrics),
        "comparisons": [(c.against, c.outcome, verdict.differences(c)) for c in compared],
        "figures": figures,
        "ends": [(what, i, metrics["clips"][i]["scores"]["step"]["nss"]) for what, i in ends.items()],
        "times": taken,
    }


def badges(origin: Provenance, metrics: Mapping[str, Any], parity: Mapping[str, Any]) -> list[tuple[bool, str, str]]:
    """What a reader must know at once: whether it is good, the word that explains it, and the text. Files that did not pass the
    gate and parity are not written."""
    gap = f"parity {largest_difference(parity):.1e}, limit {parity['tolerance']:.0e}"
    found = [(True, "gate", "gate passed"), (True, "parity", gap)]
    if metrics["predictors"]:
        scored = counted(statistics.scored_clips(metrics), "clip")
        found.append((origin.held_out, "held out", f"scored on {scored}, {'held out' if origin.held_out else 'not held out'}"))
    else:
        found.append((False, "held out", "not scored"))
    return found


def score_parts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of every corpus, with charts of the difference that the recurrent state makes; none if nothing was scored."""
    parts = []
    for n, (title, result) in enumerate(statistics.by_corpus(metrics).items() if metrics["predictors"] else ()):
        table = tables.score_table(result)
        arrows = ("↑" if HIGHER_IS_BETTER[m] else "↓" for m in table["metrics"])
        heads = list(zip(table["metrics"], arrows, strict=True))
        gains = statistics.gains_of_state(result)
        drawn = charts.differences(gains, f"gain-{n}") if gains else []
        remarks = statistics.remarks(result)
        parts.append(
            {"title": title, "result": result, "remarks": remarks, "heads": heads, "rows": table["rows"], "charts": drawn}
        )
    return parts


def _clip(
    clip: Clip, ids: str, result: Mapping[str, Any], labels: LabelStore, step: Predictor, image: Predictor
) -> dict[str, Any]:
    """A clip's frames and maps at a few times, and its NSS over time."""
    shown = np.unique(np.linspace(clip.frames * 0.08, clip.frames - 1, FRAMES_SHOWN).astype(int)).tolist()
    teacher = _teacher_maps(clip, labels, shown)
    rows: dict[str, list[Picture]] = {}
    step.reset()
    for index, frame in enumerate(clip.read()):
        from_step = step.predict(frame)  # every frame, for its state
        if index in teacher:
            when = "" if clip.static else f" at {clip.time_of(index):.1f} s"
            for name, (picture, what, note) in _pictures(
                clip, index, frame, teacher[index], from_step, image.predict(frame)
            ).items():
                rows.setdefault(name, []).append((data_uri(picture), f"{what}{when}, clip {clip.id}", note))
    page: dict[str, Any] = {"id": clip.id, "seconds": [f"{clip.time_of(index):.1f} s" for index in shown], "rows": rows}
    page |= {"ids": ids, "static": clip.static, "nss": None, "chart": None, "gain": None}
    if result["frames_scored"]:
        page["nss"] = result["scores"]["step"]["nss"]
        if not clip.static:
            seconds = np.array([clip.time_of(index) for index in result["frames"]])
            page["chart"] = charts.nss_over_time(seconds, result["nss_over_time"], ids)
            page["gain"] = page["nss"] - result["scores"]["image"]["nss"]
    return page


def _teacher_maps(clip: Clip, labels: LabelStore, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """The teacher's maps of these frames, `[h,w]` in [0, 1], by index."""
    logits = labels.read(clip.id, clip.frames)[np.array(indices)].astype(np.float32)
    return dict(zip(indices, 1 / (1 + np.exp(-logits)), strict=True))


def _pictures(
    clip: Clip, index: int, frame: np.ndarray, teacher: np.ndarray, step: np.ndarray, image: np.ndarray
) -> dict[str, tuple[np.ndarray, str, str]]:
    """One frame, and the maps of it, the observers', the teacher's, the student's: the picture, what it shows, a note."""
    files = {
        "student, step": (_heat(frame, step), "map of the student's step file", f"peak {step.max():.2f}"),
        "student, image": (_heat(frame, image), "map of the student's image file", f"peak {image.max():.2f}"),
        "step minus image": (
            drawings.difference_map(frame, step - image),
            "map of the step file minus that of the image file",
            "",
        ),
    }
    if clip.static:  # both files give the same map
        files = {"student": files["student, image"]}
    return {
        "frame": (frame, "frame", ""),
        "observers": (_gaze(clip, index, frame), "the observers' fixations", ""),
        "teacher": (_heat(frame, teacher), "the teacher's map", ""),
        **files,
    }


def _heat(frame: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    return overlay(frame, peak_normalised(saliency))


def _gaze(clip: Clip, index: int, frame: np.ndarray) -> np.ndarray:
    """The observers' density map with their fixations; the bare frame where there are none."""
    fixations = fixation_map(clip, index)
    if fixations is None or not fixations.any():
        return frame
    return drawings.with_fixations(frame, density_map(clip, index, fixations), fixations)


def _loop(clip: Clip, labels: LabelStore, step: Predictor) -> dict[str, Any]:
    """The first LOOP_SECONDS of a clip: frame, observers, teacher and student side by side, moving and standing still."""
    times = np.array([clip.time_of(index) for index in range(clip.frames)])
    ticks = np.arange(0, min(LOOP_SECONDS, clip.seconds), 1 / LOOP_FPS)
    shown = np.unique(np.searchsorted(times, ticks + 1e-6, "right") - 1).tolist()
    teacher, panels = _teacher_maps(clip, labels, shown), []
    step.reset()
    for index, frame in enumerate(clip.read()):
        saliency = step.predict(frame)
        if index in teacher:
            pictures = {"frame": frame, "observers": _gaze(clip, index, frame)}
            pictures |= {"teacher": _heat(frame, teacher[index]), "student": _heat(frame, saliency)}
            panels.append(drawings.four_panels(pictures))
        if index == shown[-1]:
            break
    moving, still = drawings.looping_clip(panels, LOOP_FPS)
    height, width = panels[0].shape[:2]
    return {"clip": clip.id, "moving": moving, "still": still, "width": width, "height": height}


def _checks(origin: Provenance, parity: Mapping[str, Any], taken: Mapping[str, Any], run: RunDir) -> dict[str, str]:
    """The results of verification, and facts about the ONNX files."""
    shortest, median, longest = origin.tau_seconds
    return {
        "PyTorch and onnxruntime": f"{largest_difference(parity):.2e} "
        f"largest absolute difference over {parity['frames']} frames at {len(parity['sizes'])} sizes",
        "step file without history and image file": f"{parity['zero_state_max_abs']:.2e} largest absolute difference",
        "gate": "passed: operators, graph features, contract",
        "time for a frame": f"{', '.join(f'{ms:g} ms at {size}' for size, ms in taken['ms'].items())}; one thread, {taken['processor']}",
        "frame rate of the step file": f"{origin.fps:g} per second",
        "time constants of the recurrent state": f"{shortest:.2g} to {longest:.2g} s, median {median:.2g} s",
        "licence of the weights": origin.license,
        "files": ", ".join(sorted(path.name for path in (run / "export").iterdir())),
    }

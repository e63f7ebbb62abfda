"""What a saliency map buys an encoder: rate for quality with the map and without, over whole frames and where people look.

Every clip is encoded without a map, with a centred Gaussian's, and with each model's, at several rates. Quality is luma
PSNR of the mean squared error, twice: over all pixels alike, and weighted by where people look. Of the first, a map
can only lose: it takes bits from most of the frame. The second says whether it gave them to the right blocks.

Where people look is where observers did, in clips of a corpus with gaze. Elsewhere a judge may say it: the map of a model
that is not compared, its sum 1. The two are never averaged together, and a model that would judge itself is refused.

BD-rate (Bjontegaard, VCEG-M33, 2001) is how much more rate the same quality takes, on average over the qualities that both
reach; negative is better. Curves are monotone cubics through all points (Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5,
1984), as in the common test conditions of HEVC, not one cubic fitted to four. Intervals are bootstrap ones over clips; two
maps are compared by their differences on the same clips (see `distill.evaluation.statistics`).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnx

from distill.corpora import Clip, density_map, fixation_map, open_corpus
from distill.corpora.video import probe, read_frames
from distill.encoding.encode import (
    CODECS,
    Coding,
    Maps,
    Picture,
    Planner,
    Shaping,
    centre,
    check_coding,
    check_map_counts,
    encode_frames,
    open_maps,
)
from distill.evaluation.statistics import mean_and_interval
from distill.evaluation.tables import Cells
from distill.export.streaming import Stream
from distill.recipe import keys
from distill.run.errors import Interrupted, UsageError
from distill.run.files import atomic, write_bytes
from distill.run.progress import Narrator

NONE, CENTRE = "no map", "centred Gaussian"
DECODERS = {"x264": "h264", "x265": "hevc"}
KINDS = {"plain": "PSNR", "gaze": "gaze-weighted PSNR", "judge": "judge-weighted PSNR"}


# --- the measure -----------------------------------------------------------------------------------------------------


def bd_rate(reference: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]]) -> float:
    """How much more rate `tested` needs than `reference` for the same quality, in per cent; negative where it needs less.

    Both are points (rate above zero, quality), two or more each, in any order. Raises ValueError where there are fewer,
    quality does not rise with rate, or the two have no quality in common.
    """
    curves = [_curve(points) for points in (reference, tested)]
    low = max(quality[0] for quality, _, _ in curves)
    high = min(quality[-1] for quality, _, _ in curves)
    if low >= high:
        raise ValueError("the two curves have no quality in common; more rates, further apart, may overlap")
    means = [_integral(*curve, low, high) / (high - low) for curve in curves]
    return float(np.expm1(means[1] - means[0]) * 100)


def _curve(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quality, log rate and the slope there, of a monotone cubic."""
    rate, quality = np.array(sorted(points), float).T
    if len(rate) < 2 or rate[0] <= 0 or (np.diff(quality) <= 0).any() or (np.diff(rate) <= 0).any():
        raise ValueError("a curve is two points or more, of rates above zero and of qualities that rise with them")
    value = np.log(rate)
    width = np.diff(quality)
    secant = np.diff(value) / width
    slope = np.empty_like(value)
    first, last = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    slope[1:-1] = (first + last) / (first / secant[:-1] + last / secant[1:])  # a weighted harmonic mean
    if len(value) == 2:
        slope[:] = secant
    else:
        slope[0] = _end(width[0], width[1], secant[0], secant[1])
        slope[-1] = _end(width[-1], width[-2], secant[-1], secant[-2])
    return quality, value, slope


def _end(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """The slope at an end: of the parabola through three points, held between level and three times the secant."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    return float(np.clip(slope, 0, 3 * secant))


def _integral(x: np.ndarray, y: np.ndarray, slope: np.ndarray, low: float, high: float) -> float:
    """Of the cubic Hermite spline, from low to high, exactly."""
    total = 0.0
    for i in range(len(x) - 1):
        width = x[i + 1] - x[i]
        begin, end = (np.clip((bound - x[i]) / width, 0, 1) for bound in (low, high))
        rise = y[i + 1] - y[i]
        cubic = [slope[i] * width + slope[i + 1] * width - 2 * rise, 3 * rise - (2 * slope[i] + slope[i + 1]) * width]
        whole = np.polyint([*cubic, slope[i] * width, y[i]])
        total += (np.polyval(whole, end) - np.polyval(whole, begin)) * width
    return float(total)


# --- clips -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Take:
    """The first frames of a clip as an encoder gets them, and where observers looked."""

    picture: Picture
    frames: list[av.VideoFrame]  # yuv420p
    luma: np.ndarray  # uint8 [T,H,W]
    # By frame, float32 [h,w] that covers it, not all zero; empty where nobody was asked.
    weights: dict[int, np.ndarray]
    by: str | None = None  # whose they are: gaze or judge
    judge: str | None = None  # its name


def take_video(path: Path, frames: int) -> Take:
    """Of a video file; it has no gaze."""
    _, _, _, fps = probe(path)
    return _take(islice(read_frames(path), frames), fps, {})


def take_clip(clip: Clip, frames: int) -> Take:
    """Of a corpus's clip, with the density of its fixations. Frames that nobody fixated have no weight."""
    gaze = {}
    for index in range(min(frames, clip.frames, clip.annotated_frames)):
        fixations = fixation_map(clip, index)
        if fixations is not None and fixations.any():
            gaze[index] = density_map(clip, index, fixations)
    return _take(islice(clip.read(), frames), clip.fps, gaze)


def _take(pixels: Iterator[np.ndarray], fps: float, gaze: dict[int, np.ndarray]) -> Take:
    rate = Fraction(fps).limit_denominator(1001)
    frames = []
    for index, rgb in enumerate(pixels):
        height, width = (side - side % 2 for side in rgb.shape[:2])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width])).reformat(format="yuv420p")
        frame.pts, frame.time_base = index, 1 / rate
        frames.append(frame)
    luma = np.stack([_luma(frame) for frame in frames])
    picture = Picture(frames[0].width, frames[0].height, "yuv420p", 1 / rate, rate)
    height, width = picture.size
    cut = {i: weights[:height, :width] for i, weights in gaze.items() if weights[:height, :width].any()}
    return Take(picture, frames, luma, cut, "gaze" if cut else None)


def judged(take: Take, judge: Stream, name: str) -> Take:
    """The take with weights from a model's maps, where there is no gaze. Frames where the model sees nothing have none."""
    if take.weights:
        return take
    judge.reset()
    planner = Planner(take.picture, judge.map, Shaping())
    maps = {i: planner.saliency(frame, float(frame.time or 0)) for i, frame in enumerate(take.frames)}
    maps = {i: saliency.astype(np.float32) for i, saliency in maps.items() if saliency.any()}
    return replace(take, weights=maps, by="judge", judge=name) if maps else take


def _luma(frame: av.VideoFrame) -> np.ndarray:
    plane: Any = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : frame.width].copy()


# --- the measurement -------------------------------------------------------------------------------------------------


def compare(
    takes: Sequence[tuple[str, Any]],
    models: Mapping[str, Path],
    coding: Coding,
    shaping: Shaping,
    crfs: Sequence[float],
    narrator: Narrator,
    judge: Path | None = None,
) -> dict[str, Any]:
    """Encodes every take (its name, and a function that reads it) with every map at every rate.

    judge: a model whose maps are the weights where a clip has no gaze.
    Returns, ready for JSON: codec, preset, crfs, strength, neutral, judge; clips: {name: {frames, weights: {by, judge, frames},
    points: {map: [{crf, kbps, plain, gaze or judge}]}, bd_rate: {map: {plain, gaze or judge}}, size: {map: per cent of change
    at equal crf}, left_out: {map: {kind: why there is no BD-rate}}}}; what `summary` says of them; and unfinished, the names of
    clips that an interrupt has left.

    Raises UsageError for a model or an option that cannot be used, a judge among the compared, or rates that say nothing for any
    clip; Interrupted where no clip is done.
    """
    for crf in crfs:
        check_coding(replace(coding, crf=crf))
    if len(set(crfs)) < max(2, len(crfs)):
        raise UsageError(f"--crf {','.join(f'{crf:g}' for crf in crfs)}: two or more different rates are wanted")
    if judge:
        check_judge(judge, models)
    maps: dict[str, Stream | Maps | None] = {NONE: None, CENTRE: centre}
    maps.update({name: open_maps(path, None) for name, path in models.items()})
    weigher = open_maps(judge, None) if judge else None
    clips: dict[str, Any] = {}
    with narrator.bar("bd", len(takes) * len(maps) * len(crfs), unit="encodes") as bar:

        def count(note: str) -> None:
            bar.advance(note=note)
            if narrator.stop() and bar.done < bar.total:
                raise Interrupted(f"bd, at {note}; nothing is kept")

        try:
            for name, read in takes:
                take: Take = judged(read(), weigher, judge.name) if judge and isinstance(weigher, Stream) else read()
                if not clips:
                    check_map_counts(take.picture, coding)
                clips[name] = _clip(name, take, maps, coding, shaping, crfs, count)
        except Interrupted:
            if not clips:
                raise
    reasons = [
        f"clip {name}, {title}: no BD-rate of {KINDS[kind]}: {reason}"
        for name, facts in clips.items()
        for title, own in facts["left_out"].items()
        for kind, reason in own.items()
    ]
    if not any(own for facts in clips.values() for own in facts["bd_rate"].values()):
        raise UsageError(f"{reasons[0]}; other --crf may do")
    for reason in reasons:
        narrator.say(reason)
    if without := [name for name, facts in clips.items() if not facts["weights"]["by"]]:
        narrator.say(
            f"nobody's gaze: {', '.join(without)}; only whole-frame PSNR, of which a map can only lose. "
            "--judge MODEL.onnx weighs by where another model would look"
        )
    return {
        "codec": coding.codec, "preset": coding.preset, "crfs": list(crfs), "strength": shaping.strength, "neutral": shaping.neutral,
        "judge": judge.name if judge else None, "clips": clips, **summary(clips),
        "unfinished": [name for name, _ in takes if name not in clips],
    }  # fmt: skip


def _clip(
    name: str,
    take: Take,
    maps: Mapping[str, Stream | Maps | None],
    coding: Coding,
    shaping: Shaping,
    crfs: Sequence[float],
    count: Callable[[str], None],
) -> dict[str, Any]:
    points: dict[str, list[dict[str, float]]] = {}
    for title, own in maps.items():
        offsets = _offsets(take, own, shaping)
        points[title] = []
        for crf in crfs:
            points[title].append(_point(take, offsets, replace(coding, crf=crf), shaping.block))
            count(f"{name}, {title}")
    weights = {"by": take.by, "judge": take.judge, "frames": len(take.weights)}
    return {"frames": len(take.frames), "weights": weights, "points": points, **_worth(points)}


def check_judge(judge: Path, models: Mapping[str, Path]) -> None:
    """Raises UsageError where the judge is no file, one of the models, or one of them in another form: with the same weights."""
    if not judge.is_file():
        reason = "the centred Gaussian is among the compared" if str(judge) in ("centre", "none") else "no such model"
        raise UsageError(f"--judge {judge}: {reason}; give the ONNX file of a model that is not compared")
    own = _weights_in(judge)
    for name, path in models.items():
        if not path.is_file():
            continue  # what opens it will say so
        same = hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(judge.read_bytes()).digest()
        other = _weights_in(path)
        shared = sum(count for key, count in own.items() if key in other)
        if same or 2 * shared > min(sum(own.values()), sum(other.values())) > 0:
            raise UsageError(
                f"--judge {judge}: {'the same file as' if same else 'the same weights as in'} {name}, which is compared, and nothing "
                "judges itself; give a model that was trained apart"
            )


def _weights_in(path: Path) -> dict[bytes, int]:
    """Digests of a model's larger tensors, and how many numbers each has; empty where the file is no model."""
    try:
        tensors = onnx.load(str(path)).graph.initializer
    except Exception:  # protobuf has many; what opens the model says what is wrong with it
        return {}
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    return {
        hashlib.sha256(np.sort(a, None).tobytes()).digest(): a.size
        for a in arrays
        if a.size >= 64 and a.dtype.kind == "f"
    }


def _offsets(take: Take, maps: Stream | Maps | None, shaping: Shaping) -> list[np.ndarray | None]:
    if isinstance(maps, Stream):
        maps.reset()
    planner = Planner(take.picture, maps.map if isinstance(maps, Stream) else maps, shaping)
    return [planner.plan(frame) for frame in take.frames]


def _point(take: Take, offsets: list[np.ndarray | None], coding: Coding, block: int) -> dict[str, float]:
    """Rate and qualities of one encode; the clip is decoded again."""
    packets = encode_frames(take.frames, offsets, take.picture, coding, block)
    decoder = av.codec.Codec(DECODERS[coding.codec], "r").create("video")
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    if len(decoded) != len(take.frames):
        raise UsageError(f"{CODECS[coding.codec]}: {len(take.frames)} frames went in, {len(decoded)} came out")
    plain, weighted = [], []
    for index, frame in enumerate(decoded):
        error = (take.luma[index].astype(np.float32) - _luma(frame)) ** 2
        plain.append(float(error.mean()))
        if index in take.weights:
            weighted.append(float((error * _weight(take, index)).sum()))
    seconds = len(take.frames) / float(take.picture.rate)
    point = {"crf": float(coding.crf or 0), "kbps": sum(p.size for p in packets) * 8 / 1000 / seconds}
    point["plain"] = _psnr(plain)
    return {**point, take.by: _psnr(weighted)} if take.by else point


def _weight(take: Take, index: int) -> np.ndarray:
    """Of every pixel of a frame, float32 `[H,W]`, their sum 1."""
    height, width = take.picture.size
    weights = take.weights[index]
    if weights.shape != (height, width):
        weights = cv2.resize(weights, (width, height), interpolation=cv2.INTER_LINEAR)
    return weights / weights.sum()


def _psnr(errors: list[float]) -> float:
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6)))


def _worth(points: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    rates: dict[str, dict[str, float]] = {}
    left_out: dict[str, dict[str, str]] = {}
    sizes: dict[str, float] = {}
    for title, own in points.items():
        if title == NONE:
            continue
        rates[title] = {}
        for kind in KINDS:
            if kind not in own[0]:
                continue
            plain, mapped = ([(p["kbps"], p[kind]) for p in curve] for curve in (points[NONE], own))
            try:
                rates[title][kind] = bd_rate(plain, mapped)
            except ValueError as error:
                left_out.setdefault(title, {})[kind] = str(error)
        ratios = [p["kbps"] / q["kbps"] for p, q in zip(own, points[NONE], strict=True)]
        sizes[title] = float(np.expm1(np.mean(np.log(ratios))) * 100)
    return {"bd_rate": rates, "size": sizes, "left_out": left_out}


def summary(clips: Mapping[str, Any]) -> dict[str, Any]:
    """Over clips: means, and how maps differ on the same clips, each with its 95 % interval (none for a single clip).

    Returns {"mean": {map: {measure: {mean, interval, clips, better}}}, "differences": [{map, less, measure: {mean, interval,
    clips, better}}]}. Measures are those of KINDS, BD-rates in per cent, and `size`. A difference is the map's less the other's,
    in points of per cent; better: on how many clips it is below zero. Every model is set against the Gaussian and those named
    after it.
    """
    titles = list(next(iter(clips.values()))["size"])
    measures = {
        title: [{**facts["bd_rate"][title], "size": facts["size"][title]} for facts in clips.values()]
        for title in titles
    }
    found = {title: _measured(own) for title, own in measures.items()}
    pairs = [*((title, titles[0]) for title in titles[1:]), *combinations(titles[1:], 2)]
    differences = [
        {"map": one, "less": other, **_measured([
            {key: a[key] - b[key] for key in a.keys() & b.keys()} for a, b in zip(measures[one], measures[other], strict=True)
        ])}
        for one, other in pairs
    ]  # fmt: skip
    return {"mean": found, "differences": differences}


def _measured(clips: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    result = {}
    for measure in (*KINDS, "size"):
        if values := [own[measure] for own in clips if measure in own]:
            mean, interval = mean_and_interval(values)
            better = sum(value < 0 for value in values)
            result[measure] = {"mean": mean, "interval": interval, "clips": len(values), "better": better}
    return result


# --- what the command line needs -------------------------------------------------------------------------------------


def sources(
    inputs: Sequence[Path], corpus: str | None, root: Path | None, clips: str | None, frames: int, narrator: Narrator
) -> list[tuple[str, Any]]:
    """Videos, and clips of a corpus (`clips`: ids, by default all that are annotated), each with a function that reads it."""
    found: list[tuple[str, Any]] = [
        (name, lambda path=path: take_video(path, frames)) for name, path in named(inputs).items()
    ]
    for path in inputs:
        if not path.is_file():
            raise UsageError(f"{path}: no such video" + ("; it is a folder" if path.is_dir() else ""))
    if corpus or root or clips:
        if not (corpus and root):
            raise UsageError("clips with gaze are named by --corpus and --root, and --clips ID,ID")
        opened = open_corpus(
            corpus, [str(root)], track=narrator.track, options=keys.Corpus(name=corpus, root=(str(root),))
        )
        wanted = opened.select(clips.split(",")) if clips else [c for c in opened.clips if c.annotated_frames]
        found += [(clip.id, lambda clip=clip: take_clip(clip, frames)) for clip in wanted if not clip.static]
    if not found:
        raise UsageError("which clips? name videos, or a --corpus with its --root")
    return found


def named(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their name; by the whole path where two have the same."""
    names = [path.name for path in files]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, files, strict=True)}


FEW = 8  # clips, below which a bootstrap says little of clips that were not drawn
LABELS = {"plain": "PSNR", "gaze": "by gaze", "judge": "by judge", "size": "size"}


def _measures(result: dict[str, Any]) -> dict[str, str]:
    """What a result has at all, and the heads of its columns."""
    return {key: label for key, label in LABELS.items() if any(key in own for own in result["mean"].values())}


def clip_cells(result: dict[str, Any]) -> Cells:
    """A line for each clip and map: BD-rates, and the change of size at equal CRF, in per cent; for `tables.fit_to_width`."""
    return [
        (
            f"{clip}, {title}",
            {
                label: (_signed({**rates, "size": facts["size"][title]}.get(key)), "")
                for key, label in _measures(result).items()
            },
        )
        for clip, facts in result["clips"].items()
        for title, rates in facts["bd_rate"].items()
    ]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def mean_cells(result: dict[str, Any]) -> Cells:
    """Means over clips with their intervals."""
    return [(title, _cells(result, own)) for title, own in result["mean"].items()]


def difference_cells(result: dict[str, Any]) -> Cells:
    """How maps differ, with intervals."""
    return [(f"{own['map']} less {own['less']}", _cells(result, own)) for own in result["differences"]]


def _cells(result: dict[str, Any], own: dict[str, Any]) -> dict[str, tuple[str, str]]:
    cells = {}
    for key, label in _measures(result).items():
        found = own.get(key, {"mean": None, "interval": None})
        interval = f"[{', '.join(map(_signed, found['interval']))}]" if found["interval"] else ""
        cells[label] = (_signed(found["mean"]), interval)
    return cells


def legend(result: dict[str, Any]) -> list[str]:
    """What the columns are, and whose eyes weighed which clips."""
    said = ["BD-rate in per cent, negative saves rate. PSNR: over all pixels alike, of which a map can only lose"]
    for by, whose in (
        ("gaze", "where observers looked"),
        ("judge", f"where {result['judge']} would look, a model and no observer"),
    ):
        if of := [name for name, facts in result["clips"].items() if facts["weights"]["by"] == by]:
            said.append(
                f"{LABELS[by]}: weighted by {whose}; {len(of)} of {len(result['clips'])} clips: {', '.join(of)}"
            )
    said.append("size: its change at equal CRF")
    return said


COLUMNS = ("clip", "weights", "map", "less", "measure", "value", "low", "high", "clips", "better")


def write_csv(result: dict[str, Any], path: Path) -> None:
    """One value per line, in per cent: of clips, then over clips (`clip` is empty) with the ends of their intervals."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for clip, facts in result["clips"].items():
        weights = facts["weights"]["judge"] or facts["weights"]["by"] or ""
        for title, rates in facts["bd_rate"].items():
            for measure, value in {**rates, "size": facts["size"][title]}.items():
                lines.writerow((clip, weights, title, "", measure, value, "", "", "", ""))
    means = [{"map": title, "less": "", **own} for title, own in result["mean"].items()]
    for own in (*means, *result["differences"]):
        for measure in LABELS:
            if found := own.get(measure):
                ends = found["interval"] or ("", "")
                lines.writerow(
                    ("", "", own["map"], own["less"], measure, found["mean"], *ends, found["clips"], found["better"])
                )
    write_bytes(path, text.getvalue().encode())


ACROSS = 6  # clips beside each other in a drawing


def plot(result: dict[str, Any], path: Path) -> None:
    """Curves of all clips, quality over rate, as a PNG: below whole frames, weighted ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    clips = result["clips"]
    across, two = min(ACROSS, len(clips)), 1 + any(facts["weights"]["by"] for facts in clips.values())
    down = -(-len(clips) // across) * two
    figure, axes = plt.subplots(
        down, across, squeeze=False, figsize=(max(3.2 * across + 0.4, 5), 2.8 * down + 0.6), layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for index, (name, facts) in enumerate(clips.items()):
        for below, kind in enumerate(k for k in KINDS if k in facts["points"][NONE][0]):
            axis = axes[index // across * two + below][index % across]
            axis.set_visible(True)
            for title, points in facts["points"].items():
                axis.plot([p["kbps"] for p in points], [p[kind] for p in points], marker="o", markersize=3, label=title)
            axis.set_xscale("log")
            rates = [p["kbps"] for p in facts["points"][NONE]]
            axis.set_xticks(rates, [f"{rate:.0f}" for rate in rates])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.set_title(f"{name}: {KINDS[kind]}", fontsize=9)
            axis.set_xlabel("kbit/s", fontsize=8)
            axis.set_ylabel("dB", fontsize=8)
            axis.tick_params(labelsize=7)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)

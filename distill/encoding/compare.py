"""BD-rate of saliency-guided encoding: rate at equal quality with a map and without, over whole frames and where people look.

Every clip is encoded without a map, with a centred Gaussian, and with each model's map, at several rates. Quality is luma PSNR
of the mean squared error, twice: over all pixels equally, and weighted by where people look (`excerpts`). By the first measure a
map can only lose: it takes bits from most of the frame. The second shows whether it gave them to the right blocks.

Intervals are bootstrap intervals over clips; two maps are compared by their differences on the same clips
(`distill.evaluation.statistics`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
from scipy.interpolate import PchipInterpolator

from distill.encoding.encoders import Coding, check_coding, check_map_counts, encode_frames
from distill.encoding.excerpts import Excerpt, Source, check_proxy, with_proxy_weights
from distill.encoding.planner import Maps, Planner, centre_map, open_maps
from distill.encoding.qp_offsets import Shaping
from distill.evaluation.statistics import mean_and_interval
from distill.export.streaming import Stream
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Bar, Narrator

NO_MAP, CENTRE = "no map", "centred Gaussian"
DECODERS = {"x264": "h264", "x265": "hevc"}
# The measures of quality by their keys in results; `judge`: weighted by a proxy model's map.
QUALITIES = {"plain": "PSNR", "gaze": "gaze-weighted PSNR", "judge": "proxy-weighted PSNR"}


def compare(
    sources: Sequence[Source], models: Mapping[str, Path], coding: Coding, shaping: Shaping, crfs: Sequence[float],
    narrator: Narrator, proxy: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Encodes every clip with every map at every rate.

    proxy: a model whose maps are the weights where a clip has no gaze.
    Returns, ready for JSON: codec, preset, crfs, strength, neutral, judge (the proxy's name); clips: {name: {frames, weights: {by,
    judge, frames}, points: {map: [{crf, kbps, plain, gaze or judge}]}, bd_rate: {map: {plain, gaze or judge}}, size: {map: change
    at equal CRF in per cent}, left_out: {map: {quality: why there is no BD-rate}}}}; the results of `summary`; and unfinished, the
    names of clips not done because of an interrupt.

    Raises UsageError for a model or an option that cannot be used, a proxy that is compared too, or rates that give no BD-rate for
    any clip; Interrupted where no clip is done.
    """
    for crf in crfs:
        check_coding(replace(coding, crf=crf))
    if len(set(crfs)) < max(2, len(crfs)):
        raise UsageError(f"--crf {','.join(f'{crf:g}' for crf in crfs)}: give two or more different rates")
    opened = {name: open_maps(path, None) for name, path in models.items()}
    maps: dict[str, Stream | Maps | None] = {NO_MAP: None, CENTRE: centre_map, **opened}
    if proxy:
        check_proxy(proxy, models)
    proxy_maps = open_maps(proxy, None) if proxy else None
    clips: dict[str, Any] = {}
    with narrator.bar("bd", len(sources) * len(maps) * len(crfs), unit="encodes") as bar:
        try:
            for name, read in sources:
                excerpt = read()
                if proxy and isinstance(proxy_maps, Stream):
                    excerpt = with_proxy_weights(excerpt, proxy_maps, proxy.name)
                if not clips:
                    check_map_counts(excerpt.picture, coding)
                clips[name] = _measure_clip(name, excerpt, maps, coding, shaping, crfs, narrator, bar)
        except Interrupted:
            if not clips:
                raise
    _report_gaps(clips, narrator)
    return {
        "codec": coding.codec, "preset": coding.preset, "crfs": list(crfs), "strength": shaping.strength, "neutral": shaping.neutral,
        "judge": proxy.name if proxy else None, "clips": clips, **summary(clips),
        "unfinished": [name for name, _ in sources if name not in clips],
    }  # fmt: skip


def _report_gaps(clips: Mapping[str, Any], narrator: Narrator) -> None:
    """Reports missing BD-rates and clips without weights. Raises UsageError where there is no BD-rate at all."""
    gaps = [(name, title, of_map) for name, facts in clips.items() for title, of_map in facts["left_out"].items()]
    reasons = [f"clip {n}, {t}: no BD-rate of {QUALITIES[q]}: {why}" for n, t, of_map in gaps for q, why in of_map.items()]
    if not any(rates for facts in clips.values() for rates in facts["bd_rate"].values()):
        raise UsageError(f"{reasons[0]}; other --crf may help")
    for reason in reasons:
        narrator.say(reason)
    if without := [name for name, facts in clips.items() if not facts["weights"]["by"]]:
        way_out = "--judge MODEL.onnx weights pixels by another model's map"
        narrator.say(f"no gaze: {', '.join(without)}; only whole-frame PSNR, by which a map can only lose. {way_out}")


def _measure_clip(
    name: str, excerpt: Excerpt, maps: Mapping[str, Stream | Maps | None], coding: Coding, shaping: Shaping,
    crfs: Sequence[float], narrator: Narrator, bar: Bar,
) -> dict[str, Any]:  # fmt: skip
    points: dict[str, list[dict[str, float]]] = {}
    for title, of_map in maps.items():
        offsets = plan_offsets(excerpt, of_map, shaping)
        points[title] = []
        for crf in crfs:
            points[title].append(measure_point(excerpt, offsets, replace(coding, crf=crf), shaping.block))
            bar.advance(note=f"{name}, {title}")
            if narrator.stop() and bar.done < bar.total:
                raise Interrupted(f"bd, at {name}, {title}; nothing is saved")
    weights = {"by": excerpt.weights_by, "judge": excerpt.proxy, "frames": len(excerpt.weights)}
    return {"frames": len(excerpt.frames), "weights": weights, "points": points, **gains(points)}


def plan_offsets(excerpt: Excerpt, maps: Stream | Maps | None, shaping: Shaping) -> list[np.ndarray | None]:
    """The QP offsets of every frame; None where there is no map."""
    planner = Planner(excerpt.picture, maps, shaping)
    return [planner.plan(frame) for frame in excerpt.frames]


def measure_point(excerpt: Excerpt, offsets: list[np.ndarray | None], coding: Coding, block: int) -> dict[str, float]:
    """Encodes and decodes the excerpt; returns crf, kbps and the qualities in dB."""
    packets = encode_frames(excerpt.frames, offsets, excerpt.picture, coding, block)
    decoder = av.codec.Codec(DECODERS[coding.codec], "r").create("video")
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    if len(decoded) != len(excerpt.frames):
        raise UsageError(f"{coding.library}: {len(excerpt.frames)} frames went in, {len(decoded)} came out")
    plain, weighted = [], []
    for index, frame in enumerate(decoded):
        error = (excerpt.luma[index].astype(np.float32) - frame.to_ndarray()[: frame.height]) ** 2
        plain.append(float(error.mean()))
        if index in excerpt.weights:
            weighted.append(float((error * excerpt.weight(index)).sum()))
    seconds = len(excerpt.frames) / float(excerpt.picture.rate)
    kbps = sum(packet.size for packet in packets) * 8 / 1000 / seconds
    qualities = {"plain": _psnr(plain)} | ({excerpt.weights_by: _psnr(weighted)} if excerpt.weights_by else {})
    return {"crf": float(coding.crf or 0), "kbps": kbps, **qualities}


def _psnr(errors: list[float]) -> float:
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6)))


def gains(points: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """BD-rates and the change of size at equal CRF, in per cent, of every map against none; and why a BD-rate is left out."""
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


def summary(clips: Mapping[str, Any]) -> dict[str, Any]:
    """Over clips: means, and how maps differ on the same clips, each with its 95 % interval (none for a single clip).

    Returns {"mean": {map: {measure: {mean, interval, clips, better}}}, "differences": [{map, less, measure: {mean, interval,
    clips, better}}]}. Measures are the BD-rates of QUALITIES and `size`, in per cent. A difference is the BD-rate of `map` less
    that of `less`, in percentage points; better: the number of clips on which it is below zero. Every model is compared with
    the Gaussian and with the models named after it.
    """
    titles = list(next(iter(clips.values()))["size"])
    measures = {t: [{**facts["bd_rate"][t], "size": facts["size"][t]} for facts in clips.values()] for t in titles}
    differences = []
    for one, other in [*((title, titles[0]) for title in titles[1:]), *combinations(titles[1:], 2)]:
        pairs = zip(measures[one], measures[other], strict=True)
        paired = [{k: a[k] - b[k] for k in a.keys() & b.keys()} for a, b in pairs]
        differences.append({"map": one, "less": other, **_over_clips(paired)})
    return {"mean": {title: _over_clips(of_map) for title, of_map in measures.items()}, "differences": differences}


def _over_clips(clips: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    result = {}
    for measure in (*QUALITIES, "size"):
        if values := [of_clip[measure] for of_clip in clips if measure in of_clip]:
            mean, interval = mean_and_interval(values)
            result[measure] = {"mean": mean, "interval": interval, "clips": len(values), "better": sum(v < 0 for v in values)}
    return result

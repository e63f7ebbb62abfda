"""BD-rate of saliency-guided encoding: rate at equal quality with a map and without, over whole frames and where people look.

Every clip is encoded without a map, with a centred Gaussian, and with each model's map, at several rates. Quality is luma PSNR
of the mean squared error, twice: over all pixels equally, and weighted by where people look (`excerpts`). By the first measure a
map can only lose: it takes bits from most of the frame. The second shows whether it gave them to the right blocks.

Intervals are bootstrap intervals over clips; two maps are compared by their differences on the same clips
(`distill.evaluation.statistics`).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from scipy.interpolate import PchipInterpolator

from distill.encoding.encoders import Coding, check_coding
from distill.encoding.excerpts import Excerpt, Reader, Source, Span, check_proxy, with_proxy_weights
from distill.encoding.maps import Maps, centre_map, open_maps
from distill.encoding.planner import Planner
from distill.encoding.qp_offsets import Shaping
from distill.encoding.regions import check_map_counts, encode_frames
from distill.evaluation.statistics import mean_and_interval
from distill.export.streaming import Stream
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator

NO_MAP, CENTRE = "no map", "centred Gaussian"
DECODERS = {"x264": "h264", "x265": "hevc"}
# The measures of quality by their keys in results; `judge`: weighted by a proxy model's map.
QUALITIES = {"plain": "PSNR", "gaze": "gaze-weighted PSNR", "judge": "proxy-weighted PSNR"}
POLL = 0.2  # seconds between looks at whether the user wants to stop


@dataclass(frozen=True)
class Work:
    """What is done with every clip. models: by name; proxy: a model whose maps are the weights where a clip has no gaze."""

    models: Mapping[str, Path]
    coding: Coding
    shaping: Shaping
    crfs: Sequence[float]
    proxy: Path | None = None

    @property
    def encodes(self) -> int:
        """How many encodes a clip takes."""
        return (2 + len(self.models)) * len(self.crfs)


def compare(sources: Sequence[Source], span: Span, work: Work, narrator: Narrator, jobs: int = 1) -> dict[str, Any]:
    """Encodes every clip with every map at every rate.

    span: what the readers of `sources` read. jobs: clips that are encoded at the same time, each in a process of its own.
    Returns, ready for JSON: codec, preset, crfs, strength, neutral, judge (the proxy's name), span; clips: {name: {frames, start,
    weights: {by, judge, frames}, points: {map: [{crf, kbps, plain, gaze or judge}]}, bd_rate: {map: {plain, gaze or judge}}, size:
    {map: change at equal CRF in per cent}, left_out: {map: {quality: why there is no BD-rate}}}}; the results of `summary`; and
    unfinished, the names of clips not done because of an interrupt.

    Raises UsageError for a model or an option that cannot be used, a proxy that is compared too, or rates that give no BD-rate for
    any clip; Interrupted where no clip is done.
    """
    coding, shaping, crfs = work.coding, work.shaping, work.crfs
    for crf in crfs:
        check_coding(replace(coding, crf=crf))
    if len(set(crfs)) < max(2, len(crfs)):
        raise UsageError(f"--crf {','.join(f'{crf:g}' for crf in crfs)}: give two or more different rates")
    for path in work.models.values():
        open_maps(path, None)
    if work.proxy:
        check_proxy(work.proxy, work.models)
        open_maps(work.proxy, None)
    done: dict[str, Any] = {}
    measured = (
        _in_processes(sources, work, min(jobs, len(sources)), narrator) if jobs > 1 else _one_by_one(sources, work, narrator)
    )
    try:
        for name, facts in measured:
            done[name] = facts
    except Interrupted:
        if not done:
            raise
    clips = {name: done[name] for name, _ in sources if name in done}
    _report_gaps(clips, span, narrator)
    return {
        "codec": coding.codec, "preset": coding.preset, "crfs": list(crfs), "strength": shaping.strength, "neutral": shaping.neutral,
        "judge": work.proxy.name if work.proxy else None, "span": str(span), "clips": clips, **summary(clips),
        "unfinished": [name for name, _ in sources if name not in clips],
    }  # fmt: skip


def _one_by_one(sources: Sequence[Source], work: Work, narrator: Narrator) -> Iterator[tuple[str, dict[str, Any]]]:
    with narrator.bar("bd", len(sources) * work.encodes, unit="encodes") as bar:

        def step(note: str) -> None:
            bar.advance(note=note)
            if narrator.stop() and bar.done < bar.total:
                raise Interrupted(f"bd, at {note}; nothing is saved")

        for name, read in sources:
            yield name, measure_clip(name, read, work, step)


def _in_processes(
    sources: Sequence[Source], work: Work, jobs: int, narrator: Narrator
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """The results of clips as they are done."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with (
        narrator.bar("bd", len(sources) * work.encodes, unit="encodes") as bar,
        ProcessPoolExecutor(jobs, context, _start_worker, (stop,)) as pool,
    ):
        try:
            pending = {pool.submit(_in_worker, name, read, work) for name, read in sources}
            while pending:
                finished, pending = wait(pending, POLL, FIRST_COMPLETED)
                for name, facts in [future.result() for future in finished]:
                    bar.advance(work.encodes, name)
                    yield name, facts
                if pending and narrator.stop():
                    raise Interrupted("bd; nothing is saved")
        finally:  # the workers end with the encode that they are at
            stop.set()
            pool.shutdown(cancel_futures=True)


_stop: Event


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process when its parent has ended, which may have been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(name: str, read: Reader, work: Work) -> tuple[str, dict[str, Any]]:
    def step(note: str) -> None:
        if _stop.is_set():
            raise Interrupted(f"bd, at {note}")

    return name, measure_clip(name, read, work, step)


def _report_gaps(clips: Mapping[str, Any], span: Span, narrator: Narrator) -> None:
    """Reports missing BD-rates, clips that are too short and clips without weights. Raises UsageError where there is no BD-rate at all."""
    gaps = [(name, title, of_map) for name, facts in clips.items() for title, of_map in facts["left_out"].items()]
    reasons = [f"clip {n}, {t}: no BD-rate of {QUALITIES[q]}: {why}" for n, t, of_map in gaps for q, why in of_map.items()]
    if not any(rates for facts in clips.values() for rates in facts["bd_rate"].values()):
        raise UsageError(f"{reasons[0]}; other --crf may help")
    for reason in reasons:
        narrator.say(reason)
    if short := [f"{name} from {facts['start']:g} s" for name, facts in clips.items() if facts["start"] < (span.start or 0)]:
        narrator.say(f"these clips end before {span.start:g} s, and are encoded from their middle on: {', '.join(short)}")
    if without := [name for name, facts in clips.items() if not facts["weights"]["by"]]:
        way_out = "--judge MODEL.onnx weights pixels by another model's map"
        narrator.say(f"no gaze: {', '.join(without)}; only whole-frame PSNR, by which a map can only lose. {way_out}")


def measure_clip(name: str, read: Reader, work: Work, step: Callable[[str], None]) -> dict[str, Any]:
    """All encodes of a clip: its part of the result of `compare`. step: called after each encode with what it was; may raise."""
    maps = {NO_MAP: None, CENTRE: centre_map, **{title: open_maps(path, None) for title, path in work.models.items()}}
    points: dict[str, list[dict[str, float]]] = {title: [] for title in maps}
    with TemporaryDirectory(prefix="distill-bd-", ignore_cleanup_errors=True) as folder:
        excerpt = read(Path(folder))
        if work.proxy and isinstance(proxy := open_maps(work.proxy, None), Stream):
            excerpt = with_proxy_weights(excerpt, proxy, work.proxy.name, Path(folder))
        check_map_counts(excerpt.picture, work.coding)
        for title, of_map in maps.items():
            offsets = plan_offsets(excerpt, of_map, work.shaping)
            for crf in work.crfs:
                points[title].append(measure_point(excerpt, offsets, replace(work.coding, crf=crf), work.shaping.block))
                step(f"{name}, {title}")
        weights = {"by": excerpt.weights_by, "judge": excerpt.proxy, "frames": len(excerpt.weights)}
        return {"frames": len(excerpt), "start": round(excerpt.start, 3), "weights": weights, "points": points, **gains(points)}


def plan_offsets(excerpt: Excerpt, maps: Stream | Maps | None, shaping: Shaping) -> list[np.ndarray | None]:
    """The QP offsets of every frame; None where there is no map. A model sees the excerpt alone, as if it were the whole video."""
    planner = Planner(excerpt.picture, maps, shaping)
    return [planner.plan(frame) for frame in excerpt.frames()]


def measure_point(excerpt: Excerpt, offsets: list[np.ndarray | None], coding: Coding, block: int) -> dict[str, float]:
    """Encodes and decodes the excerpt; returns crf, kbps and the qualities in dB."""
    packets = encode_frames(excerpt.frames, offsets, excerpt.picture, coding, block)
    decoder = av.codec.Codec(DECODERS[coding.codec], "r").create("video")
    plain, weighted = [], []
    decoded = (frame for packet in [*packets, None] for frame in decoder.decode(packet))
    for index, frame in enumerate(decoded):
        if index < len(excerpt):
            error = (excerpt.luma(index).astype(np.float32) - frame.to_ndarray()[: frame.height]) ** 2
            plain.append(float(error.mean()))
            if index in excerpt.weights:
                weighted.append(float((error * excerpt.weight(index)).sum()))
    if index + 1 != len(excerpt):
        raise UsageError(f"{coding.library}: {len(excerpt)} frames went in, {index + 1} came out")
    kbps = sum(packet.size for packet in packets) * 8 / 1000 / (len(excerpt) / float(excerpt.picture.rate))
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

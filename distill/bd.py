"""What a saliency map buys an encoder: rate for quality with the map and without, over whole frames and where people look.

Every clip is encoded without a map, with a centred Gaussian's, and with each model's, at several rates. Quality is luma
PSNR of the mean squared error, twice: over all pixels alike, and weighted by where observers looked. Of the first, a map
can only lose: it takes bits from most of the frame. The second says whether it gave them to the right blocks.

BD-rate (Bjontegaard, VCEG-M33, 2001) is how much more rate the same quality takes, on average over the qualities that both
reach; negative is better. Curves are monotone cubics through all points (Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5,
1984), as in the common test conditions of HEVC, not one cubic fitted to four.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from distill import config
from distill.corpora import Clip, density_map, fixation_map, open_corpus
from distill.corpora.video import probe, read_frames
from distill.encode import (
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
from distill.errors import Interrupted, UsageError
from distill.export.streaming import Stream
from distill.progress import Narrator
from distill.run_dir import atomic

NONE, CENTRE = "no map", "centred Gaussian"
DECODERS = {"x264": "h264", "x265": "hevc"}
KINDS = {"plain": "PSNR", "gaze": "gaze-weighted PSNR"}


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

    name: str
    picture: Picture
    frames: list[av.VideoFrame]  # yuv420p
    luma: np.ndarray  # uint8 [T,H,W]
    gaze: dict[int, np.ndarray]  # by frame: float32 [H,W], its sum 1; empty where nobody was asked


def take_video(path: Path, frames: int) -> Take:
    """Of a video file; it has no gaze."""
    _, _, _, fps = probe(path)
    return _take(path.name, islice(read_frames(path), frames), fps, {})


def take_clip(clip: Clip, frames: int) -> Take:
    """Of a corpus's clip, with the density of its fixations. Frames that nobody fixated have no weight."""
    gaze = {}
    for index in range(min(frames, clip.frames, clip.annotated_frames)):
        fixations = fixation_map(clip, index)
        if fixations is not None and fixations.any():
            density = density_map(clip, index, fixations)
            gaze[index] = density / density.sum()
    return _take(clip.id, islice(clip.read(), frames), clip.fps, gaze)


def _take(name: str, pixels: Iterator[np.ndarray], fps: float, gaze: dict[int, np.ndarray]) -> Take:
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
    return Take(name, picture, frames, luma, {i: weights[:height, :width] for i, weights in gaze.items()})


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
) -> dict[str, Any]:
    """Encodes every take (its name, and a function that reads it) with every map at every rate.

    Returns, ready for JSON: codec, preset, crfs, strength; clips: {name: {frames, gaze_frames, points: {map: [{crf, kbps, plain,
    gaze}]}, bd_rate: {map: {plain, gaze}}, size: {map: per cent of change at equal crf}}}; mean: the same over clips, and `better`:
    on how many clips the gaze-weighted BD-rate is below zero.

    Raises UsageError for a model or an option that cannot be used, or rates too near or too few.
    """
    check_coding(coding)
    maps: dict[str, Stream | Maps | None] = {NONE: None, CENTRE: centre}
    maps.update({name: open_maps(path, None) for name, path in models.items()})
    clips: dict[str, Any] = {}
    with narrator.bar("bd", len(takes) * len(maps) * len(crfs), unit="encodes") as bar:
        for name, read in takes:
            take: Take = read()
            if not clips:
                check_map_counts(take.picture, coding)
            points: dict[str, list[dict[str, float]]] = {}
            for title, own in maps.items():
                offsets = _offsets(take, own, shaping)
                points[title] = []
                for crf in crfs:
                    points[title].append(_point(take, offsets, replace(coding, crf=crf), shaping.block))
                    bar.advance(note=f"{name}, {title}")
                    if narrator.stop():
                        raise Interrupted(f"bd, at clip {name}; nothing is kept")
            clips[name] = {
                "frames": len(take.frames),
                "gaze_frames": len(take.gaze),
                "points": points,
                **_worth(name, points),
            }
    return {
        "codec": coding.codec, "preset": coding.preset, "crfs": list(crfs), "strength": shaping.strength,
        "clips": clips, "mean": _mean(list(clips.values())),
    }  # fmt: skip


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
    plain, gaze = [], []
    for index, frame in enumerate(decoded):
        error = (take.luma[index].astype(np.float32) - _luma(frame)) ** 2
        plain.append(float(error.mean()))
        if index in take.gaze:
            gaze.append(float((error * take.gaze[index]).sum()))
    seconds = len(take.frames) / float(take.picture.rate)
    point = {"crf": float(coding.crf or 0), "kbps": sum(p.size for p in packets) * 8 / 1000 / seconds}
    point["plain"] = _psnr(plain)
    return {**point, "gaze": _psnr(gaze)} if gaze else point


def _psnr(errors: list[float]) -> float:
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6)))


def _worth(clip: str, points: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    rates: dict[str, dict[str, float]] = {}
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
                raise UsageError(f"clip {clip}, {title}: {error}; other --crf may do") from None
        ratios = [p["kbps"] / q["kbps"] for p, q in zip(own, points[NONE], strict=True)]
        sizes[title] = float(np.expm1(np.mean(np.log(ratios))) * 100)
    return {"bd_rate": rates, "size": sizes}


def _mean(clips: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for title in clips[0]["bd_rate"]:
        found[title] = {"size": float(np.mean([c["size"][title] for c in clips]))}
        for kind in KINDS:
            values = [c["bd_rate"][title][kind] for c in clips if kind in c["bd_rate"][title]]
            if values:
                found[title][kind] = float(np.mean(values))
                found[title][f"{kind}_clips"] = len(values)
                found[title][f"{kind}_better"] = sum(v < 0 for v in values)
    return found


# --- what the command line needs -------------------------------------------------------------------------------------


def sources(
    inputs: Sequence[Path], corpus: str | None, root: Path | None, clips: str | None, frames: int, narrator: Narrator
) -> list[tuple[str, Any]]:
    """Videos, and clips of a corpus (`clips`: ids, by default all that are annotated), each with a function that reads it."""
    found: list[tuple[str, Any]] = [(path.name, lambda path=path: take_video(path, frames)) for path in inputs]
    for path in inputs:
        if not path.is_file():
            raise UsageError(f"{path}: no such video")
    if corpus or root or clips:
        if not (corpus and root):
            raise UsageError("clips with gaze are named by --corpus and --root, and --clips ID,ID")
        opened = open_corpus(
            corpus, [str(root)], track=narrator.track, options=config.Corpus(name=corpus, root=(str(root),))
        )
        wanted = opened.select(clips.split(",")) if clips else [c for c in opened.clips if c.annotated_frames]
        found += [(clip.id, lambda clip=clip: take_clip(clip, frames)) for clip in wanted if not clip.static]
    if not found:
        raise UsageError("which clips? name videos, or a --corpus with its --root")
    return found


def named(models: Sequence[Path]) -> dict[str, Path]:
    """Models by the name of their file; by the whole path where two have the same."""
    names = [path.name for path in models]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, models, strict=True)}


def rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """A line for each clip and map, and for the mean: BD-rates, and the change of size at equal CRF."""
    table = []
    for clip, facts in [*result["clips"].items(), ("mean", None)]:
        for title in result["mean"]:
            own = {**facts["bd_rate"][title], "size": facts["size"][title]} if facts else result["mean"][title]
            row = {"clip": clip, "map": title}
            row.update({f"BD-rate {label}": f"{own[k]:+.1f} %" if k in own else "-" for k, label in KINDS.items()})
            table.append({**row, "size at equal CRF": f"{own['size']:+.1f} %"})
    return table


def plot(result: dict[str, Any], path: Path) -> None:
    """Curves of all clips, quality over rate, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    clips = result["clips"]
    kinds = [k for k in KINDS if any(k in facts["points"][NONE][0] for facts in clips.values())]
    figure, axes = plt.subplots(
        len(kinds), len(clips), squeeze=False, figsize=(3.2 * len(clips) + 1, 2.8 * len(kinds) + 0.6)
    )
    for column, (name, facts) in enumerate(clips.items()):
        for row, kind in enumerate(kinds):
            axis = axes[row][column]
            for title, points in facts["points"].items():
                if kind in points[0]:
                    axis.plot(
                        [p["kbps"] for p in points], [p[kind] for p in points], marker="o", markersize=3, label=title
                    )
            axis.set_xscale("log")
            axis.grid(alpha=0.3, which="both")
            axis.set_title(f"{name}: {KINDS[kind]}", fontsize=9)
            axis.set_xlabel("kbit/s", fontsize=8)
            axis.set_ylabel("dB", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)

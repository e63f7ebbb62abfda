"""BD-rate of saliency-guided encoding: rate at equal quality with a map and without, over whole frames and where people look.

Every clip is encoded without a map, with a centred Gaussian, and with each model's map, at several rates; and that with several
strengths of the maps, where these are asked for. PSNR is weighted in two ways: over all pixels equally, and by where people look
(`excerpts`). By the first a map usually loses: it takes bits from most of the frame. The second shows whether it gave them to the
right blocks.

Clips are independent of each other: they can be encoded at the same time, in processes, and those that are done can be kept.
"""

import multiprocessing
import os
import signal
import threading
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import av
import numpy as np

from distill.encoding.bd.excerpts import Excerpt, Source, Span, check_proxy, with_proxy_weights
from distill.encoding.bd.measures import QUALITIES, Measures, measure
from distill.encoding.bd.summary import CENTRE, NO_MAP, OBSERVERS, gains, summary
from distill.encoding.encoders import Coding, check_coding
from distill.encoding.maps import Maps, centre_map, luma_of, map_of, open_maps
from distill.encoding.planner import OffsetTrack, at_rate
from distill.encoding.qp_offsets import Shaping
from distill.encoding.regions import check_map_counts, encode_frames
from distill.export.streaming import Stream
from distill.run.errors import Interrupted, UsageError
from distill.run.files import fingerprint, sha256_of, temporary_folder, value_in, write_json
from distill.run.progress import Narrator

DECODERS = {"x264": "h264", "x265": "hevc"}
CONTROLS = ("crf", "2pass", "vbv")
POLL = 0.2  # seconds between looks at whether the user wants to stop
Step = Callable[[str, int], None]
"""Called after encodes with what they were and how many; may raise Interrupted."""


@dataclass(frozen=True)
class Work:
    """What is done with every clip.

    models: by name. codings: one for each point of a curve, see `make_codings`. shapings: how maps become offsets, each with the name
    of its mapping. proxy: a model whose maps are the weights where a clip has no gaze. observers: half of the observers are a map, too.
    """

    models: Mapping[str, Path]
    codings: Sequence[Coding]
    shapings: Sequence[tuple[str, Shaping]]
    measures: Measures = field(default_factory=Measures)
    proxy: Path | None = None
    observers: bool = False

    @property
    def maps(self) -> list[str]:
        """The names of the maps that are compared."""
        return [CENTRE, *self.models, *([OBSERVERS] if self.observers else [])]

    def title(self, name: str, index: int) -> str:
        """The name of a map with one of the shapings, where there are several."""
        mapping, shaping = self.shapings[index]
        return f"{name}, {mapping} {shaping.strength:g}" if len(self.shapings) > 1 else name

    def groups(self) -> list[list[str]]:
        """The titles of all maps with the first shaping, with the second, ..."""
        return [[self.title(name, index) for name in self.maps] for index in range(len(self.shapings))]

    @property
    def encodes(self) -> int:
        """How many encodes a clip takes."""
        return (1 + len(self.maps) * len(self.shapings)) * len(self.codings)

    @property
    def key(self) -> str:
        """Changes with everything that a clip's result depends on, besides the clip."""
        files = {name: sha256_of(path) for name, path in self.models.items()}
        proxy = sha256_of(self.proxy) if self.proxy else None
        settings = [[asdict(coding) for coding in self.codings], [asdict(shaping) for _, shaping in self.shapings]]
        return fingerprint(files, settings, self.measures.names, proxy, self.observers)


def make_codings(coding: Coding, control: str, rates: str) -> list[Coding]:
    """A coding for every rate: `crf`, constant quality; `2pass`, kbit/s in two passes; `vbv`, kbit/s in one pass and at most, for a
    decoder that holds one second. Raises UsageError for rates or a control that cannot be."""
    option = "--crf" if control == "crf" else "--bitrate"
    try:
        values = [float(text) for text in rates.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {rates}: must be numbers, as in {'22,27,32,37' if control == 'crf' else '300,600,1200'}"
        ) from None
    if len(set(values)) < max(2, len(values)):
        raise UsageError(f"{option} {rates}: give two or more different rates")
    if control not in CONTROLS:
        raise UsageError(f"--rate-control {control} is unknown; there are {', '.join(CONTROLS)}")
    if control != "crf" and min(values) < 1:
        raise UsageError(f"--bitrate {rates}: must be kbit/s, 1 or more")
    if control == "crf":
        codings = [replace(coding, crf=value) for value in values]
    elif control == "2pass":
        codings = [replace(coding, bitrate=round(value), two_pass=True) for value in values]
    else:
        codings = [replace(coding, bitrate=(rate := round(value)), maxrate=rate, bufsize=rate) for value in values]
    for of_point in codings:
        check_coding(of_point)
    return codings


def compare(
    sources: Sequence[Source], span: Span, work: Work, narrator: Narrator, jobs: int = 1, kept: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """Encodes every clip with every map at every rate.

    span: what the readers of `sources` read. jobs: clips that are encoded at the same time, each in a process of its own.
    kept: a file for the results of clips that are done; those that are in it already are not encoded again.
    Returns, ready for JSON: codec, preset, rate_control, judge (the proxy's name), span, measures; maps: {title: {map, mapping, and
    the mapping's `Shaping`}}, title being the map's name, with mapping and strength where there are several; clips: {name: {frames,
    start, weights: {by, judge, frames}, points: {title: [{crf or bitrate, kbps, and qualities}]}, bd_rate: {title: {quality}}, size:
    {title: change at equal CRF or bitrate in per cent}, left_out: {title: {quality: why there is no BD-rate}}}}; the results of
    `summary`; and unfinished, the names of clips not done because of an interrupt. Qualities: `measures.QUALITIES`.

    Raises UsageError for a model or an option that cannot be used, a proxy that is compared too, or rates that give no BD-rate for
    any clip; Interrupted where no clip is done.
    """
    for path in work.models.values():
        open_maps(path, None)
    if work.proxy:
        check_proxy(work.proxy, work.models)
        open_maps(work.proxy, None)
    of_work = f"{work.key} {span}"
    keys = {source.name: f"{of_work} {source.identity}" for source in sources}
    done = _load(kept, keys) if kept else {}
    if done:
        narrator.say(f"{kept}: the results of {len(done)} of {len(sources)} clips, from before an interrupt")
    left = [source for source in sources if source.name not in done]
    jobs = min(jobs, len(left))
    measured = _in_processes(left, work, jobs, narrator) if jobs > 1 else _one_by_one(left, work, narrator)
    try:
        for name, facts in measured:
            done[name] = facts
            if kept:
                write_json(kept, {name: {"key": keys[name], "facts": facts} for name, facts in done.items()})
    except Interrupted:
        if not done:
            raise
    clips = {source.name: done[source.name] for source in sources if source.name in done}
    _report_gaps(clips, span, work, narrator)
    maps = {
        work.title(name, index): {"map": name, "mapping": mapping, **asdict(shaping)}
        for index, (mapping, shaping) in enumerate(work.shapings)
        for name in work.maps
    }
    first = work.codings[0]
    control = "2pass" if first.two_pass else "vbv" if first.bitrate else "crf"
    return {
        "codec": first.codec, "preset": first.preset, "rate_control": control,
        "judge": work.proxy.name if work.proxy else None, "span": str(span),
        "measures": list(work.measures.names), "maps": maps, "clips": clips,
        **summary(clips, work.groups()),
        "unfinished": [source.name for source in sources if source.name not in clips],
    }  # fmt: skip


def _load(kept: Path, keys: Mapping[str, str]) -> dict[str, Any]:
    """The results in the file that are of these clips and this work."""

    def build(found: dict[str, Any]) -> dict[str, Any]:
        return {name: of["facts"] for name, of in found.items() if keys.get(name) == of["key"]}

    return value_in(kept, build) if kept.is_file() else {}


def _one_by_one(sources: Sequence[Source], work: Work, narrator: Narrator) -> Iterator[tuple[str, dict[str, Any]]]:
    with narrator.bar("bd", len(sources) * work.encodes, unit="encodes") as bar:

        def step(note: str, encodes: int) -> None:
            bar.advance(encodes, note)
            if narrator.stop() and bar.done < bar.total:
                raise Interrupted(f"bd, at {note}; nothing is saved")

        for source in sources:
            yield source.name, measure_clip(source, work, step)


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
            pending = {pool.submit(_in_worker, source, work) for source in sources}
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
_busy = threading.Lock()


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process after the encode that it is at, so that it leaves no files, when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _stop.set()
    with _busy:
        os._exit(1)


def _in_worker(source: Source, work: Work) -> tuple[str, dict[str, Any]]:
    def step(note: str, encodes: int) -> None:
        if _stop.is_set():
            raise Interrupted(f"bd, at {note}")

    with _busy:
        return source.name, measure_clip(source, work, step)


def measure_clip(source: Source, work: Work, step: Step) -> dict[str, Any]:
    """All encodes of a clip: its part of the result of `compare`."""
    points: dict[str, list[dict[str, float]]] = {}
    with temporary_folder() as folder:
        excerpt = source.read(folder)
        if work.proxy and not excerpt.weights and isinstance(proxy := open_maps(work.proxy, None), Stream):
            excerpt = with_proxy_weights(excerpt, proxy, work.proxy.name)
        check_map_counts(excerpt.picture, work.codings[0])
        for name, of_map in _maps_of(excerpt, work).items():
            shapings = [shaping for _, shaping in (work.shapings if of_map else work.shapings[:1])]
            rated = [[at_rate(shaping, coding) for coding in work.codings] for shaping in shapings]
            plans = plan_offsets(excerpt, of_map, {at for rates in rated for at in rates})
            for index, rates in enumerate(rated):
                title = work.title(name, index) if of_map else name
                points[title] = []
                for at, coding in zip(rates, work.codings, strict=True):
                    points[title].append(measure_point(excerpt, plans[at], coding, at.block, work.measures))
                    step(f"{source.name}, {title}", 1)
        if work.observers and not excerpt.observed:
            step(f"{source.name}: observers are not known", len(work.shapings) * len(work.codings))
        weights = {"by": excerpt.weights_by, "judge": excerpt.proxy, "frames": len(excerpt.weights)}
        if work.observers:
            weights["halves"] = bool(excerpt.observed)
        return {"frames": len(excerpt), "start": round(excerpt.start, 3), "weights": weights, "points": points, **gains(points)}


def _maps_of(excerpt: Excerpt, work: Work) -> dict[str, Stream | Maps | None]:
    """No map, and every map that there is of this clip."""
    maps: dict[str, Stream | Maps | None] = {NO_MAP: None, CENTRE: centre_map}
    maps |= {name: open_maps(path, None) for name, path in work.models.items()}
    if work.observers and excerpt.observed:
        frames = sorted(excerpt.observed)

        def observed(frame: np.ndarray, seconds: float) -> np.ndarray:
            latest = bisect(frames, seconds * float(excerpt.picture.rate) + 0.5) - 1  # holds until one of them looks again
            found = excerpt.observed[frames[max(latest, 0)]]
            return np.minimum(found / found.max(), 1)

        maps[OBSERVERS] = observed
    return maps


def plan_offsets(
    excerpt: Excerpt, maps: Stream | Maps | None, shapings: Iterable[Shaping]
) -> Mapping[Shaping, Sequence[np.ndarray | None]]:  # fmt: skip
    """The QP offsets of every frame, by shaping; None where there is no map. A model runs once, and sees the excerpt alone, as if it
    were the whole video. Raises UsageError where it gives no map."""
    if maps is None:
        return {shaping: [None] * len(excerpt) for shaping in shapings}
    if isinstance(maps, Stream):
        maps.reset()
    size = excerpt.picture.size
    tracks = {shaping: OffsetTrack(shaping, size) for shaping in shapings}
    plans: dict[Shaping, list[np.ndarray | None]] = {shaping: [] for shaping in tracks}
    before = None
    for index, frame in enumerate(excerpt.frames()):
        try:
            of_frame, luma = map_of(frame, size, maps, float(frame.time or 0)), luma_of(frame, size)
        except ValueError as error:
            raise UsageError(f"frame {index + 1}: {error}") from None
        for shaping, track in tracks.items():
            plans[shaping].append(track.step(of_frame, luma, before))
        before = luma
    return plans


def measure_point(
    excerpt: Excerpt, offsets: Sequence[np.ndarray | None], coding: Coding, block: int, measures: Measures
) -> dict[str, float]:  # fmt: skip
    """Encodes and decodes the excerpt; returns crf or bitrate, kbps and the qualities."""
    packets = encode_frames(excerpt.frames, offsets, excerpt.picture, coding, block)
    decoder = av.codec.Codec(DECODERS[coding.codec], "r").create("video")
    decoded = (frame for packet in [*packets, None] for frame in decoder.decode(packet))
    kbps = sum(packet.size for packet in packets) * 8 / 1000 / (len(excerpt) / float(excerpt.picture.rate))
    rate = {"bitrate": float(coding.bitrate)} if coding.bitrate else {"crf": float(coding.crf or 0)}
    return {**rate, "kbps": kbps, **measure(excerpt, decoded, measures)}


def _report_gaps(clips: Mapping[str, Any], span: Span, work: Work, narrator: Narrator) -> None:
    """Reports missing BD-rates, clips that are too short, and clips without weights or observers. Raises UsageError where there is
    no BD-rate at all."""
    gaps: dict[tuple[str, str, str], list[str]] = {}
    for name, facts in clips.items():
        for title, of_map in facts["left_out"].items():
            for quality, why in of_map.items():
                gaps.setdefault((name, title, why), []).append(QUALITIES[quality].title)
    reasons = [f"clip {name}, {title}: no BD-rate of {', '.join(of)}: {why}" for (name, title, why), of in gaps.items()]
    if not any(rates for facts in clips.values() for rates in facts["bd_rate"].values()):
        raise UsageError(f"{reasons[0]}; other --{'bitrate' if work.codings[0].bitrate else 'crf'} may help")
    for reason in reasons:
        narrator.say(reason)
    if short := [f"{name} from {facts['start']:g} s" for name, facts in clips.items() if facts["start"] < (span.start or 0)]:
        narrator.say(f"these clips end before {span.start:g} s, and are encoded from their middle on: {', '.join(short)}")
    if without := [name for name, facts in clips.items() if not facts["weights"]["by"]]:
        way_out = "--judge MODEL.onnx weights pixels by another model's map"
        narrator.say(f"no gaze: {', '.join(without)}; only measures of whole frames, by which maps usually lose. {way_out}")
    if unknown := [name for name, facts in clips.items() if not facts["weights"].get("halves", True)]:
        narrator.say(f"it is not known who looked where, so half of the observers cannot be a map: {', '.join(unknown)}")

"""One clip of a comparison: all its encodes, and the qualities that come out.

The clip is encoded without a map, with a centred Gaussian, and with each model's map, at several rates; and that with several
strengths of the maps, where these are asked for.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from distill.encoding.bd.excerpts import Excerpt, Source, with_proxy_weights
from distill.encoding.bd.measures import Measures, measure
from distill.encoding.bd.summary import CENTRE, NO_MAP, OBSERVERS, gains
from distill.encoding.encoders import Coding
from distill.encoding.maps import Maps, centre_map, luma_of, map_of, open_maps
from distill.encoding.planner import OffsetTrack, at_rate
from distill.encoding.qp_offsets import Shaping
from distill.encoding.regions import check_map_counts, encode_frames
from distill.export.streaming import Stream
from distill.run.errors import UsageError
from distill.run.files import fingerprint, sha256_of, temporary_folder

DECODERS = {"x264": "h264", "x265": "hevc"}
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
        return fingerprint("planes", files, settings, self.measures.names, proxy, self.observers)


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

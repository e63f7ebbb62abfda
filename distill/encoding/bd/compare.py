"""BD-rate of saliency-guided encoding: rate at equal quality with a map and without, over whole frames and where people look.

PSNR is weighted in two ways: over all pixels equally, and by where people look (`excerpts`). By the first a map usually loses: it
takes bits from most of the frame. The second shows whether it gave them to the right blocks.

Clips are independent of each other (`clips`): they can be encoded at the same time (`jobs`), and those that are done can be kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill.encoding.bd.clips import Work
from distill.encoding.bd.excerpts import Source, Span, check_proxy
from distill.encoding.bd.jobs import measure_clips
from distill.encoding.bd.measures import QUALITIES
from distill.encoding.bd.summary import summary
from distill.encoding.encoders import Coding, check_coding
from distill.encoding.maps import open_maps
from distill.run.errors import Interrupted, UsageError
from distill.run.files import value_in, write_json
from distill.run.progress import Narrator

CONTROLS = ("crf", "2pass", "vbv")


def make_codings(coding: Coding, control: str, rates: str) -> list[Coding]:
    """A coding for every rate: `crf`, constant quality; `2pass`, kbit/s in two passes; `vbv`, kbit/s in one pass and at most, for a
    decoder that holds one second. Raises UsageError for rates or a control that cannot be."""
    if control not in CONTROLS:
        raise UsageError(f"--rate-control {control} is unknown; there are {', '.join(CONTROLS)}")
    option = "--crf" if control == "crf" else "--bitrate"
    try:
        values = [float(text) for text in rates.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {rates}: must be numbers, as in {'22,27,32,37' if control == 'crf' else '300,600,1200'}"
        ) from None
    if len(set(values)) < max(2, len(values)):
        raise UsageError(f"{option} {rates}: give two or more different rates")
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
    try:
        for name, facts in measure_clips(left, work, jobs, narrator):
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

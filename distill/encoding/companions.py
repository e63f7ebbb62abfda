"""The streams beside the video: copied as they are where the container can hold them, converted where it can hold another form.

A container holds a stream if what is written to it reads back as a stream of that kind: some take anything and make it unreadable.
Text subtitles become the container's text subtitles, audio becomes AAC; all else that it cannot hold is left out.
"""

import contextlib
import errno
import io
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
from av.subtitles.subtitle import SubtitleSet

from distill.corpora.clips import counted
from distill.encoding.timeline import Rising
from distill.run.errors import UsageError

TEXT_TARGETS = ("subrip", "mov_text", "webvtt")  # the first that the container takes
AUDIO_TARGETS = {"avi": "libmp3lame", "mpeg": "mp2"}  # AAC for all others
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}  # of AAC, by channels
SHOWN = Fraction(5)  # seconds, of a subtitle that does not say how long
EQUAL_TIMES = av.format.Flags.ts_nonstrict.value
Convert = Callable[[av.Packet | None], list[av.Packet]]  # None: the packets that are left


@contextlib.contextmanager
def naming(what: str) -> Any:
    """Raises UsageError in place of FFmpeg's errors, with what it was that failed; OSError if the disk is full."""
    try:
        yield
    except av.FFmpegError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise UsageError(f"{what}: {error.strerror}") from None


class Companion:
    """A stream of the output beside the video: its packets are copied, or converted, in rising order."""

    def __init__(self, container: Any, copy: Any, name: str, convert: Convert | None = None) -> None:
        self.container, self.copy, self.name, self.convert = container, copy, name, convert
        self.unread = 0  # packets that do not decode
        self._held: list[av.Packet] = []  # of video: the first ones, until a decoding time is known
        self._rising: Rising | None = None

    def write(self, packet: av.Packet) -> None:
        """Writes the next packet of the source."""
        try:
            packets = self.convert(packet) if self.convert else [packet]
        except av.FFmpegError:
            self.unread += 1
            return
        self._mux(self._with_times(packets) if self.copy.type == "video" else packets)

    def _with_times(self, packets: list[av.Packet]) -> list[av.Packet]:
        """The packets that can be written. FFmpeg does not know when the first ones of a video with B-frames are decoded: they come
        before the first of which it does."""
        self._held += packets
        known = next((n for n, packet in enumerate(self._held) if packet.dts is not None), None)
        if known is None:
            return []
        ready, self._held = self._held, []
        for packet, after in reversed(list(pairwise(ready[: known + 1]))):
            packet.dts = (after.dts or 0) - max(packet.duration or 0, 1)
        return ready

    def finish(self) -> list[str]:
        """Writes what is left; returns what the user should know."""
        self._mux(self.convert(None) if self.convert else self._held)
        notes = [f"{self.name}: {counted(self.unread, 'packet')} not decoded, and left out"] if self.unread else []
        if self._rising and self._rising.moved:
            late = f"{counted(self._rising.moved, 'packet')} not later than the one before"
            furthest = float(self._rising.furthest * self._rising.time_base * 1000)
            notes.append(f"{self.name}: {late}: moved, by {furthest:.3g} ms at most")
        return notes

    def _mux(self, packets: list[av.Packet]) -> None:
        if self._rising is None:  # the header is written: the time base is known
            equal = bool(self.container.format.flags & EQUAL_TIMES)
            self._rising = Rising(self.copy.time_base, equal, sparse=self.copy.type == "subtitle")
        for packet in packets:
            self._rising.fix(packet)
            packet.stream = self.copy
            where = f"{self.name}, at {float((packet.pts or 0) * self.copy.time_base):.3f} s, cannot be written"
            with naming(f"{where}; --video-only leaves it out"):
                self.container.mux(packet)


def describe(stream: Any) -> str:
    """What the user calls a stream."""
    codec, language = (
        stream.codec_context.codec.canonical_name if stream.codec_context else getattr(stream, "name", ""),
        stream.metadata.get("language"),
    )
    facts = ", ".join(fact for fact in (codec, language) if fact and fact != "und")
    return f"{stream.type or 'unknown'} stream {stream.index}" + (f" ({facts})" if facts else "")


def holds(format_: str, stream: Any, sample: av.Packet | None) -> bool:
    """Whether a container holds a stream as it is. sample: a packet of it; nothing is known of a stream without packets."""
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format=format_) as out:
            copy = out.add_stream_from_template(stream)
            out.start_encoding()
            if sample is not None:
                packet = av.Packet(bytes(sample))
                packet.stream, packet.time_base, packet.is_keyframe = copy, sample.time_base, True
                packet.pts = packet.dts = 0
                packet.duration = sample.duration or 0
                out.mux(packet)
        memory.seek(0)
        with av.open(memory) as again:
            read = again.streams[0]
            return read.type == stream.type and read.codec_context is not None
    except (ValueError, IndexError, av.FFmpegError):
        return False


def add_companion(container: Any, stream: Any, sample: av.Packet | None) -> tuple[Companion | None, str]:
    """Adds a stream to the output, before its header is written. Returns what writes it, None where it is left out; and what the
    user should know about it."""
    name, holder = describe(stream), container.format.name
    if stream.codec_context is None or sample is None:
        return None, f"{name}, which is {'of an unknown kind' if stream.codec_context is None else 'empty'}"
    if holds(holder, stream, sample):
        convert = _without_gaps if stream.codec_context.name == "mov_text" else None
        return _labelled(Companion(container, container.add_stream_from_template(stream), name, convert), stream), ""
    text = stream.type == "subtitle" and stream.codec_context.codec.text_sub
    elsewhere = holder != "matroska" and holds("matroska", stream, sample)
    converted = _add_audio(container, stream) if stream.type == "audio" else _add_text(container, stream) if text else None
    if converted is None:
        return None, name + ("; .mkv and .mp4 keep it" if text else "; .mkv keeps it" if elsewhere else "")
    copy, conversion = converted
    note = f"{name} becomes {copy.codec_context.codec.canonical_name}" + ("; .mkv keeps it as it is" if elsewhere else "")
    return _labelled(Companion(container, copy, name, conversion), stream), note


def _labelled(companion: Companion, stream: Any) -> Companion:
    companion.copy.metadata.update(stream.metadata)
    companion.copy.disposition = stream.disposition
    return companion


def _without_gaps(packet: av.Packet | None) -> list[av.Packet]:
    """MP4 has empty subtitles where none is seen; the muxer writes them anew."""
    return [packet] if packet and bytes(packet) != b"\0\0" else []


def _add_audio(container: Any, stream: Any) -> tuple[Any, Convert] | None:
    """A stream of AAC, or of what else the container takes; None where it takes none."""
    decoder, name = stream.codec_context, AUDIO_TARGETS.get(container.format.name, "aac")
    channels, rate = decoder.layout.nb_channels, decoder.sample_rate
    rates: Any = av.codec.Codec(name, "w").audio_rates
    nearest = min(rates, key=lambda known: (known < rate, abs(known - rate)))
    layout = LAYOUTS.get(channels, "stereo") if name == "aac" else LAYOUTS[min(channels, 2)]
    try:
        copy = container.add_stream(name, rate=nearest, layout=layout)
    except ValueError:
        return None

    def convert(packet: av.Packet | None) -> list[av.Packet]:
        made = [encoded for frame in decoder.decode(packet) for encoded in copy.codec_context.encode(frame)]
        return made if packet else made + copy.codec_context.encode(None)

    return copy, convert


def _add_text(container: Any, stream: Any) -> tuple[Any, Convert] | None:
    """A stream of the container's text subtitles; None where it has none."""
    target = next((name for name in TEXT_TARGETS if name in container.supported_codecs), None)
    if target is None:
        return None
    copy, decoder = container.add_stream(target), stream.codec_context
    decoder.open(strict=False)
    copy.codec_context.subtitle_header = decoder.subtitle_header  # the styles, which encoders need
    copy.codec_context.time_base = copy.time_base = stream.time_base
    return copy, Texts(decoder, copy.codec_context, target == "mov_text")


class Texts:
    """Converts subtitles that are text. single: the container shows one at a time: those that are seen together are joined."""

    def __init__(self, decoder: Any, encoder: Any, single: bool) -> None:
        self.decoder, self.encoder, self.single = decoder, encoder, single
        self._shown: list[tuple[int, bytes]] = []  # until when, and the text, in ASS's syntax
        self._now = 0  # in ticks of `_time_base`; what was seen before is written
        self._time_base = Fraction(1, 1000)

    def __call__(self, packet: av.Packet | None) -> list[av.Packet]:
        if packet is None:
            return self._until(max((end for end, _ in self._shown), default=0))
        subtitles, self._time_base = self.decoder.decode2(packet), packet.time_base or self._time_base
        texts = [subtitle.ass.split(b",", 8)[-1] for subtitle in subtitles or () if subtitle.type == b"ass"]
        start = packet.pts if packet.pts is not None else packet.dts or 0
        if not texts:  # the gaps of MP4
            return []
        end = start + (packet.duration or round(SHOWN / self._time_base))
        if not self.single:
            return [self._encode(texts, start, end)]
        made = self._until(start)
        self._now = max(self._now, start)
        self._shown += [(end, text) for text in texts]
        return made

    def _until(self, time: int) -> list[av.Packet]:
        """What is seen until a time, one packet for every change."""
        made = []
        for end in sorted({min(end, time) for end, _ in self._shown if self._now < min(end, time)}):
            made.append(self._encode([text for until, text in self._shown if until > self._now], self._now, end))
            self._now = end
        self._shown = [shown for shown in self._shown if shown[0] > self._now]
        return made

    def _encode(self, texts: list[bytes], start: int, end: int) -> av.Packet:
        line = b"0,0,Default,,0,0,0,," + b"\\N".join(texts)
        packet = self.encoder.encode_subtitle(SubtitleSet.create(line, 0, end - start))
        packet.pts = packet.dts = start
        packet.duration, packet.time_base = end - start, self._time_base
        return packet

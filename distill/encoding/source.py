"""Reading the video that is encoded: its frames in order, and the format of its pictures.

Bit depth and chroma format, pixel aspect ratio, colour tags, mastering display and light level of HDR10 are preserved; losses are
reported.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
from av.codec.codec import find_best_pix_fmt_of_list

from distill.corpora.clips import counted
from distill.corpora.readers.pyav import has_times, in_order, open_container, stated_end, video_stream
from distill.encoding.companions import Companion
from distill.encoding.encoders import Coding, Picture
from distill.encoding.timeline import Timeline
from distill.run.errors import UsageError
from distill.run.progress import Narrator

# Side data of frames that the encoders or their wrappers drop, and its content.
LOST = {
    "AFD": "active format", "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid", "FILM_GRAIN_PARAMS": "film grain", "GOP_TIMECODE": "time codes", "ICC_PROFILE": "colour profile",
    "PANSCAN": "pan and scan", "S12M_TIMECODE": "time codes", "SPHERICAL": "spherical projection", "STEREO3D": "stereo layout",
}  # fmt: skip
SHARES = (0.99, 0.95)  # of the stated length that a complete video has at least; of the stated length of a whole file
PACKETS = {
    188: 0,
    192: 4,
    204: 0,
}  # bytes in a packet of transport streams of either kind, and where in it its first byte stands
BT601 = 6  # the matrix of what FFmpeg makes of RGB, in the numbers of ITU-T H.273
TICK = Fraction(1, 1000)  # seconds: the coarsest unit in which containers keep times


@dataclass(frozen=True)
class Contents:
    """What one pass over the packets of a file tells."""

    frames: int  # packets of the video
    rate: Fraction  # frames per second
    samples: dict[int, av.Packet]  # one packet of each stream, by its index
    cut: bool = False  # whether the file ends inside a packet of its transport stream


def survey(path: Path) -> Contents:
    """Reads all packets of a video, and decodes none.

    Raises UsageError as `open_container`, and where the file ends before its header says that it does.
    """
    samples: dict[int, av.Packet] = {}
    ends: dict[int, Fraction] = {}
    times: list[Fraction] = []
    frames = 0
    with open_container(path) as container:
        video = video_stream(container)
        for packet in container.demux():
            stamp, index = packet.pts if packet.pts is not None else packet.dts, packet.stream.index
            if packet.size:
                samples.setdefault(index, packet)
                frames += index == video.index
            if packet.size and stamp is not None:
                end = (stamp + (packet.duration or 0)) * packet.time_base
                ends[index] = max(end, ends.get(index, end))
                if index == video.index:
                    times.append(stamp * packet.time_base)
        rate = _rate(video, times)
        if times and (stated := stated_end(container, video)):
            end = max(ends.values()) if stated[0] is None else ends[stated[0]]
            if end < SHARES[stated[0] is None] * stated[1] - 2 / rate:
                where = f"its {frames} frames end at {float(end):.2f} s, its header says {stated[1]:.2f} s"
                way_out = "is it complete? What is there can be encoded after ffmpeg -i IN -c copy OUT"
                raise UsageError(f"{path} ends early: {where}; {way_out}")
        cut = container.format.name == "mpegts" and _ends_in_a_packet(path)
    return Contents(frames, rate, samples, cut)


def _ends_in_a_packet(path: Path) -> bool:
    """Whether a transport stream ends within one of its packets, as a copy that was broken off: no other sign tells that it does
    not end where it should."""
    with path.open("rb") as file:
        head = file.read(2 * max(PACKETS) + max(PACKETS.values()))
        for size, start in PACKETS.items():
            if head[start::size][:2] == b"GG":  # each packet's first byte
                return bool(file.seek(0, 2) % size)
    return False


def _rate(video: Any, times: list[Fraction]) -> Fraction:
    """Frames per second as stated, or by the median interval where that is less than half of it or more than twice."""
    stated = Fraction(video.average_rate or video.guessed_rate or 25)
    intervals = [after - before for before, after in pairwise(sorted(times)) if after > before]
    if not intervals:
        return stated
    measured = 1 / median(intervals)
    return stated if 1 / 2 <= measured / stated <= 2 else measured.limit_denominator(1001)


def first_frame(path: Path) -> av.VideoFrame:
    """The first decoded frame. Raises UsageError as `open_container`, and where no frame decodes."""
    with open_container(path) as container:
        for frame in read_frames(path, container, Fraction(25), {}, Narrator(quiet=True)):
            return frame
    raise UsageError(f"{path} opens, but not one frame decodes; is it complete?")


def read_frames(
    path: Path, container: Any, rate: Fraction, companions: Mapping[int, Companion], narrator: Narrator
) -> Iterator[av.VideoFrame]:  # fmt: skip
    """The video's frames in order, with stamps that rise. Packets of the streams in `companions`, by index, go there on the way.

    What was repaired is said at the end. Raises UsageError for frames of another size than the first, and for damage after it.
    """
    video, first, count, before = video_stream(container), None, 0, 0
    tick = max(1, math.ceil(TICK / video.time_base))
    timed, timeline = has_times(container), Timeline(container, video, rate)
    begun, skipped, marked, repaired, furthest = False, 0, 0, 0, 0
    starts: list[int | None] = []  # of the packets that decode, where frames are shown at those times
    for packet in container.demux([video, *(container.streams[i] for i in companions)]):
        timeline.place(packet)
        if packet.stream.index != video.index:
            if packet.size:  # the last packet of a stream is empty
                companions[packet.stream.index].write(packet)
            continue
        marked += packet.is_corrupt
        if packet.size and in_order(container):
            starts.append(packet.dts)
        begun = begun or packet.is_keyframe
        skipped += not begun
        frames = _decode(packet)
        damaged = frames is None
        for frame in frames or ():
            damaged = damaged or frame.is_corrupt
            if damaged:
                break
            first = first or frame
            if (frame.width, frame.height) != (first.width, first.height):
                sizes = f"is {frame.width}x{frame.height}, those before {first.width}x{first.height}"
                way_out = f"scale it to one size first: ffmpeg -i IN -vf scale={first.width}:{first.height} OUT"
                raise UsageError(f"{path}: frame {count + 1}, at {frame.time or 0:.2f} s, {sizes}; {way_out}")
            if not timed and count < len(starts) and (start := starts[count]) is not None:
                frame.time_base, frame.pts = video.time_base, start
            elif not timed or frame.pts is None:
                frame.time_base = video.time_base
                frame.pts = round(count / rate / video.time_base) if not timed else before + round(1 / rate / video.time_base)
            if count and frame.pts <= before:
                repaired, furthest = repaired + 1, max(furthest, before + tick - frame.pts)
                frame.pts = before + tick
            before, count = frame.pts, count + 1
            yield frame
        if not damaged:
            continue
        if count:
            where = f"frame {count + 1}, after {float(before * video.time_base):.2f} s"
            raise UsageError(f"{path}: {where}, is damaged; ffmpeg -i IN -c:v libx264 -crf 12 OUT.mkv fills in what is missing")
        skipped += begun
        del starts[:1]  # no frame is shown at its time
    furthest_ms = float(furthest * video.time_base * 1000)
    notes = {
        f"{counted(skipped, 'packet')} before the first whole frame, left out": skipped,
        f"{counted(marked, 'packet')} of the video marked as damaged, or after a gap; all decode": marked,
        f"{timeline.counts} counts of time stamps, as of recordings that were joined: put one after the other": timeline.counts
        > 1,
        f"{counted(repaired, 'frame')} not later than the one before: moved, by {furthest_ms:.3g} ms at most": repaired,
    }
    for note in (note for note, count in notes.items() if count):
        narrator.say(f"{path.name}: {note}")


def _decode(packet: av.Packet) -> list[Any] | None:
    """The frames that a packet completes; None where it does not decode."""
    try:
        return packet.decode()
    except av.error.InvalidDataError:
        return None


def describe_picture(
    stream: Any, first: av.VideoFrame, rate: Fraction, coding: Coding | None, narrator: Narrator
) -> Picture:  # fmt: skip
    """The pictures that the encoder gets: the source's format and size where it takes them. coding: None where nothing is encoded."""
    side_data: Any = first.side_data  # typed as names, but holds the data
    beside = {data.type.name: bytes(data) for data in side_data}
    display = mastering_display(beside.get("MASTERING_DISPLAY_METADATA", b""))
    name, width, height = first.format.name, first.width, first.height
    if coding:
        name = _accepted_format(name, coding, narrator)
        layout = av.VideoFormat(name, 16, 16)
        width -= width % (16 // layout.chroma_width(16)) if not layout.is_rgb else 0
        height -= height % (16 // layout.chroma_height(16)) if not layout.is_rgb else 0
        if (height, width) != (first.height, first.width):
            odd = f"{first.width}x{first.height} is odd, which {name} cannot be"
            narrator.say(f"{odd}: cropped to {width}x{height} at the right and bottom")
        lost = {content for kind, content in LOST.items() if kind in beside}
        if "MASTERING_DISPLAY_METADATA" in beside and not display:
            lost.add("an incomplete mastering display")
        if lost:
            narrator.say(f"lost, because {coding.encoder} cannot take it: {', '.join(sorted(lost))}")
    converted = first.format.is_rgb and not av.VideoFormat(name).is_rgb
    matrix = BT601 if converted else int(first.colorspace)
    return Picture(
        width, height, name, stream.time_base, rate,
        stream.sample_aspect_ratio, int(first.color_primaries), int(first.color_trc), matrix, int(first.color_range),
        display, content_light(beside.get("CONTENT_LIGHT_LEVEL", b"")),
    )  # fmt: skip


def _accepted_format(name: str, coding: Coding, narrator: Narrator) -> str:
    """The pixel format, or the nearest that the encoder takes."""
    listed = av.codec.Codec(coding.encoder, "w").video_formats or []
    accepted = [f.name for f in listed if not any(c.is_alpha for c in f.components)]  # x265 lists formats that its builds lack
    if name in accepted:
        return name
    best, _ = find_best_pix_fmt_of_list(accepted, name)
    if best is None:
        raise UsageError(f"{coding.encoder} takes no format like the source's {name}")
    narrator.say(f"{coding.encoder} does not take {name}: converted to {best.name}")
    return best.name


def mastering_display(data: bytes) -> str:
    """FFmpeg's AVMasteringDisplayMetadata in the encoders' syntax, `G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)`; empty where incomplete.

    Chromaticities are in units of 1/50000, luminances of 1/10000 cd/m2, as in SMPTE ST 2086.
    """
    if len(data) < 88:
        return ""
    *pairs, chromaticities, luminances = struct.unpack_from("=22i", data)
    if not (chromaticities and luminances) or 0 in pairs[1::2]:
        return ""
    values = [Fraction(top, bottom) for top, bottom in zip(pairs[::2], pairs[1::2], strict=True)]
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = (round(v * 50000) for v in values[:8])
    least, most = (round(v * 10000) for v in values[8:])
    return f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})L({most},{least})"


def content_light(data: bytes) -> str:
    """FFmpeg's AVContentLightMetadata in the encoders' syntax: MaxCLL and MaxFALL in cd/m2; empty where it is not there."""
    return "{},{}".format(*struct.unpack_from("=2I", data)) if len(data) >= 8 else ""

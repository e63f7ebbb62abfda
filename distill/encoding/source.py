"""Reading the video that is encoded: its frames in order, and the format of its pictures.

Bit depth and chroma format, pixel aspect ratio, colour tags, mastering display and light level of HDR10 are preserved; losses are
reported.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec.codec import find_best_pix_fmt_of_list

from distill.corpora.readers.pyav import has_times, open_container, video_stream
from distill.encoding.encoders import Coding, Picture
from distill.run.errors import UsageError
from distill.run.progress import Narrator

# Side data of frames that the encoders or their wrappers drop, and its content.
LOST = {
    "AFD": "active format", "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid", "FILM_GRAIN_PARAMS": "film grain", "GOP_TIMECODE": "time codes", "ICC_PROFILE": "colour profile",
    "PANSCAN": "pan and scan", "S12M_TIMECODE": "time codes", "SPHERICAL": "spherical projection", "STEREO3D": "stereo layout",
}  # fmt: skip


def first_frame(path: Path) -> av.VideoFrame:
    """The first decoded frame. Raises UsageError as `open_container`, and where no frame decodes."""
    with open_container(path) as container:
        for frame in container.decode(video_stream(container)):
            return frame
    raise UsageError(f"{path} opens, but not one frame decodes; is it complete?")


def read_frames(
    path: Path, container: Any, first: av.VideoFrame, copied: Mapping[int, Any], copy: Callable[[av.Packet], None] | None
) -> Iterator[av.VideoFrame]:  # fmt: skip
    """The video's frames in order. Packets of the streams in `copied`, by index, go to `copy` on the way.

    Raises UsageError for frames of another size than the first, and for time stamps that do not increase.
    """
    video, index, before = video_stream(container), 0, None
    rate, timed = video.average_rate or video.guessed_rate or 25, has_times(container)
    for packet in container.demux([video, *(container.streams[i] for i in copied)]):
        if packet.stream.index in copied:
            if copy and packet.dts is not None:  # the last packet is empty and has none
                copy(packet)
            continue
        for frame in packet.decode():
            if (frame.width, frame.height) != (first.width, first.height):
                sizes = f"is {frame.width}x{frame.height}, the first {first.width}x{first.height}"
                raise UsageError(f"{path}: frame {index + 1} {sizes}; scale it to one size first")
            if not timed or frame.pts is None:
                frame.pts, frame.time_base = round(index / rate / video.time_base), video.time_base
            if before is not None and frame.pts <= before:
                raise UsageError(f"{path}: frame {index + 1} is not later than the one before; remux it with ffmpeg")
            before, index = frame.pts, index + 1
            yield frame


def describe_picture(stream: Any, first: av.VideoFrame, coding: Coding | None, narrator: Narrator) -> Picture:
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
            narrator.say(f"lost, because {coding.library} cannot take it: {', '.join(sorted(lost))}")
    return Picture(
        width, height, name, stream.time_base, Fraction(stream.average_rate or stream.guessed_rate or 25),
        stream.sample_aspect_ratio, int(first.color_primaries), int(first.color_trc), int(first.colorspace), int(first.color_range),
        display, content_light(beside.get("CONTENT_LIGHT_LEVEL", b"")),
    )  # fmt: skip


def _accepted_format(name: str, coding: Coding, narrator: Narrator) -> str:
    """The pixel format, or the nearest that the encoder takes."""
    accepted = [f.name for f in av.codec.Codec(coding.library, "w").video_formats or []]
    if name in accepted:
        return name
    best, _ = find_best_pix_fmt_of_list(accepted, name)
    if best is None:
        raise UsageError(f"{coding.library} takes no format like the source's {name}")
    narrator.say(f"{coding.library} does not take {name}: converted to {best.name}")
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

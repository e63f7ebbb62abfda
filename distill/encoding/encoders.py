"""x264 and x265 through FFmpeg: their configuration, QP offsets as regions of a frame, and a check that a map takes effect.

FFmpeg's encoders take regions of interest as side data of a frame, and only its `addroi` filter sets them. So each frame goes
through a small filter graph; frames with the same offsets share one. The encoders apply regions inside their adaptive quantisation
and ignore them silently where it is off. So `check_map_counts` first encodes two frames of noise with a map and without:
where both give the same bytes, the map would be ignored, and nothing is encoded.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.logging
import numpy as np

from distill.encoding.roi_files import addroi
from distill.run.errors import UsageError

CODECS = {"x264": "libx264", "x265": "libx265"}
CRF = {"x264": 23.0, "x265": 28.0}  # the encoders' own defaults
HDR = {"x264": ("mastering-display", "cll"), "x265": ("master-display", "max-cll")}
GRAPHS = 32  # filter graphs in the cache


@dataclass(frozen=True)
class Coding:
    """How the encoder is run. params: KEY=VALUE in the encoder's syntax; threads: 0 for its default."""

    codec: str = "x264"
    crf: float | None = None
    bitrate: int | None = None  # kbit/s
    preset: str = "medium"
    params: tuple[str, ...] = ()
    threads: int = 0

    @property
    def library(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODECS[self.codec]


@dataclass(frozen=True)
class Picture:
    """The format of the pictures that the encoder gets."""

    width: int
    height: int
    format: str
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None = None
    primaries: int = 2  # 2: unspecified, in the numbers of ITU-T H.273
    transfer: int = 2
    matrix: int = 2
    range: int = 0
    display: str = ""  # HDR10, in the encoders' syntax: the mastering display, and the content's light levels
    light: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def bits(self) -> int:
        """Bits per sample."""
        return max(c.bits for c in av.VideoFormat(self.format).components)


def check_coding(coding: Coding) -> None:
    """Raises UsageError for every error that can be detected before anything is opened."""
    if coding.codec not in CODECS:
        raise UsageError(f"--codec {coding.codec} is unknown; there are {', '.join(CODECS)}")
    if coding.crf is not None and coding.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other; give one")
    if coding.crf is not None and not 0 <= coding.crf <= 51:
        raise UsageError(f"--crf {coding.crf:g}: must be from 0 (best) to 51")
    for param in coding.params:
        key, equals, value = param.partition("=")
        if not equals or ":" in param:
            raise UsageError(f"--param {param}: must be KEY=VALUE, one at a time")
        if key.replace("_", "-") == "aq-mode" and value == "0":
            raise UsageError(f"--param {param}: a map works through adaptive quantisation; leave it on, aq-mode=1")
    try:
        av.codec.Codec(coding.library, "w")
    except ValueError:
        lacking = f"the FFmpeg of this PyAV ({av.__version__}) has no {coding.library}"
        raise UsageError(f"{lacking}; the one of `pip install av` has it") from None


def encoder_options(coding: Coding, picture: Picture) -> dict[str, str]:
    """FFmpeg's options for the encoder. They switch on adaptive quantisation, which the fastest presets leave off, and captions."""
    params = {"aq-mode": "1" if coding.codec == "x264" else "2"}
    display, light = HDR[coding.codec]
    params.update({key: value for key, value in ((display, picture.display), (light, picture.light)) if value})
    if coding.codec == "x265":
        params["log-level"] = "error"  # it writes to standard error directly
        if coding.threads:
            params["pools"] = str(coding.threads)
    params.update({key.replace("_", "-"): value for key, _, value in (p.partition("=") for p in coding.params)})
    rate = {} if coding.bitrate else {"crf": f"{CRF[coding.codec] if coding.crf is None else coding.crf:g}"}
    joined = ":".join(f"{key}={value}" for key, value in params.items())
    return {"preset": coding.preset, f"{coding.codec}-params": joined, "a53cc": "1", **rate}


def configure(context: Any, picture: Picture, coding: Coding) -> None:
    """Sets up an encoder's context that is not yet open."""
    context.width, context.height, context.pix_fmt = picture.width, picture.height, picture.format
    context.time_base, context.framerate = picture.time_base, picture.rate
    if picture.aspect:
        context.sample_aspect_ratio = picture.aspect
    context.color_primaries, context.color_trc = picture.primaries, picture.transfer
    context.colorspace, context.color_range = picture.matrix, picture.range
    if coding.bitrate:
        context.bit_rate = coding.bitrate * 1000
    if coding.threads:
        context.thread_count = coding.threads
    context.options = encoder_options(coding, picture)


class RegionMarker:
    """Attaches QP offsets to frames, cropped to the picture's size; offsets are int `[rows, columns]` in QP, or None."""

    def __init__(self, picture: Picture, block: int) -> None:
        self.picture, self.block = picture, block
        self._graphs: OrderedDict[bytes, Any] = OrderedDict()

    def mark(self, frame: av.VideoFrame, offsets: np.ndarray | None) -> av.VideoFrame:
        """The frame with its regions; its type is left to the encoder."""
        pts, time_base = frame.pts, frame.time_base
        if frame.format.name != self.picture.format:
            frame = frame.reformat(format=self.picture.format)
        if offsets is not None or (frame.height, frame.width) != self.picture.size:
            key = b"" if offsets is None else offsets.tobytes()
            graph = self._graphs.pop(key, None) or self._build(frame, offsets)
            self._graphs[key] = graph
            if len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
            graph.push(frame)
            frame = graph.pull()
        frame.pts, frame.time_base = pts, time_base
        frame.pict_type = 0  # otherwise the encoder keeps the source's
        return frame

    def _build(self, frame: av.VideoFrame, offsets: np.ndarray | None) -> Any:
        picture, graph = self.picture, av.filter.Graph()
        # Regions do not depend on time: any time base will do, and `mark` restores the time stamps.
        nodes = [graph.add(
            "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base="1/1000",
            pixel_aspect="1/1", colorspace=str(int(frame.colorspace)), range=str(int(frame.color_range)),
        )]  # fmt: skip
        if (frame.height, frame.width) != picture.size:
            nodes.append(graph.add("crop", f"{picture.width}:{picture.height}:0:0:exact=1"))
        regions = [] if offsets is None else addroi(offsets, self.block, picture.size, picture.bits)
        nodes += [graph.add("addroi", arguments) for arguments in regions]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


def encode_frames(
    frames: Iterable[av.VideoFrame], offsets: Iterable[np.ndarray | None], picture: Picture, coding: Coding, block: int = 16
) -> list[av.Packet]:  # fmt: skip
    """The packets of frames (with their time stamps) encoded with the offsets of each; no file is involved."""
    context = av.codec.Codec(coding.library, "w").create("video")
    configure(context, picture, coding)
    marker, packets = RegionMarker(picture, block), []
    with refusals(coding):
        context.open()
        for frame, of_frame in zip(frames, offsets, strict=False):
            packets += context.encode(marker.mark(frame, of_frame))
        return packets + context.encode(None)


def check_map_counts(picture: Picture, coding: Coding) -> None:
    """Encodes two frames of noise with a map and without; raises UsageError where both give the same bytes."""
    small = replace(picture, width=128, height=128)
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)

    def frames() -> Iterator[av.VideoFrame]:
        for index, pixels in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format=picture.format)
            frame.pts, frame.time_base = round(index / picture.rate / picture.time_base), picture.time_base
            yield frame

    left = np.full((8, 8), 6, np.int32)
    left[:, :4] = -6
    streams = [[bytes(p) for p in encode_frames(frames(), [offsets] * 2, small, coding)] for offsets in (None, left)]
    if streams[0] == streams[1]:
        given = f"preset {coding.preset}, {', '.join(coding.params) or 'no --param'}"
        needs = "its adaptive quantisation must be on: no fixed QP, no lossless, aq-mode above 0"
        raise UsageError(f"{coding.library} ignores the map with these options; {needs} (given: {given})")


@contextlib.contextmanager
def refusals(coding: Coding) -> Iterator[None]:
    """Turns an encoder's complaints about its options into UsageError; FFmpeg's wrappers only log them."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as log:
            yield
    except av.FFmpegError as error:
        reason = log[-1][2].strip() if log else error.strerror
        raise UsageError(f"{coding.library} does not start: {reason}") from None
    finally:
        av.logging.set_level(before)
    for _, _, line in log:
        if any(w in line.lower() for w in ("error parsing option", "unknown option", "invalid value", "bad value")):
            raise UsageError(f"{coding.library} does not take --param: {line.strip()}")

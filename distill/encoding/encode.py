"""A video through x264 or x265 with more bits where people look: a QP offset for every block of every frame.

    decoded frame -> small upright RGB -> saliency map -> QP offsets -> `addroi` rectangles on the frame -> encoder

FFmpeg's encoders take regions as side data of a frame, and its `addroi` filter is what sets them; so each frame goes through
a small filter graph, and one graph serves all frames with the same map. The encoders apply regions inside their adaptive
quantisation and skip them, without an error, where that is off. So before a video is encoded, two frames of noise are,
with a map and without: where both give the same bytes, the map would be ignored, and nothing is encoded.

Kept: time stamps, bit depth and chroma, aspect of pixels, rotation, colour tags, mastering display and light level of HDR10,
closed captions, metadata, chapters; audio, subtitles and, where the container can hold it, cover art are copied as they are. What is lost
is said.
"""

from __future__ import annotations

import contextlib
import errno
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from distill.encoding.roi_writers import FORMATS, SVT_BLOCK, SVT_LEVELS, RoiFile, addroi, addroi_command
from distill.evaluation.predictors import load_predictor
from distill.export.blocks import (
    BLOCKS,
    FAINT,
    HOLD,
    LIMIT,
    NEUTRAL,
    areas,
    block_bits,
    centred,
    qp_offsets,
    step_for,
)
from distill.export.streaming import Stream
from distill.run.errors import UsageError
from distill.run.files import atomic, write_bytes
from distill.run.progress import Narrator

try:
    import av
    import av.logging
    from av.codec.codec import find_best_pix_fmt_of_list
    from av.stream import Disposition
except ModuleNotFoundError:
    raise UsageError("PyAV is not installed; pip install 'saliency-distill[train,encode]'") from None

# The saliency map [h,w] in [0, 1] of a small upright RGB frame uint8 [h,w,3] at its time in seconds.
Maps = Callable[[np.ndarray, float], np.ndarray]

CODECS = {"x264": "libx264", "x265": "libx265"}
CRF = {"x264": 23.0, "x265": 28.0}  # the encoders' own defaults
PRIOR = 0.5  # of a centred Gaussian in the map: a model that is wrong then costs less than it gains where it is right
HDR = {"x264": ("mastering-display", "cll"), "x265": ("master-display", "max-cll")}
# What frames may bring along that the encoders or their wrappers do not take, and what it is called.
LOST = {
    "AFD": "active format", "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
    "DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+",
    "DYNAMIC_HDR_VIVID": "HDR Vivid", "FILM_GRAIN_PARAMS": "film grain", "GOP_TIMECODE": "time codes", "ICC_PROFILE": "colour profile",
    "PANSCAN": "pan and scan", "S12M_TIMECODE": "time codes", "SPHERICAL": "spherical projection", "STEREO3D": "stereo layout",
}  # fmt: skip
COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
WIDTH = 640  # px of the frame that a model sees: what the corpora have that students learn from
GRAPHS = 32  # filter graphs that are kept
NO_TIMES = av.format.Flags.no_timestamps.value


@dataclass(frozen=True)
class Coding:
    """How the encoder is run. params: KEY=VALUE in the encoder's own words; threads: 0 for its own choice."""

    codec: str = "x264"
    crf: float | None = None
    bitrate: int | None = None  # kbit/s
    preset: str = "medium"
    params: tuple[str, ...] = ()
    threads: int = 0


@dataclass(frozen=True)
class Shaping:
    """How a saliency map becomes offsets; see `distill.export.blocks.qp_offsets`."""

    strength: float = 4.0
    block: int = 16
    neutral: str = "bits"
    faint: float | None = FAINT
    prior: float = PRIOR
    hold: float = HOLD
    limit: int = LIMIT
    step: int = 1

    def offsets(
        self, saliency: np.ndarray, size: tuple[int, int], previous: np.ndarray | None, bits: np.ndarray | None
    ) -> np.ndarray:
        return qp_offsets(
            saliency, self.strength, self.block, size,
            limit=self.limit, neutral=self.neutral, bits=bits, faint=self.faint,
            prior=self.prior, step=self.step, previous=previous, hold=self.hold,
        )  # fmt: skip


# --- maps ------------------------------------------------------------------------------------------------------------


def centre(frame: np.ndarray, seconds: float) -> np.ndarray:
    """A centred Gaussian: what every model must beat."""
    return centred(*frame.shape[:2])


def open_maps(model: Path | None, name: str | None, find_cuts: bool = True, threads: int = 1) -> Stream | Maps | None:
    """A student's maps, or those that go by a name: `centre`, `none`. Raises UsageError where neither or both are given."""
    if (model is None) == (name is None):
        raise UsageError("where do people look? give a student with --model, or --map centre, or --map none")
    if model is not None:
        return Stream(load_predictor(model, threads), find_cuts)
    if name not in ("centre", "none"):
        raise UsageError(f"--map {name} is unknown; there are centre and none")
    return centre if name == "centre" else None


def check_shaping(block: int, neutral: str) -> None:
    if block not in BLOCKS:
        raise UsageError(f"--block {block}: {', '.join(map(str, BLOCKS))} are known")
    if neutral not in NEUTRAL:
        raise UsageError(f"--neutral {neutral} is unknown; there are {', '.join(NEUTRAL)}")


def request(target: Path | None, name: str | None, roi: tuple[Path | None, str | None]) -> tuple[Path, str] | None:
    """The ROI file and its format, where one is wanted. Raises UsageError for options that do not go together."""
    path, format_ = roi
    if (path is None) != (format_ is None):
        raise UsageError(f"--roi-out FILE and --format go together; formats: {', '.join(FORMATS)}")
    if path is None or format_ is None:
        if target is None:
            raise UsageError("name the file to write, or a --roi-out")
        return None
    if format_ not in FORMATS:
        raise UsageError(f"--format {format_} is unknown; there are {', '.join(FORMATS)}")
    if name == "none":
        raise UsageError("--map none has no map to write with --roi-out")
    return path, format_


# --- the encoder -----------------------------------------------------------------------------------------------------


def check_coding(coding: Coding) -> None:
    """Raises UsageError for what can be seen to be wrong before anything is opened."""
    if coding.codec not in CODECS:
        raise UsageError(f"--codec {coding.codec} is unknown; there are {', '.join(CODECS)}")
    if coding.crf is not None and coding.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other; give one")
    if coding.crf is not None and not 0 <= coding.crf <= 51:
        raise UsageError(f"--crf {coding.crf:g}: 0 (best) to 51 is wanted")
    for param in coding.params:
        key, equals, value = param.partition("=")
        if not equals or ":" in param:
            raise UsageError(f"--param {param}: KEY=VALUE is wanted, one at a time")
        if key.replace("_", "-") == "aq-mode" and value == "0":
            raise UsageError(
                "--param aq-mode=0: the encoders apply a map inside their adaptive quantisation; leave it on, aq-mode=1"
            )
    try:
        av.codec.Codec(CODECS[coding.codec], "w")
    except ValueError:
        raise UsageError(
            f"the FFmpeg of this PyAV ({av.__version__}) has no {CODECS[coding.codec]}; `pip install av` brings one that has"
        ) from None


def options(coding: Coding, picture: Picture) -> dict[str, str]:
    """The encoder's options. Adaptive quantisation is switched on by name: the fastest presets leave it off. So are captions."""
    params = {"aq-mode": "1" if coding.codec == "x264" else "2"}
    display, light = HDR[coding.codec]
    params.update({key: value for key, value in ((display, picture.display), (light, picture.light)) if value})
    if coding.codec == "x265":
        params["log-level"] = "error"  # it writes to standard error by itself
        if coding.threads:
            params["pools"] = str(coding.threads)
    params.update({key.replace("_", "-"): value for key, _, value in (p.partition("=") for p in coding.params)})
    rate = {} if coding.bitrate else {"crf": f"{CRF[coding.codec] if coding.crf is None else coding.crf:g}"}
    joined = ":".join(f"{key}={value}" for key, value in params.items())
    return {"preset": coding.preset, f"{coding.codec}-params": joined, "a53cc": "1", **rate}


@dataclass(frozen=True)
class Picture:
    """What the encoder is told of the pictures that it gets."""

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
    display: str = ""  # of HDR10, in the encoders' words: the display it was graded on, and its light levels
    light: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def bits(self) -> int:
        return max(c.bits for c in av.VideoFormat(self.format).components)


def configure(context: Any, picture: Picture, coding: Coding) -> None:
    """Tells an encoder's context, not yet open, what it will get."""
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
    context.options = options(coding, picture)


class Marker:
    """Sets maps on frames. Frames are cut to the picture's size; offsets are int `[rows, columns]` in QP, or None."""

    def __init__(self, picture: Picture, block: int) -> None:
        self.picture, self.block = picture, block
        self._graphs: OrderedDict[bytes, Any] = OrderedDict()

    def mark(self, frame: av.VideoFrame, offsets: np.ndarray | None) -> av.VideoFrame:
        """The frame with its regions, for the encoder to choose its type by itself."""
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
        frame.pict_type = 0  # else the encoder keeps to the source's
        return frame

    def _build(self, frame: av.VideoFrame, offsets: np.ndarray | None) -> Any:
        picture, graph = self.picture, av.filter.Graph()
        # A region is a part of the frame and does not depend on time; pts are put back afterwards.
        nodes = [
            graph.add(
                "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base="1/1000",
                pixel_aspect="1/1", colorspace=str(int(frame.colorspace)), range=str(int(frame.color_range)),
            )
        ]  # fmt: skip
        if (frame.height, frame.width) != picture.size:
            nodes.append(graph.add("crop", f"{picture.width}:{picture.height}:0:0:exact=1"))
        regions = [] if offsets is None else addroi(offsets, self.block, picture.size, picture.bits)
        nodes += [graph.add("addroi", arguments) for arguments in regions]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


def encode_frames(
    frames: Iterable[av.VideoFrame],
    offsets: Iterable[np.ndarray | None],
    picture: Picture,
    coding: Coding,
    block: int = 16,
) -> list[av.Packet]:
    """Packets of frames (their pts are theirs) with the offsets of each; no file is involved."""
    context = av.codec.Codec(CODECS[coding.codec], "w").create("video")
    configure(context, picture, coding)
    marker, packets = Marker(picture, block), []
    with _refusals(coding):
        context.open()
        for frame, own in zip(frames, offsets, strict=False):
            packets += context.encode(marker.mark(frame, own))
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

    half = np.full((8, 8), 6, np.int32)
    half[:, :4] = -6
    sizes = [[bytes(p) for p in encode_frames(frames(), [own] * 2, small, coding)] for own in (None, half)]
    if sizes[0] == sizes[1]:
        raise UsageError(
            f"{CODECS[coding.codec]} ignores the map with these options; its adaptive quantisation must be on: "
            f"no fixed QP, no lossless, aq-mode above 0 (given: preset {coding.preset}, {', '.join(coding.params) or 'no --param'})"
        )


@contextlib.contextmanager
def _refusals(coding: Coding) -> Iterator[None]:
    """What the encoder says against its options becomes a UsageError; FFmpeg's wrappers log it and go on."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as said:
            try:
                yield
            except av.FFmpegError as error:
                reason = said[-1][2].strip() if said else error.strerror
                raise UsageError(f"{CODECS[coding.codec]} does not start: {reason}") from None
    finally:
        av.logging.set_level(before)
    for _, _, line in said:
        if any(
            word in line.lower() for word in ("error parsing option", "unknown option", "invalid value", "bad value")
        ):
            raise UsageError(f"{CODECS[coding.codec]} does not take --param: {line.strip()}")


# --- a file ----------------------------------------------------------------------------------------------------------


def encode(
    source: Path,
    target: Path | None,
    maps: Stream | Maps | None,
    coding: Coding,
    shaping: Shaping,
    narrator: Narrator,
    roi: tuple[Path, str] | None = None,
    video_only: bool = False,
) -> dict[str, Any]:
    """Encodes a video with a map for every frame, writes the maps for another encoder (`roi`: file and format), or both.

    maps: a student's stream, or anything that gives a map; None encodes without.
    Returns, ready for JSON: files; codec; frames; seconds, bytes and kbps of the video stream; cuts that a stream found; offsets:
    lowest, mean over time and area, highest, and changes, the number of frames whose offsets are not those of the frame before.

    Raises UsageError for a video, container, encoder or option that cannot be used, and where the map would be ignored.
    """
    written = [path for path in (target, roi[0] if roi else None) if path]
    for path in written:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path} is the file that is read; name another")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name the file to write in it")
    if target:
        check_coding(coding)
    first = _first_frame(source)
    with _opened(source) as container, contextlib.ExitStack() as stack:
        picture = _picture(_video(container), first, coding if target else None, narrator)
        if isinstance(maps, Stream) and (slower := maps.slower(float(picture.rate))) > 1.05:
            narrator.say(
                f"{source.name} has {float(picture.rate):.4g} frames per second, the model's state is for {1 / maps.period:.4g}: "
                f"it will remember {slower:.2g}x as long"
            )
        if target and maps:
            check_map_counts(picture, coding)
        planner = Planner(picture, maps.map if isinstance(maps, Stream) else maps, shaping)
        if roi and maps:
            planner.add_file(stack.enter_context(RoiFile(*roi)) if roi[1] != "addroi" else None)
        out = None
        if target:
            out = stack.enter_context(_Output(target, container, first, picture, coding, video_only, narrator))
        marker = Marker(picture, shaping.block)
        frames = _frames(source, container, first, out)
        for frame in narrator.track(frames, "encode", _expected(container), "frames"):
            offsets = planner.plan(frame)
            if out:
                out.write(marker.mark(frame, offsets))
        if out:
            out.finish(planner.frames)
    if roi and roi[1] == "addroi":
        write_bytes(roi[0], addroi_command(source, planner.static(), shaping.block, picture.size, picture.bits))
    size = out.bytes if out else 0
    return {
        "files": [str(path) for path in written],
        "codec": coding.codec if target else None,
        "frames": planner.frames,
        "seconds": round(planner.seconds, 3),
        "bytes": size,
        "kbps": round(size * 8 / 1000 / planner.seconds, 1),
        "cuts": maps.cuts if isinstance(maps, Stream) else None,
        **planner.summary(),
    }


@dataclass
class Track:
    """The offsets of a clip's frames, in turn, shaped in one way."""

    shaping: Shaping
    size: tuple[int, int]
    offsets: np.ndarray | None = None
    bits: np.ndarray | None = None  # of the blocks, as of late: one frame's alone would shake the offsets
    all_bits: np.ndarray | float = 0.0

    def step(self, saliency: np.ndarray, luma: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        if self.shaping.neutral == "bits":
            bits = block_bits(luma, before, self.shaping.block, self.size)
            self.bits = bits if self.bits is None else (self.bits + bits) / 2
            self.all_bits = self.all_bits + bits
        self.offsets = self.shaping.offsets(saliency, self.size, self.offsets, self.bits)
        return self.offsets


class Planner:
    """Says what offsets each frame gets, in turn, and remembers what for that takes."""

    def __init__(self, picture: Picture, maps: Maps | None, shaping: Shaping) -> None:
        self.picture, self.maps, self.shaping = picture, maps, shaping
        self.frames, self.changes = 0, 0
        self.lowest, self.highest, self.total = 0, 0, 0.0
        self._first = self._last = 0.0
        self._track = Track(shaping, picture.size)
        self._luma: np.ndarray | None = None  # of the frame before
        self._sum: np.ndarray | None = None  # of all maps, for encoders that take one
        self._file: tuple[RoiFile, Track] | None = None

    def add_file(self, file: RoiFile | None) -> None:
        """A file that gets every frame's offsets too, by its own encoder's rules."""
        shaping = self.shaping
        if file and file.format == "svt-av1":
            limit = min(LIMIT, math.ceil(shaping.strength * (1 if shaping.neutral == "off" else 2)))
            shaping = replace(shaping, block=SVT_BLOCK, limit=limit, step=step_for(SVT_LEVELS, limit))
        self._file = (file, Track(shaping, self.picture.size)) if file else None

    def plan(self, frame: av.VideoFrame) -> np.ndarray | None:
        """The offsets int32 `[rows, columns]` of the next frame; None where there are no maps."""
        index, self.frames = self.frames, self.frames + 1
        self._last = frame.time if frame.time is not None else float(index / self.picture.rate)
        if index == 0:
            self._first = self._last
        if self.maps is None:
            return None
        if frame.interlaced_frame:
            raise UsageError(
                f"frame {index + 1} is interlaced, and FFmpeg's encoders ignore a map there; "
                "deinterlace first: ffmpeg -i IN -vf bwdif OUT"
            )
        before, (luma, rgb) = self._luma, self._small(frame)
        self._luma, last = luma, self._track.offsets
        try:
            saliency = self._saliency(frame, rgb)
            offsets = self._track.step(saliency, luma, before)
            if self._file:
                file, track = self._file
                file.add(track.step(saliency, luma, before))
        except ValueError as error:
            raise UsageError(f"frame {self.frames}: {error}") from None
        self.changes += last is not None and not np.array_equal(offsets, last)
        self.lowest, self.highest = min(self.lowest, int(offsets.min())), max(self.highest, int(offsets.max()))
        weights = areas(self.picture.size, self.shaping.block)
        self.total += float((offsets * weights).sum() / weights.sum())
        self._sum = saliency.astype(float) if self._sum is None else self._sum + saliency
        return offsets

    def saliency(self, frame: av.VideoFrame, seconds: float) -> np.ndarray:
        """The map `[h,w]` of a frame alone, without any plan. Raises UsageError where the model gives none."""
        self._last = seconds
        try:
            saliency = self._saliency(frame, self._small(frame)[1])
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not (saliency.min() >= 0 and saliency.max() <= 1):  # false for NaN
            raise UsageError(f"a saliency map lies in [0, 1]; got {saliency.min():g} to {saliency.max():g}")
        return saliency

    def _small(self, frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        """Luma float32 `[h,w]` and RGB uint8 `[h,w,3]` of the frame as small as models see it, in its own orientation."""
        height, width = self.picture.size
        scale = min(1.0, WIDTH / (height if self._turns(frame) % 2 else width))
        # Multiples of 8: some models take no other sizes.
        height, width = (max(16, 8 * round(side * scale / 8)) for side in (height, width))
        rgb = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
        return rgb @ np.array([0.299, 0.587, 0.114], np.float32), rgb

    def _turns(self, frame: av.VideoFrame) -> int:
        return round(frame.rotation / 90) % 4  # quarter turns that show it upright, counter-clockwise

    def _saliency(self, frame: av.VideoFrame, rgb: np.ndarray) -> np.ndarray:
        """The frame's map `[h,w]`, in the frame's own orientation; models see it upright."""
        assert self.maps is not None
        turns = self._turns(frame)
        return np.rot90(self.maps(np.ascontiguousarray(np.rot90(rgb, turns)), self._last), -turns)

    def static(self) -> np.ndarray:
        """The offsets of the mean of all maps."""
        assert self._sum is not None
        bits = self._track.all_bits
        mean = np.clip(self._sum / self.frames, 0, 1)
        return self.shaping.offsets(mean, self.picture.size, None, bits if isinstance(bits, np.ndarray) else None)

    @property
    def seconds(self) -> float:
        """How long the frames last, the last one as long as the rate says."""
        return self._last - self._first + float(1 / self.picture.rate)

    def summary(self) -> dict[str, Any]:
        if self.maps is None:
            return {"offsets": None}
        mean = round(self.total / max(self.frames, 1), 3)
        return {"offsets": {"lowest": self.lowest, "mean": mean, "highest": self.highest, "changes": self.changes}}


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Any]:
    if not source.is_file():
        raise UsageError(f"{source}: no such video" + ("; it is a folder" if source.is_dir() else ""))
    try:
        with av.open(str(source), metadata_errors="ignore") as container:
            if _video(container) is None:
                raise UsageError(f"{source} has no video stream")
            _video(container).thread_type = "AUTO"
            yield container
    except av.FFmpegError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise UsageError(f"{source}: {error.strerror}; is it complete?") from None


def _video(container: Any) -> Any:
    """The first video stream that is no cover art; None where there is none."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _first_frame(source: Path) -> av.VideoFrame:
    with _opened(source) as container:
        for frame in container.decode(_video(container)):
            return frame
    raise UsageError(f"{source} opens, but not one frame decodes; is it complete?")


def _expected(container: Any) -> int:
    """About how many frames there are, for the progress bar alone."""
    stream = _video(container)
    seconds = (container.duration or 0) / av.time_base
    return int(stream.frames or seconds * float(stream.average_rate or 25) or 1)


def _picture(stream: Any, first: av.VideoFrame, coding: Coding | None, narrator: Narrator) -> Picture:
    """What the encoder will get: the source's format and size where it takes them. coding: None where nothing is encoded."""
    name, width, height = first.format.name, first.width, first.height
    if coding:
        accepted = [f.name for f in av.codec.Codec(CODECS[coding.codec], "w").video_formats or []]
        if name not in accepted:
            best, _ = find_best_pix_fmt_of_list(accepted, name)
            if best is None:
                raise UsageError(f"{CODECS[coding.codec]} takes no format like the source's {name}")
            narrator.say(f"{CODECS[coding.codec]} does not take {name}: converted to {best.name}")
            name = best.name
        layout = av.VideoFormat(name, 16, 16)
        width -= width % (16 // layout.chroma_width(16)) if not layout.is_rgb else 0
        height -= height % (16 // layout.chroma_height(16)) if not layout.is_rgb else 0
        if (height, width) != (first.height, first.width):
            narrator.say(
                f"{first.width}x{first.height} is odd and {name} is not: cut to {width}x{height} at the right and at the bottom"
            )
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    side_data: Any = first.side_data  # its types promise names, it gives the data
    beside = {data.type.name: bytes(data) for data in side_data}
    display = mastering_display(beside.get("MASTERING_DISPLAY_METADATA", b""))
    light = content_light(beside.get("CONTENT_LIGHT_LEVEL", b""))
    if coding:
        lost = {called for kind, called in LOST.items() if kind in beside}
        if "MASTERING_DISPLAY_METADATA" in beside and not display:
            lost.add("an incomplete mastering display")
        if lost:
            narrator.say(f"lost, for {CODECS[coding.codec]} does not take it from here: {', '.join(sorted(lost))}")
    return Picture(
        width, height, name, stream.time_base, Fraction(rate), stream.sample_aspect_ratio,
        int(first.color_primaries), int(first.color_trc), int(first.colorspace), int(first.color_range), display, light,
    )  # fmt: skip


def mastering_display(data: bytes) -> str:
    """FFmpeg's AVMasteringDisplayMetadata in the encoders' words, `G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)`; empty where a part is not
    known. Chromaticities count in 1/50000, luminances in 1/10000 cd/m2, as in SMPTE ST 2086."""
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
    """FFmpeg's AVContentLightMetadata in the encoders' words: the brightest pixel and the brightest frame's mean, cd/m2."""
    return "{},{}".format(*struct.unpack_from("=2I", data)) if len(data) >= 8 else ""


def _frames(source: Path, container: Any, first: av.VideoFrame, out: _Output | None) -> Iterator[av.VideoFrame]:
    """The video's frames in order; packets of other streams go to the output on the way."""
    video, index, before = _video(container), 0, None
    rate = video.average_rate or video.guessed_rate or 25
    # AVI's times are those of packets: wrong wherever there are B-frames.
    untimed = container.format.name == "avi" or bool(container.format.flags & NO_TIMES)
    copied = out.copied if out else {}
    for packet in container.demux([video, *(container.streams[i] for i in copied)]):
        if packet.stream.index in copied:
            if out and packet.dts is not None:  # the last, empty one has none
                out.copy(packet)
            continue
        for frame in packet.decode():
            if (frame.width, frame.height) != (first.width, first.height):
                raise UsageError(
                    f"{source}: frame {index + 1} is {frame.width}x{frame.height}, the first {first.width}x{first.height}; "
                    "scale it to one size first"
                )
            if untimed or frame.pts is None:
                frame.pts, frame.time_base = round(index / rate / video.time_base), video.time_base
            if before is not None and frame.pts <= before:
                raise UsageError(
                    f"{source}: frame {index + 1} is not later than the one before; write it anew with ffmpeg"
                )
            before, index = frame.pts, index + 1
            yield frame


def _order(packets: list[av.Packet]) -> None:
    """Gives all packets of a clip their decoding times anew: x265 leaves them to chance in clips of two or three frames."""
    shown = sorted(packet.pts for packet in packets if packet.pts is not None)
    late = max((inside - (packet.pts or 0) for packet, inside in zip(packets, shown, strict=True)), default=0)
    for packet, inside in zip(packets, shown, strict=True):
        packet.dts = inside - late


def _named(stream: Any) -> str:
    if stream.disposition & Disposition.attached_pic:
        return "cover art (.mp4 and .mkv keep it)"
    if stream.type == "attachment":
        return f"attachment {stream.name} (.mkv keeps it)"
    return f"{stream.type} stream {stream.index}"


class _Output:
    """The encoded file; it gets its name only when it is complete. A context manager."""

    container: Any  # PyAV's types do not know which kind of stream a name gives

    def __init__(
        self,
        target: Path,
        source: Any,
        first: av.VideoFrame,
        picture: Picture,
        coding: Coding,
        only: bool,
        narrator: Narrator,
    ) -> None:
        self.target, self.source, self.first, self.picture, self.coding = target, source, first, picture, coding
        self._named = contextlib.ExitStack()
        self.only, self.narrator = only, narrator
        self.copied: dict[int, Any] = {}  # streams of the output by the index of the source's
        self.covers: list[tuple[Any, av.Packet]] = []
        self.bytes = self.packets = 0

    def __enter__(self) -> _Output:
        try:
            temporary = self._named.enter_context(atomic(self.target))
            try:
                self.container = av.open(str(temporary), "w")
            except ValueError:
                raise UsageError(f"{self.target}: the suffix names no container; .mp4 and .mkv do") from None
            self._named.push(self._close)
            self._set_up()
        except BaseException:
            self._named.__exit__(*sys.exc_info())
            raise
        return self

    def _set_up(self) -> None:
        video = _video(self.source)
        try:
            self.stream = self.container.add_stream(CODECS[self.coding.codec], rate=self.picture.rate)
        except ValueError as error:
            raise UsageError(
                f"{self.target} cannot hold {self.coding.codec} video ({error}); write .mp4 or .mkv"
            ) from None
        configure(self.stream.codec_context, self.picture, self.coding)
        self.stream.time_base = self.picture.time_base
        matrix: Any = self.first.side_data.get("DISPLAYMATRIX")
        if matrix:
            self.stream.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
        self.stream.metadata.update({k: v for k, v in video.metadata.items() if k != "encoder"})
        left_out = []
        for stream in self.source.streams:
            if stream.index == video.index or self.only:
                continue
            if stream.type not in ("audio", "subtitle"):
                if not self._attach(stream):
                    left_out.append(_named(stream))
                continue
            try:
                copy = self.container.add_stream_from_template(stream)
            except ValueError as error:
                raise UsageError(
                    f"{self.target} cannot hold the {stream.type} of the source ({error}); write .mkv, or leave it out with --video-only"
                ) from None
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self.copied[stream.index] = copy
        if left_out:
            self.narrator.say(f"left out: {', '.join(left_out)}")
        self.container.metadata.update(self.source.metadata)
        self.container.set_chapters(self.source.chapters())
        with _refusals(self.coding):
            self.container.start_encoding()
        for copy, picture in self.covers:
            picture.stream, picture.pts, picture.dts = copy, 0, 0
            self.container.mux(picture)

    def _attach(self, stream: Any) -> bool:
        """Takes cover art or an attachment along, as the container holds them; False where it does not."""
        holder, codec = self.container.format.name, stream.codec_context.name if stream.codec_context else ""
        if stream.type == "attachment" and holder == "matroska" and stream.mimetype:
            self.container.add_attachment(stream.name or "attachment", stream.mimetype, stream.data)
            return True
        if not stream.disposition & Disposition.attached_pic or codec not in COVERS:
            return False
        with _opened(
            Path(self.source.name)
        ) as again:  # its picture is a packet, wanted before the file's head is written
            packet = next(again.demux(again.streams[stream.index]))
        suffix, kind = COVERS[codec]
        if holder == "matroska":
            self.container.add_attachment(stream.metadata.get("filename", f"cover.{suffix}"), kind, bytes(packet))
        elif holder == "mp4":
            copy = self.container.add_stream_from_template(stream)
            copy.disposition = Disposition.attached_pic
            self.covers.append((copy, packet))
        return holder in ("matroska", "mp4")

    def write(self, frame: av.VideoFrame | None) -> None:
        packets = self.stream.encode(frame)
        if frame is None and self.packets == 0:
            _order(packets)
        for packet in packets:
            self.bytes += packet.size
            self.packets += 1
            self.container.mux(packet)

    def copy(self, packet: av.Packet) -> None:
        packet.stream = self.copied[packet.stream.index]
        self.container.mux(packet)

    def finish(self, frames: int) -> None:
        """Lets the encoder give what it still holds. Raises UsageError where it has dropped frames."""
        self.write(None)
        if self.packets != frames:
            raise UsageError(f"{self.target}: {frames} frames went in, {self.packets} came out")

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(av.FFmpegError) if kind else contextlib.nullcontext():
            self.container.close()

    def __exit__(self, *error: Any) -> None:
        self._named.__exit__(*error)

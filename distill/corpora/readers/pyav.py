"""Videos through PyAV, where it is installed: it reads more codecs than OpenCV, and knows the time stamps and where a file ends.

Encoding reads its videos by the same functions. Pixels are those that OpenCV gives, for the same scaler takes the same path.
"""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from distill.corpora.readers.frames import Frame, codec_name
from distill.export.yuv import Colour, Planes, half_size
from distill.run.errors import UsageError

NO_TIMES = av.format.Flags.no_timestamps.value
RECKONED = av.format.Flags.ts_discont.value  # of MPEG streams FFmpeg gives the length that it finds, and from any start
FORMATS_420 = ("yuv420p", "yuvj420p", "nv12", "yuv420p10le")
MATRICES_OF = {1: "bt709", 7: "bt709", 9: "bt2020", 10: "bt2020"}  # by ITU-T H.273; 7, SMPTE 240M, is close to BT.709
UNIT = Fraction(1, 60000)  # seconds, of the times in files that are written


@contextlib.contextmanager
def open_container(path: Path, threads: int = 0) -> Iterator[Any]:
    """The container of a video file. threads: of the video's decoder, 0 for FFmpeg's default.

    Raises UsageError for a missing, damaged or unreadable file, inside the block too."""
    if not path.is_file():
        raise UsageError(f"{path}: no such video" + ("; it is a folder" if path.is_dir() else ""))
    try:
        # FFmpeg would read the start of a relative `a:b.mp4` as a protocol.
        with av.open(str(path.absolute()), metadata_errors="ignore") as container:
            video = video_stream(container)
            if video is None:
                raise UsageError(f"{path} has no video stream")
            if video.codec_context is None:
                codec = f"its codec is {codec_name(path)}, which the FFmpeg in PyAV does not decode"
                raise UsageError(f"{path}: {codec}; convert it where that is possible: ffmpeg -i IN -c:v libx264 OUT.mp4")
            video.thread_type, video.codec_context.thread_count = "AUTO", threads
            yield container
    except Exception as error:  # not FFmpegError: at the end of the process its name is gone before a reader is closed
        if not isinstance(error, av.FFmpegError):
            raise
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise UsageError(f"{path} does not open as a video: {error.strerror}; is it complete?") from None


def video_stream(container: Any) -> Any:
    """The first video stream that is not cover art; None where there is none."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def has_times(container: Any) -> bool:
    """Whether frames have stamps of their own."""
    return not in_order(container) and not container.format.flags & NO_TIMES


def in_order(container: Any) -> bool:
    """Whether frames are shown at the times of the packets in the order of the file, as in AVI: a stamp there is that of a packet,
    and of another frame wherever there are B-frames. Gaps are frames that a camera dropped."""
    return bool(container.format.name == "avi")


def header(path: Path) -> tuple[int, int, int, float]:
    """Frames, height, width and frames per second as the header states them; 0 where it does not."""
    with open_container(path) as container:
        video = video_stream(container)
        return video.frames, video.codec_context.height, video.codec_context.width, _stated_rate(video)


def _stated_rate(video: Any) -> float:
    return float(video.average_rate or video.guessed_rate or 0)


class Orientation(NamedTuple):
    """How a frame is turned to be seen upright: its axes are swapped first, then flipped."""

    swapped: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def upright(self, stored: np.ndarray) -> np.ndarray:
        """A view of `[H,W,...]` as a player shows it."""
        image = stored.swapaxes(0, 1) if self.swapped else stored
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def stored(self, upright: np.ndarray) -> np.ndarray:
        """The inverse of `upright`."""
        image = upright[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return image.swapaxes(0, 1) if self.swapped else image


def orientation(frame: Any) -> Orientation:
    """That of the frame's display matrix: quarter turns and mirrors; other angles are not turned."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if not matrix:
        return Orientation()
    # Column x of row y is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not (b or c):
        return Orientation(False, d < 0, a < 0)
    if b and c and not (a or d):
        return Orientation(True, b < 0, c < 0)
    return Orientation()


def planes_of(frame: Any) -> Planes | None:
    """The planes of a decoded frame, as it is stored, without a copy: they live as long as the frame. None for a pixel format that
    is not one of FORMATS_420. A matrix that is not stated is BT.601, as it is for FFmpeg's scaler."""
    if frame.format.name not in FORMATS_420:
        return None
    kind, full = (np.uint16, False) if frame.format.name == "yuv420p10le" else (np.uint8, frame.format.name == "yuvj420p")
    colour = Colour(
        MATRICES_OF.get(int(frame.colorspace), "bt601"), "full" if full or int(frame.color_range) == 2 else "limited",
        10 if kind == np.uint16 else 8,
    )  # fmt: skip
    size = np.dtype(kind).itemsize

    def view(plane: Any, shape: tuple[int, ...]) -> np.ndarray:
        strides = (plane.line_size, size) if len(shape) == 2 else (plane.line_size, 2 * size, size)
        return np.ndarray(shape, kind, plane, strides=strides)

    shape = frame.height, frame.width
    luma, half = view(frame.planes[0], shape), half_size(shape)
    if frame.format.name == "nv12":
        pairs = view(frame.planes[1], (*half, 2))
        return Planes(luma, pairs[..., 0], pairs[..., 1], colour)
    return Planes(luma, view(frame.planes[1], half), view(frame.planes[2], half), colour)


class Video:
    """A video file, for one pass over its frames: see distill.corpora.readers.frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rate, self.timed, self.lost = 0.0, True, 0
        self._packets, self._shown = 0, 0  # packets of the video that were found, and frames, so far
        self._starts: list[float | None] = []  # of the packets of the video that decode, in the order of the file, in seconds
        self._ends: dict[int, float] = {}  # of the packets of each stream, in seconds
        self._stated: tuple[int | None, float] | None = None  # where a stream (None: the longest) should end

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown. Raises UsageError for a file that cannot be read."""
        scaler = VideoReformatter()
        turn: Orientation | None = None
        whole = False
        with open_container(self.path) as container:
            video = video_stream(container)
            self.rate, by_packets = _stated_rate(video), in_order(container)
            self.timed = by_packets or has_times(container)
            self._stated = stated_end(container, video)
            indexed = sum(entry.size > 0 for entry in video.index_entries) if by_packets else 0
            for frame in self._decoded(container, video):
                turn = orientation(frame) if turn is None else turn
                whole = whole or not frame.is_corrupt  # a recording may begin between two key frames
                self.lost += bool(whole and frame.is_corrupt)  # the decoder fills in what is missing
                size = (frame.width, frame.height) if turn.swapped else (frame.height, frame.width)
                stamp = frame.time
                if by_packets:
                    stamp = self._starts[self._shown] if self._shown < len(self._starts) else None
                self._shown += 1
                planes = planes_of(frame)
                yield Frame(stamp, size, partial(_rgb, scaler, frame, turn), planes and planes.turned(turn.upright))
            self.lost += max(0, indexed - self._packets)  # an AVI names them in its index

    def _decoded(self, container: Any, video: Any) -> Iterator[Any]:
        with contextlib.suppress(av.error.InvalidDataError):  # damage to the container ends the file
            for packet in container.demux(video, *container.streams.audio, *container.streams.subtitles):
                if packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._ends[packet.stream.index] = max(end, self._ends.get(packet.stream.index, end))
                if packet.stream.index == video.index:
                    if packet.size:
                        self._packets += 1
                        self._starts.append(None if packet.dts is None else float(packet.dts * packet.time_base))
                    yield from self._decode(video, packet)
            return
        yield from self._decode(video, None)

    def _decode(self, video: Any, packet: Any) -> list[Any]:
        try:
            return video.decode(packet)
        except av.error.InvalidDataError:
            self.lost += 1
            del self._starts[self._shown : self._shown + 1]  # no frame is shown at its time
            return []

    def ends(self) -> tuple[float, float] | None:
        """After the last frame: where the file ends and where its header says it does, in seconds; None if it does not say."""
        if self._stated is None or not self._ends:
            return None
        stream, end = self._stated
        return self._ends.get(stream, 0.0) if stream is not None else max(self._ends.values()), end


def stated_end(container: Any, video: Any) -> tuple[int | None, float] | None:
    """Where the header says that the video's stream ends; or, with None for the stream, the longest one; None if it does not say."""
    if container.format.flags & RECKONED:
        return None
    if not has_times(container) and video.frames and video.average_rate:  # FFmpeg shortens the duration of a truncated AVI
        return video.index, float(video.frames / video.average_rate)
    if video.duration:
        return video.index, float(((video.start_time or 0) + video.duration) * video.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.metadata.get("DURATION", "")):  # Matroska
        return video.index, 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    if container.duration:
        return None, ((container.start_time or 0) + container.duration) / av.time_base
    return None


def _rgb(scaler: VideoReformatter, frame: Any, turn: Orientation) -> np.ndarray:
    """The frame upright, uint8 RGB `[H,W,3]`."""
    # More than 8 bits are rounded otherwise on the way to RGB than to BGR, to which OpenCV converts.
    deep = frame.format.components[0].bits > 8
    picture = scaler.reformat(frame, format="bgr24" if deep else "rgb24", interpolation="BICUBIC", threads=1)
    plane: Any = picture.planes[0]
    pixels = np.ndarray((picture.height, picture.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
    if deep:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(turn.upright(pixels))  # a copy only where that is needed


def write(path: Path, fps: float, size: Sequence[int], frames: Iterable[np.ndarray], times: Sequence[float] = ()) -> int:
    """Writes uint8 RGB frames `[H,W,3]` of (height, width) `size` as H.264 that browsers play while it loads: 4:2:0, BT.709, its
    index in front. An odd side gets one more pixel. Returns how many frames.

    times: of the frames in seconds, where they have no one rate. Raises UsageError if the file cannot be written.
    """
    rate = Fraction(fps).limit_denominator(1001)
    unit, count = UNIT if len(times) else 1 / rate, 0
    padding = [(0, side % 2) for side in size]
    try:
        with av.open(str(path.absolute()), "w", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            stream.height, stream.width = (side + side % 2 for side in size)
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.time_base = unit
            context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1  # BT.709, limited range
            for rgb in frames:
                whole = np.pad(rgb, [*padding, (0, 0)], "edge") if any(side % 2 for side in size) else rgb
                frame = av.VideoFrame.from_ndarray(whole).reformat(
                    format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                )
                frame.pts, frame.time_base = round(times[count] / unit) if len(times) else count, unit
                container.mux(stream.encode(frame))
                count += 1
            container.mux(stream.encode())
    except av.FFmpegError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise UsageError(f"cannot write {path}: {error.strerror}; does the folder exist, is it writable?") from None
    return count

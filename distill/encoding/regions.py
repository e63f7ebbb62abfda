"""QP offsets as regions of a frame, and a check that the encoder heeds them.

FFmpeg's encoders take regions of interest as side data of a frame. PyAV reads side data but adds none; only FFmpeg's filter
`addroi` adds a region. So a frame passes through short chains of that filter, which are built once, until it holds as many
regions as its offsets need; then `mark` overwrites these regions with its own. That costs 0.3 ms a frame where one filter for
every region, built anew for every map, cost 6.

The encoders apply regions inside their adaptive quantisation and ignore them silently where it is off. So `check_map_counts`
first encodes two frames of noise with a map and without: where both give the same bytes, the map would be ignored, and nothing is
encoded.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import av
import numpy as np

from distill.encoding.encoders import Coding, Pass, Picture, new_context, refusals
from distill.encoding.roi_files import rectangles
from distill.run.errors import UsageError
from distill.run.files import temporary_folder

CHAIN = 64  # filters in the longest chain
REGION = 7 * 4  # bytes of FFmpeg's AVRegionOfInterest


class RegionMarker:
    """Attaches QP offsets to frames, cropped to the picture's size; offsets are int `[rows, columns]` in QP, or None."""

    def __init__(self, picture: Picture, block: int) -> None:
        self.picture, self.block = picture, block
        self._crop: Any = None
        self._chains: dict[int, Any] = {}  # by their length, powers of 2

    def mark(self, frame: av.VideoFrame, offsets: np.ndarray | None) -> av.VideoFrame:
        """The frame with its regions; its type is left to the encoder."""
        picture, pts, time_base = self.picture, frame.pts, frame.time_base
        if frame.format.name != picture.format:
            frame = frame.reformat(format=picture.format, threads=1)
        if (frame.height, frame.width) != picture.size:
            self._crop = self._crop or _graph(frame, [("crop", f"{picture.width}:{picture.height}:0:0:exact=1")])
            frame = _passed(frame, self._crop)
        if offsets is not None:
            frame = self._marked(frame, regions(offsets, self.block, picture.size, picture.bits))
        frame.pts, frame.time_base = pts, time_base
        frame.pict_type = 0  # otherwise the encoder keeps the source's
        return frame

    def _marked(self, frame: av.VideoFrame, wanted: np.ndarray) -> av.VideoFrame:
        lacking = len(wanted)
        while lacking:
            length = min(CHAIN, 1 << lacking.bit_length() - 1)
            if length not in self._chains:
                self._chains[length] = _graph(frame, [("addroi", "0:0:0:0:0")] * length)
            frame = _passed(frame, self._chains[length])
            lacking -= length
        if len(wanted):
            side_data: Any = frame.side_data
            found = side_data["REGIONS_OF_INTEREST"]
            # The last filter has made this buffer for this frame alone, so nothing else reads what is written here.
            assert found.buffer_size == wanted.nbytes, f"{len(wanted)} regions of {found.buffer_size} bytes"
            ctypes.memmove(found.buffer_ptr, wanted.tobytes(), wanted.nbytes)
        return frame


def regions(offsets: np.ndarray, block: int, size: tuple[int, int], bits: int = 8) -> np.ndarray:
    """The offsets as FFmpeg's AVRegionOfInterest, int32 `[regions, 7]`: bytes of one, top, bottom, left, right, and the offset's
    share of the encoder's QP range as a fraction; see `rectangles`.

    bits: bits per sample. The range is 51, plus 6 for every bit above 8.
    """
    x, y, width, height, value = rectangles(offsets, block, size).T
    bytes_, scale = np.full_like(x, REGION), np.full_like(x, 51 + 6 * (bits - 8))
    return np.stack([bytes_, y, y + height, x, x + width, value, scale], 1).astype(np.int32)


def _graph(frame: av.VideoFrame, filters: list[tuple[str, str]]) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1  # these filters have nothing to share out, and every graph would start its own
    # Regions do not depend on time: any time base will do, and `mark` restores the time stamps.
    source = graph.add(
        "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base="1/1000",
        pixel_aspect="1/1", colorspace=str(int(frame.colorspace)), range=str(int(frame.color_range)),
    )  # fmt: skip
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
    return graph


def _passed(frame: av.VideoFrame, graph: Any) -> Any:
    graph.push(frame)
    return graph.pull()


Frames = Callable[[], Iterable[av.VideoFrame]]  # called for each pass: the frames, with their time stamps


def encode_frames(
    frames: Frames, offsets: Sequence[np.ndarray | None], picture: Picture, coding: Coding, block: int = 16
) -> list[av.Packet]:  # fmt: skip
    """The packets of frames encoded with the offsets of each, in two passes where `coding` says so."""
    if not coding.two_pass:
        return _encode_once(frames, offsets, picture, coding, block)
    with temporary_folder() as folder:
        _encode_once(frames, offsets, picture, coding, block, Pass(1, folder / "statistics"))
        return _encode_once(frames, offsets, picture, coding, block, Pass(2, folder / "statistics"))


def _encode_once(
    frames: Frames, offsets: Sequence[np.ndarray | None], picture: Picture, coding: Coding, block: int, of: Pass | None = None
) -> list[av.Packet]:  # fmt: skip
    context = new_context(picture, coding, of)
    marker, packets = RegionMarker(picture, block), []
    with refusals(coding, picture):
        for frame, of_frame in zip(frames(), offsets, strict=True):
            packets += context.encode(marker.mark(frame, of_frame))
        return packets + context.encode(None)


def check_map_counts(picture: Picture, coding: Coding) -> None:
    """Encodes two frames of noise with a map and without; raises UsageError where both give the same bytes."""
    small, coding = replace(picture, width=128, height=128), replace(coding, two_pass=False)
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)

    def frames() -> Iterator[av.VideoFrame]:
        for index, pixels in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format=picture.format)
            frame.pts, frame.time_base = round(index / picture.rate / picture.time_base), picture.time_base
            yield frame

    left = np.full((8, 8), 6, np.int32)
    left[:, :4] = -6
    streams = [[bytes(p) for p in encode_frames(frames, [offsets] * 2, small, coding)] for offsets in (None, left)]
    if streams[0] == streams[1]:
        given = f"preset {coding.preset}, {', '.join(coding.params) or 'no --param'}"
        needs = "its adaptive quantisation must be on: no fixed QP, no lossless, aq-mode above 0"
        raise UsageError(f"{coding.encoder} ignores the map with these options; {needs} (given: {given})")

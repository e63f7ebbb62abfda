from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from distill.encoding.encoders import Picture  # noqa: E402
from distill.encoding.regions import RegionMarker  # noqa: E402
from distill.encoding.roi_files import addroi  # noqa: E402


def frame_of(width, height, format_):
    frame = av.VideoFrame(width, height, format_)
    frame.pts, frame.time_base, frame.colorspace = 1001, Fraction(1, 30000), 1
    return frame


def regions_of(frame):
    return bytes(frame.side_data["REGIONS_OF_INTEREST"])


def by_ffmpeg(frame, offsets, block, bits):
    """The frame's regions as FFmpeg's own filters set them, one for every rectangle."""
    graph = av.filter.Graph()
    source = graph.add(
        "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, time_base="1/1", pixel_aspect="1/1"
    )
    nodes = [graph.add("addroi", arguments) for arguments in addroi(offsets, block, (frame.height, frame.width), bits)]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    graph.push(frame)
    return regions_of(graph.pull())


@pytest.mark.parametrize(("format_", "bits"), [("yuv420p", 8), ("yuv422p10le", 10)])
def test_regions_are_those_that_ffmpegs_filters_set(format_, bits):
    width, height, block = 246, 178, 16
    marker = RegionMarker(Picture(width, height, format_, Fraction(1, 30000), Fraction(30)), block)
    rng = np.random.default_rng(0)
    for values in ((-12, 12), (2, 2), (-1, 0), (0, 3)):  # more regions than the longest chain has, one, and some
        offsets = rng.integers(values[0], values[1] + 1, (12, 16)).astype(np.int32)
        marked = marker.mark(frame_of(width, height, format_), offsets)
        assert regions_of(marked) == by_ffmpeg(frame_of(width, height, format_), offsets, block, bits)
        assert (marked.pts, marked.time_base, marked.colorspace) == (1001, Fraction(1, 30000), 1)


def test_frames_are_cropped_and_keep_their_pixels():
    marker = RegionMarker(Picture(64, 48, "yuv420p", Fraction(1, 25), Fraction(25)), 16)
    pixels = np.random.default_rng(0).integers(0, 256, (50 * 3 // 2, 66), np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    for offsets in (None, np.zeros((3, 4), np.int32), np.arange(12, dtype=np.int32).reshape(3, 4)):
        marked = marker.mark(frame, offsets)
        assert np.array_equal(marked.to_ndarray()[:48], pixels[:48, :64])
        assert len(marked.side_data) == (offsets is not None and bool(offsets.any()))
    assert len(frame.side_data) == 0

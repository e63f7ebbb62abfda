import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("av")

import av

from distill.corpora import density_map, fixation_map, open_corpus
from distill.corpora.readers.frames import Frame
from distill.corpora.readers.pyav import planes_of
from distill.encoding.bd.excerpts import (
    Span,
    check_proxy,
    find_sources,
    make_excerpt,
    read_clip,
    read_span,
    read_video,
    with_proxy_weights,
)
from distill.encoding.maps import open_maps
from distill.export.graph import image_graph, step_graph
from distill.export.streaming import Stream
from distill.export.yuv import Colour, Planes
from distill.run.errors import UsageError
from tests.helpers import frames_of, lively


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Two students and, of the first, both files of an export."""
    folder = tmp_path_factory.mktemp("students")
    (folder / "one.onnx").write_bytes(image_graph(lively(), {}).SerializeToString())
    (folder / "one_step.onnx").write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    return folder


def test_no_model_weights_its_own_measurement(students):
    (students / "copy.onnx").write_bytes((students / "one.onnx").read_bytes())
    models = {"one.onnx": students / "one.onnx"}
    with pytest.raises(UsageError, match=r"the same file as one\.onnx"):
        check_proxy(students / "copy.onnx", models)
    with pytest.raises(UsageError, match=r"the same weights as in one\.onnx"):
        check_proxy(students / "one_step.onnx", models)
    (students / "two.onnx").write_bytes(image_graph(lively(seed=1), {}).SerializeToString())
    check_proxy(students / "two.onnx", models)
    with pytest.raises(UsageError, match="Gaussian is one of the maps compared"):
        check_proxy(Path("centre"), models)
    with pytest.raises(UsageError, match="no such model"):
        check_proxy(students / "none.onnx", models)


def test_a_proxys_map_weights_every_pixel(students, tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (61, 95, 3), dtype=np.uint8) for _ in range(2)]
    excerpt = make_excerpt(frames_of(pixels), 25.0, tmp_path)
    excerpt = with_proxy_weights(excerpt, open_maps(students / "one_step.onnx", None), "one_step.onnx")
    weight = excerpt.weight(1)
    assert weight.shape == excerpt.picture.size == (60, 94) and weight.sum() == pytest.approx(1, abs=1e-5) and weight.min() >= 0
    assert np.corrcoef(weight.ravel(), cv2.resize(excerpt.weights[1], (94, 60)).ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(ValueError("m.onnx does not run at 64x48"), "does not run"), (np.nan, "nan to nan"), (1.5, "1.5 to 1.5")],
)
def test_a_proxy_without_a_map_is_a_one_line_error(students, monkeypatch, answer, message, tmp_path):
    def look(self, frame, seconds):
        if isinstance(answer, ValueError):
            raise answer
        return np.full(frame.shape[:2], answer, np.float32)

    monkeypatch.setattr(Stream, "map", look)
    excerpt = make_excerpt(frames_of([np.zeros((48, 64, 3), np.uint8)]), 25.0, tmp_path)
    with pytest.raises(UsageError, match=message):
        with_proxy_weights(excerpt, open_maps(students / "one.onnx", None), "one.onnx")


def test_spans_begin_after_the_first_second_or_in_the_middle():
    assert Span(10).of(100, 30.0, ()) == range(30, 40) and Span(0).of(100, 29.97, ()) == range(30, 100)
    assert Span(10, 1.05).of(100, 30.0, ()) == range(32, 42)  # not before
    assert Span(10, None).of(100, 30.0, ()) == range(45, 55) and Span(0, None).of(9, 30.0, ()) == range(9)
    assert Span(10).of(36, 30.0, ()) == range(30, 36)
    assert Span(10).of(31, 30.0, ()) == range(15, 25)  # one frame is left: it ends too early
    assert Span(2).of(4, 30.0, (0.0, 0.5, 1.0, 1.5)) == range(2, 4)
    assert read_span("all", "middle") == Span(0, None) and read_span("0", "2.5") == Span(0, 2.5)
    for frames, start, option in (
        ("1", "1", "--frames 1"),
        ("few", "1", "--frames few"),
        ("5", "-1", "--start"),
        ("5", "x", "--start"),
    ):
        with pytest.raises(UsageError, match=option):
            read_span(frames, start)


def test_an_excerpt_has_the_frames_and_the_gaze_of_its_span(tiny_root, tmp_path):
    (clip,) = open_corpus("dhf1k", [str(tiny_root)]).clips[:1]
    at = range(clip.frames)[int(clip.fps / 2) : int(clip.fps / 2) + 3]
    excerpt = read_clip(clip, Span(3, 0.5), False, tmp_path)
    assert len(excerpt) == 3 and excerpt.start == pytest.approx(clip.time_of(at.start))
    whole = list(clip.read())
    for index, number in enumerate(at):
        red, green, blue = whole[number].astype(float).mean((0, 1))
        luma = excerpt.pixels[index, : clip.height]
        assert luma.mean() == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=1)  # of an MJPEG: full range
        if (fixations := fixation_map(clip, number)).any():
            assert np.allclose(excerpt.weights[index], density_map(clip, number, fixations), atol=1e-6)
    frame = next(excerpt.frames())
    assert (frame.format.name, frame.pts) == ("yuv420p", 0) and np.array_equal(frame.to_ndarray(), excerpt.pixels[0])


def test_weights_of_large_frames_are_those_of_what_a_model_sees(tmp_path):
    gaze = np.zeros((180, 1280), np.float32)
    gaze[40:80, 100:300] = 1
    excerpt = make_excerpt(frames_of([np.zeros((180, 1280, 3), np.uint8)]), 25.0, tmp_path, lambda index: gaze)
    assert excerpt.weights[0].shape == (90, 640)
    assert np.abs(excerpt.weight(0) - gaze / gaze.sum()).max() < 0.6 / gaze.sum()  # at edges only


def test_only_named_clips_are_opened(tiny_root, tmp_path, narrator):
    root = tmp_path / "corpus"
    shutil.copytree(tiny_root, root)
    names = [clip.id for clip in open_corpus("dhf1k", [str(root)]).clips]
    for video in (root / "video").iterdir():
        if video.stem not in names[:2]:
            video.write_bytes(b"not a video")
    assert [source.name for source in find_sources([], "dhf1k", root, f"{names[1]},{names[0]}", Span(5), narrator)] == names[
        1::-1
    ]
    with pytest.raises(UsageError, match="does not open"):
        find_sources([], "dhf1k", root, None, Span(5), narrator)


@pytest.mark.parametrize(
    ("pixel_format", "colour", "kept"),
    [
        ("yuv420p", {"colorspace": 1, "color_range": 1}, (1, 1)),
        ("yuv420p", {"colorspace": 1, "color_range": 2}, (1, 2)),
        ("yuv420p", {}, (6, 1)),  # as FFmpeg reads what states nothing
        ("yuv422p10le", {"colorspace": 1, "color_range": 1}, (6, 1)),  # converted
    ],
)
def test_an_excerpt_holds_the_planes_of_the_video(tmp_path, pixel_format, colour, kept):
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 65, 49, pixel_format
        for name, value in colour.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (49, 65, 3), np.uint8)).reformat(
                format=pixel_format, dst_colorspace=colour.get("colorspace", 5), dst_color_range=colour.get("color_range", 1)
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    excerpt = read_video(tmp_path / "v.mkv", Span(0, 0), tmp_path)
    assert excerpt.picture.size == (48, 64) and (excerpt.picture.matrix, excerpt.picture.range) == kept
    first, decoded = excerpt.frame(0), next(av.open(str(tmp_path / "v.mkv")).decode(video=0))
    assert (int(first.colorspace), int(first.color_range)) == kept
    planes = planes_of(first)
    if pixel_format == "yuv420p":
        truth = planes_of(decoded).cropped((48, 64))
        assert planes.colour == truth.colour
        assert all(np.array_equal(getattr(planes, name), getattr(truth, name)) for name in ("y", "u", "v"))
    else:
        seen, shown = (f.reformat(format="rgb24").to_ndarray()[:48, :64].astype(int) for f in (first, decoded))
        assert np.abs(seen - shown).mean() < 25  # chroma of noise is halved


def test_a_colour_that_changes_becomes_that_of_the_first_frame(tmp_path):
    grey, full = np.full((48, 64), 128, np.uint8), Colour("bt709", "full")
    stored = Planes(grey, grey[::2, ::2], grey[::2, ::2], full)
    first = Frame(None, (48, 64), partial(np.full, (48, 64, 3), 128, np.uint8), stored)
    excerpt = make_excerpt([first, first._replace(planes=None)], 25.0, tmp_path)
    assert np.abs(excerpt.pixels[0].astype(int) - excerpt.pixels[1]).max() <= 1

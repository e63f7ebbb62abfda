import contextlib
import os
import struct
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from distill.encoding import container as containers  # noqa: E402
from distill.encoding import encoders, regions  # noqa: E402
from distill.encoding import source as sources  # noqa: E402
from distill.encoding.encode import check_outputs, encode  # noqa: E402
from distill.encoding.encoders import Coding  # noqa: E402
from distill.encoding.maps import centre_map, open_maps  # noqa: E402
from distill.encoding.planner import make_shaping  # noqa: E402
from distill.encoding.qp_offsets import MAPPINGS  # noqa: E402
from distill.encoding.roi_files import RoiOutput  # noqa: E402
from distill.export.streaming import Stream  # noqa: E402
from distill.run.errors import UsageError  # noqa: E402
from distill.run.files import MACHINE  # noqa: E402
from tests.corpora import writers  # noqa: E402
from tests.helpers import lively  # noqa: E402

H, W = 96, 160
LINEAR = replace(MAPPINGS["linear"], prior=0)
STRONG = replace(LINEAR, strength=6, neutral="mean")


class RecordingNarrator:
    """A narrator that keeps its messages."""

    stop = staticmethod(lambda: False)

    def __init__(self):
        self.messages = []

    def say(self, text):
        self.messages.append(text)

    def track(self, items, title, total, unit="clips"):
        return iter(items)


def pictures(count, height=H, width=W):
    """Natural-looking: two scales of texture that move, and some noise. uint8 RGB."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (height // 12 + 3, width // 12 + count + 3, 3)).repeat(12, 0).repeat(12, 1)
    fine = rng.integers(-30, 30, (height + 8, width + 2 * count, 3)).repeat(1, 0)
    for n in range(count):
        noise = rng.normal(0, 3, (height, width, 3))
        frame = coarse[n % 7 :, n:][:height, :width] + fine[:height, 2 * n : 2 * n + width] + noise
        yield np.clip(frame, 0, 255).astype(np.uint8)


def write_clip(path, count=12, size=(H, W), format_="yuv420p", times=None, audio=False, codec="ffv1", opts=None, **context):
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options=opts or {})
        video.height, video.width = size
        video.pix_fmt = format_
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        rotation = context.pop("rotation", None)
        if rotation is not None:
            video.set_display_rotation(rotation)
        for name, value in context.items():
            setattr(video.codec_context, name, value)
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono") if audio else None
        for n, pixels in enumerate(pictures(count, *size)):
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format=format_)
            frame.pts, frame.time_base = (times[n] if times else 40 * n), Fraction(1, 1000)
            out.mux(video.encode(frame))
            if sound:
                wave = (8000 * np.sin(np.arange(320) * 0.3 + n)).astype(np.int16)[None]
                tone = av.AudioFrame.from_ndarray(wave, "s16", "mono")
                tone.sample_rate, tone.pts, tone.time_base = 8000, 320 * n, Fraction(1, 8000)
                out.mux(sound.encode(tone))
        out.mux(video.encode(None))
        if sound:
            out.mux(sound.encode(None))
    return path


def luma(path):
    """[T,H,W] in shares of the whole range, times in seconds."""
    found, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            bits = frame.format.components[0].bits
            plane = frame.planes[0]
            row = np.frombuffer(bytes(plane), np.uint8 if bits == 8 else np.uint16).reshape(frame.height, -1)
            found.append(row[:, : frame.width] / (2**bits - 1))
            times.append(frame.time)
    return np.array(found), times


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


def left(frame, seconds):
    saliency = np.zeros(frame.shape[:2], np.float32)
    saliency[:, : frame.shape[1] // 2] = 1
    return saliency


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "in.mkv")


@pytest.fixture
def recorder():
    return RecordingNarrator()


def run(clip, out, maps, recorder, coding=None, shaping=STRONG, **more):
    coding = replace(coding or Coding(preset="superfast"), threads=1)  # with more, tests of tiny clips only wait
    return encode(clip, out, maps, coding, shaping, recorder, **more)


@pytest.mark.parametrize(("codec", "middle"), [("x264", 28), ("x265", 30)])
def test_at_equal_bitrate_quality_moves_to_where_people_look(clip, tmp_path, recorder, codec, middle):
    def measure(crf, maps):
        facts = run(clip, tmp_path / "out.mkv", maps, recorder, Coding(codec, crf=crf, preset="superfast"))
        before, after = luma(clip)[0], luma(tmp_path / "out.mkv")[0]
        half = W // 2
        return (
            np.log(facts["bytes"]),
            psnr(before[..., :half], after[..., :half]),
            psnr(before[..., half:], after[..., half:]),
        )

    plain = np.array([measure(crf, None) for crf in (middle + 1, middle - 2, middle - 5)])
    rate, inside, outside = measure(middle, left)
    assert plain[0, 0] < rate < plain[-1, 0]
    assert inside - np.interp(rate, plain[:, 0], plain[:, 1]) > 1
    assert outside - np.interp(rate, plain[:, 0], plain[:, 2]) < -1


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_quality_follows_a_target_that_changes_sides(clip, tmp_path, recorder, codec):
    facts = run(
        clip, tmp_path / "out.mkv", lambda f, t: left(f, t) if t < 0.24 else left(f, t)[:, ::-1], recorder,
        Coding(codec, crf=30, preset="superfast"),
    )  # fmt: skip
    assert facts["offsets"] == {"lowest": -6, "mean": 0.0, "highest": 6, "changes": 1}
    error = (luma(clip)[0] - luma(tmp_path / "out.mkv")[0]) ** 2
    for frames, better in ((slice(0, 6), slice(0, W // 2)), (slice(6, 12), slice(W // 2, W))):
        whole, there = error[frames].mean(), error[frames, :, better].mean()
        assert 10 * np.log10((2 * whole - there) / there) > 3  # dB between the sides


def test_a_student_encodes_and_its_state_ends_at_a_cut(tmp_path, recorder):
    from distill.export.graph import step_graph

    clip = tmp_path / "in.mkv"
    first, second = list(pictures(4)), list(pictures(4, W, H))
    with av.open(str(clip), "w") as out:
        video = out.add_stream("ffv1", rate=10)
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        for pixels in [*first, *(np.ascontiguousarray(255 - p.transpose(1, 0, 2)) for p in second)]:
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        out.mux(video.encode(None))
    (tmp_path / "step.onnx").write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    maps = open_maps(tmp_path / "step.onnx", None)
    assert isinstance(maps, Stream)
    facts = run(clip, tmp_path / "out.mp4", maps, recorder, shaping=replace(LINEAR, strength=12))
    assert facts["cuts"] == 1 and facts["frames"] == 8 and facts["offsets"]["lowest"] < facts["offsets"]["highest"]
    assert any("it will remember 2.5x as long" in line for line in recorder.messages)


@pytest.mark.parametrize(
    ("format_", "size", "codec", "kept", "cut"),
    [
        ("yuv420p", (97, 161), "x264", "yuv420p", (96, 160)),
        ("yuv420p", (97, 161), "x265", "yuv420p", (96, 160)),
        ("yuv444p", (97, 161), "x264", "yuv444p", (97, 161)),
        ("yuv422p", (97, 161), "x264", "yuv422p", (97, 160)),
        ("yuv420p10le", (H, W), "x264", "yuv420p10le", (H, W)),
        ("yuv420p10le", (H, W), "x265", "yuv420p10le", (H, W)),
        ("gray", (97, 161), "x264", "yuv420p", (97, 161)),  # as FFmpeg decodes monochrome H.264
        ("bgr0", (H, W), "x264", "yuv444p", (H, W)),
        ("yuva420p", (H, W), "x265", "yuv420p", (H, W)),  # which it lists
    ],
)
def test_any_size_and_depth(tmp_path, recorder, format_, size, codec, kept, cut):
    clip = write_clip(tmp_path / "in.mkv", 2, size, format_)
    coding = Coding(codec, crf=30, preset="ultrafast")
    facts = run(clip, tmp_path / "out.mkv", left, recorder, coding)
    with av.open(str(tmp_path / "out.mkv")) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name.replace("yuvj", "yuv") == kept and (frame.height, frame.width) == cut and facts["frames"] == 2
    assert any("odd" in line for line in recorder.messages) == (size != cut)
    if format_ != "bgr0":
        before, after = luma(clip)[0][:, : cut[0], : cut[1]], luma(tmp_path / "out.mkv")[0]
        assert psnr(before[..., :64], after[..., :64]) > psnr(before[..., 96:], after[..., 96:]) + 3


@pytest.mark.parametrize("range_", [0, 2])
def test_rgb_keeps_its_colours(tmp_path, recorder, range_):
    clip = write_clip(tmp_path / "in.mkv", 2, format_="bgr0", colorspace=0, color_range=range_)
    run(clip, tmp_path / "out.mkv", None, recorder, Coding(crf=5, preset="ultrafast"))
    before, after = (
        next(av.open(str(path)).decode(video=0)).to_ndarray(format="rgb24") for path in (clip, tmp_path / "out.mkv")
    )
    assert np.abs(before.astype(int) - after).mean() < 4


def test_a_10_bit_offset_is_as_strong_as_an_8_bit_one(tmp_path, recorder):
    size = {}
    for format_ in ("yuv420p", "yuv420p10le"):
        clip = write_clip(tmp_path / f"{format_}.mkv", 3, format_=format_)
        for name, maps in (("plain", None), ("all", lambda f, t: np.ones(f.shape[:2]))):
            facts = run(clip, tmp_path / "out.mkv", maps, recorder, shaping=replace(STRONG, neutral="off"))
            size[format_, name] = facts["bytes"]
    ratios = [size[f, "all"] / size[f, "plain"] for f in ("yuv420p", "yuv420p10le")]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1) and ratios[0] > 1.4


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_uneven_times_are_kept(tmp_path, recorder, suffix, codec):
    times = [0, 40, 90, 100, 210, 250, 400, 401]
    clip = write_clip(tmp_path / "in.mkv", 8, times=times)
    run(clip, tmp_path / f"out{suffix}", centre_map, recorder, Coding(codec, preset="superfast"))
    assert luma(tmp_path / f"out{suffix}")[1] == pytest.approx([t / 1000 for t in times], abs=1e-4)


def test_frames_that_a_camera_dropped_leave_gaps(tmp_path, recorder):
    times = [0, 40, 80, 240, 280, 400, 440, 480]
    run(write_clip(tmp_path / "in.avi", 8, times=times), tmp_path / "out.mkv", centre_map, recorder)
    assert luma(tmp_path / "out.mkv")[1] == pytest.approx([t / 1000 for t in times], abs=1e-3)


def test_after_a_lost_first_frame_the_others_keep_their_times(tmp_path, recorder):
    times = [0, 40, 80, 240, 280, 400, 440, 480]
    clip = write_clip(tmp_path / "in.avi", 8, format_="yuvj420p", codec="mjpeg", times=times)
    writers.destroy(clip, 0)
    run(clip, tmp_path / "out.mkv", centre_map, recorder)
    assert luma(tmp_path / "out.mkv")[1] == pytest.approx([t / 1000 for t in times[1:]], abs=1e-3)
    assert any("1 packet before the first whole frame, left out" in message for message in recorder.messages)


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_one_frame(tmp_path, recorder, codec):
    clip = write_clip(tmp_path / "in.mkv", 1)
    facts = run(clip, tmp_path / "out.mp4", left, recorder, Coding(codec))
    assert facts["frames"] == 1 and facts["seconds"] == pytest.approx(0.04) and len(luma(tmp_path / "out.mp4")[0]) == 1
    assert (b"hvc1" if codec == "x265" else b"avc1") in (tmp_path / "out.mp4").read_bytes()


def packets(path, kind):
    with av.open(str(path)) as container:
        found = [p for stream in getattr(container.streams, kind) for p in container.demux(stream)]
        return [(p.time_base * p.pts, bytes(p)) for p in found if p.pts is not None]


def test_audio_and_subtitles_are_copied_byte_for_byte(tmp_path, recorder):
    clip = write_clip(tmp_path / "sound.mkv", audio=True)
    (tmp_path / "words.srt").write_text("1\n00:00:00,100 --> 00:00:00,300\nwords\n")
    with av.open(str(clip)) as a, av.open(str(tmp_path / "words.srt")) as b, av.open(str(tmp_path / "in.mkv"), "w") as out:
        streams = {(n, s.index): out.add_stream_from_template(s, opaque=True) for n, c in enumerate((a, b)) for s in c.streams}
        streams[0, 1].metadata["language"] = "eng"
        for n, container in enumerate((a, b)):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = streams[n, packet.stream.index]
                    out.mux(packet)
    run(tmp_path / "in.mkv", tmp_path / "out.mkv", centre_map, recorder)
    for kind in ("audio", "subtitles"):
        assert packets(tmp_path / "in.mkv", kind) == packets(tmp_path / "out.mkv", kind) != []
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams.audio[0].metadata["language"] == "eng"
    run(tmp_path / "in.mkv", tmp_path / "out.mp4", centre_map, recorder, video_only=True)
    assert packets(tmp_path / "out.mp4", "audio") == [] and len(luma(tmp_path / "out.mp4")[0]) == 12


def picture_file(codec="mjpeg"):
    """The bytes of a small still image."""
    context = av.codec.Codec(codec, "w").create("video")
    context.width = context.height = 32
    context.pix_fmt, context.time_base = {"mjpeg": "yuvj420p", "png": "rgb24"}[codec], Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8)).reformat(format=context.pix_fmt)
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def covers(path):
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.disposition & av.stream.Disposition.attached_pic]
        return [bytes(next(container.demux(s))) for s in streams]


@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_cover_art_and_attachments_go_where_the_container_can_hold_them(tmp_path, recorder, codec):
    art = picture_file(codec)
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        out.add_attachment("a font.ttf", "font/ttf", b"font" * 9)
        suffix, kind = containers.COVERS[codec]
        out.add_attachment(f"cover.{suffix}", kind, art)
        for pixels in pictures(3):
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        out.mux(video.encode(None))
    assert covers(tmp_path / "in.mkv") == [art]
    run(tmp_path / "in.mkv", tmp_path / "out.mkv", centre_map, recorder)
    assert covers(tmp_path / "out.mkv") == [art] and recorder.messages == []
    with av.open(str(tmp_path / "out.mkv")) as container:
        fonts = [(s.name, s.mimetype, s.data) for s in container.streams if s.type == "attachment"]
        assert fonts == [("a font.ttf", "font/ttf", b"font" * 9)]
    run(tmp_path / "out.mkv", tmp_path / "out.mp4", centre_map, recorder)
    assert covers(tmp_path / "out.mp4") == [art] and recorder.messages == ["left out: attachment a font.ttf (.mkv keeps it)"]
    run(tmp_path / "out.mp4", tmp_path / "again.mkv", centre_map, recorder)
    assert covers(tmp_path / "again.mkv") == [art] and len(luma(tmp_path / "again.mkv")[0]) == 3
    run(tmp_path / "out.mp4", tmp_path / "out.mov", centre_map, recorder)
    assert covers(tmp_path / "out.mov") == [] and recorder.messages[1:] == ["left out: cover art (.mp4 and .mkv keep it)"]


DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def hdr(path):
    """The first frame's HDR10 metadata, in the encoders' syntax."""
    with av.open(str(path)) as container:
        beside = {d.type.name: bytes(d) for d in next(container.decode(video=0)).side_data}
    return (
        sources.mastering_display(beside.get("MASTERING_DISPLAY_METADATA", b"")),
        sources.content_light(beside.get("CONTENT_LIGHT_LEVEL", b"")),
    )


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_hdr10_is_kept(tmp_path, recorder, codec, suffix):
    params = f"log-level=error:master-display={DISPLAY}:max-cll=1000,400"
    clip = write_clip(
        tmp_path / "in.mp4", 3, format_="yuv420p10le", codec="libx265", opts={"preset": "ultrafast", "x265-params": params},
        color_primaries=9, color_trc=16, colorspace=9, color_range=1,
    )  # fmt: skip
    run(clip, tmp_path / f"out{suffix}", centre_map, recorder, Coding(codec, preset="ultrafast"))
    assert hdr(clip) == hdr(tmp_path / f"out{suffix}") == (DISPLAY, "1000,400") and recorder.messages == []
    coding = Coding(codec, preset="ultrafast", params=(f"{encoders.HDR[codec][1]}=600,200",))
    run(clip, tmp_path / f"out{suffix}", centre_map, recorder, coding)
    assert hdr(tmp_path / f"out{suffix}") == (DISPLAY, "600,200")  # what is asked for by name counts


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_captions_are_kept_and_what_an_encoder_drops_is_named(tmp_path, recorder, monkeypatch, codec):
    write_clip(tmp_path / "in.h264", 3, codec="libx264", opts={"preset": "ultrafast"})
    caption = bytes.fromhex("b5 0031") + b"GA94" + bytes.fromhex("03 c1 ff fc9420 ff")
    message = b"\0\0\0\1\6" + bytes([4, len(caption)]) + caption + b"\x80"
    stream = (tmp_path / "in.h264").read_bytes()
    slice_ = stream.index(b"\0\0\1\x65")  # of the first picture
    (tmp_path / "captioned.h264").write_bytes(stream[:slice_] + message[1:] + stream[slice_:])

    def captions(path):
        with av.open(str(path)) as container:
            beside = {d.type.name: bytes(d) for d in next(container.decode(video=0)).side_data}
        return beside["A53_CC"]

    run(tmp_path / "captioned.h264", tmp_path / "out.mkv", centre_map, recorder, Coding(codec))
    assert captions(tmp_path / "captioned.h264") == captions(tmp_path / "out.mkv") == bytes.fromhex("fc9420")
    assert not any("lost" in line for line in recorder.messages)
    monkeypatch.setitem(sources.LOST, "SEI_UNREGISTERED", "the name of the encoder before")
    run(tmp_path / "captioned.h264", tmp_path / "out.mkv", centre_map, recorder, Coding(codec))
    assert f"lost, because lib{codec} cannot take it: the name of the encoder before" in recorder.messages


def test_an_incomplete_mastering_display_is_dropped():
    known = struct.pack("=22i", *[1, 2] * 10, 1, 1)
    assert sources.mastering_display(known) == "G(25000,25000)B(25000,25000)R(25000,25000)WP(25000,25000)L(5000,5000)"
    for unknown in (struct.pack("=22i", *[1, 2] * 10, 1, 0), struct.pack("=22i", *[0, 0] * 10, 1, 1), known[:80], b""):
        assert sources.mastering_display(unknown) == ""
    assert sources.content_light(b"") == ""


def test_rotation_aspect_and_colour_are_kept_and_models_see_it_upright(tmp_path, recorder):
    clip = write_clip(
        tmp_path / "in.mp4", 3, codec="libx264", rotation=90, sample_aspect_ratio=Fraction(4, 3), color_primaries=1,
        color_trc=1, colorspace=1, color_range=1,
    )  # fmt: skip
    seen = []

    def top(frame, seconds):
        seen.append(frame)
        saliency = np.zeros(frame.shape[:2], np.float32)
        saliency[: len(saliency) // 2] = 1
        return saliency

    run(clip, tmp_path / "out.mp4", top, recorder, Coding(crf=34))
    facts = []
    for path in (clip, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            frame = next(container.decode(video))
            tags = frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range
            facts.append((frame.rotation, video.sample_aspect_ratio, *map(int, tags)))
    assert facts[0] == facts[1] == (90, Fraction(4, 3), 1, 1, 1, 1)
    upright = np.rot90(next(pictures(3)))  # 90 degrees counter-clockwise, as the tag says
    assert seen[0].shape == (W, H, 3) and psnr(seen[0] / 255, upright / 255) > 20
    before, after = luma(clip)[0], luma(tmp_path / "out.mp4")[0]  # what is on top when upright is at the right
    assert psnr(before[..., W // 2 :], after[..., W // 2 :]) > psnr(before[..., : W // 2], after[..., : W // 2]) + 3


@pytest.mark.parametrize(
    ("coding", "message"),
    [
        (Coding(params=("aq-mode=0",)), "adaptive quantisation; leave it on, aq-mode=1"),
        (Coding("x265", params=("aq-mode=0",)), "adaptive quantisation; leave it on"),
        (Coding(params=("qp=30",)), "libx264 ignores the map with these options"),
        (Coding(params=("crop=1",)), "does not take"),
        (Coding(params=("no-such-thing=1",)), "does not take"),
        (Coding("x265", params=("no-such-thing=1",)), "does not take"),
        (Coding(params=("aq-mode",)), "KEY=VALUE"),
        (Coding(preset="quickest"), "--preset quickest is unknown to x264"),
        (Coding("vp9"), "there are x264, x265"),
        (Coding(crf=52), "--crf 52: must be from 0 .* to 51"),
        (Coding(crf=20, bitrate=100), "exclude each other"),
    ],
)
def test_a_map_is_never_ignored_silently(clip, tmp_path, recorder, coding, message):
    with pytest.raises(UsageError, match=message):
        run(clip, tmp_path / "out.mkv", left, recorder, coding)
    assert list(tmp_path.iterdir()) == []


def test_fast_presets_keep_adaptive_quantisation_on(clip, tmp_path, recorder):
    for codec in ("x264", "x265"):
        files = {}
        for name, maps in (("plain", None), ("left", left)):
            run(clip, tmp_path / "out.mkv", maps, recorder, Coding(codec, preset="ultrafast"))
            files[name] = packets(tmp_path / "out.mkv", "video")
        assert files["plain"] != files["left"]


def test_an_interlaced_clip_is_refused_only_where_there_is_a_map(tmp_path, recorder):
    clip = write_clip(tmp_path / "in.mkv", 3, codec="libx264", opts={"x264-params": "interlaced=1"})
    with pytest.raises(UsageError, match=r"frame 1 is interlaced.*bwdif"):
        run(clip, tmp_path / "out.mkv", left, recorder)
    assert not (tmp_path / "out.mkv").exists()
    assert run(clip, tmp_path / "out.mkv", None, recorder)["offsets"] is None


def test_an_encoder_missing_from_the_build_is_reported(clip, tmp_path, recorder, monkeypatch):
    monkeypatch.setitem(encoders.CODECS, "x265", "libx266")
    with pytest.raises(UsageError, match=r"FFmpeg of this PyAV .* has no libx266"):
        run(clip, tmp_path / "out.mkv", left, recorder, Coding("x265"))


def test_an_encoder_without_regions_is_detected(clip, tmp_path, recorder, monkeypatch):
    monkeypatch.setitem(encoders.CODECS, "x264", "mpeg4")
    monkeypatch.setattr(encoders, "encoder_options", lambda *_: {})
    with pytest.raises(UsageError, match="mpeg4 ignores the map"):
        run(clip, tmp_path / "out.mkv", left, recorder)


def test_an_output_that_cannot_be_opened_is_named(clip, tmp_path, recorder, monkeypatch):
    monkeypatch.setattr(containers, "atomic", lambda path: contextlib.nullcontext(tmp_path / "gone" / path.name))
    with pytest.raises(UsageError, match=r"out\.mkv cannot be written: No such file"):
        run(clip, tmp_path / "out.mkv", left, recorder)


def test_unreadable_input_and_unwritable_output_are_one_line_errors(clip, tmp_path, recorder):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "short.mkv").write_bytes(clip.read_bytes()[:600])
    for source, target, message in (
        (tmp_path / "none.mp4", "out.mp4", "no such video"),
        (tmp_path / "text.mp4", "out.mp4", "is it complete"),
        (tmp_path / "short.mkv", "out.mp4", "is it complete"),
        (tmp_path, "out.mp4", "no such video; it is a folder"),
        (clip, "out.what", "names no container"),
        (clip, "out.webm", "cannot hold x264"),
    ):
        with pytest.raises(UsageError, match=message):
            run(source, tmp_path / target, left, recorder)
    with pytest.raises(UsageError, match="frame 1: a saliency map must lie in"):
        run(clip, tmp_path / "out.mkv", lambda f, t: left(f, t) * 2, recorder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["short.mkv", "text.mp4"]


def test_roi_files_are_written_with_or_without_a_video(clip, tmp_path, recorder):
    facts = run(clip, None, left, recorder, roi=RoiOutput(tmp_path / "roi.txt", "kvazaar"))
    # 160x96 in 3x2 blocks of 64, a quarter of the second one salient
    assert (tmp_path / "roi.txt").read_text() == "3 2\n-6 3 6\n-6 3 6\n" * 12
    assert facts["codec"] is None and facts["files"] == [str(tmp_path / "roi.txt")] and facts["bytes"] == 0
    gentle = replace(STRONG, strength=4)
    run(clip, tmp_path / "out.mkv", left, recorder, shaping=gentle, roi=RoiOutput(tmp_path / "map.txt", "svt-av1"))
    # -4, 2 and 4 QP, and 4 of qindex for each
    assert (tmp_path / "map.txt").read_text() == "0 -16 8 16 -16 8 16\n"
    run(clip, None, left, recorder, roi=RoiOutput(tmp_path / "cmd.sh", "addroi"))
    run(clip, None, left, recorder, roi=RoiOutput(tmp_path / "maps.qp", "int8"))
    assert (tmp_path / "maps.qp").read_bytes()[32:] == np.array([-6] * 5 + [6] * 5, np.int8).tobytes() * 6 * 12
    assert "-vf addroi=80:0:80:96:6/51,addroi=0:0:160:96:-6/51 -c:v libx264" in (tmp_path / "cmd.sh").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("in", None, None, None, None, None), "name the file to write"),
        (("in", "x", None, None, "roi", None), "go together"),
        (("in", "x", None, None, "roi", "x265"), "kvazaar, svt-av1, addroi, int8"),
        (("in", "x", None, "none", "roi", "kvazaar"), "no map to write"),
        (("in", None, None, None, "-", "int8"), "--roi-out -: maps go to a file"),
        (("in", None, None, None, "roi", "svt-av1", None, 8), "--gop 8: goes with --format kvazaar"),
        (("in", None, None, None, "roi", "kvazaar", None, 12), "is one of 0, 8, 16"),
        (("in", "x.mp4", None, None, "./x.mp4", "kvazaar"), "--roi-out x.mp4 is the same file as OUTPUT x.mp4"),
        (("in", "in", None, None, None, None), "OUTPUT in is the same file as INPUT in"),
        (("in", "x", "model.onnx", None, "model.onnx", "kvazaar"), "is the same file as --model"),
        (("in", "/", None, None, None, None), "is a folder; name the file"),
    ],
)
def test_incompatible_options_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        check_outputs(*(Path(a) if a and i in (0, 1, 2, 4) else a for i, a in enumerate(arguments)))
    for given, message in (
        ({"block": 8}, "--block 8 is unknown; there are 16, 32, 64"),
        ({"neutral": "size"}, "bits, mean, off"),
        ({"mapping": "logarithm"}, "log, log-strong, linear"),
        ({"strength": 4}, "--strength 4: must be from 0 to 3 with --mapping log"),
        ({"mapping": "linear", "strength": 13}, "from 0 to 12 with --mapping linear"),
        ({"mapping": "log-strong", "prior": 0.95}, "--prior 0.95: must be from 0 to 0.9 with --mapping log-strong"),
    ):
        with pytest.raises(UsageError, match=message):
            make_shaping(**{"mapping": "log", **given})
    for model, name in ((None, None), ("model.onnx", "centre"), (None, "middle")):
        with pytest.raises(UsageError, match="--map"):
            open_maps(model, name)


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_bits_keeps_the_size_where_gaze_is_on_costly_blocks(tmp_path, recorder, codec):
    """Noise that changes in one third, a still and quiet rest: offsets whose mean is zero make this clip much larger."""
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        for _ in range(8):
            pixels = np.full((H, W, 3), 110, np.uint8)
            pixels[:, :48] = rng.integers(60, 160, (H // 2, 24, 3)).repeat(2, 0).repeat(2, 1)
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        out.mux(video.encode(None))

    def third(frame, seconds):
        return left(frame, seconds) * (np.arange(frame.shape[1]) < 48)

    size = {}
    for name, maps in (("plain", None), ("bits", third), ("mean", third)):
        shaping = replace(LINEAR, neutral="bits" if maps is None else name)
        coding = Coding(codec, crf=30, preset="superfast")
        size[name] = run(tmp_path / "in.mkv", tmp_path / "out.mkv", maps, recorder, coding, shaping)["bytes"]
    assert size["mean"] / size["plain"] > 1.3 and abs(size["bits"] / size["plain"] - 1) < 0.2


def real_frames(source, path, count):
    """The first frames of a video, without loss."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        video = out.add_stream("ffv1", rate=25)
        shown = container.streams.video[0]
        video.height, video.width, video.pix_fmt = shown.height, shown.width, "yuv420p"
        for index, frame in enumerate(islice(container.decode(shown), count)):
            frame.pict_type, frame.pts, frame.time_base = 0, index, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_on_a_real_clip_with_gaze_quality_moves_to_where_observers_looked(shared, tmp_path, recorder, codec):
    from distill.corpora import density_map, fixation_map, open_corpus

    for part in ("video/004.AVI", "annotation/0004"):  # one clip is opened in no time
        (tmp_path / "gaze" / part).parent.mkdir(parents=True)
        (tmp_path / "gaze" / part).symlink_to(shared / "data" / "hevc-gaze" / part)
    (gazed,) = open_corpus("dhf1k", [str(tmp_path / "gaze")]).clips
    clip = real_frames(shared / "data" / "hevc-gaze" / "video" / "004.AVI", tmp_path / "in.mkv", 12)
    gaze = sum(density_map(gazed, index, fixation_map(gazed, index)) for index in range(12))
    there = gaze / gaze.max()
    before = luma(clip)[0]

    def measure(crf, maps):
        facts = run(clip, tmp_path / "out.mp4", maps, recorder, Coding(codec, crf=crf, preset="superfast"), LINEAR)
        error = ((before - luma(tmp_path / "out.mp4")[0]) ** 2).mean(0)
        return facts["bytes"], *(-10 * np.log10(error[part].mean()) for part in (there > 0.5, there < 0.05))

    plain = np.array([measure(crf, None) for crf in (32, 30, 28, 26)])
    size, near, far = measure(29, lambda frame, seconds: there)
    rates = np.log(plain[:, 0])
    assert rates[0] < np.log(size) < rates[-1]
    assert near - np.interp(np.log(size), rates, plain[:, 1]) > 0.5
    assert far - np.interp(np.log(size), rates, plain[:, 2]) < -0.1
    assert abs(size / np.exp(np.interp(29, [26, 28, 30, 32], rates[::-1])) - 1) < 0.1  # and the size at equal CRF stays


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_on_a_real_clip_quality_moves_at_equal_bitrate(shared, tmp_path, recorder, codec):
    clip = real_frames(shared / "data" / "clips" / "bird.mp4", tmp_path / "in.mkv", 16)
    before = luma(clip)[0]
    there = centre_map(before[0], 0.0)

    def measure(crf, maps):
        facts = run(clip, tmp_path / "out.mp4", maps, recorder, Coding(codec, crf=crf, preset="superfast"))
        error = ((before - luma(tmp_path / "out.mp4")[0]) ** 2).mean(0)
        return np.log(facts["bytes"]), *(-10 * np.log10(error[part].mean()) for part in (there > 0.6, there < 0.15))

    plain = np.array([measure(crf, None) for crf in (31, 28, 25, 22)])
    rate, near, far = measure(29, centre_map)
    assert plain[0, 0] < rate < plain[-1, 0]
    assert near - np.interp(rate, plain[:, 0], plain[:, 1]) > 0.5
    assert far - np.interp(rate, plain[:, 0], plain[:, 2]) < -0.5


def test_the_verb_writes_a_video_and_reports_facts(clip, tmp_path):
    import json

    from typer.testing import CliRunner

    from distill.cli.app import app

    common = [
        "encode",
        str(clip),
        str(tmp_path / "out.mp4"),
        "--map",
        "centre",
        "--preset",
        "ultrafast",
        "--threads",
        "1",
        "-q",
    ]
    facts = json.loads(CliRunner().invoke(app, [*common, "--json"]).stdout)
    assert facts["frames"] == 12 and facts["files"] == [str(tmp_path / "out.mp4")] and facts["offsets"]["lowest"] < 0
    assert "12 frames" in CliRunner().invoke(app, common).stdout
    short = [str(write_clip(tmp_path / "one.mkv", 1)), str(tmp_path / "one.mp4")]
    assert CliRunner().invoke(app, ["encode", *short, *common[3:]]).stdout.startswith("1 frame, ")
    refused = CliRunner().invoke(app, [*common, "--param", "aq-mode=0"])
    assert isinstance(refused.exception, UsageError) and "leave it on" in str(refused.exception)


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_two_passes_use_the_same_offsets_and_leave_nothing(clip, tmp_path, recorder, monkeypatch, codec):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    seen = []

    def changing(frame, seconds):
        seen.append(seconds)
        return np.full(frame.shape[:2], (len(seen) % 5) / 5) * left(frame, seconds)

    marked = []
    mark = regions.RegionMarker.mark
    monkeypatch.setattr(
        regions.RegionMarker, "mark", lambda self, frame, offsets: marked.append(offsets) or mark(self, frame, offsets)
    )
    coding = Coding(codec, bitrate=400, preset="veryfast", two_pass=True)
    facts = run(clip, tmp_path / "out.mkv", changing, recorder, coding)
    assert len(seen) == facts["frames"] == 12 and len(luma(tmp_path / "out.mkv")[0]) == 12
    first, second = marked[-24:-12], marked[-12:]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and facts["offsets"]["changes"] > 3
    assert list((tmp_path / "t").iterdir()) == []
    alive, dead = (tmp_path / "t" / f"distill-{pid}-{MACHINE}-x" for pid in (os.getpid(), 2**22 + 1))
    alive.mkdir(), (dead / "in").mkdir(parents=True)
    run(clip, tmp_path / "out.mkv", None, recorder, coding)
    assert list((tmp_path / "t").iterdir()) == [alive]  # what a killed process left is removed

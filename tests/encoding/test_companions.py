"""What becomes of the streams beside the video: each output is read again, and its packets, texts and times are looked at."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from av.subtitles.subtitle import SubtitleSet  # noqa: E402

from distill.encoding.encode import encode  # noqa: E402
from distill.encoding.encoders import Coding  # noqa: E402
from distill.encoding.qp_offsets import Shaping  # noqa: E402
from distill.run.errors import UsageError  # noqa: E402

MS = Fraction(1, 1000)
STYLES = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, \
ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
WORDS = [(100, 300, b"one"), (500, 800, b"two\\Nlines")]
BITMAPS = {  # an empty picture each
    "hdmv_pgs_subtitle": bytes.fromhex("16000b00a0006010000180000000800000"),
    "dvd_subtitle": bytes.fromhex("000e0008000000000000000801ff"),
}


class Narration(list):
    """A narrator that keeps its messages."""

    stop = staticmethod(lambda: False)

    def say(self, text):
        self.append(text)

    def track(self, items, title, total, unit="clips"):
        return iter(items)


def make(
    path, audio=(), texts=(), bitmaps=(), moved=lambda kind, packet: None, chapters=(), data=False, frames=25, gop=10, options=None
):  # fmt: skip
    """A video of 25 frames per second, H.264 with B-frames, with these codecs of audio and subtitles.

    moved: changes the packets before they are written.
    """

    def mux(kind, packets):
        for packet in packets:
            moved(kind, packet)
            out.mux(packet)

    with av.open(str(path), "w", options=options or {}) as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "bf": "2", "g": str(gop)})
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        tracks = [out.add_stream(codec, rate=48000, layout="stereo") for codec in audio]
        subtitles = [out.add_stream(codec) for codec in texts]
        for stream in subtitles:
            stream.codec_context.subtitle_header, stream.metadata["language"] = STYLES, "fra"
            stream.time_base = stream.codec_context.time_base = MS
        drawn = [(out.add_mux_stream(codec, time_base=MS), BITMAPS[codec]) for codec in bitmaps]
        notes = [out.add_data_stream("klv")] if data else []
        out.set_chapters(list(chapters))
        out.start_encoding()
        for start, end, words in WORDS:
            for stream in subtitles:
                packet = stream.codec_context.encode_subtitle(
                    SubtitleSet.create(b"0,0,Default,,0,0,0,," + words, 0, end - start)
                )
                mux("text", [timed(packet, stream, start, end - start)])
            for stream, picture in drawn:
                mux("bitmap", [timed(av.Packet(picture), stream, start, end - start)])
            mux("data", [timed(av.Packet(b"\x06\x0e\x2b\x34data"), stream, start, 0) for stream in notes])
        noise = np.random.default_rng(0)
        for n in range(frames):
            mux("video", video.encode(av.VideoFrame.from_ndarray(noise.integers(0, 256, (64, 96, 3), np.uint8))))
            for stream in tracks:
                wave = (8000 * np.sin(np.arange(2 * 1920 * n, 2 * 1920 * (n + 1)) * 0.01)).astype(np.int16)[None]
                tone = av.AudioFrame.from_ndarray(wave, "s16", "stereo")
                tone.sample_rate, tone.pts, tone.time_base = 48000, 1920 * n, Fraction(1, 48000)
                mux("audio", stream.encode(tone))
        mux("video", video.encode(None))
        for stream in tracks:
            mux("audio", stream.encode(None))
    return path


def timed(packet, stream, start, duration):
    packet.pts = packet.dts = start
    packet.duration, packet.time_base, packet.stream = duration, MS, stream
    return packet


def converted(source, target, **more):
    """Encodes without a map, and returns what was said."""
    said = Narration()
    encode(source, target, None, Coding(preset="ultrafast", threads=1), Shaping(), said, **more)
    return said


def frame_times(path):
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=0)]


def packets(path, kind, index=0):
    """Time in seconds from the first frame, duration, and bytes of a stream's packets."""
    first = frame_times(path)[0]
    with av.open(str(path)) as container:
        found = [p for p in container.demux(getattr(container.streams, kind)[index]) if p.size]
        return [(float(p.dts * p.time_base) - first, float((p.duration or 0) * p.time_base), bytes(p)) for p in found]


def codecs(path):
    with av.open(str(path)) as container:
        contexts = [(s.type, s.codec_context) for s in container.streams if s.type != "video"]
        return [(kind, context and context.codec.canonical_name) for kind, context in contexts]


def seen(path, index=0):
    """The subtitles' texts with the times at which they are seen, in ms from the first frame."""
    found, first = [], frame_times(path)[0]
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[index]
        for packet in container.demux(stream):
            shown = stream.codec_context.decode2(packet) if packet.size else None
            for subtitle in shown or ():
                start = float(packet.pts * packet.time_base) - first
                duration = float((packet.duration or 0) * packet.time_base)
                found.append((round(1000 * start), round(1000 * (start + duration)), subtitle.ass.split(b",", 8)[-1]))
    return found


@pytest.mark.parametrize(
    ("codec", "inside", "suffix", "becomes"),
    [
        ("subrip", ".mkv", ".mp4", "mov_text"), ("subrip", ".mkv", ".mov", "mov_text"), ("subrip", ".mkv", ".m4v", "mov_text"),
        ("ass", ".mkv", ".mp4", "mov_text"), ("webvtt", ".mkv", ".mp4", "mov_text"), ("mov_text", ".mp4", ".mkv", "subrip"),
    ],
)  # fmt: skip
def test_text_subtitles_become_those_of_the_container(tmp_path, codec, inside, suffix, becomes):
    source = make(tmp_path / f"in{inside}", ["aac"], [codec])
    said = converted(source, tmp_path / f"out{suffix}")
    assert codecs(tmp_path / f"out{suffix}") == [("audio", "aac"), ("subtitle", becomes)]
    assert seen(tmp_path / f"out{suffix}") == seen(source) == WORDS
    assert len(frame_times(tmp_path / f"out{suffix}")) == 25
    assert len(said) == 1 and said[0].startswith(f"subtitle stream 2 ({codec}, fra) becomes {becomes}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.subtitles[0].metadata["language"] == "fra"


@pytest.mark.parametrize(("codec", "suffix"), [("subrip", ".mkv"), ("ass", ".mkv"), ("webvtt", ".mkv"), ("mov_text", ".mp4")])
def test_text_subtitles_are_copied_where_the_container_holds_them(tmp_path, codec, suffix):
    source = make(tmp_path / f"in{suffix}", texts=[codec])
    assert converted(source, tmp_path / f"out{suffix}") == []
    assert packets(source, "subtitles") == packets(tmp_path / f"out{suffix}", "subtitles") != []


def test_styles_survive_and_subtitles_that_overlap_are_shown_together(tmp_path, monkeypatch):
    words = [(100, 400, b"{\\i1}one{\\i0}"), (300, 800, b"two"), (300, 500, b"three"), (900, 950, b"four")]
    monkeypatch.setitem(globals(), "WORDS", words)
    source = make(tmp_path / "in.mkv", texts=["ass"])
    assert seen(source) == words
    converted(source, tmp_path / "out.mp4")
    assert seen(tmp_path / "out.mp4") == [
        (100, 300, b"{\\i1}one"), (300, 400, b"{\\i1}one{\\r}\\Ntwo\\Nthree"), (400, 500, b"two\\Nthree"), (500, 800, b"two"),
        (900, 950, b"four"),
    ]  # fmt: skip
    assert converted(source, tmp_path / "out.mkv") == [] and seen(tmp_path / "out.mkv") == words


@pytest.mark.parametrize("suffix", [".ts", ".avi", ".flv"])
def test_text_subtitles_that_would_be_unreadable_are_left_out_by_name(tmp_path, suffix):
    said = converted(make(tmp_path / "in.mkv", ["aac"], ["subrip", "ass"]), tmp_path / f"out{suffix}")
    assert codecs(tmp_path / f"out{suffix}") == [("audio", "aac")] and len(packets(tmp_path / f"out{suffix}", "audio")) > 45
    left_out = ", ".join(
        f"subtitle stream {i} ({codec}, fra); .mkv and .mp4 keep it" for i, codec in ((2, "subrip"), (3, "ass"))
    )
    assert said == [f"left out: {left_out}"]


@pytest.mark.parametrize(
    ("codec", "suffix", "kept"),
    [
        ("hdmv_pgs_subtitle", ".mkv", True), ("hdmv_pgs_subtitle", ".mp4", False), ("hdmv_pgs_subtitle", ".ts", False),
        ("dvd_subtitle", ".mkv", True), ("dvd_subtitle", ".mp4", True), ("dvd_subtitle", ".ts", False),
    ],
)  # fmt: skip
def test_subtitles_that_are_pictures_are_copied_or_left_out_by_name(tmp_path, codec, suffix, kept):
    said = converted(make(tmp_path / "in.mkv", ["aac"], bitmaps=[codec]), tmp_path / f"out{suffix}")
    assert codecs(tmp_path / f"out{suffix}") == [("audio", "aac"), ("subtitle", codec)][: 1 + kept]
    assert said == ([] if kept else [f"left out: subtitle stream 2 ({codec}); .mkv keeps it"])
    if kept:
        assert [data for *_, data in packets(tmp_path / f"out{suffix}", "subtitles")] == [BITMAPS[codec]] * 2


@pytest.mark.parametrize(
    ("codec", "suffix", "becomes"),
    [
        ("pcm_s16le", ".mp4", "aac"), ("tta", ".mp4", "aac"), ("wavpack", ".m4v", "aac"), ("libopus", ".mov", "aac"),
        ("flac", ".ts", "aac"), ("pcm_s16le", ".ts", "aac"), ("tta", ".avi", "mp3"),
    ],
)  # fmt: skip
def test_audio_that_the_container_does_not_hold_is_converted(tmp_path, codec, suffix, becomes):
    source = make(tmp_path / "in.mkv", [codec])
    said = converted(source, tmp_path / f"out{suffix}")
    name = codecs(source)[0][1]
    assert said == [f"audio stream 1 ({name}) becomes {becomes}; .mkv keeps it as it is"]
    assert codecs(tmp_path / f"out{suffix}") == [("audio", becomes)]
    times = [time for time, *_ in packets(tmp_path / f"out{suffix}", "audio")]
    assert times[0] == pytest.approx(0, abs=0.07) and times[-1] == pytest.approx(1, abs=0.07)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(48000, abs=2500)
    assert converted(source, tmp_path / "out.mkv") == []
    assert packets(source, "audio") == packets(tmp_path / "out.mkv", "audio")


def test_several_streams_of_audio_keep_their_order_and_languages(tmp_path):
    source = make(tmp_path / "in.mkv", ["aac", "flac", "libmp3lame"])
    assert converted(source, tmp_path / "out.mp4") == []
    for index in range(3):
        assert [b for *_, b in packets(source, "audio", index)] == [
            b for *_, b in packets(tmp_path / "out.mp4", "audio", index)
        ]
    said = converted(source, tmp_path / "out.ts")
    assert codecs(tmp_path / "out.ts") == [("audio", "aac"), ("audio", "aac"), ("audio", "mp3")]
    assert said == ["audio stream 2 (flac) becomes aac; .mkv keeps it as it is"]
    assert converted(source, tmp_path / "silent.mp4", video_only=True) == [] and codecs(tmp_path / "silent.mp4") == []


def test_data_streams_are_left_out_by_name(tmp_path):
    source = make(tmp_path / "in.ts", ["aac"], data=True)
    assert converted(source, tmp_path / "out.mp4") == ["left out: data stream 2 (klv)"]
    assert codecs(tmp_path / "out.mp4") == [("audio", "aac")] and len(frame_times(tmp_path / "out.mp4")) == 25


@pytest.mark.parametrize("inside", [".mkv", ".mp4"])
def test_chapters_are_kept_or_named(tmp_path, inside):
    parts = [
        {"id": n, "start": 500 * (n - 1), "end": 500 * n, "time_base": MS, "metadata": {"title": f"part {n}"}} for n in (1, 2)
    ]  # fmt: skip
    source = make(tmp_path / f"in{inside}", chapters=parts)
    for suffix in (".mkv", ".mp4"):
        assert converted(source, tmp_path / f"out{suffix}") == []
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            found = [(float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in container.chapters()]
        assert found == [(0.0, "part 1"), (0.5, "part 2")]
    assert converted(source, tmp_path / "out.ts") == ["left out: chapters (.mp4 and .mkv keep them)"]


# --- stamps ----------------------------------------------------------------------------------------------------------


def restamped(path, track, changes):
    """A Matroska file whose blocks, by track and time in ms, have other times."""
    data = path.read_bytes()
    for before, after in changes.items():
        old, new = (bytes([0x80 | track]) + time.to_bytes(2, "big") for time in (before, after))
        found = [data.find(old + flags) for flags in (b"\x80", b"\0") if old + flags in data]
        assert found, f"no block at {before} ms"
        data = data[: found[0]] + new + data[found[0] + 3 :]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
def test_audio_packets_of_one_time_or_falling_ones_are_moved_by_the_smallest_step(tmp_path, suffix):
    source = make(tmp_path / "in.mkv", ["aac"], gop=250)
    before = packets(source, "audio")
    stored = [round(1000 * (time - before[0][0])) for time, *_ in before]  # without the encoder's delay
    restamped(source, 2, {stored[11]: stored[10], stored[21]: stored[20] - 50, stored[31]: stored[30]})
    said = converted(source, tmp_path / f"out{suffix}")
    assert len(said) == 1 and said[0].startswith("audio stream 1 (aac): 3 packets not later than the one before: moved, by 5")
    after = packets(tmp_path / f"out{suffix}", "audio")
    assert len(after) == len(before) and all(x[0] < y[0] for x, y in pairwise(after))
    step = after[11][0] - after[10][0]
    assert 0 < step <= 0.0011
    still = [n for n in range(len(before)) if n not in (11, 21, 31)]
    assert [after[n][0] for n in still] == pytest.approx([before[n][0] for n in still], abs=0.0011)
    assert len(frame_times(tmp_path / f"out{suffix}")) == 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_video_stamps_that_do_not_rise_are_repaired(tmp_path, suffix):
    source = make(tmp_path / "in.mkv", gop=250)
    restamped(source, 1, {400: 360, 800: 700})
    said = converted(source, tmp_path / f"out{suffix}")
    times = frame_times(tmp_path / f"out{suffix}")
    assert len(times) == 25 and all(a < b for a, b in pairwise(times))
    assert [round(1000 * (t - times[0])) for t in times[8:12]] == [320, 360, 361, 440]
    assert any("not later than the one before: moved, by" in line for line in said)


@pytest.mark.parametrize("start", [2**33 - 45000, 2**33 - 450000, 2**32, -45000])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_clocks_of_transport_streams_may_start_and_wrap_anywhere(tmp_path, suffix, start):
    def late(kind, packet):
        ticks = round(start / 90000 / packet.time_base)
        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks

    source = make(tmp_path / "in.ts", ["aac"], moved=late, options={"avoid_negative_ts": "disabled"})
    assert converted(source, tmp_path / f"out{suffix}") == []
    times, sound = frame_times(tmp_path / f"out{suffix}"), packets(tmp_path / f"out{suffix}", "audio")
    assert times[0] == pytest.approx(0.02, abs=0.03) and [t - times[0] for t in times] == pytest.approx(
        np.arange(25) / 25, abs=0.0011
    )
    assert [t for t, *_ in sound] == pytest.approx([t for t, *_ in packets(source, "audio")], abs=0.0011)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_joined_recordings_follow_each_other_and_sound_stays_with_the_picture(tmp_path, suffix):
    parts = [make(tmp_path / f"{n}.ts", ["aac"], frames=n) for n in (30, 25)]
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    said = converted(tmp_path / "in.ts", tmp_path / f"out{suffix}")
    times, sound = frame_times(tmp_path / f"out{suffix}"), [t for t, *_ in packets(tmp_path / f"out{suffix}", "audio")]
    assert len(times) == 55 and all(0.039 < b - a < 0.041 for n, (a, b) in enumerate(pairwise(times)) if n != 29)
    assert 0.03 < times[30] - times[29] < 0.2
    inside = [t for t, *_ in packets(parts[0], "audio")]
    assert sound[: len(inside)] == pytest.approx(inside, abs=0.0011)
    assert sound[len(inside)] - (times[30] - times[0]) == pytest.approx(packets(parts[1], "audio")[0][0], abs=0.0011)
    assert any("2 counts of time stamps" in line for line in said)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("share", [0.9, 0.66, 0.3])
def test_a_file_that_ends_early_is_refused_before_anything_is_written(tmp_path, suffix, share):
    source = make(tmp_path / f"in{suffix}", ["aac"], frames=75, options={"movflags": "faststart"} if suffix == ".mp4" else None)
    data = source.read_bytes()
    source.write_bytes(data[: round(share * len(data))])
    with pytest.raises(
        UsageError, match=r"ends early: its \d+ frames end at \d.\d\d s, its header says 3.0\d s; is it complete"
    ):
        converted(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_transport_stream_that_ends_inside_a_packet_says_so(tmp_path):
    source = make(tmp_path / "in.ts", ["aac"])
    data = source.read_bytes()
    assert len(data) % 188 == 0 and converted(source, tmp_path / "out.mp4") == []
    source.write_bytes(data[:-100])
    said = converted(source, tmp_path / "out.mp4")
    assert said == ["in.ts ends inside a packet, as a copy that was broken off; is it complete? What is there is encoded"]


def test_a_frame_that_does_not_decode_is_named_and_nothing_is_written(tmp_path):
    source = make(tmp_path / "in.mkv", frames=50)
    with av.open(str(source)) as container:
        [data] = [bytes(p) for p in container.demux(video=0) if p.pts == 1000]
    whole = source.read_bytes()
    at = whole.index(data) + len(data) // 3
    source.write_bytes(whole[:at] + bytes(len(data) // 2) + whole[at + len(data) // 2 :])
    with pytest.raises(UsageError, match=r"in.mkv: frame 2\d, after 0.\d\d s, is damaged; ffmpeg .* fills in what is missing"):
        converted(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_recording_that_starts_between_key_frames_starts_with_the_next_one(tmp_path):
    data = make(tmp_path / "whole.ts", frames=50).read_bytes()
    (tmp_path / "in.ts").write_bytes(data[188 * (len(data) // 188 // 10) :])
    said = converted(tmp_path / "in.ts", tmp_path / "out.mp4")
    times = frame_times(tmp_path / "out.mp4")
    assert len(times) == 40 and times[0] < 0.5
    assert any("packets before the first whole frame, left out" in line for line in said)


def test_a_size_that_changes_is_named_with_its_place(tmp_path):
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        video = out.add_stream("mjpeg", rate=25)
        video.height, video.width, video.pix_fmt = 64, 96, "yuvj420p"
        for n in range(6):
            encoder = av.codec.Codec("mjpeg", "w").create("video")
            encoder.height, encoder.width = (64, 96) if n < 4 else (80, 96)
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
            frame = av.VideoFrame(encoder.width, encoder.height, "yuvj420p")
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.pts = n
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream = video
                out.mux(packet)
    with pytest.raises(UsageError, match=r"frame 5, at 0.16 s, is 96x80, those before 96x64; .*scale=96:64"):
        converted(tmp_path / "in.mkv", tmp_path / "out.mp4")


def test_a_stream_that_cannot_be_written_is_named_itself(tmp_path, monkeypatch):
    source = make(tmp_path / "in.mkv", ["aac"])
    monkeypatch.setattr("distill.encoding.timeline.Rising.fix", lambda rising, packet: setattr(packet, "dts", -(2**40)))
    message = r"audio stream 1 \(aac\), at .* s, cannot be written; --video-only leaves it out: Invalid argument"
    with pytest.raises(UsageError, match=message):
        converted(source, tmp_path / "out.mp4")
    assert not Path(tmp_path / "out.mp4").exists()

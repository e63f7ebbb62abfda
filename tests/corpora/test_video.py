"""Videos as phones, browsers and screen recorders write them: frames, times and pixels, by both readers."""

import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from distill.corpora import Corpus, fixation_points, open_corpus, video
from distill.corpora.fixations import LATE
from distill.corpora.readers import pyav, stamps
from distill.corpora.video import probe, read_frames, read_header, write_video
from distill.run.errors import UsageError
from distill.run.files import read_json, write_json
from tests.corpora import writers

SIZE = (48, 64)
STEADY = tuple(n / 30 for n in range(30))
VARIABLE = tuple(0.033 * n for n in range(15)) + tuple(0.495 + 0.2 * n for n in range(15))
PAUSE = tuple(0.033 * n for n in range(15)) + tuple(20.495 + 0.033 * n for n in range(15))


def picture(number, size=SIZE, noise=False):
    """A grey ramp, brighter from left to right and from frame to frame; or noise, which does not compress."""
    if noise:
        return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    ramp = np.linspace(0, 100, size[1])[None, :, None] + np.linspace(0, 60, size[0])[:, None, None]
    return np.uint8(np.repeat(ramp + 3 * (number % 30), 3, 2))


def timed(
    path, times=STEADY, codec="libx264", rate=30, unit=Fraction(1, 16000), pix_fmt="yuv420p", size=SIZE, noise=False, **options
):
    """A video whose frames have these times."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = unit
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, size, noise)).reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(params=["pyav", "opencv"])
def reader(request, monkeypatch):
    monkeypatch.setattr(video, "has_pyav", lambda: request.param == "pyav")
    return request.param


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi", ".ts"])
def test_a_steady_rate_is_one_number(tmp_path, reader, suffix):
    facts = probe(timed(tmp_path / f"v{suffix}", unit=Fraction(1, 30)))
    assert (facts.frames, facts.height, facts.width, facts.times, facts.troubles) == (30, *SIZE, (), {})
    assert facts.fps == pytest.approx(30) and facts.time_of(29) == pytest.approx(29 / 30)


@pytest.mark.parametrize("times", [VARIABLE, PAUSE], ids=["variable", "pause"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_keep_the_times_of_their_own(tmp_path, reader, suffix, times):
    facts = probe(timed(tmp_path / f"v{suffix}", times))
    assert facts.frames == 30 and facts.times == pytest.approx(times, abs=1e-3) and not facts.troubles
    assert facts.fps == pytest.approx(1 / 0.033, rel=0.02)


def test_frames_that_a_camera_dropped_leave_gaps_in_an_avi(tmp_path, reader):
    """A webcam's AVI numbers its frames, and leaves out those that it dropped. With B-frames too, for a packet is of another frame."""
    slots = [*range(15), *range(20, 50, 2)]
    path = timed(tmp_path / "v.avi", [n / 30 for n in slots], "mpeg4", unit=Fraction(1, 30))
    if reader == "opencv":  # knows the times of packets alone
        with pytest.raises(UsageError, match="ends early"):
            probe(path)
        return
    facts = probe(path)
    assert facts.frames == 30 and facts.times == pytest.approx([n / 30 for n in slots], abs=1e-5) and not facts.troubles
    assert probe(timed(tmp_path / "steady.avi", codec="libx264", unit=Fraction(1, 30)))[3:6] == (30.0, (), {})


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_a_lost_frame_leaves_the_others_at_their_times(tmp_path, codec, number):
    slots = [*range(10), *range(20, 40)]
    options = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {}
    path = timed(tmp_path / "v.avi", [n / 30 for n in slots], codec, unit=Fraction(1, 30), noise=True, **options)
    writers.destroy(path, number)
    del slots[number]
    facts = probe(path)
    assert facts.times == pytest.approx([(n - slots[0]) / 30 for n in slots], abs=1e-5) and facts.troubles == {
        video.UNDECODED: 1
    }


def test_a_frame_that_an_avi_only_names_in_its_index_is_said(tmp_path):
    path = timed(
        tmp_path / "v.avi", [n / 30 for n in [*range(10), *range(20, 40)]], "mjpeg", unit=Fraction(1, 30), pix_fmt="yuvj420p"
    )
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][5]
    data = bytearray(path.read_bytes())
    data[place - 8 : place] = bytes(8)  # what the chunk is, and how long
    path.write_bytes(data)
    facts = probe(path)
    assert facts.frames == 29 and facts.troubles == {video.UNDECODED: 1}


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])  # Matroska states no number of frames
def test_a_header_tells_length_size_and_rate(tmp_path, reader, suffix):
    assert read_header(timed(tmp_path / f"v{suffix}", unit=Fraction(1, 30))) == (30, *SIZE, pytest.approx(30))


def test_the_rate_that_a_browser_states_is_not_believed(tmp_path, reader):
    """A WebM as MediaRecorder writes it: 1000 frames per second, no duration, no cues."""
    times = np.cumsum([0, *[0.033, 0.036, 0.028, 0.028, 0.028, 0.031, 0.034] * 8])
    path = timed(tmp_path / "v.webm", times, "libvpx", rate=1000, unit=Fraction(1, 1000), live="1")
    facts = probe(path)
    assert facts.frames == len(times) and facts.times == pytest.approx(times, abs=1e-3)
    assert 28 < facts.fps < 37


def test_the_first_frame_is_at_zero(tmp_path, reader):
    facts = probe(timed(tmp_path / "v.mkv", [7.5 + time for time in VARIABLE]))
    assert facts.times == pytest.approx(VARIABLE, abs=1.1e-3)
    assert probe(timed(tmp_path / "v.mp4", [1.4 + time for time in STEADY], bf="2")).times == ()


def test_stamps_that_do_not_rise_are_repaired():
    for given, expected, repaired in (
        ([5, 5.1, 5.1, 5.3], [0, 0.1, 0.15, 0.3], 1),
        ([0, 0.1, None, 0.3], [0, 0.1, 0.2, 0.3], 1),
        ([0, 0.1, 0.2, 0.1, 0.2, 0.4], [0, 0.1, 0.2, 0.25, 0.3, 0.4], 2),
        ([9, 9.1, 9.2, 0, 0.1, 0.2], [0, 0.1, 0.2, 0.3, 0.4, 0.5], 1),
    ):
        clock = stamps.Clock(10.0)
        assert [clock.time(stamp) for stamp in given] == pytest.approx(expected) and clock.repaired == repaired


def test_the_frame_of_a_time():
    edges = [0.0, 0.033, 0.066, 0.495, 0.695]
    at = stamps.position(np.array([-0.1, 0.0, 0.02, 0.0327, 0.3, 0.6, 0.7, 0.9]), 30.0, edges)
    assert np.floor(at).tolist() == [-3, 0, 0, 1, 2, 3, 4, 10]
    assert at[4] == pytest.approx(2 + (0.3 - 0.066) / 0.429)
    assert stamps.position(np.array([0.1]), 30.0).tolist() == [0.1 * 30.0]
    assert np.isnan(stamps.position(np.array([np.nan]), 30.0, edges)).all()


def test_gaze_by_time_falls_into_the_frame_that_is_shown(tmp_path, reader):
    timed(tmp_path / "walk.mp4", VARIABLE)
    rows = ["clip,time_s,duration_s,x,y", "walk,0.335,,10,20", "walk,0.5,0.3,30,20", "walk,3.4,,5,5", "walk,-0.1,,5,5"]
    (tmp_path / "gaze.csv").write_text("\n".join(rows), encoding="utf-8")
    corpus = open_corpus("gaze-table", tmp_path)
    clip = corpus["walk"]
    seen = {index: points.columns.tolist() for index in range(30) if len((points := fixation_points(clip, index)).rows)}
    assert seen == {10: [10], 15: [30], 16: [30]} and clip.troubles == {LATE: 2}
    assert clip.seconds == pytest.approx(VARIABLE[-1] + 0.033, abs=2e-3) and clip.time_of(20) == pytest.approx(VARIABLE[20])
    assert any(note.startswith("variable frame rate in 1 clip (walk): gaze and sampled frames follow") for note in corpus.notes)
    again = Corpus.from_dict(json.loads(json.dumps(corpus.to_dict())))
    assert again == corpus and again["walk"].times == clip.times
    old = {key: value for key, value in corpus.to_dict()["clips"][0].items() if key != "times"}  # as older runs wrote it
    assert Corpus.from_dict({**corpus.to_dict(), "clips": [old]})["walk"].times == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hevc.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "unit": Fraction(1, 1000)}),
        ("prores.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("av1.mp4", {"codec": "libsvtav1"}),
    ],
)
def test_every_codec_keeps_its_times(tmp_path, reader, name, options):
    path = tmp_path / name
    timed(path, VARIABLE, **options)
    if name == "av1.mp4" and sys.platform == "linux":
        # SVT-AV1 makes the thread of a caller that is root a real-time one, of the highest priority. Later tests and the programs
        # that they start would inherit that: a browser then starves the machine.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if name == "av1.mp4" and reader == "opencv":
        with pytest.raises(UsageError, match=r"OpenCV may lack its codec \(av01\), and PyAV reads more"):
            probe(path)
    else:
        assert probe(path).times == pytest.approx(VARIABLE, abs=1e-3) and len(list(read_frames(path))) == 30


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mkv", {}), (".mp4", {"movflags": "faststart"}), (".mov", {"movflags": "faststart"})]
)
def test_a_truncated_video_is_refused(tmp_path, reader, suffix, options):
    whole = timed(tmp_path / f"whole{suffix}", [n / 30 for n in range(90)], noise=True, **options)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert probe(whole).frames == 90
    with pytest.raises(
        UsageError, match=r"ends early: its \d+ frames end at [12]\.\d\d s, its header says [23]\.\d\d s; is it complete"
    ):
        probe(cut)


def test_sound_may_be_longer_than_the_picture(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number))))
        for block in range(60):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, 1024 * block
            container.mux(sound.encode(samples))
        for each in (stream, sound):
            container.mux(each.encode())
    assert probe(path).frames == 30


def test_a_size_that_changes_is_said(tmp_path):
    parts = [timed(tmp_path / "a.ts", STEADY[:10]), timed(tmp_path / "b.ts", STEADY[10:20], size=(48, 96))]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(UsageError, match=r"frame 11 is 96x48, those before 64x48; scale it to one size first"):
        probe(path)


def test_damage_that_a_decoder_hides_is_said(tmp_path):
    """Half a frame is zeros: the decoder fills it in, and marks the frame."""
    path = timed(tmp_path / "v.mp4", noise=True, size=(96, 160))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][14]
        end, half = packet.pos + packet.size, packet.size // 2
    data = bytearray(path.read_bytes())
    data[end - half : end] = bytes(half)
    path.write_bytes(data)
    facts = probe(path)
    assert facts.frames == 30 and facts.troubles[video.UNDECODED] >= 1


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_both_readers_give_the_same_pixels(tmp_path, monkeypatch, pix_fmt):
    path = timed(tmp_path / "v.mkv", STEADY[:3], pix_fmt=pix_fmt)
    pictures = {}
    for name in ("pyav", "opencv"):
        monkeypatch.setattr(video, "has_pyav", lambda name=name: name == "pyav")
        pictures[name] = np.stack(list(read_frames(path)))
    assert np.array_equal(pictures["pyav"], pictures["opencv"])
    assert np.abs(pictures["pyav"][1].astype(int) - picture(1)).mean() < 3


def test_videos_are_written_with_the_times_of_their_frames(tmp_path, reader):
    """An .mp4 by PyAV holds any times; elsewhere frames are repeated, so that two seconds stay two seconds."""
    for suffix in (".mp4", ".avi"):
        path = tmp_path / f"v{suffix}"
        write_video(path, 30.0, SIZE, (picture(number) for number in range(30)), VARIABLE)
        facts = probe(path)
        if suffix == ".mp4" and reader == "pyav":
            assert facts.times == pytest.approx(VARIABLE, abs=1e-4)
        else:
            assert not facts.times and facts.frames / facts.fps == pytest.approx(VARIABLE[-1] + 0.033, abs=0.02)
            first = next(iter(read_frames(path)))
            assert np.abs(first.astype(int) - picture(0)).mean() < 3


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"caf\xe9", "caf\u00e9".encode(), b"a:b", b"http:c", b"%03d", b"-d"])
def test_any_name_of_a_file(tmp_path, reader, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name + b".mp4"))
    write_video(path, 25.0, SIZE, (picture(number) for number in range(5)))
    assert probe(path)[:4] == (5, *SIZE, 25.0) and len(list(read_frames(path))) == 5
    assert [os.fsencode(entry) for entry in Path().iterdir()] == [name + b".mp4"]


# What a player shows of a stored picture, by the display matrix's a, b, c, d: (x, y) is shown at (a x + c y, b x + d y).
TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: np.rot90(p.swapaxes(0, 1), 2),
}


@pytest.mark.parametrize("matrix", TURNS)
def test_videos_are_seen_as_a_player_shows_them(tmp_path, monkeypatch, matrix):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        a, b, c, d = (65536 * value for value in matrix)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number))))
        container.mux(stream.encode())
    expected = TURNS[matrix](picture(1)).astype(int)
    assert probe(path)[:3] == (3, *expected.shape[:2])
    upright = list(read_frames(path))[1]
    assert upright.flags.c_contiguous and np.abs(upright - expected).mean() < 3
    with pyav.open_container(path) as container:
        turn = pyav.orientation(next(container.decode(video=0)))
    assert np.array_equal(turn.stored(turn.upright(picture(1))), picture(1))
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] > 0:  # OpenCV does not know mirrors
        monkeypatch.setattr(video, "has_pyav", lambda: False)
        assert probe(path)[:3] == (3, *expected.shape[:2]) and np.array_equal(list(read_frames(path))[1], upright)


def test_a_corpus_with_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for suffix in (".mp4", ".png"):
        (tmp_path / suffix[1:]).mkdir()
    timed(tmp_path / "mp4" / f"{name}.mp4")
    (tmp_path / "png" / f"{name}.png").write_bytes(cv2.imencode(".png", picture(0))[1].tobytes())
    (clip,) = open_corpus("videos", tmp_path / "mp4").clips
    assert clip.id == r"caf\xe9" and len(list(clip.read())) == 30
    (still,) = open_corpus("photos", tmp_path / "png").clips
    assert still.id.endswith(r"caf\xe9") and np.array_equal(next(still.read()), picture(0))
    (pan,) = open_corpus("pans", tmp_path / "png").clips
    assert next(pan.read()).shape == (pan.height, pan.width, 3)
    write_json(tmp_path / "corpus.json", {"video": clip.video})
    assert read_json(tmp_path / "corpus.json") == {"video": str(tmp_path / "mp4" / f"{name}.mp4")}

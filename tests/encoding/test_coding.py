"""What an encoder is asked to do: rates, two passes, a decoder's buffer, tunes and profiles; on frames in memory."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from distill.encoding.encoders import Coding, Picture, check_coding  # noqa: E402
from distill.encoding.regions import check_map_counts, encode_frames  # noqa: E402
from distill.run.errors import UsageError  # noqa: E402

PICTURE = Picture(96, 64, "yuv420p", Fraction(1, 25), Fraction(25))
MAP = np.repeat([[-4, -4, -4, 4, 4, 4]], 4, 0).astype(np.int32)


@pytest.fixture(scope="module")
def frames():
    """Textures that move, and after a second much more of them."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (40, 400, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    found = []
    for n in range(75):
        picture = (
            texture[:64, 2 * n : 2 * n + 96]
            if n < 25
            else rng.integers(0, 255, (32, 48, 3), np.uint8).repeat(2, 0).repeat(2, 1)
        )
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture)).reformat(format="yuv420p")
        frame.pts, frame.time_base = n, Fraction(1, 25)
        found.append(frame)
    return found


def kbps(packets, frames):
    return sum(packet.size for packet in packets) * 8 / 1000 / (len(frames) / 25)


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_two_passes_meet_the_rate_with_a_map(frames, codec, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "it's a: folder"))
    Path(tmp_path / "it's a: folder").mkdir()
    coding = Coding(codec, bitrate=300, preset="veryfast", threads=1, two_pass=True)
    check_map_counts(PICTURE, coding)
    plain, mapped = (encode_frames(lambda: frames, [offsets] * len(frames), PICTURE, coding) for offsets in (None, MAP))
    assert kbps(mapped, frames) == pytest.approx(300, rel=0.1) and [bytes(p) for p in plain] != [bytes(p) for p in mapped]
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("codec", ["x264", "x265"])
def test_a_decoders_buffer_never_runs_empty(frames, codec):
    def lowest(coding):
        fill = low = size = 1000 * (coding.bufsize or coding.maxrate)
        for packet in encode_frames(lambda: frames, [MAP] * len(frames), PICTURE, coding):
            fill -= 8 * packet.size
            low, fill = min(low, fill), min(size, fill + 1000 * coding.maxrate / 25)
        return low / size

    free = Coding(codec, crf=20, preset="veryfast", threads=1)
    assert kbps(encode_frames(lambda: frames, [MAP] * len(frames), PICTURE, free), frames) > 350
    for kept in (
        Coding(codec, crf=20, maxrate=250, preset="veryfast", threads=1),
        Coding(codec, bitrate=150, maxrate=250, bufsize=200, threads=1),
    ):
        assert lowest(kept) >= 0


@pytest.mark.parametrize(
    ("coding", "message"),
    [
        (Coding(two_pass=True), "--two-pass needs --bitrate"),
        (Coding(bufsize=100), "--bufsize needs --maxrate"),
        (Coding(bitrate=100, maxrate=90), "--maxrate 90 is below --bitrate 100"),
        (Coding(tune="film\x1b[2J"), "--tune film\x1b.* is unknown to x264; there are film, animation"),
        (Coding("x265", tune="film"), "--tune film is unknown to x265; there are psnr, ssim"),
        (Coding("x265", tune="grain,fastdecode"), "--tune grain,fastdecode is unknown to x265"),
        (Coding(profile="main10"), "--profile main10 is unknown to x264; there are baseline, main, high"),
        (Coding(params=("pass=2",)), "--param pass=2: --bitrate N --two-pass makes both passes"),
        (Coding(params=("vbv_maxrate=500",)), "use --maxrate"),
    ],
)
def test_requests_that_cannot_be_met_name_the_way_out(coding, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        check_coding(coding)


@pytest.mark.parametrize(
    ("coding", "format_", "message"),
    [
        (Coding(profile="main"), "yuv420p10le", "libx264 does not start: .*profile main.* its pictures are yuv420p10le"),
        (Coding("x265", profile="main"), "yuv444p", "libx265 does not start: .*profile.* main.* its pictures are yuv444p"),
        (Coding(params=("level=1.0",), crf=0), "yuv420p", "libx264 does not take these options: .*> level limit"),
    ],
)
def test_what_the_pictures_do_not_fit_is_named(coding, format_, message):
    from dataclasses import replace

    big = replace(PICTURE, width=640, height=480, format=format_)
    with pytest.raises(UsageError, match=message):
        encode_frames(list, [], big, coding)


@pytest.mark.parametrize(
    ("coding", "profile"), [(Coding(tune="film,fastdecode", profile="main"), "Main"), (Coding("x265", tune="grain"), "Main")]
)
def test_tunes_and_profiles_are_used(frames, coding, profile):
    packets = encode_frames(lambda: frames[:2], [MAP] * 2, PICTURE, coding)
    decoder = av.codec.Codec({"x264": "h264", "x265": "hevc"}[coding.codec], "r").create("video")
    assert [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    assert decoder.profile == profile

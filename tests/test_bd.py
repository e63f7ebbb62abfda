import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from distill import bd
from distill.encode import Coding, Shaping
from distill.errors import UsageError

CURVE = [(100.0, 30.0), (200.0, 33.0), (410.0, 35.5), (800.0, 37.0)]
quick = settings(max_examples=50, deadline=None)


@quick
@given(st.floats(0.2, 5))
def test_the_same_curve_at_another_rate_is_that_ratio(ratio):
    assert bd.bd_rate(CURVE, [(r * ratio, q) for r, q in CURVE]) == pytest.approx((ratio - 1) * 100, abs=1e-6)


def test_straight_lines_by_hand():
    # log rate = q and log rate = 2 q - 1 over q in 1..2: the mean difference is 0.5
    straight = [(np.exp(q), q) for q in (1.0, 1.3, 2.0)]
    steep = [(np.exp(2 * q - 1), q) for q in (0.5, 1.5, 2.5)]
    assert bd.bd_rate(straight, steep) == pytest.approx((np.exp(0.5) - 1) * 100)
    assert bd.bd_rate(straight[:2], straight[:2][::-1]) == pytest.approx(0)


def test_the_spline_is_scipys_pchip():
    other = [(90.0, 29.5), (170.0, 32.1), (400.0, 35.0), (700.0, 37.2)]
    # scipy 1.17.1: PchipInterpolator(quality, log(rate)).integrate(31, 36.5), and exp of the mean difference over 30..37
    assert bd._integral(*bd._curve(CURVE), 31, 36.5) == pytest.approx(30.41273844576594, rel=1e-12)
    assert bd._integral(*bd._curve(other), 31, 36.5) == pytest.approx(30.90659594409757, rel=1e-12)
    assert bd.bd_rate(CURVE, other) == pytest.approx(6.741820488345351, rel=1e-9)


@pytest.mark.parametrize(
    ("tested", "message"),
    [
        ([(100.0, 50.0), (200.0, 52.0)], "no quality in common"),
        ([(100.0, 30.0)], "two points or more"),
        ([(100.0, 30.0), (200.0, 29.0)], "rise with them"),
        ([(0.0, 30.0), (200.0, 39.0)], "above zero"),
    ],
)
def test_curves_that_say_nothing_are_refused(tested, message):
    with pytest.raises(ValueError, match=message):
        bd.bd_rate(CURVE, tested)


@pytest.fixture(scope="module")
def result(tiny_root):
    from distill.progress import Narrator

    corpus = bd.open_corpus("dhf1k", [str(tiny_root)])
    takes = [(clip.id, lambda clip=clip: bd.take_clip(clip, 6)) for clip in corpus.clips[:2]]
    coding = Coding(preset="ultrafast", threads=1)
    return bd.compare(takes, {}, coding, Shaping(6), [20, 28, 36], Narrator(quiet=True))


def test_a_comparison_of_real_fixations(result, tmp_path):
    assert len(result["clips"]) == 2
    for facts in result["clips"].values():
        assert set(facts["points"]) == {bd.NONE, bd.CENTRE} and facts["frames"] == 6 and facts["gaze_frames"] > 0
        for points in facts["points"].values():
            assert [p["crf"] for p in points] == [20, 28, 36]
            assert points[0]["kbps"] > points[1]["kbps"] > points[2]["kbps"] > 0
            assert points[0]["plain"] > points[1]["plain"] > points[2]["plain"]
        assert facts["bd_rate"][bd.CENTRE].keys() == {"plain", "gaze"}
    assert result["mean"][bd.CENTRE]["gaze_clips"] == 2
    assert [row["clip"] for row in bd.rows(result)] == [*result["clips"], "mean"]
    bd.plot(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_map_of_where_people_look_gains_there_and_loses_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    texture = rng.integers(30, 220, (12, 20, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(-25, 25, (96, 160, 3))
    pixels = [np.roll(np.clip(texture, 0, 255).astype(np.uint8), n, 1) for n in range(6)]
    gaze = np.zeros((96, 160), np.float32)
    gaze[32:64, 16:64] = 1
    take = bd._take("x", iter(pixels), 25.0, dict.fromkeys(range(6), gaze / gaze.sum()))
    maps = {"right": lambda frame, t: gaze, "wrong": lambda frame, t: gaze[:, ::-1]}
    points = {
        title: [
            bd._point(
                take, bd._offsets(take, own, Shaping(4, prior=0)), Coding(crf=crf, preset="ultrafast", threads=1), 16
            )
            for crf in (20, 26, 32)
        ]
        for title, own in {bd.NONE: None, **maps}.items()
    }
    worth = bd._worth("x", points)["bd_rate"]
    assert worth["right"]["gaze"] < -15 and worth["right"]["plain"] > 0
    assert worth["wrong"]["gaze"] > 0


def test_what_cannot_be_compared_is_one_line(tmp_path, tiny_root, narrator):
    for arguments, message in (
        (([], None, None, None), "which clips"),
        (([tmp_path / "none.mp4"], None, None, None), "no such video"),
        (([], "dhf1k", None, "1"), "--corpus and --root"),
        (([], "dhf1k", tiny_root, "nine"), "there is no clip 'nine'"),
    ):
        with pytest.raises(UsageError, match=message):
            bd.sources(*arguments, 5, narrator)
    assert bd.named([tmp_path / "a" / "m.onnx", tmp_path / "n.onnx"]).keys() == {"m.onnx", "n.onnx"}
    assert len(bd.named([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"])) == 2

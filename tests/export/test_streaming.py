import numpy as np
import pytest

from distill.export.streaming import Stream, detect_cut


class Counter:
    """A predictor that returns how many frames it has seen since its last reset."""

    name = "counter"

    def __init__(self, rate=None, stateful=True):
        self.metadata, self.stateful, self.seen, self.calls = {"frame_rate": rate} if rate else {}, stateful, 0, 0

    def reset(self):
        self.seen = 0

    def predict(self, frame):
        self.seen, self.calls = self.seen + 1, self.calls + 1
        return np.full(frame.shape[:2], self.seen, np.float32)


def shots(*lengths):
    """Frames of several shots, each a different still texture with some noise."""
    rng = np.random.default_rng(0)
    for length in lengths:
        still = rng.integers(0, 200, (9, 16, 3)).repeat(10, 0).repeat(10, 1)
        for _ in range(length):
            yield (still + rng.integers(0, 40, still.shape)).astype(np.uint8)


def seen(stream, fps, frames):
    return [int(stream.map(frame, n / fps)[0, 0]) for n, frame in enumerate(frames)]


def test_a_cut_resets_the_state_and_is_counted():
    stream = Stream(Counter("30"))
    assert seen(stream, 30, shots(3, 4)) == [1, 2, 3, 1, 2, 3, 4]
    assert stream.cuts == 1
    stream = Stream(Counter("30"), find_cuts=False)
    assert seen(stream, 30, shots(3, 4)) == [1, 2, 3, 4, 5, 6, 7] and stream.cuts == 0


@pytest.mark.parametrize("rate", ["thirty", "0", "-30", "nan", "inf"])
def test_a_frame_rate_that_is_no_number_is_named(rate):
    with pytest.raises(ValueError, match=f"counter: its metadata states frame_rate '{rate}', which is no number above 0"):
        Stream(Counter(rate))


def test_motion_and_fades_are_not_cuts():
    rng = np.random.default_rng(1)
    texture = rng.integers(0, 256, (6, 30, 3)).repeat(30, 0).repeat(30, 1).astype(np.uint8)
    pan = [texture[:, 6 * n : 6 * n + 320] for n in range(90)]
    fade = [(pan[0] * (1 - n / 30)).astype(np.uint8) for n in range(30)]
    for frames in (pan, fade):
        shot = None
        for frame in frames:
            cut, shot = detect_cut(frame, shot)
            assert not cut


@pytest.mark.parametrize(
    ("fps", "rate", "expected"),
    [
        (30, "30", [1, 2, 3, 4, 5, 6]),
        (29.97, "30", [1, 2, 3, 4, 5, 6]),
        (60, "30", [1, 1, 2, 2, 3, 3]),
        (120, "30", [1, 1, 1, 1, 2, 2]),
        (15, "30", [1, 2, 3, 4, 5, 6]),
        (50, "25", [1, 1, 2, 2, 3, 3]),
        (60, None, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_faster_video_is_sampled_at_the_models_rate(fps, rate, expected):
    assert seen(Stream(Counter(rate)), fps, shots(6)) == expected


def test_over_a_minute_the_model_sees_its_own_rate():
    for fps, least, most in ((50, 1790, 1810), (59.94, 1790, 1810), (30.5, 1780, 1810), (24, 1440, 1440)):
        predictor = Counter("30")
        stream = Stream(predictor, find_cuts=False)
        frame = np.zeros((4, 4, 3), np.uint8)
        for n in range(int(60 * fps)):
            stream.map(frame, n / fps)
        assert least <= predictor.calls <= most


def test_a_model_without_state_sees_every_frame():
    assert seen(Stream(Counter("30", stateful=False)), 60, shots(4)) == [1, 2, 3, 4]


def test_uneven_times_as_they_are_rounded_in_matroska():
    stream, frame = Stream(Counter("30")), np.zeros((20, 20, 3), np.uint8)
    assert [int(stream.map(frame, t)[0, 0]) for t in (0, 0.033, 0.067, 0.1, 0.133, 0.167)] == [1, 2, 3, 4, 5, 6]


def test_another_video_starts_anew():
    stream = Stream(Counter("30"))
    assert seen(stream, 30, shots(3)) == [1, 2, 3]
    assert int(stream.map(np.zeros((90, 160, 3), np.uint8), 0.0)[0, 0]) == 1  # time went back
    stream.reset()
    assert seen(stream, 30, shots(2)) == [1, 2]


def test_the_slowdown_of_a_slow_video():
    assert Stream(Counter("30")).slowdown(15) == pytest.approx(2)
    assert Stream(Counter("30")).slowdown(60) == Stream(Counter("30", stateful=False)).slowdown(5) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(value):
    class Broken(Counter):
        name = "broken.onnx"

        def predict(self, frame):
            saliency = super().predict(frame)
            saliency[3, 4] = value if self.calls == 2 else 0
            return saliency

    with pytest.raises(ValueError, match=r"broken.onnx gives NaN or infinity at 0.1 s"):
        seen(Stream(Broken()), 10, shots(3))

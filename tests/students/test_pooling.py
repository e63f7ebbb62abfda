import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.students.pooling import KINDS, Pooling, parse


def stream(pooling, maps, frames):
    state, out = None, []
    for saliency, frame in zip(maps, frames, strict=True):
        pooled, state = pooling.step(saliency, frame, state)
        out.append(pooled)
    return np.stack(out)


def film(seed, length=6, height=5, width=7):
    rng = np.random.default_rng(seed)
    maps = rng.random((length, height, width)).astype(np.float32)
    return maps, rng.integers(0, 256, (length, height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_map_passes_unchanged(kind):
    maps, frames = film(0)
    pooled, _ = Pooling(kind).step(maps[0], frames[0])
    np.testing.assert_array_equal(pooled, maps[0])


@given(st.integers(0, 1000), st.floats(0.01, 1))
@settings(max_examples=25, deadline=None)
def test_each_kind_of_pooling(seed, alpha):
    maps, frames = film(seed)
    luma = frames @ np.array([0.2126, 0.7152, 0.0722])
    weights = np.r_[1e-6, np.maximum(1e-6, np.abs(np.diff(luma, axis=0)).mean((1, 2)) / 255)]
    ema = [maps[0].astype(float)]
    for saliency in maps[1:]:
        ema.append(alpha * saliency + (1 - alpha) * ema[-1])
    expected = {
        "mean": [maps[: t + 1].mean(0) for t in range(len(maps))],
        "max": [maps[: t + 1].max(0) for t in range(len(maps))],
        "ema": ema,
        "motion-weighted": [np.average(maps[: t + 1], 0, weights[: t + 1]) for t in range(len(maps))],
    }
    for kind in KINDS:
        np.testing.assert_allclose(stream(Pooling(kind, alpha), maps, frames), expected[kind], atol=2e-6, err_msg=kind)


@given(st.integers(0, 1000), st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_a_pooled_map_stays_between_the_maps_it_is_made_of(seed, kind):
    maps, frames = film(seed)
    pooled = stream(Pooling(kind), maps, frames)
    assert np.all(pooled <= np.maximum.accumulate(maps) + 1e-6)
    assert np.all(pooled >= np.minimum.accumulate(maps) - 1e-6)


def test_no_frame_sees_the_future():
    maps, frames = film(1)
    other, others = maps.copy(), frames.copy()
    other[4:], others[4:] = 0.5, 0
    for kind in KINDS:
        np.testing.assert_array_equal(stream(Pooling(kind), maps, frames)[:4], stream(Pooling(kind), other, others)[:4])


def test_motion_weighs_a_frame_that_moves_more_than_one_that_does_not():
    maps = np.stack([np.zeros((4, 4)), np.ones((4, 4)), np.zeros((4, 4))]).astype(np.float32)
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1:] = 200  # all of the motion is between the first and the second
    moving, mean = stream(Pooling("motion-weighted"), maps, frames), stream(Pooling("mean"), maps, frames)
    assert moving[2].min() > 0.999 and mean[2].max() < 0.34
    still = stream(Pooling("motion-weighted"), maps, np.zeros_like(frames))
    np.testing.assert_allclose(still, mean, atol=1e-6)  # where nothing moves, all frames count the same


@pytest.mark.parametrize("text", ["mean", "ema=0.6", "ema=0.25", "max", "motion-weighted"])
def test_names_are_read_back(text):
    assert parse(text).name == text and parse(f" {parse(text).name} ") == parse(text)


def test_the_downstreams_alpha_is_the_default():
    assert parse("ema") == parse("ema=0.6")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("median", "unknown baseline 'median'; known: mean, ema=ALPHA, max, motion-weighted"),
        ("median=2", "unknown baseline 'median'"),
        ("emaa=0.6", "unknown baseline 'emaa'; did you mean 'ema=ALPHA'"),
        ("mean=0.5", "baseline 'mean' takes no number"),
        ("ema=fast", "needs a number, as in ema=0.6, got 'fast'"),
        ("ema=0", "above 0 and at most 1, got 0"),
        ("ema=1.5", "above 0 and at most 1, got 1.5"),
        ("ema=nan", "above 0 and at most 1, got nan"),
    ],
)
def test_an_unknown_baseline_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_stream_keeps_its_size():
    maps, frames = film(2)
    _, state = Pooling("mean").step(maps[0], frames[0])
    with pytest.raises(ValueError, match="one size"):
        Pooling("mean").step(maps[1][:-1], frames[1][:-1], state)


def test_pooling_needs_no_torch():
    code = "import sys, distill.students.pooling; assert not {'torch', 'cv2', 'onnxruntime'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

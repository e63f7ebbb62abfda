import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from distill.encoding.bd.summary import bd_rate

CURVE = [(100.0, 30.0), (200.0, 33.0), (410.0, 35.5), (800.0, 37.0)]
quick = settings(max_examples=50, deadline=None)


@quick
@given(st.floats(0.2, 5))
def test_a_curve_shifted_in_rate_gives_that_ratio(ratio):
    assert bd_rate(CURVE, [(r * ratio, q) for r, q in CURVE]) == pytest.approx((ratio - 1) * 100, abs=1e-6)


def test_straight_lines_computed_by_hand():
    # log rate = q and log rate = 2 q - 1 over q in 1..2: the mean difference is 0.5
    straight = [(np.exp(q), q) for q in (1.0, 1.3, 2.0)]
    steep = [(np.exp(2 * q - 1), q) for q in (0.5, 1.5, 2.5)]
    assert bd_rate(straight, steep) == pytest.approx((np.exp(0.5) - 1) * 100)
    assert bd_rate(straight[:2], straight[:2][::-1]) == pytest.approx(0)


def test_the_curves_are_monotone_cubics():
    other = [(90.0, 29.5), (170.0, 32.1), (400.0, 35.0), (700.0, 37.2)]
    # scipy 1.17.1: exp of the mean difference of PchipInterpolator(quality, log(rate)) over 30..37
    assert bd_rate(CURVE, other) == pytest.approx(6.741820488345351, rel=1e-9)


@pytest.mark.parametrize(
    ("tested", "message"),
    [
        ([(100.0, 50.0), (200.0, 52.0)], "no quality in common"),
        ([(100.0, 30.0)], "two points or more"),
        ([(100.0, 30.0), (200.0, 29.0)], "rise with them"),
        ([(0.0, 30.0), (200.0, 39.0)], "above zero"),
    ],
)
def test_unusable_curves_are_refused(tested, message):
    with pytest.raises(ValueError, match=message):
        bd_rate(CURVE, tested)

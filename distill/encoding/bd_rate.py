"""BD-rate: the average change of rate at equal quality between two rate-quality curves.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33, 2001. Curves are piecewise cubics
through all points, with the monotone slopes of Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5, 1984), as in the common test
conditions of HEVC; the original fits one cubic to four points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """A monotone cubic Hermite spline: log rate over quality, with its slope at each point."""

    quality: np.ndarray
    log_rate: np.ndarray
    slope: np.ndarray


def bd_rate(reference: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]]) -> float:
    """How much more rate `tested` needs than `reference` for the same quality, in per cent; negative where it needs less.

    Both are points (rate above zero, quality), two or more each, in any order; the mean is over the qualities that both reach.
    Raises ValueError where there are fewer points, quality does not rise with rate, or the curves have no quality in common.
    """
    curves = [rate_curve(points) for points in (reference, tested)]
    low = max(curve.quality[0] for curve in curves)
    high = min(curve.quality[-1] for curve in curves)
    if low >= high:
        raise ValueError("the two curves have no quality in common; more rates, further apart, may overlap")
    means = [integral(curve, low, high) / (high - low) for curve in curves]
    return float(np.expm1(means[1] - means[0]) * 100)


def rate_curve(points: Sequence[tuple[float, float]]) -> Curve:
    """The spline through points (rate, quality)."""
    rate, quality = np.array(sorted(points), float).T
    if len(rate) < 2 or rate[0] <= 0 or (np.diff(quality) <= 0).any() or (np.diff(rate) <= 0).any():
        raise ValueError("a curve needs two points or more, with rates above zero and qualities that rise with them")
    log_rate = np.log(rate)
    width = np.diff(quality)
    secant = np.diff(log_rate) / width
    slope = np.empty_like(log_rate)
    first, last = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    slope[1:-1] = (first + last) / (first / secant[:-1] + last / secant[1:])  # a weighted harmonic mean
    if len(log_rate) == 2:
        slope[:] = secant
    else:
        slope[0] = _end_slope(width[0], width[1], secant[0], secant[1])
        slope[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])
    return Curve(quality, log_rate, slope)


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """The slope at an end: of the parabola through three points, clipped to between 0 and three times the secant."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    return float(np.clip(slope, 0, 3 * secant))


def integral(curve: Curve, low: float, high: float) -> float:
    """The exact integral of log rate over quality from low to high."""
    x, y, slope = curve
    total = 0.0
    for i in range(len(x) - 1):
        width = x[i + 1] - x[i]
        begin, end = (np.clip((bound - x[i]) / width, 0, 1) for bound in (low, high))
        rise = y[i + 1] - y[i]
        cubic = [slope[i] * width + slope[i + 1] * width - 2 * rise, 3 * rise - (2 * slope[i] + slope[i + 1]) * width]
        antiderivative = np.polyint([*cubic, slope[i] * width, y[i]])
        total += (np.polyval(antiderivative, end) - np.polyval(antiderivative, begin)) * width
    return float(total)

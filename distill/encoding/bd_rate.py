"""BD-rate: the average change of rate at equal quality between two rate-quality curves.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33, 2001. Curves are piecewise cubics
through all points, with the monotone slopes of Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5, 1984), as in the common test
conditions of HEVC; the original fits one cubic to four points.
"""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator


def bd_rate(reference: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]]) -> float:
    """How much more rate `tested` needs than `reference` for the same quality, in per cent; negative where it needs less.

    Both are points (rate above zero, quality), two or more each, in any order; the mean is over the qualities that both reach.
    Raises ValueError where there are fewer points, quality does not rise with rate, or the curves have no quality in common.
    """
    curves = []  # log rate over quality
    for points in (reference, tested):
        rate, quality = np.array(sorted(points), float).T
        if len(rate) < 2 or rate[0] <= 0 or (np.diff(quality) <= 0).any() or (np.diff(rate) <= 0).any():
            raise ValueError("a curve needs two points or more, with rates above zero and qualities that rise with them")
        curves.append(PchipInterpolator(quality, np.log(rate)))
    low, high = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if low >= high:
        raise ValueError("the two curves have no quality in common; more rates, further apart, may overlap")
    integrals = [curve.integrate(low, high) for curve in curves]
    return float(np.expm1((integrals[1] - integrals[0]) / (high - low)) * 100)

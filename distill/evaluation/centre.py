"""The centred Gaussian: the baseline that every saliency model must beat, and the prior of `distill.encoding`."""

from functools import lru_cache

import numpy as np

SIGMA = 0.22  # of each side


@lru_cache(maxsize=64)
def centred_gaussian(height: int, width: int) -> np.ndarray:
    """A Gaussian in the middle of the frame, float32 `[height, width]`, its peak 1, sigma 22 % of each side."""
    sides = [np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * SIGMA**2)) for n in (height, width)]
    gaussian = np.outer(*sides).astype(np.float32)
    gaussian.setflags(write=False)  # all callers share it
    return gaussian

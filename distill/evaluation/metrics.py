"""Saliency metrics: the formula of each, for one frame.

    metrics.nss(prediction, fixations)      # 2.31
    metrics.cc(prediction, density)         # 0.47

    prediction  [H,W], any scale; uint8 is an 8-bit map      density    [H,W], any scale
    fixations   bool [H,W], or flat pixel indices, int [N]

A constant map has NSS 0, CC 0 and AUC 0.5, and its density is uniform. All sums are in float64. No library's functions are
used: definitions differ in details (standard deviation, ties, normalisation) that change the numbers, and these must match
the benchmarks' own code. Definitions: Bylinskii et al., "What do different evaluation metrics tell us about saliency
models?", TPAMI 2019, unless a function names another source.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import cv2
import numpy as np

# Every metric, in the order of tables: its label.
LABELS = {
    "nss": "NSS", "cc": "CC", "sim": "SIM", "auc_judd": "AUC-J", "s_auc": "sAUC", "kld": "KL", "ig": "IG",
    "block_iou": "bIoU", "block_cc": "bCC", "flicker": "flicker",
}  # fmt: skip
HIGHER_IS_BETTER = {name: name not in ("kld", "flicker") for name in LABELS}
BLOCK = 16  # pixels; an encoder chooses a QP for each block of this size
_EPS = np.finfo(np.float64).eps


class Map:
    """A map with the sums that metrics need. Every metric takes a Map in place of an array, so that nothing is computed twice.

    It keeps one float64 copy, less the minimum, and one buffer of the same size: at video sizes, allocating an array costs
    more than the arithmetic on it. Not thread-safe. Raises ValueError for NaN, infinity, or anything but two dimensions.
    """

    def __init__(self, values: np.ndarray) -> None:
        if values.ndim != 2 or not values.size:
            raise ValueError(f"a map has two dimensions, got shape {values.shape}")
        self.shape: tuple[int, int] = values.shape
        self.low, self.high = float(values.min()), float(values.max())
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            raise ValueError("the map holds NaN or infinity")
        self.shifted = np.subtract(values, self.low, dtype=np.float64).ravel()  # [H*W], its minimum is 0
        self.sum = float(self.shifted.sum())  # of `shifted`, like the next two
        self.mean = self.sum / values.size
        self.squared_deviation = max(_dot(self.shifted, self.shifted) - self.sum * self.mean, 0.0)
        self.is_8_bit = values.dtype == np.uint8

    @classmethod
    def of(cls, values: np.ndarray | Map) -> Map:
        """`values` as a Map; a Map is returned as it is."""
        return values if isinstance(values, Map) else cls(values)

    @property
    def constant(self) -> bool:
        """Whether all values are equal."""
        return self.squared_deviation == 0

    @cached_property
    def buffer(self) -> np.ndarray:
        """Scratch memory `[H*W]`, float64; every metric may overwrite it."""
        return np.empty_like(self.shifted)

    @property
    def offset(self) -> float:
        """Added to `shifted`, it gives the map's mass per pixel; a map with negative values is shifted to a minimum of 0."""
        return max(self.low, 0.0)

    @property
    def total(self) -> float:
        """The map's mass: the sum over all pixels."""
        return self.sum + self.offset * self.shifted.size

    @cached_property
    def density(self) -> np.ndarray:
        """`[H*W]`, scaled to sum to 1; uniform where the map has no mass."""
        return self.min_max_density if self.offset == 0 else (self.shifted + self.offset) / self.total

    @cached_property
    def min_max_density(self) -> np.ndarray:
        """`[H*W]`, the density of the map after min-max scaling."""
        return self.shifted / self.sum if self.sum > 0 else np.full(self.shifted.size, 1 / self.shifted.size)

    @cached_property
    def blocks(self) -> np.ndarray:
        """Means of whole blocks of 16 px, `[H//16,W//16]`; the remainder at the right and at the bottom is dropped."""
        return block_means(self.shifted.reshape(self.shape)) + self.low


Array = np.ndarray | Map


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Not with BLAS: its threads wait for each other when several clips are scored at once, which took 30 times as long."""
    return float(np.einsum("i,i->", a, b))


def reserve_memory() -> None:
    """Makes glibc keep freed arrays of a map's size; call it once before scoring many frames. Otherwise it returns them to the
    kernel and gets new pages each time, at several times the cost of the arithmetic, until a larger array has been freed."""
    np.empty(31 << 20, np.uint8)


def _pixels(fixations: np.ndarray) -> np.ndarray:
    """Flat indices of a fixation map bool `[H,W]`; indices int `[N]` are returned as they are."""
    return np.flatnonzero(fixations) if fixations.dtype == bool else fixations


def nss(prediction: Array, fixations: np.ndarray, ddof: int = 1, floor: float = 0.0) -> float:
    """Normalised scanpath saliency (Peters et al. 2005): the mean z-score at the fixations. The standard deviation divides by
    N - `ddof`; `floor` is added to it."""
    p = Map.of(prediction)
    if p.constant:
        return 0.0
    deviation = np.sqrt(p.squared_deviation / (p.shifted.size - ddof)) + floor
    return float((p.shifted[_pixels(fixations)].mean() - p.mean) / deviation)


def cc(prediction: Array, density: Array) -> float:
    """Pearson's correlation coefficient."""
    p, d = Map.of(prediction), Map.of(density)
    if p.constant or d.constant:
        return 0.0
    covariance = _dot(p.shifted, d.shifted) - p.sum * d.mean
    return float(covariance / np.sqrt(p.squared_deviation) / np.sqrt(d.squared_deviation))


def sim(prediction: Array, density: Array) -> float:
    """Similarity: the intersection of both histograms, each min-max scaled and then normalised to sum 1."""
    p, d = Map.of(prediction), Map.of(density)
    if p.constant:
        return float(np.minimum(p.min_max_density, d.min_max_density).sum())
    shared = np.divide(p.shifted, p.sum, out=p.buffer)
    return float(np.minimum(shared, d.min_max_density, out=shared).sum())


def kld(prediction: Array, density: Array) -> float:
    """KL divergence of the density from the prediction, in nats, both normalised to sum 1."""
    p, q = Map.of(prediction), Map.of(density).density
    total = p.total or 1.0
    # q / (p / total + eps); p is uniform where it has no mass
    ratio = np.add(p.shifted, (p.offset if p.total else 1 / q.size) + _EPS * total, out=p.buffer)
    np.divide(q, ratio, out=ratio)
    ratio *= total
    ratio += _EPS
    return _dot(q, np.log(ratio, out=ratio))


def information_gain(prediction: Array, baseline: Array, fixations: np.ndarray) -> float:
    """Information gain of the prediction's density over the baseline's, in bits per fixation (Kümmerer et al. 2015)."""
    p, b = (_density_at(Map.of(m), _pixels(fixations)) for m in (prediction, baseline))
    return float((np.log2(_EPS + p) - np.log2(_EPS + b)).mean())


def _density_at(m: Map, pixels: np.ndarray) -> np.ndarray:
    return (m.shifted[pixels] + m.offset) / m.total if m.total > 0 else np.full(len(pixels), 1 / m.shifted.size)


def auc_judd(
    prediction: Array, fixations: np.ndarray, jitter: np.random.Generator | None = None, negatives: int | None = None
) -> float:
    """Area under the ROC curve whose thresholds are the values at the fixations (Judd et al. 2009).

    Without jitter, ties count against a map; with it, noise of 1e-7 breaks them, like in the MATLAB code. negatives: the
    number of pixels that false positives are a share of; by default all but the fixations.
    """
    p, pixels = Map.of(prediction), _pixels(fixations)
    count, negatives = len(pixels), p.shifted.size - len(pixels) if negatives is None else negatives
    if negatives <= 0 or p.constant:
        return 0.5  # no negatives, or all values tie
    values, reach = p.shifted, p.high - p.low
    if jitter is not None:  # any noise below 1 orders the pixels of an 8-bit map like noise of 1e-7
        amount = 1.0 if p.is_8_bit else 1e-7
        values, reach = p.shifted + amount * jitter.random(p.shifted.size), reach + amount
    true = np.arange(1, count + 1)
    false = _counts_above(values, reach, np.sort(values[pixels])[::-1], p.buffer) - true
    return float(np.trapezoid(np.r_[0.0, true / count, 1.0], np.r_[0.0, false / negatives, 1.0]))


def _counts_above(values: np.ndarray, reach: float, thresholds: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """How many of `values` `[N]`, from 0 to `reach`, are at least as large as each of `thresholds` `[n]`, a subset of them.
    Exact, without sorting N values: a histogram of 65,536 bins counts them, and only those in a threshold's bin are sorted."""
    scale = 65_535 / reach  # monotonic: equal values share a bin, larger values never get a smaller one
    bins = np.multiply(values, scale, out=buffer).astype(np.uint16)
    threshold_bins = (thresholds * scale).astype(np.uint16)
    histogram = np.bincount(bins, minlength=65_536)
    shared = np.zeros(65_536, bool)
    shared[threshold_bins] = True
    near = np.sort(values[shared[bins]])
    histogram[shared] = 0
    beyond = len(values) - len(near) - np.cumsum(histogram)
    return beyond[threshold_bins] + len(near) - np.searchsorted(near, thresholds, side="left")


def s_auc(prediction: np.ndarray, fixations: np.ndarray, other_fixations: np.ndarray) -> float:
    """Shuffled AUC, exact: how often a fixation of this frame has a higher value than one of other frames; ties count half.
    Centre bias is in both sets, so a centre prior gains nothing (Zhang et al. 2008)."""
    values = prediction.ravel()
    here, there = values[_pixels(fixations)], np.sort(values[_pixels(other_fixations)])
    below, up_to = np.searchsorted(there, here, "left"), np.searchsorted(there, here, "right")
    return float((below + up_to).mean() / (2 * len(there)))


def s_auc_splits(
    prediction: np.ndarray, fixations: np.ndarray, other_fixations: np.ndarray, splits: int = 100, step: float = 0.1, seed: int = 0
) -> float:  # fmt: skip
    """Shuffled AUC as the MIT and DHF1K code computes it: the mean over `splits` random draws of other fixations,
    each as many as there are here. Thresholds run from 0 in steps of `step` over the min-max scaled map."""
    values, low, high = prediction.ravel(), float(prediction.min()), float(prediction.max())
    if low == high:
        return 0.5
    here, there = ((values[_pixels(at)].astype(np.float64) - low) / (high - low) for at in (fixations, other_fixations))
    count = min(len(here), len(there))
    order = np.random.default_rng(seed).random((splits, len(there))).argpartition(count - 1, axis=1)[:, :count]
    thresholds = np.arange(0, 1 + 1e-9, step)[::-1]
    true = np.r_[0.0, (here[:, None] >= thresholds).mean(0), 1.0]
    false = (there[:, None] >= thresholds)[order].mean(1)
    false = np.pad(false, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    return float(np.trapezoid(np.broadcast_to(true, false.shape), false, axis=1).mean())


def block_means(values: np.ndarray, side: int = BLOCK) -> np.ndarray:
    """Means of whole blocks of `side` px: `[H,W]` -> `[H//side,W//side]`."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    whole = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.sum(1).sum(-1) / side**2  # twice as fast as mean((1, 3))


def block_iou(prediction: Array, density: Array) -> float:
    """Intersection over union of the salient blocks, those whose mean is at least 0.5, as the downstream scores masks
    (lusoris/vmaf, `eval_saliency_per_mb`). 1 where no block is salient, NaN where the frame has no whole block.

    It depends on absolute values: a prediction is expected in [0, 1]; one that exceeds 1 is divided by its maximum, like the
    density.
    """
    p, d = Map.of(prediction), Map.of(density)
    if not d.blocks.size:
        return float("nan")
    predicted, salient = p.blocks >= 0.5 * max(p.high, 1), (d.blocks >= 0.5 * d.high) & (d.high > 0)
    union = np.count_nonzero(predicted | salient)
    return np.count_nonzero(predicted & salient) / union if union else 1.0


def block_cc(prediction: Array, density: Array) -> float:
    """Pearson's correlation of block means: how well bits would be distributed, at any scale. NaN without whole blocks."""
    p, d = Map.of(prediction).blocks, Map.of(density).blocks
    return cc(p, d) if p.size else float("nan")


STILL = 1.0  # grey levels of 255


def still_blocks(frame: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The blocks of 16 px without motion between two frames, uint8 RGB `[H,W,3]`: bool `[H//16,W//16]`. Their luma, averaged
    over 4x4 px to suppress noise, changes by at most one grey level on average."""
    lumas = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float32) for f in (frame, before))
    now, then = (block_means(luma, BLOCK // 4) for luma in lumas)
    return block_means(np.abs(now - then), 4) <= STILL


def flicker(now: np.ndarray, before: np.ndarray, still: np.ndarray) -> float:
    """Mean absolute difference of the maps of two consecutive frames, float `[H,W]`, over the `still_blocks` of the frames.
    NaN where no block is still.

    This is the warping error of Lai et al. ("Learning blind video temporal consistency", ECCV 2018) where the flow is zero,
    not squared: its unit is the map's, per frame. A map that follows an object moving elsewhere flickers too, so compare
    predictors on the same clips only.
    """
    return float(block_means(np.abs(now - before))[still].mean()) if still.any() else float("nan")


def as_8_bit(prediction: np.ndarray) -> np.ndarray:
    """The 8-bit map as submitted to a benchmark: uint8 is returned as it is, anything else is scaled to a peak of 255."""
    if prediction.dtype == np.uint8:
        return prediction
    p = Map(prediction)
    peak = 255 / p.high if p.high > 0 else 0.0
    return np.round(np.clip(prediction, 0, None) * peak).astype(np.uint8)


def imresize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """MATLAB's `imresize`: bicubic (Keys, a = -0.5), anti-aliased where it shrinks, mirrored at the border. `[H,W]` ->
    `shape`. uint8 is rounded and clipped to uint8, anything else becomes float64."""
    if image.shape == tuple(shape):
        return image
    out = image.astype(np.float64)
    for length in shape:  # one axis, then the other: each pass ends in a transposition
        weights, taps = _taps(out.shape[0], length)
        out = sum(w[:, None] * out[t] for w, t in zip(weights, taps, strict=True)).T
    return np.clip(np.floor(out + 0.5), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else out


@lru_cache(maxsize=32)
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and source indices, `[taps,new]` each, that make `new` samples of `old`."""
    scale = new / old
    stretch = min(scale, 1.0)
    centres = (np.arange(new) + 0.5) / scale - 0.5
    source = np.floor(centres - 2 / stretch).astype(int) + np.arange(int(np.ceil(4 / stretch)) + 2)[:, None]
    x = np.abs(stretch * (centres - source))
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x <= 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    mirror = np.r_[:old, old - 1 : -1 : -1]
    return weights / weights.sum(0), mirror[source % (2 * old)]

"""Saliency metrics of one frame, and the named protocols that papers' numbers are computed by.

    metrics.score(prediction, density, fixations)                        # {"nss": 2.31, "cc": 0.47, ...}
    metrics.score(prediction, density, fixations, PROTOCOLS["aim2024"])  # as a benchmark's own code computes it

    truth = metrics.truth(density, fixations, others, baseline)          # prepared once for all predictors of a frame,
    metrics.score_against(truth, prediction)                             # and with what s-AUC and IG need besides

    prediction  [H,W], any scale; uint8 is taken as an 8-bit map      density    [H,W], any scale
    fixations   bool [H,W], or rows and columns with their multiplicity

The same map scores differently under another protocol (8 bits, resizing, standard deviation, ties, what is averaged), so
every result names its own. A map without contrast knows nothing: NSS and CC are 0, AUC is 0.5, its mass is uniform. A
frame without fixations has no score: it is refused here, and counted by the caller.

Definitions: Bylinskii et al., "What do different evaluation metrics tell us about saliency models?", TPAMI 2019, unless a
function names another source. All sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

import cv2
import numpy as np

# Every metric: how tables call it, and whether more is better.
LABELS = {
    "nss": "NSS", "cc": "CC", "sim": "SIM", "auc_judd": "AUC-J", "s_auc": "sAUC", "kld": "KL", "ig": "IG",
    "block_iou": "bIoU", "block_cc": "bCC", "flicker": "flicker",
}  # fmt: skip
HIGHER_IS_BETTER = {name: name not in ("kld", "flicker") for name in LABELS}
BLOCK = 16  # pixels: what an encoder gives bits to
_EPS = np.finfo(np.float64).eps


class Map:
    """A map and what metrics ask of it; every metric takes one in place of an array, so that nothing is computed twice.

    It keeps one float64 copy, less the minimum, and one array of the same size to compute in: at video sizes a fresh array
    costs more than the arithmetic on it. Not for several threads at once. Raises ValueError for NaN, infinity, or anything
    but two dimensions.
    """

    def __init__(self, values: np.ndarray) -> None:
        if values.ndim != 2 or not values.size:
            raise ValueError(f"a map has two dimensions, got shape {values.shape}")
        self.shape: tuple[int, int] = values.shape
        self.low, self.high = float(values.min()), float(values.max())
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            raise ValueError("the map holds NaN or infinity")
        self.lifted = np.subtract(values, self.low, dtype=np.float64).ravel()  # [H*W]
        self.sum = float(self.lifted.sum())  # of `lifted`, as are the next two
        self.mean = self.sum / values.size
        self.energy = max(_dot(self.lifted, self.lifted) - self.sum * self.mean, 0.0)  # squared deviations
        self.eight_bit = values.dtype == np.uint8

    @classmethod
    def of(cls, values: np.ndarray | Map) -> Map:
        return values if isinstance(values, Map) else cls(values)

    @property
    def flat(self) -> bool:
        """Whether it has no contrast."""
        return self.energy == 0

    @cached_property
    def scratch(self) -> np.ndarray:
        return np.empty_like(self.lifted)

    @property
    def floor(self) -> float:
        """What `lifted` lacks of being the map's mass; a map that goes below 0 is lifted to 0 first."""
        return max(self.low, 0.0)

    @property
    def total(self) -> float:
        """The map's mass."""
        return self.sum + self.floor * self.lifted.size

    @cached_property
    def mass(self) -> np.ndarray:
        """`[H*W]`, scaled to sum to 1; uniform where there is nothing to scale."""
        return self.stretched_mass if self.floor == 0 else (self.lifted + self.floor) / self.total

    @cached_property
    def stretched_mass(self) -> np.ndarray:
        """The same after the map was scaled from its minimum to its maximum."""
        return self.lifted / self.sum if self.sum > 0 else np.full(self.lifted.size, 1 / self.lifted.size)

    @cached_property
    def blocks(self) -> np.ndarray:
        """Means of whole blocks of 16 px, `[H//16,W//16]`; what is left at the right and at the bottom is dropped."""
        return block_means(self.lifted.reshape(self.shape)) + self.low


Array = np.ndarray | Map


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Not through BLAS: its threads wait for each other wherever several clips are scored at once, 30 times the work itself."""
    return float(np.einsum("i,i->", a, b))


def keep_memory() -> None:
    """To be called once before many frames are scored. glibc gives arrays of a map's size back to the kernel at each release
    and gets them anew, page by page, which may cost several times the arithmetic, until it has seen a larger one released."""
    np.empty(31 << 20, np.uint8)


@dataclass(frozen=True)
class Truth:
    """What is known of one frame. `truth` makes and checks it."""

    density: Map
    pixels: np.ndarray  # int [N], flat indices of the fixations; a pixel fixated twice stands there twice
    others: np.ndarray | None = None  # int [M], flat indices of fixations of other frames: what s-AUC tells apart from
    baseline: Map | None = None  # the density that information gain is measured over
    seed: int = 0  # of what a protocol draws at random

    @cached_property
    def once(self) -> np.ndarray:
        """The fixated pixels without their multiplicity, as a binary fixation map holds them."""
        return np.unique(self.pixels)

    @property
    def shape(self) -> tuple[int, int]:
        return self.density.shape


def truth(
    density: np.ndarray,
    fixations: np.ndarray | tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray] | None = None,
    baseline: Array | None = None,
    seed: int = 0,
) -> Truth:
    """The truth of one frame, ready for `score`.

    density: `[H,W]`. fixations: bool `[H,W]`, or rows and columns, int `[N]` each. others: rows and columns of other frames'
    fixations, in this frame's pixels, for s-AUC. baseline: `[H,W]`, for information gain. Raises ValueError for shapes that
    differ, NaN, fixations outside the frame, or none.
    """
    height, width = density.shape
    if isinstance(fixations, np.ndarray):
        if fixations.shape != density.shape:
            raise ValueError(f"shapes differ: density {density.shape}, fixations {fixations.shape}")
        pixels = np.flatnonzero(fixations)
    else:
        pixels = _flat(fixations, height, width)
    if not len(pixels):
        raise ValueError("a frame without fixations has no score; skip and count it")
    if baseline is not None and baseline.shape != density.shape:
        raise ValueError(f"shapes differ: density {density.shape}, baseline {baseline.shape}")
    return Truth(
        Map(density), pixels, None if others is None else np.unique(_flat(others, height, width)),
        None if baseline is None else Map.of(baseline), seed,
    )  # fmt: skip


def _pixels(fixations: np.ndarray) -> np.ndarray:
    """Flat indices of a fixation map bool `[H,W]`; indices int `[N]` stay what they are."""
    return np.flatnonzero(fixations) if fixations.dtype == bool else fixations


def _flat(points: tuple[np.ndarray, np.ndarray], height: int, width: int) -> np.ndarray:
    rows, columns = (np.asarray(axis, np.int64) for axis in points)
    if rows.size and (rows.min() < 0 or columns.min() < 0 or rows.max() >= height or columns.max() >= width):
        raise ValueError(f"a fixation lies outside the frame of {width}x{height} px")
    return rows * width + columns


# --- protocols -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """A way of computing and averaging: `clips` averages clips, each the mean of its frames; `frames` averages frames."""

    name: str
    about: str  # one line for whoever reads the numbers
    metrics: tuple[str, ...]
    average: str
    own_clip: bool  # whether s-AUC may draw other frames from the clip that is scored
    work: Callable[[np.ndarray, Truth], dict[str, float]]


def score(
    prediction: np.ndarray,
    density: np.ndarray,
    fixations: np.ndarray | tuple[np.ndarray, np.ndarray],
    protocol: Protocol | None = None,
) -> dict[str, float]:
    """The protocol's metrics of one frame, by `clip-mean` unless told otherwise. Raises as `truth` and `score_against` do."""
    return score_against(truth(density, fixations), prediction, protocol)


def score_against(truth: Truth, prediction: np.ndarray, protocol: Protocol | None = None) -> dict[str, float]:
    """The protocol's metrics, less those that need what `truth` does not hold (others, baseline).

    A prediction of another size is resized as the protocol does it. Flicker is not here: it needs two frames. Raises
    ValueError for NaN, or a prediction that is no map.
    """
    return (protocol or CLIP_MEAN).work(prediction, truth)


def _clip_mean(prediction: np.ndarray, truth: Truth) -> dict[str, float]:
    if prediction.ndim == 2 and prediction.shape != truth.shape:
        prediction = cv2.resize(prediction, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    p = Map(prediction)
    scores = {
        "nss": nss(p, truth.once),
        "cc": cc(p, truth.density),
        "sim": sim(p, truth.density),
        "auc_judd": auc_judd(p, truth.once),
        "kld": kld(p, truth.density),
        "block_iou": block_iou(p, truth.density),
        "block_cc": block_cc(p, truth.density),
    }
    if truth.others is not None:
        scores["s_auc"] = s_auc(prediction, truth.once, truth.others)
    if truth.baseline is not None:
        scores["ig"] = information_gain(p, truth.baseline, truth.pixels)
    return scores


def _mit(prediction: np.ndarray, truth: Truth) -> dict[str, float]:
    eight_bit = imresize(as_png(prediction), truth.shape)
    p = Map(eight_bit)
    scores = {
        "nss": nss(p, truth.once),
        "cc": cc(p, truth.density),
        "sim": sim(p, truth.density),
        "auc_judd": auc_judd(p, truth.once, jitter=np.random.default_rng(truth.seed)),
        "kld": kld(p, truth.density),
    }
    if truth.others is not None:
        scores["s_auc"] = s_auc_splits(eight_bit, truth.once, truth.others, seed=truth.seed)
    return scores


def _aim2024(prediction: np.ndarray, truth: Truth) -> dict[str, float]:
    p = Map(prediction)
    stretched = (p.lifted / (1 if p.flat else p.high - p.low)).astype(np.float32).reshape(p.shape)
    if stretched.shape != truth.shape:
        stretched = cv2.resize(stretched, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    p = Map(stretched)
    # It means to count distinct fixations and counts two columns (`np.unique` with axis=1): N pixels less 2.
    negatives = stretched.size - 2
    return {
        "nss": nss(p, truth.pixels, ddof=0, floor=1e-7),
        "cc": cc(p, truth.density),
        "sim": sim(p, truth.density),
        "auc_judd": auc_judd(p, truth.pixels, negatives=negatives),
    }


CLIP_MEAN = Protocol(
    "clip-mean",
    "float maps at the video's size, deviation with N-1, SIM after min-max, AUC-Judd without jitter, sAUC by ranks against ten "
    "frames of other clips, IG in bits per fixation over the centred Gaussian, mean over clips",
    tuple(LABELS), "clips", False, _clip_mean,
)  # fmt: skip
_STANDARD = ("nss", "cc", "sim", "auc_judd", "s_auc", "kld")
PROTOCOLS = MappingProxyType({
    protocol.name: protocol
    for protocol in (
        CLIP_MEAN,
        Protocol(
            "dhf1k-official",
            "DHF1K's own code: 8-bit maps, bicubic to the video's size, SIM after min-max, AUC-Judd with jitter, sAUC over ten "
            "frames of the whole set, 100 splits, step 0.1, mean over frames",
            _STANDARD, "frames", True, _mit,
        ),
        Protocol(
            "mit",
            "MIT saliency benchmark's code: 8-bit maps, bicubic to the image's size, SIM after min-max, AUC-Judd with jitter, "
            "sAUC over ten other images or clips, 100 splits, step 0.1, mean over frames",
            _STANDARD, "frames", False, _mit,
        ),
        Protocol(
            "aim2024",
            "AIM 2024 challenge: min-max of every frame, bilinear to the video's size, deviation with N, fixations with their "
            "multiplicity, mean over clips",
            ("nss", "cc", "sim", "auc_judd"), "clips", True, _aim2024,
        ),
    )
})  # fmt: skip


# --- metrics ---------------------------------------------------------------------------------------------------------


def nss(prediction: Array, fixations: np.ndarray, ddof: int = 1, floor: float = 0.0) -> float:
    """Normalised scanpath saliency (Peters et al. 2005): the mean z-score at the fixations.

    The deviation is taken with N - `ddof`, and `floor` is added to it.
    """
    p = Map.of(prediction)
    if p.flat:
        return 0.0
    deviation = np.sqrt(p.energy / (p.lifted.size - ddof)) + floor
    return float((p.lifted[_pixels(fixations)].mean() - p.mean) / deviation)


def cc(prediction: Array, density: Array) -> float:
    """Pearson's correlation."""
    p, d = Map.of(prediction), Map.of(density)
    if p.flat or d.flat:
        return 0.0
    return float((_dot(p.lifted, d.lifted) - p.sum * d.mean) / np.sqrt(p.energy) / np.sqrt(d.energy))


def sim(prediction: Array, density: Array) -> float:
    """Similarity: the shared mass of both maps, each first scaled from its minimum to its maximum."""
    p, d = Map.of(prediction), Map.of(density)
    if p.flat:
        return float(np.minimum(p.stretched_mass, d.stretched_mass).sum())
    shared = np.divide(p.lifted, p.sum, out=p.scratch)
    return float(np.minimum(shared, d.stretched_mass, out=shared).sum())


def kld(prediction: Array, density: Array) -> float:
    """KL divergence of the density from the prediction, in nats, both scaled to unit mass."""
    p, q = Map.of(prediction), Map.of(density).mass
    total = p.total or 1.0
    # q / (p / total + eps), where p is uniform if it has no mass
    ratio = np.add(p.lifted, (p.floor if p.total else 1 / q.size) + _EPS * total, out=p.scratch)
    np.divide(q, ratio, out=ratio)
    ratio *= total
    ratio += _EPS
    return _dot(q, np.log(ratio, out=ratio))


def information_gain(prediction: Array, baseline: Array, fixations: np.ndarray) -> float:
    """Bits per fixation by which the prediction, as a density, tells more than the baseline (Kümmerer et al. 2015)."""
    p, b = (_mass_at(Map.of(m), _pixels(fixations)) for m in (prediction, baseline))
    return float((np.log2(_EPS + p) - np.log2(_EPS + b)).mean())


def _mass_at(m: Map, pixels: np.ndarray) -> np.ndarray:
    return (m.lifted[pixels] + m.floor) / m.total if m.total > 0 else np.full(len(pixels), 1 / m.lifted.size)


def auc_judd(
    prediction: Array,
    fixations: np.ndarray,
    jitter: np.random.Generator | None = None,
    negatives: int | None = None,
) -> float:
    """Area under the ROC curve whose thresholds are the values at the fixations (Judd et al. 2009).

    Without jitter, ties count against a map; with it, noise of 1e-7 breaks them as the MATLAB code does. negatives: over
    how many pixels false positives are counted; by default all but the fixations.
    """
    p, pixels = Map.of(prediction), _pixels(fixations)
    count, negatives = len(pixels), p.lifted.size - len(pixels) if negatives is None else negatives
    if negatives <= 0 or p.flat:
        return 0.5  # nothing to tell apart, or a map that is all ties
    values, reach = p.lifted, p.high - p.low
    if jitter is not None:  # between two 8-bit values any noise below 1 orders pixels as noise of 1e-7 does
        amount = 1.0 if p.eight_bit else 1e-7
        values, reach = p.lifted + amount * jitter.random(p.lifted.size), reach + amount
    true = np.arange(1, count + 1)
    false = _counts_above(values, reach, np.sort(values[pixels])[::-1], p.scratch) - true
    return float(np.trapezoid(np.r_[0.0, true / count, 1.0], np.r_[0.0, false / negatives, 1.0]))


def _counts_above(values: np.ndarray, reach: float, thresholds: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """How many of `values` `[N]`, from 0 to `reach`, are at least as large as each of `thresholds` `[n]`, which are among them.

    Exact, without sorting N values: they are counted in 65,536 bins, and only those in a threshold's bin are sorted.
    """
    scale = 65_535 / reach  # equal values get equal bins, and larger ones no smaller
    bins = np.multiply(values, scale, out=scratch).astype(np.uint16)
    wanted = (thresholds * scale).astype(np.uint16)
    histogram = np.bincount(bins, minlength=65_536)
    shared = np.zeros(65_536, bool)
    shared[wanted] = True
    near = np.sort(values[shared[bins]])
    histogram[shared] = 0
    beyond = len(values) - len(near) - np.cumsum(histogram)
    return beyond[wanted] + len(near) - np.searchsorted(near, thresholds, side="left")


def s_auc(prediction: np.ndarray, fixations: np.ndarray, others: np.ndarray) -> float:
    """Shuffled AUC, exact: how often a fixation of this frame has a higher value than one of other frames; ties count half.

    What the centre of the screen draws by itself is in both, so a centre prior gains nothing (Zhang et al. 2008).
    """
    values = prediction.ravel()
    here, there = values[_pixels(fixations)], np.sort(values[_pixels(others)])
    below, up_to = np.searchsorted(there, here, "left"), np.searchsorted(there, here, "right")
    return float((below + up_to).mean() / (2 * len(there)))


def s_auc_splits(
    prediction: np.ndarray,
    fixations: np.ndarray,
    others: np.ndarray,
    splits: int = 100,
    step: float = 0.1,
    seed: int = 0,
) -> float:
    """Shuffled AUC as the MIT and DHF1K code computes it: the mean over `splits` random draws of as many other fixations
    as there are here, thresholds from 0 in steps of `step` over the map scaled from its minimum to its maximum."""
    low, high = float(prediction.min()), float(prediction.max())
    if low == high:
        return 0.5
    here, there = (
        (prediction.ravel()[_pixels(at)].astype(np.float64) - low) / (high - low) for at in (fixations, others)
    )
    count = min(len(here), len(there))
    order = np.random.default_rng(seed).random((splits, len(there))).argpartition(count - 1, axis=1)[:, :count]
    thresholds = np.arange(0, 1 + 1e-9, step)[::-1]
    true = np.r_[0.0, (here[:, None] >= thresholds).mean(0), 1.0]
    false = (there[:, None] >= thresholds)[order].mean(1)
    false = np.pad(false, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    return float(np.trapezoid(np.broadcast_to(true, false.shape), false, axis=1).mean())


# --- blocks and time -------------------------------------------------------------------------------------------------


def block_means(values: np.ndarray, side: int = BLOCK) -> np.ndarray:
    """Means of whole blocks of 16 px: `[H,W]` -> `[H//16,W//16]`."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    whole = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.sum(1).sum(-1) / side**2  # in this order twice as fast as mean((1, 3))


def block_iou(prediction: Array, density: Array) -> float:
    """Overlap of the blocks that are salient, as the downstream scores masks (lusoris/vmaf, `eval_saliency_per_mb`):
    intersection over union of the blocks whose mean is at least 0.5; 1 where there are none, NaN where no block is whole.

    It reads absolute values. A prediction is meant to lie in [0, 1]; one that goes beyond is divided by its maximum, and so
    is the density, always.
    """
    p, d = Map.of(prediction), Map.of(density)
    if not d.blocks.size:
        return float("nan")
    mine, theirs = p.blocks >= 0.5 * max(p.high, 1), (d.blocks >= 0.5 * d.high) & (d.high > 0)
    union = np.count_nonzero(mine | theirs)
    return np.count_nonzero(mine & theirs) / union if union else 1.0


def block_cc(prediction: Array, density: Array) -> float:
    """Pearson's correlation of block means: how well bits would be shared out, whatever the scale. NaN without blocks."""
    p, d = Map.of(prediction).blocks, Map.of(density).blocks
    return cc(p, d) if p.size else float("nan")


STILL = 1.0  # grey levels of 255


def still_blocks(frame: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The blocks of 16 px that hold still from one frame to the next: bool `[H//16,W//16]`.

    Their luma, averaged over 4x4 px so that noise cancels, changes by at most one grey level on average. Frames are uint8
    RGB `[H,W,3]`.
    """
    luma, luma_before = (
        block_means(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float32), BLOCK // 4) for f in (frame, before)
    )
    return block_means(np.abs(luma - luma_before), 4) <= STILL


def flicker(now: np.ndarray, before: np.ndarray, still: np.ndarray) -> float:
    """How much the map changes where the picture does not: mean absolute difference of two consecutive maps over the
    `still_blocks` of their frames. NaN where no block holds still.

    This is the warping error of Lai et al. ("Learning blind video temporal consistency", ECCV 2018) where the flow is zero,
    without the square: the unit is the map's own, per frame. A map that follows something moving elsewhere in the picture
    has some too, so only predictors on the same clips compare. now, before: float `[H,W]`.
    """
    return float(block_means(np.abs(now - before))[still].mean()) if still.any() else float("nan")


# --- sizes and depths ------------------------------------------------------------------------------------------------


def as_png(prediction: np.ndarray) -> np.ndarray:
    """The 8-bit map that is handed in to a benchmark: uint8 stays, anything else is scaled to a peak of 255."""
    if prediction.dtype == np.uint8:
        return prediction
    p = Map(prediction)
    peak = 255 / p.high if p.high > 0 else 0.0
    return np.round(np.clip(prediction, 0, None) * peak).astype(np.uint8)


def imresize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """MATLAB's `imresize`: bicubic (Keys, a = -0.5), widened against aliasing where it shrinks, mirrored at the border.

    `[H,W]` -> `shape`. uint8 is rounded and clipped to uint8, anything else is float64.
    """
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

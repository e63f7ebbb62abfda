"""From a saliency map to QP offsets: one for every block, negative where people look.

    offsets = None
    for saliency in maps:                                        # float [h,w] in [0, 1]
        offsets = qp_offsets(saliency, Shaping(), (1080, 1920), offsets)   # int32 [68,120]

The grid is the encoder's: blocks at the right and bottom edges may extend beyond the frame, and only their part inside counts.
A map may have any size: it covers the frame, and a block takes the mean of the part of the map that covers it. Or it is a
block map, whose cells are blocks of the frame.
Pure functions, on arrays alone; the only state between frames is the previous frame's offsets.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_array

from distill.evaluation.centre import centred_gaussian

BLOCKS = (16, 32, 64)  # H.264's macroblock, HEVC's usual quantisation group, AV1's superblock
LIMIT = 12  # QP; the downstream clips its maps there too
NEUTRAL = ("bits", "mean", "off")
STRONGEST = {"log": 3, "linear": LIMIT}  # the largest strength on each scale
FAINT = 0.2  # the linear scale takes a map whose peak is lower than this as faint
# A block's bits, fitted to the sizes of 31 clips; see `block_bits`.
NOISE = 0.27  # residual in grey levels at which a pixel costs one bit at CRF 23; it doubles every 6, as the step size does
HALVING = 4.9  # QP that halve the bits of a block


def grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Rows and columns of blocks that cover a frame of `size` (height, width) in pixels."""
    return -(-size[0] // block), -(-size[1] // block)


@lru_cache(maxsize=16)
def areas(size: tuple[int, int], block: int) -> np.ndarray:
    """Pixels of the frame in each block, float64 `[rows, columns]`."""
    blocks = zip(size, grid(size, block), strict=True)
    sides = [np.minimum(block, length - block * np.arange(count)) for length, count in blocks]
    return np.outer(*sides).astype(float)


def block_means(
    saliency: np.ndarray, block: int, size: tuple[int, int] | None = None, cell: int | None = None
) -> np.ndarray:  # fmt: skip
    """Block means, float64 `[rows, columns]`, of a map `[h,w]` that covers a frame of `size`.

    size: height and width of the frame, by default the map's. Pixels of the map that a block covers in part count in part.
    cell: side in pixels of what a value of the map is for, cut by the frame's right and bottom edge; by default the values divide
    the frame evenly. Raises ValueError for an invalid map, see `check_map`, and where the cells do not cover the frame.
    """
    check_map(saliency)
    frame = size or (saliency.shape[0], saliency.shape[1])
    if cell and saliency.shape != grid(frame, cell):
        raise ValueError(f"the map has {saliency.shape} cells, the frame {grid(frame, cell)}")
    return saliency.astype(float) if cell == block else _means(saliency, block, frame, cell)


def check_map(saliency: np.ndarray) -> None:
    """Raises ValueError for a map that is not two-dimensional, is empty, or has values outside [0, 1]."""
    if saliency.ndim != 2 or saliency.size == 0:
        raise ValueError(f"a saliency map must be [height, width]; got {list(saliency.shape)}")
    if not (saliency.min() >= 0 and saliency.max() <= 1):  # false for NaN
        raise ValueError(f"a saliency map must lie in [0, 1]; got {saliency.min():g} to {saliency.max():g}")


def _means(picture: np.ndarray, block: int, size: tuple[int, int], cell: int | None = None) -> np.ndarray:
    height, width = size
    rows = _shares(picture.shape[0], height, block, cell) @ picture
    return (_shares(picture.shape[1], width, block, cell) @ rows.T).T


@lru_cache(maxsize=32)
def _shares(cells: int, length: int, block: int, cell: int | None = None) -> csr_array:
    """Weights `[blocks, cells]` of the map's cells along one side, `length` pixels long, in each block's mean; rows sum to 1.

    Sparse, because a dense product goes through BLAS, whose threads cost 100 times as much where other work runs beside them.
    """
    starts = np.arange(0, length, block)[:, None]
    ends = np.minimum(starts + block, length)
    edges = np.minimum(np.arange(cells + 1) * (cell or length / cells), length)
    return csr_array(np.maximum(0, np.minimum(ends, edges[1:]) - np.maximum(starts, edges[:-1])) / (ends - starts))


def block_bits(
    luma: np.ndarray, before: np.ndarray | None, block: int, size: tuple[int, int], crf: float = 23
) -> np.ndarray:  # fmt: skip
    """Estimated share of the frame's bits in each block, float64 `[rows, columns]`, summing to 1.

    luma: grey levels 0..255 `[h,w]` of a small picture that covers a frame of `size`. before: the previous frame's, if any.
    An encoder predicts a block from its neighbourhood or from the previous frame, whichever leaves the smaller residual. So the
    residual r is taken as the smaller standard deviation, of the block or of its change, and a pixel costs log2(1 + (r / q)^2)
    with q = 0.27 * 2^((crf - 23) / 6): the rate of a Gaussian source, and a quantiser that leaves less of it the coarser it is.
    """
    residual = _deviation(luma.astype(float), block, size)
    if before is not None:
        residual = np.minimum(residual, _deviation(luma.astype(float) - before, block, size))
    quantiser = NOISE * 2 ** ((crf - 23) / 6)
    # The constant matters only where the whole frame is flat and still.
    bits = (np.log2(1 + (residual / quantiser) ** 2) + 1e-4) * areas(size, block)
    return bits / bits.sum()


def _deviation(picture: np.ndarray, block: int, size: tuple[int, int]) -> np.ndarray:
    return np.sqrt(np.maximum(0, _means(picture**2, block, size) - _means(picture, block, size) ** 2))


@lru_cache(maxsize=16)
def _centred_means(size: tuple[int, int], block: int) -> np.ndarray:
    return block_means(centred_gaussian(*size), block)


@dataclass(frozen=True)
class Shaping:
    """How a saliency map becomes QP offsets; `MAPPINGS` has the usual ones by name. Raises ValueError out of range.

    scale: `log` takes the map as a density: how much more people look at a block than at the average one. With s the block's mean
        and g that of a centred Gaussian (`centred_gaussian`), both divided by their means over the frame, a block has the weight
        p = (1 - prior - floor) s + prior g + floor, of mean 1, and the offset -strength log2 p.
        A blank map leaves prior and floor alone, in proportion.
        Why: a bit more saves distortion in proportion to the distortion D, so sum(p D) at a given rate is least where p D is the
        same in all blocks; with D ~ 2^(QP / 3) that is 3 QP per doubling of p. A quarter of it gains most of that, and costs
        nothing in VMAF: where people look is known with an error.
        `linear` takes the map as a mask: the block means divided by their peak, or by 0.2 where that is lower, then mixed with
        the Gaussian (1 - prior : prior), give (1 - 2 s) strength.
    strength: `log`: QP per doubling of p, from 0 to 3. `linear`: the offset of a block with s = 0, up to 12 QP; with s = 1, minus that.
    prior: share of the Gaussian; a wrong model then costs less than it gains where it is right.
    floor: share that all blocks have alike, above 0 for `log`; it bounds how much is taken from blocks that nobody looks at.
    block: side of a block in pixels.
    neutral: shift all offsets of the frame by one amount, so that the frame's size stays about the same. `mean`: until their
        area-weighted mean is zero. `bits`: until the estimated bits are unchanged, with each block's scaled by 2^(-offset / 4.9); a
        zero mean enlarges frames, since bits grow faster below zero than they shrink above, and people look where there is
        something to encode. `off`: no shift. Rounding leaves an error of at most 0.5 + hold.
    crf: of the encoder, for `bits`: the coarser the quantiser, the more of all bits are in costly blocks.
    hold: an offset changes only where it is off by more than 0.5 + hold, so that it does not flicker.
    lowest, highest: the limits of the offsets.
    """

    scale: str = "log"
    strength: float = 0.75
    prior: float = 0.2
    floor: float = 0.1
    block: int = 16
    neutral: str = "bits"
    crf: float = 23
    hold: float = 0.25
    lowest: int = -LIMIT
    highest: int = LIMIT

    def __post_init__(self) -> None:
        if self.scale not in STRONGEST:
            raise ValueError(f"scale must be one of {', '.join(STRONGEST)}; got {self.scale!r}")
        if self.neutral not in NEUTRAL:
            raise ValueError(f"neutral must be one of {', '.join(NEUTRAL)}; got {self.neutral!r}")
        most, log = STRONGEST[self.scale], self.scale == "log"
        if not 0 <= self.strength <= most:
            raise ValueError(f"strength must be from 0 to {most} where the scale is {self.scale}; got {self.strength:g}")
        if not (self.prior >= 0 and self.floor >= 0 and self.prior + self.floor <= 1 and (self.floor > 0 or not log)):
            raise ValueError(f"must hold: prior >= 0, floor >= 0, prior + floor <= 1, for log floor > 0; got {self}")
        if not (self.hold >= 0 and self.block >= 1 and self.lowest <= 0 <= self.highest):
            raise ValueError(f"must hold: hold >= 0, block >= 1, lowest <= 0 <= highest; got {self}")


MAPPINGS = {
    "log": Shaping(),
    "log-strong": Shaping(strength=2.5, lowest=-8, highest=4),
    "linear": Shaping("linear", strength=4, prior=0.5, floor=0),
}


def qp_offsets(
    saliency: np.ndarray, shaping: Shaping, size: tuple[int, int] | None = None,
    previous: np.ndarray | None = None, bits: np.ndarray | None = None, cell: int | None = None,
) -> np.ndarray:  # fmt: skip
    """QP offsets int32 `[rows, columns]` of a saliency map `[h,w]`; see `Shaping`.

    size: height and width of the frame in pixels; by default the map's.
    previous: the offsets of the previous frame, for `hold`.
    bits: for `neutral="bits"`, the bits of each block in any unit, see `block_bits`; by default its area.
    cell: of a block map, see `block_means`.

    Raises ValueError for a map outside [0, 1], and for a `previous` or `bits` with another number of blocks.
    """
    block = shaping.block
    frame = size or (saliency.shape[0], saliency.shape[1])
    means, centred = block_means(saliency, block, size, cell), _centred_means(frame, block)
    target = (_log_target if shaping.scale == "log" else _linear_target)(means, centred, areas(frame, block), shaping)
    if shaping.neutral != "off":
        weights = areas(frame, block) if bits is None or shaping.neutral == "mean" else bits
        if weights.shape != target.shape:
            raise ValueError(f"the bits are of {weights.shape} blocks, the map has {target.shape}")
        target = _neutralised(target, weights, shaping)
    offsets = np.clip(np.round(target), shaping.lowest, shaping.highest)
    if previous is not None:
        if previous.shape != offsets.shape:
            raise ValueError(f"the previous frame had {previous.shape} blocks, this one has {offsets.shape}")
        offsets = np.where(np.abs(target - previous) <= 0.5 + shaping.hold, previous, offsets)
    return offsets.astype(np.int32)


def _log_target(means: np.ndarray, centred: np.ndarray, area: np.ndarray, shaping: Shaping) -> np.ndarray:
    prior, floor, mean = shaping.prior, shaping.floor, np.average(means, weights=area)
    known = prior * centred / np.average(centred, weights=area) + floor
    weight = (1 - prior - floor) * means / mean + known if mean > 0 else known / (prior + floor)
    return np.asarray(-shaping.strength * np.log2(weight))


def _linear_target(means: np.ndarray, centred: np.ndarray, _area: np.ndarray, shaping: Shaping) -> np.ndarray:
    # A student's map also encodes its confidence, and a map that is low everywhere would hardly move a bit.
    means = means / max(float(means.max()), FAINT)
    return np.asarray((1 - 2 * ((1 - shaping.prior) * means + shaping.prior * centred)) * shaping.strength)


def _neutralised(target: np.ndarray, weights: np.ndarray, shaping: Shaping) -> np.ndarray:
    """All values shifted by one amount, then clipped, so that the frame's mean or its bits stay; see `Shaping`."""
    limits, weights = (shaping.lowest, shaping.highest), weights / weights.sum()
    low, high = float(target.min()), float(target.max())
    rates, most, least = (np.exp2(np.asarray(offset) / -HALVING) for offset in (target, *limits))
    for _ in range(16):  # bisection, to 0.001 QP: clipping rules out a closed form
        shift = (low + high) / 2
        if shaping.neutral == "mean":
            saving = (np.clip(target - shift, *limits) * weights).sum()
        else:
            saving = 1 - (np.clip(rates * 2 ** (shift / HALVING), least, most) * weights).sum()
        low, high = (shift, high) if saving > 0 else (low, shift)
    return np.clip(target - (low + high) / 2, *limits)

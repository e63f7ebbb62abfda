"""From a saliency map to what an encoder takes: a QP offset for every block, below zero where people look.

    offsets = None
    for saliency in maps:                                        # float [h,w] in [0, 1]
        offsets = qp_offsets(saliency, 4, size=(1080, 1920), previous=offsets)   # int32 [68,120]

The grid is the encoder's: blocks at the right and at the bottom may reach beyond the frame, and count by what is inside.
A map need not have the frame's size: it covers the frame, and a block takes the mean of the part that it covers.
Pure functions; numpy alone. What has to be remembered from frame to frame is the offsets themselves.
"""

from functools import lru_cache

import numpy as np

BLOCKS = (16, 32, 64)  # H.264's macroblock, HEVC's usual quantisation group, AV1's superblock
LIMIT = 12  # QP; the downstream clips its maps there too
HOLD = 0.25  # of a step
FAINT = 0.2  # where no block is above, nothing stands out
NEUTRAL = ("bits", "mean", "off")
QUIET = 4  # grey levels that cost nothing much
HALVES = 6  # QP that halve the rate, about: the quantiser's step doubles with as many, in H.264 and HEVC


def grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Rows and columns of blocks that cover a frame of `size` (height, width) in pixels."""
    return -(-size[0] // block), -(-size[1] // block)


@lru_cache(maxsize=16)
def areas(size: tuple[int, int], block: int) -> np.ndarray:
    """How many of the frame's pixels lie in each block, float64 `[rows, columns]`."""
    sides = [
        np.minimum(block, length - block * np.arange(n)) for length, n in zip(size, grid(size, block), strict=True)
    ]
    return np.outer(*sides).astype(float)


def block_means(saliency: np.ndarray, block: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mean of each block, float64 `[rows, columns]`, of a map `[h,w]` that covers a frame of `size`.

    size: height and width of the frame, by default the map's own. Pixels of the map that a block covers in part count in part.
    Raises ValueError for a map that is not two-dimensional, or empty, or leaves [0, 1].
    """
    if saliency.ndim != 2 or saliency.size == 0:
        raise ValueError(f"a saliency map is [height, width]; got {list(saliency.shape)}")
    if not (saliency.min() >= 0 and saliency.max() <= 1):  # false for NaN
        raise ValueError(f"a saliency map lies in [0, 1]; got {saliency.min():g} to {saliency.max():g}")
    return _means(saliency, block, size or (saliency.shape[0], saliency.shape[1]))


def _means(picture: np.ndarray, block: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return _shares(picture.shape[0], height, block) @ picture @ _shares(picture.shape[1], width, block).T


@lru_cache(maxsize=32)
def _shares(cells: int, length: int, block: int) -> np.ndarray:
    """The share that each of `cells` equal parts of a side of `length` pixels has in each block's mean; rows add up to 1."""
    starts = np.arange(0, length, block)[:, None]
    ends = np.minimum(starts + block, length)
    edges = np.arange(cells + 1) * (length / cells)
    return np.maximum(0, np.minimum(ends, edges[1:]) - np.maximum(starts, edges[:-1])) / (ends - starts)


def block_bits(
    luma: np.ndarray, before: np.ndarray | None, block: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """About what share of a frame's bits each block takes, float64 `[rows, columns]`, their sum 1.

    luma: grey levels 0..255 `[h,w]` of a picture that covers a frame of `size`, as small as maps are; before: that of the frame
    before, if there is one. An encoder predicts a block from its surroundings or from the frame before, whichever leaves less:
    what is left is taken to be the smaller one of the standard deviations of the block and of its change, r, and a pixel to
    cost log2(1 + r / 4).
    """
    frame = size or (luma.shape[0], luma.shape[1])
    left = _deviation(luma.astype(float), block, frame)
    if before is not None:
        left = np.minimum(left, _deviation(luma.astype(float) - before, block, frame))
    # The bit of cost that is always there decides only where nothing at all happens.
    bits = (np.log2(1 + left / QUIET) + 0.01) * areas(frame, block)
    return bits / bits.sum()


def _deviation(picture: np.ndarray, block: int, size: tuple[int, int]) -> np.ndarray:
    return np.sqrt(np.maximum(0, _means(picture**2, block, size) - _means(picture, block, size) ** 2))


def centred(height: int, width: int) -> np.ndarray:
    """A centred Gaussian `[height, width]`, its peak 1, sigma 22 % of each side: where people look in whatever video."""
    sides = [np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * 0.22**2)) for n in (height, width)]
    return np.outer(*sides).astype(np.float32)


@lru_cache(maxsize=16)
def _centred_means(size: tuple[int, int], block: int) -> np.ndarray:
    return block_means(centred(*size), block)


def qp_offsets(
    saliency: np.ndarray,
    strength: float,
    block: int = 16,
    size: tuple[int, int] | None = None,
    *,
    limit: int = LIMIT,
    neutral: str = "off",
    bits: np.ndarray | None = None,
    faint: float | None = None,
    prior: float = 0.0,
    step: int = 1,
    previous: np.ndarray | None = None,
    hold: float = HOLD,
) -> np.ndarray:
    """QP offsets int32 `[rows, columns]` of a saliency map `[h,w]`: `round((1 - 2 s) strength)` of each block's mean s.

    strength: QP, from 0 to limit: what a block gets that is not salient at all; minus that where it is entirely so.
    size: height and width of the frame in pixels; by default the map's.
    faint: divide the block means by their peak first, or by this where the peak is lower: students say how sure they are,
        and a map that is low everywhere would hardly move a bit. None takes the map as it is.
    prior: from 0 to 1, the share of a centred Gaussian (see `centred`) in the map, mixed in after that.
    neutral: move all offsets of the frame together, so that its size stays about the same; they then reach at most twice the
        strength. `mean`: until their mean over the frame's area is zero. `bits`: until the bits are what they were, each
        block's times 2^(-offset / 6); a mean of zero makes frames larger, since bits grow faster below zero than they shrink above,
        and since people look where there is something to encode. `off`: not at all. Rounding leaves at most half a step,
        `hold` as much again.
    bits: with `neutral="bits"`, how many bits each block has, in any unit; see `block_bits`. By default its area.
    limit: no offset is beyond it. step: offsets are multiples of it; see `step_for`.
    previous: what the frame before got. An offset changes only where it is wrong by more than half a step and `hold` steps,
        so that it does not flicker between two values.

    Raises ValueError for a map outside [0, 1], another number of blocks in `previous`, or numbers that make no sense.
    """
    if neutral not in NEUTRAL:
        raise ValueError(f"neutral is one of {', '.join(NEUTRAL)}; got {neutral!r}")
    if not (0 <= strength <= limit and 0 <= prior <= 1 and step >= 1 and hold >= 0 and block >= 1):
        raise ValueError(
            f"0 <= strength <= limit, 0 <= prior <= 1, step >= 1, hold >= 0 and block >= 1 are wanted; "
            f"got strength {strength:g}, limit {limit}, prior {prior:g}, step {step}, hold {hold:g}, block {block}"
        )
    frame = size or (saliency.shape[0], saliency.shape[1])
    means = block_means(saliency, block, size)
    if faint is not None:
        means = means / max(float(means.max()), faint)
    if prior:
        means = (1 - prior) * means + prior * _centred_means(frame, block)
    wanted = (1 - 2 * means) * strength
    if neutral != "off":
        weights = areas(frame, block) if bits is None or neutral == "mean" else bits
        if weights.shape != wanted.shape:
            raise ValueError(f"the bits are of {weights.shape} blocks, the map has {wanted.shape}")
        wanted = _moved(wanted, weights, limit, neutral)
    most = limit // step
    offsets = np.clip(np.round(wanted / step), -most, most)
    if previous is not None:
        if previous.shape != offsets.shape:
            raise ValueError(f"the frame before had {previous.shape} blocks, this one has {offsets.shape}")
        kept = np.abs(wanted - previous) <= (0.5 + hold) * step
        offsets = np.where(kept, previous / step, offsets)
    return (offsets * step).astype(np.int32)


def _moved(wanted: np.ndarray, weights: np.ndarray, limit: int, neutral: str) -> np.ndarray:
    """All values moved by the same amount, then clipped, so that nothing is won or lost; see `qp_offsets`."""
    low, high = float(wanted.min()), float(wanted.max())
    for _ in range(40):  # what is saved falls with the shift, and clipping breaks the line: halve the interval
        shift = (low + high) / 2
        offsets = np.clip(wanted - shift, -limit, limit)
        saved = offsets if neutral == "mean" else 1 - np.exp2(-offsets / HALVES)
        if (saved * weights).sum() > 0:
            low = shift
        else:
            high = shift
    return np.clip(wanted - (low + high) / 2, -limit, limit)


def step_for(levels: int, limit: int = LIMIT) -> int:
    """The smallest step with which offsets from -limit to limit have at most so many different values, three or more."""
    if levels < 3:
        raise ValueError(f"at least 3 levels are wanted, less, none and more; got {levels}")
    return limit // ((levels + 1) // 2) + 1

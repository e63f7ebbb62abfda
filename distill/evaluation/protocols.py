"""Named protocols: which metrics a benchmark computes, how it prepares maps for them, and how it averages.

    protocols.score(prediction, density, fixations, PROTOCOLS["aim2024"])  # {"nss": 2.31, "cc": 0.47, ...}

    truth = protocols.ground_truth(density, fixations, others, baseline)   # once per frame, for all predictors
    protocols.score_against(truth, prediction)                             # others and baseline: for sAUC and IG

The same map scores differently under another protocol (8 bits, resizing, standard deviation, ties, averaging), so every
result names its own. A frame without fixations cannot be scored: `ground_truth` raises, and the caller counts it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from distill.evaluation import metrics
from distill.evaluation.metrics import LABELS, Array, Map
from distill.run.errors import UsageError

Coordinates = tuple[np.ndarray, np.ndarray]
"""Rows and columns of points, int `[N]` each; a pixel that was fixated twice occurs twice."""


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of a frame's predictions, as checked by `ground_truth`. Pixels are flat indices."""

    density: Map
    pixels: np.ndarray  # int [N], the fixations; a pixel that was fixated twice occurs twice
    other_pixels: np.ndarray | None = None  # int [M], fixations of other frames: the negatives of sAUC
    baseline: Map | None = None  # the density that information gain is measured against
    seed: int = 0  # of a protocol's random draws

    @cached_property
    def unique_pixels(self) -> np.ndarray:
        """The fixated pixels, each once, as in a binary fixation map."""
        return np.unique(self.pixels)


def ground_truth(
    density: np.ndarray, fixations: np.ndarray | Coordinates, others: Coordinates | None = None, baseline: Array | None = None,
    seed: int = 0,
) -> GroundTruth:  # fmt: skip
    """The ground truth of one frame.

    density: `[H,W]`. fixations: bool `[H,W]`, or coordinates. others: coordinates of other frames' fixations, in this
    frame's pixels, for sAUC. baseline: `[H,W]`, for information gain. Raises ValueError where shapes differ, for NaN, for
    fixations outside the frame, and where there are none.
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
    other_pixels = None if others is None else np.unique(_flat(others, height, width))
    return GroundTruth(Map(density), pixels, other_pixels, None if baseline is None else Map.of(baseline), seed)


def _flat(points: Coordinates, height: int, width: int) -> np.ndarray:
    rows, columns = (np.asarray(axis, np.int64) for axis in points)
    if rows.size and (rows.min() < 0 or columns.min() < 0 or rows.max() >= height or columns.max() >= width):
        raise ValueError(f"a fixation lies outside the frame of {width}x{height} px")
    return rows * width + columns


@dataclass(frozen=True)
class Protocol:
    """How a benchmark computes and averages."""

    name: str
    about: str  # one line for the reader of the numbers
    metrics: tuple[str, ...]
    average: str  # `clips`: the mean over clips, each the mean of its frames; `frames`: the mean over frames
    own_clip: bool  # whether the negatives of sAUC may come from the scored clip's other frames
    compute: Callable[[np.ndarray, GroundTruth], dict[str, float]]


def score(
    prediction: np.ndarray, density: np.ndarray, fixations: np.ndarray | Coordinates, protocol: Protocol | None = None
) -> dict[str, float]:
    """The protocol's metrics of one frame; default `clip-mean`. Raises as `ground_truth` and `score_against` do."""
    return score_against(ground_truth(density, fixations), prediction, protocol)


def score_against(truth: GroundTruth, prediction: np.ndarray, protocol: Protocol | None = None) -> dict[str, float]:
    """The protocol's metrics, without those that need what `truth` lacks (others, baseline, a density that is not constant), and
    without flicker, which needs two frames.

    A prediction of another size is resized as the protocol does it. Raises ValueError for NaN and for anything but a map.
    """
    return (protocol or CLIP_MEAN).compute(prediction, truth)


def choose(name: str) -> Protocol:
    """The protocol with this name. Raises UsageError where there is none."""
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _on_density(p: Map, truth: GroundTruth, *functions: Callable[[Array, Array], float]) -> dict[str, float]:
    if truth.density.constant:  # it says nothing of where the observers looked, and a flat map would have a SIM of 1
        return {}
    return {function.__name__: function(p, truth.density) for function in functions}


def _clip_mean(prediction: np.ndarray, truth: GroundTruth) -> dict[str, float]:
    if prediction.ndim == 2 and prediction.shape != truth.density.shape:
        prediction = cv2.resize(prediction, truth.density.shape[::-1], interpolation=cv2.INTER_LINEAR)
    p = Map(prediction)
    scores = _on_density(p, truth, metrics.cc, metrics.sim, metrics.kld, metrics.block_iou, metrics.block_cc)
    scores |= {"nss": metrics.nss(p, truth.unique_pixels), "auc_judd": metrics.auc_judd(p, truth.unique_pixels)}
    if truth.other_pixels is not None:
        scores["s_auc"] = metrics.s_auc(prediction, truth.unique_pixels, truth.other_pixels)
    if truth.baseline is not None:
        scores["ig"] = metrics.information_gain(p, truth.baseline, truth.pixels)
    return scores


def _mit(prediction: np.ndarray, truth: GroundTruth) -> dict[str, float]:
    eight_bit = metrics.imresize(metrics.as_8_bit(prediction), truth.density.shape)
    p, jitter = Map(eight_bit), np.random.default_rng(truth.seed)
    scores = _on_density(p, truth, metrics.cc, metrics.sim, metrics.kld)
    scores |= {"nss": metrics.nss(p, truth.unique_pixels), "auc_judd": metrics.auc_judd(p, truth.unique_pixels, jitter)}
    if truth.other_pixels is not None:
        scores["s_auc"] = metrics.s_auc_splits(eight_bit, truth.unique_pixels, truth.other_pixels, seed=truth.seed)
    return scores


def _aim2024(prediction: np.ndarray, truth: GroundTruth) -> dict[str, float]:
    p = Map(prediction)
    scaled = (p.shifted / (1 if p.constant else p.high - p.low)).astype(np.float32).reshape(p.shape)
    if scaled.shape != truth.density.shape:
        scaled = cv2.resize(scaled, truth.density.shape[::-1], interpolation=cv2.INTER_LINEAR)
    p = Map(scaled)
    # The challenge's code means to count distinct fixations but counts two columns (`np.unique` with axis=1): N pixels less 2.
    auc = metrics.auc_judd(p, truth.pixels, negatives=scaled.size - 2)
    scores = _on_density(p, truth, metrics.cc, metrics.sim)
    return scores | {"nss": metrics.nss(p, truth.pixels, ddof=0, floor=1e-7), "auc_judd": auc}


CLIP_MEAN = Protocol(
    "clip-mean",
    "float maps at the video's size, deviation with N-1, SIM after min-max, AUC-Judd without jitter, sAUC by ranks against ten "
    "frames of other clips, IG in bits per fixation over the centred Gaussian, mean over clips",
    tuple(LABELS), "clips", False, _clip_mean,
)  # fmt: skip
_STANDARD = ("nss", "cc", "sim", "auc_judd", "s_auc", "kld")
PROTOCOLS = {protocol.name: protocol for protocol in (
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
)}  # fmt: skip

"""Saliency metrics of one frame, as DHF1K's official evaluation code computes them (after the MIT benchmark).

    prediction  float [H,W], any scale          density  float [H,W], any scale          fixations  bool [H,W]

All in float64. A prediction without contrast has no correlation and no z-score: CC and NSS are then 0. Definitions and
names: Bylinskii et al., "What do different evaluation metrics tell us about saliency models?", 2019.
"""

from __future__ import annotations

import numpy as np

NAMES = ("nss", "cc", "sim", "auc_judd", "kld")
HIGHER_IS_BETTER = {"nss": True, "cc": True, "sim": True, "auc_judd": True, "kld": False}
_EPS = np.finfo(np.float64).eps


def score(prediction: np.ndarray, density: np.ndarray, fixations: np.ndarray) -> dict[str, float]:
    """All metrics of one frame. Raises ValueError for shapes that differ, NaN, or a frame without fixations."""
    if not prediction.shape == density.shape == fixations.shape:
        raise ValueError(
            f"shapes differ: prediction {prediction.shape}, density {density.shape}, fixations {fixations.shape}"
        )
    if not fixations.any():
        raise ValueError("a frame without fixations has no score; skip and count it")
    if not np.isfinite(prediction).all():
        raise ValueError("the prediction holds NaN or infinity")
    p, d = prediction.astype(np.float64), density.astype(np.float64)
    return {
        "nss": nss(p, fixations),
        "cc": cc(p, d),
        "sim": sim(p, d),
        "auc_judd": auc_judd(prediction, fixations),  # ranks only: float32 sorts many times faster
        "kld": kld(p, d),
    }


def nss(prediction: np.ndarray, fixations: np.ndarray) -> float:
    """Normalised scanpath saliency: the mean z-score (deviation with N - 1) at fixated pixels."""
    if prediction.max() == prediction.min():
        return 0.0
    return float((prediction[fixations].mean() - prediction.mean()) / prediction.std(ddof=1))


def cc(prediction: np.ndarray, density: np.ndarray) -> float:
    """Pearson's correlation."""
    if prediction.max() == prediction.min() or density.max() == density.min():
        return 0.0
    a, b = prediction - prediction.mean(), density - density.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def sim(prediction: np.ndarray, density: np.ndarray) -> float:
    """Similarity: the shared mass of both maps, each first scaled from its minimum to its maximum."""
    return float(np.minimum(_unit_mass(_min_max(prediction)), _unit_mass(_min_max(density))).sum())


def kld(prediction: np.ndarray, density: np.ndarray) -> float:
    """KL divergence of the density from the prediction, both scaled to unit mass."""
    p, q = _unit_mass(prediction), _unit_mass(density)
    return float((q * np.log(_EPS + q / (p + _EPS))).sum())


def auc_judd(prediction: np.ndarray, fixations: np.ndarray) -> float:
    """Area under the ROC curve whose thresholds are the values at fixated pixels; without jitter."""
    values = np.sort(prediction[fixations])[::-1]
    count, pixels = len(values), prediction.size
    if count == pixels or prediction.max() == prediction.min():
        return 0.5  # without jitter, ties of the official code count against a map; one that is all ties knows nothing
    ordered = np.sort(prediction, axis=None)
    above = pixels - np.searchsorted(ordered, values, side="left")
    ranks = np.arange(1, count + 1)
    true = np.concatenate([[0.0], ranks / count, [1.0]])
    false = np.concatenate([[0.0], (above - ranks) / (pixels - count), [1.0]])
    return float(np.trapezoid(true, false))


def _min_max(a: np.ndarray) -> np.ndarray:
    low, high = a.min(), a.max()
    return (a - low) / (high - low) if high > low else np.zeros_like(a)


def _unit_mass(a: np.ndarray) -> np.ndarray:
    """Scaled to sum to 1; a map without mass counts as uniform."""
    total = a.sum()
    return a / total if total > 0 else np.full_like(a, 1 / a.size)

"""Metric throughput on one core: frames per second of every metric, of each protocol, and of other implementations.

    python benchmarks/metrics.py [--size 640x360] [--frames N] [--fixations N]

Maps are float32 random fields with the smoothness of saliency maps; fixations are drawn from them, so that values are
plausible. Times are process times of one thread: the best of five for each frame, since other work on the machine only ever
adds, and the median over frames. Beside them, on the same maps: pysaliency where it can be imported (it also needs
torch), and the definitions in plain numpy as benchmark scripts write them: float64, AUC-Judd with one comparison of the whole
map per threshold. Values agree except for two definitions: pysaliency's NSS divides the deviation by N, and its SIM skips
min-max scaling.
"""

# ruff: noqa: E402 - the thread counts must be set before numpy loads
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from distill.corpora import SIGMA, blur
from distill.evaluation import metrics, protocols

FIVE = ("nss", "cc", "sim", "auc_judd", "kld")


class Frame(NamedTuple):
    prediction: np.ndarray
    density: np.ndarray
    fixations: np.ndarray
    others: np.ndarray
    before: np.ndarray
    picture: np.ndarray


def frames(count: int, width: int, height: int, fixations: int) -> list[Frame]:
    rng = np.random.default_rng(0)

    def field(sigma: float) -> np.ndarray:
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), sigma * width)
        return np.asarray(1 / (1 + np.exp(-3 * noise / noise.std())), np.float32)

    made = []
    for _ in range(count):
        prediction = field(0.03)
        odds = prediction.ravel().astype(np.float64) ** 3
        points = np.zeros((height, width), bool)
        points.ravel()[rng.choice(points.size, fixations, p=odds / odds.sum())] = True
        others = rng.integers(0, points.size, 10 * fixations)
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        made.append(Frame(prediction, blur(points, SIGMA * width), points, np.unique(others), field(0.03), picture))
    return made


def ours() -> dict[str, Callable[[Frame], Any]]:
    return {
        "nss": lambda f: metrics.nss(f.prediction, f.fixations),
        "cc": lambda f: metrics.cc(f.prediction, f.density),
        "sim": lambda f: metrics.sim(f.prediction, f.density),
        "auc_judd": lambda f: metrics.auc_judd(f.prediction, f.fixations),
        "kld": lambda f: metrics.kld(f.prediction, f.density),
        "s_auc": lambda f: metrics.s_auc(f.prediction, f.fixations, f.others),
        "ig": lambda f: metrics.information_gain(f.prediction, f.before, f.fixations),
        "block_iou": lambda f: metrics.block_iou(f.prediction, f.density),
        "block_cc": lambda f: metrics.block_cc(f.prediction, f.density),
        "flicker": lambda f: metrics.flicker(f.prediction, f.before, metrics.still_blocks(f.picture, f.picture)),
    }


def plain() -> dict[str, Callable[[Frame], Any]]:
    """The definitions of Bylinskii et al. 2019, written without regard to speed."""

    def auc_judd(f: Frame) -> float:
        values = np.sort(f.prediction[f.fixations])[::-1]
        above = np.array([(f.prediction >= value).sum() for value in values])
        ranks = np.arange(1, len(values) + 1)
        false = (above - ranks) / (f.prediction.size - len(values))
        return float(np.trapezoid(np.r_[0, ranks / len(values), 1], np.r_[0, false, 1]))

    def sim(f: Frame) -> float:
        a, b = ((m - m.min()) / (m.max() - m.min()) for m in (f.prediction.astype(float), f.density.astype(float)))
        return float(np.minimum(a / a.sum(), b / b.sum()).sum())

    def kld(f: Frame) -> float:
        p, q = f.prediction.astype(float) / f.prediction.sum(), f.density.astype(float) / f.density.sum()
        eps = np.finfo(float).eps
        return float((q * np.log(eps + q / (p + eps))).sum())

    def nss(f: Frame) -> float:
        p = f.prediction.astype(float)
        return float(((p - p.mean()) / p.std(ddof=1))[f.fixations].mean())

    return {
        "nss": nss,
        "cc": lambda f: float(np.corrcoef(f.prediction.ravel(), f.density.ravel())[0, 1]),
        "sim": sim,
        "auc_judd": auc_judd,
        "kld": kld,
        "s_auc": lambda f: float(np.mean([(v > f.prediction.ravel()[f.others]).mean() for v in f.prediction[f.fixations]])),
    }


def pysaliency() -> tuple[str, dict[str, Callable[[Frame], Any]]]:
    """Its version and its functions; none where it cannot be imported."""
    try:
        from importlib.metadata import version

        from pysaliency import metrics as theirs
        from pysaliency.roc import general_roc, general_rocs_per_positive
    except ImportError as error:
        print(f"pysaliency cannot be imported: {error}")
        return "missing", {}
    if not hasattr(np, "trapz"):  # which it calls, and numpy 2.4 no longer has
        vars(np)["trapz"] = np.trapezoid

    def values(f: Frame) -> np.ndarray:
        return f.prediction[f.fixations].astype(float)

    return version("pysaliency"), {
        "nss": lambda f: float(theirs.NSS(f.prediction, *np.nonzero(f.fixations)[::-1]).mean()),
        "cc": lambda f: float(theirs.CC(f.prediction, f.density)),
        "sim": lambda f: float(theirs.SIM(f.prediction, f.density)),
        "auc_judd": lambda f: general_roc(values(f), f.prediction[~f.fixations].astype(float), judd=1)[0],
        "kld": lambda f: float(theirs.MIT_KLDiv(f.prediction.astype(float), f.density.astype(float))),
        "s_auc": lambda f: float(np.mean(general_rocs_per_positive(values(f), f.prediction.ravel()[f.others].astype(float)))),
    }  # fmt: skip


def milliseconds(work: Callable[[Frame], Any], made: list[Frame]) -> tuple[float, list[Any]]:
    work(made[0])  # compiled, paged in
    best, results = [], []
    for f in made:
        times = []
        for _ in range(5):
            start = time.process_time()
            result = work(f)
            times.append(1e3 * (time.process_time() - start))
        best.append(min(times))
        results.append(result)
    return statistics.median(best), results


def one_by_one(made: list[Frame]) -> None:
    """Every metric from plain arrays, ours and theirs."""
    version, theirs = pysaliency()
    table = {"ours": ours(), "plain numpy": plain(), f"pysaliency {version}": theirs}
    print(f"{'ms per frame':<20}{'frames/s':>10}" + "".join(f"{name:>20}" for name in table) + f"{'differ by':>12}")
    sums = dict.fromkeys(table, 0.0)
    for metric in metrics.LABELS:
        took: dict[str, float] = {}
        values: dict[str, np.ndarray] = {}
        for name, functions in table.items():
            if metric in functions:
                took[name], results = milliseconds(functions[metric], made)
                values[name] = np.array(results)
                sums[name] += took[name] if metric in FIVE else 0
        difference = max((float(np.abs(values["ours"] - v).max()) for n, v in values.items() if n != "ours"), default=None)
        line(metrics.LABELS[metric], took, list(table), "" if difference is None else f"{difference:.1e}")
    line("the first five", {name: total for name, total in sums.items() if total}, list(table))


def line(title: str, took: dict[str, float], columns: list[str], note: str = "") -> None:
    cells = "".join(f"{took[name]:>20.2f}" if name in took else f"{'–':>20}" for name in columns)
    print(f"{title:<20}{1e3 / took['ours']:>10,.0f}{cells}{note:>12}")


def together(made: list[Frame]) -> None:
    """As an evaluation runs them."""
    baseline = metrics.Map(made[0].before)

    def truth(f: Frame) -> protocols.GroundTruth:
        rows, columns = np.unravel_index(f.others, f.fixations.shape)
        return protocols.ground_truth(f.density, f.fixations, (rows, columns), baseline)

    def five(f: Frame) -> None:
        p, t = metrics.Map(f.prediction), truths[id(f)]
        metrics.nss(p, t.unique_pixels), metrics.cc(p, t.density), metrics.sim(p, t.density)
        metrics.auc_judd(p, t.unique_pixels), metrics.kld(p, t.density)

    def scored(protocol: protocols.Protocol) -> Callable[[Frame], Any]:
        return lambda f: protocols.score_against(truths[id(f)], f.prediction, protocol)

    truths = {id(f): truth(f) for f in made}
    line("a frame's truth", {"ours": milliseconds(truth, made)[0]}, ["ours"])
    line("the first five", {"ours": milliseconds(five, made)[0]}, ["ours"], "5 metrics")
    for protocol in protocols.PROTOCOLS.values():
        count = len(set(protocol.metrics) - {"flicker"})
        line(protocol.name, {"ours": milliseconds(scored(protocol), made)[0]}, ["ours"], f"{count} metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--fixations", type=int, default=30)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    cv2.setNumThreads(1)
    metrics.reserve_memory()
    made = frames(arguments.frames, width, height, arguments.fixations)
    print(f"{width}x{height}, {arguments.fixations} fixations, {len(made)} frames, one thread, numpy {np.__version__}")
    one_by_one(made)
    print("several together, the ground truth prepared once for all predictors of a frame:")
    together(made)


if __name__ == "__main__":
    sys.exit(main())

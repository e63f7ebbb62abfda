"""ONNX models side by side: time, memory, multiply-adds, and how much of the machine they use.

    time      the same frame of noise, the same onnxruntime, one frame of every model in turn; median and 90th percentile.
              A model with state carries it from turn to turn
    memory    each model in a separate process: peak resident memory over two frames, above what that process held with
              onnxruntime imported and the frame allocated. Median of three processes; known on Linux only
    GMAC      from the graph, see distill.export.cost; needs onnxscript, of the extra `train`
    ceiling   multiply-adds per second, as a fraction of the best rate that onnxruntime reached on float32 products that suit
              it (`PRODUCTS`), on the same number of threads, in the same turns

Measure on an idle machine: other work makes every number worse, those of short runs most.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from distill.evaluation.predictors import load_predictor
from distill.export.cost import count, parameters
from distill.export.runner import Predictor
from distill.run.errors import UsageError
from distill.run.machine.extras import how_to_install, missing
from distill.run.progress import Narrator
from distill.tools.bench_memory import RUNS, noise, peak_bytes

# The ceiling is measured on these: operator, shape of the input, shape of the constant weights. They fit a core's caches:
# MatMul reached 57 GMAC/s at 384, 50 at 1024 and 46 at 2048 on one thread of an AMD EPYC with AVX-512.
PRODUCTS = (
    ("MatMul", (384, 384), (384, 384)),
    ("MatMul", (768, 768), (768, 768)),
    ("Conv", (1, 128, 28, 28), (128, 128, 3, 3)),
)
# Seconds between runs on several threads: onnxruntime's threads spin for a while after a run and would slow the next model.
SETTLE = 0.01


@dataclass(frozen=True)
class Ceiling:
    """The best rate of float32 multiply-adds on a number of threads, and the product that reached it."""

    threads: int
    gmac_per_s: float
    of: str


@dataclass(frozen=True)
class Row:
    """One model at one size on a number of threads. None where a number is unknown: memory on this system, multiply-adds
    where the frame's size does not determine the graph's shapes, both counts without onnxscript."""

    size: str
    threads: int
    model: str
    median_ms: float
    p90_ms: float
    speedup: float  # how many times faster than the base
    peak_mib: float | None
    memory_ratio: float | None  # peak memory over the base's
    gmac: float | None
    parameters: int | None
    ceiling_fraction: float | None


@dataclass(frozen=True)
class Bench:
    """The model that ratios refer to; the ceilings, by threads; a row by threads, size and model as given."""

    against: str
    ceilings: list[Ceiling]
    results: list[Row]


def measure(
    models: Sequence[Path], sizes: Sequence[str], threads: Sequence[int], rounds: int, against: Path | None = None,
    narrator: Narrator | None = None,
) -> Bench:  # fmt: skip
    """Measures every model at every `WxH` on every number of threads, `rounds` timed frames each.

    against: the model that ratios refer to, measured too; by default the last one.
    Raises UsageError for a model that is missing, is not a saliency student, or does not run at one of the sizes.
    """
    narrator = narrator or Narrator(quiet=True)
    models = [*models, *([against] if against is not None and against not in models else [])]
    names = display_names(models)
    base = len(models) - 1 if against is None else models.index(against)
    frames = {size: noise(*parse_size(size)) for size in sizes}
    open_all(models, 1)  # a model that does not load is refused before any measurement
    if missing("train"):
        narrator.say(f"bench: parameters and multiply-adds are not counted; that needs more: {how_to_install('train')}")
    works = {name: _work(path, name, frames, narrator) for name, path in zip(names, models, strict=True)}
    rows, ceilings = [], []
    for n in threads:
        seconds, ceiling = _time(models, frames, n, rounds, narrator)
        ceilings.append(ceiling)
        for size, taken in seconds.items():
            opened = narrator.track(models, f"bench: memory at {size}", len(models), "models")
            peaks = [peak_bytes(path, *parse_size(size), n, min(rounds, RUNS)) for path in opened]
            medians = [float(np.median(times)) for times in taken]
            base_peak = peaks[base]
            for i, (name, peak) in enumerate(zip(names, peaks, strict=True)):
                gmac, weights = works[name][size]
                row = Row(
                    size, n, name,
                    median_ms=1000 * medians[i], p90_ms=1000 * float(np.percentile(taken[i], 90)),
                    speedup=medians[base] / medians[i], peak_mib=None if peak is None else peak / 2**20,
                    memory_ratio=peak / base_peak if peak and base_peak else None, gmac=gmac, parameters=weights,
                    ceiling_fraction=None if gmac is None else gmac / medians[i] / ceiling.gmac_per_s,
                )  # fmt: skip
                rows.append(row)
    return Bench(names[base], ceilings, rows)


def parse_size(text: str, most: int = 8192) -> tuple[int, int]:
    """Width and height of a `WxH` in pixels. Raises UsageError for other text and for sides above `most`."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,3})x0*([1-9][0-9]{0,3})", text.lower())
    width, height = map(int, match.groups()) if match else (0, 0)
    if not 0 < max(width, height) <= most:
        raise UsageError(f"--size must be WIDTHxHEIGHT, such as 1920x1080, at most {most} pixels a side; got {text[:40]!r}")
    return width, height


def open_all(models: Sequence[Path], threads: int) -> list[Predictor]:
    """The models in onnxruntime. Raises UsageError for one that does not load."""
    return [load_predictor(path, threads) for path in models]


def display_names(models: Sequence[Path]) -> list[str]:
    """File names; whole paths where two files have the same."""
    names = [path.name for path in models]
    return names if len(set(names)) == len(names) else [str(path) for path in models]


def _work(
    path: Path, name: str, frames: Mapping[str, np.ndarray], narrator: Narrator
) -> dict[str, tuple[float | None, int | None]]:
    """GMAC of one frame and number of parameters, by size; None where they are not known."""
    model = onnx.load(path)
    work: dict[str, tuple[float | None, int | None]] = {}
    for size, frame in frames.items():
        try:
            cost = count(model, *frame.shape[2:])
            work[size] = cost.macs / 1e9, cost.parameters
        except ModuleNotFoundError:
            work[size] = None, None
        except ValueError as error:
            narrator.say(f"bench: the multiply-adds of {name} at {size} are not counted: {error}")
            work[size] = None, parameters(model)
    return work


def _time(
    models: Sequence[Path], frames: Mapping[str, np.ndarray], threads: int, rounds: int, narrator: Narrator
) -> tuple[dict[str, list[list[float]]], Ceiling]:
    """Seconds of every timed frame, by size and model, and the ceiling measured in the same turns."""
    predictors = open_all(models, threads)
    products = [prepare_product(op, given, weights, threads) for op, given, weights in PRODUCTS]
    best, seconds = [0.0] * len(products), {}
    for size, frame in frames.items():
        for predictor in predictors:
            predictor.reset()  # a state may not fit another size
        runs: list[Callable[[], object]] = [partial(predictor.run, frame) for predictor in predictors]
        runs += [run for run, _ in products]
        # Printed once, without a progress bar: redrawing one would disturb the measurement.
        narrator.say(f"bench: {rounds} frames of {size} on {threads} thread{'s' if threads > 1 else ''}")
        taken = take_turns(runs, rounds, threads)
        seconds[size] = taken[: len(models)]
        rates = [gmac / min(times) for (_, gmac), times in zip(products, taken[len(models) :], strict=True)]
        best = [max(pair) for pair in zip(best, rates, strict=True)]
    fastest = int(np.argmax(best))
    op, given, weights = PRODUCTS[fastest]
    shapes = " by ".join("x".join(map(str, shape)) for shape in (given, weights))
    return seconds, Ceiling(threads, best[fastest], f"float32 {op} {shapes}")


def take_turns(runs: Sequence[Callable[[], object]], rounds: int, threads: int) -> list[list[float]]:
    """Seconds of each run in each of `rounds` turns, after a warm-up turn. Raises UsageError for a model that does not run."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, taken in zip(runs, seconds, strict=True):
            if threads > 1:
                time.sleep(SETTLE)
            started = time.perf_counter()
            try:
                run()
            except ValueError as error:
                raise UsageError(str(error)) from None
            taken.append(time.perf_counter() - started)
    return [taken[1:] for taken in seconds]


def prepare_product(
    op: str, given: tuple[int, ...], weights: tuple[int, ...], threads: int
) -> tuple[Callable[[], object], float]:
    """One of PRODUCTS, ready to run in onnxruntime, and its GMAC."""
    rng = np.random.default_rng(0)
    constant = numpy_helper.from_array(rng.standard_normal(weights, np.float32), "weights")
    padding = {"pads": [weights[-1] // 2] * 4} if op == "Conv" else {}
    node = helper.make_node(op, ["given", "weights"], ["product"], **padding)
    given_value = helper.make_tensor_value_info("given", TensorProto.FLOAT, given)
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "product", [given_value], [product], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"given": rng.standard_normal(given, np.float32)}
    contracted = weights[0 if op == "MatMul" else 1]
    return partial(session.run, None, feed), math.prod(given) * math.prod(weights) / contracted / 1e9

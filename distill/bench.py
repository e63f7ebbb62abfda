"""Latency of ONNX models side by side: the same frame, the same onnxruntime, taking turns, medians."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UsageError
from distill.evaluate import load_predictor


def measure(models: Sequence[Path], sizes: Sequence[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Median milliseconds per frame of every model at every `WxH`, and how many times faster than the last model."""
    rng = np.random.default_rng(0)
    predictors = [load_predictor(path, threads) for path in models]
    rows = []
    for size in sizes:
        width, height = parse_size(size)
        frame = rng.standard_normal((1, 3, height, width), np.float32)
        times: list[list[float]] = [[] for _ in models]
        for turn in range(rounds + 1):
            for predictor, taken in zip(predictors, times, strict=True):
                started = time.perf_counter()
                try:
                    predictor.run(frame)
                except ValueError as error:
                    raise UsageError(str(error)) from None
                if turn:  # the first turn warms up
                    taken.append(time.perf_counter() - started)
        medians = [float(np.median(taken)) * 1000 for taken in times]
        rows += [
            {"size": size, "model": path.name, "median_ms": median, "speedup": medians[-1] / median}
            for path, median in zip(models, medians, strict=True)
        ]
    return rows


def parse_size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size wants WIDTHxHEIGHT such as 1920x1080, got {text!r}")
    if max(int(width), int(height)) > 8192:
        raise UsageError(f"--size wants at most 8192 pixels a side, got {text!r}")
    return int(width), int(height)

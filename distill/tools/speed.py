"""How long a student takes for a frame on this machine: a few frames at two sizes, for the report and the end of a run.

`distill bench` measures more, and several models in turns.
"""

import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.predictors import load_predictor
from distill.tools.bench import parse_size, take_turns
from distill.tools.bench_memory import noise

SIZES = ("640x360", "1920x1080")
FRAMES = 15


def measure(model: Path) -> dict[str, Any]:
    """The median over FRAMES frames of noise, on one thread: `{"threads": 1, "processor": ..., "ms": {"640x360": 1.9}}`."""
    milliseconds = {}
    for size in SIZES:
        [seconds] = take_turns([partial(load_predictor(model).run, noise(*parse_size(size)))], FRAMES, threads=1)
        milliseconds[size] = round(1000 * float(np.median(seconds)), 2)
    return {"threads": 1, "processor": _processor(), "ms": milliseconds}


def _processor() -> str:
    """The name of the processor; its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

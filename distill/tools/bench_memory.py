"""Peak memory of a model, measured in a separate process, which imports little because its imports count as memory.

Resident memory is read from Linux's /proc; on other systems it is unknown.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from distill.export.runner import Predictor
from distill.run.errors import UsageError

FRAMES = 2  # onnxruntime plans its memory on the first frame of a size, and follows the plan on the second
RUNS = 3  # onnxruntime's arena grows in steps: the same model took 134 MB in one process and 182 MB in the next
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def noise(width: int, height: int) -> np.ndarray:
    """The frame that models are timed on: float32 `[1,3,H,W]`."""
    return np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)


def peak_bytes(model: Path, width: int, height: int, threads: int, runs: int = RUNS) -> float | None:
    """Peak resident memory of a process that streams two frames through a model, above what it used before; the median.

    None if this system does not report it. Raises UsageError if the model does not run at that size.
    """
    # -P: the current folder may hold a file onnx.py.
    command = [sys.executable, "-P", "-m", __name__, str(model), str(width), str(height), str(threads)]
    peaks = []
    for _ in range(runs if _high_water() is not None else 0):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            raise UsageError(f"the memory of {model} at {width}x{height} cannot be measured: {reason}")
        peaks.append(int(result.stdout))
    return float(np.median(peaks)) if peaks else None


def _high_water() -> int | None:
    """Peak resident bytes of this process; None if the system does not report it.

    getrusage would not do: it gives the parent's peak from before the exec if that is larger.
    """
    if not CLEAR.exists() or not STATUS.exists():
        return None
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(lines[0].split()[1]) if lines else None


def _print_peak(model: str, width: str, height: str, threads: str) -> None:
    frame = noise(int(width), int(height))
    CLEAR.write_text("5")  # resets the peak: memory that the imports used temporarily is not part of the base
    before = _high_water() or 0
    predictor = Predictor(model, int(threads))
    for _ in range(FRAMES):
        predictor.run(frame)
    sys.stdout.write(str((_high_water() or 0) - before))


if __name__ == "__main__":
    _print_peak(*sys.argv[1:])

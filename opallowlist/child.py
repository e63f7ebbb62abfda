"""The child process of `--load`: gives one model to onnx.checker and ONNX Runtime, and says how far it got.

`loading` runs this file as a script; it imports nothing of this package, so that it starts alone and quickly. Standard
input: one line of JSON (`path`, `runtime`, `contract`, `cpu_seconds`, `memory`), then the model's bytes. Standard output:
lines of JSON with one key each. `by` names a program before it gets the model, so that the parent knows which one crashed;
`warning` is text; the last line is `accepted`, or `refused` or `unavailable` with the reason.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[str, str], None]

FRAME_SIZES = ((64, 96), (45, 71))
"""Height and width of the frames that a model of any size is run on; the second is one that nothing divides."""
_TOLERANCE = 1e-4  # a map is in 0 to 1, rounding apart


def main() -> None:
    """Read the request and the model from standard input, and judge it."""
    say = _own_output()
    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    sys.path[:] = request["path"]
    try:
        importlib.import_module("onnx.checker")
        if request["runtime"]:
            importlib.import_module("onnxruntime")
    except Exception as error:
        say("unavailable", f"{type(error).__name__}: {error}")
        return
    set_limits(request["cpu_seconds"], request["memory"])
    try:
        examine(data, request["contract"], say, runtime=request["runtime"])
    except Exception as error:  # those libraries raise many unrelated types
        say("refused", str(error) or type(error).__name__)
    else:
        say("accepted", "")
    os._exit(0)  # the verdict is out; the libraries' own clean-up cannot change it


def examine(data: bytes, contract: str | None, say: Say, *, runtime: bool = True) -> None:
    """Check, load and (with a contract, a resolved one) run a model. Raises whatever the libraries raise if they refuse it.

    say: told `by` and the name and version of the program that gets the model next; `warning` and a text.
    """
    onnx: Any = importlib.import_module("onnx")
    say("by", f"onnx.checker {onnx.__version__}")
    onnx.checker.check_model(data, full_check=True)
    if not runtime:
        return
    onnxruntime: Any = importlib.import_module("onnxruntime")
    say("by", f"ONNX Runtime {onnxruntime.__version__}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal errors alone
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    if contract is None:
        return
    height, width = session.get_inputs()[0].shape[2:]
    if contract == "saliency-luma":
        _run(session, (height, width), contract)
        return
    _run(session, FRAME_SIZES[0], contract)
    try:
        _run(session, FRAME_SIZES[1], contract)
    except Exception as error:
        usual, odd = ("x".join(map(str, size)) for size in FRAME_SIZES)
        say("warning", f"runs on frames of {usual}, but not of {odd}: {error}")


def _run(session: Any, size: tuple[int, int], contract: str) -> None:
    """One frame, for a step model two, the second with the state of the first. Raises ValueError for an unusable map."""
    import numpy

    shape = (1, 1 if contract == "saliency-luma" else 3, *size)
    frame = numpy.linspace(0, 1, shape[1] * size[0] * size[1], dtype=numpy.float32).reshape(shape)
    feed = {"input": frame}
    for _ in range(2 if contract == "saliency-step" else 1):
        saliency_map, *states = session.run(None, feed)
        frame_of = f"on a frame of {size[0]}x{size[1]} saliency_map"
        if saliency_map.shape != (1, 1, *size):
            raise ValueError(f"{frame_of} has the shape {list(saliency_map.shape)}; the contract has {[1, 1, *size]}")
        low, high = float(saliency_map.min()), float(saliency_map.max())  # not a number if any element is
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ValueError(f"{frame_of} has values from {low:g} to {high:g}; the contract has 0 to 1")
        if states:
            feed["state_in"] = states[0]


def set_limits(cpu_seconds: int, memory: int) -> None:
    """Limit this process: CPU time in all, memory in bytes beyond what it has now, 1 MiB of output, no core dump.

    Exceeding them: SIGXCPU; allocations fail; writes fail. Without effect where the system has no such limits (Windows).
    """
    try:
        import resource
    except ImportError:
        return
    in_use = 0
    with contextlib.suppress(OSError):
        in_use = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()  # Linux
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: in_use + memory,
        resource.RLIMIT_FSIZE: 1 << 20,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some values
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _own_output() -> Say:
    """Standard output for this file alone: what the libraries print goes where standard error goes."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return lambda key, text: _write(mine, {key: text})


def _write(to: int, line: dict[str, str]) -> None:
    os.write(to, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()

"""The child process of `--load`: gives one model to onnx.checker and ONNX Runtime, and says how far it got.

`loading` runs this file as a script; it imports nothing of this package, so that it starts alone and quickly. Standard
input: one line of JSON (`path`, `runtime`, `contract`, `cpu_seconds`, `memory`), then the model's bytes. Standard output:
lines of JSON with one key each. `by` names a program before it gets the model, so that the parent knows which one crashed;
`warning` is text; the last line is `accepted`, or `refused` or `unavailable` with the reason.
"""

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[str, str], None]

FRAME_SIZES = ((64, 96), (45, 71))
"""Height and width of the frames that a model of any size is run on; the second is one that nothing divides."""
FIXED = ("saliency-luma", "saliency-fixed", "saliency-yuv420")
"""Contracts of models that may have one frame size."""
_KINDS = {"tensor(uint8)": ("uint8", 255), "tensor(uint16)": ("uint16", 1023)}
"""The type and the highest value of planes, by ONNX Runtime's name of the type."""
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
    size = session.get_inputs()[0].shape[2:]
    if all(isinstance(side, int) for side in size) and contract in FIXED:
        _run(session, size)
        return
    _run(session, FRAME_SIZES[0])
    try:
        _run(session, FRAME_SIZES[1])
    except Exception as error:
        usual, odd = ("x".join(map(str, size)) for size in FRAME_SIZES)
        say("warning", f"runs on frames of {usual}, but not of {odd}: {error}")


def _run(session: Any, size: tuple[int, int]) -> None:
    """One frame, for a model with state two, the second with the state of the first. Raises ValueError for an unusable map."""
    import numpy

    feed, first = {}, session.get_outputs()[0].name
    for given in session.get_inputs():
        if given.name == "state_in":
            feed[given.name] = numpy.zeros([side if isinstance(side, int) else 1 for side in given.shape], numpy.float32)
        else:
            half = [-(-side // 2) for side in size]
            shape = {"u": (1, 1, *half), "v": (1, 1, *half), "uv": (1, *half, 2)}.get(given.name, (1, given.shape[1], *size))
            kind, most = _KINDS.get(given.type, ("float32", 1))
            feed[given.name] = numpy.linspace(0, most, math.prod(shape)).astype(kind).reshape(shape)
    expected = [1, 1, *(-(-side // 16) for side in size)] if first == "block_map" else [1, 1, *size]
    for _ in range(2 if len(session.get_outputs()) > 1 else 1):
        saliency_map, *states = session.run(None, feed)
        frame_of = f"on a frame of {size[0]}x{size[1]} {first}"
        if list(saliency_map.shape) != expected:
            raise ValueError(f"{frame_of} has the shape {list(saliency_map.shape)}; the contract has {expected}")
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

"""`--load`: what onnx.checker and ONNX Runtime say of a model, in a child process that may crash, hang or eat memory.

The scan promises that nothing is loaded to be refused; so only what it accepts comes here. The child is `child.py`, one per
model; it gets the bytes that were scanned, not a path. Its end, whatever it is, becomes a verdict. This fences accidents and
known crashes; it is no sandbox against code that has taken over the runtime. Standard library only.
"""

import contextlib
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from distill.opallowlist.foreign import printable
from distill.opallowlist.report import Violation

CPU_SECONDS = 20
"""CPU time of the child, its start of about 0.2 s included; a student needs a hundredth of it."""
WALL_SECONDS = 60
"""Elapsed time of the child: longer, because a busy machine is no fault of the model."""
MEMORY = 2 << 30
"""Bytes of address space that a model may take beyond the loaded libraries (which take 0.2 GB): 2 GiB."""

_CHILD = Path(__file__).with_name("child.py")
_LONGEST = 320  # characters quoted of what a library said
_MEND = "export it again, or mend what this names"
_HEAVY = "fewer iterations of Loop, smaller tensors (Expand, ConstantOfShape, Pad, Resize) and a smaller working resolution"
_CRASH = "its consumers would crash too: look for ranks, shapes and types that an operator does not allow; export it again"
_ANY_SIZE = "pad or resize inside the graph by Shape(input); consumers feed any frame size"
_NO_MEMORY = re.compile(r"MemoryError|bad_alloc|[Ff]ailed to allocate memory|Unable to allocate")


class NoLoader(RuntimeError):
    """`--load` cannot be done here, whatever the model: onnx is missing, or the libraries do not start."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The result of loading one model."""

    by: tuple[str, ...]
    """The programs that accepted it, with their versions: `onnx.checker 1.23.2`, `ONNX Runtime 1.32.0`."""
    violations: tuple[Violation, ...] = ()
    warnings: tuple[Violation, ...] = ()


def require_onnx() -> None:
    """Raise NoLoader, with the way out, where onnx is not installed."""
    if find_spec("onnx") is None:
        raise NoLoader("--load needs onnx, which is not installed; pip install onnx")


def load(data: bytes, contract: str | None) -> Loading:
    """Check, load and, with a contract (a resolved one), run the model `data`. Raises NoLoader."""
    runtime = find_spec("onnxruntime") is not None
    request = {"path": [entry for entry in sys.path if entry], "runtime": runtime, "contract": contract}
    request |= {"cpu_seconds": CPU_SECONDS, "memory": MEMORY}
    try:
        lines, trouble, noise = _run_child(json.dumps(request).encode() + b"\n" + data)
    except OSError as error:
        raise NoLoader(f"--load could not start a process: {_one_line(str(error))}") from error
    by = [text for key, text in lines if key == "by"]
    end, reason = lines[-1] if lines else ("", "")
    if end not in ("accepted", "refused", "unavailable"):
        trouble = trouble or "ended before it had a verdict"
    if not by:
        raise NoLoader(f"--load could not start onnx and ONNX Runtime: {_one_line(reason or f'{trouble}: {noise}')}")
    warnings = [Violation("frame-size", _one_line(text), remedy=_ANY_SIZE) for key, text in lines if key == "warning"]
    if not runtime:
        message = "ONNX Runtime is not installed, so onnx.checker alone has seen the model"
        warnings.append(Violation("not-loaded", message, remedy="pip install onnxruntime"))
    if end == "accepted" and not trouble:
        return Loading(tuple(by), (), tuple(warnings))
    who = by.pop()
    if _NO_MEMORY.search(noise if trouble else reason):
        refused = Violation("load", f"{who} needs more than {MEMORY >> 20:,} MiB of memory for it", remedy=_HEAVY)
    elif trouble:
        message = f"{who} {trouble}{noise and ': '}{_one_line(noise)}"
        refused = Violation("load", message, remedy=_CRASH if trouble.startswith(("crashed", "ended")) else _HEAVY)
    else:
        refused = Violation("load", f"{who}: {_one_line(reason)}", remedy=_MEND)
    return Loading(tuple(by), (refused,), tuple(warnings))


def _run_child(sent: bytes) -> tuple[list[tuple[str, str]], str, str]:
    """What the child said, how it ended if not well, and the end of what the libraries printed. Raises OSError."""
    import subprocess  # with tempfile 15 ms, which a check without --load does not pay
    import tempfile

    # -I: neither the working directory nor PYTHON* variables choose what is imported; this process's own path does.
    command = [sys.executable, "-I", "-W", "ignore", str(_CHILD)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # numpy takes memory for each thread
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # the child can limit a file's size, not a pipe's
        try:
            child = subprocess.run(
                command, input=sent, stdout=out, stderr=err, env=environment, timeout=WALL_SECONDS, check=False
            )
            trouble = _trouble(child.returncode)
        except subprocess.TimeoutExpired:
            trouble = f"did not finish within {WALL_SECONDS} s"
        lines = [next(iter(json.loads(line).items())) for line in _read(out).splitlines(keepends=True) if line.endswith("\n")]
        return lines, trouble, " ".join(_read(err).splitlines()[-2:])


def _trouble(code: int) -> str:
    """How the child ended, if not well: POSIX gives signals as negative codes, Windows gives its own codes for crashes."""
    if code == 0:
        return ""
    if code > 0:
        return f"crashed ({code:#x})" if code >= 0xC0000000 else f"ended with exit code {code}"
    if code == -getattr(signal, "SIGXCPU", 0):
        return f"took more than {CPU_SECONDS} s of CPU time"
    if code == -getattr(signal, "SIGKILL", 0):
        return "was killed (SIGKILL), as the system does when memory runs out"
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-code).name})"
    return f"crashed (signal {-code})"


def _read(file: IO[bytes]) -> str:
    """The start of what the child wrote, within its limit of 1 MiB (which not every system keeps)."""
    file.seek(0)
    return file.read(1 << 20).decode("utf-8", "replace")


def _one_line(text: str) -> str:
    """`text` on one line, printable, without its middle if long: ONNX Runtime says at the end what is wrong."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:100]} ... {line[105 - _LONGEST :]}"

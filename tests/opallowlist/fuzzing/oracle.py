"""Judges mutated files in child processes, and sorts what they say.

A `Judge` owns one `worker` process, which it starts again after a crash. `faults` are results that are wrong whatever
the file; `reason` sorts why the checker or the runtime refuses what the scan accepted.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, TypeAlias

Result: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[3]
WALL_SECONDS = 120
"""For one file, on a busy machine; the worker limits its CPU time itself."""
CPU_LIMIT, PEAK_LIMIT, TRIP_LIMIT = 2.0, 300.0, 1024
"""Of one check: seconds, MB. Of all Loops around a node together: iterations."""


class Judge:
    """One worker.

    pool: a file of `seeds.save_pool`. runtime: a folder with another onnxruntime, as `pip install --target` makes it.
    """

    def __init__(self, pool: Path, runtime: Path | None = None) -> None:
        self._command = [sys.executable, "-W", "error", "-m", "tests.opallowlist.fuzzing.worker", str(pool)]
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if runtime is not None:
            self._environment["PYTHONPATH"] = str(runtime)
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - closed by close()

    def ask(self, level: str, number: int, seed: int, *, gate: bool = True) -> Result:
        """The worker's result; if it died, `died` is the stage, `by` the signal and `words` the end of its standard error."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"level": level, "number": number, "seed": seed, "gate": gate}) + "\n")
        process.stdin.flush()
        stage = "start"
        watch = threading.Timer(WALL_SECONDS, process.kill)
        watch.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
                stage = line.strip()
        finally:
            watch.cancel()
        process.communicate()
        code = process.returncode
        self._process = None
        self._errors.seek(0)
        words = self._errors.read()[-300:].decode("utf-8", "replace")
        return {"died": stage, "by": signal.Signals(-code).name if code < 0 else f"exit {code}", "words": words}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._errors.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._errors.truncate(0)
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=pipe, stdout=pipe, stderr=self._errors, text=True
            )
        return self._process


def faults(result: Result) -> list[str]:
    """What must not happen with any file."""
    found = []
    if result.get("died") in ("mutation", "gate"):
        found.append(f"the {result['died']} {result['by']}")
    if result.get("died") == "run":
        found.append(f"accepted by --load, ends with {result['by']} when it is run")
    if "traceback" in result:
        found.append("the gate raises")
    if result.get("cpu", 0) > CPU_LIMIT:
        found.append(f"the gate takes more than {CPU_LIMIT:g} s")
    if result.get("peak", 0) > PEAK_LIMIT:
        found.append(f"the gate takes more than {PEAK_LIMIT:g} MB")
    if result.get("scanner"):
        found.append("accepted, refused by the downstream's scanner or protobuf")
    if not result.get("as_before", True):
        found.append("another verdict for the same model")
    if result.get("iterations", 0) > TRIP_LIMIT:
        found.append("accepted, and a Loop runs longer than the gate allows")
    if {"runtime", "cpu"} <= set(result) and "load" not in result:
        found.append("accepted by --load, does not load")
    return found


# What the libraries say around the reason: the node with all its inputs, the way down to it, names and paths.
_AROUND = re.compile(
    r"In Node, .*?, Error |Graph attribute inferencing failed: |\[ONNXRuntimeError\] : \d+ : \w+ : |\(tensor name: .*?\)|==> Context.*"
    r"|(, node name: |Name: ?')[^)']*|Input \d+ expected to have type but instead is null|/onnxruntime_src/\S*|\[\w+Error\]"
)

# In this order: the first that matches is the reason.
_REASONS = {
    "memory": r"bad.?alloc|MemoryError|Failed to allocate|SafeInt",
    "no kernel for the type": r"Could not find an implementation|NOT_IMPLEMENTED",
    "unknown attribute": r"Unrecognized attribute",
    "sparse tensor": r"[Ss]parse",
    "type of an attribute": r"type field and data field mismatch|appeared multiple times|attribute.*type|type of attribute",
    "value of an attribute": r"[Aa]ttribute|kernel_shape|strides|\bpads?\b|\baxis|axes|perm\b|dilations|[Mm]ode\b|kernel channels",
    "tensor data": r"one and only one value field|data_type|data size|raw_data|number of elements|should be stored|Deserialize"
    r"|dimension value|product overflow",
    "type of an input or output": r"'type' of|'shape' of|does not have type information|elem_type",
    "names": r"SSA|[Dd]uplicate|already|not unique|topological|not output of any previous|in initializer but not in graph input|"
    r"does not exist in the graph|non-empty|unique|outer scope|field '?name'?|'name' of|NodeProto for Constant",
    "opset": r"only \*guarantees\*|[Oo]pset|not a registered|No Op|domain",
    "inputs and outputs of a node": r"(input|output) size|not in range|inputs? (but|were)|number of (inputs|outputs)|[Mm]issing"
    r"|required|Out of bounds|provided|marked single|!= nullptr",
    "types": r"Type Error|typestr|elem type|[Tt]ype",
    "ranks and shapes": r"[Ss]hape|[Rr]ank|[Dd]imension|dims?\b|[Bb]roadcast|scalar|tensor|elements|size|Incompatible",
}  # fmt: skip


def reason(text: str) -> str:
    """The kind of reason that the checker or the runtime gives."""
    said = _AROUND.sub("", text)
    return next((kind for kind, pattern in _REASONS.items() if re.search(pattern, said)), "other")


def refusals(result: Result) -> list[tuple[str, str]]:
    """Who refuses what the scan accepted (`load`, the runtime by itself, a run of the model), and the kind of reason."""
    found = [(judge, reason(result[judge])) for judge in ("load", "runtime", "run") if judge in result]
    if "died" in result:
        found.append((result["died"], f"ends with {result['by']}"))
    return found

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
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()

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
            self._errors.close()
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=pipe,
                stdout=pipe,
                stderr=self._errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
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
    missed = {why for judge, why in refusals(result) if judge != "run" and why in RULES}
    return [*found, *(f"accepted by the scan, which has a rule for it: {why}" for why in sorted(missed))]


# What the libraries say around the reason: the node with all its inputs, the way down to it, names and paths.
_AROUND = re.compile(
    r"In Node, .*?, Error |\(tensor name: .*?\)|==> Context.*|(, node name: |Name: ?')[^)']*|/onnxruntime_src/\S*"
)

INFERENCE = "types and shapes, by inference"
BEYOND = {
    "a bug of ONNX Runtime": r"Should be unreachable",
    "memory": r"bad.?alloc|MemoryError|Failed to allocate|SafeInt",
    "no kernel for the type": r"Could not find an implementation|NOT_IMPLEMENTED",
    INFERENCE: r"ShapeInferenceError|TypeInferenceError|Type Error|Inference error|num_dims|type proto",
    "an input or output without a shape (checker alone)": r"'shape' of 'type'",
    "the main graph without a name (checker alone)": r"'name' of 'graph'",
    "an initializer that is no input, in IR 3 (where nothing reads it, the runtime too)": r"not in graph input|for initializer",
    "the default domain spelt ai.onnx (checker alone)": r"No opset import for domain 'ai.onnx'|No Op registered",
    "shapes, when it runs": r"Non-zero status code|At least one output|not run: ",
    "value of an attribute": r"coordinate_transform|Attribute perm|UnicodeDecodeError|[Mm]ode\b|Pad should be|TensorShape::Slice",
    "number of outputs": r"not in allowed output sizes",
}
"""What the scan does not know: kind -> what the libraries say of it."""
RULES = {
    "sparse tensor": r"[Ss]parse",
    "unknown attribute": r"Unrecognized attribute",
    "attribute": r"[Aa]ttribute",
    "tensor data": r"value field|data_type|data size|raw_data|elements|should be stored|Deserialize|dimension|product overflow",
    "names": r"SSA|[Dd]uplicate|already|unique|topological|previous nodes|does not exist|outer scope|[Nn]ame",
    "opset": r"[Oo]pset|domain",
    "inputs and outputs of a node": r"size|not in range|number of|[Mm]issing|required|marked single",
}
"""What it has rules for. Any of these is a fault."""


def reason(text: str) -> str:
    """The kind of reason that the checker or the runtime gives; the first that matches."""
    said = _AROUND.sub("", text)
    return next((kind for kind, pattern in (BEYOND | RULES).items() if re.search(pattern, said)), "other")


def refusals(result: Result) -> list[tuple[str, str]]:
    """Who refuses what the scan accepted (`load`, the runtime by itself, a run of the model), and the kind of reason."""
    found = [(judge, reason(result[judge])) for judge in ("load", "runtime", "run") if judge in result]
    if "died" in result:
        found.append((result["died"], f"ends with {result['by']}"))
    return found

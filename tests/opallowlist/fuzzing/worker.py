"""A child process that makes mutated files and judges each: the gate, the downstream's scanner, the checker, ONNX Runtime.

    python -W error -m tests.opallowlist.fuzzing.worker POOL

POOL is a file of `seeds.save_pool`. Standard input: lines of JSON, `{"level", "number", "seed", "gate"}`; `gate` false: only
the checker and the runtime. Standard output: the name of each stage as it begins, then the result as JSON. Whatever kills this
process is thus known by its place.
"""

import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from distill.opallowlist import Report, check, load_list
from distill.opallowlist.child import examine, set_limits
from distill.opallowlist.formats import as_json, github, sarif, text
from tests.opallowlist.fuzzing import Case, case
from tests.opallowlist.fuzzing.seeds import load_pool
from tests.opallowlist.scanner import scan

CPU_SECONDS = 10
"""For one file, all judges together; SIGPROF then ends the process."""
MEMORY = 2 << 30
LARGEST_INPUT = 100_000
"""Elements; a model that declares more is loaded but not run."""
ALLOWED = load_list("libvmaf")


def main() -> None:
    files = load_pool(Path(sys.argv[1]))
    verdicts: dict[bytes, bool] = {}
    set_limits(cpu_seconds=1 << 30, memory=MEMORY)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        say("mutation")
        made = case(request["level"], request["number"], request["seed"], files)
        result = {"kind": made.kind, "more": made.more, "file": made.file, "bytes": len(made.data), "accepted": True}
        if request["gate"]:
            result |= judge_by_gate(made)
            if made.unchanged is not None:
                if made.unchanged not in verdicts:
                    verdicts[made.unchanged] = check(made.unchanged, allowlist=ALLOWED).ok
                result["as_before"] = verdicts[made.unchanged] == result["accepted"]
        if result["accepted"]:
            result |= judge_by_runtime(made.data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(json.dumps(result))


def say(line: str) -> None:
    print(line, flush=True)


def judge_by_gate(made: Case) -> dict[str, object]:
    """Verdict, time, memory (of this process, with onnx and ONNX Runtime), and what the independent readers say of an accepted file."""
    say("gate")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    try:
        for contract in ("saliency", None):
            start = time.process_time()
            report = check(made.data, allowlist=ALLOWED, contract=contract)
            seconds.append(time.process_time() - start)
            render(report)
    except Exception:
        return {"accepted": False, "traceback": traceback.format_exc(limit=-3)}
    found: dict[str, object] = {"cpu": max(seconds), "peak": peak(), "accepted": report.ok}
    found["rules"] = sorted({violation.rule for violation in report.violations})
    if report.ok:
        found["scanner"] = scan(made.data)
        try:
            onnx.ModelProto.FromString(made.data)
        except Exception as error:  # protobuf's DecodeError lives in another module per implementation
            found["scanner"] = f"protobuf: {error}"
    return found


def render(report: Report) -> None:
    for shown in (text(report), as_json([report], []), github([report], []), sarif([report], [], "0.1.0")):
        shown.encode()


def peak() -> float:
    """The highest memory of this process since the last reset, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def judge_by_runtime(data: bytes) -> dict[str, object]:
    """What `--load` says, and whether ONNX Runtime loads and runs the model even if the checker refuses it."""
    found: dict[str, object] = {}
    try:
        examine(data, None, lambda key, name: say(name.split()[0]))
    except Exception as error:
        found["load"] = words(error)
    say("runtime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return found | {"runtime": words(error)}
    say("run, refused by --load" if "load" in found else "run")
    try:
        outputs = session.run(None, {value.name: ones(value) for value in session.get_inputs()})
    except Exception as error:
        return found | {"run": words(error)}
    names = [value.name for value in session.get_outputs()]
    if "iterations" in names:
        found["iterations"] = int(np.max(outputs[names.index("iterations")], initial=0))
    return found


def words(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 1000 else f"{text[:500]} ... {text[-500:]}"


def ones(value: onnxruntime.NodeArg) -> np.ndarray:
    """A small input. Raises ValueError where there is none."""
    name = re.fullmatch(r"tensor\((\w+)\)", value.type)
    shape = [size if isinstance(size, int) else 16 for size in value.shape]
    if name is None or np.prod([float(size) for size in shape]) > LARGEST_INPUT:
        raise ValueError(f"not run: input of {value.type} {value.shape}")
    if name[1] == "string":
        return np.full(shape, "a", object)
    return np.ones(shape, {"float": "float32", "double": "float64", "bool": "bool"}.get(name[1], name[1]))


if __name__ == "__main__":
    main()
    os._exit(0)

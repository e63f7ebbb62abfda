"""CPU time of a check after interpreter start; the gate's target is 150 ms for a student of 1 MB.

    python benchmarks/gate.py [MODEL.onnx] [--runs N]

Each run is a fresh process, so that imports are paid every time, as in CI. Times are process times (all threads, user and
system), measured inside the process from the first line of the program on. The command adds typer to the library; from 0.29
on, typer builds its parameters with pydantic. Without MODEL.onnx a file like the student's is generated: about 260,000
parameters, 170 nodes, a step graph with its state.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET_MS = 150

API = """
import time
start = time.process_time()
from distill.opallowlist import check
imported = time.process_time()
report = check({path!r}, contract="saliency")
done = time.process_time()
import json
print(json.dumps({{"import": imported - start, "check": done - imported, "ok": report.ok, "nodes": report.facts.nodes}}))
"""

COMMAND = """
import time, sys, os
start = time.process_time()
sys.stdout = open(os.devnull, "w")
from distill.opallowlist.cli import main
try:
    main(["check", {path!r}, "--contract", "saliency"])
except SystemExit as stop:
    sys.stderr.write(str(time.process_time() - start))
    sys.exit(stop.code)
"""


def student_like(path: Path) -> None:
    """Write a step graph of allowed operators, about 1 MB, with blocks of Conv, Relu and Add."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], name=f"/{op}_{len(nodes)}", **attributes))
        return f"t{len(nodes) - 1}"

    def conv(x: str, out: int, into: int, size: int, **attributes: object) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(rng.standard_normal((out, into, size, size)).astype("float32"), name))
        return add("Conv", [x, name], pads=[size // 2] * 4, **attributes)

    x = add("Relu", [conv(add("AveragePool", ["input"], kernel_shape=[4, 4], strides=[4, 4]), 40, 3, 3)])
    for _ in range(28):
        y = add("Relu", [conv(x, 40, 40, 1)])
        y = add("Relu", [conv(y, 40, 1, 3, group=40)])
        x = add("Add", [y, x])
    for _ in range(14):
        x = add("Relu", [conv(x, 40, 40, 3)])
    state = np.zeros((1, 40, 1, 1), "float32")
    weights.append(numpy_helper.from_array(state, "state_in"))
    nodes.append(helper.make_node("Add", [x, "state_in"], ["state_out"]))
    nodes.append(helper.make_node("Sigmoid", [conv("state_out", 1, 40, 1)], ["saliency_map"]))
    float32 = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("input", float32, [1, 3, "height", "width"]),
        helper.make_tensor_value_info("state_in", float32, [1, 40, "state_in_h", "state_in_w"]),
    ]
    outputs = [
        helper.make_tensor_value_info("saliency_map", float32, [1, 1, "height", "width"]),
        helper.make_tensor_value_info("state_out", float32, [1, 40, "state_out_h", "state_out_w"]),
    ]
    graph = helper.make_graph(nodes, "student", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def measure(path: Path, runs: int) -> None:
    size = path.stat().st_size
    checks = []
    for _ in range(runs):
        script = API.format(path=str(path))
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        checks.append(json.loads(result.stdout))
    commands = []
    for _ in range(runs):
        script = COMMAND.format(path=str(path))
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        commands.append(float(result.stderr))
    verdict = "accepted" if checks[0]["ok"] else "refused"
    print(f"{path.name}: {size:,} bytes, {checks[0]['nodes']} nodes, {verdict}; median (min, max) of {runs} fresh processes")
    total = [run["import"] + run["check"] for run in checks]
    rows = {
        "import distill.opallowlist": [run["import"] for run in checks],
        "check(path, contract=...)": [run["check"] for run in checks],
        "both": total,
        "opallowlist check (with typer)": commands,
    }
    for name, seconds in rows.items():
        low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
        print(f"  {name:<32} {middle:6.1f} ms  ({low:.1f}, {high:.1f})")
    for name in ("both", "opallowlist check (with typer)"):
        met = 1e3 * statistics.median(rows[name]) < TARGET_MS
        print(f"  {name}: {'within' if met else 'OVER'} {TARGET_MS} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="an .onnx file; made if not given")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.model is not None:
        measure(arguments.model, arguments.runs)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student_like.onnx"
        student_like(path)
        measure(path, arguments.runs)


if __name__ == "__main__":
    main()

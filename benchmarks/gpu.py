"""One GPU, a few minutes: everything of ours that a GPU runs, measured in order of worth, with no install and no thinking.

    python benchmarks/gpu.py [--minutes 8] [--out gpu-results] [--device auto|cpu|cuda] [--parts NAME ...] [--shared ../shared]

It runs from a plain checkout with Python, torch, numpy, onnx, onnxruntime, OpenCV, safetensors, jinja2, filelock and rich. Every
part is a process of its own with a limit on its time: one that fails, hangs or runs out of time is reported, and the next one
starts. A result is printed, and appended to `results.jsonl`, as soon as it is known; what the parts write to standard error is in
`log.txt`. On a CPU the same parts run at tiny sizes, as a rehearsal.

What is read under --shared, where it is there: UNISAL's weights in weights/unisal, videos in data/clips, and the corpora of
recipes/release.toml. Without weights, random ones are used, and the result says so. The parts are in gpu_parts.py.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST = 5.0
"""Seconds below which no part is started."""
GRACE = 5.0
"""Seconds from asking a part to end to killing it: torchrun has to end processes that are not of its group."""


@dataclass(frozen=True)
class Part:
    """One process. `seconds`: the most it may take."""

    name: str
    seconds: float


# In order of worth.
PARTS = (
    Part("machine", 40), Part("unisal", 60), Part("label-6B", 90), Part("label-L", 45), Part("train", 120), Part("torchrun", 90),
    Part("tune-L", 60), Part("label-1B", 45), Part("label-L-compiled", 120), Part("label-6B-compiled", 180), Part("tune-6B", 90),
    Part("label-1B-compiled", 120), Part("release", 3600),
)  # fmt: skip


def supervise(parts: Sequence[Part], command: Callable[[str, float], list[str]], minutes: float, out: Path) -> dict[str, str]:
    """Runs `command(name, seconds)` for each part, and returns how each ended: `done`, or the reason why not."""
    deadline, ends = time.monotonic() + 60 * minutes, {}
    for part in parts:
        print(f"-- {part.name}", flush=True)
        started = time.monotonic()
        seconds = min(part.seconds, deadline - started)
        if deadline - started >= LEAST:
            ends[part.name] = _run(command(part.name, seconds), seconds, out / "log.txt")
        else:
            ends[part.name] = "not started: no time was left"
        write(out, part.name, end=ends[part.name], seconds=round(time.monotonic() - started, 1))
    return ends


def _run(command: list[str], seconds: float, log: Path) -> str:
    """How the process ended. At the limit it and its children are stopped; a GPU frees the memory of a dead process."""
    with log.open("ab") as errors:
        at = errors.seek(0, os.SEEK_END)
        # On a CPU, threads that spin while they wait would take the time from those that work.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        process = subprocess.Popen(command, stderr=errors, start_new_session=True, env=environment)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after its {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what is left of it
            process.wait()
    if code == 0:
        return "done"
    lines = log.read_bytes()[at:].decode(errors="replace").strip().splitlines()
    return f"failed with exit code {code}: {lines[-1] if lines else 'nothing on standard error'}"


def end_with(parent: int) -> None:
    """Ends this process and what it has started when its parent is no more: a part is of another session, and would run on alone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def write(out: Path, part: str, **values: object) -> None:
    """Appends a line to results.jsonl, and prints it for people."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as results:
        results.write(json.dumps({"part": part} | values) + "\n")
    print(f"   {part}: " + ", ".join(f"{name} {value}" for name, value in values.items()), flush=True)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together; default 8")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), help="a folder for results.jsonl, log.txt and checkpoints"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", nargs="+", metavar="NAME", default=[part.name for part in PARTS], help="only these parts")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="real data and weights, where there are some"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a part's own process
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.jsonl").touch()
    if options.only:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        # The folders at the top are packages below `distill`, as pyproject's package map has it.
        sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
        import distill

        distill.__path__.append(str(ROOT))
        import gpu_parts

        gpu_parts.run(options.only, options.device, options.seconds, options.out, options.shared)
        return
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in options.parts if name not in known]:
        parser.error(f"no part {', '.join(unknown)}; the parts are {', '.join(known)}")
    device = _device(options.device)
    places = ["--device", device, "--out", str(options.out), "--shared", str(options.shared)]

    def command(name: str, seconds: float) -> list[str]:
        return [sys.executable, __file__, "--only", name, "--seconds", f"{seconds:.1f}", *places]

    ends = supervise([known[name] for name in options.parts], command, options.minutes, options.out)
    print("\n".join(["", *(f"{name:18} {end}" for name, end in ends.items())]))


if __name__ == "__main__":
    main()

"""The script for a GPU: it outlives parts that fail and hang, and every part of it runs, on a CPU at tiny sizes."""

import importlib.util
import json
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, running

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_part_that_fails_or_hangs_is_reported_and_the_rest_goes_on(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.3)
    beat = tmp_path / "beat"
    child = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += f"while True: open({str(beat)!r}, 'a').write('.'); time.sleep(0.05)"
    works = {
        "fails": "import sys; sys.exit('CUDA error: an illegal memory access')",
        "crashes": "import os; os.abort()",
        "hangs": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])",
        "works": "print('fine')",
    }
    parts = [gpu.Part(name, 2.0 if name == "hangs" else 30.0) for name in works]
    ends = gpu.supervise(parts, lambda name, seconds: [sys.executable, "-c", works[name]], 1.0, tmp_path)
    assert ends == {
        "fails": "failed with exit code 1: CUDA error: an illegal memory access",
        "crashes": "failed with exit code -6: nothing on standard error",
        "hangs": "stopped after its 2 s",
        "works": "done",
    }
    assert [(line["part"], line["end"]) for line in results(tmp_path)] == list(ends.items())
    size = beat.stat().st_size
    time.sleep(0.2)
    assert size == beat.stat().st_size > 0  # what a part has started ends with it


def test_without_time_nothing_is_started(gpu, tmp_path):
    ends = gpu.supervise([gpu.Part("late", 30.0)], lambda *_: ["/nonexistent"], 0.01, tmp_path)
    assert ends == {"late": "not started: no time was left"}


def test_a_part_ends_with_the_script(tmp_path):
    part = f"import os, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu; parent = os.getppid(); "
    part += "print('up', flush=True); gpu.end_with(parent)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {part!r}], start_new_session=True)"
    with running(sys.executable, "-c", script) as process:
        assert process.stdout.readline() == "up\n"
        process.kill()
        assert process.stdout.read() == ""  # which the part has open for as long as it runs


def test_every_part_runs_on_a_cpu(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--out", tmp_path / "out", "--shared", tmp_path / "nothing"]
    with running(*command, "--minutes", "3") as process:
        shown, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    found = results(tmp_path / "out")
    ends = {line["part"]: line["end"] for line in found if "end" in line}
    assert set(ends.values()) == {"done"}, shown
    assert len(ends) == 13 and all(any(line["part"] == name and "end" not in line for line in found) for name in ends)
    differences = [value for line in found for name, value in line.items() if "difference" in name]
    assert len(differences) == 5 and max(differences) < 1e-6  # on a CPU it compares the CPU with itself


def test_an_unknown_part_is_a_usage_error(tmp_path):
    shown = subprocess.run([sys.executable, SCRIPT, "--parts", "nothing", "--out", tmp_path], capture_output=True, text=True)
    assert shown.returncode == 2 and "no part nothing; the parts are machine, unisal" in shown.stderr

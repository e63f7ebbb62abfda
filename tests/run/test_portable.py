"""Parts that must start on any system, without modules or calls that only Linux has."""

import os
import subprocess
import sys

import pytest

from distill.run.machine import parallel
from tests.helpers import TINY, image_model, make_clip

# As on Windows and macOS: no fcntl, no resource, no affinity.
WITHOUT = """
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.sched_getaffinity
from {module} import main
sys.argv[0] = "{name}"
sys.exit(main())
"""


def without_linux(name, *arguments):
    module = "distill.cli" if name == "distill" else "distill.opallowlist.cli"
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(module=module, name=name), *map(str, arguments)], capture_output=True, text=True,
        timeout=240, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def test_help_and_the_gate_start(tmp_path):
    result = without_linux("distill", "--help")
    assert result.returncode == 0 and "Usage: distill" in result.stdout, result.stderr
    model = image_model(tmp_path / "model.onnx")
    result = without_linux("opallowlist", "check", model)
    assert result.returncode == 0 and "accepted" in result.stdout, result.stderr


def test_the_predictor_runs(tmp_path):
    image_model(tmp_path / "model.onnx")
    make_clip(tmp_path / "corpus")
    video, model, out = tmp_path / "corpus" / "video" / "001.avi", tmp_path / "model.onnx", tmp_path / "maps.npy"
    result = without_linux("distill", "predict", video, "--model", model, "--out", out)
    assert result.returncode == 0 and out.stat().st_size > 0, result.stderr


def test_a_run_on_the_cpu_is_planned_and_carried_out(tmp_path):
    sets = [part for override in TINY for part in ("--set", override)]
    result = without_linux("distill", "run", "--dry-run", "--out", tmp_path / "run", *sets)
    assert result.returncode == 0 and "train" in result.stdout and not (tmp_path / "run").exists(), result.stderr
    result = without_linux("distill", "label", "--corpus", "synthetic", "--out", tmp_path / "run", *sets)
    assert result.returncode == 0 and len(list((tmp_path / "run" / "labels").glob("*.npy"))) == 5, result.stderr


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    assert parallel.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert parallel.usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert parallel.usable_cores() == 1


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    from distill.recipe.files import load_recipe
    from distill.run.directory import RunDir
    from distill.run.errors import UsageError

    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"run is not writable: Is a directory"):
        RunDir.create(tmp_path / "run", load_recipe(None, []))

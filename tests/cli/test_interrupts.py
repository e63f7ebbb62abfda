"""Ctrl-C at any moment: exit code 130, at most one line, no traceback; and JSON stays one object."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from distill.cli.exits import describe_error
from distill.run.errors import Interrupted
from tests.helpers import invoke, running

MARK = "import sys; sys.stdout.write('up'); sys.stdout.flush(); "
"""Says that the interpreter itself has started, before which no program can catch anything."""


@pytest.mark.parametrize("after", [0, 0.05, 0.15, 0.4, 1.0])
@pytest.mark.parametrize(
    ("start", "arguments"),
    [("main", ["run"]), ("main", ["eval", "none.onnx", "--root", "."]), ("main", ["--help"]), ("gate", ["check", "none.onnx"])],
)
def test_ctrl_c_during_start_up_ends_quietly(tmp_path, start, arguments, after):
    code = f"from distill.__main__ import {start}; {MARK}sys.argv[1:] = {arguments!r}; {start}()"
    with running(sys.executable, "-c", code, cwd=tmp_path) as process:
        assert process.stdout.read(2) == "up"
        time.sleep(0.02 + after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert "Traceback" not in err and "ignored" not in err and len(err.splitlines()) <= 2, err
    assert process.returncode in ({130, 0} if arguments == ["--help"] else {130, 2} if "none.onnx" in arguments else {130})


MARKED = f"""
import signal
install = signal.signal
def first(*arguments):
    signal.signal = install
    before = install(*arguments)
    {MARK}
    return before
signal.signal = first
"""


@pytest.mark.parametrize("after", [0, 0.03, 0.1, 0.3])
def test_ctrl_c_while_the_gate_is_imported_as_a_module_ends_quietly(tmp_path, after):
    """From where the package itself takes Ctrl-C: before, the interpreter starts, and runs none of our code."""
    (tmp_path / "sitecustomize.py").write_text(MARKED, encoding="utf-8")
    command = [sys.executable, "-m", "distill.opallowlist", "check", "none.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with running(*command, env=environment) as process:
        assert process.stdout.read(2) == "up"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    # Where it comes while typer evaluates an annotation, `python -m` ends by the signal, whatever the code; a shell sees 130.
    assert "Traceback" not in err and process.returncode in (130, 2, -signal.SIGINT), err


def test_ctrl_c_in_a_callback_that_cannot_raise_is_not_lost():
    code = """
import time
from distill.__main__ import _run
class Callback:
    def __del__(self):
        raise KeyboardInterrupt
def command():
    Callback()
    time.sleep(60)
try:
    _run(command)
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("interrupted\n", "")


def test_a_result_that_was_interrupted_is_one_object(tmp_path, monkeypatch):
    from distill.cli import output
    from distill.encoding.bd import compare

    def half(*_, **__):
        output.print_json({"clips": {}})
        raise Interrupted("bd, after 1 of 2 clips")

    (tmp_path / "v.mp4").write_bytes(b"")
    monkeypatch.setattr(compare, "compare", half)
    monkeypatch.setattr("distill.encoding.bd.excerpts.find_sources", lambda *_: ["v"])
    result = invoke("bd", "v.mp4", "--json", cwd=tmp_path)
    assert result.returncode == 130 and json.loads(result.stdout) == {"clips": {}}
    assert result.stderr.splitlines()[-1] == "distill: interrupted: bd, after 1 of 2 clips"


def test_an_import_that_ctrl_c_broke_is_an_interrupt():
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error  # as extension modules do
    except ImportError as error:
        assert describe_error(error) == ("interrupted: at once", 130)
    assert describe_error(ImportError("initialization failed"))[1] == 2

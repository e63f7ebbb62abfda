"""Both commands with their streams closed, full, or without a reader: the right exit code, at most one line, no traceback."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

GATE = [sys.executable, "-m", "distill.opallowlist"]
DISTILL = [sys.executable, "-m", "distill"]
COMMANDS = {
    "accepted": ([*GATE, "check", "good.onnx"], 0),
    "refused": ([*GATE, "check", "bad.onnx"], 1),
    "refused, as JSON": ([*GATE, "check", "bad.onnx", "--json"], 1),
    "list": ([*GATE, "ops"], 0),
    "help": ([*GATE, "--help"], 0),
    "no command": (GATE, 2),
    "catalogue": ([*DISTILL, "teachers"], 0),
    "error": ([*DISTILL, "teachers", "nobody", "--json"], 2),
    "help of distill": ([*DISTILL, "--help"], 0),
}
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture(params=COMMANDS)
def run(request, tmp_path, image):
    """Runs the command with `redirections`: (exit code, its usual one, standard error)."""
    onnx.save(image, tmp_path / "good.onnx")
    image.graph.node[1].op_type = "Floor"
    onnx.save(image, tmp_path / "bad.onnx")
    command, usual = COMMANDS[request.param]

    def redirected(redirections: str) -> tuple[int, int, str]:
        script = f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}'
        shell = ["bash", "-c", script, "bash", *command]
        result = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return result.returncode, usual, result.stderr

    return redirected


@pytest.mark.parametrize("redirections", [">&-", pytest.param("> /dev/full", marks=needs_full)])
def test_2_and_a_line_where_standard_output_could_not_be_written(run, redirections):
    code, _, err = run(redirections)
    reason = "it is closed" if redirections == ">&-" else "No space left on device"
    *before, last = err.splitlines()
    assert code == 2 and len(before) == (1 if "nobody" in err else 0)
    assert last.endswith(f": standard output could not be written ({reason}); send it to another file or pipe")


@pytest.mark.parametrize("redirections", ["| head -n 1", "| true", "2>&-", pytest.param("2> /dev/full", marks=needs_full)])
def test_the_usual_code_where_a_reader_leaves_or_standard_error_fails(run, redirections):
    code, usual, err = run(redirections)
    assert code == usual and err.splitlines() == [line for line in err.splitlines() if "unknown teacher" in line][:1]


def test_2_where_everything_is_closed(run):
    assert run("<&- >&- 2>&-")[::2] == (2, "")


def test_nothing_printed_is_nothing_lost(tmp_path, image):
    onnx.save(image, tmp_path / "good.onnx")
    script = '"$@" check --quiet good.onnx >&-'
    assert subprocess.run(["bash", "-c", script, "bash", *GATE], cwd=tmp_path, check=False).returncode == 0


def test_a_file_opened_later_does_not_become_standard_output(tmp_path):
    script = "import sys\nfrom distill.opallowlist import streams\nstreams.take_over()\n"
    script += (
        "with open('log', 'w') as log:\n    print('lost', flush=True)\n    log.write('kept')\n    sys.stderr.write('gone')"
    )
    shell = ["bash", "-c", '"$@" >&- 2>&-', "bash", sys.executable, "-c", script]
    assert subprocess.run(shell, cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "log").read_text() == "kept"

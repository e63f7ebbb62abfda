"""The files that other repositories use: the action's script runs, the hook calls the command, the page names every rule."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import onnx
import pytest

from distill.opallowlist import CONTRACTS, RULES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def action(tmp_path, image):
    """The action's last step, run as GitHub does: (exit code, standard output)."""
    text = (ROOT / "action.yml").read_text("utf-8")
    script = textwrap.dedent(text.rpartition("run: |\n")[2])
    defaults = dict(re.findall(r"^  ([\w-]+):\n    description: .*\n    default: \"?(.*?)\"?$", text, re.MULTILINE))
    assert set(defaults) == {"files", "list", "contract", "load", "format", "output", "max-bytes", "version", "python-version"}
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "opallowlist"
    code = "from distill.opallowlist.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    command.chmod(0o755)
    work = tmp_path / "work"
    (work / "deep" / "er").mkdir(parents=True)
    onnx.save(image, work / "deep" / "er" / "a good one.onnx")
    image.graph.node[1].op_type = "Floor"
    onnx.save(image, work / "bad.onnx")

    def run(**inputs: str) -> tuple[int, str]:
        values = {**defaults, **{key.replace("_", "-"): value for key, value in inputs.items()}}
        environment = {key.upper().replace("-", "_"): value for key, value in values.items()}
        environment = {**os.environ, **environment, "PATH": f"{command.parent}:{os.environ['PATH']}"}
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        result = subprocess.run(shell, cwd=work, env=environment, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout

    run.work = work
    return run


def test_the_action_annotates_and_fails_on_a_refusal(action):
    code, out = action()
    assert code == 1 and out.startswith("::error file=bad.onnx,") and out.endswith("2 files: 1 accepted, 1 refused\n")


def test_the_actions_inputs(action):
    assert action(files="deep/**/*.onnx", contract="saliency", format="text") == (
        0,
        "deep/er/a good one.onnx: accepted  opset 17 · IR 8 · 2 nodes · 2 operators · list libvmaf (70)"
        " · contract saliency-image\n",
    )
    assert "loaded by onnx.checker" in action(files="deep/**/*.onnx", load="true", format="text")[1]
    assert action(files="nothing/*.onnx") == (2, "::error title=opallowlist::no file matches 'nothing/*.onnx'\n")
    assert action(load="yes") == (2, "::error title=opallowlist::load is true or false, not 'yes'\n")
    assert action(files="missing.onnx")[0] == 2
    assert action(files="deep/**/*.onnx", max_bytes="5")[0] == 1
    (action.work / "ops.txt").write_text("Conv Floor")
    assert action(files="bad.onnx", list="ops.txt")[0] == 0
    assert action(files="bad.onnx deep/**/*.onnx", format="sarif", output="new/out.sarif") == (
        1,
        "::error title=opallowlist::not every model is accepted; see new/out.sarif\n",
    )
    assert '"version": "2.1.0"' in (action.work / "new" / "out.sarif").read_text()
    assert action(files="deep/**/*.onnx", format="", list="", output="a.txt") == (0, "")
    assert action(output="bad.onnx/a.txt")[0] == action(output="deep")[0] == 2


def test_an_input_cannot_become_a_command(action):
    assert action(files="$(touch pwned); `touch pwned` 'x;touch pwned'", contract="; touch pwned")[0] == 2
    assert not (action.work / "pwned").exists()


def test_the_hook_calls_the_command():
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text("utf-8")
    assert "- id: opallowlist\n" in hook and "entry: opallowlist check\n" in hook
    assert re.search(r"files: (.*)\n", hook).group(1) == r"\.onnx$"


def test_the_page_names_every_rule_contract_and_input():
    page = (ROOT / "docs" / "op-allowlist.md").read_text("utf-8")
    for name in (*RULES, *CONTRACTS, "files", "list", "max-bytes", "python-version"):
        assert f"`{name}`" in page, name

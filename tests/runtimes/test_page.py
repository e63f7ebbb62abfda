"""docs/runtimes.md: its blocks run, where their runtimes are, and give ONNX Runtime's maps."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers import ROOT
from tests.runtimes.compiling import build, needs_header
from tests.runtimes.sessions import NODE, RUNTIMES, WEB
from tests.runtimes.streams import largest_difference, pictures, streamed, student

TEXT = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
BLOCKS = dict(
    re.findall(r"^\*\*([\w ]+)\*\*[^\n]*\n\n(?:```console.*?```\n\n)?```(?:python|js|cpp)\n(.*?)```", TEXT, re.M | re.S)
)
[START] = re.findall(r"```python\n(import numpy.*?)```", TEXT, re.S)
SIZE, FRAMES = (360, 640), 4


def expected(model, feeds):
    with RUNTIMES["ONNX Runtime"].open(model) as session:
        return streamed(session, model, feeds)[0]


def test_every_runtime_has_a_block():
    assert set(RUNTIMES) <= set(BLOCKS) and "```cpp" in TEXT


@pytest.mark.runtimes
@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "ONNX Runtime for the web"])
def test_the_blocks_run(name, tmp_path, monkeypatch):
    if missing := RUNTIMES[name].missing:
        pytest.skip(f"not installed: {missing}")
    monkeypatch.chdir(tmp_path)
    kind = "rgb" if name == "ncnn" else "yuv420 block-map"
    model = student(kind, SIZE)
    onnx.save(model, "student_step_rgb_640x360.onnx" if name == "ncnn" else "student_step_yuv420_bt709_640x360_blocks.onnx")
    feeds = pictures(model, SIZE, FRAMES)
    names = {"frames": feeds, "pictures": [feed["input"][0] for feed in feeds if "input" in feed]}
    if name == "ncnn":
        [command] = re.findall(r"^\$ pnnx (.*)$", TEXT, re.M)
        program = Path(find_spec("pnnx").origin).parent / "pnnx"
        subprocess.run([program, *shlex.split(command)], check=True, capture_output=True)
    exec(START + BLOCKS[name], names)
    last = names["saliency"][None] if name == "ncnn" else names["blocks"]
    assert np.abs(last - expected(model, feeds)[-1]).max() <= 1e-5


BEGIN = """
import { readFileSync, writeSync } from "node:fs";
const bytes = readFileSync("frames.yuv"), luma = 360 * 640, chroma = 180 * 320, frames = [];
for (let at = 0; at < bytes.length; at += luma + 2 * chroma) {
  const plane = (start, length) => bytes.subarray(at + start, at + start + length);
  frames.push({ y: plane(0, luma), u: plane(luma, chroma), v: plane(luma + chroma, chroma) });
}
"""


@pytest.mark.runtimes
@pytest.mark.skipif(bool(RUNTIMES["ONNX Runtime for the web"].missing), reason="needs Node.js and onnxruntime-web")
def test_the_javascript_block_runs(tmp_path):
    model = student("yuv420 block-map", SIZE)
    onnx.save(model, tmp_path / "student_step_yuv420_bt709_640x360_blocks.onnx")
    feeds = pictures(model, SIZE, FRAMES)
    (tmp_path / "frames.yuv").write_bytes(b"".join(feed[name].tobytes() for feed in feeds for name in "yuv"))
    (tmp_path / "node_modules").symlink_to(WEB.parent)
    frame = "state_in = state_out;"
    block = BLOCKS["ONNX Runtime for the web"]
    assert frame in block
    (tmp_path / "block.mjs").write_text(
        BEGIN + block.replace(frame, f"{frame} writeSync(1, new Uint8Array(block_map.data.buffer));")
    )
    result = subprocess.run([NODE, "block.mjs"], cwd=tmp_path, capture_output=True, timeout=60)
    printed = np.frombuffer(result.stdout, np.float32).reshape(-1, 1, 1, 23, 40)
    assert largest_difference(printed, expected(model, feeds)) <= 1e-5, result.stderr


MAIN = """
#include <cstdio>
int main(int, char **arguments) {
    Student student(arguments[1]);
    std::vector<uint8_t> planes(360 * 640 * 3 / 2);
    while (std::fread(planes.data(), 1, planes.size(), stdin) == planes.size()) {
        uint8_t *u = planes.data() + 360 * 640;
        for (float value : student.blocks(planes.data(), u, u + 180 * 320, 360, 640)) std::printf("%.7f ", value);
        std::putchar('\\n');
    }
}
"""


@needs_header
def test_the_cpp_block_runs(tmp_path):
    [block] = re.findall(r"```cpp\n(.*?)```", TEXT, re.S)
    (tmp_path / "student.cpp").write_text(block + MAIN)
    model = student("yuv420 block-map", SIZE)
    onnx.save(model, tmp_path / "model.onnx")
    program = build("g++", "c++17", tmp_path / "student.cpp", tmp_path / "student")
    feeds = pictures(model, SIZE, FRAMES)
    planes = b"".join(feed[name].tobytes() for feed in feeds for name in "yuv")
    result = subprocess.run([program, tmp_path / "model.onnx"], input=planes, capture_output=True, timeout=60)
    printed = [np.array(line.split(), float).reshape(1, 1, 23, 40) for line in result.stdout.decode().splitlines()]
    assert largest_difference(printed, expected(model, feeds)) <= 1e-5

"""Shared helpers: a tiny recipe, the command in a separate process, clips, students, ONNX models."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from distill.cli.exits import run_command
from distill.corpora.readers.frames import Frame
from distill.corpora.video import write_video
from distill.evaluation import statistics
from distill.evaluation.protocols import PROTOCOLS
from distill.reporting.provenance import Provenance
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# A whole run in seconds.
TINY = (
    "student.height=32", "student.width=64", "student.widths=[4,8,8,12,16]", "student.state_channels=8",
    "synthetic.clips=5", "synthetic.frames=24", "synthetic.height=64", "synthetic.width=96", "synthetic.observers=6",
    "teacher.steps=4", "teacher.batch=1", "train.steps=12", "train.frames=8", "train.batch=2", "train.window=4", "train.windows=2",
    "train.validate_every=4", "train.checkpoint_every=4", "report.clips=1",
)  # fmt: skip


def frames_of(pictures):
    """Pictures, uint8 RGB `[H,W,3]`, as decoded frames."""
    return [Frame(None, rgb.shape[:2], partial(np.asarray, rgb)) for rgb in pictures]


def distill(*arguments, cwd=None, module="distill", **options):
    """`distill ARGUMENTS` in a separate process, at 100 columns without colour."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=240,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}, **options,
    )  # fmt: skip


@contextlib.contextmanager
def running(*command, text=True, **options):
    """A command in a process of its own, for as long as the block lasts: what is left of it then is killed, with its children."""
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=text, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its ranks, which are in sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def invoke(*arguments, cwd="."):
    """`distill ARGUMENTS` in this process, with the result of `distill`: for usage errors, which need no imports of their own.

    Imports, signals, pipes and a full disk are tested in a process of their own.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(argument) for argument in arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


WITHOUT = """
import sys
sys.modules |= dict.fromkeys({modules!r})  # None: not installed
from distill.cli.exits import run_command
sys.exit(run_command({arguments!r}))
"""


def without(modules, *arguments):
    """`distill ARGUMENTS` where these modules are not installed."""
    script = WITHOUT.format(modules=modules, arguments=[str(argument) for argument in arguments])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)


def make_clip(root: Path, name: str = "001", frames: int = 6, annotated: int | None = 6, size=(48, 80), maps: bool = False):
    """A clip in DHF1K's layout: frame t is of brightness 10 t, its fixation is at x = 5 t."""
    height, width = size
    shades = (np.full((height, width, 3), 10 * (t % 20), np.uint8) for t in range(frames))
    write_video(root / "video" / f"{name}.avi", 25.0, size, shades)
    for t in range(annotated or 0):
        image = np.zeros(size, np.uint8)
        image[height // 2, 5 * t % width] = 255
        for folder in ("fixation", "maps") if maps else ("fixation",):
            if folder == "maps":
                image[height // 2, (5 * t + 1) % width] = 128  # a map of two values would be no density map
            path = root / "annotation" / f"{int(name):04d}" / folder / f"{t + 1:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    return root


def moving_blobs(seeds, frames=8):
    """Moving blobs, as uint8 RGB."""
    y, x = np.mgrid[:48, :80]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        colour, start, speed = rng.uniform(50, 255, 3), rng.uniform(10, 38, 2), rng.uniform(-2, 2, 2)
        yield [
            np.uint8(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 200)[..., None] * colour)
            for cy, cx in (start + t * speed for t in range(frames))
        ]


SMALL = TinyUNetConfig(height=32, width=64, widths=(4, 8, 8, 12, 16), state_channels=8)


def lively(config=SMALL, seed=0):
    """A student with all weights and statistics in effect."""
    torch.manual_seed(seed)
    student = TinyUNet(config).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return student


def save_model(path, nodes, weights=(), stateful=False):
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])]
    outputs = [helper.make_tensor_value_info("saliency_map", TensorProto.FLOAT, [1, 1, "oh", "ow"])]
    if stateful:
        inputs.append(helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [1, 1, "sh", "sw"]))
        outputs.append(helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [1, 1, "th", "tw"]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def image_model(path):
    """The mean of the channels, through a sigmoid."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Sigmoid", ["m"], ["saliency_map"]),
    ]
    return save_model(path, nodes)


def step_model(path):
    """`image_model`, plus half of what the last frame's state was; the state is the frame's own mean plus half of the last."""
    weights = [
        numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "state_in"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["state_in", "half"], ["old"]),
        helper.make_node("Add", ["m", "old"], ["state_out"]),
        helper.make_node("Sigmoid", ["state_out"], ["saliency_map"]),
    ]
    return save_model(path, nodes, weights, stateful=True)


def gaze_corpus(root, size=(48, 64), images=6, observers=8, spread=2.0):
    """Still images, each with one position that all observers look at."""
    height, width = size
    rng = np.random.default_rng(0)
    (root / "img").mkdir(parents=True)
    lines = ["clip,x,y,observer"]
    for n in range(images):
        cv2.imwrite(str(root / "img" / f"i{n}.png"), rng.integers(0, 255, (height, width, 3), np.uint8))
        place = np.array([6 + n * (width - 12) / images, 8 + 30 * (n % 2)])
        for who in range(observers):
            x, y = np.clip(place + rng.normal(0, spread, 2), 0, (width - 1, height - 1))
            lines.append(f"i{n},{x:.2f},{y:.2f},{who}")
    (root / "fixations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def made_up_scores(protocol="clip-mean", **values):
    """A result of 12 clips with NSS and CC; values: what each predictor has above the others, by name."""
    base = np.random.default_rng(0).normal(1.5, 0.5, 12)
    clips = {
        f"c{n}": {
            "frames_scored": 5, "frames_without_fixations": 0,
            "scores": {name: {"nss": base[n] + offset, "cc": 0.2 + offset} for name, offset in values.items()},
        }
        for n in range(12)
    }  # fmt: skip
    return {
        "schema": 2, "protocol": protocol, "about": "made up", "stride": 1, "frames_scored": 60, "frames_without_fixations": 0,
        **statistics.summarise(clips, list(values), PROTOCOLS[protocol]), "clips": clips,
    }  # fmt: skip


ORIGIN = Provenance(
    name="mini", license="BSD-2-Clause-Patent", corpus="dhf1k:A + images:B", corpus_license="CC BY 4.0; not stated",
    corpus_chain=(("dhf1k:A", "CC BY 4.0"), ("images:B", "not stated")), teacher="unisal (unisal, w.pth)",
    teacher_license="Apache-2.0", teacher_chain=(("teacher unisal, weights", "Apache-2.0"),), restricted=("corpus images:B",),
    train_clips=("001", "002"), val_clips=("003",), held_out=True, fps=25.0, parameters=23_566, working_size=(32, 64),
    tau_seconds=(0.05, 0.25, 2.0), step=12, chosen=True, recipe="[run]\nname = \"mini\"\n",
)  # fmt: skip

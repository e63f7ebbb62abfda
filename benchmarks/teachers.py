"""Cost of each teacher: milliseconds and multiply-accumulates per labelled frame, random weights.

    python benchmarks/teachers.py [TEACHER ...] [--device auto|cpu|cuda] [--precision auto|fp32|bf16] [--every N]
                                  [--windows N] [--repeats N] [--threads N] [--onnx FILE] [--json]

The two halves of labelling are timed as `distill label` calls them: `prepare`, one 640x360 frame at a time in one thread, and
`infer`, a clip of `--windows` windows on the device, logits back on the CPU, the best of `--repeats`. TASED-Net and SalFoM
need one window per labelled frame, here every `--every`-th; a window of ViSAGE labels all its frames.

GMAC are counted while the same clip is labelled once before, by torch.utils.flop_counter: matrix products, convolutions and
attention, FLOP = 2 multiply-accumulates. What windows share, such as TASED-Net's first layer, counts once per batch, so the
figure falls a little with larger ones. ONNX files are counted from their graph. GMAC/s is GMAC over the time of `infer`.
"""

import argparse
import dataclasses
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill.run.errors import UsageError
from distill.run.machine.device import choose, set_threads
from distill.teachers import Inference, Teacher
from distill.teachers.windows import MOST_WINDOWS, PAIR

PEER = Path(__file__).resolve().parents[2] / "shared" / "peers" / "saliency_student_v2.onnx"
FRAME = (360, 640)


@dataclass(frozen=True)
class Case:
    """A teacher to measure: how it is built, and the clip that one window of it labels."""

    build: Callable[[torch.device, Inference, argparse.Namespace], Teacher]
    fps: float
    frames: int


def visage(size: str) -> Callable[[torch.device, Inference, argparse.Namespace], Teacher]:
    def build(device: torch.device, how: Inference, options: argparse.Namespace) -> Teacher:
        from distill.teachers.visage import Visage, VisageConfig, random_net

        config = VisageConfig() if size == "tiny" else VisageConfig.released(size)
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        return Visage(random_net(config, dtype=dtype, device=device).eval(), config, device=device, how=how)

    return build


def unisal(device: torch.device, how: Inference, options: argparse.Namespace) -> Teacher:
    from distill.teachers.unisal import Unisal

    return Unisal.random(0, device=device)


def tased(device: torch.device, how: Inference, options: argparse.Namespace) -> Teacher:
    from distill.teachers.tased import Tased, TasedConfig

    return Tased.random(0, device, TasedConfig(every=options.every), how=how)


def salfom(size: str) -> Callable[[torch.device, Inference, argparse.Namespace], Teacher]:
    def build(device: torch.device, how: Inference, options: argparse.Namespace) -> Teacher:
        from distill.teachers.salfom import Salfom, SalfomConfig
        from distill.teachers.umt import UmtConfig

        return Salfom.random(0, device, SalfomConfig(UmtConfig.of(size), every=options.every), how=how)

    return build


def onnx_file(device: torch.device, how: Inference, options: argparse.Namespace) -> Teacher:
    from distill.labels.onnx_teacher import OnnxTeacher

    return OnnxTeacher(options.onnx)


CASES = {
    "visage tiny": Case(visage("tiny"), 8, 8),
    "visage S": Case(visage("S"), 5, 20),
    "visage B": Case(visage("B"), 5, 20),
    "visage L": Case(visage("L"), 5, 20),
    "unisal": Case(unisal, 30, 10),
    "tased": Case(tased, 30, 1),
    "salfom B": Case(salfom("B"), 30, 1),
    "salfom L": Case(salfom("L"), 30, 1),
    "onnx": Case(onnx_file, 30, 4),
}
SLOW_ON_CPU = ("visage B", "visage L")  # minutes; measured only if named


@dataclass(frozen=True)
class Row:
    """The measured cost of one teacher."""

    teacher: str
    parameters: int
    frames: int  # of the clip
    prepare_ms: float  # per frame, median
    infer_ms: float  # per frame
    gmac: float  # per frame
    gmac_per_s: float


class InLine:
    """Runs the windows of a clip in the calling thread, where the counter can see them, as many at once as `BatchSize`."""

    def __init__(self, device: torch.device, windows: int) -> None:
        self.device, self.windows = device, windows

    def passes(self, step: Callable[[Tensor], Tensor], waiting: Tensor) -> Iterator[Tensor]:
        for batch in waiting.split(self.windows):
            yield from step(batch)


def attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs by shapes `[B, heads, tokens, width]`: torch's own table lacks the CPU's operator."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def convolution_on_cpu(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs by shapes: every output value takes one multiply-add for each weight of its channel."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def count_work(teacher: Any, inputs: Any, fps: float) -> tuple[float, int]:
    """Multiply-accumulates of labelling a prepared clip, which this does, and the teacher's parameters."""
    if hasattr(teacher, "predictor"):
        import onnx

        from distill.export.cost import count

        cost = count(onnx.load(teacher.predictor.name), *inputs.shape[1:3])
        return float(len(inputs) * cost.macs), cost.parameters
    batch = getattr(teacher, "batch", None)
    if batch is not None:
        teacher.batch = InLine(teacher.device, PAIR if teacher.device.type == "cpu" else MOST_WINDOWS)
    more = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_on_cpu,
        torch.ops.aten.mkldnn_convolution: convolution_on_cpu,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        teacher.infer(inputs, fps)
    if batch is not None:
        teacher.batch = batch
    return counter.get_total_flops() / 2, sum(parameter.numel() for parameter in teacher.net.parameters())


def measure(name: str, case: Case, device: torch.device, how: Inference, options: argparse.Namespace) -> Row:
    teacher = case.build(device, how, options)
    windows = options.windows or (PAIR * torch.get_num_threads() if device.type == "cpu" else 64)
    count = windows * case.frames
    if name.startswith(("tased", "salfom")):
        count = (windows - 1) * options.every + 1
    frames = np.random.default_rng(0).integers(0, 256, (min(count, 32), *FRAME, 3), dtype=np.uint8)
    pieces, taken = [], []
    for frame in frames:
        started = time.perf_counter()
        pieces.append(teacher.prepare(frame[None]))
        taken.append(time.perf_counter() - started)
    inputs = torch.cat(pieces)[torch.arange(count) % len(frames)]
    if device.type == "cuda":
        inputs = inputs.pin_memory()
    macs, parameters = count_work(teacher, inputs, case.fps)
    if device.type == "cuda":
        teacher.infer(inputs, case.fps)  # finds the batch that fits
    rounds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        logits = teacher.infer(inputs, case.fps)
        rounds.append(time.perf_counter() - started)
    assert len(logits) == count and torch.isfinite(logits).all(), "random weights gave no finite logits"
    seconds = min(rounds)
    return Row(
        teacher=f"onnx: {options.onnx.name}" if name == "onnx" else name,
        parameters=parameters,
        frames=count,
        prepare_ms=1e3 * statistics.median(taken),
        infer_ms=1e3 * seconds / count,
        gmac=macs / 1e9 / count,
        gmac_per_s=macs / 1e9 / seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="*", metavar="TEACHER", help=f"of {', '.join(map(repr, CASES))}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--every", type=int, default=1, help="of tased and salfom: frames from one window to the next")
    parser.add_argument("--windows", type=int, default=0, help="in the clip; 0: two per thread on the CPU, 64 on CUDA")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of torch, on the CPU; 0: as `distill` chooses")
    parser.add_argument("--onnx", type=Path, default=PEER, help="default: ../shared/peers/saliency_student_v2.onnx")
    parser.add_argument("--json", action="store_true", help="one object on standard output, nothing else")
    options = parser.parse_args()
    if unknown := [name for name in options.teachers if name not in CASES]:
        parser.error(f"unknown teacher {unknown[0]!r}; known are {', '.join(map(repr, CASES))}")
    if "onnx" in options.teachers and not options.onnx.is_file():
        parser.error(f"{options.onnx} does not exist; name an ONNX file with --onnx")

    try:
        device, _ = choose(options.device)
    except UsageError as error:
        parser.error(str(error))
    set_threads(options.threads)
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    names = options.teachers or [
        name
        for name in CASES
        if (name != "onnx" or options.onnx.is_file()) and (device.type == "cuda" or name not in SLOW_ON_CPU)
    ]
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "every": options.every,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if not options.json:
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print(f"{'teacher':<32} {'params':>9} {'frames':>6} {'prepare':>8} {'infer':>10} {'GMAC':>9} {'GMAC/s':>8}")
        print(f"{'':<32} {'M':>9} {'':>6} {'ms/frame':>8} {'ms/frame':>10} {'per frame':>9}")
    rows = []
    for name in names:
        row = measure(name, CASES[name], device, Inference(precision=precision), options)
        rows.append(row)
        if not options.json:
            print(
                f"{row.teacher:<32} {row.parameters / 1e6:>9.3f} {row.frames:>6} {row.prepare_ms:>8.2f} "
                f"{row.infer_ms:>10.2f} {row.gmac:>9.3f} {row.gmac_per_s:>8,.0f}",
                flush=True,
            )
    if options.json:
        print(json.dumps({**about, "teachers": [dataclasses.asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()

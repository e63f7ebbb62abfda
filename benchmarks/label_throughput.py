"""Labelling throughput of ViSAGE, and its share of the device's peak: S to 6B, random weights.

    python benchmarks/label_throughput.py [--sizes S B L 1B 6B] [--device auto|cpu|cuda] [--precision auto|fp32|bf16]
                                          [--experts 1|2] [--compile] [--batch N] [--seconds 20]

`Visage.infer` is timed, the accelerator's half of labelling, as `distill label` calls it: prepared uint8 frames from (pinned)
memory to the device, windows, normalisation, a pass of the trunk per expert with its LoRA, the experts, fusion, and the
logits back on the CPU. The other half, decoding and `prepare`, runs ahead in threads; the line on `prepare` says how many
frames a second one of them shrinks.

The ceiling is the best of a few large matrix products in the same precision, measured in the same run. A model's work is
counted from its configuration (`window_flops`; tests/labels/test_label_throughput.py compares it with torch's own counter): matrix
products and convolutions, one multiply-accumulate being two FLOPs. Per window of T frames, with G = T g² patches, N = G + 1
tokens, width D, MLP width M and L blocks, a pass of the trunk is

    2 G 3p² D  +  L (2 N (4 D² + 2 D M)  +  4 N² D)             and its LoRA of rank r   2 r (G (3p² + D) + L N (8 D + 2 M))

which is 76.5 TFLOP for 6B. Norms, activations and fusion count as nothing.
"""

import argparse
import gc
import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import torch

from distill.run.errors import UsageError
from distill.run.machine.device import choose, set_threads
from distill.teachers import Inference
from distill.teachers.visage import Visage, VisageConfig, VisageNet, random_net, resize
from distill.teachers.windows import PAIR

SIZES = ("S", "B", "L", "1B", "6B")
CPU_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (5120, 768, 3072))
CUDA_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (40968, 3200, 12800))
TARGET = 0.5


def window_flops(config: VisageConfig) -> float:
    """FLOPs of one window through the whole ensemble."""
    trunk = config.trunk
    patches, width = trunk.frames * trunk.grid**2, trunk.width
    tokens, blocks, pixels = patches + 1, config.taps[-1] + 1, 3 * trunk.patch**2
    linear = 4 * width**2 + 2 * width * trunk.mlp_width
    one_pass = 2 * patches * pixels * width + blocks * (2 * tokens * linear + 4 * tokens**2 * width)
    passes = len(config.experts) if config.lora_rank or not config.shared_trunk else 1
    branches = 8 * width + 2 * trunk.mlp_width
    lora = 2 * config.lora_rank * (patches * (pixels + width) + blocks * tokens * branches)
    return passes * (one_pass + lora) + sum(expert_flops(config, kind) for kind in config.experts)


def expert_flops(config: VisageConfig, kind: int) -> float:
    """FLOPs of one expert's reducers and decoder, per window: weights of each convolution times where it is applied.

    A head's first convolution is counted as `EnlargingConv` computes it; on the enlarged features, as in the released code, it
    would be about thirty times as much for expert 1, twenty for expert 2.
    """
    frames, width = config.trunk.frames, config.trunk.width
    side, px = 3 * config.trunk.grid, config.out_px
    patches, pixels = frames * config.trunk.grid**2, frames * px**2
    reduced, embed = config.reduced_width, config.embed_width
    res, res_of_two = 27 * 2 * embed**2, 27 * 3 * embed**2 + 2 * embed**2
    per_patch, once = 4 * width * reduced, 0
    if kind == 1:
        head = config.head_width_1
        per_patch += 3 * reduced * embed + res + 2 * res_of_two + 9 * embed * head
        per_frame, once = 3 * reduced**2 + reduced * embed, 2 * width * embed
    else:
        head = config.head_width_2
        per_patch += 4 * reduced * embed + 3 * res + 3 * res_of_two + 27 * embed * head + 9 * head**2
        per_frame = 3 * embed + embed**2
    per_frame += head * side * px * (side + px)
    return 2.0 * (patches * per_patch + frames * per_frame + pixels * 9 * head + once)


def ceiling(device: torch.device, dtype: torch.dtype, seconds: float) -> tuple[float, tuple[int, int, int]]:
    """The most FLOPs per second that a matrix product reaches, and its shape (rows, inner, columns)."""
    best = (0.0, (0, 0, 0))
    for rows, inner, columns in CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        for _ in range(3):
            a @ b
        synchronise(device)
        started, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds:
            for _ in range(10 if device.type == "cuda" else 1):
                a @ b
                count += 1
            synchronise(device)
        best = max(best, (2.0 * rows * inner * columns * count / passed, (rows, inner, columns)))
    return best


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Throughput:
    """What one model reached."""

    size: str
    parameters: int
    windows: int  # per pass
    frames_per_second: float
    flops_per_frame: float
    flops_per_second: float
    gpu_gib: float | None  # the most memory that was allocated

    def row(self, most: float) -> str:
        """A row of the table; `most`: the ceiling."""
        memory = "-" if self.gpu_gib is None else f"{self.gpu_gib:.1f} GiB"
        return (
            f"{self.size:>4} {self.parameters / 1e6:>9,.0f} M {self.windows:>6} {self.frames_per_second:>10.2f} "
            f"{self.flops_per_frame / 1e12:>8.3f} {self.flops_per_second / 1e12:>9.3f} {self.flops_per_second / most:>9.0%} {memory:>10}"
        )


def measure(size: str, config: VisageConfig, device: torch.device, options: argparse.Namespace) -> Throughput | str:
    """The throughput of one model, or why there is none."""
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    with torch.device("meta"):
        net = VisageNet(config)
    parameters = sum(p.numel() for p in net.parameters())
    needed, free = parameters * dtype.itemsize, free_memory(device)
    if needed > 0.9 * free:
        return f"{size:>4}  skipped: {needed / 2**30:.1f} GiB of weights, {free / 2**30:.1f} GiB free on {device}"
    how = Inference(precision=options.precision, compile=options.compile, batch=options.batch)
    net = random_net(config, dtype=dtype, device=device).eval()
    teacher = Visage(net, config, device=device, how=how)
    windows = 1

    def clip() -> torch.Tensor:
        shape = (windows * config.trunk.frames, 3, config.trunk.px, config.trunk.px)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        return frames.pin_memory() if device.type == "cuda" else frames

    try:
        if device.type == "cuda":
            if not options.batch:  # a given batch needs no pass of one window, for which everything would be compiled too
                teacher.infer(clip(), config.sample_fps)  # finds the batch
            torch.cuda.reset_peak_memory_stats(device)
            windows = options.windows or 4 * teacher.batch.windows
            teacher.infer(inputs := clip(), config.sample_fps)  # warms up, compiles
        else:
            windows = options.windows or PAIR * torch.get_num_threads()
            inputs = clip()
            if options.compile:
                teacher.infer(inputs, config.sample_fps)
        started, count = time.perf_counter(), 0
        while not count or time.perf_counter() - started < options.seconds:
            logits = teacher.infer(inputs, config.sample_fps)
            count += 1
        seconds = (time.perf_counter() - started) / count
    except torch.OutOfMemoryError:
        return f"{size:>4}  skipped: not even one window fits on {device} beside {needed / 2**30:.1f} GiB of weights"
    assert torch.isfinite(logits).all(), "random weights gave no finite logits"
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    batch = teacher.batch.windows if device.type == "cuda" else min(PAIR, windows)
    frames, flops = config.trunk.frames, window_flops(config)
    return Throughput(size, parameters, batch, windows * frames / seconds, flops / frames, flops * windows / seconds, memory)


def prepare_rate() -> float:
    """Frames of 640x360 that one thread shrinks per second."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 360, 640, 3), np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < 1:
        resize(frames, 224)
        count += len(frames)
    torch.set_num_threads(threads)
    return count / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=("tiny", *SIZES), default=SIZES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--experts", type=int, choices=(1, 2), default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=0, help="windows per pass; 0: as `distill label` chooses")
    parser.add_argument("--seconds", type=float, default=20.0, help="at least, per size")
    parser.add_argument("--windows", type=int, default=0, help="of the clip; 0: four batches, on the CPU a pair per thread")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    options = parser.parse_args()
    try:
        device, reason = choose(options.device)
    except UsageError as error:
        parser.error(str(error))
    if options.precision == "auto":
        options.precision = "bf16" if device.type == "cuda" else "fp32"
    threads = set_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    settings = [options.precision, "compiled" * options.compile]
    settings.append(f"{options.experts} expert{'s' * (options.experts > 1)}")
    print(f"device: {reason}, {threads} CPU threads, {platform.machine()}; torch {torch.__version__}")
    print(f"labels: {', '.join(filter(None, settings))}")
    print(f"prepare: {prepare_rate():,.0f} frames of 640x360 a second in one thread")
    most, shape = ceiling(device, dtype, 1.0)
    print(f"ceiling: {most / 1e12:.3f} TFLOP/s, product of {shape[0]}x{shape[1]} and {shape[1]}x{shape[2]}")
    print("size  parameters  batch   frames/s  TF/frame   TFLOP/s  of ceiling    memory")
    for size in options.sizes:
        config = VisageConfig.released(size, experts=(1, 2)[: options.experts])
        found = measure(size, config, device, options)
        print(found if isinstance(found, str) else found.row(most), flush=True)
        if options.compile:  # the compiler and the modules' reference cycles keep the weights
            torch.compiler.reset()
            gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        print(f"target on one modern GPU: {TARGET:.0%} of the ceiling for L and larger")


if __name__ == "__main__":
    main()

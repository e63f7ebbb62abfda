"""The parts of gpu.py: one function for each, which runs in a process of its own and reports what it finds as soon as it knows.

machine          card, driver, versions; the fastest matrix products in bf16, TF32 and float32
unisal           its maps on the GPU against the CPU's, and frames per second
label-SIZE       ViSAGE's labelling throughput, random weights, two experts; -compiled: through torch.compile
train            the student: losses against the CPU's, steps per second at 32 and 512 frames a step, stop and resume
torchrun         a job of one process with NCCL
tune-SIZE        steps of ViSAGE's fine-tuning with gradient checkpointing, random weights
release          recipes/release.toml on what data is there, for the time that is left
"""

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import gpu
import label_throughput
import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.corpora import Clip
from distill.corpora.video import probe, read_frames
from distill.recipe.files import load_recipe
from distill.recipe.keys import Teach, Train
from distill.run import engine
from distill.run.directory import RunDir
from distill.run.errors import Interrupted
from distill.run.files import ArrayFile, read_json
from distill.run.machine.collectives import process_group, sum_over_ranks
from distill.run.machine.device import choose
from distill.run.machine.parallel import job
from distill.run.progress import Narrator
from distill.run.stages import Context
from distill.teachers.frames import resize
from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.unisal import Unisal
from distill.teachers.unisal import teacher as unisal_teacher
from distill.teachers.visage import VisageConfig, random_net
from distill.training import student
from distill.training.batches import Sample
from distill.training.loop import Moment, TrainingContext
from distill.training.teachers import fine_tune
from distill.training.teachers.visage_windows import WindowClip

TINY = (
    "student.height=32", "student.width=64", "student.widths=[4,8,8,12,16]", "student.state_channels=8", "synthetic.clips=2",
    "synthetic.frames=12", "synthetic.height=64", "synthetic.width=96", "train.frames=4", "train.batch=2", "train.window=4",
)  # fmt: skip

TINY_VISAGE = VisageConfig(
    trunk=InternVideo2Config(width=16, heads=2, mlp_width=16, frames=4, px=16, patch=8), lora_rank=4, out_px=12
)


@dataclass(frozen=True)
class Part:
    """What a part is told."""

    name: str
    device: torch.device
    ends: float  # when it is stopped, on the clock of time.monotonic
    out: Path
    shared: Path

    @property
    def tiny(self) -> bool:
        """A rehearsal on a CPU."""
        return self.device.type == "cpu"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def say(self, **values: object) -> None:
        """Reports results: rounded numbers, with their units in the names."""
        gpu.write(self.out, self.name, **{n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in values.items()})


def run(name: str, device: str, seconds: float, out: Path, shared: Path) -> None:
    """Runs a part, here and now."""
    part = Part(name, choose(device)[0], time.monotonic() + seconds, out, shared)
    if torch.__version__ < "2.12":  # it has no Lanczos filter; for times, and to compare devices, another does as well
        unisal_teacher.resize = lambda clip, height, width, mode: resize(clip, height, width, "bicubic")
    kind, _, rest = name.partition("-")
    PARTS[kind](part, *rest.split("-")) if rest else PARTS[kind](part)


def machine(part: Part) -> None:
    part.say(python=platform.python_version(), torch=torch.__version__, cpus=len(os.sched_getaffinity(0)))
    if not part.tiny:
        card = torch.cuda.get_device_properties(part.device)
        shown = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        driver = subprocess.run(shown, capture_output=True, text=True).stdout.strip() if shutil.which("nvidia-smi") else "?"
        part.say(
            card=card.name,
            gib=card.total_memory / 2**30,
            driver=driver,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("fp32", torch.float32, False), ("tf32", torch.float32, True)):
        if tf32 and part.tiny:
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        rate, shape = label_throughput.ceiling(part.device, dtype, 0.05 if part.tiny else 0.5)
        part.say(ceiling=name, tflops=rate / 1e12, shape=shape)
    torch.backends.cuda.matmul.allow_tf32 = False
    for size, heads, width in (("L", 16, 64), ("1B", 16, 88), ("6B", 25, 128)) if not part.tiny else (("tiny", 2, 8),):
        part.say(attention=size, heads=heads, head_width=width, tflops=_attention(part.device, heads, width))


def _attention(device: torch.device, heads: int, width: int) -> dict[str, float]:
    """TFLOP/s of scaled dot-product attention on a batch of ViSAGE's windows: as torch chooses its kernel, and by each kernel."""
    tokens, dtype = (5121, torch.bfloat16) if device.type == "cuda" else (64, torch.float32)
    q, k, v = (torch.randn(8, tokens, heads, width, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
    kernels = {"chosen": None, "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    found = {}
    for name, kernel in kernels.items() if device.type == "cuda" else [("chosen", None)]:
        with sdpa_kernel(kernel) if kernel else nullcontext():
            for repeats in (2, 10):  # the first warms up
                label_throughput.synchronise(device)
                started = time.perf_counter()
                for _ in range(repeats):
                    functional.scaled_dot_product_attention(q, k, v)
                label_throughput.synchronise(device)
                found[name] = round(4 * 8 * tokens**2 * heads * width * repeats / (time.perf_counter() - started) / 1e12, 4)
    return found


def unisal(part: Part) -> None:
    """Maps of whole clips, on the device and on the CPU, and the whole way from uint8 frames to logits on the CPU, timed."""
    weights = part.shared / "weights" / "unisal" / "weights_best.pth"

    def teacher(device: str | torch.device) -> Unisal:
        return Unisal.load(weights, device=device) if weights.exists() else Unisal.random(0, device=device)

    there, here = teacher(part.device), teacher("cpu")
    part.say(weights=weights.name if weights.exists() else "random")
    for path, frames in _clips(part):
        count, fps = len(frames), 30.0 if path is None else probe(path).fps
        prepared = here.prepare(frames)
        prepared = prepared if part.tiny else prepared.pin_memory()
        logits = there.infer(prepared, fps)
        seconds = []
        for _ in range(1 if part.tiny else 5):
            started = time.perf_counter()
            again = there.infer(prepared, fps)
            seconds.append(time.perf_counter() - started)
        checked = here.infer(prepared, fps)
        part.say(
            clip="noise" if path is None else path.name, frames=count, size=list(prepared.shape[1:3]),
            frames_per_second=count / statistics.median(seconds), largest_difference_of_maps=_difference(logits, checked),
            same_again=bool(torch.equal(logits, again)),
        )  # fmt: skip


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.sigmoid() - b.sigmoid()).abs().max())


def _clips(part: Part) -> Iterator[tuple[Path | None, np.ndarray]]:
    paths = sorted((part.shared / "data" / "clips").glob("*.mp4"))
    most = 4 if part.tiny else 160
    for path in paths[: 1 if part.tiny else 3]:
        yield path, np.stack(list(islice(read_frames(path), most)))
    if not paths:
        yield None, np.random.default_rng(0).integers(0, 256, (most, 144, 256, 3), np.uint8)


def label(part: Part, size: str, compiled: str = "") -> None:
    if compiled and part.tiny:
        part.say(skipped="torch.compile is for GPUs")
        return
    batch = _found(part.out, f"label-{size}", "windows_per_pass") or 8
    options = Namespace(
        precision="fp32" if part.tiny else "bf16", compile=bool(compiled), batch=batch if compiled else 0,
        windows=2 * batch if size == "6B" else 0,  # of 6B, four batches would take ten seconds
        seconds=0.0 if part.tiny else 4.0,
    )  # fmt: skip
    config, started = TINY_VISAGE if part.tiny else VisageConfig.released(size), time.perf_counter()
    found = label_throughput.measure(size, config, part.device, options)
    if isinstance(found, str):
        part.say(skipped=found.strip())
        return
    most = _found(part.out, "machine", "tflops", ceiling=options.precision)
    part.say(
        precision=options.precision, parameters_millions=found.parameters / 1e6, windows_per_pass=found.windows,
        frames_per_second=found.frames_per_second, tflops=found.flops_per_second / 1e12,
        share_of_ceiling=found.flops_per_second / 1e12 / most if most else None, gib=found.gpu_gib,
        seconds_with_start=time.perf_counter() - started,
    )  # fmt: skip


def _found(out: Path, part: str, name: str, **where: object) -> Any:
    """A value that an earlier part reported, or None."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    fitting = [line for line in lines if line.items() >= ({"part": part} | where).items() and name in line]
    return fitting[-1][name] if fitting else None


@contextmanager
def _labelled(part: Part) -> Iterator[Context]:
    """A run on the procedural corpus up to its labels, which are UNISAL's with random weights: made by the stages themselves."""
    sets = TINY if part.tiny else ("synthetic.clips=24",)
    sets = ("teacher.name=unisal", 'teacher.weights=["unisal=random"]', f"run.device={part.device}", *sets)
    with tempfile.TemporaryDirectory() as folder:
        recipe, narrator = load_recipe(None, sets), Narrator()
        with RunDir.create(Path(folder) / "run", recipe) as directory:
            engine.carry_out(directory, recipe, narrator, "label")
            yield Context(directory, recipe, narrator)


@dataclass
class Stop:
    """A narrator's `stop`: after `steps` steps, or when the clock of time.monotonic says `ends`. A training asks after every step."""

    steps: float = math.inf
    ends: float = math.inf

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps <= 0 or time.monotonic() >= self.ends


def _train(context: Context, device: torch.device, folder: str, config: Train, stop: Stop | None = None) -> dict[str, Any]:
    """Trains the student in a folder of the run. `losses`, one for each step so far; beside them the facts, if it was not stopped."""
    cached = context.cached(context.corpus.train)
    samples = [Sample(c, ArrayFile(context.run / "labels" / f"{c.clip.id}.npy")) for c in cached]
    path = context.run / folder
    path.mkdir(exist_ok=True)
    narrator = Narrator(quiet=True, stop=stop) if stop else Narrator(quiet=True)
    facts: dict[str, Any] = {}
    with suppress(Interrupted):
        where = TrainingContext(path, device, 0, narrator)
        facts = student.train(samples, [], config, context.recipe.student, where, path / "metrics.jsonl")
    return facts | {"losses": _losses(path / "metrics.jsonl")}


def _losses(log: Path) -> list[float]:
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def _relative(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference, relative to `b`."""
    assert len(a) == len(b), (len(a), len(b))
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def train(part: Part) -> None:
    with _labelled(part) as context:
        recipe, cpu = replace(context.recipe.train, validate_every=10**6, checkpoint_every=10**6), torch.device("cpu")
        both = replace(recipe, steps=8 if part.tiny else 40, frames_first=0.5)
        for phase, config in (("frames", replace(both, frames_first=1.0)), ("clips", replace(both, frames_first=0.0))):
            here = _train(context, cpu, f"cpu-{phase}", config, Stop(4))["losses"]
            there = _train(context, part.device, f"device-{phase}", config, Stop(4))["losses"]
            part.say(phase=phase, first_losses=there, largest_relative_difference_to_cpu=_relative(there, here))
        whole = _train(context, part.device, "whole", both)["losses"]
        for steps in (2, both.steps // 2 + 2, both.steps):  # stopped in the first phase, then in the second
            resumed = _train(context, part.device, "resumed", both, Stop(steps - len(_log(context, "resumed"))))["losses"]
        part.say(steps=len(whole), resumed_steps=len(resumed), resume_largest_relative_difference=_relative(resumed, whole))
        for frames, streams in ((32, 2), (512, 32)) if not part.tiny else ((4, 1), (8, 2)):
            sizes = {"frames": frames, "batch": streams, "window": frames // streams}
            for phase, first in (("frames", 1.0), ("clips", 0.0)):
                config = replace(recipe, frames_first=first, **sizes)
                _train(context, part.device, f"warm-{frames}-{phase}", replace(config, steps=2 if part.tiny else 10))
                if not part.tiny:
                    torch.cuda.reset_peak_memory_stats(part.device)
                steps = 3 if part.tiny else 60 if frames == 32 else 20
                facts = _train(context, part.device, f"timed-{frames}-{phase}", replace(config, steps=steps))
                part.say(
                    phase=phase, frames_per_step=frames, steps_per_second=1 / facts["seconds_per_step"],
                    share_in_model=facts["share_in_model"], gib=_gib(part),
                )  # fmt: skip


def _log(context: Context, folder: str) -> list[float]:
    log = context.run / folder / "metrics.jsonl"
    return _losses(log) if log.exists() else []


def _gib(part: Part) -> float | None:
    return None if part.tiny else torch.cuda.max_memory_allocated(part.device) / 2**30


def torchrun(part: Part) -> None:
    """A small run to the end of its training, by a plain process and by a torchrun job of one process."""
    here = _small_run(part)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", gpu.__file__]
    places = ["--device", str(part.device), "--out", str(part.out), "--shared", str(part.shared)]
    subprocess.run([*command, "--only", "rank", "--seconds", f"{part.left:.0f}", *places], check=True)
    there = _found(part.out, "rank", "losses")
    part.say(steps=len(here), largest_relative_difference=_relative(there, here))


def rank(part: Part) -> None:
    """The process of the torchrun job."""
    losses = _small_run(part)
    with job(), process_group(part.device):
        used = torch.distributed.get_backend_config() if torch.distributed.is_initialized() else "none"
        one = sum_over_ranks(torch.ones(1, device=part.device))
    part.say(losses=losses, process_group=str(used), sum_of_one=float(one))


def _small_run(part: Part) -> list[float]:
    sets = ("teacher.name=unisal", 'teacher.weights=["unisal=random"]', f"run.device={part.device}", "train.steps=6", *TINY)
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(None, sets)
        with RunDir.create(Path(folder) / "run", recipe) as directory:
            engine.carry_out(directory, recipe, Narrator(), "train")
            return _losses(directory / "metrics.jsonl")


def tune(part: Part, size: str) -> None:
    """Steps of both stages, in bf16 on a GPU: forward, backward and update, without validation and files."""
    small = {
        "frames": 2,
        "px": 28,
        "out_px": 32,
        "reduced_width": 32,
        "embed_width": 32,
        "head_width": 32,
        "norm_groups": 4,
        "rank": 4,
    }
    batch, steps = (1, 2) if part.tiny else (4, 4)
    config = Teach(finetune=True, stage1_steps=steps, stage2_steps=steps, batch=batch, **(small if part.tiny else {}))
    shape = fine_tune.layout("S" if part.tiny else size, config)
    precision, dtype = ("fp32", torch.float32) if part.tiny else ("bf16", torch.bfloat16)
    trunk = random_net(shape, dtype=dtype, device=part.device).trunk(0)
    clips = [_window_clip(n, shape.trunk.frames, shape.trunk.px, shape.out_px) for n in range(batch)]
    while True:
        where = TrainingContext(part.out, part.device, 0, Narrator(quiet=True))
        task = fine_tune.TwoStages(clips, [], config, shape, trunk, [None, None], precision, where)
        try:
            for stage in (1, 2):
                seconds, losses = _stage(part, task, stage, steps)
                part.say(
                    stage=stage, precision=precision, windows_per_step=batch, windows_per_pass=config.at_once or batch,
                    seconds_per_step=statistics.median(seconds[1:]), losses=losses, gib=_gib(part),
                )  # fmt: skip
            return
        except torch.OutOfMemoryError:
            at_once = (config.at_once or batch) // 2
            if not at_once:
                raise
            part.say(out_of_memory=f"with {config.at_once or batch} windows per pass")
        config, task = replace(config, at_once=at_once), None
        torch.cuda.empty_cache()


def _stage(part: Part, task: fine_tune.TwoStages, stage: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of a stage."""
    optimizer, seconds, losses = task.enter(stage - 1), [], []
    if not part.tiny:
        torch.cuda.reset_peak_memory_stats(part.device)
    for step in range(steps):
        at = Moment((stage - 1) * steps + step, stage - 1, step)
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        values = task.backward(task.batch(task.draw(at), at), at).values
        optimizer.step()
        losses.append(sum(value.item() for value in values.values()))  # waits for the GPU
        seconds.append(time.perf_counter() - started)
    return seconds, losses


def _window_clip(number: int, frames: int, px: int, out_px: int) -> WindowClip:
    """A clip of noise, with a blob and one fixation in each frame, as the cache holds clips."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:out_px, :out_px]
    at = rng.integers(out_px // 4, 3 * out_px // 4, (frames, 2))
    density = np.stack([255 * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * (out_px / 10) ** 2)) for r, c in at]).astype(
        np.uint8
    )
    points = np.stack([np.arange(frames), at[:, 0], at[:, 1]], 1).astype(np.int32)
    clip = Clip(id=f"{number:03d}", video="none", frames=frames, height=px, width=px, fps=5.0, annotated_frames=frames)
    return WindowClip(clip, 1, rng.integers(0, 256, (frames, 3, px, px), dtype=np.uint8), density, points)


def release(part: Part) -> None:
    """The release's recipe on those of its corpora that are there, as far as the time lets it; what it reached is copied to `out`."""
    recipe = load_recipe(gpu.ROOT / "recipes" / "release.toml")
    names = recipe.corpus.name.split(",")
    roots = [part.shared / Path(root).relative_to(gpu.ROOT.parent / "shared") for root in recipe.corpus.root]
    there = [i for i, root in enumerate(roots) if root.is_dir() and not (part.tiny and "photos" not in names[i])]
    files = [part.shared / "weights" / "unisal" / weights.partition("=")[2] for weights in recipe.teacher.weights]
    if not there or not all(file.exists() for file in files):
        part.say(skipped=f"the recipe's corpora and UNISAL's weights are not in {part.shared}")
        return
    labels = [f"{weights.partition('=')[0]}={file}" for weights, file in zip(recipe.teacher.weights, files, strict=True)]
    kept = {names[i].partition(":")[0] for i in there}
    recipe = replace(
        recipe,
        run=replace(recipe.run, device=str(part.device)),
        corpus=replace(recipe.corpus, name=",".join(names[i] for i in there), root=tuple(str(roots[i]) for i in there),
                       skip=tuple(clip for clip in recipe.corpus.skip if clip.partition(".")[0] in kept)),
        teacher=replace(recipe.teacher, weights=tuple(labels), parts=tuple(p for p in recipe.teacher.parts if p.partition("=")[0] in kept)),
        train=replace(recipe.train, steps=4, frames=8, batch=2) if part.tiny else recipe.train,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, RunDir.create(Path(folder) / "run", recipe) as directory:
        end = "eval"
        try:
            engine.carry_out(directory, recipe, Narrator(stop=Stop(ends=part.ends - 12)), "eval")
        except Interrupted as stopped:
            end = f"stopped: {stopped}"
        losses = _losses(directory / "metrics.jsonl") if (directory / "metrics.jsonl").exists() else []
        for name in ("best.pt", "last.pt"):
            if (directory / "checkpoints" / name).exists():
                shutil.copyfile(directory / "checkpoints" / name, part.out / f"release-{name}")
                break
        stages = {name: round(stage["seconds"], 1) for name, stage in directory.manifest["stages"].items()}
        corpus = read_json(directory / "corpus.json") if (directory / "corpus.json").exists() else {"clips": []}
        shown = ("val", "seconds_per_step", "share_in_model")
        part.say(
            corpora=recipe.corpus.name, clips=len(corpus["clips"]), frames=sum(clip["frames"] for clip in corpus["clips"]),
            seconds_by_stage=stages, steps=len(losses), last_losses=losses[-3:], ended=end,
            training={key: value for key, value in directory.manifest["stages"].get("train", {}).items() if key in shown},
        )  # fmt: skip


PARTS: dict[str, Callable[..., None]] = {
    "machine": machine, "unisal": unisal, "label": label, "train": train, "torchrun": torchrun, "rank": rank, "tune": tune,
    "release": release,
}  # fmt: skip

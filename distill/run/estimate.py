"""How long the stages of a run will take and how much disk they need, from a short probe of this machine and of the corpus.

    survey     headers of a few clips                      -> frames of the corpus
    probe      a few frames decoded, one training step     -> seconds for a frame
    estimate   both                                        -> seconds and bytes for each stage
    left       what a run has done already                 -> those that it has still to spend

Everything here is rough: within a factor of two where nothing else runs. A frame's place on disk is exact.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.corpora import Clip, find, parts_of
from distill.corpora.readers import images
from distill.corpora.video import read_frames, read_header
from distill.labels import members
from distill.labels.catalogue import Entry
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError
from distill.run.files import is_temporary
from distill.run.machine import device
from distill.run.machine.parallel import usable_cores
from distill.run.plan import ONLY_TESTS
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet
from distill.training.frames import to_twice

SAMPLED_CLIPS = 12  # whose headers are read; all others are taken to be as long as these
DECODED_CLIPS, DECODED_FRAMES = 3, 24
PROBE_FRAMES = 16  # of the training step
SCORING_SECONDS = 0.06
"""For a scored frame of 640x360 and all predictors, with the frames before it, on one core: measured at the usual stride of 5."""
LABEL_CELLS = {"unisal": 56 * 96, "tased": 56 * 96, "salfom": 56 * 56, "maps": 90 * 160, "onnx": 90 * 160}
"""Values of a label by teacher, as its network gives them for 16:9 video; and the most that is kept of maps."""
RELATIVE_SPEED, UNISAL_SPEED = 3.0, 5.0
"""Multiply-adds per second of a teacher, as a multiple of the student's in training. Measured in turns on two cores that had other
work, with one thread and with two: 2.1 to 4.5 of visage tiny, 4.2 to 8.2 of unisal. A guess of all others."""
H100_FRAMES = {"unisal": 2820.0, "visage L": 452.0, "visage 1B": 200.0, "visage 6B": 64.3}
"""Frames per second that one H100 labels, from frames that are decoded already; docs/measurements.md."""
H100_STEP = 0.0345, 0.00086
"""Seconds for a training step there of the student's usual size, and for each of its frames; fitted to the same page."""
FOLDERS = {"frames": "frames", "label": "labels"}
"""The folder that each stage fills, of those that need room on the disk."""


@dataclass(frozen=True)
class Survey:
    """How much there is: videos and stills together."""

    frames: int
    cached: int  # frames at the training rate
    annotated: float  # share of the clips
    pixels: float  # of a frame, mean
    sample: tuple[Path, ...]  # some videos


@dataclass(frozen=True)
class Speed:
    """Seconds for a frame on this machine, and multiply-adds per second in training (billions)."""

    decode: float
    cache: float
    train: float
    gmac: float
    on: str


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes by stage; a stage that is not there takes seconds, and hardly any room. `unknown`: stages whose time is not
    known."""

    frames: int
    seconds: dict[str, float]
    disk: dict[str, int]
    unknown: tuple[str, ...]
    on: str
    gpu: dict[str, float]  # seconds on one H100, as far as they follow from what was measured there; empty on a GPU


def survey(recipe: Recipe) -> Survey:
    """Counts the frames of a recipe's corpus, from headers. Raises UsageError where `find` does, where no clip is left, or no sampled
    clip opens."""
    options, rate = recipe.synthetic, recipe.train.sample_fps
    if recipe.corpus.name == "synthetic":
        total = options.clips * options.frames
        cached = options.clips * len(range(0, options.frames, max(1, round(options.fps / rate))))
        return Survey(total, cached, 1.0, options.height * options.width, ())
    found = [clip for _, clip in find(parts_of(recipe.corpus.name, recipe.corpus.root), recipe.corpus).values()]
    clips = [clip for clip in found if not (clip.side == "test" and recipe.corpus.split == "official")]
    if not clips:
        raise UsageError(ONLY_TESTS)
    stills, films = [c for c in clips if c.static], [c for c in clips if not c.static]
    facts = [fact for clip in _spread(films, SAMPLED_CLIPS) if (fact := _facts(clip, rate))]
    if films and not facts:
        raise UsageError("no video of the corpus opens")
    frames, cached, pixels = (sum(column) / len(facts) for column in zip(*facts, strict=True)) if facts else (0, 0, 640 * 360)
    some = _spread(clips, 10 * SAMPLED_CLIPS)
    annotated = sum(bool(clip.fixations) and Path(clip.fixations).exists() for clip in some) / len(some)
    sample = tuple(Path(c.video) for c in _spread([c for c in films if Path(c.video).is_file()], DECODED_CLIPS))
    return Survey(round(frames * len(films)) + len(stills), round(cached * len(films)) + len(stills), annotated, pixels, sample)


def _spread(items: Sequence[Clip], limit: int) -> list[Clip]:
    return [items[i * len(items) // limit] for i in range(limit)] if len(items) > limit else list(items)


def _facts(clip: Clip, sample_fps: float) -> tuple[int, int, int] | None:
    """Frames, cached frames and pixels of a frame, as the header says; None where it does not open."""
    path, fps = Path(clip.video), clip.fps
    try:
        if clip.shots:
            frames, (height, width) = round(2 * fps), images.size_of(path)
        elif path.is_dir():
            names = images.listing(path)
            frames, (height, width) = len(names), images.size_of(path / names[0])
        else:
            frames, height, width, rate = read_header(path)
            fps = rate or fps
    except (UsageError, OSError, IndexError, ValueError):
        return None
    return frames, -(-frames // max(1, round(fps / sample_fps))), height * width


def probe(recipe: Recipe, found: Survey) -> Speed:
    """Decodes a few frames and takes a few training steps of the student, in about a second."""
    chosen, reason = device.choose(recipe.run.device)
    threads = device.set_threads(recipe.run.threads)
    decoded, seconds = 0, 0.0
    frame = np.zeros((360, 640, 3), np.uint8)
    for path in found.sample:
        started = time.perf_counter()
        shown = list(islice(read_frames(path), DECODED_FRAMES))
        seconds += time.perf_counter() - started
        decoded, frame = decoded + len(shown), shown[-1] if shown else frame
    torch.set_num_threads(1)
    started = time.perf_counter()
    for _ in range(3):
        to_twice(frame, recipe.student)
    converting = (time.perf_counter() - started) / 3
    torch.set_num_threads(threads)
    train, work = _training_step(recipe.student, chosen)
    usual = TinyUNetConfig()  # a student much smaller than that says nothing of how fast teachers are
    usual_train, usual_work = (train, work) if recipe.student == usual else _training_step(usual, chosen)
    on = f"{reason}, {threads} threads"
    return Speed(seconds / decoded if decoded else 0.001, converting, train, 3 * usual_work / usual_train, on)


@cache  # a machine is as fast the second time
def _training_step(config: TinyUNetConfig, on: torch.device) -> tuple[float, float]:
    """Seconds for a frame in training, and billions of multiply-adds on its way forward; the way back costs twice as much."""
    with torch.random.fork_rng(devices=[]):
        student = TinyUNet(config).to(on).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = torch.rand(PROBE_FRAMES, 3, config.height, config.width, device=on)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _logits(student, batch[:1])
        seconds = min([_timed_step(student, batch) for _ in range(3)][1:]) / PROBE_FRAMES
    return seconds, counter.get_total_flops() / 2e9


def _logits(student: TinyUNet, batch: torch.Tensor) -> torch.Tensor:
    deep, at_8, at_4 = student.encoder(batch)
    return student.decode(student.bottleneck(deep), at_8, at_4)


def _timed_step(student: TinyUNet, batch: torch.Tensor) -> float:
    started = time.perf_counter()
    _logits(student, batch).square().mean().backward()
    if batch.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def estimate(recipe: Recipe, found: Survey, speed: Speed) -> Estimate:
    """The time and the disk space of the stages that matter."""
    train, student, team = recipe.train, recipe.student, members.members(recipe.teacher)
    frame_steps = round(train.frames_first * train.steps)
    drawn = frame_steps * train.frames, (train.steps - frame_steps) * train.batch * train.window
    held_out = recipe.corpus.val * found.frames
    cores = min(usable_cores(), 16)
    seconds = {
        "corpus": found.frames * speed.decode / 2,
        "frames": (found.frames * speed.decode + found.cached * speed.cache) / cores,
        "train": sum(drawn) * speed.train,
        "eval": held_out / recipe.eval.stride * SCORING_SECONDS / cores * found.pixels / (640 * 360) + held_out * speed.decode,
    }
    passes = found.frames * (2 if recipe.teacher.flip else 1)
    decoding, work = found.frames * speed.decode / recipe.label.workers, sum(_work(m.entry) for m in team)
    seconds["label"] = max(decoding, passes * work / speed.gmac) if recipe.teacher.name != "maps" else 0.0
    unknown = tuple(
        stage for stage, any_ in (("teach", recipe.teach.finetune), ("label", "onnx" in recipe.teacher.name)) if any_
    )
    if not recipe.teach.finetune and any(members.trained_here(recipe, m) for m in team):
        entry = next(m.entry for m in team if members.trained_here(recipe, m))
        windows = recipe.teacher.steps * recipe.teacher.batch
        seconds["teach"] = 3 * windows * (entry.window or 1) * _work(entry) / speed.gmac
    cells = max(_cells(recipe, m) for m in team)
    frame_bytes = 12 * student.height * student.width + round(2 * student.height * student.width * found.annotated)
    gpu: dict[str, float] = {}
    if speed.on.startswith("cpu"):
        rates = [H100_FRAMES.get(m.entry.title) for m in team]
        if all(rates):
            gpu["label"] = max(decoding, sum(passes / rate for rate in rates if rate))
        if student == Recipe().student:
            gpu["train"] = train.steps * H100_STEP[0] + sum(drawn) * H100_STEP[1]
    return Estimate(
        found.frames,
        {stage: value for stage, value in seconds.items() if stage not in unknown},
        {"frames": found.cached * frame_bytes, "label": 2 * cells * found.frames},
        unknown,
        speed.on,
        gpu,
    )


def _work(entry: Entry) -> float:
    """Billions of multiply-adds of the student's kind that take as long as a labelled frame."""
    return (entry.gmac or 0.0) / (UNISAL_SPEED if entry.name == "unisal" else RELATIVE_SPEED)


def _cells(recipe: Recipe, member: members.Member) -> int:
    tiny = member.entry.title == "visage tiny"
    return LABEL_CELLS.get(member.name) or (48 * 48 if tiny else recipe.teach.out_px**2)


def left(cost: Estimate, steps: int, path: Path) -> Estimate:
    """What the run in the directory `path` has still to spend of it: a stage that was interrupted goes on from its frames, its labels
    or its last checkpoint. steps: of the whole training."""
    held = {stage: _bytes_in(path / FOLDERS[stage]) for stage in cost.disk}
    done = {stage: min(1.0, held[stage] / size) for stage, size in cost.disk.items() if size}
    done["train"] = min(1.0, _steps_done(path) / steps)
    seconds, gpu = ({s: value * (1 - done.get(s, 0)) for s, value in of.items()} for of in (cost.seconds, cost.gpu))
    disk = {stage: max(0, size - held[stage]) for stage, size in cost.disk.items()}
    return replace(cost, seconds=seconds, disk=disk, gpu=gpu)


def _bytes_in(folder: Path) -> int:
    """The size of the arrays that a folder holds, but for those that are still being written, by another run perhaps."""
    return sum(file.stat().st_size for file in folder.glob("*.npy") if not is_temporary(file.name))


def _steps_done(path: Path) -> int:
    """The steps that the log of a training has; 0 where it left no checkpoint to go on from, or they cannot be read."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        if (path / "checkpoints" / "last.pt").is_file():
            return int(json.loads((path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"])
    return 0

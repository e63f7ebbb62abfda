"""Trains the student on soft labels and ground truth, in two phases.

frames   the image student, on single frames drawn from everywhere: every clip and still image at every step; first on
         crops, which make many pictures of one, then on whole frames, in which the middle is where it is
clips    its temporal part, on windows of videos: each of `batch` streams draws a clip and walks along it, `windows`
         windows of `window` frames; the state is carried from window to window, back-propagation ends at a window's start

Frames of one clip are so alike that an image student trained on windows sees a handful of pictures per step and overfits;
so it is trained first, and then held (`image_lr`) while the temporal part learns what to add. What a step sees follows
from (seed, step) alone, so a resumed run goes on exactly where it was.

Under torchrun every process draws frames and walks streams of its own, and they average their gradients: N processes see N
batches a step. The student has a megabyte of them, so one plain message per step does what DistributedDataParallel's
buckets and hooks do for large networks. The first process writes.

Legend: B streams · T frames of a window · C channels · h, w working pixels or cells of the logits' grid.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.recipe.keys import Train
from distill.run.collectives import (
    any_rank,
    average_over_ranks,
    gather_from_ranks,
    rank_and_world,
    sum_over_ranks,
    wait_for_ranks,
)
from distill.run.errors import Interrupted, UsageError
from distill.run.files import write_bytes
from distill.run.progress import Narrator
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet, parameter_count
from distill.training import checkpoint
from distill.training.frames import ArrayFile, CachedClip, on_the_grid
from distill.training.losses import frame_losses

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])
# The temporal parts and how fast each learns, times train.clips_lr: what adds to the logits has few weights, each of which
# shows; the memory has thousands, before a decoder that is held.
PACE = {"memory": 1.0, "motion": 5.0, "onset": 20.0}


@dataclass(frozen=True)
class Sample:
    """A clip to train on: its cached frames and truth, the teacher's logits of those frames, and how often it is drawn."""

    cached: CachedClip
    labels: ArrayFile | np.ndarray  # float16 [T of the video, h, w]
    weight: float = 1.0


@dataclass
class Batch:
    """One window of every stream, on the device."""

    frames_BTChw: Tensor  # ImageNet-normalised
    soft_BThw: Tensor  # the teacher's saliency, sigmoid of its logits
    density_BThw: Tensor
    fixations_BThw: Tensor
    dt_B: Tensor  # seconds between frames
    begins_B: Tensor  # bool: whether the window begins where its clip does
    places: list[tuple[str, list[int]]]  # clip and frame numbers (from 1) of each stream, for errors


def train(
    samples: Sequence[Sample],
    validation: Sequence[CachedClip],
    config: Train,
    student_config: TinyUNetConfig,
    folder: Path,
    log: Path,
    device: torch.device,
    seed: int,
    narrator: Narrator,
) -> dict[str, Any]:
    """Trains, or goes on training, and leaves `folder/best.pt`; returns what was reached.

    Raises Interrupted after saving when the narrator says stop, UsageError where a loss is not finite (before the weights
    are touched; the last checkpoint is kept).
    """
    rank, ranks = rank_and_world()
    torch.manual_seed(seed)
    student = TinyUNet(student_config).to(device)
    student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    averaged = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=config.lr)
    weights = {name: getattr(config, name) for name in ("kl", "cc", "sim", "nss", "bce")}
    videos = [s for s in samples if len(s.cached.frames) > 1]
    clips_from = round(config.frames_first * config.steps) if videos else config.steps
    state, first, best, busy = None, 0, -math.inf, 0.0

    # What each phase keeps; the image student's is what the clips phase starts from, also when it is resumed.
    last_path, image_path, best_path = folder / "last.pt", folder / "image.pt", folder / "best.pt"
    saved = checkpoint.load(last_path, device) if last_path.exists() and log.exists() else None
    if saved and not (best_path if saved["step"] > clips_from else image_path).exists() and saved["best"] > -math.inf:
        saved = None  # what belongs to it is gone: start again
    if saved:
        checkpoint.restore(student, saved["student"], last_path)
        checkpoint.restore(averaged, saved["averaged"], last_path)
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"].cpu())
        states, first, best = saved["states"], saved["step"], saved["best"]
        if len(states) != ranks:
            raise UsageError(
                f"{last_path} is of {len(states)} processes, these are {ranks}; go on with as many, or --force"
            )
        state = None if states[rank] is None else states[rank].to(device)
        narrator.say(f"train: going on at step {first} of {config.steps}")
    wait_for_ranks()  # all have read what the first one is about to write
    if rank == 0:
        _truncate(log, first)
    statistics = [b for b in student.buffers() if b.dtype.is_floating_point]

    def keep(path: Path, values: dict[str, Any]) -> None:
        if rank == 0:
            checkpoint.save(path, values)
        wait_for_ranks()

    def save(step: int) -> None:
        values = {"step": step, "student": student.state_dict(), "averaged": averaged.state_dict(), "best": best}
        running = {
            "optimizer": optimizer.state_dict(),
            "states": gather_from_ranks(state),
            "rng": torch.get_rng_state(),
        }
        keep(last_path, values | running)

    if first == 0:
        stills = len(samples) - len(videos)
        narrator.say(
            f"train: {parameter_count(student):,} parameters; {len(videos)} videos"
            + (f", {stills} still images" if stills else "")
            + f"; {clips_from} steps of {config.frames} frames, "
            f"then {config.steps - clips_from} of {config.batch} x {config.window} frames of clips"
            + (f"; {ranks} processes, each as many" if ranks > 1 else "")
        )
    started = time.perf_counter()
    with narrator.bar("train", config.steps, first) as bar, log.open("a", encoding="utf-8") as lines:

        def write(**line: Any) -> None:
            if rank == 0:
                lines.write(json.dumps(line) + "\n")
                lines.flush()

        for step in range(first, config.steps):
            walking = step >= clips_from
            if step == clips_from and step > 0:  # what was best as an image student is what clips add to
                found = checkpoint.load(image_path, device)["student"]
                checkpoint.restore(student, found, image_path)
                checkpoint.restore(averaged, found, image_path)
                best = -math.inf
            since = step - clips_from if walking else step
            if walking:
                batch = draw_windows(videos, config, student_config, (seed, rank), since, device)
            else:
                crop = config.crop if step < config.cropped * clips_from else 1.0
                batch = draw_frames(samples, config, student_config, (seed, rank), since, device, crop)
            rates = learning_rates(step, clips_from, config)
            for group in optimizer.param_groups:
                group["lr"] = rates[group["part"]]
                for parameter in group["params"]:  # what does not learn needs no gradient
                    parameter.requires_grad_(group["lr"] > 0)

            tick = time.perf_counter()
            if walking:  # the statistics of a batch of look-alikes are no statistics: BatchNorm keeps those it has
                student.eval()
                if since % config.windows == 0:
                    state = student.history(batch.frames_BTChw[:, 0], batch.begins_B, batch.dt_B)
                logits_BTChw, state = student(batch.frames_BTChw, state, batch.dt_B)
            else:
                student.train()
                logits_BTChw = student.image(batch.frames_BTChw.flatten(0, 1))[:, None]
            loss, parts = mixed_loss(logits_BTChw[:, :, 0], batch, config, weights)
            _check_finite(loss, batch, step, last_path)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            average_over_ranks([p.grad for p in student.parameters() if p.grad is not None])
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise UsageError(
                    f"the gradient is not finite at step {step + 1}, clips {', '.join(c for c, _ in batch.places)}; "
                    f"{checkpoint.kept(last_path)}; try a smaller train.lr"
                )
            optimizer.step()
            if not walking:
                average_over_ranks(statistics)
            state = state.detach() if state is not None else None
            busy += time.perf_counter() - tick

            update_average(averaged, student, min(config.ema, (since + 1) / (since + 10)))
            done = step + 1
            shown = loss.mean().item()
            write(
                step=done,
                loss=shown,
                lr=max(rates.values()),
                phase="clips" if walking else "frames",
                **parts,
            )
            if done % config.validate_every == 0 or done in (clips_from, config.steps):
                score = validate(averaged, validation[rank::ranks], device, streaming=walking)
                write(step=done, split="val", **score)
                if config.keep == "last" or score.get("cc", done) > best:
                    best = score.get("cc", float(done))
                    values = {"student": averaged.state_dict(), "config": asdict(student_config), "step": done}
                    keep(best_path if walking else image_path, values | {"val": score})
            if done % config.checkpoint_every == 0 or done in (clips_from, config.steps):
                save(done)
            bar.advance(note=f"loss {shown:.3f}" + (f" · val CC {best:.3f}" if validation and best > -1 else ""))
            if done < config.steps and any_rank(narrator.stop(), device):
                save(done)
                raise Interrupted(f"training, after step {done} of {config.steps}")
    wall = time.perf_counter() - started
    if clips_from == config.steps:  # there is nothing to walk along: the image student is all there is
        if rank == 0:
            shutil.copyfile(image_path, best_path)
        wait_for_ranks()
    result = checkpoint.load(best_path)
    return {
        "steps": config.steps, "best_step": result["step"], "val": result["val"], "parameters": parameter_count(student),
        "seconds_per_step": round(wall / max(config.steps - first, 1), 4), "share_in_model": round(busy / wall, 3) if wall else None,
    }  # fmt: skip


def parameter_groups(student: TinyUNet, config: Train) -> list[dict[str, Any]]:
    """The image student's kernels and its other parameters, and those of each temporal part; only kernels decay."""
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in student.named_parameters():
        part = name.partition(".")[0]
        decays = parameter.ndim == 4 and name not in ("place", "prior", "onset.where")
        groups.setdefault((part if part in PACE else "image", decays), []).append(parameter)
    return [
        {"params": group, "part": part, "weight_decay": config.weight_decay if decays else 0.0}
        for (part, decays), group in groups.items()
    ]


def mixed_loss(
    logits_BThw: Tensor, batch: Batch, config: Train, weights: dict[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Loss of every frame `[B,T]`: soft labels and ground truth by `soft_weight`; frames without truth count soft labels only."""
    shape = logits_BThw.shape[:2]
    logits = logits_BThw.flatten(0, 1)
    fixations = batch.fixations_BThw.flatten(0, 1)
    soft, soft_parts = frame_losses(logits, batch.soft_BThw.flatten(0, 1), None, weights)
    truth, truth_parts = frame_losses(logits, batch.density_BThw.flatten(0, 1), fixations, weights)
    has_truth = (fixations.sum(1).sum(1) > 0).to(logits.dtype)
    # A frame without truth has soft labels alone; where they weigh nothing, it teaches nothing.
    share = torch.where(has_truth > 0, config.soft_weight, float(config.soft_weight > 0))
    loss = share * soft + torch.where(has_truth > 0, (1 - share) * truth, 0.0)
    parts = {f"soft.{k}": v.mean().item() for k, v in soft_parts.items()}
    if has_truth.any():
        parts |= {f"truth.{k}": ((v * has_truth).sum() / has_truth.sum()).item() for k, v in truth_parts.items()}
    return loss.unflatten(0, shape), parts


def _check_finite(loss_BT: Tensor, batch: Batch, step: int, last: Path) -> None:
    if torch.isfinite(loss_BT).all():
        return
    b, t = (~torch.isfinite(loss_BT)).nonzero()[0].tolist()
    clip, frames = batch.places[b]
    raise UsageError(
        f"the loss is not finite at step {step + 1}: clip {clip}, frame {frames[t]}; {checkpoint.kept(last)}; "
        "try a smaller train.lr"
    )


def learning_rates(step: int, clips_from: int, config: Train) -> dict[str, float]:
    """Of the image student and of each temporal part. In each phase a linear warm-up, then a cosine down to a hundredth."""
    walking = step >= clips_from
    at, length = (step - clips_from, config.steps - clips_from) if walking else (step, clips_from)
    warmup = max(1, round(config.warmup * length))
    progress = max(0.0, (at - warmup) / max(1, length - warmup))
    height = min(1.0, (at + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    image = height * config.lr * (config.image_lr if walking else 1.0)
    temporal = height * config.clips_lr * walking
    return {"image": image} | {part: temporal * pace * (part in config.parts) for part, pace in PACE.items()}


@torch.no_grad()
def update_average(averaged: TinyUNet, student: TinyUNet, decay: float) -> None:
    for a, b in zip(averaged.state_dict().values(), student.state_dict().values(), strict=True):
        if a.dtype.is_floating_point:
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)


@torch.no_grad()
def validate(
    student: TinyUNet, clips: Sequence[CachedClip], device: torch.device, streaming: bool, window: int = 32
) -> dict[str, float]:
    """CC and NSS on the logits' grid, mean over clips; with the state carried, or frame by frame. A quick look, not the
    evaluation."""
    scores = []
    for cached in clips:
        assert cached.truth is not None  # validation clips are annotated
        state, cc, nss = None, [], []
        dt = torch.tensor([1 / cached.fps], device=device)
        for start in range(0, len(cached.frames), window):
            frames_TChw = _normalise(torch.from_numpy(cached.frames[start : start + window]).to(device))
            if streaming:
                logits_BTChw, state = student(frames_TChw[None], state, dt)
                logits_Thw = logits_BTChw[0, :, 0]
            else:
                logits_Thw = student.image(frames_TChw)[:, 0]
            truth = torch.from_numpy(on_the_grid(cached.truth[start : start + window])).to(device)
            seen = truth[:, 1].sum((1, 2)) > 0
            if seen.any():
                _, parts = frame_losses(logits_Thw[seen], truth[seen, 0], truth[seen, 1], {"nss": 1.0})
                cc += (1 - parts["cc"]).tolist()
                nss += (-parts["nss"]).tolist()
        if cc:
            scores.append((np.mean(cc), np.mean(nss)))
    sums = torch.tensor([*np.sum(scores or [(0.0, 0.0)], 0), len(scores)], dtype=torch.float64)
    cc_sum, nss_sum, count = sum_over_ranks(sums).tolist()
    return {"cc": cc_sum / count, "nss": nss_sum / count} if count else {}


def _normalise(twice_THWC: Tensor) -> Tensor:
    """Cached frames, uint8 at twice the working resolution -> ImageNet-normalised `[T,3,h,w]`, as the entry ends."""
    device = twice_THWC.device
    small = F.avg_pool2d(twice_THWC.permute(0, 3, 1, 2) / 255, 2)
    return (small - IMAGENET_MEAN.to(device)[:, None, None]) / IMAGENET_STD.to(device)[:, None, None]


def _truncate(log: Path, step: int) -> None:
    """Drops lines of steps that will be repeated, and a line that a kill cut short."""
    if log.exists():
        kept = []
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                continue
        write_bytes(log, "".join(f"{line}\n" for line in kept).encode())


# --- batches ---------------------------------------------------------------------------------------------------------


Seed = tuple[int, int]
"""The run's seed, and the process's number."""
BEGIN = 1 / 3
"""Share of the streams that begin where their clip does."""


@dataclass
class Draw:
    """A stream's clip, the cached frames it shows, and how they are varied."""

    sample: Sample
    index: np.ndarray
    dt: float  # seconds between frames
    begins: bool  # whether the stream starts where the clip does
    place: Tensor  # [2,3], crop and mirror
    colour: tuple[Tensor, Tensor]


def draw_frames(
    samples: Sequence[Sample],
    config: Train,
    student: TinyUNetConfig,
    seed: Seed,
    step: int,
    device: torch.device,
    crop: float = 1.0,
) -> Batch:
    """Single frames, cropped to sides of `crop` and more: a pure function of its seed and step."""
    rng = np.random.default_rng([*seed, 0, step])
    drawn = []
    for i in _choose(rng, samples, config.frames):
        index = rng.integers(len(samples[i].cached.frames), size=1)
        drawn.append(Draw(samples[i], index, 0.0, False, _crop_and_flip(rng, config, crop), _colour(rng, config)))
    return _batch(drawn, student, device)


def draw_windows(
    samples: Sequence[Sample], config: Train, student: TinyUNetConfig, seed: Seed, step: int, device: torch.device
) -> Batch:
    """The windows of every stream: a pure function of seed and step; an episode's steps walk along the same clips.

    A third of the streams begin where their clip does: what gaze does then can be learned nowhere else.
    """
    episode, window = divmod(step, config.windows)
    rng = np.random.default_rng([*seed, 1, episode])
    drawn, length = [], config.window * config.windows
    for i in _choose(rng, samples, config.batch):
        cached = samples[i].cached
        total = len(cached.frames)
        stride = int(rng.integers(1, 3)) if total >= 2 * length else 1  # half the frame rate, at times
        start = int(rng.integers(0, max(1, total - stride * length + 1))) if rng.random() > BEGIN else 0
        index = _there_and_back(start + stride * (np.arange(config.window) + window * config.window), total)
        place, colour = _crop_and_flip(rng, config, 1.0), _colour(rng, config)
        drawn.append(Draw(samples[i], index, stride / cached.fps, start == 0, place, colour))
    return _batch(drawn, student, device)


def _choose(rng: np.random.Generator, samples: Sequence[Sample], count: int) -> np.ndarray:
    """Numbers of `count` samples, drawn by weight."""
    ends = np.cumsum([sample.weight for sample in samples])
    return np.searchsorted(ends / ends[-1], rng.random(count), side="right").clip(max=len(samples) - 1)


def _batch(drawn: Sequence[Draw], student: TinyUNetConfig, device: torch.device) -> Batch:
    frames, targets, places = [], [], []
    fine = (student.height // 2, student.width // 2)
    for d in drawn:
        cached = d.sample.cached
        frames.append(torch.from_numpy(cached.frames[d.index]))
        labels = torch.from_numpy(d.sample.labels[d.index * cached.stride].astype(np.float32))
        soft = F.interpolate(torch.sigmoid(labels)[:, None], size=fine, mode="bilinear", antialias=True)
        truth = torch.zeros(len(d.index), 2, *fine)
        if cached.truth is not None:
            truth = torch.from_numpy(cached.truth[d.index])
        targets.append(torch.cat([soft, truth], 1))
        places.append((cached.clip.id, [int(i) * cached.stride + 1 for i in d.index]))

    theta = torch.stack([d.place for d in drawn]).to(device)
    matrix_B33 = torch.stack([d.colour[0] for d in drawn]).to(device) / 255
    offset_B3 = torch.stack([d.colour[1] for d in drawn]).to(device)
    twice_BTHWC = torch.stack(frames).to(device)
    twice_BTCHW = twice_BTHWC.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    # All from twice what comes out: at full frame that is the entry's last pooling, and a crop stays sharp.
    small_BTChw = warp(twice_BTCHW, theta, (student.height, student.width))
    small_BTChw = torch.einsum("bdc,btchw->btdhw", matrix_B33, small_BTChw) + offset_B3[:, None, :, None, None]
    mean, std = (c.to(device)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    targets_BTChw = warp(torch.stack(targets).to(device), theta, student.grid)
    dt_B = torch.tensor([d.dt for d in drawn], device=device)
    begins_B = torch.tensor([d.begins for d in drawn], device=device)
    soft_BThw, density_BThw, fixations_BThw = targets_BTChw.unbind(2)
    frames_BTChw = (small_BTChw.clamp(0, 1) - mean) / std
    return Batch(frames_BTChw, soft_BThw, density_BThw, fixations_BThw, dt_B, begins_B, places)


def _there_and_back(index: np.ndarray, total: int) -> np.ndarray:
    """Reflects indices at the ends of a clip that is shorter than what a stream walks."""
    if total == 1:
        return np.zeros_like(index)
    index = index % (2 * (total - 1))
    return np.where(index < total, index, 2 * (total - 1) - index)


def _crop_and_flip(rng: np.random.Generator, config: Train, crop: float) -> Tensor:
    """The affine map `[2,3]` of one stream, in grid_sample's coordinates."""
    sides = np.ones(2)
    if crop < 1:  # a share of the frame, up to a fifth wider or higher than it
        aspect = math.exp(rng.uniform(-0.2, 0.2))
        sides = np.minimum(1.0, rng.uniform(crop, 1.0) * np.array([aspect, 1 / aspect]))
    centre = rng.uniform(-1, 1, 2) * (1 - sides)
    mirror = -1.0 if config.flip and rng.random() < 0.5 else 1.0
    return torch.tensor([[mirror * sides[0], 0, centre[0]], [0, sides[1], centre[1]]], dtype=torch.float32)


def warp(x_BTCHW: Tensor, theta_B23: Tensor, size: tuple[int, int]) -> Tensor:
    """Applies each stream's crop and flip to all its frames; what comes out has `size`."""
    B, T, C, H, W = x_BTCHW.shape
    grid = F.affine_grid(theta_B23, [B, 1, *size], align_corners=False)
    # The border is repeated: a crop ends inside the frame, but its last half pixel samples beyond it.
    flat = F.grid_sample(x_BTCHW.reshape(B, T * C, H, W), grid, padding_mode="border", align_corners=False)
    return flat.reshape(B, T, C, *size)


# Luma coefficients of red and blue: ITU-R BT.601 and BT.709. Consumers decode with either, whatever was encoded.
KR_KB = ((0.299, 0.114), (0.2126, 0.0722))


def _rgb_to_yuv(kr: float, kb: float) -> np.ndarray:
    kg = 1 - kr - kb
    return np.array(
        [
            [kr, kg, kb],
            [-0.5 * kr / (1 - kb), -0.5 * kg / (1 - kb), 0.5],
            [0.5, -0.5 * kg / (1 - kr), -0.5 * kb / (1 - kr)],
        ]
    )


def _colour(rng: np.random.Generator, config: Train) -> tuple[Tensor, Tensor]:
    """What a consumer's other YUV matrix, chroma gains and brightness do to RGB in [0, 1]: a matrix and an offset."""
    if not config.colour:
        return torch.eye(3), torch.zeros(3)
    encode, decode = (_rgb_to_yuv(*KR_KB[int(rng.integers(2))]) for _ in range(2))
    gains = np.diag([rng.uniform(0.8, 1.2), *rng.uniform(0.7, 1.3, 2)])
    matrix = np.linalg.inv(decode) @ gains @ encode
    return torch.tensor(matrix, dtype=torch.float32), torch.full((3,), float(rng.uniform(-0.08, 0.08)))

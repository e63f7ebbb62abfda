"""Trains the student on soft labels and ground truth.

Streams: each of `batch` streams draws a clip and walks along it, `windows` windows of `window` frames; the state is
carried from window to window, back-propagation ends at a window's start. Some streams run in image mode, as the image
file will. What a step sees follows from (seed, step) alone, so a resumed run goes on exactly where it was.

Legend: B streams · T frames of a window · C channels · h, w working pixels or cells of the logits' grid.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import checkpoint
from distill.config import Train
from distill.errors import Interrupted, UsageError
from distill.frames import ArrayFile, CachedClip
from distill.losses import frame_losses
from distill.progress import Narrator
from distill.run_dir import atomic
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet, parameter_count

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Sample:
    """A clip to train on: its cached frames and truth, and the teacher's logits of those frames."""

    cached: CachedClip
    labels: ArrayFile | np.ndarray  # float16 [T of the video, h, w]


@dataclass
class Batch:
    """One window of every stream, on the device."""

    frames_BTChw: Tensor  # ImageNet-normalised
    soft_BThw: Tensor  # the teacher's saliency, sigmoid of its logits
    density_BThw: Tensor
    fixations_BThw: Tensor
    dt_B: Tensor  # seconds between frames
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
    torch.manual_seed(seed)
    student = TinyUNet(student_config).to(device)
    student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    averaged = copy.deepcopy(student).eval().requires_grad_(False)
    kernels, others = list[Tensor](), list[Tensor]()
    for name, parameter in student.named_parameters():
        (kernels if parameter.ndim == 4 and name not in ("place", "prior") else others).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
    )
    weights = {name: getattr(config, name) for name in ("kl", "cc", "sim", "nss", "bce")}
    state, first, best, busy = None, 0, -math.inf, 0.0

    last_path, best_path = folder / "last.pt", folder / "best.pt"
    saved = checkpoint.load(last_path, device) if last_path.exists() and log.exists() else None
    if saved and (best_path.exists() or saved["best"] == -math.inf):  # else what belongs to it is gone: start again
        student.load_state_dict(saved["student"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"].cpu())
        state, first, best = saved["state"], saved["step"], saved["best"]
        narrator.say(f"train: going on at step {first} of {config.steps}")
    _truncate(log, first)

    def save(step: int) -> None:
        values = {"step": step, "student": student.state_dict(), "averaged": averaged.state_dict(), "state": state}
        checkpoint.save(
            last_path, values | {"optimizer": optimizer.state_dict(), "best": best, "rng": torch.get_rng_state()}
        )

    if first == 0:
        narrator.say(
            f"train: {parameter_count(student):,} parameters, {len(samples)} clips, {config.steps} steps "
            f"of {config.batch} x {config.window} frames"
        )
    started = time.perf_counter()
    with narrator.bar("train", config.steps, first) as bar, log.open("a", encoding="utf-8") as lines:

        def write(**line: Any) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for step in range(first, config.steps):
            if step % config.windows == 0:
                state = None
            batch = draw(samples, config, student_config, seed, step, device)
            lr = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr

            tick = time.perf_counter()
            student.train()
            logits_BThw, state = forward(student, batch, state, config)
            loss, parts = mixed_loss(logits_BThw, batch, config, weights)
            _check_finite(loss, batch, step, last_path)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise UsageError(
                    f"the gradient is not finite at step {step + 1}, clips {', '.join(c for c, _ in batch.places)}; "
                    f"{checkpoint.kept(last_path)}; try a smaller train.lr"
                )
            optimizer.step()
            state = state.detach()
            busy += time.perf_counter() - tick

            update_average(averaged, student, min(config.ema, (step + 1) / (step + 10)))
            done = step + 1
            shown = loss.mean().item()
            write(step=done, loss=shown, lr=lr, **parts)
            if done % config.validate_every == 0 or done == config.steps:
                score = validate(averaged, validation, device)
                write(step=done, split="val", **score)
                if score.get("cc", done) > best or not best_path.exists():
                    best = score.get("cc", float(done))
                    values = {"student": averaged.state_dict(), "config": asdict(student_config), "step": done}
                    checkpoint.save(best_path, values | {"val": score})
            if done % config.checkpoint_every == 0 or done == config.steps:
                save(done)
            bar.advance(note=f"loss {shown:.3f}" + (f" · best val CC {best:.3f}" if validation and best > -1 else ""))
            if narrator.stop() and done < config.steps:
                save(done)
                raise Interrupted(f"training, after step {done} of {config.steps}")
    wall = time.perf_counter() - started
    result = checkpoint.load(best_path)
    return {
        "steps": config.steps, "best_step": result["step"], "val": result["val"], "parameters": parameter_count(student),
        "seconds_per_step": round(wall / max(config.steps - first, 1), 4), "share_in_model": round(busy / wall, 3) if wall else None,
    }  # fmt: skip


def forward(student: TinyUNet, batch: Batch, state: Tensor | None, config: Train) -> tuple[Tensor, Tensor]:
    """Logits `[B,T,h,w]` and the state. The first streams of a batch run in image mode, without state."""
    B, T = batch.frames_BTChw.shape[:2]
    state = student.zero_state(B) if state is None else state
    images = int(config.image_share * B + 0.5)
    bottleneck, at_8, at_4 = student.encode(batch.frames_BTChw.flatten(0, 1))
    x_BTCHW = bottleneck.unflatten(0, (B, T))
    fused, after = student.memory(x_BTCHW[images:], state[images:], student.memory.keep(batch.dt_B[images:]))
    fused = torch.cat([x_BTCHW[:images], fused]) if images else fused
    after = torch.cat([state[:images], after]) if images else after
    logits = student.decode(fused.flatten(0, 1), at_8, at_4)
    return logits.unflatten(0, (B, T))[:, :, 0], after


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


def learning_rate(step: int, config: Train) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def update_average(averaged: TinyUNet, student: TinyUNet, decay: float) -> None:
    for a, b in zip(averaged.state_dict().values(), student.state_dict().values(), strict=True):
        if a.dtype.is_floating_point:
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)


@torch.no_grad()
def validate(
    student: TinyUNet, clips: Sequence[CachedClip], device: torch.device, window: int = 32
) -> dict[str, float]:
    """CC and NSS on the logits' grid, the state carried, mean over clips; a quick look, not the evaluation."""
    scores = []
    for cached in clips:
        assert cached.truth is not None  # validation clips are annotated
        state, cc, nss = None, [], []
        dt = torch.tensor([1 / cached.fps], device=device)
        for start in range(0, len(cached.frames), window):
            frames = torch.from_numpy(cached.frames[start : start + window]).to(device)
            logits_BTCHW, state = student(_normalise(frames)[None], state, dt)
            truth = torch.from_numpy(cached.truth[start : start + window]).to(device)
            seen = truth[:, 1].sum((1, 2)) > 0
            if seen.any():
                _, parts = frame_losses(logits_BTCHW[0, :, 0][seen], truth[seen, 0], truth[seen, 1], {"nss": 1.0})
                cc += (1 - parts["cc"]).tolist()
                nss += (-parts["nss"]).tolist()
        if cc:
            scores.append((np.mean(cc), np.mean(nss)))
    if not scores:
        return {}
    mean = np.mean(scores, 0)
    return {"cc": float(mean[0]), "nss": float(mean[1])}


def _normalise(frames_THWC: Tensor) -> Tensor:
    """uint8 `[T,h,w,3]` -> ImageNet-normalised `[T,3,h,w]`."""
    device = frames_THWC.device
    return ((frames_THWC / 255 - IMAGENET_MEAN.to(device)) / IMAGENET_STD.to(device)).permute(0, 3, 1, 2)


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
        with atomic(log) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())


# --- batches ---------------------------------------------------------------------------------------------------------


def draw(
    samples: Sequence[Sample], config: Train, student: TinyUNetConfig, seed: int, step: int, device: torch.device
) -> Batch:
    """The windows of every stream at a step: a pure function of (seed, step)."""
    episode, window = divmod(step, config.windows)
    rng = np.random.default_rng([seed, episode])
    frames, soft, truth, dt, places, grids, colours = [], [], [], [], [], [], []
    length = config.window * config.windows
    for _ in range(config.batch):
        sample = samples[int(rng.integers(len(samples)))]
        cached = sample.cached
        total = len(cached.frames)
        step_size = int(rng.integers(1, 3)) if total >= 2 * length else 1  # time stride: half the frame rate, at times
        start = int(rng.integers(0, max(1, total - step_size * length + 1)))
        index = _there_and_back(start + step_size * (np.arange(config.window) + window * config.window), total)
        frames.append(torch.from_numpy(cached.frames[index]))
        labels = torch.from_numpy(sample.labels[index * cached.stride].astype(np.float32))
        soft.append(
            F.interpolate(torch.sigmoid(labels)[:, None], size=student.grid, mode="bilinear", antialias=True)[:, 0]
        )
        truth.append(
            torch.from_numpy(cached.truth[index])
            if cached.truth is not None
            else torch.zeros(len(index), 2, *student.grid)
        )
        dt.append(step_size / cached.fps)
        places.append((cached.clip.id, [int(i) * cached.stride + 1 for i in index]))
        grids.append(_crop_and_flip(rng, config))
        colours.append(_colour(rng) if config.colour else (torch.eye(3), torch.zeros(3)))

    theta = torch.stack(grids).to(device)
    matrix_B33 = torch.stack([m for m, _ in colours]).to(device)
    offset_B3 = torch.stack([o for _, o in colours]).to(device)
    frames_BTHWC = torch.stack(frames).to(device).float() / 255
    frames_BTHWC = frames_BTHWC @ matrix_B33.transpose(1, 2)[:, None, None] + offset_B3[:, None, None, None]
    frames_BTHWC = (frames_BTHWC.clamp(0, 1) - IMAGENET_MEAN.to(device)) / IMAGENET_STD.to(device)
    soft_BThw, truth_BTChw = torch.stack(soft).to(device), torch.stack(truth).to(device)
    return Batch(
        warp(frames_BTHWC.permute(0, 1, 4, 2, 3), theta).contiguous(),
        warp(soft_BThw[:, :, None], theta)[:, :, 0],
        warp(truth_BTChw[:, :, :1], theta)[:, :, 0],
        warp(truth_BTChw[:, :, 1:], theta)[:, :, 0],
        torch.tensor(dt, device=device),
        places,
    )


def _there_and_back(index: np.ndarray, total: int) -> np.ndarray:
    """Reflects indices at the ends of a clip that is shorter than what a stream walks."""
    if total == 1:
        return np.zeros_like(index)
    index = index % (2 * (total - 1))
    return np.where(index < total, index, 2 * (total - 1) - index)


def _crop_and_flip(rng: np.random.Generator, config: Train) -> Tensor:
    """The affine map `[2,3]` of one stream, in grid_sample's coordinates."""
    sides = rng.uniform(config.crop, 1.0, 2) if config.crop < 1 else np.ones(2)
    centre = rng.uniform(-1, 1, 2) * (1 - sides)
    mirror = -1.0 if config.flip and rng.random() < 0.5 else 1.0
    return torch.tensor([[mirror * sides[0], 0, centre[0]], [0, sides[1], centre[1]]], dtype=torch.float32)


def warp(x_BTCHW: Tensor, theta_B23: Tensor) -> Tensor:
    """Applies each stream's crop and flip to all its frames."""
    B, T, C, H, W = x_BTCHW.shape
    grid = F.affine_grid(theta_B23, [B, 1, H, W], align_corners=False)
    # The border is repeated: a crop ends inside the frame, but its last half pixel samples beyond it.
    flat = F.grid_sample(x_BTCHW.reshape(B, T * C, H, W), grid, padding_mode="border", align_corners=False)
    return flat.reshape(B, T, C, H, W)


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


def _colour(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What a consumer's other YUV matrix, chroma gains and brightness do to RGB in [0, 1]: a matrix and an offset."""
    encode, decode = (_rgb_to_yuv(*KR_KB[int(rng.integers(2))]) for _ in range(2))
    gains = np.diag([rng.uniform(0.85, 1.15), *rng.uniform(0.75, 1.25, 2)])
    matrix = np.linalg.inv(decode) @ gains @ encode
    return torch.tensor(matrix, dtype=torch.float32), torch.full((3,), float(rng.uniform(-0.06, 0.06)))

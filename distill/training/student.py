"""Trains the student on soft labels and ground truth, in two phases.

frames   the image student, on single frames from all clips and still images: random crops first (augmentation), then full
         frames, which keep the centre bias
clips    its temporal part, on windows of videos: each of `batch` streams draws a clip and follows it for `windows` windows
         of `window` frames; the state is carried from window to window, back-propagation is truncated to one window

Frames of one clip are so similar that an image student trained on windows would see a handful of different pictures per
step and overfit. So it is trained first, and then frozen (`image_lr`) while the temporal part learns what to add.

Under torchrun every rank draws its own batches, and the gradients are averaged: N ranks see N batches a step. The gradients
take a megabyte, so one message per step does what DistributedDataParallel's buckets and hooks do for large networks.

    checkpoints/image.pt, best.pt    the best average of the frames phase and of the clips phase
    checkpoints/last.pt              where to resume
    metrics.jsonl                    losses of every step, scores of every validation

Legend: B streams · T frames of a window · C channels · h, w working pixels or cells of the logits' grid.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.corpora.clips import counted
from distill.recipe.keys import Train
from distill.run.errors import usage_errors
from distill.run.machine.collectives import average_over_ranks, rank_and_world, sum_over_ranks, wait_for_ranks
from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet, parameter_count
from distill.teachers.unisal.net import MobileNetV2
from distill.training import checkpoint
from distill.training.batches import Batch, Drawn, Sample, draw_frames, draw_windows, normalise, vary
from distill.training.board import Shown
from distill.training.frames import CachedClip, on_logit_grid
from distill.training.loop import Losses, Moment, Task, TrainingContext, fit
from distill.training.losses import frame_losses
from distill.training.schedules import warmup_cosine
from distill.training.start import feature_loss, start_from

FRAMES, CLIPS = 0, 1  # the phases
VALIDATION_FRAMES = 32  # per pass
SHOWN_CLIPS = 4  # in TensorBoard
START_FRAMES = 160  # that a copied encoder is pruned on, each from another clip
LR_FACTORS = {"memory": 1.0, "motion": 5.0, "onset": 20.0}
"""The temporal parts, and the learning rate of each as a multiple of train.clips_lr: those that add to the logits have few
weights, each with a visible effect; the memory has thousands, before a frozen decoder."""


def train(
    samples: Sequence[Sample], validation: Sequence[CachedClip], config: Train, student_config: TinyUNetConfig,
    context: TrainingContext, log: Path, trunk: MobileNetV2 | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains, or continues training, and leaves `best.pt` in the context's folder; returns facts for the manifest. Raises as `fit`.

    trunk: the teacher's encoder, where `config.start` is `teacher`."""
    task = StudentTask(samples, validation, config, student_config, context, trunk)
    frame_steps, clip_steps = task.phase_steps
    rank, ranks = rank_and_world()
    stills = len(samples) - len(task.videos)
    drawn_from = f"{counted(len(task.videos), 'video')}, {counted(stills, 'still image')}"
    context.narrator.say(
        f"train: {parameter_count(task.student):,} parameters; {drawn_from}; {frame_steps} steps "
        f"of {config.frames} frames, then {clip_steps} of {config.batch} x {config.window} frames of clips"
        + (f", in each of {ranks} processes" if ranks > 1 else "")
    )
    progress = fit(task, log)
    best = context.folder / "best.pt"
    if not clip_steps:  # the image student is all there is
        if rank == 0:
            shutil.copyfile(context.folder / "image.pt", best)
        wait_for_ranks()
    result, seconds = checkpoint.load(best), progress.seconds
    return {
        "steps": config.steps, "best_step": result["step"], "val": result["val"], "parameters": parameter_count(task.student),
        "seconds_per_step": round(seconds / max(progress.step - progress.first, 1), 4),
        "share_in_model": round(progress.seconds_in_model / seconds, 3) if seconds else None,
    }  # fmt: skip


class StudentTask(Task):
    """The student's two phases, for `fit`."""

    verb, name, lr_key, resume_file = "train", "train", "train.lr", "last.pt"
    average_buffers = phase_average = rank_batches = True
    labels = ({"phase": "frames"}, {"phase": "clips"})

    def __init__(
        self, samples: Sequence[Sample], validation: Sequence[CachedClip], config: Train, student_config: TinyUNetConfig,
        context: TrainingContext, trunk: MobileNetV2 | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.validation, self.config, self.context = samples, validation, config, context
        self.videos = [sample for sample in samples if len(sample.cached.frames) > 1]
        torch.manual_seed(context.seed)
        student = TinyUNet(student_config).to(context.device)
        self.student: TinyUNet = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
        self.trunk = trunk
        if trunk is not None:
            self._start_from(trunk.to(context.device).eval().requires_grad_(False))
        self.modules: dict[str, nn.Module] = {"student": self.student}
        groups, fused = parameter_groups(self.student, config.weight_decay), context.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused)
        frame_steps = round(config.frames_first * config.steps) if self.videos else config.steps
        self.phase_steps = (frame_steps, config.steps - frame_steps)
        self.validate_every, self.checkpoint_every = config.validate_every, config.checkpoint_every
        self.ema, by = config.ema, "cc" if config.keep == "best" else None
        self.kept_files = ({"image.pt": by}, {"best.pt": by})

    def _start_from(self, trunk: MobileNetV2) -> None:
        """The encoder as a pruned copy of the trunk; fitted to frames of START_FRAMES clips, which are the same for all ranks."""
        rng = np.random.default_rng(self.context.seed)
        chosen = [self.samples[i].cached.frames for i in rng.permutation(len(self.samples))[:START_FRAMES]]
        frames_NCHW = torch.cat([normalise(torch.from_numpy(frames[[len(frames) // 2]])) for frames in chosen])
        with usage_errors("train.start: "):
            error = start_from(self.student, trunk, frames_NCHW)
        self.context.narrator.say(
            f"train: the encoder starts as its teacher's, pruned on {counted(len(chosen), 'frame')}: {1 - error:.0%} of its deep features' "
            "variance is kept"
        )

    def enter(self, phase: int) -> torch.optim.Optimizer:
        # Frames of one clip are too correlated for batch statistics: in the clips phase BatchNorm keeps those it has.
        self.student.train(phase == FRAMES)
        if self.config.start == "teacher":
            for module in self.student.encoder.first():
                module.eval()
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates(Moment(0, phase, 0)), strict=True):
            for parameter in group["params"]:  # what does not learn needs no gradient
                parameter.requires_grad_(rate > 0)
        return self.optimizer

    def learning_rates(self, at: Moment) -> list[float]:
        rates = learning_rates(at.phase, at.phase_step, self.phase_steps[at.phase], self.config)
        return [rates[group["part"]] for group in self.optimizer.param_groups]

    def draw(self, at: Moment) -> Drawn:
        config, seed = self.config, (self.context.seed, rank_and_world()[0])
        if at.phase == CLIPS:
            return draw_windows(self.videos, config, self.student.config, seed, at.phase_step)
        crop = config.crop if at.step < config.cropped * self.phase_steps[FRAMES] else 1.0
        return draw_frames(self.samples, config, self.student.config, seed, at.phase_step, crop)

    def batch(self, drawn: Drawn, at: Moment) -> Batch:
        return vary(drawn, self.student.config, self.context.device)

    def backward(self, batch: Batch, at: Moment) -> Losses:
        if at.phase == CLIPS:
            if at.phase_step % self.config.windows == 0:
                self.state = self.student.history(batch.frames_BTChw[:, 0], batch.starts_B, batch.dt_B)
            logits_BTChw, state = self.student(batch.frames_BTChw, self.state, batch.dt_B)
            self.state = state.detach()
        else:
            deep, at_8, at_4 = self.student.encoder(batch.frames_BTChw.flatten(0, 1))
            logits_BTChw = self.student.decode(self.student.bottleneck(deep), at_8, at_4)[:, None]
        loss_BT, parts = mixed_loss(logits_BTChw[:, :, 0], batch, self.config)
        loss = loss_BT.mean()
        if self.trunk is not None and at.phase == FRAMES and self.config.features:
            parts["features"] = feature_loss(deep, at_4, self.trunk)
            loss = loss + self.config.features * parts["features"]
        loss.backward()
        average_over_ranks([p.grad for p in self.student.parameters() if p.grad is not None])
        if at.phase == FRAMES:
            average_over_ranks([b for b in self.student.buffers() if b.dtype.is_floating_point])
        return Losses({"loss": loss} | parts, batch.places, loss_BT)

    @torch.no_grad()
    def validate(self, phase: int) -> dict[str, float]:
        """CC and NSS on the logits' grid, mean over the clips of all ranks; with the state carried, or frame by frame. A quick
        check, not the evaluation."""
        (rank, ranks), device, scores = rank_and_world(), self.context.device, []
        student = self.averages["student"]
        assert isinstance(student, TinyUNet)
        shown = list[Shown]()
        for cached in self.validation[rank::ranks]:
            assert cached.truth is not None  # validation clips are annotated
            state, cc, nss = None, [], []
            dt = torch.tensor([1 / cached.fps], device=device)
            for start in range(0, len(cached.frames), VALIDATION_FRAMES):
                part = slice(start, start + VALIDATION_FRAMES)
                frames_TChw = normalise(torch.from_numpy(cached.frames[part]).to(device))
                if phase == CLIPS:
                    logits_BTChw, state = student(frames_TChw[None], state, dt)
                    logits_Thw = logits_BTChw[0, :, 0]
                else:
                    logits_Thw = student.image(frames_TChw)[:, 0]
                if self.context.board and len(shown) < SHOWN_CLIPS and start <= (middle := len(cached.frames) // 2) < part.stop:
                    shown.append((cached.frames[middle], logits_Thw[middle - start].sigmoid().cpu().numpy()))
                truth = torch.from_numpy(on_logit_grid(cached.truth[part])).to(device)
                seen = truth[:, 1].sum((1, 2)) > 0
                if seen.any():
                    _, parts = frame_losses(logits_Thw[seen], truth[seen, 0], truth[seen, 1], {"nss": 1.0})
                    cc += (1 - parts["cc"]).tolist()
                    nss += (-parts["nss"]).tolist()
            if cc:
                scores.append((np.mean(cc), np.mean(nss)))
        self.shown = shown
        sums = torch.tensor([*np.sum(scores or [(0.0, 0.0)], 0), len(scores)], dtype=torch.float64)
        cc_sum, nss_sum, count = sum_over_ranks(sums).tolist()
        return {"cc": cc_sum / count, "nss": nss_sum / count} if count else {}

    def keep(self, name: str, scores: dict[str, float], step: int) -> None:
        values = {"student": self.averages["student"].state_dict(), "config": asdict(self.student.config), "step": step}
        checkpoint.save(self.context.folder / name, values | {"val": scores})

    def load_kept(self, phase: int) -> None:
        path = self.context.folder / next(iter(self.kept_files[phase]))
        checkpoint.restore(self.student, checkpoint.load(path, self.context.device)["student"], path)


def parameter_groups(student: TinyUNet, weight_decay: float) -> list[dict[str, Any]]:
    """The kernels and the other parameters of each part: the encoder up to 1/4 (`first`) and from there on, the rest of the image
    student, the temporal parts; only kernels decay."""
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    first = {id(p) for module in student.encoder.first() for p in module.parameters()}
    for name, parameter in student.named_parameters():
        part = name.partition(".")[0]
        part = "first" if id(parameter) in first else part if part in (*LR_FACTORS, "encoder") else "image"
        decays = parameter.ndim == 4 and name not in ("row", "column", "prior", "onset.where")
        groups.setdefault((part, decays), []).append(parameter)
    return [
        {"params": group, "part": part, "weight_decay": weight_decay if decays else 0.0}
        for (part, decays), group in groups.items()
    ]


def learning_rates(phase: int, step: int, steps: int, config: Train) -> dict[str, float]:
    """The rates of the image student, of its encoder, and of each temporal part, at `step` of a phase of `steps`."""
    share, copied = warmup_cosine(step, steps, config.warmup), config.start == "teacher"
    image = share * config.lr * (config.image_lr if phase == CLIPS else 1.0)
    temporal = share * config.clips_lr * (phase == CLIPS)
    encoder = {"first": 0.0 if copied else image, "encoder": image * (config.start_lr if copied else 1.0)}
    return {"image": image} | encoder | {part: temporal * f * (part in config.parts) for part, f in LR_FACTORS.items()}


def mixed_loss(logits_BThw: Tensor, batch: Batch, config: Train) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of every frame `[B,T]`: soft labels and ground truth by `soft_weight`; without truth, soft labels alone. Also the
    means of its parts: NaN for ground truth where no frame has any."""
    weights = {name: getattr(config, name) for name in ("kl", "cc", "sim", "nss", "bce")}
    logits, fixations = logits_BThw.flatten(0, 1), batch.fixations_BThw.flatten(0, 1)
    soft, soft_parts = frame_losses(logits, batch.soft_BThw.flatten(0, 1), None, weights)
    truth, truth_parts = frame_losses(logits, batch.density_BThw.flatten(0, 1), fixations, weights)
    has_truth = (fixations.sum(1).sum(1) > 0).to(logits.dtype)
    # A frame without truth has soft labels alone; where their weight is 0, it teaches nothing.
    share = torch.where(has_truth > 0, config.soft_weight, float(config.soft_weight > 0))
    loss = share * soft + torch.where(has_truth > 0, (1 - share) * truth, 0.0)
    parts = {f"soft.{k}": v.mean() for k, v in soft_parts.items()}
    parts |= {f"truth.{k}": (v * has_truth).sum() / has_truth.sum() for k, v in truth_parts.items()}
    return loss.unflatten(0, logits_BThw.shape[:2]), parts

"""Trains the tiny ViSAGE ensemble from scratch, on the cached frames and the corpus's ground truth.

Both experts share the trunk, and each has its own loss: KL + CC + SIM + BCE, in the proportions of ViSAGE's training (10, 2,
1, 1); expert 2's auxiliary heads are weighted as published.

Legend: B windows · T frames · C channels · H, W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.recipe.keys import Teacher as TeacherConfig
from distill.run.errors import UsageError
from distill.teachers.visage import Visage, VisageConfig, VisageNet, preprocess
from distill.training import checkpoint
from distill.training.frames import CachedClip, on_logit_grid
from distill.training.loop import Losses, Moment, Place, Task, TrainingContext, fit
from distill.training.losses import VISAGE_AUX_WEIGHTS, VISAGE_WEIGHTS, frame_losses
from distill.training.schedules import tiny_visage_share


def train_visage(clips: Sequence[CachedClip], config: TeacherConfig, visage: VisageConfig, context: TrainingContext) -> None:
    """Trains, or continues training, and leaves `visage.pt` in the context's folder. Raises Interrupted after saving."""
    annotated = [c for c in clips if c.truth is not None]
    if not annotated:
        raise UsageError("teacher visage trains on fixations, but no training clip is annotated; use --teacher maps")
    task = TinyVisage(annotated, config, visage, context)
    fit(task)
    checkpoint.save(context.folder / "visage.pt", Visage(task.net.eval(), visage, device=context.device).saved_state())
    task.resume_path.unlink(missing_ok=True)


@dataclass
class TinyVisage(Task):
    """The training of the tiny ensemble, for `fit`."""

    clips: Sequence[CachedClip]
    config: TeacherConfig
    visage: VisageConfig
    context: TrainingContext

    name, lr_key, resume_file, checkpoint_every = "teacher", "teacher.lr", "visage_last.pt", 50

    def __post_init__(self) -> None:
        torch.manual_seed(self.context.seed)
        self.net = VisageNet(self.visage).to(self.context.device)
        self.modules, self.phase_steps = {"visage": self.net}, (self.config.steps,)

    def enter(self, phase: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.train().parameters(), lr=self.config.lr, weight_decay=1e-2)

    def learning_rates(self, at: Moment) -> list[float]:
        return [self.config.lr * tiny_visage_share(at.step, self.config.steps)]

    def draw(self, at: Moment) -> tuple[Tensor, Tensor, Tensor, list[Place]]:
        """Normalised clips `[B,C,T,H,W]`, mirrored half of the time, the densities of their frames `[B T,H,W]`, the numbers of
        those that have one, places."""
        visage, T = self.visage, self.visage.trunk.frames
        rng = np.random.default_rng([self.context.seed, 1, at.step])  # 1: another stream than the student's
        inputs, targets, places = [], [], []
        for _ in range(self.config.batch):
            cached = self.clips[int(rng.integers(len(self.clips)))]
            assert cached.truth is not None
            stride = visage.stride(cached.fps)
            start = int(rng.integers(0, max(1, len(cached.frames) - (T - 1) * stride)))
            index = np.minimum(start + stride * np.arange(T), len(cached.frames) - 1)
            frames_TCHW = preprocess(cached.at_working_size(index), visage.trunk.px)
            density = torch.from_numpy(on_logit_grid(cached.truth[index])[:, :1])
            size = (visage.out_px, visage.out_px)
            density = F.interpolate(density, size=size, mode="bilinear", align_corners=False)[:, 0]
            if rng.random() < 0.5:
                frames_TCHW, density = frames_TCHW.flip(-1), density.flip(-1)
            inputs.append(frames_TCHW.transpose(0, 1))
            targets.append(density)
            places.append(cached.place(index))
        target = torch.cat(targets)
        return torch.stack(inputs), target, target.sum((1, 2)).nonzero()[:, 0], places

    def backward(self, batch: tuple[Tensor, Tensor, Tensor, list[Place]], at: Moment) -> Losses:
        places = batch[3]
        clip_BCTHW, target, seen = (x.to(self.context.device, non_blocking=True) for x in batch[:3])
        out = self.net(clip_BCTHW)
        heads = [*((1.0, logits) for logits in out.experts), *((VISAGE_AUX_WEIGHTS[n], aux) for n, aux in out.aux.items())]
        loss = torch.zeros((), device=self.context.device)
        for weight, logits_BTHW in heads:
            each, _ = frame_losses(logits_BTHW.flatten(0, 1)[seen], target[seen], None, VISAGE_WEIGHTS)
            loss = loss + weight * each.sum() / max(1, len(seen))
        loss.backward()
        return Losses({"loss": loss}, places)

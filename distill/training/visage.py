"""Trains the tiny ViSAGE ensemble from scratch, on the cached frames and the corpus's ground truth.

Both experts see the same trunk and each has its own loss: KL + CC + SIM + BCE, in the proportions of ViSAGE's training
(10, 2, 1, 1); expert 2's auxiliary heads are weighted as published. What a step sees follows from (seed, step) alone.

Legend: B windows · T frames · C channels · H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.recipe.keys import Teacher as TeacherConfig
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from distill.teachers.visage import Visage, VisageConfig, VisageNet, preprocess
from distill.training import checkpoint
from distill.training.frames import CachedClip, on_the_grid
from distill.training.losses import VISAGE_AUX_WEIGHTS, VISAGE_WEIGHTS, frame_losses


def train_visage(
    clips: Sequence[CachedClip],
    config: TeacherConfig,
    visage: VisageConfig,
    folder: Path,
    device: torch.device,
    seed: int,
    narrator: Narrator,
    checkpoint_every: int = 50,
) -> Visage:
    """Trains, or goes on training, and leaves `folder/visage.pt`. Raises Interrupted after saving."""
    annotated = [c for c in clips if c.truth is not None]
    if not annotated:
        raise UsageError(
            "teacher visage trains on fixations, but no training clip is annotated; use --teacher maps with labels of your own"
        )
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    net = VisageNet(visage).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=1e-2)
    last, first = folder / "visage_last.pt", 0
    if last.exists():
        saved = checkpoint.load(last, device)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"].cpu())
        first = saved["step"]
        narrator.say(f"teach: going on at step {first} of {config.steps}")

    def save(step: int) -> None:
        values = {"step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(last, values | {"rng": torch.get_rng_state()})

    with narrator.bar("teach", config.steps, first) as bar:
        for step in range(first, config.steps):
            clip_BCTHW, density_BThw, places = _windows(annotated, config, visage, seed, step)
            warmup = max(1, config.steps // 20)
            rate = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate
            out = net(clip_BCTHW.to(device))
            target = density_BThw.to(device).flatten(0, 1)
            seen = target.sum((1, 2)) > 0
            heads = [(1.0, logits) for logits in out.experts] + [
                (VISAGE_AUX_WEIGHTS[n], aux) for n, aux in out.aux.items()
            ]
            loss = torch.zeros((), device=device)
            for weight, logits_BThw in heads:
                loss = loss + weight * frame_losses(
                    logits_BThw.flatten(0, 1)[seen], target[seen], None, VISAGE_WEIGHTS
                )[0].sum() / seen.sum().clamp(min=1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if not torch.isfinite(norm):  # before the weights are touched; NaN in the loss arrives here too
                raise UsageError(
                    f"teach: the gradient is not finite at step {step + 1}: {', '.join(places)}; {checkpoint.kept(last)}; "
                    "try a smaller teacher.lr"
                )
            optimizer.step()
            bar.advance(note=f"loss {loss.item():.3f}")
            done = step + 1
            if done % checkpoint_every == 0 and done < config.steps:
                save(done)
            if narrator.stop() and done < config.steps:
                save(done)
                raise Interrupted(f"teaching, after step {done} of {config.steps}")
    teacher = Visage(net.eval(), visage, device=device)
    checkpoint.save(folder / "visage.pt", teacher.saved_state())
    last.unlink(missing_ok=True)
    return teacher


def _windows(
    clips: Sequence[CachedClip], config: TeacherConfig, visage: VisageConfig, seed: int, step: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Normalised windows `[B,3,T,px,px]`, their densities `[B,T,out,out]` and places; mirrored half of the time."""
    rng = np.random.default_rng([seed, 1, step])  # 1: a stream of its own beside the student's
    T = visage.trunk.frames
    inputs, targets, places = [], [], []
    for _ in range(config.batch):
        cached = clips[int(rng.integers(len(clips)))]
        assert cached.truth is not None
        stride = visage.stride(cached.fps)
        start = int(rng.integers(0, max(1, len(cached.frames) - (T - 1) * stride)))
        index = np.minimum(start + stride * np.arange(T), len(cached.frames) - 1)
        frames_TCHW = preprocess(cached.at_working_size(index), visage.trunk.px)
        density = F.interpolate(
            torch.from_numpy(on_the_grid(cached.truth[index])[:, :1]),
            size=(visage.out_px, visage.out_px),
            mode="bilinear",
            align_corners=False,
        )[:, 0]
        if rng.random() < 0.5:
            frames_TCHW, density = frames_TCHW.flip(-1), density.flip(-1)
        inputs.append(frames_TCHW.transpose(0, 1))
        targets.append(density)
        first, last = (int(i) * cached.stride + 1 for i in (index[0], index[-1]))
        places.append(f"clip {cached.clip.id} frames {first} to {last}")
    return torch.stack(inputs), torch.stack(targets), places

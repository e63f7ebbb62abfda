"""Fine-tunes ViSAGE's two experts on one frozen trunk, in two stages: published recipe, published loss, its repairs.

    stage 1    reducers, decoders and FiLM learn; the trunk is as published, so one pass through it serves both experts;
               expert 2's auxiliary heads pay the dense terms
    stage 2    LoRA in every layer of the trunk learns as well, an expert at a time; decoders slower, their BatchNorms and
               the auxiliary heads at rest

Published are the loss, both optimisers, one random window per clip and epoch, and the choice by CC on four windows of
every validation clip. Repaired: every stage of every expert has warm-up, a cosine, and an average of the weights, which
is what is validated and kept; published code has them for one of the four.

    checkpoints/visage/expert1.safetensors, expert2.safetensors    the best so far, under the released files' names
    checkpoints/visage_last.pt, visage.jsonl                       where to go on; what every step cost

What a step sees and drops follows from (seed, step) alone. Under torchrun every process takes its share of a step's
windows (DistributedDataParallel); the first one writes.

Legend: B windows · T frames · C channels · H, W pixels.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distill.recipe.keys import Teach
from distill.run.collectives import any_rank, rank_and_world, sum_over_ranks, wait_for_ranks
from distill.run.errors import Interrupted, UsageError
from distill.run.files import atomic, write_bytes
from distill.run.progress import Narrator
from distill.teachers.internvideo2 import InternVideo2
from distill.teachers.lora import TRUNK_PREFIX, Lora
from distill.teachers.visage import KINDS, Expert1, Expert2, VisageConfig, fuse, normalise
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.teachers.windows import autocast
from distill.training import checkpoint
from distill.training.losses import VISAGE_AUX_WEIGHTS, frame_losses, visage_losses
from distill.training.teacher_frames import WindowClip, Windows, drawn, read, spread

LR_START, LR_END = 0.01, 1e-6  # of the warm-up, a share of the peak; of the cosine, a rate


class Apprentice(nn.Module):
    """What of one expert trains: reducers, decoder and FiLM, and the LoRA, which waits until stage 2."""

    def __init__(self, expert: Expert1 | Expert2, lora: Lora) -> None:
        super().__init__()
        self.expert, self.lora = expert, lora

    def forward(
        self, trunk: InternVideo2, clip_BCTHW: Tensor, streams: Sequence[Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B,T,H,W]`, and those of the auxiliary heads where they learn.

        `streams` are the trunk's own, in stage 1; None: those of trunk and LoRA.
        """
        stage1 = streams is not None
        streams = streams or trunk(clip_BCTHW, self.expert.config.taps, self.lora)
        if isinstance(self.expert, Expert2):
            return self.expert(streams, aux=self.training and stage1)
        return self.expert(streams), {}

    def enter(self, stage: int) -> None:
        """What learns in a stage, and what rests."""
        self.train().requires_grad_(True)
        self.lora.requires_grad_(stage == 2)
        if isinstance(self.expert, Expert2):
            self.expert.decoder.aux_heads.requires_grad_(stage == 1)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(stage == 1)

    def released(self) -> dict[str, Tensor]:
        """All of it under the names of a released file."""
        return self.expert.state_dict() | self.lora.released_state()

    def load_released(self, path: Path) -> None:
        """Takes over an expert: a released file, or one kept here. Raises UsageError where it does not fit."""
        try:
            state = read_weights(path)
            rest = {key: value for key, value in state.items() if not key.startswith(TRUNK_PREFIX)}
            load_state_dict_exact(self.expert, rest, source=str(path))
            self.lora.load_released(state, source=str(path))
        except ValueError as error:
            raise UsageError(str(error)) from None


def two_stages(
    train: Sequence[WindowClip],
    validation: Sequence[WindowClip],
    config: Teach,
    visage: VisageConfig,
    trunk: InternVideo2,
    starts: Sequence[Path | None],
    precision: str,
    folder: Path,
    device: torch.device,
    seed: int,
    narrator: Narrator,
) -> dict[str, Any]:
    """Trains, or goes on training, and leaves both experts in `folder/visage`; returns what was reached.

    `trunk` is on the device, in the type that it is used in; `starts` are experts to go on from, with their LoRA;
    `precision` is fp32 or bf16. Raises Interrupted after saving when the narrator says stop, UsageError where a gradient
    is not finite (before the weights are touched; the last checkpoint is kept).
    """
    rank, ranks = rank_and_world()
    if rank:
        narrator = Narrator(quiet=True, stop=narrator.stop)
    if config.batch % ranks:
        raise UsageError(f"teach.batch {config.batch} does not divide over {ranks} processes; make it a multiple")
    trunk.requires_grad_(False).eval()
    trunk.checkpointing = config.recompute
    torch.manual_seed(seed)
    apprentices = [
        Apprentice(KINDS[kind](visage), Lora(visage.trunk, config.rank, config.alpha, config.dropout)).to(device)
        for kind in visage.experts
    ]
    for apprentice, start in zip(apprentices, starts, strict=True):
        if start:
            apprentice.load_released(start)
    averaged = [copy.deepcopy(apprentice).eval().requires_grad_(False) for apprentice in apprentices]
    kept = [folder / "visage" / f"expert{number}.safetensors" for number in numbers(visage)]
    last, log = folder / "visage_last.pt", folder / "visage.jsonl"
    steps = {1: config.stage1_steps, 2: config.stage2_steps}
    total = sum(steps.values())
    stage, first, best = 1 if steps[1] else 2, 0, [-math.inf for _ in apprentices]
    resumed = checkpoint.load(last, device) if last.exists() and all(path.exists() for path in kept) else None
    if resumed:
        for live, average, states in zip(apprentices, averaged, resumed["experts"], strict=True):
            live.load_state_dict(states["live"])
            average.load_state_dict(states["average"])
        stage, first, best = resumed["stage"], resumed["step"], resumed["best"]
    done = first + (steps[1] if stage == 2 else 0)
    if resumed:
        narrator.say(f"teach: going on at step {done} of {total}")
    if rank == 0:
        _truncate(log, done if resumed else -1)

    def write(**line: Any) -> None:
        if rank == 0:
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")

    def judge() -> None:
        """Validates the average, and keeps each expert where it is better than before."""
        scores = validate(averaged, trunk, validation, config, visage, stage, precision, device)
        write(step=done, stage=stage, split="val", **scores)
        for n, (path, average) in enumerate(zip(kept, averaged, strict=True)):
            score = scores.get(f"cc{n + 1}", math.inf)  # without validation clips the last one is the best
            if score >= best[n]:
                best[n] = score
                if rank == 0:
                    write_tensors(path, average.released(), {"lora_alpha": str(config.alpha)})
        wait_for_ranks()

    def save(step: int) -> None:
        if rank == 0:
            states = [
                {"live": live.state_dict(), "average": average.state_dict()}
                for live, average in zip(apprentices, averaged, strict=True)
            ]
            values = {"stage": stage, "step": step, "best": best, "experts": states}
            checkpoint.save(last, values | {"optimizer": optimizer.state_dict()})
        wait_for_ranks()

    if not resumed:
        folder.mkdir(parents=True, exist_ok=True)
        judge()  # what fine-tuning starts from is the first best
    with narrator.bar("teach", total, done) as bar:
        for now in (1, 2)[stage - 1 :]:
            stage = now
            if stage == 2 and first == 0 and done:
                for live, average, path in zip(apprentices, averaged, kept, strict=True):  # the best of stage 1 goes on
                    live.load_released(path)
                    average.load_state_dict(live.state_dict())
            for apprentice in apprentices:
                apprentice.enter(stage)
            optimizer = torch.optim.AdamW(_groups(apprentices, stage, config), weight_decay=config.weight_decay)
            if resumed:
                optimizer.load_state_dict(resumed["optimizer"])
                resumed = None  # it holds what the experts hold
            learners: list[nn.Module] = [*apprentices]
            if ranks > 1:
                learners = [DistributedDataParallel(apprentice) for apprentice in apprentices]
            for step in range(first, steps[stage]):
                torch.manual_seed(_mix(seed, done, rank))  # of dropout
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, steps[stage], group["peak"], config.warmup)
                places = drawn(train, visage.trunk.frames, config.batch, seed, done)
                windows = read(places[rank::ranks], visage.trunk.frames)
                optimizer.zero_grad(set_to_none=True)
                losses = backward(learners, trunk, windows, visage.taps, stage, config, precision, device)
                for n, apprentice in enumerate(apprentices, 1):
                    norm = nn.utils.clip_grad_norm_([p for p in apprentice.parameters() if p.requires_grad], 1.0)
                    if not torch.isfinite(norm):
                        raise UsageError(
                            f"teach: the gradient of expert {n} is not finite at step {done + 1}: "
                            f"{', '.join(windows.places)}; {checkpoint.kept(last)}; try a smaller teach.lr"
                        )
                optimizer.step()
                for live, average in zip(apprentices, averaged, strict=True):
                    update_average(average, live, min(config.ema, (done + 1) / (done + 10)))
                done += 1
                write(step=done, stage=stage, lr=optimizer.param_groups[-1]["lr"], **losses)
                if (step + 1) % config.validate_every == 0 or step + 1 == steps[stage]:
                    judge()
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == steps[stage]:
                    save(step + 1)
                shown = " ".join(f"{losses[f'loss{n}']:.3f}" for n in numbers(visage))
                bar.advance(note=f"stage {stage} · loss {shown}" + _best(best))
                if done < total and any_rank(narrator.stop(), device):
                    save(step + 1)
                    raise Interrupted(f"teaching, after step {done} of {total}")
            first = 0
    return {"steps": total, "val_cc": [score if math.isfinite(score) else None for score in best]}


def backward(
    learners: Sequence[nn.Module],
    trunk: InternVideo2,
    windows: Windows,
    taps: Sequence[int],
    stage: int,
    config: Teach,
    precision: str,
    device: torch.device,
) -> dict[str, float]:
    """Gradients of a step's loss in both experts, and the losses: means over the counted frames of all processes."""
    _, ranks = rank_and_world()
    count = sum_over_ranks(windows.counts_BT.sum().to(device, torch.float32)).clamp(min=1)
    losses = torch.zeros(len(learners), device=device)
    size = config.at_once or len(windows.frames_BTCHW)
    for start in range(0, len(windows.frames_BTCHW), size):
        part = slice(start, start + size)
        final = start + size >= len(windows.frames_BTCHW)
        clip_BCTHW = normalise(windows.frames_BTCHW[part].to(device)).transpose(1, 2)
        density, fixations = (x[part].flatten(0, 1).to(device) for x in (windows.density_BTHW, windows.fixations_BTHW))
        counts = windows.counts_BT[part].flatten().to(device)
        with torch.no_grad(), autocast(device, precision):
            streams = trunk(clip_BCTHW, taps) if stage == 1 else None
        for n, learner in enumerate(learners):
            later = isinstance(learner, DistributedDataParallel) and not final  # gradients are exchanged once
            with cast(DistributedDataParallel, learner).no_sync() if later else nullcontext():
                with autocast(device, precision):
                    logits_BTHW, aux = learner(trunk, clip_BCTHW, streams)
                each, _ = visage_losses(logits_BTHW.flatten(0, 1), density, fixations)
                for name, aux_BTHW in aux.items():
                    each = each + VISAGE_AUX_WEIGHTS[name] * visage_losses(aux_BTHW.flatten(0, 1), density, None)[0]
                loss = (each * counts).sum() / count
                (loss * ranks).backward()  # DistributedDataParallel takes the mean over processes
                losses[n] += loss.detach()
    return {f"loss{n}": value for n, value in enumerate(sum_over_ranks(losses).tolist(), 1)}


@torch.no_grad()
def validate(
    apprentices: Sequence[Apprentice],
    trunk: InternVideo2,
    clips: Sequence[WindowClip],
    config: Teach,
    visage: VisageConfig,
    stage: int,
    precision: str,
    device: torch.device,
) -> dict[str, float]:
    """CC of each expert and CC and NSS of both fused, means over the frames of `val_windows` windows per clip."""
    rank, ranks = rank_and_world()
    places = spread(clips, visage.trunk.frames, config.val_windows)[rank::ranks]
    size = config.at_once or max(1, config.batch // ranks)
    sums = torch.zeros(len(apprentices) + 3, device=device)  # CC of each and of all, NSS of all, frames
    for start in range(0, len(places), size):
        windows = read(places[start : start + size], visage.trunk.frames)
        clip_BCTHW = normalise(windows.frames_BTCHW.to(device)).transpose(1, 2)
        with autocast(device, precision):
            streams = trunk(clip_BCTHW, visage.taps) if stage == 1 else None
            logits = [apprentice(trunk, clip_BCTHW, streams)[0].float() for apprentice in apprentices]
        counted = windows.counts_BT.flatten().to(device)
        density, fixations = (
            x.flatten(0, 1).to(device)[counted] for x in (windows.density_BTHW, windows.fixations_BTHW)
        )
        for n, maps in enumerate([*logits, fuse(logits, visage.weights, visage.fusion)]):
            _, parts = frame_losses(maps.flatten(0, 1)[counted], density, fixations, {"nss": 1.0})
            sums[n] += (1 - parts["cc"]).sum()
        sums[-2] -= parts["nss"].sum()
        sums[-1] += counted.sum()
    *values, frames = sum_over_ranks(sums).tolist()
    names = [*(f"cc{n}" for n in numbers(visage)), "cc", "nss"]
    return {name: value / frames for name, value in zip(names, values, strict=True)} if frames else {}


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """From a hundredth of the peak up to it, then a cosine down to 1e-6, step by step."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (LR_START + (1 - LR_START) * step / rising)
    progress = (step - rising) / max(1, steps - rising)
    end = min(LR_END, peak)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _groups(apprentices: Sequence[Apprentice], stage: int, config: Teach) -> list[dict[str, Any]]:
    """What AdamW trains, and at which peak."""
    decoders = [p for a in apprentices for p in a.expert.parameters() if p.requires_grad]
    if stage == 1:
        return [{"params": decoders, "peak": config.lr}]
    loras = [p for a in apprentices for p in a.lora.parameters()]
    return [{"params": decoders, "peak": config.lr_decoder}, {"params": loras, "peak": config.lr_lora}]


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Weights move towards the live ones; buffers (BatchNorm's statistics, averages themselves) are copied."""
    for weight, new in zip(average.parameters(), live.parameters(), strict=True):
        weight.lerp_(new, 1 - decay)
    for buffer, value in zip(average.buffers(), live.buffers(), strict=True):
        buffer.copy_(value)


def numbers(visage: VisageConfig) -> range:
    """The experts' numbers, from 1."""
    return range(1, len(visage.experts) + 1)


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int(np.random.default_rng(numbers).integers(2**62))


def _best(best: Sequence[float]) -> str:
    return " · best val CC " + " ".join(f"{b:.3f}" for b in best) if all(map(math.isfinite, best)) else ""


def _truncate(log: Path, step: int) -> None:
    """Drops lines of steps that will be repeated, and one that a kill cut short."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except json.JSONDecodeError:
            continue
    write_bytes(log, "".join(kept).encode())


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all, and never a second time in memory."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        with atomic(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.torch.save_file(tensors, temporary, metadata)
            temporary.chmod(mode)  # safetensors lets nobody else read what it writes
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be written: {error}") from None

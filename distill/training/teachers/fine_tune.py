"""Fine-tunes ViSAGE's two experts on one frozen trunk, in two stages: the published recipe and loss, with corrections.

    stage 1    reducers, decoders and FiLM learn; the trunk is as published, so one pass through it serves both experts;
               expert 2's auxiliary heads have the dense terms of the loss
    stage 2    LoRA in every layer of the trunk learns as well, one expert after the other; the decoders learn more slowly,
               their BatchNorms and the auxiliary heads are frozen

As published: the loss, both optimizers, one random window per clip and epoch, and the choice by CC on four windows of every
validation clip. Corrected: every stage of every expert has warm-up, a cosine, and averaged weights, which are validated and
kept; the published code has them for only one of the four.

    checkpoints/visage.json                                        shape of the teacher, its base, its experts
    checkpoints/visage/expert1.safetensors, expert2.safetensors    the best so far, under the released files' names
    checkpoints/visage/trunk.safetensors                           the trunk, only where its weights are random
    checkpoints/visage_last.pt, visage.jsonl                       where to resume; losses and scores

Under torchrun every process takes its share of a step's windows (DistributedDataParallel).

Legend: B windows · T frames · C channels · H, W pixels.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distill.corpora import Clip
from distill.recipe.keys import Teach
from distill.run.errors import UsageError, usage_errors
from distill.run.files import read_json, write_json
from distill.run.machine.collectives import rank_and_world, sum_over_ranks, wait_for_ranks
from distill.teachers import PLAIN, Inference
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config, load_trunk, trunk_state
from distill.teachers.lora import TRUNK_PREFIX, Lora
from distill.teachers.visage import KINDS, Expert1, Expert2, Visage, VisageConfig, fuse, load_released, normalise
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.teachers.windows import autocast
from distill.training.checkpoint import write_tensors
from distill.training.loop import Losses, Moment, Task, TrainingContext, fit
from distill.training.losses import VISAGE_AUX_WEIGHTS, frame_losses, visage_losses
from distill.training.schedules import visage_rate
from distill.training.teachers import visage_windows
from distill.training.teachers.visage_windows import WindowClip, Windows, draw, read, spread


def layout(size: str, config: Teach) -> VisageConfig:
    """The released layout on a trunk of this size, with the recipe's window and widths."""
    with usage_errors("[teach]: "):
        return VisageConfig.released(
            size, trunk=InternVideo2Config.of(size, frames=config.frames, px=config.px), reduced_width=config.reduced_width,
            embed_width=config.embed_width, head_width_1=config.head_width, head_width_2=config.head_width,
            norm_groups=config.norm_groups, out_px=config.out_px, sample_fps=config.fps, lora_rank=config.rank,
            lora_alpha=config.alpha,
        )  # fmt: skip


def teach(
    clips: Sequence[Clip], validation: Sequence[Clip], config: Teach, size: str, files: Mapping[str, Path | None],
    context: TrainingContext, cache: Path,
) -> dict[str, Any]:  # fmt: skip
    """From clips and files (`base`, `expert1`, `expert2`) to `visage.json` in the context's folder and the files it names.

    Without a base the trunk's weights are random, and written beside the experts. All ranks of a torchrun job call this.
    Raises UsageError where files do not fit or no clip is annotated.
    """
    folder, narrator = context.folder, context.narrator
    visage = layout(size, config)
    base, starts = files.get("base"), [files.get("expert1"), files.get("expert2")]
    if any(starts) and (not all(starts) or config.stage1_steps):
        raise UsageError("teach: start from both expert1 and expert2, which have their LoRA: set teach.stage1_steps=0")
    annotated, held_out = ([clip for clip in some if clip.annotated_frames] for some in (clips, validation))
    if not annotated:
        raise UsageError("teach: fine-tuning learns from fixations, but no training clip is annotated")
    rank, ranks = rank_and_world()
    share = [*annotated, *held_out][rank::ranks]
    for clip in narrator.track(share, "teach: decode", len(share)):
        visage_windows.cache(cache, clip, visage)
    wait_for_ranks()
    train, val = ([visage_windows.cache(cache, clip, visage) for clip in some] for some in (annotated, held_out))
    automatic = "bf16" if context.device.type == "cuda" else "fp32"
    precision = automatic if config.precision == "auto" else config.precision
    trunk = _trunk(visage, base, config.base_frames, context)
    trunk = trunk.to(context.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    written = folder / "visage" / "trunk.safetensors"
    if base is None and rank == 0:
        write_tensors(written, trunk.state_dict())
    narrator.say(
        f"teach: visage {size} on {base.name if base else 'a trunk of random weights'}, {len(train)} clips, "
        f"{config.stage1_steps} + {config.stage2_steps} steps of {config.batch} x {config.frames} frames, {precision}, "
        f"{ranks} {'process' if ranks == 1 else 'processes'}"
    )
    task = TwoStages(train, val, config, visage, trunk, starts, precision, context)
    progress = fit(task, folder / "visage.jsonl")
    if rank == 0:
        base_name, base_frames = (base, config.base_frames) if base else (written.relative_to(folder), config.frames)
        shape = {"base": str(base_name), "base_frames": base_frames, "experts": task.files, "config": visage.to_dict()}
        write_json(folder / "visage.json", shape)
        task.resume_path.unlink(missing_ok=True)
    wait_for_ranks()
    return {"steps": progress.step, "val_cc": [progress.kept[file] for file in task.files]}


def open_tuned(folder: Path, device: torch.device, how: Inference = PLAIN) -> Visage:
    """The teacher that `teach` wrote to `folder`. Raises UsageError where files are missing or do not fit."""
    description = read_json(folder / "visage.json")
    with usage_errors():
        config = VisageConfig.from_dict(description["config"])
        files = [folder / name for name in description["experts"]]
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        base, frames = folder / description["base"], description["base_frames"]
        net = load_released(config, base, files, orig_t_size=frames, dtype=dtype, device=device)
    return Visage(net.eval(), config, device=device, how=how)


def outputs(random: bool) -> list[str]:
    """The files that `teach` writes, relative to its folder; `random`: without a published base."""
    weights = ("expert1", "expert2", "trunk") if random else ("expert1", "expert2")
    return ["visage.json", "visage.jsonl", *(f"visage/{name}.safetensors" for name in weights)]


def _trunk(visage: VisageConfig, base: Path | None, base_frames: int, context: TrainingContext) -> InternVideo2:
    """The trunk with its published weights, in the file's type; without a file, random weights that follow from the seed."""
    if base is None:
        torch.manual_seed(context.seed)
        with context.device:  # drawing six billion numbers takes a CPU minutes
            return InternVideo2(visage.trunk)
    with torch.device("meta"):
        trunk = InternVideo2(visage.trunk)
    with usage_errors():
        load_trunk(trunk, trunk_state(read_weights(base)), orig_t_size=base_frames, source=str(base))
    return trunk


def trunk_streams(trunk: InternVideo2, clip_BCTHW: Tensor, taps: Sequence[int], lora: Lora | None = None) -> list[Tensor]:
    """The trunk's streams, computed in its own type, also under autocast: that would have CUDA's norms return float32, which the
    next layer would convert back."""
    with autocast(clip_BCTHW.device, "fp32"):
        return trunk(clip_BCTHW.to(trunk.cls_token.dtype), taps, lora)


class ExpertTrainer(nn.Module):
    """The trained part of one expert: reducers, decoder and FiLM, and from stage 2 on LoRA in the trunk."""

    def __init__(self, expert: Expert1 | Expert2, lora: Lora) -> None:
        super().__init__()
        self.expert, self.lora = expert, lora

    def forward(
        self, trunk: InternVideo2, clip_BCTHW: Tensor, streams: Sequence[Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B,T,H,W]`, and those of the auxiliary heads while they learn.

        `streams` are the plain trunk's, in stage 1; None: computed here, with LoRA.
        """
        stage1 = streams is not None
        streams = streams or trunk_streams(trunk, clip_BCTHW, self.expert.config.taps, self.lora)
        if isinstance(self.expert, Expert2):
            return self.expert(streams, aux=self.training and stage1)
        return self.expert(streams), {}

    def enter(self, stage: int) -> None:
        """Sets what learns in a stage, and what is frozen."""
        self.train().requires_grad_(True)
        self.lora.requires_grad_(stage == 2)
        if isinstance(self.expert, Expert2):
            self.expert.decoder.aux_heads.requires_grad_(stage == 1)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(stage == 1)

    def released(self) -> dict[str, Tensor]:
        """All weights under the names of a released file."""
        return self.expert.state_dict() | self.lora.released_state()

    def load_released(self, path: Path) -> None:
        """Loads an expert: a released file, or one that was kept here. Raises UsageError where it does not fit."""
        with usage_errors():
            state = read_weights(path)
            rest = {key: value for key, value in state.items() if not key.startswith(TRUNK_PREFIX)}
            load_state_dict_exact(self.expert, rest, source=str(path))
            self.lora.load_released(state, source=str(path))


class TwoStages(Task):
    """The fine-tuning of both experts, for `fit`; phase 0 is stage 1.

    `trunk` is on the device, in the type in which it computes; `starts` are experts to start from, with their LoRA;
    `precision` is fp32 or bf16.
    """

    name, lr_key, resume_file = "teach", "teach.lr", "visage_last.pt"
    phase_intervals = validate_start = True
    labels = ({"stage": 1}, {"stage": 2})

    def __init__(
        self, train: Sequence[WindowClip], validation: Sequence[WindowClip], config: Teach, visage: VisageConfig,
        trunk: InternVideo2, starts: Sequence[Path | None], precision: str, context: TrainingContext,
    ) -> None:  # fmt: skip
        self.clips, self.validation, self.config, self.visage = train, validation, config, visage
        self.precision, self.context = precision, context
        self.rank, self.ranks = rank_and_world()
        if config.batch % self.ranks:
            raise UsageError(f"teach.batch {config.batch} does not divide over {self.ranks} processes; make it a multiple")
        self.trunk = trunk.requires_grad_(False).eval()
        trunk.checkpointing = config.recompute
        torch.manual_seed(context.seed)
        self.trainers = [
            ExpertTrainer(KINDS[kind](visage), Lora(visage.trunk, config.rank, config.alpha, config.dropout))
            for kind in visage.experts
        ]
        for trainer, start in zip(self.trainers, starts, strict=True):
            trainer.to(context.device)
            if start:
                trainer.load_released(start)
        self.learners: list[nn.Module] = [*self.trainers]
        self.modules = {f"expert {n}": trainer for n, trainer in enumerate(self.trainers, 1)}
        self.files = [f"visage/expert{n}.safetensors" for n, _ in enumerate(visage.experts, 1)]
        self.phase_steps = (config.stage1_steps, config.stage2_steps)
        self.validate_every, self.checkpoint_every = config.validate_every, config.checkpoint_every
        kept: dict[str, str | None] = {file: f"cc{n}" for n, file in enumerate(self.files, 1)}
        self.ema, self.kept_files = config.ema, (kept, kept)

    def enter(self, phase: int) -> torch.optim.Optimizer:
        for trainer in self.trainers:
            trainer.enter(phase + 1)
        if self.ranks > 1:
            self.learners = [DistributedDataParallel(trainer) for trainer in self.trainers]
        groups = [[p for t in self.trainers for p in t.expert.parameters() if p.requires_grad]]
        if phase == 1:
            groups.append([p for trainer in self.trainers for p in trainer.lora.parameters()])
        return torch.optim.AdamW([{"params": group} for group in groups], weight_decay=self.config.weight_decay)

    def learning_rates(self, at: Moment) -> list[float]:
        peaks = [self.config.lr] if at.phase == 0 else [self.config.lr_decoder, self.config.lr_lora]
        return [visage_rate(at.phase_step, self.phase_steps[at.phase], peak, self.config.warmup) for peak in peaks]

    def draw(self, at: Moment) -> Windows:
        length = self.visage.trunk.frames
        starts = draw(self.clips, length, self.config.batch, self.context.seed, at.step)
        return read(starts[self.rank :: self.ranks], length)

    def batch(self, drawn: Windows, at: Moment) -> Windows:
        torch.manual_seed(int(np.random.default_rng((self.context.seed, at.step, self.rank)).integers(2**62)))  # dropout
        return drawn

    def backward(self, batch: Windows, at: Moment) -> Losses:
        """Losses are means over the counted frames of all processes."""
        device, size = self.context.device, self.config.at_once or len(batch.places)
        count = sum_over_ranks(batch.counts_BT.sum().float()).clamp(min=1).item()  # on the CPU: no kernel has to be awaited
        losses = torch.zeros(len(self.learners), device=device)
        for start in range(0, len(batch.places), size):
            part, final = slice(start, start + size), start + size >= len(batch.places)
            frames_BTCHW, density_BTHW, fixations_BTHW, counts_BT = (
                x[part].to(device, non_blocking=True)
                for x in (batch.frames_BTCHW, batch.density_BTHW, batch.fixations_BTHW, batch.counts_BT)
            )
            clip_BCTHW, counts = normalise(frames_BTCHW).transpose(1, 2), counts_BT.flatten()
            density, fixations = density_BTHW.flatten(0, 1), fixations_BTHW.flatten(0, 1)
            with torch.no_grad():
                streams = self._shared_streams(clip_BCTHW, at.phase)
            for n, learner in enumerate(self.learners):
                alone = learner.no_sync() if isinstance(learner, DistributedDataParallel) and not final else nullcontext()
                with alone:  # gradients are exchanged once
                    with autocast(device, self.precision):
                        logits_BTHW, aux = learner(self.trunk, clip_BCTHW, streams)
                    each, _ = visage_losses(logits_BTHW.flatten(0, 1), density, fixations)
                    for name, aux_BTHW in aux.items():
                        each = each + VISAGE_AUX_WEIGHTS[name] * visage_losses(aux_BTHW.flatten(0, 1), density, None)[0]
                    loss = (each * counts).sum() / count
                    (loss * self.ranks).backward()  # DistributedDataParallel takes the mean over processes
                    losses[n] += loss.detach()
        return Losses({f"loss{n}": value for n, value in enumerate(sum_over_ranks(losses), 1)}, batch.places)

    def _shared_streams(self, clip_BCTHW: Tensor, phase: int) -> Sequence[Tensor] | None:
        """The plain trunk's outputs, which both experts share in stage 1; None in stage 2."""
        return trunk_streams(self.trunk, clip_BCTHW, self.visage.taps) if phase == 0 else None

    @torch.no_grad()
    def validate(self, phase: int) -> dict[str, float]:
        """CC of each expert and CC and NSS of both fused, means over the frames of `val_windows` windows per clip."""
        device, length = self.context.device, self.visage.trunk.frames
        starts = spread(self.validation, length, self.config.val_windows)[self.rank :: self.ranks]
        size = self.config.at_once or max(1, self.config.batch // self.ranks)
        sums = torch.zeros(len(self.averages) + 3, device=device)  # CC of each expert and of both, NSS of both, frames
        for windows in (read(starts[i : i + size], length) for i in range(0, len(starts), size)):
            clip_BCTHW = normalise(windows.frames_BTCHW.to(device)).transpose(1, 2)
            streams = self._shared_streams(clip_BCTHW, phase)
            with autocast(device, self.precision):
                logits = [trainer(self.trunk, clip_BCTHW, streams)[0].float() for trainer in self.averages.values()]
            counted = windows.counts_BT.flatten().to(device)
            density, fixations = (x.flatten(0, 1).to(device)[counted] for x in (windows.density_BTHW, windows.fixations_BTHW))
            for n, maps in enumerate([*logits, fuse(logits, self.visage.weights, self.visage.fusion)]):
                _, parts = frame_losses(maps.flatten(0, 1)[counted], density, fixations, {"nss": 1.0})
                sums[n] += (1 - parts["cc"]).sum()
            sums[-2] -= parts["nss"].sum()
            sums[-1] += counted.sum()
        *values, frames = sum_over_ranks(sums).tolist()
        names = [*self.kept_files[phase].values(), "cc", "nss"]
        scores = {str(name): value / frames for name, value in zip(names, values, strict=True)} if frames else {}
        return self.labels[phase] | scores

    def keep(self, name: str, scores: dict[str, float], step: int) -> None:
        trainer = self.averages[f"expert {self.files.index(name) + 1}"]
        assert isinstance(trainer, ExpertTrainer)
        write_tensors(self.context.folder / name, trainer.released(), {"lora_alpha": str(self.config.alpha)})

    def load_kept(self, phase: int) -> None:
        for trainer, file in zip(self.trainers, self.files, strict=True):
            trainer.load_released(self.context.folder / file)

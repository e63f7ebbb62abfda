"""The teacher registry: how each teacher of the catalogue is built, and how a run trains those that it can train.

Its keys are the catalogue's (name, size). `maps` is not among them: it looks labels up (`building.open_maps`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.corpora import Corpus
from distill.labels.members import Member, trained_here
from distill.labels.onnx_teacher import OnnxTeacher
from distill.recipe.keys import Recipe
from distill.run.collectives import process_group
from distill.run.errors import UsageError
from distill.teachers import Inference, Teacher
from distill.teachers.salfom import Salfom, SalfomConfig
from distill.teachers.tased import Tased, TasedConfig
from distill.teachers.umt import UmtConfig
from distill.teachers.unisal import Unisal
from distill.teachers.visage import Visage, VisageConfig, expert_kind, load_released, random_net
from distill.teachers.weights import read_weights
from distill.training import fine_tune, frames
from distill.training.loop import TrainingContext
from distill.training.unisal import train_unisal
from distill.training.visage import train_visage

SEED = 0  # of random weights

Build = Callable[[Recipe, Member, torch.device, Path, Inference], Teacher]
"""Recipe, member, device, folder of this run's checkpoints, inference options -> the teacher. ValueError for unusable weights."""

Trained = tuple[list[str], dict[str, Any]]
"""Files, relative to the folder of the checkpoints, and facts for the run's manifest."""

Train = Callable[[Recipe, Member, Corpus, Path, TrainingContext], Trained]
"""Recipe, member, corpus, folder of decoded frames (its own go into subfolders), context -> what training leaves."""


@dataclass(frozen=True)
class Registered:
    """What the pipeline can do with a teacher."""

    build: Build
    train: Train | None = None
    all_ranks: bool = False  # whether every rank of a torchrun job calls `train`, or rank 0 alone


def _build_tiny(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    if member.random:
        config = _tiny_config(recipe)
        return _fused(recipe, Visage(random_net(config, SEED, device=device), config, device=device, how=how))
    return _fused(recipe, Visage.load(member.path() or checkpoints / "visage.pt", device=device, how=how))


def _train_tiny(recipe: Recipe, member: Member, corpus: Corpus, cache: Path, context: TrainingContext) -> Trained:
    clips = [frames.load(cache, clip, recipe.train.sample_fps) for clip in corpus.select(corpus.train)]
    train_visage(clips, recipe.teacher, _tiny_config(recipe), context)
    return ["visage.pt"], {"steps": recipe.teacher.steps}


def _tiny_config(recipe: Recipe) -> VisageConfig:
    return VisageConfig(sample_fps=recipe.train.sample_fps)  # it labels at the frame rate of its training


def _build_released(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    """A visage of a published size: from the authors' files, from what this run trained, or with random weights."""
    if trained_here(recipe, member):
        return _fused(recipe, fine_tune.open_tuned(checkpoints, device, how))
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    config = fine_tune.layout(member.entry.size, recipe.teach)
    base, *experts = member.given.values()
    if member.random:
        if len(member.random) < len(experts) + 1:
            raise UsageError("teacher.weights: the base and experts of visage must all be random, or none of them")
        net = random_net(config, SEED, dtype=dtype, device=device)
    else:
        kinds = tuple(expert_kind(read_weights(path), path) for path in experts)
        config = replace(config, experts=kinds, weights=(1 / len(kinds),) * len(kinds))
        frames_of_base = recipe.teach.base_frames
        net = load_released(config, base, experts, orig_t_size=frames_of_base, dtype=dtype, device=device).eval()
    return _fused(recipe, Visage(net, config, device=device, how=how))


def _train_released(recipe: Recipe, member: Member, corpus: Corpus, cache: Path, context: TrainingContext) -> Trained:
    files = {part: member.path(part) for part in member.files}
    clips, validation = corpus.select(corpus.train), corpus.select(corpus.val)
    with process_group(context.device):
        facts = fine_tune.teach(clips, validation, recipe.teach, member.entry.size, files, context, cache / "visage")
    return fine_tune.outputs(random=files["base"] is None), facts


def _fused(recipe: Recipe, teacher: Visage) -> Visage:
    """The teacher with the fusion that the recipe asks for."""
    weights = recipe.teacher.expert_weights or teacher.config.weights
    teacher.config = replace(teacher.config, fusion=recipe.teacher.fusion, weights=weights)
    teacher.net.config = teacher.config  # type: ignore[assignment]
    return teacher


def _build_unisal(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    domain = recipe.teacher.domain
    path = checkpoints / "unisal.pt" if trained_here(recipe, member) else member.path()
    return Unisal.load(path, domain, device=device) if path else Unisal.random(SEED, domain, device=device)


def _train_unisal(recipe: Recipe, member: Member, corpus: Corpus, cache: Path, context: TrainingContext) -> Trained:
    clips, start, trunk = corpus.select(corpus.train), member.path(), member.path("trunk")
    train_unisal(clips, recipe.unisal, context, cache / "unisal", start=start, trunk=trunk)
    return ["unisal.pt"], {"epochs": recipe.unisal.epochs}


def _build_last_frame(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    """TASED-Net or SalFoM, which map the last frame of a window."""
    path, every, size = member.path(), recipe.teacher.every, member.entry.size
    if member.name == "tased":
        tased = TasedConfig(every=every)
        return Tased.load(path, device, tased, how=how) if path else Tased.random(SEED, device, tased, how=how)
    salfom = SalfomConfig(UmtConfig.of(size), every=every)
    return Salfom.load(path, device, salfom, how=how) if path else Salfom.random(SEED, device, salfom, how=how)


REGISTRY: dict[tuple[str, str], Registered] = {
    ("visage", "tiny"): Registered(_build_tiny, _train_tiny),
    **{("visage", size): Registered(_build_released, _train_released, all_ranks=True) for size in ("S", "B", "L", "1B", "6B")},
    ("unisal", ""): Registered(_build_unisal, _train_unisal),
    **{key: Registered(_build_last_frame) for key in (("tased", ""), ("salfom", "L"), ("salfom", "B"))},
    ("onnx", ""): Registered(lambda recipe, member, *_: OnnxTeacher(Path(member.files[""]))),
}

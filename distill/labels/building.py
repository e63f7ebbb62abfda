"""From a recipe to a teacher that labels: how each is built and trained, then fused, calibrated, and described.

`REGISTRY` has every teacher of the catalogue but `maps`, which looks labels up.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.corpora import Corpus, parts_of
from distill.labels.calibration import Calibrated, load
from distill.labels.ensemble import Ensemble, Mirrored
from distill.labels.licences import binding, chain
from distill.labels.members import (
    Member,
    Team,
    map_folders,
    map_store,
    member_source,
    members,
    names,
    source,
    teams,
    trained_here,
)
from distill.labels.onnx_teacher import OnnxTeacher
from distill.labels.store import StoredLabels
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError, usage_errors
from distill.run.files import read_json
from distill.run.machine.collectives import process_group
from distill.teachers import PLAIN, Inference, Lookup, Teacher
from distill.teachers.maps import MapsTeacher
from distill.teachers.salfom import Salfom, SalfomConfig
from distill.teachers.tased import Tased, TasedConfig
from distill.teachers.umt import UmtConfig
from distill.teachers.unisal import STATIC_DOMAIN, Unisal
from distill.teachers.unisal.net import MobileNetV2
from distill.teachers.visage import Visage, VisageConfig, expert_kind, load_released, random_net
from distill.teachers.weights import read_weights
from distill.training import frames
from distill.training.loop import TrainingContext
from distill.training.teachers import fine_tune
from distill.training.teachers.unisal import train_unisal
from distill.training.teachers.visage import train_visage

SEED = 0  # of random weights

Build = Callable[[Recipe, Member, torch.device, Path, Inference], Teacher]
"""Recipe, member, device, folder of this run's checkpoints, inference options -> the teacher. ValueError for unusable weights."""

Trained = tuple[list[str], dict[str, Any]]
"""Files, relative to the folder of the checkpoints, and facts for the run's manifest."""

Train = Callable[[Recipe, Member, Corpus, Path, TrainingContext], Trained]
"""Recipe, member, corpus, folder of decoded frames (a teacher's own in a subfolder), context -> the result of training."""


@dataclass(frozen=True)
class Registered:
    """How the pipeline builds a teacher, and trains it where it can."""

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
    """A visage of a published size: from the authors' files, from this run's training, or with random weights."""
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
    """The teacher with the recipe's fusion."""
    weights = recipe.teacher.expert_weights or teacher.config.weights
    teacher.config = replace(teacher.config, fusion=recipe.teacher.fusion, weights=weights)
    teacher.net.config = teacher.config  # type: ignore[assignment]
    return teacher


def _build_unisal(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    domain = member.variant or recipe.teacher.domain
    path = checkpoints / "unisal.pt" if trained_here(recipe, member) else member.path()
    options: dict[str, Any] = {"static": recipe.teacher.static, "stills": member.variant or STATIC_DOMAIN}
    if not path:
        return Unisal.random(SEED, domain, device=device, **options)
    return Unisal.load(path, domain, device=device, **options)


def _train_unisal(recipe: Recipe, member: Member, corpus: Corpus, cache: Path, context: TrainingContext) -> Trained:
    clips, start, trunk = corpus.select(corpus.train), member.path(), member.path("trunk")
    train_unisal(clips, recipe.unisal, context, cache / "unisal", start=start, trunk=trunk)
    return ["unisal.pt"], {"epochs": recipe.unisal.epochs}


def _build_last_frame(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    """TASED-Net or SalFoM, which map the last frame of a window."""
    path, every = member.path(), recipe.teacher.every
    network: Any = Tased if member.name == "tased" else Salfom
    config = TasedConfig(every=every) if network is Tased else SalfomConfig(UmtConfig.of(member.entry.size), every=every)
    return network.load(path, device, config, how=how) if path else network.random(SEED, device, config, how=how)


REGISTRY: dict[tuple[str, str], Registered] = {  # by name and size
    ("visage", "tiny"): Registered(_build_tiny, _train_tiny),
    **{("visage", size): Registered(_build_released, _train_released, all_ranks=True) for size in ("S", "B", "L", "1B", "6B")},
    ("unisal", ""): Registered(_build_unisal, _train_unisal),
    **{key: Registered(_build_last_frame) for key in (("tased", ""), ("salfom", "L"), ("salfom", "B"))},
    ("onnx", ""): Registered(lambda recipe, member, *_: OnnxTeacher(Path(member.files[""]))),
}


def open_teacher(
    recipe: Recipe, device: torch.device, checkpoints: Path, how: Inference = PLAIN, team: Team | None = None
) -> Teacher:
    """The teacher of a recipe, on `device`; not for `maps`.

    checkpoints: the folder with the weights that the run itself has trained. team: one of the recipe's, teacher.name's if None.
    Raises UsageError for weights that are missing, damaged or of another network.
    """
    team = team or teams(recipe.teacher)[0]
    built = [_build(recipe, member, device, checkpoints, how) for member in team.members]
    teacher = built[0] if len(built) == 1 else Ensemble(team.name, built, [member.weight for member in team.members])
    return Ensemble(team.name, [teacher, Mirrored(teacher)], [1, 1]) if recipe.teacher.flip else teacher


def _build(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    with usage_errors(), torch.random.fork_rng(devices=[]):  # random weights must be the same when a run is continued
        torch.manual_seed(0)
        return REGISTRY[member.entry.name, member.entry.size].build(recipe, member, device, checkpoints, how)


def trunk(recipe: Recipe, device: torch.device, checkpoints: Path) -> MobileNetV2:
    """The encoder of the recipe's first unisal, as a copy of which the student's can start; `members.check` has found one."""
    first = next(member for member in members(recipe.teacher) if member.name == "unisal")
    teacher = _build(recipe, first, device, checkpoints, PLAIN)
    assert isinstance(teacher, Unisal)
    return teacher.net.cnn


def try_out(recipe: Recipe, device: torch.device, how: Inference) -> Iterator[str]:
    """Opens every teacher that is not trained in the run, one after the other, and yields its source.

    Raises UsageError like `open_teacher`.
    """
    how = replace(how, compile=False)  # compiled modules are freed late, and here nothing runs
    team = members(recipe.teacher)
    ready = [member for member in team if not trained_here(recipe, member)]
    if len(ready) == len(team) and recipe.teacher.calibration:
        maps = team[0].name == "maps"
        calibrated(recipe, open_maps(recipe) if maps else open_teacher(recipe, device, Path(), how))
        yield source(recipe)
        return
    seen: list[Member] = []
    for member in (replace(member, weight=1.0) for member in ready):
        if member.name != "maps" and member not in seen:
            seen.append(member)
            _build(recipe, member, device, Path(), how)
            yield member_source(recipe, member)


def open_maps(recipe: Recipe) -> MapsTeacher | StoredLabels:
    """The precomputed labels that a recipe names. Raises UsageError where there are none.

    teacher.maps is one folder, one folder per part of the corpus, a folder with a subfolder per part, or the label store of
    another run.
    """
    folders, corpus = map_folders(recipe.teacher), recipe.corpus
    if not folders:
        raise UsageError("teacher maps needs --maps, the folder that holds CLIP.npz or PNG folders")
    parts = parts_of(corpus.name, corpus.root or "") if corpus.name != "synthetic" else []
    if len(folders) > 1 and len(folders) != len(parts):
        raise UsageError(
            f"teacher.maps names {len(folders)} folders, the corpus has {max(1, len(parts))} parts; give one --maps, or one for each"
        )
    if store := map_store(recipe.teacher):
        return StoredLabels(store)
    with usage_errors():
        if len(parts) < 2:
            return MapsTeacher(folders[0])
        if len(folders) == 1:
            root = folders[0]
            candidates = [(root / part.name, root / part.root.name, root) for part in parts]
            folders = [next((path for path in paths if path.is_dir()), root) for paths in candidates]
        return MapsTeacher({part.name: folder for part, folder in zip(parts, folders, strict=True)})


def calibrated(recipe: Recipe, teacher: Teacher | Lookup) -> Teacher | Lookup:
    """The teacher with the recipe's calibration, if it names one. Raises UsageError for the calibration of another teacher."""
    if not recipe.teacher.calibration:
        return teacher
    return Calibrated(teacher, load(Path(recipe.teacher.calibration), teacher.fingerprint()))


def describe(recipe: Recipe, teacher: Teacher | Lookup, *others: Teacher) -> dict[str, Any]:
    """The description of the teachers that a label store keeps: plain values; names of files without folders.

    teacher, others: of the recipe's teams, in order. `chain` is a list of [part, licence]; `random` names the parts with random
    weights; `parts`, where there are several teams, has the teacher of each part of the corpus with one of its own. Labels of
    another run keep that run's description; only a calibration is added.
    """
    options, all_teams = recipe.teacher, teams(recipe.teacher)
    if options.name == "maps" and (store := map_store(options)):
        description = dict(read_json(store / "store.json")["teacher"])
        description["source"] += "; labels of another run"
    else:
        every = members(options)
        description = {
            "name": names(options),
            "source": source(recipe),
            "license": ", ".join(dict.fromkeys(licence for member in every for _, licence in binding(member))),
            "chain": [list(part) for part in dict.fromkeys(part for member in every for part in chain(member))],
            "random": list(dict.fromkeys(part for member in every for part in member.random)),
        }
        if others:
            description["parts"] = {part: team.name for team in all_teams for part in team.parts}
    if isinstance(teacher, Calibrated):
        description["calibration"] = teacher.calibration.to_dict()
    own_prints = zip(all_teams[1:], (other.fingerprint() for other in others), strict=True)
    of_part = {part: own for team, own in own_prints for part in team.parts}
    return {**description, "fingerprint": _fingerprint(teacher.fingerprint(), of_part)}


def _fingerprint(common: str, of_part: Mapping[str, str]) -> str:
    """The fingerprint of labels by several teachers; the common one's where the parts have its labels too."""
    different = sorted((part, own) for part, own in of_part.items() if own != common)
    return hashlib.sha256(json.dumps(["parts 1", common, different]).encode()).hexdigest() if different else common


def warning(description: Mapping[str, Any]) -> str:
    """A warning about labels of random weights, from what `describe` returned; empty where there are none."""
    parts = ", ".join(description["random"])
    return f"RANDOM WEIGHTS ({parts}): these labels are meaningless and only serve as a smoke test" if parts else ""

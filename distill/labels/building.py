"""From a recipe to a teacher that labels: its members built, fused, calibrated, and described for the label store."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distill.corpora import parts_of
from distill.labels.calibration import Calibrated, load
from distill.labels.ensemble import Ensemble
from distill.labels.licences import binding, chain
from distill.labels.members import Member, map_folders, map_store, member_source, members, source, trained_here
from distill.labels.registry import REGISTRY
from distill.labels.store import StoredLabels
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError, usage_errors
from distill.run.files import read_json
from distill.teachers import PLAIN, Inference, Lookup, Teacher
from distill.teachers.maps import MapsTeacher


def open_teacher(recipe: Recipe, device: torch.device, checkpoints: Path, how: Inference = PLAIN) -> Teacher:
    """The teacher that a recipe names, on `device`; not for `maps`.

    checkpoints: the folder with what the run itself has trained. Raises UsageError for weights that are missing, damaged or
    of another network.
    """
    team = members(recipe.teacher)
    built = [_build(recipe, member, device, checkpoints, how) for member in team]
    return built[0] if len(built) == 1 else Ensemble(recipe.teacher.name, built, [member.weight for member in team])


def _build(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    with usage_errors(), torch.random.fork_rng(devices=[]):  # random weights must be the same when a run is continued
        torch.manual_seed(0)
        return REGISTRY[member.entry.name, member.entry.size].build(recipe, member, device, checkpoints, how)


def try_out(recipe: Recipe, device: torch.device, how: Inference) -> Iterator[str]:
    """Opens every teacher that is not trained in the run, one after the other, and yields its source.

    Raises UsageError like `open_teacher`.
    """
    team = members(recipe.teacher)
    ready = [member for member in team if not trained_here(recipe, member)]
    if len(ready) == len(team) and recipe.teacher.calibration:
        maps = team[0].name == "maps"
        calibrated(recipe, open_maps(recipe) if maps else open_teacher(recipe, device, Path(), how))
        yield source(recipe)
        return
    for member in ready:
        if member.name != "maps":
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
            f"teacher.maps names {len(folders)} folders, the corpus has {max(1, len(parts))} parts; give one --maps, or one "
            "for each part in the same order"
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


def describe(recipe: Recipe, teacher: Teacher | Lookup) -> dict[str, Any]:
    """What a label store records of its teacher: plain values; names of files without folders.

    `chain` is a list of [part, licence]; `random` names the parts with random weights. Labels of another run keep that run's
    description; only a calibration is added.
    """
    options = recipe.teacher
    if options.name == "maps" and (store := map_store(options)):
        description = dict(read_json(store / "store.json")["teacher"])
        description["source"] += "; labels of another run"
    else:
        team = members(options)
        description = {
            "name": options.name,
            "source": source(recipe),
            "license": ", ".join(dict.fromkeys(licence for member in team for _, licence in binding(member))),
            "chain": [list(part) for member in team for part in chain(member)],
            "random": [part for member in team for part in member.random],
        }
    if isinstance(teacher, Calibrated):
        description["calibration"] = teacher.calibration.to_dict()
    return {**description, "fingerprint": teacher.fingerprint()}


def warning(description: Mapping[str, Any]) -> str:
    """A warning about labels of random weights, from what `describe` returned; empty where there are none."""
    parts = ", ".join(description["random"])
    return f"RANDOM WEIGHTS ({parts}): these labels are meaningless and only serve as a smoke test" if parts else ""

"""What a new run takes over from another one: the files of stages whose ingredients agree, so that nothing is decoded, labelled or
trained twice.

A stage's ingredients are the recipe's keys that its files depend on, and the contents of what it reads from outside. They are fewer
than its fingerprint covers: frames depend on the working size and the frame rate in training, and not on its number of steps.
Frames and labels become hard links where the disk allows it, for whatever writes them anew gives the name to a new file; all else is
copied. The stage is recorded as done when all its files have their names, so that a kill costs nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.labels import members
from distill.recipe.keys import SECTIONS, Recipe
from distill.run.directory import CACHES, RunDir, is_done, manifest_of, recipe_of
from distill.run.errors import UsageError
from distill.run.files import atomic
from distill.run.plan import STAGES, inputs, stage_keys

TAKEN = ("corpus", "frames", "teach", "label", "train")
"""The stages that can be taken over; the others take seconds."""
IRRELEVANT = ("teacher.accept_licence", "corpus.attribution")
"""Keys that change none of these files."""


@dataclass(frozen=True)
class Source:
    """Another run."""

    path: Path
    manifest: Mapping[str, Any]
    recipe: Recipe


def open_source(path: Path, target: Path) -> Source:
    """The run in the directory `path`, for one in `target`. Raises UsageError where there is none, or it is the same."""
    if target.exists() and path.exists() and target.samefile(path):
        raise UsageError(f"--from {path} is the run itself; a run continues without --from")
    if (manifest := manifest_of(path)) is None:
        raise UsageError(f"--from {path} holds no run with a manifest; give the folder of a run")
    return Source(path, manifest, recipe_of(path))


def ingredients(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The keys of a recipe that the files of a stage in TAKEN depend on, and their values."""
    trained = any(members.trained_here(recipe, member) for member in members.members(recipe.teacher))
    sections = {"corpus"} | ({"synthetic"} if recipe.corpus.name == "synthetic" else set())
    single = {"student.height", "student.width", "train.sample_fps"} if stage == "frames" else set[str]()
    if stage in ("teach", "label", "train"):
        sections |= {"teacher", "teach", "unisal"} if trained or stage == "train" else {"teacher"}
        single |= {"run.seed", "student.height", "student.width", "train.sample_fps"} if trained else set()
    if stage in ("label", "train"):
        sections |= {"label"}
    if stage == "train":
        sections, single = sections | {"student", "train"}, single | {"run.seed"}
    values = asdict(recipe)
    machine = {f"{name}.{f.name}" for name, section in SECTIONS.items() for f in fields(section) if f.metadata.get("machine")}
    return {
        key: value
        for name, section in values.items()
        for option, value in section.items()
        if (key := f"{name}.{option}") in single or (name in sections and key not in machine and key not in IRRELEVANT)
    }


def obstacle(source: Source, recipe: Recipe, stage: str, known: Mapping[str, Any] | None = None) -> str:
    """Why a stage cannot be taken over from another run; empty where it can. known: fingerprints of what this run reads, as its
    manifest has them; without them, inputs that both runs read count as unchanged."""
    here, there = ingredients(recipe, stage), ingredients(source.recipe, stage)
    if differ := [key for key in {**here, **there} if here.get(key) != there.get(key)]:
        key = differ[0]
        more = f" and {len(differ) - 1} more" if differ[1:] else ""
        return f"{key} is {here.get(key)!r} here and {there.get(key)!r} there{more}"
    if stage == "corpus" and recipe.corpus.name == "synthetic" and not recipe.corpus.root:
        return "a synthetic corpus lies in its own run"
    for what in inputs(recipe, stage):
        other = source.manifest.get("inputs", {}).get(what)
        if not isinstance(other, dict) or (known is not None and other["contents"] != known[what]["contents"]):
            return f"{what} {'changed since' if other else 'was not read there'}"
    done = source.manifest["stages"].get(stage)
    if done is None or not is_done(source.path, source.manifest, stage, done["fingerprint"]):
        return "it is not done there" if done is None else "its files there have changed"
    if done["fingerprint"] != stage_keys(source.recipe)[stage]:
        return "it was done there with another recipe"
    return ""


def take(run: RunDir, source: Source, stage: str) -> tuple[list[str], dict[str, Any]]:
    """Links or copies a stage's files from another run, which `obstacle` allows; returns what the stage leaves: its files, and facts
    for the manifest."""
    done = source.manifest["stages"][stage]
    for name in done["outputs"]:
        linked = name.startswith(CACHES) and name.endswith(".npy")
        with atomic(run / name) as temporary:
            _place(source.path / name, temporary, linked)
    facts = {key: value for key, value in done.items() if key not in ("fingerprint", "outputs", "seconds", "finished")}
    return list(done["outputs"]), facts | {"from": str(source.path)}


def _place(file: Path, target: Path, linked: bool) -> None:
    if linked and os.access(file, os.W_OK):  # a run of somebody else's stays theirs
        with contextlib.suppress(OSError):  # another disk, or a file system without links
            os.link(file, target)
            return
    shutil.copyfile(file, target)
    state = file.stat()
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))  # unchanged, for the manifest


def stages_to_take(source: Source, recipe: Recipe) -> list[str]:
    """The stages that a plan says can be taken: before the inputs are read again."""
    return [stage.name for stage in STAGES if stage.name in TAKEN and not obstacle(source, recipe, stage.name)]

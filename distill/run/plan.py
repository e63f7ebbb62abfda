"""The stages of a run, in order, as plain data; and the checks of a recipe before anything is written.

A stage's fingerprint covers its name, the recipe's sections that it reads, and the fingerprint of the stage before it; that
of `export` also the texts that ship, which may be written when the scores are known. A stage that is done under the same
fingerprint is skipped. `stages` implements the stages, `engine` runs them; this module imports no torch, so that `--dry-run`
and usage errors are quick, and decodes no frame.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.corpora import CORPORA, attribution, find, parts_of, sources
from distill.corpora.clips import check_known, counted, leaving_out
from distill.corpora.opening import Part
from distill.corpora.synthetic import check_root, clip_ids
from distill.labels import licences, members
from distill.recipe.files import decisive, did_you_mean
from distill.recipe.keys import Recipe
from distill.reporting.notes import read_notes
from distill.run.directory import is_done, read_manifest
from distill.run.errors import UsageError
from distill.run.files import fingerprint


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    about: str
    sections: tuple[str, ...]
    """Sections of the recipe that the result depends on, beside the stages before it."""
    shared: bool = False
    """All ranks of a torchrun job take part; every other stage is rank 0's alone."""
    rewrites: str = ""
    """The stage whose files it changes."""


ONLY_TESTS = "all clips are of the corpus's official test set; --set corpus.split=share uses them"
STAGES = (
    Stage("preflight", "export and gate a random-weight student, open the teacher", ("student", "export", "teacher")),
    Stage("corpus", "find, check and split the clips", ("corpus", "synthetic")),
    Stage("frames", "decode every clip once, at the working resolution", ("train",)),
    Stage("teach", "train the teacher, if it needs training", ("teacher", "teach", "unisal", "run"), shared=True),
    Stage("label", "write the soft labels", ("label",), shared=True),
    Stage("train", "train the student", (), shared=True),
    Stage("export", "write, gate, compare and name the ONNX files", ()),
    Stage("eval", "score the ONNX files on the validation clips, and write the scores into them", ("eval",), rewrites="export"),
    Stage("report", "write report.html", ("report",)),
)


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The fingerprint of every stage."""
    values, keys, key = decisive(recipe), {}, ""
    for stage in STAGES:
        texts = _shipped_texts(recipe) if stage.name == "export" else []
        key = fingerprint(stage.name, {section: values[section] for section in stage.sections}, key, *texts)
        keys[stage.name] = key
    return keys


def _shipped_texts(recipe: Recipe) -> list[str]:
    """The content of the attribution and the notes with their pictures, in hex."""
    texts = [Path(recipe.corpus.attribution).read_bytes()] if recipe.corpus.attribution else []
    if recipe.export.notes:
        text, pictures = read_notes(Path(recipe.export.notes), recipe.run.name)
        texts += [text.encode(), *pictures.values()]
    return [text.hex() for text in texts]


def dry_run(path: Path, recipe: Recipe, force: bool = False) -> list[dict[str, Any]]:
    """The plan of a run, one row per stage: `stage`, `state`, `about`, `detail`, and `seconds` where it is done. Raises UsageError where
    it could not start: missing input, another run in `path`."""
    check_ready(recipe)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; name a directory")
    return rows(path, recipe, read_manifest(path, recipe, force) if path.is_dir() else None)


def rows(path: Path, recipe: Recipe, manifest: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """`dry_run` without its checks, for a run with this manifest."""
    details, keys, found = _details(recipe), stage_keys(recipe), list[dict[str, Any]]()
    done = manifest is not None
    for stage in STAGES:
        done = done and manifest is not None and is_done(path, manifest, stage.name, keys[stage.name])
        row = {"stage": stage.name, "state": "done" if done else "to do", "about": stage.about}
        seconds = manifest["stages"][stage.name]["seconds"] if manifest and done else None
        found.append(row | {"detail": details.get(stage.name, ""), "seconds": seconds})
    return found


def _details(recipe: Recipe) -> dict[str, str]:
    """The choices of the recipe that the plan shows, by stage."""
    clips = f"{counted(recipe.synthetic.clips, 'clip')} of {recipe.synthetic.frames} frames"
    if recipe.corpus.name != "synthetic":
        clips = counted(len(find(parts_of(recipe.corpus.name, recipe.corpus.root), recipe.corpus)), "clip")
    train, student = recipe.train, recipe.student
    frames = round(train.frames_first * train.steps)
    return {
        "corpus": clips,
        "teach": members.source(recipe),
        "train": f"{frames} steps of {train.frames} frames, {train.steps - frames} of {train.batch} x {train.window}, "
        f"at {student.height}x{student.width}",
        "eval": f"one frame in {recipe.eval.stride}",
    }


def check_ready(recipe: Recipe) -> None:
    """Raises UsageError for every error that can be detected before anything is written."""
    synthetic = recipe.corpus.name == "synthetic"
    if not (synthetic or recipe.corpus.root):
        name = recipe.corpus.name
        if "," not in name and (corpus := name.partition(":")[0]) not in CORPORA:
            raise UsageError(f"unknown corpus '{corpus}'{did_you_mean(corpus, CORPORA)}")
        raise UsageError(f"corpus {name} needs --root, the folder that holds it; one for each part, in the same order")
    if synthetic and isinstance(recipe.corpus.root, str) and recipe.corpus.root:
        check_root(Path(recipe.corpus.root), recipe.synthetic)
    parts = [] if synthetic else parts_of(recipe.corpus.name, recipe.corpus.root)
    members.check(recipe)
    members.check_parts(recipe.teacher, [part.name for part in parts] or [recipe.corpus.name])
    licences.check_licences(recipe.teacher)
    clips = {} if synthetic else find(parts, recipe.corpus)
    if clips and recipe.corpus.split == "official" and all(clip.side == "test" for _, clip in clips.values()):
        raise UsageError(ONLY_TESTS)
    ids = [*clips]
    if synthetic:
        check_known("corpus.skip", recipe.corpus.skip, made := clip_ids(recipe.synthetic), "the synthetic corpus")
        ids = [clip_id for clip_id in made if clip_id not in recipe.corpus.skip]
    check_known("corpus.val_clips", recipe.corpus.val_clips, ids, "the corpus, or is among those that corpus.skip names")
    if recipe.corpus.attribution:
        files = {clip_id: attribution.file_of(clip, part.root) for clip_id, (part, clip) in clips.items()}
        attribution.attribute(Path(recipe.corpus.attribution), files)
    if recipe.export.notes:
        read_notes(Path(recipe.export.notes), recipe.run.name)
    if recipe.corpus.groups and not Path(recipe.corpus.groups).is_file():
        raise UsageError(f"corpus.groups {recipe.corpus.groups} is not a file; give a CSV with lines `clip,group`")
    if clips and not any(clip.fixations and Path(clip.fixations).exists() for _, clip in clips.values()):
        for member in members.members(recipe.teacher):
            if members.trained_here(recipe, member):
                raise UsageError(
                    f"teacher {member.name} is trained on fixations, and no clip of {recipe.corpus.name} has any; choose one that comes "
                    "trained: --teacher unisal, or --teacher maps"
                )
    if recipe.teacher.name == "maps":
        from distill.labels.building import open_maps  # imports torch, which no other teacher needs here
        from distill.labels.labelling import label_names

        maps = open_maps(recipe)
        wanted = [replace(entry, id=clip_id, corpus=part.name) for clip_id, (part, entry) in clips.items()]
        if without := [clip for clip in wanted if not any(maps.has(name, clip.corpus) for name in label_names(clip))]:
            first = without[0]
            *looked, last = dict.fromkeys(place for name in label_names(first) for place in maps.places(name, first.corpus))
            more = f" and {len(without) - 1:,} more" if without[1:] else ""
            them = f"add {'them' if more else 'it'}"
            if len(without) < len(clips):
                them += f", or {leaving_out([clip.id for clip in without])}"
            raise UsageError(
                f"teacher.maps has nothing for clip {first.id}{more}: there is no {', '.join(looked)} or {last}; "
                f"{_folder_of_maps(recipe, clips[first.id][0]) or them}"
            )
    if recipe.run.device not in ("auto", "cpu"):
        from distill.run.machine import device  # imports torch, which no other check needs

        device.choose(recipe.run.device)


def _folder_of_maps(recipe: Recipe, part: Part) -> str:
    """`did you mean --maps ...?` where the folder of maps has one of its own for this part of the corpus."""
    folders = members.map_folders(recipe.teacher)
    inner = [folder / name for folder in folders for name in (part.name, part.root.resolve().name) if (folder / name).is_dir()]
    return f"did you mean --maps {shlex.quote(str(inner[0]))}?" if inner and len(folders) == 1 else ""


def inputs(recipe: Recipe, until: str = "report") -> dict[str, list[Path]]:
    """The files and folders from outside that a run's stages up to `until` depend on, by description. Texts that ship are not among
    them: see `stage_keys`."""
    options, corpus, maps = recipe.teacher, dict[str, list[Path]](), dict[str, list[Path]]()
    if recipe.corpus.root and recipe.corpus.name != "synthetic":
        parts = parts_of(recipe.corpus.name, recipe.corpus.root)
        corpus = {f"the corpus at {root}": paths for root, paths in sources(parts, recipe.corpus).items()}
    if recipe.corpus.groups:
        corpus[f"the groups in {recipe.corpus.groups}"] = [Path(recipe.corpus.groups)]
    if options.name == "maps":
        maps = {f"the maps in {folder}": [folder] for folder in members.map_folders(options)}
    if options.calibration:
        maps[f"the calibration in {options.calibration}"] = [Path(options.calibration)]
    weights = {f"the weights {name}={file}": [file] for name, file in members.weights_files(options)}
    read = {"corpus": corpus, "teach": weights, "label": maps}  # each by the first stage whose files depend on it
    names = [stage.name for stage in STAGES]
    return {what: paths for name in names[: names.index(until) + 1] for what, paths in read.get(name, {}).items()}

"""The stages of a run, in order, as plain data: what each does, what it depends on, and what a run would do next.

A stage's fingerprint covers its name, the recipe's sections that it reads, and the fingerprint of the stage before it. A
stage that is done under the same fingerprint is skipped. `stages` does the work, `engine` carries it out; this module
imports no torch, so that `--dry-run` and usage errors cost none.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from distill.corpora import find, parts_of
from distill.labels.members import source
from distill.recipe.keys import Recipe
from distill.run.directory import read_manifest
from distill.run.errors import UsageError
from distill.run.files import fingerprint
from distill.run.preflight import check_ready


@dataclass(frozen=True)
class Stage:
    name: str
    about: str
    sections: tuple[str, ...]
    """Sections of the recipe that the result depends on, beside the stages before it."""
    shared: bool = False
    """All ranks of a torchrun job take part; every other stage is rank 0's alone."""


STAGES = (
    Stage("preflight", "export and gate a random-weight student, open the teacher", ("student", "export", "teacher")),
    Stage("corpus", "find, check and split the clips", ("corpus", "synthetic")),
    Stage("frames", "decode every clip once, at the working resolution", ("train",)),
    Stage("teach", "train the teacher, if it needs training", ("teacher", "teach", "unisal", "run"), shared=True),
    Stage("label", "write the soft labels", ("label",), shared=True),
    Stage("train", "train the student", (), shared=True),
    Stage("export", "write, gate, compare and name the ONNX files", ()),
    Stage("eval", "score the ONNX files on the validation clips", ("eval",)),
    Stage("report", "write report.html", ("report",)),
)


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The fingerprint of every stage."""
    values, keys, key = asdict(recipe), {}, ""
    for stage in STAGES:
        key = fingerprint(stage.name, {section: values[section] for section in stage.sections}, key)
        keys[stage.name] = key
    return keys


def dry_run(path: Path, recipe: Recipe, force: bool = False) -> list[dict[str, str]]:
    """What a run would do, one row a stage. Raises UsageError where it could not start: missing input, another run in `path`."""
    check_ready(recipe)
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; name a directory")
    manifest = read_manifest(path, recipe, force) if path.is_dir() else None
    stages = manifest["stages"] if manifest else {}
    details, keys, rows = _details(recipe), stage_keys(recipe), []
    for stage in STAGES:
        done = stages.get(stage.name, {}).get("fingerprint") == keys[stage.name]
        row = {"stage": stage.name, "state": "done" if done else "to do", "about": stage.about}
        rows.append(row | {"detail": details.get(stage.name, "")})
    return rows


def _details(recipe: Recipe) -> dict[str, str]:
    """The recipe's choices that a reader of the plan looks for, by stage."""
    clips = f"{recipe.synthetic.clips} clips of {recipe.synthetic.frames} frames"
    if recipe.corpus.name != "synthetic":
        clips = f"{len(find(parts_of(recipe.corpus.name, recipe.corpus.root), recipe.corpus))} clips"
    train, student = recipe.train, recipe.student
    frames = round(train.frames_first * train.steps)
    return {
        "corpus": clips,
        "teach": source(recipe),
        "train": f"{frames} steps of {train.frames} frames, {train.steps - frames} of {train.batch} x {train.window}, "
        f"at {student.height}x{student.width}",
        "eval": f"one frame in {recipe.eval.stride}",
    }

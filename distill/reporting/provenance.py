"""Where a student comes from: its corpus, its teacher, their licences, and the caveats about its scores.

`provenance` gives the facts about a run's best checkpoint that the ONNX files, sidecars, model card and report state. It names
files and fingerprints, never paths on this machine, because it ships.
"""

import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill import __version__
from distill.corpora import Corpus, parts_of
from distill.corpora.attribution import Attribution, attribute, file_of
from distill.corpora.clips import counted
from distill.labels.catalogue import OURS
from distill.labels.licences import permissive
from distill.recipe.files import portable, to_toml
from distill.recipe.keys import Recipe
from distill.students.tiny_unet import TinyUNet, parameter_count
from distill.training import checkpoint


@dataclass(frozen=True)
class Provenance:
    """Facts about a student that ship with it, as plain values."""

    name: str
    license: str
    corpus: str
    corpus_license: str
    corpus_chain: tuple[tuple[str, str], ...]  # the parts of the corpus, and the licence of each
    teacher: str
    teacher_license: str
    teacher_chain: tuple[tuple[str, str], ...]  # the parts of the teacher, and the licence of each
    restricted: tuple[str, ...]  # parts of the chain whose licence is not known to allow everyone any use
    train_clips: tuple[str, ...]
    val_clips: tuple[str, ...]
    held_out: bool  # whether the validation clips were kept out of training
    fps: float
    parameters: int
    working_size: tuple[int, int]  # height, width
    tau_seconds: tuple[float, float, float]  # shortest, median, longest time constant of the recurrent state
    step: int
    chosen: bool  # whether the step was the best on the validation clips; otherwise it is the last
    recipe: str  # as TOML, without what belongs to one machine
    attribution: tuple[Attribution, ...] = ()  # of every file, if the recipe names a table of them

    @property
    def recipe_sha256(self) -> str:
        """The fingerprint of the recipe: the SHA-256 of `NAME.toml`, which ships."""
        return hashlib.sha256(self.recipe.encode()).hexdigest()

    @property
    def chain(self) -> list[tuple[str, str]]:
        """Everything that the student was made from, and the licence of each part."""
        return [*((f"corpus {part}", license_) for part, license_ in self.corpus_chain), *self.teacher_chain]


def load_student(path: Path, recipe: Recipe) -> tuple[TinyUNet, int]:
    """The student of a checkpoint, in eval mode, and the training step that it is from."""
    saved = checkpoint.load(path)
    student = TinyUNet(recipe.student)
    checkpoint.restore(student, saved["student"], path)
    return student.eval(), int(saved["step"])


def provenance(recipe: Recipe, corpus: Corpus, teacher: Mapping[str, Any], best: Path) -> tuple[Provenance, TinyUNet]:
    """Where the student in the checkpoint `best` comes from, and the student. `teacher`: as its label store describes it."""
    student, step = load_student(best, recipe)
    tau = student.time_constants().numpy()
    lines = attributions(recipe, corpus)
    parts = corpus_chain(recipe, corpus, lines)
    teacher_chain = tuple((part, license_) for part, license_ in teacher["chain"])
    chain = (*((f"corpus {name}", license_) for name, license_ in parts), *teacher_chain)
    origin = Provenance(
        name=recipe.run.name,
        license=stated_license(recipe, parts, teacher),
        corpus=corpus.title,
        corpus_license="; ".join(dict.fromkeys(license_ for _, license_ in parts)),
        corpus_chain=parts,
        teacher=f"{teacher['name']} ({teacher['source']})",
        teacher_license=teacher["license"],
        teacher_chain=teacher_chain,
        restricted=tuple(part for part, license_ in chain if not permissive(license_)),
        train_clips=corpus.train,
        val_clips=corpus.val,
        held_out=corpus.held_out,
        fps=recipe.export.fps or corpus.median_fps,
        parameters=parameter_count(student),
        working_size=(recipe.student.height, recipe.student.width),
        tau_seconds=(float(tau.min()), float(np.median(tau)), float(tau.max())),
        step=step,
        chosen=bool(corpus.val) and recipe.train.keep == "best",
        recipe=to_toml(portable(recipe)),
        attribution=tuple(sorted(set(lines.values()), key=lambda line: line.file)),
    )
    return origin, student


def attributions(recipe: Recipe, corpus: Corpus) -> dict[str, Attribution]:
    """Who made each clip, by its id; empty where the recipe names no table."""
    if not recipe.corpus.attribution:
        return {}
    files = {clip.id: file_of(clip, corpus.roots[clip.corpus]) for clip in corpus.clips}
    return attribute(Path(recipe.corpus.attribution), files)


def corpus_chain(recipe: Recipe, corpus: Corpus, lines: Mapping[str, Attribution]) -> tuple[tuple[str, str], ...]:
    """The parts of the corpus as its title names them, and the licence of each. With an attribution of every clip, `lines`,
    there is one entry for each licence in a part, with the number of files; without, the licence file of the part counts."""
    if lines:
        chain = []
        for name, root in corpus.roots.items():
            counts = Counter(lines[clip.id].licence for clip in corpus.clips if clip.corpus == name)
            chain += [(f"{name}:{Path(root).name}, {counted(n, 'file')}", license_) for license_, n in counts.most_common()]
        return tuple(chain)
    if len(corpus.roots) < 2:
        return ((corpus.title, corpus.license),)
    parts = parts_of(recipe.corpus.name, recipe.corpus.root)
    return tuple((f"{part.name}:{part.root.name}", part.license) for part in parts)


def stated_license(recipe: Recipe, parts: Sequence[tuple[str, str]], teacher: Mapping[str, Any]) -> str:
    """The licence of the student's weights. The one that the recipe states; ours, where both the corpus and the teacher are
    under it; otherwise "not stated", with the licences of both."""
    licenses = list(dict.fromkeys(license_ for _, license_ in parts))
    if recipe.export.license:
        return recipe.export.license
    if teacher["license"] == OURS and all(license_.split(" (")[0] == OURS for license_ in licenses):
        return OURS
    return f"not stated; corpus: {'; '.join(licenses)}; teacher: {teacher['license']}"


def caveats(corpus: Corpus, teacher: Mapping[str, Any] | None = None) -> list[str]:
    """Caveats that a reader of the scores must know. `teacher`: as its label store describes it."""
    warnings = []
    if teacher and teacher["random"]:
        parts = ", ".join(teacher["random"])
        warnings.append(f"the teacher had random weights ({parts}): the student has learned nothing worth using")
    if not corpus.held_out:
        clips = ", ".join(corpus.val)
        warnings.append(f"the annotated clips ({clips}) both train and validate: their scores are not held-out scores")
    if not corpus.val:
        warnings.append("no clip is held out, or none has fixations: nothing is scored, and the last step is taken as the best")
    if corpus.name == "synthetic":
        warnings.append("trained on a procedural corpus: it shows that the pipeline works, and says little about real video")
    return warnings


def git_revision() -> str:
    """The revision of this code; with `-dirty` if files were changed since, `unknown` outside its checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside another project's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def metadata(origin: Provenance, metrics: dict[str, Any] | None) -> dict[str, str]:
    """The metadata properties of both ONNX files. metrics: as in metrics.json, None if not evaluated."""
    properties = {
        "name": origin.name, "task": "video-saliency", "license": origin.license,
        "training_corpus": f"{origin.corpus} ({len(origin.train_clips)} clips; licence: {origin.corpus_license})",
        "teacher": f"{origin.teacher} (licence: {origin.teacher_license})",
        "license_chain": json.dumps(origin.chain, ensure_ascii=False),
        "validation_clips": ",".join(origin.val_clips) if origin.held_out else "",
        "frame_rate": f"{origin.fps:g}",
        "gate_tau_seconds": "shortest {:.3g}, median {:.3g}, longest {:.3g}".format(*origin.tau_seconds),
        "git_revision": git_revision(), "distill_version": __version__, "recipe_sha256": origin.recipe_sha256,
        "parameters": str(origin.parameters), "working_size": "{}x{}".format(*origin.working_size),
        "input": "RGB in [0,1], normalised with ImageNet mean (0.485,0.456,0.406) and std (0.229,0.224,0.225), NCHW",
        "metrics": "not evaluated",
    }  # fmt: skip
    if metrics and metrics["predictors"]:
        scores = {name: rounded(values) for name, values in metrics["predictors"].items() if name in ("step", "image")}
        properties |= {"metrics": json.dumps(scores), "metrics_protocol": metrics["protocol"]}
    return properties


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """The scores with four decimals."""
    return {name: round(value, 4) for name, value in scores.items()}

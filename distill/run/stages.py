"""The work of each stage. Every stage reads files of the run directory and writes others.

`WORK` has a function for each stage of `plan.STAGES`: from a `Context` to the files that the stage leaves, which
`run.directory` lists. They only connect; the work is done in the sub-packages that they call.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from distill.corpora import SIGMA, Clip, Corpus, open_corpus, split, synthetic
from distill.corpora.clips import counted, first_few
from distill.evaluation import statistics, tables
from distill.evaluation.evaluate import Reference, centre_gaussian, evaluate
from distill.evaluation.fixations import check_scorable
from distill.export.student import Verified, export_student
from distill.export.verification import ExportRefused, largest_difference
from distill.labels import building, members
from distill.labels.labelling import by_part, computed_by, inference, label, looked_up_in
from distill.labels.store import LabelStore
from distill.recipe.keys import Recipe
from distill.reporting import report
from distill.reporting.drawings import overlay
from distill.reporting.package import write_package
from distill.reporting.provenance import Provenance, attributions, caveats, metadata, provenance
from distill.run.directory import RunDir
from distill.run.errors import GateFailed, Interrupted, UsageError
from distill.run.files import ArrayFile, read_json, value_in, write_json, write_together
from distill.run.machine import device
from distill.run.machine.collectives import process_group
from distill.run.machine.parallel import job
from distill.run.progress import Narrator
from distill.students.tiny_unet import TinyUNet, parameter_count
from distill.tools import speed
from distill.training import frames, student
from distill.training.batches import Sample
from distill.training.board import Board, available
from distill.training.loop import TrainingContext

PARAMETERS = (150_000, 250_000)
"""The usual range of a student's parameters; others are built too, with a message."""


@dataclass(frozen=True)
class Context:
    """The arguments of every stage."""

    run: RunDir
    recipe: Recipe
    narrator: Narrator

    @property
    def corpus(self) -> Corpus:
        """The corpus as the stage `corpus` left it."""
        return value_in(self.run / "corpus.json", Corpus.from_dict)

    @property
    def labels(self) -> LabelStore:
        """The run's label store."""
        return LabelStore.open(self.run / "labels")

    @property
    def notes(self) -> Path | None:
        """The notes for the model card, if the recipe names some."""
        return Path(self.recipe.export.notes) if self.recipe.export.notes else None

    def cached(self, ids: Sequence[str]) -> list[frames.CachedClip]:
        """Clips as the stage `frames` left them."""
        sample_fps = self.recipe.train.sample_fps
        return [frames.load(self.run / "frames", clip, sample_fps) for clip in self.corpus.select(ids)]

    def provenance(self) -> tuple[Provenance, TinyUNet]:
        """Where the run's student comes from, and the student."""
        return provenance(self.recipe, self.corpus, self.labels.teacher, self.run / "checkpoints" / "best.pt")

    def training(self, alone: bool = False) -> TrainingContext:
        """Where and how to train. Sets torch's threads, reports and notes them and the device. `alone`: while other ranks wait."""
        threads = device.set_threads(self.recipe.run.threads, alone)
        chosen, reason = device.choose(self.recipe.run.device)
        self.narrator.say(f"device: {reason}, {threads} threads")
        self.run.note(device=reason, threads=threads)
        shown = job().leads and available(self.recipe.run.tensorboard, self.narrator.say)
        board = Board(self.run / "tensorboard", overlay) if shown else None
        return TrainingContext(self.run / "checkpoints", chosen, self.recipe.run.seed, self.narrator, board)


# What a stage leaves: its files, relative to the run directory, and facts for the manifest.
Done = tuple[list[str], dict[str, Any]]


def _verified(stage: str, student: TinyUNet, *arguments: Any, **options: Any) -> Verified:
    """`export_student`; raises GateFailed where it is refused."""
    try:
        return export_student(student, *arguments, **options)
    except ExportRefused as error:
        raise GateFailed(f"{stage}: {error}; no file was written") from None


def _preflight(context: Context) -> Done:
    recipe, say = context.recipe, context.narrator.say
    torch.manual_seed(recipe.run.seed)
    network = TinyUNet(recipe.student).eval()
    verified = _verified("preflight", network, recipe.export.fps or 30.0, {}, sizes=((97, 131), (360, 640)), length=3)
    parameters = parameter_count(network)
    say(f"preflight: {parameters:,} parameters export, pass the gate, and match PyTorch")
    least, most = PARAMETERS
    if not least <= parameters <= most:
        say(f"preflight: {parameters:,} parameters is outside the {least:,} to {most:,} that a student should have")
    chosen, _ = device.choose(recipe.run.device)
    for opened in building.try_out(recipe, chosen, inference(recipe.label, chosen)):
        say(f"preflight: teacher {opened} opens")
    return [], {"parameters": parameters, "parity": asdict(verified.parity)}


def _corpus(context: Context) -> Done:
    options, run, say = context.recipe.corpus, context.run, context.narrator.say
    roots = options.root or str((run / "corpus").resolve())
    if options.name == "synthetic":
        synthetic.write(Path(str(roots)), context.recipe.synthetic, context.narrator)
    corpus = open_corpus(options.name, roots, track=context.narrator.track, options=options)
    groups = Path(options.groups) if options.groups else None
    corpus = split(corpus, options.val, options.val_clips, groups, official=options.split == "official")
    attributions(context.recipe, corpus)  # refuses a clip without a line, before any work on it
    for clips in _held_out(corpus).values():
        check_scorable(clips, context.recipe.eval.stride)
    write_json(run / "corpus.json", corpus.to_dict())
    total = sum(clip.frames for clip in corpus.clips)
    annotated = sum(clip.annotated_frames > 0 for clip in corpus.clips)
    say(
        f"corpus: {counted(len(corpus.clips), 'clip')}, {total:,} frames, {counted(annotated, 'annotated clip')}; "
        f"{len(corpus.train)} train, {len(corpus.val)} held out" + (f" ({first_few(corpus.val, 12)})" if corpus.val else "")
    )
    for part, weight in corpus.weights.items() if len(corpus.weights) > 1 else ():
        train, val = (sum(clip.corpus == part for clip in corpus.select(ids)) for ids in (corpus.train, corpus.val))
        say(f"corpus: {part}, weight {weight:g}: {train} train, {val} held out")
    for note in [*corpus.notes, *caveats(corpus)]:
        say(f"corpus: {note}")
    return ["corpus.json"], {"clips": len(corpus.clips), "frames": total}


def _frames(context: Context) -> Done:
    corpus, recipe = context.corpus, context.recipe
    clips = corpus.select(list(dict.fromkeys((*corpus.train, *corpus.val))))
    caching = closing(frames.cache_all(context.run / "frames", clips, recipe.student, recipe.train.sample_fps))
    with context.narrator.bar("frames", sum(clip.frames for clip in clips), unit="frames") as bar, caching as cached:
        for number, clip in enumerate(cached, 1):
            bar.advance(clip.frames, note=f"clip {clip.id}")
            if context.narrator.stop() and number < len(clips):
                raise Interrupted(f"frames, after {number} of {len(clips)} clips")
    return [f"frames/{name}" for clip in clips for name in frames.names(clip)], {}


def _teach(context: Context) -> Done:
    recipe, leads = context.recipe, job().leads
    training = context.training(alone=True)
    outputs: list[str] = []
    facts: dict[str, Any] = {"teacher": members.source(recipe)}
    trained = {m.entry: m for m in members.members(recipe.teacher) if members.trained_here(recipe, m)}
    for member in trained.values():
        teacher = building.REGISTRY[member.entry.name, member.entry.size]
        if teacher.train and (leads or teacher.all_ranks):
            device.set_threads(recipe.run.threads, alone=not teacher.all_ranks)
            files, more = teacher.train(recipe, member, context.corpus, context.run / "frames", training)
            outputs, facts = [*outputs, *(f"checkpoints/{name}" for name in files)], facts | more
    if recipe.teacher.name == "maps" and leads:
        clips = context.corpus.clips
        labels = looked_up_in(building.open_maps(recipe))(clips)
        for _ in context.narrator.track(labels, "maps", len(clips)):
            pass  # an unusable map is an error now, not in the middle of labelling
    if not outputs:
        context.narrator.say(f"teach: nothing to train: {members.source(recipe)}")
    return outputs, facts


def _label(context: Context) -> Done:
    recipe, ranks, narrator = context.recipe, job(), context.narrator
    if recipe.teacher.name == "maps":
        teachers: list[Any] = [building.calibrated(recipe, building.open_maps(recipe))]
        labels_of = looked_up_in(teachers[0])
    else:
        device.set_threads(recipe.run.threads)
        chosen, reason = device.choose(recipe.run.device)
        how = inference(recipe.label, chosen)
        narrator.say(f"label: {reason}, {how.precision}{f', {ranks.world} ranks' if ranks.world > 1 else ''}")
        where, teams = (chosen, context.run / "checkpoints", how), members.teams(recipe.teacher)
        teachers = [building.calibrated(recipe, building.open_teacher(recipe, *where, team)) for team in teams]
        common, *others = (computed_by(teacher, recipe.label.workers, pin=chosen.type == "cuda") for teacher in teachers)
        labels_of = by_part(common, {part: own for team, own in zip(teams[1:], others, strict=True) for part in team.parts})
    description = building.describe(recipe, *teachers)
    if "parts" in description:
        narrator.say(f"label: {description['name']}")
    if warning := building.warning(description):
        narrator.say(f"label: {warning}")
    store = (LabelStore.create if ranks.leads else LabelStore)(context.run / "labels", description)
    if ranks.agree("teacher", lambda: description["fingerprint"], narrator.stop) != description["fingerprint"]:
        raise UsageError(f"rank {ranks.rank} and rank 0 have different teachers or devices; their labels do not mix")
    clips = context.corpus.clips
    label(clips, store, labels_of, narrator)
    return ["labels/store.json", *(f"labels/{clip.id}.npy" for clip in clips)], {"teacher": description}


def _train(context: Context) -> Done:
    recipe, corpus = context.recipe, context.corpus
    training = context.training()
    samples = _samples(context, corpus)
    validation = [c for c in context.cached(corpus.val) if c.truth is not None]
    copied = recipe.train.start == "teacher"
    trunk = building.trunk(recipe, training.device, context.run / "checkpoints") if copied else None
    with process_group(training.device):
        facts = student.train(samples, validation, recipe.train, recipe.student, training, context.run / "metrics.jsonl", trunk)
    return ["checkpoints/best.pt", "metrics.jsonl"], facts


def _samples(context: Context, corpus: Corpus) -> list[Sample]:
    """The training clips with their soft labels, each checked to be readable and of the clip's length."""
    store, cached = context.labels, context.cached(corpus.train)
    for c in context.narrator.track(cached, "check labels", len(cached)):
        store.read(c.clip.id, c.clip.frames)
    # The weight of a part of the corpus is divided among its videos, and among its still images.
    counts = Counter((c.clip.corpus, c.clip.static) for c in cached)
    samples = []
    for c in cached:
        labels = ArrayFile(context.run / "labels" / f"{c.clip.id}.npy")
        weight = corpus.weights.get(c.clip.corpus, 1.0) / counts[c.clip.corpus, c.clip.static]
        samples.append(Sample(c, labels, weight))
    if context.recipe.train.soft_weight == 0:
        samples = [s for s in samples if s.cached.truth is not None]
        if not samples:
            raise UsageError("train.soft_weight is 0 and no training clip is annotated: there is nothing to learn from")
    return samples


def _export(context: Context) -> Done:
    recipe, run, corpus, say = context.recipe, context.run, context.corpus, context.narrator.say
    origin, network = context.provenance()
    clip = corpus[(corpus.val or corpus.train)[0]]
    real = [frame for frame, _ in zip(clip.read(), range(60), strict=False)]
    say(
        f"export: writing, gating, and comparing with PyTorch on {counted(len(real), 'frame')} of clip {clip.id} and random ones"
    )
    verified = _verified("export", network, origin.fps, metadata(origin, None), real)
    write_together({run / "export" / name: content for name, content in verified.files(recipe.run.name).items()})
    parity = asdict(verified.parity)
    paths = write_package(run / "export", origin, parity, None, caveats(corpus, context.labels.teacher), context.notes)
    proof = f"export/{recipe.run.name}.parity.json"
    write_json(run / proof, parity)
    sizes = " and ".join(f"{path.stat().st_size:,}" for path in paths[:2])
    say(f"export: parity {largest_difference(parity):.1e}, {sizes} bytes")
    outputs = [path.relative_to(run.path).as_posix() for path in paths]
    return [*outputs, proof], {"parity": parity, "gate": verified.gate}


def _eval(context: Context) -> Done:
    recipe, run, corpus = context.recipe, context.run, context.corpus
    warnings = caveats(corpus, context.labels.teacher)
    if not corpus.val:
        context.narrator.say("eval: no held-out clip has fixations; nothing to score")
        write_json(run / "metrics.json", {"schema": 2, "predictors": {}, "clips": {}, "caveats": warnings})
        return ["metrics.json"], {}
    name, options, references = recipe.run.name, recipe.eval, _references(context, corpus)
    models = {"step": run / "export" / f"{name}_step.onnx", "image": run / "export" / f"{name}.onnx"}
    how = (options.stride, options.threads, context.narrator, options.protocol, options.baselines)
    result = statistics.merge({part: evaluate(models, references, clips, *how) for part, clips in _held_out(corpus).items()})
    result["caveats"] = warnings
    write_json(run / "metrics.json", result)
    origin, _ = context.provenance()
    parity = read_json(run / "export" / f"{name}.parity.json")
    write_package(run / "export", origin, parity, result, warnings, context.notes)
    _say_scores(context.narrator, result)
    return ["metrics.json"], {"frames_scored": result["frames_scored"]}


def _held_out(corpus: Corpus) -> dict[str, list[Clip]]:
    """The held-out clips of each part of the corpus that has some."""
    of_part: dict[str, list[Clip]] = {}
    for clip in corpus.select(corpus.val):
        of_part.setdefault(clip.corpus, []).append(clip)
    return of_part


def _references(context: Context, corpus: Corpus) -> dict[str, Reference]:
    """The references that the student is compared with: its teacher, and two maps that do not depend on the frame."""
    store = context.labels
    labels = {clip.id: store.read(clip.id, clip.frames) for clip in corpus.select(corpus.val)}
    references: dict[str, Reference] = {
        "teacher": lambda clip, index: 1 / (1 + np.exp(-labels[clip.id][index].astype(np.float32))),
        "centred Gaussian": centre_gaussian,
    }
    means = [c.truth[:, 0].mean(0) for c in context.cached(corpus.train) if c.truth is not None]
    if means := [m / m.sum() for m in means if m.sum() > 0]:  # few fixations may all lie between the sampled frames
        mean_map = np.mean(means, 0)
        mean_map = cv2.GaussianBlur(mean_map, (0, 0), SIGMA * mean_map.shape[1])
        mean_map /= mean_map.max()
        references["mean training map"] = lambda clip, index: mean_map
    return references


def _say_scores(narrator: Narrator, result: Mapping[str, Any]) -> None:
    nss = {name: values["nss"] for name, values in result["predictors"].items()}
    shown = ", ".join(f"{nss[name]:.3f} ({name})" for name in ("step", "image", "teacher", "centred Gaussian"))
    narrator.say(f"eval: NSS {shown}")
    if gain := statistics.gains_of_state(result).get("image"):
        shown = f"{gain['nss']['mean']:+.3f} {tables.format_interval(gain['nss']['interval'], 'nss', sign=True)}".rstrip()
        narrator.say(f"eval: NSS {shown} step minus image, on the same clips")
    for remark in statistics.remarks(result):
        narrator.say(f"eval: {remark}")


def _report(context: Context) -> Done:
    origin, _ = context.provenance()
    taken = speed.measure(context.run / "export" / f"{origin.name}_step.onnx")
    report.write(context.run, context.recipe, context.corpus, context.labels, origin, taken, context.narrator)
    return ["report.html"], {"speed": taken}


WORK: dict[str, Callable[[Context], Done]] = {
    "preflight": _preflight, "corpus": _corpus, "frames": _frames, "teach": _teach, "label": _label, "train": _train,
    "export": _export, "eval": _eval, "report": _report,
}  # fmt: skip

"""The stages of a run, in order, and the loop that carries them out. Every stage reads files and writes files.

    preflight   a student with random weights is exported, gated and compared, and the teacher's files are opened: an
                unshippable design and unusable weights fail before anything long
    corpus      clips found, checked, split                               corpus.json (and corpus/, if synthetic)
    frames      every clip decoded once at the working resolution         frames/
    teach       the teacher is trained, if it is to be                    checkpoints/visage.pt
    label       soft labels of every clip                                 labels/
    train       the student                                               checkpoints/best.pt, metrics.jsonl
    export      both graphs, proven, named                                export/
    eval        the ONNX files scored on the validation clips             metrics.json
    report      the story of the run                                      report.html

A stage that is done under the same fingerprint is skipped; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.labels import shelf
from distill.labels.shelf import OURS
from distill.recipe.files import did_you_mean, differences, load_recipe, to_dict
from distill.recipe.keys import Recipe
from distill.run.directory import MANIFEST, RunDir, another_configuration, missing_modules, refuse_foreign
from distill.run.errors import GateFailed, Interrupted, UsageError
from distill.run.files import fingerprint, read_json, write_json
from distill.run.progress import Narrator

if TYPE_CHECKING:
    import torch

    from distill.corpora import Clip, Corpus
    from distill.labels.calibrate import Fit
    from distill.labels.store import LabelStore
    from distill.reporting.card import Provenance
    from distill.students.tiny_unet import TinyUNet
    from distill.training.frames import CachedClip


@dataclass
class Context:
    """What every stage is given."""

    run: RunDir
    recipe: Recipe
    narrator: Narrator

    @property
    def corpus(self) -> Corpus:
        from distill.corpora import Corpus

        return Corpus.from_dict(read_json(self.run / "corpus.json"))

    @property
    def labels(self) -> LabelStore:
        from distill.labels.store import LabelStore

        return LabelStore.open(self.run / "labels")

    def cached(self, ids: tuple[str, ...]) -> list[CachedClip]:
        from distill.training import frames

        return [
            frames.load(self.run / "frames", clip, self.recipe.train.sample_fps) for clip in self.corpus.select(ids)
        ]


@dataclass(frozen=True)
class Done:
    """What a stage leaves: its files, relative to the run directory, and facts for the manifest."""

    outputs: list[str]
    facts: dict[str, Any]


Taught = tuple[list[str], dict[str, Any]]
"""What training a teacher leaves: files, relative to the run, and facts."""


@dataclass(frozen=True)
class Stage:
    name: str
    about: str
    work: Callable[[Context], Done]
    sections: tuple[str, ...]  # of the recipe, that its result depends on beside the stages before it
    shared: bool = False  # all ranks of a torchrun job work in it; the others are rank 0's alone


def _preflight(context: Context) -> Done:
    import torch

    from distill.export.ship import verify
    from distill.labels.labelling import inference
    from distill.run import device
    from distill.students.tiny_unet import TinyUNet, parameter_count

    torch.manual_seed(context.recipe.run.seed)
    student = TinyUNet(context.recipe.student).eval()
    fps = context.recipe.export.fps or 30.0
    with refusals("preflight"):
        verified = verify(student, fps, {}, sizes=((97, 131), (360, 640)), length=3)
    parameters = parameter_count(student)
    context.narrator.say(f"preflight: {parameters:,} parameters export, pass the gate, and match PyTorch")
    if not 150_000 <= parameters <= 250_000:
        context.narrator.say(
            f"preflight: {parameters:,} parameters is outside the 150,000 to 250,000 that a student should have"
        )
    chosen, _ = device.choose(context.recipe.run.device)
    for told in shelf.try_out(context.recipe, chosen, inference(context.recipe.label, chosen)):
        context.narrator.say(f"preflight: teacher {told} opens")
    return Done([], {"parameters": parameters, "parity": verified.parity.to_dict()})


def _corpus(context: Context) -> Done:
    from distill.corpora import open_corpus, split, synthetic

    options, run = context.recipe.corpus, context.run
    roots = options.root or str((run / "corpus").resolve())
    if options.name == "synthetic":
        synthetic.write(Path(str(roots)), context.recipe.synthetic, context.narrator)
    corpus = open_corpus(options.name, roots, track=context.narrator.track, options=options)
    groups = Path(options.groups) if options.groups else None
    corpus = split(corpus, options.val, options.val_clips, groups, official=options.split == "official")
    write_json(run / "corpus.json", corpus.to_dict())
    frames = sum(clip.frames for clip in corpus.clips)
    annotated = sum(clip.annotated_frames > 0 for clip in corpus.clips)
    context.narrator.say(
        f"corpus: {len(corpus.clips)} clips, {frames:,} frames, {annotated} clips annotated; "
        f"{len(corpus.train)} train, {len(corpus.val)} held out" + (f" ({_few(corpus.val)})" if corpus.val else "")
    )
    for part, weight in corpus.weights.items() if len(corpus.weights) > 1 else ():
        train, val = (
            [clip for clip in corpus.select(ids) if clip.corpus == part] for ids in (corpus.train, corpus.val)
        )
        context.narrator.say(f"corpus: {part}, weight {weight:g}: {len(train)} train, {len(val)} held out")
    for note in corpus.notes:
        context.narrator.say(f"corpus: {note}")
    for caveat in caveats(corpus):
        context.narrator.say(f"corpus: {caveat}")
    return Done(["corpus.json"], {"clips": len(corpus.clips), "frames": frames})


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _frames(context: Context) -> Done:
    from distill.training import frames

    corpus, recipe = context.corpus, context.recipe
    ids = list(dict.fromkeys((*corpus.train, *corpus.val)))
    clips = corpus.select(ids)
    with context.narrator.bar("frames", sum(clip.frames for clip in clips), unit="frames") as bar:
        for number, clip in enumerate(clips, 1):
            frames.cache(context.run / "frames", clip, recipe.student, recipe.train.sample_fps)
            bar.advance(clip.frames, note=f"clip {clip.id}")
            if context.narrator.stop() and number < len(clips):
                raise Interrupted(f"frames, after {number} of {len(clips)} clips")
    return Done([f"frames/{name}" for clip in clips for name in frames.names(clip)], {})


def _teach(context: Context) -> Done:
    from distill.run import device
    from distill.run.parallel import job

    recipe, ranks, narrator = context.recipe, job(), context.narrator
    threads = device.set_threads(recipe.run.threads, alone=True)
    chosen, reason = device.choose(recipe.run.device)
    narrator.say(f"device: {reason}, {threads} threads")
    context.run.note(device=reason, threads=threads)
    outputs: list[str] = []
    facts: dict[str, Any] = {"teacher": shelf.source(recipe)}
    for member in shelf.members(recipe.teacher):
        train = _TRAINERS.get(f"{member.name} {member.entry.size}", _TRAINERS.get(member.name))
        if train and shelf.trained_here(recipe, member) and (ranks.leads or train is _teach_visage):
            device.set_threads(recipe.run.threads, alone=train is not _teach_visage)
            made, found = train(context, member, chosen)
            outputs, facts = [*outputs, *made], facts | found
    if recipe.teacher.name == "maps" and ranks.leads:
        from distill.labels.labelling import looked_up_in

        clips = context.corpus.clips
        labels = looked_up_in(shelf.open_maps(recipe))(clips)
        for _ in narrator.track(labels, "maps", len(clips)):  # what is unusable shows now
            pass
    if not outputs:
        narrator.say(f"teach: nothing to train: {shelf.source(recipe)}")
    return Done(outputs, facts)


def _teach_tiny_visage(context: Context, member: shelf.Member, device: torch.device) -> Taught:
    from distill.training.visage import train_visage

    recipe = context.recipe
    train_visage(
        context.cached(context.corpus.train), recipe.teacher, shelf.tiny_visage(recipe), context.run / "checkpoints", device,
        recipe.run.seed, context.narrator,
    )  # fmt: skip
    return ["checkpoints/visage.pt"], {"steps": recipe.teacher.steps}


def _teach_visage(context: Context, member: shelf.Member, device: torch.device) -> Taught:
    """A visage of a published size, on all ranks."""
    from distill.run.parallel import job
    from distill.training.fine_tune import outputs, teach

    recipe, corpus = context.recipe, context.corpus
    files = {part: None if file in ("", shelf.RANDOM) else Path(file) for part, file in member.files.items()}
    with job().group(device):
        facts = teach(
            corpus.select(corpus.train), corpus.select(corpus.val), recipe.teach, member.entry.size, files,
            context.run / "checkpoints", context.run / "frames" / "visage", device, recipe.run.seed, context.narrator,
        )  # fmt: skip
    return [f"checkpoints/{name}" for name in outputs(random=files["base"] is None)], facts


def _teach_unisal(context: Context, member: shelf.Member, device: torch.device) -> Taught:
    from distill.training.unisal import UnisalRecipe, train_unisal

    recipe, corpus = context.recipe, context.corpus
    settings = {**vars(recipe.unisal)}
    settings["window"] = settings.pop("frames")
    domains = dict(text.partition("=")[::2] for text in settings.pop("domains"))
    start, trunk = (
        None if member.files[part] in ("", shelf.RANDOM) else Path(member.files[part]) for part in ("", "trunk")
    )
    train_unisal(
        corpus.select(corpus.train), UnisalRecipe(**settings), context.run / "checkpoints", context.run / "frames" / "unisal", device,
        recipe.run.seed, context.narrator, domains=domains, start=start, trunk=trunk,
    )  # fmt: skip
    return ["checkpoints/unisal.pt"], {"epochs": recipe.unisal.epochs}


_TRAINERS = {"visage tiny": _teach_tiny_visage, "visage": _teach_visage, "unisal": _teach_unisal}


def _label(context: Context) -> Done:
    from distill.labels.labelling import computed_by, inference, label, looked_up_in
    from distill.labels.store import LabelStore
    from distill.run import device
    from distill.run.parallel import job

    recipe, ranks = context.recipe, job()
    if recipe.teacher.name == "maps":
        teacher: Any = shelf.calibrated(recipe, shelf.open_maps(recipe))
        labels_of = looked_up_in(teacher)
    else:
        device.set_threads(recipe.run.threads)
        chosen, reason = device.choose(recipe.run.device)
        how = inference(recipe.label, chosen)
        context.narrator.say(f"label: {reason}, {how.precision}{f', {ranks.world} ranks' if ranks.world > 1 else ''}")
        teacher = shelf.calibrated(recipe, shelf.open_teacher(recipe, chosen, context.run / "checkpoints", how))
        labels_of = computed_by(teacher, recipe.label.workers, pin=chosen.type == "cuda")
    description = shelf.describe(recipe, teacher)
    if warning := shelf.warning(description):
        context.narrator.say(f"label: {warning}")
    store = (LabelStore.create if ranks.leads else LabelStore)(context.run / "labels", description)
    if ranks.agree("teacher", lambda: description["fingerprint"], context.narrator.stop) != description["fingerprint"]:
        raise UsageError(f"rank {ranks.rank} and rank 0 have different teachers or devices; their labels do not mix")
    clips = context.corpus.clips
    label(clips, store, labels_of, context.narrator)
    return Done(["labels/store.json", *(f"labels/{clip.id}.npy" for clip in clips)], {"teacher": description})


def calibrate_run(path: Path, target: Path, narrator: Narrator) -> Fit:
    """Fits the labels of the run in `path` to its corpus, and writes the calibration to `target`.

    On the run's training clips: those that its students are scored on stay unseen. Raises UsageError for a run that is not
    labelled, or whose labels are calibrated.
    """
    from distill.corpora import Corpus
    from distill.labels.calibrate import calibrate, save
    from distill.labels.labelling import looked_up_in
    from distill.labels.store import StoredLabels

    if not (path / "corpus.json").is_file() or not (path / "labels" / "store.json").is_file():
        raise UsageError(f"{path} is no run with labels; bring one there with `distill label --out {path}`")
    corpus, labels = Corpus.from_dict(read_json(path / "corpus.json")), StoredLabels(path / "labels")
    if "calibration" in labels.store.teacher:
        raise UsageError(
            f"the labels in {path} are calibrated already; calibrate those of a run without teacher.calibration"
        )
    clips = corpus.select(corpus.train)
    found = calibrate(clips, looked_up_in(labels), narrator)
    save(target, found, labels.store.teacher, corpus.name)
    return found


def _train(context: Context) -> Done:
    from distill.run import device
    from distill.run.parallel import job
    from distill.training import frames
    from distill.training.student import Sample, train

    recipe, corpus, store = context.recipe, context.corpus, context.labels
    threads = device.set_threads(recipe.run.threads)
    chosen, reason = device.choose(recipe.run.device)
    context.narrator.say(f"device: {reason}, {threads} threads")
    context.run.note(device=reason, threads=threads)
    cached = context.cached(corpus.train)
    for c in context.narrator.track(cached, "check labels", len(cached)):
        store.read(c.clip.id, c.clip.frames)
    # A part's weight is shared out among its videos, and among its still images.
    shares = Counter((c.clip.corpus, c.clip.static) for c in cached)
    samples = [
        Sample(
            c,
            frames.ArrayFile(context.run / "labels" / f"{c.clip.id}.npy"),
            corpus.weights.get(c.clip.corpus, 1.0) / shares[c.clip.corpus, c.clip.static],
        )
        for c in cached
    ]
    if recipe.train.soft_weight == 0:
        samples = [s for s in samples if s.cached.truth is not None]
        if not samples:
            raise UsageError("train.soft_weight is 0 and no training clip is annotated: there is nothing to learn from")
    validation = [c for c in context.cached(corpus.val) if c.truth is not None]
    with job().group(chosen):
        facts = train(
            samples, validation, recipe.train, recipe.student, context.run / "checkpoints", context.run / "metrics.jsonl",
            chosen, recipe.run.seed, context.narrator,
        )  # fmt: skip
    return Done(["checkpoints/best.pt", "metrics.jsonl"], facts)


def load_student(path: Path, recipe: Recipe) -> tuple[TinyUNet, int]:
    """The best checkpoint's student, in eval mode, and its step."""
    from distill.students.tiny_unet import TinyUNet
    from distill.training import checkpoint

    saved = checkpoint.load(path)
    student = TinyUNet(recipe.student)
    checkpoint.restore(student, saved["student"], path)
    return student.eval(), int(saved["step"])


def _export(context: Context) -> Done:
    from distill.export.ship import ship, verify
    from distill.reporting.card import metadata, write_package

    recipe, run = context.recipe, context.run
    origin, student = provenance(context)
    corpus = context.corpus
    clip = corpus[(corpus.val or corpus.train)[0]]
    real = [frame for frame, _ in zip(clip.read(), range(60), strict=False)]
    context.narrator.say(
        f"export: writing, gating, and comparing with PyTorch on {len(real)} frames of clip {clip.id} and random ones"
    )
    with refusals("export"):
        verified = verify(student, origin.fps, metadata(origin, None), real)
    ship(verified, run / "export", recipe.run.name)
    parity = verified.parity.to_dict()
    paths = write_package(run / "export", origin, parity, None, caveats(corpus, context.labels.teacher))
    proof = f"export/{recipe.run.name}.parity.json"
    write_json(run / proof, parity)
    context.narrator.say(
        f"export: parity {max(verified.parity.image_max_abs, verified.parity.step_max_abs):.1e}, "
        f"{paths[0].stat().st_size:,} and {paths[1].stat().st_size:,} bytes"
    )
    outputs = [str(path.relative_to(run.path)) for path in paths]
    return Done([*outputs, proof], {"parity": parity, "gate": verified.gate})


def provenance(context: Context) -> tuple[Provenance, TinyUNet]:
    """Where the run's student comes from, and the student."""
    import numpy as np

    from distill.reporting.card import Provenance
    from distill.students.tiny_unet import parameter_count

    recipe, corpus, teacher = context.recipe, context.corpus, context.labels.teacher
    student, step = load_student(context.run / "checkpoints" / "best.pt", recipe)
    tau = student.time_constants().numpy()
    parts = corpus_chain(recipe, corpus)
    teacher_chain = tuple((part, license_) for part, license_ in teacher["chain"])
    return Provenance(
        name=recipe.run.name,
        license=stated_license(recipe, parts, teacher),
        corpus=corpus.title,
        corpus_license=corpus.license,
        corpus_chain=parts,
        teacher=f"{teacher['name']} ({teacher['source']})",
        teacher_license=teacher["license"],
        teacher_chain=teacher_chain,
        restricted=tuple(
            part
            for part, license_ in (*((f"corpus {name}", its) for name, its in parts), *teacher_chain)
            if not shelf.permissive(license_)
        ),
        train_clips=corpus.train,
        val_clips=corpus.val,
        held_out=corpus.held_out,
        fps=recipe.export.fps or corpus.median_fps,
        parameters=parameter_count(student),
        working_size=(recipe.student.height, recipe.student.width),
        tau_seconds=(float(tau.min()), float(np.median(tau)), float(tau.max())),
        step=step,
        chosen=bool(corpus.val) and recipe.train.keep == "best",
        recipe_fingerprint=fingerprint(_without_paths(recipe)),
    ), student


def corpus_chain(recipe: Recipe, corpus: Corpus) -> tuple[tuple[str, str], ...]:
    """The parts of the corpus as its title names them, and the licence of each."""
    from distill.corpora import parts_of

    if len(corpus.roots) < 2:
        return ((corpus.title, corpus.license),)
    parts = parts_of(recipe.corpus.name, recipe.corpus.root)
    return tuple((f"{part.name}:{part.root.name}", part.layout.license_of(part.root)) for part in parts)


def stated_license(recipe: Recipe, parts: Sequence[tuple[str, str]], teacher: Mapping[str, Any]) -> str:
    """The licence of the weights: the recipe's; ours, where all that they were learned from is; else that none is stated."""
    licenses = list(dict.fromkeys(license_ for _, license_ in parts))
    if recipe.export.license:
        return recipe.export.license
    if teacher["license"] == OURS and all(license_.split(" (")[0] == OURS for license_ in licenses):
        return OURS
    return f"not stated; corpus: {'; '.join(licenses)}; teacher: {teacher['license']}"


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values less those that name places on this machine: what ships names none."""
    values = to_dict(recipe)
    values["corpus"]["root"] = values["corpus"]["groups"] = values["teacher"]["maps"] = ""
    values["teacher"]["weights"] = shelf.file_names(recipe.teacher)
    values["teacher"]["calibration"] = Path(values["teacher"]["calibration"]).name
    return values


def caveats(corpus: Corpus, teacher: Mapping[str, Any] | None = None) -> list[str]:
    """What a reader must know before believing the numbers; `teacher` as its label store describes it."""
    found = []
    if teacher and teacher["random"]:
        found.append(
            f"the teacher had random weights ({', '.join(teacher['random'])}): the student has learned nothing worth using"
        )
    if not corpus.held_out:
        found.append(
            f"the only annotated clips ({', '.join(corpus.val)}) train and validate: their scores are not held-out scores"
        )
    if not corpus.val:
        found.append(
            "no clip is held out, or none has fixations: nothing is scored, and the last step is taken as the best"
        )
    if corpus.name == "synthetic":
        found.append(
            "trained on a procedural corpus: it shows that the pipeline works, and says little about real video"
        )
    return found


def _eval(context: Context) -> Done:
    import cv2
    import numpy as np

    from distill.corpora.clips import SIGMA
    from distill.evaluation import scores
    from distill.evaluation.evaluate import Reference, centre_gaussian, evaluate
    from distill.reporting.card import write_package

    recipe, run, corpus = context.recipe, context.run, context.corpus
    if not corpus.val:
        context.narrator.say("eval: no held-out clip has fixations; nothing to score")
        found = caveats(corpus, context.labels.teacher)
        write_json(run / "metrics.json", {"schema": 2, "predictors": {}, "clips": {}, "caveats": found})
        return Done(["metrics.json"], {})
    store = context.labels
    labels = {clip.id: store.read(clip.id, clip.frames) for clip in corpus.select(corpus.val)}
    references: dict[str, Reference] = {
        "teacher": lambda clip, index: 1 / (1 + np.exp(-labels[clip.id][index].astype(np.float32))),
        "centred Gaussian": centre_gaussian,
    }
    means = [c.truth[:, 0].mean(0) for c in context.cached(corpus.train) if c.truth is not None]
    if means:
        mean_map = np.mean([m / m.sum() for m in means if m.sum() > 0], 0)
        mean_map = cv2.GaussianBlur(mean_map, (0, 0), SIGMA * mean_map.shape[1])
        mean_map /= mean_map.max()
        references["mean training map"] = lambda clip, index: mean_map
    models = {
        "step": run / "export" / f"{recipe.run.name}_step.onnx",
        "image": run / "export" / f"{recipe.run.name}.onnx",
    }
    by_part: dict[str, list[Clip]] = {}
    for clip in corpus.select(corpus.val):
        by_part.setdefault(clip.corpus, []).append(clip)
    options = recipe.eval
    result = scores.merged({
        part: evaluate(
            models, references, clips, options.stride, options.threads, context.narrator, options.protocol, options.baselines
        )
        for part, clips in by_part.items()
    })  # fmt: skip
    result["caveats"] = caveats(corpus, store.teacher)
    write_json(run / "metrics.json", result)
    origin, _ = provenance(context)
    write_package(
        run / "export", origin, read_json(run / "export" / f"{recipe.run.name}.parity.json"), result, result["caveats"]
    )
    nss = {name: values["nss"] for name, values in result["predictors"].items()}
    shown = ", ".join(f"{nss[name]:.3f} ({name})" for name in ("step", "image", "teacher", "centred Gaussian"))
    context.narrator.say(f"eval: NSS {shown}")
    for name, values in (result["differences"] or {"from": {}})["from"].items():
        if name.startswith("image"):
            span = scores.bracket(values["nss"]["interval"], "nss", sign=True)
            context.narrator.say(f"eval: NSS {values['nss']['mean']:+.3f} {span} step less {name}, on the same clips")
    if result["frames_without_fixations"]:
        context.narrator.say(f"eval: {result['frames_without_fixations']} frames without fixations were not scored")
    return Done(["metrics.json"], {"frames_scored": result["frames_scored"]})


def _report(context: Context) -> Done:
    from distill.reporting.report import write

    origin, _ = provenance(context)
    write(context.run, context.recipe, context.corpus, context.labels, origin, context.narrator)
    return Done(["report.html"], {})


STAGES = (
    Stage(
        "preflight",
        "export and gate a random-weight student, open the teacher",
        _preflight,
        ("student", "export", "teacher"),
    ),
    Stage("corpus", "find, check and split the clips", _corpus, ("corpus", "synthetic")),
    Stage("frames", "decode every clip once, at the working resolution", _frames, ("train",)),
    Stage("teach", "train the teacher, if it is to be", _teach, ("teacher", "teach", "unisal", "run"), shared=True),
    Stage("label", "write the soft labels", _label, ("label",), shared=True),
    Stage("train", "train the student", _train, (), shared=True),
    Stage("export", "write, gate, compare and name the ONNX files", _export, ()),
    Stage("eval", "score the ONNX files on the validation clips", _eval, ("eval",)),
    Stage("report", "write report.html", _report, ("report",)),
)


def carry_out(run: RunDir, recipe: Recipe, narrator: Narrator, until: str = "report") -> None:
    """Carries out the stages up to and including `until`, skipping what is done; a rank that follows, its share of them."""
    from distill.run.parallel import job

    context, works = Context(run, recipe, narrator), {stage.name: stage.work for stage in STAGES}
    try:
        with job() as ranks:
            if ranks.leads:
                _lead(context, until)
            while not ranks.leads and (name := ranks.called(narrator.stop)):
                works[name](context)
    except Interrupted:
        if ranks.leads:
            raise  # and says so for all


def _lead(context: Context, until: str) -> None:
    from distill.run.parallel import job

    run, recipe, narrator = context.run, context.recipe, context.narrator
    run.check_inputs(inputs(recipe))
    upstream, fresh = "", True
    for stage in STAGES:
        upstream = stage_key(stage, recipe, upstream)
        # What follows a stage that was made again is made again too: it read what the stage wrote.
        fresh = fresh and run.is_done(stage.name, upstream)
        if fresh:
            narrator.say(f"{stage.name}: up to date")
        else:
            if narrator.stop():
                raise Interrupted(f"before {stage.name}")
            started = time.perf_counter()
            if stage.shared:
                job().announce(stage.name)
            done = stage.work(context)
            run.finish(stage.name, upstream, done.outputs, time.perf_counter() - started, done.facts)
        if stage.name == until:
            return


def stage_key(stage: Stage, recipe: Recipe, upstream: str) -> str:
    values = to_dict(recipe)
    return fingerprint(stage.name, {s: values[s] for s in stage.sections}, upstream)


def inputs(recipe: Recipe) -> dict[str, str]:
    """Prints of what a run reads from outside: names and sizes, and how many annotations; None of it is decoded."""
    prints = {}
    if recipe.corpus.root and recipe.corpus.name != "synthetic":
        from distill.corpora import fingerprints, parts_of

        parts = parts_of(recipe.corpus.name, recipe.corpus.root)
        for root, facts in fingerprints(parts, recipe.corpus).items():
            prints[f"the corpus at {root}"] = fingerprint(facts)
    if recipe.corpus.groups:
        prints[f"the groups in {recipe.corpus.groups}"] = fingerprint(Path(recipe.corpus.groups).read_bytes().hex())
    if recipe.teacher.name == "maps":
        for folder in shelf.map_folders(recipe.teacher):
            sizes = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
            prints[f"the maps in {folder}"] = fingerprint(sizes)
    return prints | shelf.weights_prints(recipe.teacher)


def plan(path: Path, recipe: Recipe, force: bool = False) -> list[dict[str, str]]:
    """What a run would do, stage by stage. Raises UsageError where it could not: missing input, another run in `path`."""
    from distill.corpora import find, parts_of

    check_ready(recipe)
    manifest: dict[str, Any] = {"stages": {}}
    if path.is_dir():
        refuse_foreign(path)
    elif path.exists():
        raise UsageError(f"--out {path} is a file; name a directory")
    if (path / MANIFEST).exists() and not force:
        manifest = read_json(path / MANIFEST)
        changed = differences(load_recipe(path / "recipe.toml"), recipe)
        if changed and not set(manifest["stages"]) <= {"preflight"}:
            raise UsageError(another_configuration(path, changed))
    clips = "synthetic clips"
    if recipe.corpus.name == "synthetic":
        clips = f"{recipe.synthetic.clips} clips of {recipe.synthetic.frames} frames"
    elif recipe.corpus.root:
        clips = f"{len(find(parts_of(recipe.corpus.name, recipe.corpus.root), recipe.corpus))} clips"
    train = recipe.train
    frames = round(train.frames_first * train.steps)
    details = {
        "corpus": clips,
        "teach": shelf.source(recipe),
        "train": f"{frames} steps of {train.frames} frames, {train.steps - frames} of {train.batch} x {train.window}, at "
        f"{recipe.student.height}x{recipe.student.width}",
        "eval": f"one frame in {recipe.eval.stride}",
    }
    rows, upstream = [], ""
    for stage in STAGES:
        upstream = stage_key(stage, recipe, upstream)
        done = manifest["stages"].get(stage.name, {}).get("fingerprint") == upstream
        rows.append(
            {
                "stage": stage.name,
                "state": "done" if done else "to do",
                "about": stage.about,
                "detail": details.get(stage.name, ""),
            }
        )
    return rows


def check_ready(recipe: Recipe) -> None:
    """Raises UsageError for what can be known to be wrong before anything is written."""
    missing = missing_modules()
    if missing:
        raise UsageError(f"{', '.join(missing)} not installed; pip install 'saliency-distill[train]'")
    from distill.corpora import CORPORA, find, parts_of

    synthetic = recipe.corpus.name == "synthetic"
    if not (synthetic or recipe.corpus.root):
        name = recipe.corpus.name
        if "," not in name and (corpus := name.partition(":")[0]) not in CORPORA:
            raise UsageError(f"unknown corpus '{corpus}'{did_you_mean(corpus, CORPORA)}")
        raise UsageError(f"corpus {name} needs --root, the folder that holds it; one for each part, in the same order")
    parts = [] if synthetic else parts_of(recipe.corpus.name, recipe.corpus.root)
    shelf.check(recipe)
    found = {} if synthetic else find(parts, recipe.corpus)
    if recipe.corpus.groups and not Path(recipe.corpus.groups).is_file():
        raise UsageError(f"corpus.groups {recipe.corpus.groups} is no file; give a CSV with lines `clip,group`")
    if recipe.teacher.name == "maps":
        teacher = shelf.open_maps(recipe)
        lacking = [i for i, (part, entry) in found.items() if not teacher.has(entry.name or entry.id, part.name)]
        if lacking:
            raise UsageError(
                f"teacher.maps {', '.join(map(str, shelf.map_folders(recipe.teacher)))} has nothing for clip {lacking[0]}"
                f"{f' and {len(lacking) - 1} more' if lacking[1:] else ''}; add it, or leave it out: "
                f"--set corpus.skip={','.join(lacking)}"
            )
    if recipe.run.device not in ("auto", "cpu"):
        from distill.run.device import choose

        choose(recipe.run.device)


@contextmanager
def refusals(stage: str) -> Iterator[None]:
    """An export that is refused is a failed gate."""
    from distill.export import ExportRefused

    try:
        yield
    except ExportRefused as error:
        raise GateFailed(f"{stage}: {error}; no file was written") from None

"""The stages of a run, in order, and the loop that carries them out. Every stage reads files and writes files.

    preflight   a student with random weights is exported, gated and compared: an unshippable design fails in seconds
    corpus      clips found, checked, split                               corpus.json (and corpus/, if synthetic)
    frames      every clip decoded once at the working resolution         frames/
    teach       the teacher is trained, or found                          checkpoints/visage.pt
    label       soft labels of every clip                                 labels/
    train       the student                                               checkpoints/best.pt, metrics.jsonl
    export      both graphs, proven, named                                export/
    eval        the ONNX files scored on the validation clips             metrics.json
    report      the story of the run                                      report.html

A stage that is done under the same fingerprint is skipped; one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import config
from distill.config import Recipe
from distill.errors import GateFailed, Interrupted, UsageError
from distill.progress import Narrator
from distill.run_dir import (
    MANIFEST,
    RunDir,
    another_configuration,
    fingerprint,
    missing_modules,
    read_json,
    refuse_foreign,
    write_json,
)
from distill.teachers import TEACHERS

if TYPE_CHECKING:
    from distill.card import Provenance
    from distill.corpora import Corpus
    from distill.frames import CachedClip
    from distill.soft_labels import LabelStore
    from distill.students.tiny_unet import TinyUNet

OURS = "BSD-2-Clause-Patent"


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
        from distill.soft_labels import LabelStore

        return LabelStore.open(self.run / "labels")

    def cached(self, ids: tuple[str, ...]) -> list[CachedClip]:
        from distill import frames

        return [
            frames.load(self.run / "frames", clip, self.recipe.train.sample_fps) for clip in self.corpus.select(ids)
        ]


@dataclass(frozen=True)
class Done:
    """What a stage leaves: its files, relative to the run directory, and facts for the manifest."""

    outputs: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    name: str
    about: str
    work: Callable[[Context], Done]
    sections: tuple[str, ...]  # of the recipe, that its result depends on beside the stages before it


def _preflight(context: Context) -> Done:
    import torch

    from distill.export.ship import verify
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
    return Done([], {"parameters": parameters, "parity": verified.parity.to_dict()})


def _corpus(context: Context) -> Done:
    from distill.corpora import open_corpus, split, synthetic

    options, run = context.recipe.corpus, context.run
    root = Path(options.root) if options.root else (run / "corpus").resolve()
    if options.name == "synthetic":
        synthetic.write(root, context.recipe.synthetic, context.narrator)
    corpus = open_corpus(options.name, root, options.skip, context.narrator.track)
    groups = Path(options.groups) if options.groups else None
    corpus = split(corpus, options.val, options.val_clips, groups)
    write_json(run / "corpus.json", corpus.to_dict())
    frames = sum(clip.frames for clip in corpus.clips)
    annotated = sum(clip.annotated_frames > 0 for clip in corpus.clips)
    context.narrator.say(
        f"corpus: {len(corpus.clips)} clips, {frames:,} frames, {annotated} clips annotated; "
        f"{len(corpus.train)} train, {len(corpus.val)} held out ({', '.join(corpus.val) or 'none'})"
    )
    for caveat in caveats(corpus):
        context.narrator.say(f"corpus: {caveat}")
    return Done(["corpus.json"], {"clips": len(corpus.clips), "frames": frames})


def _frames(context: Context) -> Done:
    from distill import frames

    corpus, recipe = context.corpus, context.recipe
    ids = list(dict.fromkeys((*corpus.train, *corpus.val)))
    for clip in context.narrator.track(corpus.select(ids), "frames", len(ids)):
        frames.cache(context.run / "frames", clip, recipe.student, recipe.train.sample_fps)
    return Done([f"frames/{name}" for clip in corpus.select(ids) for name in frames.names(clip)], {})


def _teach(context: Context) -> Done:
    if context.recipe.teacher.name == "maps":
        from distill.label import looked_up_in

        look_up, clips = looked_up_in(_maps_teacher(context.recipe)), context.corpus.clips
        for clip in context.narrator.track(clips, "maps", len(clips)):  # what is unusable shows now
            look_up(clip)
        context.narrator.say(f"teach: nothing to train, maps for {len(clips)} clips")
        return Done([], {"teacher": "maps"})
    from distill import device
    from distill.train_teacher import train_visage

    threads = device.set_threads(context.recipe.run.threads)
    chosen, reason = device.choose(context.recipe.run.device)
    context.narrator.say(f"device: {reason}, {threads} threads")
    context.run.note(device=reason, threads=threads)
    teacher_config = context.recipe.teacher
    train_visage(
        context.cached(context.corpus.train), teacher_config, visage_config(context.recipe), context.run / "checkpoints", chosen,
        context.recipe.run.seed, context.narrator,
    )  # fmt: skip
    return Done(["checkpoints/visage.pt"], {"teacher": "visage", "steps": teacher_config.steps})


def visage_config(recipe: Recipe) -> Any:
    """The tiny ensemble's shape; it labels at the frame rate that it is trained at."""
    from distill.teachers.visage import VisageConfig

    return VisageConfig(sample_fps=recipe.train.sample_fps)


def _maps_teacher(recipe: Recipe) -> Any:
    from distill.teachers.maps import MapsTeacher

    if not recipe.teacher.maps:
        raise UsageError("teacher maps needs --maps, the folder that holds CLIP.npz or PNG folders")
    try:
        return MapsTeacher(Path(recipe.teacher.maps))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _label(context: Context) -> Done:
    from distill import device
    from distill.label import computed_by, label, looked_up_in
    from distill.soft_labels import LabelStore

    recipe = context.recipe
    if recipe.teacher.name == "maps":
        lookup = _maps_teacher(recipe)
        labels_of, license_ = looked_up_in(lookup), "not stated"
        description = {"name": "maps", "fingerprint": lookup.fingerprint(), "source": Path(recipe.teacher.maps).name}
    else:
        from distill.teachers.visage import Visage

        device.set_threads(recipe.run.threads)
        try:
            teacher = Visage.load(context.run / "checkpoints" / "visage.pt", device=device.choose(recipe.run.device)[0])
        except ValueError as error:
            raise UsageError(str(error)) from None
        labels_of, license_ = computed_by(teacher), OURS
        description = {
            "name": "visage",
            "fingerprint": teacher.fingerprint(),
            "source": "visage tiny, trained in this run",
        }
    store = LabelStore.create(context.run / "labels", {**description, "license": license_})
    clips = context.corpus.clips
    label(clips, store, labels_of, context.narrator)
    return Done(["labels/store.json", *(f"labels/{clip.id}.npy" for clip in clips)], {"teacher": description})


def _train(context: Context) -> Done:
    from distill import device, frames
    from distill.train import Sample, train

    recipe, corpus, store = context.recipe, context.corpus, context.labels
    threads = device.set_threads(recipe.run.threads)
    chosen, reason = device.choose(recipe.run.device)
    context.narrator.say(f"device: {reason}, {threads} threads")
    context.run.note(device=reason, threads=threads)
    cached = context.cached(corpus.train)
    for c in context.narrator.track(cached, "check labels", len(cached)):
        store.read(c.clip.id, c.clip.frames)
    samples = [Sample(c, frames.ArrayFile(context.run / "labels" / f"{c.clip.id}.npy")) for c in cached]
    if recipe.train.soft_weight == 0:
        samples = [s for s in samples if s.cached.truth is not None]
        if not samples:
            raise UsageError("train.soft_weight is 0 and no training clip is annotated: there is nothing to learn from")
    validation = [c for c in context.cached(corpus.val) if c.truth is not None]
    facts = train(
        samples, validation, recipe.train, recipe.student, context.run / "checkpoints", context.run / "metrics.jsonl",
        chosen, recipe.run.seed, context.narrator,
    )  # fmt: skip
    return Done(["checkpoints/best.pt", "metrics.jsonl"], facts)


def load_student(path: Path, recipe: Recipe) -> tuple[TinyUNet, int]:
    """The best checkpoint's student, in eval mode, and its step."""
    from distill import checkpoint
    from distill.students.tiny_unet import TinyUNet

    saved = checkpoint.load(path)
    student = TinyUNet(recipe.student)
    student.load_state_dict(saved["student"])
    return student.eval(), int(saved["step"])


def _export(context: Context) -> Done:
    from distill.card import metadata, write_package
    from distill.export.ship import ship, verify

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
    paths = write_package(run / "export", origin, parity, None, caveats(corpus))
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

    from distill.card import Provenance
    from distill.students.tiny_unet import parameter_count

    recipe, corpus, teacher = context.recipe, context.corpus, context.labels.teacher
    student, step = load_student(context.run / "checkpoints" / "best.pt", recipe)
    tau = student.memory.log_tau.detach().exp().numpy()
    ours = corpus.license.startswith(OURS) and teacher["license"] == OURS
    chain = f"not stated; see the licences of corpus ({corpus.license}) and teacher ({teacher['license']})"
    return Provenance(
        name=recipe.run.name,
        license=recipe.export.license or (OURS if ours else chain),
        corpus=corpus.name if corpus.name == "synthetic" else f"{corpus.name}:{Path(corpus.root).name}",
        corpus_license=corpus.license,
        teacher=f"{teacher['name']} ({teacher['source']})",
        teacher_license=teacher["license"],
        train_clips=corpus.train,
        val_clips=corpus.val,
        held_out=corpus.held_out,
        fps=recipe.export.fps or corpus.median_fps,
        parameters=parameter_count(student),
        working_size=(recipe.student.height, recipe.student.width),
        tau_seconds=(float(tau.min()), float(np.median(tau)), float(tau.max())),
        step=step,
        recipe_fingerprint=fingerprint(_without_paths(recipe)),
    ), student


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values less those that name places on this machine: what ships names none."""
    values = config.to_dict(recipe)
    values["corpus"]["root"] = values["corpus"]["groups"] = values["teacher"]["maps"] = ""
    return values


def caveats(corpus: Corpus) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = []
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

    from distill.card import write_package
    from distill.corpora.clips import SIGMA
    from distill.evaluate import Reference, centre_gaussian, evaluate

    recipe, run, corpus = context.recipe, context.run, context.corpus
    if not corpus.val:
        context.narrator.say("eval: no held-out clip has fixations; nothing to score")
        write_json(run / "metrics.json", {"schema": 1, "predictors": {}, "clips": {}, "caveats": caveats(corpus)})
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
        references["mean training map"] = lambda clip, index: mean_map
    models = {
        "step": run / "export" / f"{recipe.run.name}_step.onnx",
        "image": run / "export" / f"{recipe.run.name}.onnx",
    }
    result = evaluate(
        models, references, corpus.select(corpus.val), recipe.eval.stride, recipe.eval.threads, context.narrator
    )
    result["caveats"] = caveats(corpus)
    write_json(run / "metrics.json", result)
    origin, _ = provenance(context)
    write_package(
        run / "export", origin, read_json(run / "export" / f"{recipe.run.name}.parity.json"), result, caveats(corpus)
    )
    best = result["predictors"]
    context.narrator.say(
        f"eval: NSS {best['step']['nss']:.3f} (step), {best['image']['nss']:.3f} (image), "
        f"{best['teacher']['nss']:.3f} (teacher), {best['centred Gaussian']['nss']:.3f} (centred Gaussian)"
    )
    if result["frames_without_fixations"]:
        context.narrator.say(f"eval: {result['frames_without_fixations']} frames without fixations were not scored")
    return Done(["metrics.json"], {"frames_scored": result["frames_scored"]})


def _report(context: Context) -> Done:
    from distill.report import write

    origin, _ = provenance(context)
    write(context.run, context.recipe, context.corpus, context.labels, origin, context.narrator)
    return Done(["report.html"], {})


STAGES = (
    Stage("preflight", "export and gate a random-weight student", _preflight, ("student", "export")),
    Stage("corpus", "find, check and split the clips", _corpus, ("corpus", "synthetic")),
    Stage("frames", "decode every clip once, at the working resolution", _frames, ("train",)),
    Stage("teach", "train the teacher", _teach, ("teacher", "run")),
    Stage("label", "write the soft labels", _label, ()),
    Stage("train", "train the student", _train, ()),
    Stage("export", "write, gate, compare and name the ONNX files", _export, ()),
    Stage("eval", "score the ONNX files on the validation clips", _eval, ("eval",)),
    Stage("report", "write report.html", _report, ("report",)),
)


def carry_out(run: RunDir, recipe: Recipe, narrator: Narrator, until: str = "report") -> None:
    """Carries out the stages up to and including `until`, skipping what is done."""
    run.check_inputs(inputs(recipe))
    context, upstream, fresh = Context(run, recipe, narrator), "", True
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
            done = stage.work(context)
            run.finish(stage.name, upstream, done.outputs, time.perf_counter() - started, done.facts)
        if stage.name == until:
            return


def stage_key(stage: Stage, recipe: Recipe, upstream: str) -> str:
    values = config.to_dict(recipe)
    return fingerprint(stage.name, {s: values[s] for s in stage.sections}, upstream)


def inputs(recipe: Recipe) -> dict[str, str]:
    """Prints of what a run reads from outside: names and sizes, and how many annotations; None of it is decoded."""
    prints = {}
    if recipe.corpus.root and recipe.corpus.name != "synthetic":
        root = Path(recipe.corpus.root)
        videos = sorted((p.name, p.stat().st_size) for p in (root / "video").iterdir() if not p.name.startswith("."))
        folders = [p for kind in ("fixation", "maps") for p in sorted((root / "annotation").glob(f"*/{kind}"))]
        counts = [(str(p.relative_to(root)), sum(1 for _ in p.iterdir())) for p in folders]
        prints[f"the corpus at {root}"] = fingerprint(videos, counts)
    if recipe.corpus.groups:
        prints[f"the groups in {recipe.corpus.groups}"] = fingerprint(Path(recipe.corpus.groups).read_bytes().hex())
    if recipe.teacher.name == "maps":
        folder = Path(recipe.teacher.maps)
        sizes = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
        prints[f"the maps in {folder}"] = fingerprint(sizes)
    return prints


def plan(path: Path, recipe: Recipe, force: bool = False) -> list[dict[str, str]]:
    """What a run would do, stage by stage. Raises UsageError where it could not: missing input, another run in `path`."""
    from distill.corpora import CORPORA

    check_ready(recipe)
    manifest: dict[str, Any] = {"stages": {}}
    if path.is_dir():
        refuse_foreign(path)
    elif path.exists():
        raise UsageError(f"--out {path} is a file; name a directory")
    if (path / MANIFEST).exists() and not force:
        manifest = read_json(path / MANIFEST)
        changed = config.differences(config.load(path / "recipe.toml"), recipe)
        if changed and not set(manifest["stages"]) <= {"preflight"}:
            raise UsageError(another_configuration(path, changed))
    clips = "synthetic clips"
    if recipe.corpus.root and Path(recipe.corpus.root).is_dir():
        clips = f"{len(CORPORA[recipe.corpus.name].find(Path(recipe.corpus.root)))} clips"
    elif recipe.corpus.name == "synthetic":
        clips = f"{recipe.synthetic.clips} clips of {recipe.synthetic.frames} frames"
    details = {
        "corpus": clips,
        "teach": f"visage, {recipe.teacher.steps} steps" if recipe.teacher.name == "visage" else "nothing to train",
        "train": f"{recipe.train.steps} steps of {recipe.train.batch} x {recipe.train.window} frames at "
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
    from distill.corpora import CORPORA

    if recipe.corpus.name not in CORPORA:
        raise UsageError(f"unknown corpus '{recipe.corpus.name}'{config.did_you_mean(recipe.corpus.name, CORPORA)}")
    if recipe.teacher.name not in TEACHERS:
        raise UsageError(f"unknown teacher '{recipe.teacher.name}'{config.did_you_mean(recipe.teacher.name, TEACHERS)}")
    if recipe.corpus.name != "synthetic":
        if not recipe.corpus.root:
            raise UsageError(f"corpus {recipe.corpus.name} needs --root, the folder that holds video/ and annotation/")
        root = Path(recipe.corpus.root)
        if not root.is_dir():
            raise UsageError(
                f"corpus root {root} is not a folder; give the one that holds video/ and annotation/ with --root"
            )
        CORPORA[recipe.corpus.name].find(root)
    if recipe.corpus.groups and not Path(recipe.corpus.groups).is_file():
        raise UsageError(f"corpus.groups {recipe.corpus.groups} is no file; give a CSV with lines `clip,group`")
    if recipe.teacher.name == "maps":
        teacher = _maps_teacher(recipe)
        if recipe.corpus.name != "synthetic":
            entries = CORPORA[recipe.corpus.name].find(Path(recipe.corpus.root))
            lacking = [e.id for e in entries if e.id not in recipe.corpus.skip and not teacher.has(e.id)]
            if lacking:
                raise UsageError(
                    f"teacher.maps {recipe.teacher.maps} has nothing for clip {lacking[0]}"
                    f"{f' and {len(lacking) - 1} more' if lacking[1:] else ''}; add it, or leave it out: "
                    f"--set corpus.skip={','.join(lacking)}"
                )
    if recipe.run.device not in ("auto", "cpu"):
        from distill.device import choose

        choose(recipe.run.device)


@contextmanager
def refusals(stage: str) -> Iterator[None]:
    """An export that is refused is a failed gate."""
    from distill.export import ExportRefused

    try:
        yield
    except ExportRefused as error:
        raise GateFailed(f"{stage}: {error}; no file was written") from None

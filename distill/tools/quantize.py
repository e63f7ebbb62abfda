"""An int8 version of an ONNX student, written only where it is faster and its maps stay close: `distill quantize`.

Some clips of the corpus calibrate, that is, their activations give the ranges; held-out clips compare the two files. Held out
are the clips that the model's metadata names as its validation clips, or every fourth clip where the corpus has none of them.
Both files take turns on one thread. int8 must win two turns out of three at every size, which chance rarely does.

The result is a package in its own folder, because the downstream's loader opens `BASE.int8.onnx` in place of `BASE.onnx`
where the sidecar says so, and fails where it is missing. To switch to int8, copy the folder's files over the package of the
original; the new registry entry replaces the one of the same id.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.corpora import Clip, open_corpus
from distill.corpora.clips import counted
from distill.evaluation.evaluate import evaluate
from distill.export.quantize import drift, quantise
from distill.export.verification import ExportRefused
from distill.recipe.keys import Recipe
from distill.reporting import sidecar
from distill.run.errors import GateFailed, UsageError
from distill.run.files import sha256_of, write_bytes
from distill.run.progress import Narrator
from distill.tools.bench import open_all, parse_size, take_turns
from distill.tools.bench_memory import noise

CALIBRATION_CLIPS, HELD_OUT_CLIPS = 16, 8  # at most
FRAMES, EVERY = 24, 4  # frames streamed of each clip; of the calibration clips' frames, every 4th gives ranges
TURNS, WINS = 31, 2 / 3


def quantise_file(
    model: Path, folder: Path, recipe: Recipe, sizes: Sequence[str], keep: bool, narrator: Narrator
) -> dict[str, Any]:
    """Writes the int8 package of `model` to `folder`, calibrated on the recipe's corpus: BASE.onnx (the model as it is),
    BASE.int8.onnx, BASE.json and BASE.int8.registry.json.

    Returns, ready for JSON: file (the int8 one), sha256, bytes, files, calibration and held_out (ids of clips), drift (largest
    and mean absolute difference of the maps, in [0, 1], and their correlation), scores (what `evaluate` returns for both
    files on the held-out clips; None where these have no fixations), times (by size: milliseconds of both, speedup, share of
    turns won).

    keep: write it even where it is not faster, or its maps correlate less than the budget allows. Raises GateFailed, and
    leaves no file, for these two reasons or where the gate refuses it; UsageError for an unusable model or corpus.
    """
    if folder.exists() and (not folder.is_dir() or folder.samefile(model.parent)):
        raise UsageError(f"--out {folder}: name a folder, and another one than the model's")
    [predictor] = open_all([model], 1)
    original = onnx.load(model)
    if any(node.op_type == "DequantizeLinear" for node in original.graph.node):
        raise UsageError(f"{model} is quantised already; give the floating-point file")
    try:
        base = sidecar.identifier(model.stem)
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from None
    corpus = open_corpus(recipe.corpus.name, recipe.corpus.root, track=narrator.track, options=recipe.corpus)
    calibrating, held_out = split(corpus.clips, predictor.metadata.get("validation_clips", ""))
    note = f"{counted(len(calibrating), 'clip')} of {corpus.title}, every {EVERY}th of the first {FRAMES} frames, min-max"
    narrator.say(f"quantize: ranges from {note}")
    try:
        int8 = quantise(original, streamed(calibrating, narrator, "quantize: calibration"), EVERY, note)
    except ExportRefused as error:
        raise GateFailed(f"{model} in int8 is refused: {error}; nothing was written") from None
    try:
        gap = drift(original, int8, streamed(held_out, narrator, "quantize: comparison"))
    except ValueError as error:
        raise UsageError(str(error)) from None
    content = int8.SerializeToString(deterministic=True)
    with tempfile.TemporaryDirectory() as temporary:
        trial = Path(temporary) / f"{base}.int8.onnx"
        trial.write_bytes(content)
        times = {size: race(model, trial, size, narrator) for size in sizes}
        slow = [f"{t['speedup']:.2f} times as fast at {size}" for size, t in times.items() if not t["faster"]]
        doubts = [f"not faster in int8 ({', '.join(slow)})"] if slow else []
        if 1 - gap.plcc > sidecar.BUDGET:
            required = f"at least {1 - sidecar.BUDGET:g} is required"
            doubts.append(f"not the same in int8 (the maps correlate by {gap.plcc:.4f}, {required})")
        if doubts and not keep:
            raise GateFailed(f"{model} is {', and '.join(doubts)}; nothing was written, --keep writes it all the same")
        annotated, options = [clip for clip in held_out if clip.annotated_frames], recipe.eval
        shared = (options.stride, options.threads, narrator, options.protocol)
        scores = evaluate({"int8": trial, "float": model}, {}, annotated, *shared) if annotated else None
    facts = {
        "calibration": [clip.id for clip in calibrating], "held_out": [clip.id for clip in held_out],
        "drift": asdict(gap), "scores": scores, "times": times,
    }  # fmt: skip
    path, files = _write(model, folder / f"{base}.onnx", content, note, predictor.metadata, facts)
    return {"file": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size, "files": files, **facts}


def _write(
    model: Path, copy: Path, content: bytes, note: str, properties: dict[str, str], facts: dict[str, Any]
) -> tuple[Path, list[str]]:
    """Writes the package's four files; the sidecar, which sends the loader to the int8 file, after that file."""
    path = copy.with_suffix(".int8.onnx")
    write_bytes(copy, model.read_bytes())
    write_bytes(path, content)
    license_, chain = sidecar.origin_of(properties)
    about = "Tiny video saliency student, in floating point and in int8: where people look, as a map in [0,1] per pixel."
    measured = {**facts, "scores": facts["scores"] and facts["scores"]["predictors"], "calibration_set": note}
    more = _carried_over(model) | {"int8": {"file": path.name, **measured}}
    described = sidecar.write_sidecar(copy, about, license_, chain, more, "static")
    loss = 1 - facts["drift"]["plcc"]
    budget = sidecar.BUDGET if loss <= sidecar.BUDGET else math.ceil(100 * loss) / 100
    notes = f"{path.name}: static QDQ, made from {copy.name}; its maps correlate by {1 - loss:.5f} on held-out clips."
    sibling = sidecar.Int8(sha256_of(path), note, budget)
    entry = sidecar.registry_entry(copy, license_, about, notes, sibling)
    registry = sidecar.write_registry(copy.with_suffix(".int8.registry.json"), [entry])
    return path, [str(file) for file in (copy, path, described, registry)]


def _carried_over(model: Path) -> dict[str, Any]:
    """The entries of the model's sidecar, if it has one, that hold for the int8 file too; its scores do not."""
    try:
        own = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    keys = ("frame_rate", "gate_tau_seconds", "training")
    return {key: own[key] for key in keys if key in own} if isinstance(own, dict) else {}


def split(clips: Sequence[Clip], validated: str) -> tuple[list[Clip], list[Clip]]:
    """Calibration clips and held-out clips, spread over the corpus, none in both.

    validated: ids of the model's validation clips, separated by commas. Raises UsageError where there are not two clips.
    """
    named = set(filter(None, validated.split(",")))
    # A run on several corpora calls a clip by its part as well.
    held_out = [clip for clip in clips if named & {clip.id, f"{clip.corpus}.{clip.name}"}]
    if not 0 < len(held_out) < len(clips):
        held_out = list(clips[3::4]) or list(clips[1:])
    rest = [clip for clip in clips if clip not in held_out]
    if not rest or not held_out:
        raise UsageError("int8 needs at least two clips: some to calibrate on, others to compare on")
    return _spread(rest, CALIBRATION_CLIPS), _spread(held_out, HELD_OUT_CLIPS)


def _spread(clips: list[Clip], most: int) -> list[Clip]:
    picks = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    return [clips[i] for i in picks]


def streamed(clips: Sequence[Clip], narrator: Narrator, title: str) -> Iterator[Iterator[np.ndarray]]:
    """The first frames of every clip, with a progress bar over the clips."""
    for clip in narrator.track(clips, title, len(clips)):
        yield islice(clip.read(), FRAMES)


def race(model: Path, int8: Path, size: str, narrator: Narrator) -> dict[str, Any]:
    """Both files on one thread, taking turns: medians in milliseconds, median of the turns' ratios, share of turns won."""
    narrator.say(f"quantize: {TURNS} frames of {size}, float and int8 in turn")
    frame = noise(*parse_size(size))
    runs: list[Callable[[], object]] = [partial(p.run, frame) for p in open_all([model, int8], 1)]
    before, after = np.array(take_turns(runs, TURNS, 1))
    won = float((after < before).mean())
    return {
        "float_ms": 1000 * float(np.median(before)), "int8_ms": 1000 * float(np.median(after)),
        "speedup": float(np.median(before / after)), "turns_won": won, "faster": won >= WINS,
    }  # fmt: skip

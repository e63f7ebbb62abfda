"""An ONNX student in int8 beside the one in floating point: made on clips, compared on others, named only where it is faster.

The clips that calibrate and those that compare are never the same: held out are the clips that the model's metadata names
as its validation clips, or every fourth where none of them is at hand. Time is measured as in distill.tools.bench, both files
taking turns on one thread; int8 has to win two turns out of three at every size, which chance rarely does.

What is written is a package of its own, in a folder of its own, since the downstream's loader opens `BASE.int8.onnx` in the
place of `BASE.onnx` where the sidecar says so, and fails where it is missing: the model, its sibling in int8, and the sidecar
and registry entry of both. The package that the model came from stays as it was. To go over to int8 is to copy the folder's
files over that one's; the registry entry takes the place of the one of the same id.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.corpora import Clip, open_corpus
from distill.evaluation.evaluate import evaluate
from distill.export import ExportRefused
from distill.export.quantize import drift, quantise
from distill.recipe.keys import Recipe
from distill.reporting.sidecar import (
    BUDGET,
    Int8,
    identifier,
    origin_of,
    registry_entry,
    sha256,
    write_registry,
    write_sidecar,
)
from distill.run.errors import GateFailed, UsageError
from distill.run.files import write_bytes
from distill.run.progress import Narrator
from distill.tools.bench import noise, open_all, parse_size, take_turns

CALIBRATION_CLIPS, HELD_OUT_CLIPS = 16, 8
FRAMES, EVERY = 24, 4  # of each clip are streamed; of those, one in so many gives ranges
TURNS, WINS = 31, 2 / 3


def quantise_file(
    model: Path, folder: Path, recipe: Recipe, sizes: Sequence[str], keep: bool, narrator: Narrator
) -> dict[str, Any]:
    """Writes the package of `model` in int8 to `folder`, calibrated on the recipe's corpus; returns what was measured.

    The package: BASE.onnx (the model as it is), BASE.int8.onnx, BASE.json and BASE.int8.registry.json.

    Returns, ready for JSON: file (the one in int8), sha256, bytes, files, calibration and held_out (clips, frames), drift
    (largest and mean absolute difference of the maps, in [0, 1], and their correlation), scores (what `evaluate` returns for
    both files on the held-out clips; None where nobody's gaze is known), times (by size: milliseconds of both, speedup, share
    of turns won).

    keep: write it even where it is not faster, or its maps correlate less than the budget allows. Raises GateFailed, and
    leaves no file, where the gate refuses it, or for one of those two reasons; UsageError where the model or the corpus is not
    usable.
    """
    if folder.exists() and (not folder.is_dir() or folder.samefile(model.parent)):
        raise UsageError(f"--out {folder}: name a folder, and another than that of the file that is read")
    [predictor] = open_all([model], 1)
    original = onnx.load(model)
    if any(node.op_type == "DequantizeLinear" for node in original.graph.node):
        raise UsageError(f"{model} is quantised already; give the file in floating point")
    try:
        base = identifier(model.stem)
    except ValueError as error:
        raise UsageError(f"{model}: {error}") from None
    corpus = open_corpus(recipe.corpus.name, recipe.corpus.root, track=narrator.track, options=recipe.corpus)
    calibrating, held_out = split(corpus.clips, predictor.metadata.get("validation_clips", ""))
    note = f"{len(calibrating)} clips of {recipe.corpus.name}, every {EVERY}th of the first {FRAMES} frames, min-max"
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
        if 1 - gap.plcc > BUDGET:
            doubts.append(f"not the same in int8 (the maps correlate by {gap.plcc:.4f}, {1 - BUDGET:g} is wanted)")
        if doubts and not keep:
            raise GateFailed(f"{model} is {', and '.join(doubts)}; nothing was written, --keep writes it all the same")
        scores = _scores(model, trial, held_out, recipe, narrator)
    facts = {
        "calibration": [clip.id for clip in calibrating], "held_out": [clip.id for clip in held_out],
        "drift": gap.to_dict(), "scores": scores, "times": times,
    }  # fmt: skip
    path, files = _write(model, folder / f"{base}.onnx", content, note, predictor.metadata, facts)
    return {"file": str(path), "sha256": sha256(path), "bytes": path.stat().st_size, "files": files, **facts}


def _write(
    model: Path, copy: Path, content: bytes, note: str, said: dict[str, str], facts: dict[str, Any]
) -> tuple[Path, list[str]]:
    """The four files of the package. The sidecar that sends the loader to the file in int8 comes after that file."""
    path = copy.with_suffix(".int8.onnx")
    for target, data in ((copy, model.read_bytes()), (path, content)):
        write_bytes(target, data)
    license_, chain = origin_of(said)
    about = (
        "Tiny video saliency student, in floating point and in int8: where people look, as a map in [0,1] per pixel."
    )
    measured = {**facts, "scores": facts["scores"] and facts["scores"]["predictors"], "calibration_set": note}
    more = _carried(model) | {"int8": {"file": path.name, **measured}}
    sidecar = write_sidecar(copy, about, license_, chain, more, "static")
    short = 1 - facts["drift"]["plcc"]
    budget = BUDGET if short <= BUDGET else math.ceil(100 * short) / 100
    notes = f"{path.name}: static QDQ, made from {copy.name}; its maps correlate by {1 - short:.5f} on held-out clips."
    entry = registry_entry(copy, license_, about, notes, Int8(sha256(path), note, budget))
    registry = write_registry(copy.with_suffix(".int8.registry.json"), [entry])
    return path, [str(file) for file in (copy, path, sidecar, registry)]


def _carried(model: Path) -> dict[str, Any]:
    """What the model's own sidecar says that holds in int8 too, if it has one: not its scores."""
    try:
        said = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kept = ("frame_rate", "gate_tau_seconds", "training")
    return {key: said[key] for key in kept if key in said} if isinstance(said, dict) else {}


def split(clips: Sequence[Clip], validated: str) -> tuple[list[Clip], list[Clip]]:
    """Clips that calibrate, and clips held out for the comparison; spread over the corpus, never the same.

    validated: ids of the model's validation clips, by comma. Raises UsageError where there are not two clips.
    """
    named = set(filter(None, validated.split(",")))
    # A run on several corpora calls a clip by its part as well.
    held_out = [clip for clip in clips if named & {clip.id, f"{clip.corpus}.{clip.name}"}]
    if not 0 < len(held_out) < len(clips):
        held_out = list(clips[3::4]) or list(clips[1:])
    rest = [clip for clip in clips if clip not in held_out]
    if not rest or not held_out:
        raise UsageError("int8 wants at least two clips: some give the ranges, others show what is lost")
    return _spread(rest, CALIBRATION_CLIPS), _spread(held_out, HELD_OUT_CLIPS)


def _spread(clips: list[Clip], most: int) -> list[Clip]:
    picks = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    return [clips[i] for i in picks]


def streamed(clips: Sequence[Clip], narrator: Narrator, title: str) -> Iterator[Iterator[np.ndarray]]:
    for clip in narrator.track(clips, title, len(clips)):
        yield islice(clip.read(), FRAMES)


def race(model: Path, int8: Path, size: str, narrator: Narrator) -> dict[str, Any]:
    """Both files on one thread, taking turns: medians in milliseconds, median of the turns' ratios, share of turns won."""
    narrator.say(f"quantize: {TURNS} frames of {size}, float and int8 in turn")
    frame = noise(*parse_size(size))
    runs: list[Callable[[], object]] = [partial(p.run, frame) for p in open_all([model, int8], 1)]
    try:
        before, after = np.array(take_turns(runs, TURNS, 1))
    except ValueError as error:
        raise UsageError(str(error)) from None
    won = float((after < before).mean())
    return {
        "float_ms": 1000 * float(np.median(before)), "int8_ms": 1000 * float(np.median(after)),
        "speedup": float(np.median(before / after)), "turns_won": won, "faster": won >= WINS,
    }  # fmt: skip


def _scores(model: Path, int8: Path, clips: list[Clip], recipe: Recipe, narrator: Narrator) -> dict[str, Any] | None:
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        return None
    its = recipe.eval
    return evaluate({"int8": int8, "float": model}, {}, annotated, its.stride, its.threads, narrator, its.protocol)

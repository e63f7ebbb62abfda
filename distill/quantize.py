"""An ONNX student in int8 beside the one in floating point: made on clips, compared on others, named only where it is faster.

The clips that calibrate and those that compare are never the same: held out are the clips that the model's metadata names
as its validation clips, or every fourth where none of them is at hand. Time is measured as in distill.bench, both files
taking turns on one thread; int8 has to win two turns out of three at every size, which chance rarely does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.bench import noise, open_all, parse_size, take_turns
from distill.config import Recipe
from distill.corpora import Clip, open_corpus
from distill.errors import GateFailed, UsageError
from distill.evaluate import evaluate
from distill.export import ExportRefused
from distill.export.quantize import drift, quantise
from distill.export.ship import sha256
from distill.progress import Narrator
from distill.run_dir import atomic

CALIBRATION_CLIPS, HELD_OUT_CLIPS = 16, 8
FRAMES, EVERY = 24, 4  # of each clip are streamed; of those, one in so many gives ranges
TURNS, WINS = 31, 2 / 3


def quantise_file(
    model: Path, out: Path, recipe: Recipe, sizes: Sequence[str], keep: bool, narrator: Narrator
) -> dict[str, Any]:
    """Writes `model` in int8 to `out`, calibrated on the recipe's corpus; returns what was measured.

    Returns, ready for JSON: file, sha256, bytes, calibration and held_out (clips, frames), drift (largest and mean absolute
    difference of the maps, in [0, 1]), scores (what `evaluate` returns for both files on the held-out clips; None where nobody's
    gaze is known), times (by size: milliseconds of both, speedup, share of turns won).

    keep: write it even where it is not faster. Raises GateFailed, and leaves no file, where the gate refuses it or it is not
    faster; UsageError where the model or the corpus is not usable.
    """
    if out.exists() and out.samefile(model):
        raise UsageError(f"--out {out} is the file that is read; name another")
    [predictor] = open_all([model], 1)
    original = onnx.load(model)
    if any(node.op_type == "DequantizeLinear" for node in original.graph.node):
        raise UsageError(f"{model} is quantised already; give the file in floating point")
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
    out.parent.mkdir(parents=True, exist_ok=True)
    written = out.with_name(f".{out.stem}.tmp.onnx")
    try:
        with atomic(written) as file:
            file.write(int8.SerializeToString(deterministic=True))
        times = {size: race(model, written, size, narrator) for size in sizes}
        slow = [f"{t['speedup']:.2f} times as fast at {size}" for size, t in times.items() if not t["faster"]]
        if slow and not keep:
            raise GateFailed(
                f"{model} is not faster in int8 ({', '.join(slow)}); nothing was written, --keep writes it all the same"
            )
        scores = _scores(model, written, held_out, recipe, narrator)
        written.replace(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            written.unlink()
    return {
        "file": str(out), "sha256": sha256(out), "bytes": out.stat().st_size,
        "calibration": [clip.id for clip in calibrating], "held_out": [clip.id for clip in held_out],
        "drift": gap.to_dict(), "scores": scores, "times": times,
    }  # fmt: skip


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

"""Scores predictors on clips: ONNX files through onnxruntime, frame by frame, the state carried. What is scored is what ships.

    models       ONNX files, as they ship; one with state sees every frame
    baselines    every file without state, pooled over time (distill.students.pooling)
    references   whatever gives a map for a frame: a teacher's labels, a centred Gaussian, a mean map
    and, where the corpus allows them, the mean map of the other clips and half of the observers for the other half

Every `stride`-th frame is scored against the observers' fixations. Frames without fixations have no score; they are
counted. The clips' fixations are read first: sAUC draws a frame's negatives from other frames.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from distill.corpora import Clip, Points, density_map, fixation_points, open_corpus
from distill.corpora.clips import SIGMA, blur
from distill.evaluation import metrics, scores
from distill.evaluation.metrics import PROTOCOLS, Protocol
from distill.export.blocks import centred
from distill.export.runner import Predictor
from distill.recipe.keys import Recipe
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator, cancelling_pool
from distill.students.pooling import Pooling, State, parse

# A map of any size for a frame of a clip, [h,w]; what a baseline or a teacher predicts there. Mask-like: its peak is 1.
Reference = Callable[[Clip, int], np.ndarray]

OTHERS = 10  # frames that the negatives of sAUC are drawn from
MEAN_MAP = "mean map of the other clips"
CEILING = "half of the observers"
ENOUGH_CLIPS = 4  # for a mean map that is more than a few clips' own
GRID = (72, 128)  # rows and columns of the mean map


def centre_gaussian(clip: Clip, index: int) -> np.ndarray:
    """A centred Gaussian, sigma 22 % of each side: the baseline that every model must beat."""
    return _centre(clip.height, clip.width)


@lru_cache(maxsize=64)
def _centre(height: int, width: int) -> np.ndarray:
    return centred(height, width).astype(np.float32)


@lru_cache(maxsize=64)
def _centre_map(height: int, width: int) -> metrics.Map:
    return metrics.Map(_centre(height, width))


def evaluate(
    models: Mapping[str, Path],
    references: Mapping[str, Reference],
    clips: Sequence[Clip],
    stride: int,
    threads: int,
    narrator: Narrator,
    protocol: str = "clip-mean",
    baselines: Sequence[str] = (),
    mean_map: bool = False,
) -> dict[str, Any]:
    """Scores models (by display name), their poolings and references on annotated clips.

    baselines: poolings of every model without state, as `students.pooling.parse` reads them. mean_map: score the mean map of
    the other clips too, where there are enough. Where observers are known, one half of them predicts the other.

    Returns, ready for JSON:
        schema, protocol (its name), about (what that means), stride
        predictors, intervals, differences     see `scores.summary`; the differences are those of the first model
        frames_scored, frames_without_fixations
        clips: {id: {frames_scored, frames_without_fixations, scores: {predictor: {metric: mean over its frames}},
                     frames: [index], nss_over_time: {predictor: [NSS of that frame]}}}

    Raises UsageError for a model that does not load, an unknown protocol or baseline, or clips without any fixation.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError("no clip has fixations to score against; give a corpus with fixations")
    threads = threads or len(os.sched_getaffinity(0))
    metrics.keep_memory()
    opened = {name: load_predictor(path) for name, path in models.items()}  # a file that does not load shows now
    poolings = _poolings(opened, baselines)
    chosen = choose_protocol(protocol)
    steps = {name: step_of(predictor) for name, predictor in opened.items()}
    for name, step in steps.items():
        if any(side % step for clip in annotated for side in (clip.height, clip.width)):
            narrator.say(
                f"eval: {name} runs at multiples of {step} px only: other frames are extended at the right and at the bottom"
            )

    with cancelling_pool(threads) as pool:
        read = pool.map(lambda clip: _read_gaze(clip, stride, narrator.stop), annotated)
        gaze = Gaze(annotated, list(narrator.track(read, "fixations", len(annotated))))
        if not gaze.points:
            raise UsageError(
                "not one scored frame has fixations; check the annotation, or score more frames with eval.stride"
            )
        if mean_map and len(np.unique(gaze.owner)) >= ENOUGH_CLIPS:
            references = {**references, MEAN_MAP: gaze.mean_map}
        job = _Job(models, steps, poolings, references, gaze, chosen, narrator.stop)
        results = narrator.track(pool.map(job.score, annotated), "eval", len(annotated))
        by_clip = {clip.id: result for clip, result in zip(annotated, results, strict=True)}

    scored = {i: r for i, r in by_clip.items() if r["frames_scored"]}
    names = [*models, *poolings, *references]
    names += [CEILING] if any(CEILING in r["scores"] for r in scored.values()) else []
    return {
        "schema": 2,
        "protocol": chosen.name,
        "about": chosen.about,
        "stride": stride,
        "frames_scored": sum(r["frames_scored"] for r in by_clip.values()),
        "frames_without_fixations": sum(r["frames_without_fixations"] for r in by_clip.values()),
        **scores.summary(
            {i: r["scores"] for i, r in scored.items()},
            {i: r["frames_scored"] for i, r in scored.items()},
            names, chosen,
        ),
        "clips": by_clip,
    }  # fmt: skip


def across(models: Sequence[Path], recipe: Recipe, narrator: Narrator) -> dict[str, dict[str, Any]]:
    """The results of ONNX files on every part of the recipe's corpus, by part: `evaluate`, with the centred Gaussian and the
    mean map of the other clips. All annotated clips are scored, or `corpus.val_clips` of them.

    Raises UsageError where a model or a corpus is not usable.
    """
    names = [path.name if sum(p.name == path.name for p in models) == 1 else str(path) for path in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{min(twice)} is named twice")
    held_out = {
        name: load_predictor(path).metadata.get("validation_clips") for name, path in zip(names, models, strict=True)
    }
    corpus = open_corpus(recipe.corpus.name, recipe.corpus.root, track=narrator.track, options=recipe.corpus)
    wanted = recipe.corpus.val_clips
    clips = corpus.select(wanted) if wanted else list(corpus.clips)
    for note in corpus.notes:
        narrator.say(f"corpus: {note}")
    for name, validated in held_out.items():
        if validated and not wanted:
            narrator.say(
                f"eval: all clips are scored; if {name} was trained on this corpus, only {validated} were held out: "
                f"--set corpus.val_clips={validated}"
            )
    results, options = {}, recipe.eval
    for part, root in corpus.roots.items():
        its = [clip for clip in clips if clip.corpus == part]
        if its or not wanted:
            results[f"{part}:{Path(root).name}"] = evaluate(
                dict(zip(names, models, strict=True)), {"centred Gaussian": centre_gaussian}, its, options.stride,
                options.threads, narrator, options.protocol, options.baselines, mean_map=True,
            )  # fmt: skip
    return results


def choose_protocol(name: str) -> Protocol:
    """The protocol of that name, or UsageError."""
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _poolings(opened: Mapping[str, Predictor], baselines: Sequence[str]) -> dict[str, tuple[str, Pooling]]:
    """What pools whose maps, by display name."""
    try:
        wanted = list(dict.fromkeys(parse(text) for text in baselines))
    except ValueError as error:
        raise UsageError(str(error)) from None
    still = [name for name, predictor in opened.items() if not predictor.stateful]
    if wanted and not still:
        raise UsageError(
            f"baseline {wanted[0].name} pools the maps of an image file, and none is given; name one beside"
        )
    return {f"{name} + {pooling.name}": (name, pooling) for name in still for pooling in wanted}


# --- where observers looked ------------------------------------------------------------------------------------------


def _read_gaze(clip: Clip, stride: int, stop: Callable[[], bool]) -> dict[int, Points]:
    """The fixations of the frames that are due, by frame; empty ones too."""
    found: dict[int, Points] = {}
    for index in range(0, min(clip.frames, clip.annotated_frames), stride):
        if stop():
            raise Interrupted(f"eval, reading the fixations of clip {clip.id}")
        points = fixation_points(clip, index)
        if points is None:
            continue
        for axis, length in ((points.rows, clip.height), (points.columns, clip.width)):
            if len(axis) and not 0 <= axis.min() <= axis.max() < length:
                raise UsageError(
                    f"clip {clip.id}, frame {index + 1}: a fixation lies outside the frame of {clip.width}x{clip.height} px; "
                    "mend the annotation, or leave the clip out with corpus.skip"
                )
        found[index] = points
    return found


class Gaze:
    """The fixations of all clips that are scored: what sAUC and the mean map compare a clip with."""

    def __init__(self, clips: Sequence[Clip], found: Sequence[dict[int, Points]]) -> None:
        self.of = {clip.id: points for clip, points in zip(clips, found, strict=True)}
        self.size = [(clip.height, clip.width) for clip in clips]
        self.number = {clip.id: n for n, clip in enumerate(clips)}
        seen = [(n, p) for n, points in enumerate(found) for p in points.values() if len(p.rows)]
        self.points = [p for _, p in seen]  # of every frame that has any
        self.owner = np.array([n for n, _ in seen], int)  # and the number of its clip
        self.shares = np.zeros(
            (len(clips), *GRID), np.float32
        )  # every clip's mean map, unblurred; each counts the same
        for (n, p), (height, width) in ((s, self.size[s[0]]) for s in seen):
            np.add.at(self.shares[n], (p.rows * GRID[0] // height, p.columns * GRID[1] // width), 1 / len(p.rows))
        totals = self.shares.sum((1, 2))
        self.shares[totals > 0] /= totals[totals > 0, None, None]
        self.share = self.shares.sum(0)  # of all clips

    def others(self, clip: Clip, index: int, own_clip: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Fixations of ten random frames, rows and columns in this clip's pixels; the same for every predictor.

        None where no other clip has any. own_clip: whether frames of this clip may be among them.
        """
        number = self.number[clip.id]
        eligible = np.arange(len(self.owner)) if own_clip else np.flatnonzero(self.owner != number)
        if not len(eligible):
            return None
        rng = np.random.default_rng([_seed(clip), index])
        rows, columns = [], []
        for k in rng.choice(eligible, min(OTHERS, len(eligible)), replace=False):
            height, width = self.size[self.owner[k]]
            rows.append(self.points[k].rows * clip.height // height)
            columns.append(self.points[k].columns * clip.width // width)
        return np.concatenate(rows), np.concatenate(columns)

    def mean_map(self, clip: Clip, index: int) -> np.ndarray:
        """Where observers look in the other clips, whatever the frame: `GRID`, its peak 1."""
        others = np.maximum(self.share - self.shares[self.number[clip.id]], 0)
        blurred = cv2.GaussianBlur(others, (0, 0), SIGMA * GRID[1])
        return blurred / blurred.max()


def _seed(clip: Clip) -> int:
    """The same whether its corpus is scored alone or beside others, which is in a clip's id and not in its name."""
    return zlib.crc32(clip.name.encode())


def _halves(clip: Clip, points: Mapping[int, Points]) -> tuple[np.ndarray, np.ndarray] | None:
    """The clip's observers in two random halves; None where they are not known, or there is only one."""
    known = [p.observers for p in points.values() if p.observers is not None]
    observers = np.unique(np.concatenate(known)) if known else np.zeros(0, int)
    if len(observers) < 2:
        return None
    shuffled = np.random.default_rng(_seed(clip)).permutation(observers)
    return shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]


# --- one clip --------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """What scoring a clip takes; every thread has its own predictors, opened once."""

    models: Mapping[str, Path]
    steps: Mapping[str, int]
    poolings: Mapping[str, tuple[str, Pooling]]
    references: Mapping[str, Reference]
    gaze: Gaze
    protocol: Protocol
    stop: Callable[[], bool]
    own: threading.local = field(default_factory=threading.local)

    def predictors(self) -> dict[str, Predictor]:
        """This thread's, without history."""
        if not hasattr(self.own, "predictors"):
            self.own.predictors = {name: load_predictor(path) for name, path in self.models.items()}
        for predictor in self.own.predictors.values():
            predictor.reset()
        return self.own.predictors

    def score(self, clip: Clip) -> dict[str, Any]:
        points = self.gaze.of[clip.id]
        due = [index for index, p in points.items() if len(p.rows)]
        halves = _halves(clip, points)
        names = [*self.models, *self.poolings, *self.references]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        ceiling: list[dict[str, float]] = []
        for index, maps, steady in self._maps(clip, set(due)):
            truth = self._truth(clip, index, points[index])
            for name in names:
                try:
                    values = metrics.score_against(truth, maps[name], self.protocol)
                except ValueError as error:
                    raise UsageError(f"{name}, clip {clip.id}, frame {index + 1}: {error}") from None
                found[name].append({**values, **({"flicker": steady[name]} if name in steady else {})})
            ceiling += self._ceiling(clip, index, points[index], halves) if halves else []
        return {
            "frames_scored": len(due),
            "frames_without_fixations": len(points) - len(due),
            "scores": {name: self._means(f) for name, f in [*found.items(), (CEILING, ceiling)] if f},
            "frames": due,
            "nss_over_time": {name: [round(s["nss"], 4) for s in found[name]] for name in names},
        }

    def _means(self, frames: list[dict[str, float]]) -> dict[str, float]:
        """Over the frames that have a value."""
        values = {m: [f[m] for f in frames if m in f and np.isfinite(f[m])] for m in self.protocol.metrics}
        return {m: float(np.mean(v)) for m, v in values.items() if v}

    def _maps(self, clip: Clip, due: set[int]) -> Iterator[tuple[int, dict[str, np.ndarray], dict[str, float]]]:
        """For every frame that is due: its index, the map of every predictor, and each one's flicker since the frame before,
        where the protocol asks for it and the clip moves at all."""
        predictors = self.predictors()
        pooled = {source for source, _ in self.poolings.values()}
        states: dict[str, State | None] = dict.fromkeys(self.poolings)
        before: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
        with_flicker = "flicker" in self.protocol.metrics
        for index, frame in enumerate(clip.read()):
            if self.stop():
                raise Interrupted(f"eval, in clip {clip.id}")
            # Without state or pooling, only frames that are scored are seen, and for flicker the ones before them.
            wanted = index in due or (with_flicker and index + 1 in due)
            try:
                maps = {
                    name: _predict(predictor, frame, self.steps[name])
                    for name, predictor in predictors.items()
                    if wanted or predictor.stateful or name in pooled
                }
                for name, (source, pooling) in self.poolings.items():
                    maps[name], states[name] = pooling.step(maps[source], frame, states[name])
            except ValueError as error:
                raise UsageError(f"clip {clip.id}: {error}") from None
            if wanted:
                for name, reference in self.references.items():
                    size = (clip.width, clip.height)
                    maps[name] = cv2.resize(reference(clip, index), size, interpolation=cv2.INTER_LINEAR)
            if index in due:
                steady = {}
                if with_flicker and before:
                    still = metrics.still_blocks(frame, before[0])
                    steady = {name: metrics.flicker(m, before[1][name], still) for name, m in maps.items()}
                yield index, maps, steady
            before = (frame, maps)
            if index == max(due, default=0):
                return

    def _truth(self, clip: Clip, index: int, points: Points, density: np.ndarray | None = None) -> metrics.Truth:
        try:
            return metrics.truth(
                density_map(clip, index, _binary(clip, points)) if density is None else density,
                (points.rows, points.columns),
                self.gaze.others(clip, index, self.protocol.own_clip) if "s_auc" in self.protocol.metrics else None,
                _centre_map(clip.height, clip.width) if "ig" in self.protocol.metrics else None,
                seed=index,
            )
        except (ValueError, IndexError) as error:
            raise UsageError(f"clip {clip.id}, frame {index + 1}: {error}") from None

    def _ceiling(
        self, clip: Clip, index: int, points: Points, halves: tuple[np.ndarray, np.ndarray]
    ) -> list[dict[str, float]]:
        """One half of the observers, blurred, predicts the other; nothing where either looked nowhere in this frame."""
        if points.observers is None:
            return []
        inside = [np.isin(points.observers, half) for half in halves]
        one, other = (Points(points.rows[seen], points.columns[seen]) for seen in inside)
        if not len(one.rows) or not len(other.rows):
            return []
        prediction, density = (blur(_binary(clip, half), SIGMA * clip.width) for half in (one, other))
        truth = self._truth(clip, index, other, density)
        return [metrics.score_against(truth, prediction / prediction.max(), self.protocol)]


def _binary(clip: Clip, points: Points) -> np.ndarray:
    fixations = np.zeros((clip.height, clip.width), bool)
    fixations[points.rows, points.columns] = True
    return fixations


def step_of(predictor: Predictor) -> int:
    """The smallest power of two, up to 32, of which a model's frame sizes must be multiples; 1 where none is found.

    Other projects' students run at multiples of 8 only; they are to be scored on the same clips nevertheless.
    """
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4  # that some sizes fail is what is asked
    for step in (1, 2, 4, 8, 16, 32):
        frame = np.zeros((1, 3, 64 + step, 96 + step), np.float32)
        try:
            if predictor.session.run(predictor.outputs, {"input": frame}, quiet)[0].shape == (1, 1, *frame.shape[2:]):
                return step
        except Exception:  # onnxruntime's exceptions share no base class of their own
            continue
    return 1


def _predict(predictor: Predictor, frame: np.ndarray, step: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if height % step == width % step == 0:
        return predictor.predict(frame)
    extended = cv2.copyMakeBorder(frame, 0, -height % step, 0, -width % step, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(predictor.predict(extended)[:height, :width])


def load_predictor(path: Path, threads: int = 1) -> Predictor:
    """Raises UsageError where the file is missing or no saliency student."""
    if not path.is_file():
        raise UsageError(f"no model at {path}" + ("; it is a folder" if path.is_dir() else ""))
    try:
        return Predictor(path, threads)
    except ValueError as error:
        raise UsageError(str(error)) from None

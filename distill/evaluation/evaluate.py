"""Scores predictors on clips. Students are scored as they ship: ONNX files in onnxruntime, frame by frame, with their state.

    models       ONNX files; one with state sees every frame
    baselines    every file without state, pooled over time (distill.students.pooling)
    references   anything that gives a map for a frame: a teacher's labels, a centred Gaussian, a mean map
    and, where the corpus allows it, the mean map of the other clips, and one half of the observers against the other

Every `stride`-th frame is scored against the observers' fixations. Frames without fixations, or with a fixation map that cannot
be used, are not scored, and counted. So are density maps that cannot be used: those of the fixations take their place.
The fixations of all clips are read first, since sAUC draws a frame's negatives from other frames.
"""

import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill.corpora import SIGMA, Clip, Points, blur, open_corpus
from distill.corpora.clips import first_few
from distill.corpora.gaze import stored_density
from distill.evaluation import metrics, protocols, statistics
from distill.evaluation.centre import centred_gaussian
from distill.evaluation.fixations import Fixations, frames_to_score, observer_halves, read_fixations
from distill.evaluation.predictors import load_predictor, predict, size_multiple
from distill.evaluation.protocols import GroundTruth, Protocol
from distill.export.runner import Predictor
from distill.recipe.keys import Recipe
from distill.run.errors import Interrupted, UsageError
from distill.run.machine.parallel import usable_cores
from distill.run.progress import Narrator, cancelling_pool
from distill.students.pooling import Pooling, State, parse

# The prediction of a baseline or a teacher for a frame of a clip: a map [h,w] of any size, with a peak of 1.
Reference = Callable[[Clip, int], np.ndarray]

MEAN_MAP = "mean map of the other clips"
CEILING = "half of the observers"
MIN_CLIPS_FOR_MEAN_MAP = 4


def centre_gaussian(clip: Clip, index: int) -> np.ndarray:
    """The centred Gaussian as a reference."""
    return centred_gaussian(clip.height, clip.width)


@lru_cache(maxsize=64)
def _gaussian_map(height: int, width: int) -> metrics.Map:
    return metrics.Map(centred_gaussian(height, width))


def evaluate(
    models: Mapping[str, Path], references: Mapping[str, Reference], clips: Sequence[Clip], stride: int, threads: int,
    narrator: Narrator, protocol: str = "clip-mean", baselines: Sequence[str] = (), mean_map: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Scores models (by display name), their poolings and references on annotated clips.

    baselines: poolings for every model without state, as `students.pooling.parse` reads them. mean_map: score the mean map
    of the other clips, too, if there are enough clips. Where observers are known, one half of them predicts the other.

    Returns, ready for JSON:
        schema, protocol (its name), about (its description), stride
        predictors, intervals, differences     see `statistics.summarise`; differences are those of the first model
        frames_scored, frames_without_fixations, fixation_maps_left_out, density_maps_rebuilt
        clips: {id: {these four, scores: {predictor: {metric: mean over its frames}},
                     frames: [index], nss_over_time: {predictor: [NSS of that frame]}}}

    Raises UsageError for a model that does not load, an unknown protocol or baseline, or clips without any fixation.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError("no clip has fixations to score against; give a corpus with fixations")
    metrics.reserve_memory()
    opened = {name: load_predictor(path) for name, path in models.items()}  # a file that does not load is reported now
    poolings = _poolings(opened, baselines) if any(clip.frames > 1 for clip in annotated) else {}
    chosen = protocols.choose(protocol)
    multiples = {name: size_multiple(predictor) for name, predictor in opened.items()}
    for name, multiple in multiples.items():
        if any(side % multiple for clip in annotated for side in (clip.height, clip.width)):
            narrator.say(f"eval: {name} runs at multiples of {multiple} px only: other frames are extended, right and bottom")

    with cancelling_pool(threads or usable_cores()) as pool:
        read = pool.map(lambda clip: read_fixations(clip, stride, narrator.stop), annotated)
        fixations = Fixations(annotated, list(narrator.track(read, "fixations", len(annotated))))
        if not fixations.points:
            raise UsageError("none of the scored frames has fixations; check the annotation, or lower eval.stride")
        if mean_map and len(np.unique(fixations.owner)) >= MIN_CLIPS_FOR_MEAN_MAP:
            references = {**references, MEAN_MAP: fixations.mean_map}
        scorer = _Scorer(models, multiples, poolings, references, fixations, stride, chosen, narrator.stop)
        results = narrator.track(pool.map(scorer.score, annotated), "eval", len(annotated))
        by_clip = {clip.id: result for clip, result in zip(annotated, results, strict=True)}

    names = [*models, *poolings, *references]
    names += [CEILING] if any(CEILING in r["scores"] for r in by_clip.values()) else []
    return {
        "schema": 2, "protocol": chosen.name, "about": chosen.about, "stride": stride,
        **{key: sum(r[key] for r in by_clip.values()) for key in statistics.COUNTS},
        **statistics.summarise(by_clip, names, chosen),
        "clips": by_clip,
    }  # fmt: skip


def evaluate_corpora(models: Sequence[Path], recipe: Recipe, narrator: Narrator) -> dict[str, dict[str, Any]]:
    """The results of ONNX files on every part of the recipe's corpus, by part: `evaluate`, with the centred Gaussian and the
    mean map of the other clips. Scores all annotated clips, or `corpus.val_clips` of them.

    Raises UsageError where a model or a corpus is not usable.
    """
    names = [path.name if sum(p.name == path.name for p in models) == 1 else str(path) for path in models]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{min(repeated)} is named twice")
    by_name = dict(zip(names, models, strict=True))
    held_out = {name: load_predictor(path).metadata.get("validation_clips") for name, path in by_name.items()}
    corpus = open_corpus(recipe.corpus.name, recipe.corpus.root, track=narrator.track, options=recipe.corpus)
    selected = recipe.corpus.val_clips
    clips = corpus.select(selected) if selected else list(corpus.clips)
    for note in corpus.notes:
        narrator.say(f"corpus: {note}")
    for ids in dict.fromkeys(held_out.values()):
        here = [clip.id for clip in corpus.clips if clip.id in (ids or "").split(",")]
        if here and not selected:  # else it was trained on another corpus
            shared = " or ".join(name for name in held_out if held_out[name] == ids)
            narrator.say(
                f"eval: all clips are scored; if {shared} was trained on this corpus, only {first_few(here)} were held out: "
                f"--set {shlex.quote('corpus.val_clips=' + ','.join(here))}"
            )
    results, options = {}, recipe.eval
    for part, root in corpus.roots.items():
        of_part = [clip for clip in clips if clip.corpus == part]
        if of_part or not selected:
            how = (options.stride, options.threads, narrator, options.protocol, options.baselines)
            scores = evaluate(by_name, {"centred Gaussian": centre_gaussian}, of_part, *how, mean_map=True)
            results[f"{part}:{Path(root).name}"] = scores
    return results


def _poolings(opened: Mapping[str, Predictor], baselines: Sequence[str]) -> dict[str, tuple[str, Pooling]]:
    """Model and pooling by display name: every baseline of every model without state."""
    try:
        chosen = list(dict.fromkeys(parse(text) for text in baselines))
    except ValueError as error:
        raise UsageError(str(error)) from None
    stateless = [name for name, predictor in opened.items() if not predictor.stateful]
    if chosen and not stateless:
        raise UsageError(f"baseline {chosen[0].name} pools the maps of an image file, and none is given; name one, too")
    return {f"{name} + {pooling.name}": (name, pooling) for name in stateless for pooling in chosen}


@dataclass
class _Scorer:
    """Scores one clip at a time; every thread has its own predictors, opened once."""

    models: Mapping[str, Path]
    multiples: Mapping[str, int]
    poolings: Mapping[str, tuple[str, Pooling]]
    references: Mapping[str, Reference]
    fixations: Fixations
    stride: int
    protocol: Protocol
    stop: Callable[[], bool]
    local: threading.local = field(default_factory=threading.local)

    def predictors(self) -> dict[str, Predictor]:
        """This thread's predictors, without history."""
        if not hasattr(self.local, "predictors"):
            self.local.predictors = {name: load_predictor(path) for name, path in self.models.items()}
        for predictor in self.local.predictors.values():
            predictor.reset()
        return self.local.predictors

    def score(self, clip: Clip) -> dict[str, Any]:
        """A clip's entry of the result: see `evaluate`."""
        points = self.fixations.of[clip.id]
        to_score = [index for index, p in points.items() if len(p.rows)]
        halves = observer_halves(clip, points)
        names = [*self.models, *self.poolings, *self.references]
        by_name: dict[str, list[dict[str, float]]] = {name: [] for name in [*names, CEILING]}
        rebuilt = 0
        for index, maps, flicker in self._maps(clip, set(to_score)):
            density = stored_density(clip, index)
            rebuilt += bool(clip.maps) and density is None
            truth = self._truth(clip, index, points[index], density)
            for name in names:
                try:
                    values = protocols.score_against(truth, maps[name], self.protocol)
                except ValueError as error:
                    raise UsageError(f"{name}, clip {clip.id}, frame {index + 1}: {error}") from None
                by_name[name].append({**values, **({"flicker": flicker[name]} if name in flicker else {})})
            by_name[CEILING] += self._ceiling(clip, index, points[index], halves) if halves else []
        return {
            "frames_scored": len(to_score),
            "frames_without_fixations": len(points) - len(to_score),
            "fixation_maps_left_out": len(frames_to_score(clip, self.stride)) - len(points),
            "density_maps_rebuilt": rebuilt,
            "scores": {name: self._means(frames) for name, frames in by_name.items() if frames},
            "frames": to_score,
            "nss_over_time": {name: [round(s["nss"], 4) for s in by_name[name]] for name in names},
        }

    def _means(self, frames: list[dict[str, float]]) -> dict[str, float]:
        """Over the frames that have a finite value."""
        values = {m: [f[m] for f in frames if m in f and np.isfinite(f[m])] for m in self.protocol.metrics}
        return {m: float(np.mean(v)) for m, v in values.items() if v}

    def _maps(self, clip: Clip, to_score: set[int]) -> Iterator[tuple[int, dict[str, np.ndarray], dict[str, float]]]:
        """For every frame to score: its index, every predictor's map, and every predictor's flicker since the previous frame,
        if the protocol has flicker and there is a previous frame."""
        predictors = self.predictors()
        pooled = {source for source, _ in self.poolings.values()}
        states: dict[str, State | None] = dict.fromkeys(self.poolings)
        before: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
        with_flicker = "flicker" in self.protocol.metrics
        for index, frame in enumerate(clip.read()):
            if self.stop():
                raise Interrupted(f"eval, in clip {clip.id}")
            # Models without state or pooling need only the scored frames, and for flicker the ones before.
            needed = index in to_score or (with_flicker and index + 1 in to_score)
            try:
                maps = {
                    name: predict(predictor, frame, self.multiples[name])
                    for name, predictor in predictors.items()
                    if needed or predictor.stateful or name in pooled
                }
                for name, (source, pooling) in self.poolings.items():
                    maps[name], states[name] = pooling.step(maps[source], frame, states[name])
            except ValueError as error:
                raise UsageError(f"clip {clip.id}: {error}") from None
            if needed:
                for name, reference in self.references.items():
                    maps[name] = cv2.resize(reference(clip, index), (clip.width, clip.height), interpolation=cv2.INTER_LINEAR)
            if index in to_score:
                flicker = {}
                if with_flicker and before:
                    still = metrics.still_blocks(frame, before[0])
                    flicker = {name: metrics.flicker(m, before[1][name], still) for name, m in maps.items()}
                yield index, maps, flicker
            before = (frame, maps)
            if index == max(to_score, default=0):
                return

    def _truth(self, clip: Clip, index: int, points: Points, density: np.ndarray | None = None) -> GroundTruth:
        """density: by default the blurred points."""
        uses = self.protocol.metrics
        try:
            return protocols.ground_truth(
                blur(points.as_map(clip), SIGMA * clip.width) if density is None else density,
                (points.rows, points.columns),
                self.fixations.others(clip, index, self.protocol.own_clip) if "s_auc" in uses else None,
                _gaussian_map(clip.height, clip.width) if "ig" in uses else None,
                seed=index,
            )
        except (ValueError, IndexError) as error:
            raise UsageError(f"clip {clip.id}, frame {index + 1}: {error}") from None

    def _ceiling(self, clip: Clip, index: int, points: Points, halves: tuple[np.ndarray, np.ndarray]) -> list[dict[str, float]]:
        """The scores of one half of the observers, blurred, against the other; empty where a half has no fixation here."""
        if points.observers is None:
            return []
        members = (np.isin(points.observers, half) for half in halves)
        one, other = (Points(points.rows[own], points.columns[own]) for own in members)
        if not len(one.rows) or not len(other.rows):
            return []
        prediction, density = (blur(half.as_map(clip), SIGMA * clip.width) for half in (one, other))
        truth = self._truth(clip, index, other, density)
        return [protocols.score_against(truth, prediction / prediction.max(), self.protocol)]

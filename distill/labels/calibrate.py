"""Fits a teacher's calibration (`calibration.py`) to a corpus before it labels.

A teacher trained elsewhere can rank places well and still draw maps that are too wide, too flat or too confident: ViSAGE
learned from mouse tracks whose density is blurred two to three times as far as DHF1K's. A student that copies such maps
learns their blur. Metrics that only rank places do not see this.

`calibrate` fits on a few frames of every annotated clip against the corpus's own density maps, and reports metrics by
cross-validation: groups of clips take turns at being held out. Without a gain on them the labels stay as they are.

Legend: N frames · T frames of one clip · h, w cells of the logits' grid.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.corpora import Clip, Corpus, Points, density_map, fixation_points
from distill.evaluation import metrics, protocols
from distill.labels.calibration import BOUND, IDENTITY, Calibration, blurred
from distill.labels.labelling import LabelsOf, looked_up_in
from distill.labels.store import StoredLabels
from distill.run.errors import UsageError
from distill.run.files import value_in, write_json
from distill.run.progress import Narrator
from distill.training.losses import frame_losses

BLURS = (-0.09, -0.06, -0.04, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06)
"""Candidates for the blur, sigma as a share of the width; DHF1K's own density maps have 0.02."""

MAX_FRAMES = 600  # enough to fit three numbers
MAX_WIDTH = 96  # of the maps that the fit uses
WEIGHTS = {"kl": 1.0, "cc": 1.0, "bce": 0.1}
"""Weights of the losses. KL and CC see only a map's shape; a little BCE fixes its level, so that the sigmoid stays mask-like
(1 at a frame's peak). Without it the level would be free."""

METRICS = ("nss", "cc", "sim", "kld")


@dataclass(frozen=True)
class Fit:
    """A calibration and its gain."""

    calibration: Calibration  # fitted on all clips; the identity where the held-out clips gain nothing
    fitted: Calibration  # the same, whether it helps or not
    folds: tuple[Calibration, ...]  # one per fold, fitted without its clips; their spread shows how certain the fit is
    held_out: bool  # False where all clips belong to one group: the metrics are then those of the fitted clips themselves
    before: dict[str, float]  # NSS, CC, SIM and KL of the teacher as it is, means over clips
    after: dict[str, float]  # the same after calibration, each clip by the fit that held it out
    clips: dict[str, dict[str, Any]]  # by clip: `frames` measured, `before`, `after`

    @property
    def helps(self) -> bool:
        """Whether KL - CC fell: the two metrics among the losses."""
        return self.after["kld"] - self.after["cc"] < self.before["kld"] - self.before["cc"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "helps": self.helps}


@dataclass(frozen=True)
class _Sample:
    """A few annotated frames of one clip, at full size for the metrics and small for the fit."""

    clip: Clip
    points: dict[int, Points]  # fixations, by frame
    logits_Nhw: Tensor
    small_Nhw: Tensor
    density_Nhw: Tensor  # small too; maximum 1


def calibrate_run(path: Path, target: Path, narrator: Narrator) -> Fit:
    """Fits the labels of the run in `path` to its corpus, and writes the calibration to `target`.

    Only its training clips are used: the validation clips stay unseen. Raises UsageError for a run without labels, or with
    calibrated ones.
    """
    if not (path / "corpus.json").is_file() or not (path / "labels" / "store.json").is_file():
        raise UsageError(f"{path} is not a run with labels; make it one with `distill label --out {path}`")
    corpus, labels = value_in(path / "corpus.json", Corpus.from_dict), StoredLabels(path / "labels")
    if "parts" in labels.store.teacher:
        raise UsageError(f"the labels in {path} are of several teachers; calibrate a run without teacher.parts")
    if "calibration" in labels.store.teacher:
        raise UsageError(f"the labels in {path} are calibrated already; calibrate a run without teacher.calibration")
    fit = calibrate(corpus.select(corpus.train), looked_up_in(labels), narrator)
    save(target, fit, labels.store.teacher, corpus.title)
    return fit


def save(path: Path, fit: Fit, teacher: dict[str, Any], corpus: str) -> None:
    """Writes the calibration and its report for `calibration.load`, with the teacher's `name` and `fingerprint`."""
    fitted_to = {key: teacher[key] for key in ("name", "fingerprint")}
    values = {"schema": 1, "calibration": fit.calibration.to_dict(), "teacher": fitted_to, "corpus": corpus}
    write_json(path, values | {"report": fit.to_dict()})


def calibrate(clips: Sequence[Clip], labels_of: LabelsOf, narrator: Narrator, frames: int = 12, folds: int = 4) -> Fit:
    """Fits a teacher's logits to the annotation of `clips`; deterministic.

    labels_of: a teacher's logits of whole clips, computed or stored. frames: at most this many per clip, spread over its
    annotated frames. folds: at most this many parts, of whole groups of clips, each held out once. Raises UsageError where no
    clip is annotated, Interrupted between clips.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if not annotated:
        raise UsageError("calibrate: none of these clips is annotated; name a corpus with fixations")
    if len(annotated) > MAX_FRAMES:
        annotated = [annotated[i] for i in np.linspace(0, len(annotated) - 1, MAX_FRAMES).round().astype(int)]
    per_clip = max(1, min(frames, MAX_FRAMES // len(annotated)))
    samples = []
    labelled = zip(annotated, labels_of(annotated), strict=True)
    for clip, logits in narrator.track(labelled, "calibrate", len(annotated)):
        if sample := _sample(clip, logits, per_clip):
            samples.append(sample)
    if not samples:
        raise UsageError("calibrate: no frame of these clips has a fixation; choose other clips")
    fold_of = assign_folds([sample.clip for sample in samples], folds)
    count = max(fold_of) + 1
    overall, *without = fit_parts(samples, [[n != fold for n in fold_of] for fold in range(count)] if count > 1 else [])
    measured: dict[str, dict[str, Any]] = {}
    for sample, fold in narrator.track(zip(samples, fold_of, strict=True), "calibrate: measure", len(samples)):
        before, after = _measure(sample, (IDENTITY, without[fold] if without else overall))
        measured[sample.clip.id] = {"frames": len(sample.points), "before": before, "after": after}
    before, after = (
        {name: float(np.mean([clip[side][name] for clip in measured.values()])) for name in METRICS}
        for side in ("before", "after")
    )
    fit = Fit(overall, overall, tuple(without), count > 1, before, after, measured)
    return fit if fit.helps else dataclasses.replace(fit, calibration=IDENTITY)


def _sample(clip: Clip, logits_Thw: Tensor, most: int) -> _Sample | None:
    """At most `most` frames of a clip, spread evenly; None where none has a fixation."""
    count = min(clip.frames, clip.annotated_frames)
    spread = np.linspace(0, count - 1, most + 2)[1:-1].round().astype(int).tolist()
    annotated = ((index, fixation_points(clip, index)) for index in dict.fromkeys(spread))
    points = {index: p for index, p in annotated if p is not None and len(p.rows)}
    if not points:
        return None
    logits_Nhw = logits_Thw[list(points)].float()
    height, width = logits_Nhw.shape[1:]
    small = (max(1, round(height * min(1.0, MAX_WIDTH / width))), min(width, MAX_WIDTH))
    small_Nhw = F.interpolate(logits_Nhw[:, None], small, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    density = [density_map(clip, index, p.as_map(clip)) for index, p in points.items()]
    density = [cv2.resize(full, small[::-1], interpolation=cv2.INTER_AREA) for full in density]
    density_Nhw = torch.from_numpy(np.stack(density)).double()
    density_Nhw /= density_Nhw.amax((1, 2), keepdim=True).clamp_min(1e-8)
    return _Sample(clip, points, logits_Nhw, small_Nhw.double().clamp(-BOUND, BOUND), density_Nhw)


def assign_folds(clips: Sequence[Clip], most: int) -> list[int]:
    """Each clip's fold: at most `most` folds of about equal size, groups kept whole, shuffled with a fixed seed."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault((clip.corpus, clip.group or clip.id), []).append(number)
    sizes, fold_of = [0] * min(most, len(groups)), [0] * len(clips)
    names = sorted(groups)
    for chosen in np.random.default_rng(0).permutation(len(names)):
        fold = sizes.index(min(sizes))
        for number in groups[names[chosen]]:
            fold_of[number] = fold
        sizes[fold] += len(groups[names[chosen]])
    return fold_of


def fit_parts(samples: Sequence[_Sample], parts: Sequence[Sequence[bool]]) -> list[Calibration]:
    """The calibration of all samples, then that of each part of them; every clip has the same weight.

    Temperature and bias are fitted by L-BFGS, since the loss is smooth in both, and the blur by grid search. A model with
    more parameters must be better by more than one standard error over the clips (Breiman et al., 1984), otherwise the
    simpler one stays: the teacher as it is, then temperature and bias, then all three.
    """
    grids: dict[tuple[int, ...], list[int]] = {}
    for number, sample in enumerate(samples):
        grids.setdefault(tuple(sample.small_Nhw.shape[1:]), []).append(number)
    owners = [torch.tensor([n for n in grid for _ in samples[n].points]) for grid in grids.values()]
    logits = [torch.cat([samples[n].small_Nhw for n in grid]) for grid in grids.values()]
    density = [torch.cat([samples[n].density_Nhw for n in grid]) for grid in grids.values()]
    frames = torch.tensor([len(sample.points) for sample in samples], dtype=torch.float64)

    def losses(maps: Sequence[Tensor], log_temperature: Tensor, bias: Tensor) -> Tensor:
        """The mean loss over each sample's frames."""
        total = torch.zeros(len(samples), dtype=torch.float64)
        for maps_Nhw, target, owner in zip(maps, density, owners, strict=True):
            each, _ = frame_losses(maps_Nhw / log_temperature.exp() + bias, target, None, WEIGHTS)
            total = total.index_add(0, owner, each)
        return total / frames

    def best(maps: Sequence[Tensor], use: Tensor) -> tuple[float, float, Tensor]:
        values = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log temperature, bias
        optimizer = torch.optim.LBFGS(
            [values], max_iter=30, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = losses(maps, values[0], values[1])[use].mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            return float(values[0].exp()), float(values[1]), losses(maps, values[0], values[1])[use]

    spread = {blur: [blurred(maps_Nhw, blur) for maps_Nhw in logits] for blur in BLURS}
    zero = torch.zeros((), dtype=torch.float64)
    result = []
    for part in [[True] * len(samples), *parts]:
        use = torch.tensor(part)
        chosen, loss = IDENTITY, losses(logits, zero, zero)[use]
        plain = best(logits, use)
        tried = {blur: best(maps, use) for blur, maps in spread.items()}
        blur, with_blur = min(tried.items(), key=lambda item: float(item[1][2].mean()))
        candidates = (Calibration(*plain[:2]), plain[2]), (Calibration(*with_blur[:2], blur), with_blur[2])
        for candidate, candidate_loss in candidates:
            gain = loss - candidate_loss
            error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
            if float(gain.mean()) > error:
                chosen, loss = candidate, candidate_loss
        result.append(chosen)
    return result


def _measure(sample: _Sample, calibrations: Sequence[Calibration]) -> list[dict[str, float]]:
    """Mean NSS, CC, SIM and KL over a clip's frames, at the video's size, for each calibration."""
    clip = sample.clip
    maps = [c.apply(sample.logits_Nhw).sigmoid().numpy() for c in calibrations]
    scores: list[list[list[float]]] = [[] for _ in calibrations]
    for n, (index, points) in enumerate(sample.points.items()):
        truth = protocols.ground_truth(density_map(clip, index, points.as_map(clip)), (points.rows, points.columns))
        for values, map_Nhw in zip(scores, maps, strict=True):
            p = metrics.Map(cv2.resize(map_Nhw[n], (clip.width, clip.height), interpolation=cv2.INTER_LINEAR))
            of_density = (metric(p, truth.density) for metric in (metrics.cc, metrics.sim, metrics.kld))
            values.append([metrics.nss(p, truth.unique_pixels), *of_density])
    return [dict(zip(METRICS, np.mean(values, 0).tolist(), strict=True)) for values in scores]

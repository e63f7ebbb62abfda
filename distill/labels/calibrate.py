"""Fits a teacher to a corpus before it labels: three numbers that bring its maps to the corpus's sharpness and level.

    calibrated logits = blur(logits) / temperature + bias

A teacher trained elsewhere ranks places well and still draws them too wide, too flat or too sure: ViSAGE learned from mouse
tracks whose density is blurred two to three times as far as DHF1K's. A student that copies such maps learns their blur. What
is fitted here is what no ranking tells: temperature and bias shape the sigmoid of the logits, `blur` spreads them (a
Gaussian) or, below 0, sharpens them (what the Gaussian would take is added instead), sigma as a share of the width.

`calibrate` fits on a few frames of every annotated clip against the corpus's own density. What it reports was measured on
clips that the fit had not seen: groups of clips take turns at being held out. Where that shows no gain the answer is to
leave the labels as they are.

Legend: N frames · T frames of one clip · h, w cells of the logits' grid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from distill.labels.labelling import LabelsOf, looked_up_in
from distill.labels.store import StoredLabels
from distill.run.errors import Interrupted, UsageError
from distill.run.files import read_json, write_json
from distill.run.progress import Narrator
from distill.teachers import Lookup, Prepared, Teacher
from distill.training.losses import frame_losses

BLURS = (-0.09, -0.06, -0.04, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06)
"""What is tried, sigma in shares of the width; DHF1K's own density has 0.02."""

MAX_FRAMES = 600  # that a fit looks at, and the width at which it does: three numbers want no more
MAX_WIDTH = 96
BOUND = math.log((1 - 1e-6) / 1e-6)  # no logit counts for more
CHUNK = 64  # maps blurred at a time
WEIGHTS = {"kl": 1.0, "cc": 1.0, "bce": 0.1}
"""Of the losses that are minimised. KL and CC see the maps' shape alone, and a little BCE holds their level: it keeps the
sigmoid mask-like, 1 at a frame's peak, where the other two would let it sink without end."""

METRICS = ("nss", "cc", "sim", "kld")


@dataclass(frozen=True)
class Calibration:
    """What turns a teacher's logits into the corpus's. The defaults change nothing."""

    temperature: float = 1.0
    """Logits are divided by it; above 1 maps become flatter."""
    bias: float = 0.0
    """Added to the logits after that."""
    blur: float = 0.0
    """Sigma as a share of the width; below 0 the maps are sharpened by as much."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; it must be a number above 0")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias is {self.bias}; it must be a number")
        if not -0.2 <= self.blur <= 0.2:
            raise ValueError(f"blur is {self.blur}; it must lie in [-0.2, 0.2], a share of the width")

    def apply(self, logits_Thw: Tensor) -> Tensor:
        """Logits `[T,h,w]` -> calibrated logits `[T,h,w]`, float32. Each is first held within those of 1e-6 and 1 - 1e-6."""
        if self == IDENTITY:
            return logits_Thw.float()
        out = torch.empty(logits_Thw.shape)
        for start in range(0, len(out), CHUNK):
            held = logits_Thw[start : start + CHUNK].float().clamp(-BOUND, BOUND)
            out[start : start + CHUNK] = blurred(held, self.blur) / self.temperature + self.bias
        return out

    def to_dict(self) -> dict[str, float]:
        """Plain values; `from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            return cls(**{name: float(value) for name, value in dict(values).items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a calibration: {error}") from None


IDENTITY = Calibration()


def blurred(maps_Nhw: Tensor, share: float) -> Tensor:
    """Maps `[N,h,w]` under a Gaussian of sigma `share` of their width; below 0 the maps and what it would take from them."""
    if not share:
        return maps_Nhw
    sigma = abs(share) * maps_Nhw.shape[2]
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=maps_Nhw.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma * sigma))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps_Nhw[:, None], (radius,) * 4, mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
    return smooth if share > 0 else 2 * maps_Nhw - smooth


# ------------------------------------------------------------------------------------------------------------- the fit


@dataclass(frozen=True)
class Fit:
    """A calibration and what it is worth."""

    calibration: Calibration
    """Fitted on all clips; the identity where the clips held out are no better for it."""
    fitted: Calibration
    """The same, whether it helps or not."""
    folds: tuple[Calibration, ...]
    """Fitted without the clips held out, in turn: how far they differ tells how sure it is."""
    held_out: bool
    """False where all clips are of one group: then the measurements are of the very clips that were fitted."""
    before: dict[str, float]
    """Mean over clips: NSS, CC, SIM and KL of the teacher as it is."""
    after: dict[str, float]
    """The same after calibration, each clip by the fit that had not seen it."""
    clips: dict[str, dict[str, Any]]
    """By clip: `frames` measured, `before`, `after`."""

    @property
    def helps(self) -> bool:
        """Whether KL - CC fell: the two metrics among the losses."""
        return self.after["kld"] - self.after["cc"] < self.before["kld"] - self.before["cc"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "helps": self.helps}


@dataclass(frozen=True)
class _Sample:
    """A few annotated frames of one clip, at full size for measuring, and at the fit's width."""

    clip: Clip
    indices: list[int]
    logits_Nhw: Tensor
    small_Nhw: Tensor
    density_Nhw: Tensor  # small too; largest value 1


def calibrate_run(path: Path, target: Path, narrator: Narrator) -> Fit:
    """Fits the labels of the run in `path` to its corpus, and writes the calibration to `target`.

    On the run's training clips: those that its students are scored on stay unseen. Raises UsageError for a run without labels,
    or whose labels are calibrated already.
    """
    if not (path / "corpus.json").is_file() or not (path / "labels" / "store.json").is_file():
        raise UsageError(f"{path} is no run with labels; bring one there with `distill label --out {path}`")
    corpus, labels = Corpus.from_dict(read_json(path / "corpus.json")), StoredLabels(path / "labels")
    if "calibration" in labels.store.teacher:
        raise UsageError(
            f"the labels in {path} are calibrated already; calibrate those of a run without teacher.calibration"
        )
    fit = calibrate(corpus.select(corpus.train), looked_up_in(labels), narrator)
    save(target, fit, labels.store.teacher, corpus.name)
    return fit


def calibrate(clips: Sequence[Clip], labels_of: LabelsOf, narrator: Narrator, frames: int = 12, folds: int = 4) -> Fit:
    """Fits a teacher's logits to the annotation of `clips`; deterministic.

    labels_of: a teacher's logits of whole clips, computed or stored. frames: at most so many of each clip, spread over the
    frames that somebody fixated. folds: into how many parts the groups of clips are cut, each held out once. Raises
    UsageError where no clip is annotated, Interrupted between clips.
    """
    annotated = [clip for clip in clips if clip.annotated_frames]
    if len(annotated) > MAX_FRAMES:
        annotated = [annotated[i] for i in np.linspace(0, len(annotated) - 1, MAX_FRAMES).round().astype(int)]
    if not annotated:
        raise UsageError("calibrate: none of these clips is annotated; name a corpus with fixations")
    most = max(1, min(frames, MAX_FRAMES // len(annotated)))
    samples = []
    labels = labels_of(annotated)
    for clip, logits in narrator.track(zip(annotated, labels, strict=True), "calibrate", len(annotated)):
        samples += _sample(clip, logits, most)
        if narrator.stop():
            raise Interrupted(f"calibrate, after clip {clip.id}")
    if not samples:
        raise UsageError("calibrate: nobody fixated anything in these clips; name others")
    part_of = _parts([sample.clip for sample in samples], folds)
    parts = max(part_of) + 1
    fits = _fit(samples, [[part != its for its in part_of] for part in range(parts)] if parts > 1 else [])
    measured: dict[str, dict[str, Any]] = {}
    for sample, part in zip(samples, part_of, strict=True):
        before, after = _measure(sample, (IDENTITY, fits[1 + part] if parts > 1 else fits[0]))
        measured[sample.clip.id] = {"frames": len(sample.indices), "before": before, "after": after}
        if narrator.stop():
            raise Interrupted(f"calibrate, measuring clip {sample.clip.id}")
    before, after = (
        {name: float(np.mean([clip[side][name] for clip in measured.values()])) for name in METRICS}
        for side in ("before", "after")
    )
    found = Fit(fits[0], fits[0], tuple(fits[1:]), parts > 1, before, after, measured)
    return found if found.helps else dataclasses.replace(found, calibration=IDENTITY)


def _sample(clip: Clip, logits_Thw: Tensor, most: int) -> list[_Sample]:
    """One clip's, or none where nobody fixated."""
    chosen: list[tuple[int, Points]] = []
    count = min(clip.frames, clip.annotated_frames)
    for index in dict.fromkeys(np.linspace(0, count - 1, most + 2)[1:-1].round().astype(int).tolist()):
        points = fixation_points(clip, index)
        if points is not None and len(points.rows):
            chosen.append((index, points))
    if not chosen:
        return []
    indices = [index for index, _ in chosen]
    logits_Nhw = logits_Thw[indices].float()
    height, width = logits_Nhw.shape[1:]
    small = (max(1, round(height * min(1.0, MAX_WIDTH / width))), min(width, MAX_WIDTH))
    small_Nhw = F.interpolate(logits_Nhw[:, None], small, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    density = []
    for index, points in chosen:
        full = density_map(clip, index, _binary(clip, points))
        density.append(cv2.resize(full, small[::-1], interpolation=cv2.INTER_AREA))
    density_Nhw = torch.from_numpy(np.stack(density)).double()
    density_Nhw /= density_Nhw.amax((1, 2), keepdim=True).clamp_min(1e-8)
    return [_Sample(clip, indices, logits_Nhw, small_Nhw.double().clamp(-BOUND, BOUND), density_Nhw)]


def _binary(clip: Clip, points: Points) -> np.ndarray:
    fixations = np.zeros((clip.height, clip.width), bool)
    fixations[points.rows, points.columns] = True
    return fixations


def _parts(clips: Sequence[Clip], folds: int) -> list[int]:
    """Which of at most `folds` parts each clip is in: of about as many clips, groups whole, drawn at random once and for all."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault((clip.corpus, clip.group or clip.id), []).append(number)
    sizes, part_of = [0] * min(folds, len(groups)), [0] * len(clips)
    names = sorted(groups)
    for chosen in np.random.default_rng(0).permutation(len(names)):
        part = sizes.index(min(sizes))
        for number in groups[names[chosen]]:
            part_of[number] = part
        sizes[part] += len(groups[names[chosen]])
    return part_of


def _fit(samples: Sequence[_Sample], parts: Sequence[Sequence[bool]]) -> list[Calibration]:
    """The calibration of all samples, then that of each part of them; every clip counts the same.

    Temperature and bias are found by L-BFGS, for the loss is smooth in both, and the blur by trying. What takes more
    numbers must be better by more than a standard error over the clips (Breiman et al., 1984), or the simpler stays: the
    teacher as it is, then without blur, then with.
    """
    grids: dict[tuple[int, ...], list[int]] = {}
    for number, sample in enumerate(samples):
        grids.setdefault(tuple(sample.small_Nhw.shape[1:]), []).append(number)
    owners = [torch.tensor([n for n in grid for _ in samples[n].indices]) for grid in grids.values()]
    logits = [torch.cat([samples[n].small_Nhw for n in grid]) for grid in grids.values()]
    density = [torch.cat([samples[n].density_Nhw for n in grid]) for grid in grids.values()]
    frames = torch.tensor([len(sample.indices) for sample in samples], dtype=torch.float64)

    def losses(maps: Sequence[Tensor], log_temperature: Tensor, bias: Tensor) -> Tensor:
        """The mean of each sample's frames."""
        total = torch.zeros(len(samples), dtype=torch.float64)
        for its, target, owner in zip(maps, density, owners, strict=True):
            each, _ = frame_losses(its / log_temperature.exp() + bias, target, None, WEIGHTS)
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

    tried = {blur: [blurred(its, blur) for its in logits] for blur in BLURS}
    found = []
    for part in [[True] * len(samples), *parts]:
        use = torch.tensor(part)
        zero = torch.zeros((), dtype=torch.float64)
        chosen, value = IDENTITY, losses(logits, zero, zero)[use]
        plain = best(logits, use)
        others = [(blur, best(maps, use)) for blur, maps in tried.items()]
        blur, spread = min(others, key=lambda other: float(other[1][2].mean()))
        for calibration, its in ((Calibration(*plain[:2]), plain[2]), (Calibration(*spread[:2], blur), spread[2])):
            gain = value - its
            error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
            if float(gain.mean()) > error:
                chosen, value = calibration, its
        found.append(chosen)
    return found


def _measure(sample: _Sample, calibrations: Sequence[Calibration]) -> list[dict[str, float]]:
    """Mean NSS, CC, SIM and KL of a clip's frames at the video's size, for each calibration."""
    clip = sample.clip
    maps = [c.apply(sample.logits_Nhw).sigmoid().numpy() for c in calibrations]
    found: list[list[list[float]]] = [[] for _ in calibrations]
    for n, index in enumerate(sample.indices):
        points = fixation_points(clip, index)
        assert points is not None
        truth = protocols.ground_truth(density_map(clip, index, _binary(clip, points)), (points.rows, points.columns))
        for values, map_Nhw in zip(found, maps, strict=True):
            size = (clip.width, clip.height)
            p = metrics.Map(cv2.resize(map_Nhw[n], size, interpolation=cv2.INTER_LINEAR))
            values.append([
                metrics.nss(p, truth.unique_pixels), metrics.cc(p, truth.density), metrics.sim(p, truth.density),
                metrics.kld(p, truth.density),
            ])  # fmt: skip
    return [dict(zip(METRICS, np.mean(values, 0).tolist(), strict=True)) for values in found]


# ------------------------------------------------------------------------------------------------------ its use, its file


class Calibrated:
    """A teacher, or a lookup, whose labels are calibrated and whose fingerprint says so."""

    def __init__(self, teacher: Teacher | Lookup, calibration: Calibration) -> None:
        self.teacher: Any = teacher
        self.calibration, self.name = calibration, teacher.name

    def prepare(self, frames: np.ndarray | Tensor) -> Prepared:
        return self.teacher.prepare(frames)

    def infer(self, inputs: Prepared, fps: float) -> Tensor:
        return self.calibration.apply(self.teacher.infer(inputs, fps))

    def logits(self, *args: Any) -> Tensor:
        return self.calibration.apply(self.teacher.logits(*args))

    def fingerprint(self) -> str:
        return fingerprint(self.teacher.fingerprint(), self.calibration)


def fingerprint(teacher: str, calibration: Calibration) -> str:
    """Of the calibrated labels of a teacher with this fingerprint: its own where nothing changes."""
    if calibration == IDENTITY:
        return teacher
    return hashlib.sha256(f"{teacher} {json.dumps(calibration.to_dict())}".encode()).hexdigest()


def save(path: Path, found: Fit, teacher: dict[str, Any], corpus: str) -> None:
    """Writes a fit: of which teacher (`name` and `fingerprint` of its description), on which corpus, and its report."""
    write_json(path, {
        "schema": 1,
        "calibration": found.calibration.to_dict(),
        "teacher": {key: teacher[key] for key in ("name", "fingerprint")},
        "corpus": corpus,
        "report": found.to_dict(),
    })  # fmt: skip


def load(path: Path, teacher: str) -> Calibration:
    """The calibration in a file that `save` wrote, for the teacher with this fingerprint.

    Raises UsageError where there is none, or it is of another teacher: it would make that one's labels worse.
    """
    values = read_json(path)
    try:
        its = values["teacher"]
        name, its_print, calibration = its["name"], its["fingerprint"], Calibration.from_dict(values["calibration"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no calibration ({error}); `distill teach calibrate` writes one") from None
    if its_print != teacher:
        raise UsageError(
            f"{path} was fitted to teacher {name} ({str(its_print)[:12]}), this one is {teacher[:12]}; calibrate it anew"
        )
    return calibration

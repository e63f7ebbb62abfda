"""Facts about a corpus: what it holds, what is missing or broken, and how its density maps were blurred.

Every video is decoded once, to count its frames, and every fixation map and density map is read, to test its contents. The mean
number of fixations in maps with a file per frame is that of up to 32 frames, evenly spaced.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from distill.corpora import CORPORA, SIGMA, Clip, Corpus, blur, find, fixation_points, parts_of
from distill.corpora.checking import UNANNOTATED
from distill.corpora.clips import counted, did_you_mean_clip
from distill.corpora.gaze import FRAME_READERS, clip_fixations, stored_density
from distill.corpora.opening import Track, survey
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

T = TypeVar("T")
SAMPLED_FRAMES = 32  # of a clip whose fixation maps are read
FIT_CLIPS, FIT_FRAMES = 12, 3  # clips, and frames of each, that sigma is fitted to: enough to agree within a percent
FIT_WIDTH = 640  # pixels; larger maps are scaled down


def describe_corpus(root: Path, name: str, track: Track | None = None, show: str = "") -> tuple[Corpus, dict[str, Any]]:
    """The usable clips, and facts about all of them as plain values: what `distill inspect --json` prints. show: a clip, or a set of
    images; then all others stay closed."""
    corpus, problems = survey(name, root, track=track, thorough=True, only=_ids_of(show, root, name) if show else ())
    clips = corpus.clips
    with_maps = [clip for clip in clips if clip.maps]
    without = f"none: built from fixations, sigma {SIGMA:.2%} of the width"
    return corpus, {
        "kind": f"corpus, {CORPORA[name].about}",
        "corpus": name,
        "clips": len(clips),
        "annotated": sum(clip.annotated_frames > 0 for clip in clips),
        "frames": sum(clip.frames for clip in clips),
        "seconds": round(sum(clip.seconds for clip in clips if not clip.static), 1),
        "sizes": dict(Counter(f"{clip.width}x{clip.height}" for clip in clips).most_common()),
        "licence": corpus.license,
        "density maps": f"of {counted(len(with_maps), 'clip')}" if with_maps else without,
        **fit_sigma(with_maps),
        "unannotated": [clip.id for clip in clips if not clip.annotated_frames],
        "broken": problems,
        "notes": list(corpus.notes),
        "per_clip": [clip_facts(clip) for clip in clips],
    }


def _ids_of(show: str, root: Path, name: str) -> list[str]:
    """The ids of the clip, or of the images in the set, with this name. Raises UsageError where there is none."""
    found = {clip_id: clip for clip_id, (_, clip) in find(parts_of(name, root), Options()).items()}
    sets = {image_set(clip) for clip in found.values()} - {""}
    if show not in found and show not in sets:
        raise UsageError(f"--show: there is no clip '{show}' in {root}{did_you_mean_clip(show, [*sets, *found])}")
    return [show] if show in found else [clip_id for clip_id, clip in found.items() if image_set(clip) == show]


def clip_facts(clip: Clip) -> dict[str, Any]:
    """Sizes and counts of one clip, its mean number of fixations per annotated frame, and the number of observers."""
    per_frame, observers = None, None
    if clip.annotated_frames and clip.annotation in FRAME_READERS:
        sample = np.unique(np.linspace(0, clip.annotated_frames - 1, SAMPLED_FRAMES).astype(int))
        points = [fixation_points(clip, int(index)) for index in sample]
        counts = [len(p.rows) for p in points if p is not None]
        per_frame = float(np.mean(counts)) if counts else None
    elif clip.annotated_frames:
        fixations = clip_fixations(clip)
        per_frame = len(fixations.frame) / clip.annotated_frames
        observers = len(np.unique(fixations.observers)) if fixations.observers is not None else None
    return {
        "id": clip.id, "frames": clip.frames, "width": clip.width, "height": clip.height,
        "fps": None if clip.static else clip.fps, "fps_varies": bool(clip.times), "annotated_frames": clip.annotated_frames,
        "fixations_per_frame": None if per_frame is None else round(per_frame, 2), "observers": observers,
        "maps": bool(clip.maps), "side": clip.side, "static": clip.static, "set": image_set(clip), "troubles": clip.troubles,
    }  # fmt: skip


def image_set(clip: Clip) -> str:
    """The set that a still image belongs to; "" for a video."""
    return clip.name.rpartition("/")[0] if clip.static else ""


def evenly_spaced(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the items, from the middles of equal stretches."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i)] for i in (np.arange(limit) + 0.5) * len(items) / limit]


def table_rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    """The table for the terminal: a row per video, per set of still images, and per clip that cannot be used."""
    clips: list[dict[str, Any]] = facts["per_clip"]
    rows = [_row(clip["id"], [clip]) for clip in clips if not clip["static"]]
    for name in dict.fromkeys(clip["set"] for clip in clips if clip["static"]):
        images = [clip for clip in clips if clip["static"] and clip["set"] == name]
        rows.append(_row(f"{name}, {len(images)} images", images))
    empty = {"frames": "-", "size": "-", "fps": "-", "fixations per frame": "-", "observers": "-", "side": ""}
    rows += [{"clip": name, **empty, "remarks": f"BROKEN: {problem}"} for name, problem in facts["broken"].items()]
    hidden = "" if any(row["side"] for row in rows) else "side"
    return [{head: cell for head, cell in row.items() if head != hidden} for row in rows]


def _row(name: str, clips: Sequence[dict[str, Any]]) -> dict[str, str]:
    sizes = list(dict.fromkeys(f"{clip['width']}x{clip['height']}" for clip in clips))
    annotated = [clip for clip in clips if clip["annotated_frames"]]
    per_frame = [clip["fixations_per_frame"] for clip in annotated]
    observers = sorted({clip["observers"] for clip in annotated if clip["observers"]})
    remarks = [] if annotated else ["no annotation"]
    if 0 < len(annotated) < len(clips):
        remarks.append(f"{len(clips) - len(annotated)} without annotation")
    problems = sum((Counter(clip["troubles"]) for clip in clips), Counter[str]())
    remarks += [f"{kind}: {count:,}" for kind, count in problems.items() if kind != UNANNOTATED or annotated]
    return {
        "clip": name, "frames": f"{sum(clip['frames'] for clip in clips):,}",
        "size": sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes",
        "fps": "still" if clips[0]["static"] else f"{clips[0]['fps']:.5g}{' (varies)' if clips[0]['fps_varies'] else ''}",
        "fixations per frame": f"{np.mean(per_frame):.1f}" if per_frame else "-",
        "observers": "-".join(map(str, dict.fromkeys((observers[0], observers[-1])))) if observers else "-",
        "side": clips[0]["side"], "remarks": "; ".join(remarks),
    }  # fmt: skip


def summary(facts: dict[str, Any]) -> dict[str, str]:
    """The lines below the table."""
    sizes = [f"{size} ({count})" for size, count in list(facts["sizes"].items())[:6]]
    more = len(facts["sizes"]) - len(sizes)
    lines = {
        "kind": facts["kind"],
        "clips": f"{facts['clips']:,}, {facts['annotated']:,} annotated, {facts['frames']:,} frames"
        + (f", {facts['seconds'] / 60:.1f} minutes of video" if facts["seconds"] else ""),
        "sizes": ", ".join(sizes) + (f" and {more} more" if more > 0 else ""),
        "licence": facts["licence"],
        "density maps": facts["density maps"],
    }
    if "sigma_px" in facts:
        width = f"{facts['sigma_share']:.2%} of the width"
        lines["their blur"] = f"sigma {facts['sigma_px']:.2f} px, {width} (correlation {facts['sigma_correlation']:.4f})"
    if facts["broken"]:
        lines["broken"] = f"{counted(len(facts['broken']), 'clip')}: {', '.join(facts['broken'])}"
    return lines | {f"note {i}": note for i, note in enumerate(facts["notes"], 1)}


def fit_sigma(clips: Sequence[Clip]) -> dict[str, float]:
    """The Gaussian that turns the fixations of `clips` into their density maps; empty without maps.

    Returns `sigma_px` at the clips' median width, `sigma_share` of the width, and `sigma_correlation`, the mean correlation
    with the maps, which it maximises by golden-section search over 0.2 to 20 % of the width.
    """
    pairs, widths = [], []
    for clip in evenly_spaced(clips, FIT_CLIPS):
        for index in evenly_spaced(range(clip.annotated_frames), FIT_FRAMES):
            if (pair := _counts_and_density(clip, index)) is not None:
                pairs.append(pair)
                widths.append(clip.width)
    if not pairs:
        return {}

    def correlation(log_share: float) -> float:
        share = math.exp(log_share)
        return float(np.mean([np.corrcoef(blur(c, share * c.shape[1]).ravel(), d.ravel())[0, 1] for c, d in pairs]))

    log_share = _maximum(correlation, math.log(0.002), math.log(0.2))
    share = math.exp(log_share)
    return {
        "sigma_px": round(share * float(np.median(widths)), 2),
        "sigma_share": round(share, 5),
        "sigma_correlation": round(correlation(log_share), 4),
    }


def _counts_and_density(clip: Clip, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Fixation counts and density map of a frame, float32, at most FIT_WIDTH wide; None where it lacks one of them."""
    points = fixation_points(clip, index)
    if points is None or not len(points.rows) or (density := stored_density(clip, index)) is None:
        return None
    counts = np.zeros((clip.height, clip.width), np.float32)
    np.add.at(counts, (points.rows, points.columns), 1)
    if clip.width > FIT_WIDTH:
        size = (FIT_WIDTH, round(FIT_WIDTH * clip.height / clip.width))
        counts, density = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (counts, density))
    return counts, density


def _maximum(function: Callable[[float], float], low: float, high: float, steps: int = 16) -> float:
    """Where a function with a single peak is highest, by golden-section search."""
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = function(right)
    return (low + high) / 2

"""A look at a corpus: what is in it, what is missing or broken, how its maps were blurred, and a sheet of its frames.

Every video is decoded once, to count its frames. Fixation maps that stand frame by frame are read for up to 32 frames of
a clip, evenly spread; all other numbers are of everything. Nothing of a clip is kept but counts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed, or asked for

from matplotlib import colormaps
from matplotlib.figure import Figure

from distill.corpora import CORPORA, SIGMA, Clip, Corpus, blur, density_map, fixation_map, fixation_points
from distill.corpora.clips import did_you_mean_clip
from distill.corpora.entries import UNANNOTATED
from distill.corpora.gaze import FRAME_READERS, clip_fixations
from distill.corpora.opening import Track, survey
from distill.run.errors import UsageError
from distill.run.files import write_bytes

T = TypeVar("T")
LAYOUTS = {
    "dhf1k": "DHF1K's layout", "hollywood2": "Hollywood-2's layout", "ucf-sports": "UCF Sports' layout",
    "avimos": "AViMoS's layout", "gaze-table": "images or videos with a gaze table",
    "videos": "videos without gaze",
}  # fmt: skip
SAMPLED = 32  # frames of a clip whose fixation maps are read
FITTED_CLIPS, FITTED_FRAMES = 12, 3  # how many the sigma is fitted to: enough to agree to a percent
FIT_WIDTH = 640  # pixels at which it is fitted


def guess(root: Path) -> str | None:
    """The corpus whose layout `root` is in, by the folders in it; None where it is in none."""
    names = {path.name.lower() for path in root.iterdir()}
    shots = [
        path.name for side in ("training", "testing") for path in root.glob(f"{side}/*") if (path / "images").is_dir()
    ]
    if "traintestsplit.json" in names or any(name.startswith(("saliencyt", "fixationst")) for name in names):
        return "avimos"
    if shots and not shots[0].isdigit():
        return "hollywood2" if shots[0].startswith("actionclip") else "ucf-sports"
    ordered = ("dhf1k", "gaze-table") if names & {"annotation", "frames"} else ("gaze-table", "dhf1k")
    for name in (*ordered, "videos"):
        try:
            CORPORA[name].find(root, _options(name))
        except UsageError:
            continue
        return name
    return None


def _options(name: str) -> Any:
    from distill.recipe.keys import Corpus as Options

    return Options(name=name)


def describe_corpus(root: Path, name: str, track: Track | None = None) -> tuple[Corpus, dict[str, Any]]:
    """The usable clips, and facts about all of them, as plain values: what `distill inspect --json` prints."""
    found = survey(name, root, track=track)
    corpus = found.corpus
    clips = [_clip_facts(clip) for clip in corpus.clips]
    mapped = [clip for clip in corpus.clips if clip.maps]
    facts: dict[str, Any] = {
        "kind": f"corpus, {LAYOUTS.get(name, name)}",
        "corpus": name,
        "clips": len(corpus.clips),
        "annotated": sum(clip.annotated_frames > 0 for clip in corpus.clips),
        "frames": sum(clip.frames for clip in corpus.clips),
        "seconds": round(sum(clip.frames / clip.fps for clip in corpus.clips if not clip.static), 1),
        "sizes": _counted(f"{clip.width}x{clip.height}" for clip in corpus.clips),
        "licence": corpus.license,
        "density maps": f"of {len(mapped)} {_clips(len(mapped))}"
        if mapped
        else f"none: built from fixations, sigma {SIGMA:.2%} of the width",
    }
    if fitted := fit_sigma(mapped):
        facts |= fitted
    unannotated = [clip.id for clip in corpus.clips if not clip.annotated_frames]
    return corpus, facts | {
        "unannotated": unannotated, "broken": found.problems, "notes": list(corpus.notes), "per_clip": clips,
    }  # fmt: skip


def _clips(count: int) -> str:
    return "clip" if count == 1 else "clips"


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _clip_facts(clip: Clip) -> dict[str, Any]:
    """One clip's line: sizes and counts, its mean number of fixations per annotated frame, and how many observers."""
    per_frame, observers = None, None
    if clip.annotated_frames and clip.annotation in FRAME_READERS:
        sample = np.unique(np.linspace(0, clip.annotated_frames - 1, SAMPLED).astype(int))
        found = [points for index in sample if (points := fixation_points(clip, int(index))) is not None]
        per_frame = float(np.mean([len(points.rows) for points in found]))
    elif clip.annotated_frames:
        gaze = clip_fixations(clip)
        per_frame = len(gaze.frame) / clip.annotated_frames
        observers = len(np.unique(gaze.observers)) if gaze.observers is not None else None
    return {
        "id": clip.id, "frames": clip.frames, "width": clip.width, "height": clip.height,
        "fps": None if clip.static else clip.fps, "annotated_frames": clip.annotated_frames,
        "fixations_per_frame": None if per_frame is None else round(per_frame, 2), "observers": observers,
        "maps": bool(clip.maps), "side": clip.side, "static": clip.static, "set": clip.name.rpartition("/")[0] if clip.static else "",
        "troubles": clip.troubles,
    }  # fmt: skip


def rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    """The table that a person reads: a row per video, per set of still images, and per clip that cannot be used."""
    clips: list[dict[str, Any]] = facts["per_clip"]
    table = [_row(clip["id"], [clip]) for clip in clips if not clip["static"]]
    for name in dict.fromkeys(clip["set"] for clip in clips if clip["static"]):
        mine = [clip for clip in clips if clip["static"] and clip["set"] == name]
        table.append(_row(f"{name}, {len(mine)} images", mine))
    lost = {"frames": "-", "size": "-", "fps": "-", "fixations/frame": "-", "observers": "-", "side": ""}
    table += [{"clip": name, **lost, "remarks": f"BROKEN: {why}"} for name, why in facts["broken"].items()]
    if not any(row["side"] for row in table):
        for row in table:
            del row["side"]
    return table


def summary(facts: dict[str, Any]) -> dict[str, str]:
    """What is printed below the table."""
    sizes = [f"{size} ({count})" for size, count in list(facts["sizes"].items())[:6]]
    more = len(facts["sizes"]) - len(sizes)
    told = {
        "kind": facts["kind"],
        "clips": f"{facts['clips']:,}, {facts['annotated']:,} annotated, {facts['frames']:,} frames"
        + (f", {facts['seconds'] / 60:.1f} minutes of video" if facts["seconds"] else ""),
        "sizes": ", ".join(sizes) + (f" and {more} more" if more > 0 else ""),
        "licence": facts["licence"],
        "density maps": facts["density maps"],
    }
    if "sigma_px" in facts:
        told["their blur"] = (
            f"sigma {facts['sigma_px']:.2f} px, {facts['sigma_share']:.2%} of the width (correlation {facts['sigma_correlation']:.4f})"
        )
    if facts["broken"]:
        told["broken"] = f"{len(facts['broken'])} {_clips(len(facts['broken']))}: {', '.join(facts['broken'])}"
    return told | {f"note {i}": note for i, note in enumerate(facts["notes"], 1)}


def _row(name: str, clips: Sequence[dict[str, Any]]) -> dict[str, str]:
    sizes = _counted(f"{clip['width']}x{clip['height']}" for clip in clips)
    annotated = [clip for clip in clips if clip["annotated_frames"]]
    per_frame = [clip["fixations_per_frame"] for clip in annotated]
    watched = [clip["observers"] for clip in annotated if clip["observers"]]
    remarks = [] if annotated else ["no annotation"]
    if 0 < len(annotated) < len(clips):
        remarks.append(f"{len(clips) - len(annotated)} without annotation")
    troubles: dict[str, int] = {}
    for clip in clips:
        for kind, count in clip["troubles"].items():
            troubles[kind] = troubles.get(kind, 0) + count
    remarks += [f"{count:,} {kind}" for kind, count in troubles.items() if kind != UNANNOTATED or annotated]
    people = (
        f"{min(watched)}"
        if watched and min(watched) == max(watched)
        else f"{min(watched)}-{max(watched)}"
        if watched
        else "-"
    )
    return {
        "clip": name, "frames": f"{sum(clip['frames'] for clip in clips):,}",
        "size": next(iter(sizes)) if len(sizes) == 1 else f"{len(sizes)} sizes",
        "fps": "still" if clips[0]["static"] else f"{clips[0]['fps']:g}",
        "fixations/frame": f"{np.mean(per_frame):.1f}" if per_frame else "-", "observers": people,
        "side": clips[0]["side"], "remarks": "; ".join(remarks),
    }  # fmt: skip


# --- the blur behind the maps ----------------------------------------------------------------------------------------


def fit_sigma(clips: Sequence[Clip]) -> dict[str, float]:
    """The Gaussian that turns the fixations of `clips` into their maps: `sigma_px` at the clip's width, `sigma_share` of
    the width, and the `sigma_correlation` that is reached; empty where there are no maps.

    The sigma of the highest mean correlation with the maps, by golden-section search over 0.2 to 20 % of the width.
    """
    pairs, widths = [], []
    for clip in _spread(clips, FITTED_CLIPS):
        for index in _spread(range(clip.annotated_frames), FITTED_FRAMES):
            pair = _pair(clip, index)
            if pair is not None:
                pairs.append(pair)
                widths.append(clip.width)
    if not pairs:
        return {}

    def agreement(log_share: float) -> float:
        share = math.exp(log_share)
        return float(np.mean([np.corrcoef(blur(p, share * p.shape[1]).ravel(), d.ravel())[0, 1] for p, d in pairs]))

    log_share = _highest(agreement, math.log(0.002), math.log(0.2))
    share = math.exp(log_share)
    return {
        "sigma_px": round(share * float(np.median(widths)), 2),
        "sigma_share": round(share, 5),
        "sigma_correlation": round(agreement(log_share), 4),
    }


def _pair(clip: Clip, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Fixation counts and density map of a frame, float32, at most FIT_WIDTH wide; None without fixations."""
    points = fixation_points(clip, index)
    if points is None or not len(points.rows):
        return None
    counts = np.zeros((clip.height, clip.width), np.float32)
    np.add.at(counts, (points.rows, points.columns), 1)
    density = density_map(clip, index, counts)
    if not density.max() > density.min():
        return None
    if clip.width > FIT_WIDTH:
        size = (FIT_WIDTH, round(FIT_WIDTH * clip.height / clip.width))
        counts, density = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (counts, density))
    return counts, density


def _highest(function: Callable[[float], float], low: float, high: float, steps: int = 16) -> float:
    """Where a function with one peak is highest, by golden-section search."""
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


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, without the first and last where there are enough."""
    if len(items) <= most:
        return list(items)
    return [items[int(i)] for i in (np.arange(most) + 0.5) * len(items) / most]


# --- the sheet -------------------------------------------------------------------------------------------------------

PANELS = 12
PAPER, INK, MUTED = "#101418", "#e8eaed", "#9aa4ae"
INCHES, DOTS = 15.0, 120
PANEL_WIDTH = 900  # pixels that a panel is drawn at: about twice what it is shown at


def write_sheet(corpus: Corpus, name: str, out: Path) -> Path:
    """Writes a PNG of what clip `name` holds: frames over time, each with its density as heat and its fixations as dots, one
    colour per observer where observers are known. `name` may be a set of still images, too. Returns the path.

    Raises UsageError for an unknown clip, one without annotation, or a file name that is no PNG's.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: the sheet is a PNG; name it {out.with_suffix('.png').name}")
    of_set = [
        clip for clip in corpus.clips if clip.static and clip.name.rpartition("/")[0] == name and clip.annotated_frames
    ]
    if of_set:
        panels = [_panel(clip, 0, next(clip.read()), clip.name.rpartition("/")[2]) for clip in _spread(of_set, PANELS)]
        about = f"{len(of_set)} images"
    else:
        clip = _named(corpus, name)
        panels = _still(clip) if clip.static else _film(clip)
        per_frame = _clip_facts(clip)["fixations_per_frame"]
        about = f"{clip.width}x{clip.height} px"
        about += "" if clip.static else f" · {clip.frames} frames at {clip.fps:g} per second"
        about += (
            f" · {per_frame:.1f} fixations per frame · density {'from its maps' if clip.maps else 'from its fixations'}"
        )
    image = _drawn(panels, f"{corpus.title} · {name}", about)
    write_bytes(out, image)
    return out


def _named(corpus: Corpus, name: str) -> Clip:
    clips = {clip.id: clip for clip in corpus.clips}
    if name not in clips:
        sets = {clip.name.rpartition("/")[0] for clip in corpus.clips if clip.static}
        raise UsageError(
            f"--show: there is no usable clip '{name}' in {corpus.root}{did_you_mean_clip(name, [*sets, *clips])}"
        )
    if not clips[name].annotated_frames:
        raise UsageError(f"--show: clip {name} has no annotation to show")
    return clips[name]


Panel = tuple[np.ndarray, str, str]  # a picture, and what stands above it, left and right


def _film(clip: Clip) -> list[Panel]:
    wanted = set(_spread(range(clip.annotated_frames), PANELS))
    panels = []
    for index, frame in enumerate(clip.read()):
        if index in wanted:
            panels.append(_panel(clip, index, frame, f"{index / clip.fps:.1f} s"))
        if index >= max(wanted):
            break
    return panels


def _still(clip: Clip) -> list[Panel]:
    """The picture, its fixations, its density."""
    image = next(clip.read())
    return [
        (image, "picture", ""),
        _panel(clip, 0, image, "fixations", heat=False),
        (_panel(clip, 0, image, "", dots=False)[0], "density", ""),
    ]


def _panel(clip: Clip, index: int, frame: np.ndarray, words: str, heat: bool = True, dots: bool = True) -> Panel:
    """A frame with its density and its fixations drawn in."""
    points, fixations = fixation_points(clip, index), fixation_map(clip, index)
    if points is None or fixations is None or not len(points.rows):
        return (0.6 * frame).astype(np.uint8), words, "no fixations"
    scale = PANEL_WIDTH / clip.width
    size = (PANEL_WIDTH, round(clip.height * scale))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC).astype(np.float32)
    if heat:
        density = cv2.resize(density_map(clip, index, fixations), size)
        density = np.clip(density / max(float(density.max()), 1e-8), 0, 1)
        colour = colormaps["inferno"](0.25 + 0.75 * density)[..., :3].astype(np.float32) * 255
        strength = 0.82 * density[..., None] ** 0.6
        picture = picture * 0.72 * (1 - strength) + colour * strength
    picture = picture.astype(np.uint8)
    if dots:
        _dots(picture, (points.rows + 0.5) * scale, (points.columns + 0.5) * scale, points.observers)
    return picture, words, f"{len(points.rows)} fixation{'s' if len(points.rows) > 1 else ''}"


def _dots(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray, observers: np.ndarray | None) -> None:
    """Draws fixations in place: small dots with a dark rim, which leave the heat below them to be seen."""
    people = np.unique(observers).tolist() if observers is not None else []
    places = [(round(column), round(row)) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    for place in places:
        cv2.circle(picture, place, 6, (15, 15, 20), -1, cv2.LINE_AA)
    for i, place in enumerate(places):
        colour: tuple[int, ...] = (120, 255, 255)
        if observers is not None:
            hue = people.index(observers[i]) * 0.618034 % 1  # the golden ratio: neighbours never look alike
            colour = tuple((255 + int(255 * part)) // 2 for part in colormaps["hsv"](hue)[:3])  # pastel beside the heat
        cv2.circle(picture, place, 4, colour, -1, cv2.LINE_AA)


def _drawn(panels: Sequence[Panel], title: str, about: str) -> bytes:
    """The panels in a grid under a title, as the bytes of a PNG."""
    height, width = np.median([picture.shape[:2] for picture, _, _ in panels], 0)
    columns = min(len(panels), 3 if len(panels) == 3 else 6 if height > 1.2 * width else 4)
    lines = -(-len(panels) // columns)
    cell = INCHES / columns
    head, caption = 0.75, 0.26
    tall = head + lines * (cell * height / width * 0.97 + caption) + 0.1
    figure = Figure(figsize=(INCHES, tall), facecolor=PAPER)
    figure.text(0.015 / columns, 1 - 0.26 / tall, title, color=INK, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015 / columns, 1 - 0.54 / tall, about, color=MUTED, fontsize=10.5, va="center")
    for i, (picture, left, right) in enumerate(panels):
        line, column = divmod(i, columns)
        top = tall - head - line * (cell * height / width * 0.97 + caption)
        box = (
            (column + 0.015) / columns,
            (top - caption - cell * height / width * 0.97) / tall,
            0.97 / columns,
            cell * height / width * 0.97 / tall,
        )
        axis = figure.add_axes(box)
        size = (round(cell * DOTS), round(cell * DOTS * picture.shape[0] / picture.shape[1]))
        shrinks = picture.shape[1] > size[0]
        axis.imshow(
            cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), aspect="auto"
        )
        axis.set_axis_off()
        axis.set_title(left, color=INK, fontsize=9.5, loc="left", pad=4)
        axis.set_title(right, color=MUTED, fontsize=9, loc="right", pad=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS, facecolor=PAPER)
    return buffer.getvalue()

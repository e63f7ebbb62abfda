"""A contact sheet of a clip: frames over time, or a set of images, with density as heat and fixations as dots."""

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from distill.corpora import Clip, Corpus, density_map, fixation_points
from distill.corpora.clips import did_you_mean_clip
from distill.reporting.lettering import fonts, lettered
from distill.run.errors import UsageError
from distill.run.files import write_bytes
from distill.tools.inspect_corpus import clip_facts, evenly_spaced, image_set

PANELS = 12
BACKGROUND, TEXT, MUTED = "#101418", "#e8eaed", "#9aa4ae"
INCHES, DPI = 15.0, 120
HEADER, CAPTION = 0.75, 0.26  # inches
PANEL_WIDTH = 900  # pixels at which heat and dots are drawn: about twice the size shown


class Panel(NamedTuple):
    """A picture, uint8 RGB `[h,w,3]`, and the captions above it, on the left and on the right."""

    picture: np.ndarray
    left: str
    right: str


def write_sheet(corpus: Corpus, name: str, out: Path) -> Path:
    """Writes a PNG of clip `name`: frames over time, each with its density as heat and its fixations as dots, one colour per
    observer where observers are known. `name` may also be a set of still images. Returns the path.

    Raises UsageError for an unknown clip, one without annotation, or a file name that does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"-o {out}: the sheet is a PNG; name it {out.with_suffix('.png').name}")
    images = [clip for clip in corpus.clips if clip.static and image_set(clip) == name and clip.annotated_frames]
    if images:
        chosen = evenly_spaced(images, PANELS)
        panels = [_panel(clip, 0, next(clip.read()), clip.name.rpartition("/")[2]) for clip in chosen]
        about = f"{len(images)} images"
    else:
        clips = {clip.id: clip for clip in corpus.clips}
        if name not in clips:
            hint = did_you_mean_clip(name, [*{image_set(clip) for clip in corpus.clips if clip.static}, *clips])
            raise UsageError(f"--show: there is no usable clip '{name}' in {corpus.root}{hint}")
        if not (clip := clips[name]).annotated_frames:
            raise UsageError(f"--show: clip {name} has no annotation to show")
        panels = _still_panels(clip) if clip.static else _video_panels(clip)
        about = f"{clip.width}x{clip.height} px" + (
            "" if clip.static else f" · {clip.frames} frames at {clip.fps:g} per second"
        )
        about += f" · {clip_facts(clip)['fixations_per_frame']:.1f} fixations per frame"
        about += f" · density {'from its maps' if clip.maps else 'from its fixations'}"
    with rc_context(fonts()):
        write_bytes(out, _sheet(panels, f"{corpus.title} · {name}", about))
    return out


def _video_panels(clip: Clip) -> list[Panel]:
    chosen = evenly_spaced(range(clip.annotated_frames), PANELS)
    frames = enumerate(islice(clip.read(), chosen[-1] + 1))
    return [_panel(clip, index, frame, f"{clip.time_of(index):.1f} s") for index, frame in frames if index in chosen]


def _still_panels(clip: Clip) -> list[Panel]:
    image = next(clip.read())
    fixations = _panel(clip, 0, image, "fixations", heat=False)
    density = _panel(clip, 0, image, "density", dots=False)
    return [Panel(image, "picture", ""), fixations, density._replace(right="")]


def _panel(clip: Clip, index: int, frame: np.ndarray, caption: str, heat: bool = True, dots: bool = True) -> Panel:
    """A frame with its density and its fixations drawn in."""
    points = fixation_points(clip, index)
    if points is None or not len(points.rows):
        return Panel((0.6 * frame).astype(np.uint8), caption, "no fixations")
    scale = PANEL_WIDTH / clip.width
    size = (PANEL_WIDTH, round(clip.height * scale))
    picture = _resize(frame, size).astype(np.float32)
    if heat:
        density = cv2.resize(density_map(clip, index, points.as_map(clip)), size)
        density = np.clip(density / max(float(density.max()), 1e-8), 0, 1)
        colour = colormaps["inferno"](0.25 + 0.75 * density)[..., :3].astype(np.float32) * 255
        strength = 0.82 * density[..., None] ** 0.6
        picture = picture * 0.72 * (1 - strength) + colour * strength
    picture = picture.astype(np.uint8)
    if dots:
        _draw_dots(picture, (points.rows + 0.5) * scale, (points.columns + 0.5) * scale, points.observers)
    return Panel(picture, caption, f"{len(points.rows)} fixation{'s' if len(points.rows) > 1 else ''}")


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at (width, height) `size`."""
    shrinks = size[0] < picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _draw_dots(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray, observers: np.ndarray | None) -> None:
    """Draws fixations into `picture`: small dots with a dark rim, which leave the heat below them visible."""
    people = np.unique(observers).tolist() if observers is not None else []
    centres = [(round(column), round(row)) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    for centre in centres:
        cv2.circle(picture, centre, 6, (15, 15, 20), -1, cv2.LINE_AA)
    for i, centre in enumerate(centres):
        colour: tuple[int, ...] = (120, 255, 255)
        if observers is not None:
            hue = people.index(observers[i]) * 0.618034 % 1  # steps of the golden ratio keep successive hues apart
            colour = tuple((255 + int(255 * part)) // 2 for part in colormaps["hsv"](hue)[:3])  # pastel, unlike the heat
        cv2.circle(picture, centre, 4, colour, -1, cv2.LINE_AA)


def _sheet(panels: Sequence[Panel], title: str, about: str) -> bytes:
    """The panels in a grid under a title, as the bytes of a PNG."""
    height, width = np.median([panel.picture.shape[:2] for panel in panels], 0)
    columns = min(len(panels), 3 if len(panels) == 3 else 6 if height > 1.2 * width else 4)
    cell = INCHES / columns
    picture_height = cell * height / width * 0.97
    total = HEADER + -(-len(panels) // columns) * (picture_height + CAPTION) + 0.1
    figure = Figure(figsize=(INCHES, total), facecolor=BACKGROUND)
    figure.text(0.015 / columns, 1 - 0.26 / total, lettered(title), color=TEXT, fontsize=15, fontweight="bold", va="center")
    figure.text(0.015 / columns, 1 - 0.54 / total, lettered(about), color=MUTED, fontsize=10.5, va="center")
    for i, (picture, left, right) in enumerate(panels):
        row, column = divmod(i, columns)
        bottom = total - HEADER - (row + 1) * (picture_height + CAPTION)
        box = ((column + 0.015) / columns, bottom / total, 0.97 / columns, picture_height / total)
        axes = figure.add_axes(box)
        size = (round(cell * DPI), round(cell * DPI * picture.shape[0] / picture.shape[1]))
        axes.imshow(_resize(picture, size), aspect="auto")
        axes.set_axis_off()
        axes.set_title(lettered(left), color=TEXT, fontsize=9.5, loc="left", pad=4)
        axes.set_title(right, color=MUTED, fontsize=9, loc="right", pad=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND)
    return buffer.getvalue()

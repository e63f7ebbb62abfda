"""Where observers looked in each frame of a clip, as points in its pixels and as density. `Clip.annotation` names the format:

    png      a folder of binary fixation maps, one per frame, in the order of their numbers
    mat      the same as MATLAB matrices, variable I (DHF1K)
    json     fixations.json: for each frame a list of [row, column] points, with repetitions (AViMoS)
    table    rows of a CSV file, see distill.corpora.readers.table
    tracks   a table of mouse movements, resampled to 100 Hz and shifted by the lag of the hand (AViMoS)
    export   raw gaze of an SMI eye tracker, one folder per observer (DHF1K's exportdata_train)

The first two are read frame by frame, the others clip by clip. Frames are numbered from 0.

In a fixation map every pixel above 0 is fixated, whatever its value. A map that marks too many pixels, or is in shades of
grey, is not one: the frame is left out. A density map without contrast is replaced by one of the fixations.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import ClipFixations, place
from distill.corpora.readers import images, matlab, smi, table_fixations
from distill.corpora.video import read_gray_frame
from distill.run.errors import UsageError

# DHF1K's own blur: FWHM 30 px, sigma 12.74 px at 640 px width (Wang et al. 2018).
SIGMA = 12.74 / 640
MOST_FIXATED = 0.05
"""The share of a fixation map's pixels that may be fixated. A recording has some 0.01 %, a map with dots of 10 px some 2 %."""
SHADES = 64
"""Values above 0, or the largest of them, from which on a map may be one in shades of grey: counts of fixations are lower."""
MOST_AT_PEAK = 0.01
"""The share of a density map's pixels that may have its largest value. DHF1K's have 0.006 % at most."""

# Why a fixation map is left out, as shown to the user.
FULL = f"fixation maps with more than {MOST_FIXATED:.0%} of their pixels fixated, left out"
GREY = "fixation maps in shades of grey, left out"
JPEG = "fixation maps that are JPEGs, left out"


class Points(NamedTuple):
    """Fixations of one frame, in pixels of the clip: int32 `[N]` each. A pixel fixated twice is listed twice.

    `observers` holds a number per person, the same throughout a clip; None where observers are not known.
    """

    rows: np.ndarray
    columns: np.ndarray
    observers: np.ndarray | None = None

    def as_map(self, clip: Clip) -> np.ndarray:
        """The fixation map of these points, bool `[H,W]`."""
        fixations = np.zeros((clip.height, clip.width), bool)
        fixations[self.rows, self.columns] = True
        return fixations


def fixation_points(clip: Clip, index: int) -> Points | None:
    """Where observers looked in frame `index`: rows and columns in pixels, int32 `[N]`, and observers where known.

    N is 0 where nobody fixated; None if the frame has no annotation, or a fixation map that cannot be used. Raises UsageError
    for files that cannot be read.
    """
    if index >= clip.annotated_frames:
        return None
    points, fault = read_points(clip, index)
    return None if fault else points


def read_points(clip: Clip, index: int) -> tuple[Points, str]:
    """The points of an annotated frame, and why they cannot be used: FULL, GREY or JPEG; "" where they can."""
    if clip.annotation in FRAME_READERS:
        read = FRAME_READERS[clip.annotation][1]
        path = fixation_file(clip, index)
        values = read(path, clip)
        rows, columns = np.nonzero(values > 0)
        points = Points(rows.astype(np.int32), columns.astype(np.int32))
        return points, JPEG if clip.annotation == "png" and images.is_jpeg(path) else _fault(values[rows, columns], values.size)
    fixations = clip_fixations(clip)
    start, end = np.searchsorted(fixations.frame, [index, index + 1])
    observers = None if fixations.observers is None else fixations.observers[start:end]
    return Points(fixations.rows[start:end], fixations.columns[start:end], observers), ""


def fixation_file(clip: Clip, index: int) -> Path:
    """The fixation map of an annotated frame, for a format with a file per frame."""
    names = images.listing(clip.fixations, FRAME_READERS[clip.annotation][:1])
    if len(names) < clip.annotated_frames:
        held = f"{len(names)} fixation maps, but held {clip.annotated_frames} when the corpus was opened"
        raise UsageError(f"{clip.fixations} holds {held}; restore them, or start over with --force")
    return Path(clip.fixations) / names[index]


def _fault(fixated: np.ndarray, pixels: int) -> str:
    """What is wrong with a map of which these values `[N]` are above 0. Binary maps and maps of counts have no shades: those of
    a density map, or of one that was a JPEG, reach from bright to mostly faint."""
    if len(fixated) > MOST_FIXATED * pixels:
        return FULL
    if not len(fixated) or (fixated.max() < SHADES and len(np.unique(fixated)) < SHADES):  # MATLAB's densities may be in [0, 1]
        return ""
    return GREY if np.median(fixated) < fixated.max() / 4 else ""


def fixation_map(clip: Clip, index: int) -> np.ndarray | None:
    """The fixation map of frame `index`, bool `[H,W]`; None if the frame has no annotation."""
    points = fixation_points(clip, index)
    return None if points is None else points.as_map(clip)


def density_map(clip: Clip, index: int, fixations: np.ndarray) -> np.ndarray:
    """The density map of frame `index`, float32 `[H,W]`, not normalised.

    It is the stored one; where there is none, `fixations` `[H,W]` (a fixation map, or the number of fixations on each pixel) is
    blurred. Raises UsageError for a map that is missing or damaged.
    """
    stored = stored_density(clip, index)
    return blur(fixations, SIGMA * clip.width) if stored is None else stored


def stored_density(clip: Clip, index: int) -> np.ndarray | None:
    """The density map of frame `index` as the corpus has it, float32 `[H,W]`, not normalised. None where it has none, or one that
    has fewer than three values, as a fixation map has, is saturated (MOST_AT_PEAK), or inverted (with a mean above the middle of its
    range). Raises UsageError as `density_map`."""
    if not clip.maps:
        return None
    maps = Path(clip.maps)
    if maps.is_dir():
        names = images.listing(maps)
        if index >= len(names):
            raise UsageError(f"{maps} holds {len(names)} maps, clip {clip.id} needs one for frame {index + 1}; restore it")
        way_out = "restore it, or remove maps/ to build density from fixations"
        values = images.read_map(maps / names[index], (clip.height, clip.width), way_out)
    else:
        values = read_gray_frame(maps, index)
    low, high = float(values.min()), float(values.max())
    at_peak = np.count_nonzero(values == high)
    two_values = at_peak + np.count_nonzero(values == low) >= values.size
    if two_values or at_peak > MOST_AT_PEAK * values.size or float(values.mean()) > (low + high) / 2:
        return None
    return values.astype(np.float32) / (np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1)


def blur(fixations: np.ndarray, sigma: float) -> np.ndarray:
    """Sum of unit Gaussians of `sigma` pixels centred on the fixated pixels: `[H,W]` -> float32 `[H,W]`."""
    return cv2.GaussianBlur(fixations.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)


def clip_fixations(clip: Clip) -> ClipFixations:
    """All fixations of a clip whose format is read clip by clip. The last few clips are cached until their files change."""
    try:
        stat = Path(clip.fixations).stat()
        return _clip_fixations(clip, (stat.st_mtime_ns, stat.st_size))
    except OSError as error:
        raise UsageError(f"{clip.fixations} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=16)
def _clip_fixations(clip: Clip, _changed: tuple[int, int]) -> ClipFixations:
    return CLIP_READERS[clip.annotation](clip)


def _read_png(path: Path, clip: Clip) -> np.ndarray:
    return images.read_map(path, (clip.height, clip.width), f"restore it or leave clip {clip.id} out with corpus.skip")


def _read_mat(path: Path, clip: Clip) -> np.ndarray:
    matrix = matlab.read_variable(path, "I")
    if matrix.shape == (clip.width, clip.height) != (clip.height, clip.width):
        raise UsageError(f"{path} is transposed: it has {clip.width} rows, the video {clip.height}; save it again as I'")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UsageError(f"{path} holds no map: I is {'x'.join(map(str, matrix.shape))}; it needs {clip.height}x{clip.width}")
    images.check_size(path, matrix.shape, (clip.height, clip.width))
    return matrix


def _read_json(clip: Clip) -> ClipFixations:
    path = Path(clip.fixations)
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
        lengths = [len(frame) for frame in frames]
        points = np.array([point for frame in frames for point in frame], np.float64)
        if points.shape != (sum(lengths), 2) and points.size:
            raise ValueError(f"points of shape {list(points.shape[1:])}")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a list of frames with [row, column] points: {error}") from None
    points = points.reshape(-1, 2)
    frame = np.repeat(np.arange(len(frames)), np.array(lengths, int))
    return place(clip, frame, points[:, 1], points[:, 0], None, Counter(), len(frames))


# Formats with a file per frame: suffix and reader of one fixation map. Formats that are read clip by clip: reader.
FRAME_READERS: dict[str, tuple[str, Callable[[Path, Clip], np.ndarray]]] = {
    "png": (".png", _read_png),
    "mat": (".mat", _read_mat),
}
CLIP_READERS: dict[str, Callable[[Clip], ClipFixations]] = {
    "json": _read_json,
    "table": table_fixations.read_fixations,
    "tracks": table_fixations.read_mouse_tracks,
    "export": smi.read,
}

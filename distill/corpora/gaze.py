"""Where observers looked in each frame of a clip, as points in its pixels and as density. `Clip.annotation` names the format:

    png      a folder of binary fixation maps, one per frame, in the order of their numbers
    mat      the same as MATLAB matrices, variable I (DHF1K)
    json     fixations.json: for each frame a list of [row, column] points, with repetitions (AViMoS)
    table    rows of a CSV file, see distill.corpora.readers.table
    tracks   a table of mouse movements, resampled to 100 Hz and shifted by the lag of the hand (AViMoS)
    export   raw gaze of an SMI eye tracker, one folder per observer (DHF1K's exportdata_train)

The first two are read frame by frame, the others clip by clip. Frames are numbered from 0.
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
from distill.corpora.readers import images, matlab, smi, table
from distill.corpora.video import read_gray_frame
from distill.run.errors import UsageError

# DHF1K's own blur: FWHM 30 px, sigma 12.74 px at 640 px width (Wang et al. 2018).
SIGMA = 12.74 / 640


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

    N is 0 where nobody fixated; None if the frame has no annotation. Raises UsageError for files that cannot be read.
    """
    if index >= clip.annotated_frames:
        return None
    if clip.annotation in FRAME_READERS:
        suffix, read = FRAME_READERS[clip.annotation]
        names = images.listing(clip.fixations, (suffix,))
        if len(names) < clip.annotated_frames:
            held = f"{len(names)} fixation maps, but held {clip.annotated_frames} when the corpus was opened"
            raise UsageError(f"{clip.fixations} holds {held}; restore them, or start over with --force")
        rows, columns = np.nonzero(read(Path(clip.fixations) / names[index], clip))
        return Points(rows.astype(np.int32), columns.astype(np.int32))
    fixations = clip_fixations(clip)
    start, end = np.searchsorted(fixations.frame, [index, index + 1])
    observers = None if fixations.observers is None else fixations.observers[start:end]
    return Points(fixations.rows[start:end], fixations.columns[start:end], observers)


def fixation_map(clip: Clip, index: int) -> np.ndarray | None:
    """The fixation map of frame `index`, bool `[H,W]`; None if the frame has no annotation."""
    points = fixation_points(clip, index)
    return None if points is None else points.as_map(clip)


def density_map(clip: Clip, index: int, fixations: np.ndarray) -> np.ndarray:
    """The density map of frame `index`, float32 `[H,W]`, not normalised.

    It is read from the clip's density maps where it has them; otherwise `fixations` `[H,W]` (a fixation map, or the number
    of fixations on each pixel) is blurred. Raises UsageError for a map that is missing or damaged.
    """
    if not clip.maps:
        return blur(fixations, SIGMA * clip.width)
    maps = Path(clip.maps)
    if not maps.is_dir():
        return read_gray_frame(maps, index).astype(np.float32) / 255
    names = images.listing(maps)
    if index >= len(names):
        raise UsageError(f"{maps} holds {len(names)} maps, clip {clip.id} needs one for frame {index + 1}; restore it")
    way_out = "restore it, or remove maps/ to build density from fixations"
    return images.read_gray(maps / names[index], (clip.height, clip.width), way_out).astype(np.float32) / 255


def blur(fixations: np.ndarray, sigma: float) -> np.ndarray:
    """Sum of unit Gaussians of `sigma` pixels centred on the fixated pixels: `[H,W]` -> float32 `[H,W]`."""
    return cv2.GaussianBlur(fixations.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)


def clip_fixations(clip: Clip) -> ClipFixations:
    """All fixations of a clip whose format is read clip by clip. The last few clips are cached until their files change."""
    try:
        return _clip_fixations(clip, Path(clip.fixations).stat().st_mtime_ns)
    except OSError as error:
        raise UsageError(f"{clip.fixations} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=16)
def _clip_fixations(clip: Clip, _changed: int) -> ClipFixations:
    return CLIP_READERS[clip.annotation](clip)


def _read_png(path: Path, clip: Clip) -> np.ndarray:
    return images.read_gray(path, (clip.height, clip.width), f"restore it or leave clip {clip.id} out with corpus.skip")


def _read_mat(path: Path, clip: Clip) -> np.ndarray:
    matrix = matlab.read_variable(path, "I")
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
    "table": table.read_fixations,
    "tracks": table.read_mouse_tracks,
    "export": smi.read,
}

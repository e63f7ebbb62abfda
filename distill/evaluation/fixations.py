"""Where observers looked in all scored clips: the negatives of sAUC, the mean map of the other clips, halves of observers."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from distill.corpora import SIGMA, Clip, Points, fixation_points
from distill.evaluation.protocols import Coordinates
from distill.run.errors import Interrupted, UsageError

OTHERS = 10  # frames that the negatives of sAUC are drawn from
GRID = (72, 128)  # rows and columns of the mean map


def frames_to_score(clip: Clip, stride: int) -> range:
    """Every `stride`-th annotated frame, whether it has fixations or not."""
    return range(0, min(clip.frames, clip.annotated_frames), stride)


def check_scorable(clips: Sequence[Clip], stride: int) -> None:
    """Raises UsageError where none of the frames that would be scored has a fixation; reads up to the first that has."""
    points = (fixation_points(clip, index) for clip in clips for index in frames_to_score(clip, stride))
    if not any(p is not None and len(p.rows) for p in points):
        some = f"{clips[0].id}{f' and {len(clips) - 1} more' if clips[1:] else ''}"
        raise UsageError(
            f"none of the frames to score, one in {stride} of the held-out clips {some}, has fixations; lower eval.stride, or hold "
            "out others with corpus.val_clips"
        )


def read_fixations(clip: Clip, stride: int, stop: Callable[[], bool]) -> dict[int, Points]:
    """The fixations of `frames_to_score`, by frame; a frame without fixations has empty Points, one whose fixation map cannot be
    used is left out. Raises UsageError for a fixation outside the frame, Interrupted once `stop` returns True."""
    by_frame: dict[int, Points] = {}
    for index in frames_to_score(clip, stride):
        if stop():
            raise Interrupted(f"eval, reading the fixations of clip {clip.id}")
        points = fixation_points(clip, index)
        if points is None:
            continue
        for axis, length in ((points.rows, clip.height), (points.columns, clip.width)):
            if len(axis) and not 0 <= axis.min() <= axis.max() < length:
                raise UsageError(
                    f"clip {clip.id}, frame {index + 1}: a fixation lies outside the frame of {clip.width}x{clip.height} px; "
                    "correct the annotation, or leave the clip out with corpus.skip"
                )
        by_frame[index] = points
    return by_frame


class Fixations:
    """The fixations of all scored clips; sAUC and the mean map compare a clip with the others."""

    def __init__(self, clips: Sequence[Clip], by_clip: Sequence[dict[int, Points]]) -> None:
        self.of = {clip.id: points for clip, points in zip(clips, by_clip, strict=True)}
        self.size = [(clip.height, clip.width) for clip in clips]
        self.number = {clip.id: n for n, clip in enumerate(clips)}
        frames = [(n, p) for n, points in enumerate(by_clip) for p in points.values() if len(p.rows)]
        self.points = [p for _, p in frames]  # of every frame with fixations
        self.owner = np.array([n for n, _ in frames], int)  # the number of each such frame's clip
        # The mean map of every clip, before blurring; every clip has the same weight.
        self.maps = np.zeros((len(clips), *GRID), np.float32)
        for (n, p), (height, width) in ((frame, self.size[frame[0]]) for frame in frames):
            np.add.at(self.maps[n], (p.rows * GRID[0] // height, p.columns * GRID[1] // width), 1 / len(p.rows))
        totals = self.maps.sum((1, 2))
        self.maps[totals > 0] /= totals[totals > 0, None, None]
        self.sum_of_maps = self.maps.sum(0)

    def others(self, clip: Clip, index: int, own_clip: bool) -> Coordinates | None:
        """Fixations of ten random frames in this clip's pixels; the same for every predictor. None where there are none.
        own_clip: whether frames of this clip may be drawn, too."""
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
        """Where observers look in the other clips, at any frame: float32 `GRID`, its peak 1."""
        others = np.maximum(self.sum_of_maps - self.maps[self.number[clip.id]], 0)
        blurred = cv2.GaussianBlur(others, (0, 0), SIGMA * GRID[1])
        return blurred / blurred.max()


def observer_halves(clip: Clip, points: Mapping[int, Points]) -> tuple[np.ndarray, np.ndarray] | None:
    """The ids of a clip's observers in two random halves; None for unknown observers, or fewer than two."""
    known = [p.observers for p in points.values() if p.observers is not None]
    observers = np.unique(np.concatenate(known)) if known else np.zeros(0, int)
    if len(observers) < 2:
        return None
    shuffled = np.random.default_rng(_seed(clip)).permutation(observers)
    return shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]


def _seed(clip: Clip) -> int:
    """By the clip's name, not its id: the id also names the corpus where several are scored together."""
    return zlib.crc32(clip.name.encode())

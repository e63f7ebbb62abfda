"""A clip and its annotation, as files; a corpus of them. A `Clip` holds paths and counts, never pixels.

fixation map   bool [H,W], the pixels that observers fixated in one frame
density map    float32 [H,W], the fixation map blurred; unnormalised
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill.corpora import gaze as annotation
from distill.corpora.gaze import Points
from distill.corpora.readers import images
from distill.corpora.video import gray_frame, read_frames
from distill.run.errors import UsageError

# DHF1K's own blur: FWHM 30 px, sigma 12.74 px at 640 px width (Wang et al. 2018).
SIGMA = 12.74 / 640


@dataclass(frozen=True)
class Clip:
    """One video or still image with its annotation, if it has one. Frames count from 0."""

    id: str
    video: str  # a video file, a folder of frames, or a still image
    frames: int
    height: int
    width: int
    fps: float
    fixations: str = ""  # folder or file that says where observers looked; empty where the clip is not annotated
    maps: str = ""  # folder or video of density maps; empty where density is built from the fixations
    annotated_frames: int = 0
    group: str = ""
    annotation: str = "png"  # what kind of thing `fixations` is, see distill.corpora.gaze
    static: bool = False  # a still image: one frame, and never a state
    corpus: str = ""  # which part of a mixed corpus
    name: str = ""  # the id inside its part; the id itself, unless told otherwise
    side: str = ""  # train, val or test, where the corpus has an official split
    lag: float = 0.0  # seconds by which mouse tracks come after the eye
    troubles: dict[str, int] = field(default_factory=dict, hash=False)  # what was dropped or is odd, and how often

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.id)

    def read(self, stride: int = 1) -> Iterator[np.ndarray]:
        """Every `stride`-th frame, uint8 RGB `[H,W,3]`. Raises UsageError where the video ends before `frames`."""
        count = 0
        for frame in read_frames(Path(self.video), stride):
            yield frame
            count += 1
        if count < (expected := -(-self.frames // stride)):
            raise UsageError(
                f"{self.video} ended after {count * stride} of {self.frames} frames (read {count}, expected {expected}): "
                "it changed since the corpus was read; restore it, or start over with --force"
            )


@dataclass(frozen=True)
class Corpus:
    """Checked clips and their split. `held_out` is False where validation had to reuse a training clip."""

    name: str
    license: str
    clips: tuple[Clip, ...]
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    held_out: bool = True
    roots: dict[str, str] = field(default_factory=dict, hash=False)  # of each part, by clip.corpus
    weights: dict[str, float] = field(default_factory=dict, hash=False)  # of each part when clips are drawn to train on
    notes: tuple[str, ...] = ()  # what a person should know of the data: dropped points, odd counts

    @property
    def root(self) -> str:
        return ", ".join(self.roots.values())

    @property
    def title(self) -> str:
        """The parts by name, without the places they stand at: `dhf1k:hevc-gaze + images:images`."""
        return " + ".join("synthetic" if p == "synthetic" else f"{p}:{Path(r).name}" for p, r in self.roots.items())

    @cached_property
    def _by_id(self) -> dict[str, Clip]:
        return {clip.id: clip for clip in self.clips}

    def __getitem__(self, clip_id: str) -> Clip:
        if clip_id not in self._by_id:
            raise UsageError(f"there is no clip '{clip_id}' in {self.root}")
        return self._by_id[clip_id]

    def select(self, ids: Iterable[str]) -> list[Clip]:
        return [self[i] for i in ids]

    @property
    def median_fps(self) -> float:
        """Of the videos; 30 where there are only still images."""
        return float(np.median([clip.fps for clip in self.clips if not clip.static] or [30.0]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Corpus:
        lists = {k: tuple(values[k]) for k in ("train", "val", "notes")}
        return cls(**{**values, **lists, "clips": tuple(Clip(**c) for c in values["clips"])})


def fixation_points(clip: Clip, index: int) -> Points | None:
    """Where observers looked in frame `index` (from 0): rows and columns in pixels, int32 `[N]`, and who, where known.

    N is 0 where nobody fixated; None where the frame has no annotation.
    """
    return annotation.points(clip, index) if index < clip.annotated_frames else None


def fixation_map(clip: Clip, index: int) -> np.ndarray | None:
    """The fixation map of frame `index` (from 0), bool `[H,W]`; None where the frame has no annotation."""
    points = fixation_points(clip, index)
    if points is None:
        return None
    fixations = np.zeros((clip.height, clip.width), bool)
    fixations[points.rows, points.columns] = True
    return fixations


def density_map(clip: Clip, index: int, fixations: np.ndarray) -> np.ndarray:
    """The density map of frame `index`, float32 `[H,W]`, unnormalised: the corpus's own where it has maps, else `fixations`
    blurred: a fixation map, or how often each pixel was fixated."""
    if not clip.maps:
        return blur(fixations, SIGMA * clip.width)
    maps = Path(clip.maps)
    if not maps.is_dir():
        return gray_frame(maps, index).astype(np.float32) / 255
    names = images.listing(maps)
    if index >= len(names):
        raise UsageError(f"{maps} holds {len(names)} maps, clip {clip.id} needs one for frame {index + 1}; restore it")
    way_out = "restore it, or remove maps/ to build density from fixations"
    return images.read_gray(maps / names[index], (clip.height, clip.width), way_out).astype(np.float32) / 255


def blur(fixations: np.ndarray, sigma: float) -> np.ndarray:
    """Unit Gaussians of `sigma` pixels at every fixated pixel, summed: `[H,W]` -> float32 `[H,W]`."""
    return cv2.GaussianBlur(fixations.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)

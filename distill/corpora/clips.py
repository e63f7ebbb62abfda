"""A clip and its annotation, as files; a corpus of them. A `Clip` holds paths and counts, never pixels.

fixation map   bool [H,W], the pixels that observers fixated in one frame
density map    float32 [H,W], the fixation map blurred; unnormalised
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill.corpora.video import read_frames
from distill.errors import UsageError

# DHF1K's own blur: FWHM 30 px, sigma 12.74 px at 640 px width (Wang et al. 2018).
SIGMA = 12.74 / 640


@dataclass(frozen=True)
class Clip:
    """One video with its annotation, if it has one. Frames count from 0 here, annotation files from 1."""

    id: str
    video: str
    frames: int
    height: int
    width: int
    fps: float
    fixations: str = ""  # folder of %04d.png, empty where the clip is not annotated
    maps: str = ""  # folder of %04d.png, empty where density is built from the fixations
    annotated_frames: int = 0
    group: str = ""

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
    root: str
    license: str
    clips: tuple[Clip, ...]
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    held_out: bool = True

    def __getitem__(self, clip_id: str) -> Clip:
        for clip in self.clips:
            if clip.id == clip_id:
                return clip
        raise UsageError(f"there is no clip '{clip_id}' in {self.root}")

    def select(self, ids: Iterable[str]) -> list[Clip]:
        return [self[i] for i in ids]

    @property
    def median_fps(self) -> float:
        return float(np.median([clip.fps for clip in self.clips]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Corpus:
        lists = {k: tuple(values[k]) for k in ("train", "val")}
        return cls(**{**values, **lists, "clips": tuple(Clip(**c) for c in values["clips"])})


def fixation_map(clip: Clip, index: int) -> np.ndarray | None:
    """The fixation map of frame `index` (from 0), bool `[H,W]`; None where the frame has no annotation."""
    if index >= clip.annotated_frames:
        return None
    path = Path(clip.fixations) / f"{index + 1:04d}.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UsageError(f"{path} does not open as an image; restore it or leave clip {clip.id} out with corpus.skip")
    if image.shape != (clip.height, clip.width):
        raise UsageError(_wrong_size(path, image.shape, clip))
    return image > 0


def density_map(clip: Clip, index: int, fixations: np.ndarray) -> np.ndarray:
    """The density map of frame `index`, float32 `[H,W]`: from `maps/` where there is one, else from its fixations."""
    if not clip.maps:
        return blur(fixations, SIGMA * clip.width)
    path = Path(clip.maps) / f"{index + 1:04d}.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UsageError(
            f"{path} does not open as an image; restore it, or remove maps/ to build density from fixations"
        )
    if image.shape != (clip.height, clip.width):
        raise UsageError(_wrong_size(path, image.shape, clip))
    return image.astype(np.float32) / 255


def _wrong_size(path: Path, shape: tuple[int, ...], clip: Clip) -> str:
    return f"{path} is {shape[1]}x{shape[0]} px, its video {clip.width}x{clip.height}; they must agree"


def blur(fixations: np.ndarray, sigma: float) -> np.ndarray:
    """Unit Gaussians of `sigma` pixels at every fixated pixel, summed: `[H,W]` -> float32 `[H,W]`."""
    return cv2.GaussianBlur(fixations.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)

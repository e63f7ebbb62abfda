"""Density maps: the corpus's own where it has them, otherwise its fixations, blurred.

fixation map   bool [H,W], the pixels that observers fixated in one frame
density map    float32 [H,W], the fixation map blurred; not normalised
"""

from pathlib import Path

import cv2
import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.readers import images
from distill.corpora.video import read_gray_frame
from distill.run.errors import UsageError

# DHF1K's own blur: FWHM 30 px, sigma 12.74 px at 640 px width (Wang et al. 2018).
SIGMA = 12.74 / 640


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

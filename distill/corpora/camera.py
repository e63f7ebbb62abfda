"""Videos made from still images: a simulated camera pans and zooms over one, and may cut to another.

Still images are many and show much; videos under a free licence are few. Filmed like this, a set of images teaches the
recurrent part of a student what a moving camera and a cut look like, and gives a teacher that sees videos something to label.
A film is a pure function of its images and its seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.readers import images

FPS, FRAMES = 6.0, 12
"""Two seconds at the frame rate of UNISAL's recurrence, so that a label costs one pass per frame and no frame is redundant."""
HEIGHT, WIDTH = 360, 640
CLOSEST = 0.5  # the smallest view, as a share of the largest 16:9 view of the image


def film(shots: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """FRAMES frames, uint8 RGB `[HEIGHT,WIDTH,3]`: of the first image up to a random cut, then of the second, if there is one.

    Raises UsageError for an image that does not decode.
    """
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(FRAMES // 3, FRAMES)) if shots[1:] else FRAMES
    for path, frames in zip(shots, (cut, FRAMES - cut), strict=False):
        yield from _shot(images.read_rgb(Path(path)), rng, frames)


def _shot(image: np.ndarray, rng: np.random.Generator, frames: int) -> Iterator[np.ndarray]:
    """What the camera sees of one image."""
    height, width = image.shape[:2]
    largest = min(width, height * WIDTH / HEIGHT)  # pixels of the image
    centres, shares = _path(rng)
    for centre, share in zip(centres[:frames], shares[:frames], strict=True):
        view = share * largest * np.array([1, HEIGHT / WIDTH])
        left, top = centre * (np.array([width, height]) - view)
        scale = WIDTH / view[0]
        # Scaled down by areas, without aliasing, before it is shifted; scaled up while it is shifted.
        small = image if scale > 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        enlarge = max(scale, 1)
        corners = np.array([[enlarge, 0, -left * scale], [0, enlarge, -top * scale]])
        yield cv2.warpAffine(small, corners, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _path(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A view per frame: its centre `[T,2]` (x, y), in [0, 1] of where it can be, and its side as a share of the largest."""
    time = np.linspace(0, 1, FRAMES)
    eased = np.clip((time - rng.uniform(0, 0.4)) / rng.uniform(0.4, 1.0), 0, 1)
    eased = eased**2 * (3 - 2 * eased)
    share = rng.uniform(CLOSEST, 1.0)
    closer = np.clip(share * np.exp(rng.normal(0, 0.25)), CLOSEST, 1.0) if rng.random() < 0.4 else share
    centre = rng.uniform(0, 1, 2)
    there = np.clip(centre + rng.normal(0, 0.6, 2), 0, 1) if rng.random() < 0.8 else centre
    centres = centre + (there - centre) * eased[:, None]
    if rng.random() < 0.4:  # held by hand
        centres = centres + rng.uniform(0.2, 1) * np.cumsum(rng.normal(0, 0.02, (FRAMES, 2)), 0)
    return np.clip(centres, 0, 1), share + (closer - share) * eased

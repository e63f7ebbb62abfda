"""What every reader of videos gives: frames with their stamps, converted only where their pixels are wanted."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from distill.export.yuv import Planes


class Frame(NamedTuple):
    """A decoded frame. Its pixels can be had until the next one is read."""

    stamp: float | None  # seconds, as the file has it; None where it has none
    size: tuple[int, int]  # height and width, upright
    rgb: Callable[[], np.ndarray]  # uint8 RGB [H,W,3], upright
    planes: Planes | None = None  # upright, views; None from OpenCV, and for pixel formats that are not in pyav.FORMATS_420


class Video(Protocol):
    """A video file, for one pass over its frames; the other attributes are known as soon as the first frame is read."""

    rate: float  # frames per second as the file states them, 0 where it does not
    timed: bool  # whether the frames have stamps; else they follow each other at the stated rate
    lost: int  # packets that are missing or do not decode, and frames that are damaged

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown. Raises UsageError for a file that cannot be read."""

    def ends(self) -> tuple[float, float] | None:
        """After the last frame: where the file ends and where its header says it does, in seconds; None if it does not say."""


# How containers name the codec of a video: MP4 and MOV, Matroska and WebM, AVI.
CODEC_NAMES = re.compile(rb"vide.{0,4096}?stsd.{12}(\w{3}[\w ])|(V_[A-Z0-9/_]{3,})|vids(\w{4})", re.DOTALL)
SEARCHED = 1 << 20  # bytes, at either end of the file


def codec_name(path: Path) -> str:
    """The codec as the container names it, for a video that nothing decodes; `unknown` where that is not found."""
    with path.open("rb") as file:
        start = file.read(SEARCHED)
        file.seek(max(len(start), path.stat().st_size - SEARCHED))
        found = CODEC_NAMES.search(start) or CODEC_NAMES.search(file.read())
    return next(filter(None, found.groups())).decode("ascii").strip() if found else "unknown"

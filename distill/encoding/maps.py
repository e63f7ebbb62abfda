"""Where a frame's saliency map comes from: a student, a centred Gaussian, or any function.

    decoded frame -> its planes -> a student's block map
                  -> small upright RGB -> the map of another model, or of a function

All maps are turned to how the frame is stored, which is how the encoder gets it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from distill.corpora.readers.pyav import Orientation, orientation, planes_of
from distill.encoding.qp_offsets import check_map
from distill.evaluation.centre import centred_gaussian
from distill.evaluation.predictors import load_on_planes
from distill.export.planes import PlanePredictor
from distill.export.streaming import Stream
from distill.export.variants import BLOCK
from distill.export.yuv import Planes, grey_levels
from distill.run.errors import UsageError, usage_errors

# The saliency map [h,w] in [0, 1] of a small upright RGB frame uint8 [h,w,3] at its time in seconds.
Maps = Callable[[np.ndarray, float], np.ndarray]

MODEL_WIDTH = 640  # px of an RGB frame that a model sees, and of the luma: the width of the corpora that students learn from


@dataclass(frozen=True)
class FrameMap:
    """A frame's map, as the frame is stored. values: `[h,w]` in [0, 1]. cell: side in pixels of the part of the frame that a value
    is for, cut by the frame's right and bottom edge; None where the values divide the frame evenly."""

    values: np.ndarray
    cell: int | None = None


def centre_map(frame: np.ndarray, seconds: float) -> np.ndarray:
    """A centred Gaussian: the baseline that every model must beat."""
    return centred_gaussian(*frame.shape[:2])


def open_maps(model: Path | None, name: str | None, find_cuts: bool = True, threads: int = 1) -> Stream | Maps | None:
    """A student's maps, or those that `name` selects: `centre`, `none`. Raises UsageError unless exactly one is given."""
    if (model is None) == (name is None):
        raise UsageError("where do people look? give one of --model ONNX, --map centre and --map none")
    if model is not None:
        with usage_errors():
            return Stream(load_on_planes(model, "block-map", threads), find_cuts)
    if name not in ("centre", "none"):
        raise UsageError(f"--map {name} is unknown; there are centre and none")
    return centre_map if name == "centre" else None


def map_of(frame: av.VideoFrame, size: tuple[int, int], maps: Stream | Maps, seconds: float) -> FrameMap:
    """The map of a frame. size: height and width of the part that is encoded. The model sees it upright.

    Raises ValueError where there is no map in [0, 1].
    """
    turn = orientation(frame)
    if isinstance(maps, Stream) and isinstance(maps.predictor, PlanePredictor):
        planes = _planes(frame, size).turned(turn.upright)
        # Blocks count from the upright frame's first corner, which is another one where the frame is turned.
        result = FrameMap(turn.stored(maps.map(planes, seconds)), BLOCK if turn == Orientation() else None)
    else:
        height, width = _reduced(size, turn.swapped)
        rgb = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()
        values = (maps.map if isinstance(maps, Stream) else maps)(np.ascontiguousarray(turn.upright(rgb)), seconds)
        result = FrameMap(turn.stored(values))
    check_map(result.values)
    return result


def luma_of(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Grey levels of 255, float32 `[h,w]`, of the part of the frame that is encoded, downscaled."""
    planes = _planes(frame, size)
    height, width = _reduced(size)
    return grey_levels(cv2.resize(planes.y, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32), planes.colour)


def _reduced(size: tuple[int, int], swapped: bool = False) -> tuple[int, int]:
    scale = min(1.0, MODEL_WIDTH / size[0 if swapped else 1])
    height, width = (max(16, 8 * round(side * scale / 8)) for side in size)  # some models take only multiples of 8
    return height, width


def _planes(frame: av.VideoFrame, size: tuple[int, int]) -> Planes:
    planes = planes_of(frame)
    if planes is None:  # 4:2:2, 4:4:4, 12 bits, RGB
        frame = frame.reformat(format="yuv420p", threads=1)
        planes = planes_of(frame)
        assert planes is not None
    return planes.cropped(size)

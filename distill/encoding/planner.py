"""From frames to QP offsets: each frame's saliency map, and the offsets that it gives, in time order.

decoded frame -> small upright RGB -> saliency map -> QP offsets
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from distill.corpora.readers.pyav import orientation
from distill.encoding.encoders import Picture
from distill.encoding.qp_offsets import (
    BLOCKS,
    MAPPINGS,
    NEUTRAL,
    STRONGEST,
    Shaping,
    areas,
    block_bits,
    check_map,
    qp_offsets,
    step_for,
)
from distill.encoding.roi_files import SVT_BLOCK, SVT_LEVELS, RoiFile
from distill.evaluation.centre import centred_gaussian
from distill.evaluation.predictors import load_predictor
from distill.export.streaming import Stream
from distill.run.errors import UsageError

# The saliency map [h,w] in [0, 1] of a small upright RGB frame uint8 [h,w,3] at its time in seconds.
Maps = Callable[[np.ndarray, float], np.ndarray]

MODEL_WIDTH = 640  # px of the frame that a model sees: the width of the corpora that students learn from


def make_shaping(
    mapping: str, strength: float | None = None, prior: float | None = None, block: int = 16, neutral: str = "bits"
) -> Shaping:
    """A mapping of `MAPPINGS`, its strength and prior replaced where given. Raises UsageError for a value that it does not take."""
    for option, value, known in (("--mapping", mapping, MAPPINGS), ("--block", block, BLOCKS), ("--neutral", neutral, NEUTRAL)):
        if value not in known:
            raise UsageError(f"{option} {value} is unknown; there are {', '.join(map(str, known))}")
    chosen = MAPPINGS[mapping]
    for option, number, most in (("--strength", strength, STRONGEST[chosen.scale]), ("--prior", prior, 1 - chosen.floor)):
        if number is not None and not 0 <= number <= most:
            raise UsageError(f"{option} {number:g}: must be from 0 to {most:g} with --mapping {mapping}")
    strength, prior = chosen.strength if strength is None else strength, chosen.prior if prior is None else prior
    return replace(chosen, strength=strength, prior=prior, block=block, neutral=neutral)


def centre_map(frame: np.ndarray, seconds: float) -> np.ndarray:
    """A centred Gaussian: the baseline that every model must beat."""
    return centred_gaussian(*frame.shape[:2])


def open_maps(model: Path | None, name: str | None, find_cuts: bool = True, threads: int = 1) -> Stream | Maps | None:
    """A student's maps, or those that `name` selects: `centre`, `none`. Raises UsageError unless exactly one is given."""
    if (model is None) == (name is None):
        raise UsageError("where do people look? give one of --model ONNX, --map centre and --map none")
    if model is not None:
        return Stream(load_predictor(model, threads), find_cuts)
    if name not in ("centre", "none"):
        raise UsageError(f"--map {name} is unknown; there are centre and none")
    return centre_map if name == "centre" else None


def saliency_of(frame: av.VideoFrame, size: tuple[int, int], maps: Maps, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """The map `[h,w]` of a frame, and the luma float32 `[h,w]` of the downscaled frame, both in the frame's stored orientation.

    size: height and width of the part that is encoded. The model sees it upright. Raises ValueError where it gives no map.
    """
    turn = orientation(frame)
    scale = min(1.0, MODEL_WIDTH / size[0 if turn.swapped else 1])
    height, width = (max(16, 8 * round(side * scale / 8)) for side in size)  # some models take only multiples of 8
    rgb = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    saliency = turn.stored(maps(np.ascontiguousarray(turn.upright(rgb)), seconds))
    check_map(saliency)
    return saliency, rgb @ np.array([0.299, 0.587, 0.114], np.float32)


@dataclass
class OffsetTrack:
    """The offsets of consecutive frames, shaped in one way."""

    shaping: Shaping
    size: tuple[int, int]
    offsets: np.ndarray | None = None
    bits: np.ndarray | None = None  # of the blocks, smoothed over frames: without that, offsets flicker
    all_bits: np.ndarray | None = None  # their sum over all frames

    def step(self, saliency: np.ndarray, luma: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """The offsets of the next frame, from its map and the luma of it and of the frame before."""
        if self.shaping.neutral == "bits":
            bits = block_bits(luma, before, self.shaping.block, self.size)
            self.bits = bits if self.bits is None else (self.bits + bits) / 2
            self.all_bits = bits if self.all_bits is None else self.all_bits + bits
        self.offsets = qp_offsets(saliency, self.shaping, self.size, self.offsets, self.bits)
        return self.offsets


class Planner:
    """Plans the offsets of a video's frames, one after the other."""

    def __init__(self, picture: Picture, maps: Stream | Maps | None, shaping: Shaping) -> None:
        self.picture, self.shaping = picture, shaping
        if isinstance(maps, Stream):
            maps.reset()
        self.maps = maps.map if isinstance(maps, Stream) else maps
        self.frames, self.changes = 0, 0
        self.lowest, self.highest, self.total = 0, 0, 0.0
        self._first_time = self._time = 0.0  # of the first and of the latest frame, in seconds
        self._track = OffsetTrack(shaping, picture.size)
        self._luma: np.ndarray | None = None  # of the previous frame
        self._sum: np.ndarray | None = None  # of all maps, for encoders that take one for the whole video
        self._file: tuple[RoiFile, OffsetTrack] | None = None

    def add_file(self, file: RoiFile) -> None:
        """Adds a file that also gets every frame's offsets, within the limits of the encoder that it is for."""
        shaping = self.shaping
        if file.format == "svt-av1":
            shaping = replace(shaping, block=SVT_BLOCK, step=step_for(SVT_LEVELS, max(map(abs, shaping.reach))))
        self._file = file, OffsetTrack(shaping, self.picture.size)

    def plan(self, frame: av.VideoFrame) -> np.ndarray | None:
        """The offsets int32 `[rows, columns]` of the next frame; None where there are no maps."""
        index, self.frames = self.frames, self.frames + 1
        self._time = frame.time if frame.time is not None else float(index / self.picture.rate)
        if index == 0:
            self._first_time = self._time
        if self.maps is None:
            return None
        if frame.interlaced_frame:
            way_out = "deinterlace first: ffmpeg -i IN -vf bwdif OUT"
            raise UsageError(f"frame {index + 1} is interlaced, and FFmpeg's encoders ignore a map there; {way_out}")
        before, previous = self._luma, self._track.offsets
        try:
            saliency, self._luma = saliency_of(frame, self.picture.size, self.maps, self._time)
            offsets = self._track.step(saliency, self._luma, before)
            if self._file:
                file, track = self._file
                file.add(track.step(saliency, self._luma, before))
        except ValueError as error:
            raise UsageError(f"frame {self.frames}: {error}") from None
        self.changes += previous is not None and not np.array_equal(offsets, previous)
        self.lowest, self.highest = min(self.lowest, int(offsets.min())), max(self.highest, int(offsets.max()))
        self.total += float(np.average(offsets, weights=areas(self.picture.size, self.shaping.block)))
        self._sum = saliency.astype(float) if self._sum is None else self._sum + saliency
        return offsets

    def static(self) -> np.ndarray:
        """The offsets of the mean of all maps."""
        assert self._sum is not None
        mean = np.clip(self._sum / self.frames, 0, 1)
        return qp_offsets(mean, self.shaping, self.picture.size, None, self._track.all_bits)

    @property
    def seconds(self) -> float:
        """Duration of the frames so far, the last one as long as the rate says."""
        return self._time - self._first_time + float(1 / self.picture.rate)

    def summary(self) -> dict[str, Any] | None:
        """Lowest, mean (over time and area) and highest offset, and the number of frames whose offsets differ from the previous."""
        if self.maps is None:
            return None
        mean = round(self.total / max(self.frames, 1), 3)
        return {"lowest": self.lowest, "mean": mean, "highest": self.highest, "changes": self.changes}

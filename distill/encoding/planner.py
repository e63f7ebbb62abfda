"""From frames to QP offsets: each frame's saliency map, and the offsets that it gives, in time order.

decoded frame -> saliency map (`maps`) -> QP offsets (`qp_offsets`)
"""

from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np

from distill.encoding.encoders import CRF, Coding, Picture
from distill.encoding.maps import FrameMap, Maps, luma_of, map_of
from distill.encoding.qp_offsets import BLOCKS, MAPPINGS, NEUTRAL, STRONGEST, Shaping, areas, block_bits, qp_offsets
from distill.encoding.roi_files import OWN_BLOCK, RoiFile
from distill.export.streaming import Stream
from distill.run.errors import UsageError


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


def at_rate(shaping: Shaping, coding: Coding) -> Shaping:
    """The shaping for the CRF of an encode; with another rate control, for the encoder's default."""
    return replace(shaping, crf=CRF[coding.codec] if coding.crf is None else coding.crf)


@dataclass
class OffsetTrack:
    """The offsets of consecutive frames, shaped in one way."""

    shaping: Shaping
    size: tuple[int, int]
    offsets: np.ndarray | None = None
    bits: np.ndarray | None = None  # of the blocks, smoothed over frames: without that, offsets flicker
    all_bits: np.ndarray | None = None  # their sum over all frames

    def step(self, of_frame: FrameMap, luma: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """The offsets of the next frame, from its map and the luma of it and of the frame before."""
        if self.shaping.neutral == "bits":
            bits = block_bits(luma, before, self.shaping.block, self.size, self.shaping.crf)
            self.bits = bits if self.bits is None else (self.bits + bits) / 2
            self.all_bits = bits if self.all_bits is None else self.all_bits + bits
        self.offsets = qp_offsets(of_frame.values, self.shaping, self.size, self.offsets, self.bits, of_frame.cell)
        return self.offsets


class Planner:
    """Plans the offsets of a video's frames, one after the other."""

    def __init__(self, picture: Picture, maps: Stream | Maps | None, shaping: Shaping) -> None:
        self.picture, self.shaping = picture, shaping
        if isinstance(maps, Stream):
            maps.reset()
        self.maps = maps
        self.frames, self.changes = 0, 0
        self.lowest, self.highest, self.total = 0, 0, 0.0
        self._first_time = self._time = 0.0  # of the first and of the latest frame, in seconds
        self._track = OffsetTrack(shaping, picture.size)
        self._luma: np.ndarray | None = None  # of the previous frame
        self._sum: FrameMap | None = None  # of all maps, for encoders that take one for the whole video
        self._file: tuple[RoiFile, OffsetTrack] | None = None

    def add_file(self, file: RoiFile) -> None:
        """Adds a file that also gets every frame's offsets, within the limits of the encoder that it is for."""
        shaping = replace(self.shaping, block=OWN_BLOCK.get(file.format, self.shaping.block))
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
            of_frame = map_of(frame, self.picture.size, self.maps, self._time)
            self._luma = luma_of(frame, self.picture.size)
            offsets = self._track.step(of_frame, self._luma, before)
            if self._file:
                file, track = self._file
                file.add(track.step(of_frame, self._luma, before))
        except ValueError as error:
            raise UsageError(f"frame {self.frames}: {error}") from None
        self.changes += previous is not None and not np.array_equal(offsets, previous)
        self.lowest, self.highest = min(self.lowest, int(offsets.min())), max(self.highest, int(offsets.max()))
        self.total += float(np.average(offsets, weights=areas(self.picture.size, self.shaping.block)))
        self._sum = replace(of_frame, values=of_frame.values + (self._sum.values if self._sum else 0.0))
        return offsets

    def static(self) -> np.ndarray:
        """The offsets of the mean of all maps."""
        assert self._sum is not None
        mean = np.clip(self._sum.values / self.frames, 0, 1)
        return qp_offsets(mean, self.shaping, self.picture.size, None, self._track.all_bits, self._sum.cell)

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

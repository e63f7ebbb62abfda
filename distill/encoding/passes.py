"""Two passes over a video: the first one measures, the second one spends the rate where it is needed, with the same offsets.

The maps are made once: the offsets of the first pass are kept for the second in a file, a byte per block before compression, half of
what x264 keeps of each. To make them anew would cost the model's time twice, and must not give others.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from distill.encoding.encoders import Coding, Pass, Picture, new_context
from distill.encoding.planner import Planner
from distill.encoding.regions import RegionMarker
from distill.run.files import temporary_folder

Plan = Callable[[Any], np.ndarray | None]  # the offsets of the next frame


@contextmanager
def two_passes(
    frames: Callable[[], Iterator[Any]], planner: Planner, picture: Picture, coding: Coding, block: int
) -> Iterator[tuple[Pass, Plan]]:  # fmt: skip
    """Encodes the frames into nothing; gives the second pass, and the offsets for its frames. Statistics go with the block."""
    with temporary_folder() as folder:
        context, marker = new_context(picture, coding, Pass(1, folder / "statistics")), RegionMarker(picture, block)
        shape = None
        with (folder / "offsets").open("wb") as file:  # not in `refusals`: FFmpeg's decoders may wait for ever to log into it
            for frame in frames():
                offsets = planner.plan(frame)
                if offsets is not None:
                    shape, packed = offsets.shape, zlib.compress(offsets.astype(np.int8).tobytes(), 1)
                    file.write(len(packed).to_bytes(4, "little") + packed)
                context.encode(marker.mark(frame, offsets))
            context.encode(None)
        del context  # its statistics get their names only now
        with (folder / "offsets").open("rb") as kept:

            def planned(frame: Any) -> np.ndarray | None:
                if shape is None:
                    return None
                packed = kept.read(int.from_bytes(kept.read(4), "little"))
                return np.frombuffer(zlib.decompress(packed), np.int8).reshape(shape).astype(np.int32)

            yield Pass(2, folder / "statistics"), planned

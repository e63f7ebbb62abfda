"""Labels clips with a teacher into the soft-label store, one clip after the other; goes on at the next clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from torch import Tensor

from distill.corpora import Clip
from distill.errors import Interrupted, UsageError
from distill.progress import Narrator
from distill.soft_labels import LabelStore
from distill.teachers import Lookup, Teacher

# Teachers look at a few hundred pixels: wider frames are area-averaged while decoding, so that a clip fits in memory.
MAX_WIDTH = 640


def computed_by(teacher: Teacher) -> Callable[[Clip], Tensor]:
    """Labels by a teacher that looks at frames."""
    return lambda clip: teacher.logits(decode(clip), clip.fps)


def looked_up_in(teacher: Lookup) -> Callable[[Clip], Tensor]:
    """Labels by a teacher that knows clips by name."""

    def labels(clip: Clip) -> Tensor:
        try:
            return teacher.logits(clip.id, clip.frames)
        except ValueError as error:
            raise UsageError(str(error)) from None

    return labels


def label(
    clips: Sequence[Clip],
    store: LabelStore,
    labels_of: Callable[[Clip], Tensor],
    narrator: Narrator,
) -> int:
    """Labels the clips that the store lacks; returns how many. Raises Interrupted after the clip in work."""
    missing = [clip for clip in clips if clip.id not in store]
    done = len(clips) - len(missing)
    if done:
        narrator.say(f"label: {done} of {len(clips)} clips are in the store")
    total = sum(clip.frames for clip in clips)
    with narrator.bar("label", total, total - sum(c.frames for c in missing), unit="frames") as bar:
        for number, clip in enumerate(missing, 1):
            logits = labels_of(clip)
            if len(logits) != clip.frames:
                raise UsageError(
                    f"teacher {store.teacher['name']} gave {len(logits)} maps for clip {clip.id} of {clip.frames} frames"
                )
            store.write(clip.id, logits.numpy())
            bar.advance(clip.frames, note=f"clip {clip.id}")
            if narrator.stop() and number < len(missing):
                raise Interrupted(f"labelling, after clip {clip.id}, {number + done} of {len(clips)}")
    return len(missing)


def decode(clip: Clip) -> np.ndarray:
    """All frames of a clip, uint8 `[T,H,W,3]`, at most MAX_WIDTH wide."""
    scale = min(1.0, MAX_WIDTH / clip.width)
    size = (round(clip.width * scale), round(clip.height * scale))
    frames = np.empty((clip.frames, size[1], size[0], 3), np.uint8)
    for i, frame in zip(range(clip.frames), clip.read(), strict=False):
        frames[i] = frame if scale == 1 else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return frames

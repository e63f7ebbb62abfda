"""fixations.json of AViMoS: for each frame a list of [row, column] points; a pixel counts as often as it is listed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import ClipFixations, place
from distill.run.errors import UsageError


def read(clip: Clip) -> ClipFixations:
    """All fixations of a clip. Raises UsageError if the file is not a list of frames with points."""
    path = Path(clip.fixations)
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
        lengths = [len(frame) for frame in frames]
        points = np.array([point for frame in frames for point in frame], np.float64)
        if points.shape != (sum(lengths), 2) and points.size:
            raise ValueError(f"points of shape {list(points.shape[1:])}")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a list of frames with [row, column] points: {error}") from None
    points = points.reshape(-1, 2)
    frame = np.repeat(np.arange(len(frames)), np.array(lengths, int))
    return place(clip, frame, points[:, 1], points[:, 0], None, Counter(), len(frames))

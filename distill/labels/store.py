"""The soft-label store: a teacher's logits, one float16 file per clip.

    labels/store.json     the teacher, its fingerprint, its licence
    labels/CLIP.npy       float16 [T,h,w], logits of every frame

A file gets its name only when it is complete, so an interrupted store resumes at the next clip. A file that was truncated later,
or has another number of frames, counts as lacking. A store refuses labels of another teacher.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from distill.run.errors import UsageError
from distill.run.files import ArrayFile, map_array, value_in, write_array, write_json


class LabelStore:
    """Labels by one teacher. `teacher` is its description, with at least `name` and `fingerprint`."""

    def __init__(self, path: Path, teacher: dict[str, Any]) -> None:
        self.path, self.teacher = path, teacher

    @classmethod
    def create(cls, path: Path, teacher: dict[str, Any]) -> Self:
        """A new store, or the same teacher's store to continue. Raises UsageError for the store of another teacher."""
        path.mkdir(parents=True, exist_ok=True)
        if (path / "store.json").exists():
            store = cls.open(path)
            if store.teacher["fingerprint"] != teacher["fingerprint"]:
                old, new = (f"{t['name']} ({t['fingerprint'][:12]})" for t in (store.teacher, teacher))
                raise UsageError(
                    f"{path} holds labels of {old}, not of {new}; labels of two teachers do not mix, choose another --out"
                )
            return store
        if any(path.glob("*.npy")):
            raise UsageError(f"{path} holds labels but no store.json that names their teacher; remove it to label again")
        write_json(path / "store.json", {"schema": 1, "teacher": teacher})
        return cls(path, teacher)

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing store. Raises UsageError where `store.json` is missing or damaged."""

        def teacher(value: Any) -> dict[str, Any]:
            return {
                "name": str(value["teacher"]["name"]),
                "fingerprint": str(value["teacher"]["fingerprint"]),
                **value["teacher"],
            }

        return cls(path, value_in(path / "store.json", teacher))

    def __contains__(self, clip_id: str) -> bool:
        return (self.path / f"{clip_id}.npy").exists()

    def holds(self, clip_id: str, frames: int) -> bool:
        """Whether a clip has labels for this many frames in a file that is whole; the labels themselves are not read."""
        file = self._file(clip_id)
        return file.is_whole(frames) and file[:0].ndim == 3 and file[:0].dtype == np.float16

    def _file(self, clip_id: str) -> ArrayFile:
        return ArrayFile(self.path / f"{clip_id}.npy")

    def write(self, clip_id: str, logits_Thw: np.ndarray) -> None:
        """Stores the logits of a whole clip. Raises UsageError for NaN or infinity, with the frame."""
        if frame := _not_finite(logits_Thw):
            raise UsageError(
                f"teacher {self.teacher['name']} gave NaN or infinity for clip {clip_id}, frame {frame}; this clip is not stored"
            )
        # float16 overflows at 65504, and no saliency logit beyond +-30 means anything
        write_array(self.path / f"{clip_id}.npy", np.clip(logits_Thw, -30, 30).astype(np.float16))

    def read(self, clip_id: str, frames: int) -> ArrayFile:
        """The logits of a clip, float16 `[T,h,w]`, open only while they are read. Raises UsageError for damaged or wrong labels."""
        file = self._file(clip_id)
        path = file.path
        again = "remove it and run `distill label`"
        try:
            logits = map_array(path)
        except FileNotFoundError:
            raise UsageError(f"{path} is missing; run `distill label` to make it") from None
        except (ValueError, OSError) as error:
            raise UsageError(f"{path} is damaged ({error}); {again}") from None
        if logits.ndim != 3 or len(logits) != frames or logits.dtype.kind != "f":
            what = f"{logits.dtype} labels of shape {logits.shape}"
            raise UsageError(f"{path} holds {what}, the clip has {frames} frames; {again}")
        if frame := _not_finite(logits):
            raise UsageError(f"{path} holds NaN or infinity at frame {frame} of clip {clip_id}; {again}")
        return file


def _not_finite(logits_Thw: np.ndarray) -> int:
    """The first frame with NaN or infinity, from 1; 0 where all values are finite."""
    bad = ~np.isfinite(logits_Thw.reshape(len(logits_Thw), -1)).all(1)
    return int(bad.argmax()) + 1 if bad.any() else 0


class StoredLabels:
    """A store as a teacher: it looks up labels that another run computed."""

    name = "maps"

    def __init__(self, path: Path) -> None:
        self.store = LabelStore.open(path)

    def _id(self, name: str, part: str) -> str:
        return name if name in self.store else f"{part}.{name}"  # clip ids of a mixed corpus name the part

    def has(self, name: str, part: str = "") -> bool:
        """Whether a clip has labels, intact or damaged."""
        return self._id(name, part) in self.store

    def places(self, name: str, part: str = "") -> list[str]:
        """The files in which the labels of a clip are looked for."""
        return [str(self.store.path / f"{own}.npy") for own in (name, f"{part}.{name}")]

    def logits(self, name: str, frames: int, part: str = "") -> Tensor:
        """The logits of clip `name` of a part of the corpus, float32 `[frames,h,w]`. Raises UsageError as `LabelStore.read`."""
        return torch.from_numpy(self.store.read(self._id(name, part), frames)[:].astype(np.float32))

    def fingerprint(self) -> str:
        """The fingerprint of the teacher that computed the labels."""
        return self.store.teacher["fingerprint"]

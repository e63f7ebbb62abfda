"""A clip and a corpus of clips, as values: paths and counts, never pixels. Both are written to corpus.json as they are."""

from __future__ import annotations

import difflib
import shlex
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distill.corpora import camera
from distill.corpora.readers import stamps
from distill.corpora.readers.frames import Frame
from distill.corpora.video import decoded
from distill.opallowlist.foreign import toml_text
from distill.run.errors import UsageError

MOST_SKIPPED = 50
"""Clips that a message tells how to leave out; a longer list would fill the screen."""


@dataclass(frozen=True)
class Clip:
    """One video or still image, with its annotation if it has one. Frames are numbered from 0.

    A layout sets what it finds: `fps` is that of frames in a folder, `fixations` and `maps` may not exist. The check
    (distill.corpora.checking) sets the rest and corrects these.
    """

    id: str
    video: str  # a video file, a folder of frames, or a still image
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 30.0  # of the median interval where the frames have times of their own
    fixations: str = ""  # folder or file with the fixations; empty for a clip without annotation
    maps: str = ""  # folder or video of density maps; empty where density is built from the fixations
    annotated_frames: int = 0
    group: str = ""
    annotation: str = "png"  # the format of `fixations`, see distill.corpora.gaze
    static: bool = False  # a still image: one frame, no recurrent state
    shots: tuple[str, ...] = ()  # the images that a simulated camera films; `video` is the first
    corpus: str = ""  # the part of a mixed corpus
    name: str = ""  # the id within that part; defaults to `id`
    side: str = ""  # train, val or test, where the corpus has an official split
    lag: float = 0.0  # seconds by which the mouse follows the eye
    troubles: dict[str, int] = field(default_factory=dict, hash=False)  # dropped points and suspicious counts, by kind
    times: tuple[float, ...] = field(default=(), hash=False)  # of the frames in seconds, where the frame rate varies

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.id)

    @property
    def seconds(self) -> float:
        """How long the frames are shown."""
        return self.time_of(self.frames - 1) + 1 / self.fps

    def time_of(self, index: int) -> float:
        """When frame `index` is shown, in seconds from the first one."""
        return self.times[index] if self.times else index / self.fps

    def position(self, seconds: np.ndarray) -> np.ndarray:
        """How many frames have been shown by these times, float: 3.5 is the middle of frame 3; below 0 before the first one, and
        `frames` or more after the last."""
        return stamps.position(seconds, self.fps, self.times)

    def read(self, stride: int = 1, start: int = 0) -> Iterator[np.ndarray]:
        """The frames of `decoded`, uint8 RGB `[H,W,3]`."""
        return (frame.rgb() for frame in self.decoded(stride, start))

    def decoded(self, stride: int = 1, start: int = 0) -> Iterator[Frame]:
        """Every `stride`-th frame from frame `start`; see `video.decoded`. Raises UsageError if the video ends before `frames`."""
        count = 0
        for frame in islice(self._filmed(), start, None, stride) if self.shots else decoded(Path(self.video), stride, start):
            yield frame
            count += 1
        if start + count * stride < self.frames:
            what = f"ended after {start + count * stride} of {self.frames} frames; it changed after the corpus was opened"
            raise UsageError(f"{self.video} {what}; restore it, or start over with --force")

    def _filmed(self) -> Iterator[Frame]:
        for rgb in camera.film(self.shots, zlib.crc32(self.name.encode())):
            yield Frame(None, (self.height, self.width), partial(np.asarray, rgb))


@dataclass(frozen=True)
class Corpus:
    """Checked clips and their split. `held_out` is False where validation has to reuse training clips."""

    name: str
    license: str
    clips: tuple[Clip, ...]
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    held_out: bool = True
    roots: dict[str, str] = field(default_factory=dict, hash=False)  # folder of each part, by `Clip.corpus`
    weights: dict[str, float] = field(default_factory=dict, hash=False)  # how often training draws from each part
    notes: tuple[str, ...] = ()  # findings for the user: dropped points, frame counts that differ

    @property
    def root(self) -> str:
        """The folders of all parts, for messages."""
        return ", ".join(self.roots.values())

    @property
    def title(self) -> str:
        """The parts by name, without the paths of their folders: `dhf1k:hevc-gaze + images:images`."""
        return " + ".join("synthetic" if p == "synthetic" else f"{p}:{Path(r).name}" for p, r in self.roots.items())

    @cached_property
    def _by_id(self) -> dict[str, Clip]:
        return {clip.id: clip for clip in self.clips}

    def __getitem__(self, clip_id: str) -> Clip:
        if clip_id not in self._by_id:
            raise UsageError(f"there is no clip '{clip_id}' in {self.root}")
        return self._by_id[clip_id]

    def select(self, ids: Iterable[str]) -> list[Clip]:
        """The clips with these ids, in this order. Raises UsageError for an unknown id."""
        return [self[i] for i in ids]

    @property
    def median_fps(self) -> float:
        """Median frame rate of the videos; 30 if there are only still images, filmed or not."""
        return float(np.median([clip.fps for clip in self.clips if not (clip.static or clip.shots)] or [30.0]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for corpus.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Corpus:
        """The inverse of `to_dict`."""
        lists = {k: tuple(values[k]) for k in ("train", "val", "notes")}
        return cls(**{**values, **lists, "clips": tuple(_clip(c) for c in values["clips"])})


def _clip(values: dict[str, Any]) -> Clip:
    return Clip(**{**values, "shots": tuple(values.get("shots", ())), "times": tuple(values.get("times", ()))})


def leaving_out(ids: Collection[str]) -> str:
    """The way out of clips that a run cannot use: `leave it out: --set corpus.skip=001`, as a shell takes it; of very many,
    `leave them out with corpus.skip`."""
    leave_out = f"leave {'it' if len(ids) == 1 else 'them'} out"
    if len(ids) > MOST_SKIPPED:
        return f"{leave_out} with corpus.skip"
    plain = not any(set(clip_id) & set(",[\"'") or clip_id != clip_id.strip() for clip_id in ids)
    return f"{leave_out}: --set {shlex.quote('corpus.skip=' + (','.join(ids) if plain else toml_text(list(ids))))}"


def counted(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_few(names: Sequence[str], most: int = 4) -> str:
    """At most `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def check_known(key: str, names: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises UsageError for a name, given by a key of the recipe, that no clip has."""
    if unknown := next((name for name in names if name not in known), ""):
        raise UsageError(f"{key} names '{unknown}', which is not in {where}{did_you_mean_clip(unknown, known)}")


def did_you_mean_clip(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a clip has a similar name, else nothing: a corpus has too many clips to list them."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{similar[0]}'?" if similar else ""

"""DHF1K's layout (Wang et al., CVPR 2018), which other databases share:

    video/NNN.AVI                                  any suffix that OpenCV reads
    annotation/NNNN/fixation/%04d.png              binary fixation maps, one per frame from 0001
    annotation/NNNN/maps/%04d.png                  density maps; built from the fixations where the folder is absent

Clips without annotation can be labelled, not scored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from distill.corpora.clips import Clip
from distill.corpora.video import SUFFIXES, probe
from distill.errors import UsageError

LICENSE_FILE = "LICENSE.txt"


@dataclass(frozen=True)
class Entry:
    """A clip as found, before it is checked."""

    id: str
    video: Path
    annotation: Path


def license_of(root: Path) -> str:
    """The first line of LICENSE.txt beside the corpus, or that it is not stated."""
    path = root / LICENSE_FILE
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    return text.splitlines()[0].strip() if text else "not stated"


def find(root: Path) -> list[Entry]:
    """The clips under `root`, sorted by id."""
    folder = root / "video"
    if not folder.is_dir():
        raise UsageError(
            f"{root} has no video/ folder; DHF1K's layout is video/NNN.AVI and annotation/NNNN/fixation/%04d.png"
        )
    videos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not videos:
        raise UsageError(f"{folder} holds no videos ({', '.join(SUFFIXES)})")
    ids = [video.stem for video in videos]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise UsageError(f"{folder} holds several videos called {min(twice)}; keep one of them")
    return [
        Entry(v.stem, v, root / "annotation" / (f"{int(v.stem):04d}" if v.stem.isdigit() else v.stem)) for v in videos
    ]


def check(entry: Entry) -> Clip:
    """Decodes the video once and compares it with its annotation. Raises UsageError with what disagrees."""
    frames, height, width, fps = probe(entry.video)
    fixations, maps = entry.annotation / "fixation", entry.annotation / "maps"
    annotated = _count(fixations, height, width) if fixations.is_dir() else 0
    if maps.is_dir() and not annotated:
        raise UsageError(f"{maps} has no fixations beside it in {fixations}; NSS and AUC need them")
    if annotated > frames:
        raise UsageError(
            f"{entry.video} has {frames} frames, its annotation in {fixations} {annotated}; is the video complete?"
        )
    has_maps = maps.is_dir() and any(maps.glob("*.png"))
    if has_maps and (found := _count(maps, height, width)) != annotated:
        raise UsageError(f"{maps} holds {found} maps, {fixations} {annotated}; they must agree")
    return Clip(
        entry.id, str(entry.video), frames, height, width, fps,
        str(fixations) if annotated else "", str(maps) if has_maps else "", annotated,
    )  # fmt: skip


def _count(folder: Path, height: int, width: int) -> int:
    """PNGs named 0001.png, 0002.png, ... of the video's size; their headers are read, not their pixels."""
    names = sorted(p.name for p in folder.glob("*.png"))
    for number, name in enumerate(names, 1):
        if name != f"{number:04d}.png":
            raise UsageError(
                f"{folder} has {name} where {number:04d}.png should be; files count from 0001 without gaps"
            )
        with (folder / name).open("rb") as file:
            head = file.read(24)
        if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
            raise UsageError(f"{folder / name} is not a PNG")
        size = struct.unpack(">II", head[16:24])
        if size != (width, height):
            raise UsageError(f"{folder / name} is {size[0]}x{size[1]} px, its video {width}x{height}; they must agree")
    return len(names)

"""DHF1K (Wang et al., CVPR 2018) and what else stands in its layout; also in the four others that it is passed on in.

    official    video/NNN.AVI    annotation/NNNN/{fixation,maps}/%04d.png
    UNISAL      annotation/NNNN/{images,fixation,maps}/%04d.png
    TASED-Net   video/NNNN/%04d.png    annotation/NNNN/{fixation,maps}/%04d.png
    SalEMA      frames/N/    fixations/N/    maps/N/         numbers without zeros
    ViNet       NNNN/{images,fixation,maps}/%04d.png         perhaps below train/ and val/

They are told apart by looking, and may be mixed. Fixations are PNGs, else MATLAB matrices in fixation/maps/%04d.mat, else
the raw gaze in exportdata_train/ beside. Density is built from the fixations where maps/ is absent. Clips without
annotation can be labelled, not scored.

Where clips beyond 600 are present it is DHF1K itself, with its split: 1-600 train, 601-700 validate, 701-1000 are the
benchmark's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.corpora.entries import Entry, check, license_of
from distill.corpora.gaze import export_files
from distill.corpora.readers import images
from distill.corpora.video import SUFFIXES
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

__all__ = ["check", "find", "license_of"]

FPS = 30.0
SIDES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
LAST_TRAINING, LAST_VALIDATION = 600, 700


def find(root: Path, options: Options) -> list[Entry]:
    """The clips under `root`, sorted by number. Raises UsageError where there are none in any of the layouts."""
    fps = options.fps or FPS
    found: dict[str, Entry] = {}
    for side, place in _places(root):
        for name, video in _videos(place).items():
            if name in found and found[name].side != side:
                raise UsageError(f"clip {name} is both in {found[name].video} and in {video}; keep one of them")
            clip = name if video.is_dir() else video.stem
            found.setdefault(name, _annotated(place, Entry(clip, video, name=clip, side=side, fps=fps)))
    if not found:
        lacks = f"{root / 'video'} holds no videos ({', '.join(SUFFIXES)})"
        if not (root / "video").is_dir():
            lacks = f"{root} has no video/ folder"
        raise UsageError(
            f"{lacks}, and there are no frames in video/NNNN, frames/N, annotation/NNNN/images or NNNN/images; "
            "DHF1K's layout is video/NNN.AVI and annotation/NNNN/fixation/%04d.png"
        )
    if options.name != "synthetic" and any(_number(name) > LAST_TRAINING for name in found):
        found = {name: replace(e, side=e.side or _official(_number(name))) for name, e in found.items()}
    return [found[name] for name in sorted(found, key=images.numbered)]


def _official(number: int) -> str:
    return "train" if number <= LAST_TRAINING else "val" if number <= LAST_VALIDATION else "test"


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _id(name: str) -> str:
    """One name for a clip in all layouts: 001 for 1, 001 and 0001. A video keeps the name that its file has."""
    return f"{int(name):03d}" if name.isdigit() else name


def _places(root: Path) -> list[tuple[str, Path]]:
    """Where clips may stand: the root, and folders in it that are called after a side of the split."""
    sides = [(SIDES[p.name.lower()], p) for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SIDES]
    return [("", root), *sides]


def _videos(place: Path) -> dict[str, Path]:
    """Every clip's video or folder of frames; where it has several, the video, then folders in the order above."""
    found: dict[str, Path] = {}
    folder = place / "video"
    if folder.is_dir():
        videos = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        for video in videos:
            if (other := found.setdefault(_id(video.stem), video)) != video:
                raise UsageError(f"{folder} holds {other.name} and {video.name}, which are one clip; keep one of them")
    for pattern in ("video/*", "frames/*", "annotation/*/images", "*/images"):
        for frames in sorted(place.glob(pattern)):
            name = frames.parent.name if frames.name == "images" else frames.name
            if frames.is_dir() and not name.startswith("."):
                found.setdefault(_id(name), frames)
    return found


def _annotated(place: Path, entry: Entry) -> Entry:
    """The entry with its fixations and density maps, wherever they stand."""
    number = _number(entry.id)
    beside = [entry.video.parent] if entry.video.name == "images" else []
    folders = [place / "annotation" / f"{number:04d}" if number else place / "annotation" / entry.id, *beside]
    plain = str(number) if number else entry.id
    fixations = [*(f / "fixation" for f in folders), place / "fixations" / plain, place / "fixation" / plain]
    maps = [*(f / "maps" for f in folders), place / "maps" / plain]
    entry = replace(entry, maps=next((m for m in maps if m.is_dir()), None), fixations=fixations[0])
    for folder in fixations:
        for kind, where in (("png", folder), ("mat", folder / "maps"), ("mat", folder)):
            if images.has_any(where, (f".{kind}",)):
                return replace(entry, fixations=where, annotation=kind)
    for folder in (place / "exportdata_train", place / "exportdata", place / "gaze_record"):
        if number and folder.is_dir() and export_files(folder, number):
            return replace(entry, fixations=folder, annotation="export")
    return entry

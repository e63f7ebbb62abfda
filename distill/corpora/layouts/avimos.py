"""AViMoS (AIM 2024) and the corpus of NTIRE 2026: full-HD videos with sound, and mouse positions in place of gaze.

    Videos/NAME.mp4                              one folder, or several
    SaliencyTrain/Train/NAME.mp4                 density maps as near-lossless video, each frame stretched to its range
    FixationsTrain/Train/NAME/fixations.json     per frame [row, column] points; several on one pixel all count
    FixationsTrain/Train/NAME/fixations/*.png    the same without multiplicity, read where the JSON is missing
    TrainTestSplit.json                          {"train": [NAME, ...], "public_test": ..., "private_test": ...}
    *.csv                                        your own mouse tracks: clip, time, x, y, observer

Folders are found by what they hold, up to three levels down, so both archives unpacked side by side and one tidy tree
work. Raw tracks are resampled to 100 Hz and moved back by corpus.mouse_lag_ms, as the organisers did with theirs.
"""

from __future__ import annotations

import json
from pathlib import Path

from distill.corpora.entries import Entry, check, license_of
from distill.corpora.readers import images, table
from distill.corpora.video import SUFFIXES
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

__all__ = ["check", "find", "license_of", "remarks"]

SPLIT = "TrainTestSplit.json"


def find(root: Path, options: Options) -> list[Entry]:
    """The clips under `root`, sorted by name. Raises UsageError where there are no videos, or the split cannot be read."""
    videos, maps, fixations = _folders(root)
    if not videos:
        raise UsageError(
            f"{root} holds no videos; its layout is Videos/NAME.mp4 with Saliency*/ and Fixations*/ beside"
        )
    sides = _sides(root)
    tracks = [p for p in sorted(root.iterdir()) if p.name.lower().endswith(table.SUFFIXES) and table.columns_of(p)]
    if len(tracks) > 1:
        raise UsageError(
            f"{root} holds several tables of mouse tracks, {tracks[0].name} and {tracks[1].name}; keep one"
        )
    found = []
    for name in sorted(videos, key=images.numbered):
        where, kind = None, "json"
        if name in fixations:
            where, kind = fixations[name]
        elif tracks:
            where, kind = tracks[0], "tracks"
        found.append(
            Entry(
                name, videos[name], where, maps.get(name) if where else None, kind, name=name, side=sides.get(name, ""),
                lag=options.mouse_lag_ms / 1000,
            )
        )  # fmt: skip
    return found


def remarks(root: Path, entries: list[Entry]) -> list[str]:
    """What the split lacks."""
    sides = _sides(root)
    if not sides:
        return [f"there is no {SPLIT} in {root.name}: corpus.val decides who is held out"]
    here = {entry.name for entry in entries}
    said = []
    if absent := sorted(set(sides) - here):
        said.append(f"{SPLIT} names {len(absent)} clips that are not here ({_some(absent)})")
    if unnamed := sorted(here - set(sides)):
        said.append(f"{SPLIT} does not name {len(unnamed)} clips, which train ({_some(unnamed)})")
    return said


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _folders(root: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, tuple[Path, str]]]:
    """Videos, density maps and fixations by the clip's name."""
    videos: dict[str, Path] = {}
    maps: dict[str, Path] = {}
    fixations: dict[str, tuple[Path, str]] = {}
    level = [root]
    for _ in range(4):
        below = []
        for folder in level:
            if (kind := _fixations(folder)) is not None:
                fixations[folder.name] = kind
                continue
            kept = maps if any(p.lower().startswith("saliency") for p in folder.relative_to(root).parts) else videos
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    continue
                if path.is_dir():
                    below.append(path)
                elif path.suffix.lower() in SUFFIXES:
                    if path.stem in kept:
                        raise UsageError(f"{kept[path.stem]} and {path} have one name; keep one of them")
                    kept[path.stem] = path
        level = below
    return videos, maps, fixations


def _fixations(folder: Path) -> tuple[Path, str] | None:
    """What a folder that is called after a clip holds of its fixations, and of which kind."""
    if (folder / "fixations.json").is_file():
        return folder / "fixations.json", "json"
    for name in ("fixations", "fixations_maps"):
        if images.has_any(folder / name, (".png",)):
            return folder / name, "png"
    return None


def _sides(root: Path) -> dict[str, str]:
    """The official side of each clip, by its name; the names in the file may carry a suffix."""
    path = root / SPLIT
    if not path.is_file():
        return {}
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        names = {key: [Path(name).stem for name in clips] for key, clips in lists.items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{path} is no list of names per side: {error}") from None
    return {name: "test" if "test" in key.lower() else "train" for key, clips in names.items() for name in clips}

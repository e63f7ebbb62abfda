"""Your own gaze: videos or still images, and a CSV file that says who looked where. A folder, or a folder of such folders:

    SET/fixations.csv[.gz]    a row per fixation or sample; see distill.corpora.readers.table for the columns
    SET/img/NAME.jpg          images and videos, in SET itself or one level below, under any name

An image becomes a static clip: one frame, all its fixations, and never a state.
"""

from __future__ import annotations

from pathlib import Path

from distill.corpora import video
from distill.corpora.entries import Entry, check, license_of
from distill.corpora.readers import images, table
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

__all__ = ["check", "find", "license_of", "remarks"]

MEDIA = (*images.SUFFIXES, *video.SUFFIXES)


def tables(root: Path) -> list[Path]:
    """The gaze tables of `root`, or else of the folders in it. Raises UsageError where a folder has several."""
    found = []
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))):
        here = [
            p
            for p in sorted(folder.iterdir())
            if p.name.lower().endswith(table.SUFFIXES) and p.is_file() and table.columns_of(p)
        ]
        if len(here) > 1:
            raise UsageError(f"{folder} holds several gaze tables, {here[0].name} and {here[1].name}; keep one of them")
        found += here
        if folder == root and here:
            break
    return found


def find(root: Path, options: Options) -> list[Entry]:
    """Every image and video of every set, sorted by name. Raises UsageError where there is no table, or nothing beside it."""
    found, several = [], tables(root)
    if not several:
        raise UsageError(
            f"{root} holds no gaze table: a CSV with columns for clip, x and y (clip,frame,x,y,observer or "
            "image,subject,x_norm,y_norm), beside its videos or images"
        )
    for path in several:
        folder = path.parent
        files = sorted((p for p in _media(folder)), key=lambda p: images.numbered(p.name))
        if not files:
            raise UsageError(f"{folder} has {path.name}, but no images or videos ({', '.join(MEDIA)}) beside it")
        stems: dict[str, Path] = {}
        for file in files:
            if file.stem in stems:
                raise UsageError(f"{stems[file.stem]} and {file} would be one clip, {file.stem}; rename one of them")
            stems[file.stem] = file
            clip = file.stem if len(several) == 1 else f"{folder.name}.{file.stem}"
            found.append(Entry(clip, file, path, annotation="table", name=f"{folder.resolve().name}/{file.stem}"))
    return found


def _media(folder: Path) -> list[Path]:
    inner = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    files = (p for place in (folder, *inner) for p in place.iterdir())
    return [p for p in files if p.suffix.lower() in MEDIA and not p.name.startswith(".") and p.is_file()]


def remarks(root: Path, entries: list[Entry]) -> list[str]:
    """What the tables chose or lack: how they were read, clips that they speak of and that are not there."""
    said: list[str] = []
    for path in dict.fromkeys(entry.fixations for entry in entries if entry.fixations):
        found = table.read(path)
        said += found.remarks
        known = {rows[0] for entry in entries if entry.fixations == path and (rows := found.rows_of(entry.video))}
        strangers = [name for name in found.clips if name not in known]
        if strangers:
            lost = sum(last - first for first, last in (found.clips[name] for name in strangers))
            shown = ", ".join(strangers[:4]) + (f" and {len(strangers) - 4} more" if len(strangers) > 4 else "")
            said.append(f"{path.name} has {lost:,} rows of {len(strangers)} clips that are not beside it ({shown})")
    return said

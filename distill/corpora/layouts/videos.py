"""Videos that nobody was asked to watch: a plain folder of files. A teacher labels them, training draws from them, and
nothing is scored on them. The temporal part of a student needs many scenes, and gaze is dear.
"""

from __future__ import annotations

from pathlib import Path

from distill.corpora import video
from distill.corpora.entries import Entry, check, license_of
from distill.corpora.readers import images
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

__all__ = ["check", "find", "license_of"]


def find(root: Path, options: Options) -> list[Entry]:
    """Every video in `root`, sorted by name. Raises UsageError where there is none, or two would be one clip."""
    named = sorted(p for p in root.iterdir() if p.suffix.lower() in video.SUFFIXES and not p.name.startswith("."))
    files = [p for p in named if p.is_file()]
    if not files:
        raise UsageError(f"{root} holds no videos ({', '.join(video.SUFFIXES)})")
    found: dict[str, Path] = {}
    for file in files:
        if (other := found.setdefault(file.stem, file)) != file:
            raise UsageError(f"{other} and {file} would be one clip, {file.stem}; rename one of them")
    return [Entry(name, found[name], name=name) for name in sorted(found, key=images.numbered)]

"""Videos without gaze: a plain folder of files. A teacher labels them and training draws from them; nothing is scored.

The recurrent part of a student needs many scenes, and recordings of gaze are expensive.
"""

from pathlib import Path

from distill.corpora import video
from distill.corpora.entries import Entry
from distill.corpora.readers import images
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError


def find(root: Path, options: Options) -> list[Entry]:
    """Every video in `root`, sorted by name. Raises UsageError if there are none, or two would be one clip."""
    named = sorted(p for p in root.iterdir() if p.suffix.lower() in video.SUFFIXES and not p.name.startswith("."))
    files = [p for p in named if p.is_file()]
    if not files:
        raise UsageError(f"{root} holds no videos ({', '.join(video.SUFFIXES)})")
    videos: dict[str, Path] = {}
    for file in files:
        if (other := videos.setdefault(file.stem, file)) != file:
            raise UsageError(f"{other} and {file} would be one clip, {file.stem}; rename one of them")
    return [Entry(name, videos[name], name=name) for name in sorted(videos, key=images.numbered)]

"""Still images without gaze, in a folder or in folders in it; a teacher labels them.

find_photos    each image as a static clip
find_pans      each image as a short video that a simulated camera makes of it (distill.corpora.camera)
"""

import zlib
from pathlib import Path

from distill.corpora import camera
from distill.corpora.clips import Clip
from distill.corpora.readers import images
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

CUTS = 0.25
"""The share of the videos that cut to another image."""


def find_photos(root: Path, _options: Options) -> list[Clip]:
    """Every image below `root`, sorted by path. Raises UsageError if there are none, or two would be one clip."""
    return [Clip(name, str(file), static=True) for name, file in _images(root).items()]


def find_pans(root: Path, _options: Options) -> list[Clip]:
    """A video of every image below `root`, sorted by path. Raises UsageError like `find_photos`."""
    found, clips = _images(root), []
    files = list(found.values())
    for name, file in found.items():
        # What follows the image does not depend on which others there are.
        draw = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        second = [str(files[draw % len(files)])] if draw / 2**32 < CUTS else []
        clips.append(Clip(name, str(file), fps=camera.FPS, shots=(str(file), *second)))
    return clips


def _images(root: Path) -> dict[str, Path]:
    files = [p for p in root.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file()]
    files = sorted((p for p in files if not any(part[0] == "." for part in p.relative_to(root).parts)), key=str)
    if not files:
        raise UsageError(f"{root} holds no images ({', '.join(images.SUFFIXES)})")
    named: dict[str, Path] = {}
    for file in files:
        name = ".".join(file.relative_to(root).with_suffix("").parts)
        if (other := named.setdefault(name, file)) != file:
            raise UsageError(f"{other} and {file} would be one clip, {name}; rename one of them")
    return named

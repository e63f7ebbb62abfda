"""Published weights files in the cache folder of this machine: where they are, their state, fetching them. Torch-free.

    CACHE/teachers/unisal/weights_best.pth                   whole, with the SHA-256 that the catalogue pins
    CACHE/teachers/unisal/weights_ft_mit1003.pth.partial     interrupted; `distill teachers fetch unisal` continues

CACHE is $SALIENCY_DISTILL_CACHE, or else `saliency-distill` in the platform's cache folder. A file put there by hand is as good.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distill.labels.catalogue import CATALOGUE, Entry, Published
from distill.run.errors import UsageError
from distill.run.files import sha256_of
from distill.run.machine.download import Unavailable, download, local_path, partial
from distill.run.progress import Narrator


def cache_folder() -> Path:
    """The folder of everything that is fetched, on this machine; it may not exist yet."""
    if own := os.environ.get("SALIENCY_DISTILL_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        platforms = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        platforms = "~/Library/Caches"
    else:  # the XDG specification ignores a relative path
        given = os.environ.get("XDG_CACHE_HOME", "")
        platforms = given if Path(given).is_absolute() else "~/.cache"
    return Path(platforms).expanduser() / "saliency-distill"


def path_of(teacher: str, file: Published) -> Path:
    """Where the cache has, or would have, a published file."""
    return cache_folder() / "teachers" / teacher / file.name


def state(teacher: str, file: Published) -> str:
    """`fetched`, where the cache has the file with the right SHA-256; else what it has of it."""
    path = path_of(teacher, file)
    if path.is_file():
        return "fetched" if sha256_of(path) == file.sha256 else "damaged: its SHA-256 is another one"
    if partial(path).is_file():
        return f"{partial(path).stat().st_size / file.bytes:.0%} fetched"
    return "not fetched"


def facts(teacher: str, file: Published) -> dict[str, Any]:
    """A published file as the catalogue has it, its `state` in the cache, and its `path` there."""
    return asdict(file) | {"state": state(teacher, file), "path": str(path_of(teacher, file))}


def described(teacher: str, file: Published) -> str:
    """A published file, for the user."""
    path, now = path_of(teacher, file), state(teacher, file)
    return f"{now}{f': {path}' if now == 'fetched' else ''}; {file.bytes / 1e6:.1f} MB, SHA-256 {file.sha256}; {file.about}"


def fetch(entry: Entry, only: str | None, url: str | None, narrator: Narrator) -> dict[Path, bool]:
    """Fetches the published files of a teacher, or `only` one of them, into the cache. Files that are there are verified.

    url: where to fetch from instead of the authors' page: the URL or path of one file, or of the folder that holds the files (a
    URL of a folder ends in a slash).

    Returns the path of each file, and whether it was fetched now. Raises UsageError for a file that is not to be had.
    """
    name = entry.name
    if not entry.published:
        can = ", ".join(dict.fromkeys(other.name for other in CATALOGUE if other.published))
        page = f"; the authors' page is {entry.page}" if entry.page else ""
        raise UsageError(f"teacher {name} has no files to fetch, only {can} has{page}")
    if only and only not in [file.name for file in entry.published]:
        raise UsageError(f"teacher {name} has no file '{only}'; known: {', '.join(file.name for file in entry.published)}")
    result = {}
    for file, source in _sources(entry, only, url):
        path = path_of(name, file)
        there = state(name, file)
        if there == "fetched":
            narrator.say(f"{file.name}: already there, SHA-256 checked")
        else:
            narrator.say(f"{file.name}: {there}; from {source} to {path}")
            try:
                download(source, path, file.sha256, file.bytes, narrator)
            except Unavailable as error:
                raise UsageError(f"{error}; {_elsewhere(entry, file)}") from None
        result[path] = there != "fetched"
    return result


def _sources(entry: Entry, only: str | None, url: str | None) -> list[tuple[Published, str]]:
    """The files to fetch, and from where."""
    wanted = [file for file in entry.published if only in (None, file.name)]
    if url is None:
        return [(file, file.url) for file in wanted]
    local = local_path(url)
    name = local.name if local else urlsplit(url).path.rpartition("/")[2]
    named = [file for file in wanted if file.name == name]  # by `url` itself
    folder = not (local.is_file() or named) if local else not name
    if folder:
        return [(file, f"{url.rstrip('/')}/{file.name}") for file in wanted]
    if not (named or only):
        names = " or ".join(file.name for file in entry.published)
        raise UsageError(f"--url {url}: which file is it? name it ({names}) before --url; the URL of a folder ends in a slash")
    return [((named or wanted)[0], url)]


def _elsewhere(entry: Entry, file: Published) -> str:
    """Which file is wanted, and where else to look."""
    path = path_of(entry.name, file)
    kept = " (the part that has come is kept, and the same command continues)" if partial(path).exists() else ""
    return (
        f"wanted: {file.name}, {file.bytes:,} bytes, SHA-256 {file.sha256}{kept}; look on {entry.page}, then give another place with "
        f"--url, put the file at {path}, or use it where it is: --set teacher.weights={entry.name}=FILE"
    )

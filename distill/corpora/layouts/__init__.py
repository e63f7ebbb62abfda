"""Layouts: how a corpus arranges its files, one module each; the corpora by name; which of them a folder holds."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.corpora.clips import Clip, counted, first_few
from distill.corpora.layouts import avimos, dhf1k, gaze_table, shots, stills
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError


class Layout(NamedTuple):
    """`about` describes it; `find(root, options)` lists the clips under a root; `notes(root, clips)` returns findings for the user;
    `sides(root)` is the file with an official split, if there is one."""

    about: str
    find: Callable[[Path, Options], list[Clip]]
    notes: Callable[[Path, list[Clip]], list[str]] = lambda root, clips: []
    sides: Callable[[Path], list[Path]] = lambda root: []


def _mouse(about: str) -> Layout:
    return Layout(about, avimos.find, avimos.notes, lambda root: [root / avimos.SPLIT])


_TABLE = Layout("images or videos with a gaze table", gaze_table.find, gaze_table.notes)

# By the name of the corpus. The synthetic one is written in DHF1K's layout.
CORPORA: dict[str, Layout] = {
    "dhf1k": Layout("DHF1K's layout", dhf1k.find), "hollywood2": Layout("Hollywood-2's layout", shots.find),
    "ucf-sports": Layout("UCF Sports' layout", shots.find), "avimos": _mouse("AViMoS's layout"),
    "ntire2026": _mouse("NTIRE 2026's layout, AViMoS's"), "gaze-table": _TABLE, "images": _TABLE,
    "videos": Layout("videos without gaze", gaze_table.find_videos, gaze_table.notes_on_videos),
    "photos": Layout("still images without gaze", stills.find_photos),
    "pans": Layout("still images, filmed by a simulated camera", stills.find_pans),
    "synthetic": Layout("a synthetic corpus", dhf1k.find),
}  # fmt: skip
SHOWN_ENTRIES = 6  # of a folder whose layout is not recognised
SEARCHED_FOLDERS = 50  # in such a folder


def check_folder(root: Path) -> None:
    """Raises UsageError unless the root of a corpus is a folder."""
    if not root.is_dir():
        raise UsageError(
            f"corpus root {root} is not a folder; give the folder of the corpus with --root, or as corpus.root in the recipe"
        )


def recognise(roots: Sequence[Path]) -> tuple[str, list[str]]:
    """The name of the corpus that the folders hold, `dhf1k` or `dhf1k,images` for several; and for each, what was found.

    Raises UsageError for a folder whose layout is not recognised, naming what is in it.
    """
    names, found = [], []
    for root in roots:
        check_folder(root)
        if (name := detect_corpus(root)) is None:
            raise UsageError(f"the layout of {root} is not recognised: {_contents(root)}; {_way_out(root)}")
        names.append(name)
        clips = CORPORA[name].find(root, Options(name=name))  # a table that cannot be used says why
        found.append(f"{root}: {CORPORA[name].about}, {counted(len(clips), 'clip')}; as --corpus {name}")
    return ",".join(names), found


def _contents(root: Path) -> str:
    entries = sorted(f"{path.name}{'/' * path.is_dir()}" for path in root.iterdir())
    more = f" and {len(entries) - SHOWN_ENTRIES} more" if len(entries) > SHOWN_ENTRIES else ""
    return f"it holds {', '.join(entries[:SHOWN_ENTRIES])}{more}" if entries else "it is empty"


def _way_out(root: Path) -> str:
    folders = sorted(path for path in root.iterdir() if path.is_dir())[:SEARCHED_FOLDERS]
    if inner := [str(folder) for folder in folders if detect_corpus(folder)]:
        one = f"--root {shlex.quote(inner[0])}"
        return (
            f"did you mean {one}?" if len(inner) == 1 else f"name one of {first_few([*map(shlex.quote, inner)])}, as in {one}"
        )
    return f"name it with --corpus ({', '.join(name for name in CORPORA if name != 'synthetic')}), or see corpora.md in this project's docs"


def detect_corpus(root: Path) -> str | None:
    """The name of the corpus whose layout `root` has, judging by the folders in it; None if it has none of them."""
    names = {path.name.lower() for path in root.iterdir()}
    if "traintestsplit.json" in names or any(name.startswith(("saliencyt", "fixationst")) for name in names):
        return "avimos"
    sides = ("training", "testing")
    first_shot = next((p.name for side in sides for p in root.glob(f"{side}/*") if (p / "images").is_dir()), "0")
    if not first_shot.isdigit():
        return "hollywood2" if first_shot.startswith("actionclip") else "ucf-sports"
    ordered = ("dhf1k", "gaze-table") if names & {"annotation", "frames"} else ("gaze-table", "dhf1k")
    for name in ordered:
        if _holds(root, name):
            return name
    # A table that cannot be used comes before videos without gaze, and an unknown one before nothing: opening it says why.
    if gaze_table.is_meant(root):
        return "gaze-table"
    if _holds(root, "videos"):
        return "videos"
    return "gaze-table" if gaze_table.holds_tables(root) else "dhf1k" if dhf1k.is_meant(root) else None


def _holds(root: Path, name: str) -> bool:
    try:
        return bool(CORPORA[name].find(root, Options(name=name)))
    except UsageError:
        return False

"""Layouts: how a corpus arranges its files, one module each; the corpora by name; which of them a folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distill.corpora.clips import Clip
from distill.corpora.layouts import avimos, dhf1k, gaze_table, shots, stills
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError


class Layout(NamedTuple):
    """`find(root, options)` lists the clips under a root; `notes(root, clips)` returns findings for the user; `sides(root)` is
    the file with an official split, if there is one."""

    find: Callable[[Path, Options], list[Clip]]
    notes: Callable[[Path, list[Clip]], list[str]] = lambda root, clips: []
    sides: Callable[[Path], list[Path]] = lambda root: []


_SHOTS, _MOUSE = Layout(shots.find), Layout(avimos.find, avimos.notes, lambda root: [root / avimos.SPLIT])
_DHF1K, _TABLE = Layout(dhf1k.find), Layout(gaze_table.find, gaze_table.notes)
_VIDEOS = Layout(gaze_table.find_videos, gaze_table.notes_on_videos)

# By the name of the corpus. The synthetic one is written in DHF1K's layout.
CORPORA: dict[str, Layout] = {
    "dhf1k": _DHF1K, "hollywood2": _SHOTS, "ucf-sports": _SHOTS, "avimos": _MOUSE, "ntire2026": _MOUSE,
    "gaze-table": _TABLE, "images": _TABLE, "videos": _VIDEOS, "photos": Layout(stills.find_photos),
    "pans": Layout(stills.find_pans), "synthetic": _DHF1K,
}  # fmt: skip


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
    return "gaze-table" if gaze_table.holds_tables(root) else None


def _holds(root: Path, name: str) -> bool:
    try:
        return bool(CORPORA[name].find(root, Options(name=name)))
    except UsageError:
        return False

"""Layouts: how a corpus arranges its files, one module each, and the corpora by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distill.corpora.entries import Entry
from distill.corpora.layouts import avimos, dhf1k, gaze_table, shots, videos
from distill.recipe.keys import Corpus as Options


class Layout(NamedTuple):
    """`find(root, options)` lists the clips under a root; `notes(root, entries)` says what a person should know of them."""

    find: Callable[[Path, Options], list[Entry]]
    notes: Callable[[Path, list[Entry]], list[str]] = lambda root, entries: []


_SHOTS, _MOUSE = Layout(shots.find), Layout(avimos.find, avimos.notes)
_DHF1K, _TABLE = Layout(dhf1k.find), Layout(gaze_table.find, gaze_table.notes)

# By the name of the corpus. The synthetic one is written in DHF1K's layout.
CORPORA: dict[str, Layout] = {
    "dhf1k": _DHF1K, "hollywood2": _SHOTS, "ucf-sports": _SHOTS, "avimos": _MOUSE, "ntire2026": _MOUSE,
    "gaze-table": _TABLE, "images": _TABLE, "videos": Layout(videos.find), "synthetic": _DHF1K,
}  # fmt: skip

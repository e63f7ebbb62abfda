"""Corpora: clips with eye-tracking ground truth. `open_corpus` finds and checks them, `split` divides them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from distill.config import did_you_mean
from distill.corpora import dhf1k
from distill.corpora.clips import Clip, Corpus, density_map, fixation_map
from distill.errors import UsageError
from distill.progress import cancelling_pool

__all__ = ["CORPORA", "Clip", "Corpus", "density_map", "fixation_map", "open_corpus", "split"]

# The corpora by name, and the layout each is read in: the synthetic one writes DHF1K's.
CORPORA = {"dhf1k": dhf1k, "synthetic": dhf1k}

Track = Callable[[Iterable[Clip | None], str, int], Iterable[Clip | None]]


def open_corpus(name: str, root: Path, skip: Sequence[str] = (), track: Track | None = None) -> Corpus:
    """Finds the clips under `root` and checks every one, decoding each video once to count its frames.

    Raises UsageError for an unknown corpus, a missing or empty root, or clips that cannot be used, which it names.
    """
    if name not in CORPORA:
        raise UsageError(f"unknown corpus '{name}'{did_you_mean(name, CORPORA)}")
    if not root.is_dir():
        raise UsageError(
            f"corpus root {root} is not a folder; give the folder that holds video/ and annotation/ with --root"
        )
    layout = CORPORA[name]
    found = layout.find(root)
    if unknown := set(skip) - {entry.id for entry in found}:
        raise UsageError(f"corpus.skip names {sorted(unknown)[0]}, which is not in {root}")
    found = [entry for entry in found if entry.id not in skip]
    if not found:
        raise UsageError(f"no clips left in {root} after corpus.skip")
    problems: dict[str, str] = {}

    def examine(entry: dhf1k.Entry) -> Clip | None:
        try:
            return layout.check(entry)
        except UsageError as error:
            problems[entry.id] = str(error)
            return None

    with cancelling_pool(2) as pool:
        results: Iterable[Clip | None] = pool.map(examine, found)
        clips = [clip for clip in (track(results, "corpus", len(found)) if track else results) if clip]
    if problems:
        first = min(problems)
        others = sorted(set(problems) - {first})
        more = f" ({len(others)} more clips have problems: {', '.join(others[:8])})" if others else ""
        raise UsageError(f"{problems[first]}; or leave it out: --set corpus.skip={first}{more}")
    return Corpus(name, str(root), layout.license_of(root), tuple(clips))


def split(
    corpus: Corpus, share: float, val_clips: Sequence[str] = (), groups: Path | None = None, seed: int = 0
) -> Corpus:
    """Holds clips out for validation, by group: `val_clips` if named, else about `share` of the annotated ones.

    Only annotated clips can be scored, so unannotated ones train. With a single annotated group there is nothing to hold
    out: it serves both sides, and `held_out` is False.
    """
    group_of = _read_groups(groups, corpus) if groups else {}
    clips = tuple(Clip(**{**asdict(c), "group": group_of.get(c.id, c.id)}) for c in corpus.clips)
    ids = {clip.id for clip in clips}
    if unknown := [i for i in val_clips if i not in ids]:
        raise UsageError(
            f"corpus.val_clips names '{unknown[0]}', which is not in {corpus.root}{did_you_mean(unknown[0], sorted(ids))}"
        )
    annotated = [clip for clip in clips if clip.annotated_frames]
    names = sorted({clip.group for clip in annotated})
    if val_clips:
        held = {clip.group for clip in clips if clip.id in val_clips}
    else:
        order = np.random.default_rng(seed).permutation(len(names))
        wanted, held = max(1, round(share * len(annotated))) if share > 0 else 0, set[str]()
        sizes = {name: sum(clip.group == name for clip in annotated) for name in names}
        for name in (names[i] for i in order):
            if sum(sizes[n] for n in held) + sizes[name] <= wanted:
                held.add(name)
        if wanted and not held:  # no group is small enough: the smallest comes nearest
            held.add(min(sizes, key=lambda n: sizes[n]))
    val = [clip.id for clip in annotated if clip.group in held and (not val_clips or clip.id in val_clips)]
    train = [clip.id for clip in clips if clip.group not in held]
    held_out = bool(train)
    if len(names) == 1 and held and not val_clips:
        train, val, held_out = [clip.id for clip in clips], [clip.id for clip in annotated], False
    if not train:
        raise UsageError("corpus: no clip is left to train on; hold fewer out with corpus.val or corpus.val_clips")
    return Corpus(corpus.name, corpus.root, corpus.license, clips, tuple(train), tuple(val), held_out)


def _read_groups(path: Path, corpus: Corpus) -> dict[str, str]:
    ids = {clip.id for clip in corpus.clips}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"corpus.groups {path} cannot be read: {error}") from None
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UsageError(f"corpus.groups {path}, row {number}: want `clip,group`, got {','.join(row)!r}")
        if row[0].strip() in ids:  # other rows may be of clips that are skipped
            groups[row[0].strip()] = row[1].strip()
    if not groups:
        raise UsageError(f"corpus.groups {path} names no clip of {corpus.root}")
    return groups

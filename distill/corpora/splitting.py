"""Which clips train and which are held out for validation: by name, by a corpus's official split, or a share of the groups."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

import numpy as np

from distill.corpora.clips import Clip, Corpus, check_known, counted
from distill.run.errors import UsageError


def split(
    corpus: Corpus, share: float, val_clips: Sequence[str] = (), groups: Path | None = None, seed: int = 0,
    official: bool = True,
) -> Corpus:  # fmt: skip
    """Holds clips out for validation: `val_clips` if given; else each part's official validation clips if it has any; else
    about `share` of its annotated clips, by group.

    Clips of an official test set belong to neither side and leave the corpus, unless `official` is False. Only annotated
    clips can be scored, so clips without annotation train. If there is only one annotated group in all, it serves both
    sides, and `held_out` is False. Raises UsageError for unknown names, or if no clip is left to train on.
    """
    group_of = _read_groups(groups, corpus) if groups else {}
    clips = tuple(replace(c, group=group_of.get(c.id, c.group or c.id)) for c in corpus.clips)
    check_known("corpus.val_clips", val_clips, {clip.id for clip in clips}, corpus.root)
    tested = {clip.id for clip in clips if official and clip.side == "test" and clip.id not in val_clips}
    clips = tuple(clip for clip in clips if clip.id not in tested)
    held: set[tuple[str, str]] = set()  # groups that are held out, with their part
    for part in corpus.weights or [""]:
        mine = [clip for clip in clips if not part or clip.corpus == part]
        if val_clips:
            held |= {(clip.corpus, clip.group) for clip in mine if clip.id in val_clips}
        elif official and any(clip.side == "val" and clip.annotated_frames for clip in mine):
            held |= {(clip.corpus, clip.group) for clip in mine if clip.side == "val"}
        else:
            annotated = [clip for clip in mine if clip.annotated_frames]
            held |= _share_of_groups(annotated, share, seed, only_part=len(corpus.weights) < 2)
    annotated = [clip for clip in clips if clip.annotated_frames]
    val = [c.id for c in annotated if (c.corpus, c.group) in held and (not val_clips or c.id in val_clips)]
    # A held-out image may be in another part as well, filmed by a camera.
    hidden = {realpath(clip.video) for clip in clips if (clip.corpus, clip.group) in held}
    train = [c.id for c in clips if (c.corpus, c.group) not in held and not hidden & set(map(realpath, (c.video, *c.shots)))]
    held_out = bool(train)
    if len({(clip.corpus, clip.group) for clip in annotated}) == 1 and held and not val_clips:
        train, val, held_out = [clip.id for clip in clips], [clip.id for clip in annotated], False
    if not train:
        raise UsageError("corpus: no clip is left to train on; hold fewer out with corpus.val or corpus.val_clips")
    notes = corpus.notes
    if tested:
        left_out = f"{counted(len(tested), 'clip')} of the official test set left out of the run"
        notes += (f"{left_out}; corpus.split=share includes them",)
    return replace(corpus, clips=clips, train=tuple(train), val=tuple(val), held_out=held_out, notes=notes)


def _share_of_groups(annotated: Sequence[Clip], share: float, seed: int, only_part: bool) -> set[tuple[str, str]]:
    """Groups of one part that hold about `share` of its clips; none if the part, one of several, has a single group."""
    sizes = Counter((clip.corpus, clip.group) for clip in annotated)
    names = sorted(sizes)
    if not names or share <= 0 or (len(names) == 1 and not only_part):
        return set()
    target, held = max(1, round(share * len(annotated))), set[tuple[str, str]]()
    for name in (names[i] for i in np.random.default_rng(seed).permutation(len(names))):
        if sum(sizes[other] for other in held) + sizes[name] <= target:
            held.add(name)
    return held or {min(names, key=lambda name: sizes[name])}  # every group is too large: the smallest comes closest


def _read_groups(path: Path, corpus: Corpus) -> dict[str, str]:
    """Each clip's group. The file may name a clip of a mixed corpus as its part does, if no other part has that name."""
    ids_of: dict[str, list[str]] = {}
    for clip in corpus.clips:
        for name in {clip.id, clip.name}:
            ids_of.setdefault(name, []).append(clip.id)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"corpus.groups {path} cannot be read: {error}") from None
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UsageError(f"corpus.groups {path}, row {number}: must be `clip,group`, got {','.join(row)!r}")
        ids = ids_of.get(row[0].strip(), [])  # none where the row names a clip that is skipped
        if len(ids) > 1:
            raise UsageError(f"corpus.groups {path}, row {number}: {row[0]} may be {' or '.join(ids)}; give the full id")
        groups |= dict.fromkeys(ids, row[1].strip())
    if not groups:
        raise UsageError(f"corpus.groups {path} names no clip of {corpus.root}")
    return groups

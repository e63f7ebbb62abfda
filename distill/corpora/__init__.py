"""Corpora: clips with eye-tracking ground truth. `open_corpus` finds and checks them, `split` divides them.

A corpus may have several parts, `dhf1k:1,images:0.5` with a root for each. A clip then is called PART.CLIP, and
`Corpus.weights` says how much each part counts when training draws clips.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from distill.corpora.clips import Clip, Corpus, density_map, fixation_map, fixation_points
from distill.corpora.entries import ODD_MAPS, UNANNOTATED, WITHOUT_FRAME, Entry, print_of
from distill.corpora.gaze import Points
from distill.corpora.layouts import avimos, dhf1k, gaze_table, shots, videos
from distill.recipe import keys
from distill.recipe.files import did_you_mean
from distill.run.errors import UsageError
from distill.run.progress import cancelling_pool

__all__ = [
    "CORPORA", "Clip", "Corpus", "Part", "Points", "Survey", "density_map", "fingerprints", "fixation_map",
    "fixation_points", "open_corpus", "parts_of", "split", "survey",
]  # fmt: skip

# The corpora by name, and the layout each is read in: `find(root, options)`, `check(entry)`, `license_of(root)`, and
# `remarks(root, entries)` where there is something to tell. The synthetic one writes DHF1K's.
CORPORA: dict[str, ModuleType] = {
    "dhf1k": dhf1k, "hollywood2": shots, "ucf-sports": shots, "avimos": avimos, "ntire2026": avimos,
    "gaze-table": gaze_table, "images": gaze_table, "videos": videos, "synthetic": dhf1k,
}  # fmt: skip

Track = Callable[[Iterable[Clip | None], str, int], Iterable[Clip | None]]
Roots = str | Path | Sequence[str | Path]

EVERY_CLIP = (UNANNOTATED, WITHOUT_FRAME, ODD_MAPS)  # troubles that a person must look into, clip by clip


@dataclass(frozen=True)
class Part:
    """One of the corpora that are trained on together."""

    name: str  # as it is called here: its corpus, with a number where that occurs twice
    corpus: str
    weight: float
    root: Path

    @property
    def layout(self) -> ModuleType:
        return CORPORA[self.corpus]


@dataclass(frozen=True)
class Survey:
    """What is under the roots: the usable clips as a corpus, and what is wrong with the others, by id."""

    corpus: Corpus
    problems: dict[str, str]


def parts_of(name: str, roots: Roots) -> list[Part]:
    """The parts that `dhf1k` or `dhf1k:1,images:0.5` names, with their roots in that order.

    Raises UsageError for an unknown corpus, a weight that is no positive number, or another number of roots.
    """
    named = [part.strip().partition(":") for part in name.split(",")]
    folders = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
    if len(folders) != len(named):
        raise UsageError(
            f"corpus '{name}' has {len(named)} part{'s' if named[1:] else ''}, and there {'are' if len(folders) != 1 else 'is'} "
            f"{len(folders)} --root; give one for each, in the same order"
        )
    parts: list[Part] = []
    for (corpus, colon, text), root in zip(named, folders, strict=True):
        if corpus not in CORPORA:
            raise UsageError(f"unknown corpus '{corpus}'{did_you_mean(corpus, CORPORA)}")
        if named[1:] and corpus == "synthetic":
            raise UsageError("the synthetic corpus stands alone; write it first, and give its folder as dhf1k")
        try:
            weight = float(text) if colon else 1.0
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UsageError(
                f"corpus '{corpus}' has the weight '{text}'; want a number above 0, as in dhf1k:1,images:0.5"
            )
        before = sum(part.corpus == corpus for part in parts)
        parts.append(Part(f"{corpus}-{before + 1}" if before else corpus, corpus, weight, root))
    return parts


def find(parts: Sequence[Part], options: keys.Corpus) -> dict[str, tuple[Part, Entry]]:
    """The clips of all parts by id, as they stand there, less those in `options.skip`; nothing is decoded.

    Raises UsageError for a missing or empty root, or for a name in `options.skip` that no clip has.
    """
    found: dict[str, tuple[Part, Entry]] = {}
    for part in parts:
        if not part.root.is_dir():
            raise UsageError(
                f"corpus root {part.root} is not a folder; give the folder that holds the corpus with --root"
            )
        for entry in part.layout.find(part.root, replace(options, name=part.corpus)):
            found[f"{part.name}.{entry.id}" if parts[1:] else entry.id] = part, entry
    where = ", ".join(str(part.root) for part in parts)
    if unknown := set(options.skip) - set(found):
        name = min(unknown)
        raise UsageError(f"corpus.skip names {name}, which is not in {where}{nearest(name, found)}")
    found = {name: clip for name, clip in found.items() if name not in options.skip}
    if not found:
        raise UsageError(f"no clips left in {where} after corpus.skip")
    return found


def survey(name: str, roots: Roots, options: keys.Corpus | None = None, track: Track | None = None) -> Survey:
    """Checks every clip, decoding each video once to count its frames; what cannot be used is told and left out."""
    options = options or keys.Corpus()
    parts = parts_of(name, roots)
    found = find(parts, options)
    problems: dict[str, str] = {}

    def examine(item: tuple[str, tuple[Part, Entry]]) -> Clip | None:
        clip_id, (part, entry) = item
        try:
            clip: Clip = part.layout.check(entry)
        except UsageError as error:
            problems[clip_id] = str(error)
            return None
        return replace(clip, id=clip_id, corpus=part.name)

    with cancelling_pool(2) as pool:
        results: Iterable[Clip | None] = pool.map(examine, found.items())
        clips = tuple(clip for clip in (track(results, "corpus", len(found)) if track else results) if clip)
    notes = []
    for part in parts:
        if remarks := getattr(part.layout, "remarks", None):
            notes += remarks(part.root, [entry for its, entry in found.values() if its is part])
    licenses = dict.fromkeys(part.layout.license_of(part.root) for part in parts)
    corpus = Corpus(
        name, "; ".join(licenses), clips, roots={part.name: str(part.root) for part in parts},
        weights={part.name: part.weight for part in parts}, notes=(*notes, *_troubles(clips)),
    )  # fmt: skip
    return Survey(corpus, {clip_id: problems[clip_id] for clip_id in found if clip_id in problems})


def open_corpus(
    name: str, root: Roots, skip: Sequence[str] = (), track: Track | None = None, options: keys.Corpus | None = None
) -> Corpus:
    """Finds the clips under `root` (one per part of `name`) and checks every one, decoding each video once.

    Raises UsageError for an unknown corpus, a missing or empty root, or clips that cannot be used: all of them are named.
    """
    options = options or keys.Corpus()
    found = survey(name, root, replace(options, skip=(*options.skip, *skip)), track)
    if problems := found.problems:
        first, *others = problems
        more = f" ({len(others)} more clips have problems: {', '.join(others)})" if others else ""
        raise UsageError(f"{problems[first]}; or leave it out: --set corpus.skip={','.join(problems)}{more}")
    return found.corpus


def nearest(word: str, clips: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a clip is near: a corpus has too many to list them."""
    near = difflib.get_close_matches(word, list(clips), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def fingerprints(parts: Sequence[Part], options: keys.Corpus) -> dict[str, list[object]]:
    """What tells that a part's files changed, by its root: names, sizes and counts, also of clips that are left out."""
    prints: dict[str, list[object]] = {str(part.root): [] for part in parts}
    for part, entry in find(parts, replace(options, skip=())).values():
        prints[str(part.root)].append(print_of(entry))
    return prints


def _troubles(clips: Sequence[Clip]) -> list[str]:
    """One line for each kind of trouble: how often, and in which clips."""
    found: dict[str, Counter[str]] = {}
    for clip in clips:
        for kind, count in clip.troubles.items():
            found.setdefault(kind, Counter())[clip.id] += count
    lines = []
    for kind, counts in found.items():
        shown = list(counts) if kind in EVERY_CLIP else list(counts)[:8]
        where = ", ".join(f"{clip_id}: {counts[clip_id]:,}" for clip_id in shown)
        more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        many = f"{len(counts)} clips" if len(counts) > 1 else "1 clip"
        dropped = "" if kind in EVERY_CLIP else " dropped"
        lines.append(f"{kind}: {counts.total():,}{dropped}, in {many} ({where}{more})")
    return lines


# --- who trains and who is held out ----------------------------------------------------------------------------------


def split(
    corpus: Corpus,
    share: float,
    val_clips: Sequence[str] = (),
    groups: Path | None = None,
    seed: int = 0,
    official: bool = True,
) -> Corpus:
    """Holds clips out for validation: `val_clips` if named, else each part's own validation clips where it has some, else
    about `share` of its annotated clips, by group.

    Clips of a part's test side stay out of both and leave the corpus, unless `official` is False. Only annotated clips can
    be scored, so unannotated ones train. With a single annotated group in all there is nothing to hold out: it serves both
    sides, and `held_out` is False.
    """
    group_of = _read_groups(groups, corpus) if groups else {}
    clips = tuple(replace(c, group=group_of.get(c.id, c.group or c.id)) for c in corpus.clips)
    ids = {clip.id for clip in clips}
    if unknown := [i for i in val_clips if i not in ids]:
        raise UsageError(
            f"corpus.val_clips names '{unknown[0]}', which is not in {corpus.root}{nearest(unknown[0], sorted(ids))}"
        )
    tested = {clip.id for clip in clips if official and clip.side == "test" and clip.id not in val_clips}
    clips = tuple(clip for clip in clips if clip.id not in tested)
    held: set[tuple[str, str]] = set()  # groups, with their part
    for part in corpus.weights or [""]:
        mine = [clip for clip in clips if not part or clip.corpus == part]
        if val_clips:
            held |= {(clip.corpus, clip.group) for clip in mine if clip.id in val_clips}
        elif official and any(clip.side == "val" and clip.annotated_frames for clip in mine):
            held |= {(clip.corpus, clip.group) for clip in mine if clip.side == "val"}
        else:
            held |= _held_out([clip for clip in mine if clip.annotated_frames], share, seed, len(corpus.weights) < 2)
    annotated = [clip for clip in clips if clip.annotated_frames]
    val = [c.id for c in annotated if (c.corpus, c.group) in held and (not val_clips or c.id in val_clips)]
    train = [clip.id for clip in clips if (clip.corpus, clip.group) not in held]
    held_out = bool(train)
    if len({(clip.corpus, clip.group) for clip in annotated}) == 1 and held and not val_clips:
        train, val, held_out = [clip.id for clip in clips], [clip.id for clip in annotated], False
    if not train:
        raise UsageError("corpus: no clip is left to train on; hold fewer out with corpus.val or corpus.val_clips")
    notes = corpus.notes
    if tested:
        many = f"{len(tested)} clips" if len(tested) > 1 else "1 clip"
        notes += (f"{many} of the official test side left out of the run; corpus.split=share takes them in",)
    return replace(corpus, clips=clips, train=tuple(train), val=tuple(val), held_out=held_out, notes=notes)


def _held_out(annotated: Sequence[Clip], share: float, seed: int, alone: bool) -> set[tuple[str, str]]:
    """Groups of one part, as many as hold about `share` of its clips; none where that would take the part's only one."""
    sizes = Counter((clip.corpus, clip.group) for clip in annotated)
    names = sorted(sizes)
    if not names or share <= 0 or (len(names) == 1 and not alone):
        return set()
    wanted, held = max(1, round(share * len(annotated))), set[tuple[str, str]]()
    count = 0
    for name in (names[i] for i in np.random.default_rng(seed).permutation(len(names))):
        if count + sizes[name] <= wanted:
            held.add(name)
            count += sizes[name]
    return held or {min(names, key=lambda name: sizes[name])}  # no group is small enough: the smallest comes nearest


def _read_groups(path: Path, corpus: Corpus) -> dict[str, str]:
    """Each clip's group. A clip of a mixed corpus may go by its name in its part, where no other part has that name."""
    named: dict[str, list[str]] = {}
    for clip in corpus.clips:
        for name in {clip.id, clip.name}:
            named.setdefault(name, []).append(clip.id)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"corpus.groups {path} cannot be read: {error}") from None
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UsageError(f"corpus.groups {path}, row {number}: want `clip,group`, got {','.join(row)!r}")
        clips = named.get(row[0].strip(), [])  # other rows may be of clips that are skipped
        if len(clips) > 1:
            raise UsageError(f"corpus.groups {path}, row {number}: {row[0]} may be {' or '.join(clips)}; write which")
        groups |= dict.fromkeys(clips, row[1].strip())
    if not groups:
        raise UsageError(f"corpus.groups {path} names no clip of {corpus.root}")
    return groups

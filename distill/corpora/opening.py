"""Opening a corpus: its parts, the clips under each root, and the check of every clip.

Finding lists files and decodes nothing; checking decodes each video once. `open_corpus` refuses a corpus with unusable
clips; `survey` reports them instead.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.corpora.checking import EMPTY, MANY, ODD_MAPS, REBUILT, UNANNOTATED, UNUSABLE, WITHOUT_FRAME, check, license_of
from distill.corpora.clips import Clip, Corpus, check_known, counted, did_you_mean_clip, first_few, leaving_out
from distill.corpora.gaze import FULL, GREY, JPEG
from distill.corpora.layouts import CORPORA, check_folder
from distill.corpora.video import REPAIRED, UNDECODED
from distill.recipe import keys
from distill.recipe.files import did_you_mean
from distill.run.errors import UsageError
from distill.run.progress import cancelling_pool

Roots = str | Path | Sequence[str | Path]
# Wraps the clips while they are checked, to show progress: (clips, title, how many).
Track = Callable[[Iterable[Clip | None], str, int], Iterable[Clip | None]]

SHOWN_CLIPS = 8  # in a note about dropped points
EVERY_CLIP = (UNANNOTATED, WITHOUT_FRAME, ODD_MAPS, REBUILT, EMPTY, MANY, FULL, GREY, JPEG, UNDECODED, REPAIRED, UNUSABLE)
"""Kinds of which a note names all clips, for the user must look at each; points of other kinds were dropped."""


@dataclass(frozen=True)
class Part:
    """One of the corpora that are trained on together."""

    name: str  # the name of its corpus, with a number if that occurs twice
    corpus: str
    weight: float
    root: Path

    @property
    def license(self) -> str:
        return license_of(self.root)


def parts_of(name: str, roots: Roots) -> list[Part]:
    """The parts that `dhf1k` or `dhf1k:1,images:0.5` names, with their roots in the same order.

    Raises UsageError for an unknown corpus, a weight that is not a positive number, or a wrong number of roots.
    """
    named = [part.strip().partition(":") for part in name.split(",")]
    folders = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
    if len(folders) != len(named):
        given = f"has {counted(len(named), 'part')}, and --root names {counted(len(folders), 'folder')}"
        raise UsageError(f"corpus '{name}' {given}; give one for each, in the same order")
    parts: list[Part] = []
    for (corpus, colon, text), root in zip(named, folders, strict=True):
        if corpus not in CORPORA:
            raise UsageError(f"unknown corpus '{corpus}'{did_you_mean(corpus, CORPORA)}")
        if named[1:] and corpus == "synthetic":
            raise UsageError("the synthetic corpus cannot be a part of others; write it first and give its folder as dhf1k")
        try:
            weight = float(text) if colon else 1.0
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise UsageError(f"corpus '{corpus}' has the weight '{text}'; give a number above 0, as in dhf1k:1,images:0.5")
        layout = CORPORA[corpus].find
        if any(CORPORA[part.corpus].find is layout and part.root.resolve() == root.resolve() for part in parts):
            raise UsageError(f"corpus '{name}' names {root} twice; give it once, with a larger weight: {corpus}:2")
        same = sum(part.corpus == corpus for part in parts)
        parts.append(Part(f"{corpus}-{same + 1}" if same else corpus, corpus, weight, root))
    return parts


def find(parts: Sequence[Part], options: keys.Corpus) -> dict[str, tuple[Part, Clip]]:
    """The clips of all parts by id, except those in `options.skip`; nothing is decoded.

    Raises UsageError for a missing or empty root, or for a name in `options.skip` that no clip has.
    """
    found: dict[str, tuple[Part, Clip]] = {}
    for part in parts:
        check_folder(part.root)
        for entry in CORPORA[part.corpus].find(part.root, replace(options, name=part.corpus)):
            clip = replace(entry, id=_text(entry.id), name=_text(entry.name))
            found[f"{part.name}.{clip.id}" if parts[1:] else clip.id] = part, clip
    roots = ", ".join(str(part.root) for part in parts)
    check_known("corpus.skip", options.skip, found, roots)
    if not (left := {name: clip for name, clip in found.items() if name not in options.skip}):
        raise UsageError(f"no clips left in {roots} after corpus.skip")
    return left


def _text(name: str) -> str:
    """The name with bytes that are not UTF-8 escaped, `caf\\xe9`: ids go into recipes, CSV and ONNX files, which hold only text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def survey(
    name: str, roots: Roots, options: keys.Corpus | None = None, track: Track | None = None, thorough: bool = False,
    only: Sequence[str] = (),
) -> tuple[Corpus, dict[str, str]]:  # fmt: skip
    """Checks every clip, decoding each video once: the usable clips as a corpus, and the problems of the others, by id.
    `thorough` reads all fixation maps and density maps. `only`: the ids of the clips that are wanted, in this order; the others are
    not opened. Raises UsageError where one of them is not there."""
    options = options or keys.Corpus()
    parts = parts_of(name, roots)
    found = find(parts, options)
    if missing := [clip_id for clip_id in only if clip_id not in found]:
        where = ", ".join(str(part.root) for part in parts)
        raise UsageError(f"there is no clip '{missing[0]}' in {where}{did_you_mean_clip(missing[0], found)}")
    wanted = {clip_id: found[clip_id] for clip_id in only or found}
    problems: dict[str, str] = {}

    def examine(item: tuple[str, tuple[Part, Clip]]) -> Clip | None:
        clip_id, (part, clip) = item
        try:
            return replace(check(clip, thorough), id=clip_id, corpus=part.name)
        except UsageError as error:
            problems[clip_id] = str(error)
            return None

    with cancelling_pool(2) as pool:
        results: Iterable[Clip | None] = pool.map(examine, wanted.items())
        clips = tuple(clip for clip in (track(results, "corpus", len(wanted)) if track else results) if clip)
    notes: list[str] = []
    for part in parts:
        notes += CORPORA[part.corpus].notes(part.root, [clip for owner, clip in found.values() if owner is part])
    licence = "; ".join(dict.fromkeys(part.license for part in parts))
    folders, weights = {part.name: str(part.root) for part in parts}, {part.name: part.weight for part in parts}
    if varied := [clip.id for clip in clips if clip.times]:
        what = "gaze and sampled frames follow the frames' time stamps, the windows of teachers their median rate"
        notes.append(f"variable frame rate in {counted(len(varied), 'clip')} ({first_few(varied)}): {what}")
    corpus = Corpus(name, licence, clips, roots=folders, weights=weights, notes=(*notes, *_notes_on(clips)))
    return corpus, {clip_id: problems[clip_id] for clip_id in found if clip_id in problems}


def open_corpus(
    name: str, root: Roots, track: Track | None = None, options: keys.Corpus | None = None, only: Sequence[str] = ()
) -> Corpus:
    """Finds the clips under `root` (one per part of `name`) and checks each of them, decoding each video once.

    options: its root is not used, but its `skip`, `fps` and `mouse_lag_ms` are. only: see `survey`.
    Raises UsageError for an unknown corpus, a missing or empty root, or clips that cannot be used.
    """
    corpus, problems = survey(name, root, options, track, only=only)
    if problems:
        first, *others = problems
        more = f" ({counted(len(others), 'more clip')} with problems: {first_few(others)})" if others else ""
        raise UsageError(f"{problems[first]}{more}; or {leaving_out(problems)}")
    return corpus


def sources(parts: Sequence[Part], options: keys.Corpus) -> dict[str, list[Path]]:
    """The files and folders that each part's clips are read from, by its root, skipped clips included."""
    found: dict[str, list[Path]] = {str(part.root): CORPORA[part.corpus].sides(part.root) for part in parts}
    for part, clip in find(parts, replace(options, skip=())).values():
        found[str(part.root)] += [Path(path) for path in (clip.video, *clip.shots, clip.fixations, clip.maps) if path]
    return found


def _notes_on(clips: Sequence[Clip]) -> list[str]:
    """One line for each kind of problem: how often it occurs, and in which clips."""
    lines = []
    for kind in dict.fromkeys(kind for clip in clips for kind in clip.troubles):
        counts = {clip.id: clip.troubles[kind] for clip in clips if kind in clip.troubles}
        shown, dropped = (len(counts), "") if kind in EVERY_CLIP else (SHOWN_CLIPS, " dropped")
        where = ", ".join(f"{clip_id}: {count:,}" for clip_id, count in list(counts.items())[:shown])
        more = f" and {len(counts) - shown} more" if len(counts) > shown else ""
        lines.append(f"{kind}: {sum(counts.values()):,}{dropped}, in {counted(len(counts), 'clip')} ({where}{more})")
    return lines

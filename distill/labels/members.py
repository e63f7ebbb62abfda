"""Parses a recipe's [teacher] section: teachers, sizes, weights files; reports what is missing before a run. Torch-free.

    teacher.name = "unisal"                    one teacher
    teacher.name = "unisal:2+tased:1"          an ensemble: weighted mean of logits, unisal counts twice

    teacher.weights = ["unisal=weights_best.pth", "tased=TASED_v2.pt"]       local files; the catalogue names the authors' pages
    teacher.weights = ["visage.base=internvideo2.pt", "visage.expert1=...", "visage.expert2=..."], teacher.size = ["6B"]
    teacher.weights = ["unisal=weights_ft_mit1003.pth"]                      no such file here: the fetched one, from the cache
    teacher.weights = ["salfom=random"]                                      random weights, for a smoke test

`members` parses this, `with_published` adds the published weights where none are named, `check` reports what is missing, `source`
says where the weights come from.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from distill.labels import fetched
from distill.labels.catalogue import Entry, Published, entries, part_name
from distill.recipe.files import did_you_mean
from distill.recipe.keys import Recipe, Teacher
from distill.run.errors import UsageError

RANDOM = "random"
END_BYTES = 1_000_000  # of a weights file, hashed at its start and at its end


@dataclass(frozen=True)
class Member:
    """One teacher of a recipe. `files` maps each part to a path, to `random`, or to "" where none is given."""

    entry: Entry
    weight: float
    files: dict[str, str]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def given(self) -> dict[str, str]:
        """The files that are given, by their names in teacher.weights."""
        return {part_name(self.name, part): file for part, file in self.files.items() if file}

    @property
    def random(self) -> list[str]:
        """The names in teacher.weights of parts with random weights."""
        return [name for name, file in self.given.items() if file == RANDOM]

    def path(self, part: str = "") -> Path | None:
        """A part's weights file; None for random weights or where none is given."""
        return None if self.files[part] in ("", RANDOM) else Path(self.files[part])


def members(options: Teacher) -> tuple[Member, ...]:
    """The teachers that a recipe names, in order. Raises UsageError for an unknown name, size or weights entry."""
    names, weights = [], []
    for term in options.name.split("+"):
        name, colon, weight = term.strip().partition(":")
        entries(name)  # refuses an unknown name
        names.append(name)
        weights.append(_weight(weight, options.name) if colon else 1.0)
    if len(names) > 1 and "maps" in names:
        raise UsageError("teacher maps reads stored labels and cannot join an ensemble; use it alone, or remove it")
    sizes = _by_name("teacher.size", options.size, names)
    chosen = [_entry(name, next(sizes[name], "")) for name in names]
    needed = [part_name(entry.name, part) for entry in chosen for part in entry.files]
    optional = [part_name(entry.name, part) for entry in chosen for part in entry.more]
    files = _by_name("teacher.weights", _expand_random(options.weights, chosen), needed, optional)
    return tuple(
        Member(
            entry,
            weight,
            {part: _file(entry, next(files[part_name(entry.name, part)], "")) for part in (*entry.files, *entry.more)},
        )
        for entry, weight in zip(chosen, weights, strict=True)
    )


def _file(entry: Entry, file: str) -> str:
    """The path of a file in teacher.weights: the name of a published file means the one in the cache."""
    return next((str(fetched.path_of(entry.name, known)) for known in entry.published if known.name == file), file)


def _published(member: Member, file: str) -> Published | None:
    """The published file whose place in the cache `file` is."""
    return next((known for known in member.entry.published if str(fetched.path_of(member.name, known)) == file), None)


def fetched_files(options: Teacher) -> list[str]:
    """The files of the cache that the teachers use."""
    return [file for member in members(options) for file in member.given.values() if _published(member, file)]


def _weight(text: str, name: str) -> float:
    with suppress(ValueError):
        if 0 < (weight := float(text)) < math.inf:
            return weight
    raise UsageError(f"teacher.name '{name}': '{text}' is not a weight; write NAME:NUMBER with a number above 0")


def _entry(name: str, size: str) -> Entry:
    sizes = {entry.size: entry for entry in entries(name)}
    if size and size not in sizes:
        known = ", ".join(filter(None, sizes))
        raise UsageError(f"teacher {name} has no size '{size}'; " + (f"sizes: {known}" if known else "leave it out"))
    return sizes[size] if size else next(iter(sizes.values()))


def _expand_random(weights: Sequence[str], chosen: Sequence[Entry]) -> list[str]:
    """NAME=random, or `random` alone, becomes one entry per part for a teacher of several files."""
    several = {f"{entry.name}={RANDOM}": entry for entry in chosen if len(entry.files) > 1}
    if len(chosen) == 1 and several:
        several[RANDOM] = chosen[0]
    result = []
    for text in weights:
        entry = several.get(text)
        result += [f"{part_name(entry.name, part)}={RANDOM}" for part in entry.files] if entry else [text]
    return result


def _by_name(key: str, values: Sequence[str], needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Iterator[str]]:
    """NAME=VALUE entries by name, in order. A VALUE without a name goes to the only name needed, if there is one."""
    names, result = (*needed, *optional), dict[str, list[str]]()
    for text in values:
        match = re.fullmatch(r"([\w.]+)=(.+)", text)
        name, value = (match[1], match[2]) if match else ("", text)
        if not name and len(set(needed)) != 1:
            raise UsageError(
                f"{key}: which teacher is '{text}' for? write NAME={text}, where NAME is {' or '.join(needed) or 'a teacher'}"
            )
        name = name or needed[0]
        if name not in names:
            raise UsageError(f"{key}: unknown name '{name}'{did_you_mean(name, names)}")
        result.setdefault(name, []).append(value)
        if len(result[name]) > names.count(name):
            raise UsageError(f"{key} gives {text}, but teacher.name has no further '{name}'")
    return {name: iter(result.get(name, ())) for name in names}


def trained_here(recipe: Recipe, member: Member) -> bool:
    """Whether the run trains this teacher: the tiny visage without a file, and with teach.finetune visage and unisal."""
    tiny = member.entry.title == "visage tiny"
    return not member.files[""] if tiny else recipe.teach.finetune and member.name in ("visage", "unisal")


def with_published(recipe: Recipe) -> Recipe:
    """The recipe with the first published file of every teacher that names no weights, unless the run trains it."""
    missing = [
        f"{part_name(member.name, '')}={member.entry.published[0].name}"
        for member in members(recipe.teacher)
        if member.entry.published and not member.files[""] and not trained_here(recipe, member)
    ]
    return replace(recipe, teacher=replace(recipe.teacher, weights=(*recipe.teacher.weights, *missing))) if missing else recipe


def check(recipe: Recipe) -> None:
    """Raises UsageError for every error in a recipe's teacher that can be detected before a run starts."""
    options = recipe.teacher
    team = members(options)
    for member in team:
        lacking = [part_name(member.name, part) for part in member.entry.files if not member.files[part]]
        if trained_here(recipe, member):  # a trunk is required, weights to start from are not
            lacking = [name for name in lacking if name == "visage.base"]
        if lacking:
            raise UsageError(_missing_weights_message(member, lacking))
        if member.name == "onnx" and member.random:
            raise UsageError("teacher onnx has no random weights; name an ONNX file in teacher.weights")
        for name, file in member.given.items():
            if published := _published(member, file):
                if not Path(file).exists():
                    raise UsageError(_missing_weights_message(member, [name], file))
                if fetched.state(member.name, published) != "fetched":
                    way_out = f"remove it, then `distill teachers fetch {member.name}`"
                    raise UsageError(f"{file} is not the published file, whose SHA-256 is {published.sha256}; {way_out}")
            elif file != RANDOM and not Path(file).is_file():
                problem = "is a folder" if Path(file).is_dir() else "does not exist"
                raise UsageError(f"teacher.weights {name}={file} {problem}; name a weights file")
    if options.calibration and not Path(options.calibration).is_file():
        raise UsageError(f"teacher.calibration {options.calibration} does not exist; `distill teach calibrate` writes one")
    if options.flip and options.name == "maps":
        raise UsageError("teacher.flip mirrors the frames that a teacher sees, and teacher maps sees none; leave it out")
    if recipe.teach.finetune and not any(trained_here(recipe, m) and m.entry.size != "tiny" for m in team):
        raise UsageError("teach.finetune is for unisal and for visage of a published size: --set teacher.size=6B, or another")


def _missing_weights_message(member: Member, lacking: Sequence[str], at: str = "") -> str:
    """at: where the cache lacks a published file."""
    given = ",".join(f"{part}=FILE" for part in lacking)
    fetch = (
        f"`distill teachers fetch {member.name}`{f' puts {Path(at).name} at {at}' if at else ''}, or "
        if member.entry.published
        else ""
    )
    page = f"; the authors' page is {member.entry.page}" if member.entry.page else ""
    smoke_test = "" if member.name == "onnx" else "; `random` in place of a file is enough for a smoke test"
    train = ", teach.finetune=true trains it here" if {"visage.expert1", "unisal"} & {*lacking} else ""
    return f"teacher {member.entry.title} needs its weights: {fetch}--set teacher.weights={given}{page}{smoke_test}{train}"


def file_names(options: Teacher) -> list[str]:
    """teacher.weights without folders: NAME=FILE."""
    given = [item for member in members(options) for item in member.given.items()]
    return [f"{name}={Path(file).name}" for name, file in given]


def weights_fingerprints(options: Teacher) -> dict[str, str]:
    """A hash of each weights file's size, start and end. The end of a zip archive, as torch writes, holds all checksums."""
    fingerprints = {}
    for name, file in [item for member in members(options) for item in member.given.items()]:
        if file != RANDOM:
            with Path(file).open("rb") as content:
                size = content.seek(0, 2)
                digest = hashlib.sha256(str(size).encode())
                for start in (0, max(0, size - END_BYTES)):
                    content.seek(start)
                    digest.update(content.read(END_BYTES))
            fingerprints[f"the weights {name}={file}"] = digest.hexdigest()[:16]
    return fingerprints


def map_folders(options: Teacher) -> list[Path]:
    """The folders in teacher.maps, which is one or a list."""
    return [Path(f) for f in ([options.maps] if isinstance(options.maps, str) else options.maps) if f]


def map_store(options: Teacher) -> Path | None:
    """The label store that teacher.maps names, or None where it names folders of maps."""
    folders = map_folders(options)
    return folders[0] if len(folders) == 1 and (folders[0] / "store.json").is_file() else None


def source(recipe: Recipe) -> str:
    """Where the teacher's weights come from, for the user: `2 x unisal, weights_best.pth; 1 x tased, RANDOM WEIGHTS`."""
    team = members(recipe.teacher)
    parts = [f"{f'{m.weight:g} x ' if len(team) > 1 else ''}{member_source(recipe, m)}" for m in team]
    calibration = Path(recipe.teacher.calibration).name
    mirrored = "; mirrored as well" if recipe.teacher.flip else ""
    return "; ".join(parts) + mirrored + (f"; calibrated by {calibration}" if calibration else "")


def member_source(recipe: Recipe, member: Member) -> str:
    """The same of one teacher: `unisal, weights_best.pth`."""
    if member.name == "maps":
        return f"maps, {'+'.join(folder.name for folder in map_folders(recipe.teacher))}"
    names = ["RANDOM WEIGHTS" if file == RANDOM else Path(file).name for file in member.given.values()]
    files = ", ".join(dict.fromkeys(names))
    if trained_here(recipe, member):
        files = "trained in this run" + (f" from {files}" if files else "")
    static = recipe.teacher.static if member.name == "unisal" else 0
    return f"{member.entry.title}, {files}" + (f", static path {static:g}" if static else "")

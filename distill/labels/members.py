"""Parses a recipe's [teacher] section: teachers, sizes, weights files; reports what is missing before a run. Torch-free.

    teacher.name = "unisal"                    one teacher
    teacher.name = "unisal:2+tased:1"          an ensemble: weighted mean of logits, unisal counts twice
    teacher.name = "unisal@DHF1K"              a variant of unisal: its domain
    teacher.parts = ["images=unisal@SALICON"]  a part of the corpus with a teacher of its own

    teacher.weights = ["unisal=weights_best.pth", "tased=TASED_v2.pt"]       local files; the catalogue names the authors' pages
    teacher.weights = ["visage.base=internvideo2.pt", "visage.expert1=...", "visage.expert2=..."], teacher.size = ["6B"]
    teacher.weights = ["unisal=weights_best.pth", "unisal@SALICON=weights_ft_mit1003.pth"]     the second for one variant alone
    teacher.weights = ["unisal=weights_ft_mit1003.pth"]                      no such file here: the fetched one, from the cache
    teacher.weights = ["salfom=random"]                                      random weights, for a smoke test

`teams` parses this, `with_published` adds the published weights where none are named, `check` reports what is missing, `source`
says where the weights come from.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from distill.labels import fetched
from distill.labels.catalogue import Entry, Published, entries, part_name
from distill.recipe.files import did_you_mean
from distill.recipe.keys import Recipe, Teacher
from distill.run.errors import UsageError

RANDOM = "random"


@dataclass(frozen=True)
class Member:
    """One teacher of a recipe. `files` maps each part to a path, to `random`, or to "" where none is given."""

    entry: Entry
    weight: float
    files: dict[str, str]
    variant: str = ""

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def full_name(self) -> str:
        """With its variant: `unisal@SALICON`."""
        return variant_name(self.name, self.variant)

    @property
    def given(self) -> dict[str, str]:
        """The files that are given, by their names in teacher.weights."""
        return {part_name(self.full_name, part): file for part, file in self.files.items() if file}

    @property
    def random(self) -> list[str]:
        """The names in teacher.weights of parts with random weights."""
        return [name for name, file in self.given.items() if file == RANDOM]

    def path(self, part: str = "") -> Path | None:
        """A part's weights file; None for random weights or where none is given."""
        return None if self.files[part] in ("", RANDOM) else Path(self.files[part])


@dataclass(frozen=True)
class Team:
    """The teachers that label some parts of the corpus together; `parts` is empty for teacher.name, which labels all others."""

    name: str
    parts: tuple[str, ...]
    members: tuple[Member, ...]


def variant_name(name: str, variant: str) -> str:
    """`unisal@SALICON`; the name alone without a variant."""
    return f"{name}@{variant}" if variant else name


def teams(options: Teacher) -> tuple[Team, ...]:
    """The teachers that a recipe names: those of teacher.name, then those of teacher.parts, in order.

    Raises UsageError for an unknown name, variant, size or weights entry.
    """
    of_part = parts(options)
    names = list(dict.fromkeys((options.name, *of_part.values())))
    terms = [(name, *_term(text, name)) for name in names for text in name.split("+")]  # team, teacher, variant, weight
    teachers = [teacher for _, teacher, _, _ in terms]
    if "maps" in teachers and len(terms) > 1:
        role = "join an ensemble" if len(names) == 1 else "be one of several teachers"
        raise UsageError(f"teacher maps reads stored labels and cannot {role}; use it alone, or remove it")
    sizes = _assign("teacher.size", options.size, [(teacher,) for teacher in teachers], teachers)
    chosen = [_entry(teacher, size) for teacher, size in zip(teachers, sizes, strict=True)]
    needed = [part_name(entry.name, part) for entry in chosen for part in entry.files]
    slots = [
        (part_name(variant_name(entry.name, variant), part), part_name(entry.name, part))
        for entry, (_, _, variant, _) in zip(chosen, terms, strict=True)
        for part in (*entry.files, *entry.more)
    ]
    files = iter(_assign("teacher.weights", _expand_random(options.weights, chosen), slots, needed))
    built = [
        (team, Member(entry, weight, {part: _file(entry, next(files)) for part in (*entry.files, *entry.more)}, variant))
        for entry, (team, _, variant, weight) in zip(chosen, terms, strict=True)
    ]
    return tuple(
        Team(
            name,
            tuple(part for part, own in of_part.items() if own == name != options.name),
            tuple(member for team, member in built if team == name),
        )
        for name in names
    )


def members(options: Teacher) -> tuple[Member, ...]:
    """The teachers of all `teams`, in order. Raises UsageError like `teams`."""
    return tuple(member for team in teams(options) for member in team.members)


def _file(entry: Entry, file: str) -> str:
    """The path of a file in teacher.weights: the name of a published file means the one in the cache."""
    return next((str(fetched.path_of(entry.name, known)) for known in entry.published if known.name == file), file)


def _published(member: Member, file: str) -> Published | None:
    """The published file whose place in the cache `file` is."""
    return next((known for known in member.entry.published if str(fetched.path_of(member.name, known)) == file), None)


def fetched_files(options: Teacher) -> list[str]:
    """The files of the cache that the teachers use."""
    files = ((member, file) for member in members(options) for file in member.given.values())
    return list(dict.fromkeys(file for member, file in files if _published(member, file)))


def parts(options: Teacher) -> dict[str, str]:
    """The parts of the corpus in teacher.parts, and the teacher or ensemble of each. Raises UsageError for anything else there."""
    result: dict[str, str] = {}
    for text in options.parts:
        part, _, name = (word.strip() for word in text.partition("="))
        if not (part and name):
            raise UsageError(f"teacher.parts: '{text}' is not PART=TEACHER, as in images=unisal@SALICON")
        if part in result:
            raise UsageError(f"teacher.parts names the part '{part}' twice; keep one of {part}={result[part]} and {text}")
        result[part] = name
    return result


def _term(text: str, team: str) -> tuple[str, str, float]:
    """Name, variant and weight of one teacher of an ensemble: `unisal@SALICON:2`."""
    full_name, colon, weight = text.strip().partition(":")
    name, at, variant = full_name.partition("@")
    known = entries(name)[0].variants
    if at and variant not in known:
        others = did_you_mean(variant, known) if known else f"; write {name} alone"
        raise UsageError(f"teacher {name} has no variant '{variant}'{others}")
    if not colon:
        return name, variant, 1.0
    with suppress(ValueError):
        if 0 < (number := float(weight)) < math.inf:
            return name, variant, number
    raise UsageError(f"teacher '{team}': '{weight}' is not a weight; write NAME:NUMBER with a number above 0")


def _entry(name: str, size: str) -> Entry:
    sizes = {entry.size: entry for entry in entries(name)}
    if size and size not in sizes:
        known = ", ".join(filter(None, sizes))
        raise UsageError(f"teacher {name} has no size '{size}'; " + (f"sizes: {known}" if known else "leave it out"))
    return sizes[size] if size else next(iter(sizes.values()))


def _expand_random(weights: Sequence[str], chosen: Sequence[Entry]) -> list[str]:
    """NAME=random, or `random` alone, becomes one entry per part for a teacher of several files."""
    several = {f"{entry.name}={RANDOM}": entry for entry in chosen if len(entry.files) > 1}
    if len(set(chosen)) == 1 and several:
        several[RANDOM] = chosen[0]
    result = []
    for text in weights:
        entry = several.get(text)
        result += [f"{part_name(entry.name, part)}={RANDOM}" for part in entry.files] if entry else [text]
    return result


def _assign(key: str, values: Sequence[str], slots: Sequence[Sequence[str]], needed: Collection[str]) -> list[str]:
    """What NAME=VALUE entries give to each slot, which goes by the names in it, the first given one; "" where none is given.

    One entry of a name serves all slots, several are taken in order. A VALUE without a name goes to the only name needed, if there
    is one.
    """
    names, given = list(dict.fromkeys(name for slot in slots for name in slot)), dict[str, list[str]]()
    for text in values:
        match = re.fullmatch(r"([\w.@]+)=(.+)", text)
        name, value = (match[1], match[2]) if match else ("", text)
        if not name and len(set(needed)) != 1:
            choice = " or ".join(dict.fromkeys(needed)) or "a teacher"
            raise UsageError(f"{key}: which teacher is '{text}' for? write NAME={text}, where NAME is {choice}")
        name = name or next(iter(needed))
        if name not in names:
            raise UsageError(f"{key}: unknown name '{name}'{did_you_mean(name, names)}")
        given.setdefault(name, []).append(value)
    chosen = [next((name for name in slot if name in given), "") for slot in slots]
    for name, some in given.items():
        if (taken := Counter(chosen)[name]) < len(some):
            raise UsageError(f"{key} gives {name}={some[taken]}, but no further teacher takes '{name}'")
    left = {name: iter(some) if len(some) > 1 else itertools.repeat(some[0]) for name, some in given.items()}
    return [next(left[name], "") if name else "" for name in chosen]


def trained_here(recipe: Recipe, member: Member) -> bool:
    """Whether the run trains this teacher: the tiny visage without a file, and with teach.finetune visage and unisal."""
    tiny = member.entry.title == "visage tiny"
    return not member.files[""] if tiny else recipe.teach.finetune and member.name in ("visage", "unisal")


def with_published(recipe: Recipe) -> Recipe:
    """The recipe with the first published file of every teacher that names no weights, unless the run trains it."""
    missing = dict.fromkeys(
        f"{part_name(member.name, '')}={member.entry.published[0].name}"
        for member in members(recipe.teacher)
        if member.entry.published and not member.files[""] and not trained_here(recipe, member)
    )
    return replace(recipe, teacher=replace(recipe.teacher, weights=(*recipe.teacher.weights, *missing))) if missing else recipe


def check(recipe: Recipe) -> None:
    """Raises UsageError for every error in a recipe's teacher that can be detected before a run starts."""
    options = recipe.teacher
    team = members(options)
    if recipe.train.start == "teacher" and "unisal" not in [member.name for member in team]:
        raise UsageError(
            f"train.start=teacher copies the encoder of unisal, and {options.name} has none; choose unisal, or train.start=random"
        )
    trained = dict[Entry, Member]()
    for member in team:
        lacking = [part_name(member.name, part) for part in member.entry.files if not member.files[part]]
        if trained_here(recipe, member):  # a trunk is required, weights to start from are not
            lacking = [name for name in lacking if name == "visage.base"]
            if trained.setdefault(member.entry, member).files != member.files:
                raise UsageError(
                    f"the run trains {member.name} once, for all its variants and parts; give it one set of weights"
                )
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
    if options.calibration and options.parts:
        raise UsageError("teacher.calibration is fitted to one teacher, and teacher.parts names others; leave out one of them")
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


def check_parts(options: Teacher, corpus_parts: Collection[str]) -> None:
    """Raises UsageError unless teacher.parts names parts of the corpus, and leaves some to teacher.name."""
    of_part = parts(options)
    for part in of_part:
        if part not in corpus_parts:
            raise UsageError(f"teacher.parts: the corpus has no part '{part}'{did_you_mean(part, corpus_parts)}")
    if of_part and {*corpus_parts} == {*of_part} and options.name not in of_part.values():
        raise UsageError(
            f"teacher.parts names every part of the corpus, so teacher.name {options.name} labels nothing; make one of the others "
            "teacher.name, and leave its parts out"
        )


def weights_files(options: Teacher) -> list[tuple[str, Path]]:
    """The weights files of all members, by the names that the recipe gives them."""
    given = [item for member in members(options) for item in member.given.items()]
    return [(name, Path(file)) for name, file in given if file != RANDOM]


def map_folders(options: Teacher) -> list[Path]:
    """The folders in teacher.maps, which is one or a list."""
    return [Path(f) for f in ([options.maps] if isinstance(options.maps, str) else options.maps) if f]


def map_store(options: Teacher) -> Path | None:
    """The label store that teacher.maps names, or None where it names folders of maps."""
    folders = map_folders(options)
    return folders[0] if len(folders) == 1 and (folders[0] / "store.json").is_file() else None


def names(options: Teacher) -> str:
    """Which teacher labels what, for the user: `unisal@DHF1K; for images, images-2: unisal@SALICON`."""
    return "; ".join(_for_parts(team, team.name) for team in teams(options))


def _for_parts(team: Team, what: str) -> str:
    return f"for {', '.join(team.parts)}: {what}" if team.parts else what


def source(recipe: Recipe) -> str:
    """Where the teachers' weights come from, for the user: `2 x unisal, weights_best.pth; 1 x tased, RANDOM WEIGHTS`."""
    sources = []
    for team in teams(recipe.teacher):
        each = [f"{f'{m.weight:g} x ' if len(team.members) > 1 else ''}{member_source(recipe, m)}" for m in team.members]
        sources.append(_for_parts(team, "; ".join(each)))
    calibration = Path(recipe.teacher.calibration).name
    mirrored = "; each frame mirrored as well" if recipe.teacher.flip else ""
    return "; ".join(sources) + mirrored + (f"; calibrated by {calibration}" if calibration else "")


def member_source(recipe: Recipe, member: Member) -> str:
    """The same of one teacher: `unisal, weights_best.pth`."""
    if member.name == "maps":
        return f"maps, {'+'.join(folder.name for folder in map_folders(recipe.teacher))}"
    names = ["RANDOM WEIGHTS" if file == RANDOM else Path(file).name for file in member.given.values()]
    files = ", ".join(dict.fromkeys(names))
    if trained_here(recipe, member):
        files = "trained in this run" + (f" from {files}" if files else "")
    video = member.name == "unisal" and (member.variant or recipe.teacher.domain) != "SALICON"
    static = recipe.teacher.static if video else 0
    title = f"{member.full_name} {member.entry.size}".rstrip()
    return f"{title}, {files}" + (f", static path {static:g}" if static else "")

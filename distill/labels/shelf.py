"""The shelf: which teachers there are, what their licences allow, and how one is built from a recipe.

    teacher.name = "unisal"                    one teacher
    teacher.name = "unisal:2+tased:1"          an ensemble: mean of their logits, unisal's counting twice

    teacher.weights = ["unisal=weights_best.pth", "tased=TASED_v2.pt"]       files, never fetched: each entry names its page
    teacher.weights = ["visage.base=internvideo2.pt", "visage.expert1=...", "visage.expert2=..."], teacher.size = ["6B"]
    teacher.weights = ["salfom=random"]                                      learned nothing: tries the machinery

`SHELF` is what `distill teachers` prints. `members` reads a recipe's teacher, `check` says what is wrong with it before
anything long starts, `open_teacher` builds it, and `describe` says where its labels come from and under which licences: that
goes into the label store, and from there into the student's metadata and model card.

Figures here are counted from the networks of `teachers/`, on torch's meta device; one multiply-accumulate is two FLOPs.
Importing this costs no torch: what builds a teacher is imported when one is built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.recipe import keys
from distill.recipe.files import did_you_mean
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError
from distill.run.files import read_json
from distill.teachers import PLAIN, Inference

if TYPE_CHECKING:
    import torch

    from distill.labels.store import StoredLabels
    from distill.teachers import Lookup, Teacher
    from distill.teachers.maps import MapsTeacher
    from distill.teachers.visage import Visage, VisageConfig

OURS = "BSD-2-Clause-Patent"
UNSTATED = "none stated"
RANDOM = "random"
SEED = 0  # of random weights
ENDS = 1_000_000  # bytes

PERMISSIVE = {
    "Apache-2.0", "BSD-2-Clause", "BSD-2-Clause-Patent", "BSD-3-Clause", "BSD-3-Clause-Plus-Patent", "CC BY 4.0",
    "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "Unlicense",
}  # fmt: skip
"""Licences under which anybody may use a teacher for anything; every other one is for the user to judge."""


@dataclass(frozen=True)
class Entry:
    """A teacher, at one size. What nobody measured is None."""

    name: str
    size: str = ""
    about: str = ""
    page: str = ""  # of the authors, where their weights are to be had
    code: str = UNSTATED  # licence of the authors' code
    weights: str = UNSTATED  # licence of their weights
    parameters: int | None = None
    rate: float | None = None  # frames per second that it looks at; None: every frame
    window: int | None = None  # frames that it sees at once; None: the whole clip, its state carried
    gmac: float | None = None  # billions of multiply-accumulates per labelled frame, at every = 1 and no overlap
    files: tuple[str, ...] = ()  # of its weights: "" is the only one, NAME; others are NAME.PART
    more: tuple[str, ...] = ()  # parts that may be given besides


_VISAGE = Entry(
    name="visage",
    about="two experts, each with a LoRA, on an InternVideo2 trunk (2026); experts are published for 6B alone, and "
    "teach.finetune trains them at any size",
    page="https://huggingface.co/OpenGVLab/InternVideo2_distillation_models (trunk)",
    code="Apache-2.0",
    rate=5.0,
    window=20,
    files=("base", "expert1", "expert2"),
    more=("expert3", "expert4"),
)

_SALFOM = Entry(
    name="salfom",
    size="L",
    about="UMT encoder, three-branch decoder (2024)",
    page="https://github.com/mr17m/SalFoM---Video-Saliency-Prediction",
    parameters=402_945_443,
    window=16,
    gmac=1520,
    files=("",),
)

SHELF = (
    Entry(
        name="visage",
        size="tiny",
        about="the same architecture, small: trained here, on the run's own corpus, from scratch",
        code=OURS,
        weights=OURS,
        parameters=698_649,
        rate=8.0,
        window=8,
        gmac=0.176,
        files=("",),
    ),
    dataclasses.replace(_VISAGE, size="S", parameters=87_504_905, gmac=70.7),
    dataclasses.replace(_VISAGE, size="B", parameters=166_282_889, gmac=129),
    dataclasses.replace(_VISAGE, size="L", parameters=418_702_729, gmac=325),
    dataclasses.replace(
        _VISAGE,
        size="1B",
        page="https://huggingface.co/OpenGVLab/InternVideo2-CLIP-1B-224p-f8 (trunk)",
        weights="Apache-2.0",
        parameters=1_202_207_753,
        gmac=863,
    ),
    dataclasses.replace(
        _VISAGE,
        size="6B",
        page="https://github.com/iLearn-Lab/CVPRW26-ViSAGE (experts), "
        "https://huggingface.co/OpenGVLab/InternVideo2-Stage2_6B-224p-f4 (trunk)",
        weights="Apache-2.0",
        parameters=6_312_387_849,
        gmac=3903,
    ),
    Entry(
        name="unisal",
        about="MobileNetV2 with a ConvGRU, for images and video, one set of norms per data set (2020)",
        page="https://github.com/rdroste/unisal",
        code="Apache-2.0",
        weights="Apache-2.0",
        parameters=3_714_872,
        rate=6.0,
        gmac=0.954,
        files=("",),
        more=("trunk",),
    ),
    Entry(
        name="tased",
        about="S3D encoder, decoder with max-unpooling (2019, the updated weights)",
        page="https://github.com/MichiganCOG/TASED-Net",
        code="MIT",
        weights="MIT",
        parameters=21_260_693,
        window=32,
        gmac=78.5,
        files=("",),
    ),
    _SALFOM,
    dataclasses.replace(
        _SALFOM,
        size="B",
        about="the same on a smaller encoder; nobody has published weights of it",
        page="",
        parameters=149_082_787,
        gmac=508,
    ),
    Entry(
        name="onnx",
        about="any ONNX saliency model, image or step, such as a student of ours; its own metadata state its licence",
        code="the file's",
        weights="the file's",
        files=("",),
    ),
    Entry(
        name="maps",
        about="labels computed elsewhere: teacher.maps is a folder of CLIP.npz, or of PNG folders per clip",
        code="not stated",
        weights="not stated",
    ),
)


def entries(name: str | None = None) -> tuple[Entry, ...]:
    """All teachers, or the sizes of one. Raises UsageError for an unknown name."""
    if name is not None and name not in NAMES:
        raise UsageError(f"unknown teacher '{name}'{did_you_mean(name, NAMES)}")
    return tuple(entry for entry in SHELF if name in (None, entry.name))


def row(entry: Entry) -> dict[str, str]:
    """A line of the table, which fits 80 columns. Where they differ, the licence is that of the code / of the weights."""
    looks = entry.name != "maps"
    return {
        "teacher": f"{entry.name} {entry.size}".rstrip(),
        "M params": f"{entry.parameters / 1e6:,.1f}" if entry.parameters else "",
        "licence": " / ".join(dict.fromkeys(its.replace(UNSTATED, "none") for its in (entry.code, entry.weights))),
        "rate": (f"{entry.rate:g}/s" if entry.rate else "all") if looks else "",
        "window": (str(entry.window or "clip")) if looks else "",
        "GMAC/frame": f"{entry.gmac:,.4g}" if entry.gmac else "",
    }


def details(entry: Entry) -> dict[str, str]:
    """Everything about a teacher, for a reader."""
    short = row(entry)
    rate = f"{entry.rate:g} frames per second" if entry.rate else "every frame"
    window = f"windows of {entry.window}" if entry.window else "its state carried through the clip"
    facts = {
        "teacher": short["teacher"],
        "what it is": entry.about,
        "licence of the code": entry.code,
        "licence of the weights": entry.weights,
        "weights from": entry.page,
        "teacher.size": entry.size,
        "teacher.weights": ", ".join(f"{_part(entry.name, part)}=FILE" for part in entry.files),
        "parameters": f"{entry.parameters:,}" if entry.parameters else "",
        "looks at": f"{rate}, {window}" if short["rate"] else "",
        "GMAC per frame": short["GMAC/frame"],
    }
    return {key: value for key, value in facts.items() if value}


NAMES = tuple(dict.fromkeys(entry.name for entry in SHELF))


# ------------------------------------------------------------------------------------------- what a recipe asks for


@dataclass(frozen=True)
class Member:
    """One teacher of a recipe. A file is a path, `random`, or empty where none is named."""

    entry: Entry
    weight: float
    files: dict[str, str]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def random(self) -> list[str]:
        """The parts with random weights, as teacher.weights names them."""
        return [_part(self.name, part) for part, file in self.files.items() if file == RANDOM]

    def missing(self) -> list[str]:
        """The parts without a file that it cannot do without, as teacher.weights would name them."""
        return [_part(self.name, part) for part in self.entry.files if not self.files[part]]


def members(options: keys.Teacher) -> tuple[Member, ...]:
    """The teachers that a recipe names, in order. Raises UsageError for what does not name any."""
    named = []
    for term in options.name.split("+"):
        name, colon, weight = term.strip().partition(":")
        if name not in NAMES:
            raise UsageError(f"unknown teacher '{name}'{did_you_mean(name, NAMES)}")
        named.append((name, _weight(weight, options.name) if colon else 1.0))
    if len(named) > 1 and any(name == "maps" for name, _ in named):
        raise UsageError("teacher maps looks labels up and joins no ensemble; name it alone, or leave it out")
    sizes = _by_name("teacher.size", options.size, [name for name, _ in named], ())
    entries = [(_entry(name, _take(sizes, name)), weight) for name, weight in named]
    needed = [_part(entry.name, part) for entry, _ in entries for part in entry.files]
    optional = [_part(entry.name, part) for entry, _ in entries for part in entry.more]
    files = _by_name("teacher.weights", _spelt_out(options.weights, entries), needed, optional)
    found = [
        Member(e, w, {part: _take(files, _part(e.name, part)) for part in (*e.files, *e.more)}) for e, w in entries
    ]
    for key, values in (("teacher.size", sizes), ("teacher.weights", files)):
        if left := next((f"{name}={v[0]}" for name, v in values.items() if v), ""):
            raise UsageError(f"{key} names {left}, but teacher.name '{options.name}' has no further one of that name")
    return tuple(found)


def _part(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name


def _weight(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(f"teacher.name '{name}': '{text}' is no weight; write NAME:NUMBER with a number above 0")
    return weight


def _entry(name: str, size: str) -> Entry:
    entries = {entry.size: entry for entry in SHELF if entry.name == name}
    if size and size not in entries:
        known = ", ".join(filter(None, entries))
        raise UsageError(f"teacher {name} has no size '{size}'; " + (f"sizes: {known}" if known else "leave it out"))
    return entries[size] if size else next(iter(entries.values()))


def _spelt_out(weights: Sequence[str], entries: Sequence[tuple[Entry, float]]) -> list[str]:
    """`NAME=random`, or `random` alone, for every part of a teacher of several."""
    whole = {f"{entry.name}={RANDOM}": entry for entry, _ in entries if len(entry.files) > 1}
    if len(entries) == 1 and whole:
        whole[RANDOM] = entries[0][0]
    told = []
    for given in weights:
        entry = whole.get(given)
        told += [f"{_part(entry.name, part)}={RANDOM}" for part in entry.files] if entry else [given]
    return told


def _by_name(key: str, values: Sequence[str], needed: Sequence[str], optional: Sequence[str]) -> dict[str, list[str]]:
    """NAME=VALUE entries by name, in order; where one name alone is needed, a VALUE alone is its."""
    names, found = (*needed, *optional), dict[str, list[str]]()
    for text in values:
        match = re.fullmatch(r"([\w.]+)=(.+)", text)
        name, value = (match[1], match[2]) if match else ("", text)
        if not name and len(set(needed)) != 1:
            raise UsageError(
                f"{key}: whose is '{text}'? write NAME={text}, NAME being {' or '.join(needed) or 'a teacher'}"
            )
        name = name or needed[0]
        if name not in names:
            raise UsageError(f"{key}: nothing here is called '{name}'{did_you_mean(name, names)}")
        found.setdefault(name, []).append(value)
    return found


def _take(values: dict[str, list[str]], name: str) -> str:
    left = values.get(name)
    return left.pop(0) if left else ""


# ------------------------------------------------------------------------------------------------- what is allowed


def permissive(license_: str) -> bool:
    """Whether anybody may use, under this licence, what it covers for anything; remarks in brackets do not count."""
    return license_.split(" (")[0].removeprefix("The ").replace(" License", "") in PERMISSIVE


def chain(member: Member) -> list[tuple[str, str]]:
    """What a teacher is made of, part by part, and the licence of each."""
    entry, name = member.entry, member.name
    if name == "onnx":
        return _onnx_chain(Path(member.files[""]))
    if name == "maps":
        return [("teacher maps", entry.weights)]
    if entry.code == entry.weights == OURS:
        return [(f"teacher {name} {entry.size}".rstrip(), OURS)]
    named = [file for file in member.files.values() if file]
    weights = {(): f"{OURS} (trained here)", (RANDOM,): f"{OURS} (random)"}.get((*dict.fromkeys(named),), entry.weights)
    return [(f"teacher {name}, code", entry.code), (f"teacher {name}, weights", weights)]


def _onnx_chain(path: Path) -> list[tuple[str, str]]:
    """A file's own licence, from its metadata or the sidecar beside it, and what it says of its own teachers."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, which share no base class
        raise UsageError(f"{path} is no ONNX file: {(str(error).splitlines() or [''])[0]}") from None
    said = {prop.key: prop.value for prop in model.metadata_props}
    sidecar = path.with_suffix(".json")
    license_ = said.get("license", "")
    if not license_ and sidecar.is_file():
        try:
            license_ = str(json.loads(sidecar.read_text(encoding="utf-8")).get("license") or "")
        except (OSError, ValueError, AttributeError):
            license_ = ""
    try:
        before = [(str(part), str(its)) for part, its in json.loads(said.get("license_chain", "[]"))]
    except (ValueError, TypeError):
        before = []
    own = [(f"teacher onnx: {path.name}", license_ or UNSTATED)]
    return own + [(f"{path.name}: {part}", its) for part, its in before]


def binding(member: Member) -> list[tuple[str, str]]:
    """The parts whose licences decide: for an ONNX file that says what it was made from, those; else all of the chain."""
    parts = chain(member)
    return parts[1:] if member.name == "onnx" and len(parts) > 1 else parts


def may_use(options: keys.Teacher) -> None:
    """Raises UsageError where a teacher's licence is not one that lets anybody use it, and the user has not said yes."""
    found = members(options)
    names = [member.name for member in found]
    for name in options.accept_licence:
        if name not in names:
            raise UsageError(
                f"--accept-licence {name}: this run's teacher is {options.name}{did_you_mean(name, names)}"
            )
    for member in found:
        unclear = [(part, its) for part, its in binding(member) if not permissive(its)]
        if unclear and member.name not in (*options.accept_licence, "maps"):
            what = "; ".join(f"{part}: {its}" for part, its in unclear)
            raise UsageError(
                f"teacher {member.name} has no licence that lets everybody use it ({what}); if you may use it, say "
                f"--accept-licence {member.name}, else take another: `distill teachers` lists them"
            )


# ------------------------------------------------------------------------------------------------------ before a run


def trained_here(recipe: Recipe, member: Member) -> bool:
    """Whether the run trains this teacher itself: the tiny visage, unless a file is named, and what teach.finetune is for."""
    if (member.name, member.entry.size) == ("visage", "tiny"):
        return not member.files[""]
    return recipe.teach.finetune and member.name in ("visage", "unisal")


def check(recipe: Recipe) -> None:
    """What can be known to be wrong with a recipe's teacher before anything long starts. Raises UsageError."""
    options = recipe.teacher
    found = members(options)
    for member in found:
        if lacking := _wanted(recipe, member):
            raise UsageError(_wants(member, lacking))
        if member.name == "onnx" and member.random:
            raise UsageError(
                "teacher onnx is its file, and there is none with random weights: name one in teacher.weights"
            )
        for part, file in member.files.items():
            if file not in ("", RANDOM) and not Path(file).is_file():
                what = "is a folder" if Path(file).is_dir() else "does not exist"
                raise UsageError(f"teacher.weights {_part(member.name, part)}={file} {what}; name a weights file")
    if options.calibration and not Path(options.calibration).is_file():
        raise UsageError(
            f"teacher.calibration {options.calibration} does not exist; `distill teach calibrate` writes one"
        )
    tuned = [m for m in found if trained_here(recipe, m) and m.entry.size != "tiny"]
    if recipe.teach.finetune and not tuned:
        raise UsageError(
            "teach.finetune is for unisal and for visage of a published size: --set teacher.size=6B, or another"
        )
    may_use(options)


def _wanted(recipe: Recipe, member: Member) -> list[str]:
    """The files that a teacher needs and lacks. Those to go on from are as one likes."""
    if not trained_here(recipe, member):
        return member.missing()
    return [part for part in member.missing() if part == "visage.base"]


def _wants(member: Member, lacking: Sequence[str]) -> str:
    given = ",".join(f"{part}=FILE" for part in lacking)
    source = f"; the authors' page is {member.entry.page}" if member.entry.page else ""
    size = f" {member.entry.size}" if member.entry.size else ""
    trial = "" if member.name == "onnx" else "; `random` in place of a file tries the machinery"
    train = ", teach.finetune=true trains it here" if {"visage.expert1", "unisal"} & {*lacking} else ""
    return f"teacher {member.name}{size} needs its weights: --set teacher.weights={given}{source}{trial}{train}"


def file_names(options: keys.Teacher) -> list[str]:
    """teacher.weights without places: NAME=FILE, the file's last name."""
    found = members(options)
    return [f"{_part(m.name, part)}={Path(file).name}" for m in found for part, file in m.files.items() if file]


def weights_prints(options: keys.Teacher) -> dict[str, str]:
    """A print of every weights file: its size and both ends, where an archive keeps the sums of what is between."""
    prints = {}
    for member in members(options):
        for part, file in member.files.items():
            if file not in ("", RANDOM):
                with Path(file).open("rb") as content:
                    size = content.seek(0, 2)
                    digest = hashlib.sha256(str(size).encode())
                    for start in (0, max(0, size - ENDS)):
                        content.seek(start)
                        digest.update(content.read(ENDS))
                prints[f"the weights {_part(member.name, part)}={file}"] = digest.hexdigest()[:16]
    return prints


# ------------------------------------------------------------------------------------------------ built from a recipe


def open_teacher(recipe: Recipe, device: torch.device, checkpoints: Path, how: Inference = PLAIN) -> Teacher:
    """The teacher that a recipe names, on `device`; what the run trained itself is in `checkpoints`. Not `maps`.

    Raises UsageError, one line, for weights that are missing, damaged or of something else.
    """
    found = members(recipe.teacher)
    built = [_built(recipe, member, device, checkpoints, how) for member in found]
    if len(built) == 1:
        return built[0]
    from distill.labels.ensemble import Ensemble

    return Ensemble(recipe.teacher.name, built, [member.weight for member in found])


def try_out(recipe: Recipe, device: torch.device, how: Inference) -> Iterator[str]:
    """Opens and closes every teacher that is there before the run; says which. Raises UsageError as `open_teacher`."""
    found = members(recipe.teacher)
    ready = [member for member in found if not trained_here(recipe, member)]
    if ready == list(found) and recipe.teacher.calibration:
        maps = found[0].name == "maps"
        calibrated(recipe, open_maps(recipe) if maps else open_teacher(recipe, device, Path(), how))
        yield source(recipe)
        return
    for member in ready:
        if member.name != "maps":
            _built(recipe, member, device, Path(), how)
            yield _told(recipe, member)


def _built(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    import torch

    try:
        with torch.random.fork_rng(devices=[]):  # random weights are the same ones in a run that goes on
            torch.manual_seed(SEED)
            return BUILDERS[member.name](recipe, member, device, checkpoints, how)
    except ValueError as error:
        raise UsageError(str(error)) from None


def map_folders(options: keys.Teacher) -> list[Path]:
    """The folders of teacher.maps, which may be one or a list."""
    return [Path(f) for f in ([options.maps] if isinstance(options.maps, str) else options.maps) if f]


def map_store(options: keys.Teacher) -> Path | None:
    """The label store that teacher.maps names, if it names one."""
    folders = map_folders(options)
    return folders[0] if len(folders) == 1 and (folders[0] / "store.json").is_file() else None


def open_maps(recipe: Recipe) -> MapsTeacher | StoredLabels:
    """The maps that a recipe names: a folder, one for each part of the corpus, or one with a folder for each part.

    A folder may also be the label store of another run.

    Raises UsageError where there are none.
    """
    from distill.corpora import parts_of
    from distill.teachers.maps import MapsTeacher

    given, corpus = map_folders(recipe.teacher), recipe.corpus
    if not given:
        raise UsageError("teacher maps needs --maps, the folder that holds CLIP.npz or PNG folders")
    parts = parts_of(corpus.name, corpus.root or "") if corpus.name != "synthetic" else []
    if given[1:] and len(given) != len(parts):
        raise UsageError(
            f"teacher.maps names {len(given)} folders, the corpus has {max(1, len(parts))} parts; give one --maps, or one for "
            "each part in the same order"
        )
    if store := map_store(recipe.teacher):
        from distill.labels.store import StoredLabels

        return StoredLabels(store)
    try:
        if not parts[1:]:
            return MapsTeacher(given[0])
        if not given[1:]:
            inside = [[given[0] / part.name, given[0] / part.root.name, given[0]] for part in parts]
            given = [next((folder for folder in places if folder.is_dir()), given[0]) for places in inside]
        return MapsTeacher({part.name: folder for part, folder in zip(parts, given, strict=True)})
    except ValueError as error:
        raise UsageError(str(error)) from None


def tiny_visage(recipe: Recipe) -> VisageConfig:
    """The tiny ensemble's shape; it labels at the frame rate that it is trained at."""
    from distill.teachers.visage import VisageConfig

    return VisageConfig(sample_fps=recipe.train.sample_fps)


def _visage(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    from distill.teachers.visage import Visage, random_net

    options, file = recipe.teacher, member.files.get("", "")
    if member.entry.size != "tiny":
        teacher = _released(recipe, member, device, checkpoints, how)
    elif file != RANDOM:
        teacher = Visage.load(file or checkpoints / "visage.pt", device=device, how=how)
    else:
        shape = tiny_visage(recipe)
        teacher = Visage(random_net(shape, SEED, device=device), shape, device=device, how=how)
    weights = options.expert_weights or teacher.config.weights
    teacher.config = dataclasses.replace(teacher.config, fusion=options.fusion, weights=weights)
    teacher.net.config = teacher.config  # type: ignore[assignment]
    return teacher


def _released(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Visage:
    """A visage of a published size: the files of its authors, what this run made of them, or random weights."""
    import torch

    from distill.teachers.visage import Visage, expert_kind, load_released, random_net
    from distill.teachers.weights import read_weights
    from distill.training import fine_tune

    if trained_here(recipe, member):
        return fine_tune.open_tuned(checkpoints, device, how)
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    shape = fine_tune.layout(member.entry.size, recipe.teach)
    base, *experts = (file for file in member.files.values() if file)
    if member.random:
        if len(member.random) < len(experts) + 1:
            raise UsageError("teacher.weights: base and experts of visage are random together, or not at all")
        return Visage(random_net(shape, SEED, dtype=dtype, device=device), shape, device=device, how=how)
    kinds = tuple(expert_kind(read_weights(path), path) for path in experts)
    shape = dataclasses.replace(shape, experts=kinds, weights=(1 / len(kinds),) * len(kinds))
    net = load_released(shape, base, experts, orig_t_size=recipe.teach.base_frames, dtype=dtype, device=device)
    return Visage(net.eval(), shape, device=device, how=how)


def _unisal(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    from distill.teachers.unisal import Unisal

    domain, file = recipe.teacher.domain, member.files[""]
    if trained_here(recipe, member):
        file = str(checkpoints / "unisal.pt")
    return Unisal.random(SEED, domain, device=device) if file == RANDOM else Unisal.load(file, domain, device=device)


def _tased(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    from distill.teachers.tased import Tased, TasedConfig

    settings = TasedConfig(every=recipe.teacher.every)
    if member.files[""] == RANDOM:
        return Tased.random(SEED, device, settings, how=how)
    return Tased.load(member.files[""], device, settings, how=how)


def _salfom(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    from distill.teachers.salfom import Salfom, SalfomConfig
    from distill.teachers.umt import UmtConfig

    settings = SalfomConfig(encoder=UmtConfig.of(member.entry.size), every=recipe.teacher.every)
    if member.files[""] == RANDOM:
        return Salfom.random(SEED, device, settings, how=how)
    return Salfom.load(member.files[""], device, settings, how=how)


def _onnx(recipe: Recipe, member: Member, device: torch.device, checkpoints: Path, how: Inference) -> Teacher:
    from distill.labels.onnx_teacher import OnnxTeacher

    return OnnxTeacher(Path(member.files[""]))


Builder = Callable[[Recipe, Member, "torch.device", Path, Inference], "Teacher"]
BUILDERS: dict[str, Builder] = {"visage": _visage, "unisal": _unisal, "tased": _tased, "salfom": _salfom, "onnx": _onnx}


# ---------------------------------------------------------------------------------------------- where labels come from


def calibrated(recipe: Recipe, teacher: Teacher | Lookup) -> Teacher | Lookup:
    """The teacher with its calibration, if the recipe names one. Raises UsageError for one of another teacher."""
    if not recipe.teacher.calibration:
        return teacher
    from distill.labels.calibrate import Calibrated, load

    return Calibrated(teacher, load(Path(recipe.teacher.calibration), teacher.fingerprint()))


def describe(recipe: Recipe, teacher: Teacher | Lookup) -> dict[str, Any]:
    """What a label store says of its teacher: plain values; names of files, no places.

    `chain` is a list of [part, licence]; `random` names the parts that have learned nothing. A store that is taken over
    from another run keeps what it said, except for what a calibration changes.
    """
    options = recipe.teacher
    store = map_store(options) if options.name == "maps" else None
    if store:
        told = dict(read_json(store / "store.json")["teacher"])
        told["source"] += "; labels of another run"
    else:
        found = members(options)
        told = {
            "name": options.name,
            "source": source(recipe),
            "license": ", ".join(dict.fromkeys(license_ for member in found for _, license_ in binding(member))),
            "chain": [list(part) for member in found for part in chain(member)],
            "random": [part for member in found for part in member.random],
        }
    if options.calibration:
        from distill.labels.calibrate import Calibrated

        assert isinstance(teacher, Calibrated)
        told["calibration"] = teacher.calibration.to_dict()
    return {**told, "fingerprint": teacher.fingerprint()}


def source(recipe: Recipe) -> str:
    """Where the teacher's weights come from, for a reader: `2 x unisal, weights_best.pth; 1 x tased, RANDOM WEIGHTS`."""
    found = members(recipe.teacher)
    told = [f"{f'{m.weight:g} x ' if len(found) > 1 else ''}{_told(recipe, m)}" for m in found]
    calibration = Path(recipe.teacher.calibration).name
    return "; ".join(told) + (f"; calibrated by {calibration}" if calibration else "")


def _told(recipe: Recipe, member: Member) -> str:
    name = f"{member.name} {member.entry.size}".rstrip()
    if member.name == "maps":
        return f"{name}, {'+'.join(folder.name for folder in map_folders(recipe.teacher))}"
    named = ["RANDOM WEIGHTS" if file == RANDOM else Path(file).name for file in member.files.values() if file]
    files = ", ".join(dict.fromkeys(named))
    if trained_here(recipe, member):
        files = "trained in this run" + (f" from {files}" if files else "")
    return f"{name}, {files}"


def warning(told: Mapping[str, Any]) -> str:
    """What must be said of labels by a teacher that has not learned, in whole or in part; empty for one that has.

    told: as `describe` puts it.
    """
    parts = ", ".join(told["random"])
    return (
        f"RANDOM WEIGHTS ({parts}) have learned nothing: these labels try the machinery and mean nothing"
        if parts
        else ""
    )

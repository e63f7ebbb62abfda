"""Licences of teachers: their parts, and whether a run may use it without asking the user.

The chain of a teacher lists its parts and their licences; it goes into the label store, and from there into the student's
metadata and model card.
"""

import json
import re
from contextlib import suppress
from pathlib import Path

import onnx

from distill.labels.catalogue import OURS, UNSTATED
from distill.labels.members import RANDOM, Member, members, names
from distill.recipe.files import did_you_mean
from distill.recipe.keys import Teacher
from distill.run.errors import UsageError

PERMISSIVE = re.compile(
    r"Apache-2\.0|BSD-2-Clause(-Patent)?|BSD-3-Clause(-Plus-Patent)?|CC[ -]BY([ -]\d\.\d)?|CC0([ -]1\.0)?|ISC|MIT|Unlicense"
)
"""Licences that allow everyone any use. Whether another one allows a use is for the user to decide."""
TRAINED_ON = ", trained on "  # in the name of a part that published weights were trained on


def permissive(license_: str) -> bool:
    """Whether a licence allows everyone any use; remarks in brackets are ignored."""
    return PERMISSIVE.fullmatch(license_.split(" (")[0].removeprefix("The ").replace(" License", "")) is not None


def chain(member: Member) -> list[tuple[str, str]]:
    """The parts of a teacher, what its published weights were trained on, and the licence of each."""
    published = member.files.get("", "") not in ("", RANDOM)
    sets = member.entry.trained_on if published else ()
    return [*_parts(member), *((f"teacher {member.name}{TRAINED_ON}{name}", licence) for name, licence in sets)]


def _parts(member: Member) -> list[tuple[str, str]]:
    entry, name = member.entry, member.name
    if name == "onnx":
        return _onnx_chain(Path(member.files[""]))
    if name == "maps":
        return [("teacher maps", entry.weights)]
    if entry.code == entry.weights == OURS:
        return [(f"teacher {entry.title}", OURS)]
    weights, files = entry.weights, set(member.given.values())
    if not files:
        weights = f"{OURS} (trained here)"
    elif files == {RANDOM}:
        weights = f"{OURS} (random)"
    return [(f"teacher {name}, code", entry.code), (f"teacher {member.full_name}, weights", weights)]


def _onnx_chain(path: Path) -> list[tuple[str, str]]:
    """A file's licence, from its metadata or the sidecar beside it, then the chain of its own teachers and corpora."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class
        raise UsageError(f"{path} is not an ONNX file: {(str(error).splitlines() or [''])[0]}") from None
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    license_, sidecar = metadata.get("license", ""), path.with_suffix(".json")
    if not license_ and sidecar.is_file():
        with suppress(OSError, ValueError, AttributeError):
            license_ = str(json.loads(sidecar.read_text(encoding="utf-8")).get("license") or "")
    upstream = []
    with suppress(KeyError, ValueError, TypeError):
        upstream = [(f"{path.name}: {part}", str(licence)) for part, licence in json.loads(metadata["license_chain"])]
    return [(f"teacher onnx: {path.name}", license_ or UNSTATED), *upstream]


def binding(member: Member) -> list[tuple[str, str]]:
    """The parts whose licences decide: those that an ONNX file was made from where it states them, otherwise code and weights.
    Published weights have their authors' licence, whatever they were trained on."""
    parts = [(part, licence) for part, licence in _parts(member) if TRAINED_ON not in part]
    return parts[1:] if member.name == "onnx" and len(parts) > 1 else parts


def check_licences(options: Teacher) -> None:
    """Raises UsageError for a teacher without a permissive licence that the user has not accepted."""
    team = members(options)
    known = [member.name for member in team]
    for name in options.accept_licence:
        if name not in known:
            raise UsageError(f"--accept-licence {name}: this run's teacher is {names(options)}{did_you_mean(name, known)}")
    for member in team:
        unclear = [f"{part}: {licence}" for part, licence in binding(member) if not permissive(licence)]
        if unclear and member.name not in (*options.accept_licence, "maps"):
            raise UsageError(
                f"teacher {member.name} has no permissive licence ({'; '.join(unclear)}); if you may use it, add "
                f"--accept-licence {member.name}, otherwise choose another: `distill teachers` lists them"
            )

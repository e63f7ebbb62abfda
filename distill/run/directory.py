"""The directory of a run: what has been done, readable without our code, and safe when the process is killed at any moment.

    recipe.toml      the resolved recipe, runnable as it is
    manifest.json    stages with fingerprints and timings, the recipe, versions, device and the reason for it
    corpus.json      the clips, their sizes and counts, the split
    metrics.jsonl    one line per logged training step and validation
    tensorboard/     the same to look at, where TensorBoard is installed; no other file depends on it
    labels/  frames/  checkpoints/  export/  metrics.json  report.html

Every file gets its name only when it is complete (`files.atomic`). A run whose manifest was lost or damaged is known by its other
files: it is continued with an empty manifest, so that every stage is done again from what stands there (frames, labels of the
same teacher, unfinished trainings). One process or one torchrun job at a time works in a run
directory; in a job, rank 0 alone writes the manifest.
"""

import contextlib
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Self

from distill import __version__
from distill.recipe.files import differences, load_recipe, recipe_from, to_toml
from distill.recipe.keys import Recipe
from distill.run import changes
from distill.run.errors import UsageError
from distill.run.files import is_temporary, write_bytes, write_json
from distill.run.machine.parallel import rank
from distill.run.progress import Narrator

MANIFEST = "manifest.json"
SCHEMA = 2
"""Schema of the manifest. A run of schema 1 is continued; only its unfinished trainings are not (`training.checkpoint`)."""
OURS = [
    "recipe.toml",
    "corpus.json",
    "metrics.jsonl",
    "metrics.json",
    "report.html",
    "crash.txt",
    "corpus",
    "labels",
    "frames",
    "checkpoints",
    "export",
    "tensorboard",
]
"""The files and folders that --force removes, beside the manifest."""
CACHES = ("frames/", "labels/")
"""Folders of files that a stage makes again one by one where they are missing."""


def read_manifest(path: Path, recipe: Recipe, force: bool = False) -> dict[str, Any] | None:
    """The manifest of the run in the directory `path`; None where there is none, or where `force` will replace it. Raises
    UsageError where the directory holds other files, or a run of a newer version or of another recipe."""
    _refuse_other_files(path)
    if force or not is_run(path):
        return None
    manifest = manifest_of(path) or {
        "schema": SCHEMA,
        "created": _now(),
        "rebuilt": _now(),
        "environment": environment(),
        "stages": {},
    }
    if manifest["schema"] > SCHEMA:
        raise UsageError(f"a newer version of saliency-distill made the run in {path}; use that version")
    if _is_fresh(manifest):
        return manifest
    if changed := differences(_recipe_in(manifest, path), recipe):
        another = shlex.quote(str(_free(path)))
        raise UsageError(
            f"{path} holds a run with another configuration ({_few(changed)}); leave that run as it is and write to another directory: "
            f"--out {another} --from {shlex.quote(str(path))} takes over what agrees; or replace it with --force"
        )
    return manifest


def recipe_of(path: Path) -> Recipe:
    """The recipe of the run in the directory `path`. Raises UsageError where it is lost or damaged."""
    return _recipe_in(manifest_of(path) or {"rebuilt": True}, path)


def _recipe_in(manifest: Mapping[str, Any], path: Path) -> Recipe:
    """A run's recipe as its manifest has it, where recipe.toml is lost or damaged, too; runs of earlier versions have only recipe.toml."""
    file, text = path / "recipe.toml", manifest.get("recipe")
    kept = recipe_from(text, where=str(path / MANIFEST)) if isinstance(text, dict) else None
    another = f"--out {shlex.quote(str(_free(path)))}"
    try:
        written = load_recipe(file)
    except UsageError as error:
        if kept:
            return kept
        where = "" if str(file) in str(error) else f"{file}: "
        raise UsageError(f"{where}{error}; restore it, or start over in another directory: {another}") from None
    if kept and (changed := differences(kept, written)) and not _is_fresh(manifest):
        raise UsageError(
            f"{file} is not as the run wrote it ({_few(changed)}); remove it, and it is written again; or move it elsewhere and run it "
            f"with {another}"
        )
    return written


def _few(changes: Sequence[str]) -> str:
    return "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if len(changes) > 3 else "")


def _is_fresh(manifest: Mapping[str, Any]) -> bool:
    """Whether nothing depends on the recipe and the inputs yet."""
    return "rebuilt" not in manifest and set(manifest["stages"]) <= {"preflight"}


def _free(path: Path) -> Path:
    """A name like the run's that is not taken: NAME-2."""
    return next(new for number in count(2) if not (new := path.with_name(f"{path.resolve().name}-{number}")).exists())


def is_done(path: Path, manifest: Mapping[str, Any], stage: str, key: str) -> bool:
    """Whether the stage has been done under this fingerprint, and its files are still as it left them."""
    done = manifest["stages"].get(stage, {})
    return done.get("fingerprint") == key and not any(_changed(path, done["outputs"]))


def _changed(path: Path, outputs: Mapping[str, Any]) -> Iterator[str]:
    """The files that are missing, or not as a stage left them."""
    return (name for name, record in outputs.items() if changes.has_changed(path / name, record))


def is_run(path: Path) -> bool:
    """Whether a directory holds a run, be it one whose manifest was lost or damaged."""
    return manifest_of(path) is not None or _has_lost_its_manifest(path)


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of the run in the directory `path`; None where it is missing, damaged or somebody else's."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        match json.loads((path / MANIFEST).read_text(encoding="utf-8")):
            case {"schema": int(), "created": str(), "stages": dict(stages)} as manifest if all(
                map(_is_stage, stages.values())
            ):
                return manifest
    return None


def _is_stage(done: Any) -> bool:
    match done:
        case {"fingerprint": str(), "outputs": dict(), "seconds": int() | float()}:
            return True
    return False


def _has_lost_its_manifest(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir() if not is_temporary(entry.name)} if path.is_dir() else set()
    return names <= {*OURS, MANIFEST, ".lock"} and {"recipe.toml"} < names - {".lock"}


def _refuse_other_files(path: Path) -> None:
    if is_run(path) or all(entry.name == ".lock" or is_temporary(entry.name) for entry in path.iterdir()):
        return
    raise UsageError(f"--out {path} is not empty and holds no run; choose another directory (--force replaces runs only)")


def _locked(path: Path) -> contextlib.AbstractContextManager[object]:
    from filelock import FileLock, Timeout  # not at the top: the extra `train` installs it

    try:
        return FileLock(path / ".lock").acquire(blocking=False)
    except Timeout:
        raise UsageError(f"another process is working in {path}; wait for it, or choose another --out") from None
    except OSError as error:
        raise UsageError(f"--out {path} is not writable: {error.strerror}") from None


class RunDir(contextlib.AbstractContextManager["RunDir"]):
    """An open run directory; a context manager, which holds its lock."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.manifest: dict[str, Any] = {"stages": {}}
        self._lock = contextlib.ExitStack()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, path: Path, recipe: Recipe, force: bool = False) -> Self:
        """Opens `path` for this recipe: a new run, or the same one continued; with `force` a new one in any case.

        Raises UsageError as `read_manifest`, where another process works in the directory, and where it cannot be written.
        On other ranks than 0 it touches nothing: rank 0 locks and makes the directory for all, before it calls them.
        """
        run = cls(path, recipe)
        if rank() > 0:
            return run
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {path} cannot be made: {error.strerror}") from None
        _refuse_other_files(path)  # before the lock file is added to them
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(path))
            run._continue_or_start(force)
            run._lock = stack.pop_all()
        return run

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _continue_or_start(self, force: bool) -> None:
        for path in self.path.rglob(".*.tmp*"):
            if is_temporary(path.name):  # left by a process that was killed
                path.unlink(missing_ok=True)
        if force and is_run(self.path):
            for name in OURS:
                target = self / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            (self / MANIFEST).unlink(missing_ok=True)  # last: as long as it exists, the directory is known as a run
        manifest = read_manifest(self.path, self.recipe)
        self.manifest = manifest or {"schema": SCHEMA, "created": _now(), "environment": environment(), "stages": {}}
        recipe, text = json.loads(json.dumps(asdict(self.recipe))), to_toml(self.recipe).encode()
        if self.manifest.get("recipe") != recipe:
            self.manifest["recipe"] = recipe
            self._save()  # before anything else: from now on the directory is known as a run
        if not (self / "recipe.toml").is_file() or (self / "recipe.toml").read_bytes() != text:  # new, lost or damaged
            write_bytes(self / "recipe.toml", text)

    def is_done(self, stage: str, key: str) -> bool:
        """Whether the stage has been done under this fingerprint, and its files are still as it left them."""
        if not is_done(self.path, self.manifest, stage, key):
            return False
        outputs = self.manifest["stages"][stage]["outputs"]
        # The directory was copied, or made by an earlier version: its files are read once, not at every start.
        if stale := [name for name, record in outputs.items() if not changes.is_current(self / name, record)]:
            self._record(outputs, stale)
            self._save()
        return True

    def discard_changed(self, stage: str, key: str) -> list[str]:
        """Removes frames and labels that are not as the stage left them, so that it makes them again, and returns their names.
        Raises UsageError for a checkpoint, which would cost a training."""
        done = self.manifest["stages"].get(stage, {})
        changed = list(_changed(self.path, done["outputs"])) if done.get("fingerprint") == key else []
        for name in changed:
            if name.startswith("checkpoints/") and (self / name).exists():
                raise UsageError(f"{self / name} is not as {stage} left it; restore it, or remove it to train again")
            if name.startswith(CACHES) and name.endswith(".npy"):
                (self / name).unlink(missing_ok=True)
        return [name for name in changed if name.startswith(CACHES)]

    def check_inputs(self, now: Mapping[str, Sequence[Path]], narrator: Narrator) -> None:
        """Records fingerprints of the run's external inputs: files and folders, by description. Raises UsageError where one has
        changed since a stage has used it. Contents are read the first time, and where names, sizes or times of change differ."""
        before, used = self.manifest.setdefault("inputs", {}), not _is_fresh(self.manifest)
        for what, paths in now.items():
            known, files = before.get(what), changes.files_in(paths)
            stats = changes.fingerprint_of_stats(files)
            if isinstance(known, dict) and known["stats"] == stats:
                continue
            contents = changes.fingerprint_of_contents(narrator.track(files, "inputs", len(files), unit="files"))
            if used and isinstance(known, dict) and known["contents"] != contents:
                raise UsageError(f"{what} changed since {self.path} read it; choose another --out, or --force to start over")
            before[what] = {"stats": stats, "contents": contents}
            self._save()

    def finish(
        self, stage: str, key: str, outputs: Sequence[str], seconds: float, facts: dict[str, Any], rewritten: str = ""
    ) -> None:
        """Records a stage as done, with the seconds of this last attempt and facts about its result; `rewritten` is a stage whose
        files it has changed."""
        stages = self.manifest["stages"]
        stages[stage] = {"fingerprint": key, "outputs": {}, "seconds": round(seconds, 2), "finished": _now(), **facts}
        self._record(stages[stage]["outputs"], outputs)
        if rewritten:
            self._record(stages[rewritten]["outputs"], list(stages[rewritten]["outputs"]))
        self._save()

    def _record(self, outputs: dict[str, Any], names: Iterable[str]) -> None:
        outputs.update({name: changes.record_of(self / name) for name in names})

    def note(self, **facts: Any) -> None:
        """Adds facts about the whole run to the manifest."""
        self.manifest.update(facts)
        self._save()

    def _save(self) -> None:
        if rank() == 0:
            write_json(self / MANIFEST, self.manifest)


def environment() -> dict[str, str]:
    """Versions of the packages that results depend on. Imports none of them."""
    versions = {"saliency-distill": __version__, "python": sys.version.split()[0], "machine": platform.platform()}
    for package in ("numpy", "onnx", "onnxruntime", "torch", "opencv-python-headless"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

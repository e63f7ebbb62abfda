"""Which run a command means: its recipe and its directory, from the options and from the runs that exist.

`run` alone has a default. The verbs of single stages ask which run where nothing names one, so that none starts a training
unasked. The layout of a corpus is recognised where `--root` stands without `--corpus`.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from distill.cli.options import RunOptions
from distill.labels.members import with_published
from distill.opallowlist.foreign import toml_text
from distill.recipe.files import load_recipe
from distill.recipe.keys import Recipe
from distill.run.directory import MANIFEST, is_run, recipe_of
from distill.run.errors import UsageError
from distill.run.progress import Narrator

RUNS = Path("runs")
"""Where runs are made, unless --out names another place."""
SHOWN_RUNS = 5


@dataclass(frozen=True)
class Chosen:
    """A run: its resolved recipe, and its directory, which may not exist yet."""

    recipe: Recipe
    path: Path


def choose_run(recipe: Path | None, corpus: str | None, options: RunOptions, narrator: Narrator, verb: str = "run") -> Chosen:
    """The run that the arguments describe. A run directory, as `recipe` or as --out alone, means the recipe in it.

    Says what a --root without --corpus holds. Raises UsageError where nothing names a run, except for the verb `run`; for a
    folder that is no run; and as `load_recipe`.
    """
    named = recipe or options.out
    run = named and _run_at(named)
    if recipe and recipe.is_dir() and not run:
        raise UsageError(f"{recipe} is a folder and no run; {_meant(recipe, verb)}")
    out, source, sets = options.out or run, options.source, options.sets or []
    keys = {text.partition("=")[0].strip() for text in sets}
    if source and not out:
        raise UsageError(f"--from {source} starts another run; give its directory with --out")
    if source and not is_run(source):
        raise UsageError(f"--from {source} holds no run; give the folder of one")
    if verb != "run" and not (recipe or run or source or corpus or options.root or "corpus.name" in keys):
        raise UsageError(f"{f'{out} holds no run; ' if out else ''}which run? {_how_to_name_one(verb)}")
    own = run or (None if recipe else source)
    base = recipe_of(own) if own else load_recipe(recipe)
    if options.root and not corpus and "corpus.name" not in keys and base.corpus.name == "synthetic":
        corpus = recognised(options.root, narrator)
    given = {
        "corpus.name": corpus, "corpus.root": options.root, "teacher.name": options.teacher, "teacher.maps": options.maps,
        "teacher.accept_licence": options.accept,
    }  # fmt: skip
    flags = [f"{n}={toml_text(v if isinstance(v, str) else [str(p) for p in v])}" for n, v in given.items() if v]
    resolved = with_published(load_recipe(base, [*flags, *sets]))
    if (options.maps or "teacher.maps" in keys) and resolved.teacher.maps and resolved.teacher.name != "maps":
        option = "--maps" if options.maps else "--set teacher.maps"
        raise UsageError(f"{option} is read by the teacher maps, and this run's is {resolved.teacher.name}; add --teacher maps")
    return Chosen(resolved, out or RUNS / _name_of(recipe, resolved))


def models_elsewhere(target: Path | None, options: RunOptions) -> list[Path]:
    """The ONNX files of a run that are to be scored on the corpora of --root; none where --root is the run's own, or there is no run.

    Raises UsageError where the run has none yet, and where --out names no run and nothing says how to make one.
    """
    named, out = target or options.out, options.out
    if not (named and options.root):
        return []
    path = _run_at(named)
    if path is None:
        if target or any((options.teacher, options.maps, options.source)):
            return []
        raise UsageError(
            f"{out} holds no run; leave --out out to score the student that ships, or make the run with `distill run`"
        )
    own = recipe_of(path)
    roots = [own.corpus.root] if isinstance(own.corpus.root, str) else own.corpus.root
    if [Path(root).resolve() for root in roots] == [root.resolve() for root in options.root] or (target and out):
        return []
    models = [path / "export" / f"{own.run.name}{mode}.onnx" for mode in ("_step", "")]
    if lacking := [model for model in models if not model.is_file()]:
        raise UsageError(f"there is no {lacking[0]} yet; finish the run with `distill run {shlex.quote(str(path))}`")
    return models


def _run_at(path: Path) -> Path | None:
    """The run that a path names: its folder, or the recipe.toml in it; None for anything else."""
    folder = path.parent if path.name == "recipe.toml" else path
    return folder if is_run(folder) else None


def recognised(roots: list[Path], narrator: Narrator) -> str:
    """The name of the corpus in these folders, by their layout; says what was found."""
    from distill.corpora import recognise  # needs OpenCV, which usage errors should not cost

    name, found = recognise(roots)
    for line in found:
        narrator.say(f"corpus: {line}")
    return name


def corpus_recipe(corpora: list[str], options: RunOptions, narrator: Narrator) -> Recipe:
    """A recipe for verbs that need only a corpus, whose folders --root names. Raises UsageError without one."""
    if not options.root:
        raise UsageError("which clips? give the corpus's folder with --root")
    name = ",".join(corpora) or recognised(options.root, narrator)
    overrides = [f"corpus.name={toml_text(name)}", f"corpus.root={toml_text([str(path) for path in options.root])}"]
    return load_recipe(None, [*overrides, *(options.sets or [])])


def _meant(folder: Path, verb: str) -> str:
    """What a folder that is no run may be."""
    if (folder / "recipe.toml").is_file():
        return f"did you mean {folder / 'recipe.toml'}?"
    return f"a corpus is named as `distill {verb} --root {shlex.quote(str(folder))}`"


def _name_of(recipe: Path | None, resolved: Recipe) -> str:
    if recipe is not None:  # `distill init DIR` always writes recipe.toml: DIR tells them apart
        return recipe.stem if recipe.name != "recipe.toml" else recipe.resolve().parent.name
    corpora = "+".join(part.partition(":")[0].strip() for part in resolved.corpus.name.split(","))
    return f"{corpora}-{resolved.teacher.name.replace(':', '')}"


def _how_to_name_one(verb: str) -> str:
    found = sorted(RUNS.glob("*/"), key=_last_change, reverse=True) if RUNS.is_dir() else []
    runs = [path for path in found if is_run(path)]
    if not runs:
        return f"none is under {RUNS}/; give a run, a recipe, or --root with a corpus; `distill run` makes the default run"
    newest, *others = [shlex.quote(str(path)) for path in runs[: SHOWN_RUNS + 1]]
    more = f"; others: {', '.join(others)}" if others else ""
    return f"give a run or a recipe, as in `distill {verb} {newest}`{more}"


def _last_change(path: Path) -> float:
    manifest = path / MANIFEST
    return manifest.stat().st_mtime if manifest.exists() else 0.0

"""The recipes that ship with this package, and copies of them: `distill init --list`, `distill init --from NAME`.

    release, permissive, ...    the recipes behind the published numbers, with the files that they name
    ablations/                  variants of them, which state only what differs

Their data do not ship: a recipe says what its folders hold. Here those stand beside the checkout; a copy expects them beside itself.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distill.recipe.files import did_you_mean, to_toml
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError
from distill.run.files import write_together

FOLDER = Path(__file__).resolve().parent
OUTSIDE = re.compile(r"(?:\.\./)+(?:shared/)?")  # where recipes find their data from this folder
STRING = re.compile(r'"([^"\n]*)"')
COMMENT = re.compile(r"(?m)#.*$")
NOTES = re.compile(r"(?m)^notes = .*\n")  # they tell of the student that ships


class Written(NamedTuple):
    """A copy: its files, the recipe first; and what it names that must still be put there."""

    files: list[Path]
    lacking: list[Path]


def shipped() -> dict[str, str]:
    """The names of the recipes and the first sentence of each; variants last."""
    paths = sorted(FOLDER.rglob("*.toml"), key=lambda path: (path.parent != FOLDER, path))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): _first_sentence(path) for path in paths}


def write_default(folder: Path) -> Written:
    """Writes `folder`/recipe.toml with every key, its default and its meaning. Raises UsageError where it exists."""
    return _write(folder, {"recipe.toml": to_toml(Recipe(), comments=True)}, [])


def write_copy(name: str, folder: Path) -> Written:
    """Writes `folder`/recipe.toml, and beside it the recipes that it builds on and the other files that they name.

    Raises UsageError for an unknown name, and where one of the files exists.
    """
    if name not in (known := shipped()):
        raise UsageError(f"unknown recipe '{name}'{did_you_mean(name, known)}")
    texts: dict[str, str] = {}
    named = dict.fromkeys(_copy(FOLDER / f"{name}.toml", "recipe.toml", texts))
    return _write(folder, texts, [folder / path for path in named])


def _copy(origin: Path, name: str, texts: dict[str, str]) -> Iterator[str]:
    """Adds the text of a file to `texts` under `name`, and the files of this folder that it names; yields what else it names."""
    text = origin.read_text(encoding="utf-8")
    if origin.suffix != ".toml":
        texts[name] = text
        return
    text = NOTES.sub("", text)
    texts[name] = STRING.sub(lambda string: OUTSIDE.sub("", string[0]), text)
    for named in STRING.findall(COMMENT.sub("", text)):
        path = (origin.parent / named).resolve()
        if path.is_relative_to(FOLDER) and path.is_file():
            yield from _copy(path, path.name, texts)
        elif OUTSIDE.match(named := named.rpartition("=")[2]):
            yield OUTSIDE.sub("", named)


def _write(folder: Path, texts: dict[str, str], named: list[Path]) -> Written:
    files = {folder / name: text.encode() for name, text in texts.items()}
    if there := next((path for path in files if path.exists()), None):
        raise UsageError(f"{there} exists; remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_together(files)
    return Written([*files], [path for path in named if not path.exists()])


def _first_sentence(path: Path) -> str:
    """Of the comment that a recipe begins with."""
    head = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    text = " ".join(line.removeprefix("# ") for line in head[0].splitlines()) if head else ""
    return re.split(r"(?<=\.)(?:\s|$)", text)[0].removesuffix(".")

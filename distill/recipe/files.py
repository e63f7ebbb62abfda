"""Reading, overriding, comparing and writing recipes.

Later values win: the defaults of `distill.recipe.keys`, the recipe file after the recipes it builds on, then
`--set section.key=value`. The resolved recipe is written into the run directory and can itself be run.

The loader is our own on purpose: the core install needs no configuration library such as pydantic, and a wrong key gets the
nearest right one as a suggestion, in any section.
"""

import dataclasses
import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.opallowlist.foreign import toml_text
from distill.recipe.keys import SECTIONS, STUDENT_ABOUT, Recipe
from distill.run.errors import UsageError

MOST = 2**31 - 1
"""The largest whole number of a key that states no other bound: what torch and numpy count with."""


def load_recipe(start: Path | Recipe | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe from a TOML file (or another recipe, or the defaults) with `section.key=value` overrides on top.

    A file may begin with `base = "OTHER.toml"`: it then holds only the differences from that recipe.

    Raises UsageError for a missing or unreadable file, an unknown key, a wrong type, or a value out of range.
    """
    values = dataclasses.asdict(start if isinstance(start, Recipe) else Recipe())
    for file, contents in _with_bases(start) if isinstance(start, Path) else ():
        _merge(values, contents, folder=file.resolve().parent, where=str(file))
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name.count(".") != 1:
            raise UsageError(f"--set takes section.key=value, got {override!r}")
        section, option = name.strip().split(".")
        value = _parsed(text.strip(), typing.get_type_hints(SECTIONS.get(section, object)).get(option))
        _merge(values, {section: {option: value}}, folder=Path.cwd(), where=f"--set {override}")
    return from_dict(values)


def _parsed(text: str, type_: Any) -> Any:
    """The value of `--set` for a key of this type: TOML, or the text itself. A bare word is a string, and so is the name 1.10."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    holds_text = str in (type_, *typing.get_args(type_))
    return text if holds_text and not isinstance(value, str | list) else value


def recipe_from(values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe in plain values, as `dataclasses.asdict` gives them; keys that are not there have their defaults.

    Raises UsageError as `load_recipe`, with `where` before its messages.
    """
    complete = dataclasses.asdict(Recipe())
    _merge(complete, values, folder=Path.cwd(), where=where)
    return from_dict(complete)


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """File and contents of the recipe and of the recipes it builds on, bases first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if os.path.realpath(path) in [os.path.realpath(file) for file, _ in chain]:
            raise UsageError(f"recipe {path} builds on itself, over {', '.join(str(file) for file, _ in chain)}")
        if chain and not path.is_file():
            raise UsageError(f"recipe {chain[0][0]} builds on {path}, which does not exist")
        try:
            contents = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a mark of byte order
        except FileNotFoundError:
            raise UsageError(
                f"no recipe at {path}; `distill init` writes one, and `distill init --list` names those that ship"
            ) from None
        except UnicodeDecodeError as error:
            raise UsageError(f"recipe {path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from None
        except RecursionError:
            raise UsageError(f"recipe {path} cannot be read: its arrays or tables are nested too deep") from None
        base = contents.pop("base", None)
        chain.insert(0, (path, contents))
        if base is None:
            return chain
        if not isinstance(base, str) or "\0" in base:
            raise UsageError(f"recipe {path}: `base` must be the path of another recipe, got {base!r}")
        path = path.parent / Path(base).expanduser()


def _merge(values: dict[str, Any], changes: Mapping[str, Any], folder: Path, where: str) -> None:
    """Overlays `changes` on `values` in place; unknown names and wrong types raise UsageError."""
    for section, options in changes.items():
        section_type = SECTIONS.get(section)
        if section_type is None:
            raise UsageError(f"{where}: unknown section '{section}'{did_you_mean(section, SECTIONS)}")
        if not isinstance(options, Mapping):
            raise UsageError(f"{where}: '{section}' is a section; write [{section}] with keys below it")
        types_ = typing.get_type_hints(section_type)
        fields = {f.name: f for f in dataclasses.fields(section_type)}
        for option, value in options.items():
            if option not in fields:
                raise UsageError(f"{where}: unknown key '{section}.{option}'{_nearest_key(section, option)}")
            value = _typed(value, types_[option], f"{section}.{option}", where)
            if fields[option].metadata.get("path") and value:
                names = fields[option].metadata["fetched"]
                value = (
                    _absolute(value, folder) if isinstance(value, str) else tuple(_absolute(v, folder, names) for v in value)
                )
            values[section][option] = value


def _absolute(value: str, folder: Path, names: bool = False) -> str:
    """A path, or NAME=PATH, with the path made absolute from `folder`; the word `random` is not a path.

    names: a file name alone that `folder` lacks stays as it is; it may be that of a fetched file.
    """
    name, equals, path = _named_path(value)
    if names and Path(path).name == path and not (folder / path).exists():
        return value
    return name + equals + (path if path in ("", "random") else str((folder / Path(path).expanduser()).resolve()))


def _nearest_key(section: str, option: str) -> str:
    """A suggestion: the nearest key of the section, else the same key of another section, else all keys of the section."""
    names = [f.name for f in dataclasses.fields(SECTIONS[section])]
    if near := difflib.get_close_matches(option, names, n=1):
        return f"; did you mean '{section}.{near[0]}'?"
    for other, section_type in SECTIONS.items():
        if option in typing.get_type_hints(section_type):
            return f"; did you mean '{other}.{option}'?"
    return f"; keys of [{section}]: {', '.join(names)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def _typed(value: Any, type_: Any, name: str, where: str) -> Any:
    """`value` as `type_`, the annotation of key `name`; a wrong type raises UsageError."""
    if isinstance(type_, types.UnionType):  # one string, or a list of them
        if not isinstance(value, list | tuple):
            return _typed(value, str, name, where)
        return str(value[0]) if len(value) == 1 else tuple(str(item) for item in value)
    if typing.get_origin(type_) is tuple:
        inner = typing.get_args(type_)[0]
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        return tuple(str(item) if inner is str else _typed(item, inner, name, where) for item in items)
    if type_ in (float, str) and type(value) in (int, float):
        value = type_(value)
    if type(value) is not type_:
        raise UsageError(f"{where}: '{name}' must be {type_.__name__}, got {value!r}")
    return value


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested plain values; a value out of bounds, or a text that is not UTF-8, raises UsageError."""
    sections: dict[str, Any] = {}
    for name, section_type in SECTIONS.items():
        for f in dataclasses.fields(section_type):
            value = values[name][f.name]
            if not_text := [
                v for v in (value if isinstance(value, tuple) else [value]) if isinstance(v, str) and not _is_text(v)
            ]:
                raise UsageError(
                    f"{name}.{f.name} is not UTF-8, and a recipe is; rename what it names, or make a link to it: {not_text[0]}"
                )
            low, high = f.metadata.get("low"), f.metadata.get("high")
            if high is None and type(value) is int:
                high = MOST
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name}.{f.name} must be finite, got {value}")
            if low is not None and value < low:
                raise UsageError(f"{name}.{f.name} must be at least {low}, got {value}")
            if high is not None and value > high:
                raise UsageError(f"{name}.{f.name} must be at most {high}, got {value}")
            if (among := f.metadata.get("among")) and value not in among:
                raise UsageError(f"{name}.{f.name} must be {', '.join(among[:-1])} or {among[-1]}, got {value!r}")
        try:
            sections[name] = section_type(**values[name])
        except ValueError as error:
            raise UsageError(str(error)) from None
    return Recipe(**sections)


def decisive(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe as nested plain values, without the keys that no result depends on."""
    values = dataclasses.asdict(recipe)
    for name, section_type in SECTIONS.items():
        for f in dataclasses.fields(section_type):
            if f.metadata.get("aside"):
                del values[name][f.name]
    return values


def differences(old: Recipe, new: Recipe) -> list[str]:
    """`section.key: old -> new` for every such key in which two recipes differ."""
    a, b = decisive(old), decisive(new)
    return [f"{s}.{o}: {a[s][o]!r} -> {b[s][o]!r}" for s in a for o in a[s] if a[s][o] != b[s][o]]


def portable(recipe: Recipe) -> Recipe:
    """The recipe without what belongs to one machine: folders of its paths, device, threads. Its TOML is what ships with a
    student, and the SHA-256 of that the recipe's fingerprint."""
    values = dataclasses.asdict(recipe)
    for name, section_type in SECTIONS.items():
        for f in dataclasses.fields(section_type):
            value = values[name][f.name]
            if f.metadata.get("machine"):
                values[name][f.name] = f.default
            elif f.metadata.get("path"):
                values[name][f.name] = _last(value) if isinstance(value, str) else tuple(map(_last, value))
    return from_dict(values)


def _last(value: str) -> str:
    """A path, or NAME=PATH, without folders."""
    name, equals, path = _named_path(value)
    return name + equals + Path(path).name


def _named_path(value: str) -> tuple[str, str, str]:
    """`NAME`, `=` and `PATH` of NAME=PATH; the first two are empty for a path alone."""
    return value.partition("=") if re.match(r"[\w.@]+=", value) else ("", "", value)


def to_toml(recipe: Recipe, comments: bool = False) -> str:
    """The recipe as TOML that `load_recipe` reads back; with comments, every key is explained."""
    lines = []
    for name, section_type in SECTIONS.items():
        about = STUDENT_ABOUT if name == "student" else {"": (section_type.__doc__ or "").splitlines()[0]}
        lines += [f"# {about['']}"] * comments + [f"[{name}]"]
        for f in dataclasses.fields(section_type):
            value = getattr(getattr(recipe, name), f.name)
            text = toml_text(list(value) if isinstance(value, tuple) else value)
            lines += [f"# {f.metadata.get('about') or about[f.name]}"] * comments + [f"{f.name} = {text}"]
        lines.append("")
    return "\n".join(lines)


def _is_text(text: str) -> bool:
    """Whether it is Unicode throughout: Python keeps other bytes of a name as surrogates."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)

"""Fills the templates of the report (HTML) and the model card (Markdown).

Text that comes from files or names is printed literally, never as markup: every value that a template inserts is escaped
for its format, unless the value is Markup or the template says `| safe`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&~]|(?<!\w)_|_(?!\w))")  # an underscore inside a word is not markup


def render(template: str, **values: Any) -> str:
    """The file `templates/TEMPLATE.j2`, filled with `values`. A value that is missing raises jinja2.UndefinedError."""
    escape = _markdown if template.endswith(".md") else _printable
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, finalize=escape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # A JSON string is a YAML string.
    environment.filters |= {"counted": counted, "yaml": lambda text: Markup(json.dumps(text, ensure_ascii=False))}
    return environment.get_template(f"{template}.j2").render(**values)


def counted(items: Any, noun: str = "clip") -> str:
    """`1 clip`, `2 clips`."""
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"


def first_names(names: Sequence[str], most: int = 12) -> str:
    """The names, separated by commas, up to `most`, and how many more there are; `none` where there are none."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _printable(value: Any) -> Any:
    """The value without control characters; jinja2 escapes it for HTML afterwards."""
    return _CONTROL.sub(" ", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markdown(value: Any) -> Any:
    """The value on one line, escaped so that it ends no cell of a table and starts no emphasis, link, code or HTML."""
    if isinstance(value, Markup):
        return value
    return Markup(_MARKDOWN.sub(r"\\\1", " ".join(str(_printable(value)).split())))

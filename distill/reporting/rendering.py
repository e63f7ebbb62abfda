"""Fills the templates of the report (HTML) and the model card (Markdown).

Text that comes from files or names is printed literally, never as markup: every value that a template inserts is escaped
for its format, unless the value is Markup or the template says `| safe`.
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.corpora.clips import counted
from distill.opallowlist.foreign import json_text, markdown, printable


def render(template: str, **values: Any) -> str:
    """The file `templates/TEMPLATE.j2`, filled with `values`. A value that is missing raises jinja2.UndefinedError."""
    in_markdown = template.endswith(".md")

    def literal(value: Any) -> str:
        if isinstance(value, Markup):
            return value
        return Markup(markdown(str(value))) if in_markdown else printable(str(value))  # jinja2 escapes it for HTML

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, finalize=literal, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # A JSON string is a YAML string.
    environment.filters |= {"counted": _counted, "slug": _slug, "yaml": lambda text: Markup(json_text(text))}
    return environment.get_template(f"{template}.j2").render(**values)


def _counted(items: Any, noun: str = "clip") -> str:
    return counted(len(items), noun)


def _slug(text: str) -> str:
    """`mean-training-map`: what an id in HTML may be."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

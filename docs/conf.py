"""The site that `make docs` builds: the Markdown files of this folder, and pages made from the README, the model card and the code.

It reads without a server and without a network: no fonts, scripts or pictures from elsewhere, and a search that needs neither.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from distill import __version__
from distill.cli.app import app as distill
from distill.opallowlist.cli import app as opallowlist
from distill.opallowlist.foreign import toml_text
from distill.recipe.files import MOST
from distill.recipe.keys import SECTIONS, STUDENT_ABOUT, Recipe
from distill.reporting.words import WORDS

project, release = "saliency-distill", __version__
root_doc = "index"
extensions = ["myst_parser"]
myst_heading_anchors = 4
smartquotes = False  # they make a dash of --option
html_theme = "furo"
html_title = project
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = html_show_copyright = html_use_index = False
html_show_search_summary = False  # it fetches pages, which browsers refuse for files on the disk
pygments_style, pygments_dark_style = "friendly", "github-dark"

ROOT = Path(__file__).parents[1]
CARD = "students/release/saliency_student.md"


def index(contents: str) -> str:
    """The README, with its links as seen from `docs/`, and the site's contents."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace(f"]({CARD}", "](reference/model-card.md") + "\n" + contents


def model_card(head: str) -> str:
    """The card of the student that ships."""
    text = (ROOT / CARD).read_text(encoding="utf-8").partition("\n# ")[2].partition("\n")[2]
    return head + re.sub(r"\]\((?=[\w.-]+\))", f"](../../{Path(CARD).parent}/", text)


def commands(head: str) -> str:
    """Every verb of both commands, with its arguments and options."""
    parts = [head]
    for app in (distill, opallowlist):
        command = typer.main.get_command(app)
        parts += [f"## {command.name}", *_texts(command), *_verbs(command, str(command.name))]
    return "\n\n".join(parts)


def _verbs(group: Any, path: str) -> Iterator[str]:
    """The verbs of a group: name, usage, text, and a table of arguments and options."""
    for word in group.list_commands(_context(group)):
        verb = group.commands[word]
        if not verb.hidden:
            own = verb.commands[verb.default] if hasattr(verb, "default") else verb  # `distill teach` alone is a hidden verb
            usage = " ".join(own.collect_usage_pieces(_context(own)))
            yield from (f"### {path} {word}", f"```text\n{path} {word} {usage}\n```", *_texts(verb), _parameters(own))
            if own is not verb:
                yield from _verbs(verb, f"{path} {word}")


def _parameters(verb: Any) -> str:
    records = [parameter.get_help_record(_context(verb)) for parameter in verb.get_params(_context(verb))]
    rows = [f"| `{_cell(name)}` | {_cell(about)} |" for name, about in filter(None, records) if name != "--help"]
    return "\n".join(["| argument or option | meaning |", "| --- | --- |", *rows])


def _context(command: Any) -> Any:
    return command.context_class(command)


def _texts(command: Any) -> list[str]:
    return [_markdown(text) for text in (command.help, command.epilog) if text]


def _markdown(text: str) -> str:
    """Markdown of rich's markup; what the help has in bold are commands."""
    return re.sub(r"\[/?bold\]", "`", text)


def _cell(text: str) -> str:
    return _markdown(" ".join(text.split())).replace("|", "\\|")


def recipe_keys(head: str) -> str:
    """A table of keys for each section of a recipe."""
    parts = [head]
    for name, section in SECTIONS.items():
        about = STUDENT_ABOUT if name == "student" else {"": " ".join((section.__doc__ or "").split())}
        own = getattr(Recipe(), name)
        rows = [_key(f, getattr(own, f.name), f.metadata.get("about") or about[f.name]) for f in dataclasses.fields(section)]
        header = ["| key | default | bounds | meaning |", "| --- | --- | --- | --- |"]
        parts += [f"## {name}", about[""], "\n".join(header + rows)]
    return "\n\n".join(parts)


def _key(f: dataclasses.Field, value: Any, meaning: str) -> str:
    low, high, among = (f.metadata.get(name) for name in ("low", "high", "among"))
    bounds = ", ".join(f"`{word}`" for word in among or ())
    if low is not None:
        bounds = f"{low:,} or more" if high is None or high > MOST else f"{low:,} to {high:,}"
    default = toml_text(list(value) if isinstance(value, tuple) else value)
    return f"| `{f.name}` | `{_cell(default)}` | {bounds} | {_cell(meaning)} |"


def words(head: str) -> str:
    """What the report explains, as a table."""
    rows = [f"| {_cell(word)} | {_cell(meaning)} |" for word, meaning in WORDS.values()]
    return "\n".join([head, "| word | meaning |", "| --- | --- |", *rows])


MADE = {
    "index": index,
    "reference/model-card": model_card,
    "reference/commands": commands,
    "reference/recipe-keys": recipe_keys,
    "reference/words": words,
}
"""The pages that are made when the site is built: from the text of their file to all of it."""


def setup(app: Any) -> None:
    app.connect("source-read", _make)


def _make(app: Any, page: str, source: list[str]) -> None:
    source[0] = MADE.get(page, str)(source[0])

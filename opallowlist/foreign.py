"""Text that is not ours, made fit for the place where it goes: names of files, clips, columns and nodes, metadata, messages of
libraries. None of it may act as markup, as control of a terminal, as HTML or as a formula.

Whatever prints or writes such text calls one of these functions, last: `printable` for the terminal, standard error and logs,
`json_text`, `toml_text`, `csv_text`, `markdown`, and `figure_text` for drawings; HTML is `printable` and then escaped by jinja2.
Values in memory, in JSON and in ONNX files stay as they are. Standard library only.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

_FORMULA = tuple("=+-@＝＋－＠")  # how a cell begins that a spreadsheet computes; tabs and line ends are escaped before
_MARKDOWN = re.compile(r"([\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)|^[-+=](?=\s|$)|^\d+(?=[.)](?:\s|$)))")  # `_` in a word is not markup
_ENTITIES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def printable(text: str) -> str:
    """`text` on one line, with everything escaped that is not a visible character or a space: control characters, line ends,
    invisible ones, those that change the direction of writing, and bytes of names that are not UTF-8 (`caf\\xe9`)."""
    return _replaced(text, _escaped)


def printable_lines(text: str) -> str:
    """`printable`, line by line."""
    return "\n".join(map(printable, text.split("\n")))


def json_text(value: Any, indent: int | None = 1) -> str:
    """`value` as JSON: exact, for every string, and printable, because what is not visible is written as `\\uXXXX`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _replaced(text, lambda c: c if c == "\n" else json.dumps(c)[1:-1])


def toml_text(value: Any) -> str:
    """A string, number, boolean or list of them as TOML: exact and printable. TOML has no bytes that are not UTF-8: such a name
    gives text that cannot be encoded."""
    text = json.dumps(value, ensure_ascii=False)
    return _replaced(text, lambda c: c if 0xD800 <= ord(c) <= 0xDFFF else f"\\U{ord(c):08x}")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """The rows as CSV. A text that a spreadsheet would take for a formula gets a `'` before it; numbers stay numbers."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def markdown(text: str) -> str:
    """`text` on one line of Markdown: it ends no cell of a table and starts no emphasis, link, code, list or HTML."""
    line = " ".join(printable(" ".join(text.split())).split())
    return re.sub(_MARKDOWN, _backslashed, line).translate(_ENTITIES)


def figure_text(text: str) -> str:
    """`text` as matplotlib draws it literally: a pair of `$` would make a formula of what is between."""
    return printable(text).replace("$", r"\$")


def _replaced(text: str, replacement: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return text.translate({ord(c): replacement(c) for c in set(text) if not c.isprintable()})


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _backslashed(match: re.Match[str]) -> str:
    found = match[0]
    return f"{found}\\" if found[0].isdigit() else f"\\{found}"  # `1\.` is no list, and `\1` no escape


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text

"""Operator lists: the built-in one, and the three file formats of a list.

| file | read as |
| --- | --- |
| `*.c`, `*.h`, `*.cc`, `*.cpp` | C source: the string table whose name contains "allow", as the compiler would see it |
| lines of `domain;opset;Op,Op` | ONNX Runtime's `required_operators.config` |
| anything else | plain text: names separated by white space or commas, `#` starts a comment |

A list that cannot be read exactly is an error, never a guess: a wrong extra name accepts a model that the downstream refuses.
Standard library only.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypeAlias

BUILT_IN = ("libvmaf",)

MAX_LIST_BYTES = 1 << 20
"""A list has some hundred names; a file of a megabyte was given by mistake."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONFIG_LINE = re.compile(r"[\w.]*;[\d,\s]*;")
_C_SUFFIXES = {".c", ".h", ".cc", ".cpp", ".cxx", ".hpp"}


class ListError(ValueError):
    """An operator list that does not exist or cannot be read exactly; the message names the place and the way out."""


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Operators of the default domain, compared case by case and byte for byte."""

    name: str
    ops: frozenset[str]

    def __contains__(self, op_type: object) -> bool:
        return op_type in self.ops

    def __len__(self) -> int:
        return len(self.ops)


AnyList: TypeAlias = str | os.PathLike[str] | Allowlist
"""The name of a built-in list, the file of a list, or a list."""


def load_list(source: str | os.PathLike[str]) -> Allowlist:
    """The list called `source` (`libvmaf`), or the one in the file `source`.

    A built-in name wins over a file of that name in the working directory (write `./libvmaf` for the file). Raises
    ListError for an unknown name, an unreadable file, or content that is not exactly one list.
    """
    if isinstance(source, str) and source in BUILT_IN:
        text = resources.files(__package__).joinpath(f"{source}.txt").read_text("utf-8")
        return Allowlist(source, _plain_text(text, source))
    path = Path(source)
    text = _read(path)
    if path.suffix.lower() in _C_SUFFIXES:
        ops = _c_table(text, str(source))
    elif any(_CONFIG_LINE.match(line) for line in text.splitlines()):
        ops = _required_operators(text, str(source))
    else:
        ops = _plain_text(text, str(source))
    if not ops:
        raise ListError(f"{source}: no operators in this list; every model would be refused")
    return Allowlist(str(source), ops)


def _read(path: Path) -> str:
    try:
        if not path.exists():
            import difflib  # takes 5 ms, needed only for a wrong name

            near = difflib.get_close_matches(str(path), BUILT_IN, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"built in: {', '.join(BUILT_IN)}"
            raise ListError(f"no list and no file is called '{path}'; {hint}")
        if not path.is_file():
            raise ListError(f"{path}: not a file; give a list of operators as text or C source")
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_LIST_BYTES:
        raise ListError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes; is this an operator list?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ListError(f"{path}: not text (byte {error.start:,}); give a list of operators as text or C source") from error


def _names(words: Iterable[str], where: str) -> list[str]:
    names = list(words)
    for name in names:
        if not _NAME.match(name):
            raise ListError(f"{where}: {name[:40]!r} is not an operator name; one name per line, '#' starts a comment")
    return names


def _plain_text(text: str, source: str) -> frozenset[str]:
    ops: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].replace(",", " ")
        ops.update(_names(content.split(), f"{source}:{number}"))
    return frozenset(ops)


def _required_operators(text: str, source: str) -> frozenset[str]:
    """`domain;opset;Op,Op{"inputs": ...}`. Operators of other domains are left out: the gate refuses them anyway."""
    ops: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content or content.startswith("!"):  # "!globally_allowed_types;..." and similar lines are build options
            continue
        where = f"{source}:{number}"
        parts = content.split(";", 2)
        if len(parts) != 3:
            raise ListError(f"{where}: expected 'domain;opset;Op,Op', got {content[:40]!r}")
        domain, _, names = parts
        if domain in ("", "ai.onnx"):
            depth, flat = 0, ""  # the text outside braces
            for character in names:
                if depth == 0 and character not in "{}":
                    flat += character
                depth += (character == "{") - (character == "}")
            if depth:
                raise ListError(f"{where}: braces do not match")
            ops.update(_names((word.strip() for word in flat.split(",") if word.strip()), where))
    return frozenset(ops)


# C tokens, enough to read a flat table of string literals. A search for quoted words would be wrong: comments quote names that
# are not in the table, and a missing comma joins two names into one.
_C_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?(?:\*/|\Z)|//(?:\\\r?\n|[^\n])*)
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<char>'(?:\\.|[^'\\\n])*')
      | (?P<directive>^[ \t]*\#(?:\\\r?\n|[^\n])*)
      | (?P<word>[A-Za-z_]\w*|\d[\w.]*)
      | (?P<space>\s+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_C_END = {"NULL", "nullptr", "0"}


class _Token(NamedTuple):
    kind: str | None
    text: str
    offset: int


def _c_table(text: str, source: str) -> frozenset[str]:
    tokens = [
        _Token(match.lastgroup, match.group(), match.start())
        for match in _C_TOKEN.finditer(text)
        if match.lastgroup not in ("comment", "space")
    ]
    tables = [
        (_declared_name(tokens, at), at + 2)
        for at in range(len(tokens) - 2)
        if tokens[at].text == "=" and tokens[at + 1].text == "{" and tokens[at + 2].kind in ("string", "directive")
    ]
    chosen = [table for table in tables if "allow" in table[0].lower()] or tables
    if not chosen:
        raise ListError(f'{source}: no table of strings (NAME[] = {{"Op", ...}}) in this C source')
    if len(chosen) > 1:
        names = ", ".join(name for name, _ in chosen[:4])
        raise ListError(f"{source}: several tables of strings ({names}); keep one whose name contains 'allow'")
    name, start = chosen[0]

    def problem(token: _Token, what: str) -> ListError:
        return ListError(f"{source}:{text.count(chr(10), 0, token.offset) + 1}: {what} inside {name}")

    ops: set[str] = set()
    literals: list[str] = []
    ended = False  # the lookup loop stops at the first NULL
    for token in tokens[start:]:
        if token.kind == "directive":
            raise problem(token, "preprocessor line (give the list as plain text instead)")
        if token.kind == "string":
            literals.append(token.text[1:-1])
        elif token.text in (",", "}"):
            # Adjacent literals are one string to the compiler: a forgotten comma makes "ReluSigmoid".
            entry = "".join(literals)
            if literals and not ended:
                if not _NAME.match(entry):
                    raise problem(token, f"{entry[:40]!r} is not an operator name")
                ops.add(entry)
            literals = []
            if token.text == "}":
                return frozenset(ops)
        elif token.text in _C_END:
            ended = True
        else:
            raise problem(token, f"{token.text!r} where only string literals and NULL can be read")
    raise ListError(f"{source}: table {name} has no end")


def _declared_name(tokens: list[_Token], equals: int) -> str:
    """The identifier before `[...] =`; attributes and dimensions may be in between."""
    for at in range(equals - 1, max(equals - 32, 0), -1):
        if tokens[at].text == "[":
            return tokens[at - 1].text
    return "?"

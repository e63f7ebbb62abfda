"""What the command line prints: JSON, tables and scores on standard output; Ctrl-C, and narration on standard error.

Only this file, `exits` and the narrator print. Names and messages pass through `opallowlist.foreign` here, so that verbs need
not think of it: no text becomes markup or terminal control.
"""

import json
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distill.cli.tables import GAP, WORD_WIDTH, fit_to_width
from distill.opallowlist.foreign import json_text, printable
from distill.run.machine import parallel
from distill.run.progress import Narrator
from distill.students.release import NAME, release_model

PIPED_WIDTH = 120  # characters of a line that is not printed on a terminal, unless COLUMNS says another number
LONG_TEXT = 600  # characters of a value that a table shows

objects_printed = 0
"""JSON objects that this process has printed: a verb prints one, its result or its error."""


def interruptible(quiet: bool) -> Narrator:
    """A narrator for long work: the first Ctrl-C asks for an orderly end, the second ends at once."""
    asked = threading.Event()

    def handle(signum: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if parallel.rank() == 0:
            print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return Narrator(quiet, asked.is_set)


def shipped(narrator: Narrator, mode: Literal["step", "image"] = "step") -> Path:
    """The student that ships with this package, for a verb that was given none; says so."""
    path = release_model(mode)
    narrator.say(f"model: {path.name}, which ships with this package; its card: {path.with_name(f'{NAME}.md')}")
    return path


def print_text(*lines: Any) -> None:
    """One line for each value."""
    for line in lines:
        print(printable(str(line)))


def print_prose(*paragraphs: str) -> None:
    """Sentences, wrapped between words."""
    for text in paragraphs:
        print_text(*textwrap.wrap(printable(text), width(), break_long_words=False, break_on_hyphens=False))


def print_json(value: Any) -> None:
    """One JSON object, exact whatever standard output can encode."""
    global objects_printed
    objects_printed += 1
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json_text(value) if unicode else json.dumps(value, indent=1))


def print_files(files: Iterable[Any], as_json: bool = False) -> None:
    """The files that were written: one per line, or one JSON object."""
    if as_json:
        print_json({"schema": 1, "files": [str(file) for file in files]})
        return
    print_text(*files)


def print_facts(facts: Mapping[str, Any], title: str = "", as_json: bool = False) -> None:
    """Names and values, one per row; or one JSON object. Values wrap between words, and none is broken: a SHA-256 can be copied."""
    if as_json:
        print_json({"schema": 1, **facts})
        return
    print_text(*filter(None, [title]))
    texts = {printable(name): printable(_as_text(value)) for name, value in facts.items()}
    names = max(map(len, texts), default=0) + GAP
    for name, text in texts.items():
        first, *others = textwrap.wrap(text, max(width() - names, 1), break_long_words=False, break_on_hyphens=False) or [""]
        print_text(f"{name:{names}}{first}".rstrip(), *(f"{'':{names}}{line}" for line in others))


def _as_text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(map(_as_text, value))
        case dict():
            return ", ".join(f"{name}: {_as_text(v)}" for name, v in value.items())
    text = re.sub(rf"\S{{{WORD_WIDTH},}}", lambda word: word[0].replace(",", ", "), str(value))  # so that lists of ids wrap
    return text if len(text) <= LONG_TEXT else f"{text[:LONG_TEXT].rpartition(' ')[0]} ... (--json has it all)"


def width() -> int:
    """The characters of a line: the terminal's, or what COLUMNS says, or PIPED_WIDTH."""
    return Console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH


def new_table(**options: Any) -> Table:
    """A table without lines between its columns, so that 80 characters hold many."""
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), collapse_padding=True, **options)


def print_rows(rows: list[dict[str, str]], title: str = "") -> None:
    """Rows with the same keys, as a table; columns of numbers are right-aligned.

    Cells wrap between words, and no word is broken. Columns before the last that do not fit are left out and named.
    """
    rows = [{printable(name): printable(str(value)) for name, value in row.items()} for row in rows]
    least = {name: max(map(_longest_word, (name, *(row[name] for row in rows)))) for name in (rows[0] if rows else {})}
    names, left_out = list(least), list[str]()
    while len(names) > 2 and sum(least[name] + GAP for name in names) - GAP > width():
        left_out.insert(0, names.pop(-2))
    table = new_table(title=printable(title) or None, title_justify="left", title_style="")
    for i, name in enumerate(names):
        number = i > 0 and all(re.sub("[.,-]", "", row[name] or "0").isdigit() or row[name] == "-" for row in rows)
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number, min_width=least[name])
    for row in rows:
        table.add_row(*(row[name] for name in names))
    print_table(table)
    if left_out:
        print_text(f"no room for {', '.join(left_out)}: use a wider terminal or --json")


def _longest_word(text: str) -> int:
    return max((min(len(word), WORD_WIDTH) for word in text.split()), default=0)


def print_table(table: Table) -> None:
    """As wide as `width` allows; without the spaces at the ends of its lines."""
    console = Console(highlight=False, markup=False, emoji=False, width=width())
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def print_scores(name: str, result: dict[str, Any], per_clip: bool) -> None:
    """Tables of one corpus: scores, differences and, with per_clip, every clip."""
    from distill.corpora.clips import counted
    from distill.evaluation import statistics, tables

    amount = f"{counted(len(result['clips']), 'clip')}, {counted(result['frames_scored'], 'frame')}"
    counts = "; ".join([f"{name}: {amount}", *statistics.remarks(result)])
    protocol = f"{result['protocol']}: {result['about']}; 95 % intervals over clips"
    print_cells(f"{counts}\n{protocol}", "predictor", tables.score_cells(result))
    if result["differences"]:
        first = result["differences"]["of"]
        print_cells(f"how {first} differs, on the same clips", "difference", tables.difference_cells(result))
    if per_clip:
        print_cells("NSS, clip by clip", "clip", tables.clip_cells(result))


def print_cells(heading: str, head: str, cells: list[Any]) -> None:
    """A table that fits the line; columns that do not are left out and named."""
    cells = [(printable(name), {printable(column): cell for column, cell in row.items()}) for name, row in cells]
    rows, left_out = fit_to_width(printable(head), cells, width())
    table = new_table()
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    print_prose(*heading.split("\n"))
    print_table(table)
    if left_out:
        print_text(f"no room for {', '.join(left_out)}: use a wider terminal, --csv or --json")

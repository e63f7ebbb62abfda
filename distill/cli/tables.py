"""Tables that fit a terminal: which cells wrap, and which columns are left out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.evaluation.tables import Cells

GAP = 2  # spaces between the columns of a table
WORD_WIDTH = 36  # characters of a word that a table never breaks; longer ones are paths
NAME_WIDTH = 24  # characters at which the column of names may wrap in a narrow terminal; at a longer word, up to WORD_WIDTH


def fit_to_width(head: str, cells: "Cells", width: int) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of a table of at most `width` characters, and the columns that had to be left out. Where intervals do not fit beside their
    values, half their width is on a second line. At least one column remains."""
    columns = list(cells[0][1]) if cells else []
    wide = [{head: name, **{c: f"{row[c].value} {row[c].interval}".rstrip() for c in columns}} for name, row in cells]
    words = (word for name in (head, *(name for name, _ in cells)) for word in name.split())
    names = max([NAME_WIDTH, *(min(WORD_WIDTH, len(word)) for word in words)])
    if table_width(wide, names) <= width:
        return wide, []
    narrow = [{head: name, **{c: f"{row[c].value}\n{row[c].half}".rstrip() for c in columns}} for name, row in cells]
    for count in range(len(columns), 0, -1):
        rows = [{key: row[key] for key in (head, *columns[:count])} for row in narrow]
        if count == 1 or table_width(rows, names) <= width:
            return rows, columns[count:]
    return narrow, []


def table_width(rows: Sequence[Mapping[str, str]], name_width: int) -> int:
    """The width in characters of a table of these rows, with the space between columns, if names fold at `name_width`."""
    widths = [max(len(line) for row in rows for line in (key, *row[key].split("\n"))) for key in rows[0]]
    return sum(GAP + w for w in (min(widths[0], name_width), *widths[1:])) - GAP

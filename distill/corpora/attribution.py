"""Who made the clips and under which licence, file by file, from a CSV file beside the recipe (`corpus.attribution`):

    file,source,author,licence
    photos/coco/001.jpg,https://...,Jane Doe,CC BY 2.0
    osie/img/*,https://...,"Xu et al., JoV 2014",MIT

`file` is a clip's video, image or folder of frames, below the name of its corpus's folder; `*`, `?` and `[...]` as in a shell.
The first line that matches a file is the one that counts.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from distill.corpora.clips import Clip, first_few, leaving_out
from distill.run.errors import UsageError

COLUMNS = ("file", "source", "author", "licence")


@dataclass(frozen=True)
class Attribution:
    """One file, or one pattern of files: where it is from, who made it, under which licence."""

    file: str
    source: str
    author: str
    licence: str

    @property
    def folder(self) -> str:
        return self.file.rpartition("/")[0]


def file_of(clip: Clip, root: str | Path) -> str:
    """The name by which a clip's file is attributed: `osie/img/1001.jpg` for `/data/osie/img/1001.jpg` in the corpus `/data/osie`."""
    root = Path(root)
    return f"{root.name}/{Path(clip.video).relative_to(root).as_posix()}"


def attribute(table: Path, files: Mapping[str, str]) -> dict[str, Attribution]:
    """The line of every clip; `files` and the result are by id. Raises UsageError for an unusable table or clips without a line."""
    lines = _read(table)
    found = {clip: next((line for line in lines if fnmatchcase(file, line.file)), None) for clip, file in files.items()}
    if without := [clip for clip, line in found.items() if line is None]:
        way_out = f"add source, author and licence, or {leaving_out(without)}"
        raise UsageError(f"corpus.attribution {table} has no line for {first_few([files[c] for c in without])}; {way_out}")
    return {clip: Attribution(files[clip], line.source, line.author, line.licence) for clip, line in found.items() if line}


def _read(table: Path) -> list[Attribution]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"corpus.attribution {table} cannot be read: {error}") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UsageError(f"corpus.attribution {table}: the first line must be {','.join(COLUMNS)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(COLUMNS) or not all(row):
            raise UsageError(f"corpus.attribution {table}, row {number}: needs {', '.join(COLUMNS)}; got {','.join(row)!r}")
    return [Attribution(*row) for row in rows[1:]]

"""The notes of a model card (`export.notes`): Markdown written by hand, with its pictures, which ship beside the card."""

import re
from pathlib import Path

from distill.run.errors import UsageError

_PICTURE = re.compile(r"(!\[[^\]]*\]\()([^)\s:]+)(?=\))")  # of a file: an address has a colon


def read_notes(path: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """The text for the card of the student `name`, and its pictures by the names that the text gives them, `NAME.FILE`.

    Raises UsageError where the file or one of its pictures cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        linked = {target: (path.parent / target).read_bytes() for _, target in _PICTURE.findall(text)}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"export.notes {path}: {error}") from None
    files = {f"{name}.{Path(target).name}": content for target, content in linked.items()}
    return _PICTURE.sub(lambda match: f"{match[1]}{name}.{Path(match[2]).name}", text), files

"""Foreign names in figures that matplotlib draws: fonts for letters that its own lacks, and escapes for what no font has. A figure
then has no empty boxes, and matplotlib does not warn.

    with rc_context(fonts()):
        axis.set_title(lettered(name))
"""

from functools import cache
from typing import Any

from distill.opallowlist.foreign import figure_text

OWN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic
WIDE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
    "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Unifont",
)  # fmt: skip
"""Fonts that have more: they are used where they are installed."""


def fonts() -> dict[str, Any]:
    """matplotlib's settings."""
    return {"font.family": list(_families())}


def lettered(text: str) -> str:
    """`text` as matplotlib draws it literally, with `\\u56fe` for a letter that no font has."""
    if text.isascii():
        return figure_text(text)
    known = _letters()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in figure_text(text))


@cache
def _families() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return (OWN, *(family for family in WIDE if family in installed))


@cache
def _letters() -> frozenset[int]:
    """The code points that some family has, in regular and in bold."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [[findfont(FontProperties(family=family, weight=w)) for w in ("normal", "bold")] for family in _families()]
    charmaps = [[set(get_font(file).get_charmap()) for file in of_family] for of_family in files]
    return frozenset().union(*(regular & bold for regular, bold in charmaps)) | set(range(128))

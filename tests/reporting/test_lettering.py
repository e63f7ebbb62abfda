"""Names in figures: every letter is drawn or written as an escape, and nothing is a formula."""

import io

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from distill.reporting import lettering
from distill.reporting.lettering import fonts, lettered

NAMES = ["clip 1", "Größe, Ελλάδα, Москва", "图像 01", "映像・動画", "비디오", "ภาพ", "🎬 take", "a_$x_{$", "\x1b[31m"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_without_a_warning(name):  # a warning is an error
    with rc_context(fonts()):
        figure = Figure()
        figure.text(0, 0.5, lettered(name))
        figure.text(0, 0.2, lettered(name), fontweight="bold")
        figure.savefig(io.BytesIO(), format="png")


def test_what_no_font_has_is_escaped(monkeypatch):
    monkeypatch.setattr(lettering, "_letters", lambda: frozenset(map(ord, "clip é")))
    assert lettered("clip é图🎬") == r"clip é\u56fe\U0001f3ac"
    assert lettered("a_$x_{$ \x07") == r"a_\$x_{\$ \x07"


def test_an_installed_font_is_used(monkeypatch):
    monkeypatch.setattr(lettering, "WIDE", ("STIXGeneral", "no such font"))  # comes with matplotlib, too
    lettering._families.cache_clear()
    assert fonts() == {"font.family": ["DejaVu Sans", "STIXGeneral"]}
    lettering._families.cache_clear()

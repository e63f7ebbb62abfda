"""Foreign text in every format: it shows whole, and acts as nothing."""

import csv
import io
import json
import tomllib

import pytest

from distill.opallowlist.foreign import csv_text, figure_text, json_text, markdown, printable, printable_lines, toml_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Cats [dQw4w9WgXcQ].mp4", "Cats [dQw4w9WgXcQ].mp4"),
        ("[/red] :smile: caf\u00e9 \u732b", "[/red] :smile: caf\u00e9 \u732b"),
        ("\x1b[31m\x9b2J\x07", r"\x1b[31m\x9b2J\x07"),
        ("a\nb\r\tc\x00", r"a\nb\r\tc\x00"),
        ("photo\u202egpj.exe\u2066\u200b\ufeff", r"photo\u202egpj.exe\u2066\u200b\ufeff"),
        (b"caf\xe9.mp4".decode("utf-8", "surrogateescape"), r"caf\xe9.mp4"),
    ],
)
def test_what_is_not_visible_is_escaped(text, shown):
    assert printable(text) == shown and shown.isprintable()
    assert printable_lines(f"{text}\n{text}".replace("a\nb", "")).count("\n") == 1


@pytest.mark.parametrize(
    "text", ["\x1b[31m\x7f\x9b\u202e\u2028", "caf\udce9", "caf\u00e9 \u732b \U0001f600 \U000e0001", 'a"b\\c\n']
)
def test_json_is_exact_and_printable(text):
    written = json_text({text: [text, 1.5, None]})
    assert json.loads(written) == {text: [text, 1.5, None]}
    assert written.replace("\n", "").isprintable() and written.encode()
    assert ("caf\u00e9 \u732b" in written) == ("\u732b" in text)


@pytest.mark.parametrize("text", ["\x1b[31m\x7f\x9b\u202e", "caf\u00e9 \U0001f600 \U000e0001", 'a"b\\c\n'])
def test_toml_is_exact_and_printable(text):
    written = f"a = {toml_text([text, text])}"
    assert tomllib.loads(written) == {"a": [text, text]} and written.isprintable()


def test_csv_starts_no_formula_and_keeps_its_numbers():
    texts = ["=1+1", "+1", "-x", "@SUM(A1)", "\uff1d1", "\t=1", "a,b", 'a"b', "a\x1b[31m", "a\nb", "", "x=1"]
    written = csv_text([texts, [-0.5, 3, None, ""]])
    assert list(csv.reader(io.StringIO(written))) == [
        ["'=1+1", "'+1", "'-x", "'@SUM(A1)", "'\uff1d1", r"\t=1", "a,b", 'a"b', r"a\x1b[31m", r"a\nb", "", "x=1"],
        ["-0.5", "3", "", ""],
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<b>&amp;</b>", "&lt;b&gt;&amp;amp;&lt;/b&gt;"),
        ("[a](b) | `c` *d* _e_ f_g ~h~ $i$", r"\[a\](b) \| \`c\` \*d\* \_e\_ f_g \~h\~ \$i\$"),
        ("# a\n- b", r"\# a - b"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("1.511 -0.3", "1.511 -0.3"),
        ("a\x1b[31m", r"a\\x1b\[31m"),
    ],
)
def test_markdown_is_text(text, written):
    assert markdown(text) == written


def test_a_figure_has_no_formulas():
    assert figure_text("$x_{$ \x07") == r"\$x_{\$ \x07"

"""Source, author and licence of every clip, from the table that a recipe names."""

import json

import pytest

from distill.corpora import Corpus
from distill.corpora.attribution import attribute
from distill.recipe.files import load_recipe
from distill.reporting.provenance import attributions, corpus_chain
from distill.run.errors import UsageError
from distill.run.plan import check_ready
from tests.helpers import make_clip

HEAD = "file,source,author,licence\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "who.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_first_line_that_matches_a_file_counts(table):
    path = table(HEAD + 'a/x.jpg,page 1,"Doe, Jane",CC BY 2.0\na/*,page 2,J. Roe,CC0\n')
    found = attribute(path, {"x": "a/x.jpg", "y": "a/deep/y.jpg"})
    assert (found["x"].author, found["x"].licence) == ("Doe, Jane", "CC BY 2.0")
    assert (found["y"].file, found["y"].source, found["y"].folder) == ("a/deep/y.jpg", "page 2", "a/deep")


def test_a_clip_without_a_line_is_refused(table):
    with pytest.raises(UsageError, match=r"no line for b/1\.jpg, b/2\.jpg; .*corpus\.skip=p,q"):
        attribute(table(HEAD + "a/*,s,n,MIT\n"), {"p": "b/1.jpg", "q": "b/2.jpg", "r": "a/3.jpg"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be file,source,author,licence"),
        ("a/*,s,n,MIT\n", "first line must be"),
        (HEAD + "a/*,s,n\n", "row 2: needs file, source, author, licence"),
        (HEAD + "\na/*,s,,MIT\n", "row 2: needs"),
    ],
)
def test_a_wrong_table_says_where(table, text, message):
    with pytest.raises(UsageError, match=message):
        attribute(table(text), {"p": "a/1.jpg"})
    with pytest.raises(UsageError, match="cannot be read"):
        attribute(table(text).with_name("none.csv"), {})


def test_a_run_needs_a_line_for_every_clip_before_it_starts(tmp_path, table):
    root = make_clip(make_clip(tmp_path / "clips"), "002")
    options = [f"corpus.{key}={json.dumps(str(value))}" for key, value in (("name", "dhf1k"), ("root", root))]
    path = table(HEAD + "clips/video/001.avi,s,n,MIT\n")
    recipe = load_recipe(None, [*options, f"corpus.attribution={json.dumps(str(path))}"])
    with pytest.raises(UsageError, match=r"no line for clips/video/002\.avi; .*corpus\.skip=002"):
        check_ready(recipe)
    table(HEAD + "clips/video/*,s,n,MIT\n")
    check_ready(recipe)


def test_the_chain_has_an_entry_for_every_licence_in_a_part(tmp_path, table):
    from distill.corpora import open_corpus

    root = make_clip(make_clip(make_clip(tmp_path / "clips"), "002"), "003")
    corpus = open_corpus("dhf1k", root)
    path = table(HEAD + "clips/video/002.avi,s,n,CC BY 2.0\nclips/*,s,n,MIT\n")
    recipe = load_recipe(None, ["corpus.name=dhf1k", f"corpus.attribution={json.dumps(str(path))}"])
    lines = attributions(recipe, corpus)
    assert corpus_chain(recipe, corpus, lines) == (("dhf1k:clips, 2 files", "MIT"), ("dhf1k:clips, 1 file", "CC BY 2.0"))
    assert attributions(load_recipe(None, []), Corpus("dhf1k", "", ())) == {}

"""README and docs: commands name verbs and options that exist, links resolve, the README's Python block runs, the site builds."""

import re
import runpy
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import typer.main

from distill.cli.app import app
from distill.opallowlist.foreign import toml_text
from distill.recipe.keys import SECTIONS, Recipe
from tests.browser import CHROMIUM, browsing
from tests.helpers import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def commands_in(text: str) -> list[str]:
    """The `distill ...` command lines of a page, in console blocks and indented ones, without their comments."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^(?:\$ |    )(?:torchrun .*? -m )?(distill (?:(?!  ).)*)", text, re.M)
    return [line.partition(" #")[0].strip() for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    command = typer.main.get_command(app)
    for line in commands_in(page.read_text(encoding="utf-8")):
        name, *arguments = line.removeprefix("distill ").split()
        verb = command if name.startswith("-") else command.commands[name]
        if name.startswith("-"):
            arguments = [name]
        elif commands := getattr(verb, "commands", None):
            verb = commands.get(arguments[0] if arguments else "", commands[verb.default])
        known = {option for parameter in verb.params for option in parameter.opts}
        assert {argument for argument in arguments if re.fullmatch(r"--?[a-z][a-z-]*", argument)} <= known, line


def test_the_pages_show_commands():
    assert len(commands_in((ROOT / "README.md").read_text(encoding="utf-8"))) >= 5
    assert sum(len(commands_in(page.read_text(encoding="utf-8"))) for page in PAGES) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_page_is_in_the_readmes_index_and_in_the_sites():
    text, made = (ROOT / "README.md").read_text(encoding="utf-8"), {"README.md", "index.md"}
    pages = [page.name for page in PAGES if page.parent.name != "reference" and page.name not in made]
    assert [page for page in pages if f"(docs/{page})" not in text] == []
    listed = re.findall(r"^(?:.*<)?([\w-]+)>?$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.M)
    assert [page for page in pages if page.removesuffix(".md") not in listed] == [], "docs/index.md lists the pages of the site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the site by path, built as `make docs` does: a broken link is a warning, and a warning an error."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-EWq",
        "--keep-going",
        "-d",
        str(folder / "doctrees"),
        str(ROOT / "docs"),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def test_the_site_asks_for_nothing_from_elsewhere_and_its_links_resolve(site):
    for path, text in site.items():
        assert not re.findall(r"<(?:link|script|img|iframe|source)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", text), path
        for target in re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
            file, _, anchor = target.partition("#")
            linked = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if not re.match(r"\w+:", target) and (anchor or linked != path):
                assert linked.exists(), f"{path.name}: {target}"
                assert not anchor or f'id="{anchor}"' in site.get(linked, ""), f"{path.name}: {target}"


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_the_site_reads_from_the_disk_in_a_browser(site, tmp_path):
    with browsing(tmp_path) as page:
        page.look(390, 844)
        for path in site:
            page.call("Page.navigate", url=path.as_uri())
            page.wait("document.readyState == 'complete'")
            assert page.run("return document.documentElement.scrollWidth") == 390, f"{path.name} scrolls sideways on a phone"
        page.call("Page.navigate", url=f"{next(path for path in site if path.name == 'search.html').as_uri()}?q=kvazaar")
        page.wait("document.querySelector('#search-results li a')")
        assert page.text("#search-results li a").startswith("Encoders")
        assert {address.partition(":")[0] for address in page.asked} <= {"file", "data"} and page.complaints == []


def test_the_site_has_every_verb_and_every_recipe_key(site):
    pages = {path.name: text for path, text in site.items()}
    verbs = typer.main.get_command(app).commands
    assert [verb for verb in verbs if f"<h3>distill {verb}<" not in pages["commands.html"]] == []
    assert "<h3>distill teachers fetch<" in pages["commands.html"] and "<h3>opallowlist check<" in pages["commands.html"]
    keys = [f"{name}</span>" for section in SECTIONS.values() for name in get_type_hints(section)]
    assert [key for key in keys if key not in pages["recipe-keys.html"]] == []


def test_the_page_of_recipe_keys_has_the_defaults_of_a_recipe():
    made = runpy.run_path(str(ROOT / "docs" / "conf.py"))["recipe_keys"]("")
    for section in fields(recipe := Recipe()):
        table = made.partition(f"## {section.name}\n")[2].partition("\n## ")[0]
        shown = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.M))
        values = asdict(getattr(recipe, section.name))
        assert shown == {key: toml_text(list(v) if isinstance(v, tuple) else v) for key, v in values.items()}, section.name


def test_the_readmes_python_block_runs(tmp_path, monkeypatch):
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (80, 48))
    for brightness in (10, 120, 240):
        video.write(np.full((48, 80, 3), brightness, np.uint8))
    video.release()
    monkeypatch.chdir(Path(tmp_path))
    names: dict[str, object] = {}
    exec(block, names)
    saliency, state = names["saliency"], names["state"]
    assert saliency.shape == (1, 1, 48, 80) and 0 <= saliency.min() <= saliency.max() <= 1
    assert np.abs(state).max() > 0 and names["feed"]["state_in"] is state

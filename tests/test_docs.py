"""README and docs: commands name verbs and options that exist, links resolve, and the README's Python block runs."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer.main

from distill.cli.app import app
from tests.helpers import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def commands_in(text: str) -> list[str]:
    """The `distill ...` command lines of a page, in console blocks and indented ones, without their comments."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^(?:\$ |    )(?:torchrun .*? -m )?(distill (?:(?!  ).)*)", text, re.M)
    return [line.partition(" #")[0].strip() for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    verbs = typer.main.get_command(app).commands
    for line in commands_in(page.read_text(encoding="utf-8")):
        name, *arguments = line.removeprefix("distill ").split()
        verb = verbs[name]
        if commands := getattr(verb, "commands", None):
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


def test_every_page_is_in_the_readmes_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"(docs/{page.name})" not in text] == []


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

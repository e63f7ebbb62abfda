"""`distill teachers fetch`, and the files in the cache that a run uses. The published files are small stand-ins."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill.labels import catalogue, fetched
from distill.labels.members import check, fetched_files, members, source, with_published
from distill.recipe.files import load_recipe
from distill.run.errors import UsageError
from distill.teachers.unisal import UnisalNet
from tests.helpers import invoke, running
from tests.web import serving

BEST, STILLS = "weights_best.pth", "weights_ft_mit1003.pth"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's; where it has UNISAL's files."""
    monkeypatch.setenv("SALIENCY_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers" / "unisal"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder with stand-ins, which the catalogue pins."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(UnisalNet().state_dict(), folder / BEST)
    (folder / STILLS).write_bytes(b"weights of stills")
    pin(monkeypatch, {path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


def pin(monkeypatch, contents):
    """Pins these contents as UNISAL's published files."""
    [unisal] = catalogue.entries("unisal")
    published = tuple(
        dataclasses.replace(file, sha256=hashlib.sha256(contents[file.name]).hexdigest(), bytes=len(contents[file.name]))
        for file in unisal.published
    )
    changed = [dataclasses.replace(e, published=published) if e == unisal else e for e in catalogue.CATALOGUE]
    monkeypatch.setattr(catalogue, "CATALOGUE", tuple(changed))


def fetch(*arguments):
    return invoke("teachers", "fetch", *arguments)


def test_fetching_says_where_from_and_where_to_and_then_that_it_is_there(cache, mirror):
    first = fetch("unisal", "--url", mirror)
    assert first.returncode == 0 and first.stdout.split() == [str(cache / BEST), str(cache / STILLS)], first.stderr
    assert f"{BEST}: not fetched; from {mirror / BEST} to {cache / BEST}" in first.stderr
    again = fetch("unisal", "--url", "/nowhere/", "--json")
    assert json.loads(again.stdout) == {
        "schema": 1, "teacher": "unisal", "files": [str(cache / BEST), str(cache / STILLS)], "fetched": [],
    }  # fmt: skip
    assert f"{STILLS}: already there, SHA-256 checked" in again.stderr


def test_one_file_under_another_name(cache, mirror, tmp_path):
    (mirror / BEST).rename(tmp_path / "download?id=1")
    assert "which file is it? name it" in fetch("unisal", "--url", tmp_path / "download?id=1").stderr
    assert fetch("unisal", BEST, "--url", tmp_path / "download?id=1").returncode == 0
    assert f"/nowhere/{STILLS}: No such file" in fetch("unisal", STILLS, "--url", "/nowhere").stderr
    assert fetch("unisal", "--url", mirror / STILLS).stdout.split() == [str(cache / STILLS)]


def test_a_file_in_the_cache_that_is_damaged_is_fetched_anew(cache, mirror):
    cache.mkdir(parents=True)
    (cache / STILLS).write_bytes(b"truncated")
    assert "damaged" in invoke("teachers", "unisal").stdout
    [listed] = json.loads(invoke("teachers", "unisal", "--json").stdout)["teachers"]
    assert [file["state"] for file in listed["published"]] == ["not fetched", "damaged: its SHA-256 is another one"]
    assert listed["published"][1]["path"] == str(cache / STILLS)
    assert fetch("unisal", STILLS, "--url", mirror).returncode == 0
    assert (cache / STILLS).read_bytes() == b"weights of stills"


def test_what_is_not_to_be_had_is_one_line_that_says_where_else_to_look(cache, mirror, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    [unisal] = catalogue.entries("unisal")
    with serving() as web:
        web.files[f"/{BEST}"] = bytes(unisal.published[0].bytes)
        wrong, gone = fetch("unisal", "--url", web.url), fetch("unisal", STILLS, "--url", web.url + "w/")
    for result, problem, file in zip(
        (wrong, gone), ("is another file: its SHA-256 is", "404 Not Found"), unisal.published, strict=True
    ):
        line = result.stderr.splitlines()[-1]
        assert result.returncode == 2 and line.startswith("distill: http://127.0.0.1:") and problem in line
        for wanted in (
            file.sha256, f"{file.name}, {file.bytes:,} bytes", unisal.page, "--url", str(cache / file.name), "teacher.weights=unisal=",
        ):  # fmt: skip
            assert wanted in line
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unisol"], "unknown teacher 'unisol'; did you mean 'unisal'?"),
        (["tased"], "teacher tased has no files to fetch, only unisal has; the authors' page is https://"),
        (["unisal", "best.pth"], "teacher unisal has no file 'best.pth'; known: weights_best.pth, weights_ft_mit1003.pth"),
        (["unisal", "--url", "ftp://mirror.example/"], "ftp is not supported"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage(cache, arguments, message):
    result = fetch(*arguments)
    assert result.returncode == 2 and message in result.stderr and not result.stdout


FETCH = """
import dataclasses, hashlib, sys
from distill.labels import catalogue
from distill.__main__ import main
file = catalogue.Published("w.pth", sys.argv.pop(), hashlib.sha256(bytes(100_000)).hexdigest(), 100_000, "")
catalogue.CATALOGUE = tuple(dataclasses.replace(e, published=(file,) * (e.name == "unisal")) for e in catalogue.CATALOGUE)
main()
"""


def test_ctrl_c_keeps_what_has_come_and_says_how_to_continue(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    command = [sys.executable, "-c", FETCH, "teachers", "fetch", "unisal"]
    with serving() as web:
        web.files["/w.pth"], web.cuts, web.stall = bytes(100_000), [70_000], True
        command.append(web.url + "w.pth")
        with running(*command) as process:
            assert web.sent.wait(60)
            kept = cache / "w.pth.partial"
            for _ in range(3000):  # until the first block is written
                if kept.exists() and kept.stat().st_size:
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in stderr
        assert stderr.splitlines()[-1] == (
            "distill: interrupted: what has come is kept; continue with: distill teachers fetch unisal"
        )
        have = kept.stat().st_size
        assert 0 < have <= 70_000 and not (cache / "w.pth").exists()
        web.stall = False
        again = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0 and web.asked[-1] == f"bytes={have}-", again.stderr
        assert f"w.pth: {have / 1000:.0f} % fetched" in again.stderr.replace("%", " %")
    assert (cache / "w.pth").read_bytes() == bytes(100_000) and not kept.exists()


# --- runs find what was fetched ---


def test_a_run_uses_the_first_published_file_and_says_so(cache, mirror, tmp_path):
    arguments = (
        "--corpus",
        "synthetic",
        "--teacher",
        "unisal",
        "--set",
        "synthetic.clips=2",
        "--set",
        "synthetic.frames=2",
        "--out",
        tmp_path / "run",
    )
    missing = invoke("teach", *arguments)
    assert missing.returncode == 2 and not (tmp_path / "run").exists()
    assert (
        f"`distill teachers fetch unisal` puts {BEST} at {cache / BEST}, or --set teacher.weights=unisal=FILE" in missing.stderr
    )
    assert fetch("unisal", "--url", mirror).returncode == 0
    taught = invoke("teach", *arguments)
    assert taught.returncode == 0, taught.stderr
    assert f"teacher: {cache / BEST}, fetched, SHA-256 checked" in taught.stderr
    assert f"teacher unisal, {BEST} opens" in taught.stderr
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert recipe.teacher.weights == (f"unisal={BEST}",) and str(cache) not in (tmp_path / "run" / "recipe.toml").read_text()
    assert source(recipe) == f"unisal, {BEST}"
    assert f"the weights unisal={cache / BEST}" in json.loads((tmp_path / "run" / "manifest.json").read_text())["inputs"]
    (cache / BEST).write_bytes(b"x")
    changed = invoke("teach", tmp_path / "run")
    assert changed.returncode == 2 and f"{cache / BEST} is not the published file, whose SHA-256 is" in changed.stderr


def test_a_recipe_names_a_fetched_file(cache, mirror, tmp_path):
    fetch("unisal", "--url", mirror)
    (tmp_path / "r.toml").write_text(f'[teacher]\nname = "unisal"\nweights = ["{STILLS}"]\n', encoding="utf-8")
    recipe = with_published(load_recipe(tmp_path / "r.toml"))
    check(recipe)
    assert recipe.teacher.weights == (STILLS,) and fetched_files(recipe.teacher) == [str(cache / STILLS)]
    (tmp_path / STILLS).write_bytes(b"the recipe's own")  # a file beside the recipe comes first
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.teacher.weights == (str(tmp_path / STILLS),) and fetched_files(recipe.teacher) == []


def test_only_a_name_alone_means_the_cache(cache, mirror, tmp_path):
    fetch("unisal", "--url", mirror)
    with pytest.raises(UsageError, match=f"{tmp_path}/elsewhere/{BEST} does not exist"):
        check(load_recipe(None, ["teacher.name=unisal", f"teacher.weights={tmp_path}/elsewhere/{BEST}"]))
    with pytest.raises(UsageError, match=f"tased={BEST} does not exist"):
        check(load_recipe(None, ["teacher.name=tased", f"teacher.weights={BEST}"]))


@pytest.mark.parametrize(
    ("sets", "weights"),
    [
        (["teacher.name=visage+unisal"], (f"unisal={BEST}",)),
        (["teacher.name=unisal+unisal", "teacher.weights=unisal=random"], ("unisal=random",)),
        (
            ["teacher.name=unisal+unisal@DHF1K", "teacher.parts=a=unisal@SALICON", "teacher.weights=unisal@SALICON=random"],
            ("unisal@SALICON=random", f"unisal={BEST}"),
        ),
        (["teacher.name=unisal", "teach.finetune=true"], ()),  # from scratch, whatever was fetched
        (["teacher.name=tased"], ()),
    ],
)
def test_published_weights_stand_in_for_those_that_are_not_named(cache, sets, weights):
    recipe = with_published(load_recipe(None, sets))
    assert recipe.teacher.weights == weights
    assert with_published(recipe) == recipe and members(recipe.teacher)


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"SALIENCY_DISTILL_CACHE": "/c"}, "/c"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/saliency-distill"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/saliency-distill"),
        ("darwin", {}, "/home/me/Library/Caches/saliency-distill"),
        ("win32", {"LOCALAPPDATA": "/L"}, "/L/saliency-distill"),
    ],
)
def test_the_cache_is_where_the_platform_has_caches(monkeypatch, platform, environment, folder):
    for name in ("SALIENCY_DISTILL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetched.sys, "platform", platform)
    assert fetched.cache_folder() == Path(folder)


def test_the_authors_files_are_those_that_are_pinned(shared):
    [unisal] = catalogue.entries("unisal")
    for file in unisal.published:
        content = (shared / "weights" / "unisal" / file.name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file.sha256, file.bytes)
        assert file.url.endswith(f"/{file.name}")

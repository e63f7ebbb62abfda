"""Downloads from a local server that misbehaves: nothing gets its name before its SHA-256 is right, and nothing is fetched twice."""

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from distill.run.errors import UsageError
from distill.run.machine import download as module
from distill.run.machine.download import Unavailable, download, local_path, partial
from tests.web import Web, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        server.files["/w.pth"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "w.pth"


@pytest.fixture
def fetch(web: Web, target: Path, narrator):
    def fetch(url=None):
        download(url or web.url + "w.pth", target, SHA256, len(CONTENT), narrator)
        assert target.read_bytes() == CONTENT and [p.name for p in target.parent.iterdir()] == ["w.pth"]

    return fetch


def refused(fetch, target, url=None):
    with pytest.raises(Unavailable) as error:
        fetch(url)
    assert not target.exists() and "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_fetched(web, fetch):
    fetch()
    assert web.asked == [""]


def test_a_partial_file_is_continued(web, fetch, target):
    target.parent.mkdir()
    partial(target).write_bytes(CONTENT[:1000])
    fetch()
    assert web.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(web, fetch, target):
    web.ranges = False
    target.parent.mkdir()
    partial(target).write_bytes(CONTENT[:1000])
    fetch()


def test_a_whole_partial_file_only_needs_its_name(web, fetch, target):
    target.parent.mkdir()
    partial(target).write_bytes(CONTENT)
    fetch()
    assert web.asked == []


@pytest.mark.parametrize(
    "start", [b"of another file" * 10, CONTENT + b"more", bytes(len(CONTENT))], ids=["short", "long", "equal"]
)
def test_a_partial_file_of_other_content_is_fetched_anew(fetch, target, start):
    target.parent.mkdir()
    partial(target).write_bytes(start)
    fetch()


def test_dropped_connections_are_continued(web, fetch):
    web.cuts = [100_000, 50_000, 70_000]
    fetch()
    assert web.asked == ["", "bytes=100000-", "bytes=150000-", "bytes=220000-"]


def test_a_busy_server_is_asked_again(web, fetch):
    web.statuses = [503, 429]
    fetch()


def test_a_body_that_always_ends_early_is_kept_for_the_next_time(web, fetch, target):
    web.cuts = [1000] * 4
    assert "the connection ended after 4,000 of 300,000 bytes" in refused(fetch, target)
    assert partial(target).read_bytes() == CONTENT[:4000]
    fetch()
    assert web.asked[-1] == "bytes=4000-"


def test_a_server_that_hangs_is_given_up(web, fetch, target, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    web.cuts, web.stall = [1000] * 4, True
    assert "timed out" in refused(fetch, target) and len(web.asked) == 4


def test_another_file_of_the_same_size_gets_no_name(web, fetch, target):
    web.files["/w.pth"] = bytes(len(CONTENT))
    assert f"is another file: its SHA-256 is {hashlib.sha256(bytes(len(CONTENT))).hexdigest()}" in refused(fetch, target)
    assert not partial(target).exists()


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", CONTENT + b"more"], ids=["shorter", "longer"])
def test_a_file_of_another_size_is_refused_at_once(web, fetch, target, content):
    web.files["/w.pth"] = content
    assert f"is another file: it has {len(content):,} bytes, not 300,000" in refused(fetch, target)
    assert len(web.asked) == 1


def test_an_answer_that_does_not_state_its_size(web, fetch, target):
    web.sized = False
    fetch()
    target.unlink()
    web.files["/w.pth"] = bytes(4 * len(CONTENT))
    assert "is another file: its SHA-256 is" in refused(fetch, target) and not partial(target).exists()


def test_a_missing_file_is_not_asked_for_twice(web, fetch, target):
    assert refused(fetch, target, web.url + "gone.pth").endswith("gone.pth: 404 Not Found")
    assert len(web.asked) == 1


def test_a_server_that_is_not_there_is_not_waited_for(web, fetch, target, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert refused(fetch, target, f"http://127.0.0.1:{port}/w.pth").endswith("/w.pth: Connection refused")


def test_paths_and_file_urls(web, fetch, target, tmp_path):
    mirror = tmp_path / "a mirror" / "w.pth"
    assert "No such file" in refused(fetch, target, str(mirror))
    mirror.parent.mkdir()
    mirror.write_bytes(CONTENT)
    fetch(str(mirror))
    target.unlink()
    fetch(mirror.as_uri())
    assert web.asked == []
    with pytest.raises(UsageError, match="ftp is not supported; give http"):
        local_path("ftp://mirror.example/w.pth")

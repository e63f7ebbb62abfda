"""The command that installs an extra is one that works where this package came from."""

import json
from importlib import metadata

import pytest

from distill.run.machine import extras

REQUIRES = (
    "numpy>=2.0", 'onnxruntime>=1.20; extra == "predict"', 'saliency-distill[predict]; extra == "encode"', 'av<19,>=18; extra == "encode"',
    'saliency-distill[encode,predict]; extra == "all"',
)  # fmt: skip


@pytest.fixture
def installed_from(monkeypatch, tmp_path):
    """A function that makes this package installed from an origin, as an installer records it."""

    def make(origin):
        folder = tmp_path / "saliency_distill-0.1.0.dist-info"
        folder.mkdir()
        lines = ["Name: saliency-distill", "Version: 0.1.0", *(f"Requires-Dist: {line}" for line in REQUIRES)]
        (folder / "METADATA").write_text("\n".join(lines), encoding="utf-8")
        if origin:
            (folder / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
        found = [metadata.PathDistribution(folder)]
        monkeypatch.setattr(metadata, "distributions", lambda **context: found)

    return make


def test_from_an_index_it_is_named(installed_from):
    installed_from(None)
    assert extras.how_to_install("encode") == "pip install 'saliency-distill[encode]'"


def test_from_a_checkout(installed_from, tmp_path):
    installed_from({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert extras.how_to_install("encode") == f"pip install -e '{tmp_path}[encode]'"


def test_from_a_wheel_while_it_is_there(installed_from, tmp_path):
    wheel = tmp_path / "a wheel.whl"
    wheel.touch()
    installed_from({"url": wheel.as_uri(), "archive_info": {}})
    assert extras.how_to_install("encode") == f"pip install '{wheel}[encode]'"
    wheel.unlink()
    assert extras.how_to_install("encode") == "pip install 'onnxruntime>=1.20' 'av<19,>=18'"
    assert extras.how_to_install("all") == "pip install 'onnxruntime>=1.20' 'av<19,>=18'"


def test_from_a_repository_and_from_a_server(installed_from, tmp_path):
    installed_from({"url": "https://host/repo.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}})
    assert extras.how_to_install("predict") == "pip install 'saliency-distill[predict] @ git+https://host/repo.git@12ab'"
    (tmp_path / "saliency_distill-0.1.0.dist-info" / "direct_url.json").write_text('{"url": "https://host/d.whl"}')
    assert extras.how_to_install("predict") == "pip install 'saliency-distill[predict] @ https://host/d.whl'"


def test_on_linux_without_torch_the_word_on_its_cpu_build(installed_from, monkeypatch):
    installed_from(None)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for platform, hint in (("linux", f"; {extras.CPU_TORCH}"), ("darwin", "")):
        monkeypatch.setattr("sys.platform", platform)
        assert extras.how_to_install("train") == f"pip install 'saliency-distill[train]'{hint}"
        assert extras.how_to_install("predict") == "pip install 'saliency-distill[predict]'"

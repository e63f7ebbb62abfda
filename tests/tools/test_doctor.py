"""What `distill doctor` says of a machine: what works, what lacks, where it can write."""

import errno
import json
import sys
from pathlib import Path

import pytest

from distill.run.machine import extras
from distill.run.machine.extras import how_to_install
from distill.tools import doctor
from tests.helpers import invoke, without


def test_a_machine_with_everything():
    result = invoke("doctor", "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 0 and {"gate", "predict", "encode", "train"} <= {*facts["works"]}
    assert facts["device"] and facts["torch"] and facts["av"] and facts["matplotlib"]
    assert all(facts[f"extra {extra}"].startswith("installed: ") for extra in ("predict", "encode", "train", "tensorboard"))
    assert facts["this folder"].endswith(", writable")


def test_it_says_which_extra_a_machine_lacks_and_what_it_is_enough_for(monkeypatch):
    def hide(*modules):
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name in modules else object())
        facts = json.loads((result := invoke("doctor", "--json")).stdout)
        return result.returncode, facts["works"], facts

    code, works, facts = hide("torch", "matplotlib", "scipy", "imageio_ffmpeg")
    assert (code, works) == (0, ["gate", "predict"])
    assert facts["extra encode"] == "scipy missing, for distill encode, bd"
    assert facts["to install"]["encode"] == how_to_install("encode")
    assert f"for encode: {how_to_install('encode')}\n" in invoke("doctor").stdout
    assert facts["extra train"].startswith("torch, matplotlib missing") and "device" not in facts
    assert hide("cv2")[:2] == (0, ["gate"])


def test_an_installed_module_that_cannot_be_imported_does_not_work(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    facts = doctor.examine()
    assert facts["extra predict"] == "does not work: cv2: ImportError: libGL.so.1: cannot open shared object file"
    assert facts["works"] == ["gate"]


def test_without_the_gate_nothing_works():
    result = without(["onnx", *(module for modules in extras.EXTRAS.values() for module in modules)], "doctor")
    assert (
        result.returncode == 1
        and "nothing works here, since the gate does not work: onnx: ModuleNotFoundError" in result.stderr
    )


@pytest.mark.parametrize(
    ("cache", "said"), [("none/yet", ", not there yet"), ("file/cache", "cannot be written: Not a directory")]
)
def test_folders_that_cannot_be_written_are_named(monkeypatch, tmp_path, cache, said):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SALIENCY_DISTILL_CACHE", str(tmp_path / cache))
    assert doctor.examine()["cache"].startswith(str(tmp_path / cache)) and said in doctor.examine()["cache"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_behind_a_closed_one_is_named(monkeypatch, tmp_path):
    exists, cache = Path.exists, tmp_path / "closed" / "cache"

    def refuse(path, **options):  # as stat() does to a user who is not root
        if path == cache:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setenv("SALIENCY_DISTILL_CACHE", str(cache))
    monkeypatch.setattr(Path, "exists", refuse)
    assert doctor.examine()["cache"] == f"{cache}, cannot be written: Permission denied"

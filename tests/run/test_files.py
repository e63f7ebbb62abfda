"""Files get their names only when they are complete; whatever fails before leaves the old ones."""

import json

import numpy as np
import pytest

from distill.run import files
from distill.run.errors import UsageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_and_folders_above_it_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "clip.npy"
    files.write_array(path, np.arange(6).reshape(2, 3))
    assert np.load(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert names(path.parent) == ["clip.npy"]


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "overlay.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"), files.atomic(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".mp4" and files.is_temporary(temporary.name)
        temporary.write_bytes(b"half")
        raise RuntimeError("midway")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["overlay.mp4"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"nss": 1.0})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"nss": 2.0})
    assert json.loads(path.read_text()) == {"nss": 1.0} and names(tmp_path) == ["metrics.json"]


def test_bytes_are_on_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: order.append(names(tmp_path)))
    files.write_bytes(tmp_path / "labels.npy", b"x")
    [during] = order
    assert "labels.npy" not in during and all(map(files.is_temporary, during)) and len(during) == 1


@pytest.mark.parametrize("name", [".a.12.tmp.json", ".a.12.tmp", ".student.onnx.7.tmp"])
def test_leftovers_of_a_killed_write_are_recognised(name):
    assert files.is_temporary(name)


@pytest.mark.parametrize("name", ["a.tmp.json", "metrics.json", ".lock", ".tmpfile.json", "a.tmp"])
def test_other_files_are_not_taken_for_leftovers(name):
    assert not files.is_temporary(name)


def test_missing_or_damaged_json_is_a_one_line_error(tmp_path):
    with pytest.raises(UsageError, match=r"corpus\.json is missing; run the command again"):
        files.read_json(tmp_path / "corpus.json")
    (tmp_path / "corpus.json").write_text('{"clips": [')
    with pytest.raises(UsageError, match=r"corpus\.json cannot be read: .*; remove it and run the command again"):
        files.read_json(tmp_path / "corpus.json")


def test_fingerprints_depend_on_values_alone():
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2}) and len(files.fingerprint()) == 16

"""Files get their names only when they are complete; whatever fails before leaves the old ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_the_next_write_to_a_folder_removes_what_killed_processes_left(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    gone = [f".out.{dead}.tmp.mp4", f".labels of 7.{dead}-{files.MACHINE}.tmp.npy", f".roi.{dead}.tmp"]
    kept = [
        f".out.{os.getpid()}.tmp.mp4",
        f".out.{dead}-00000000.tmp.mp4",
        f"out.{dead}.tmp.mp4",
        ".keep.tmp",
        f".out.{dead}.mp4",
    ]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"half")
    files.write_bytes(tmp_path / "metrics.json", b"{}")
    assert names(tmp_path) == sorted([*kept, "metrics.json"])


def test_a_killed_process_leaves_no_file_for_long(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from distill.run.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as temporary: temporary.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.mp4")]).returncode == -9
    assert len(names(tmp_path)) == 1
    files.write_bytes(tmp_path / "other.txt", b"")
    assert names(tmp_path) == ["other.txt"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("out.mp4", "out.mp4"), ("out.mp4", "a/../out.mp4"),
        ("there.txt", "new/../there.txt"), ("a/out.mp4", "linked/out.mp4"), ("out.mp4", "OUT.mp4"),
        ("caf\u00e9.mp4", "cafe\u0301.mp4"), ("there.txt", "link.txt"), ("there.txt", "hard.txt"), ("dangling", "nowhere"),
    ],
)  # fmt: skip
def test_outputs_that_are_one_file_are_refused(tmp_path, one, other):
    (tmp_path / "a").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "there.txt").write_text("mine")
    (tmp_path / "link.txt").symlink_to("there.txt")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "there.txt")
    (tmp_path / "dangling").symlink_to("nowhere")
    for pair in ((one, other), (other, one)):
        first, second = (tmp_path / name for name in pair)
        with pytest.raises(UsageError, match=r"--roi-out .* is the same file as OUTPUT .*; name another file"):
            files.check_distinct({"OUTPUT": first, "--roi-out": second}, [])
        with pytest.raises(UsageError, match=r"OUTPUT .* is the same file as INPUT"):
            files.check_distinct({"OUTPUT": first, "--roi-out": None}, [("--model", None), ("INPUT", second)])


def test_different_outputs_are_taken(tmp_path):
    (tmp_path / "clip.MP4").write_text("mine")
    files.check_distinct({"OUTPUT": tmp_path / "o.mp4", "--csv": tmp_path / "o.csv"}, [("INPUT", tmp_path / "clip.MP4")])
    if not (tmp_path / "CLIP.mp4").exists():  # where case counts, and one is there, they are different
        files.check_distinct({"OUTPUT": tmp_path / "clip.mp4"}, [("INPUT", tmp_path / "clip.MP4")])


def test_a_path_that_nothing_can_be_written_to_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    files.check_writable({"--csv": tmp_path / "new" / "folder" / "x.csv", "--out": None, "OUTPUT": tmp_path / "file"})
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x.csv", "it is below a file")):
        with pytest.raises(UsageError, match=f"--csv {path} cannot be written: {why}"):
            files.check_writable({"--csv": path})
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(
        UsageError, match=f"--csv {tmp_path}/new/x.csv cannot be written: {tmp_path} lets no file be made in it"
    ):
        files.check_writable({"--csv": tmp_path / "new" / "x.csv"})


def test_a_pipe_or_device_is_refused_and_stays(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    link = tmp_path / "link.png"
    link.symlink_to(pipe)

    for path in (pipe, link):
        with pytest.raises(UsageError, match="is a device or a pipe, which a file would replace; name a file to write"):
            files.write_bytes(path, b"new")
        with pytest.raises(UsageError, match="is a device or a pipe"):
            files.check_distinct({"--out": path}, [])

    assert pipe.is_fifo() and link.is_symlink() and sorted(tmp_path.iterdir()) == [link, pipe]


def test_missing_or_damaged_json_is_a_one_line_error(tmp_path):
    with pytest.raises(UsageError, match=r"corpus\.json is missing; run the command again"):
        files.read_json(tmp_path / "corpus.json")
    (tmp_path / "corpus.json").write_text('{"clips": [')
    with pytest.raises(UsageError, match=r"corpus\.json cannot be read: .*; remove it and run the command again"):
        files.read_json(tmp_path / "corpus.json")


def test_fingerprints_depend_on_values_alone():
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2}) and len(files.fingerprint()) == 16


def test_an_array_file_is_whole_or_damaged_and_never_an_error(tmp_path):
    file = files.ArrayFile(tmp_path / "a.npy")
    assert not file.is_whole()
    np.save(file.path, np.zeros((4, 3), np.float16))
    whole, rng = file.path.read_bytes(), np.random.default_rng(0)
    assert file.is_whole() and file.is_whole(4) and not file.is_whole(3)
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, 128, 3) if len(damaged) >= 128 else ():
            damaged[place] = rng.integers(256)
        file.path.write_bytes(damaged)
        assert isinstance(file.is_whole(4), bool)
    np.save(file.path, np.zeros((0, 3), np.int32))
    assert file.is_whole() and file.is_whole(0)


@pytest.mark.parametrize("name", ["a.b.npy", "my clip.mp4", "my own folder/a b.npy"])
def test_messages_name_the_file_and_not_its_temporary_stand_in(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name)):
        with files.atomic(path) as temporary:
            temporary.touch()
            for said in ("cannot write {}: full", "after .5 s: {}", "[Errno 28] No space left: '{}'", "{}"):
                assert files.with_final_names(said.format(temporary)) == said.format(path)
    assert files.with_final_names("v1.tmp and .hidden stay") == "v1.tmp and .hidden stay"


def test_a_folder_is_replaced_as_a_whole_and_never_lost(tmp_path, monkeypatch):
    out, replace = tmp_path / "maps", Path.replace
    with files.atomic_folder(out) as folder:
        (folder / "1.png").write_text("old")

    def killed_at(count):
        calls = []

        def call(path, target):
            calls.append(path)
            if len(calls) == count:
                raise KeyboardInterrupt
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", call)
        with pytest.raises(KeyboardInterrupt), files.atomic_folder(out) as folder:
            (folder / "1.png").write_text("new")
        monkeypatch.setattr(Path, "replace", replace)
        return [path.read_text() for path in tmp_path.rglob("1.png")]

    assert killed_at(1) == ["old"] and names(tmp_path) == ["maps"]
    assert killed_at(2) == ["old"] and not files.is_temporary(*names(tmp_path))
    next(tmp_path.iterdir()).replace(out)
    with files.atomic_folder(out) as folder:
        (folder / "2.png").write_text("new")
    assert names(tmp_path) == ["maps"] and names(out) == ["2.png"]

"""`distill encode` between pipes: what comes out, what is said where, and how it ends; each in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

av = pytest.importorskip("av")

from distill.encoding.encode import encode  # noqa: E402
from distill.encoding.encoders import Coding  # noqa: E402
from distill.encoding.qp_offsets import Shaping  # noqa: E402
from distill.run.errors import UsageError  # noqa: E402
from distill.run.machine import pipes  # noqa: E402
from tests.encoding.test_companions import Narration, make, packets  # noqa: E402
from tests.helpers import running  # noqa: E402

ENCODE = [sys.executable, "-m", "distill", "encode", "--map", "centre", "--preset", "ultrafast", "--threads", "1"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clip") / "in.mkv", ["aac"], ["subrip"])


def run(*arguments, data=b"", **options):
    return subprocess.run([*ENCODE, *map(str, arguments)], input=data, capture_output=True, timeout=240, **options)


@pytest.mark.parametrize(
    ("container", "format_"), [(None, "matroska,webm"), ("mp4", "mov,mp4,m4a,3gp,3g2,mj2"), ("ts", "mpegts")]
)
def test_a_pipe_in_and_a_pipe_out(clip, tmp_path, container, format_):
    result = run("-", "-", *(["--container", container] if container else []), data=clip.read_bytes())
    assert result.returncode == 0 and b"25 frames" in result.stderr
    (tmp_path / "out").write_bytes(result.stdout)
    with av.open(str(tmp_path / "out")) as out:
        assert out.format.name == format_ and len(list(out.decode(video=0))) == 25
    assert len(packets(tmp_path / "out", "audio")) == len(packets(clip, "audio"))


def test_standard_output_that_is_a_file_has_its_length(clip, tmp_path):
    with (tmp_path / "out.mkv").open("wb") as out:
        out.write(b"before")
        out.flush()
        subprocess.run([*ENCODE, str(clip), "/dev/stdout", "-q"], stdout=out, check=True, timeout=240)
    (tmp_path / "out.mkv").write_bytes((tmp_path / "out.mkv").read_bytes().removeprefix(b"before"))
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.duration == pytest.approx(1e6, abs=1e5) and len(list(out.decode(video=0))) == 25
    assert Path("/dev/stdout").is_symlink()


def test_a_reader_that_leaves_is_no_error(clip):
    with running(*ENCODE, clip, "-", text=False) as process:
        process.stdout.read(100)
        process.stdout.close()
        said = process.stderr.read()
        process.wait(240)
    assert process.returncode == 0 and b"Traceback" not in said and b"the reader of standard output has closed it" in said


@pytest.mark.parametrize("idle", ["input", "output"])
def test_ctrl_c_ends_the_wait_for_a_pipe(tmp_path, idle):
    source = make(tmp_path / "in.mkv", frames=100) if idle == "output" else "-"  # more than a pipe holds
    target = tmp_path / "out.mkv" if idle == "input" else "-"
    with running(*ENCODE, "--crf", "1", source, target, text=False, stdin=subprocess.PIPE) as process:
        if idle == "output":
            os.read(process.stdout.fileno(), 1)
        else:
            process.stdin.write(bytes(10))
            process.stdin.flush()
            deadline, kept = time.monotonic() + 60, Path(tempfile.gettempdir())
            while not (found := list(kept.glob(f"distill-{process.pid}-*/*"))) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert found[0].name == "standard input"
        process.send_signal(signal.SIGINT)
        process.wait(240)
        said = process.communicate()[1]
    assert process.returncode == 130 and b"distill: interrupted: " in said and not (tmp_path / "out.mkv").exists()


def test_fifos_by_path(clip, tmp_path):
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    read = []
    # Daemons: where `encode` fails, nobody opens the other end.
    feeder = threading.Thread(target=lambda: (tmp_path / "in").write_bytes(clip.read_bytes()), daemon=True)
    reader = threading.Thread(target=lambda: read.append((tmp_path / "out").read_bytes()), daemon=True)
    feeder.start(), reader.start()
    said = Narration()
    encode(tmp_path / "in", tmp_path / "out", None, Coding(preset="ultrafast", threads=1), Shaping(), said)
    feeder.join(60), reader.join(60)
    (tmp_path / "out.mkv").write_bytes(read[0])
    assert len(packets(tmp_path / "out.mkv", "video")) == 25 and (tmp_path / "out").is_fifo() and said == []


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (("-", "x.mkv"), b"", "standard input is empty"),
        (("-", "x.mkv"), b"no video", "standard input does not open as a video"),
        (("-", "-", "--json"), b"", "--json would mix with the video"),
        (("-", "-", "--container", "wav"), b"", "--container wav is unknown; there are mkv, mp4"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(tmp_path, arguments, data, message):
    result = run(*arguments, data=data, cwd=tmp_path)
    assert result.returncode == 2 and f"distill: {message}" in result.stderr.decode() and list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_and_a_terminal(clip):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    result = run(clip, "/dev/full")
    assert result.returncode == 2 and b"the disk is full at /dev/full" in result.stderr
    pty = pytest.importorskip("pty")
    terminal, other = pty.openpty()
    with pytest.raises(UsageError, match="is a terminal"):
        pipes.StreamWriter(Path(os.ttyname(other)), lambda: False)
    with pytest.raises(UsageError, match="is a terminal"), pipes.as_file(Path(f"/dev/fd/{other}"), lambda: False):
        pass
    os.close(terminal), os.close(other)

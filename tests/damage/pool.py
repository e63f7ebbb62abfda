"""Damages files, has them read in a child process, and says what went wrong."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.damage.seeds import DAMAGED
from tests.helpers import ROOT
from tests.opallowlist.fuzzing.damage import damaged

SECONDS = 60
"""In which a file must have been read: far more than any takes."""


@dataclass(frozen=True)
class Outcome:
    kind: str
    number: int
    code: int
    fault: str
    """What may not happen; empty where all is well."""


class Pool:
    """A child process that reads damaged copies of the files in `seeds`; started again where it dies."""

    def __init__(self, seeds: Path, scratch: Path) -> None:
        self.seeds, self.scratch = seeds, scratch
        self.sound = {kind: (seeds / path).read_bytes() for kind, path in DAMAGED.items()}
        self.child: subprocess.Popen[Any] | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.child:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout):
                if stream:
                    stream.close()
        self.child = None

    def data(self, kind: str, number: int, seed: int) -> bytes:
        """Case `number` of a kind."""
        rng = Random(f"{seed} {kind} {number}")
        return damaged(rng, self.sound[kind], [(kind, self.sound[kind])])

    def judge(self, kind: str, number: int, seed: int, sound: bool = False) -> Outcome:
        """Reads one case. sound: the file as it is, which must be read."""
        path = self._laid_out(kind)
        path.write_bytes(self.sound[kind] if sound else self.data(kind, number, seed))
        code, text = self._read(kind, path)
        fault = ""
        if code not in (0, 1, 2, 130):
            fault = f"ended with {code}: {text}"
        elif "Traceback" in text or "internal error" in text:
            fault = next(line for line in text.splitlines() if "Traceback" in line or "internal error" in line)
        elif sound and code:
            fault = f"sound, but {text}"
        return Outcome(kind, number, code, fault)

    def _laid_out(self, kind: str) -> Path:
        top = DAMAGED[kind].partition("/")[0]
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in {top, "avi", "onnx"}:
            shutil.copytree(self.seeds / name, self.scratch / name)
        return self.scratch / DAMAGED[kind]

    def _read(self, kind: str, path: Path) -> tuple[int, str]:
        if self.child is None:
            command = [sys.executable, "-m", "tests.damage.worker"]
            quiet = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8", "OMP_WAIT_POLICY": "PASSIVE"}
            self.child = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | quiet,
            )
        child = self.child
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps([kind, str(path)]).encode() + b"\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], SECONDS)
        line = child.stdout.readline() if ready else b""
        if line:
            code, text = json.loads(line)
            return code, text
        self.__exit__()
        return (child.returncode, "crashed") if ready else (-1, f"not done in {SECONDS} s")


def run(pool: Pool, each: int, seed: int, first: int = 0) -> Iterator[Outcome]:
    """`each` cases of every kind, after the sound file."""
    for kind in DAMAGED:
        yield pool.judge(kind, -1, seed, sound=True)
        for number in range(first, first + each):
            yield pool.judge(kind, number, seed)

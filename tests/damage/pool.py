"""Damages files, has them read in a child process, and says what went wrong."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
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
        if kind.endswith("JSON") and number % 2:
            return _reshaped(rng, self.sound[kind])
        if kind.endswith(("CSV", "TOML", "text")) and number % 2:
            return _rewritten(rng, self.sound[kind])
        return damaged(rng, self.sound[kind], [(kind, self.sound[kind])])

    def judge(self, kind: str, number: int, seed: int, sound: bool = False) -> Outcome:
        """Reads one case. sound: the file as it is, which must be read."""
        path = self._laid_out(kind, f"{kind} {number}")
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

    def _laid_out(self, kind: str, case: str) -> Path:
        """Every case has its own folder: the process keeps what it has read of a path."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in {DAMAGED[kind].partition("/")[0], "avi", "onnx"}:
            shutil.copytree(self.seeds / name, self.scratch / case / name)
        return self.scratch / case / DAMAGED[kind]

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


def _reshaped(rng: Random, data: bytes) -> bytes:
    """JSON with one to three values of another type, or missing."""
    whole = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 3))):
        place: Any = whole
        key: Any = 0
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if rng.random() < 0.3 and place is not whole:
            del place[key]
            if not place:
                break
        else:
            place[key] = rng.choice((None, -1, 0, 1e308, True, "", "x\x1b[31m", [], {}, [[1]], {"a": 1}, 2**70))
    return json.dumps(whole[0]).encode()


def _rewritten(rng: Random, data: bytes) -> bytes:
    """A table or a recipe with one to four words that are other words."""
    words = re.split(rb"([,\t\n= ])", data)
    others = (
        b"",
        b"nan",
        b"-1",
        b"1e308",
        b'"',
        b"=1+1",
        b"x\x1b[31m",
        b"\x00",
        b"\xff",
        b"true",
        b"[",
        b"0x1p3",
        b"9" * 400,
        b"\r",
    )
    for _ in range(rng.choice((1, 1, 2, 4))):
        words[rng.randrange(0, len(words), rng.choice((1, 2)))] = rng.choice(others)
    return b"".join(words)

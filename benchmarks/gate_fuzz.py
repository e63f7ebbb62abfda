"""Mutated files against the gate, the downstream's scanner, onnx.checker and ONNX Runtime: counts by kind, and what went wrong.

    python benchmarks/gate_fuzz.py [--structured N] [--bytes N] [--seed S] [--first N] [--jobs 2] [--runtime DIR] [--keep DIR] [--json FILE]

Case N of a seed is always the same file; the mutations are in `tests/opallowlist/fuzzing`. Every file is judged in a child
process by the gate; what the gate accepts also goes to onnx.checker and to ONNX Runtime, which loads and runs it. `--runtime DIR`
is a second onnxruntime (`pip install --target DIR --no-deps onnxruntime==1.22.1`): what it says of the accepted files is counted.
`--keep DIR` receives the files that did what none may do; exit code 1 if there are any.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests are not installed

from tests.opallowlist import fuzzing
from tests.opallowlist.fuzzing.oracle import Judge, Result, faults, refusals
from tests.opallowlist.fuzzing.seeds import pool, save_pool

EXAMPLES = 5
"""Cases named, and files kept, of each sort of fault."""


class Table:
    """The counts so far; threads add to it."""

    def __init__(self, seed: int, keep: Path | None) -> None:
        self.seed, self.keep = seed, keep
        self.lock = threading.Lock()
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.worst: dict[str, tuple[float, str]] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, level: str, number: int, result: Result, runtime: str = "") -> None:
        with self.lock:
            kind = result["kind"]
            where = f"{level}:{number}"
            if not runtime:
                row = self.kinds[kind]
                row["files"] += 1
                row["accepted" if result.get("accepted") else "refused"] += 1
                row["loaded"] += bool(result.get("accepted")) and not {"load", "died"} & set(result)
                for what in ("cpu", "peak"):
                    if result.get(what, 0) >= self.worst.get(what, (0,))[0]:
                        self.worst[what] = (result[what], where)
            for judge, said in refusals(result):
                why = f"{judge}{runtime}: {said}"
                self.reasons[why] += 1
                if self.reasons[why] <= EXAMPLES:
                    words = result.get(judge) or result.get("words", "")
                    self.examples[why].append(f"{where} ({kind}) {words[-300:]}")
                    if "died" in result:
                        self._save(level, number, why, result)
            for fault in [] if runtime else faults(result):
                self.kinds[kind]["faults"] += 1
                self.faults[fault].append(where)
                if len(self.faults[fault]) <= EXAMPLES:
                    self._save(level, number, fault, result)

    def _save(self, level: str, number: int, fault: str, result: Result) -> None:
        if self.keep is None:
            return
        self.keep.mkdir(parents=True, exist_ok=True)
        made = fuzzing.case(level, number, self.seed, pool(public_too=True))
        stem = "".join(c if c.isalnum() else "_" for c in f"{fault}_{made.kind}_{level}_{self.seed}_{number}")
        (self.keep / f"{stem}.onnx").write_bytes(made.data)
        (self.keep / f"{stem}.json").write_text(json.dumps({"file": made.file, "more": made.more, **result}, indent=1))

    def text(self) -> str:
        names = ("files", "refused", "accepted", "loaded", "faults")
        lines = [f"{'kind':<32}" + "".join(f"{name:>10}" for name in names)]
        total: Counter[str] = sum(self.kinds.values(), Counter())
        for kind, row in [*sorted(self.kinds.items()), ("all", total)]:
            lines.append(f"{kind:<32}" + "".join(f"{row[name]:>10,}" for name in names))
        lines.append("")
        lines.append("accepted by the scan, but refused by")
        lines += [
            f"{count:10,}  {why}"
            for why, count in sorted(self.reasons.items(), key=lambda item: (item[0].split(":")[0], -item[1]))
        ]
        units = {"cpu": "s of CPU time", "peak": "MB"}
        lines += [f"most for one check: {value:.3g} {units[what]} ({where})" for what, (value, where) in self.worst.items()]
        for fault, cases in self.faults.items():
            lines.append(f"FAULT {fault}: {len(cases)} ({', '.join(cases[:EXAMPLES])})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        names = ("seed", "kinds", "worst", "reasons", "examples", "faults")
        return {name: getattr(self, name) for name in names}


def run(cases: list[tuple[str, int]], table: Table, jobs: int, runtime: Path | None, pool_file: Path) -> None:
    """Judge `cases`, made from the files in `pool_file`, with `jobs` workers at once."""
    todo: Iterator[tuple[str, int]] = iter(cases)
    stop, lock = threading.Event(), threading.Lock()
    done = Counter({"files": 0})

    def work() -> None:
        first = Judge(pool_file)
        second = Judge(pool_file, runtime) if runtime is not None else None
        try:
            while not stop.is_set():
                with lock:
                    level, number = next(todo, ("", 0))
                if not level:
                    return
                result = first.ask(level, number, table.seed)
                if "kind" not in result and not stop.is_set():  # it died, so only its number is known
                    made = fuzzing.case(level, number, table.seed, pool(public_too=True))
                    result |= {"kind": made.kind, "more": made.more, "accepted": result["died"] not in ("mutation", "gate")}
                if stop.is_set():
                    return
                table.add(level, number, result)
                if second is not None and result.get("accepted"):
                    again = second.ask(level, number, table.seed, gate=False)
                    if not stop.is_set():
                        table.add(level, number, again | {"kind": result["kind"]}, f" ({runtime.name})" if runtime else "")
                done["files"] += 1
        finally:
            first.close()
            if second is not None:
                second.close()

    began = time.monotonic()
    workers = ThreadPoolExecutor(jobs)
    pending = [workers.submit(work) for _ in range(jobs)]
    try:
        while wait(pending, timeout=1, return_when=FIRST_EXCEPTION).not_done:
            count = done["files"]
            left = (len(cases) - count) * (time.monotonic() - began) / max(count, 1)
            faulty = sum(map(len, table.faults.values()))
            print(f"\r{count:,} of {len(cases):,} files, {faulty} faults, {left / 60:.0f} min left ", end="", file=sys.stderr)
            for thread in pending:
                if thread.done():
                    thread.result()  # raises what it raised
    finally:
        stop.set()
        workers.shutdown()
        print(file=sys.stderr)
    for thread in pending:
        thread.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structured", type=int, default=20_000, metavar="N", help="files mutated by structure")
    parser.add_argument("--bytes", type=int, default=20_000, metavar="N", help="files with damaged bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case, to look at one again")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runtime", type=Path, metavar="DIR", help="a folder with a second onnxruntime")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where files that do what none may do are written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and examples")
    arguments = parser.parse_args()
    cases = [("structured", number) for number in range(arguments.first, arguments.first + arguments.structured)]
    cases += [("bytes", number) for number in range(arguments.first, arguments.first + arguments.bytes)]
    table = Table(arguments.seed, arguments.keep)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        code = 130
        pool_file = Path(folder) / "pool.zip"
        save_pool(pool(public_too=True), pool_file)
        run(cases, table, arguments.jobs, arguments.runtime, pool_file)
        code = 0
    print(table.text())
    if arguments.json:
        arguments.json.write_text(json.dumps(table.to_dict(), indent=1))
    return code or bool(table.faults)


if __name__ == "__main__":
    sys.exit(main())

"""Mutated files against the gate, the downstream's scanner, onnx.checker and ONNX Runtime: counts by kind, and what went wrong.

    python benchmarks/gate_fuzz.py [--structured N] [--bytes N] [--seed S] [--first N] [--jobs 2] [--runtime DIR] [--keep DIR] [--json FILE]

Case N of a seed is always the same file; the mutations are in `tests/opallowlist/fuzzing`. Every file is judged in a child
process by the gate; what the gate accepts also goes to onnx.checker and to ONNX Runtime, which loads and runs it. `--runtime DIR`
is a second onnxruntime (`pip install --target DIR --no-deps onnxruntime==1.22.1`): it loads what the gate accepts too.
`--keep DIR` receives the files that did what none may do; exit code 1 if there are any.
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests are not installed

from tests.opallowlist import fuzzing
from tests.opallowlist.fuzzing.oracle import Judge, Result, faults, reason
from tests.opallowlist.fuzzing.seeds import pool

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
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)
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
            for judge in ("load", "runtime", "run"):
                if judge in result:
                    why = reason(result[judge])
                    self.reasons[judge + runtime][why] += 1
                    examples = self.examples[f"{judge}{runtime}: {why}"]
                    if len(examples) < EXAMPLES:
                        examples.append(f"{where} ({kind}) {result[judge][-300:]}")
            for fault in faults(result):
                self.kinds[kind]["faults"] += 1
                self.faults[fault + runtime].append(where)
                if self.keep is not None and len(self.faults[fault + runtime]) <= EXAMPLES:
                    self._save(level, number, f"{fault}{runtime}", result)

    def _save(self, level: str, number: int, fault: str, result: Result) -> None:
        assert self.keep is not None
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
        for judge, counts in self.reasons.items():
            lines.append(f"accepted by the scan, refused by {judge}: {sum(counts.values()):,}")
            lines += [f"    {count:6,}  {why}" for why, count in counts.most_common()]
        units = {"cpu": "s of CPU time", "peak": "MB"}
        lines += [f"most for one check: {value:.3g} {units[what]} ({where})" for what, (value, where) in self.worst.items()]
        for fault, cases in self.faults.items():
            lines.append(f"FAULT {fault}: {len(cases)} ({', '.join(cases[:EXAMPLES])})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        names = ("seed", "kinds", "worst", "reasons", "examples", "faults")
        return {name: getattr(self, name) for name in names}


def run(cases: list[tuple[str, int]], table: Table, jobs: int, runtime: Path | None) -> None:
    """Judge `cases` with `jobs` workers at once; returns early, with what there is, when interrupted."""
    todo: Iterator[tuple[str, int]] = iter(cases)
    stop, lock = threading.Event(), threading.Lock()
    done = Counter({"files": 0})

    def work() -> None:
        first = Judge(public_too=True)
        second = Judge(public_too=True, runtime=runtime) if runtime is not None else None
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
                        # --load is judged by the first runtime; the second may refuse more, but must survive.
                        again = {key: value for key, value in again.items() if key != "load"} | {"kind": result["kind"]}
                        if "load" in result:
                            again["load"] = result["load"]
                        table.add(level, number, again, f" ({runtime.name})" if runtime else "")
                done["files"] += 1
        finally:
            first.close()
            if second is not None:
                second.close()

    pool(public_too=True)
    threads = [threading.Thread(target=work) for _ in range(jobs)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            count = done["files"]
            left = (len(cases) - count) * (time.monotonic() - began) / max(count, 1)
            faulty = sum(map(len, table.faults.values()))
            print(f"\r{count:,} of {len(cases):,} files, {faulty} faults, {left / 60:.0f} min left ", end="", file=sys.stderr)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        print(file=sys.stderr)


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
    code = 0
    try:
        run(cases, table, arguments.jobs, arguments.runtime)
    except KeyboardInterrupt:
        code = 130
    print(table.text())
    if arguments.json:
        arguments.json.write_text(json.dumps(table.to_dict(), indent=1))
    return code or bool(table.faults)


if __name__ == "__main__":
    sys.exit(main())

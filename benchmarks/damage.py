"""Damaged files against every reader: counts by kind and exit code, and what went wrong.

    python benchmarks/damage.py [--files 2000] [--seed 1] [--kind NAME] [--first 0]

The damage and the readers are in `tests/damage`; case N of a kind and seed is always the same file. Exit code 1 if any file
ended with a traceback, an internal error, a crash, or another exit code than 0, 1, 2 and 130.
"""

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests are not installed

from tests.damage import seeds
from tests.damage.pool import Pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="in all, over the kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", action="append", choices=list(seeds.DAMAGED), help="only these; repeatable")
    options = parser.parse_args()
    kinds = options.kind or list(seeds.DAMAGED)
    codes: dict[str, Counter[int]] = defaultdict(Counter)
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        seeds.write(Path(folder) / "seeds")
        with Pool(Path(folder) / "seeds", Path(folder) / "scratch") as pool:
            for kind in kinds:
                for number in range(options.first, options.first + -(-options.files // len(kinds))):
                    outcome = pool.judge(kind, number, options.seed)
                    codes[kind][outcome.code] += 1
                    if outcome.fault:
                        faults.append(outcome)
                        print(f"{kind} {number}: {outcome.fault}", flush=True)
                print(f"{kind:22} " + "  ".join(f"exit {code}: {n}" for code, n in sorted(codes[kind].items())), flush=True)
    total = sum(codes.values(), Counter())
    print(f"{sum(total.values()):,} files: {dict(sorted(total.items()))}, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

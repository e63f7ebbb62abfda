"""Cross-validation of a recipe: one run per fold, and one table over all held-out clips with intervals.

    python benchmarks/cross_validate.py RECIPE.toml --fold 003,009 --fold 001,004 ... --out DIR [--jobs N] [--set KEY=VALUE ...]

Every fold is a `distill eval` of the recipe into DIR/fold1, DIR/fold2, ..., logged to DIR/fold1.log and so on. A finished fold is
not run again; an interrupted one continues. Each clip is scored with the ONNX files of the run that did not train on it. Keep
clips of one scene in one fold. The student is small: N folds in parallel, each on its share of the cores, finish sooner than
one after another.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from distill.cli.output import print_cells
from distill.evaluation import statistics, tables
from distill.run.files import read_json

# A run uses one thread per core it may use. The thread count is not part of its configuration, so it may continue with another.
# It is pinned to its cores where the system supports that (not on macOS or Windows).
START = "import os, runpy; {cores} and os.sched_setaffinity(0, {cores}); runpy.run_module('distill', run_name='__main__', alter_sys=True)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--fold", action="append", required=True, help="clips held out together, comma-separated; repeatable")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="folds at once")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cores, jobs = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0)), max(1, options.jobs)
    free: SimpleQueue[set[int]] = SimpleQueue()
    for job in range(jobs):
        free.put(set(cores[job::jobs]) or set(cores))

    def run(number: int, fold: str) -> int:
        folder = options.out / f"fold{number}"
        sets = [f"corpus.val_clips={fold}", *options.set]
        flags = [word for setting in sets for word in ("--set", setting)]
        cores = free.get()
        command = [sys.executable, "-c", START.format(cores=cores), "eval", str(options.recipe), "--out", str(folder), *flags]
        with folder.with_suffix(".log").open("a") as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        free.put(cores)
        print(f"{folder}: {'done' if not status else f'ended with {status}, see {folder}.log'}", flush=True)
        return status

    with ThreadPoolExecutor(jobs) as pool:
        if bad := [status for status in pool.map(run, range(1, len(options.fold) + 1), options.fold) if status]:
            return bad[0]
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "200")  # else columns and intervals are left out
    results = {f"fold{n}": read_json(options.out / f"fold{n}" / "metrics.json") for n in range(1, len(options.fold) + 1)}

    whole = statistics.merge(results)
    tables.write_csv(options.out / "scores.csv", {"all folds": whole}, per_clip=True)
    for title, head, cells in (
        (f"{len(whole['clips'])} clips, {whole['frames_scored']} frames", "predictor", tables.score_cells(whole)),
        ("how step differs, on the same clips", "step", tables.difference_cells(whole)),
        ("NSS by clip", "clip", tables.clip_cells(whole)),
    ):
        print_cells(title, head, cells)
    print(options.out / "scores.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())

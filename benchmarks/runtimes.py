"""The student that ships in every runtime that is installed: largest difference from ONNX Runtime, and ms per frame, as Markdown.

    python benchmarks/runtimes.py                                          # the table of docs/runtimes.md
    python benchmarks/runtimes.py --sizes 961x545 --kinds rgb,"yuv420 block-map" --only OpenCV,TVM [--any-size]

Streams of 30 frames with a cut, the state fed back, one thread. The times are the least of those after the first; ONNX Runtime runs the
same file in the same process. docs/runtimes.md says how to install the runtimes.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.runtimes.sessions import FLOATS, PLANES, RUNTIMES, SIZED
from tests.runtimes.streams import largest_difference, pictures, streamed, student

REFERENCE = "ONNX Runtime"
QUICK = ",".join(name for name in RUNTIMES if name not in ("TVM", "IREE"))  # these compile every file for about ten seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="640x360,1920x1080", help="WxH,...")
    parser.add_argument("--kinds", default=",".join(FLOATS + PLANES), help="files, by input and output")
    parser.add_argument("--only", default=QUICK, help="runtimes")
    parser.add_argument("--any-size", action="store_true", help="files of any frame size")
    options = parser.parse_args()
    chosen = []
    for name in options.only.split(","):
        if missing := RUNTIMES[name].missing:
            print(f"{name}: not installed: {missing}", file=sys.stderr)
        elif name != REFERENCE and (RUNTIMES[name].any_size or not options.any_size):
            chosen.append(name)
    table = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MNN speaks on standard output
    columns = ["file", "size", f"{REFERENCE}, ms", *chosen]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", file=table)
    for kind in options.kinds.split(","):
        if options.any_size and kind in SIZED:
            continue
        for text in options.sizes.split(","):
            width, height = map(int, text.split("x"))
            model = student(kind, None if options.any_size else (height, width))
            feeds = pictures(model, (height, width))
            with RUNTIMES[REFERENCE].open(model) as session:
                expected, seconds = streamed(session, model, feeds)
            cells = [kind, text, f"{1000 * min(seconds[1:]):.1f}"]
            for name in chosen:
                runtime = RUNTIMES[name]
                if kind not in runtime.kinds:
                    cells.append("")
                    continue
                with runtime.open(model) as session:
                    maps, seconds = streamed(session, model, feeds)
                cells.append(f"{largest_difference(maps, expected):.0e}, {1000 * min(seconds[1:]):.1f}")
            print(f"| {' | '.join(cells)} |", file=table, flush=True)


if __name__ == "__main__":
    main()

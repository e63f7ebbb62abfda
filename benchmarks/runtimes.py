"""The student that ships in every runtime that is installed: largest difference from ONNX Runtime, and time per frame, as Markdown.

    python benchmarks/runtimes.py [--sizes 640x360,961x545,1920x1080] [--kinds rgb,"yuv420 block-map"] [--only OpenCV,MNN] [--any-size]

Streams of 30 frames with a cut, the state fed back, one thread. The times are the least of those after the first; ONNX Runtime runs the
same file in the same process. `pip install 'saliency-distill[runtimes]'` and `npm install onnxruntime-web` in the checkout bring
the runtimes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.runtimes.sessions import FLOATS, PLANES, RUNTIMES
from tests.runtimes.streams import largest_difference, pictures, streamed, student

REFERENCE = "ONNX Runtime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="640x360,961x545,1920x1080", help="WxH,...")
    parser.add_argument("--kinds", default=",".join(sorted(FLOATS | PLANES)), help="files, by input and output")
    parser.add_argument("--only", default=",".join(RUNTIMES), help="runtimes")
    parser.add_argument("--any-size", action="store_true", help="files of any frame size")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name != REFERENCE]
    for name in chosen:
        if missing := RUNTIMES[name].missing:
            print(f"{name}: not installed: {missing}", file=sys.stderr)
    columns = ["file", "size", f"{REFERENCE}, ms", *chosen]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for kind in options.kinds.split(","):
        for text in options.sizes.split(","):
            width, height = map(int, text.split("x"))
            model = student(kind, None if options.any_size else (height, width))
            feeds = pictures(model, (height, width))
            with RUNTIMES[REFERENCE].open(model) as session:
                expected, seconds = streamed(session, model, feeds)
            cells = [kind, text, f"{1000 * min(seconds[1:]):.1f}"]
            for name in chosen:
                runtime = RUNTIMES[name]
                if runtime.missing or kind not in runtime.kinds or (options.any_size and not runtime.any_size):
                    cells.append("")
                    continue
                with runtime.open(model) as session:
                    maps, seconds = streamed(session, model, feeds)
                cells.append(f"{largest_difference(maps, expected):.0e}, {1000 * min(seconds[1:]):.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

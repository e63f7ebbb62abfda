"""Labelling with UNISAL: CPU time per frame, by part, on one thread.

    python benchmarks/unisal.py WEIGHTS FILE ... [--domain DHF1K] [--static 0] [--frames 100] [--rounds 5]

FILE is a video or an image. Its first frames go the way that `distill label` takes: decoded, prepared eight at a time, through
the network, and as float16 to the label store. All files once are a round; the medians of the rounds are shown. CPU time, unlike
the clock's, hardly depends on what else runs. `distill label` itself says how many frames it labels per second of the clock.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from distill.corpora.readers import images
from distill.corpora.video import probe, read_frames
from distill.labels.labelling import CHUNK
from distill.labels.store import LabelStore
from distill.teachers.unisal import SIZES, Unisal

PARTS = ("decode", "prepare", "backbone", "rest", "store")


class Stopwatch:
    """CPU seconds of this process, by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[part] += time.process_time() - started


def label(path: Path, fps: float, frames: int, teacher: Unisal, store: LabelStore, watch: Stopwatch) -> int:
    """Labels the first frames of a file; returns how many there were."""
    reader, prepared, count = read_frames(path), [], 0
    while True:
        with watch("decode"):
            chunk = list(islice(reader, min(CHUNK, frames - count)))
        if not chunk:
            break
        with watch("prepare"):
            prepared.append(teacher.prepare(np.stack(chunk)))
        count += len(chunk)
    inside = watch.seconds["backbone"]
    with watch("rest"):
        logits = teacher.infer(torch.cat(prepared), fps)
    watch.seconds["rest"] -= watch.seconds["backbone"] - inside
    with watch("store"):
        store.write(path.stem, logits.numpy())
    return count


def timed_backbone(teacher: Unisal, watch: Stopwatch) -> None:
    for domain in {teacher.domain, "SALICON"}:
        backbone = teacher.network(domain).cnn
        forward = backbone.forward

        def measured(frames: torch.Tensor, forward=forward) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
            with watch("backbone"):
                return forward(frames)

        backbone.forward = measured  # type: ignore[method-assign,assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="weights_best.pth, or `random`")
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+")
    parser.add_argument("--domain", choices=tuple(SIZES), default="DHF1K")
    parser.add_argument("--static", type=float, default=0.0, help="share of the static path")
    parser.add_argument("--frames", type=int, default=100, help="of each file, at most")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.weights == "random":
        teacher = Unisal.random(0, options.domain, static=options.static)
    else:
        teacher = Unisal.load(options.weights, options.domain, static=options.static)
    rates = [30.0 if path.suffix.lower() in images.SUFFIXES else probe(path).fps for path in options.files]
    watch = Stopwatch()
    timed_backbone(teacher, watch)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        store = LabelStore(Path(folder), {"name": "unisal"})
        for _ in range(1 + options.rounds):  # the first warms up
            watch.seconds = dict.fromkeys(PARTS, 0.0)
            frames = sum(
                label(path, fps, options.frames, teacher, store, watch) for path, fps in zip(options.files, rates, strict=True)
            )
            rounds.append({part: 1e3 * seconds / frames for part, seconds in watch.seconds.items()})
    medians = {part: statistics.median(row[part] for row in rounds[1:]) for part in PARTS}
    whole = statistics.median(sum(row.values()) for row in rounds[1:])
    print(f"{len(options.files)} files, {frames} frames; ms of CPU per frame on one thread, torch {torch.__version__}")
    print("  ".join(f"{part} {value:.2f}" for part, value in medians.items()), f" whole {whole:.2f}")


if __name__ == "__main__":
    main()

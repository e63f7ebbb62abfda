"""What a map costs an encode: CPU time of `distill encode` with the student that ships, over the same encode without a map.

    python benchmarks/encode_cost.py VIDEO [--size 1920x1080] [--presets veryfast,medium] [--codec x264] [--frames 120] [--rounds 5]

The video is brought to the size first, into a file of its own. Then both encodes take turns in this process, with one thread for
the encoder and one for the model; decoding and muxing are part of both. CPU time of the whole process, in ms per frame: the
median of the rounds, and of the rounds' ratios.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

import av
import cv2

from distill.encoding.encode import encode
from distill.encoding.encoders import Coding
from distill.encoding.maps import open_maps
from distill.encoding.qp_offsets import MAPPINGS
from distill.export import release_model
from distill.run.progress import Narrator


def scaled(video: Path, size: tuple[int, int], frames: int, target: Path) -> Path:
    """The first frames of a video at `size` (width, height), nearly lossless."""
    with av.open(str(video)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=source.streams.video[0].average_rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "superfast", "crf": "12"}
        for frame in islice(source.decode(video=0), frames):
            large = frame.reformat(*size, "yuv420p", interpolation="LANCZOS")
            large.pict_type = 0
            out.mux(stream.encode(large))
        out.mux(stream.encode(None))
    return target


def cpu_per_frame(source: Path, target: Path, mapped: bool, coding: Coding) -> float:
    """Milliseconds."""
    maps = open_maps(release_model() if mapped else None, None if mapped else "none")
    start = time.process_time()
    facts = encode(source, target, maps, coding, MAPPINGS["log"], Narrator(quiet=True))
    return 1000 * (time.process_time() - start) / int(facts["frames"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--presets", default="veryfast,medium")
    parser.add_argument("--codec", default="x264")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        source = scaled(options.video, (width, height), options.frames, Path(folder) / "source.mkv")
        print(f"{options.video.name} at {options.size}, {options.codec}, one thread, CPU in ms per frame")
        print(f"{'preset':12} {'no map':>8} {'map':>8} {'ratio':>7}   ratios of the rounds")
        for preset in options.presets.split(","):
            coding, target = Coding(options.codec, preset=preset, threads=1), Path(folder) / "out.mkv"
            rounds = [
                tuple(cpu_per_frame(source, target, mapped, coding) for mapped in (False, True)) for _ in range(options.rounds)
            ]
            plain, mapped = (median(column) for column in zip(*rounds, strict=True))
            ratios = [b / a for a, b in rounds]
            shown = " ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{preset:12} {plain:8.1f} {mapped:8.1f} {median(ratios):7.3f}   {shown}", flush=True)


if __name__ == "__main__":
    main()

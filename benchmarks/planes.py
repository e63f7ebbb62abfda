"""From a decoder's planes to a block map: what each way costs, side by side, on one thread.

    python benchmarks/planes.py [--size 1920x1080 ...] [--rounds 25] [--other ../shared/peers/saliency_student_v2.onnx]

Every way starts at the planes of a decoded 4:2:0 frame of 8 bits and ends at the means of 16x16 px of its map. The ways take turns;
the least of the rounds counts, of three for another student, in milliseconds; below, it is put in relation to the other ways. "scaled to
640 px" scales the frame down before the model sees it, as `distill encode` does for another project's model.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import onnx

from distill.corpora.readers.pyav import planes_of
from distill.export import release_model
from distill.export.planes import PlanePredictor
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, Predictor, open_session
from distill.export.variants import BLOCK, yuv420_graph
from distill.export.yuv import Colour

OURS = "`PlanePredictor`, block map"


def frame_of(width: int, height: int) -> av.VideoFrame:
    """A decoded frame: smooth, with some noise."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 16, 3)).astype(np.uint8)
    rgb = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 12, rgb.shape).astype(np.uint8)
    return av.VideoFrame.from_ndarray(cv2.add(rgb, noise)).reformat(format="yuv420p")


def blocks_of(saliency: np.ndarray) -> np.ndarray:
    """The means of 16x16 px, by OpenCV."""
    height, width = saliency.shape
    return cv2.resize(saliency, (-(-width // BLOCK), -(-height // BLOCK)), interpolation=cv2.INTER_AREA)


def normalise_in_c(rgb: np.ndarray) -> np.ndarray:
    """What `distill.export.runner.normalise` does, by OpenCV, in one pass."""
    scale, mean = 1 / (255 * IMAGENET_STD), 255 * IMAGENET_MEAN
    return cv2.dnn.blobFromImageWithParams(rgb, cv2.dnn.Image2BlobParams(scalefactor=scale.tolist(), mean=mean.tolist()))


def ways(frame: av.VideoFrame, other: Path | None) -> dict[str, Callable[[], np.ndarray]]:
    """Each way's function: the frame -> its block map."""
    planes = planes_of(frame)
    assert planes
    size = planes.shape
    model = onnx.load(release_model())
    files = {"any size": ("block-map", None), "one size": ("block-map", size), "whole map": ("map", size)}
    sessions = {
        what: open_session(yuv420_graph(model, Colour("bt601"), *asked).SerializeToString(), what, 1)
        for what, asked in files.items()
    }
    feed = {name: np.ascontiguousarray(getattr(planes, name))[None, None] for name in ("y", "u", "v")}
    state = {"state_in": np.zeros(sessions["one size"].get_inputs()[-1].shape, np.float32)}
    cv2.setNumThreads(1)
    rgb_model, in_memory = Predictor(release_model()), PlanePredictor(release_model())

    def rgb(width: int | None = None) -> np.ndarray:
        height = None if width is None else 8 * round(frame.height * width / frame.width / 8)
        return frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1).to_ndarray()

    def in_c(predictor: Predictor, width: int | None = None) -> np.ndarray:
        return blocks_of(predictor.run(normalise_in_c(rgb(width)))[0, 0])

    def as_in_readme() -> np.ndarray:
        normalised = (rgb() / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD
        return blocks_of(rgb_model.run(normalised.transpose(2, 0, 1)[None])[0, 0])

    found: dict[str, Callable[[], np.ndarray]] = {
        "RGB, normalised in numpy as in the README": as_in_readme,
        "RGB, normalised by `Predictor`": lambda: blocks_of(rgb_model.predict(rgb())),
        "RGB, normalised by OpenCV": lambda: in_c(rgb_model),
        "RGB scaled to 640 px, normalised by `Predictor`": lambda: blocks_of(rgb_model.predict(rgb(640))),
        "RGB scaled to 640 px, normalised by OpenCV": lambda: in_c(rgb_model, 640),
        "`yuv420` file of one size, a whole map": lambda: blocks_of(
            sessions["whole map"].run(None, {**feed, **state})[0][0, 0]
        ),
        "`yuv420` file of any size, block map": lambda: sessions["any size"].run(None, {**feed, **state})[0],
        "`yuv420` file of one size, block map": lambda: sessions["one size"].run(None, {**feed, **state})[0],
        OURS: lambda: in_memory.predict(planes),
    }
    if other:
        peer = Predictor(other)
        found[f"{other.stem}, normalised by OpenCV"] = lambda: in_c(peer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="WxH, repeatable; default 640x360, 1920x1080, 3840x2160")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--other", type=Path, help="another student that takes RGB")
    options = parser.parse_args()
    sizes = options.size or ["640x360", "1920x1080", "3840x2160"]
    table: dict[str, list[float]] = {}
    for size in sizes:
        width, height = map(int, size.split("x"))
        found = ways(frame_of(width, height), options.other)
        least = dict.fromkeys(found, float("inf"))
        for round_ in range(options.rounds):
            for name, way in found.items():
                if options.other and options.other.stem in name and round_ >= 3:
                    continue  # it takes seconds
                start = time.perf_counter()
                way()
                least[name] = min(least[name], 1000 * (time.perf_counter() - start))
        for name, milliseconds in least.items():
            table.setdefault(name, []).append(milliseconds)
    print(f"| way, ms per frame, one thread | {' | '.join(sizes)} |\n| --- |{' --- |' * len(sizes)}")
    for name, row in table.items():
        print(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in row)} |")
    print(f"\n| share of it that {OURS} takes | {' | '.join(sizes)} |\n| --- |{' --- |' * len(sizes)}")
    for name, row in table.items():
        if name.startswith("RGB"):
            print(f"| {name} | {' | '.join(f'{ours / ms:.2f}' for ours, ms in zip(table[OURS], row, strict=True))} |")


if __name__ == "__main__":
    main()

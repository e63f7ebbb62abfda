"""Runs a student over a video, and writes an overlay to look at, or the maps themselves.

The video is streamed as by `distill encode` (distill.export.streaming): a scene cut resets the state, and of a video faster
than the model's frame rate the model sees only the frames closest to that rate. Of 4:2:0 video that PyAV
reads, a student of ours sees the planes of the decoder, and RGB is made for overlays alone; else the model sees RGB.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from distill.corpora.video import CODECS, Facts, decoded, probe, write_video, writes_h264
from distill.evaluation.predictors import load_on_planes, load_predictor
from distill.export.planes import PlanePredictor
from distill.export.streaming import Stream
from distill.reporting.drawings import overlay
from distill.run.errors import UsageError, usage_errors
from distill.run.files import atomic_folder, check_distinct, write_array
from distill.run.machine.extras import how_to_install
from distill.run.machine.pipes import as_file, is_stream
from distill.run.progress import Narrator

FAINT = 0.2  # overlays are scaled to the frame's maximum, but at least to this: a map this faint has no salient region


def write_predictions(video: Path, model: Path, out: Path, threads: int, narrator: Narrator) -> Path:
    """Writes an overlay video (.mp4, .avi), float16 maps `[T,H,W]` (.npy), or a folder of 8-bit PNGs; returns its path.

    video: a file, a pipe or `-`. Raises UsageError for files that cannot be read, another suffix, a path where other files would be
    overwritten, or maps outside [0, 1]; nothing is written then.
    """
    cv2.setNumThreads(threads)
    predictor = load_on_planes(model, "map", threads)
    suffix = out.suffix.lower()
    if suffix not in (*CODECS, ".npy", ""):
        raise UsageError(f"--out {out}: the suffix must be .mp4 or .avi (overlay), .npy (maps), or none (a folder of PNGs)")
    check_distinct({"--out": out}, [("VIDEO", None if is_stream(video) else video), ("--model", model)])
    if out.is_dir() and (suffix or not all(re.fullmatch(r"\d+\.png", entry.name) for entry in out.iterdir())):
        raise UsageError(f"--out {out} is a folder that holds other files; choose a new one")
    if not suffix and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, and without a suffix a folder is written; choose another name")
    with as_file(video, narrator.stop) as file:
        facts = probe(file)
        if isinstance(predictor, PlanePredictor) and not facts.planes:
            predictor = load_predictor(model, threads)
        with usage_errors():
            stream = Stream(predictor)
        _predict(file, facts, stream, out, narrator)
    return out


def _predict(video: Path, facts: Facts, stream: Stream, out: Path, narrator: Narrator) -> None:
    suffix, of_planes = out.suffix.lower(), isinstance(stream.predictor, PlanePredictor)
    for kind, count in facts.troubles.items():
        narrator.say(f"{video.name}: {kind}: {count:,}")
    if facts.times:
        one_rate = suffix in CODECS and not writes_h264(out)
        kept = f": {out.name} has one rate, and repeats frames" if one_rate else ""
        narrator.say(f"{video.name}: the frame rate varies around {facts.fps:.4g} per second; each frame keeps its time{kept}")
    if suffix == ".mp4" and not writes_h264(out):
        narrator.say(
            f"{out.name} is MPEG-4 part 2, which browsers do not play; with PyAV it is H.264: {how_to_install('encode')}"
        )
    if note := stream.rate_note(video.name, facts.fps):
        narrator.say(note)

    def predicted() -> Iterator[tuple[Any, np.ndarray]]:  # what is drawn over, and the map
        for index, frame in enumerate(decoded(video)):
            try:
                seen: Any = frame.planes if of_planes else frame.rgb()
                saliency = stream.map(seen, facts.time_of(index))
            except ValueError as error:
                raise UsageError(f"{video}: {error}") from None
            if not (saliency.min() >= 0 and saliency.max() <= 1):  # as `encode`, which would have to guess what it means
                found = f"got {saliency.min():g} to {saliency.max():g}"
                raise UsageError(f"{video}: frame {index + 1}: a saliency map must lie in [0, 1]; {found}")
            yield frame.rgb() if of_planes and suffix in CODECS else seen, saliency

    maps = narrator.track(predicted(), "predict", facts.frames, "frames")
    if suffix == ".npy":
        write_array(out, np.stack([saliency.astype(np.float16) for _, saliency in maps]))
    elif suffix:
        overlays = (overlay(rgb, saliency / max(float(saliency.max()), FAINT)) for rgb, saliency in maps)
        write_video(out, facts.fps, (facts.height, facts.width), overlays, facts.times)
    else:
        with atomic_folder(out) as folder:
            for index, (_, saliency) in enumerate(maps, 1):
                png = cv2.imencode(".png", np.round(saliency * 255).astype(np.uint8))[1]
                (folder / f"{index:05d}.png").write_bytes(png.tobytes())

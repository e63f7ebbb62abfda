"""Runs a student over a video, and writes an overlay to look at, or the maps themselves.

The video is streamed as by `distill encode` (distill.export.streaming): a scene cut resets the state, and of a video faster
than the model's frame rate the model sees only the frames closest to that rate.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from distill.corpora.video import CODECS, keeps_times, probe, read_frames, write_video
from distill.evaluation.predictors import load_predictor
from distill.export.streaming import Stream
from distill.reporting.drawings import overlay
from distill.run.errors import UsageError
from distill.run.files import check_distinct, write_array
from distill.run.progress import Narrator

FAINT = 0.2  # overlays are scaled to the frame's maximum, but at least to this: a map this faint has no salient region


def write_predictions(video: Path, model: Path, out: Path, threads: int, narrator: Narrator) -> Path:
    """Writes an overlay video (.mp4, .avi), float16 maps `[T,H,W]` (.npy), or a folder of 8-bit PNGs; returns its path.

    Raises UsageError for files that cannot be read, another suffix, or a path where other files would be overwritten.
    """
    stream = Stream(load_predictor(model, threads))
    suffix = out.suffix.lower()
    if suffix not in (*CODECS, ".npy", ""):
        raise UsageError(f"--out {out}: the suffix must be .mp4 or .avi (overlay), .npy (maps), or none (a folder of PNGs)")
    check_distinct({"--out": out}, [("VIDEO", video), ("--model", model)])
    if out.is_dir() and (suffix or not all(re.fullmatch(r"\d+\.png", entry.name) for entry in out.iterdir())):
        raise UsageError(f"--out {out} is a folder that holds other files; choose a new one")
    facts = probe(video)
    for kind, count in facts.troubles.items():
        narrator.say(f"{video.name}: {kind}: {count:,}")
    if facts.times:
        one_rate = suffix in CODECS and not keeps_times(out)
        kept = f": {out.name} has one rate, and repeats frames" if one_rate else ""
        narrator.say(f"{video.name}: the frame rate varies around {facts.fps:.4g} per second; each frame keeps its time{kept}")
    if note := stream.rate_note(video.name, facts.fps):
        narrator.say(note)

    def predicted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, frame in enumerate(read_frames(video)):
            try:
                yield frame, stream.map(frame, facts.time_of(index))
            except ValueError as error:
                raise UsageError(f"{video}: {error}") from None

    maps = narrator.track(predicted(), "predict", facts.frames, "frames")
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        write_array(out, np.stack([saliency.astype(np.float16) for _, saliency in maps]))
    elif suffix:
        overlays = (overlay(frame, saliency / max(float(saliency.max()), FAINT)) for frame, saliency in maps)
        write_video(out, facts.fps, (facts.height, facts.width), overlays, facts.times)
    else:
        out.mkdir(exist_ok=True)
        for stale in out.glob("*.png"):  # left by a longer video
            stale.unlink()
        for index, (_, saliency) in enumerate(maps, 1):
            png = cv2.imencode(".png", np.round(saliency * 255).astype(np.uint8))[1]
            (out / f"{index:05d}.png").write_bytes(png.tobytes())
    return out

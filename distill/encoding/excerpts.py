"""The clips that `distill bd` encodes: their first frames in memory, and the weights of their pixels.

The weights of a clip with gaze are the density of its fixations. A clip without gaze may get proxy weights: the map of a model
that is not one of those compared. The two are never averaged together, and no model may weight its own measurement.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import onnx

from distill.corpora import Clip, density_map, fixation_map, open_corpus
from distill.corpora.video import probe, read_frames
from distill.encoding.encoders import Picture
from distill.encoding.planner import saliency_of
from distill.export.streaming import Stream
from distill.recipe import keys
from distill.run.errors import UsageError
from distill.run.progress import Narrator


@dataclass(frozen=True)
class Excerpt:
    """The first frames of a clip as an encoder gets them, and the weights of their pixels."""

    picture: Picture
    frames: list[av.VideoFrame]  # yuv420p
    luma: np.ndarray  # uint8 [T,H,W]
    weights: dict[int, np.ndarray]  # by frame, float32 [h,w] that covers it, not all zero; frames without weights are not there
    weights_by: str | None = None  # the key in results: gaze, or judge for proxy weights
    proxy: str | None = None  # name of the model that gives proxy weights

    def weight(self, index: int) -> np.ndarray:
        """The weight of every pixel of a frame, float32 `[H,W]`, their sum 1."""
        height, width = self.picture.size
        weights = cv2.resize(self.weights[index], (width, height), interpolation=cv2.INTER_LINEAR)
        return weights / weights.sum()


Source = tuple[str, Callable[[], Excerpt]]  # the name of a clip, and a function that reads it


def read_video(path: Path, frames: int) -> Excerpt:
    """The excerpt of a video file; it has no gaze."""
    return make_excerpt(islice(read_frames(path), frames), probe(path).fps, {})


def read_clip(clip: Clip, frames: int) -> Excerpt:
    """The excerpt of a corpus's clip, with the density of its fixations. Frames without fixations have no weights."""
    gaze = {}
    for index in range(min(frames, clip.frames, clip.annotated_frames)):
        fixations = fixation_map(clip, index)
        if fixations is not None and fixations.any():
            gaze[index] = density_map(clip, index, fixations)
    return make_excerpt(islice(clip.read(), frames), clip.fps, gaze)


def make_excerpt(pixels: Iterator[np.ndarray], fps: float, gaze: dict[int, np.ndarray]) -> Excerpt:
    """The excerpt of frames uint8 RGB `[H,W,3]`, cropped to even sides, with the gaze density of some of them, by index."""
    rate = Fraction(fps).limit_denominator(1001)
    frames = []
    for index, rgb in enumerate(pixels):
        height, width = (side - side % 2 for side in rgb.shape[:2])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width])).reformat(format="yuv420p")
        frame.pts, frame.time_base = index, 1 / rate
        frames.append(frame)
    luma = np.stack([frame.to_ndarray()[: frame.height] for frame in frames])
    picture = Picture(frames[0].width, frames[0].height, "yuv420p", 1 / rate, rate)
    height, width = picture.size
    cropped = {i: weights[:height, :width] for i, weights in gaze.items() if weights[:height, :width].any()}
    return Excerpt(picture, frames, luma, cropped, "gaze" if cropped else None)


def with_proxy_weights(excerpt: Excerpt, stream: Stream, name: str) -> Excerpt:
    """The excerpt with a model's maps as weights, where there is no gaze. Frames whose map is zero have no weights."""
    if excerpt.weights:
        return excerpt
    stream.reset()
    maps = {}
    for index, frame in enumerate(excerpt.frames):
        try:
            saliency, _ = saliency_of(frame, excerpt.picture.size, stream.map, float(frame.time or 0))
        except ValueError as error:
            raise UsageError(str(error)) from None
        if saliency.any():
            maps[index] = saliency.astype(np.float32)
    return replace(excerpt, weights=maps, weights_by="judge", proxy=name) if maps else excerpt


def check_proxy(proxy: Path, models: Mapping[str, Path]) -> None:
    """Raises UsageError where the proxy is not a file, or shares its weights with one of the models, in whatever form."""
    if not proxy.is_file():
        reason = "the centred Gaussian is one of the maps compared" if str(proxy) in ("centre", "none") else "no such model"
        raise UsageError(f"--judge {proxy}: {reason}; give the ONNX file of a model that is not compared")
    weights = _tensor_digests(proxy)
    for name, path in models.items():
        same = path.read_bytes() == proxy.read_bytes()
        other = _tensor_digests(path)
        shared = sum(count for digest, count in weights.items() if digest in other)
        if same or 2 * shared > min(sum(weights.values()), sum(other.values())) > 0:
            what = f"{'the same file as' if same else 'the same weights as in'} {name}, which is compared"
            way_out = "no model may weight its own measurement; give one that was trained independently"
            raise UsageError(f"--judge {proxy}: {what}, and {way_out}")


def _tensor_digests(path: Path) -> dict[bytes, int]:
    """Digests of a model's larger tensors, and how many numbers each holds; empty where the file is not a model."""
    try:
        tensors = onnx.load(str(path)).graph.initializer
    except Exception:  # protobuf raises many kinds; opening the model reports what is wrong
        return {}
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    large = [a for a in arrays if a.size >= 64 and a.dtype.kind == "f"]
    return {hashlib.sha256(np.sort(a, None).tobytes()).digest(): a.size for a in large}


def find_sources(
    videos: Sequence[Path], corpus: str | None, root: Path | None, clips: str | None, frames: int, narrator: Narrator
) -> list[Source]:
    """Videos, and clips of a corpus (`clips`: ids, by default all with annotation), each with a function that reads it."""
    found: list[Source] = [(name, partial(read_video, path, frames)) for name, path in unique_names(videos).items()]
    for path in videos:
        if not path.is_file():
            raise UsageError(f"{path}: no such video" + ("; it is a folder" if path.is_dir() else ""))
    if corpus or root or clips:
        if not (corpus and root):
            raise UsageError("clips with gaze need --corpus and --root, and optionally --clips ID,ID")
        recipe = keys.Corpus(name=corpus, root=(str(root),))
        opened = open_corpus(corpus, [str(root)], track=narrator.track, options=recipe)
        chosen = opened.select(clips.split(",")) if clips else [c for c in opened.clips if c.annotated_frames]
        found += [(clip.id, partial(read_clip, clip, frames)) for clip in chosen if not clip.static]
    if not found:
        raise UsageError("which clips? name videos, or a --corpus with its --root")
    return found


def unique_names(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their name, or by the whole path where two have the same name."""
    names = [path.name for path in files]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, files, strict=True)}

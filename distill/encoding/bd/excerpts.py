"""The clips that `distill bd` encodes: a part of each, in temporary files, and the weights of its pixels.

The weights of a clip with gaze are the density of its fixations. A clip without gaze may get proxy weights: the map of a model
that is not one of those compared. The two are never averaged together, and no model may weight its own measurement.

The pictures are those of the video, bit for bit, where it is 4:2:0 of 8 bits; any other is converted to that. Pictures and weights
are mapped files: a clip in full length may be larger than memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import av
import cv2
import numpy as np
import onnx

from distill.corpora import SIGMA, Clip, Points, blur, density_map, fixation_points, open_corpus, recognise
from distill.corpora.readers.frames import Frame
from distill.corpora.readers.pyav import planes_of
from distill.corpora.readers.stamps import position
from distill.corpora.video import decoded, probe
from distill.encoding.encoders import Picture
from distill.encoding.maps import MODEL_WIDTH, map_of
from distill.export.streaming import Stream
from distill.export.yuv import Colour, Planes
from distill.recipe import keys
from distill.run.errors import UsageError
from distill.run.files import fingerprint
from distill.run.progress import Narrator

H273 = {"bt601": 6, "bt709": 1, "bt2020": 9, "limited": 1, "full": 2}  # matrices and ranges, in the numbers of ITU-T H.273
SWSCALE = {"bt601": "ITU601", "bt709": "ITU709", "bt2020": "BT2020", "limited": "MPEG", "full": "JPEG"}


@dataclass(frozen=True)
class Span:
    """Which frames of a clip are encoded. frames: how many, 0 for all; start: seconds, or None for those in the middle."""

    frames: int = 100
    start: float | None = 1.0

    def of(self, total: int, fps: float, times: Sequence[float]) -> range:
        """The frames of a clip with `total` frames at a steady rate or at `times`, in seconds.

        A clip that has less than two frames after the start begins at its middle: its first frames are those to avoid.
        """
        wanted = self.frames or total
        if self.start is None:
            first = max(0, total - wanted) // 2
        else:
            first = int(np.ceil(position(np.array(self.start), fps, times) - 1e-6))
            first = first if first <= total - 2 else total // 2
        return range(first, min(first + wanted, total))

    def __str__(self) -> str:
        count = f"{self.frames} frames" if self.frames else "all frames"
        return f"{count} from the middle" if self.start is None else f"{count} from {self.start:g} s"


def read_span(frames: str, start: str) -> Span:
    """The span that `--frames` and `--start` name. Raises UsageError for anything else."""
    count = {"all": "0"}.get(frames, frames)
    if not count.isdecimal() or int(count) == 1:
        raise UsageError(f"--frames {frames}: must be 2 or more, or all")
    try:
        seconds = None if start == "middle" else float(start)
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise UsageError(f"--start {start}: must be seconds from the start of a clip, or middle")
    return Span(int(count), seconds)


@dataclass(frozen=True)
class Excerpt:
    """Consecutive frames of a clip as an encoder gets them, and the weights of their pixels."""

    PIXELS: ClassVar[str] = "pixels.yuv"  # the file of the frames in `folder`

    folder: Path
    picture: Picture
    pixels: np.ndarray  # yuv420p: uint8 [T,H*3/2,W]
    weights: dict[int, np.ndarray]  # by frame, float32 [h,w] that covers it, not all zero; frames without weights are not there
    weights_by: str | None = None  # the key in results: gaze, or judge for proxy weights
    proxy: str | None = None  # name of the model that gives proxy weights
    observed: dict[int, np.ndarray] = field(
        default_factory=dict
    )  # as `weights`: where observers looked that do not count in them
    start: float = 0.0  # when the first frame is shown in the clip, in seconds

    def __len__(self) -> int:
        return len(self.pixels)

    def frame(self, index: int) -> av.VideoFrame:
        """A frame; the first one is at time 0."""
        frame = av.VideoFrame.from_ndarray(self.pixels[index], format="yuv420p")
        frame.pts, frame.time_base = index, self.picture.time_base
        frame.colorspace, frame.color_range = self.picture.matrix, self.picture.range
        return frame

    def frames(self) -> Iterator[av.VideoFrame]:
        """All frames, each made where it is used."""
        return map(self.frame, range(len(self)))

    def weight(self, index: int) -> np.ndarray:
        """The weight of every pixel of a frame, float32 `[H,W]`, their sum 1."""
        height, width = self.picture.size
        weights = cv2.resize(self.weights[index], (width, height), interpolation=cv2.INTER_LINEAR)
        return weights / weights.sum()


Reader = Callable[[Path], Excerpt]
"""Reads a clip; its files are in the folder, which must stay as long as the excerpt is used."""


class Source(NamedTuple):
    """A clip to be read."""

    name: str
    read: Reader
    identity: str = ""  # changes with what is read


Density = Callable[[int], np.ndarray | None]
"""Where people look in a frame, float32 `[H,W]`, not normalised; None where that is not known."""


def read_video(path: Path, span: Span, folder: Path) -> Excerpt:
    """The excerpt of a video file; it has no gaze."""
    facts = probe(path)
    chosen = span.of(facts.frames, facts.fps, facts.times)
    frames = islice(decoded(path, start=chosen.start), len(chosen))
    return replace(make_excerpt(frames, facts.fps, folder), start=facts.time_of(chosen.start))


def read_clip(clip: Clip, span: Span, halves: bool, folder: Path) -> Excerpt:
    """The excerpt of a corpus's clip, with the density of its fixations. Frames without fixations have no weights.

    halves: where observers are known, half of them give the weights, the others `observed`.
    """
    chosen = span.of(clip.frames, clip.fps, clip.times)

    def points_in(index: int) -> Points | None:
        points = fixation_points(clip, chosen[index])
        return points if points is not None and len(points.rows) else None

    def density(index: int) -> np.ndarray | None:
        points = points_in(index)
        return None if points is None else density_map(clip, chosen[index], points.as_map(clip))

    def density_of_half(half: int, index: int) -> np.ndarray | None:
        points = points_in(index)
        if points is None or points.observers is None:
            return None
        # Every other observer by their numbers, which they keep through the clip.
        mine = points.observers % 2 == half
        return blur(Points(points.rows[mine], points.columns[mine]).as_map(clip), SIGMA * clip.width) if mine.any() else None

    frames = islice(clip.decoded(start=chosen.start), len(chosen))
    known = halves and any(p is not None and p.observers is not None for p in map(points_in, range(len(chosen))))
    densities = [partial(density_of_half, half) for half in (0, 1)] if known else [density]
    return replace(make_excerpt(frames, clip.fps, folder, *densities), start=clip.time_of(chosen.start))


def make_excerpt(
    frames: Iterable[Frame], fps: float, folder: Path, density: Density = lambda index: None, observed: Density | None = None
) -> Excerpt:  # fmt: skip
    """The excerpt of decoded frames, cropped to even sides.

    folder: for the files of pictures and weights. density: what the weights are made of, by frame, counted from the first of these;
    observed: of observers that do not count in it.
    """
    rate = Fraction(fps).limit_denominator(1001)
    colour: Colour | None = None

    def pictures() -> Iterator[np.ndarray]:
        nonlocal colour
        for frame in frames:
            planes = _yuv420p(frame, colour)
            colour = planes.colour
            yield np.concatenate([plane.ravel() for plane in (planes.y, planes.u, planes.v)]).reshape(-1, planes.y.shape[1])

    pixels = _mapped(folder / Excerpt.PIXELS, pictures())
    height, width = len(pixels[0]) * 2 // 3, pixels.shape[2]

    def cropped(of: Density) -> Iterator[tuple[int, np.ndarray]]:
        maps = ((index, of(index)) for index in range(len(pixels)))
        return ((index, found[:height, :width]) for index, found in maps if found is not None)

    weights = _map_weights(folder / "weights", cropped(density))
    others = _map_weights(folder / "observed", cropped(observed)) if observed and weights else {}
    assert colour is not None
    matrix, range_ = H273[colour.matrix], H273[colour.range]
    picture = Picture(width, height, "yuv420p", 1 / rate, rate, matrix=matrix, range=range_)
    return Excerpt(folder, picture, pixels, weights, "gaze" if weights else None, observed=others)


def _yuv420p(frame: Frame, colour: Colour | None) -> Planes:
    """The planes of a frame, 4:2:0 of 8 bits, cropped to even sides. colour: that of the frames before it, to which it is converted."""
    height, width = (side - side % 2 for side in frame.size)
    planes = frame.planes
    if planes is None or planes.colour.depth > 8 or colour not in (None, planes.colour):
        to = colour or Colour("bt601")
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb()[:height, :width]))
        made = rgb.reformat(format="yuv420p", dst_colorspace=SWSCALE[to.matrix], dst_color_range=SWSCALE[to.range])
        planes = planes_of(made)
        assert planes is not None
        planes = replace(planes, colour=to)
    return planes.cropped((height, width))


def _map_weights(path: Path, maps: Iterable[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Maps `[h,w]` by frame, those that are not all zero, in a file. Larger ones are reduced to what a model sees: density is
    smooth, and its sigma 2 % of the width."""
    indices = []

    def reduced() -> Iterator[np.ndarray]:
        for index, weights in maps:
            if weights.any():
                indices.append(index)
                scale = min(1.0, MODEL_WIDTH / weights.shape[1])
                size = round(weights.shape[1] * scale), max(1, round(weights.shape[0] * scale))
                yield cv2.resize(weights.astype(np.float32), size, interpolation=cv2.INTER_AREA)

    kept = _mapped(path, reduced())
    return dict(zip(indices, kept, strict=True))


def _mapped(path: Path, arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Arrays of one shape and type, one after the other in a file, as one array `[N,...]` that is read where it is used."""
    count, last = 0, np.empty(0)
    with path.open("wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
            count, last = count + 1, array
    return np.memmap(path, last.dtype, "r", shape=(count, *last.shape)) if count else np.empty((0, 0))


def with_proxy_weights(excerpt: Excerpt, stream: Stream, name: str) -> Excerpt:
    """The excerpt with a model's maps as weights, where there is no gaze. Frames whose map is zero have no weights."""
    if excerpt.weights:
        return excerpt
    stream.reset()

    def maps() -> Iterator[tuple[int, np.ndarray]]:
        height, width = excerpt.picture.size
        for index, frame in enumerate(excerpt.frames()):
            try:
                found = map_of(frame, excerpt.picture.size, stream, float(frame.time or 0))
            except ValueError as error:
                raise UsageError(str(error)) from None
            values, cell = found.values, found.cell
            if cell:  # the last ones reach beyond the frame
                size = values.shape[1] * cell, values.shape[0] * cell
                values = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
            yield index, values

    weights = _map_weights(excerpt.folder / "weights", maps())
    return replace(excerpt, weights=weights, weights_by="judge", proxy=name) if weights else excerpt


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
    videos: Sequence[Path], corpus: str | None, root: Path | None, clips: str | None, span: Span, narrator: Narrator,
    halves: bool = False,
) -> list[Source]:  # fmt: skip
    """Videos, and clips of a corpus (`clips`: ids, by default all with annotation), each with its reader; only these are opened.
    halves: see `read_clip`."""
    videos = list({path.resolve(): path for path in videos}.values())  # twice the same would make intervals too narrow
    found = [Source(name, partial(read_video, path, span), _identity(path)) for name, path in unique_names(videos).items()]
    for path in videos:
        if not path.is_file():
            raise UsageError(f"{path}: no such video" + ("; it is a folder" if path.is_dir() else ""))
    if corpus or root or clips:
        if not root:
            raise UsageError(f"--{'corpus' if corpus else 'clips'} names clips with gaze; give their folder with --root")
        if not corpus:
            corpus, [about] = recognise([root])
            narrator.say(f"corpus: {about}")
        recipe = keys.Corpus(name=corpus, root=(str(root),))
        named = list(dict.fromkeys(clips.split(","))) if clips else []
        opened = open_corpus(corpus, [str(root)], narrator.track, recipe, named)
        for clip in opened.clips:
            if not clip.static and (named or clip.annotated_frames):
                found.append(Source(clip.id, partial(read_clip, clip, span, halves), _identity(Path(clip.video), clip)))
    if not found:
        if root:
            raise UsageError(f"{root} has no video with gaze; name videos, or another corpus with --root")
        raise UsageError("which clips? name videos, or a corpus with gaze with --root")
    return found


def _identity(video: Path, *more: Any) -> str:
    stat = video.stat() if video.exists() else None
    return fingerprint(str(video.absolute()), stat and [stat.st_size, stat.st_mtime_ns], list(map(str, more)))


def unique_names(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their name, or by the whole path where two have the same name."""
    names = [path.name for path in files]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, files, strict=True)}

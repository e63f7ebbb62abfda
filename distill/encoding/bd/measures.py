"""How good an encoded excerpt is, by the measures that codec engineers use.

    psnr     of luma, over all pixels equally and weighted by where people look; of all planes, 6:1:1
    ssim     of luma, in dB: -10 log10(1 - SSIM)
    xpsnr    of luma (Helmrich et al., ICASSP 2020)
    vmaf     VMAF and VMAF-NEG, the models vmaf_v0.6.1 and vmaf_v0.6.1neg at the clip's own size

SSIM and XPSNR come from the filters of PyAV's FFmpeg, VMAF from a whole FFmpeg with libvmaf: that of imageio-ffmpeg (the extra
`quality`), else the one on the path. All are means over frames as `ffmpeg -lavfi ssim`, `xpsnr` and `libvmaf` report them.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import av
import numpy as np

from distill.encoding.bd.excerpts import Excerpt
from distill.run.errors import UsageError
from distill.run.files import read_json
from distill.run.machine.extras import how_to_install

MEASURES = ("psnr", "ssim", "xpsnr", "vmaf")


class Quality(NamedTuple):
    """A number that a BD-rate is computed of."""

    label: str  # the heading of its column
    title: str


# By their keys in results, in the order of columns; `judge`: weighted by a proxy model's map.
QUALITIES = {
    "plain": Quality("PSNR", "PSNR"),
    "gaze": Quality("by gaze", "gaze-weighted PSNR"),
    "judge": Quality("by proxy", "proxy-weighted PSNR"),
    "vmaf": Quality("VMAF", "VMAF"),
    "vmaf_neg": Quality("NEG", "VMAF-NEG"),
    "ssim": Quality("SSIM", "SSIM"),
    "xpsnr": Quality("XPSNR", "XPSNR"),
    "yuv": Quality("YUV", "PSNR of all planes"),
}
BEST_DB = 100.0  # of two equal pictures


@dataclass(frozen=True)
class Measures:
    """Which measures are taken, and the FFmpeg that computes VMAF."""

    names: tuple[str, ...] = ("psnr",)
    ffmpeg: str = ""


def choose_measures(text: str | None) -> tuple[Measures, str]:
    """Those that `--measures` names, and always PSNR; by default all that are there, and why one is left out. Raises UsageError for
    an unknown one, and for VMAF without an FFmpeg that has it."""
    named = MEASURES if text is None else tuple(name.strip() for name in text.split(","))
    for name in named:
        if name not in MEASURES:
            raise UsageError(f"--measures {name} is unknown; there are {', '.join(MEASURES)}")
    names = tuple(name for name in MEASURES if name in named or name == "psnr")
    if "vmaf" not in names:
        return Measures(names), ""
    ffmpeg = find_ffmpeg()
    if ffmpeg is None:
        lacking = f"there is no FFmpeg with libvmaf; {how_to_install('quality')}"
        if text is not None:
            raise UsageError(f"--measures vmaf: {lacking}")
        return Measures(tuple(name for name in names if name != "vmaf")), f"VMAF is left out: {lacking}"
    return Measures(names, ffmpeg), ""


def find_ffmpeg() -> str | None:
    """The FFmpeg of imageio-ffmpeg, or the one on the path, if it has libvmaf."""
    programs = [shutil.which("ffmpeg")]
    if find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        programs.insert(0, imageio_ffmpeg.get_ffmpeg_exe())
    for program in filter(None, programs):
        told = subprocess.run([program, "-hide_banner", "-h", "filter=libvmaf"], capture_output=True, text=True, check=False)
        if "Filter libvmaf" in told.stdout:
            return program
    return None


def measure(excerpt: Excerpt, decoded: Iterable[av.VideoFrame], measures: Measures) -> dict[str, float]:
    """The qualities of the decoded frames by the keys of `QUALITIES`, and `u` and `v`, the PSNR of the two chroma planes; in dB, and
    VMAF in its own points. Raises UsageError where there are more or fewer frames than in the excerpt."""
    squares: list[list[float]] = []  # mean squared errors of Y, U and V
    weighted: list[float] = []
    filtered: list[tuple[float, float]] = []  # SSIM and XPSNR
    count, (height, width) = 0, excerpt.picture.size
    bounds = [height * width, height * width * 5 // 4]
    with ExitStack() as stack:
        filters = _Filters(excerpt) if {"ssim", "xpsnr"} & {*measures.names} else None
        vmaf = stack.enter_context(_Vmaf(excerpt, measures.ffmpeg)) if "vmaf" in measures.names else None
        for index, frame in enumerate(decoded):
            count = index + 1
            if count > len(excerpt):
                continue
            planes = np.ascontiguousarray(frame.to_ndarray())
            error = (excerpt.pixels[index].astype(np.float32) - planes) ** 2
            squares.append([float(plane.mean()) for plane in np.split(error.ravel(), bounds)])
            if index in excerpt.weights:
                weighted.append(float((error[:height] * excerpt.weight(index)).sum()))
            if filters:
                filtered += filters.add(index, planes)
            if vmaf:
                vmaf.add(planes)
        if count != len(excerpt):
            raise UsageError(f"the encoder: {len(excerpt)} frames went in, {count} came out")
        result = _psnrs(np.mean(squares, 0), weighted, excerpt.weights_by)
        if filters:
            ssim, xpsnr = np.array([*filtered, *filters.end()]).T
            # XPSNR averages the roots of the weighted squared errors.
            both = {"ssim": _db(1 - ssim.mean()), "xpsnr": _db(np.mean(10 ** (-xpsnr / 20)) ** 2)}
            result |= {name: both[name] for name in both if name in measures.names}
        return result | (vmaf.scores() if vmaf else {})


def _psnrs(squares: np.ndarray, weighted: list[float], weights_by: str | None) -> dict[str, float]:
    luma, u, v = (_db(float(square) / 255**2) for square in squares)
    by_weight = {weights_by: _db(float(np.mean(weighted)) / 255**2)} if weights_by else {}
    return {"plain": luma, **by_weight, "yuv": (6 * luma + u + v) / 8, "u": u, "v": v}


def _db(error: float) -> float:
    return float(-10 * np.log10(max(error, 10 ** (-BEST_DB / 10))))


class _Filters:
    """FFmpeg's filters `ssim` and `xpsnr`, in this process."""

    def __init__(self, excerpt: Excerpt) -> None:
        self.excerpt, self.graph = excerpt, av.filter.Graph()
        self.graph.threads = 1
        picture = excerpt.picture
        size, base = f"{picture.width}x{picture.height}", picture.time_base
        of_buffer = {"video_size": size, "pix_fmt": "yuv420p", "time_base": f"{base.numerator}/{base.denominator}"}
        self.tested, self.reference = (self.graph.add("buffer", **of_buffer, pixel_aspect="1/1") for _ in range(2))
        split, ssim, xpsnr = (self.graph.add(name) for name in ("split", "ssim", "xpsnr"))
        self.sink = self.graph.add("buffersink")
        self.reference.link_to(split)
        for index, of_two in enumerate((ssim, xpsnr)):
            split.link_to(of_two, index, 1)
        self.tested.link_to(ssim)
        ssim.link_to(xpsnr)
        xpsnr.link_to(self.sink)
        self.graph.configure()

    def add(self, index: int, planes: np.ndarray) -> Iterator[tuple[float, float]]:
        """Adds a frame; SSIM and XPSNR of those that are done."""
        reference = self.excerpt.frame(index)
        tested = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        tested.pts, tested.time_base = reference.pts, reference.time_base
        self.tested.push(tested)
        self.reference.push(reference)
        return self._results()

    def end(self) -> Iterator[tuple[float, float]]:
        """SSIM and XPSNR of the frames that are left."""
        self.tested.push(None)
        self.reference.push(None)
        return self._results()

    def _results(self) -> Iterator[tuple[float, float]]:
        while True:
            try:
                found: Any = self.sink.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield float(found.metadata["lavfi.ssim.Y"]), float(found.metadata["lavfi.xpsnr.xpsnr.y"])


class _Vmaf:
    """An FFmpeg that compares frames with those of an excerpt as they come."""

    LOG, SCORES = "vmaf.log", "vmaf.json"  # in the excerpt's folder

    def __init__(self, excerpt: Excerpt, ffmpeg: str) -> None:
        picture, self.folder = excerpt.picture, excerpt.folder
        raw = [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "yuv420p",
            "-s",
            f"{picture.width}x{picture.height}",
            "-r",
            str(picture.rate),
            "-i",
        ]
        models = r"version=vmaf_v0.6.1\:name=vmaf|version=vmaf_v0.6.1neg\:name=vmaf_neg"
        graph = f"[0:v][1:v]libvmaf=model='{models}':log_fmt=json:log_path={self.SCORES}:n_threads=1"
        options = ["-hide_banner", "-loglevel", "error", "-filter_complex_threads", "1"]
        self.command = [ffmpeg, *options, *raw, "pipe:0", *raw, excerpt.PIXELS, "-lavfi", graph, "-f", "null", "-"]

    def __enter__(self) -> "_Vmaf":
        with (self.folder / self.LOG).open("wb") as log:
            self.process: Any = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the parent
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def add(self, planes: np.ndarray) -> None:
        """Adds a frame, uint8 `[H*3/2,W]`."""
        try:
            self.process.stdin.write(planes.data)
        except BrokenPipeError:
            self._fail()

    def scores(self) -> dict[str, float]:
        """VMAF and VMAF-NEG, means over the frames."""
        self.process.communicate()
        if self.process.returncode:
            self._fail()
        pooled = read_json(self.folder / self.SCORES)["pooled_metrics"]
        return {name: pooled[name]["mean"] for name in ("vmaf", "vmaf_neg")}

    def _fail(self) -> None:
        lines = (self.folder / self.LOG).read_text(errors="replace").strip().splitlines()
        raise UsageError(f"{self.command[0]} computes no VMAF: {lines[-1] if lines else 'it just ended'}")

"""x264 and x265 through FFmpeg: how they are configured, and how their complaints are reported."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
from av.codec.context import Flags

from distill.run.errors import UsageError

CODECS = {"x264": "libx264", "x265": "libx265"}
CRF = {"x264": 23.0, "x265": 28.0}  # the encoders' own defaults
HDR = {"x264": ("mastering-display", "cll"), "x265": ("master-display", "max-cll")}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
TUNES = {
    "x264": ("film", "animation", "grain", "stillimage", "psnr", "ssim", "fastdecode", "zerolatency"),
    "x265": ("psnr", "ssim", "grain", "fastdecode", "zerolatency", "animation"),
}
PROFILES = {
    "x264": ("baseline", "main", "high", "high10", "high422", "high444"),
    "x265": (
        "main", "main-intra", "mainstillpicture", "main444-8", "main444-intra", "main444-stillpicture", "main10", "main10-intra",
        "main422-10", "main422-10-intra", "main444-10", "main444-10-intra", "main12", "main12-intra", "main422-12",
        "main422-12-intra", "main444-12", "main444-12-intra",
    ),
}  # fmt: skip
# Options that are not for --param, and the way to what they are for.
OWN_OPTIONS = {
    "pass": "--bitrate N --two-pass makes both passes, with the same map", "stats": "--two-pass keeps the statistics itself",
    "bitrate": "use --bitrate", "crf": "use --crf", "profile": "use --profile", "tune": "use --tune", "preset": "use --preset",
    "vbv-maxrate": "use --maxrate", "vbv-bufsize": "use --bufsize",
}  # fmt: skip
# What the encoders' wrappers only log: options that were not taken, or not kept to.
UNHEEDED = re.compile("error parsing option|unknown option|invalid value|bad value|level limit|ignored$", re.IGNORECASE)


@dataclass(frozen=True)
class Coding:
    """How the encoder is run.

    bitrate: kbit/s, of the whole video; two_pass: the first pass measures where the second one spends it.
    maxrate, bufsize: kbit/s, and kbit, of the buffer of a decoder that never runs empty; bufsize is one second by default.
    params: KEY=VALUE in the encoder's syntax; threads: 0 for its default.
    """

    codec: str = "x264"
    crf: float | None = None
    bitrate: int | None = None
    preset: str = "medium"
    params: tuple[str, ...] = ()
    threads: int = 0
    two_pass: bool = False
    maxrate: int | None = None
    bufsize: int | None = None
    tune: str = ""
    profile: str = ""

    @property
    def encoder(self) -> str:
        """FFmpeg's name of the encoder."""
        return CODECS[self.codec]


@dataclass(frozen=True)
class Picture:
    """The format of the pictures that the encoder gets."""

    width: int
    height: int
    format: str
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None = None
    primaries: int = 2  # 2: unspecified, in the numbers of ITU-T H.273
    transfer: int = 2
    matrix: int = 2
    range: int = 0
    display: str = ""  # HDR10, in the encoders' syntax: the mastering display, and the content's light levels
    light: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def bits(self) -> int:
        """Bits per sample."""
        return max(c.bits for c in av.VideoFormat(self.format).components)


def check_coding(coding: Coding) -> None:
    """Raises UsageError for every error that can be detected before anything is opened."""
    if coding.codec not in CODECS:
        raise UsageError(f"--codec {coding.codec} is unknown; there are {', '.join(CODECS)}")
    if coding.crf is not None and coding.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other; give one")
    if coding.crf is not None and not 0 <= coding.crf <= 51:
        raise UsageError(f"--crf {coding.crf:g}: must be from 0 (best) to 51")
    _check_rate(coding)
    tunes = re.split("[,+]", coding.tune) if coding.codec == "x264" else [coding.tune]
    for option, names, known in (
        ("--preset", [coding.preset], PRESETS), ("--tune", tunes, TUNES[coding.codec]),
        ("--profile", [coding.profile], PROFILES[coding.codec]),
    ):  # fmt: skip
        for name in filter(None, names):
            if name not in known:
                raise UsageError(f"{option} {name} is unknown to {coding.codec}; there are {', '.join(known)}")
    for param in coding.params:
        key, equals, value = param.partition("=")
        key = key.replace("_", "-")
        if not equals or ":" in param:
            raise UsageError(f"--param {param}: must be KEY=VALUE, one at a time")
        if key in OWN_OPTIONS:
            raise UsageError(f"--param {param}: {OWN_OPTIONS[key]}")
        if key == "aq-mode" and value == "0":
            raise UsageError(f"--param {param}: a map works through adaptive quantisation; leave it on, aq-mode=1")
    try:
        av.codec.Codec(coding.encoder, "w")
    except ValueError:
        lacking = f"the FFmpeg of this PyAV ({av.__version__}) has no {coding.encoder}"
        raise UsageError(f"{lacking}; the one of `pip install av` has it") from None


def _check_rate(coding: Coding) -> None:
    if coding.two_pass and not coding.bitrate:
        raise UsageError("--two-pass needs --bitrate: a constant quality needs only one pass")
    if coding.bufsize and not coding.maxrate:
        raise UsageError("--bufsize needs --maxrate: without a highest rate there is no buffer to keep to")
    if coding.maxrate and coding.bitrate and coding.maxrate < coding.bitrate:
        raise UsageError(f"--maxrate {coding.maxrate} is below --bitrate {coding.bitrate}; it must be as much at least")


@dataclass(frozen=True)
class Pass:
    """One of two passes: 1 or 2, and the file of statistics that the first one writes, and others beside it."""

    number: int
    statistics: Path


def encoder_options(coding: Coding, picture: Picture, of: Pass | None = None) -> dict[str, str]:
    """FFmpeg's options for the encoder. They switch on adaptive quantisation, which the fastest presets leave off, and captions."""
    params = {"aq-mode": "1" if coding.codec == "x264" else "2"}
    display, light = HDR[coding.codec]
    params.update({key: value for key, value in ((display, picture.display), (light, picture.light)) if value})
    if coding.codec == "x265":
        params["log-level"] = "error"  # it writes to standard error directly
        if coding.threads:
            params["pools"] = str(coding.threads)
    options = {"preset": coding.preset, "a53cc": "1"}
    if of and coding.codec == "x265":
        params |= {"pass": str(of.number), "stats": _quoted(str(of.statistics.absolute()))}
    elif of:  # its number is one of the context's flags: only so is the first pass a fast one
        options["passlogfile"] = str(of.statistics.absolute())
        if of.number == 2:
            params["ratetol"] = "0.1"  # by default clips of a few hundred frames end up to 5 % from the rate
    params.update({key.replace("_", "-"): value for key, _, value in (p.partition("=") for p in coding.params)})
    if not coding.bitrate:
        options["crf"] = f"{CRF[coding.codec] if coding.crf is None else coding.crf:g}"
    if coding.maxrate:
        options |= {"maxrate": f"{coding.maxrate}k", "bufsize": f"{coding.bufsize or coding.maxrate}k"}
    options |= {name: value for name, value in (("tune", coding.tune), ("profile", coding.profile)) if value}
    return options | {f"{coding.codec}-params": ":".join(f"{key}={value}" for key, value in params.items())}


def _quoted(text: str) -> str:
    """A value of one of FFmpeg's lists of options, where a colon ends it."""
    escaped = text.replace("'", r"'\''")
    return f"'{escaped}'"


def configure(context: Any, picture: Picture, coding: Coding, of: Pass | None = None) -> None:
    """Sets up an encoder's context that is not yet open; of: which of two passes it is for."""
    context.width, context.height, context.pix_fmt = picture.width, picture.height, picture.format
    context.time_base, context.framerate = picture.time_base, picture.rate
    if picture.aspect:
        context.sample_aspect_ratio = picture.aspect
    context.color_primaries, context.color_trc = picture.primaries, picture.transfer
    context.colorspace, context.color_range = picture.matrix, picture.range
    if coding.bitrate:
        context.bit_rate = coding.bitrate * 1000
    if coding.threads:
        context.thread_count = coding.threads
    if of and coding.codec == "x264":
        context.flags |= (Flags.pass1 if of.number == 1 else Flags.pass2).value
    context.options = encoder_options(coding, picture, of)


def new_context(picture: Picture, coding: Coding, of: Pass | None = None) -> Any:
    """An encoder without a file, open. What it keeps of a first pass is complete once nothing refers to it any more."""
    context = av.codec.Codec(coding.encoder, "w").create("video")
    configure(context, picture, coding, of)
    with refusals(coding, picture):
        context.open()
    return context


@contextlib.contextmanager
def refusals(coding: Coding, picture: Picture) -> Iterator[None]:
    """Turns an encoder's complaints about its options into UsageError; FFmpeg's wrappers only log them."""
    before, repeats = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log:
            yield
    except av.FFmpegError as error:
        reason = (log[-1][2] if log else error.strerror or "").strip().rstrip(".")
        pictures = f"; its pictures are {picture.format}, {picture.width}x{picture.height}"
        raise UsageError(f"{coding.encoder} does not start: {reason}{pictures}") from None
    finally:
        av.logging.set_level(before)
        av.logging.set_skip_repeated(repeats)
    for _, _, line in log:
        if UNHEEDED.search(line.strip()):
            raise UsageError(f"{coding.encoder} does not take these options: {line.strip()}")

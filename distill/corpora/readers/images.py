"""Image files: folders of numbered images in the order of their numbers, sizes read from headers, and decoding.

A corpus may have hundreds of thousands of frames as files: nothing is decoded where a file's name or header suffices.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from distill.run.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
PNG_HEAD, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_HEAD = b"\xff\xd8"


def numbered(name: str) -> list[tuple[int, str]]:
    """A sort key for file names that puts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", Path(name).stem)]


def listing(folder: Path | str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Names of a folder's files in the order of their numbers; cached until the folder changes."""
    try:
        return _listing(str(folder), suffixes, Path(folder).stat().st_mtime_ns)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=64)
def _listing(folder: str, suffixes: tuple[str, ...], _changed: int) -> list[str]:
    return sorted(_names(folder, suffixes), key=numbered)


def has_any(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a folder exists and holds such a file; reading stops at the first."""
    return folder.is_dir() and next(_names(folder, suffixes), None) is not None


def _names(folder: Path | str, suffixes: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (e.name for e in entries if not e.name.startswith(".") and e.name.lower().endswith(suffixes))


def number_of(name: str) -> int | None:
    """The last number in a file's name: 12 in `clip3_00012.png`; None if there is none."""
    numbers = re.findall(r"\d+", Path(name).stem)
    return int(numbers[-1]) if numbers else None


def check_numbers(folder: Path, names: list[str], first: int | None = None) -> None:
    """Raises UsageError if the files' numbers have a gap, which would shift all later frames, or do not begin at `first`."""
    expected = first if first is not None else number_of(names[0])
    for name in names:
        if (number := number_of(name)) is None or expected is None:
            raise UsageError(f"{folder / name} has no number in its name; frames are ordered by number")
        if number != expected:
            digits = re.findall(r"\d+", Path(name).stem)[-1]
            should = f"{expected:0{len(digits)}d}".join(name.rsplit(digits, 1))
            raise UsageError(f"{folder} has {name} where {should} should be; files must be numbered without gaps")
        expected += 1


def size_of(path: Path, whole: bool = False) -> tuple[int, int]:
    """Height and width of an image, from its header if it is a PNG or JPEG; `whole` also checks the end of the file.

    Raises UsageError for a file that is not an image, and with `whole` for one that is truncated.
    """
    try:
        with path.open("rb") as file:
            head = file.read(24)
            size = None
            if head[:8] == PNG_HEAD and len(head) == 24:
                width, height = struct.unpack(">II", head[16:24])
                size, end = (height, width), PNG_END
            elif head[:2] == JPEG_HEAD:
                size, end = _jpeg_size(head + file.read(1 << 18)), b"\xff\xd9"
            if size and whole:
                file.seek(max(0, path.stat().st_size - 4096))
                size = size if end in file.read() else None  # perhaps only unusual: decoding decides
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if size:
        return size
    if path.suffix.lower() == ".png" and head[:8] != PNG_HEAD:
        raise UsageError(f"{path} is not a PNG; restore it, or save it as one")
    if head[:2] == JPEG_HEAD or head[:8] == PNG_HEAD:
        raise UsageError(f"{path} is truncated; restore it, or leave it out with corpus.skip")
    height, width, _ = read_rgb(path).shape
    return height, width


def check_size(path: Path, size: tuple[int, ...], expected: tuple[int, int], other: str = "its video") -> None:
    """Raises UsageError if `size` (height, width) of a file is not the `expected` size of `other`."""
    if size != expected:
        found = "x".join(map(str, size[::-1]))
        raise UsageError(f"{path} is {found} px, {other} {expected[1]}x{expected[0]}; they must agree")


def check_sizes(folder: Path, names: Sequence[str], expected: tuple[int, int], other: str = "its video") -> None:
    """Raises UsageError for a file in `folder` that is truncated, or whose header states another size."""
    for name in names:
        check_size(folder / name, size_of(folder / name, whole=True), expected, other)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in a JPEG's frame header (ITU-T T.81, B.2.2); None if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        if marker == 0xFF:  # fill byte
            at += 1
        else:  # some markers have no length
            at += 2 if marker in (0x01, *range(0xD0, 0xD9)) else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def read_rgb(path: Path) -> np.ndarray:
    """An image as it is stored, uint8 RGB `[H,W,3]`. The camera's orientation tag is ignored, as annotations ignore it."""
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, "restore it, or leave it out with corpus.skip")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_map(path: Path, size: tuple[int, int], way_out: str) -> np.ndarray:
    """An image of (height, width) `size` as one channel `[H,W]`, in its stored type: 8 bits are not made of 16, nor grey of colour.

    A pixel's value is that of its largest channel, 0 where it is transparent; in an image that is drawn in its alpha channel
    only, in one colour or with nothing visible but black, it is the alpha. Raises UsageError, with `way_out`, if it is no such image.
    """
    image = _decode(path, cv2.IMREAD_UNCHANGED, way_out)  # palettes are expanded
    check_size(path, image.shape[:2], size)
    if image.ndim == 2:
        return image
    values = image[..., :3].max(2)
    if image.shape[2] < 4:
        return values
    alpha = image[..., 3]
    visible = np.where(alpha > 0, values, 0)
    only_alpha = alpha.min() < alpha.max() and (values.min() == values.max() or not visible.any())
    return alpha if only_alpha else visible


def is_jpeg(path: Path) -> bool:
    """Whether a file is a JPEG, whatever its name says. Raises UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2) == JPEG_HEAD
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _decode(path: Path, flags: int, way_out: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), flags)  # imread would end the process on a name that is not UTF-8
    except (OSError, cv2.error):  # not there, or empty
        image = None
    if image is None:
        raise UsageError(f"{path} does not open as an image; {way_out}")
    return image

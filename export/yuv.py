"""A decoded 4:2:0 frame: its planes, and how they stand for RGB. Needs numpy alone, for readers of videos make these frames."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""K_R and K_B of ITU-R BT.601-7, BT.709-6 and BT.2020-2 (non-constant luminance)."""
RANGES = ("limited", "full")
DEPTHS = (8, 10)
BLACK, WHITE = 16, 235  # luma of limited range, of 255
SAMPLES = (144, 256)  # rows and columns of luma, about, that cuts are looked for in


def check_known(what: str, value: object, known: Collection[object]) -> None:
    """Raises ValueError where the value, which the message calls `what`, is none of the known ones."""
    if value not in known:
        raise ValueError(f"{what} {value} is unknown; there are {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Colour:
    """How the planes of a video stand for RGB. Raises ValueError for what is unknown."""

    matrix: str = "bt709"
    range: str = "limited"
    depth: int = 8
    """Bits a sample, in the low bits of a uint16 where they are more than 8."""

    def __post_init__(self) -> None:
        check_known("matrix", self.matrix, MATRICES)
        check_known("range", self.range, RANGES)
        check_known("depth", self.depth, DEPTHS)

    def to_rgb(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 `[3,3]` and `[3]`: RGB in [0, 1] is the product with the samples (Y, U, V), plus the second."""
        kr, kb = MATRICES[self.matrix]
        kg, most = 1 - kr - kb, 2**self.depth - 1
        of_signal = np.array([
            [1, 0, 2 * (1 - kr)], [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg], [1, 2 * (1 - kb), 0],
        ])  # fmt: skip
        step = 2 ** (self.depth - 8)
        black, spans = (16 * step, (219 * step, 224 * step)) if self.range == "limited" else (0, (most, most))
        gain = of_signal / [spans[0], spans[1], spans[1]]
        return gain, -gain @ [black, 128 * step, 128 * step]


@dataclass(frozen=True)
class Planes:
    """A decoded 4:2:0 frame: `y` `[H,W]`, `u` and `v` `[ceil(H/2),ceil(W/2)]`, uint8, or uint16 where `colour` has more bits. Views
    with strides will do."""

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    colour: Colour

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return self.y.shape[0], self.y.shape[1]

    def cropped(self, size: tuple[int, int]) -> "Planes":
        """The frame's first rows and columns; size: their number."""
        height, width = size
        rows, columns = half_size(size)
        return replace(self, y=self.y[:height, :width], u=self.u[:rows, :columns], v=self.v[:rows, :columns])

    def turned(self, turn: Callable[[np.ndarray], np.ndarray]) -> "Planes":
        """The frame with `turn`, a quarter turn or mirror, applied to every plane. The blocks of a block map then start at the upper
        left of the turned frame; for blocks of the stored one, turn back a whole map."""
        return replace(self, y=turn(self.y), u=turn(self.u), v=turn(self.v))

    def grey(self) -> np.ndarray:
        """Grey levels of 255, float32 `[h,w]`: every few samples of luma, enough of them to find cuts."""
        rows, columns = (max(1, side // most) for side, most in zip(self.shape, SAMPLES, strict=True))
        return grey_levels(self.y[::rows, ::columns].astype(np.float32), self.colour)


def grey_levels(luma: np.ndarray, colour: Colour) -> np.ndarray:
    """Luma in the units of the samples, float32, as grey levels of 255."""
    if colour.range == "full":
        return luma * np.float32(255 / (2**colour.depth - 1))
    return (luma / np.float32(2 ** (colour.depth - 8)) - BLACK) * np.float32(255 / (WHITE - BLACK))


def half_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the chroma planes of a frame of `size`."""
    return -(-size[0] // 2), -(-size[1] // 2)

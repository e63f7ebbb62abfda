"""TensorBoard's files of a training, beside its log: losses, learning rate, validation scores, and maps over validation frames.

They are for looking at; the log is the record. Steps that a continued training repeats are marked as void in the earlier files, so
that TensorBoard shows each step once.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.run.files import one_line
from distill.run.machine.extras import how_to_install

Shown = tuple[np.ndarray, np.ndarray]
"""A frame, uint8 `[H,W,3]`, and its map, `[h,w]` in [0, 1]."""


@dataclass(frozen=True)
class Board:
    """Where the files go, a folder for each training, and how a map is drawn over a frame."""

    folder: Path
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray]


def available(wanted: str, say: Callable[[str], None]) -> bool:
    """Whether files are written: run.tensorboard is not `off`, and the package can be imported; with `on`, it is said if not."""
    if wanted == "off":
        return False
    try:
        import torch.utils.tensorboard  # noqa: F401  # with the package of that name, which is optional
    except Exception as error:  # whatever a package does when it is imported
        if wanted == "on":
            say(f"tensorboard: no files are written: {one_line(error)}; {how_to_install('tensorboard')}")
        return False
    return True


class Events(contextlib.AbstractContextManager["Events"]):
    """The files of one training; without a board, none. kept: the last step of earlier files that still counts; -1: none does."""

    def __init__(self, board: Board | None, name: str, kept: int) -> None:
        self._board, self._writer = board, None
        if board:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(board.folder / name), purge_step=kept + 1)

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Adds numbers after a step, as GROUP/NAME."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def pictures(self, step: int, shown: Sequence[Shown]) -> None:
        """Adds a strip of the frames, with their maps below."""
        if self._writer and self._board and shown:
            drawn = [np.vstack([frame, self._board.draw(frame, saliency)]) for frame, saliency in shown]
            self._writer.add_image("val/maps", np.hstack(drawn), step, dataformats="HWC")

    def flush(self) -> None:
        """Writes what was added: from then on a kill loses none of it."""
        if self._writer:
            self._writer.flush()

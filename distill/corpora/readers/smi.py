"""Raw gaze as an SMI eye tracker exports it, one folder per observer (DHF1K's exportdata_train), mapped to a clip's pixels.

The mapping is that of DHF1K's record_mapping.m: each sample that belongs to a fixation counts in the frame it falls into.
A sample on the boundary of two frames belongs to neither. The script indexes a matrix with all rows and all columns of a
frame's samples at once, which marks every crossing of the two; here each sample is one point.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from distill.corpora.clips import Clip
from distill.corpora.fixations import LATE, OUTSIDE, UNREADABLE, ClipFixations, place
from distill.run.errors import UsageError

# DHF1K's screen in pixels. The video is shown at the full width of the screen, vertically centred (record_mapping.m).
SCREEN_WIDTH, SCREEN_HEIGHT = 1440, 900


def read(clip: Clip) -> ClipFixations:
    """All fixation samples of a clip. Raises UsageError if there are none or a file cannot be read."""
    scale = clip.width / SCREEN_WIDTH
    margin = (SCREEN_HEIGHT - clip.height / scale) / 2
    dropped: Counter[str] = Counter()
    parts = []
    for person, path in enumerate(files_of(Path(clip.fixations), int(clip.name))):
        time, x, y = _fixation_samples(path, dropped)
        position = clip.position(time / 1e6) if clip.times else clip.fps * time / 1e6  # exact where a sample is on a boundary
        frame = np.floor(position)
        usable = frame != position
        dropped[LATE] += int((usable & (frame >= clip.frames)).sum())
        usable &= frame < clip.frames
        # MATLAB numbers pixels from 1, and the script keeps numbers above 0 and below the size.
        x, y = np.floor(scale * x[usable] + 0.5), np.floor(scale * (y[usable] - margin) + 0.5)
        inside = (x > 0) & (x < clip.width) & (y > 0) & (y < clip.height)
        dropped[OUTSIDE] += int((~inside).sum())
        parts.append((frame[usable][inside], x[inside] - 1, y[inside] - 1, np.full(int(inside.sum()), person)))
    if not parts:
        raise UsageError(f"{clip.fixations} has no gaze of clip {clip.id}")
    frame, x, y, observers = (np.concatenate(values) for values in zip(*parts, strict=True))
    return place(clip, frame, x, y, observers, dropped)


def files_of(folder: Path, number: int) -> list[Path]:
    """The files of clip `number`, one per observer: P01/P01_Trail001.txt, or P001/P001_Trail0001.txt as in the script."""
    people = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[:1] == "P" and p.name[1:].isdigit())
    paths = dict.fromkeys(p / f"{p.name}_Trail{number:0{digits}d}.txt" for p in people for digits in (3, 4))
    return [path for path in paths if path.is_file()]


def _fixation_samples(path: Path, dropped: Counter[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Microseconds since the first sample, x and y on the screen, of the samples that belong to fixations."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    # The IDF converter writes facts of the recording before the header.
    first = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("##")), 0)
    at = _columns(path, lines[first]) if lines else (0, 1, 2, 3)
    samples, begin = [], None
    for line in lines[first + 1 :]:
        cells = line.split("\t")
        if len(cells) <= at[3] or cells[1] == "MSG":
            continue
        try:
            time, x, y = (float(cells[i]) for i in at[:3])
        except ValueError:
            dropped[UNREADABLE] += 1
            continue
        begin = time if begin is None else begin
        if cells[at[3]].strip()[:1] == "F":
            samples.append((time - begin, x, y))
    return tuple(np.array(samples, np.float64).reshape(-1, 3).T)  # type: ignore[return-value]


def _columns(path: Path, header: str) -> tuple[int, ...]:
    """Where time, x, y and event are: of the left eye, of the right one, or the four columns that record_mapping.m reads."""
    names = [name.strip().lower() for name in header.split("\t")]
    for eye in "lr":
        wanted = ("time", f"{eye} por x [px]", f"{eye} por y [px]", f"{eye} event info")
        if set(wanted) <= set(names):
            return tuple(map(names.index, wanted))
    if len(names) != 4:
        raise UsageError(
            f"{path} has no columns Time, L POR X [px], L POR Y [px] and L Event Info; its header: {header.strip()[:200]}"
        )
    return 0, 1, 2, 3

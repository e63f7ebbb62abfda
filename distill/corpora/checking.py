"""Checks and completes a clip that a layout has found.

Layouts find the files; this module checks that they agree. A video is decoded once, to count its frames. Images,
fixation maps and density maps in folders are counted; their numbers, and the sizes in their headers, are compared.
The contents of fixation maps and density maps are tested in SAMPLED frames, and in all frames where one of those fails.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.corpora import camera
from distill.corpora.clips import Clip, counted
from distill.corpora.gaze import FRAME_READERS, FULL, GREY, JPEG, clip_fixations, fixation_file, read_points, stored_density
from distill.corpora.readers import images
from distill.corpora.video import Facts, probe, probe_folder, read_header
from distill.run.errors import UsageError

LICENSE_FILES = ("LICENSE.txt", "LICENSE", "LICENSE.md", "LICENCE.txt", "LICENCE", "license.txt")
UNANNOTATED = "frames without annotation"
WITHOUT_FRAME = "annotations without a frame"
ODD_MAPS = "density maps too few or too many"
REBUILT = "density maps that are constant, of only two values, saturated or inverted, rebuilt from the fixations"
UNUSABLE = "clips of whose gaze nothing is usable, not scored"
EMPTY = "fixation maps without a fixation"
MANY = "frames with more than 1,000 fixated pixels"
MOST_POINTS = 1000
MOST_EMPTY = 0.5
"""The share of a clip's fixation maps that may be empty without a word."""

SAMPLED = 12
"""Frames of a clip whose maps are tested, evenly spaced: reading all of DHF1K's takes as long as decoding its videos."""


def license_of(root: Path) -> str:
    """The first line of the licence file in `root`, or of those in its folders; "not stated" without one."""
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    return _first_line(root) or "; ".join(dict.fromkeys(filter(None, map(_first_line, folders)))) or "not stated"


def _first_line(folder: Path) -> str:
    path = next((folder / name for name in LICENSE_FILES if (folder / name).is_file()), None)
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
    return text.splitlines()[0].strip() if text else ""


def check(clip: Clip, thorough: bool = False) -> Clip:
    """A clip as a layout finds it, decoded once, completed, and compared with its annotation. `thorough` tests the contents of
    all maps.

    Raises UsageError for files that are damaged or disagree, and for an annotation without a usable fixation.
    """
    video = Path(clip.video)
    if clip.shots:
        for shot in clip.shots:
            images.size_of(Path(shot), whole=True)
        facts = Facts(camera.FRAMES, camera.HEIGHT, camera.WIDTH, clip.fps)
    elif clip.static:
        facts = Facts(1, *images.size_of(video, whole=True), 1.0)
    elif video.is_dir():
        facts = Facts(*probe_folder(video), clip.fps)
    else:
        facts = probe(video)
    frames = facts.frames
    clip = replace(clip, frames=frames, height=facts.height, width=facts.width, fps=facts.fps, times=facts.times)
    annotated, troubles = _annotated(clip)
    troubles = facts.troubles | troubles
    if annotated > frames + 1:  # one more is a decoder's last frame
        raise UsageError(f"{video} has {frames} frames, its annotation in {clip.fixations} {annotated}; is the video complete?")
    if annotated > frames:
        troubles[WITHOUT_FRAME] = annotated - frames
    elif 0 < annotated < frames:
        troubles[UNANNOTATED] = frames - annotated
    clip = _with_maps(replace(clip, annotated_frames=min(annotated, frames), troubles=troubles), annotated)
    return replace(clip, troubles=clip.troubles | _faults(clip, thorough)) if clip.annotated_frames else clip


def _annotated(clip: Clip) -> tuple[int, dict[str, int]]:
    """How many frames are annotated, and which of their points were dropped."""
    folder = Path(clip.fixations)
    if not clip.fixations or not folder.exists():
        return 0, {}
    if clip.annotation in FRAME_READERS:
        suffix, _ = FRAME_READERS[clip.annotation]
        names = images.listing(folder, (suffix,))
        if names:
            _check_numbers(clip, folder, names)
            if suffix == ".png":
                images.check_sizes(folder, names, (clip.height, clip.width))
        return len(names), {}
    fixations = clip_fixations(clip)
    if len(fixations.frame) or clip.annotation == "json":
        return fixations.frames, dict(fixations.dropped)
    return 0, fixations.dropped | ({UNUSABLE: 1} if fixations.dropped else {})


def _with_maps(clip: Clip, annotated: int) -> Clip:
    """The clip without the paths of missing maps and fixations; frames after the end of a video of maps count as not annotated."""
    maps = Path(clip.maps)
    if not clip.maps or not maps.exists():
        return replace(clip, maps="", fixations=clip.fixations if annotated else "")
    if not annotated:
        raise UsageError(f"{maps} has no fixations beside it in {clip.fixations}; NSS and AUC need them")
    if maps.is_file():
        frames, height, width, _ = read_header(maps)
        images.check_size(maps, (height, width), (clip.height, clip.width))
        odd = {ODD_MAPS: abs(frames - clip.frames)} if frames != clip.frames else {}
        return replace(clip, annotated_frames=min(clip.annotated_frames, frames), troubles=clip.troubles | odd)
    names = images.listing(maps)
    if not names:
        return replace(clip, maps="")
    if len(names) != annotated:
        raise UsageError(f"{maps} holds {len(names)} maps, {clip.fixations} {annotated}; they must agree")
    _check_numbers(clip, maps, names)
    images.check_sizes(maps, names, (clip.height, clip.width))
    return clip


def _check_numbers(clip: Clip, folder: Path, names: list[str]) -> None:
    """Raises UsageError unless the files are numbered without gaps: from 1 if the clip is a video, from the number of its first
    frame if it is a folder. A folder with as many files as frames may start at another number."""
    first: int | None = 1
    if Path(clip.video).is_dir():
        frames = images.listing(clip.video)
        first = images.number_of((names if len(names) == len(frames) else frames)[0])
    images.check_numbers(folder, names, first)


def _faults(clip: Clip, thorough: bool) -> dict[str, int]:
    """How many of the clip's fixation maps and density maps cannot be used, by kind. Raises UsageError where no fixation is left."""
    every = range(clip.annotated_frames)
    some = [int(i) for i in np.unique(np.linspace(0, len(every) - 1, SAMPLED).astype(int))]
    if Path(clip.maps).is_file():
        some = list(every[:SAMPLED])  # a video is decoded up to the frame that is read
    if not thorough and len(some) < len(every) and not _test(clip, some, MOST_EMPTY):
        return {}
    return dict(_test(clip, every, 0.0 if thorough else MOST_EMPTY))


def _test(clip: Clip, frames: Sequence[int], may_be_empty: float) -> Counter[str]:
    """How many of these frames' maps cannot be used, by kind. A few maps without fixations are normal, since observers blink; they are
    reported where their share exceeds `may_be_empty`."""
    found, fixated, first = Counter[str](), 0, ""
    for index in frames:
        points, fault = read_points(clip, index)
        if fault:
            found[fault] += 1
            first = first or _explained(clip, index, fault, len(points.rows))
        elif count := len(points.rows):
            fixated += 1
            found[MANY] += clip.annotation in FRAME_READERS and count > MOST_POINTS
            found[REBUILT] += bool(clip.maps) and stored_density(clip, index) is None
    empty = len(frames) - fixated - found[FULL] - found[GREY] - found[JPEG]
    if not fixated and len(frames) == clip.annotated_frames:
        raise UsageError(first or f"{clip.fixations} has {counted(len(frames), 'frame')} without a single fixation; restore it")
    if empty > may_be_empty * len(frames) and clip.annotation in FRAME_READERS:
        found[EMPTY] = empty
    return +found


def _explained(clip: Clip, index: int, fault: str, fixated: int) -> str:
    """One line about a fixation map that cannot be used: what it is, and what to do."""
    return f"{fixation_file(clip, index)} " + {
        FULL: f"marks {fixated:,} of {clip.height * clip.width:,} pixels as fixated; if it is inverted, invert it: fixated pixels "
        "are above 0, all others 0",
        GREY: "is in shades of grey, like a density map; in a fixation map fixated pixels have one value, all others are 0",
        JPEG: "is a JPEG, whose compression marks pixels around every fixation; make the fixation maps again as PNG",
    }[fault]  # fmt: skip

"""Checks and completes a clip that a layout has found.

Layouts find the files; this module checks that they agree. A video is decoded once, to count its frames. Images,
fixation maps and density maps in folders are counted; their numbers, and the sizes in their headers, are compared.
"""

from dataclasses import replace
from pathlib import Path

from distill.corpora import camera
from distill.corpora.clips import Clip
from distill.corpora.gaze import FRAME_READERS, clip_fixations
from distill.corpora.readers import images
from distill.corpora.video import probe, probe_folder, read_header
from distill.run.errors import UsageError

LICENSE_FILES = ("LICENSE.txt", "LICENSE", "LICENSE.md", "LICENCE.txt", "LICENCE", "license.txt")
UNANNOTATED = "frames without annotation"
WITHOUT_FRAME = "annotations without a frame"
ODD_MAPS = "density maps too few or too many"


def license_of(root: Path) -> str:
    """The first line of the licence file in `root`, or of those in its folders; "not stated" without one."""
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    return _first_line(root) or "; ".join(dict.fromkeys(filter(None, map(_first_line, folders)))) or "not stated"


def _first_line(folder: Path) -> str:
    path = next((folder / name for name in LICENSE_FILES if (folder / name).is_file()), None)
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
    return text.splitlines()[0].strip() if text else ""


def check(clip: Clip) -> Clip:
    """A clip as a layout finds it, decoded once, completed, and compared with its annotation.

    Raises UsageError for files that are damaged or disagree.
    """
    video, frames, fps = Path(clip.video), 1, clip.fps
    if clip.shots:
        for shot in clip.shots:
            images.size_of(Path(shot), whole=True)
        frames, height, width = camera.FRAMES, camera.HEIGHT, camera.WIDTH
    elif clip.static:
        (height, width), fps = images.size_of(video, whole=True), 1.0
    elif video.is_dir():
        frames, height, width = probe_folder(video)
    else:
        frames, height, width, fps = probe(video)
    clip = replace(clip, frames=frames, height=height, width=width, fps=fps)
    annotated, troubles = _annotated(clip)
    if annotated > frames + 1:  # one more is a decoder's last frame
        raise UsageError(f"{video} has {frames} frames, its annotation in {clip.fixations} {annotated}; is the video complete?")
    if annotated > frames:
        troubles[WITHOUT_FRAME] = annotated - frames
    elif 0 < annotated < frames:
        troubles[UNANNOTATED] = frames - annotated
    return _with_maps(replace(clip, annotated_frames=min(annotated, frames), troubles=troubles), annotated)


def _annotated(clip: Clip) -> tuple[int, dict[str, int]]:
    """How many frames are annotated, and which of their points were dropped."""
    folder = Path(clip.fixations)
    if not clip.fixations or not folder.exists():
        return 0, {}
    if clip.annotation in FRAME_READERS:
        suffix, read = FRAME_READERS[clip.annotation]
        names = images.listing(folder, (suffix,))
        if names:
            _check_numbers(clip, folder, names)
            if suffix == ".png":
                images.check_sizes(folder, names, (clip.height, clip.width))
            else:
                read(folder / names[0], clip)  # the others are checked when they are read
        return len(names), {}
    fixations = clip_fixations(clip)
    annotated = fixations.frames if len(fixations.frame) or clip.annotation == "json" else 0
    return annotated, dict(fixations.dropped)


def _with_maps(clip: Clip, annotated: int) -> Clip:
    """The clip without the paths of missing maps and fixations; frames after the end of a video of maps count as not annotated."""
    maps = Path(clip.maps)
    if not clip.maps or not maps.exists():
        return replace(clip, maps="", fixations=clip.fixations if annotated else "")
    if not annotated:
        raise UsageError(f"{maps} has no fixations beside it in {clip.fixations}; NSS and AUC need them")
    if maps.is_file():
        frames, *size = read_header(maps)
        images.check_size(maps, tuple(size), (clip.height, clip.width))
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

"""A clip as a layout finds it (`Entry`), and the check that turns it into a `Clip`.

Layouts know where files are; the check knows what must agree. A video is decoded once, to count its frames. Images,
fixation maps and density maps in folders are counted; their numbers, and the sizes in their headers, are compared.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from distill.corpora.clips import Clip
from distill.corpora.gaze import FRAME_READERS, clip_fixations
from distill.corpora.readers import images
from distill.corpora.video import probe, probe_folder, read_header
from distill.run.errors import UsageError

LICENSE_FILES = ("LICENSE.txt", "LICENSE", "LICENSE.md", "LICENCE.txt", "LICENCE", "license.txt")
UNANNOTATED = "frames without annotation"
WITHOUT_FRAME = "annotations without a frame"
ODD_MAPS = "density maps too few or too many"


@dataclass(frozen=True)
class Entry:
    """The files of a clip. `annotation` names the format of `fixations`; `fps` is for frames in a folder, which state none."""

    id: str
    video: Path
    fixations: Path | None = None
    maps: Path | None = None
    annotation: str = "png"
    name: str = ""
    group: str = ""
    side: str = ""
    fps: float = 30.0
    lag: float = 0.0

    @property
    def static(self) -> bool:
        return self.video.suffix.lower() in images.SUFFIXES


def license_of(root: Path) -> str:
    """The first line of the licence file in `root`, or of those in its folders; "not stated" without one."""
    lines = []
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir())):
        path = next((folder / name for name in LICENSE_FILES if (folder / name).is_file()), None)
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path else ""
        if text:
            lines.append(text.splitlines()[0].strip())
            if folder == root:
                break
    return "; ".join(dict.fromkeys(lines)) or "not stated"


def check(entry: Entry) -> Clip:
    """The clip, decoded once and compared with its annotation. Raises UsageError for files that are damaged or disagree."""
    if entry.static:
        frames, (height, width), fps = 1, images.size_of(entry.video, whole=True), 1.0
    elif entry.video.is_dir():
        frames, height, width = probe_folder(entry.video)
        fps = entry.fps
    else:
        frames, height, width, fps = probe(entry.video)
    clip = Clip(
        entry.id, str(entry.video), frames, height, width, fps, group=entry.group, annotation=entry.annotation,
        static=entry.static, name=entry.name, side=entry.side, lag=entry.lag,
    )  # fmt: skip
    annotated, troubles = _annotated(clip, entry)
    if annotated > frames + 1:  # one more is a decoder's last frame
        where = f"its annotation in {entry.fixations}"
        raise UsageError(f"{entry.video} has {frames} frames, {where} {annotated}; is the video complete?")
    if annotated > frames:
        troubles[WITHOUT_FRAME] = annotated - frames
    elif 0 < annotated < frames:
        troubles[UNANNOTATED] = frames - annotated
    clip = replace(clip, annotated_frames=min(annotated, frames), fixations=str(entry.fixations) if annotated else "")
    return _with_maps(replace(clip, troubles=troubles), entry, annotated)


def _annotated(clip: Clip, entry: Entry) -> tuple[int, dict[str, int]]:
    """How many frames are annotated, and which of their points were dropped."""
    if entry.fixations is None or not entry.fixations.exists():
        return 0, {}
    if entry.annotation in FRAME_READERS:
        suffix, read = FRAME_READERS[entry.annotation]
        names = images.listing(entry.fixations, (suffix,))
        if names:
            _check_numbers(entry, entry.fixations, names)
            if suffix == ".png":
                images.check_sizes(entry.fixations, names, (clip.height, clip.width))
            else:
                read(entry.fixations / names[0], clip)  # the others are checked when they are read
        return len(names), {}
    fixations = clip_fixations(replace(clip, fixations=str(entry.fixations)))
    annotated = fixations.frames if len(fixations.frame) or entry.annotation == "json" else 0
    return annotated, dict(fixations.dropped)


def _with_maps(clip: Clip, entry: Entry, annotated: int) -> Clip:
    """The clip with its density maps, if it has any; frames after the end of a video of maps count as not annotated."""
    if entry.maps is None or not entry.maps.exists():
        return clip
    if not annotated:
        raise UsageError(f"{entry.maps} has no fixations beside it in {entry.fixations}; NSS and AUC need them")
    if entry.maps.is_file():
        frames, *size = read_header(entry.maps)
        images.check_size(entry.maps, tuple(size), (clip.height, clip.width))
        odd = {ODD_MAPS: abs(frames - clip.frames)} if frames != clip.frames else {}
        covered = min(clip.annotated_frames, frames)
        return replace(clip, maps=str(entry.maps), annotated_frames=covered, troubles=clip.troubles | odd)
    names = images.listing(entry.maps)
    if not names:
        return clip
    if len(names) != annotated:
        raise UsageError(f"{entry.maps} holds {len(names)} maps, {entry.fixations} {annotated}; they must agree")
    _check_numbers(entry, entry.maps, names)
    images.check_sizes(entry.maps, names, (clip.height, clip.width))
    return replace(clip, maps=str(entry.maps))


def _check_numbers(entry: Entry, folder: Path, names: list[str]) -> None:
    """Raises UsageError unless the files are numbered without gaps: from 1 if the clip is a video, from the number of its first
    frame if it is a folder. A folder with as many files as frames may start at another number."""
    first: int | None = 1
    if entry.video.is_dir():
        frames = images.listing(entry.video)
        first = images.number_of((names if len(names) == len(frames) else frames)[0])
    images.check_numbers(folder, names, first)

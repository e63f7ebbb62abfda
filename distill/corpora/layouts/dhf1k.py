"""DHF1K (Wang et al., CVPR 2018), and other corpora in its layout. Five layouts are in use:

    official    video/NNN.AVI    annotation/NNNN/{fixation,maps}/%04d.png
    UNISAL      annotation/NNNN/{images,fixation,maps}/%04d.png
    TASED-Net   video/NNNN/%04d.png    annotation/NNNN/{fixation,maps}/%04d.png
    SalEMA      frames/N/    fixations/N/    maps/N/         numbers without zeros
    ViNet       NNNN/{images,fixation,maps}/%04d.png         perhaps below train/ and val/

They are recognised by their folders, and may be mixed. Fixations are PNGs, otherwise MATLAB matrices in
fixation/maps/%04d.mat, otherwise the raw gaze in exportdata_train/. Without maps/, density is built from the fixations.
Clips without annotation can be labelled, but not scored.

If there are clips beyond 600 the corpus is DHF1K itself, and has its split: 1-600 train, 601-700 validation, 701-1000 test.
"""

from dataclasses import replace
from pathlib import Path

from distill.corpora.clips import Clip, first_few
from distill.corpora.readers import images, smi
from distill.corpora.video import SUFFIXES
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

FPS = 30.0
SIDES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
LAST_TRAINING, LAST_VALIDATION = 600, 700


def find(root: Path, options: Options) -> list[Clip]:
    """The clips under `root`, sorted by number. Raises UsageError if there are none in any of the layouts."""
    fps = options.fps or FPS
    clips: dict[str, Clip] = {}
    sides = [(SIDES[p.name.lower()], p) for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SIDES]
    for side, folder in [("", root), *sides]:
        for name, video in _videos(folder).items():
            if name in clips and clips[name].side != side:
                raise UsageError(f"clip {name} is both in {clips[name].video} and in {video}; keep one of them")
            clip = Clip(name if video.is_dir() else video.stem, str(video), fps=fps, side=side)
            clips.setdefault(name, _with_annotation(folder, video, clip))
    if not clips:
        videos = (root / "video").is_dir()
        missing = f"{root / 'video'} holds no videos ({', '.join(SUFFIXES)})" if videos else f"{root} has no video/ folder"
        raise UsageError(
            f"{missing}, and there are no frames in video/NNNN, frames/N, annotation/NNNN/images or NNNN/images; "
            "DHF1K's layout is video/NNN.AVI and annotation/NNNN/fixation/%04d.png"
        )
    if options.name != "synthetic" and any(_number(name) > LAST_TRAINING for name in clips):
        clips = {name: replace(clip, side=clip.side or _official_side(_number(name))) for name, clip in clips.items()}
    return [clips[name] for name in sorted(clips, key=images.numbered)]


def is_meant(root: Path) -> bool:
    """Whether a folder has videos in this layout, usable or not."""
    return (root / "video").is_dir() and any(path.suffix.lower() in SUFFIXES for path in (root / "video").iterdir())


def _official_side(number: int) -> str:
    return "train" if number <= LAST_TRAINING else "val" if number <= LAST_VALIDATION else "test"


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _id(name: str) -> str:
    """One name for a clip in all layouts: 001 for 1, 001 and 0001. The id of a video is its file's name, though."""
    return f"{int(name):03d}" if name.isdigit() else name


def _videos(root: Path) -> dict[str, Path]:
    """Every clip's video or folder of frames; a video comes before folders, which come in the order of the list above."""
    videos: dict[str, Path] = {}
    folder = root / "video"
    if folder.is_dir():
        double = []
        for video in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
            if (other := videos.setdefault(_id(video.stem), video)) != video:
                double.append(f"{other.name} and {video.name}")
        if double:
            raise UsageError(f"{folder} has two videos of one clip: {first_few(double)}; keep one of each pair")
    for pattern in ("video/*", "frames/*", "annotation/*/images", "*/images"):
        for frames in sorted(root.glob(pattern)):
            name = frames.parent.name if frames.name == "images" else frames.name
            if frames.is_dir() and not name.startswith("."):
                videos.setdefault(_id(name), frames)
    return videos


def _with_annotation(root: Path, video: Path, clip: Clip) -> Clip:
    """The clip with its fixations and density maps, in whichever layout they are."""
    number = _number(clip.id)
    beside = [video.parent] if video.name == "images" else []
    folders = [root / "annotation" / (f"{number:04d}" if number else clip.id), *beside]
    plain = str(number) if number else clip.id
    fixations = [*(f / "fixation" for f in folders), root / "fixations" / plain, root / "fixation" / plain]
    maps = [*(f / "maps" for f in folders), root / "maps" / plain]
    clip = replace(clip, maps=next((str(m) for m in maps if m.is_dir()), ""), fixations=str(fixations[0]))
    for folder in fixations:
        for suffix, files in (("png", folder), ("mat", folder / "maps"), ("mat", folder)):
            if images.has_any(files, (f".{suffix}",)):
                return replace(clip, fixations=str(files), annotation=suffix)
    for folder in (root / "exportdata_train", root / "exportdata", root / "gaze_record"):
        if number and folder.is_dir() and smi.files_of(folder, number):
            return replace(clip, fixations=str(folder), annotation="export")
    return clip

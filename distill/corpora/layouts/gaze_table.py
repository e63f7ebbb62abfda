"""Your own videos, and your own gaze: videos or still images, and a CSV file of who looked where, in one folder or several:

    SET/fixations.csv[.gz]    a row per fixation or sample; see distill.corpora.readers.table for the columns. An exporter's table
                              that names no clips is of the one image or video beside it
    SET/img/NAME.jpg          images and videos, in SET itself or in any folder in it

An image becomes a static clip: one frame with all its fixations, and no recurrent state. `find_videos` needs no gaze: a
teacher labels the videos and training draws from them, because the recurrent part of a student needs many scenes.
"""

from pathlib import Path

from distill.corpora import video
from distill.corpora.clips import Clip, counted, first_few
from distill.corpora.readers import images, table
from distill.corpora.readers.conventions import CLIP
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

MEDIA = (*images.SUFFIXES, *video.SUFFIXES)


def find(root: Path, options: Options) -> list[Clip]:
    """Every image and video of every set, sorted by name. Raises UsageError if there is no table, or nothing beside it."""
    folders = [root] if table.only_table(root, one_clip=True) else _folders(root)
    tables = [path for folder in folders if (path := table.only_table(folder, one_clip=True))]
    if not tables:
        reasons = list(dict.fromkeys(why for folder in (root, *folders) for why in table.why_none(folder)))
        found = "".join(f"; {reason}" for reason in reasons[:3]) + (f"; and {len(reasons) - 3} more" if reasons[3:] else "")
        raise UsageError(
            f"{root} holds no gaze table: a CSV with columns for clip, x and y (clip,frame,x,y,observer or "
            f"image,subject,x_norm,y_norm), beside its videos or images{found}"
        )
    clips = []
    for path in tables:
        folder = path.parent
        below = (p for place in (folder, *_folders(folder)) for p in place.iterdir() if p.suffix.lower() in MEDIA)
        files = sorted((p for p in below if p.name[0] != "." and p.is_file()), key=lambda p: images.numbered(p.name))
        if not files:
            raise UsageError(f"{folder} has {path.name}, but no images or videos ({', '.join(MEDIA)}) beside it")
        if len(files) > 1 and "clip" in table.columns_of(path).lacks:
            raise UsageError(f"{path} has no column for the clip, and {len(files)} images or videos lie beside it; add one")
        for stem, file in _by_stem(files).items():
            clip = stem if len(tables) == 1 else f"{folder.name}.{stem}"
            static, name = file.suffix.lower() in images.SUFFIXES, f"{folder.resolve().name}/{stem}"
            clips.append(Clip(clip, str(file), fixations=str(path), annotation="table", static=static, name=name))
    return clips


def find_videos(root: Path, _options: Options) -> list[Clip]:
    """Every video in `root`, sorted by name. Raises UsageError if there are none, or two would be one clip."""
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in video.SUFFIXES and p.name[0] != "." and p.is_file()]
    if not files:
        raise UsageError(f"{root} holds no videos ({', '.join(video.SUFFIXES)})")
    videos = _by_stem(files)
    return [Clip(name, str(videos[name])) for name in sorted(videos, key=images.numbered)]


def _by_stem(files: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        if (other := named.setdefault(file.stem, file)) != file:
            raise UsageError(f"{other} and {file} would be one clip, {file.stem}; rename one of them")
    return named


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def notes(root: Path, clips: list[Clip]) -> list[str]:
    """How ambiguous columns of the tables were read, and which clips the tables name that are not there."""
    lines: list[str] = []
    for path in map(Path, dict.fromkeys(clip.fixations for clip in clips)):
        gaze = table.read(path)
        lines += gaze.notes
        clock = gaze.columns.clock if gaze.by_time and not all(clip.static for clip in clips) else CLIP
        if clock != CLIP:
            lines.append(f"times of {path.name} count from {clock}, and are taken as times in each video")
        mine = [Path(clip.video) for clip in clips if clip.fixations == str(path)]
        present = {match[0] for file in mine if (match := gaze.rows_of(file))}
        if absent := [name for name, (first, end) in gaze.clips.items() if name not in present and end > first]:
            rows = sum(last - first for first, last in (gaze.clips[name] for name in absent))
            what = f"{counted(rows, 'row')} of {counted(len(absent), 'clip')}"
            lines.append(
                f"{path.name} has {what} not found beside it ({first_few([name or 'without a name' for name in absent])})"
            )
    return lines


def notes_on_videos(root: Path, _clips: list[Clip]) -> list[str]:
    """Which tables lie beside videos and are not read."""
    return [f"no gaze is read: {reason}" for reason in table.why_none(root)]


def is_meant(root: Path) -> bool:
    """Whether a gaze table lies in `root`, though it may not be usable."""
    try:
        return table.only_table(root, one_clip=True) is not None
    except UsageError:
        return True


def holds_tables(root: Path) -> bool:
    """Whether tables of an unknown kind lie in `root`, beside images or videos."""
    return bool(table.why_none(root)) and any(path.suffix.lower() in MEDIA for path in root.iterdir())

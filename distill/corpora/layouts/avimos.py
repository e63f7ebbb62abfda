"""AViMoS (AIM 2024) and the corpus of NTIRE 2026: full-HD videos with sound, and mouse positions in place of gaze.

    Videos/NAME.mp4                              one folder, or several
    SaliencyTrain/Train/NAME.mp4                 density maps as near-lossless video, each frame scaled to the full range
    FixationsTrain/Train/NAME/fixations.json     for each frame [row, column] points, with repetitions
    FixationsTrain/Train/NAME/fixations/*.png    the same without repetitions, read if the JSON is missing
    TrainTestSplit.json                          {"train": [NAME, ...], "public_test": ..., "private_test": ...}
    *.csv                                        your own mouse tracks: clip, time, x, y, observer

Folders are recognised by their contents, up to three levels down, so archives unpacked side by side work, and so does one
tidy tree. Raw tracks are resampled to 100 Hz and moved back by corpus.mouse_lag_ms, as the organisers did with theirs.
"""

import json
from pathlib import Path

from distill.corpora.clips import Clip, counted, first_few
from distill.corpora.readers import images, table
from distill.corpora.video import SUFFIXES
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

SPLIT = "TrainTestSplit.json"


def find(root: Path, options: Options) -> list[Clip]:
    """The clips under `root`, sorted by name. Raises UsageError if there are no videos, or the split cannot be read."""
    videos, maps, fixations = _folders(root)
    if not videos:
        raise UsageError(f"{root} holds no videos; the layout is Videos/NAME.mp4, with Saliency*/ and Fixations*/ beside")
    sides = _sides(root)
    tracks = table.only_table(root)
    clips = []
    for name in sorted(videos, key=images.numbered):
        path, annotation = fixations.get(name) or ((tracks, "tracks") if tracks else ("", "json"))
        density, side, lag = str(maps.get(name, "")) if path else "", sides.get(name, ""), options.mouse_lag_ms / 1000
        clips.append(
            Clip(name, str(videos[name]), fixations=str(path), maps=density, annotation=annotation, side=side, lag=lag)
        )
    return clips


def notes(root: Path, clips: list[Clip]) -> list[str]:
    """How the columns of mouse tracks were read, and where the official split and the files under `root` differ."""
    tracks = dict.fromkeys(clip.fixations for clip in clips if clip.annotation == "tracks")
    lines = [note for path in tracks for note in table.read(Path(path)).notes]
    sides = _sides(root)
    if not sides:
        return [*lines, f"there is no {SPLIT} in {root.name}: corpus.val decides which clips are held out"]
    present = {clip.name for clip in clips}
    if absent := sorted(set(sides) - present):
        lines.append(f"{SPLIT} names {counted(len(absent), 'clip')} not in {root.name} ({first_few(absent)})")
    if unnamed := sorted(present - set(sides)):
        lines.append(f"{SPLIT} does not name {counted(len(unnamed), 'clip')}, used for training ({first_few(unnamed)})")
    return lines


def _folders(root: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, tuple[Path, str]]]:
    """Videos, density maps, and fixations with their format, by the clip's name."""
    videos: dict[str, Path] = {}
    maps: dict[str, Path] = {}
    fixations: dict[str, tuple[Path, str]] = {}
    level = [root]
    for _ in range(4):
        below = []
        for folder in level:
            if (annotation := _fixations(folder)) is not None:
                fixations[folder.name] = annotation
                continue
            files = maps if any(p.lower().startswith("saliency") for p in folder.relative_to(root).parts) else videos
            visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
            below += [path for path in visible if path.is_dir()]
            for path in (path for path in visible if path.suffix.lower() in SUFFIXES and not path.is_dir()):
                if (other := files.setdefault(path.stem, path)) != path:
                    raise UsageError(f"{other} and {path} have the same name; keep one of them")
        level = below
    return videos, maps, fixations


def _fixations(folder: Path) -> tuple[Path, str] | None:
    """The fixations in a folder that is named after a clip, and their format."""
    if (folder / "fixations.json").is_file():
        return folder / "fixations.json", "json"
    for name in ("fixations", "fixations_maps"):
        if images.has_any(folder / name, (".png",)):
            return folder / name, "png"
    return None


def _sides(root: Path) -> dict[str, str]:
    """The official side of each clip, by its name; names in the file may have a suffix."""
    path = root / SPLIT
    if not path.is_file():
        return {}
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        names = {key: [Path(name).stem for name in clips] for key, clips in lists.items()}
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{path} does not list clip names per side: {error}") from None
    return {name: "test" if "test" in key.lower() else "train" for key, clips in names.items() for name in clips}

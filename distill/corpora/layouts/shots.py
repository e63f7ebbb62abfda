"""Hollywood-2 and UCF Sports with gaze (Mathe and Sminchisescu, PAMI 2015), as they are distributed with DHF1K:

    training/SHOT/{images,fixation,maps}/*.png        actioncliptrain00001_1/images/actioncliptrain00001_00001.png
    testing/SHOT/{images,fixation,maps}/*.png         Diving-Side-001/images/Diving-Side_001_001.png

Hollywood-2 is cut into shots; shots of one film stay on one side of a split. Observers had a task (name the action). The
distribution does not state a frame rate; UNISAL (Droste et al., ECCV 2020) takes 24 frames per second.
"""

import re
from dataclasses import replace
from pathlib import Path

from distill.corpora.clips import Clip
from distill.corpora.readers import images
from distill.recipe.keys import Corpus as Options
from distill.run.errors import UsageError

FPS = 24.0


def find(root: Path, options: Options) -> list[Clip]:
    """The shots under training/ and testing/, or in `root` if it is one of the two. Raises UsageError if there are none."""
    sides = {side: root / name for side, name in (("train", "training"), ("test", "testing"))}
    present = {side: folder for side, folder in sides.items() if folder.is_dir()} or {"": root}
    clips = [_clip(shot, side, options.fps or FPS) for side, folder in present.items() for shot in _shots(folder)]
    if not clips:
        layout = "training/SHOT/images/*.png with fixation/ and maps/ beside, and testing/"
        raise UsageError(f"{root} holds no shots; the layout is {layout}")
    ids = [clip.id for clip in clips]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise UsageError(f"{root} has shot {min(twice)} in both training/ and testing/; keep one of them")
    return clips


def _shots(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if (p / "images").is_dir()), key=lambda p: images.numbered(p.name))


def _clip(shot: Path, side: str, fps: float) -> Clip:
    fixations, annotation = shot / "fixation", "png"
    if not images.has_any(fixations, (".png",)) and images.has_any(fixations / "maps", (".mat",)):
        fixations, annotation = fixations / "maps", "mat"
    film = re.sub(r"_\d+$", "", shot.name) if shot.name.startswith("actionclip") else shot.name
    clip = Clip(shot.name, str(shot / "images"), fps=fps, group=film, annotation=annotation, side=side)
    return replace(clip, fixations=str(fixations), maps=str(shot / "maps"))

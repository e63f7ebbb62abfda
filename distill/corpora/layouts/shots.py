"""Hollywood-2 and UCF Sports with gaze (Mathe and Sminchisescu, PAMI 2015), as they are distributed with DHF1K:

    training/SHOT/{images,fixation,maps}/*.png        actioncliptrain00001_1/images/actioncliptrain00001_00001.png
    testing/SHOT/{images,fixation,maps}/*.png         Diving-Side-001/images/Diving-Side_001_001.png

Hollywood-2 is cut into shots; shots of one film stay on one side of a split. Observers had a task (name the action). The
distribution does not state a frame rate; UNISAL (Droste et al., ECCV 2020) takes 24 frames per second.
"""

import re
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
    clips: dict[str, Clip] = {}
    for side, folder in present.items():
        shots = (path for path in folder.iterdir() if (path / "images").is_dir())
        for shot in sorted(shots, key=lambda path: images.numbered(path.name)):
            if shot.name in clips:
                raise UsageError(f"{root} has shot {shot.name} in both training/ and testing/; keep one of them")
            fixations, annotation = shot / "fixation", "png"
            if not images.has_any(fixations, (".png",)) and images.has_any(fixations / "maps", (".mat",)):
                fixations, annotation = fixations / "maps", "mat"
            film = re.sub(r"_\d+$", "", shot.name) if shot.name.startswith("actionclip") else shot.name
            clips[shot.name] = Clip(
                shot.name, str(shot / "images"), fps=options.fps or FPS, fixations=str(fixations), maps=str(shot / "maps"),
                group=film, annotation=annotation, side=side,
            )  # fmt: skip
    if not clips:
        layout = "training/SHOT/images/*.png with fixation/ and maps/ beside, and testing/"
        raise UsageError(f"{root} holds no shots; the layout is {layout}")
    return list(clips.values())

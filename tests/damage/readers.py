"""One file of each kind, read as the pipeline reads it. Whatever a command turns into a sentence may be raised."""

from pathlib import Path

import numpy as np
import torch

from distill.cli.exits import run_command
from distill.corpora import Corpus, fixation_points, open_corpus
from distill.corpora.attribution import attribute
from distill.corpora.splitting import split
from distill.labels import calibration
from distill.labels.store import LabelStore
from distill.recipe.files import load_recipe
from distill.run.errors import usage_errors
from distill.run.files import ArrayFile, value_in
from distill.teachers.maps import MapsTeacher
from distill.teachers.weights import read_weights
from distill.training import checkpoint


def read(kind: str, path: Path) -> int:
    """The exit code. path: the damaged file, among the files around it."""
    folder = path.parent
    match kind.split():
        case ["video", _]:
            predicted = run_command(
                ["predict", str(path), "-m", str(folder.parent / "onnx/step.onnx"), "-o", str(folder / "o.npy"), "-q"]
            )
            encoded = run_command(
                ["encode", str(path), str(folder / "o.mp4"), "--map", "centre", "--preset", "ultrafast", "-q"]
            )
            return max(predicted, encoded, run_command(["inspect", str(folder), "--json", "-q"]))
        case ["fixation" | "density", _]:
            return _corpus("dhf1k", path.parents[3 if path.suffix == ".png" else 4])
        case ["fixations" | "split", "JSON"]:
            return _corpus("avimos", next(parent for parent in path.parents if parent.name == "avimos"))
        case ["SMI", _]:
            return _corpus("dhf1k", path.parents[2])
        case ["calibration", _]:
            calibration.load(path, "f").apply(torch.zeros(2, 6, 10))
        case ["frame", _]:
            return _corpus("gaze-table", path.parents[1])
        case ["gaze" | "image", "CSV"]:
            return _corpus("gaze-table", folder)
        case ["groups", _]:
            clips = open_corpus("gaze-table", str(folder.parent / "avi"))
            split(clips, 0.5, groups=path)
        case ["attribution", _]:
            attribute(path, {"a": "avi/a.avi"})
        case ["recipe", _]:
            load_recipe(path)
        case ["maps", _]:
            with usage_errors():
                MapsTeacher(folder).logits("a", 6)
        case ["labels", _]:
            code = run_command(["inspect", str(folder), "--json"])
            LabelStore.open(folder).read("a", 6)[:].sum()
            return code
        case ["cache", _]:
            array = ArrayFile(path)
            array[np.array([0, len(array) - 1])].sum()
        case ["checkpoint"]:
            checkpoint.check_resumable(path)
            checkpoint.load(path)
        case ["weights", _]:
            run_command(["teach", "convert", str(path), "-o", str(folder / "out.safetensors")])  # knows none of ours
            with usage_errors():
                read_weights(path)
        case ["manifest" | "metrics", _]:
            return max(run_command(["inspect", str(folder)]), run_command(["run", str(folder), "--dry-run"]))
        case ["corpus", _]:
            value_in(path, Corpus.from_dict)
        case [_, "ONNX"]:
            out = ["-o", str(folder / "o.npy"), "-q"]
            code = run_command(["predict", str(folder.parent / "avi/a.avi"), "-m", str(path), *out])
            return max(code, run_command(["inspect", str(path)]))
    return 0


def _corpus(name: str, root: Path) -> int:
    """Surveys a corpus, and reads all fixations of its usable clips."""
    code = run_command(["inspect", str(root), "--corpus", name, "--json", "-q"])
    for clip in open_corpus(name, str(root)).clips:
        for index in range(clip.annotated_frames):
            fixation_points(clip, index)
    return code

"""Labels computed elsewhere are found by a clip's id and by the folder and stem of its file, wherever they were computed."""

import cv2
import numpy as np
import pytest

from distill.corpora import Clip, open_corpus
from distill.labels.labelling import looked_up_in
from distill.labels.store import LabelStore, StoredLabels
from distill.recipe.files import load_recipe
from distill.run.errors import UsageError
from distill.run.plan import check_ready
from distill.teachers.maps import MapsTeacher
from tests.corpora import writers
from tests.helpers import gaze_corpus

TEACHER = {"name": "t", "fingerprint": "f"}


def write_maps(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, maps=np.full((1, 4, 6), value, np.uint8), peak=np.ones(1, np.float32))


@pytest.mark.parametrize("stored", ["images.crowd500.001", "crowd500.001"])
@pytest.mark.parametrize("clip_id", ["images.crowd500.001", "crowd500.001"])
def test_labels_of_a_run_are_found_in_mixed_and_in_single_corpora(tmp_path, stored, clip_id):
    LabelStore.create(tmp_path, TEACHER).write(stored, np.full((1, 4, 6), 2.0))
    clip = Clip(clip_id, "001.jpg", frames=1, static=True, corpus="images", name="crowd500/001")
    [logits] = looked_up_in(StoredLabels(tmp_path))([clip])
    assert logits.shape == (1, 4, 6) and (logits == 2).all()


@pytest.mark.parametrize("file", ["recording.npz", "folder/recording.npz"])
def test_maps_are_found_under_the_clips_id_and_under_its_folder(tmp_path, file):
    write_maps(tmp_path / file, 255)
    clip = Clip("gaze-table.recording", "recording.mp4", frames=1, corpus="gaze-table", name="folder/recording")
    [logits] = looked_up_in(MapsTeacher(tmp_path))([clip])
    assert (logits > 0).all()


@pytest.mark.parametrize("file", ["images/001.npz", "images.001.npz", "images.001/1.png"])
def test_a_set_may_be_called_like_its_corpus(tmp_path, file):
    for name in ("images", "other"):
        writers.images(tmp_path / "corpus" / name, 2)
    maps = tmp_path / "maps"
    write_maps(maps / "001.npz", 0)  # of whichever
    if file.endswith(".png"):
        (maps / file).parent.mkdir()
        cv2.imwrite(str(maps / file), np.full((4, 6), 255, np.uint8))
    else:
        write_maps(maps / file, 255)
    corpus = open_corpus("images", tmp_path / "corpus", only=["images.001"])
    [logits] = looked_up_in(MapsTeacher(maps))(corpus.clips)
    assert (logits > 0).all()


def test_a_recipe_without_maps_for_a_clip_names_the_files_that_were_looked_for(tmp_path):
    root, maps = gaze_corpus(tmp_path / "set", images=2), tmp_path / "maps"
    options = ["corpus.name=gaze-table", f'corpus.root="{root}"', "teacher.name=maps", f'teacher.maps="{maps}"']
    write_maps(maps / "i0.npz", 9)
    with pytest.raises(UsageError) as error:
        check_ready(load_recipe(None, options))
    places = f"{maps}/set/i1.npz, {maps}/set/i1/, {maps}/set/i1.png, {maps}/i1.npz, {maps}/i1/ or {maps}/i1.png"
    assert str(error.value) == (
        f"teacher.maps has nothing for clip i1: there is no {places}; add it, or leave it out: --set corpus.skip=i1"
    )
    write_maps(maps / "set" / "i1.npz", 9)
    check_ready(load_recipe(None, options))

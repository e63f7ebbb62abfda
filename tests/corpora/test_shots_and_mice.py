"""Hollywood-2 and UCF Sports, AViMoS and NTIRE 2026, as they are distributed."""

import json
import shutil

import numpy as np
import pytest

from distill.corpora import Corpus, density_map, fixation_map, fixation_points, open_corpus, split
from distill.evaluation.metrics import nss
from distill.recipe import keys
from distill.run.errors import UsageError
from tests.corpora import writers


def test_hollywood2_is_read_shot_by_shot(tmp_path):
    writers.hollywood2(tmp_path)
    corpus = open_corpus("hollywood2", tmp_path)
    assert [(c.id, c.side, c.group) for c in corpus.clips] == [
        ("actioncliptrain00001_1", "train", "actioncliptrain00001"),
        ("actioncliptrain00001_2", "train", "actioncliptrain00001"),
        ("actioncliptrain00002_1", "train", "actioncliptrain00002"),
        ("actioncliptest00001_1", "test", "actioncliptest00001"),
    ]
    clip = corpus["actioncliptrain00001_2"]  # its files are numbered 6 to 10
    assert (clip.frames, clip.annotated_frames, clip.fps) == (5, 5, 24.0)
    assert [round(f.mean() / 10) for f in clip.read()] == [0, 1, 2, 3, 4]
    assert [int(fixation_points(clip, t).columns[0]) for t in range(5)] == [0, 5, 10, 15, 20]
    assert nss(density_map(clip, 2, fixation_map(clip, 2)), fixation_map(clip, 2)) > 3
    assert Corpus.from_dict(corpus.to_dict()) == corpus


def test_shots_of_a_film_stay_together_and_the_test_set_is_left_out(tmp_path):
    writers.hollywood2(tmp_path)
    for seed in range(8):
        parts = split(open_corpus("hollywood2", tmp_path), 0.34, seed=seed)
        assert set(parts.val) in ({"actioncliptrain00001_1", "actioncliptrain00001_2"}, {"actioncliptrain00002_1"})
        assert set(parts.train) | set(parts.val) == {c.id for c in parts.clips}
        assert not any("test" in c.id for c in parts.clips)


def test_one_side_alone_can_be_read(tmp_path):
    writers.hollywood2(tmp_path)
    corpus = open_corpus("hollywood2", tmp_path / "testing", options=keys.Corpus(fps=25.0))
    assert [(c.id, c.side, c.fps) for c in corpus.clips] == [("actioncliptest00001_1", "", 25.0)]
    with pytest.raises(UsageError, match="holds no shots"):
        open_corpus("hollywood2", tmp_path / "testing" / "actioncliptest00001_1")


def test_ucf_sports(tmp_path):
    writers.ucf_sports(tmp_path)
    corpus = open_corpus("ucf-sports", tmp_path)
    assert [(c.id, c.side, c.frames) for c in corpus.clips] == [
        ("Diving-Side-001", "train", 5), ("Golf-Swing-Back-001", "train", 5), ("Diving-Side-002", "test", 5),
    ]  # fmt: skip
    assert fixation_points(corpus["Diving-Side-002"], 4).columns.tolist() == [20]


def test_a_shot_with_a_missing_frame_is_named(tmp_path):
    writers.hollywood2(tmp_path)
    shot = tmp_path / "training" / "actioncliptrain00001_2"
    (shot / "fixation" / "actioncliptrain00001_00008.png").unlink()
    with pytest.raises(UsageError, match=r"has actioncliptrain00001_00009\.png where actioncliptrain00001_00008\.png"):
        open_corpus("hollywood2", tmp_path)
    for part in ("fixation", "maps"):  # the first one missing: the others would move up by one
        shutil.rmtree(shot / part)
        writers.folder(shot / part, 4, writers.fixations, "actioncliptrain00001_{:05d}.png", first=7)
    with pytest.raises(UsageError, match=r"has actioncliptrain00001_00007\.png where actioncliptrain00001_00006\.png"):
        open_corpus("hollywood2", tmp_path)


# --- AViMoS and NTIRE 2026 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avimos", "ntire2026"])
def test_mouse_corpora_are_read_with_their_multiplicity(tmp_path, name):
    writers.avimos(tmp_path, ntire=name == "ntire2026")
    corpus = open_corpus(name, tmp_path)
    assert [(c.id, c.side, c.annotation, c.annotated_frames) for c in corpus.clips] == [
        ("0001", "train", "json", 6), ("0002", "train", "json", 6), ("0003", "test", "json", 6),
    ]  # fmt: skip
    clip = corpus["0002"]
    points = fixation_points(clip, 4)
    assert (points.rows.tolist(), points.columns.tolist()) == ([writers.ROW, writers.ROW, 3], [20, 20, 70])
    assert fixation_map(clip, 4).sum() == 2
    for t in (3, 1, 5):  # maps are a video: going back starts over
        density = density_map(clip, t, fixation_map(clip, t))
        assert np.abs(density * 255 - writers.density(t)).mean() < 3 and density.shape == writers.SIZE
        assert np.unravel_index(density.argmax(), density.shape)[1] == pytest.approx(5 * t, abs=2)
    assert nss(density, fixation_map(clip, 5)) > 1
    assert Corpus.from_dict(corpus.to_dict()) == corpus
    parts = split(corpus, 0.5)
    assert len(parts.train) == len(parts.val) == 1 and "0003" not in [c.id for c in parts.clips]


def test_a_split_that_is_missing_or_does_not_fit_is_noted(tmp_path):
    writers.avimos(tmp_path)
    (tmp_path / "TrainTestSplit.json").write_text('{"train": ["0001", "0009"], "public_test": ["0003"]}', encoding="utf-8")
    corpus = open_corpus("avimos", tmp_path)
    assert corpus.notes == (
        f"TrainTestSplit.json names 1 clip not in {tmp_path.name} (0009)",
        "TrainTestSplit.json does not name 1 clip, used for training (0002)",
    )
    (tmp_path / "TrainTestSplit.json").unlink()
    corpus = open_corpus("avimos", tmp_path)
    assert "there is no TrainTestSplit.json" in corpus.notes[0] and {c.side for c in corpus.clips} == {""}
    assert len(split(corpus, 0.34).val) == 1


def test_png_fixations_stand_in_for_a_missing_json(tmp_path):
    writers.avimos(tmp_path)
    (tmp_path / "FixationsTrain" / "Train" / "0001" / "fixations.json").unlink()
    clip = open_corpus("avimos", tmp_path)["0001"]
    assert clip.annotation == "png" and fixation_points(clip, 4).columns.tolist() == [20]


def test_a_clip_whose_gaze_is_withheld_is_unannotated(tmp_path):
    writers.avimos(tmp_path)
    shutil.rmtree(tmp_path / "FixationsTest")
    shutil.rmtree(tmp_path / "SaliencyTest")
    corpus = open_corpus("avimos", tmp_path)
    assert [c.annotated_frames for c in corpus.clips] == [6, 6, 0] and not corpus["0003"].maps


def json_of(points):
    def damage(root):
        (root / "FixationsTrain" / "Train" / "0001" / "fixations.json").write_text(points, encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (json_of("{"), "is not a list of frames"),
        (json_of("[[1, 2], [3, 4]]"), "is not a list of frames"),
        (json_of("[[[1, 2, 3]], [[1, 2, 3]]]"), "is not a list of frames"),
        (json_of(json.dumps([[[1, 1]]] * 9)), "has 6 frames, its annotation in .* 9"),
        (lambda r: writers.video(r / "SaliencyTrain/Train/0001.mp4", 6, size=(48, 96)), "is 96x48 px, its video 80x48"),
        (lambda r: (r / "TrainTestSplit.json").write_text("[1]"), "does not list clip names per side"),
        (lambda r: shutil.rmtree(r / "Videos"), "holds no videos"),
    ],
)
def test_broken_mouse_data_is_named(tmp_path, damage, message):
    writers.avimos(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_corpus("avimos", tmp_path)


def test_points_outside_and_counts_off_by_one_are_noted(tmp_path):
    writers.avimos(tmp_path)
    points = [[[-1, 5], [5, 5], [5, 81], [48, 80], [float("nan"), 2]]] + [[]] * 4
    json_of(json.dumps(points))(tmp_path)
    corpus = open_corpus("avimos", tmp_path)
    assert corpus["0001"].troubles == {
        "points outside the frame": 2, "points that are NaN": 1, "frames without annotation": 1,
    }  # fmt: skip
    points = fixation_points(corpus["0001"], 0)
    assert list(zip(points.rows, points.columns, strict=True)) == [(5, 5), (47, 79)]  # the edge is the last pixel's
    assert len(fixation_points(corpus["0001"], 3).rows) == 0 and fixation_points(corpus["0001"], 5) is None


def test_a_video_of_maps_that_ends_early_ends_the_annotation(tmp_path):
    writers.avimos(tmp_path)
    writers.video(tmp_path / "SaliencyTrain" / "Train" / "0001.mp4", 4, 30.0, make=writers.density)
    corpus = open_corpus("avimos", tmp_path)
    assert corpus["0001"].annotated_frames == 4 and corpus.notes == (
        "density maps too few or too many: 2, in 1 clip (0001: 2)",
    )
    density_map(corpus["0001"], 3, fixation_map(corpus["0001"], 3))
    with pytest.raises(UsageError, match="ends after 4 frames, before frame 5"):
        density_map(corpus["0001"], 4, np.zeros(writers.SIZE))


def test_raw_mouse_tracks_are_resampled_and_moved_back(tmp_path):
    """A straight track of 1.2 s, sampled unevenly; the eye was there 300 ms before."""
    writers.video(tmp_path / "Videos" / "a.mp4", 30, 30.0)
    rows = ["video,observer,time_ms,x,y", *(f"a.mp4,7,{t},{t * 0.05 + 0.2},24" for t in (0, 170, 200, 415, 1200))]
    (tmp_path / "tracks.csv").write_text("\n".join(rows), encoding="utf-8")
    clip = open_corpus("avimos", tmp_path).clips[0]
    assert clip.annotation == "tracks" and clip.annotated_frames == 30 and clip.lag == 0.3
    counts = [len(fixation_points(clip, t).rows) for t in range(30)]
    assert counts[:27] == [4, 3, 3] * 9  # 100 Hz over 30 frames per second
    assert sum(counts) == 91 and counts[27] == 1  # the track ends 0.9 s into the video
    for t in (0, 9, 26):
        points = fixation_points(clip, t)
        assert set(points.observers) == {0}
        assert points.columns.mean() == pytest.approx((0.3 + t / 30) * 50 + 0.5, abs=0.6)
    prompt = open_corpus("avimos", tmp_path, options=keys.Corpus(mouse_lag_ms=0)).clips[0]
    assert fixation_points(prompt, 0).columns.tolist() == [0, 0, 1, 1]


def test_a_mouse_track_that_runs_for_years_is_cut_at_the_end_of_the_video(tmp_path):
    writers.video(tmp_path / "Videos" / "a.mp4", 30, 30.0)
    (tmp_path / "tracks.csv").write_text("video,observer,time_s,x,y\na,7,0,20,24\na,7,1e9,20,24\n", encoding="utf-8")
    corpus = open_corpus("avimos", tmp_path, options=keys.Corpus(mouse_lag_ms=0))
    assert len(fixation_points(corpus.clips[0], 29).rows) == 3
    assert corpus.clips[0].troubles == {"points after the last frame or before the first": 10**11 + 1 - 100}
    assert "x and y of tracks.csv are read as pixels, judging by their values" in corpus.notes
    (tmp_path / "more.csv").write_text("video,observer,time_s,frame,x,y\na,7,0,1,20,24\n", encoding="utf-8")
    (tmp_path / "tracks.csv").unlink()
    with pytest.raises(UsageError, match="mouse tracks need times alone"):
        open_corpus("avimos", tmp_path)

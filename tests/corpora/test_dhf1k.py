"""DHF1K's official layout, the four others in use, its fixations as .mat and as raw gaze, its split, and counts that differ."""

import shutil
import struct

import cv2
import numpy as np
import pytest

from distill.corpora import Corpus, density_map, fixation_map, fixation_points, open_corpus, split
from distill.corpora.readers.matlab import read_variable
from distill.evaluation.metrics import nss
from distill.recipe import keys
from distill.run.errors import UsageError
from tests.corpora import writers


@pytest.mark.parametrize("layout", writers.DHF1K)
def test_every_layout_is_detected_and_read_the_same(tmp_path, layout):
    for number in (1, 2, 12):
        writers.DHF1K[layout](tmp_path, number)
    corpus = open_corpus("dhf1k", tmp_path)
    assert [clip.id for clip in corpus.clips] == ["001", "002", "012"] and not corpus.notes
    clip = corpus["012"]
    assert (clip.frames, clip.height, clip.width, clip.fps, clip.annotated_frames) == (6, *writers.SIZE, 30.0, 6)
    assert [round(f.mean() / 10) for f in clip.read()] == list(range(6))
    assert [round(f.mean() / 10) for f in clip.read(stride=2)] == [0, 2, 4]
    for t in range(6):
        points = fixation_points(clip, t)
        assert (points.rows.tolist(), points.columns.tolist(), points.observers) == ([writers.ROW], [5 * t], None)
        assert np.array_equal(fixation_map(clip, t), writers.fixations(t) > 0)
    density = density_map(clip, 3, fixation_map(clip, 3))
    assert np.allclose(density * 255, writers.density(3), atol=0.5)
    assert nss(density, fixation_map(clip, 3)) > 3  # what is read can be scored
    assert Corpus.from_dict(corpus.to_dict()) == corpus


def test_frames_are_ordered_by_number_not_by_name(tmp_path):
    writers.salema(tmp_path, 3, frames=12)  # 10.png sorts before 2.png as text
    clip = open_corpus("dhf1k", tmp_path).clips[0]
    assert [round(f.mean() / 10) for f in clip.read()] == list(range(12))
    assert [int(fixation_points(clip, t).columns[0]) for t in range(12)] == [5 * t for t in range(12)]


def test_frames_may_be_jpegs_that_count_from_zero(tmp_path):
    writers.annotation(tmp_path / "0001", 4)
    writers.folder(tmp_path / "0001" / "images", 4, name="img_{:05d}.jpg", first=0)
    clip = open_corpus("dhf1k", tmp_path).clips[0]
    assert (clip.frames, clip.annotated_frames) == (4, 4)


def test_videos_keep_their_names_and_two_with_one_number_are_refused(tmp_path):
    writers.video(tmp_path / "video" / "0007.avi", 2)
    writers.annotation(tmp_path / "annotation" / "0007", 2)
    writers.video(tmp_path / "video" / "bees.mp4", 2)
    writers.annotation(tmp_path / "annotation" / "bees", 2)
    corpus = open_corpus("dhf1k", tmp_path)
    assert [(c.id, c.annotated_frames) for c in corpus.clips] == [("0007", 2), ("bees", 2)]
    writers.video(tmp_path / "video" / "7.avi", 2)
    with pytest.raises(UsageError, match=r"two videos of one clip: 0007\.avi and 7\.avi; keep one"):
        open_corpus("dhf1k", tmp_path)


def test_train_and_val_folders_are_the_split(tmp_path):
    for side, number in (("train", 1), ("train", 2), ("val", 3)):
        writers.vinet(tmp_path / side, number)
    parts = split(open_corpus("dhf1k", tmp_path), 0.5)
    assert parts.train == ("001", "002") and parts.val == ("003",)
    writers.vinet(tmp_path / "val", 1)
    with pytest.raises(UsageError, match="clip 001 is both in"):
        open_corpus("dhf1k", tmp_path)


def test_the_official_split_holds_601_to_700_out(tmp_path):
    for number in (1, 600, 601, 700):
        writers.unisal(tmp_path, number, frames=2)
    writers.folder(tmp_path / "video" / "0701", 2)  # of the benchmark: no annotation
    corpus = open_corpus("dhf1k", tmp_path)
    parts = split(corpus, 0.25)
    assert parts.train == ("001", "600") and parts.val == ("601", "700")
    assert "701" in [c.id for c in corpus.clips] and "701" not in [c.id for c in parts.clips]
    assert any("1 clip of the official test set left out" in note for note in parts.notes)
    by_share = split(corpus, 0.25, official=False)
    assert len(by_share.val) == 1 and "701" in by_share.train


def test_without_clips_beyond_600_the_share_decides(tmp_path):
    for number in (1, 2, 599, 600):
        writers.unisal(tmp_path, number, frames=2)
    assert len(split(open_corpus("dhf1k", tmp_path), 0.25).val) == 1


# --- fixations as MATLAB matrices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, bool])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_matlab_matrix_is_read(tmp_path, compressed, order, dtype, sparse):
    matrix = np.zeros((5, 7), dtype)
    matrix[1, 2] = matrix[4, 6] = 1
    read = read_variable(writers.mat(tmp_path / "m.mat", matrix, compressed=compressed, order=order, sparse=sparse), "I")
    assert np.array_equal(read, matrix)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda p: writers.mat(p, np.zeros((2, 2), np.uint8), name="J"),
            "has no numeric matrix I; it holds J; save the matrix as I",
        ),
        (lambda p: p.write_bytes(b"<html>"), "is not a MATLAB file; restore it, or leave the clip out with corpus.skip"),
        (lambda p: p.write_bytes(b"MATLAB 7.3 MAT-file".ljust(200)), "save -v7"),
        (lambda p: p.write_bytes(writers.mat(p, np.zeros((40, 40), np.uint8)).read_bytes()[:-9]), "cannot be read|truncated"),
    ],
)
def test_a_matlab_file_that_cannot_be_used_is_named(tmp_path, write, message):
    write(tmp_path / "m.mat")
    with pytest.raises(UsageError, match=message):
        read_variable(tmp_path / "m.mat", "I")


ROWS, STARTS, WHOLE = struct.pack("<2i", 1, 4), struct.pack("<8i", 0, 0, 0, 1, 1, 1, 1, 2), struct.Struct("<II")
DAMAGED = "the indices of its sparse matrix, 5x7, are damaged; restore it, or leave the clip out"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (struct.pack("<2i", 5, 7), struct.pack("<2i", 1 << 14, 1 << 13), "is 16384x8192, more than 67,108,864 numbers"),
        (
            WHOLE.pack(5, 8) + struct.pack("<2i", 5, 7),
            WHOLE.pack(5, 12) + struct.pack("<4i", 5, 3, 2, 0),
            "is 5x3x2, and a map has two",
        ),
        (struct.pack("<2i", 5, 7), struct.pack("<2i", 5, 6), "the indices of its sparse matrix, 5x6, are damaged"),
        (struct.pack("<2i", 5, 7), struct.pack("<2i", 5, -7), "the indices of its sparse matrix, 5x-7, are damaged"),
        (ROWS, struct.pack("<2i", -1, 4), DAMAGED),
        (ROWS, struct.pack("<2i", 1, 5), DAMAGED),
        (WHOLE.pack(5, 8) + ROWS, WHOLE.pack(7, 8) + ROWS, DAMAGED),
        (STARTS, struct.pack("<8i", 0, 0, 0, 1, 1, 1, 1, 3), DAMAGED),
        (STARTS, struct.pack("<8i", 0, 0, 2, 1, 1, 1, 1, 2), DAMAGED),
        (STARTS, struct.pack("<8i", 1, 1, 1, 1, 1, 1, 1, 2), DAMAGED),
    ],
)
def test_a_damaged_sparse_matrix_is_refused(tmp_path, old, new, message):
    matrix = np.zeros((5, 7), np.uint8)
    matrix[1, 2] = matrix[4, 6] = 1
    path = writers.mat(tmp_path / "m.mat", matrix, compressed=False, sparse=True)
    head, body = path.read_bytes()[:128], path.read_bytes()[136:]
    assert body.count(old) == 1
    body = body.replace(old, new)
    path.write_bytes(head + WHOLE.pack(14, len(body)) + body)
    with pytest.raises(UsageError, match=message):
        read_variable(path, "I")


def test_fixations_are_read_from_mat_where_there_are_no_pngs(tmp_path):
    writers.official(tmp_path, 1)
    place = tmp_path / "annotation" / "0001" / "fixation"
    for t in range(6):
        (place / f"{t + 1:04d}.png").unlink()
        writers.mat(place / "maps" / f"{t + 1:04d}.mat", (writers.fixations(t) > 0).astype(np.uint8))
    clip = open_corpus("dhf1k", tmp_path).clips[0]
    assert clip.annotation == "mat" and clip.annotated_frames == 6
    assert all(np.array_equal(fixation_map(clip, t), writers.fixations(t) > 0) for t in range(6))
    writers.mat(place / "maps" / "0001.mat", np.zeros((48, 81), np.uint8))
    with pytest.raises(UsageError, match=r"0001\.mat is 81x48 px, its video 80x48"):
        open_corpus("dhf1k", tmp_path)


# --- raw gaze --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [False, True])
def test_raw_gaze_is_mapped_as_record_mapping_does(tmp_path, short):
    """640 x 360 on 1440 x 900 px: scale 4/9, 45 px above and below. Pixels count from 1 there, from 0 here."""
    writers.video(tmp_path / "video" / "001.avi", 4, 30.0, (360, 640))
    begin, tick = 107_977_452_442, 1e6 / 30
    rows = [
        (begin, 720, 450, "Fixation"),  # on the edge at 0: of no frame
        (begin + 4000, 720, 450, "Fixation"),  # 320, 180 counted from 1
        (begin + 8000, 900, 450, "Saccade"),
        (begin + 1.5 * tick, 721.2, 451.2, "Fixation"),  # 320.53 -> 321, 180.53 -> 181
        (begin + 2.5 * tick, 720, 40, "Fixation"),  # above the video
        (begin + 3.5 * tick, 1.0, 46, "Fixation"),  # 0.44 -> 0: dropped, as MATLAB has no pixel 0
        (begin + 9.5 * tick, 720, 450, "Fixation"),  # after the end
    ]
    rows = [(int(t), x, y, e) for t, x, y, e in rows]
    writers.export(tmp_path, 1, 1, rows, short)
    writers.export(tmp_path, 1, 2, [(5, 10, 46, "Fixation"), (9000, 360, 270, "Fixation")], short)
    corpus = open_corpus("dhf1k", tmp_path)
    clip = corpus.clips[0]
    assert clip.annotation == "export" and clip.annotated_frames == 4
    first = fixation_points(clip, 0)
    assert list(zip(first.rows, first.columns, first.observers, strict=True)) == [(179, 319, 0), (99, 159, 1)]
    second = fixation_points(clip, 1)
    assert (second.rows.tolist(), second.columns.tolist()) == ([180], [320])
    assert len(fixation_points(clip, 2).rows) == len(fixation_points(clip, 3).rows) == 0
    assert clip.troubles == {"points outside the frame": 2, "points after the last frame or before the first": 1}
    assert any(note.startswith("points outside the frame: 2 dropped, in 1 clip (001: 2)") for note in corpus.notes)


@pytest.mark.parametrize("eye", ["R ", "GVEC "])
def test_columns_of_raw_gaze_are_found_by_their_names_or_refused(tmp_path, eye):
    writers.video(tmp_path / "video" / "001.avi", 4, 30.0, (360, 640))
    path = writers.export(tmp_path, 1, 1, [(0, 1, 1, "-"), (9000, 360, 270, "Fixation")])
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join(["## [iView]", "", head.replace("L ", eye), *rows]), encoding="utf-8")
    if eye == "R ":
        points = fixation_points(open_corpus("dhf1k", tmp_path).clips[0], 0)
        assert (points.rows.tolist(), points.columns.tolist()) == ([99], [159])
        return
    with pytest.raises(UsageError, match=r"P01_Trail001\.txt has no columns Time, L POR X \[px\].*; its header: Time\tType"):
        open_corpus("dhf1k", tmp_path)


def test_a_recording_that_is_a_copy_is_dropped_and_counted(tmp_path):
    writers.video(tmp_path / "video" / "001.avi", 4, 30.0, (360, 640))
    rows = [(0, 1, 1, "-"), *((4000 + 9000 * i, 700 + 9 * i, 450, "Fixation") for i in range(5))]
    for person in (1, 2):
        writers.export(tmp_path, 1, person, rows)
    writers.export(tmp_path, 1, 3, [(t, x + 30, y, e) for t, x, y, e in rows])
    clip = open_corpus("dhf1k", tmp_path).clips[0]
    assert clip.troubles == {"points of observers that are copies of another one": 5}
    assert set(np.concatenate([fixation_points(clip, t).observers for t in range(4)])) == {0, 2}


# --- counts that differ ----------------------------------------------------------------------------------------------


def test_one_extra_annotation_is_noted_and_two_are_refused(tmp_path):
    for number, more in ((1, 0), (2, 1), (3, 1)):
        writers.tased(tmp_path, number)
        shutil.rmtree(tmp_path / "video" / f"{number:04d}")
        writers.folder(tmp_path / "video" / f"{number:04d}", 6 - more)
    corpus = open_corpus("dhf1k", tmp_path)
    assert corpus.notes == ("annotations without a frame: 2, in 2 clips (002: 1, 003: 1)",)
    assert corpus["002"].annotated_frames == corpus["002"].frames == 5
    (tmp_path / "video" / "0003" / "0005.png").unlink()
    with pytest.raises(UsageError, match=r"has 4 frames, its annotation in .* 6"):
        open_corpus("dhf1k", tmp_path)


def test_every_clip_whose_counts_differ_is_named(tmp_path):
    for number in range(1, 15):
        writers.tased(tmp_path, number, frames=2)
        writers.folder(tmp_path / "video" / f"{number:04d}", 3 if number > 2 else 2)
    (note,) = open_corpus("dhf1k", tmp_path).notes
    assert note.startswith("frames without annotation: 12, in 12 clips (003: 1, 004: 1") and "014: 1)" in note
    for number in range(1, 15):
        writers.folder(tmp_path / "annotation" / f"{number:04d}" / "fixation", 9, writers.fixations)
    with pytest.raises(UsageError, match="13 more clips with problems: 002, 003, 004, 005 and 9 more") as error:
        open_corpus("dhf1k", tmp_path)
    skip = str(error.value).partition("corpus.skip=")[2].partition(" ")[0].split(",")
    assert skip == [f"{number:03d}" for number in range(1, 15)]
    with pytest.raises(UsageError, match="no clips left"):
        open_corpus("dhf1k", tmp_path, options=keys.Corpus(skip=skip))


def test_a_frame_that_is_missing_or_of_another_size_is_named(tmp_path):
    writers.vinet(tmp_path, 1)
    cv2.imwrite(str(tmp_path / "0001" / "images" / "0003.png"), writers.frame(2, (48, 82)))
    with pytest.raises(UsageError, match=r"0003\.png is 82x48 px, 0001\.png 80x48; they must agree"):
        open_corpus("dhf1k", tmp_path)
    (tmp_path / "0001" / "images" / "0003.png").unlink()
    with pytest.raises(UsageError, match=r"has 0004\.png where 0003\.png should be"):
        open_corpus("dhf1k", tmp_path)


def test_annotation_deleted_after_opening_is_detected(tmp_path):
    writers.official(tmp_path, 1)
    clip = open_corpus("dhf1k", tmp_path).clips[0]
    (tmp_path / "annotation" / "0001" / "fixation" / "0001.png").unlink()  # all others would move up by one
    with pytest.raises(UsageError, match="holds 5 fixation maps, but held 6"):
        fixation_points(clip, 2)

"""Your own gaze: images and videos with one CSV, under many column names, with the faults of real tables."""

import gzip
import unicodedata

import numpy as np
import pytest

from distill.corpora import SIGMA, Corpus, density_map, fixation_map, fixation_points, open_corpus, split
from distill.corpora.layouts import gaze_table
from distill.evaluation.metrics import nss
from distill.recipe import keys
from distill.run.errors import UsageError
from distill.students import TinyUNetConfig
from distill.training import frames
from tests.corpora import writers


def a_video(root, rows, frames=10, fps=10.0, name="walk.mp4", table="gaze.csv", encoding="utf-8"):
    writers.video(root / "video" / name, frames, fps)
    (root / table).write_bytes("\n".join(rows).encode(encoding))
    return root


def points_of(clip, t):
    points = fixation_points(clip, t)
    observers = points.observers if points.observers is not None else [None] * len(points.rows)
    return list(zip(points.rows.tolist(), points.columns.tolist(), map(str, observers), strict=True))


# --- still images ----------------------------------------------------------------------------------------------------


def test_images_become_static_clips(tmp_path):
    corpus = open_corpus("gaze-table", writers.images(tmp_path))
    assert [c.id for c in corpus.clips] == ["001", "002", "003"] and not corpus.notes
    clip = corpus["002"]
    assert clip.static and (clip.frames, clip.annotated_frames, clip.height, clip.width) == (1, 1, *writers.SIZE)
    (image,) = clip.read()
    assert image.shape == (*writers.SIZE, 3) and round(image.mean() / 10) == 2
    assert points_of(clip, 0) == [(24, c, o) for o in "01" for c in (16, 17)]
    assert fixation_points(clip, 1) is None
    assert nss(density_map(clip, 0, fixation_map(clip, 0)), fixation_map(clip, 0)) > 3
    assert Corpus.from_dict(corpus.to_dict()) == corpus and corpus.median_fps == 30.0


def test_the_cache_of_a_static_clip_is_one_frame_and_its_truth(tmp_path):
    clip = open_corpus("images", writers.images(tmp_path / "set"))["003"]
    student = TinyUNetConfig(height=32, width=64, widths=(4, 8, 8, 12, 16), state_channels=8)
    frames.cache(tmp_path / "frames", clip, student, 8.0)
    cached = frames.load(tmp_path / "frames", clip, 8.0)
    assert len(cached.frames) == len(cached.truth) == 1 and cached.stride == 1
    truth = cached.truth[0]
    assert truth[0].max() == 1 and truth[1].sum() == 4
    assert np.unravel_index(truth[1].argmax(), truth[1].shape) == (8, int(0.31 * 32))


def test_a_folder_of_sets_is_one_corpus(tmp_path):
    for name in ("osie", "street"):
        writers.images(tmp_path / name)
        (tmp_path / name / "LICENSE").write_text(f"licence of {name}\n", encoding="utf-8")
    with (tmp_path / "street" / "fixations.csv").open("rb") as table:
        (tmp_path / "street" / "fixations.csv.gz").write_bytes(gzip.compress(table.read()))
    (tmp_path / "street" / "fixations.csv").unlink()
    corpus = open_corpus("images", tmp_path)
    assert [c.id for c in corpus.clips] == [f"{s}.{n:03d}" for s in ("osie", "street") for n in (1, 2, 3)]
    assert corpus["street.002"].name == "street/002"
    assert corpus.license == "licence of osie; licence of street"
    assert points_of(corpus["street.002"], 0) == points_of(corpus["osie.002"], 0) != []


def test_an_image_without_rows_is_unannotated_and_rows_without_an_image_are_noted(tmp_path):
    writers.images(tmp_path)
    (tmp_path / "img" / "003.jpg").rename(tmp_path / "img" / "004.jpg")
    corpus = open_corpus("images", tmp_path)
    assert [c.annotated_frames for c in corpus.clips] == [1, 1, 0]
    assert corpus.notes == ("fixations.csv has 4 rows of 1 clip not found beside it (003.jpg)",)
    assert split(corpus, 0.4).train[-1] == "004"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    writers.images(tmp_path, suffix=suffix, size=(200, 300))
    path = tmp_path / "img" / f"002{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match=rf"002{suffix} is truncated"):
        open_corpus("images", tmp_path)
    path.write_text("<html>")
    with pytest.raises(UsageError, match=r"is not a PNG|does not open as an image"):
        open_corpus("images", tmp_path)


def test_files_that_are_no_gaze_table_are_named(tmp_path):
    writers.video(tmp_path / "walk.mp4", 3)
    (tmp_path / "gaze.xlsx").write_bytes(b"PK\3\4")
    (tmp_path / "scan.txt").write_text("Time\tPupil left\tPupil right\n1\t2\t3\n", encoding="utf-8")
    (tmp_path / "LICENSE.txt").write_text("All rights, reserved", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"scan\.txt has no column that is known as clip or x or y; its header: Time, Pupil left"
    ) as error:
        open_corpus("gaze-table", tmp_path)
    assert "gaze.xlsx is in a format that is not read: save it as CSV" in str(error.value) and "LICENSE" not in str(error.value)


# --- videos ----------------------------------------------------------------------------------------------------------


def test_rows_by_frame_count_from_1_unless_one_is_0(tmp_path):
    rows = ["video,frame,x,y,observer", "walk,1,10,20,ann", "walk.mp4,3,11.9,21,ann", "walk,3,12,22,bob"]
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows[:2] + [r.replace(".mp4", "") for r in rows[2:]]))
    clip = corpus["walk"]
    assert (clip.frames, clip.annotated_frames, clip.static) == (10, 10, False)
    assert points_of(clip, 0) == [(20, 10, "0")] and points_of(clip, 2) == [(21, 11, "0"), (22, 12, "1")]
    assert points_of(clip, 1) == [] and "frames of gaze.csv are numbered from 1" in corpus.notes
    a_video(tmp_path, [*rows[:2], "walk,0,5,5,bob"])
    corpus = open_corpus("gaze-table", tmp_path)
    assert points_of(corpus["walk"], 1) == [(20, 10, "0")] and "frames of gaze.csv are numbered from 0" in corpus.notes


@pytest.mark.parametrize(
    ("head", "unit"), [("time", 1), ("time_s", 1), ("timestamp_ms", 1000), ("Time [ms]", 1000), ("t_us", 1_000_000)]
)
def test_rows_by_time_fall_into_frames(tmp_path, head, unit):
    rows = [f"clip,{head},x_px,y_px", *(f"walk,{t * unit},{10 * t + 1},20" for t in (0.0, 0.31, 0.99))]
    clip = open_corpus("gaze-table", a_video(tmp_path, rows))["walk"]
    assert {t: points_of(clip, t) for t in range(10) if points_of(clip, t)} == {
        0: [(20, 1, "None")], 3: [(20, 4, "None")], 9: [(20, 10, "None")],
    }  # fmt: skip


def test_a_duration_covers_its_frames(tmp_path):
    rows = ["clip,onset_ms,duration_ms,x,y,subject", "walk,200,300,10,20,a", "walk,850,900,30,20,a", "walk,0,,5,5,b"]
    clip = open_corpus("gaze-table", a_video(tmp_path, rows))["walk"]
    assert [len(points_of(clip, t)) for t in range(10)] == [1, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    by_frame = ["clip,frame_index,duration,x,y", "walk,2,3,10,20"]
    clip = open_corpus("gaze-table", a_video(tmp_path, by_frame))["walk"]
    assert [len(points_of(clip, t)) for t in range(10)] == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "rows",
    [
        ["image,subject,x_norm,y_norm", "walk,1,0.25,0.5", "walk,2,1.0,1.0"],
        ["stimulus;participant;x;y", "walk;1;0,25;0,5", "walk;2;1,0;1,0"],  # decimal commas
        ["file\tuser\tgaze_x\tgaze_y", "some/where/walk.png\t1\t20\t24", "some\\where\\walk.png\t2\t79.9\t47.9"],
        ['"Clip","Observer","X","Y"', '"walk","1","20","24"', '"walk","2","80","48"'],
    ],
)
def test_column_names_and_separators_are_recognised(tmp_path, rows):
    import cv2

    cv2.imwrite(str(tmp_path / "walk.png"), writers.frame(1))
    (tmp_path / "gaze.csv").write_text("\r\n".join(rows), encoding="utf-8")
    clip = open_corpus("gaze-table", tmp_path).clips[0]
    assert points_of(clip, 0) == [(24, 20, "0"), (47, 79, "1")]


# --- files as people have them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nclip;x;y;frame\nwalk;10,5;20,25;2\n",
        "# recorded today\n% by us\n\n// with care\nclip,x,y,frame\nwalk,10.5,20.25,2\n# walk,11,21,2\n",
        "# clip,x,y,frame\nwalk,10.5,20.25,2\n",  # as numpy.savetxt writes it
        'clip,x,y,frame\nwalk,"10,5","20,25",2\n',
        "clip|x|y|frame\rwalk|10.5|20.25|2\r",
        "clip\tx\ty\tframe\nwalk\t10,5\t20,25\t2\n",
        'clip,x,y,time_us\nwalk,10.5,20.25,"1,000"\nwalk,10.5,20.25,"100,500"\n',
        "clip;x;y;time_us\nwalk;10,5;20,25;100.500,0\n",
        "clip;x;y;time_us\nwalk;10.5;20.25;100,500\n",
        "clip\tx\ty\ttime_us\nwalk\t10.5\t20.25\t100\u202f500\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_comments_separators_encodings_and_decimal_commas(tmp_path, text, encoding):
    a_video(tmp_path, [])
    (tmp_path / "gaze.csv").write_bytes(text.encode(encoding))
    corpus = open_corpus("gaze-table", tmp_path)
    assert points_of(corpus["walk"], 1) == [(20, 10, "None")] and "cannot be read" not in str(corpus.notes)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_names_match_however_accents_are_stored(tmp_path, form, other):
    name, cell = unicodedata.normalize(form, "Zoë.mp4"), unicodedata.normalize(other, "Zoë")
    corpus = open_corpus("gaze-table", a_video(tmp_path, ["clip,frame_index,x,y", f"{cell},1,2,3"], name=name))
    assert points_of(corpus.clips[0], 1) == [(3, 2, "None")]


# --- what is wrong with real tables ----------------------------------------------------------------------------------


def test_unusable_points_are_counted_by_reason(tmp_path):
    rows = [
        "clip,frame_index,x_px,y_px,observer",
        "walk,0,10,20,ann", "walk,0,10,20,ann",  # twice
        "walk,1,-3,20,ann", "walk,1,10,48.1,ann", "walk,1,80,48,ann",  # two outside, one on the edge
        "walk,2,nan,20,ann", "walk,2,,20,ann", "walk,,5,5,bob",
        "walk,10,5,5,ann", "walk,-1,5,5,ann",
        "walk,3,five,5,ann", "walk,3",
        "run,1,5,5,ann",
    ]  # fmt: skip
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows))
    assert corpus["walk"].troubles == {
        "rows that cannot be read": 3, "duplicate rows": 1, "points that are NaN": 3,
        "points after the last frame or before the first": 1, "points outside the frame": 2,
    }  # fmt: skip
    where = "line 11: frame_index is '-1'; line 12: x_px is 'five'; line 13: it has 2 cells, the header has 5"
    assert f"gaze.csv: 3 rows cannot be read ({where})" in corpus.notes
    used = sum(len(points_of(corpus["walk"], t)) for t in range(10))
    assert used == len(rows) - 1 - 1 - sum(corpus["walk"].troubles.values())  # nothing is lost silently
    assert "gaze.csv has 1 row of 1 clip not found beside it (run)" in corpus.notes
    assert "duplicate rows: 1 dropped, in 1 clip (walk: 1)" in corpus.notes


def test_a_bad_row_moves_no_other(tmp_path):
    for bad in ("walk,-3,5,5", "walk,1e-3x,5,5", "walk,2,5"):
        corpus = open_corpus("gaze-table", a_video(tmp_path, ["clip,frame,x,y", bad, "walk,3,12,22"]))
        assert (
            points_of(corpus["walk"], 2) == [(22, 12, "None")] and "gaze.csv: 1 row cannot be read (line 2: " in corpus.notes[0]
        )
        (tmp_path / "gaze.csv").unlink()
    for zero in ("walk,0,five,5", "walk,0,0,0", "walk,0,,5"):  # frames count from 0, though the only row of frame 0 has no gaze
        corpus = open_corpus(
            "gaze-table", a_video(tmp_path, ["clip,frame,x,y", zero, "walk,3,12,22"], table=f"{len(zero)}{zero[7]}.csv")
        )
        assert points_of(corpus["walk"], 3) == [(22, 12, "None")]
        next(tmp_path.glob("*.csv")).unlink()


@pytest.mark.parametrize("lost", [(0, 0), (-1, -1), (-9999, -9999), (-32768, -32768)])
def test_what_trackers_write_for_lost_gaze_is_counted_and_not_used(tmp_path, lost):
    rows = ["clip,frame_index,x,y,observer", *(f"walk,{t},{lost[0]},{lost[1]},ann" for t in range(9)), "walk,9,10,20,ann"]
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows))
    assert corpus["walk"].troubles == {"points that the tracker lost": 9}
    assert points_of(corpus["walk"], 9) == [(20, 10, "0")] and points_of(corpus["walk"], 0) == []


def test_fixations_of_unknown_observers_keep_their_multiplicity(tmp_path):
    rows = ["clip,frame_index,x,y", "walk,1,40,20", "walk,1,40,20", "walk,1,40,20"]
    clip = open_corpus("gaze-table", a_video(tmp_path, rows))["walk"]
    assert points_of(clip, 1) == [(20, 40, "None")] * 3 and not clip.troubles


def test_a_duplicate_observer_is_dropped(tmp_path):
    rows = ["clip,frame_index,x,y,observer"]
    rows += [f"walk,{t},{10 + t},20,{who}" for who in ("ann", "ann-copy") for t in range(4)]
    rows += [f"walk,{t},{30 + t},20,bob" for t in range(4)] + ["walk,7,40,20,cy", "walk,7,40,20,di"]
    clip = open_corpus("gaze-table", a_video(tmp_path, rows))["walk"]
    assert clip.troubles == {"points of observers that are copies of another one": 4}
    assert len(points_of(clip, 2)) == 2 and len(points_of(clip, 7)) == 2  # one look alike is no copy


def test_a_table_that_is_not_utf8_is_read_and_noted(tmp_path):
    rows = ["clip,frame_index,x,y,observer", "walk,1,40,20,Jürgen", "walk,2,40,20,Zoë"]
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows, encoding="cp1252"))
    assert "gaze.csv is not UTF-8 (line 2): read as Windows-1252" in corpus.notes
    assert points_of(corpus["walk"], 2) == [(20, 40, "1")]
    for encoding in ("utf-8-sig", "utf-16"):
        corpus = open_corpus("gaze-table", a_video(tmp_path, rows, encoding=encoding))
        assert points_of(corpus["walk"], 1) == [(20, 40, "0")] and "UTF" not in str(corpus.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["clip,frame,x,y,observer", 'walk,1,2,3,"ann', *["walk,1,2,3,bob"] * 9],
            r"gaze\.csv: a quote that opens on line 2 is not closed",
        ),
        (["clip,frame,x,y,observer", "walk,1,2,3,ann", '"walk,1,2,3,bob'], "a quote that opens on line 3 is not closed"),
        (
            ["clip,frame,x,y", '"', *["walk,1,2,3"] * 20_000],
            r"line 2 cannot be read \(field larger.*is a quote not closed there",
        ),
        (["clip,frame,x,y", "walk,1,\0,3"], "no row that can be read"),
        (["clip,frame,x,y", "walk,1,10,5,20,5"], r"no row that can be read \(line 2: it has 6 cells, the header has 4\)"),
        (
            ["image,gaze_angle_x,gaze_angle_y", "walk,1,2"],
            r"gaze\.csv has no column that is known as x or y; its header: image, gaze_an",
        ),
        (["frame,x,y", "0,.5,.5"], r"gaze\.csv has no column that is known as clip; its header: frame, x, y"),
        (["clip,frame,x,y", *(f"walk,{t},{t - 4},{t - 4}.5" for t in range(8))], "their origin is in the middle"),
        (["clip,frame,x_px,y_px", *(f"walk,{t},.{t},.5" for t in range(8))], "they cannot be pixels; name the columns x_px"),
        (["clip,frame,x_norm,y_norm", *(f"walk,{t},{9 * t},5" for t in range(8))], "they cannot be fractions of the size"),
        (["clip,frame,x,y"], "has a header, but no row that can be read"),
        (["clip,frame,x,y", "walk,one,2,3"], "no row that can be read"),
        (["clip,when,where", "walk,1,2"], "holds no gaze table"),
        ([], "holds no gaze table"),
        (["clip,x,y", "walk,2,3"], "no column for the frame or the time, and walk is a video"),
        (["clip,time,x,y", *(f"walk,{t},2,3" for t in range(0, 900, 100))], "name the column time_ms"),
    ],
)
def test_an_unusable_table_is_a_one_line_error(tmp_path, rows, message):
    with pytest.raises(UsageError, match=message) as error:
        open_corpus("gaze-table", a_video(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_ambiguous_files_are_refused(tmp_path):
    root = a_video(tmp_path, ["clip,frame_index,x,y", "walk,1,2,3"])
    (root / "more.csv").write_text("clip,frame_index,x,y\nwalk,1,2,3\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"several gaze tables, gaze\.csv and more\.csv"):
        open_corpus("gaze-table", root)
    (root / "more.csv").write_text("id,name\n1,walk\n", encoding="utf-8")  # another kind of table is none of ours
    writers.video(root / "other" / "walk.avi", 3)
    with pytest.raises(UsageError, match="would be one clip, walk"):
        open_corpus("gaze-table", root)
    for file in (root / "other" / "walk.avi", root / "video" / "walk.mp4"):
        file.unlink()
    with pytest.raises(UsageError, match="no images or videos"):
        open_corpus("gaze-table", root)


def test_fractions_and_pixels_are_distinguished_by_their_values(tmp_path):
    rows = ["clip,frame_index,x,y", *(f"walk,{t},{0.1 * t},0.5" for t in range(9)), "walk,9,1.2,0.5"]
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows))
    assert points_of(corpus["walk"], 5) == [(24, 40, "None")]
    assert "x and y of gaze.csv are read as fractions of the size, judging by their values" in corpus.notes
    assert corpus["walk"].troubles == {"points outside the frame": 1}
    density = density_map(corpus["walk"], 5, fixation_map(corpus["walk"], 5))
    assert density.sum() == pytest.approx(1, abs=1e-3) and SIGMA * 80 > 1


# --- the real ones ---------------------------------------------------------------------------------------------------


def test_the_real_image_sets_are_found_and_read_as_they_are(shared):
    root = shared / "data" / "images"
    sets = [entry.name.partition("/")[0] for entry in gaze_table.find(root, keys.Corpus())]
    assert {name: sets.count(name) for name in sets} == {"crowd500": 429, "osie": 600, "scene500": 429}
    corpus = open_corpus("images", root / "scene500")
    assert all(clip.static and clip.annotated_frames == 1 for clip in corpus.clips)
    for clip in corpus.clips[::40]:
        points = fixation_points(clip, 0)
        assert 5 <= len(set(points.observers.tolist())) <= 20 and len(points.rows) > 20
    assert corpus.license == "The MIT License (MIT)"

"""`distill inspect ROOT`: what a corpus holds, what is wrong with it, the blur of its maps, and the sheet."""

import json

import cv2
import numpy as np
import pytest

from distill.corpora import detect_corpus, open_corpus
from distill.run.errors import UsageError
from distill.tools.corpus_sheet import write_sheet
from distill.tools.inspect_corpus import describe_corpus, fit_sigma, table_rows
from tests.corpora import writers
from tests.helpers import invoke, make_clip


@pytest.mark.parametrize(
    ("write", "name"),
    [
        *((lambda root, layout=layout: layout(root, 1), "dhf1k") for layout in writers.DHF1K.values()),
        (lambda root: writers.vinet(root / "train", 1), "dhf1k"),
        (writers.hollywood2, "hollywood2"),
        (writers.ucf_sports, "ucf-sports"),
        (writers.avimos, "avimos"),
        (writers.images, "gaze-table"),
        (lambda root: writers.images(root / "set"), "gaze-table"),
        (lambda root: writers.video(root / "holiday.mp4", 4), "videos"),
        (lambda root: (root / "thesis.tex").write_text("precious"), None),
    ],
)
def test_the_layout_is_seen(tmp_path, write, name):
    write(tmp_path)
    assert detect_corpus(tmp_path) == name


def test_a_gaze_table_beside_a_video_folder_is_not_dhf1k(tmp_path):
    writers.video(tmp_path / "video" / "walk.mp4", 4)
    (tmp_path / "gaze.csv").write_text("clip,frame_index,x,y\nwalk,1,2,3\n", encoding="utf-8")
    assert detect_corpus(tmp_path) == "gaze-table"


def test_tables_that_are_not_read_are_named(tmp_path):
    (tmp_path / "gaze.csv").write_text("image,pupil_left,pupil_right\na,1,2\n", encoding="utf-8")
    assert detect_corpus(tmp_path) is None
    assert cv2.imwrite(str(tmp_path / "a.png"), writers.frame(1))
    problem = invoke("inspect", tmp_path).stderr
    assert "gaze.csv has no column that is known as x or y; its header: image, pupil_left, pupil_right" in " ".join(
        problem.split()
    )
    writers.video(tmp_path / "walk.mp4", 4)
    assert detect_corpus(tmp_path) == "videos"
    _, facts = describe_corpus(tmp_path, "videos")
    assert facts["notes"][0].startswith("no gaze is read: gaze.csv has no column that is known as x or y")
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("clip,frame_index,x,y\nwalk,1,2,3\n", encoding="utf-8")
    assert detect_corpus(tmp_path) == "gaze-table"  # which says that there are two


def test_numbers_of_a_corpus(tmp_path):
    writers.official(tmp_path, 1)
    writers.official(tmp_path, 2)
    writers.video(tmp_path / "video" / "003.avi", 4, 30.0)
    writers.video(tmp_path / "video" / "002.avi", 3, 30.0)  # too short for its annotation
    _, facts = describe_corpus(tmp_path, "dhf1k")
    assert (facts["clips"], facts["annotated"], facts["frames"]) == (2, 1, 10)
    assert facts["unannotated"] == ["003"] and "002.avi has 3 frames" in facts["broken"]["002"]
    first = facts["per_clip"][0]
    assert (first["id"], first["frames"], first["fixations_per_frame"], first["observers"]) == ("001", 6, 1.0, None)
    table = table_rows(facts)
    assert [row["clip"] for row in table] == ["001", "003", "002"]
    assert table[1]["remarks"] == "no annotation" and table[2]["remarks"].startswith("BROKEN: ")
    assert json.loads(json.dumps(facts)) == facts


def test_images_are_listed_by_set(tmp_path):
    for name in ("osie", "street"):
        writers.images(tmp_path / name)
    table = (tmp_path / "osie" / "fixations.csv").read_text(encoding="utf-8")
    (tmp_path / "osie" / "fixations.csv").write_text(table + "001.jpg,3,1,1.2,0.5,100\n", encoding="utf-8")
    _, facts = describe_corpus(tmp_path, "gaze-table")
    rows = table_rows(facts)
    assert [row["clip"] for row in rows] == ["osie, 3 images", "street, 3 images"]
    assert (rows[0]["fixations per frame"], rows[0]["observers"]) == ("4.0", "2")
    assert rows[0]["remarks"] == "points outside the frame: 1"


@pytest.mark.parametrize("sigma", [4.0, 12.74, 30.0])
def test_the_blur_of_the_maps_is_found(tmp_path, sigma):
    """Maps of a known sigma, stored with 8 bits; one frame has no fixations, in one a pixel is fixated twice."""
    size, rng = (180, 320), np.random.default_rng(1)
    writers.video(tmp_path / "Videos" / "a.avi", 4, 30.0, size)
    counts = np.zeros((4, *size), np.float32)
    points = [[], *([[int(rng.integers(20, 160)), int(rng.integers(20, 300))] for _ in range(9)] for _ in range(3))]
    points[2].append(points[2][0])
    for t, frame in enumerate(points):
        for row, column in frame:
            counts[t, row, column] += 1
    blurred = [cv2.GaussianBlur(c, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT) for c in counts]
    maps = [(b / max(b.max(), 1e-9) * 255).round().astype(np.uint8) for b in blurred]
    writers.video(tmp_path / "SaliencyTrain" / "a.avi", 4, 30.0, size, make=lambda t, _: maps[t])
    clip = tmp_path / "FixationsTrain" / "a"
    clip.mkdir(parents=True)
    (clip / "fixations.json").write_text(json.dumps(points), encoding="utf-8")
    fitted = fit_sigma(open_corpus("avimos", tmp_path).clips)
    assert fitted["sigma_px"] == pytest.approx(sigma, rel=0.03)
    assert fitted["sigma_share"] == pytest.approx(sigma / 320, rel=0.03) and fitted["sigma_correlation"] > 0.99


def test_the_sheet_shows_heat_and_dots(tmp_path):
    writers.official(tmp_path, 1, frames=16)
    corpus = open_corpus("dhf1k", tmp_path)
    picture = cv2.imread(str(write_sheet(corpus, "001", tmp_path / "sheet.png")))
    assert picture.shape[1] == 1800 and picture.std() > 10
    with pytest.raises(UsageError, match=r"name it sheet\.png"):
        write_sheet(corpus, "001", tmp_path / "sheet.jpg")
    with pytest.raises(UsageError, match=r"no usable clip '01' in .*; did you mean '001'"):
        write_sheet(corpus, "01", tmp_path / "sheet.png")


def test_sheets_of_images_and_of_one_image(tmp_path):
    corpus = open_corpus("images", writers.images(tmp_path / "osie", 5))
    for name in ("osie", "003"):
        assert cv2.imread(str(write_sheet(corpus, name, tmp_path / f"{name}.png"))).shape[1] == 1800


def test_inspect_on_the_command_line(tmp_path):
    for number in (1, 2):
        writers.official(tmp_path / "root", number)
    result = invoke("inspect", tmp_path / "root", "--show", "002", "-o", "sheet.png", "-q", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "fixations" in result.stdout and "of the width" in result.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    writers.video(tmp_path / "root" / "video" / "002.avi", 3, 30.0)
    result = invoke("inspect", tmp_path / "root", "--json", cwd=tmp_path)
    assert result.returncode == 1 and list(json.loads(result.stdout)["broken"]) == ["002"]


def test_show_opens_that_clip_alone_and_one_clip_twice_is_named(tmp_path):
    for name in ("001", "002"):
        make_clip(tmp_path, name)
    (tmp_path / "video" / "002.avi").write_bytes(b"damaged")
    result = invoke("inspect", tmp_path, "--show", "001", "-o", tmp_path / "sheet.png", "--json")
    assert result.returncode == 0, result.stderr
    assert [clip["id"] for clip in json.loads(result.stdout)["per_clip"]] == ["001"] and (tmp_path / "sheet.png").stat().st_size
    result = invoke("inspect", tmp_path, "--show", "002", "-o", tmp_path / "other.png")
    assert result.returncode == 2 and "--show: " in result.stderr and "002.avi" in result.stderr
    result = invoke("inspect", tmp_path, "--show", "003")
    assert result.returncode == 2 and "there is no clip '003'" in result.stderr
    (tmp_path / "video" / "002.mp4").write_bytes(b"")
    result = invoke("inspect", tmp_path)
    assert result.returncode == 2 and "has two videos of one clip: 002.avi and 002.mp4; keep one of each pair" in result.stderr

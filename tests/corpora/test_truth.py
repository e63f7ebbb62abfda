"""Fixation maps and density maps that are not what they should be: read right, rebuilt, left out or refused, and always said."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from distill.corpora import density_map, fixation_points, open_corpus
from distill.corpora.checking import EMPTY, MANY, REBUILT, SAMPLED, UNUSABLE
from distill.corpora.gaze import FULL, GREY, SIGMA, blur, stored_density
from distill.evaluation.evaluate import evaluate
from distill.evaluation.fixations import check_scorable
from distill.run.errors import UsageError
from distill.tools.inspect_corpus import describe_corpus
from tests.corpora import writers
from tests.helpers import gaze_corpus, image_model, make_clip

SIZE = (48, 80)
PLACES = {(10, 12), (24, 40), (40, 70)}
BINARY = np.zeros(SIZE, np.uint8)
for place in PLACES:
    BINARY[place] = 1


def png(rows: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these bytes `[H,N]`, as OpenCV cannot write them: palettes, one bit, grey with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, colour, 0, 0, 0)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def channels(*values: np.ndarray) -> bytes:
    return encoded(np.stack(values, -1))


FULLY = np.full(SIZE, 255, np.uint8)
READ_RIGHT = {
    "8 bits, value 1": encoded(BINARY),
    "16 bits, value 1": encoded(BINARY.astype(np.uint16)),
    "16 bits, colour": encoded(np.stack([0 * BINARY, 0 * BINARY, BINARY], -1).astype(np.uint16)),
    "1 bit": png(np.packbits(BINARY, axis=1), 1, 0),
    "1 bit, dark palette": png(np.packbits(BINARY, axis=1), 1, 3, (b"PLTE", bytes([0, 0, 0, 0, 0, 1]))),
    "dark palette": png(BINARY, 8, 3, (b"PLTE", bytes([0, 0, 0, 1, 0, 0]))),
    "palette with a transparent background": png(
        BINARY, 8, 3, (b"PLTE", bytes([255, 255, 255, 0, 0, 0])), (b"tRNS", bytes([0, 255]))
    ),
    "alpha only": channels(0 * BINARY, 0 * BINARY, 0 * BINARY, 255 * BINARY),
    "grey, alpha only": png(np.stack([0 * BINARY, 255 * BINARY], -1).reshape(SIZE[0], -1), 8, 4),
    "white, transparent background": channels(FULLY, FULLY, FULLY, 255 * BINARY),
    "opaque": channels(255 * BINARY, 255 * BINARY, 255 * BINARY, FULLY),
}


def corpus(root, fixations, maps=None, frames=6):
    """Two clips whose frames all have this fixation map, and this density map."""
    for number in (1, 2):
        make_clip(root, f"00{number}", frames, annotated=0, size=SIZE)
        for folder, content in (("fixation", fixations), ("maps", maps)):
            for t in range(frames if content else 0):
                path = root / "annotation" / f"000{number}" / folder / f"{t + 1:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return root


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_values_are_read_as_they_are_stored(tmp_path, kind):
    opened = open_corpus("dhf1k", corpus(tmp_path, READ_RIGHT[kind]))
    assert not opened.notes and opened.clips[0].troubles == {}
    points = fixation_points(opened.clips[0], 3)
    assert set(zip(points.rows.tolist(), points.columns.tolist(), strict=True)) == PLACES and len(points.rows) == 3


NOISE = np.random.default_rng(0).random(SIZE)
REFUSED = {
    "empty": (encoded(0 * BINARY), "has 6 frames without a single fixation; restore it"),
    "black palette": (png(BINARY, 8, 3, (b"PLTE", bytes(6))), "without a single fixation"),
    "inverted": (encoded(255 * (1 - BINARY)), "marks 3,837 of 3,840 pixels as fixated; if it is inverted, invert it"),
    "inverted, 1 bit": (png(np.packbits(1 - BINARY, axis=1), 1, 0), "marks 3,837 of 3,840 pixels"),
    "thousands": (encoded((NOISE > 0.5).astype(np.uint8)), "of 3,840 pixels as fixated"),
    "jpeg": (encoded(255 * BINARY, ".jpg"), "is a JPEG, whose compression marks pixels around every fixation"),
    "former jpeg": (encoded(cv2.imdecode(np.frombuffer(encoded(255 * BINARY, ".jpg"), np.uint8), 0)), "is in shades of grey"),
    "small density": (encoded((255 * blur(BINARY, 1) / blur(BINARY, 1).max()).astype(np.uint8)), "is in shades of grey"),
    "truncated": (encoded(BINARY)[:-9], "is truncated; restore it"),
    "of another size": (encoded(BINARY[:, :70]), "is 70x48 px, its video 80x48; they must agree"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_annotation_without_a_usable_fixation_is_refused_by_clip(tmp_path, kind):
    content, message = REFUSED[kind]
    corpus(tmp_path, content)
    with pytest.raises(UsageError, match=f"{message}.*--set corpus.skip=001,002"):
        open_corpus("dhf1k", tmp_path)
    _, facts = describe_corpus(tmp_path, "dhf1k")
    assert list(facts["broken"]) == ["001", "002"] and message in facts["broken"]["001"]


def test_counts_and_the_numbers_of_observers_are_no_shades_of_grey(tmp_path):
    for values in ((1, 2, 17), (20, 60, 100), (255, 128, 128)):
        image = np.zeros(SIZE, np.uint8)
        for place, value in zip(sorted(PLACES), values, strict=True):
            image[place] = value
        clip = open_corpus("dhf1k", corpus(tmp_path, encoded(image))).clips[0]
        assert len(fixation_points(clip, 0).rows) == 3


@pytest.mark.parametrize("matrix", [BINARY.T, np.zeros((0, 0), np.uint8), np.array([[41.0, 25.0], [13.0, 11.0]]), 0 * BINARY])
def test_matlab_files_without_a_map_are_refused(tmp_path, matrix):
    message = {(80, 48): "is transposed: it has 80 rows, the video 48", (0, 0): "I is 0x0; it needs 48x80", (2, 2): "is 2x2 px"}
    with pytest.raises(UsageError, match=message.get(matrix.shape, "without a single fixation")):
        open_corpus("dhf1k", in_matlab(tmp_path, matrix))


def in_matlab(root, matrix):
    """The corpus with this matrix for every fixation map."""
    corpus(root, encoded(BINARY))
    for path in root.glob("annotation/*/fixation/*.png"):
        path.unlink()
        writers.mat(path.parent / "maps" / f"{path.stem}.mat", np.ascontiguousarray(matrix))
    return root


def test_a_density_map_of_matlab_in_shares_of_one_is_no_fixation_map(tmp_path):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    density = np.exp(-((rows - 24.3) ** 2 + (columns - 40.7) ** 2) / 8)
    density[density < 0.02] = 0
    with pytest.raises(UsageError, match="is in shades of grey"):
        open_corpus("dhf1k", in_matlab(tmp_path / "a", density))
    counts = BINARY * np.linspace(0.1, 1, BINARY.size).reshape(SIZE)  # or shares of the largest
    assert len(fixation_points(open_corpus("dhf1k", in_matlab(tmp_path / "b", counts)).clips[0], 0).rows) == 3


def test_json_without_a_single_fixation_is_refused(tmp_path):
    writers.avimos(tmp_path)
    next(tmp_path.glob("FixationsTrain/Train/0001/*.json")).write_text("[[], [], [], [], [], []]", encoding="utf-8")
    with pytest.raises(UsageError, match=r"fixations\.json has 6 frames without a single fixation; restore it.*skip=0001"):
        open_corpus("avimos", tmp_path)


def change(root, index, content, folder="fixation", number=1):
    (root / "annotation" / f"{number:04d}" / folder / f"{index + 1:04d}.png").write_bytes(content)


def test_single_maps_that_cannot_be_used_are_left_out_and_said(tmp_path):
    corpus(tmp_path, encoded(BINARY))
    change(tmp_path, 0, encoded(255 * (1 - BINARY)))
    change(tmp_path, 4, REFUSED["small density"][0])
    opened = open_corpus("dhf1k", tmp_path)
    assert opened.clips[0].troubles == {FULL: 1, GREY: 1} and opened.clips[1].troubles == {}
    assert opened.notes == (f"{FULL}: 1, in 1 clip (001: 1)", f"{GREY}: 1, in 1 clip (001: 1)")
    assert fixation_points(opened.clips[0], 0) is None and len(fixation_points(opened.clips[0], 1).rows) == 3


def test_inspect_reads_every_map_and_the_run_a_sample(tmp_path):
    frames = 2 * SAMPLED + 1  # of which the run reads every other one
    corpus(tmp_path, encoded(BINARY), frames=frames)
    change(tmp_path, 1, encoded(255 * (1 - BINARY)))
    assert open_corpus("dhf1k", tmp_path).clips[0].troubles == {}
    assert describe_corpus(tmp_path, "dhf1k")[1]["per_clip"][0]["troubles"] == {FULL: 1}
    change(tmp_path, 0, encoded(255 * (1 - BINARY)))  # in the sample: now all are counted
    assert open_corpus("dhf1k", tmp_path).clips[0].troubles == {FULL: 2}


def test_inspect_says_every_map_without_a_fixation(tmp_path):
    corpus(tmp_path, encoded(BINARY))
    change(tmp_path, 2, encoded(0 * BINARY))
    assert open_corpus("dhf1k", tmp_path).clips[0].troubles == {}
    assert [clip["troubles"] for clip in describe_corpus(tmp_path, "dhf1k")[1]["per_clip"]] == [{EMPTY: 1}, {}]


def test_mostly_empty_maps_and_many_points_are_said(tmp_path):
    corpus(tmp_path, encoded(0 * BINARY))
    change(tmp_path, 2, encoded(BINARY))
    change(tmp_path, 2, encoded(BINARY), number=2)
    assert {clip.id: clip.troubles for clip in open_corpus("dhf1k", tmp_path).clips} == {"001": {EMPTY: 5}, "002": {EMPTY: 5}}
    many = np.zeros((180, 320), np.uint8)
    many[::7, ::7] = 255
    make_clip(tmp_path / "many", frames=2, annotated=2, size=many.shape)
    change(tmp_path / "many", 0, encoded(many))
    assert open_corpus("dhf1k", tmp_path / "many").clips[0].troubles == {MANY: 1}


PEAKED = blur(BINARY, SIGMA * SIZE[1])
DENSITY = (255 * PEAKED / PEAKED.max()).astype(np.uint8)


@pytest.mark.parametrize(
    "density",
    [encoded(0 * BINARY), encoded(FULLY), encoded(0 * BINARY + 128), encoded(255 - DENSITY),
     encoded(BINARY), encoded(DENSITY // 255),
     encoded(np.minimum(20.0 * DENSITY, 255).astype(np.uint8)), encoded(np.where(NOISE > 0.3, 200 + 50 * NOISE, DENSITY).astype(np.uint8))],
    ids=["blank", "white", "constant", "inverted", "fixations", "fractions cut to 0 and 1", "saturated", "bright"],
)  # fmt: skip
def test_density_maps_that_cannot_be_used_are_rebuilt_counted_and_said(tmp_path, density, narrator):
    model = {"image": image_model(tmp_path / "m.onnx")}
    without = open_corpus("dhf1k", corpus(tmp_path / "without", encoded(BINARY)))
    rebuilt = open_corpus("dhf1k", corpus(tmp_path / "rebuilt", encoded(BINARY), density))
    right, result = (evaluate(model, {"blur": lambda *_: PEAKED}, c.clips, 2, 1, narrator) for c in (without, rebuilt))
    assert result["predictors"] == right["predictors"] and result["predictors"]["blur"]["sim"] == pytest.approx(1)
    assert result["density_maps_rebuilt"] == 6 and right["density_maps_rebuilt"] == 0
    assert rebuilt.clips[0].troubles == {REBUILT: 6} and rebuilt.notes == (f"{REBUILT}: 12, in 2 clips (001: 6, 002: 6)",)
    assert describe_corpus(tmp_path / "rebuilt", "dhf1k")[1]["per_clip"][0]["troubles"] == {REBUILT: 6}


def test_density_of_16_bits_keeps_its_small_values(tmp_path):
    faint = (200 * PEAKED / PEAKED.max()).astype(np.uint16)  # zero in 8 bits
    clip = open_corpus("dhf1k", corpus(tmp_path, encoded(BINARY), encoded(faint))).clips[0]
    assert clip.troubles == {} and np.allclose(density_map(clip, 2, BINARY) * 65535, faint)
    assert stored_density(clip, 2).dtype == np.float32


@pytest.mark.parametrize("colour", [0, 255])
def test_density_may_be_drawn_in_alpha(tmp_path, colour):
    plain = np.full_like(DENSITY, colour)
    clip = open_corpus("dhf1k", corpus(tmp_path, encoded(BINARY), channels(plain, plain, plain, DENSITY))).clips[0]
    assert clip.troubles == {} and np.allclose(density_map(clip, 0, BINARY) * 255, DENSITY)


def test_frames_that_cannot_be_scored_are_counted(tmp_path, narrator):
    corpus(tmp_path, encoded(BINARY))
    clips = open_corpus("dhf1k", tmp_path).clips
    change(tmp_path, 2, encoded(255 * (1 - BINARY)))  # after the check, as in a frame that it did not read
    result = evaluate({"image": image_model(tmp_path / "m.onnx")}, {}, clips, 2, 1, narrator)
    assert (result["frames_scored"], result["fixation_maps_left_out"], result["frames_without_fixations"]) == (5, 1, 0)
    assert result["clips"]["001"]["frames"] == [0, 4] and result["clips"]["001"]["fixation_maps_left_out"] == 1


def test_a_video_of_density_maps_is_tested_too(tmp_path):
    writers.avimos(tmp_path)
    blank = tmp_path / "SaliencyTrain" / "Train" / "0002.mp4"
    writers.video(blank, 6, 30.0, make=lambda t, size: 0 * writers.density(t, size))
    clips = open_corpus("avimos", tmp_path).clips
    assert {clip.id: clip.troubles for clip in clips} == {"0001": {}, "0002": {REBUILT: 6}, "0003": {}}
    fixated = np.zeros(writers.SIZE, np.float32)
    assert np.array_equal(density_map(clips[1], 2, fixated), fixated) and stored_density(clips[0], 2).max() > 0.9


def test_a_clip_of_whose_gaze_nothing_is_usable_is_named_and_not_scored(tmp_path):
    root = gaze_corpus(tmp_path, images=3)
    table = (root / "fixations.csv").read_text(encoding="utf-8").splitlines()
    lost = ["i1,900.0,900.0,0" if line.startswith("i1,") else line for line in table]
    (root / "fixations.csv").write_text("\n".join(lost) + "\n", encoding="utf-8")
    opened = open_corpus("gaze-table", root)
    assert opened["i1"].annotated_frames == 0 and opened["i1"].troubles[UNUSABLE] == 1
    assert opened["i0"].troubles == {} and f"{UNUSABLE}: 1, in 1 clip (i1: 1)" in opened.notes


def test_held_out_clips_without_a_fixation_in_a_scored_frame_are_refused_early(tmp_path):
    corpus(tmp_path, encoded(0 * BINARY))
    change(tmp_path, 2, encoded(BINARY))
    change(tmp_path, 3, encoded(BINARY), number=2)
    clips = open_corpus("dhf1k", tmp_path).clips
    check_scorable(clips, 2)  # frame 2 of the first
    with pytest.raises(UsageError, match=r"one in 5 of the held-out clips 001 and 1 more, has fixations; lower eval\.stride"):
        check_scorable(clips, 5)

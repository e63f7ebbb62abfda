import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("av")

from distill.corpora import density_map, fixation_map, open_corpus
from distill.encoding import bd_tables, compare
from distill.encoding.compare import CENTRE, NO_MAP, Work, gains, measure_point, plan_offsets, summary
from distill.encoding.encoders import Coding
from distill.encoding.excerpts import (
    Span,
    check_proxy,
    find_sources,
    make_excerpt,
    read_clip,
    read_span,
    unique_names,
    with_proxy_weights,
)  # fmt: skip
from distill.encoding.maps import open_maps
from distill.encoding.qp_offsets import Shaping
from distill.evaluation import tables
from distill.export.graph import image_graph, step_graph
from distill.export.streaming import Stream
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from tests.helpers import invoke, lively


@pytest.fixture(scope="module")
def result(tiny_root):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = [(clip.id, partial(read_clip, clip, Span(6))) for clip in corpus.clips[:2]]
    work = Work({}, Coding(preset="ultrafast", threads=1), Shaping(), [20, 28, 36])
    return compare.compare(sources, Span(6), work, Narrator(quiet=True))


def work_at(*crfs, proxy=None):
    return Work({}, Coding(preset="ultrafast", threads=1), Shaping(), crfs, proxy)


def test_a_comparison_of_real_fixations(result, tmp_path):
    assert len(result["clips"]) == 2
    for facts in result["clips"].values():
        assert set(facts["points"]) == {NO_MAP, CENTRE} and facts["frames"] == 6
        assert facts["weights"]["by"] == "gaze" and facts["weights"]["frames"] > 0
        for points in facts["points"].values():
            assert [p["crf"] for p in points] == [20, 28, 36]
            assert points[0]["kbps"] > points[1]["kbps"] > points[2]["kbps"] > 0
            assert points[0]["plain"] > points[1]["plain"] > points[2]["plain"]
        assert facts["bd_rate"][CENTRE].keys() == {"plain", "gaze"}
    assert result["mean"][CENTRE]["gaze"]["clips"] == 2 and result["unfinished"] == []
    assert [name for name, _ in bd_tables.clip_cells(result)] == [f"{clip}, {CENTRE}" for clip in result["clips"]]
    bd_tables.plot(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_gaze_map_gains_where_people_look_and_loses_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    texture = rng.integers(30, 220, (12, 20, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(-25, 25, (96, 160, 3))
    pixels = [np.roll(np.clip(texture, 0, 255).astype(np.uint8), n, 1) for n in range(6)]
    gaze = np.zeros((96, 160), np.float32)
    gaze[32:64, 16:64] = 1
    excerpt = make_excerpt(pixels, 25.0, lambda index: gaze / gaze.sum(), tmp_path)
    maps = {"right": lambda frame, t: gaze, "wrong": lambda frame, t: gaze[:, ::-1]}
    points = {
        title: [
            measure_point(
                excerpt, plan_offsets(excerpt, own, Shaping(prior=0)), Coding(crf=crf, preset="ultrafast", threads=1), 16
            )
            for crf in (20, 26, 32)
        ]
        for title, own in {NO_MAP: None, **maps}.items()
    }
    gained = gains(points)["bd_rate"]
    assert gained["right"]["gaze"] < -15 and gained["right"]["plain"] > 0
    assert gained["wrong"]["gaze"] > 0


def clip_facts(centred, model, by="gaze", size=1.0):
    titles = {CENTRE: centred, "m.onnx": model}
    return {
        "weights": {"by": by, "judge": "j.onnx" if by == "judge" else None, "frames": 6}, "left_out": {},
        "bd_rate": {t: {"plain": -v, **({by: v} if by else {})} for t, v in titles.items()}, "size": dict.fromkeys(titles, size),
    }  # fmt: skip


def test_means_have_intervals_and_maps_are_compared_clip_by_clip():
    clips = {str(n): clip_facts(-10.0 * n, -10.0 * n - 2 - 0.1 * n) for n in range(8)}
    found = summary(clips)
    mean, low, high = found["mean"][CENTRE]["gaze"]["mean"], *found["mean"][CENTRE]["gaze"]["interval"]
    assert mean == pytest.approx(-35) and -55 < low < -40 and -30 < high < -15
    (difference,) = found["differences"]
    assert (difference["map"], difference["less"]) == ("m.onnx", CENTRE)
    low, high = difference["gaze"]["interval"]  # the same clips: far sharper than the two intervals side by side
    assert -2.6 < low < difference["gaze"]["mean"] < high < -2.1 and difference["gaze"]["better"] == 8
    assert difference["plain"]["mean"] == pytest.approx(2.35) and difference["size"]["mean"] == 0
    assert summary({"1": clips["1"]})["mean"][CENTRE]["gaze"]["interval"] is None


def test_gaze_and_proxy_weights_are_never_averaged(tmp_path):
    clips = {"a": clip_facts(-10.0, -12.0), "b": clip_facts(-20.0, -30.0, "judge"), "c": clip_facts(1.0, 2.0, None)}
    result = {"clips": clips, "judge": "j.onnx", **summary(clips)}
    own = result["mean"]["m.onnx"]
    assert [own[k]["mean"] for k in ("gaze", "judge", "plain")] == [-12, -30, pytest.approx(40 / 3)]
    assert [own[k]["clips"] for k in ("gaze", "judge", "plain")] == [1, 1, 3]
    assert [(c["by gaze"][0], c["by proxy"][0]) for _, c in bd_tables.clip_cells(result)[1::2]] == [
        ("-12.0", "–"), ("–", "-30.0"), ("–", "–")
    ]  # fmt: skip
    reported = "\n".join(bd_tables.legend(result))
    assert (
        "where observers looked; 1 of 3 clips: a" in reported
        and "the map of j.onnx, a model, not observers; 1 of 3 clips: b" in reported
    )
    bd_tables.write_csv(result, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "clip,weights,map,less,measure,value,low,high,clips,better"
    assert "b,j.onnx,m.onnx,,judge,-30.0,,,," in lines and "a,gaze,m.onnx,,gaze,-12.0,,,," in lines
    assert any(line.startswith(f",,m.onnx,{CENTRE},plain,") for line in lines)


def test_tables_fit_80_columns():
    clips = {f"{n:03d}": clip_facts(-100.0 - n, -90.0 - n * n) for n in range(9)}
    result = {"clips": clips, "judge": None, **summary(clips)}
    for cells in (bd_tables.mean_cells(result), bd_tables.difference_cells(result), bd_tables.clip_cells(result)):
        rows, left = tables.fit_to_width("map", cells, 80)
        assert left == [] and tables.table_width(rows, tables.NAME_WIDTH) <= 80
        assert cells == bd_tables.clip_cells(result) or "±" in rows[0]["by gaze"] or "[" in rows[0]["by gaze"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Two students and, of the first, both files of an export."""
    folder = tmp_path_factory.mktemp("students")
    (folder / "one.onnx").write_bytes(image_graph(lively(), {}).SerializeToString())
    (folder / "one_step.onnx").write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    return folder


def test_no_model_weights_its_own_measurement(students):
    (students / "copy.onnx").write_bytes((students / "one.onnx").read_bytes())
    models = {"one.onnx": students / "one.onnx"}
    with pytest.raises(UsageError, match=r"the same file as one\.onnx"):
        check_proxy(students / "copy.onnx", models)
    with pytest.raises(UsageError, match=r"the same weights as in one\.onnx"):
        check_proxy(students / "one_step.onnx", models)
    (students / "two.onnx").write_bytes(image_graph(lively(seed=1), {}).SerializeToString())
    check_proxy(students / "two.onnx", models)
    with pytest.raises(UsageError, match="Gaussian is one of the maps compared"):
        check_proxy(Path("centre"), models)
    with pytest.raises(UsageError, match="no such model"):
        check_proxy(students / "none.onnx", models)


def test_clips_without_gaze_get_proxy_weights_and_those_with_gaze_do_not(students, tiny_root):
    class RecordingNarrator(Narrator):
        def say(self, text):
            reported.append(text)

    reported: list[str] = []
    (gazed,) = open_corpus("dhf1k", [str(tiny_root)]).clips[:1]
    pixels = list(gazed.read())[:3]
    sources = [
        ("gazed", partial(read_clip, gazed, Span(3))),
        ("bare", lambda folder: make_excerpt([p[:61, :95] for p in pixels], 25.0, lambda index: None, folder)),
    ]
    span, narrator = Span(3, 0), RecordingNarrator(quiet=True)
    result = compare.compare(sources, span, work_at(20, 32, proxy=students / "one_step.onnx"), narrator)
    weights = {name: facts["weights"] for name, facts in result["clips"].items()}
    assert weights["bare"] == {"by": "judge", "judge": "one_step.onnx", "frames": 3}
    assert weights["gazed"]["by"] == "gaze" and weights["gazed"]["judge"] is None
    assert result["mean"][CENTRE]["judge"]["clips"] == result["mean"][CENTRE]["gaze"]["clips"] == 1 and reported == []
    result = compare.compare(sources[1:], span, work_at(20, 32), narrator)
    assert result["clips"]["bare"]["weights"]["by"] is None and set(result["mean"][CENTRE]) == {"plain", "size"}
    assert len(reported) == 1 and "bare; only whole-frame PSNR" in reported[0]


def test_a_proxys_map_weights_every_pixel(students, tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (61, 95, 3), dtype=np.uint8) for _ in range(2)]
    excerpt = make_excerpt(pixels, 25.0, lambda index: None, tmp_path)
    excerpt = with_proxy_weights(excerpt, open_maps(students / "one_step.onnx", None), "one_step.onnx", tmp_path)
    weight = excerpt.weight(1)
    assert weight.shape == excerpt.picture.size == (60, 94) and weight.sum() == pytest.approx(1, abs=1e-5) and weight.min() >= 0
    assert np.corrcoef(weight.ravel(), cv2.resize(excerpt.weights[1], (94, 60)).ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(ValueError("m.onnx does not run at 64x48"), "does not run"), (np.nan, "nan to nan"), (1.5, "1.5 to 1.5")],
)
def test_a_proxy_without_a_map_is_a_one_line_error(students, monkeypatch, answer, message, tmp_path):
    def look(self, frame, seconds):
        if isinstance(answer, ValueError):
            raise answer
        return np.full(frame.shape[:2], answer, np.float32)

    monkeypatch.setattr(Stream, "map", look)
    excerpt = make_excerpt([np.zeros((48, 64, 3), np.uint8)], 25.0, lambda index: None, tmp_path)
    with pytest.raises(UsageError, match=message):
        with_proxy_weights(excerpt, open_maps(students / "one.onnx", None), "one.onnx", tmp_path)


def test_a_clip_whose_curves_do_not_overlap_does_not_affect_others(tiny_root, tmp_path, monkeypatch):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = [(clip.id, partial(read_clip, clip, Span(2))) for clip in corpus.clips[:2]]
    points, first_luma = measure_point, sources[0][1](tmp_path).luma(0)

    def apart(excerpt, offsets, coding, block):
        point = points(excerpt, offsets, coding, block)
        mapped = offsets[0] is not None and (np.array_equal(excerpt.luma(0), first_luma) or broken == "both")
        return {**point, "plain": point["plain"] + 100 * mapped, "gaze": point["gaze"] + 100 * mapped}

    monkeypatch.setattr(compare, "measure_point", apart)
    broken = "first"
    result = compare.compare(sources, Span(2), work_at(20, 32), Narrator(quiet=True))
    first, second = result["clips"].values()
    assert first["bd_rate"][CENTRE] == {} and "no quality in common" in first["left_out"][CENTRE]["gaze"]
    assert second["left_out"] == {} and result["mean"][CENTRE]["gaze"]["clips"] == 1
    broken = "both"
    with pytest.raises(UsageError, match=r"no quality in common.*other --crf may help"):
        compare.compare(sources, Span(2), work_at(20, 32), Narrator(quiet=True))


def test_an_interrupt_keeps_the_clips_that_are_done(tiny_root):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = [(clip.id, partial(read_clip, clip, Span(2))) for clip in corpus.clips[:2]]
    arguments = sources, Span(2), work_at(20, 32)
    for encodes, done in ((5, 1), (8, 2)):
        asked = iter([False] * (encodes - 1))
        result = compare.compare(*arguments, Narrator(quiet=True, stop=lambda asked=asked: next(asked, True)))
        assert len(result["clips"]) == done and result["unfinished"] == [name for name, _ in sources[done:]]
    with pytest.raises(Interrupted, match="nothing is saved"):
        compare.compare(*arguments, Narrator(quiet=True, stop=lambda: True))


def test_invalid_comparisons_are_one_line_errors(tmp_path, tiny_root, narrator):
    for arguments, message in (
        (([], None, None, None), "which clips"),
        (([tmp_path / "none.mp4"], None, None, None), "no such video"),
        (([], "dhf1k", None, "1"), "--corpus and --root"),
        (([], "dhf1k", tiny_root, "nine"), "there is no clip 'nine'"),
    ):
        with pytest.raises(UsageError, match=message):
            find_sources(*arguments, Span(5), narrator)
    for crfs, message in (([20], "two or more"), ([20, 20], "two or more"), ([20, 60], "from 0 .* to 51")):
        with pytest.raises(UsageError, match=message):
            compare.compare([], Span(), Work({}, Coding(), Shaping(), crfs), narrator)
    assert unique_names([tmp_path / "a" / "m.onnx", tmp_path / "n.onnx"]).keys() == {"m.onnx", "n.onnx"}
    assert len(unique_names([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"])) == 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").touch()
    videos = [tmp_path / "a" / "v.mp4", tmp_path / "b" / "v.mp4"]
    same = [name for name, _ in find_sources(videos, None, None, None, Span(5), narrator)]
    assert same == [str(tmp_path / "a" / "v.mp4"), str(tmp_path / "b" / "v.mp4")]  # neither sources the other's place


def test_spans_begin_after_the_first_second_or_in_the_middle():
    assert Span(10).of(100, 30.0, ()) == range(30, 40) and Span(0).of(100, 29.97, ()) == range(30, 100)
    assert Span(10, 1.05).of(100, 30.0, ()) == range(32, 42)  # not before
    assert Span(10, None).of(100, 30.0, ()) == range(45, 55) and Span(0, None).of(9, 30.0, ()) == range(9)
    assert Span(10).of(36, 30.0, ()) == range(30, 36)
    assert Span(10).of(31, 30.0, ()) == range(15, 25)  # one frame is left: it ends too early
    assert Span(2).of(4, 30.0, (0.0, 0.5, 1.0, 1.5)) == range(2, 4)
    assert read_span("all", "middle") == Span(0, None) and read_span("0", "2.5") == Span(0, 2.5)
    for frames, start, option in (
        ("1", "1", "--frames 1"),
        ("few", "1", "--frames few"),
        ("5", "-1", "--start"),
        ("5", "x", "--start"),
    ):
        with pytest.raises(UsageError, match=option):
            read_span(frames, start)


def test_an_excerpt_has_the_frames_and_the_gaze_of_its_span(tiny_root, tmp_path):
    (clip,) = open_corpus("dhf1k", [str(tiny_root)]).clips[:1]
    at = range(clip.frames)[int(clip.fps / 2) : int(clip.fps / 2) + 3]
    excerpt = read_clip(clip, Span(3, 0.5), tmp_path)
    assert len(excerpt) == 3 and excerpt.start == pytest.approx(clip.time_of(at.start))
    whole = list(clip.read())
    for index, number in enumerate(at):
        red, green, blue = whole[number].astype(float).mean((0, 1))
        assert excerpt.luma(index).mean() == pytest.approx(16 + (65.5 * red + 128.6 * green + 25 * blue) / 255, abs=1)
        if (fixations := fixation_map(clip, number)).any():
            assert np.allclose(excerpt.weights[index], density_map(clip, number, fixations), atol=1e-6)
    frame = next(excerpt.frames())
    assert (frame.format.name, frame.pts) == ("yuv420p", 0) and np.array_equal(frame.to_ndarray(), excerpt.pixels[0])


def test_weights_of_large_frames_are_those_of_what_a_model_sees(tmp_path):
    gaze = np.zeros((180, 1280), np.float32)
    gaze[40:80, 100:300] = 1
    excerpt = make_excerpt([np.zeros((180, 1280, 3), np.uint8)], 25.0, lambda index: gaze, tmp_path)
    assert excerpt.weights[0].shape == (90, 640)
    assert np.abs(excerpt.weight(0) - gaze / gaze.sum()).max() < 0.6 / gaze.sum()  # at edges only


def test_only_named_clips_are_opened(tiny_root, tmp_path, narrator):
    root = tmp_path / "corpus"
    shutil.copytree(tiny_root, root)
    names = [clip.id for clip in open_corpus("dhf1k", [str(root)]).clips]
    for video in (root / "video").iterdir():
        if video.stem not in names[:2]:
            video.write_bytes(b"not a video")
    assert [name for name, _ in find_sources([], "dhf1k", root, f"{names[1]},{names[0]}", Span(5), narrator)] == names[1::-1]
    with pytest.raises(UsageError, match="does not open"):
        find_sources([], "dhf1k", root, None, Span(5), narrator)


def test_clips_in_processes_give_the_same_result(result, tiny_root):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = [(clip.id, partial(read_clip, clip, Span(6))) for clip in corpus.clips[:2]]
    assert compare.compare(sources, Span(6), work_at(20, 28, 36), Narrator(quiet=True), jobs=2) == result
    with pytest.raises(Interrupted):
        compare.compare(sources, Span(6), work_at(20, 28, 36), Narrator(quiet=True, stop=lambda: True), jobs=2)


def test_unwritable_outputs_are_reported_before_encoding(tmp_path):

    (tmp_path / "file").write_text("")
    for option, wrong, reason in (("--out", tmp_path, "a folder"), ("--csv", tmp_path / "file" / "x.csv", "below a file")):
        result = invoke("bd", "clip.mp4", option, wrong)
        assert result.returncode == 2 and result.stderr.strip().endswith(f"cannot be written: it is {reason}")
    result = invoke("bd", "clip.mp4", "--out", tmp_path / "new" / "x.png")  # a folder is made when it is needed
    assert result.returncode == 2 and result.stderr.strip().endswith("clip.mp4: no such video")

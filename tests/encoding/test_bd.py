import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from distill.encoding import bd
from distill.encoding.encode import Coding, Shaping
from distill.run.errors import UsageError

CURVE = [(100.0, 30.0), (200.0, 33.0), (410.0, 35.5), (800.0, 37.0)]
quick = settings(max_examples=50, deadline=None)


@quick
@given(st.floats(0.2, 5))
def test_the_same_curve_at_another_rate_is_that_ratio(ratio):
    assert bd.bd_rate(CURVE, [(r * ratio, q) for r, q in CURVE]) == pytest.approx((ratio - 1) * 100, abs=1e-6)


def test_straight_lines_by_hand():
    # log rate = q and log rate = 2 q - 1 over q in 1..2: the mean difference is 0.5
    straight = [(np.exp(q), q) for q in (1.0, 1.3, 2.0)]
    steep = [(np.exp(2 * q - 1), q) for q in (0.5, 1.5, 2.5)]
    assert bd.bd_rate(straight, steep) == pytest.approx((np.exp(0.5) - 1) * 100)
    assert bd.bd_rate(straight[:2], straight[:2][::-1]) == pytest.approx(0)


def test_the_spline_is_scipys_pchip():
    other = [(90.0, 29.5), (170.0, 32.1), (400.0, 35.0), (700.0, 37.2)]
    # scipy 1.17.1: PchipInterpolator(quality, log(rate)).integrate(31, 36.5), and exp of the mean difference over 30..37
    assert bd._integral(*bd._curve(CURVE), 31, 36.5) == pytest.approx(30.41273844576594, rel=1e-12)
    assert bd._integral(*bd._curve(other), 31, 36.5) == pytest.approx(30.90659594409757, rel=1e-12)
    assert bd.bd_rate(CURVE, other) == pytest.approx(6.741820488345351, rel=1e-9)


@pytest.mark.parametrize(
    ("tested", "message"),
    [
        ([(100.0, 50.0), (200.0, 52.0)], "no quality in common"),
        ([(100.0, 30.0)], "two points or more"),
        ([(100.0, 30.0), (200.0, 29.0)], "rise with them"),
        ([(0.0, 30.0), (200.0, 39.0)], "above zero"),
    ],
)
def test_curves_that_say_nothing_are_refused(tested, message):
    with pytest.raises(ValueError, match=message):
        bd.bd_rate(CURVE, tested)


@pytest.fixture(scope="module")
def result(tiny_root):
    from distill.run.progress import Narrator

    corpus = bd.open_corpus("dhf1k", [str(tiny_root)])
    takes = [(clip.id, lambda clip=clip: bd.take_clip(clip, 6)) for clip in corpus.clips[:2]]
    coding = Coding(preset="ultrafast", threads=1)
    return bd.compare(takes, {}, coding, Shaping(6), [20, 28, 36], Narrator(quiet=True))


def test_a_comparison_of_real_fixations(result, tmp_path):
    assert len(result["clips"]) == 2
    for facts in result["clips"].values():
        assert set(facts["points"]) == {bd.NONE, bd.CENTRE} and facts["frames"] == 6
        assert facts["weights"]["by"] == "gaze" and facts["weights"]["frames"] > 0
        for points in facts["points"].values():
            assert [p["crf"] for p in points] == [20, 28, 36]
            assert points[0]["kbps"] > points[1]["kbps"] > points[2]["kbps"] > 0
            assert points[0]["plain"] > points[1]["plain"] > points[2]["plain"]
        assert facts["bd_rate"][bd.CENTRE].keys() == {"plain", "gaze"}
    assert result["mean"][bd.CENTRE]["gaze"]["clips"] == 2 and result["unfinished"] == []
    assert [name for name, _ in bd.clip_cells(result)] == [f"{clip}, {bd.CENTRE}" for clip in result["clips"]]
    bd.plot(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_map_of_where_people_look_gains_there_and_loses_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    texture = rng.integers(30, 220, (12, 20, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(-25, 25, (96, 160, 3))
    pixels = [np.roll(np.clip(texture, 0, 255).astype(np.uint8), n, 1) for n in range(6)]
    gaze = np.zeros((96, 160), np.float32)
    gaze[32:64, 16:64] = 1
    take = bd._take(iter(pixels), 25.0, dict.fromkeys(range(6), gaze / gaze.sum()))
    maps = {"right": lambda frame, t: gaze, "wrong": lambda frame, t: gaze[:, ::-1]}
    points = {
        title: [
            bd._point(
                take, bd._offsets(take, own, Shaping(4, prior=0)), Coding(crf=crf, preset="ultrafast", threads=1), 16
            )
            for crf in (20, 26, 32)
        ]
        for title, own in {bd.NONE: None, **maps}.items()
    }
    worth = bd._worth(points)["bd_rate"]
    assert worth["right"]["gaze"] < -15 and worth["right"]["plain"] > 0
    assert worth["wrong"]["gaze"] > 0


def clip_facts(centred, model, by="gaze", size=1.0):
    titles = {bd.CENTRE: centred, "m.onnx": model}
    return {
        "weights": {"by": by, "judge": "j.onnx" if by == "judge" else None, "frames": 6}, "left_out": {},
        "bd_rate": {t: {"plain": -v, **({by: v} if by else {})} for t, v in titles.items()}, "size": dict.fromkeys(titles, size),
    }  # fmt: skip


def test_means_have_intervals_and_maps_are_compared_clip_by_clip():
    clips = {str(n): clip_facts(-10.0 * n, -10.0 * n - 2 - 0.1 * n) for n in range(8)}
    found = bd.summary(clips)
    mean, low, high = found["mean"][bd.CENTRE]["gaze"]["mean"], *found["mean"][bd.CENTRE]["gaze"]["interval"]
    assert mean == pytest.approx(-35) and -55 < low < -40 and -30 < high < -15
    (difference,) = found["differences"]
    assert (difference["map"], difference["less"]) == ("m.onnx", bd.CENTRE)
    low, high = difference["gaze"]["interval"]  # the same clips: far sharper than the two intervals side by side
    assert -2.6 < low < difference["gaze"]["mean"] < high < -2.1 and difference["gaze"]["better"] == 8
    assert difference["plain"]["mean"] == pytest.approx(2.35) and difference["size"]["mean"] == 0
    assert bd.summary({"1": clips["1"]})["mean"][bd.CENTRE]["gaze"]["interval"] is None


def test_gaze_and_a_judge_are_never_averaged(tmp_path):
    clips = {"a": clip_facts(-10.0, -12.0), "b": clip_facts(-20.0, -30.0, "judge"), "c": clip_facts(1.0, 2.0, None)}
    result = {"clips": clips, "judge": "j.onnx", **bd.summary(clips)}
    own = result["mean"]["m.onnx"]
    assert [own[k]["mean"] for k in ("gaze", "judge", "plain")] == [-12, -30, pytest.approx(40 / 3)]
    assert [own[k]["clips"] for k in ("gaze", "judge", "plain")] == [1, 1, 3]
    assert [(c["by gaze"][0], c["by judge"][0]) for _, c in bd.clip_cells(result)[1::2]] == [
        ("-12.0", "–"), ("–", "-30.0"), ("–", "–")
    ]  # fmt: skip
    said = "\n".join(bd.legend(result))
    assert (
        "where observers looked; 1 of 3 clips: a" in said
        and "where j.onnx would look, a model and no observer; 1 of 3 clips: b" in said
    )
    bd.write_csv(result, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "clip,weights,map,less,measure,value,low,high,clips,better"
    assert "b,j.onnx,m.onnx,,judge,-30.0,,,," in lines and "a,gaze,m.onnx,,gaze,-12.0,,,," in lines
    assert any(line.startswith(f",,m.onnx,{bd.CENTRE},plain,") for line in lines)


def test_tables_fit_80_columns():
    from distill.evaluation import tables

    clips = {f"{n:03d}": clip_facts(-100.0 - n, -90.0 - n * n) for n in range(9)}
    result = {"clips": clips, "judge": None, **bd.summary(clips)}
    for cells in (bd.mean_cells(result), bd.difference_cells(result), bd.clip_cells(result)):
        rows, left = tables.fit_to_width("map", cells, 80)
        assert left == [] and tables.table_width(rows, tables.NAME_WIDTH) <= 80
        assert cells == bd.clip_cells(result) or "±" in rows[0]["by gaze"] or "[" in rows[0]["by gaze"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Two students and, of the first, both files of an export."""
    from distill.export.graph import image_graph, step_graph
    from tests.helpers import lively

    folder = tmp_path_factory.mktemp("students")
    (folder / "one.onnx").write_bytes(image_graph(lively(), {}).SerializeToString())
    (folder / "one_step.onnx").write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())
    return folder


def test_nothing_judges_itself(students):
    from distill.export.graph import image_graph
    from tests.helpers import lively

    (students / "copy.onnx").write_bytes((students / "one.onnx").read_bytes())
    models = {"one.onnx": students / "one.onnx"}
    with pytest.raises(UsageError, match=r"the same file as one\.onnx"):
        bd.check_judge(students / "copy.onnx", models)
    with pytest.raises(UsageError, match=r"the same weights as in one\.onnx"):
        bd.check_judge(students / "one_step.onnx", models)
    (students / "two.onnx").write_bytes(image_graph(lively(seed=1), {}).SerializeToString())
    bd.check_judge(students / "two.onnx", models)
    with pytest.raises(UsageError, match="Gaussian is among the compared"):
        bd.check_judge(bd.Path("centre"), models)
    with pytest.raises(UsageError, match="no such model"):
        bd.check_judge(students / "none.onnx", models)


def test_clips_without_gaze_are_weighed_by_a_judge_and_those_with_gaze_are_not(students, tiny_root):
    from distill.run.progress import Narrator

    class Heard(Narrator):
        def say(self, text):
            said.append(text)

    said: list[str] = []
    (gazed,) = bd.open_corpus("dhf1k", [str(tiny_root)]).clips[:1]
    pixels = list(gazed.read())[:3]
    takes = [
        ("gazed", lambda: bd.take_clip(gazed, 3)),
        ("bare", lambda: bd._take(iter([p[:61, :95] for p in pixels]), 25.0, {})),
    ]
    arguments = {}, Coding(preset="ultrafast", threads=1), Shaping(6), [20, 32]
    result = bd.compare(takes, *arguments, Heard(quiet=True), students / "one_step.onnx")
    weights = {name: facts["weights"] for name, facts in result["clips"].items()}
    assert weights["bare"] == {"by": "judge", "judge": "one_step.onnx", "frames": 3}
    assert weights["gazed"]["by"] == "gaze" and weights["gazed"]["judge"] is None
    assert result["mean"][bd.CENTRE]["judge"]["clips"] == result["mean"][bd.CENTRE]["gaze"]["clips"] == 1 and said == []
    result = bd.compare(takes[1:], *arguments, Heard(quiet=True))
    assert result["clips"]["bare"]["weights"]["by"] is None and set(result["mean"][bd.CENTRE]) == {"plain", "size"}
    assert len(said) == 1 and "bare; only whole-frame PSNR" in said[0]


def test_a_judges_map_is_a_weight_of_every_pixel(students):
    from distill.encoding.encode import open_maps

    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (61, 95, 3), dtype=np.uint8) for _ in range(2)]
    take = bd.judged(bd._take(iter(pixels), 25.0, {}), open_maps(students / "one_step.onnx", None), "one_step.onnx")
    weight = bd._weight(take, 1)
    assert (
        weight.shape == take.picture.size == (60, 94)
        and weight.sum() == pytest.approx(1, abs=1e-5)
        and weight.min() >= 0
    )
    assert np.corrcoef(weight.ravel(), bd.cv2.resize(take.weights[1], (94, 60)).ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(ValueError("m.onnx does not run at 64x48"), "does not run"), (np.nan, "nan to nan"), (1.5, "1.5 to 1.5")],
)
def test_a_judge_without_a_map_is_one_line(students, monkeypatch, answer, message):
    from distill.encoding.encode import open_maps

    def look(self, frame, seconds):
        if isinstance(answer, ValueError):
            raise answer
        return np.full(frame.shape[:2], answer, np.float32)

    monkeypatch.setattr(bd.Stream, "map", look)
    take = bd._take(iter([np.zeros((48, 64, 3), np.uint8)]), 25.0, {})
    with pytest.raises(UsageError, match=message):
        bd.judged(take, open_maps(students / "one.onnx", None), "one.onnx")


def test_one_clip_whose_curves_do_not_meet_costs_no_other(tiny_root, monkeypatch):
    from distill.run.progress import Narrator

    corpus = bd.open_corpus("dhf1k", [str(tiny_root)])
    takes = [(clip.id, lambda clip=clip: bd.take_clip(clip, 2)) for clip in corpus.clips[:2]]
    arguments = {}, Coding(preset="ultrafast", threads=1), Shaping(6), [20, 32]
    points, first_luma = bd._point, takes[0][1]().luma

    def apart(take, offsets, coding, block):
        point = points(take, offsets, coding, block)
        mapped = offsets[0] is not None and (np.array_equal(take.luma, first_luma) or broken == "both")
        return {**point, "plain": point["plain"] + 100 * mapped, "gaze": point["gaze"] + 100 * mapped}

    monkeypatch.setattr(bd, "_point", apart)
    broken = "first"
    result = bd.compare(takes, *arguments, Narrator(quiet=True))
    first, second = result["clips"].values()
    assert first["bd_rate"][bd.CENTRE] == {} and "no quality in common" in first["left_out"][bd.CENTRE]["gaze"]
    assert second["left_out"] == {} and result["mean"][bd.CENTRE]["gaze"]["clips"] == 1
    broken = "both"
    with pytest.raises(UsageError, match=r"no quality in common.*other --crf may do"):
        bd.compare(takes, *arguments, Narrator(quiet=True))


def test_an_interrupt_keeps_the_clips_that_are_done(tiny_root):
    from distill.run.errors import Interrupted
    from distill.run.progress import Narrator

    corpus = bd.open_corpus("dhf1k", [str(tiny_root)])
    takes = [(clip.id, lambda clip=clip: bd.take_clip(clip, 2)) for clip in corpus.clips[:2]]
    arguments = {}, Coding(preset="ultrafast", threads=1), Shaping(6), [20, 32]
    for encodes, done in ((5, 1), (8, 2)):
        asked = iter([False] * (encodes - 1))
        result = bd.compare(takes, *arguments, Narrator(quiet=True, stop=lambda asked=asked: next(asked, True)))
        assert len(result["clips"]) == done and result["unfinished"] == [name for name, _ in takes[done:]]
    with pytest.raises(Interrupted, match="nothing is kept"):
        bd.compare(takes, *arguments, Narrator(quiet=True, stop=lambda: True))


def test_what_cannot_be_compared_is_one_line(tmp_path, tiny_root, narrator):
    for arguments, message in (
        (([], None, None, None), "which clips"),
        (([tmp_path / "none.mp4"], None, None, None), "no such video"),
        (([], "dhf1k", None, "1"), "--corpus and --root"),
        (([], "dhf1k", tiny_root, "nine"), "there is no clip 'nine'"),
    ):
        with pytest.raises(UsageError, match=message):
            bd.sources(*arguments, 5, narrator)
    for crfs, message in (([20], "two or more"), ([20, 20], "two or more"), ([20, 60], "0 .* to 51")):
        with pytest.raises(UsageError, match=message):
            bd.compare([], {}, Coding(), Shaping(), crfs, narrator)
    assert bd.named([tmp_path / "a" / "m.onnx", tmp_path / "n.onnx"]).keys() == {"m.onnx", "n.onnx"}
    assert len(bd.named([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"])) == 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").touch()
    same = [
        name
        for name, _ in bd.sources([tmp_path / "a" / "v.mp4", tmp_path / "b" / "v.mp4"], None, None, None, 5, narrator)
    ]
    assert same == [str(tmp_path / "a" / "v.mp4"), str(tmp_path / "b" / "v.mp4")]  # neither takes the other's place


def test_what_cannot_be_written_is_told_before_anything_is_encoded(tmp_path):
    from tests.helpers import distill

    (tmp_path / "file").write_text("")
    for option, wrong, reason in (
        ("--out", tmp_path, "a folder"),
        ("--csv", tmp_path / "file" / "x.csv", "below a file"),
    ):
        told = distill("bd", "clip.mp4", option, wrong)
        assert told.returncode == 2 and told.stderr.strip().endswith(f"cannot be written: it is {reason}")
    told = distill("bd", "clip.mp4", "--out", tmp_path / "new" / "x.png")  # a folder is made when it is needed
    assert told.returncode == 2 and told.stderr.strip().endswith("clip.mp4: no such video")

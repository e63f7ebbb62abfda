from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("av")


from distill.cli.tables import NAME_WIDTH, fit_to_width, table_width
from distill.corpora import open_corpus
from distill.corpora.video import write_video
from distill.encoding.bd import clips as bd_clips
from distill.encoding.bd import compare
from distill.encoding.bd import jobs as bd_jobs
from distill.encoding.bd import tables as bd_tables
from distill.encoding.bd.clips import Work, measure_clip, measure_point, plan_offsets
from distill.encoding.bd.compare import make_codings
from distill.encoding.bd.excerpts import Source, Span, find_sources, make_excerpt, read_clip, unique_names
from distill.encoding.bd.measures import Measures
from distill.encoding.bd.summary import CENTRE, NO_MAP, OBSERVERS, gains, summary
from distill.encoding.encode import encode
from distill.encoding.encoders import Coding
from distill.encoding.maps import centre_map
from distill.encoding.qp_offsets import MAPPINGS, Shaping
from distill.export.graph import step_graph
from distill.run.errors import Interrupted, UsageError
from distill.run.progress import Narrator
from tests.helpers import frames_of, invoke, lively


@pytest.fixture(scope="module")
def result(tiny_root):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    return compare.compare(clips_of(corpus, 6), Span(6), work_at(20, 28, 36), Narrator(quiet=True))


def work_at(*crfs, **more):
    codings = [Coding(preset="ultrafast", threads=1, crf=crf) for crf in crfs]
    return Work({}, codings, [("log", Shaping())], **more)


def clips_of(corpus, frames, halves=False):
    return [Source(clip.id, partial(read_clip, clip, Span(frames), halves)) for clip in corpus.clips[:2]]


def test_a_comparison_of_real_fixations(result, tmp_path):
    assert len(result["clips"]) == 2
    for facts in result["clips"].values():
        assert set(facts["points"]) == {NO_MAP, CENTRE} and facts["frames"] == 6
        assert facts["weights"]["by"] == "gaze" and facts["weights"]["frames"] > 0
        for points in facts["points"].values():
            assert [p["crf"] for p in points] == [20, 28, 36]
            assert points[0]["kbps"] > points[1]["kbps"] > points[2]["kbps"] > 0
            assert points[0]["plain"] > points[1]["plain"] > points[2]["plain"]
        assert facts["bd_rate"][CENTRE].keys() == {"plain", "gaze", "yuv"}
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
    excerpt = make_excerpt(frames_of(pixels), 25.0, tmp_path, lambda index: gaze / gaze.sum())
    maps = {"right": lambda frame, t: gaze, "wrong": lambda frame, t: gaze[:, ::-1]}
    points = {NO_MAP: [], "right": [], "wrong": []}
    for title, own in {NO_MAP: None, **maps}.items():
        offsets = plan_offsets(excerpt, own, [Shaping(prior=0)])[Shaping(prior=0)]
        for coding in work_at(20, 26, 32).codings:
            points[title].append(measure_point(excerpt, offsets, coding, 16, Measures()))
    gained = gains(points)["bd_rate"]
    assert gained["right"]["gaze"] < -15 and gained["right"]["plain"] > 0
    assert gained["wrong"]["gaze"] > 0


@pytest.mark.parametrize(("title", "maps"), [(NO_MAP, None), (CENTRE, centre_map)])
def test_a_point_has_the_rate_of_encode(tmp_path, title, maps):
    rng = np.random.default_rng(0)
    texture = rng.integers(30, 220, (12, 20, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(-25, 25, (96, 160, 3))
    frames = [np.roll(np.clip(texture, 0, 255).astype(np.uint8), n, 1) for n in range(8)]
    write_video(tmp_path / "v.mp4", 25.0, (96, 160), frames)
    work = work_at(24, 32)
    encoded = [encode(tmp_path / "v.mp4", tmp_path / "out.ts", maps, c, Shaping(), Narrator(quiet=True)) for c in work.codings]
    result = measure_clip(
        find_sources([tmp_path / "v.mp4"], None, None, None, Span(0, 0), Narrator(quiet=True))[0], work, print
    )
    rates = [point["kbps"] for point in result["points"][title]]
    assert rates == pytest.approx([facts["bytes"] * 8 / 1000 / (8 / 25) for facts in encoded], rel=1e-9)


def clip_facts(centred, model, by="gaze", size=1.0):
    titles = {CENTRE: centred, "m.onnx": model}
    return {
        "points": {NO_MAP: [{"crf": 20}]},
        "weights": {"by": by, "judge": "j.onnx" if by == "judge" else None, "frames": 6}, "left_out": {},
        "bd_rate": {t: {"plain": -v, **({by: v} if by else {})} for t, v in titles.items()}, "size": dict.fromkeys(titles, size),
    }  # fmt: skip


def test_means_have_intervals_and_maps_are_compared_clip_by_clip():
    clips = {str(n): clip_facts(-10.0 * n, -10.0 * n - 2 - 0.1 * n) for n in range(8)}
    found = summary(clips, [[CENTRE, "m.onnx"]])
    mean, low, high = found["mean"][CENTRE]["gaze"]["mean"], *found["mean"][CENTRE]["gaze"]["interval"]
    assert mean == pytest.approx(-35) and -55 < low < -40 and -30 < high < -15
    (difference,) = found["differences"]
    assert (difference["map"], difference["less"]) == ("m.onnx", CENTRE)
    low, high = difference["gaze"]["interval"]  # the same clips: far sharper than the two intervals side by side
    assert -2.6 < low < difference["gaze"]["mean"] < high < -2.1 and difference["gaze"]["better"] == 8
    assert difference["plain"]["mean"] == pytest.approx(2.35) and difference["size"]["mean"] == 0
    assert summary({"1": clips["1"]}, [[CENTRE, "m.onnx"]])["mean"][CENTRE]["gaze"]["interval"] is None


def test_gaze_and_proxy_weights_are_never_averaged(tmp_path):
    clips = {"a": clip_facts(-10.0, -12.0), "b": clip_facts(-20.0, -30.0, "judge"), "c": clip_facts(1.0, 2.0, None)}
    result = {"clips": clips, "judge": "j.onnx", "rate_control": "crf", **summary(clips, [[CENTRE, "m.onnx"]])}
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
    result = {"clips": clips, "judge": None, **summary(clips, [[CENTRE, "m.onnx"]])}
    for cells in (bd_tables.mean_cells(result), bd_tables.difference_cells(result), bd_tables.clip_cells(result)):
        rows, left = fit_to_width("map", cells, 80)
        assert left == [] and table_width(rows, NAME_WIDTH) <= 80
        assert cells == bd_tables.clip_cells(result) or "±" in rows[0]["by gaze"] or "[" in rows[0]["by gaze"]


def test_clips_without_gaze_get_proxy_weights_and_those_with_gaze_do_not(tmp_path, tiny_root):
    student = tmp_path / "one_step.onnx"
    student.write_bytes(step_graph(lively(), 25.0, {"frame_rate": "25"}).SerializeToString())

    class RecordingNarrator(Narrator):
        def say(self, text):
            reported.append(text)

    reported: list[str] = []
    (gazed,) = open_corpus("dhf1k", [str(tiny_root)]).clips[:1]
    pixels = list(gazed.read())[:3]
    sources = [
        Source("gazed", partial(read_clip, gazed, Span(3), False)),
        Source("bare", lambda folder: make_excerpt(frames_of([p[:61, :95] for p in pixels]), 25.0, folder)),
    ]
    span, narrator = Span(3, 0), RecordingNarrator(quiet=True)
    result = compare.compare(sources, span, work_at(20, 32, proxy=student), narrator)
    weights = {name: facts["weights"] for name, facts in result["clips"].items()}
    assert weights["bare"] == {"by": "judge", "judge": "one_step.onnx", "frames": 3}
    assert weights["gazed"]["by"] == "gaze" and weights["gazed"]["judge"] is None
    assert result["mean"][CENTRE]["judge"]["clips"] == result["mean"][CENTRE]["gaze"]["clips"] == 1 and reported == []
    result = compare.compare(sources[1:], span, work_at(20, 32), narrator)
    assert result["clips"]["bare"]["weights"]["by"] is None and set(result["mean"][CENTRE]) == {"plain", "yuv", "size"}
    assert len(reported) == 1 and "bare; only measures of whole frames" in reported[0]


def test_a_clip_whose_curves_do_not_overlap_does_not_affect_others(tiny_root, tmp_path, monkeypatch):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = clips_of(corpus, 2)
    points, first_luma = measure_point, sources[0].read(tmp_path).pixels[0]

    def apart(excerpt, offsets, *settings):
        point = points(excerpt, offsets, *settings)
        mapped = offsets[0] is not None and (np.array_equal(excerpt.pixels[0], first_luma) or broken == "both")
        return point | {key: point[key] + 100 * mapped for key in ("plain", "gaze", "yuv")}

    monkeypatch.setattr(bd_clips, "measure_point", apart)
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
    sources = clips_of(corpus, 2)
    arguments = sources, Span(2), work_at(20, 32)
    for encodes, done in ((5, 1), (8, 2)):
        asked = iter([False] * (encodes - 1))
        result = compare.compare(*arguments, Narrator(quiet=True, stop=lambda asked=asked: next(asked, True)))
        assert len(result["clips"]) == done and result["unfinished"] == [source.name for source in sources[done:]]
    with pytest.raises(Interrupted, match="nothing is saved"):
        compare.compare(*arguments, Narrator(quiet=True, stop=lambda: True))


def test_invalid_comparisons_are_one_line_errors(tmp_path, tiny_root, narrator):
    for arguments, message in (
        (([], None, None, None), "which clips"),
        (([tmp_path / "none.mp4"], None, None, None), "no such video"),
        (([], "dhf1k", None, "1"), "--corpus names clips with gaze; give their folder with --root"),
        (([], "dhf1k", tiny_root, "nine"), "there is no clip 'nine'"),
    ):
        with pytest.raises(UsageError, match=message):
            find_sources(*arguments, Span(5), narrator)
    for control, rates, message in (
        ("crf", "20", "--crf 20: give two or more"), ("crf", "20,20", "two or more"), ("crf", "20,60", "from 0 .* to 51"),
        ("crf", "20,x", "must be numbers"), ("abr", "20,30", "unknown; there are crf, 2pass, vbv"), ("vbv", "0,9", "1 or more"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            make_codings(Coding(), control, rates)
    assert unique_names([tmp_path / "a" / "m.onnx", tmp_path / "n.onnx"]).keys() == {"m.onnx", "n.onnx"}
    assert len(unique_names([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"])) == 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").touch()
    videos = [tmp_path / "a" / "v.mp4", tmp_path / "b" / "v.mp4"]
    same = [source.name for source in find_sources(videos, None, None, None, Span(5), narrator)]
    assert same == [str(tmp_path / "a" / "v.mp4"), str(tmp_path / "b" / "v.mp4")]  # neither sources the other's place
    twice = [videos[0], tmp_path / "b" / ".." / "a" / "v.mp4"]
    assert len(find_sources(twice, None, None, None, Span(5), narrator)) == 1


def test_clips_in_processes_give_the_same_result(result, tiny_root):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    sources = clips_of(corpus, 6)
    assert compare.compare(sources, Span(6), work_at(20, 28, 36), Narrator(quiet=True), jobs=2) == result
    with pytest.raises(Interrupted):
        compare.compare(sources, Span(6), work_at(20, 28, 36), Narrator(quiet=True, stop=lambda: True), jobs=2)


@pytest.mark.parametrize("control", ["2pass", "vbv"])
def test_rates_that_are_asked_for_are_measured(tiny_root, control):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    codings = make_codings(Coding(preset="ultrafast", threads=1), control, "60,240")
    work = Work({}, codings, [("log", Shaping())])
    result = compare.compare(clips_of(corpus, 12)[:1], Span(12), work, Narrator(quiet=True))
    ((_, facts),) = result["clips"].items()
    for points in facts["points"].values():
        assert [p["bitrate"] for p in points] == [60, 240] and points[0]["kbps"] < points[1]["kbps"]
    assert "asked for" in bd_tables.legend(result)[-1]


def test_a_sweep_over_strengths_draws_what_each_map_gains_and_costs(tiny_root, tmp_path):
    corpus = open_corpus("dhf1k", [str(tiny_root)])
    shapings = [("log", Shaping(strength=strength)) for strength in (0.5, 0.75)] + [("linear", MAPPINGS["linear"])]
    work = replace(work_at(20, 30), shapings=shapings)
    result = compare.compare(clips_of(corpus, 4), Span(4), work, Narrator(quiet=True))
    titles = [f"{CENTRE}, log 0.5", f"{CENTRE}, log 0.75", f"{CENTRE}, linear 4"]
    assert list(result["maps"]) == list(result["mean"]) == titles and result["differences"] == []
    assert result["maps"][titles[2]]["strength"] == 4
    curves = bd_tables.frontier(result)
    assert [(p["strength"], p["usual"]) for p in curves[f"{CENTRE}, log"]] == [(0.5, False), (0.75, True)]
    assert curves[f"{CENTRE}, linear"][0]["gain"] == result["mean"][titles[2]]["gaze"]["mean"]
    one = compare.compare(clips_of(corpus, 4), Span(4), replace(work, shapings=shapings[1:2]), Narrator(quiet=True))
    assert one["mean"][CENTRE] == result["mean"][titles[1]]
    bd_tables.plot(result, tmp_path / "gain.png")
    assert (tmp_path / "gain.png").read_bytes()[:4] == b"\x89PNG"


def test_half_of_the_observers_are_a_map_and_the_others_the_weights(tmp_path, narrator):
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (96, 160, 3), np.uint8)
    write_video(tmp_path / "clip.avi", 25.0, (96, 160), [np.roll(texture, n, 1) for n in range(6)])
    rows = [f"clip,{frame},{28 + 6 * (who % 2)},50,{who}" for frame in range(5) for who in range(4)]
    (tmp_path / "gaze.csv").write_text("\n".join(["clip,frame,x,y,observer", *rows]) + "\n")
    (source,) = find_sources([], "gaze-table", tmp_path, None, Span(0, 0), narrator, halves=True)
    excerpt = source.read(tmp_path)
    peaks = [np.unravel_index(np.argmax(maps[0]), (96, 160))[1] for maps in (excerpt.weights, excerpt.observed)]
    assert sorted(peaks) == [28, 34]
    result = compare.compare([source], Span(0, 0), work_at(20, 34, observers=True), narrator)
    assert set(result["mean"]) == {CENTRE, OBSERVERS} and result["clips"]["clip"]["weights"]["halves"]
    assert result["mean"][OBSERVERS]["gaze"]["mean"] < min(-5, result["mean"][CENTRE]["gaze"]["mean"])
    assert [pair["map"] for pair in result["differences"]] == [OBSERVERS]


def test_without_observers_there_is_no_map_of_them(tiny_root):
    said = []
    narrator = Narrator(quiet=True)
    narrator.say = said.append
    sources = clips_of(open_corpus("dhf1k", [str(tiny_root)]), 3, halves=True)
    result = compare.compare(sources, Span(3), work_at(20, 30, observers=True), narrator)
    assert list(result["mean"]) == [CENTRE] and "not known who looked where" in said[-1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_finished_clips_are_kept_for_the_next_time(tiny_root, tmp_path, monkeypatch, jobs):
    kept = tmp_path / "bd.csv.unfinished"
    arguments = clips_of(open_corpus("dhf1k", [str(tiny_root)]), 2), Span(2), work_at(20, 32)
    asked = iter([False] * 4)
    half = compare.compare(*arguments, Narrator(quiet=True, stop=lambda: next(asked, True)), 1, kept)
    whole = compare.compare(*arguments, Narrator(quiet=True), jobs, kept)
    assert len(half["clips"]) == 1 and len(whole["clips"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(bd_jobs, "measure_clip", lambda *_: 1 / 0)
        assert compare.compare(*arguments, Narrator(quiet=True), 1, kept) == whole
        with pytest.raises(ZeroDivisionError):  # of other settings
            compare.compare(*arguments[:2], work_at(20, 33), Narrator(quiet=True), 1, kept)


def test_the_file_of_finished_clips_goes_when_the_results_are_written(tmp_path, tiny_root):
    arguments = (
        "--corpus",
        "dhf1k",
        "--root",
        tiny_root,
        "--clips",
        "001",
        "--frames",
        "3",
        "--crf",
        "20,34",
        "--measures",
        "psnr",
    )
    result = invoke("bd", *arguments, "--preset", "ultrafast", "--csv", tmp_path / "bd.csv", "-q")
    assert result.returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["bd.csv"]


def test_options_of_bd_that_do_not_go_together_are_one_line_errors():
    for arguments, message in (
        (("--strength", "1", "--strengths", "1,2"), "exclude each other"), (("--strengths", "1,x"), "must be numbers"),
        (("--strengths", "1,1"), "there twice"), (("--strengths", "9"), "must be from 0 to 3 with --mapping log"),
        (("--rate-control", "2pass"), "take --bitrate N,N"), (("--bitrate", "300,600"), "crf takes --crf N,N"),
        (("--rate-control", "vbv", "--bitrate", "300,600", "--crf", "20,30"), "take --bitrate N,N"),
        (("--rate-control", "abr"), "--rate-control abr is unknown"), (("--rate-control", "abr", "--crf", "22"), "abr is unknown"),
        (("--frames", "1"), "2 or more, or all"), (("--start", "end"), "or middle"),
    ):  # fmt: skip
        result = invoke("bd", "clip.mp4", *arguments)
        assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, arguments


def test_unwritable_outputs_are_reported_before_encoding(tmp_path):

    (tmp_path / "file").write_text("")
    for option, wrong, reason in (("--out", tmp_path, "a folder"), ("--csv", tmp_path / "file" / "x.csv", "below a file")):
        result = invoke("bd", "clip.mp4", option, wrong)
        assert result.returncode == 2 and result.stderr.strip().endswith(f"cannot be written: it is {reason}")
    result = invoke("bd", "clip.mp4", "--out", tmp_path / "new" / "x.png")  # a folder is made when it is needed
    assert result.returncode == 2 and result.stderr.strip().endswith("clip.mp4: no such video")

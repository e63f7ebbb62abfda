"""Evaluation end to end on tiny corpora, with ONNX files of a few nodes whose maps are easy to compute by hand."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.corpora import Points, density_map, fixation_map, open_corpus
from distill.evaluation import protocols, statistics, tables
from distill.evaluation.evaluate import CEILING, MEAN_MAP, centre_gaussian, evaluate, evaluate_corpora
from distill.evaluation.fixations import Fixations
from distill.evaluation.predictors import size_multiple
from distill.evaluation.protocols import PROTOCOLS
from distill.export.runner import Predictor
from distill.recipe.files import load_recipe
from distill.recipe.keys import Recipe
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.students.pooling import parse
from tests.helpers import distill, gaze_corpus, image_model, made_up_scores, save_model, step_model

FLOAT = TensorProto.FLOAT


def eights_model(path):
    """Down by 8 and up again, beside the frame itself: runs at multiples of 8 only, as other projects' students do."""
    weights = [numpy_helper.from_array(np.array([1, 1, 8, 8], np.float32), "scales")]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("MaxPool", ["m"], ["low"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Resize", ["low", "", "scales"], ["up"], mode="nearest"),
        helper.make_node("Concat", ["m", "up"], ["both"], axis=1),
        helper.make_node("ReduceMean", ["both"], ["b"], axes=[1], keepdims=1),
        helper.make_node("Sigmoid", ["b"], ["saliency_map"]),
    ]
    return save_model(path, nodes, weights)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "step": step_model(folder / "tiny_step.onnx"),
        "image": image_model(folder / "tiny.onnx"),
        "eights": eights_model(folder / "eights.onnx"),
    }


@pytest.fixture(scope="module")
def clips(tiny_root):
    return list(open_corpus("dhf1k", tiny_root).clips)


@pytest.fixture(scope="module")
def images_root(tmp_path_factory):
    return gaze_corpus(tmp_path_factory.mktemp("gaze") / "set")


# --- what is scored --------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_files_run_frame_by_frame(models, clips, narrator):
    clip, stride = clips[0], 5
    chosen = {name: models[name] for name in ("step", "image")}
    result = evaluate(
        chosen, {"centred Gaussian": centre_gaussian}, clips[:2], stride, 1, narrator, baselines=["ema=0.6", "mean"]
    )
    names = ["step", "image", "image + ema=0.6", "image + mean", "centred Gaussian"]
    assert list(result["predictors"]) == names and list(result["clips"]) == [c.id for c in clips[:2]]

    step, image = Predictor(models["step"]), Predictor(models["image"])
    poolings, states = [parse("ema=0.6"), parse("mean")], [None, None]
    expected = {name: [] for name in names}
    for index, frame in enumerate(clip.read()):
        maps = [step.predict(frame), image.predict(frame)]
        for k, pooling in enumerate(poolings):
            pooled, states[k] = pooling.step(maps[1], frame, states[k])
            maps.append(pooled)
        maps.append(centre_gaussian(clip, index))
        fixations = fixation_map(clip, index)
        if index % stride == 0 and fixations.any():
            for name, saliency in zip(names, maps, strict=True):
                expected[name].append(protocols.score(saliency, density_map(clip, index, fixations), fixations))
    scored = result["clips"][clip.id]
    assert scored["frames_scored"] == len(expected["step"])
    for name in names:
        for metric in ("nss", "cc", "sim", "auc_judd", "kld", "block_iou", "block_cc"):
            mean = np.mean([frame[metric] for frame in expected[name]])
            assert scored["scores"][name][metric] == pytest.approx(mean, abs=1e-6), (name, metric)
        assert scored["nss_over_time"][name] == [round(frame["nss"], 4) for frame in expected[name]]
        assert result["predictors"][name]["nss"] == pytest.approx(
            np.mean([c["scores"][name]["nss"] for c in result["clips"].values()])
        )
    assert result["predictors"]["centred Gaussian"]["ig"] == 0
    assert result["predictors"]["centred Gaussian"]["flicker"] == 0
    assert result["protocol"] == "clip-mean" and "mean over clips" in result["about"]
    json.dumps(result, allow_nan=False)


def test_the_number_of_threads_does_not_change_the_result(models, clips, narrator):
    once, again = (evaluate(models, {}, clips, 6, threads, narrator, baselines=["max"], mean_map=True) for threads in (1, 3))
    assert once == again


def test_flicker_compares_with_the_previous_frame_in_still_blocks(models, clips, narrator):
    rng = np.random.default_rng(0)
    noise = {(c.id, i): rng.random((8, 12)).astype(np.float32) for c in clips[:1] for i in range(c.frames)}
    references = {"noise": lambda clip, index: noise[clip.id, index], "still": centre_gaussian}
    result = evaluate({"image": models["image"]}, references, clips[:1], 4, 1, narrator)
    flicker = {name: values["flicker"] for name, values in result["predictors"].items()}
    assert flicker["noise"] > 0.1 > flicker["image"] > flicker["still"] == 0


def test_frames_without_fixations_are_counted_and_skipped(models, clips, narrator):
    clip = clips[0]
    empty = [i for i in range(0, clip.frames, 2) if not fixation_map(clip, i).any()]
    path = str(Path(clip.fixations) / "0003.png")
    kept = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    try:
        cv2.imwrite(path, np.zeros_like(kept))
        result = evaluate({"image": models["image"]}, {}, [clip], 2, 1, narrator)
    finally:
        cv2.imwrite(path, kept)
    scored = result["clips"][clip.id]
    assert scored["frames_without_fixations"] == result["frames_without_fixations"] == len(empty) + 1
    assert 2 not in scored["frames"] and scored["frames_scored"] == 12 - len(empty) - 1


def test_models_that_need_multiples_of_8_are_scored_on_extended_frames(models, tmp_path, capsys):
    from distill.run.progress import Narrator

    steps = {name: size_multiple(Predictor(path)) for name, path in models.items()}
    assert steps == {"step": 1, "image": 1, "eights": 8}
    corpus = open_corpus("gaze-table", gaze_corpus(tmp_path / "odd", size=(45, 61)))
    result = evaluate(models, {}, corpus.clips, 1, 1, Narrator())
    assert "eights runs at multiples of 8 px only" in capsys.readouterr().err
    clip = corpus.clips[0]
    frame = next(iter(clip.read()))
    extended = np.pad(frame, ((0, 3), (0, 3), (0, 0)), mode="edge")
    fixations = fixation_map(clip, 0)
    expected = protocols.score(
        Predictor(models["eights"]).predict(extended)[:45, :61], density_map(clip, 0, fixations), fixations
    )
    assert result["clips"][clip.id]["scores"]["eights"]["nss"] == pytest.approx(expected["nss"], abs=1e-6)


# --- what models are compared with -----------------------------------------------------------------------------------


def test_one_half_of_the_observers_predicts_the_other(models, images_root, narrator):
    clips = open_corpus("gaze-table", images_root).clips
    result = evaluate({"image": models["image"]}, {"centred Gaussian": centre_gaussian}, clips, 1, 2, narrator)
    ceiling = result["predictors"][CEILING]
    assert list(result["predictors"])[-1] == CEILING
    assert ceiling["nss"] > 3 > result["predictors"]["centred Gaussian"]["nss"] and ceiling["s_auc"] > 0.9
    assert "flicker" not in result["predictors"]["image"]  # still images have none
    assert result["differences"]["from"][CEILING]["nss"]["mean"] < -3


def test_without_known_observers_there_is_no_ceiling(models, clips, narrator):
    result = evaluate({"image": models["image"]}, {}, clips[:2], 8, 1, narrator)
    assert CEILING not in result["predictors"]


def test_the_mean_map_is_that_of_the_other_clips(models, images_root, narrator):
    clips = open_corpus("gaze-table", images_root).clips
    here, there = (np.full(5, 4), np.full(5, 4)), (np.full(5, 40), np.full(5, 60))
    found = [{0: Points(*(here if n == 0 else there))} for n in range(len(clips))]
    gaze = Fixations(clips, found)
    own, other = gaze.mean_map(clips[0], 0), gaze.mean_map(clips[1], 0)
    assert own.max() == other.max() == 1
    assert own[60, 120] > 0.9 and own[6, 8] < 1e-6  # without the clip's own fixations
    assert other[6, 8] > 0.1 and other[60, 120] > 0.9
    few = evaluate({"image": models["image"]}, {}, clips[:3], 1, 1, narrator, mean_map=True)
    enough = evaluate({"image": models["image"]}, {}, clips[:4], 1, 1, narrator, mean_map=True)
    assert MEAN_MAP not in few["predictors"] and MEAN_MAP in enough["predictors"]


def test_shuffled_auc_draws_from_ten_frames_of_other_clips(clips):
    points = [{t: Points(np.full(3, n), np.full(3, t)) for t in range(8)} for n in range(len(clips))]
    gaze = Fixations(clips, points)
    rows, columns = gaze.others(clips[1], 4, own_clip=False)
    assert len(rows) == 30 and 1 not in rows and len(set(zip(rows, columns, strict=True))) == 10
    again, _ = gaze.others(clips[1], 4, own_clip=False)
    other, _ = gaze.others(clips[1], 5, own_clip=False)
    assert np.array_equal(rows, again) and not np.array_equal(rows, other)
    drawn = np.concatenate([gaze.others(clips[1], t, own_clip=True)[0] for t in range(40)])
    assert set(drawn) == set(range(len(clips)))  # the official code may draw from the clip itself
    alone = Fixations(clips[:1], points[:1])
    assert alone.others(clips[0], 0, own_clip=False) is None and alone.others(clips[0], 0, own_clip=True) is not None


def test_points_of_a_clip_of_another_size_are_scaled(models, tmp_path):
    small = open_corpus("gaze-table", gaze_corpus(tmp_path / "a", (48, 64))).clips[0]
    large = open_corpus("gaze-table", gaze_corpus(tmp_path / "b", (96, 192))).clips[1]
    gaze = Fixations([small, large], [{0: Points(np.array([47]), np.array([63]))}, {0: Points(np.array([95]), np.array([3]))}])
    assert [int(a[0]) for a in gaze.others(large, 0, own_clip=False)] == [94, 189]
    assert [int(a[0]) for a in gaze.others(small, 0, own_clip=False)] == [47, 1]


def test_a_single_clip_has_no_shuffled_auc_and_no_interval(models, clips, narrator):
    result = evaluate({"image": models["image"]}, {}, clips[:1], 8, 1, narrator)
    assert "s_auc" not in result["predictors"]["image"] and result["intervals"]["image"] == {}
    assert "nss" in result["predictors"]["image"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_reports_its_name_and_its_metrics(models, clips, narrator, name):
    result = evaluate({"image": models["image"]}, {}, clips, 6, 2, narrator, protocol=name)
    assert result["protocol"] == name and result["about"] == PROTOCOLS[name].about
    assert set(result["predictors"]["image"]) == set(PROTOCOLS[name].metrics)
    counts = [c["frames_scored"] for c in result["clips"].values()]
    values = [c["scores"]["image"]["nss"] for c in result["clips"].values()]
    weights = counts if PROTOCOLS[name].average == "frames" else None
    assert result["predictors"]["image"]["nss"] == pytest.approx(np.average(values, weights=weights))


# --- intervals, differences, tables ----------------------------------------------------------------------------------


def test_intervals_are_those_of_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        mean, (low, high) = statistics.mean_and_interval(rng.normal(2, 1, 40))
        assert low < mean < high
        covered += low < 2 < high
        assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(40), rel=0.45)
    assert 0.89 < covered / 200 < 0.99
    assert statistics.mean_and_interval([1.0, 2.0, 4.0]) == statistics.mean_and_interval([1.0, 2.0, 4.0])
    assert statistics.mean_and_interval([3.0]) == (3.0, None)


def test_the_interval_of_one_clip_allows_for_correlated_frames():
    rng = np.random.default_rng(0)
    covered = {0.0: 0, 0.8: 0}
    for alike in covered:
        for _ in range(150):
            noise, x = rng.normal(size=120), [0.0]
            for value in noise:
                x.append(alike * x[-1] + value)
            low, high = statistics.interval_over_frames(x[1:])
            covered[alike] += low < 0 < high
    assert (
        0.85 < covered[0.0] / 150 < 0.99 and 0.75 < covered[0.8] / 150 < 0.99
    )  # with single frames drawn, the second covers 0.5
    assert statistics.interval_over_frames([2.0] * 8) == [2.0, 2.0] and statistics.interval_over_frames([2.0] * 7) is None
    result = made_up_scores(step=0.1, image=0.0)
    result["clips"]["c3"]["nss_over_time"] = {"step": [1.0, 2.0] * 10}
    cells = dict(tables.clip_cells(result))
    assert cells["c3"]["step"][1].startswith("[1.") and cells["c3"]["image"][1] == cells["c4"]["step"][1] == ""


def test_clips_are_weighted_by_their_frames_if_the_protocol_averages_frames():
    mean, (low, high) = statistics.mean_and_interval([1.0, 3.0], [1, 3])
    assert mean == 2.5 and low == 1 and high == 3


def test_a_paired_difference_is_sharper_than_two_intervals():
    result = made_up_scores(step=0.03, image=0.0)
    step, image = (result["intervals"][name]["nss"] for name in ("step", "image"))
    assert step[0] < image[1] and image[0] < step[1]  # the intervals overlap
    found = result["differences"]["from"]["image"]["nss"]
    assert result["differences"]["of"] == "step" and found["mean"] == pytest.approx(0.03)
    assert found["interval"] == pytest.approx([0.03, 0.03])


def test_clips_that_lack_a_metric_are_left_out_of_its_mean():
    clips = {
        "a": {"frames_scored": 1, "scores": {"x": {"nss": 1.0, "flicker": 0.1}, "y": {"nss": 2.0}}},
        "b": {"frames_scored": 1, "scores": {"x": {"nss": 3.0}, "y": {"nss": 2.0, "flicker": 0.3}}},
        "c": {"frames_scored": 0, "scores": {}},
    }
    result = statistics.summarise(clips, ["x", "y"], PROTOCOLS["clip-mean"])
    assert result["predictors"]["x"] == {"nss": 2.0, "flicker": 0.1} and result["predictors"]["y"]["flicker"] == 0.3
    assert "flicker" not in result["differences"]["from"]["y"]  # no clip has both
    assert "flicker" not in result["intervals"]["x"] and "sim" not in result["predictors"]["x"]


def test_the_results_of_several_corpora_are_merged_and_kept():
    a, b = made_up_scores(step=0.1, image=0.0), made_up_scores(step=0.4, image=0.0)
    b["clips"] = {f"b.{i}": clip for i, clip in b["clips"].items()}
    whole = statistics.merge({"a": a, "b": b})
    assert len(whole["clips"]) == 24 and whole["frames_scored"] == 120
    assert whole["differences"]["from"]["image"]["nss"]["mean"] == pytest.approx(0.25)
    json.dumps(whole, allow_nan=False)
    back = statistics.by_corpus(whole)
    assert list(back) == ["a", "b"] and back["a"]["clips"] == a["clips"] and back["b"]["predictors"] == b["predictors"]
    assert statistics.merge({"a": a}) is a and list(statistics.by_corpus(a, "all")) == ["all"]


def test_the_csv_holds_every_value(tmp_path):
    results = {"a:x": made_up_scores(step=0.1, image=0.0), "b:y": made_up_scores(step=0.2, image=0.0)}
    tables.write_csv(tmp_path / "o.csv", results, per_clip=True)
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (4 + 2 + 12 * 4)  # means, differences, clips
    row = next(r for r in rows if r["corpus"] == "b:y" and r["minus"] and r["metric"] == "nss")
    assert (row["predictor"], row["minus"], row["protocol"]) == ("step", "image", "clip-mean")
    assert float(row["value"]) == pytest.approx(0.2) and float(row["low"]) <= 0.2 + 1e-9
    clip = next(r for r in rows if r["clip"] == "c3" and r["predictor"] == "image" and r["metric"] == "cc")
    assert float(clip["value"]) == pytest.approx(0.2) and clip["low"] == "" and clip["frames"] == "5"
    tables.write_csv(tmp_path / "o.csv", results, per_clip=False)
    assert len((tmp_path / "o.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * 6


# --- bad input -------------------------------------------------------------------------------------------------------


def nan_model(path):
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["m", "m"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["saliency_map"]),
    ]
    return save_model(path, nodes)


def test_a_model_that_predicts_nan_is_named_with_its_clip_and_frame(tmp_path, clips, narrator):
    with pytest.raises(UsageError, match=r"broken, clip 001, frame 1: the map holds NaN"):
        evaluate({"broken": nan_model(tmp_path / "nan.onnx")}, {}, clips[:1], 8, 1, narrator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": ["ema=2"]}, "alpha of baseline ema must be above 0 and at most 1"),
        ({"baselines": ["median"]}, "unknown baseline 'median'"),
        ({"protocol": "mit300"}, "unknown protocol 'mit300'; known: clip-mean"),
        ({"models": ["step"], "baselines": ["max"]}, "baseline max pools the maps of an image file, and none is given"),
        ({"clips": []}, "no clip has fixations"),
    ],
)
def test_invalid_evaluations_are_refused(models, clips, narrator, change, message):
    chosen = {name: models[name] for name in change.pop("models", ["image"])}
    with pytest.raises(UsageError, match=message):
        evaluate(chosen, {}, change.pop("clips", clips), 8, 1, narrator, **change)


def test_only_empty_frames_are_refused(models, clips, narrator, monkeypatch):
    nothing = Points(np.zeros(0, np.int32), np.zeros(0, np.int32))
    monkeypatch.setattr("distill.evaluation.fixations.fixation_points", lambda clip, index: nothing)
    with pytest.raises(UsageError, match="none of the scored frames has fixations"):
        evaluate({"image": models["image"]}, {}, clips, 8, 1, narrator)


def test_points_outside_the_frame_are_named(models, clips, narrator, monkeypatch):
    outside = Points(np.array([3, 64], np.int32), np.array([3, 5], np.int32))
    monkeypatch.setattr("distill.evaluation.fixations.fixation_points", lambda clip, index: outside)
    with pytest.raises(UsageError, match="clip 001, frame 1: a fixation lies outside the frame of 96x64 px"):
        evaluate({"image": models["image"]}, {}, clips[:1], 8, 1, narrator)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("eval.protocol=aim", "eval.protocol must be clip-mean, dhf1k-official, mit or aim2024, got 'aim'"),
        ('eval.baselines=["ema=0"]', "alpha"),
    ],
)
def test_a_recipe_with_an_unknown_protocol_or_baseline_fails_before_the_run(key, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(None, [key])


# --- several models on several corpora -------------------------------------------------------------------------------


def test_models_with_the_same_file_name_are_named_by_path(models, tmp_path, tiny_root, narrator):
    other = tmp_path / "tiny.onnx"
    other.write_bytes(models["image"].read_bytes())
    recipe = load_recipe(None, [f'corpus.root="{tiny_root}"', "corpus.name=dhf1k", "eval.stride=12", "eval.baselines=[]"])
    (name, result), *_ = evaluate_corpora([models["image"], other, models["step"]], recipe, narrator).items()
    assert name == f"dhf1k:{tiny_root.name}"
    assert list(result["predictors"])[:3] == [str(models["image"]), str(other), "tiny_step.onnx"]
    with pytest.raises(UsageError, match="named twice"):
        evaluate_corpora([other, other], recipe, narrator)
    assert isinstance(recipe, Recipe)


def test_the_command_line_scores_models_on_several_corpora(models, tiny_root, images_root, tmp_path):
    arguments = [
        "eval", models["step"], models["image"], "--corpus", "dhf1k", "--root", tiny_root, "--corpus", "gaze-table",
        "--root", images_root, "--baseline", "max", "--baseline", "ema=0.5", "--set", "eval.stride=6",
    ]  # fmt: skip
    result = distill(*arguments, "--csv", tmp_path / "o.csv", "--per-clip")
    assert result.returncode == 0, result.stderr
    out = result.stdout
    for wanted in (
        f"dhf1k:{tiny_root.name}: 5 clips, 20 frames",
        "gaze-table:set: 6 clips, 6 frames",
        "clip-mean: float maps",
        "tiny.onnx + ema=0.5",
        "minus tiny.onnx + max",
        MEAN_MAP,
        CEILING,
        "95 % intervals",
        "NSS, clip by clip",
        "i3",
    ):
        assert wanted in out, wanted  # fmt: skip
    assert max(map(len, out.splitlines())) <= 100 and "±" in out
    text = (tmp_path / "o.csv").read_text(encoding="utf-8")
    assert text.startswith("corpus,protocol,clip,") and f"dhf1k:{tiny_root.name},clip-mean,dhf1k.003" in text
    answer = json.loads(distill(*arguments, "--json", "--quiet", "--protocol", "aim2024").stdout)
    assert answer["schema"] == 2 and list(answer["corpora"]) == [f"dhf1k:{tiny_root.name}", "gaze-table:set"]
    assert all(r["protocol"] == "aim2024" for r in answer["corpora"].values())


def test_the_json_of_one_corpus_has_no_level_for_corpora(models, tiny_root):
    result = distill("eval", models["image"], "--root", tiny_root, "--json", "--quiet", "--set", "eval.stride=12")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["corpus"] == f"dhf1k:{tiny_root.name}" and set(answer["clips"]) == {f"{n:03d}" for n in range(1, 6)}
    assert set(answer["intervals"]["tiny.onnx"]) <= set(answer["predictors"]["tiny.onnx"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "a.onnx", "run.toml", "--root", "x"], "eval takes one run, or ONNX files; got a.onnx, run.toml"),
        (["eval", "one.toml", "two.toml"], "eval takes one run"),
        (["eval", "none.onnx", "--root", "x"], "no model at none.onnx"),
        (["eval", "MODEL"], "which clips? give the corpus's folder with --root"),
        (
            ["eval", "MODEL", "--corpus", "dhf1k", "--root", "x", "--protocol", "mit30"],
            "eval.protocol must be clip-mean, dhf1k-official, mit or aim2024, got 'mit30'",
        ),
        (["eval", "MODEL", "--corpus", "dhf1k", "--root", "x", "--baseline", "emma"], "unknown baseline 'emma'"),
        (["eval", "--corpus", "dhf1k", "--corpus", "avimos"], "a run has one --corpus"),
        (["eval", "MODEL", "--corpus", "dhf1k", "--corpus", "avimos", "--root", "x"], "give one for each"),
    ],
)
def test_wrong_arguments_are_one_line_errors(models, tmp_path, monkeypatch, capsys, arguments, message):
    from distill.cli.exits import run_command

    arguments = [str(models["image"]) if a == "MODEL" else a for a in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert run_command(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("held_out", "advice"), [("001,elsewhere", "corpus.val_clips=001"), ("images.1,images.2", None)])
def test_only_held_out_clips_of_this_corpus_are_named(models, tmp_path, tiny_root, held_out, advice, capsys):
    model = onnx.load(models["image"])
    onnx.helper.set_model_props(model, {"validation_clips": held_out})
    onnx.save(model, tmp_path / "m.onnx")
    recipe = load_recipe(None, [f'corpus.root="{tiny_root}"', "corpus.name=dhf1k", "eval.stride=12", "eval.baselines=[]"])
    evaluate_corpora([tmp_path / "m.onnx"], recipe, Narrator())
    said = capsys.readouterr().err
    assert ("were held out" in said) == bool(advice) and (advice or "") in said and "elsewhere" not in said

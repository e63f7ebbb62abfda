"""The report: its verdict and badges, what it shows of a result, that it is sound HTML, and that no foreign text is markup."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from distill.evaluation import metrics, statistics, tables
from distill.reporting import charts, drawings, words
from distill.reporting.rendering import render
from distill.reporting.report import badges, choose_clips, ranked, score_parts, summary
from tests.helpers import ORIGIN, made_up_scores
from tests.reporting.page import faults

PARITY = {"image_max_abs": 1e-7, "step_max_abs": 3e-7, "tolerance": 1e-5}
TAKEN = {"threads": 1, "processor": "a processor", "ms": {"640x360": 1.234, "1920x1080": 15.37}}
LOG = [{"step": n, "loss": 1 / (n + 1), "soft.cc": 0.5, "truth.cc": 0.4} for n in range(9)]
LOG += [{"step": n, "split": "val", "nss": 1.0 + n, "cc": 0.1 * n} for n in (4, 8)]
NOTHING = {"predictors": {}, "clips": {}}


def sheet(name, n=0, static=False):
    """What the report shows of a clip."""
    rows = {row: [("data:image/jpeg;base64,", f"{row}, clip {name}", "peak 0.50")] for row in ("frame", "teacher")}
    chart = None if static else charts.nss_over_time(np.arange(3.0), {"step": [1, 2, 3], "image": [1, 1, 2]}, f"clip-{n}")
    return {
        "id": name, "ids": f"clip-{n}", "rank": "the best", "static": static, "seconds": ["0.0 s"], "rows": rows, "nss": 1.5,
        "chart": chart, "gain": 0.5,
    }  # fmt: skip


def page(result, **changes):
    values = {
        "origin": ORIGIN, "steps": 12, "caveats": [], "summary": summary(result, TAKEN),
        "badges": badges(ORIGIN, result, PARITY), "parts": score_parts(result), "curves": charts.training_curves(LOG), "clips": [],
        "loop_clip": None, "clip_scores": tables.clip_cells(result) if result["predictors"] else [], "words": words, "checks": {},
        "recipe": "r.toml", "seed": 0, "manifest": {"environment": {}, "stages": {}},
    }  # fmt: skip
    text = render("report.html", **values | changes)
    assert not faults(text)
    return text


def text_of(html):
    return " ".join(re.sub(r"<[^>]*>", " ", html[html.index("<body>") :]).split())


def test_the_verdict_is_the_first_thing_said():
    result = made_up_scores(**{"step": 0.5, "image": 0.2, "teacher": 0.9, "centred Gaussian": 0.0, "mean training map": 0.8})
    said = text_of(page(result))
    for wanted in (
        "Beats the centred Gaussian and its own image file; is worse than the mean training map.",
        "▲ better than the centred Gaussian: NSS +0.500 [+0.500, +0.500] CC +0.500",
        "▼ worse than the mean training map: NSS -0.300",
        "✓ gate passed ✓ parity 3.0e-07, limit 1e-05 ✓ scored on 12 clips, held out",
        "1.23 ms at 640x360 15.4 ms at 1920x1080 one thread, a processor",
    ):
        assert wanted in said, wanted
    order = sorted(result["clips"], key=lambda i: result["clips"][i]["scores"]["step"]["nss"])
    assert f"best: {order[-1]} " in said and f"worst: {order[0]} " in said
    assert said.index("Beats") < said.index("Scores")


def test_what_is_not_held_out_or_not_scored_has_no_green_badge():
    result = made_up_scores(step=0.5, image=0.2)
    said = text_of(page(result, badges=badges(replace(ORIGIN, held_out=False), result, PARITY)))
    assert "! scored on 12 clips, not held out" in said
    said = text_of(page(NOTHING))
    assert "Nothing was scored." in said and "! not scored" in said and "No validation clip has fixations" in said


@pytest.mark.parametrize("names", [("step", "image"), ("step", "image", "centred Gaussian")])
def test_a_result_without_a_teacher_or_a_mean_map_has_a_report(names):
    text = page(made_up_scores(**dict.fromkeys(names, 0.1)), clips=[sheet("c0")])
    assert "mean training map</button>" not in text


def test_one_clip_alone_has_no_brackets():
    result = made_up_scores(**{"step": 0.5, "image": 0.2, "centred Gaussian": 0.0})
    clip = result["clips"]["c0"]
    one = {**result, "clips": {"c0": clip}, "frames_scored": 5}
    one |= statistics.summarise(one["clips"], list(clip["scores"]), statistics.PROTOCOLS["clip-mean"])
    said = text_of(page(one))
    assert "One clip alone cannot tell whether it beats" in said and "In brackets: the 95 % interval over clips" not in said


def test_every_corpus_has_its_table_with_intervals_and_the_gain_of_the_state():
    first, second = (made_up_scores(step=a, image=0.0, teacher=b) for a, b in ((0.05, 0.5), (0.01, 0.2)))
    text = page(first, clip_scores=[], curves=[])
    assert "student, step file" in text and "clip-mean" in text and re.search(r'class="interval">\[\d\.\d+, \d\.\d+\]<', text)
    assert text.count("<table>") == 1 and text.count("<svg") == 2 and "minus image" in text
    assert text.count('class="best"') == 2  # NSS and CC, of the teacher
    second["clips"] = {f"images.{i}": clip for i, clip in second["clips"].items()}
    text = page(statistics.merge({"dhf1k": first, "images": second}), clip_scores=[])
    assert "<h3>dhf1k</h3>" in text and "<h3>images</h3>" in text and text.count("<table>") == 2


def test_clips_are_shown_from_the_best_to_the_worst():
    clips = {f"c{n}": {"frames_scored": n, "scores": {"step": {"nss": n}}} for n in range(6)}  # c0 has no score
    assert choose_clips(clips, 3) == ["c5", "c3", "c1"] and choose_clips(clips, 1) == ["c3"]
    assert choose_clips(clips, 50) == ["c5", "c4", "c3", "c2", "c1"] and choose_clips(clips, 0) == []
    assert ranked(clips) == {
        "c5": "the best",
        "c4": "number 2 of 5",
        "c3": "number 3 of 5",
        "c2": "number 4 of 5",
        "c1": "the worst",
    }
    assert ranked({"c1": clips["c1"]}) == {"c1": ""} and choose_clips({"c1": clips["c1"]}, 3) == ["c1"]
    assert choose_clips({"c0": clips["c0"]}, 3) == ["c0"] and choose_clips({}, 3) == []


def test_videos_and_still_images_have_their_pictures_and_the_colours_their_meaning():
    result = made_up_scores(step=0.5, image=0.2)
    loop = {"clip": "c1", "rank": "the worst", "moving": "data:m", "still": "data:s", "width": 600, "height": 338}
    text = page(result, clips=[sheet("c0"), sheet("c1", 1, static=True)], loop_clip=loop)
    assert text.count("<img") == 2 * 2 + 2 and 'alt="frame, clip c0"' in text
    assert "red: the step file's map is higher" in text and "prefers-reduced-motion" in text
    assert "red: the" not in page(result, clips=[sheet("c1", 1, static=True)])


def test_every_metric_and_predictor_is_explained():
    assert set(words.METRICS) == set(metrics.LABELS)
    assert words.word_for("image + ema=0.6") == "pooled" and words.word_for("other.onnx") is None
    text = page(made_up_scores(**{"step": 0.5, "image": 0.2, "image + mean": 0.1, "other.onnx": 0.1}))
    for key, (_, about) in words.WORDS.items():
        assert f"</strong>: {escape(about)}" in text, key
    assert text.count('title="normalised scanpath saliency') >= 2


def test_text_from_files_and_names_is_not_markup():
    evil = "<script>alert('x')</script>\" onload=\"x\x1b[31m $x_{$ 图像"
    result = made_up_scores(**{"step": 0.05, "image": 0.0, evil: 0.1, f"image + {evil}": 0.1})
    result["clips"] = {evil + clip: scores for clip, scores in result["clips"].items()}
    loop = {"clip": evil, "rank": "", "moving": "data:m", "still": "data:s", "width": 600, "height": 338}
    text = page(
        result, origin=replace(ORIGIN, name=evil, teacher=evil, corpus=evil), caveats=[evil], clips=[sheet(evil)],
        checks={"licence": evil}, recipe=evil, loop_clip=loop, summary=summary(result, {**TAKEN, "processor": evil}),
        manifest={"device": evil, "environment": {evil: evil}, "stages": {evil: {"seconds": 1}}},
    )  # fmt: skip
    assert "<script" not in text and 'onload="' not in text and "\x1b" not in text
    assert text.count("&lt;script&gt;") > 20 and "图像" in text


def test_curves_take_the_colours_of_the_page_and_are_the_same_every_time():
    curves = charts.training_curves(LOG)
    assert len(curves) == 3 and curves == charts.training_curves(LOG)
    assert len(charts.training_curves([])) == 2  # the log was lost
    for curve in curves:
        assert not re.search("#[0-9a-f]{6}", curve) and "var(--" in curve and "font-family" not in curve
    names = {colour for curve in curves for colour in re.findall(r"var\((--\w+)\)", curve)}
    text = page(NOTHING)
    assert all(text.count(f"{name}: #") == 2 for name in names)  # in light and in dark


def test_the_heat_map_is_bright_where_the_map_is():
    frame, saliency = np.full((40, 60, 3), 100, np.uint8), np.zeros((20, 30), np.float32)
    saliency[:, 20:] = 1
    picture = drawings.overlay(frame, saliency)
    assert picture.shape == frame.shape and picture.dtype == np.uint8
    assert picture[:, 50:].mean() > 1.5 * picture[:, :30].mean() and (picture[:, :30] == 80).all()


def test_a_difference_is_red_where_it_is_positive_and_blue_where_it_is_negative():
    difference = np.zeros((4, 6), np.float32)
    difference[:, 0], difference[:, -1] = 0.5, -0.5
    picture = drawings.difference_map(np.full((4, 6, 3), 100, np.uint8), difference)
    assert (picture[:, 2] == 45).all()  # a dark grey frame
    assert (picture[:, 0] == drawings.RED).all() and (picture[:, -1] == drawings.BLUE).all()


@pytest.mark.parametrize("size", [(90, 160), (160, 90)])
def test_the_looping_clip_moves_and_stays_small(size):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (*size, 3), np.uint8) for _ in range(12)]  # the worst case for a codec
    panels = [drawings.four_panels(dict.fromkeys("abc", frame) | {"d": frame}) for frame in noise]
    uris = drawings.looping_clip(panels, 6)
    moving, still = (Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris)
    assert moving.n_frames == 3 and moving.info["loop"] == 0 and getattr(still, "n_frames", 1) == 1
    assert moving.size == still.size == panels[0].shape[1::-1] and moving.size[0] * moving.size[1] < 4.1 * drawings.PANEL_PIXELS
    assert len(uris[0]) * 3 / 4 <= drawings.LOOP_BYTES

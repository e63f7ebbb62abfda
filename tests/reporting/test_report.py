"""The report: what it shows of a result, and text from files and names is never markup."""

from dataclasses import replace

import numpy as np

from distill.evaluation import statistics
from distill.reporting import drawings
from distill.reporting.rendering import render
from distill.reporting.report import score_parts
from tests.helpers import ORIGIN, made_up_scores


def page(metrics, **changes):
    values = {
        "origin": ORIGIN, "steps": 12, "caveats": [], "parts": score_parts(metrics), "curves": "", "clips": [], "clip_scores": [],
        "checks": {}, "recipe": "r.toml", "seed": 0, "manifest": {"environment": {}, "stages": {}},
    }  # fmt: skip
    return render("report.html", **values | changes)


def test_every_corpus_has_its_table_with_intervals_and_the_gain_of_the_state():
    first, second = (made_up_scores(step=a, image=0.0, teacher=b) for a, b in ((0.05, 0.5), (0.01, 0.2)))
    text = page(first)
    assert "student, step file" in text and "clip-mean" in text and 'class="interval"' in text
    assert text.count("<table>") == 1 and text.count("<svg") == 1 and "step minus image" in text
    assert text.count('class="best"') == 2  # NSS and CC, of the teacher
    second["clips"] = {f"images.{i}": clip for i, clip in second["clips"].items()}
    text = page(statistics.merge({"dhf1k": first, "images": second}))
    assert "<h3>dhf1k</h3>" in text and "<h3>images</h3>" in text and text.count("<table>") == 2
    assert "nothing was scored" in page({"predictors": {}})


def test_text_from_files_and_names_is_not_markup():
    evil = "<script>alert('x')</script>\" onload=\"x\x1b[31m"
    metrics = made_up_scores(**{"step": 0.05, "image": 0.0, evil: 0.1})
    metrics["clips"] = {evil + clip: scores for clip, scores in metrics["clips"].items()}
    clip = {
        "id": evil,
        "seconds": ["0.0 s"],
        "rows": {"frame": [("data:,", "")]},
        "scored": False,
        "over_time": None,
        "gain": 0.0,
    }
    text = page(
        metrics, origin=replace(ORIGIN, name=evil, teacher=evil, corpus=evil), caveats=[evil], clips=[clip],
        clip_scores=[(evil, {evil: ("1", "[1, 2]")})], checks={"licence": evil}, recipe=evil,
        manifest={"device": evil, "environment": {evil: evil}, "stages": {evil: {"seconds": 1}}},
    )  # fmt: skip
    assert "<script" not in text and 'onload="' not in text and "\x1b" not in text
    assert text.count("&lt;script&gt;") > 10


def test_the_heat_map_is_bright_where_the_map_is():
    frame, saliency = np.full((40, 60, 3), 100, np.uint8), np.zeros((20, 30), np.float32)
    saliency[:, 20:] = 1
    picture = drawings.overlay(frame, saliency)
    assert picture.shape == frame.shape and picture.dtype == np.uint8
    assert picture[:, 50:].mean() > 1.5 * picture[:, :30].mean() and (picture[:, :30] == 80).all()


def test_the_same_curves_give_the_same_text():
    log = [{"step": n, "loss": 1 / (n + 1), "soft.cc": 0.5} for n in range(9)]
    assert drawings.training_curves(log) == drawings.training_curves(log)

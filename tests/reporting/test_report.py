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
from tests.browser import CHROMIUM, browsing
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
    assert "One clip alone cannot tell whether it beats" in said and "In brackets" not in said


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


def test_the_looping_clip_moves_and_stays_small():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (160, 90, 3), np.uint8) for _ in range(12)]  # the worst case for a codec
    panels = [drawings.four_panels(dict.fromkeys("abc", frame) | {"d": frame}) for frame in noise]
    uris = drawings.looping_clip(panels, 6)
    moving, still = (Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris)
    assert moving.n_frames == 3 and moving.info["loop"] == 0 and getattr(still, "n_frames", 1) == 1
    assert moving.size == still.size == panels[0].shape[1::-1] and moving.size[0] * moving.size[1] < 4.1 * drawings.PANEL_PIXELS
    assert len(uris[0]) * 3 / 4 <= drawings.LOOP_BYTES


CONTRAST = """
const light = c => { c = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] };
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c } };
const written = [...document.querySelectorAll("body *")].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
return Math.min(...written.map(e => { const style = getComputedStyle(e), background = behind(e);
  const [a, b] = [light(rgb(e.closest("svg") ? style.fill : style.color)), light(background)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05) }));
"""
"""The lowest contrast of any text with what is behind it, as WCAG 2 defines it."""
SEEN = "return [...document.querySelectorAll('.loop img')].map(e => getComputedStyle(e).display)"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A report with every metric, many predictors and a video, as a file."""
    names = [
        "step",
        "image",
        *(f"image + {how}" for how in ("mean", "ema=0.6", "motion-weighted")),
        "teacher",
        "centred Gaussian",
    ]
    rng = np.random.default_rng(0)
    clips = {
        f"c{n}": {
            "frames_scored": 5, "frames_without_fixations": 0,
            "scores": {name: dict.fromkeys(metrics.LABELS, rng.uniform()) for name in names},
        }
        for n in range(9)
    }  # fmt: skip
    protocol = statistics.PROTOCOLS["clip-mean"]
    about = {"protocol": protocol.name, "about": protocol.about, "frames_scored": 45, "frames_without_fixations": 0}
    picture = drawings.data_uri(np.full((90, 160, 3), 90, np.uint8))
    shown = sheet("c0") | {"rows": {"frame": [(picture, "a frame", "")] * 5}, "seconds": ["0.0 s"] * 5}
    loop = {"clip": "c0", "rank": "", "moving": picture, "still": picture, "width": 300, "height": 169}
    result = {**about, **statistics.summarise(clips, names, protocol), "clips": clips}
    path = tmp_path_factory.mktemp("report") / "report.html"
    text = page(result, clips=[shown, sheet("c1", 1, static=True)], loop_clip=loop, caveats=["a caveat " * 20])
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_the_report_in_a_browser(wide, tmp_path):
    with browsing(tmp_path) as tab:
        tab.call("Page.navigate", url=wide.as_uri())
        tab.wait("document.readyState == 'complete' && document.querySelector('.words')")
        for width in (390, 1100, 1280):
            for scheme in ("light", "dark"):
                tab.look(width, 900, scheme)
                assert tab.run("return document.documentElement.scrollWidth") == width, "the page scrolls sideways"
                assert tab.run(CONTRAST) >= 4.5
        assert tab.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"  # dark

        tab.look(390, 900)
        tab.run("document.querySelector('.scroll').scrollLeft = 200")  # the names of the rows stay
        assert tab.run("return document.querySelector('tbody th').getBoundingClientRect().left") == 16
        open_word = "document.querySelector(':popover-open')?.textContent ?? ''"
        tab.run("[...document.querySelectorAll('.word')].find(e => e.textContent == 'bIoU').focus()")
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
        tab.wait(f"{open_word}.startsWith('bIoU: block IoU')")
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27)
        tab.wait(f"{open_word} == ''")

        assert tab.run(SEEN) == ["block", "none"]
        tab.click(".loop input")
        assert tab.run(SEEN) == ["none", "block"]
        tab.click(".loop input")
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        assert tab.run(SEEN) == ["none", "block"]
        assert [address for address in tab.asked if not address.startswith("data:")] == [wide.as_uri()]
        assert not tab.complaints

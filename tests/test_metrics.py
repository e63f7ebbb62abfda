import csv

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import metrics

COLUMNS = {"cc": "CC", "sim": "SIM", "nss": "NSS", "auc_judd": "AUC_Judd_nojitter", "kld": "KLdiv"}


def cases(golden):
    with (golden / "metrics" / "official.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        images = [
            cv2.imread(str(golden / "metrics" / f"{kind}_{row['case']}.png"), cv2.IMREAD_GRAYSCALE)
            for kind in ("pred", "map", "fix")
        ]
        yield row, *images


def test_the_official_matlab_code_gives_the_same(golden):
    compared = 0
    for row, prediction, density, fixations in cases(golden):
        if prediction.shape != density.shape:  # resized in MATLAB's way first
            continue
        scores = metrics.score(prediction / 255, density / 255, fixations > 0)
        for name, column in COLUMNS.items():
            assert scores[name] == pytest.approx(float(row[column]), abs=1e-6), (row["case"], name)
        compared += 1
    assert compared >= 4


def random_frame(seed):
    rng = np.random.default_rng(seed)
    fixations = np.zeros((24, 40), bool)
    fixations[rng.integers(0, 24, 9), rng.integers(0, 40, 9)] = True
    return rng.random((24, 40)), rng.random((24, 40)), fixations


@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_scale_and_offset_do_not_matter_where_they_must_not(seed, gain, offset):
    prediction, density, fixations = random_frame(seed)
    changed = metrics.score(prediction * gain + offset, density, fixations)
    for name in ("nss", "cc", "sim", "auc_judd"):
        assert changed[name] == pytest.approx(metrics.score(prediction, density, fixations)[name], abs=1e-6), name


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_truth_itself_scores_best(seed):
    prediction, density, fixations = random_frame(seed)
    perfect, other = (metrics.score(p, density, fixations) for p in (density, prediction))
    assert perfect["cc"] == pytest.approx(1) and perfect["sim"] == pytest.approx(1) and abs(perfect["kld"]) < 1e-9
    assert other["cc"] <= 1 and other["sim"] <= 1 and other["kld"] >= -1e-9


def test_auc_of_a_perfect_and_of_a_blind_ranking():
    fixations = np.zeros((10, 10), bool)
    fixations[3, 3:6] = True
    assert metrics.auc_judd(fixations + 0.5 * np.random.default_rng(0).random((10, 10)), fixations) == pytest.approx(1)
    assert metrics.auc_judd(np.zeros((10, 10)), fixations) == pytest.approx(0.5, abs=0.02)


def test_a_map_without_contrast_has_no_correlation():
    _, density, fixations = random_frame(0)
    flat = metrics.score(np.full(density.shape, 0.3), density, fixations)
    assert flat["nss"] == 0 and flat["cc"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, d, f: (p[:-1], d, f), "shapes differ"),
        (lambda p, d, f: (p, d, np.zeros_like(f)), "without fixations"),
        (lambda p, d, f: (np.where(f, np.nan, p), d, f), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        metrics.score(*change(*random_frame(1)))

"""The metrics of one frame: against the authors' own code, against plain definitions, and where input is bad."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation import metrics, protocols
from distill.evaluation.protocols import PROTOCOLS
from distill.recipe import keys

OFFICIAL = {"cc": "CC", "sim": "SIM", "nss": "NSS", "kld": "KLdiv"}
AIM2024 = {"cc": "CC", "sim": "SIM", "nss": "NSS", "auc_judd": "AUC_Judd"}


def read(golden, name):
    return cv2.imread(str(golden / "metrics" / name), cv2.IMREAD_GRAYSCALE)


def cases(golden, table):
    with (golden / "metrics" / table).open(newline="") as file:
        for row in csv.DictReader(file):
            yield row, *(read(golden, f"{kind}_{row['case']}.png") for kind in ("pred", "map", "fix"))


# --- what the authors' code computes ---------------------------------------------------------------------------------


def test_dhf1ks_matlab_code_gives_the_same(golden):
    compared = set()
    for row, prediction, density, fixations in cases(golden, "official.csv"):
        resized = prediction.shape != density.shape
        truth = protocols.ground_truth(density, fixations > 0)
        scores = protocols.score_against(truth, prediction, PROTOCOLS["dhf1k-official"])
        scores["AUC_Judd_nojitter"] = metrics.auc_judd(metrics.imresize(prediction, density.shape), fixations > 0)
        for name, column in {**OFFICIAL, "AUC_Judd_nojitter": "AUC_Judd_nojitter"}.items():
            expected = float(row[column])
            assert scores[name] == pytest.approx(expected, abs=2e-3 if resized else 1e-6), (row["case"], name)
        # Jitter breaks the ties of 8-bit maps, which otherwise count against them.
        assert abs(scores["auc_judd"] - float(row["AUC_Judd_nojitter"])) < 0.01
        compared.add(resized)
    assert compared == {True, False}


def test_dhf1ks_shuffled_auc_agrees_within_its_noise(golden):
    others = read(golden, "other_fixations.png") > 0
    for row, prediction, density, fixations in cases(golden, "official.csv"):
        resized = metrics.imresize(prediction, density.shape)
        seeds = [metrics.s_auc_splits(resized, fixations > 0, others, seed=seed) for seed in range(20)]
        # Theirs is one such mean over 100 splits, so it strays from the mean of many as each of ours does.
        spread = np.std(seeds)
        assert 0 < spread < 0.01
        assert abs(np.mean(seeds) - float(row["sAUC_mean100"])) < 4 * spread, row["case"]


def test_the_aim_2024_benchmarks_code_gives_the_same(golden):
    for row, prediction, density, fixations in cases(golden, "aim2024.csv"):
        rows, columns = np.nonzero(fixations)
        twice = np.r_[rows, rows[:3]], np.r_[columns, columns[:3]]
        scores = protocols.score(prediction, density, twice, PROTOCOLS["aim2024"])
        assert set(scores) == set(AIM2024)
        for name, column in AIM2024.items():
            assert scores[name] == pytest.approx(float(row[column]), abs=1e-5), (row["case"], name)


def test_multiplicity_counts_in_aim_2024_and_nowhere_else(golden):
    prediction, density, fixations = (read(golden, f"{kind}_0.png") for kind in ("pred", "map", "fix"))
    rows, columns = np.nonzero(fixations)
    once, twice = (rows, columns), (np.r_[rows, rows[:3]], np.r_[columns, columns[:3]])
    for name, protocol in PROTOCOLS.items():
        a, b = (protocols.score(prediction, density, points, protocol) for points in (once, twice))
        assert (a["nss"] != b["nss"]) == (name == "aim2024"), name


def test_imresize_preserves_ramps_and_constants_and_is_anti_aliased():
    ramp = np.add.outer(np.arange(40.0), 3 * np.arange(60.0))
    for shape in ((80, 120), (20, 30), (13, 17)):
        resized = metrics.imresize(ramp, shape)
        y, x = ((np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(shape, ramp.shape, strict=True))
        inner = (slice(3, -3), slice(3, -3))  # the border is mirrored
        np.testing.assert_allclose(resized[inner], np.add.outer(y, 3 * x)[inner], atol=0.02)
        np.testing.assert_allclose(metrics.imresize(np.full((40, 60), 7.0), shape), 7)
    # A pattern above the Nyquist frequency fades rather than turning up as another one.
    stripes = np.tile([0.0, 1.0], 64)[None].repeat(64, 0)
    assert np.ptp(metrics.imresize(stripes, (64, 40))[:, 4:-4]) < 0.2 < np.ptp(cv2.resize(stripes, (40, 64)))


def test_imresize_is_pillows_bicubic_except_at_the_border():
    image_of = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).random((60, 90)).astype(np.float32)
    for height, width in ((25, 41), (120, 170), (60, 31)):
        theirs = np.asarray(image_of.fromarray(noise).resize((width, height), image_of.Resampling.BICUBIC))
        inner = (slice(5, -5), slice(5, -5))
        np.testing.assert_allclose(metrics.imresize(noise, (height, width))[inner], theirs[inner], atol=1e-5)


def test_imresize_of_8_bits_rounds_and_clips():
    step = np.zeros((8, 8), np.uint8)
    step[:, 4:] = 255
    resized = metrics.imresize(step, (16, 16))
    assert resized.dtype == np.uint8 and resized.min() == 0 and resized.max() == 255  # the overshoot is clipped
    assert metrics.imresize(step, (8, 8)) is step


def test_recipes_and_evaluation_name_the_same_protocols():
    assert tuple(PROTOCOLS) == keys.PROTOCOLS and all(p.name == name for name, p in PROTOCOLS.items())
    assert all(set(p.metrics) <= set(metrics.LABELS) and p.average in ("clips", "frames") for p in PROTOCOLS.values())


# --- what the definitions say ----------------------------------------------------------------------------------------


def random_frame(seed, height=24, width=40):
    rng = np.random.default_rng(seed)
    fixations = np.zeros((height, width), bool)
    fixations[rng.integers(0, height, 9), rng.integers(0, width, 9)] = True
    return rng.random((height, width)), rng.random((height, width)), fixations


@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_metrics_that_are_invariant_to_scale_and_offset(seed, gain, offset):
    prediction, density, fixations = random_frame(seed)
    changed = protocols.score(prediction * gain + offset, density, fixations)
    for name in ("nss", "cc", "sim", "auc_judd", "block_cc"):
        assert changed[name] == pytest.approx(protocols.score(prediction, density, fixations)[name], abs=1e-6), name


@given(st.integers(0, 10_000), st.sampled_from(list(PROTOCOLS)))
@settings(max_examples=40, deadline=None)
def test_every_score_is_in_its_range(seed, name):
    prediction, density, fixations = random_frame(seed)
    rng = np.random.default_rng(seed)
    others = rng.integers(0, 24, 50), rng.integers(0, 40, 50)
    truth = protocols.ground_truth(density, fixations, others, density)
    scores = protocols.score_against(truth, prediction, PROTOCOLS[name])
    assert set(scores) == set(PROTOCOLS[name].metrics) - {"flicker"}
    low = {"cc": -1, "sim": 0, "auc_judd": 0, "s_auc": 0, "kld": 0, "block_iou": 0, "block_cc": -1}
    for metric, value in scores.items():
        assert np.isfinite(value) and low.get(metric, -np.inf) - 1e-9 <= value
        assert value <= (np.inf if metric in ("nss", "kld", "ig") else 1 + 1e-9), metric


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_ground_truth_scores_best(seed):
    prediction, density, fixations = random_frame(seed, 48, 64)
    perfect, other = (protocols.score(p, density, fixations) for p in (density, prediction))
    for name in ("cc", "sim", "block_cc"):
        assert perfect[name] == pytest.approx(1) and other[name] <= 1
    assert abs(perfect["kld"]) < 1e-9 <= other["kld"]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_blurred_fixations_beat_the_same_pixels_shuffled(seed):
    _, _, fixations = random_frame(seed)
    density = cv2.GaussianBlur(fixations.astype(float), (0, 0), 2)
    shuffled = np.random.default_rng(seed).permutation(density.ravel()).reshape(density.shape)
    right, wrong = (protocols.score(p, density, fixations) for p in (density, shuffled))
    assert right["nss"] > wrong["nss"] and right["auc_judd"] > wrong["auc_judd"] and right["kld"] < wrong["kld"]


@given(st.integers(0, 10_000), st.sampled_from([np.float32, np.float64, np.uint8]), st.integers(1, 959))
@settings(max_examples=60, deadline=None)
def test_auc_judd_equals_the_plain_loop(seed, kind, count):
    """Bins and a partial sort must give what comparing every pixel with every threshold gives, ties included."""
    rng = np.random.default_rng(seed)
    prediction = (rng.random((24, 40)) ** 4 * 255).astype(kind)
    fixations = np.zeros(960, bool)
    fixations[rng.permutation(960)[:count]] = True
    values = np.sort(prediction.ravel()[fixations])[::-1]
    above = np.array([(prediction >= v).sum() for v in values])
    ranks = np.arange(1, count + 1)
    expected = np.trapezoid(np.r_[0, ranks / count, 1], np.r_[0, (above - ranks) / (960 - count), 1])
    assert metrics.auc_judd(prediction, fixations.reshape(24, 40)) == pytest.approx(expected, abs=1e-12)


def test_jitter_breaks_the_ties_of_8_bit_maps_and_changes_nothing_else():
    prediction, _, fixations = random_frame(3)
    plain = metrics.auc_judd(prediction, fixations)
    assert metrics.auc_judd(prediction, fixations, np.random.default_rng(0)) == pytest.approx(plain, abs=1e-4)
    coarse = (prediction * 3).astype(np.uint8)
    jittered = [metrics.auc_judd(coarse, fixations, np.random.default_rng(seed)) for seed in range(40)]
    # On average jitter gives what ties that count half give, and the half step that trapezoids add.
    ranked = metrics.s_auc(coarse, fixations, ~fixations) + 0.5 / fixations.sum()
    assert np.std(jittered) > 0.01 and np.mean(jittered) == pytest.approx(ranked, abs=0.02)
    assert metrics.auc_judd(coarse, fixations) < ranked


def test_auc_of_a_perfect_and_of_a_constant_map():
    fixations = np.zeros((10, 10), bool)
    fixations[3, 3:6] = True
    assert metrics.auc_judd(fixations + 0.5 * np.random.default_rng(0).random((10, 10)), fixations) == pytest.approx(1)
    assert metrics.auc_judd(np.zeros((10, 10)), fixations) == pytest.approx(0.5, abs=0.02)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_shuffled_auc_counts_pairs(seed):
    prediction, _, fixations = random_frame(seed)
    prediction = np.round(prediction, 1)  # with ties
    others = np.random.default_rng(seed).integers(0, 960, 70)
    here, there = prediction[fixations][:, None], prediction.ravel()[others]
    expected = (here > there).mean() + (here == there).mean() / 2
    assert metrics.s_auc(prediction, fixations, others) == pytest.approx(expected)
    assert metrics.s_auc(-prediction, fixations, others) == pytest.approx(1 - expected)


def test_a_centre_prior_gains_nothing_in_shuffled_auc():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:90, :160]
    centre = np.exp(-((y - 45) ** 2 / 450 + (x - 80) ** 2 / 1500))
    draw = lambda n: np.clip(rng.normal((45, 80), (15, 27), (n, 2)), 0, (89, 159)).astype(int).T  # noqa: E731
    rows, columns = draw(400)
    others = np.ravel_multi_index(draw(4000), (90, 160))
    fixations = np.ravel_multi_index((rows, columns), (90, 160))
    assert metrics.auc_judd(centre, np.unique(fixations)) > 0.75
    for shuffled in (metrics.s_auc, metrics.s_auc_splits):
        assert shuffled(centre, fixations, others) == pytest.approx(0.5, abs=0.03)


def test_information_gain_is_in_bits_over_the_baseline():
    _, baseline, fixations = random_frame(1)
    assert metrics.information_gain(baseline, baseline, fixations) == 0
    doubled = np.where(fixations, 2.0, 1.0)  # against a uniform baseline
    expected = 1 - np.log2(doubled.mean())
    assert metrics.information_gain(doubled, np.ones_like(doubled), fixations) == pytest.approx(expected)


def test_block_iou_is_computed_like_the_downstreams():
    density = np.zeros((50, 70))
    density[:32, :32] = 3.0  # four blocks of a 3 x 4 grid; the rest of the frame, 2 rows and 6 columns, is dropped
    prediction = np.zeros((50, 70))
    prediction[:16, :16] = 0.5  # on the threshold counts
    prediction[:16, 16:32] = 0.49
    prediction[16:32, 32:48] = 1.0
    prediction[48:, 64:] = 1.0
    assert metrics.block_iou(prediction, density) == pytest.approx(1 / 5)
    assert metrics.block_iou(prediction * 0.4, density) == 0  # it reads absolute values
    assert metrics.block_iou(prediction * 255, density) == metrics.block_iou(prediction, density)  # 8 bits: by its maximum
    assert metrics.block_iou(density * 0, density * 0) == 1
    assert np.isnan(metrics.block_iou(np.ones((15, 90)), np.ones((15, 90))))


def test_flicker_is_measured_in_still_blocks():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 250, (48, 64, 3), np.uint8)
    moved = frame.copy()
    moved[:, :32] = np.roll(frame[:, :32], 3, 1)
    still = metrics.still_blocks(moved, frame)
    assert np.array_equal(still, np.tile([False, False, True, True], (3, 1)))
    before = rng.random((48, 64)).astype(np.float32)
    now = before.copy()
    now[:, :32] += 0.5  # where it moves, a map may change
    assert metrics.flicker(now, before, still) == 0
    now[:, 48:] -= 0.2  # half of what holds still
    assert metrics.flicker(now, before, still) == pytest.approx(0.1)
    assert np.isnan(metrics.flicker(now, before, np.zeros_like(still)))


def test_still_blocks_ignore_noise_and_detect_a_small_shift():
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3)).astype(np.float32), (0, 0), 2) * 3 - 250
    frame = np.clip(frame, 8, 247)
    noisy = [np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    assert metrics.still_blocks(*noisy).all()
    assert not metrics.still_blocks(np.roll(frame, 2, 1).astype(np.uint8), frame.astype(np.uint8)).any()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_constant_map_scores_at_chance(name):
    _, density, fixations = random_frame(0)
    truth = protocols.ground_truth(density, fixations, (np.arange(9), np.arange(9)), np.ones_like(density))
    for value in (0.0, 0.3, 1.0):
        flat = protocols.score_against(truth, np.full(density.shape, value), PROTOCOLS[name])
        assert flat["nss"] == 0 and flat["cc"] == 0 and flat["auc_judd"] == 0.5 and flat.get("s_auc", 0.5) == 0.5
        assert flat.get("ig", 0) == 0
        uniform = np.minimum(1 / density.size, metrics.Map(density).min_max_density).sum()
        assert flat["sim"] == pytest.approx(uniform)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_fixation_and_fixations_everywhere(name):
    prediction, density, _ = random_frame(0)
    one, everywhere = np.zeros(density.shape, bool), np.ones(density.shape, bool)
    one[np.unravel_index(prediction.argmax(), one.shape)] = True
    assert protocols.score(prediction, density, one, PROTOCOLS[name])["auc_judd"] == pytest.approx(1, abs=2e-3)
    all_over = protocols.score(prediction, density, everywhere, PROTOCOLS[name])
    assert all_over["nss"] == pytest.approx(0, abs=1e-6)
    if name != "aim2024":  # whose code counts false positives over all pixels
        assert all_over["auc_judd"] == 0.5


def test_negative_values_are_shifted_to_zero_before_they_count_as_mass():
    prediction, density, fixations = random_frame(0)
    lifted = protocols.score(prediction - prediction.min(), density, fixations)
    assert protocols.score(prediction - 3, density, fixations)["kld"] == pytest.approx(lifted["kld"])


def test_a_prediction_of_another_size_is_resized_as_the_protocol_does_it():
    rng = np.random.default_rng(0)
    small = cv2.GaussianBlur(rng.random((12, 20)), (0, 0), 2)
    _, density, fixations = random_frame(0)
    linear = cv2.resize(small, (40, 24), interpolation=cv2.INTER_LINEAR)
    assert protocols.score(small, density, fixations) == protocols.score(linear, density, fixations)
    eight = metrics.imresize(metrics.as_8_bit(small), (24, 40))
    for name in ("mit", "dhf1k-official"):
        assert protocols.score(small, density, fixations, PROTOCOLS[name]) == protocols.score(
            eight, density, fixations, PROTOCOLS[name]
        )


def test_8_bit_protocols_scale_floats_to_their_peak():
    prediction, density, fixations = random_frame(0)
    assert metrics.as_8_bit(prediction * 0.2).max() == 255 and metrics.as_8_bit(np.zeros((4, 4))).max() == 0
    a, b = (protocols.score(prediction * gain, density, fixations, PROTOCOLS["mit"]) for gain in (1.0, 0.125))
    assert a == b


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, d, f: (p, d, f[:-1]), "shapes differ: density .24, 40., fixations .23, 40."),
        (lambda p, d, f: (p, d, np.zeros_like(f)), "without fixations"),
        (lambda p, d, f: (np.where(f, np.nan, p), d, f), "NaN or infinity"),
        (lambda p, d, f: (np.where(f, np.inf, p), d, f), "NaN or infinity"),
        (lambda p, d, f: (p, np.where(f, np.nan, d), f), "NaN or infinity"),
        (lambda p, d, f: (p[None], d, f), "two dimensions, got shape .1, 24, 40."),
        (lambda p, d, f: (p, d, (np.array([3, 24]), np.array([0, 0]))), "outside the frame of 40x24 px"),
        (lambda p, d, f: (p, d, (np.array([3]), np.array([-1]))), "outside the frame"),
        (lambda p, d, f: (p, d, (np.zeros(0, int), np.zeros(0, int))), "without fixations"),
    ],
)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_invalid_input_is_refused(change, message, name):
    with pytest.raises(ValueError, match=message):
        protocols.score(*change(*random_frame(1)), PROTOCOLS[name])


def test_a_baseline_of_another_size_is_refused():
    _, density, fixations = random_frame(1)
    with pytest.raises(ValueError, match="shapes differ"):
        protocols.ground_truth(density, fixations, baseline=density[:-1])


def test_the_same_seed_draws_the_same():
    prediction, density, fixations = random_frame(2)
    truth = protocols.ground_truth(density, fixations, (np.arange(20), np.arange(20)), seed=5)
    once, again = (protocols.score_against(truth, prediction, PROTOCOLS["mit"]) for _ in range(2))
    other = protocols.score_against(replace(truth, seed=6), prediction, PROTOCOLS["mit"])
    assert once == again and once["s_auc"] != other["s_auc"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_constant_density_is_no_ground_truth(name):
    prediction, density, fixations = random_frame(1)
    whole, scores = (protocols.score(prediction, d, fixations, PROTOCOLS[name]) for d in (density, np.full_like(density, 0.5)))
    assert set(whole) - set(scores) >= {"cc", "sim"} and scores["nss"] == whole["nss"]

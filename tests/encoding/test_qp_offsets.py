from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.encoding import qp_offsets as tested
from distill.encoding.qp_offsets import HALVING, MAPPINGS, NEUTRAL, STRONGEST, Shaping, areas, block_bits, block_means, grid
from distill.evaluation.centre import centred_gaussian


def qp_offsets(saliency, strength, block=16, size=None, previous=None, bits=None, **shaping):
    """The offsets of a map on the linear scale without a prior, unless `shaping` overrides that; see `scaled`."""
    shaping = {"scale": "linear", "neutral": "off", "prior": 0.0, "floor": 0.0, **shaping}
    return tested.qp_offsets(saliency, Shaping(strength=strength, block=block, **shaping), size, previous, bits)


def scaled(saliency, block=16):
    means = block_means(saliency, block)
    return means / max(means.max(), 0.2)


MAPS = arrays(
    np.float32, st.tuples(st.integers(1, 70), st.integers(1, 70)), elements=st.floats(0, 1, width=32, allow_subnormal=False)
)
BLOCK = st.sampled_from([16, 32, 64])
SHAPINGS = st.builds(  # every mapping, at any strength
    lambda shaping, strength, **more: replace(shaping, strength=strength * STRONGEST[shaping.scale], **more),
    st.sampled_from(list(MAPPINGS.values())), st.floats(0, 1),
    block=BLOCK, neutral=st.sampled_from(NEUTRAL), prior=st.floats(0, 0.9),
)  # fmt: skip
quick = settings(max_examples=40, deadline=None)


def test_salient_blocks_get_lower_qp_and_partial_blocks_count_in_part():
    saliency = np.zeros((40, 50), np.float32)
    saliency[32:, 48:] = 1  # 8 rows and 2 columns: all that there is of the last block
    saliency[:16, :8] = 1  # half of the first block
    offsets = qp_offsets(saliency, 6)
    assert offsets.dtype == np.int32 and offsets.shape == grid((40, 50), 16) == (3, 4)
    assert offsets[2, 3] == -6 and offsets[0, 0] == 0 and (np.delete(offsets.ravel(), [0, 11]) == 6).all()


@quick
@given(MAPS, BLOCK)
def test_block_means_are_means_of_blocks(saliency, block):
    means = block_means(saliency, block)
    for row, column in np.ndindex(*means.shape):
        part = saliency[row * block : (row + 1) * block, column * block : (column + 1) * block]
        assert means[row, column] == pytest.approx(part.mean(dtype=float), abs=1e-9)
    assert areas(saliency.shape, block).sum() == saliency.size
    assert (means * areas(saliency.shape, block)).sum() / saliency.size == pytest.approx(saliency.mean(dtype=float))


@quick
@given(MAPS, BLOCK, st.integers(1, 200), st.integers(1, 200))
def test_a_map_of_another_size_covers_the_frame(saliency, block, height, width):
    means = block_means(saliency, block, (height, width))
    assert means.shape == grid((height, width), block)
    average = (means * areas((height, width), block)).sum() / (height * width)
    assert average == pytest.approx(saliency.mean(dtype=float), abs=1e-9)
    assert float(saliency.min()) - 1e-9 <= means.min() and means.max() <= float(saliency.max()) + 1e-9


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("size", [(1080, 1920), (97, 161), (16, 40)])
def test_a_block_map_gives_what_the_whole_map_gives(block, size):
    saliency = np.random.default_rng(1).random(size)
    blocks = block_means(saliency, 16)
    assert np.allclose(block_means(blocks, block, size, cell=16), block_means(saliency, block), atol=1e-12)
    with pytest.raises(ValueError, match=r"the map has .* cells"):
        block_means(blocks[:, :-1], block, size, cell=16)


def test_a_map_of_half_the_size_is_the_map_with_every_pixel_doubled():
    small = np.random.default_rng(0).random((30, 41), np.float32)
    doubled = small.repeat(2, 0).repeat(2, 1)
    assert np.allclose(block_means(small, 16, (60, 82)), block_means(doubled, 16))


@quick
@given(MAPS, SHAPINGS)
def test_more_salient_is_never_a_higher_qp_and_nothing_is_beyond_the_limits(saliency, shaping):
    shaping = replace(shaping, prior=0)
    offsets = tested.qp_offsets(saliency, shaping)
    order = np.argsort(block_means(saliency, shaping.block).ravel())
    assert (np.diff(offsets.ravel()[order]) <= 0).all()
    assert shaping.lowest <= offsets.min() and offsets.max() <= shaping.highest


@quick
@given(MAPS, BLOCK, st.floats(0, 3), st.floats(0, 0.9))
def test_on_the_log_scale_offsets_follow_the_density_alone(saliency, block, strength, prior):
    """-strength log2 of the weight, which a darker map does not change; a blank map leaves prior and floor."""
    shaping = Shaping(strength=strength, block=block, prior=prior, neutral="off", lowest=-100, highest=100)
    area = areas(saliency.shape, block)
    means, centred = (block_means(m, block) for m in (saliency, centred_gaussian(*saliency.shape)))
    known = prior * centred / np.average(centred, weights=area) + 0.1
    seen = (0.9 - prior) * means / max(np.average(means, weights=area), 1e-99)
    weight = seen + known if saliency.any() else known / (prior + 0.1)
    assert np.average(weight, weights=area) == pytest.approx(1)
    offsets = tested.qp_offsets(saliency, shaping)
    assert np.abs(offsets + strength * np.log2(weight)).max() <= 0.5 + 1e-6
    assert np.abs(tested.qp_offsets(saliency / 2, shaping) - offsets).max() <= 1  # rounding of ties


def test_a_doubling_of_the_saliency_is_worth_the_strength():
    saliency = np.zeros((64, 64), np.float32)
    saliency[:16] = [[0.1] * 16 + [0.2] * 16 + [0.4] * 16 + [0.8] * 16] * 16
    shaping = replace(MAPPINGS["log"], strength=3, prior=0, floor=1e-9, neutral="off", lowest=-100, highest=100)
    assert np.diff(tested.qp_offsets(saliency, shaping)[0]).tolist() == [-3, -3, -3]
    blank = tested.qp_offsets(np.zeros((64, 64)), MAPPINGS["log"])
    assert blank[1, 1] < blank[0, 1] < blank[0, 0] and (blank == blank[::-1, ::-1]).all()  # the Gaussian alone
    assert not tested.qp_offsets(np.zeros((64, 64)), replace(MAPPINGS["log"], prior=0)).any()


def test_the_strong_mapping_moves_more_and_takes_no_more_than_its_limit():
    saliency = centred_gaussian(480, 640) ** 4
    normal, strong = (tested.qp_offsets(saliency, MAPPINGS[name]) for name in ("log", "log-strong"))
    assert strong.min() < normal.min() and strong.max() == 4 and strong.min() >= -8


def left_over(offsets, weights, neutral):
    """By how many QP all blocks would have to be moved once more; 0 where the frame keeps what `neutral` requires."""
    weights = weights / weights.sum()
    return (offsets * weights).sum() if neutral == "mean" else -HALVING * np.log2((np.exp2(-offsets / HALVING) * weights).sum())


@quick
@given(MAPS, SHAPINGS)
def test_neutral_offsets_keep_what_they_are_to_keep(saliency, shaping):
    if shaping.neutral == "off" or shaping.highest == 4:  # at its limit the strong one may not
        return
    offsets = tested.qp_offsets(saliency, shaping)
    assert abs(left_over(offsets, areas(saliency.shape, shaping.block), shaping.neutral)) <= 0.5 + 1e-3


@quick
@given(MAPS, BLOCK, st.floats(0, 12))
def test_bits_neutral_offsets_are_never_below_mean_neutral_ones(saliency, block, strength):
    bits, mean = (qp_offsets(saliency, strength, block, neutral=neutral) for neutral in ("bits", "mean"))
    assert (bits >= mean).all()  # bits fall ever more slowly with the offset


def test_the_coarser_the_quantiser_the_more_of_the_bits_are_in_costly_blocks():
    rng = np.random.default_rng(0)
    picture = rng.normal(100, 2, (64, 64))
    picture[:, :32] += rng.normal(0, 20, (64, 32))
    shares = [block_bits(picture, None, 16, picture.shape, crf)[:, :2].sum() for crf in (18, 28, 38)]
    assert 0.5 < shares[0] < shares[1] < shares[2] < 1


def test_a_small_target_keeps_its_distance_when_made_neutral():
    saliency = np.zeros((160, 160), np.float32)
    saliency[:16, :16] = 1
    for neutral in ("bits", "mean"):
        offsets = qp_offsets(saliency, 4, neutral=neutral)
        assert offsets[0, 0] == -8 and offsets[1, 1] == 0
        assert qp_offsets(np.full((50, 50), 0.3), 4, neutral=neutral).max() == 0


def test_half_a_frame_costs_more_bits_than_the_other_half_gives_back():
    saliency = np.zeros((64, 64), np.float32)
    saliency[:, :32] = 1
    assert qp_offsets(saliency, 6, neutral="off")[0].tolist() == [-6, -6, 6, 6]  # bits grow more than they shrink
    assert qp_offsets(saliency, 6, neutral="mean")[0].tolist() == [-6, -6, 6, 6]
    assert qp_offsets(saliency, 6, neutral="bits")[0].tolist() == [-4, -4, 8, 8]  # and here the growth is paid for


@quick
@given(MAPS, BLOCK, st.floats(0, 12), st.integers(0, 100))
def test_bits_are_unchanged_for_blocks_of_unequal_cost(saliency, block, strength, seed):
    bits = np.random.default_rng(seed).random(grid(saliency.shape, block)) ** 4 + 1e-3
    offsets = qp_offsets(saliency, strength, block, neutral="bits", bits=bits)
    assert abs(left_over(offsets, bits, "bits")) <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="the bits are of"):
        qp_offsets(saliency, strength, block, neutral="bits", bits=np.ones((9, 9)))


def test_estimated_bits_follow_texture_and_change():
    rng = np.random.default_rng(0)
    still, noise = np.full((40, 50), 90.0), rng.normal(0, 30, (40, 50))
    still[:, :32] += noise[:, :32]
    first = block_bits(still, None, 16, still.shape)
    assert first.shape == (3, 4) and first.sum() == pytest.approx(1)
    assert first[:2, :2].min() > 50 * first[:2, 2].max() and first[0, 2] == pytest.approx(8 * first[0, 3])  # 16 and 2 columns
    moved = still.copy()
    moved[:16, :16] = rng.normal(90, 30, (16, 16))
    second = block_bits(moved, still, 16, still.shape)
    assert second[0, 0] > 0.9  # the rest is predicted from the frame before
    assert np.allclose(block_bits(still, still, 16, still.shape), areas((40, 50), 16) / 2000)  # nothing at all: by area
    assert np.allclose(
        block_bits(still + 40, still, 16, still.shape), block_bits(still, still, 16, still.shape)
    )  # brighter all over: predicted
    assert np.allclose(block_bits(still.repeat(2, 0).repeat(2, 1), None, 32, (80, 100)), first)


def test_on_the_linear_scale_a_low_map_is_scaled_to_its_peak_and_a_faint_one_is_not():
    saliency = np.full((64, 64), 0.1, np.float32)
    saliency[:16, :16] = 0.4
    assert qp_offsets(saliency, 6)[0].tolist() == [-6, 3, 3, 3]
    assert qp_offsets(saliency / 10, 6)[0].tolist() == [4, 5, 5, 5]
    assert qp_offsets(saliency * 0, 6).tolist() == [[6] * 4] * 4


@quick
@given(MAPS, BLOCK)
def test_on_the_linear_scale_a_prior_mixes_a_centred_gaussian_in(saliency, block):
    centred = block_means(centred_gaussian(*saliency.shape), block)
    for prior in (0.5, 1.0):
        wanted = 6 * (1 - 2 * ((1 - prior) * scaled(saliency, block) + prior * centred))
        assert np.abs(qp_offsets(saliency, 6, block, prior=prior) - wanted).max() <= 0.5 + 1e-5


def test_the_linear_mapping_gives_what_it_gave_before_there_was_another():
    saliency = centred_gaussian(64, 90)[:, ::-1] * np.linspace(0.1, 0.9, 90, dtype=np.float32)
    before = {
        "mean": [[2, 2, 1, 0, 1, 2], [2, -1, -4, -4, -1, 1], [2, -1, -4, -4, -1, 1], [2, 2, 1, 0, 1, 2]],
        "off": [[4, 3, 2, 2, 3, 4], [3, 1, -3, -3, 0, 3], [3, 1, -3, -3, 0, 3], [4, 3, 2, 2, 3, 4]],
    }
    for neutral, offsets in before.items():
        assert tested.qp_offsets(saliency, replace(MAPPINGS["linear"], neutral=neutral)).tolist() == offsets


@quick
@given(MAPS, st.floats(0, 0.2), st.integers(0, 100))
def test_small_changes_of_the_map_change_no_offset(saliency, noise, seed):
    saliency[:16, :16] = 1  # the peak stays where it is
    before = qp_offsets(saliency, 4)
    shaken = saliency + np.random.default_rng(seed).uniform(-1, 1, saliency.shape) * noise * 0.25 / 8
    shaken[:16, :16] = 1
    again = qp_offsets(np.clip(shaken, 0, 1), 4, previous=before, hold=0.25)
    assert np.array_equal(before, again)


@quick
@given(MAPS, st.floats(0, 12), st.floats(0, 1), st.integers(0, 100))
def test_a_held_offset_is_never_wrong_by_more_than_a_half_and_hold(saliency, strength, hold, seed):
    rng = np.random.default_rng(seed)
    before = qp_offsets(rng.random(saliency.shape), strength)
    wanted = (1 - 2 * scaled(saliency)) * strength
    assert (np.abs(qp_offsets(saliency, strength, previous=before, hold=hold) - wanted) <= 0.5 + hold + 1e-9).all()


@pytest.mark.parametrize(
    ("saliency", "changes", "message"),
    [
        (np.zeros((4, 4, 1)), {}, r"\[height, width\]"),
        (np.zeros((0, 4)), {}, r"\[height, width\]"),
        (np.full((4, 4), np.nan), {}, r"must lie in \[0, 1\]"),
        (np.full((4, 4), 1.5), {}, r"must lie in \[0, 1\]; got 1.5"),
        (np.zeros((4, 4)), {"strength": 13}, "from 0 to 12 where the scale is linear; got 13"),
        (np.zeros((4, 4)), {"scale": "log", "floor": 0.1}, "from 0 to 3 where the scale is log; got 4"),
        (np.zeros((4, 4)), {"scale": "log", "strength": 1}, "for log floor > 0"),
        (np.zeros((4, 4)), {"scale": "root"}, "log, linear; got 'root'"),
        (np.zeros((4, 4)), {"lowest": 1}, "lowest <= 0"),
        (np.zeros((4, 4)), {"hold": -1}, "hold >= 0"),
        (np.zeros((4, 4)), {"neutral": "size"}, "bits, mean, off; got 'size'"),
        (np.zeros((4, 4)), {"prior": 1.5}, r"prior \+ floor <= 1"),
        (np.zeros((4, 4)), {"previous": np.zeros((2, 2), np.int32)}, r"\(2, 2\) blocks, this one has \(1, 1\)"),
    ],
)
def test_invalid_arguments_are_refused(saliency, changes, message):
    with pytest.raises(ValueError, match=message):
        qp_offsets(saliency, **{"strength": 4, **changes})

import math

import numpy as np
import pytest
import torch

from distill.evaluation import protocols
from distill.training.losses import frame_losses, visage_losses

WEIGHTS = {"kl": 1.0, "cc": 1.0, "sim": 1.0, "nss": 1.0, "bce": 1.0}


def frames(seed=0, n=3):
    generator = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(n, 12, 20, generator=generator), torch.rand(n, 12, 20, generator=generator)
    fixations = (torch.rand(n, 12, 20, generator=generator) > 0.95).float()
    return logits, target, fixations


def test_the_losses_are_the_metrics_on_the_shipped_map():
    logits, target, fixations = frames()
    _, parts = frame_losses(logits, target, fixations, WEIGHTS)
    for i in range(len(logits)):
        saliency, truth, points = torch.sigmoid(logits[i]).numpy(), target[i].numpy(), fixations[i].numpy() > 0
        expected = protocols.score(saliency, truth, points)
        assert parts["kl"][i].item() == pytest.approx(expected["kld"], abs=1e-4)
        assert 1 - parts["cc"][i].item() == pytest.approx(expected["cc"], abs=1e-5)
        assert -parts["nss"][i].item() == pytest.approx(expected["nss"], abs=2e-3)


def test_the_target_itself_costs_least():
    _, target, fixations = frames()
    exact = torch.logit(target.clamp(1e-4, 1 - 1e-4))
    _, best = frame_losses(exact, target, fixations, WEIGHTS)
    assert best["kl"].max() < 1e-3 and best["cc"].max() < 1e-3 and best["sim"].max() < 1e-2


def test_scale_of_the_target_does_not_matter():
    logits, target, fixations = frames()
    a, _ = frame_losses(logits, target, fixations, WEIGHTS)
    b, _ = frame_losses(logits, target * 37.5, fixations, WEIGHTS)
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("case", ["empty target", "saturated", "no fixation"])
def test_hard_frames_keep_finite_gradients(case):
    logits, target, fixations = frames()
    if case == "empty target":
        target = torch.zeros_like(target)
    elif case == "saturated":
        logits = torch.full_like(logits, -40.0)
    else:
        fixations = torch.zeros_like(fixations)
    logits.requires_grad_(True)
    total, _ = frame_losses(logits, target, fixations, WEIGHTS)
    total.sum().backward()
    assert torch.isfinite(total).all() and torch.isfinite(logits.grad).all()


def test_only_weighted_parts_count():
    logits, target, _ = frames()
    total, parts = frame_losses(logits, target, None, {"kl": 2.0, "cc": 0.0})
    assert torch.allclose(total, 2 * parts["kl"])
    assert "nss" not in parts and np.isfinite(parts["bce"].numpy()).all()


# --- the published teacher loss ---------------------------------------------------------------------------------------


def by_hand(values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1)


def test_the_published_loss_by_hand():
    # p = 1/2, 1/4, 1/8, 1/8 (shares the same: they sum to 1); g = 1, 1, 0, 0 (shares 1/2, 1/2, 0, 0); one fixation, left
    logits = torch.logit(by_hand([1 / 2, 1 / 4, 1 / 8, 1 / 8]))
    density, fixations = by_hand([1, 1, 0, 0]), by_hand([1, 0, 0, 0])
    total, parts = visage_losses(logits, density, fixations)
    kl = 0.5 * math.log(1) + 0.5 * math.log(2)
    p, g = (1 / 4, 0, -1 / 8, -1 / 8), (1 / 2, 1 / 2, -1 / 2, -1 / 2)  # less their means, 1/4 and 1/2
    cc = (1 / 8 + 1 / 16 + 1 / 16) / math.sqrt(sum(v * v for v in p) * sum(v * v for v in g))
    sim = 1 / 2 + 1 / 4
    # The 3x3 maximum spreads the fixation to its neighbour: both count four times.
    bce = (4 * math.log(2) + 4 * math.log(4) + 2 * -math.log(7 / 8)) / 4
    expected = {"kl": kl, "cc": 1 - cc, "sim": 1 - sim, "bce": bce}
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, abs=2e-6)
    assert total.item() == pytest.approx(10 * kl + 2 * (1 - cc) + (1 - sim) + bce, abs=2e-5)


def test_an_auxiliary_head_has_the_dense_terms_alone():
    logits, target, fixations = frames()
    total, parts = visage_losses(logits, target, None)
    whole, with_bce = visage_losses(logits, target, fixations)
    assert set(parts) == {"kl", "cc", "sim"}
    torch.testing.assert_close(whole - total, with_bce["bce"])


def test_two_observers_at_one_place_count_twice():
    logits = torch.zeros(1, 1, 5)
    once, twice = (visage_losses(logits, by_hand([0.0] * 5), by_hand([n, 0, 0, 0, 0]))[1]["bce"] for n in (1, 2))
    # Two of five cells are near: the mean of 1 + 3 n there and 1 elsewhere, times ln 2.
    assert once.item() == pytest.approx((2 * 4 + 3) / 5 * math.log(2), abs=1e-6)
    assert twice.item() == pytest.approx((2 * 7 + 3) / 5 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_the_published_clamps_bound_the_loss(level):
    _, target, fixations = frames()
    logits = torch.full_like(target, level).requires_grad_(True)
    total, parts = visage_losses(logits, target, fixations)
    total.sum().backward()
    assert torch.isfinite(total).all() and torch.isfinite(logits.grad).all()
    worst = -math.log(1e-7) if level < 0 else -math.log(2**-23)  # 1 - 1e-7 is 1 - 2**-23 in float32
    assert (parts["bce"] <= worst * (1 + 3 * fixations.amax()) + 1e-3).all()

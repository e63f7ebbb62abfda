import numpy as np
import pytest
import torch

from distill import metrics
from distill.losses import frame_losses

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
        expected = metrics.score(saliency, truth, points)
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

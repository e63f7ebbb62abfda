"""The student's encoder as a slim copy of UNISAL's."""

import pytest
import torch

from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet
from distill.teachers.unisal import Unisal
from distill.training.start import feature_loss, most_useful, start_from

LIKE_THE_TRUNK = (6.0, 6.0, 6.0, 6.0)


@pytest.fixture(scope="module")
def trunk():
    """A trunk whose norms have statistics of their own."""
    net = Unisal.random(0).net.cnn
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


@pytest.fixture(scope="module")
def frames():
    return torch.nn.functional.interpolate(torch.randn(40, 3, 8, 12, generator=torch.Generator().manual_seed(2)), size=(64, 96))


def started(trunk, frames, expand, **shape):
    torch.manual_seed(0)
    student = TinyUNet(TinyUNetConfig(64, 96, expand=expand, **shape)).train()
    return student, start_from(student, trunk, frames)


@torch.no_grad()
def test_unpruned_blocks_are_the_trunks(trunk, frames):
    student, error = started(trunk, frames, LIKE_THE_TRUNK)
    x = frames[:4]
    for number, layer in enumerate(list(trunk.features)[:14]):
        x = layer(x, "")[..., :: 2 if number == 7 else 1, :: 2 if number == 7 else 1]
    assert student.training and torch.allclose(student.eval().encoder(frames[:4])[0], x, atol=1e-4) and error < 1e-8


@torch.no_grad()
def test_pruned_blocks_give_nearly_what_the_trunks_do(trunk, frames):
    errors = [started(trunk, frames, (6.0, 6.0, expand, expand))[1] for expand in (3.0, 1.5)]
    assert 0 < errors[0] < errors[1] < 0.7
    pruned, whole = (started(trunk, frames[:32], (6.0, 6.0, 6.0, expand))[0].eval().encoder for expand in (3.0, 6.0))
    features = whole(frames[32:])[0]  # of frames that the fit has not seen
    assert (pruned(frames[32:])[0] - features).square().mean() < 0.5 * features.var()


def test_the_feature_loss_is_zero_for_the_trunks_own_features(trunk, frames):
    same, pruned = (started(trunk, frames, (6.0, 6.0, expand, expand))[0].eval().encoder for expand in (6.0, 1.5))
    deep, _, at_4 = same(frames[:8])
    assert feature_loss(deep, at_4, trunk).item() < 1e-8
    deep, _, at_4 = pruned(frames[:8])
    loss = feature_loss(deep, at_4, trunk)
    loss.backward()
    assert 0.05 < loss.item() < 1.5 and pruned.deep[0].project[0].weight.grad.abs().sum() > 0


def test_the_channels_that_are_kept_carry_the_targets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 1] + x[:, 4], 2 * x[:, 4]], 1) + 0.1 * x[:, [3]]
    assert most_useful(x.T @ x, x.T @ y, 2).tolist() == [1, 4]
    assert most_useful(x.T @ x, x.T @ y, 3).tolist() == [1, 3, 4]


def test_blocks_of_another_shape_are_refused(trunk, frames):
    with pytest.raises(ValueError, match=r"block 2 of the student's encoder has 8 channels, of the teacher's 24; .*defaults"):
        started(trunk, frames, LIKE_THE_TRUNK, widths=(16, 8, 32, 64, 96))

"""An ensemble: the weighted mean of its members' logits."""

import numpy as np
import torch

from distill.labels.calibration import BOUND
from distill.labels.ensemble import Ensemble, Mirrored


class Constant:
    """A teacher of one map."""

    def __init__(self, name, map_hw, px):
        self.name, self.map_hw, self.px = name, torch.as_tensor(map_hw, dtype=torch.float32), px

    def prepare(self, frames):
        return torch.from_numpy(np.asarray(frames)[:, : self.px, : self.px])

    def infer(self, inputs, fps):
        assert inputs.shape[1:3] == (self.px, self.px) and fps == 24
        return self.map_hw.expand(len(inputs), -1, -1)

    def fingerprint(self):
        return self.name


FRAMES = np.zeros((3, 16, 16, 3), np.uint8)


def test_an_ensemble_is_the_weighted_mean_of_logits():
    a, b = Constant("a", [[2.0, -2.0]], 4), Constant("b", [[-1.0, 5.0]], 6)
    logits = Ensemble("a:3+b", [a, b], [3, 1]).logits(FRAMES, 24)
    assert logits.shape == (3, 1, 2) and torch.allclose(logits[1], torch.tensor([[1.25, -0.25]]))


def test_members_of_other_sizes_come_to_the_largest_grid():
    small, large = Constant("s", [[1.0]], 4), Constant("l", np.zeros((6, 8)), 6)
    for members in ([small, large], [large, small]):
        logits = Ensemble("e", members, [1, 1]).logits(FRAMES, 24)
        assert logits.shape == (3, 6, 8) and torch.allclose(logits, torch.full((3, 6, 8), 0.5))


def test_no_member_can_outvote_the_rest_alone():
    sure, mild = Constant("x", [[1e9]], 4), Constant("y", [[-BOUND]], 4)
    assert torch.allclose(Ensemble("e", [sure, mild], [1, 1]).logits(FRAMES, 24), torch.zeros(3, 1, 1), atol=1e-4)


def test_an_ensembles_fingerprint_is_of_members_and_ratios():
    a, b = Constant("a", [[0.0]], 4), Constant("b", [[0.0]], 4)
    prints = [Ensemble("e", m, w).fingerprint() for m, w in (([a, b], [1, 1]), ([a, b], [2, 1]), ([b, a], [1, 1]), ([a], [1]))]
    assert len(set(prints)) == 4 and prints[0] == Ensemble("other", [a, b], [5, 5]).fingerprint()


class Ramp(Constant):
    """A teacher whose map is the frame's red channel."""

    def prepare(self, frames):
        return torch.as_tensor(frames)[..., 0]

    def infer(self, inputs, fps):
        return inputs.float() * (1 + torch.arange(inputs.shape[2]))


def test_a_teacher_and_its_mirror_image_favour_neither_side():
    ramp = Ramp("r", [[0.0]], 0)
    both = Ensemble("r", [ramp, Mirrored(ramp)], [1, 1])
    frames = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 3), np.uint8)
    logits = both.logits(frames, 24)
    assert torch.allclose(logits, 3.0 * torch.from_numpy(frames[..., 0]))  # the mean of 1..5 and of 5..1
    assert torch.equal(both.logits(frames[:, :, ::-1].copy(), 24), logits.flip(2))
    assert torch.equal(both.logits(torch.from_numpy(frames), 24), logits)
    assert len({teacher.fingerprint() for teacher in (ramp, Mirrored(ramp), both)}) == 3

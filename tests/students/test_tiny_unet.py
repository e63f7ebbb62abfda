import pytest
import torch
import torch.nn.functional as F

from distill.students import TinyUNetConfig
from distill.students.tiny_unet import TinyUNet, fit_to_working_size, parameter_count

SMALL = TinyUNetConfig(height=32, width=64, widths=(4, 8, 8, 12, 16), state_channels=8)


@pytest.fixture
def student():
    """All weights in effect: a fresh student's memory adds almost nothing."""
    torch.manual_seed(0)
    student = TinyUNet(SMALL).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def test_the_default_sizes_keep_to_the_budget():
    for size in ((96, 160), (128, 224)):
        assert 150_000 <= parameter_count(TinyUNet(TinyUNetConfig(*size))) <= 250_000


@torch.no_grad()
def test_a_zero_state_is_image_mode_exactly(student):
    frame = torch.randn(2, 3, 32, 64)
    logits, _ = student.step(frame, student.zero_state(2), student.decay(torch.tensor([0.04, 0.1])))
    assert torch.equal(logits, student.image(frame))


@torch.no_grad()
def test_history_changes_the_map_and_is_marked(student):
    frame, decay = torch.randn(1, 3, 32, 64), student.decay(torch.tensor([0.04]))
    _, state = student.step(torch.randn(1, 3, 32, 64), student.zero_state(), decay)
    logits, _ = student.step(frame, state, decay)
    assert not torch.allclose(logits, student.image(frame), atol=1e-4)
    assert tuple(state.shape) == SMALL.state_shape and (state[:, -1] == 1).all()


@torch.no_grad()
def test_a_clip_is_its_frames_one_by_one(student):
    clip, dt = torch.randn(2, 5, 3, 32, 64), torch.tensor([0.04, 0.1])
    whole, state = student(clip, None, dt)
    carried, decay, steps = student.zero_state(2), student.decay(dt), []
    for t in range(5):
        logits, carried = student.step(clip[:, t], carried, decay)
        steps.append(logits)
    assert torch.allclose(whole, torch.stack(steps, 1), atol=1e-5)
    assert torch.allclose(state, carried, atol=1e-5)


@torch.no_grad()
def test_a_clip_in_two_windows_is_the_clip(student):
    clip, dt = torch.randn(1, 6, 3, 32, 64), torch.tensor([0.04])
    whole, _ = student(clip, None, dt)
    first, state = student(clip[:, :2], None, dt)
    second, _ = student(clip[:, 2:], state, dt)
    assert torch.allclose(whole, torch.cat([first, second], 1), atol=1e-5)


def test_time_constants_are_seconds_whatever_the_frame_rate(student):
    twice = student.decay(torch.tensor([1 / 60])) ** 2
    assert torch.allclose(twice, student.decay(torch.tensor([1 / 30])), atol=1e-6)


def test_the_state_is_trained_through_time():
    torch.manual_seed(0)
    student = TinyUNet(SMALL)
    clip = torch.randn(1, 4, 3, 32, 64)
    logits, _ = student(clip, None, torch.tensor([0.1]))
    logits[:, -1].square().mean().backward()
    assert student.memory.add.weight.grad.abs().sum() > 0  # zero at first, so nothing before it learns yet
    assert student.motion.log_tau.grad.abs().sum() > 0 and student.motion.say.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_folded_maps_come_back_as_they_were(student):
    maps, mean = torch.randn(1, 3, 8, 16), torch.randn(1, 8, 2, 4)
    state = student.write_state(mean, maps, torch.full((1, 1, 2, 4), 0.3))
    got_mean, fresh, seen, got_maps, seen_at_4 = student.read_state(state)
    assert torch.equal(got_maps, maps) and torch.equal(got_mean, mean) and (fresh == 0.3).all()
    assert (seen == 1).all() and torch.equal(seen_at_4, torch.ones(1, 1, 8, 16))


@torch.no_grad()
def test_motion_changes_the_map_and_a_still_picture_settles(student):
    still = torch.randn(1, 3, 32, 64)
    moved = still.clone()
    moved[..., 8:16, 16:32] += 2.0
    decay = student.decay(torch.tensor([0.04]))
    logits, state = student.step(still, student.zero_state(), decay)
    luma = student.motion.luma_of(moved)
    change = (luma - student.read_state(state)[3][:, :2]).abs()
    assert change[..., 2:4, 4:8].min() > 0.1 and change[..., 5:, :].max() < 1e-5
    settled = [logits]
    for _ in range(80):
        logits, state = student.step(still, state, decay)
        settled.append(logits)
    assert (settled[-1] - settled[-2]).abs().max() < 1e-2 * (settled[2] - settled[1]).abs().max() + 1e-6


@torch.no_grad()
def test_onset_fades_in_seconds_and_only_where_a_video_begins(student):
    frame, dt = torch.randn(2, 3, 32, 64), torch.tensor([0.1, 0.05])
    state = student.history(frame, torch.tensor([True, False]), dt)
    assert (state[0] == 0).all() and (state[1, -1] == 1).all() and state[1, :-2].abs().sum() > 0
    for _ in range(5):
        _, state = student.step(frame, state, student.decay(dt))
    seconds = 0.4 * torch.exp(student.onset.log_tau - torch.tensor(0.4).log())
    assert torch.allclose(state[0, -2], torch.exp(-4 * 0.1 / seconds)) and (state[1, -2] == 0).all()
    student.onset.where.zero_()
    _, without = student.step(frame, state, student.decay(dt))
    student.onset.where.fill_(3.0)
    _, with_it = student.step(frame, state, student.decay(dt))
    changed = (with_it - without).abs().flatten(1).amax(1)
    assert changed[0] > 0.1 and changed[1] == 0


@pytest.mark.parametrize("size", [(16, 16), (17, 4096), (97, 131), (360, 640), (1081, 1919)])
def test_the_entry_takes_any_size_and_keeps_flat_frames(size):
    flat = torch.full((1, 3, *size), 0.7)
    assert torch.allclose(fit_to_working_size(flat, 32, 64), torch.full((1, 3, 32, 64), 0.7), atol=1e-5)


@pytest.mark.parametrize("period", [2, 3, 4])
def test_the_entry_does_not_alias(period):
    # Fine stripes are grey from afar; naive bilinear scaling turns them into a moire that is not there.
    stripes = ((torch.arange(1920) % period) < period / 2).float().expand(1, 3, 1080, 1920) * 2 - 1
    mean = stripes.mean()
    kept = (fit_to_working_size(stripes, 128, 224) - mean).abs().max()
    naive = (F.interpolate(stripes, size=(128, 224), mode="bilinear", align_corners=False) - mean).abs().max()
    assert kept < 0.2 * naive and kept < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "multiple of 32"),
        ({"widths": (8, 8, 8)}, "five channel counts"),
        ({"state_channels": 0}, "at least 1"),
    ],
)
def test_a_wrong_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TinyUNetConfig(**change)

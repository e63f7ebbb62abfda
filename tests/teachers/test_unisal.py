"""UNISAL against what the authors' code computes, its streams against frames run one by one, and its conventions."""

import copy
import json
import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from distill.labels.ensemble import Ensemble
from distill.teachers import unisal
from distill.teachers.frames import IMAGENET, normalise
from distill.teachers.unisal import SIZES, Unisal, UnisalNet, input_size, load_trunk, scale
from distill.teachers.unisal.frozen import frozen
from distill.teachers.unisal.net import blur_8x


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "teachers" / "unisal.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def official(golden, arrays):
    """The released key names, filled by the golden cases' rule: of one-dimensional tensors, a `weight` is near 1."""
    spec = json.loads((golden / "teachers" / "unisal.keys.json").read_text(encoding="utf-8"))

    def fill(key, shape):
        if "num_batches" in key:
            return torch.zeros(shape, dtype=torch.int64)
        rng = np.random.RandomState(zlib.crc32(f"{spec['salt']}:{key}".encode()) & 0x7FFFFFFF)
        noise = torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32))
        if key.endswith("running_var"):
            return 1 + 0.1 * noise.abs()
        if len(shape) <= 1:
            return float(key.endswith("weight")) + 0.1 * noise
        return noise * (1.5 / math.sqrt(math.prod(shape[1:])))

    return {key: arrays.get(f"given/{key}", fill(key, shape)) for key, shape in spec["shapes"].items()}


@pytest.fixture(scope="module")
def file(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "weights_best.pth"
    torch.save(official, path)
    return path


@pytest.fixture(scope="module")
def net(file):
    return Unisal.load(file).net.eval()


def run(net, frames, domain="DHF1K", **options):
    with torch.inference_mode():
        return net(frames, domain, **{"static": False} | options)


def video(frames=17, height=36, width=64, seed=0):
    """Blobs that move: uint8 `[T,H,W,3]`."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.random((frames, 3, 5, 7), np.float32)).cumsum(0) % 1
    smooth = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (255 * smooth).byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture
def small(monkeypatch):
    """The domain's sizes, divided by four: the same network in a fraction of the time."""
    monkeypatch.setattr(unisal.teacher, "input_size", lambda domain, height, width: (64, 96))


def test_video_agrees_with_the_official_code(net, arrays):
    log_density, _ = run(net, arrays["input"])
    assert (log_density - arrays["log_saliency/DHF1K"][:, :, 0]).abs().max() < 1e-4
    assert torch.allclose(log_density.exp().sum((2, 3)), torch.ones(1, 4), atol=1e-4)


def test_an_image_agrees_with_the_official_code(net, arrays):
    log_density, hidden = run(net, arrays["input"][:, :1], "SALICON", static=True)
    assert (log_density - arrays["log_saliency/SALICON"][:, :, 0]).abs().max() < 1e-4
    assert hidden is None


@pytest.mark.parametrize("domain", SIZES)
def test_the_frozen_network_is_the_same_function(net, arrays, domain, monkeypatch):
    """Exactly: in double precision, which oneDNN does not have."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    exact, frames = copy.deepcopy(net).double(), arrays["input"].double()
    folded = frozen(exact, domain)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    for static in (False, True):
        (one, hidden), (other, same) = (run(some, frames, domain, static=static) for some in (exact, folded))
        assert (one - other).abs().max() < 1e-9
        assert static or (hidden - same).abs().max() < 1e-9


def test_the_frozen_network_agrees_with_the_official_code(net, arrays):
    for domain in ("DHF1K", "SALICON"):
        frames = arrays["input"] if domain == "DHF1K" else arrays["input"][:, :1]
        log_density, _ = run(frozen(net, domain), frames, domain, static=domain == "SALICON")
        assert (log_density - arrays[f"log_saliency/{domain}"][:, :, 0]).abs().max() < 1e-4


def test_frame_by_frame_equals_the_clip(net, arrays):
    whole, last = run(net, arrays["input"])
    hidden, frames = None, []
    for frame in arrays["input"].unbind(1):
        log_density, hidden = run(net, frame[:, None], hidden=hidden)
        frames.append(log_density)
    assert (torch.cat(frames, 1) - whole).abs().max() < 1e-5
    assert (hidden - last).abs().max() < 1e-4  # rounding alone: it differs with the threads


def test_one_frame_bypasses_the_recurrence_only_if_static(net, arrays):
    frame = arrays["input"][:, :1]
    step, hidden = run(net, frame)
    static, none = run(net, frame, static=True)
    assert hidden is not None and none is None
    assert (step - static).abs().max() > 0.01
    with pytest.raises(TypeError, match="static"):
        net(frame, "DHF1K")


def test_the_layout_is_the_released_one(official):
    net = UnisalNet()
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == {
        key: tuple(value.shape) for key, value in official.items()
    }
    assert len(official) == 835
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_714_872


def test_priors_and_blur_start_as_released(arrays):
    state = UnisalNet().state_dict()
    given = {key.removeprefix("given/"): value for key, value in arrays.items() if key.startswith("given/")}
    assert len(given) == 8
    for key, value in given.items():
        assert torch.allclose(state[key], value, atol=1e-8), key


def test_the_blur_is_a_convolution_of_the_enlarged_map():
    generator = torch.Generator().manual_seed(0)
    cells, kernel = torch.randn(2, 1, 4, 5, generator=generator), torch.rand(1, 1, 41, 41, generator=generator) / 1681
    enlarged = F.pad(F.interpolate(cells, scale_factor=8, mode="nearest"), [20] * 4, mode="replicate")
    assert torch.allclose(blur_8x(cells, kernel), F.conv2d(enlarged, kernel), atol=1e-5)


@pytest.mark.parametrize("domain", SIZES)
def test_every_domain_has_its_own_parameters(net, arrays, domain):
    others = [run(net, arrays["input"][:, :2], other)[0] for other in SIZES if other != domain]
    mine, _ = run(net, arrays["input"][:, :2], domain)
    assert all((mine - other).abs().max() > 0.1 for other in others)


def test_input_sizes():
    assert input_size("DHF1K", 360, 640) == input_size("DHF1K", 1080, 1920) == (224, 384)
    assert input_size("SALICON", 480, 640) == (288, 384)
    assert input_size("Hollywood", 270, 640) == (224, 416) and input_size("UCFSports", 576, 720) == (256, 384)
    assert input_size("DHF1K", 480, 640) == (288, 384)
    assert input_size("SALICON", 360, 640) == (256, 416)
    assert input_size("DHF1K", 640, 360) == (416, 256)
    assert input_size("SALICON", 500, 500) == (320, 320)
    assert input_size("DHF1K", 100, 1000) == (256, 416)  # the widest there is


def test_frames_are_scaled_as_published():
    image = pytest.importorskip("PIL.Image")
    frames = video(2, 90, 160)
    published = [image.fromarray(frame).resize((96, 56), image.Resampling.LANCZOS) for frame in frames]
    difference = scale(frames, (56, 96)).int() - torch.from_numpy(np.stack(published)).int()
    assert difference.abs().max() <= 2 and difference.abs().float().mean() < 0.05


def test_the_teacher_runs_interleaved_streams(net, small):
    frames = video(17)
    teacher = Unisal(net)
    logits = teacher.logits(frames, 30.0)
    assert logits.shape == (17, 16, 24) and logits.dtype == torch.float32
    inputs = unisal.normalise(teacher.prepare(frames))
    for offset in range(5):  # each stream alone, at full size, as published
        log_density, _ = run(net, inputs[None, offset::5])
        full = log_density.unflatten(2, (16, 4)).unflatten(4, (24, 4))[:, :, :, 1:3, :, 1:3].mean((3, 5))
        relative = (full - full.amax((2, 3), keepdim=True)).exp()
        assert torch.allclose(logits[offset::5].sigmoid(), relative[0], atol=1e-4)


@pytest.mark.parametrize("fps", [6.0, 24.0, 60.0, 240.0])
def test_batches_do_not_change_the_labels(net, small, fps):
    frames = video(13)
    one, *others = (Unisal(net, batch_frames=batch).logits(frames, fps).sigmoid() for batch in (1, 3, 9, 100))
    assert all(torch.allclose(one, other, atol=1e-4) for other in others)


def test_a_clips_labels_do_not_depend_on_other_clips(net, small):
    frames, teacher = video(13), Unisal(net)
    first = teacher.logits(frames, 30.0)
    teacher.logits(video(4, seed=1), 24.0)
    assert torch.equal(first, teacher.logits(frames, 30.0)) and torch.equal(first, Unisal(net).logits(frames, 30.0))


def test_frames_are_normalised_as_published():
    frames = torch.from_numpy(video(2)).unflatten(0, (1, 2))
    assert torch.equal(unisal.normalise(frames), normalise(frames.movedim(-1, -3), IMAGENET))


def test_a_clip_may_be_prepared_in_pieces(net, small):
    frames, teacher = video(7), Unisal(net)
    assert torch.equal(torch.cat([teacher.prepare(frames[:1]), teacher.prepare(frames[1:])]), teacher.prepare(frames))
    assert teacher.prepare(frames).dtype == torch.uint8 and teacher.prepare(frames).shape == (7, 64, 96, 3)


def test_the_past_matters_to_videos_and_not_to_images(net, small):
    frames = video(12)
    other = frames.copy()
    other[0] = 255 - other[0]
    for domain, matters in (("DHF1K", True), ("SALICON", False)):
        teacher = Unisal(net, domain)
        before, after = teacher.logits(frames, 30.0).sigmoid(), teacher.logits(other, 30.0).sigmoid()
        assert (not torch.allclose(before[5], after[5], atol=1e-3)) == matters
        assert torch.allclose(before[6:10], after[6:10], atol=1e-3)  # the other streams never saw frame 0


def test_a_still_image_takes_the_bypass(net, small):
    frame = video(1)
    video_domain, image_domain = (Unisal(net, domain).logits(frame, 30.0) for domain in ("DHF1K", "SALICON"))
    assert torch.equal(video_domain, image_domain)
    own = Unisal(net, "DHF1K", stills="DHF1K")
    static = Unisal(net, "DHF1K", static=1.0).logits(np.repeat(frame, 2, 0), 30.0)
    assert torch.allclose(own.logits(frame, 30.0), static[:1], atol=1e-4) and not torch.allclose(
        static[:1], image_domain, atol=0.1
    )
    assert own.fingerprint() != Unisal(net, "DHF1K").fingerprint()
    with pytest.raises(ValueError, match="UNISAL has no domain 'MIT'"):
        Unisal(net, stills="MIT")


@pytest.mark.parametrize("batch", [9, 100])
def test_both_paths_together_are_the_ensemble_of_the_two(net, small, batch):
    frames = video(13)
    recurrent, static, both = (Unisal(net, batch_frames=batch, static=share) for share in (0, 1, 0.3))
    fused = Ensemble("e", [recurrent, static], [0.7, 0.3]).logits(frames, 30.0)
    assert torch.allclose(both.logits(frames, 30.0), fused, atol=1e-4)
    assert (recurrent.logits(frames, 30.0) - static.logits(frames, 30.0)).abs().max() > 0.1
    reordered = [5, 0, *range(1, 5), *range(6, 13)]
    assert torch.allclose(
        static.logits(frames[reordered], 30.0).sigmoid(), static.logits(frames, 30.0)[reordered].sigmoid(), atol=1e-4
    )
    with pytest.raises(ValueError, match=r"share is 1\.5; it must lie in \[0, 1\]"):
        Unisal(net, static=1.5)


def test_images_are_static_whatever_the_share(net, small):
    one, many = video(1), video(6)
    assert torch.equal(Unisal(net, static=0.5).logits(one, 30.0), Unisal(net).logits(one, 30.0))
    assert torch.equal(Unisal(net, "SALICON", static=0.5).logits(many, 30.0), Unisal(net, "SALICON").logits(many, 30.0))


def test_logits_are_mask_like(net, small):
    saliency = Unisal(net).logits(video(6), 30.0).sigmoid()
    assert torch.allclose(saliency.amax((1, 2)), torch.ones(6), atol=1e-5)
    assert saliency.min() > 0 and saliency.min() < 0.9


def test_fingerprint(net):
    fingerprint = Unisal(net).fingerprint()
    assert fingerprint == Unisal(net, batch_frames=3).fingerprint()
    assert fingerprint != Unisal(net, "Hollywood").fingerprint() != Unisal.random(0).fingerprint()
    assert len({Unisal(net, static=share).fingerprint() for share in (0, 0.5, 1)}) == 3
    assert Unisal(net, "SALICON", static=0.5).fingerprint() == Unisal(net, "SALICON").fingerprint()
    assert Unisal.random(0).fingerprint() == Unisal.random(0).fingerprint() != Unisal.random(1).fingerprint()


def gmac(height, width):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UnisalNet().eval()(torch.empty(1, 1, 3, height, width), "DHF1K", static=False)
    return counter.get_total_flops() / 2e9


def test_cost():
    assert gmac(224, 384) == pytest.approx(0.949, abs=0.001)
    assert gmac(448, 768) == pytest.approx(4 * gmac(224, 384), rel=0.01)


def test_files_that_do_not_fit_are_refused_in_one_line(official, tmp_path):
    missing = {key: value for key, value in official.items() if key != "post_rnn.0.weight"}
    torch.save(missing, tmp_path / "missing.pth")
    with pytest.raises(ValueError, match=r"missing\.pth.*post_rnn\.0\.weight") as caught:
        Unisal.load(tmp_path / "missing.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"web page"):
        (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
        Unisal.load(tmp_path / "page.pth")
    with pytest.raises(ValueError, match="Hollywood"):
        Unisal.random(0, "dhf1k")


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (video(2).astype(np.float32), 30.0, "uint8"),
        (video(2)[..., 0], 30.0, r"\[T, H, W, 3\]"),
        (video(2), 0.0, "frame rate"),
        (video(2), math.nan, "frame rate"),
    ],
)
def test_invalid_clips_are_refused(net, small, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        Unisal(net).logits(frames, fps)


def test_sides_must_be_multiples_of_32(net):
    with pytest.raises(ValueError, match="32"):
        run(net, torch.zeros(1, 1, 3, 60, 96))


def test_the_trunk_loads_imagenet_weights(official, tmp_path):
    """The published file: no prefix, a classifier at its end, no counters in the norms."""
    published = {
        key.removeprefix("cnn."): value
        for key, value in official.items()
        if key.startswith("cnn.") and "num_batches" not in key
    } | {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
    torch.save(published, tmp_path / "mobilenet_v2.pth.tar")
    net = UnisalNet()
    before = net.post_rnn.state_dict()["0.weight"].clone()
    load_trunk(net, tmp_path / "mobilenet_v2.pth.tar")
    assert torch.equal(net.cnn.state_dict()["features.7.conv.3.weight"], official["cnn.features.7.conv.3.weight"])
    assert torch.equal(net.post_rnn.state_dict()["0.weight"], before)
    with pytest.raises(ValueError, match=r"features\.0\.0\.weight"):
        torch.save({key: value for key, value in published.items() if key != "features.0.0.weight"}, tmp_path / "bad.pt")
        load_trunk(net, tmp_path / "bad.pt")

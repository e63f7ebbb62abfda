from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.teachers import Inference, tased
from distill.teachers.tased import Tased, TasedConfig, TasedNet, smooth, window
from distill.teachers.weights import load_state_dict_exact

SMALL = TasedConfig(height=32, width=64, smooth=False)


def random_clip(frames: int, seed: int = 0, size: tuple[int, int] = (36, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small() -> Tased:
    return Tased.random(0, config=SMALL)


# --- the released network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(golden_state: Any) -> TasedNet:
    with torch.device("meta"):
        net = TasedNet()
    load_state_dict_exact(net, golden_state("tased"))
    return net.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]


def test_the_network_agrees_with_the_official_code_up_to_ties(
    official: TasedNet, golden_arrays: Any, golden_input: Any
) -> None:
    """Two values under a 3x3 pooling that differ by less than float32's rounding: which of them is the maximum, and so
    where the decoder puts what it decodes, depends on the order of additions, for the official code on two machines
    too. Each such tie, a few in a million, moves a spot of the map."""
    assert sum(parameter.numel() for parameter in official.parameters()) == 21_260_693
    with torch.inference_mode():
        saliency = official(golden_input("tased")).sigmoid()
    error = (saliency - torch.from_numpy(golden_arrays("tased")["saliency"])).abs()
    assert (error < 1e-4).float().mean() > 0.95
    assert error.median() < 1e-6
    assert error.max() < 0.01


def test_the_network_agrees_with_the_official_code(
    official: TasedNet, golden_arrays: Any, golden_input: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where nothing is left to rounding; the one tie that the official run decided otherwise is given to it."""
    expected = torch.from_numpy(golden_arrays("tased")["saliency"])
    place = (0, 2, 36, 13, 3)  # the loser of a tie
    unpooled, ties = tased.unpooled, []

    def with_the_tie_given(z_BTCHW: Tensor, x_BTCHW: Tensor) -> Tensor:
        if x_BTCHW.shape[2] == 192:
            t, c, row, column = place[1:]
            cell = x_BTCHW[0, t, c, row - 2 : row + 1, column - 2 : column + 1]  # the pooled 3x3 that it is the corner of
            lead = cell.max() / x_BTCHW[place] - 1
            if 0 < lead < 1e-6:  # in another case of this form there is none here
                ties.append(float(lead))
                x_BTCHW = x_BTCHW.clone()
                x_BTCHW[place] += 2 * lead * x_BTCHW[place]
        return unpooled(z_BTCHW, x_BTCHW)

    monkeypatch.setattr(tased, "unpooled", with_the_tie_given)
    exact = TasedNet().double().eval()
    exact.load_state_dict(official.state_dict())
    with torch.inference_mode():
        saliency = exact.to(memory_format=torch.channels_last_3d)(golden_input("tased").double()).sigmoid()  # type: ignore[call-overload]
    error = (saliency - expected).abs().max()
    assert error < 1e-4, f"off by {error:.1e}; ties {ties}"


# --- windows ----------------------------------------------------------------------------------------------------------


def as_released(count: int) -> dict[int, list[int]]:
    """The windows of the authors' loop, by the frame they label, over a clip lengthened there and back to 63 frames."""
    frames = list(range(count))
    while len(frames) < 63:
        frames += (frames[-2:0:-1] if count > 1 else []) + frames[:1]
        frames += frames[1:count]
    windows, snippet = {}, []
    for number, frame in enumerate(frames):
        snippet.append(frame)
        if number >= 31:
            windows[number] = list(snippet)
            if number < 62:
                windows[number - 31] = snippet[::-1]
            del snippet[0]
    return {number: windows[number] for number in range(count)}


@pytest.mark.parametrize("count", [1, 2, 3, 20, 31, 32, 33, 40, 62, 63, 64, 100])
def test_windows_are_those_of_the_released_loop(count: int) -> None:
    assert {frame: window(frame, count).tolist() for frame in range(count)} == as_released(count)


class Clock(nn.Module):
    """A network whose map encodes the number of a window's last frame, which is the frames' grey: half 1, half number/100."""

    def __init__(self) -> None:
        super().__init__()
        self.labelled: list[int] = []

    def stem(self, frames_NCHW: Tensor) -> Tensor:
        return frames_NCHW.mean((1, 2, 3), keepdim=True)

    def from_stem(self, stems_BTCHW: Tensor) -> Tensor:
        number_B = ((stems_BTCHW[:, -1, 0, 0, 0] + 1) * 255 / 2).round()
        self.labelled += [int(number) for number in number_B]
        logits_BHW = torch.full((len(number_B), 32, 64), 12.0)
        logits_BHW[:, :, 32:] = torch.logit(number_B / 100)[:, None, None].clamp_min(-30)
        return logits_BHW


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("count", [1, 2, 40, 70])
def test_every_frame_gets_its_own_label_and_those_between_windows_a_mixture(count: int, every: int) -> None:
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 32, 64, 3))
    clock = Clock()
    teacher = Tased(clock, TasedConfig(height=32, width=64, every=every, smooth=False))  # type: ignore[arg-type]
    logits = teacher.logits(frames, 30)
    assert logits.shape == (count, 8, 16) and logits.dtype == torch.float32
    assert sorted(clock.labelled) == sorted({*range(0, count, every), count - 1})
    torch.testing.assert_close(logits[:, 0, 0].sigmoid(), torch.ones(count))
    torch.testing.assert_close(logits[:, 0, -1].sigmoid(), torch.arange(count) / 100, atol=1e-5, rtol=0)


def test_sharing_the_first_layer_changes_nothing(small: Tased) -> None:
    inputs = small.prepare(random_clip(3))
    clips = torch.stack([inputs[window(frame, 3)] for frame in range(3)]).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        saliency = small.net(clips.float() * (2 / 255) - 1).sigmoid()
    cells = saliency.unflatten(1, (8, 4)).unflatten(3, (16, 4)).mean((2, 4))
    expected = cells / cells.amax((1, 2), keepdim=True)
    torch.testing.assert_close(small.infer(inputs, 30).sigmoid(), expected, atol=1e-5, rtol=0)


def test_labels_do_not_depend_on_the_batch_the_pieces_or_the_container(small: Tased) -> None:
    frames = random_clip(5)
    expected = small.logits(frames, 30)
    assert expected.std() > 0
    pieces = torch.cat([small.prepare(frames[:2]), small.prepare(frames[2:])])
    assert torch.equal(small.infer(pieces, 24), expected)
    assert torch.equal(small.logits(torch.from_numpy(frames), 30), expected)
    wide = Tased(small.net, SMALL, how=Inference(batch=4, precision="bf16"))
    assert torch.equal(wide.logits(frames, 30), expected)


# --- pictures in, maps out --------------------------------------------------------------------------------------------


def test_frames_are_scaled_as_released_and_large_ones_averaged_first() -> None:
    teacher = Tased(Clock())  # type: ignore[arg-type]
    for size in ((360, 640), (240, 320), (719, 1279)):
        frames = random_clip(2, size=size)
        assert np.array_equal(teacher.prepare(frames)[1].numpy(), cv2.resize(frames[1], (384, 224)))
    stripes = np.zeros((1, 1080, 1920, 3), np.uint8)
    stripes[:, :, ::3] = 255  # every third column: a bilinear sample would see white or black
    assert np.unique(teacher.prepare(stripes)).tolist() == [85]


def test_smoothing_is_the_authors() -> None:
    rng = np.random.default_rng(0)
    map_HW = rng.random((40, 60), dtype=np.float32)
    tap = np.exp(-0.5 * (np.arange(-28, 29) / 7) ** 2)
    kernel = tap / tap.sum()
    blurred = np.pad(np.floor(map_HW * 255) / 255, 28, mode="symmetric")
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, kernel, mode="valid")
    np.testing.assert_allclose(smooth(torch.from_numpy(map_HW)[None])[0], blurred, atol=1e-5)


def test_a_smooth_map_is_what_is_labelled(small: Tased) -> None:
    inputs = small.prepare(random_clip(1))
    blurred = Tased(small.net, TasedConfig(height=32, width=64, cell=1)).infer(inputs, 30).sigmoid()
    sharp = Tased(small.net, TasedConfig(height=32, width=64, cell=1, smooth=False)).infer(inputs, 30).sigmoid()
    with torch.inference_mode():
        expected = smooth(small.net(clip_of(inputs)).sigmoid())
    torch.testing.assert_close(blurred, expected / expected.max(), atol=1e-5, rtol=0)
    assert blurred.shape == (1, 32, 64)
    assert sharp.diff(dim=2).abs().max() > 2 * blurred.diff(dim=2).abs().max()


def clip_of(inputs: Tensor) -> Tensor:
    return inputs.expand(32, -1, -1, -1).permute(3, 0, 1, 2)[None].float() * (2 / 255) - 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 3, 4, 4), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.float32), "float32; a teacher needs RGB frames as uint8"),
    ],
)
def test_invalid_clips_are_refused(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tased(Clock()).logits(frames, 30)  # type: ignore[arg-type]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_as_published_loads(small: Tased, tmp_path: Path) -> None:
    """Saved from several GPUs, by a torch whose batch norms had no counters."""
    state = {f"module.{key}": value for key, value in small.net.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "TASED_v2.pt")
    teacher = Tased.load(tmp_path / "TASED_v2.pt", config=SMALL)
    assert (teacher.name, small.name) == ("tased", "tased(random)")
    assert teacher.fingerprint() == small.fingerprint()
    frames = random_clip(1)
    assert torch.equal(teacher.logits(frames, 30), small.logits(frames, 30))


def test_files_that_are_something_else_are_refused_in_one_line(small: Tased, tmp_path: Path) -> None:
    path = tmp_path / "TASED_v2.pt"
    state = dict(small.net.state_dict())
    del state["convtsp3.0.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"TASED_v2\.pt does not fit TasedNet.*'convtsp3\.0\.weight'"):
        Tased.load(path)
    path.write_text("<!DOCTYPE html>", encoding="utf-8")
    with pytest.raises(ValueError, match="web page"):
        Tased.load(path)


def test_the_fingerprint_tells_weights_and_configurations_apart(small: Tased) -> None:
    first = small.fingerprint()
    assert Tased(small.net, SMALL, how=Inference(batch=3)).fingerprint() == first
    assert Tased(small.net, TasedConfig(height=32, width=64, smooth=False, every=2)).fingerprint() != first
    other = Tased.random(0, config=SMALL)
    assert other.fingerprint() == first, "one seed, one teacher"
    with torch.no_grad():
        other.net.convtsp4[13].bias += 1e-3  # type: ignore[operator]
    assert other.fingerprint() != first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 225}, "height is 225; it must be a multiple of 32"),
        ({"width": 0}, "width"),
        ({"every": 0}, "every is 0"),
        ({"cell": 3}, "cell is 3"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TasedConfig(**fields)


def test_a_clip_of_another_size_is_refused(small: Tased) -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 3, 16, 32, 64\]; it needs \[B, 3, 32, H, W\]"):
        small.net(torch.zeros(1, 3, 16, 32, 64))

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.teachers import Inference
from distill.teachers.frames import IMAGENET
from distill.teachers.salfom import Salfom, SalfomConfig, SalfomNet, TimeBlock, finish, relative_positions, window
from distill.teachers.umt import Umt, UmtConfig, sinusoid_pos_embed
from distill.teachers.weights import load_state_dict_exact

TINY = UmtConfig(width=32, depth=2, heads=2, px=32, classes=4)
SMALL = SalfomConfig(encoder=TINY)


def random_clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 36, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small() -> Salfom:
    return Salfom.random(0, config=SMALL)


# --- the released network ---------------------------------------------------------------------------------------------


@pytest.mark.full_size
@pytest.mark.timeout(1200)
def test_the_network_agrees_with_the_official_code(golden_state: Any, golden_arrays: Any, golden_input: Any) -> None:
    with torch.device("meta"):
        net = SalfomNet(UmtConfig.of("L"))
    assert sum(parameter.numel() for parameter in net.parameters()) == 402_945_443
    index = {
        key: relative_positions(len(value))
        for key, value in net.state_dict().items()
        if key.endswith("relative_position_index")
    }
    load_state_dict_exact(net, golden_state("salfom", index))
    with torch.inference_mode():
        saliency = net.eval()(golden_input("salfom")).sigmoid()
    error = np.abs(saliency.numpy() - golden_arrays("salfom")["saliency"]).max()
    assert error < 1e-4, f"off by {error:.1e}"


def test_the_layout_is_the_official_one(golden: Path) -> None:
    """Names and shapes, unused layers included, without allocating them."""
    spec = json.loads((golden / "teachers" / "salfom.keys.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        net = SalfomNet(UmtConfig.of("L"))
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == spec["shapes"]


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_the_encoder_comes_in_two_sizes() -> None:
    with torch.device("meta"):
        sizes = {size: sum(p.numel() for p in Umt(UmtConfig.of(size)).parameters()) for size in ("B", "L")}
    assert sizes == {"B": 88_353_424, "L": 306_695_568}
    with pytest.raises(ValueError, match="unknown UMT size 'H'; known are B, L"):
        UmtConfig.of("H")


def test_positions_start_as_sines_counted_over_eight_frames() -> None:
    eight = sinusoid_pos_embed(6, 8, 2)
    assert eight.shape == (1, 32, 6)
    for place, channel in ((0, 0), (5, 2), (31, 5)):
        phase = place / 10000 ** (2 * (channel // 2) / 6)
        assert eight[0, place, channel] == pytest.approx(math.cos(phase) if channel % 2 else math.sin(phase), abs=1e-6)
    sixteen = sinusoid_pos_embed(6, 16, 2)[0].view(16, 4, 6)
    eight_TPD = eight[0].view(8, 4, 6)
    torch.testing.assert_close(sixteen[0], eight_TPD[0])
    torch.testing.assert_close(sixteen[1], 0.75 * eight_TPD[0] + 0.25 * eight_TPD[1])


def test_attention_computes_its_formula() -> None:
    torch.manual_seed(0)
    attention = Umt(TINY).blocks[0].attn
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    x = torch.randn(1, 5, 32)
    q, k, v = (x[0] @ attention.qkv.weight.T).split(32, 1)
    q, v = q + attention.q_bias, v + attention.v_bias
    heads = [slice(0, 16), slice(16, 32)]
    y = torch.cat([(q[:, h] @ k[:, h].T / 4).softmax(1) @ v[:, h] for h in heads], 1)
    torch.testing.assert_close(attention(x)[0], attention.proj(y))


def test_clips_of_another_shape_are_refused(small: Salfom) -> None:
    with pytest.raises(ValueError, match=r"frames of shape \[2, 3, 16, 32\]; it needs \[N, 3, 32, 32\]"):
        small.net.encoder.embed(torch.zeros(2, 3, 16, 32))
    with pytest.raises(ValueError, match="windows of 8 frames; it needs 16"):
        small.net(torch.zeros(1, 3, 8, 32, 32))


# --- the decoder ------------------------------------------------------------------------------------------------------


def test_shifted_runs_do_not_join_the_end_to_the_start() -> None:
    """With runs of two moments, shifted by one, a moment sees its other neighbour; the first and the last see none."""
    torch.manual_seed(0)
    block = TimeBlock(16, run=2, shift=1).eval()
    x_NTC = torch.randn(1, 8, 16)
    before = block(x_NTC)
    for moved, seen in ((0, {0}), (1, {1, 2}), (2, {1, 2}), (7, {7})):
        changed = x_NTC.clone()
        changed[0, moved] *= -1
        differs = (block(changed) - before).abs().amax((0, 2)) > 1e-6
        assert set(differs.nonzero().flatten().tolist()) == seen


def test_a_bias_for_each_distance_in_time() -> None:
    torch.manual_seed(0)
    attention = TimeBlock(16, run=4, shift=0).attn
    with torch.no_grad():
        attention.relative_position_bias_table.fill_(-1e4)
        attention.relative_position_bias_table[3 + 1] = 0.0  # only the moment before
    x_NRTC = torch.randn(1, 1, 4, 16)
    value = attention.qkv(x_NRTC)[0, 0, :, 32:]
    torch.testing.assert_close(attention(x_NRTC, None)[0, 0, 1:], attention.proj(value[:-1]))


def test_every_weight_but_the_unused_ones_matters(small: Salfom) -> None:
    net = SalfomNet(TINY)
    net(torch.randn(1, 3, 16, 32, 32)).sum().backward()
    dead = {name.rsplit(".", 1)[0] for name, value in net.named_parameters() if value.grad is None}
    norms = {f"transformer_{number}.norm" for number in (1, 2, 3)}
    assert dead == {"encoder.fc_norm", "encoder.head", "conv_t3_3", "final_map", *norms}


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_released_loop() -> None:
    for count in (1, 5, 16, 40):
        frames = [0] * 15 + list(range(count))
        expected = {last: frames[last : last + 16] for last in range(count)}
        assert {frame: window(frame, count).tolist() for frame in range(count)} == expected


class Clock(nn.Module):
    """A network whose map encodes the number of a window's last frame, which is the frames' grey: half 1, half number/100."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SimpleNamespace(config=TINY, embed=self.embed)
        self.labelled: list[int] = []

    def embed(self, frames_NCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
        return (frames_NCHW * std + mean).mean((1, 2, 3)).view(-1, 1, 1)

    def from_tokens(self, tokens_BTPD: Tensor) -> Tensor:
        number_B = (tokens_BTPD[:, -1, 0, 0] * 255).round()
        self.labelled += [int(number) for number in number_B]
        logits_BHW = torch.full((len(number_B), 32, 32), 12.0)
        logits_BHW[:, :, 16:] = torch.logit(number_B / 100)[:, None, None].clamp_min(-30)
        return logits_BHW


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_every_frame_gets_its_own_label_and_those_between_windows_a_mixture(count: int, every: int) -> None:
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 32, 64, 3))
    clock = Clock()
    teacher = Salfom(clock, SalfomConfig(encoder=TINY, every=every))  # type: ignore[arg-type]
    logits = teacher.logits(frames, 30)
    assert logits.shape == (count, 8, 8) and logits.dtype == torch.float32
    assert sorted(clock.labelled) == sorted({*range(0, count, every), count - 1})
    torch.testing.assert_close(logits[:, 0, 0].sigmoid(), torch.ones(count))
    torch.testing.assert_close(logits[:, 0, -1].sigmoid(), torch.arange(count) / 100, atol=1e-5, rtol=0)


def test_sharing_the_embedding_changes_nothing(small: Salfom) -> None:
    inputs = small.prepare(random_clip(3))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    clips = ((torch.stack([inputs[window(frame, 3)] for frame in range(3)]) / 255 - mean) / std).transpose(1, 2)
    with torch.inference_mode():
        saliency = small.net(clips).sigmoid()
    cells = saliency.unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4))
    expected = cells / cells.amax((1, 2), keepdim=True)
    torch.testing.assert_close(small.infer(inputs, 30).sigmoid(), expected, atol=1e-5, rtol=0)


def test_labels_do_not_depend_on_the_batch_the_pieces_or_the_container(small: Salfom) -> None:
    frames = random_clip(7)
    expected = small.logits(frames, 30)
    assert expected.std() > 0
    pieces = torch.cat([small.prepare(frames[:2]), small.prepare(frames[2:])])
    assert torch.equal(small.infer(pieces, 24), expected)
    assert torch.equal(small.logits(torch.from_numpy(frames), 30), expected)
    wide = Salfom(small.net, SMALL, how=Inference(batch=4))
    assert torch.equal(wide.logits(frames, 30), expected)


def test_bfloat16_is_near(small: Salfom) -> None:
    frames = random_clip(2)
    low = Salfom(small.net, SMALL, how=Inference(precision="bf16"))
    exact, near = small.logits(frames, 30).sigmoid(), low.logits(frames, 30).sigmoid()
    assert not torch.equal(exact, near)
    assert (exact - near).abs().mean() < 0.02
    assert low.fingerprint() != small.fingerprint()


def test_frames_are_scaled_as_released() -> None:
    """As Pillow does: bilinear with a support that grows as the picture shrinks; within a level of 255."""
    frames = random_clip(1)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).double(), (32, 32), mode="bilinear", antialias=True
    )
    prepared = Salfom(Clock(), SMALL).prepare(frames)  # type: ignore[arg-type]
    assert prepared.dtype == torch.uint8
    assert (prepared.double() - expected).abs().max() <= 1


def test_finishing_is_the_authors(small: Salfom) -> None:
    rng = np.random.default_rng(0)
    map_HW = rng.random((32, 32), dtype=np.float32)
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    blurred = np.pad(cv2.resize(map_HW, (60, 36)), 5, mode="reflect")
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, kernel / kernel.sum(), mode="valid")
    np.testing.assert_allclose(finish(torch.from_numpy(map_HW)[None], (36, 60))[0], blurred, atol=1e-5)
    teacher = Salfom(small.net, SalfomConfig(encoder=TINY, finish=(36, 60)))
    assert teacher.logits(random_clip(1), 30).shape == (1, 9, 15)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_file_loads_and_gives_the_same_maps(small: Salfom, tmp_path: Path) -> None:
    torch.save(small.net.state_dict(), tmp_path / "SalFoM.pth")
    teacher = Salfom.load(tmp_path / "SalFoM.pth", config=SMALL)
    assert (teacher.name, small.name) == ("salfom", "salfom(random)")
    assert teacher.fingerprint() == small.fingerprint()
    frames = random_clip(2)
    assert torch.equal(teacher.logits(frames, 30), small.logits(frames, 30))
    assert Salfom.random(0, config=SMALL).fingerprint() == small.fingerprint()
    assert Salfom.random(1, config=SMALL).fingerprint() != small.fingerprint()


def test_files_that_are_something_else_are_refused_in_one_line(small: Salfom, tmp_path: Path) -> None:
    path = tmp_path / "SalFoM.pth"
    torch.save(small.net.state_dict(), path)
    with pytest.raises(ValueError, match=r"SalFoM\.pth does not fit SalfomNet.*'encoder\.pos_embed'.*\[1, 64, 32\]"):
        Salfom.load(path)
    path.write_text("<!DOCTYPE html>", encoding="utf-8")
    with pytest.raises(ValueError, match="web page"):
        Salfom.load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": UmtConfig(32, 2, 2, frames=8)}, "windows of 8 frames; it must be 16"),
        ({"every": 0}, "every is 0"),
        ({"cell": 3}, "cell 3 does not divide a map of 224x224"),
        ({"finish": (100, 99)}, "cell 4 does not divide a map of 100x99"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalfomConfig(**fields)


def test_a_network_of_another_shape_is_refused(small: Salfom) -> None:
    with pytest.raises(ValueError, match="the network's encoder is"):
        Salfom(small.net)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "does not divide into 5 heads"),
        ({"px": 33}, "px 33 is not a multiple of the patch side 16"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_bad_encoders(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UmtConfig(**{"width": 32, "depth": 2, "heads": 2, **fields})

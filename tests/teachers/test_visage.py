import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.visage import (
    CLIP_MEAN,
    CLIP_STD,
    Visage,
    VisageConfig,
    VisageNet,
    VisageOutput,
    cut_windows,
    fuse,
    preprocess,
)

# The golden cases: the released decoders at a small width, and one trunk per expert.
OFFICIAL = VisageConfig(
    trunk=InternVideo2Config.of("tiny", frames=4, px=56),
    shared_trunk=False,
    reduced_width=32,
    embed_width=32,
    head_width_1=16,
    head_width_2=64,
    norm_groups=32,
    out_px=56,
)

SMALL = VisageConfig(
    trunk=InternVideo2Config(width=16, depth=4, heads=2, mlp_width=16, frames=4, px=16, patch=8, layer_scale_init=0.5),
    reduced_width=8,
    embed_width=8,
    head_width_1=8,
    head_width_2=8,
    norm_groups=4,
    out_px=12,
    sample_fps=5.0,
)


@pytest.fixture(scope="module")
def official(golden_state: Any) -> VisageNet:
    with torch.device("meta"):
        net = VisageNet(OFFICIAL)
    for number in (1, 2):
        net.load_expert(number, golden_state(f"visage_expert{number}_tiny"))
    return net.eval()


@pytest.fixture
def small() -> VisageNet:
    torch.manual_seed(0)
    net = VisageNet(SMALL)
    for parameter in net.parameters():  # away from the tame start, so that every part shows in the output
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    return net.eval()


def random_clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 20, 30, 3), dtype=np.uint8)


# --- the released experts ---------------------------------------------------------------------------------------------


def test_experts_auxiliary_heads_and_fusion_agree_with_the_official_code(
    official: VisageNet, golden_arrays: Any
) -> None:
    one, two, fused = (golden_arrays(f"visage_{part}_tiny") for part in ("expert1", "expert2", "fused"))
    assert np.array_equal(one["input"], two["input"])
    with torch.inference_mode():
        output = official(torch.from_numpy(one["input"]), aux=True)
    cases = {"expert 1": (output.logits1, one["saliency"]), "expert 2": (output.logits2, two["saliency"])}
    cases |= {name: (logits, two[f"aux/{name}"]) for name, logits in output.aux.items()}
    cases["fusion"] = (output.fused, fused["saliency"])
    assert len(cases) == 6
    for name, (logits, expected) in cases.items():
        error = np.abs(logits.sigmoid().numpy() - expected[:, 0]).max()
        assert error < 1e-4, f"{name} is off by {error:.1e}"


def test_a_released_key_that_is_missing_is_named(golden_state: Any) -> None:
    state = golden_state("visage_expert2_tiny")
    del state["decoder.fuse11.norm2.bias"]
    with pytest.raises(ValueError, match=r"state of expert 2 .* 1 keys are missing, first 'expert.decoder.fuse11"):
        VisageNet(OFFICIAL).load_expert(2, state)


def test_a_shared_trunk_refuses_released_experts(small: VisageNet) -> None:
    with pytest.raises(ValueError, match="shared_trunk=False"):
        small.load_expert(1, {})


def test_the_released_layout_builds_without_memory() -> None:
    with torch.device("meta"):
        net = VisageNet(VisageConfig.released())

    def millions(module: nn.Module) -> float:
        return round(sum(value.numel() for value in module.parameters()) / 1e6, 2)

    assert net.config.taps == (11, 23, 35, 47)
    assert millions(net.expert1.dim_reducers) == millions(net.expert2.dim_reducers) == 13.11
    assert millions(net.expert1.decoder) == 18.91
    assert millions(net.expert2.decoder) == 32.20
    assert millions(net.expert2.decoder.aux_heads) == 3.10
    assert millions(net.expert1.film_gamma) + millions(net.expert1.film_beta) == 1.64


# --- fusion -----------------------------------------------------------------------------------------------------------


def test_fusion_modes() -> None:
    a, b = torch.tensor([0.0, 30.0]), torch.tensor([2.0, -2.0])
    bound = float(np.log((1 - 1e-6) / 1e-6))
    torch.testing.assert_close(fuse((a, b), (1, 3)), torch.tensor([1.5, 0.25 * bound - 1.5]))
    mean = (a.sigmoid() + b.sigmoid()) / 2
    torch.testing.assert_close(fuse((a, b), (1, 1), "mean").sigmoid(), mean)
    torch.testing.assert_close(fuse((a, b), (1, 1), "max"), torch.tensor([2.0, bound]))
    torch.testing.assert_close(fuse((a, b), (0, 1), "max"), b)
    with pytest.raises(ValueError, match="unknown fusion 'median'"):
        fuse((a, b), (1, 1), "median")
    with pytest.raises(ValueError, match="2 experts are to be fused with 3 weights"):
        fuse((a, b), (1, 1, 1))


# --- training from scratch --------------------------------------------------------------------------------------------


def test_the_default_net_starts_near_a_constant_and_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    config = VisageConfig()
    net = VisageNet(config)
    output = net(torch.randn(1, 3, config.trunk.frames, config.trunk.px, config.trunk.px))
    shape = (1, config.trunk.frames, config.out_px, config.out_px)
    for logits in (output.logits1, output.logits2, output.fused, *output.aux.values()):
        assert logits.shape == shape
    assert list(output.aux) == ["p23", "p17", "p11"]
    prior = net.expert1.decoder.center_bias()
    for logits in (output.logits1 - prior, output.logits2, *output.aux.values()):
        assert logits.std() < 0.5
        assert abs(logits.mean() - config.logit_init) < 0.5
    loss = sum(logits.square().mean() for logits in (output.logits1, output.logits2, *output.aux.values()))
    loss.backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert not without, f"no gradient reaches {without}"


def test_auxiliary_heads_run_in_training_only_unless_asked(small: VisageNet) -> None:
    clip = torch.randn(1, 3, 4, 16, 16)
    assert small(clip).aux == {}
    assert small(clip, aux=True).aux.keys() == {"p23", "p17", "p11"}
    assert small.train()(clip).aux.keys() == {"p23", "p17", "p11"}


def test_the_centre_prior_is_a_learned_gaussian(small: VisageNet) -> None:
    prior = small.expert1.decoder.center_bias
    with torch.no_grad():
        for name, value in {"cx": 1.0, "cy": -1.0, "sigma": 0.5, "weight": 2.0}.items():
            getattr(prior, name).fill_(value)
        map_HW = prior()
    assert map_HW.argmax() == SMALL.out_px - 1, "x = 1, y = -1 is the top right corner"
    torch.testing.assert_close(map_HW[0, -1], torch.tensor(2.0))
    torch.testing.assert_close(map_HW[-1, -1], 2 * torch.tensor(-8.0).exp())


# --- the teacher ------------------------------------------------------------------------------------------------------


class MeanNet(nn.Module):
    """Says each frame's mean, so that a label tells its frame; and counts its windows."""

    def __init__(self, out_px: int) -> None:
        super().__init__()
        self.out_px = out_px
        self.batches: list[int] = []

    def forward(self, clip_BCTHW: Tensor) -> VisageOutput:
        self.batches.append(len(clip_BCTHW))
        mean_BT11 = clip_BCTHW.mean(dim=(1, 3, 4))[..., None, None]
        fused = mean_BT11.expand(-1, -1, self.out_px, self.out_px)
        return VisageOutput(fused, fused, {}, fused)


@pytest.mark.parametrize("batch_windows", [1, 3])
@pytest.mark.parametrize("fps", [5.0, 24.0, 30.0])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 24, 53])
def test_every_frame_gets_its_own_label(count: int, fps: float, batch_windows: int) -> None:
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 6, 8, 3))
    net = MeanNet(SMALL.out_px)
    logits = Visage(net, SMALL, batch_windows=batch_windows).logits(frames, fps)
    assert logits.shape == (count, 12, 12)
    assert logits.dtype == torch.float32
    of_gray = [
        np.mean([(value / 255 - m) / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)]) for value in range(count)
    ]
    expected = torch.tensor(np.array(of_gray), dtype=torch.float32)[:, None, None].expand_as(logits)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    stride = max(1, round(fps / 5))
    assert sum(net.batches) == sum(-(-len(range(offset, count, stride)) // 4) for offset in range(stride))


def test_windows_are_cut_as_released() -> None:
    windows = [window.tolist() for window in cut_windows(11, stride=2, length=4)]
    assert windows == [[0, 2, 4, 6], [8, 10], [1, 3, 5, 7], [9]]


def test_the_last_window_is_filled_with_its_last_frame(small: VisageNet) -> None:
    frames = random_clip(6)
    filled = frames[[0, 1, 2, 3, 4, 5, 5, 5]]
    teacher = Visage(small, SMALL)
    torch.testing.assert_close(teacher.logits(frames, 5), teacher.logits(filled, 5)[:6])


def test_labels_do_not_depend_on_the_batch_or_the_container(small: VisageNet) -> None:
    frames = random_clip(23)
    expected = Visage(small, SMALL, batch_windows=1).logits(frames, 12)
    batched = Visage(small, SMALL, batch_windows=5).logits(frames, 12)
    torch.testing.assert_close(batched, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(Visage(small, SMALL).logits(torch.from_numpy(frames), 12), expected)


def test_labelling_leaves_the_net_in_its_mode(small: VisageNet) -> None:
    teacher = Visage(small.train(), SMALL)
    first = teacher.logits(random_clip(3), 5)
    assert small.training
    assert torch.equal(first, teacher.logits(random_clip(3), 5)), "batch statistics must not move"


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), 25, "shape"),
        (np.zeros((2, 3, 4, 4), np.uint8), 25, "shape"),
        (np.zeros((2, 4, 4, 3), np.float32), 25, "float32; a teacher wants RGB frames as uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, "frame rate is 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), float("nan"), "frame rate is nan"),
    ],
)
def test_clips_that_are_none(frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Visage(MeanNet(4), SMALL).logits(frames, fps)


def test_preprocessing_is_a_plain_square_resize_in_clips_units() -> None:
    frames = np.zeros((3, 10, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    out = preprocess(frames, 8)
    assert out.shape == (3, 3, 8, 8)
    mean, std = (torch.tensor(values).view(1, 3, 1) for values in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(out[..., 0], ((0 - mean) / std).expand(3, 3, 8))
    torch.testing.assert_close(out[..., -1], ((1 - mean) / std).expand(3, 3, 8))


def test_preprocessing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_clip(7)
    whole = preprocess(frames, 16)
    monkeypatch.setattr("distill.teachers.visage.CHUNK_PIXELS", 2 * 20 * 30)
    assert torch.equal(preprocess(frames, 16), whole)


# --- its file ---------------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_teacher(small: VisageNet, tmp_path: Path) -> None:
    teacher = Visage(small, SMALL)
    path = tmp_path / "teacher.pt"
    teacher.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher.pt"]
    again = Visage.load(path)
    assert again.config == SMALL
    assert again.fingerprint() == teacher.fingerprint()
    frames = random_clip(5)
    assert torch.equal(again.logits(frames, 25), teacher.logits(frames, 25))


def test_the_fingerprint_tells_weights_and_configuration_apart_and_holds_across_processes(
    small: VisageNet, tmp_path: Path
) -> None:
    teacher = Visage(small, SMALL)
    first = teacher.fingerprint()
    teacher.save(tmp_path / "teacher.pt")
    code = "import sys; from distill.teachers.visage import Visage; print(Visage.load(sys.argv[1]).fingerprint())"
    command = [sys.executable, "-c", code, str(tmp_path / "teacher.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == first
    slower = VisageConfig.from_dict(SMALL.to_dict() | {"sample_fps": 4.0})
    assert Visage(small, slower).fingerprint() != first
    with torch.no_grad():
        small.expert2.decoder.proj5.block[0].weight[0, 0] += 1e-3
    assert teacher.fingerprint() != first


def test_files_that_are_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"teacher\.pt is not a teacher's weights file"):
        Visage.load(path)
    torch.save({"state": {}}, path)
    with pytest.raises(ValueError, match=r"does not hold a 'saliency-distill visage 1' teacher"):
        Visage.load(path)


def test_a_failed_save_leaves_the_old_file(small: VisageNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        Visage(small, SMALL).save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher.pt"]


# --- configuration ----------------------------------------------------------------------------------------------------


def test_configuration_survives_json() -> None:
    config = VisageConfig.released("L", weights=(0.3, 0.7), fusion="mean")
    assert VisageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taps": (0, 1, 2)}, "four different blocks"),
        ({"taps": (0, 1, 2, 4)}, "outside the trunk's 4 blocks"),
        ({"taps": (3, 2, 1, 0)}, "shallow to deep"),
        ({"norm_groups": 5}, "does not divide into norm_groups 5"),
        ({"out_px": 0}, "out_px is 0"),
        ({"sample_fps": 0.0}, "sample_fps"),
        ({"fusion": "hybrid"}, "known are logit, mean, max"),
        ({"weights": (0.0, 0.0)}, "weights"),
        ({"weights": (1.0,)}, "weights"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisageConfig(**fields)


def test_a_dict_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="not a VisageConfig"):
        VisageConfig.from_dict(SMALL.to_dict() | {"tap": 1})
    with pytest.raises(ValueError, match="not a VisageConfig"):
        VisageConfig.from_dict({})

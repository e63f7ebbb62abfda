import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.teachers import Inference
from distill.teachers.frames import CLIP
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.lora import TRUNK_PREFIX, plain_name
from distill.teachers.visage import (
    Visage,
    VisageConfig,
    VisageNet,
    expert_kind,
    fuse,
    load_expert,
    load_released,
    preprocess,
    random_net,
)
from distill.teachers.visage.experts import CenterBias, ConvToOne, EnlargingConv
from distill.teachers.visage.net import VisageOutput
from distill.teachers.weights import read_weights

# The golden cases: the released decoders at a small width.
SHAPE: dict[str, Any] = {
    "trunk": InternVideo2Config.of("tiny", frames=4, px=56),
    "taps": (0, 1, 2, 3),
    "reduced_width": 32,
    "embed_width": 32,
    "head_width_1": 16,
    "head_width_2": 64,
    "norm_groups": 32,
    "out_px": 56,
}
SHARED = VisageConfig.released("S", **SHAPE)  # one trunk, a LoRA per expert
MERGED = VisageConfig.released("S", **SHAPE, shared_trunk=False)  # a trunk per expert

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


def from_goldens(config: VisageConfig, golden_state: Any) -> VisageNet:
    with torch.device("meta"):
        net = VisageNet(config)
    for number, kind in enumerate(config.experts, 1):
        load_expert(net, number, golden_state(f"visage_expert{kind}_tiny"))
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


@pytest.mark.parametrize("config", [SHARED, MERGED], ids=["one trunk", "a trunk per expert"])
def test_experts_auxiliary_heads_and_fusion_agree_with_the_official_code(
    config: VisageConfig, golden_state: Any, golden_arrays: Any
) -> None:
    one, two, fused = (golden_arrays(f"visage_{part}_tiny") for part in ("expert1", "expert2", "fused"))
    assert np.array_equal(one["input"], two["input"])
    with torch.inference_mode():
        output = from_goldens(config, golden_state)(torch.from_numpy(one["input"]), aux=True)
    cases = {"expert 1": (output.experts[0], one["saliency"]), "expert 2": (output.experts[1], two["saliency"])}
    cases |= {name: (logits, two[f"aux/{name}"]) for name, logits in output.aux.items()}
    cases["fusion"] = (output.fused, fused["saliency"])
    assert len(cases) == 6
    for name, (logits, expected) in cases.items():
        error = np.abs(logits.sigmoid().numpy() - expected[:, 0]).max()
        assert error < 1e-4, f"{name} is off by {error:.1e}"


def test_the_base_is_held_once_and_never_changes(golden_state: Any) -> None:
    net = from_goldens(SHARED, golden_state)
    base = dict(net.trunks.named_parameters())
    assert len(net.trunks) == 1 and len(net.loras) == 2
    with torch.device("meta"):
        alone = sum(value.numel() for value in InternVideo2(SHARED.trunk).parameters())
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in base.values()}
    assert sum(storages.values()) == 4 * alone, "the trunk's bytes, each once"
    branches = sum(value.numel() for value in net.loras.parameters())
    assert branches == 2 * 64 * (4 * (4 * 64 + 2 * 64 + 2 * (64 + 256)) + 3 * 14**2 + 64), "in + out, of each layer"
    before = {key: value.clone() for key, value in base.items()}
    with torch.inference_mode():
        net(torch.randn(1, 3, 4, 56, 56))
    assert all(torch.equal(before[key], value) for key, value in base.items())


def test_a_bfloat16_base_stays_close(golden_state: Any, golden_arrays: Any) -> None:
    net = from_goldens(SHARED, golden_state)
    clip = torch.from_numpy(golden_arrays("visage_expert1_tiny")["input"])
    with torch.inference_mode():
        full = net(clip).fused.sigmoid()
        net.trunks.bfloat16()
        half = net(clip).fused
    assert half.dtype == torch.float32
    assert (half.sigmoid() - full).abs().max() < 0.1
    assert (half.sigmoid() - full).abs().mean() < 0.01


def test_an_ensemble_of_three_experts(golden_state: Any, golden_arrays: Any) -> None:
    config = VisageConfig.released("S", **SHAPE, experts=(2, 1, 2), weights=(0.0, 1.0, 1.0))
    pair, trio = from_goldens(SHARED, golden_state), from_goldens(config, golden_state)
    clip = torch.from_numpy(golden_arrays("visage_expert1_tiny")["input"])
    with torch.inference_mode():
        two, three = pair(clip), trio(clip)
    assert len(three.experts) == 3
    torch.testing.assert_close(three.experts[1], two.experts[0])
    torch.testing.assert_close(three.fused, two.fused)
    assert VisageConfig.released("S", experts=(1, 1, 2)).weights == (1 / 3, 1 / 3, 1 / 3)
    assert VisageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def released_files(folder: Path, golden_state: Any) -> tuple[Path, list[Path]]:
    """The goldens' states as in the authors' files: the base alone, experts without their trunk."""
    states = [golden_state(f"visage_expert{kind}_tiny") for kind in (1, 2)]
    trunk = {plain_name(key): value for key, value in states[0].items() if key.startswith(TRUNK_PREFIX)}
    trunk = {f"vision_encoder.{key}": value for key, value in trunk.items() if ".lora_" not in key}
    others = {"text_encoder.embeddings.weight": torch.ones(3, 3), "temp": torch.tensor(0.07)}
    base, paths = folder / "base.pt", [folder / "expert1.pth", folder / "expert2.safetensors"]
    torch.save({"module": trunk | others, "global_step": 7}, base)
    experts = [
        {key: value for key, value in state.items() if ".lora_" in key or not key.startswith(TRUNK_PREFIX)} for state in states
    ]
    torch.save(experts[0], paths[0])
    save_file(experts[1], paths[1])
    return base, paths


def built_from(base: Path, experts: list[Path], size: str, dtype: Any = torch.float32, **fields: Any) -> Visage:
    """The teacher of published files, each expert's kind taken from its keys."""
    options = {"orig_t_size": fields.pop("orig_t_size", 4), "dtype": dtype}
    kinds = tuple(expert_kind(read_weights(path), str(path)) for path in experts)
    config = VisageConfig.released(size, experts=kinds, **fields)
    return Visage(load_released(config, base, experts, **options), config)


@pytest.mark.parametrize("shared", [True, False])
def test_the_teacher_is_built_from_published_files(shared: bool, golden_state: Any, golden_arrays: Any, tmp_path: Path) -> None:
    base, experts = released_files(tmp_path, golden_state)
    teacher = built_from(base, experts, "S", **SHAPE, shared_trunk=shared)
    assert teacher.config.experts == (1, 2)
    assert len(teacher.net.trunks) == (1 if shared else 2)
    assert not any(value.is_meta for value in teacher.net.state_dict().values())
    with torch.inference_mode():
        fused = teacher.net.eval()(torch.from_numpy(golden_arrays("visage_expert1_tiny")["input"])).fused
    assert np.abs(fused.sigmoid().numpy() - golden_arrays("visage_fused_tiny")["saliency"][:, 0]).max() < 1e-4


def test_experts_are_known_by_their_keys_and_windows_may_be_longer(golden_state: Any, tmp_path: Path) -> None:
    base, experts = released_files(tmp_path, golden_state)
    shape = SHAPE | {"trunk": InternVideo2Config.of("tiny", frames=6, px=56)}
    teacher = built_from(base, experts[::-1], "S", **shape, dtype=torch.bfloat16, weights=(0.9, 0.1))
    assert teacher.config.experts == (2, 1)
    assert {value.dtype for value in teacher.net.trunks.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in teacher.net.experts.parameters()} == {torch.float32}
    assert teacher.logits(random_clip(7), 5).isfinite().all()


def test_faults_of_published_files_are_one_line(golden_state: Any, tmp_path: Path) -> None:
    base, experts = released_files(tmp_path, golden_state)

    def message(*args: Any, **fields: Any) -> str:
        with pytest.raises(ValueError) as caught:
            built_from(*args, "S", **(SHAPE | fields))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "expert1.pth does not fit Expert1; its keys: of another shape" in message(base, experts, embed_width=64)
    assert "expert1.pth does not fit Lora" in message(base, experts, lora_rank=32)
    assert "base.pt: pos_embed holds 64 patch positions" in message(base, experts, orig_t_size=8)
    wide = InternVideo2Config.of("tiny", frames=4, px=56, mlp_width=128)
    text = message(base, experts, trunk=wide)
    assert "base.pt does not fit InternVideo2; its keys: of another shape 12, first 'blocks.0.mlp.fc1.weight'" in text
    assert "[256, 64], expected [128, 64]" in text
    assert "base.pt is not a ViSAGE expert" in message(base, [experts[0], base])
    with pytest.raises(ValueError, match="2 files are given for an ensemble of 1"):
        load_released(VisageConfig.released("S", experts=(1,)), base, experts)
    state = torch.load(experts[0], weights_only=True)
    gone = f"{TRUNK_PREFIX}blocks.2.block.mlp.fc1.lora_B.default.weight"
    torch.save({key: value for key, value in state.items() if key != gone}, experts[0])
    assert f"expert1.pth does not fit Lora; its keys: missing 1, first {gone!r} of shape [256, 64]" in message(base, experts)


def test_a_released_key_that_is_missing_is_named(golden_state: Any) -> None:
    state = golden_state("visage_expert2_tiny")
    del state["decoder.fuse11.norm2.bias"]
    with pytest.raises(ValueError, match=r"state of expert 2 .* missing 1, first 'decoder.fuse11.norm2.bias' of shape"):
        load_expert(VisageNet(SHARED), 2, state)


def test_experts_in_the_wrong_place_are_refused(golden_state: Any, small: VisageNet) -> None:
    one, two = (golden_state(f"visage_expert{kind}_tiny") for kind in (1, 2))
    net = from_goldens(SHARED, golden_state)
    with pytest.raises(ValueError, match="is an expert of kind 2; the ensemble's number 1 is of kind 1"):
        load_expert(net, 1, two)
    with pytest.raises(ValueError, match="no expert 3; the ensemble has 2"):
        load_expert(net, 3, one)
    with pytest.raises(ValueError, match="lora_rank above 0, or shared_trunk=False"):
        load_expert(small, 1, one)
    one[f"{TRUNK_PREFIX}blocks.3.block.norm2.weight"] += 1e-3
    with pytest.raises(ValueError, match=r"brings another trunk, first 'blocks.3.norm2.weight'"):
        load_expert(net, 1, one)


def test_the_released_layout_builds_without_memory() -> None:
    with torch.device("meta"):
        net = VisageNet(VisageConfig.released())

    def millions(module: nn.Module) -> float:
        return round(sum(value.numel() for value in module.parameters()) / 1e6, 2)

    assert net.config.taps == (11, 23, 35, 47)
    one, two = net.experts
    assert millions(one.dim_reducers) == millions(two.dim_reducers) == 13.11
    assert millions(one.decoder) == 18.91
    assert millions(two.decoder) == 32.20
    assert millions(two.decoder.aux_heads) == 3.10
    assert millions(one.film_gamma) + millions(one.film_beta) == 1.64
    assert len(net.trunks) == 1
    assert [millions(lora.blocks) for lora in net.loras] == [157.29, 157.29]


@pytest.mark.parametrize("config", [SHARED, MERGED], ids=["one trunk", "a trunk per expert"])
def test_random_weights_carry_a_signal_and_follow_from_the_seed(config: VisageConfig) -> None:
    def a_teacher(seed: int) -> Visage:
        return Visage(random_net(config, seed, dtype=torch.bfloat16), config)

    teacher = a_teacher(3)
    logits = teacher.logits(random_clip(5), 5)
    assert logits.isfinite().all() and logits.std() > 1e-3
    assert teacher.fingerprint() == a_teacher(3).fingerprint() != a_teacher(4).fingerprint()
    assert {value.dtype for value in teacher.net.trunks.parameters()} == {torch.bfloat16}


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
    for logits in (*output.experts, output.fused, *output.aux.values()):
        assert logits.shape == shape
    assert list(output.aux) == ["p23", "p17", "p11"]
    prior = net.experts[0].decoder.center_bias()
    for logits in (output.experts[0] - prior, output.experts[1], *output.aux.values()):
        assert logits.std() < 0.5
        assert abs(logits.mean() - config.logit_init) < 0.5
    loss = sum(logits.square().mean() for logits in (*output.experts, *output.aux.values()))
    loss.backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    assert not without, f"no gradient reaches {without}"


def test_auxiliary_heads_run_in_training_only_unless_asked(small: VisageNet) -> None:
    clip = torch.randn(1, 3, 4, 16, 16)
    assert small(clip).aux == {}
    assert small(clip, aux=True).aux.keys() == {"p23", "p17", "p11"}
    assert small.train()(clip).aux.keys() == {"p23", "p17", "p11"}


def test_the_centre_prior_is_a_learned_gaussian(small: VisageNet) -> None:
    prior = small.experts[0].decoder.center_bias
    with torch.no_grad():
        for name, value in {"cx": 1.0, "cy": -1.0, "sigma": 0.5, "weight": 2.0}.items():
            getattr(prior, name).fill_(value)
        map_HW = prior()
    assert map_HW.argmax() == SMALL.out_px - 1, "x = 1, y = -1 is the top right corner"
    torch.testing.assert_close(map_HW[0, -1], torch.tensor(2.0))
    torch.testing.assert_close(map_HW[-1, -1], 2 * torch.tensor(-8.0).exp())


# --- the teacher ------------------------------------------------------------------------------------------------------


class MeanNet(nn.Module):
    """Returns each frame's mean, so that a label identifies its frame; and counts its windows."""

    def __init__(self, out_px: int) -> None:
        super().__init__()
        self.out_px = out_px
        self.batches: list[int] = []

    def forward(self, clip_BCTHW: Tensor) -> VisageOutput:
        self.batches.append(len(clip_BCTHW))
        mean_BT11 = clip_BCTHW.mean(dim=(1, 3, 4))[..., None, None]
        fused = mean_BT11.expand(-1, -1, self.out_px, self.out_px)
        return VisageOutput((fused, fused), {}, fused)


@pytest.mark.parametrize("batch_windows", [1, 3])
@pytest.mark.parametrize("fps", [5.0, 24.0, 30.0])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 24, 53])
def test_every_frame_gets_its_own_label(count: int, fps: float, batch_windows: int) -> None:
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 6, 8, 3))
    net = MeanNet(SMALL.out_px)
    logits = Visage(net, SMALL, how=Inference(batch=batch_windows)).logits(frames, fps)
    assert logits.shape == (count, 12, 12)
    assert logits.dtype == torch.float32
    of_gray = [np.mean([(value / 255 - m) / s for m, s in zip(*CLIP, strict=True)]) for value in range(count)]
    expected = torch.tensor(np.array(of_gray), dtype=torch.float32)[:, None, None].expand_as(logits)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    stride = max(1, round(fps / 5))
    assert sum(net.batches) == sum(-(-len(range(offset, count, stride)) // 4) for offset in range(stride))


def test_the_last_window_is_filled_with_its_last_frame(small: VisageNet) -> None:
    frames = random_clip(6)
    filled = frames[[0, 1, 2, 3, 4, 5, 5, 5]]
    teacher = Visage(small, SMALL)
    torch.testing.assert_close(teacher.logits(frames, 5), teacher.logits(filled, 5)[:6])


def test_labels_do_not_depend_on_the_batch_or_the_container(small: VisageNet) -> None:
    frames = random_clip(23)
    expected = Visage(small, SMALL, how=Inference(batch=1)).logits(frames, 12)
    batched = Visage(small, SMALL, how=Inference(batch=5)).logits(frames, 12)
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
        (np.zeros((2, 4, 4, 3), np.float32), 25, "float32; a teacher needs RGB frames as uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, "frame rate is 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), float("nan"), "frame rate is nan"),
    ],
)
def test_invalid_clips_are_refused(frames: np.ndarray, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Visage(MeanNet(4), SMALL).logits(frames, fps)


def test_preprocessing_is_a_plain_square_resize_in_clips_units() -> None:
    frames = np.zeros((3, 10, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    out = preprocess(frames, 8)
    assert out.shape == (3, 3, 8, 8)
    mean, std = (torch.tensor(values).view(1, 3, 1) for values in CLIP)
    torch.testing.assert_close(out[..., 0], ((0 - mean) / std).expand(3, 3, 8))
    torch.testing.assert_close(out[..., -1], ((1 - mean) / std).expand(3, 3, 8))


def test_a_clip_may_be_prepared_in_pieces() -> None:
    frames = random_clip(7)
    teacher = Visage(MeanNet(4), SMALL)
    whole = teacher.prepare(frames)
    assert whole.shape == (7, 3, 16, 16) and whole.dtype == torch.uint8
    assert torch.equal(torch.cat([teacher.prepare(frames[:2]), teacher.prepare(frames[2:])]), whole)


def test_overlapping_windows_are_averaged(small: VisageNet) -> None:
    frames = random_clip(8)
    plain, half = (Visage(small, SMALL, how=Inference(overlap=overlap)) for overlap in (0.0, 0.5))
    first, second, third = (plain.logits(frames[start : start + 4], 5) for start in (0, 2, 4))
    expected = torch.cat((first[:2], (first[2:] * torch.tensor([2 / 3, 1 / 3])[:, None, None])))
    expected[2:] += second[:2] * torch.tensor([1 / 3, 2 / 3])[:, None, None]
    torch.testing.assert_close(half.logits(frames, 5)[:4], expected)
    torch.testing.assert_close(half.logits(frames, 5)[6:], third[2:])
    assert plain.fingerprint() != half.fingerprint()


@pytest.mark.parametrize(("grid", "px"), [(4, 56), (5, 13), (6, 6), (1, 7)])
def test_the_heads_convolutions_are_those_of_the_enlarged_features(grid: int, px: int) -> None:
    torch.manual_seed(0)
    first, last, x = EnlargingConv(6, 4, px), ConvToOne(4), torch.randn(3, 6, grid, grid)
    enlarged = nn.functional.interpolate(x, size=(px, px), mode="bilinear", align_corners=False)
    expected = nn.functional.conv2d(enlarged, first.weight, padding=1)
    torch.testing.assert_close(first(x), expected, rtol=1e-4, atol=1e-5)
    maps = nn.functional.conv2d(expected, last.weight, last.bias, padding=1)
    torch.testing.assert_close(last(expected), maps, rtol=1e-4, atol=1e-5)
    by_hand = torch.autograd.grad(maps.square().sum(), [first.weight, last.weight], retain_graph=True)
    ours = torch.autograd.grad(last(first(x)).square().sum(), [first.weight, last.weight])
    torch.testing.assert_close(ours, by_hand, rtol=1e-3, atol=1e-3)


def test_bf16_is_near_and_nothing_large_flows_in_float32(small: VisageNet) -> None:
    frames = random_clip(8)
    exact, print_ = (teacher := Visage(small, SMALL)).logits(frames, 5), teacher.fingerprint()
    rough = Visage(small, SMALL, how=Inference(precision="bf16"))
    error = (rough.logits(frames, 5) - exact).abs()
    assert 0 < error.max() < 0.2 and error.mean() < 0.05 * exact.std()
    assert rough.fingerprint() != print_

    seen: dict[str, set[torch.dtype]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(type(layer).__name__, set()).update(t.dtype for t in (*inputs, output))

    for layer in small.modules():
        if not list(layer.children()) and list(layer.parameters()) and not isinstance(layer, CenterBias):
            layer.register_forward_hook(note)
    small(torch.randn(1, 3, 4, 16, 16))
    assert seen.pop("ConvToOne") == {torch.bfloat16, torch.float32}, "the logits alone are float32"
    assert {"RMSNorm", "Linear", "Conv3d", "GroupNorm", "BatchNorm3d", "EnlargingConv"} <= seen.keys()
    assert all(dtypes == {torch.bfloat16} for dtypes in seen.values()), seen


def test_blocks_loras_and_batches_share_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block and each of the two experts: once for one window, once for any number of them."""
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(f"{len(graph.graph.nodes)} nodes")
        return graph.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=backend, fullgraph=True))
    torch.compiler.reset()
    config = replace(SMALL, lora_rank=2)
    teacher = Visage(random_net(config).eval(), config, device="meta", how=Inference(compile=True))
    with torch.inference_mode():
        for windows in (1, 5, 3):
            teacher.net(torch.empty(windows, 3, 4, 16, 16, device="meta"))
    assert len(compiled) == 6, compiled
    torch.compiler.reset()


def test_a_compiled_teacher_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="eager", fullgraph=True))
    torch.compiler.reset()
    clip = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    plain, compiled = (Visage(random_net(SMALL), SMALL, how=Inference(compile=c)).infer(clip, 8.0) for c in (False, True))
    torch.testing.assert_close(compiled, plain)
    torch.compiler.reset()


# --- its file ---------------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_teacher(small: VisageNet, tmp_path: Path) -> None:
    teacher = Visage(small, SMALL)
    path = tmp_path / "teacher.pt"
    torch.save(teacher.saved_state(), path)
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
    torch.save(teacher.saved_state(), tmp_path / "teacher.pt")
    code = "import sys; from distill.teachers.visage import Visage; print(Visage.load(sys.argv[1]).fingerprint())"
    command = [sys.executable, "-c", code, str(tmp_path / "teacher.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == first
    slower = VisageConfig.from_dict(SMALL.to_dict() | {"sample_fps": 4.0})
    assert Visage(small, slower).fingerprint() != first
    with torch.no_grad():
        small.experts[1].decoder.proj5.block[0].weight[0, 0] += 1e-3
    assert teacher.fingerprint() != first


def test_files_that_are_not_a_teacher_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"teacher\.pt is not a teacher's weights file"):
        Visage.load(path)
    torch.save({"state": {}}, path)
    with pytest.raises(ValueError, match=r"does not hold a 'saliency-distill visage 2' teacher"):
        Visage.load(path)


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
        ({"weights": (1.0, 1.0), "experts": (1, 2, 2)}, "must be 3 numbers"),
        ({"experts": (1, 3)}, "must each be of kind 1 or 2"),
        ({"lora_rank": 4, "shared_trunk": False}, "0 without a shared trunk"),
        ({"lora_alpha": 0.0}, "lora_alpha"),
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

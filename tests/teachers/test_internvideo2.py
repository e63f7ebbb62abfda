from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.teachers.internvideo2 import (
    EXTRAS,
    SIZES,
    InternVideo2,
    InternVideo2Config,
    RMSNorm,
    dct_patches,
    load_trunk,
    resize_pos_embed,
    sincos_pos_embed,
    trunk_state,
)
from distill.teachers.lora import Lora
from distill.teachers.weights import load_state_dict_exact, read_weights

TINY = InternVideo2Config.of("tiny", frames=4, px=56)


def on_meta(config: InternVideo2Config) -> InternVideo2:
    with torch.device("meta"):
        return InternVideo2(config)


def test_token_streams_agree_with_the_official_encoder(golden_state: Any, golden_arrays: Any) -> None:
    state, stored = golden_state("internvideo2_tiny"), golden_arrays("internvideo2_tiny")
    trunk = on_meta(TINY)
    account = load_trunk(trunk, state)
    assert account.loaded + len(account.dropped) == len(state)
    with torch.inference_mode():
        streams = trunk(torch.from_numpy(stored["input"]), taps=range(4))
    for index, stream in enumerate(streams):
        expected = stored[f"block{index}"]
        error = np.abs(stream.numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-3, f"block {index} is off by {error:.1e} of the largest value"


@pytest.mark.parametrize("rank", [0, 2])
def test_no_norm_has_to_copy_its_input_first(rank: int) -> None:
    trunk = on_meta(TINY)
    with torch.device("meta"):
        lora, clip = Lora(TINY, rank) if rank else None, torch.empty(2, 3, 4, 56, 56)
    inputs: list[torch.Tensor] = []
    for module in trunk.modules():
        if isinstance(module, RMSNorm):
            module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.inference_mode():
        trunk(clip, [1], lora)
    assert len(inputs) == 2 * 4 and all(x.is_contiguous() for x in inputs)


def test_keys_are_the_official_ones(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    official = {key: value.shape for key, value in state.items() if not key.startswith(EXTRAS)}
    assert {key: value.shape for key, value in on_meta(TINY).state_dict().items()} == official


def test_cosine_patches_are_orthogonal_whitened_and_start_a_trunk() -> None:
    basis = dct_patches(64, 8)
    gram = basis.flatten(1) @ basis.flatten(1).T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis[0], basis[0].mean().expand(3, 8, 8))  # the coarsest is the patch's lightness
    assert len(dct_patches(500, 8)) == 3 * 8 * 8, "there are no more patterns than pixels"
    trunk = InternVideo2(InternVideo2Config(px=16, patch=8, frames=2, dct_init=True))
    assert torch.equal(trunk.patch_embed.proj.weight[:, :, 0], basis)
    on_meta(InternVideo2Config(px=16, patch=8, frames=2, dct_init=True))


def test_the_position_embedding_starts_as_the_official_one(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    torch.testing.assert_close(sincos_pos_embed(64, 4, 4)[0, 1:], state["pos_embed"][0, 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "millions"), [("S", 21.5), ("B", 85.5), ("L", 302.9), ("1B", 1010.8), ("6B", 5902.0)])
def test_published_sizes(size: str, millions: float) -> None:
    trunk = on_meta(InternVideo2Config.of(size, frames=20))
    count = sum(value.numel() for key, value in trunk.named_parameters() if key != "pos_embed")  # grows with the window
    assert round(count / 1e6, 1) == pytest.approx(millions, abs=0.11), f"{count} parameters"


def test_taps_come_in_the_order_asked_and_later_blocks_do_not_run() -> None:
    torch.manual_seed(0)
    trunk = InternVideo2(TINY).eval()
    clip = torch.randn(1, 3, 4, 56, 56)
    all_four = trunk(clip, [0, 1, 2, 3])
    trunk.blocks[3] = torch.nn.Identity()
    late, early = trunk(clip, [2, 0])
    assert torch.equal(late, all_four[2])
    assert torch.equal(early, all_four[0])


def test_half_precision_runs_and_stays_close() -> None:
    torch.manual_seed(0)
    trunk = InternVideo2(TINY).eval()
    clip = torch.randn(1, 3, 4, 56, 56)
    with torch.inference_mode():
        full = trunk(clip, [3])[0]
        half = trunk.bfloat16()(clip.bfloat16(), [3])[0]
    assert half.dtype == torch.bfloat16
    assert (full - half.float()).norm() / full.norm() < 0.02


def test_pos_embed_in_time_keeps_what_is_constant_and_interpolates_what_is_not() -> None:
    config = InternVideo2Config.of("tiny", frames=8, px=56)
    ramp = torch.arange(4.0).repeat_interleave(16)
    pos_embed = torch.cat((torch.tensor([7.0]), ramp)).view(1, -1, 1).repeat(1, 1, 64)
    resized = resize_pos_embed(pos_embed, config, orig_t_size=4)
    assert resized.shape == (1, 1 + 8 * 16, 64)
    assert resized[0, 0, 0] == 7
    by_time = resized[0, 1:, 0].view(8, 16)
    assert torch.equal(by_time[:, :1].expand(-1, 16), by_time)
    assert by_time[:, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_pos_embed_in_space() -> None:
    config = InternVideo2Config.of("tiny", frames=2, px=112)
    pos_embed = torch.cat((torch.zeros(1, 1, 64), sincos_pos_embed(64, 2, 4)[:, 1:]), dim=1)
    resized = resize_pos_embed(pos_embed, config, orig_t_size=2, orig_grid=4)
    assert resized.shape == (1, 1 + 2 * 64, 64)
    torch.testing.assert_close(resized[0, 1:65].mean(0), pos_embed[0, 1:17].mean(0), atol=0.05, rtol=0)


@pytest.mark.parametrize("orig_t_size", [1, 3, 8, 16])
def test_a_wrong_orig_t_size_is_an_error(orig_t_size: int) -> None:
    with pytest.raises(ValueError, match=f"not orig_t_size={orig_t_size} frames of 4x4 but 4 frames; set orig_t_size=4"):
        resize_pos_embed(sincos_pos_embed(64, 4, 4), TINY, orig_t_size=orig_t_size)
    with pytest.raises(ValueError, match="nor any other number of frames; set orig_t_size and orig_grid"):
        resize_pos_embed(sincos_pos_embed(64, 4, 3), TINY, orig_t_size=orig_t_size)


def test_another_number_of_frames_is_an_error_unless_stated(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    trunk = on_meta(InternVideo2Config.of("tiny", frames=6, px=56))
    with pytest.raises(ValueError, match=r"base\.pt: pos_embed holds 64 .* but 4 frames; set orig_t_size=4"):
        load_trunk(trunk, state, source="base.pt")


def test_load_trunk_fits_the_position_embedding(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    trunk = on_meta(InternVideo2Config.of("tiny", frames=6, px=56))
    load_trunk(trunk, state, orig_t_size=4)
    assert trunk.pos_embed.shape == (1, 1 + 6 * 16, 64)


def official_layout(size: str, frames: int, decoders: int) -> dict[str, tuple[int, ...]]:
    """The published video encoder's keys and shapes, heads of the pre-training included."""
    width, depth, mlp = {
        "S": (384, 12, 1536), "B": (768, 12, 3072), "L": (1024, 24, 4096), "1B": (1408, 40, 6144), "6B": (3200, 48, 12800)
    }[size]  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width)}
    shapes |= {f"{name}pos_embed": (1, 1 + frames * 256, width) for name in ("", "clip_")}
    shapes |= {"patch_embed.proj.weight": (width, 3, 1, 14, 14), "patch_embed.proj.bias": (width,)}
    vectors = ("norm1.weight", "norm2.weight", "attn.q_norm.weight", "attn.k_norm.weight", "attn.proj.bias", "ls1.gamma")
    for n in range(depth):
        shapes |= {f"blocks.{n}.{name}": (width,) for name in (*vectors, "ls2.gamma", "mlp.fc2.bias")}
        shapes |= {f"blocks.{n}.attn.qkv.weight": (3 * width, width), f"blocks.{n}.attn.proj.weight": (width, width)}
        shapes |= {f"blocks.{n}.mlp.fc1.weight": (mlp, width), f"blocks.{n}.mlp.fc1.bias": (mlp,)}
        shapes |= {f"blocks.{n}.mlp.fc2.weight": (width, mlp)}
    pool = "clip_projector"
    shapes |= {f"{pool}.norm1_{part}.{half}": (width,) for part in "qkv" for half in ("weight", "bias")}
    shapes |= {f"{pool}.cross_attn.{part}_bias": (width,) for part in "qkv"}
    shapes |= {f"{pool}.cross_attn.{part}.weight": (width, width) for part in "qkv"}
    shapes |= {f"{pool}.cross_attn.proj.weight": (768, width), f"{pool}.cross_attn.proj.bias": (768,)}
    heads = {f"clip_decoder.{n}": (width, 3200) for n in range(decoders)} | {"final_clip_decoder": (768, 768)}
    for name, (wide_in, wide_out) in heads.items():
        shapes |= {f"{name}.head.weight": (wide_out, wide_in), f"{name}.head.bias": (wide_out,)}
        shapes |= {f"{name}.norm.weight": (wide_out,), f"{name}.norm.bias": (wide_out,)}
    return shapes


@pytest.mark.parametrize("size", ["S", "B", "L", "1B", "6B"])
def test_keys_and_shapes_at_every_size_are_the_official_ones(size: str) -> None:
    official = official_layout(size, frames=8, decoders=6)
    state = {key: torch.empty(shape, device="meta") for key, shape in official.items()}
    trunk = on_meta(InternVideo2Config.of(size, frames=8))
    account = load_trunk(trunk, state)
    own = {key: tuple(value.shape) for key, value in trunk.state_dict().items()}
    assert own == {key: official[key] for key in own}
    assert account.loaded == len(own) == 13 * trunk.config.depth + 4
    assert set(account.dropped) == official.keys() - own.keys()


STAGE_1 = {"mae_pos_embed": (1, 64, 64), "mae_decoder.0.head.0.weight": (64, 64), "mae_decoder.0.norm.weight": (64,)}
IMAGES = {"img_pos_embed": (1, 17, 64), "clip_img_pos_embed": (1, 17, 64)}
OTHERS = {"text_encoder.x": (3,), "audio_encoder.y": (3,), "vision_proj.weight": (5, 64), "temp": ()}


@pytest.mark.parametrize(
    ("extras", "others", "wrapper"),
    [
        (STAGE_1, {}, "model"),
        ({}, {}, ""),
        (IMAGES, OTHERS, "module"),
        ({"clip_decoder.1.head.weight": (32, 64)}, OTHERS, "model"),
        ({"fc_norm.weight": (32,), "head.weight": (400, 32)}, {}, "module"),
    ],
    ids=["stage 1", "distilled", "stage 2 with image embeddings", "multi-modal", "fine-tuned for classes"],
)
def test_published_files_load(
    extras: dict[str, Any], others: dict[str, Any], wrapper: str, golden_state: Any, golden_arrays: Any, tmp_path: Path
) -> None:
    state = golden_state("internvideo2_tiny") | {key: torch.ones(shape) for key, shape in extras.items()}
    count = len(state)
    if others:
        state = {f"vision_encoder.{key}": value for key, value in state.items()}
        state |= {key: torch.ones(shape) for key, shape in others.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "file.pt")
    trunk = on_meta(TINY)
    account = load_trunk(trunk, trunk_state(read_weights(tmp_path / "file.pt")), orig_t_size=4)
    assert account.loaded == 56
    assert account.loaded + len(account.dropped) == count
    assert set(extras) <= set(account.dropped)
    stored = golden_arrays("internvideo2_tiny")
    with torch.inference_mode():
        stream = trunk(torch.from_numpy(stored["input"]), taps=[3])[0]
    assert np.abs(stream.numpy() - stored["block3"]).max() < 1e-3 * np.abs(stored["block3"]).max()


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    trunk = InternVideo2(InternVideo2Config(width=16, depth=3, heads=2, mlp_width=16, frames=2, px=16, patch=8))
    lora = Lora(trunk.config, rank=2)
    clip = torch.randn(2, 3, 2, 16, 16)
    gradients = []
    for trunk.checkpointing in (False, True):
        trunk.zero_grad(), lora.zero_grad()
        sum(stream.square().sum() for stream in trunk(clip, [0, 2], lora)).backward()
        gradients.append([value.grad.clone() for value in (*trunk.parameters(), *lora.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_faults_of_a_state_dict_are_named(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    trunk = InternVideo2(TINY)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    faulty = dict(state)
    del faulty["blocks.1.ls1.gamma"]
    faulty["cls_token"] = torch.zeros(1, 1, 65)
    faulty["blocks.4.ls1.gamma"] = torch.zeros(64)
    with pytest.raises(ValueError) as caught:
        load_state_dict_exact(trunk, faulty, drop=EXTRAS, source="base.pt")
    message = str(caught.value)
    assert message.startswith(
        "base.pt does not fit InternVideo2; its keys: missing 1, first 'blocks.1.ls1.gamma' of shape [64]"
    )
    assert "'cls_token': [1, 1, 65], expected [1, 1, 64]" in message
    assert "unexpected 1, first 'blocks.4.ls1.gamma'" in message
    assert all(torch.equal(before[key], value) for key, value in trunk.state_dict().items()), "nothing may be loaded"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "does not divide into 3 heads"),
        ({"px": 100}, "not a multiple of the patch side 14"),
        ({"depth": 0}, "depth is 0"),
        ({"width": 72, "heads": 1}, "multiple of 16"),
        ({"layer_scale_init": 0.0}, "layer_scale_init"),
        ({"pos_embed_init": 2.0}, "pos_embed_init"),
    ],
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InternVideo2Config(**fields)


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown InternVideo2 size 'XL'; known are tiny, S, B, L, 1B, 6B"):
        InternVideo2Config.of("XL")
    assert list(SIZES) == ["tiny", "S", "B", "L", "1B", "6B"]


def test_clips_and_taps_that_do_not_fit() -> None:
    trunk = on_meta(TINY)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 5, 56, 56\]; its configuration needs \[B, 3, 4, 56, 56\]"):
        trunk(torch.zeros(1, 3, 5, 56, 56), [0])
    with pytest.raises(ValueError, match=r"taps \[4\]"):
        trunk(torch.zeros(1, 3, 4, 56, 56), [4])

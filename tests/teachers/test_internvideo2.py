from typing import Any

import numpy as np
import pytest
import torch

from distill.teachers.internvideo2 import (
    EXTRAS,
    SIZES,
    InternVideo2,
    InternVideo2Config,
    dct_patches,
    load_state_dict_exact,
    load_trunk,
    resize_pos_embed,
    sincos_pos_embed,
    trunk_state,
)

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
    with pytest.raises(ValueError, match=f"64 patch positions, but orig_t_size={orig_t_size} .* 4 frames would fit"):
        resize_pos_embed(sincos_pos_embed(64, 4, 4), TINY, orig_t_size=orig_t_size)


def test_load_trunk_fits_the_position_embedding(golden_state: Any) -> None:
    state = golden_state("internvideo2_tiny")
    trunk = on_meta(InternVideo2Config.of("tiny", frames=6, px=56))
    load_trunk(trunk, state, orig_t_size=4)
    assert trunk.pos_embed.shape == (1, 1 + 6 * 16, 64)


def test_wrapped_and_multi_modal_files_are_unwrapped() -> None:
    one = torch.ones(1)
    assert trunk_state({"model": {"cls_token": one}}) == {"cls_token": one}
    assert trunk_state({"module": {"vision_encoder.cls_token": one, "text_encoder.x": one, "temp": one}}) == {
        "cls_token": one
    }


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
    assert message.startswith("base.pt does not fit InternVideo2: 1 keys are missing, first 'blocks.1.ls1.gamma'")
    assert "'cls_token': [1, 1, 65], expected [1, 1, 64]" in message
    assert "1 keys are unexpected, first 'blocks.4.ls1.gamma'" in message
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
    with pytest.raises(ValueError, match=r"shape \[1, 3, 5, 56, 56\]; its configuration wants \[B, 3, 4, 56, 56\]"):
        trunk(torch.zeros(1, 3, 5, 56, 56), [0])
    with pytest.raises(ValueError, match=r"taps \[4\]"):
        trunk(torch.zeros(1, 3, 4, 56, 56), [4])

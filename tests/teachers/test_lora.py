import pytest
import torch

from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config, load_trunk
from distill.teachers.lora import TRUNK_PREFIX, Lora, merge_lora

LAYER = f"{TRUNK_PREFIX}blocks.0.block.attn.qkv"


def test_a_merged_layer_computes_what_the_wrapped_one_did() -> None:
    torch.manual_seed(0)
    weight, a, b, x = torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2), torch.randn(3, 4)
    state = {
        f"{LAYER}.base_layer.weight": weight,
        f"{LAYER}.lora_A.default.weight": a,
        f"{LAYER}.lora_B.default.weight": b,
        "decoder.block.weight": x,
    }
    merged = merge_lora(state, alpha=8)
    assert merged.keys() == {"blocks.0.attn.qkv.weight", "decoder.block.weight"}
    torch.testing.assert_close(x @ merged["blocks.0.attn.qkv.weight"].T, x @ weight.T + 4 * (x @ a.T @ b.T))
    assert torch.equal(state[f"{LAYER}.base_layer.weight"], weight), "the input must stay as it is"


def test_convolutions_merge_too() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(5, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2), torch.randn(5, 2, 1, 1, 1)
    clip = torch.randn(1, 3, 2, 4, 4)
    layer = f"{TRUNK_PREFIX}patch_embed.proj"
    merged = merge_lora(
        {f"{layer}.base_layer.weight": weight, f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b},
        alpha=2,
    )
    conv = torch.nn.functional.conv3d
    wrapped = conv(clip, weight, stride=(1, 2, 2)) + conv(conv(clip, a, stride=(1, 2, 2)), b)
    torch.testing.assert_close(conv(clip, merged["patch_embed.proj.weight"], stride=(1, 2, 2)), wrapped)


def test_the_base_may_come_under_its_published_name_and_keeps_its_type() -> None:
    merged = merge_lora(
        {
            "blocks.0.attn.qkv.weight": torch.ones(6, 4, dtype=torch.bfloat16),
            f"{LAYER}.lora_A.default.weight": torch.ones(2, 4),
            f"{LAYER}.lora_B.default.weight": torch.ones(6, 2),
        }
    )
    weight = merged["blocks.0.attn.qkv.weight"]
    assert weight.dtype == torch.bfloat16
    assert weight.eq(1 + 64 * 2).all()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({f"{LAYER}.lora_A.default.weight": torch.ones(2, 4)}, "has no lora_B.default.weight"),
        (
            {f"{LAYER}.lora_A.default.weight": torch.ones(2, 4), f"{LAYER}.lora_B.default.weight": torch.ones(6, 2)},
            "has no base weight",
        ),
        (
            {
                "blocks.0.attn.qkv.weight": torch.ones(6, 5),
                f"{LAYER}.lora_A.default.weight": torch.ones(2, 4),
                f"{LAYER}.lora_B.default.weight": torch.ones(6, 2),
            },
            r"B \[6, 2\] by A \[2, 4\], does not fit its weight \[6, 5\]",
        ),
        ({"blocks.0.norm1.weight": torch.ones(4), f"{TRUNK_PREFIX}blocks.0.block.norm1.weight": torch.ones(4)}, "occurs twice"),
    ],
)
def test_faults_are_named(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_lora(state)


# --- side branches ----------------------------------------------------------------------------------------------------

SMALL = InternVideo2Config(width=16, depth=2, heads=2, mlp_width=32, frames=2, px=16, patch=8, layer_scale_init=0.5)


def a_pair(rank: int = 3, seed: int = 0) -> tuple[InternVideo2, Lora]:
    torch.manual_seed(seed)
    trunk, lora = InternVideo2(SMALL).eval(), Lora(SMALL, rank, alpha=6.0).eval()
    with torch.no_grad():
        for value in lora.parameters():
            value.normal_(std=0.2)
    return trunk, lora


def test_side_branches_compute_what_merging_does() -> None:
    trunk, lora = a_pair()
    clip = torch.randn(2, 3, 2, 16, 16)
    merged = InternVideo2(SMALL).eval()
    load_trunk(merged, merge_lora(trunk.state_dict() | lora.released_state(), alpha=6.0))
    with torch.inference_mode():
        plain, wrapped, expected = trunk(clip, [0, 1]), trunk(clip, [0, 1], lora), merged(clip, [0, 1])
    for one, other, before in zip(wrapped, expected, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert (one - before).abs().max() > 0.1, "the branches must matter here"


def test_new_branches_start_without_effect_and_all_get_a_gradient() -> None:
    trunk, lora = InternVideo2(SMALL), Lora(SMALL, rank=2, dropout=0.1)
    clip = torch.randn(1, 3, 2, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(trunk(clip, [1], lora)[0], trunk(clip, [1])[0])
        for name, value in lora.named_parameters():
            if name.endswith("lora_B"):
                value.normal_(std=0.1)
    trunk.requires_grad_(False)
    trunk(clip, [1], lora)[0].square().mean().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in lora.parameters())
    lora.eval()
    assert torch.equal(trunk(clip, [1], lora)[0], trunk(clip, [1], lora)[0]), "no dropout outside training"


def test_two_experts_take_turns_on_one_trunk() -> None:
    (trunk, one), (_, two) = a_pair(), a_pair(rank=5, seed=1)
    clip = torch.randn(1, 3, 2, 16, 16)
    with torch.inference_mode():
        first = trunk(clip, [1], one)[0].clone()
        assert not torch.allclose(first, trunk(clip, [1], two)[0])
        assert torch.equal(first, trunk(clip, [1], one)[0])


def test_bfloat16_keeps_changes_that_merging_would_round_away() -> None:
    trunk, lora = a_pair()
    with torch.no_grad():
        for name, value in lora.named_parameters():
            value.fill_(1e-2 if name.endswith("lora_A") else 1e-3)
    layer, x = trunk.blocks[0].mlp.fc1.bfloat16(), torch.ones(1, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-16.0)  # so that what is left is the change alone
    change = 6.0 / 3 * 3 * 1e-3 * 16 * 1e-2
    merged = (layer.weight + 2 * (lora.blocks[0].fc1.lora_B @ lora.blocks[0].fc1.lora_A)).bfloat16()
    assert torch.equal(merged, layer.weight), "merging loses it"
    with torch.inference_mode():
        y = lora.blocks[0].fc1(layer(x), x)
    torch.testing.assert_close(y.float(), torch.full((1, 32), change), rtol=0.02, atol=0)


def test_released_names_come_and_go() -> None:
    _, lora = a_pair()
    state = lora.released_state()
    assert f"{TRUNK_PREFIX}blocks.1.block.mlp.fc2.lora_B.default.weight" in state
    assert f"{TRUNK_PREFIX}patch_embed.proj.lora_A.default.weight" in state
    assert len(state) == 2 * (4 * 2 + 1)
    unused = f"{TRUNK_PREFIX}clip_projector.cross_attn.proj.lora_A.default.weight"
    again = Lora(SMALL, rank=3, alpha=6.0)
    account = again.load_released(state | {unused: torch.ones(3, 16), "decoder.proj17.weight": torch.ones(1)})
    assert account == (18, (unused,))
    assert all(torch.equal(one, other) for one, other in zip(lora.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"expert\.pt does not fit Lora; its keys: of another shape 18, first 'encoder"):
        Lora(SMALL, rank=4).load_released(state, source="expert.pt")
    state[f"{TRUNK_PREFIX}blocks.2.block.attn.qkv.lora_A.default.weight"] = torch.ones(3, 16)
    with pytest.raises(ValueError, match=r"unexpected 1, first '.*blocks\.2\.block\.attn\.qkv\.lora_A"):
        again.load_released(state)


def test_a_rank_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 0"):
        Lora(SMALL, rank=0)

import pytest
import torch

from distill.teachers.lora import TRUNK_PREFIX, merge_lora

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
        {
            f"{layer}.base_layer.weight": weight,
            f"{layer}.lora_A.default.weight": a,
            f"{layer}.lora_B.default.weight": b,
        },
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
        (
            {"blocks.0.norm1.weight": torch.ones(4), f"{TRUNK_PREFIX}blocks.0.block.norm1.weight": torch.ones(4)},
            "comes twice",
        ),
    ],
)
def test_faults_are_named(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_lora(state)

"""Released experts carry their fine-tuning as LoRA; for labelling it is folded into the weights it sits on.

A wrapped layer W of the released files is three tensors, `base_layer.weight`, `lora_A.default.weight` and
`lora_B.default.weight`, and computes W + (alpha / r) · B·A (Hu et al., *LoRA*, 2022). Adding the product once gives a
plain layer, the same numbers at less work, and the trunk's own key names.

This file knows torch alone.
"""

from collections.abc import Mapping

from torch import Tensor

TRUNK_PREFIX = "encoder.vision_encoder.base_model.model."
"""What the released experts put before every key of their trunk."""


def merge_lora(state: Mapping[str, Tensor], *, alpha: float = 128.0) -> dict[str, Tensor]:
    """`state` with plain trunk names and every LoRA pair added into the weight it belongs to. A pure function.

    Strips `encoder.vision_encoder.base_model.model.`, the checkpointing wrapper's `.block.` and LoRA's `.base_layer.`
    from the names; keys outside the trunk stay as they are. Linear and convolution weights are merged alike: A maps
    the inputs of one output position to r numbers, B is pointwise. The rank r is A's first dimension; `alpha` is 128 as
    released (with r 64, a factor of 2). The product is formed in float32 and cast back to the weight's type.

    The released files leave the frozen trunk out: put the base's tensors, under their published names, into the same
    dict first.
    """
    merged: dict[str, Tensor] = {}
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(TRUNK_PREFIX)
        if name.startswith("blocks."):
            name = name.replace(".block.", ".", 1)
        if name.endswith(".lora_A.default.weight"):
            down[name.removesuffix(".lora_A.default.weight")] = value
        elif name.endswith(".lora_B.default.weight"):
            up[name.removesuffix(".lora_B.default.weight")] = value
        else:
            name = name.replace(".base_layer.", ".")
            if name in merged:
                raise ValueError(
                    f"the trunk weight {name!r} comes twice; give either the base's or the expert's, not both"
                )
            merged[name] = value
    for layer in sorted(down.keys() | up.keys()):
        if layer not in down or layer not in up:
            half = "lora_B" if layer in down else "lora_A"
            raise ValueError(f"the LoRA of {layer!r} has no {half}.default.weight; the file is incomplete")
        a_RI, b_OR = down[layer].float().flatten(1), up[layer].float().flatten(1)
        weight = merged.get(f"{layer}.weight")
        if weight is None:
            raise ValueError(
                f"the LoRA of {layer!r} has no base weight; add the frozen trunk's tensors to the state first"
            )
        rank = len(a_RI)
        if b_OR.shape[1] != rank or (len(b_OR), a_RI.shape[1]) != weight.flatten(1).shape:
            raise ValueError(
                f"the LoRA of {layer!r}, B {list(up[layer].shape)} by A {list(down[layer].shape)}, "
                f"does not fit its weight {list(weight.shape)}"
            )
        delta = ((alpha / rank) * (b_OR @ a_RI)).view(weight.shape)
        merged[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    return merged

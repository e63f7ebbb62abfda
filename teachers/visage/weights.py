"""Weights of ViSAGE: the released experts' files on a published InternVideo2, and random weights for benchmarks and smoke tests."""

import math
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.teachers.internvideo2 import EXTRAS, InternVideo2, fit_to_window, load_trunk, trunk_state
from distill.teachers.lora import Lora, merge_lora, plain_name
from distill.teachers.visage.config import VisageConfig
from distill.teachers.visage.net import VisageNet
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.teachers.windows import Device

EXPERT_KEYS = ("dim_reducers.", "decoder.", "film_gamma.", "film_beta.")
"""Prefixes of an expert's keys in a released file; all other keys belong to its trunk."""


def expert_kind(state: Mapping[str, Tensor], source: str = "the state") -> int:
    """Which expert, 1 or 2, the released names belong to. ValueError, naming `source`, for neither."""
    if "film_gamma.weight" in state:
        return 1
    if "decoder.main_head.pre_2d.0.weight" in state:
        return 2
    raise ValueError(
        f"{source} is not a ViSAGE expert: it has neither 'film_gamma.weight' (kind 1) nor "
        f"'decoder.main_head.pre_2d.0.weight' (kind 2); its first key is {next(iter(state), 'none')!r}"
    )


def load_released(
    config: VisageConfig,
    base: str | os.PathLike[str],
    experts: Sequence[str | os.PathLike[str]],
    *,
    orig_t_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> VisageNet:
    """The ensemble of a published InternVideo2 file and released experts' files, in the order of `config.experts`.

    `orig_t_size`: frames per window that the base was trained with (4 for stage 2). `dtype`: the trunk's. The net is built
    on the meta device and takes the files' tensors, which are memory-mapped and moved to `device` one by one: besides the
    net itself at most one tensor is in memory. Raises ValueError, one line that names file and key.
    """
    if len(experts) != len(config.experts):
        raise ValueError(f"{len(experts)} files are given for an ensemble of {len(config.experts)} experts")
    with torch.device("meta"):
        net = VisageNet(config)
    published = {key: value for key, value in trunk_state(read_weights(base)).items() if not key.startswith(EXTRAS)}
    published = fit_to_window(published, config.trunk, orig_t_size=orig_t_size, source=str(base))
    if config.shared_trunk:
        published = {key: value.to(device, dtype) for key, value in published.items()}
        load_trunk(net.trunk(0), published, source=str(base))
    for number, path in enumerate(experts, 1):
        state = read_weights(path)
        if not config.shared_trunk and not any(plain_name(key) == "cls_token" for key in state):
            state = published | state
        load_expert(net, number, state, source=str(path))
    net.trunks.to(dtype)
    return net.to(device)


def random_net(config: VisageConfig, seed: int = 0, *, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> VisageNet:
    """An ensemble with random weights, for benchmarks and smoke tests; equal seeds give equal weights on one kind of device.

    Built directly on `device`, the trunk in `dtype`, without a copy elsewhere.
    """
    with torch.device("meta"):
        net = VisageNet(config)
    net.trunks.to(dtype)
    net.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for key, value in net.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=1 / math.sqrt(value[0].numel()), generator=generator)
        else:
            value.fill_(key.endswith(("weight", "gamma", "sigma", "running_var")))
    return net


def load_expert(net: VisageNet, number: int, state: Mapping[str, Tensor], *, source: str = "") -> None:
    """Load a released expert's tensors into `net` as expert `number`, counted from 1; every key is accounted for.

    `state` has the released names. The LoRA goes beside the shared trunk, or, with a trunk per expert, is merged into
    that expert's trunk. Trunk tensors in `state` must equal the shared trunk's; a net on the meta device takes them
    over. With a trunk per expert, `state` must also hold the frozen trunk where the file leaves it out: the base's
    tensors under their published names, `pos_embed` fitted to the window (`fit_to_window`). Raises ValueError, one line
    that names `source` and key.
    """
    if not 1 <= number <= len(net.experts):
        raise ValueError(f"there is no expert {number}; the ensemble has {len(net.experts)}")
    source = source or f"the state of expert {number}"
    kind, expected = expert_kind(state, source), net.config.experts[number - 1]
    if kind != expected:
        raise ValueError(f"{source} is an expert of kind {kind}; the ensemble's number {number} is of kind {expected}")
    if net.config.shared_trunk and not net.loras:
        raise ValueError(
            f"{source} was tuned with a LoRA on its trunk; build the ensemble with VisageConfig.lora_rank above 0, or "
            "shared_trunk=False"
        )
    own = {key: value for key, value in state.items() if key.startswith(EXPERT_KEYS)}
    rest = {key: value for key, value in state.items() if key not in own}
    load_state_dict_exact(net.experts[number - 1], own, source=source)
    if net.loras:
        lora = net.loras[number - 1]
        assert isinstance(lora, Lora)
        lora.load_released(rest, source=source)
        base = {plain_name(key): value for key, value in rest.items() if ".lora_" not in key}
        if base:
            _load_shared_trunk(net.trunk(0), base, source)
    else:
        try:
            merged = merge_lora(rest, alpha=net.config.lora_alpha)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        load_trunk(net.trunk(number - 1), merged, source=source)


def _load_shared_trunk(trunk: InternVideo2, base: Mapping[str, Tensor], source: str) -> None:
    """Load `base` into a trunk on the meta device; otherwise check that it equals the trunk, which serves every expert."""
    loaded = trunk.state_dict()
    if any(value.is_meta for value in loaded.values()):
        load_trunk(trunk, base, source=source)
        return
    for key, value in base.items():
        if key in loaded and not torch.equal(value.to(loaded[key]), loaded[key]):
            raise ValueError(
                f"{source} brings another trunk, first {key!r}; give each expert its trunk (VisageConfig.shared_trunk=False)"
            )

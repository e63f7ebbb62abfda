"""Published weights to safetensors: recognised, checked key by key, copied bit by bit.

    convert("expert1.pth", "expert1.safetensors")  ->  {"kind": "visage", "expert": 1, "size": "6B", "rank": 64, ...}

A published file is a pickle with unknown content. The result holds nothing but named tensors, opens without torch's unpickler,
and is memory-mapped instead of read. `KINDS` lists the kinds of files, each with a key that only this kind has. A file is
checked by loading it into its network, built on the meta device.

What no teacher reads is left out: the text and audio encoders of a multi-modal file, and pre-training heads.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.run.errors import UsageError, usage_errors
from distill.teachers.internvideo2 import EXTRAS, SIZES, InternVideo2, InternVideo2Config, load_trunk, trunk_state
from distill.teachers.lora import TRUNK_PREFIX
from distill.teachers.salfom import SalfomConfig, SalfomNet
from distill.teachers.tased import TasedNet
from distill.teachers.unisal import UnisalNet
from distill.teachers.visage import VisageConfig, VisageNet, expert_kind, load_expert
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.training.checkpoint import write_tensors

State = dict[str, Tensor]
Check = Callable[[State, str], tuple[State, dict[str, Any]]]
"""A file's tensors and its name -> the tensors to keep, and facts about them. ValueError, one line, for what does not fit."""


class Kind(NamedTuple):
    """A kind of file."""

    about: str
    mark: str  # a key, or the end of one, that files of this kind have and no others
    check: Check


def convert(source: Path, target: Path, kind: str | None = None) -> dict[str, Any]:
    """Writes the weights in `source` as safetensors to `target`, whole or not at all; returns facts about them, as plain values.

    kind: one of `KINDS`; None recognises it by the keys. Before `target` gets its name the written file is compared with the
    source. Raises UsageError, one line, for a source that is damaged or of no known kind, for keys or shapes that do not fit,
    NaN, a target that exists or does not end in .safetensors, or too little space.
    """
    if target.suffix != ".safetensors":
        raise UsageError(f"-o {target}: the output is safetensors; choose a name that ends in .safetensors")
    if target.exists():
        raise UsageError(f"-o {target} exists; remove it, or choose another name")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'; known are {', '.join(KINDS)}")
    with usage_errors():
        state = read_weights(source)
        name = kind or recognise(state, str(source))
        tensors, facts = KINDS[name].check(state, str(source))
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(f"{source}: {key} holds NaN or infinity; the file is damaged, download it again")
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    metadata = {"kind": name, "source": source.name, **{key: str(value) for key, value in facts.items()}}
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise UsageError(f"-o {target} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make space")
    write_tensors(target, tensors, metadata, verify=True)
    return {
        "source": str(source), "target": str(target), "kind": name, **facts,
        "tensors": len(tensors), "parameters": sum(value.numel() for value in tensors.values()), "bytes": size,
        "types": sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()}),
        "left_behind": len(state) - len(tensors),
    }  # fmt: skip


def recognise(state: Mapping[str, Tensor], source: str) -> str:
    """The kind of file that has these keys. Raises ValueError where no kind or several kinds fit."""
    names = [name for name, kind in KINDS.items() if any(key.endswith(kind.mark) for key in state)]
    if len(names) == 1:
        return names[0]
    known = ", ".join(f"{name} ({kind.about})" for name, kind in KINDS.items())
    raise ValueError(
        f"{source} is not a known kind of file: its first key is {next(iter(state))!r} of {len(state)}; known are {known}"
    )


def _internvideo2(state: State, source: str) -> tuple[State, dict[str, Any]]:
    trunk = {key: value for key, value in trunk_state(state).items() if not key.startswith(EXTRAS)}
    size = _size(trunk, _shape(trunk, "cls_token", source)[-1], f"{source} is an InternVideo2")
    positions = _shape(trunk, "pos_embed", source)[1] - 1
    frames, rest = divmod(positions, 16 * 16)
    if rest or not frames:
        raise ValueError(f"{source}: pos_embed holds {positions} positions, not a whole number of 16x16 frames")
    with torch.device("meta"):
        net = InternVideo2(InternVideo2Config.of(size, frames=frames))
    load_trunk(net, trunk, source=source)
    return trunk, {"size": size, "frames": frames}


def _visage(state: State, source: str) -> tuple[State, dict[str, Any]]:
    kind = expert_kind(state, source)
    reduced, width, *_ = _shape(state, "dim_reducers.0.weight", source)
    trunk = {key.removeprefix(TRUNK_PREFIX): value for key, value in state.items()}
    size = _size(trunk, width, f"{source} is an expert on a trunk")
    rank = _shape(state, f"{TRUNK_PREFIX}blocks.0.block.attn.qkv.lora_A.default.weight", source)[0]
    keys = {"embed_width": "proj17.block.0.weight", "head_width_2": "main_head.pre_2d.0.weight"}
    if kind == 1:
        keys = {"embed_width": "proj17.weight", "head_width_1": "final_head.0.weight", "out_px": "center_bias.xx"}
    fields: dict[str, Any] = {field: _shape(state, f"decoder.{key}", source)[0] for field, key in keys.items()}
    fields |= {"experts": (kind,), "lora_rank": rank, "reduced_width": reduced, "norm_groups": 1}
    with torch.device("meta"):
        net = VisageNet(VisageConfig.released(size, **fields))
    load_expert(net, 1, state, source=source)
    return state, {"expert": kind, "size": size, "rank": rank}


def _network(build: Callable[[], nn.Module]) -> Check:
    """A check by a network that has exactly the file's keys."""

    def check(state: State, source: str) -> tuple[State, dict[str, Any]]:
        with torch.device("meta"):
            net = build()
        counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
        load_state_dict_exact(net, counters | state, source=source)  # torch before 0.4.1 wrote no counters
        return state, {}

    return check


def _size(state: Mapping[str, Tensor], width: int, file: str) -> str:
    """The published InternVideo2 of this width and with the number of blocks in `state`."""
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for size, shape in SIZES.items():
        if shape[:2] == (width, blocks):
            return size
    raise ValueError(f"{file} of width {width} and {blocks} blocks, not a published InternVideo2")


def _shape(state: Mapping[str, Tensor], key: str, source: str) -> tuple[int, ...]:
    if key not in state or not state[key].ndim:
        raise ValueError(f"{source} has no key {key!r}; the file is incomplete")
    return tuple(state[key].shape)


KINDS = {
    "internvideo2": Kind("the video trunk, of stage 1, stage 2 or distilled", "blocks.0.attn.q_norm.weight", _internvideo2),
    "visage": Kind("an expert of either kind", "dim_reducers.0.weight", _visage),
    "unisal": Kind("its weights_best.pth", "coarse_gaussians_dhf1k", _network(UnisalNet)),
    "tased": Kind("its TASED_v2.pt", "convtsp4.13.weight", _network(TasedNet)),
    "salfom": Kind("its released weights", "conv_2D_9.weight", _network(lambda: SalfomNet(SalfomConfig().encoder))),
}

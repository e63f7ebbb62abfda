"""Released weights into safetensors: recognised, checked key by key, copied bit by bit.

    convert("expert1.pth", "expert1.safetensors")  ->  {"kind": "visage", "expert": 1, "size": "6B", "rank": 64, ...}

A published file is a pickle of unknown content; what comes out is tensors by name and nothing else, that opens without
torch's unpickler and is mapped into memory instead of read. `KINDS` says what files there are, by a key that only such a
file has, and how one is checked: by building the network that it is for, without memory, and loading the file into that.

What no teacher reads is left behind: the text and audio encoders of a multi-modal file and the heads of its pre-training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.run.errors import UsageError
from distill.run.files import atomic
from distill.teachers.internvideo2 import EXTRAS, SIZES, InternVideo2, InternVideo2Config, load_trunk, trunk_state
from distill.teachers.lora import TRUNK_PREFIX
from distill.teachers.salfom import SalfomConfig, SalfomNet
from distill.teachers.tased import TasedNet
from distill.teachers.unisal import UnisalNet
from distill.teachers.visage import VisageConfig, VisageNet, expert_kind, load_expert
from distill.teachers.weights import load_state_dict_exact, read_weights

State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    about: str
    """For whoever reads the list."""
    mark: str
    """A key, or the end of one, that a file of this kind has and no other."""
    check: Callable[[State, str], tuple[State, dict[str, Any]]]
    """The file's tensors and its name -> those to keep and what was found out; ValueError, one line, for what is wrong."""


def convert(source: Path, target: Path, kind: str | None = None) -> dict[str, Any]:
    """Write the weights in `source` as safetensors to `target`, whole or not at all; returns what they are, plain values.

    kind: one of `KINDS`, or None to go by the keys. Before `target` gets its name the file is read back and compared with
    the source. Raises UsageError, one line, for a source that is damaged or of no known kind, for keys or shapes that do
    not fit, NaN, a target that exists or does not end in .safetensors, or too little space.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise UsageError(f"-o {target}: what is written is safetensors; choose a name that ends in .safetensors")
    if target.exists():
        raise UsageError(f"-o {target} exists; remove it, or choose another name")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'; known are {', '.join(KINDS)}")
    try:
        state = read_weights(source)
        name = kind or recognise(state, str(source))
        kept, facts = KINDS[name].check(state, str(source))
    except ValueError as error:
        raise UsageError(str(error)) from None
    for key, value in kept.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(f"{source}: {key} holds NaN or infinity; the file is damaged, fetch it again")
    size = sum(value.numel() * value.element_size() for value in kept.values())
    _write(
        kept, target, size, {"kind": name, "source": source.name, **{key: str(value) for key, value in facts.items()}}
    )
    return {
        "source": str(source),
        "target": str(target),
        "kind": name,
        **facts,
        "tensors": len(kept),
        "parameters": sum(value.numel() for value in kept.values()),
        "bytes": size,
        "types": sorted({str(value.dtype).removeprefix("torch.") for value in kept.values()}),
        "left_behind": len(state) - len(kept),
    }


def recognise(state: Mapping[str, Tensor], source: str) -> str:
    """The kind of file that has these keys; ValueError where it is none, or the keys are of several."""
    found = [name for name, kind in KINDS.items() if any(key.endswith(kind.mark) for key in state)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{source} is no file that is known here: its first key is {next(iter(state))!r} of {len(state)}; "
        f"known are {', '.join(f'{name} ({kind.about})' for name, kind in KINDS.items())}"
    )


def _write(tensors: State, target: Path, size: int, metadata: dict[str, str]) -> None:
    """Raises UsageError where the disk is full or what was written is not what was to be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise UsageError(f"-o {target} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make space")
    # A tensor that shares its memory with another, or lies in it with gaps, is written as one of its own.
    seen: set[int] = set()
    whole = {}
    for key, value in tensors.items():
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        whole[key] = value.clone() if shared else value.contiguous()
    try:
        with atomic(target) as temporary:
            save_file(whole, temporary, metadata)
            try:
                written = read_weights(temporary)
            except ValueError:  # not even a weights file
                written = {}
            if written.keys() != tensors.keys() or any(not _same(written[key], tensors[key]) for key in tensors):
                raise UsageError(f"-o {target}: what was read back differs from what was written; try another disk")
            temporary.chmod(0o666 & ~_umask())  # safetensors lets nobody else read what it writes
    except (OSError, SafetensorError) as error:
        raise UsageError(f"-o {target} could not be written: {error}") from None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ----------------------------------------------------------------------------------------------------- what files there are


def _internvideo2(state: State, source: str) -> tuple[State, dict[str, Any]]:
    trunk = trunk_state(state)
    kept = {key: value for key, value in trunk.items() if not key.startswith(EXTRAS)}
    width, depth = _shape(kept, "cls_token", source)[-1], _blocks(kept)
    size = next((size for size, (d, blocks, *_) in SIZES.items() if (d, blocks) == (width, depth)), None)
    if size is None:
        raise ValueError(f"{source} is an InternVideo2 of width {width} and {depth} blocks, which is no published size")
    frames, rest = divmod(_shape(kept, "pos_embed", source)[1] - 1, 16 * 16)
    if rest or not frames:
        raise ValueError(f"{source}: pos_embed holds {256 * frames + rest} positions, no whole number of 16x16 frames")
    with torch.device("meta"):
        net = InternVideo2(InternVideo2Config.of(size, frames=frames))
    load_trunk(net, kept, source=source)
    return kept, {"size": size, "frames": frames}


def _visage(state: State, source: str) -> tuple[State, dict[str, Any]]:
    kind = expert_kind(state, source)
    reduced, width, *_ = _shape(state, "dim_reducers.0.weight", source)
    blocks = _blocks({key.removeprefix(TRUNK_PREFIX): value for key, value in state.items()})
    size = next((size for size, (d, depth, *_) in SIZES.items() if (d, depth) == (width, blocks)), None)
    if size is None:
        raise ValueError(
            f"{source} is an expert on a trunk of width {width} and {blocks} blocks, no published InternVideo2"
        )
    rank = _shape(state, f"{TRUNK_PREFIX}blocks.0.block.attn.qkv.lora_A.default.weight", source)[0]
    fields: dict[str, Any] = {"experts": (kind,), "lora_rank": rank, "reduced_width": reduced}
    if kind == 1:
        fields["embed_width"] = _shape(state, "decoder.proj17.weight", source)[0]
        fields["head_width_1"] = _shape(state, "decoder.final_head.0.weight", source)[0]
        fields["out_px"] = _shape(state, "decoder.center_bias.xx", source)[0]
    else:
        fields["embed_width"] = _shape(state, "decoder.proj17.block.0.weight", source)[0]
        fields["head_width_2"] = _shape(state, "decoder.main_head.pre_2d.0.weight", source)[0]
    with torch.device("meta"):
        net = VisageNet(VisageConfig.released(size, **fields, norm_groups=1))
    load_expert(net, 1, state, source=source)
    return state, {"expert": kind, "size": size, "rank": rank}


def _whole(network: Callable[[], nn.Module]) -> Callable[[State, str], tuple[State, dict[str, Any]]]:
    """A check by the network that has the file's keys, all of them."""

    def check(state: State, source: str) -> tuple[State, dict[str, Any]]:
        with torch.device("meta"):
            net = network()
        counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
        load_state_dict_exact(net, counters | state, source=source)  # torch before 0.4.1 wrote no counters
        return state, {}

    return check


def _shape(state: Mapping[str, Tensor], key: str, source: str) -> tuple[int, ...]:
    if key not in state or not state[key].ndim:
        raise ValueError(f"{source} has no key {key!r}; the file is incomplete")
    return tuple(state[key].shape)


def _blocks(state: Mapping[str, Tensor]) -> int:
    return len({key.split(".")[1] for key in state if key.startswith("blocks.")})


KINDS: dict[str, Kind] = {
    "internvideo2": Kind(
        "the video trunk, of stage 1, stage 2 or distilled", "blocks.0.attn.q_norm.weight", _internvideo2
    ),
    "visage": Kind("an expert of either kind", "dim_reducers.0.weight", _visage),
    "unisal": Kind("its weights_best.pth", "coarse_gaussians_dhf1k", _whole(UnisalNet)),
    "tased": Kind("its TASED_v2.pt", "convtsp4.13.weight", _whole(TasedNet)),
    "salfom": Kind("its released weights", "conv_2D_9.weight", _whole(lambda: SalfomNet(SalfomConfig().encoder))),
}

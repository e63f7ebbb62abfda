"""Weights files: read without running any code in them, and loaded into a module with every key accounted for.

    read_weights("expert1.pth")                       -> {"decoder.proj17.weight": Tensor, ...}
    load_state_dict_exact(net, state, source="...")   -> LoadAccount, or one line that names file, key and shape

The format follows from the first bytes, not from the name: published files end in .pt, .pth, .bin, .pth.tar or .ckpt and
are torch's zip archive, torch's older pickle, or safetensors; a failed download is a web page with the right name. Archives
and safetensors are memory-mapped: a tensor takes memory only when it is used.

Pickles are read by torch's restricted unpickler, which makes tensors and plain values, and here also the training settings
in published files (`SETTINGS`); any other name in a pickle is refused before it is looked up.
"""

import argparse
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts store the weights, next to optimiser, epoch and arguments."""

NUMPY_SCALAR: Any = np.float64().__reduce__()[0]
"""The function that makes a numpy scalar from a dtype and bytes."""

SETTINGS: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "easydict.EasyDict"),  # read as the plain dict that it is
    (OrderedDict, "utils.easydict.EasyDict"),  # where the multi-modal InternVideo2 files have it
    NUMPY_SCALAR,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name until numpy 2
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
]
"""What published files pickle besides tensors, none of it code: training arguments, and numpy scalars for scores."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, in their stored types.

    Unwraps `state_dict`, `model_state_dict`, `model` and `module`, and strips DataParallel's `module.` from the names. No
    code in the file is run. Raises ValueError, one line, for anything else: a missing or empty file, a folder, a web page,
    a truncated file, a pickle with code, or content other than tensors by name.
    """
    path = Path(path)
    kind = _kind(path)
    content: Any
    if kind == "safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is a truncated or damaged safetensors file ({_line(error)}); fetch it again") from None
        return _tensors(path, content)
    if kind == "archive" and not _has_its_end(path):
        raise ValueError(f"{path} is truncated: the archive's end is missing; fetch it again")
    try:
        with torch.serialization.safe_globals(SETTINGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other tools; their content is checked below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "archive")
    except pickle.UnpicklingError as error:
        message = f"{path} is damaged, or a pickle of something other than tensors; nothing of it was run: fetch it again"
        if name := re.search(r"GLOBAL (\S+)", str(error)):
            message = (
                f"{path} holds {name[1]}, which is code or an object, not a tensor; nothing of it was run: save only the "
                "state dict where it was made, torch.save(model.state_dict(), FILE)"
            )
        raise ValueError(message) from None
    except Exception as error:  # damage inside a pickle can raise anything in the unpickler
        reason = f"{type(error).__name__}: {_line(error)}"
        raise ValueError(f"{path} is truncated, damaged or not a torch file ({reason}); fetch it again") from error
    return _tensors(path, content)


def _has_its_end(archive: Path) -> bool:
    try:
        return zipfile.is_zipfile(archive)
    except zipfile.BadZipFile:  # an end that makes no sense
        return False


def _kind(path: Path) -> str:
    """`archive`, `pickle` or `safetensors`, by the first bytes; ValueError for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise ValueError(f"weights file {path} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name the weights file in it") from None
    except OSError as error:
        raise ValueError(f"weights file {path} cannot be read: {error.strerror}") from None
    if not head:
        raise ValueError(f"{path} is empty; fetch it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # the header's length, then its JSON
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "archive"
    if head.startswith(b"\x80"):
        return "pickle"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise ValueError(f"{path} is a web page, not weights; download the file itself (a page's link is not the file)")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not weights; fetch the file itself with `git lfs pull`")
    if head[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive; unpack it, or save its tensors again with a current torch")
    raise ValueError(f"{path} is not a weights file: it begins with {head[:8]!r}, neither torch's nor safetensors'")


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The innermost dict of tensors, without DataParallel's prefix in the names."""
    inner = content
    while isinstance(inner, Mapping):
        content, inner = inner, next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)), None)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds one {type(content).__name__}, not tensors by name; save a state dict")
    if not content:
        raise ValueError(f"{path} holds no tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} is not a state dict: its entry {key!r} is of type {type(value).__name__}, expected a tensor; "
                f"weights may be at the top level or under {', '.join(WRAPPERS)}"
            )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


def _line(error: Exception) -> str:
    """The first line of a message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


class LoadAccount(NamedTuple):
    """Which of a file's keys were loaded."""

    loaded: int
    """Number of keys loaded into the module: all of the module's."""
    dropped: tuple[str, ...]
    """Keys in `drop`."""


def load_state_dict_exact(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    drop: Sequence[str] = (),
    source: str = "the state dict",
    names: Mapping[str, str] | None = None,
) -> LoadAccount:
    """Load `state` into `module` if it has exactly the module's keys, apart from those in `drop`.

    An entry of `drop` is a key or, if it ends with a dot, a prefix. `names` maps keys of the module to the file's names
    where they differ. If a key is missing, left over, or has another shape or kind of number, nothing is loaded and a
    ValueError names `source`, and for each fault the first key and the count. A module on the meta device takes the tensors
    themselves, in their types and without a copy; any other module copies from them.
    """
    names = names or {}
    own = {names.get(key, key): value for key, value in module.state_dict().items()}
    prefixes = tuple(name for name in drop if name.endswith("."))
    given = {key: value for key, value in state.items() if key not in drop and not key.startswith(prefixes)}

    def shape(tensor: Tensor) -> str:
        return str(list(tensor.shape))

    faults = []
    if missing := [key for key in own if key not in given]:
        faults.append(f"missing {len(missing)}, first {missing[0]!r} of shape {shape(own[missing[0]])}")
    both = [key for key in own if key in given]
    if other := [key for key in both if given[key].shape != own[key].shape]:
        actual, expected = (shape(tensors[other[0]]) for tensors in (given, own))
        faults.append(f"of another shape {len(other)}, first {other[0]!r}: {actual}, expected {expected}")
    if other := [key for key in both if given[key].is_floating_point() != own[key].is_floating_point()]:
        actual, expected = (str(tensors[other[0]].dtype) for tensors in (given, own))
        faults.append(f"of another type {len(other)}, first {other[0]!r}: {actual}, expected {expected}")
    if unexpected := [key for key in given if key not in own]:
        faults.append(f"unexpected {len(unexpected)}, first {unexpected[0]!r} of shape {shape(given[unexpected[0]])}")
    if faults:
        raise ValueError(f"{source} does not fit {type(module).__name__}; its keys: {'; '.join(faults)}")
    loaded = {key: given[names.get(key, key)] for key in module.state_dict()}
    module.load_state_dict(loaded, assign=any(tensor.is_meta for tensor in own.values()))
    return LoadAccount(loaded=len(loaded), dropped=tuple(key for key in state if key not in given))


def with_counters(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with `net`'s batch-norm step counters where it has none, as files of older torch versions; nothing reads them."""
    counters = {
        key: torch.zeros((), dtype=value.dtype)
        for key, value in net.state_dict().items()
        if key.endswith("num_batches_tracked")
    }
    return counters | dict(state)


def fingerprint(description: str, net: nn.Module, before_key: str = "\n") -> str:
    """SHA-256, in hex, of a description and all weights: equal values give an equal fingerprint on any machine.

    Label stores keep fingerprints, so this must never change. `before_key` separates entries (ViSAGE uses none).
    """
    digest = hashlib.sha256(description.encode())
    for key, value in sorted(net.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{before_key}{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

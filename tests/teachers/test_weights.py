import argparse
import collections
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.teachers.weights import LoadAccount, load_state_dict_exact, read_weights

STATE = {"layer.weight": torch.arange(12.0).view(3, 4), "layer.bias": torch.ones(3), "steps": torch.tensor(7)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Code:
    """Unpickling it without restrictions would create a folder."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


class EasyDict(dict):
    """Stands for the class of that name that published files pickle their settings with."""


EasyDict.__module__, EasyDict.__qualname__ = "utils.easydict", "EasyDict"


def archive(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def old_pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def message(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


# --- what loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth.tar", "pytorch_model.bin"])
@pytest.mark.parametrize("form", [archive, old_pickle, None], ids=["archive", "old pickle", "safetensors"])
def test_every_form_loads_under_any_name(form: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(STATE, path) if form is None else path.write_bytes(form(STATE))
    assert same(read_weights(path), STATE)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        {"module": STATE, "ds_version": "0.9", "dtype": torch.bfloat16},
        {"model": {"state_dict": STATE}},
        {f"module.{key}": value for key, value in STATE.items()},
        {"model": {f"module.{key}": value for key, value in STATE.items()}},
        collections.OrderedDict(STATE),
        {key: nn.Parameter(value, requires_grad=value.is_floating_point()) for key, value in STATE.items()},
    ],
    ids=["state_dict", "model_state_dict", "module", "nested", "parallel", "both", "ordered", "parameters"],
)
def test_wrappers_are_taken_off(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    state = read_weights(tmp_path / "weights.pt")
    assert same(state, STATE)
    assert not any(value.requires_grad for value in state.values())


def test_training_settings_beside_the_weights_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "args": argparse.Namespace(lr=1e-4, size=[224, 224]),
        "best": np.float64(0.79),
        "score": np.float32(0.5),
        "step": np.int64(7),
    }
    torch.save({"model": STATE} | settings, tmp_path / "weights.pt")
    assert same(read_weights(tmp_path / "weights.pt"), STATE)
    module = type(os)("utils.easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:  # the module exists where the file is written, and not where it is read
        patch.setitem(__import__("sys").modules, "utils", type(os)("utils"))
        patch.setitem(__import__("sys").modules, "utils.easydict", module)
        config = EasyDict(model=EasyDict(frames=4))
        config.note = "a state of its own"  # type: ignore[attr-defined]
        torch.save({"model": STATE, "config": config}, tmp_path / "weights.pt")
    assert same(read_weights(tmp_path / "weights.pt"), STATE)


def test_archives_and_safetensors_are_mapped_not_read(tmp_path: Path) -> None:
    big = {"big": torch.ones(2**22)}
    torch.save(big, tmp_path / "big.pt")
    save_file(big, tmp_path / "big.safetensors")
    for path in (tmp_path / "big.pt", tmp_path / "big.safetensors"):
        state = read_weights(path)
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
        assert state["big"].sum() == 2**22


# --- what does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty"),
        (b"\n\n<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page, not weights; download the file itself"),
        (b"<html>" + b" " * 600, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b'{"error": "not found"}', "is not a weights file: it begins with b'{\"error\"'"),
        (archive(STATE)[:-200], "is truncated"),
        (archive(STATE)[:9], "is truncated"),
        (old_pickle(STATE)[:-9], "is truncated, damaged or not a torch file"),
        (old_pickle(STATE)[:30], "is truncated, damaged or not a torch file"),
        (pickle.dumps(STATE), "damaged, or a pickle of something other than tensors"),
        (archive(torch.ones(2)), "holds one Tensor, not tensors by name"),
        (archive({}), "holds no tensors"),
        (archive({"epoch": 3}), "its entry 'epoch' is of type int, expected a tensor"),
        (archive({"a": torch.ones(2), "b": [torch.ones(2)]}), "its entry 'b' is of type list"),
        (archive({1: torch.ones(2)}), "its entry 1"),
        (archive(nn.Linear(2, 2)), "holds torch.nn.modules.linear.Linear"),
    ],
)
def test_files_that_are_not_weights_are_refused(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    assert expected in message(path)


def test_no_code_is_run(tmp_path: Path) -> None:
    path, made = tmp_path / "weights.pt", tmp_path / "made"
    for code in (Code(os.mkdir, str(made)), Code(Path.mkdir, made), Code(eval, f"__import__('os').mkdir({str(made)!r})")):
        for content in ({"a": code}, {"model": STATE, "config": code}, code):
            for data in (archive(content), old_pickle(content), pickle.dumps(content), pickle.dumps(content, protocol=0)):
                path.write_bytes(data)
                message(path)
                assert not made.exists()
    path.write_bytes(archive({"model": STATE, "config": Code(os.mkdir, str(made))}))
    assert "holds posix.mkdir, which is code or an object, not a tensor; nothing of it was run" in message(path)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    data = path.read_bytes()
    for damaged in (data[:20], data[:-4], data.replace(b'"F32"', b'"F99"'), data[:8] + b"{" * 100):
        path.write_bytes(damaged)
        assert "is a truncated or damaged safetensors file" in message(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "weights.pt")
    assert "is a folder; name the weights file in it" in message(tmp_path)
    with tarfile.open(tmp_path / "old.tar", "w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    assert "is a tar archive" in message(tmp_path / "old.tar")


# --- into a module ----------------------------------------------------------------------------------------------------


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_exactly_the_modules_keys_and_what_is_dropped() -> None:
    state = {key: torch.randn_like(value) if value.ndim else value for key, value in a_net().state_dict().items()}
    extra = {"head.weight": torch.ones(2), "head.bias": torch.ones(2), "temp": torch.ones(())}
    net = a_net()
    account = load_state_dict_exact(net, state | extra, drop=("head.", "temp"))
    assert account == LoadAccount(loaded=7, dropped=("head.weight", "head.bias", "temp"))
    assert same(net.state_dict(), state)
    with torch.device("meta"):
        empty = a_net()
    load_state_dict_exact(empty, state)
    assert all(empty.state_dict()[key].data_ptr() == state[key].data_ptr() for key in state), "taken over, not copied"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"0.weight": None}, "its keys: missing 1, first '0.weight' of shape [3, 4]"),
        ({"0.weight": None, "0.bias": None}, "missing 2, first '0.weight'"),
        ({"0.weight": torch.ones(3, 5)}, "of another shape 1, first '0.weight': [3, 5], expected [3, 4]"),
        ({"0.bias": torch.ones(3, dtype=torch.int32)}, "another type 1, first '0.bias': torch.int32, expected torch.float32"),
        ({"2.weight": torch.ones(1)}, "unexpected 1, first '2.weight' of shape [1]"),
        ({"0.bias": None, "bias": torch.ones(3)}, "missing 1, first '0.bias' of shape [3]; unexpected 1, first 'bias'"),
    ],
)
def test_faults_name_file_key_and_shape_and_load_nothing(change: dict[str, Any], expected: str) -> None:
    net = a_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()} | change
    with pytest.raises(ValueError) as caught:
        load_state_dict_exact(net, {key: value for key, value in state.items() if value is not None}, source="a.pt")
    assert str(caught.value).startswith("a.pt does not fit Sequential; its keys: ")
    assert expected in str(caught.value)
    assert same(net.state_dict(), before)


def test_names_of_the_file_are_used_throughout() -> None:
    net = nn.Linear(4, 3)
    names = {"weight": "old.W"}
    load_state_dict_exact(net, {"old.W": STATE["layer.weight"], "bias": STATE["layer.bias"]}, names=names)
    assert torch.equal(net.weight, STATE["layer.weight"])
    with pytest.raises(ValueError, match=r"missing 1, first 'old\.W' of shape \[3, 4\]; unexpected 1, first 'weight'"):
        load_state_dict_exact(net, {"weight": STATE["layer.weight"], "bias": STATE["layer.bias"]}, names=names)

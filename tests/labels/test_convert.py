"""Released files into safetensors; the states are the goldens' layouts, or shapes that need no memory."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from distill.labels import convert as module
from distill.labels.convert import KINDS, convert, recognise
from distill.run.errors import UsageError
from distill.teachers.internvideo2 import InternVideo2, InternVideo2Config
from distill.teachers.lora import TRUNK_PREFIX
from distill.training import checkpoint


def layout(golden: Path, name: str) -> dict[str, Tensor]:
    """A released layout whose tensors take almost no memory: all values of a tensor share one number."""
    shapes = json.loads((golden / "teachers" / f"{name}.keys.json").read_text(encoding="utf-8"))["shapes"]
    whole = ("num_batches_tracked", "relative_position_index")
    return {
        key: torch.full((), n if key.endswith(whole) else n / 8).expand(shape) for n, (key, shape) in enumerate(shapes.items())
    }


def an_expert(golden: Path, kind: int) -> dict[str, Tensor]:
    """As released: without the trunk."""
    state = layout(golden, f"visage_expert{kind}_tiny")
    return {key: value for key, value in state.items() if ".lora_" in key or not key.startswith(TRUNK_PREFIX)}


def a_trunk() -> dict[str, Tensor]:
    """A multi-modal file of size S: the video encoder, its heads, and a text encoder."""
    with torch.device("meta"):
        net = InternVideo2(InternVideo2Config.of("S", frames=4))
    state = {key: torch.full((), 0.5).expand(value.shape) for key, value in net.state_dict().items()}
    state |= {"clip_projector.norm1_q.weight": torch.ones(384), "clip_pos_embed": torch.ones(1, 1025, 384)}
    return {f"vision_encoder.{key}": value for key, value in state.items()} | {"text_encoder.x": torch.ones(3)}


def message(source: Path, target: Path, **rest: Any) -> str:
    before = sorted(path.name for path in target.parent.iterdir()) if target.parent.is_dir() else []
    with pytest.raises(UsageError) as caught:
        convert(source, target, **rest)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in target.parent.iterdir()) == before, "nothing may be left"
    return str(caught.value)


@pytest.mark.parametrize("kind", [1, 2])
def test_an_expert(kind: int, golden: Path, tmp_path: Path) -> None:
    state, target = an_expert(golden, kind), tmp_path / "new" / "expert.safetensors"
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "expert.pth")
    report = convert(tmp_path / "expert.pth", target)
    assert report["kind"] == "visage"
    assert (report["expert"], report["size"], report["rank"]) == (kind, "tiny", 64)
    assert (report["tensors"], report["left_behind"]) == (len(state), 0)
    assert report["parameters"] == sum(value.numel() for value in state.values())
    written = load_file(target)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) and written[key].dtype == state[key].dtype for key in state)
    with safe_open(target, "pt") as file:
        assert file.metadata() == {
            "kind": "visage", "source": "expert.pth", "expert": str(kind), "size": "tiny", "rank": "64"
        }  # fmt: skip
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    json.dumps(report)


def test_a_trunk_loses_unused_tensors_and_keeps_its_type(tmp_path: Path) -> None:
    state = {key: value.bfloat16() if value.ndim < 2 else value for key, value in a_trunk().items()}
    torch.save({"module": state}, tmp_path / "base.pt")
    report = convert(tmp_path / "base.pt", tmp_path / "base.safetensors")
    assert (report["kind"], report["size"], report["frames"], report["left_behind"]) == ("internvideo2", "S", 4, 3)
    assert report["types"] == ["bfloat16", "float32"]
    written = load_file(tmp_path / "base.safetensors")
    assert len(written) == 13 * 12 + 4
    assert written["blocks.3.norm1.weight"].dtype == torch.bfloat16
    again = convert(tmp_path / "base.safetensors", tmp_path / "again.safetensors", "internvideo2")
    assert (again["left_behind"], again["bytes"]) == (0, report["bytes"])


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"internvideo2", "visage"}))
def test_teachers_of_one_network(name: str, golden: Path) -> None:
    state = layout(golden, name)
    assert recognise(state, "weights.pt") == name
    assert KINDS[name].check(state, "weights.pt") == (state, {})
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert KINDS[name].check(older, "weights.pt") == (older, {})
    gone = next(key for key in state if state[key].ndim > 1 and not key.endswith(KINDS[name].mark))
    del state[gone]
    with pytest.raises(ValueError, match=rf"weights\.pt does not fit .* missing 1, first '{re.escape(gone)}'"):
        KINDS[name].check(state, "weights.pt")


def test_tensors_that_share_their_memory_are_written_each(golden: Path, tmp_path: Path) -> None:
    state = an_expert(golden, 1)
    one = torch.arange(32.0)
    state |= {"film_gamma.bias": one, "film_beta.bias": one, "decoder.proj17.bias": one.flip(0).flip(0)}
    torch.save(state, tmp_path / "expert.pth")
    convert(tmp_path / "expert.pth", tmp_path / "expert.safetensors")
    written = load_file(tmp_path / "expert.safetensors")
    assert all(torch.equal(written[key], one) for key in ("film_gamma.bias", "film_beta.bias", "decoder.proj17.bias"))


def test_sources_that_are_refused(golden: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "expert.pth", tmp_path / "expert.safetensors"
    assert "does not exist" in message(source, target)
    source.write_text("<!doctype html>", encoding="utf-8")
    assert "is a web page" in message(source, target)
    torch.save({"weight": torch.ones(3)}, source)
    assert "is not a known kind of file: its first key is 'weight' of 1; known are internvideo2 (" in message(source, target)
    state = an_expert(golden, 2)
    torch.save(state | {"decoder.fuse17.norm1.weight": torch.ones(31)}, source)
    text = message(source, target)
    assert "expert.pth does not fit Expert2" in text
    assert "first 'decoder.fuse17.norm1.weight': [31], expected [32]" in text
    torch.save(state | {"decoder.fuse17.norm1.weight": torch.full((32,), float("nan"))}, source)
    assert "decoder.fuse17.norm1.weight holds NaN or infinity" in message(source, target)
    torch.save({key: value for key, value in state.items() if "qkv.lora_A" not in key}, source)
    assert f"has no key '{TRUNK_PREFIX}blocks.0.block.attn.qkv.lora_A.default.weight'" in message(source, target)
    torch.save(state | {"dim_reducers.0.weight": torch.ones(32, 65, 1, 1, 1)}, source)
    assert "trunk of width 65 and 4 blocks, not a published InternVideo2" in message(source, target)
    trunk = a_trunk()
    del trunk["vision_encoder.pos_embed"]
    torch.save(trunk, source)
    assert "has no key 'pos_embed'" in message(source, target)
    torch.save(trunk | {"vision_encoder.pos_embed": torch.ones(1, 101, 384)}, source)
    assert "pos_embed holds 100 positions, not a whole number of 16x16 frames" in message(source, target)


def test_targets_that_are_refused(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "expert.pth", tmp_path / "expert.safetensors"
    torch.save(an_expert(golden, 1), source)
    assert "ends in .safetensors" in message(source, tmp_path / "expert.pt")
    assert "unknown kind 'clip'; known are internvideo2, visage" in message(source, target, kind="clip")
    target.write_bytes(b"mine")
    assert "exists; remove it" in message(source, target)
    assert target.read_bytes() == b"mine"
    target.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        assert "GB are free there; make space" in message(source, target)

    def full(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        assert "could not be written: no space left on device" in message(source, target)

    def wrong(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        torch.save({key: value + 1 for key, value in tensors.items()}, path)

    monkeypatch.setattr(checkpoint, "save_file", wrong)
    assert "the written file differs from its source" in message(source, target)

"""Every teacher's `infer` as a GPU would run it: on torch's meta device, which has shapes but no values, so it needs no GPU.

Whatever would wait for a GPU in the middle of a clip fails here: a value read back (there is none), a result whose size depends on values,
and a copy from the CPU that waits. So does an operation on tensors of two devices.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from distill.teachers import Inference
from distill.teachers.internvideo2 import InternVideo2Config
from distill.teachers.salfom import Salfom, SalfomConfig
from distill.teachers.tased import Tased, TasedConfig
from distill.teachers.umt import UmtConfig
from distill.teachers.unisal import Unisal
from distill.teachers.visage import Visage, VisageConfig, random_net

META = torch.device("meta")
SMALL = VisageConfig(
    trunk=InternVideo2Config(width=16, heads=2, mlp_width=16, frames=4, px=16, patch=8), lora_rank=4, out_px=12
)
HOW = Inference(batch=3, overlap=0.5)


class OnOneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, and copies to the device that wait."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor) and t.ndim]
        if {t.device.type for t in tensors} == {"cpu", "meta"}:
            given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
            assert "non_blocking" in given, f"{op} is on tensors of two devices"
            assert given["non_blocking"], f"{op} waits for the device"
        return result


def visage(precision: str) -> Visage:
    how = Inference(batch=3, overlap=0.5, precision=precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Visage(random_net(SMALL, dtype=dtype), SMALL, device=META, how=how)


def salfom(precision: str) -> Salfom:
    encoder = UmtConfig(width=16, depth=2, heads=2, px=32)
    return Salfom.random(0, META, SalfomConfig(encoder, every=2, finish=(36, 64)), how=Inference(batch=3, precision=precision))


TEACHERS: dict[str, Callable[[], Any]] = {
    "visage": lambda: visage("fp32"),
    "visage in bf16": lambda: visage("bf16"),
    "unisal": lambda: Unisal.random(0, device=META, batch_frames=7),
    "unisal, both paths": lambda: Unisal.random(0, device=META, batch_frames=7, static=0.5),
    "unisal on stills": lambda: Unisal.random(0, "SALICON", device=META, batch_frames=7),
    "tased": lambda: Tased.random(0, META, TasedConfig(64, 64, every=2), how=HOW),
    "salfom": lambda: salfom("fp32"),
    "salfom in bf16": lambda: salfom("bf16"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_clip_is_labelled_without_waiting_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none on the meta device
    teacher = TEACHERS[name]()
    inputs = teacher.prepare(torch.zeros(23, 36, 64, 3, dtype=torch.uint8))
    teacher.infer(inputs, 16.0)  # constants go to the device once
    with OnOneDevice():
        logits = teacher.infer(inputs, 16.0)
    assert logits.device == META and logits.dtype == torch.float32 and len(logits) == 23

"""The ViSAGE teacher: frames in, one map of logits per frame out."""

import json
import os
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.teachers import PLAIN, Inference, Teacher
from distill.teachers import frames as frames_module
from distill.teachers.frames import CLIP
from distill.teachers.internvideo2 import Block
from distill.teachers.visage.config import VisageConfig
from distill.teachers.visage.experts import CenterBias, Expert1, Expert2
from distill.teachers.visage.net import VisageNet
from distill.teachers.weights import fingerprint, load_state_dict_exact
from distill.teachers.windows import BatchSize, Device, cut_windows, evaluation_mode, exact_float32, infer

FILE_FORMAT = "saliency-distill visage 2"
"""The `format` entry of a saved teacher; `Visage.load` refuses any other."""


def preprocess(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> the trunk's input, `float32 [T, 3, px, px]`: `resize`, then `normalise`."""
    return normalise(resize(frames, px))


def resize(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> `uint8 [T, 3, px, px]`, a plain square resize as released; see `frames.resize`."""
    return frames_module.resize(frames, px, px).contiguous()


def normalise(frames_TCHW: Tensor) -> Tensor:
    """RGB frames `uint8 [..., 3, H, W]` -> `float32`, by CLIP's constants, on the frames' device."""
    return frames_module.normalise(frames_TCHW, CLIP)


def to_bf16(net: nn.Module) -> nn.Module:
    """Convert `net`'s weights to bfloat16, in place, and with them all activations; returns `net`.

    Autocast would cast all weights again for every clip, and would run norms and up-sampling in float32 with a copy each
    way. Inside their kernels, norms and matrix products accumulate in float32 either way. Batch-norm statistics and the
    four numbers of the centre prior stay float32; they cost nothing.
    """
    for module in net.modules():
        if not isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | CenterBias):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16)
    return net


def channels_last(net: nn.Module) -> None:
    """Store the weights of the experts' convolutions with the channels last, in place.

    A GPU's matrix units compute in this layout, in which the trunk's tokens already are; cuDNN would otherwise convert the
    features before and after each convolution that follows a GroupNorm, and some versions have no bfloat16 kernel for it.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for module in net.modules():
        if isinstance(module, Expert1 | Expert2):
            for weight in module.parameters():
                if weight.ndim in formats:
                    weight.data = weight.data.to(memory_format=formats[weight.ndim])


def compile_parts(net: nn.Module) -> None:
    """Compile the trunk's block and each kind of expert, in place.

    All blocks share one compilation, and so do passes with different LoRA; in one piece a 6B would be compiled 96 times over.
    """
    for module in net.modules():
        if isinstance(module, Block | Expert1 | Expert2):
            module.compile()


class Visage(Teacher):
    """The teacher: a clip in, the ensemble's logits for every frame out.

    A clip is sampled at `config.sample_fps` from every offset in turn; `windows.py` describes how windows are cut, padded
    and averaged. Without overlap this is the released procedure.
    """

    def __init__(
        self, net: nn.Module, config: VisageConfig, *, name: str = "visage", device: Device = "cpu", how: Inference = PLAIN
    ) -> None:
        """`net` maps `[B, 3, T, px, px]` to a `VisageOutput`, as `VisageNet` does; it is moved to `device`.

        At precision `bf16` its weights become bfloat16 as well; see `to_bf16`.
        """
        self.name = name
        self.net = (to_bf16(net) if how.precision == "bf16" else net).to(device)
        self.config = config
        self.device = torch.device(device)
        self.how = how
        self.batch = BatchSize(self.device, how.batch)
        if self.device.type != "cpu":
            channels_last(self.net)
        if how.compile:
            compile_parts(self.net)

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """`uint8 [n, H, W, 3]` RGB -> `uint8 [n, 3, px, px]`; see `resize`."""
        return resize(frames, self.config.trunk.px)

    @torch.inference_mode()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """`uint8 [T, 3, px, px]` from `prepare`, at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        length = self.config.trunk.frames
        windows = cut_windows(len(inputs), self.config.stride(fps), length, self.how.overlap)
        with evaluation_mode(self.net), exact_float32(self.how.precision == "fp32"):
            return infer(self._windows, inputs, windows, length, self.batch)

    def _windows(self, frames_BTCHW: Tensor) -> Tensor:
        """Windows `uint8 [B, T, 3, px, px]` -> the ensemble's logits `[B, T, out_px, out_px]`."""
        return self.net(normalise(frames_BTCHW).transpose(1, 2)).fused

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration, overlap, precision and all weights: equal wherever those are."""
        how = {"overlap": self.how.overlap, "precision": self.how.precision}
        return fingerprint(json.dumps([self.config.to_dict(), how], sort_keys=True), self.net, before_key="")

    def saved_state(self) -> dict[str, Any]:
        """Configuration and weights, on the CPU, as plain values for `torch.save`; `Visage.load` reads such a file."""
        state = {key: value.detach().cpu() for key, value in self.net.state_dict().items()}
        return {"format": FILE_FORMAT, "config": self.config.to_dict(), "state": state}

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, name: str = "visage", device: Device = "cpu", how: Inference = PLAIN
    ) -> "Visage":
        """The teacher in a file of `saved_state`. No code in the file is run. ValueError for any other file."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is not a teacher's weights file ({type(error).__name__}); train it again") from error
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} does not hold a {FILE_FORMAT!r} teacher; save Visage.saved_state()")
        config = VisageConfig.from_dict(content["config"])
        with torch.device("meta"):
            net = VisageNet(config)
        load_state_dict_exact(net, content["state"], source=str(path))
        return cls(net, config, name=name, device=device, how=how)

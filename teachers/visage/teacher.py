"""The ViSAGE teacher: frames in, one map of logits per frame out."""

import hashlib
import json
import os
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.teachers import PLAIN, Inference
from distill.teachers.visage.config import VisageConfig
from distill.teachers.visage.experts import CenterBias
from distill.teachers.visage.net import VisageNet
from distill.teachers.visage.weights import expert_kind, load_released
from distill.teachers.weights import load_state_dict_exact, read_weights
from distill.teachers.windows import BatchSize, cut_windows, exact_convolutions, infer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of the trunk's input: RGB in [0, 1], the constants of CLIP (Radford et al., 2021)."""

FILE_FORMAT = "saliency-distill visage 2"
"""The `format` entry of a saved teacher; `Visage.load` refuses any other."""


def preprocess(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> the trunk's input, `float32 [T, 3, px, px]`, normalised by CLIP's constants."""
    return normalise(resize(frames, px))


def resize(frames: np.ndarray | Tensor, px: int) -> Tensor:
    """`uint8 [T, H, W, 3]` RGB -> `uint8 [T, 3, px, px]`, each frame by itself.

    A plain square resize, as released: the aspect ratio is not kept. Bilinear, antialiased where it shrinks. Raises
    ValueError for anything but frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape) < 1:
        raise ValueError(f"the clip has shape {list(frames.shape)}; a teacher wants [T, H, W, 3] with T of at least 1")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"the clip holds {frames.dtype}; a teacher wants RGB frames as uint8, 0 to 255")
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))
    return F.interpolate(
        frames.permute(0, 3, 1, 2), size=(px, px), mode="bilinear", align_corners=False, antialias=True
    ).contiguous()


def normalise(frames_TCHW: Tensor) -> Tensor:
    """RGB frames `uint8 [..., 3, H, W]` -> `float32`, by CLIP's constants, on the frames' device."""
    mean, std = _clip_constants(frames_TCHW.device)
    return (frames_TCHW.float() / 255 - mean) / std


@cache
def _clip_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: to bring them there for every batch would wait each time for all that the device has to do.
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return mean, std


def to_bf16(net: nn.Module) -> nn.Module:
    """`net` with its weights in bfloat16, in place, and so all that flows between its layers; returned as well.

    Instead of autocast, under which torch casts all weights anew for every clip, and norms and enlarges in float32, with a
    copy there and back around each. Inside their kernels norms and products add up in float32 either way. What is kept:
    running statistics and the four numbers of the centre prior, which cost nothing.
    """
    for module in net.modules():
        if not isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | CenterBias):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16)
    return net


class Visage:
    """The teacher: a clip in, the ensemble's logits for every frame out.

    A clip is sampled at `config.sample_fps` from every offset in turn; `teachers/windows.py` says how windows are cut,
    filled up and averaged. Without overlap that is what was released.
    """

    def __init__(
        self,
        net: nn.Module,
        config: VisageConfig,
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
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
        self._forward = torch.compile(self.net) if how.compile else self.net

    def prepare(self, frames: np.ndarray | Tensor) -> Tensor:
        """`uint8 [n, H, W, 3]` RGB -> `uint8 [n, 3, px, px]`; see `resize`."""
        return resize(frames, self.config.trunk.px)

    @torch.inference_mode()
    def infer(self, inputs: Tensor, fps: float) -> Tensor:
        """`uint8 [T, 3, px, px]` from `prepare`, at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        length = self.config.trunk.frames
        windows = cut_windows(len(inputs), self.config.stride(fps), length, self.how.overlap)
        was_training = self.net.training
        self.net.eval()
        try:
            with exact_convolutions() if self.how.precision == "fp32" else nullcontext():
                return infer(self._windows, inputs, windows, length, self.batch)
        finally:
            self.net.train(was_training)

    def _windows(self, frames_BTCHW: Tensor) -> Tensor:
        """Windows `uint8 [B, T, 3, px, px]` -> the ensemble's logits `[B, T, out_px, out_px]`."""
        fused_BTHW: Tensor = self._forward(normalise(frames_BTCHW).transpose(1, 2)).fused
        return fused_BTHW

    def logits(self, frames: np.ndarray | Tensor, fps: float) -> Tensor:
        """`uint8 [T, H, W, 3]` RGB at `fps` frames per second -> `float32 [T, out_px, out_px]` on the CPU."""
        return self.infer(self.prepare(frames), fps)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the configuration, overlap, precision and all weights: equal wherever those are."""
        how = {"overlap": self.how.overlap, "precision": self.how.precision}
        digest = hashlib.sha256(json.dumps([self.config.to_dict(), how], sort_keys=True).encode())
        for key, value in sorted(self.net.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def saved_state(self) -> dict[str, Any]:
        """Configuration and weights, on the CPU, as plain values for `torch.save`; `Visage.load` reads such a file."""
        state = {key: value.detach().cpu() for key, value in self.net.state_dict().items()}
        return {"format": FILE_FORMAT, "config": self.config.to_dict(), "state": state}

    @classmethod
    def released(
        cls,
        base: str | os.PathLike[str],
        experts: Sequence[str | os.PathLike[str]],
        size: str = "6B",
        *,
        dtype: torch.dtype = torch.float32,
        orig_t_size: int = 4,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
        **fields: Any,
    ) -> "Visage":
        """The released layout on a trunk of `size`, from a published base and any number of experts' files.

        Which kind an expert is, its keys say. `fields` are VisageConfig's, for instance `weights`, `fusion`, or
        `shared_trunk=False` to merge each LoRA into a trunk of its own. See `load_released` for the rest.
        """
        kinds = tuple(expert_kind(read_weights(path), str(path)) for path in experts)
        config = VisageConfig.released(size, experts=kinds, **fields)
        net = load_released(config, base, experts, orig_t_size=orig_t_size, dtype=dtype, device=device)
        return cls(net, config, name=name, device=device, how=how)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str = "visage",
        device: torch.device | str = "cpu",
        how: Inference = PLAIN,
    ) -> "Visage":
        """The teacher in a file of `saved_state`. No code in the file is run. ValueError for any other file."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{path} is not a teacher's weights file ({type(error).__name__}); train it again"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
            raise ValueError(f"{path} does not hold a {FILE_FORMAT!r} teacher; save Visage.saved_state()")
        config = VisageConfig.from_dict(content["config"])
        with torch.device("meta"):
            net = VisageNet(config)
        load_state_dict_exact(net, content["state"], source=str(path))
        return cls(net, config, name=name, device=device, how=how)

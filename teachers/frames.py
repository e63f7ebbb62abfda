"""Input frames: the checks, the resize and the normalisation that the teachers share."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Shape suffixes: N frames · C channels · H, W pixels

Constants = tuple[float, float, float]

IMAGENET: tuple[Constants, Constants] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB in [0, 1] over ImageNet, as torchvision publishes them."""

CLIP: tuple[Constants, Constants] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of RGB in [0, 1] that CLIP was trained with (Radford et al., 2021)."""


def check_frames(frames: np.ndarray | Tensor) -> None:
    """ValueError unless `frames` are RGB, `uint8 [N, H, W, 3]`, with N of at least 1."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape) < 1:
        raise ValueError(f"the clip has shape {list(frames.shape)}; a teacher needs [T, H, W, 3] with T of at least 1")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"the clip holds {frames.dtype}; a teacher needs RGB frames as uint8, 0 to 255")


def resize(frames: np.ndarray | Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """`uint8 [N, H, W, 3]` RGB -> `uint8 [N, 3, height, width]`, each frame independently.

    Antialiased when it shrinks; the aspect ratio is not preserved. `mode` is that of `F.interpolate`. Raises ValueError
    for anything but frames (see `check_frames`).
    """
    check_frames(frames)
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(np.require(frames, requirements=["C", "W"]))  # torch warns about read-only arrays
    return F.interpolate(frames.permute(0, 3, 1, 2), size=(height, width), mode=mode, antialias=True)


def normalise(frames_NCHW: Tensor, constants: tuple[Constants, Constants]) -> Tensor:
    """RGB `uint8 [..., 3, H, W]` -> `float32`: (x / 255 - mean) / std per channel, on the frames' device."""
    mean, std = on_device(constants, frames_NCHW.device)
    return (frames_NCHW.float() / 255 - mean) / std


@cache
def on_device(constants: tuple[Constants, Constants], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, `[3, 1, 1]` each, on a device.

    Cached: copying them there for every batch would wait for all work queued on the device.
    """
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in constants)
    return mean, std

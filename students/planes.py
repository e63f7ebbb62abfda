"""The planes of a decoded 4:2:0 frame as a student's input: the PyTorch twin of the entry that `distill.export.variants` writes.

Legend: B batch · C channels · H, W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.students.tiny_unet import ENTRY_KERNELS, resize_linear

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def frame_of_planes(
    y_B1HW: Tensor, chroma_B2HW: Tensor, height: int, width: int, kr: float, kb: float, limited: bool, depth: int = 8
) -> Tensor:
    """Samples as float: luma `[B,1,H,W]`, chroma (U, V) `[B,2,ceil(H/2),ceil(W/2)]` -> the normalised RGB frame at the working
    resolution, `[B,3,height,width]`.

    kr, kb: weights of red and blue in luma, as in ITU-R BT.709-6, 3.2 to 3.4. limited: whether luma has 219 levels and chroma 224,
    of 2**depth.
    """
    fits = min(y_B1HW.shape[-2] // (2 * height), y_B1HW.shape[-1] // (2 * width))
    kernel = next((kernel for kernel in ENTRY_KERNELS if kernel <= fits), 1)
    luma_B1HW = F.avg_pool2d(y_B1HW, kernel)
    if kernel > 1:
        chroma_B2HW = F.avg_pool2d(chroma_B2HW, kernel // 2)
    else:
        chroma_B2HW = resize_linear(chroma_B2HW, 2 * chroma_B2HW.shape[-2], 2 * chroma_B2HW.shape[-1])
    rows, columns = luma_B1HW.shape[-2:]
    small_BCHW = resize_linear(torch.cat([luma_B1HW, chroma_B2HW[..., :rows, :columns]], 1), 2 * height, 2 * width)
    small_BCHW = F.avg_pool2d(small_BCHW, 2)
    unit, most = 2 ** (depth - 8), 2**depth - 1
    black, luma_levels, chroma_levels = (16 * unit, 219 * unit, 224 * unit) if limited else (0, most, most)
    luma = (small_BCHW[:, :1] - black) / luma_levels
    blue, red = ((small_BCHW[:, 1:] - 128 * unit) / chroma_levels).chunk(2, 1)
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.cat([r, g, b], 1).clamp(0, 1) - mean) / std

"""Whether a variant gives the maps of its source file: the check before it gets a name. Needs onnxruntime.

The source sees the RGB frame that the variant's planes stand for, computed in floating point and without a limit; the planes
stay within the limits, so that clipping, the one difference between the two, does not count. With a state both are streamed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from distill.export.core import Size, core_of
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, Predictor, largest_gap, open_session
from distill.export.variants import BLOCK, Variant, first_kernel
from distill.export.verification import TOLERANCE, verify
from distill.export.yuv import BLACK, WHITE, Colour, half_size

CONTRACTS = {"rgb": "saliency-fixed", "yuv420": "saliency-yuv420", "nv12": "saliency-yuv420", "luma": "saliency-luma"}
Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class VariantParity:
    """How far the variant's maps are from the source file's for the same frames; maps are in [0, 1]."""

    frames: int
    max_abs: float
    tolerance: float = TOLERANCE

    @property
    def failures(self) -> list[str]:
        message = f"its maps against the source file's: {self.max_abs:.3g} > {self.tolerance:g}"
        return [] if self.max_abs <= self.tolerance else [message]


def verify_variant(model: onnx.ModelProto, source: onnx.ModelProto, variant: Variant) -> VariantParity:
    """Verifies the graph, and that its shapes are fixed where it is of one size. Raises ExportRefused naming every failure."""
    dynamic = [f"the shape of {name} is not fixed" for name in _dynamic(model)] if variant.size else []
    graphs = {variant.input: (model, CONTRACTS[variant.input])}
    return verify(graphs, lambda: compare_variant(model, source, variant), dynamic)[0]


def _dynamic(model: onnx.ModelProto) -> list[str]:
    """Values whose shape does not follow from the graph alone."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {value.name: value.type.tensor_type.shape for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    static = {name for name, shape in known.items() if all(dim.HasField("dim_value") for dim in shape.dim)}
    return [name for node in inferred.node for name in node.output if name not in static]


def compare_variant(model: onnx.ModelProto, source: onnx.ModelProto, variant: Variant) -> VariantParity:
    """Runs both on the same frames, at the variant's size or, of any, at one for each way into the student."""
    session, runner = open_session(model.SerializeToString(), variant.input, 1), Predictor(source.SerializeToString())
    core = core_of(source)
    sizes = [variant.size] if variant.size else [(16, 16), (97, 131), *_sizes(core.working_size, core.kernels)]
    required = any(given.name == "state_in" for given in session.get_inputs())
    gap, frames = 0.0, 0
    for size in sizes:
        runner.reset()
        state: Feed = {"state_in": np.zeros(_state_shape(source), np.float32)} if required else {}
        for feed, rgb in _frames(variant, size, first_kernel(core, size)):
            saliency, *states = session.run(None, {**feed, **state})
            state = {"state_in": states[0]} if states else {}
            expected = runner.run(rgb)
            expected = block_means(expected) if variant.output == "block-map" else expected
            gap, frames = max(gap, largest_gap([saliency], [expected])), frames + 1
    return VariantParity(frames, gap)


def _sizes(working_size: Size, kernels: tuple[int, ...]) -> list[Size]:
    return [(2 * k * working_size[0] + 1, 2 * k * working_size[1] + 3) for k in kernels]


def _state_shape(source: onnx.ModelProto) -> list[int]:
    [state] = [value for value in source.graph.input if value.name == "state_in"]
    return [dim.dim_value for dim in state.type.tensor_type.shape.dim]


def block_means(saliency: np.ndarray) -> np.ndarray:
    """The block map of a map `[1,1,H,W]`: float32 `[1,1,ceil(H/16),ceil(W/16)]`."""
    starts = [np.arange(0, side, BLOCK) for side in saliency.shape[2:]]
    sums = np.add.reduceat(np.add.reduceat(saliency.astype(float), starts[0], 2), starts[1], 3)
    heights, widths = (np.diff(ends, append=side) for ends, side in zip(starts, saliency.shape[2:], strict=True))
    return (sums / np.outer(heights, widths)).astype(np.float32)


def _frames(variant: Variant, size: Size, kernel: int) -> Iterator[tuple[Feed, np.ndarray]]:
    """What the variant gets, and the source's normalised RGB `[1,3,H,W]` of the same frame."""
    rng = np.random.default_rng(0)
    if variant.input == "luma":
        for plane in _luma_frames(*size):
            yield {"input": plane[None, None] / np.float32(255)}, grey(plane)
    elif variant.input == "rgb":
        for _ in range(3):
            rgb = rng.standard_normal((1, 3, *size), np.float32)
            yield {"input": rgb}, rgb
    else:
        unit = 2 ** (variant.colour.depth - 8)
        kind = np.uint8 if unit == 1 else np.uint16
        for _ in range(3):
            y = rng.integers(64 * unit, 180 * unit, size).astype(kind)
            u, v = rng.integers(108 * unit, 149 * unit, (2, *half_size(size))).astype(kind)
            chroma = {"uv": np.stack([u, v], -1)[None]} if variant.input == "nv12" else {"u": u[None, None], "v": v[None, None]}
            yield {"y": y[None, None], **chroma}, rgb_of_planes(y, u, v, variant.colour, linear=kernel == 1)


def rgb_of_planes(y: np.ndarray, u: np.ndarray, v: np.ndarray, colour: Colour, linear: bool) -> np.ndarray:
    """Planes `[H,W]`, `[ceil(H/2),ceil(W/2)]` as the source file's input, ImageNet-normalised float32 `[1,3,H,W]`; not clipped.
    linear: between the samples of chroma, in place of repeating them."""
    height, width = y.shape
    full = [y, *(_twice(plane.astype(float), linear)[:height, :width] for plane in (u, v))]
    gain, bias = colour.to_rgb()
    rgb = np.tensordot(gain, np.stack(full).astype(float), 1) + bias[:, None, None]
    return ((rgb - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None]).astype(np.float32)[None]


def _twice(plane: np.ndarray, linear: bool) -> np.ndarray:
    if not linear:
        return plane.repeat(2, 0).repeat(2, 1)
    for _ in range(2):  # along the columns, then along the rows
        padded = np.pad(plane, ((1, 1), (0, 0)), "edge")
        near = 0.75 * plane
        plane = np.stack([near + 0.25 * padded[:-2], near + 0.25 * padded[2:]], 1).reshape(-1, plane.shape[1]).T
    return plane


def grey(frame: np.ndarray) -> np.ndarray:
    """A limited-range luma plane, uint8 `[H,W]`, as the image file's input: ImageNet-normalised float32 `[1,3,H,W]`."""
    level = np.clip((frame.astype(np.float32) - BLACK) / (WHITE - BLACK), 0, 1)
    return ((level - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None])[None]


def _luma_frames(height: int, width: int) -> Iterator[np.ndarray]:
    """Frames of every luma value from 0 to 255: noise, a ramp, black, white, one bright spot."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    yield np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    yield (255 * (x + y) / max(height + width - 2, 1)).astype(np.uint8)
    yield np.full((height, width), BLACK, np.uint8)
    yield np.full((height, width), 255, np.uint8)
    spot = np.exp(-((y - height / 3) ** 2 + (x - width / 3) ** 2) / (height * width / 100))
    yield (BLACK + (WHITE - BLACK) * spot).astype(np.uint8)

"""Variants of an image or step file: other inputs, one frame size, a block map; plain protobuf, needs onnx alone.

    planes = yuv420_graph(onnx.load("student_step.onnx"), Colour("bt709"))             # y, u, v of any size -> saliency_map
    blocks = variant_graph(step, Variant("nv12", (1080, 1920), "block-map", Colour())) # y, uv of one size -> block_map

    rgb      `input` f32 `[1,3,H,W]`, ImageNet-normalised, as in the source file
    yuv420   `y` `[1,1,H,W]`, `u` and `v` `[1,1,ceil(H/2),ceil(W/2)]`: the planes of a decoder, uint8, or uint16 for more bits
    nv12     `y`, and `uv` `[1,ceil(H/2),ceil(W/2),2]`
    luma     `input` f32 `[1,1,H,W]`: a limited-range Y plane over 255, for consumers that have nothing else

Pooling, scaling and the colour matrix are linear, so planes are pooled and scaled as they are, and become RGB at the working
resolution: chroma at its own size, by half of luma's kernel. RGB is clipped to [0, 1] there, where a consumer of RGB frames
clips every pixel; that is the only difference, but for the rounding of RGB to integers. A file of one size has no `If` and no
arithmetic on shapes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from distill.export.core import CoreGraph, Nodes, Size, core_of, pooling_steps
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD
from distill.export.verification import ExportRefused
from distill.export.yuv import BLACK, WHITE, Colour, check_known, half_size

INPUTS = ("rgb", "yuv420", "nv12", "luma")
OUTPUTS = ("map", "block-map")
BLOCK = 16  # px a side of a block of the block map
GROUP = 128  # most samples of a row that one product pools; measured from 64 to 1920, this is the fastest


@dataclass(frozen=True)
class Variant:
    """What a variant takes and gives. Raises ValueError for what is unknown."""

    input: str = "yuv420"
    size: Size | None = None
    """Height and width; None for any."""
    output: str = "map"
    colour: Colour = field(default_factory=Colour)
    """Of planes; of no effect on rgb and luma."""

    def __post_init__(self) -> None:
        check_known("input", self.input, INPUTS)
        check_known("output", self.output, OUTPUTS)

    @property
    def of_planes(self) -> bool:
        """Whether it takes the planes of a decoder."""
        return self.input in ("yuv420", "nv12")


def yuv420_graph(
    model: onnx.ModelProto, colour: Colour, output: str = "map", size: Size | None = None, *, integer: bool = False
) -> onnx.ModelProto:  # fmt: skip
    """The graph for decoded planes: `y`, `u`, `v` and perhaps `state_in` -> `saliency_map` or `block_map`, and `state_out`.

    model: an image or step file. output: `map` or `block-map`. size: height and width; None for any. integer: pool in a form
    that ONNX Runtime's CPU computes in integers (of one size, 8 bits); other runtimes may not take it. Raises ExportRefused for
    another model.
    """
    return variant_graph(model, Variant("yuv420", size, output, colour), integer=integer)


def variant_graph(model: onnx.ModelProto, variant: Variant, *, integer: bool = False) -> onnx.ModelProto:
    """The variant of an image or step file; `integer` as for `yuv420_graph`. Raises ExportRefused where there is no such
    variant."""
    if variant.size is None and not variant.of_planes:
        raise ExportRefused(f"a file with {variant.input} input has one frame size")
    core = core_of(model)
    if variant.input == "luma" and core.state is not None:
        raise ExportRefused("it is a step file, and consumers of luma files carry no state; make one from NAME.onnx")
    nodes = Nodes(static=variant.size is not None)
    pooled = _planes(nodes, core, variant, integer) if variant.of_planes else _floats(nodes, core, variant)
    _to_frame(nodes, core, variant, pooled)
    nodes.extend(core)
    nodes.scope = "exit"
    outputs = [_leave_by_blocks(nodes, core, variant) if variant.output == "block-map" else _leave(nodes, core, variant)]
    return nodes.model(core, list(_inputs(variant)), outputs, f"saliency_student_{variant.input}")


def _inputs(variant: Variant) -> Iterator[onnx.ValueInfoProto]:
    size: Sequence[int | str] = variant.size or ("height", "width")
    if not variant.of_planes:
        yield helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1 if variant.input == "luma" else 3, *size])
        return
    kind = TensorProto.UINT8 if variant.colour.depth == 8 else TensorProto.UINT16
    half: Sequence[int | str] = half_size(variant.size) if variant.size else ("chroma_height", "chroma_width")
    chroma = {"uv": [1, *half, 2]} if variant.input == "nv12" else {"u": [1, 1, *half], "v": [1, 1, *half]}
    for name, dims in {"y": [1, 1, *size], **chroma}.items():
        yield helper.make_tensor_value_info(name, kind, dims)


def first_kernel(core: CoreGraph, size: Size) -> int:
    """The entry's first pooling for a frame of `size`: the largest kernel that leaves twice the working resolution; 1 for none."""
    fits = min(side // (2 * working) for side, working in zip(size, core.working_size, strict=True))
    return max((k for k in core.kernels if k <= fits), default=1)


def _floats(nodes: Nodes, core: CoreGraph, variant: Variant) -> str:
    """The frame, pooled: f32 `[1,3,h,w]`; of luma, grey `[1,1,h,w]`."""
    assert variant.size
    value, kernel = "input", first_kernel(core, variant.size)
    if variant.input == "luma":
        gain = nodes.constant(np.array([255 / (WHITE - BLACK)], np.float32), "luma_gain")
        bias = nodes.constant(np.array([-BLACK / (WHITE - BLACK)], np.float32), "luma_bias")
        unlimited = nodes.node("Add", [nodes.node("Mul", [value, gain], "stretched"), bias], "unlimited")
        value = nodes.node("Clip", [unlimited, *_black_white(nodes)], "grey")
    return _pool(nodes, value, kernel, "pooled")


def _planes(nodes: Nodes, core: CoreGraph, variant: Variant, integer: bool) -> str:
    """Y, U and V, pooled to one size: f32 `[1,3,h,w]`, in the units of the samples."""
    size = variant.size
    integer = integer and size is not None and first_kernel(core, size) > 1 and variant.colour.depth == 8
    names = ("y", "uv") if variant.input == "nv12" else ("y", "u", "v")
    # Integers are made floats before all else: TensorRT takes uint8 for the input of a Cast alone.
    casts = [name if integer else _to_float(nodes, name) for name in names]
    given = "chroma" if size else "chroma_given"
    if variant.input == "nv12":
        chroma = nodes.node("Transpose", casts[1:], given, perm=[0, 3, 1, 2])
    else:
        chroma = nodes.node("Concat", casts[1:], given, axis=1)
    if size:
        return _pool_fixed(nodes, casts[0], chroma, size, first_kernel(core, size), integer)
    shape = nodes.node("Shape", ["y"], "y_shape")
    frame_size = nodes.node("Slice", [shape, *_range(nodes, 2, 4)], "frame_size")
    # Chroma of another size, such as that of 4:4:4, would be cropped below without a word; this reshaping fails on it.
    one, two = nodes.constant([1], "one"), nodes.constant([2], "two")
    half = nodes.node("Div", [nodes.node("Add", [frame_size, one], "frame_size_and_one"), two], "half_size")
    shape = nodes.node("Concat", [nodes.constant([1, 2], "one_two"), half], "chroma_shape", axis=0)
    nodes.node("Reshape", [chroma, shape], "chroma")
    twice = nodes.constant([2 * side for side in core.working_size], "twice_size")
    fits = nodes.node("ReduceMin", [nodes.node("Div", [frame_size, twice], "ratio")], "fits", keepdims=1)
    return _choose(nodes, casts[0], core.kernels, fits, "pooled")


def _to_float(nodes: Nodes, value: str) -> str:
    return nodes.node("Cast", [value], f"{value}_float", to=TensorProto.FLOAT)


def _pool_fixed(nodes: Nodes, luma: str, chroma: str, size: Size, kernel: int, integer: bool) -> str:
    """The planes of one size, pooled by `kernel`: f32 `[1,3,h,w]`."""
    half = half_size(size)
    if kernel == 1:
        chroma, here = _twice(nodes, chroma), (2 * half[0], 2 * half[1])
    else:
        luma = _pool_samples(nodes, luma, (1, *size), kernel, integer)
        chroma = _pool_samples(nodes, chroma, (2, *half), kernel // 2, integer)
        here = (half[0] // (kernel // 2), half[1] // (kernel // 2))
    cropped = _crop(nodes, chroma, here, (size[0] // kernel, size[1] // kernel), "chroma_cropped")
    return nodes.node("Concat", [luma, cropped], "pooled", axis=1)


def _choose(nodes: Nodes, luma: str, kernels: Sequence[int], fits: str, name: str) -> str:
    """The planes pooled by the largest kernel that `fits` allows; nested `If`, since comparisons are not on the allowlist."""
    if not kernels:
        return _pool_any(nodes, luma, 1, name)
    k, smaller = kernels[0], kernels[1:]
    quotient = nodes.node("Div", [fits, nodes.constant([k], f"k{k}")], f"fits{k}")
    at_least_one = nodes.node("Cast", [quotient], f"is{k}", to=TensorProto.BOOL)
    then, otherwise = (Nodes(scope=nodes.scope, constants=nodes.constants) for _ in range(2))
    branches = {
        "then_branch": then.branch(f"pool{k}", _pool_any(then, luma, k, f"by{k}")),
        "else_branch": otherwise.branch(f"below{k}", _choose(otherwise, luma, smaller, fits, f"less{k}")),
    }
    return nodes.node("If", [at_least_one], name, **branches)


def _pool_any(nodes: Nodes, luma: str, kernel: int, name: str) -> str:
    """The planes of any size, pooled by `kernel`: f32 `[1,3,h,w]`."""
    luma = _pool(nodes, luma, kernel, f"y_by{kernel}")
    chroma = _pool(nodes, "chroma", kernel // 2, f"chroma_by{kernel // 2}") if kernel > 1 else _twice(nodes, "chroma")
    shape = nodes.node("Shape", [luma], f"shape_by{kernel}")
    size = nodes.node("Slice", [shape, *_range(nodes, 2, 4)], f"size_by{kernel}")
    bounds = [nodes.constant([0, 0], "corner"), size, nodes.constant([2, 3], "rows_columns")]
    cropped = nodes.node("Slice", [chroma, *bounds], f"chroma_cropped{kernel}")
    return nodes.node("Concat", [luma, cropped], name, axis=1)


def _pool(nodes: Nodes, value: str, kernel: int, name: str) -> str:
    """The mean of every square of `kernel` x `kernel`."""
    if kernel == 1:
        return value
    *first, last = pooling_steps(kernel)
    for step in first:
        value = nodes.pool(value, step, f"{name}_pairs")
    return nodes.pool(value, last, name)


def _pool_samples(nodes: Nodes, value: str, shape: tuple[int, int, int], kernel: int, integer: bool) -> str:
    """The mean of every square of samples `[1,C,H,W]`, f32 `[1,C,h,w]`: first along the rows, by a product with a matrix of zeros
    and ones, which ONNX Runtime computes from integers as they are; then along the columns."""
    channels, height, width = shape
    kept = width // kernel * kernel
    group = max(n for n in range(kernel, GROUP + 1, kernel) if kept % n == 0)
    if kernel == 1 or group < 16:
        return _pool(nodes, _to_float(nodes, value) if integer else value, kernel, f"{value}_pooled")
    value = _crop(nodes, value, (height, width), (height, kept), f"{value}_cropped")
    rows = nodes.node("Reshape", [value, nodes.constant([-1, group], f"{value}_groups")], f"{value}_rows")
    ones = np.kron(np.eye(group // kernel), np.ones((kernel, 1)))
    if integer:
        rows = nodes.node("DequantizeLinear", [rows, *_scale(nodes, 1, np.uint8)], f"{value}_float")
        name = nodes.constant(ones.astype(np.int8), f"{value}_ones")
        matrix = nodes.node("DequantizeLinear", [name, *_scale(nodes, kernel, np.int8)], f"{value}_means")
    else:
        matrix = nodes.constant((ones / kernel).astype(np.float32), f"{value}_means")
    means = nodes.node("MatMul", [rows, matrix], f"{value}_along_rows")
    narrow = nodes.constant([1, channels, height, kept // kernel], f"{value}_shape")
    return nodes.pool(nodes.node("Reshape", [means, narrow], f"{value}_narrow"), [kernel, 1], f"{value}_pooled")


def _scale(nodes: Nodes, divisor: int, kind: type) -> list[str]:
    """Quantisation parameters: scale 1/divisor, zero point 0."""
    name = f"{np.dtype(kind).name}_{divisor}"
    return [
        nodes.constant(np.array(1 / divisor, np.float32), f"scale_{name}"),
        nodes.constant(np.array(0, kind), f"zero_{name}"),
    ]


def _twice(nodes: Nodes, chroma: str) -> str:
    scales = nodes.constant(np.array([1, 1, 2, 2], np.float32), "twice_scales")
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return nodes.node("Resize", [chroma, "", scales], "chroma_twice", **how)


def _crop(nodes: Nodes, value: str, here: Size, size: Size, name: str) -> str:
    """The upper left `size` of a value whose height and width are `here`."""
    if here == size:
        return value
    corner, stop = nodes.constant([0, 0], "corner"), nodes.constant(list(size), f"{name}_size")
    return nodes.node("Slice", [value, corner, stop, nodes.constant([2, 3], "rows_columns")], name)


def _range(nodes: Nodes, start: int, stop: int) -> list[str]:
    return [nodes.constant([start], f"from{start}"), nodes.constant([stop], f"to{stop}")]


def _black_white(nodes: Nodes) -> list[str]:
    return [nodes.constant(np.array(n, np.float32), name) for n, name in ((0, "black"), (1, "white"))]


def _to_frame(nodes: Nodes, core: CoreGraph, variant: Variant, pooled: str) -> None:
    """From the pooled frame to `core.frame`: scaled to the working resolution, made RGB, ImageNet-normalised."""
    channels = 1 if variant.input == "luma" else 3
    shape = nodes.constant([1, channels, *(2 * side for side in core.working_size)], "twice_shape")
    name = core.frame if variant.input == "rgb" else "small_frame"
    small = nodes.pool(nodes.resize(pooled, shape, "twice"), [2, 2], name)
    if variant.input == "rgb":
        return
    if variant.of_planes:
        gain, bias = variant.colour.to_rgb()
        weights = nodes.constant(gain.astype(np.float32)[:, :, None, None], "colour_matrix")
        rgb = nodes.node("Conv", [small, weights, nodes.constant(bias.astype(np.float32), "colour_bias")], "unlimited")
        small = nodes.node("Clip", [rgb, *_black_white(nodes)], "rgb")
    gains = nodes.constant((1 / IMAGENET_STD).reshape(1, 3, 1, 1), "imagenet_gain")
    biases = nodes.constant((-IMAGENET_MEAN / IMAGENET_STD).reshape(1, 3, 1, 1), "imagenet_bias")
    nodes.node("Add", [nodes.node("Mul", [small, gains], "scaled"), biases], core.frame)


def _leave(nodes: Nodes, core: CoreGraph, variant: Variant) -> onnx.ValueInfoProto:
    """The map at the frame's size."""
    if variant.size:
        shape = nodes.constant([1, 1, *variant.size], "map_shape")
    else:
        shape = nodes.node("Concat", [nodes.constant([1, 1], "one_one"), "frame_size"], "map_shape", axis=0)
    nodes.resize(core.small, shape, "saliency_map")
    return helper.make_tensor_value_info("saliency_map", TensorProto.FLOAT, [1, 1, *(variant.size or ("height", "width"))])


def _leave_by_blocks(nodes: Nodes, core: CoreGraph, variant: Variant) -> onnx.ValueInfoProto:
    """The means of 16x16 px of the map at the frame's size, without that map: scaling and means are linear along each axis."""
    if variant.size:
        down, across = (_block_means(n, side) for n, side in zip(core.small_size, variant.size, strict=True))
        # Both products have their constant on the right, as CoreML wants it.
        columns = nodes.node("MatMul", [core.small, nodes.constant(np.ascontiguousarray(across.T), "across")], "block_columns")
        turned = nodes.node("Transpose", [columns], "block_columns_turned", perm=[0, 1, 3, 2])
        blocks = nodes.node("MatMul", [turned, nodes.constant(np.ascontiguousarray(down.T), "down")], "block_map_turned")
        nodes.node("Transpose", [blocks], "block_map", perm=[0, 1, 3, 2])
        size: Sequence[int | str] = (len(down), len(across))
    else:
        height = nodes.node("Slice", ["frame_size", *_range(nodes, 0, 1)], "frame_height")
        width = nodes.node("Slice", ["frame_size", *_range(nodes, 1, 2)], "frame_width")
        ones = nodes.constant([1, 1], "one_one")
        small_width = nodes.constant([core.small_size[1]], "small_width")
        tall = nodes.resize(core.small, nodes.node("Concat", [ones, height, small_width], "tall_shape", axis=0), "tall")
        rows = nodes.node("AveragePool", [tall], "block_rows", kernel_shape=[BLOCK, 1], strides=[BLOCK, 1], ceil_mode=1)
        shape = nodes.node("Shape", [rows], "block_rows_shape")
        so_far = nodes.node("Slice", [shape, *_range(nodes, 0, 3)], "block_rows_size")
        wide = nodes.resize(rows, nodes.node("Concat", [so_far, width], "wide_shape", axis=0), "wide")
        nodes.node("AveragePool", [wide], "block_map", kernel_shape=[1, BLOCK], strides=[1, BLOCK], ceil_mode=1)
        size = ("rows", "columns")
    return helper.make_tensor_value_info("block_map", TensorProto.FLOAT, [1, 1, *size])


def _block_means(length: int, side: int) -> np.ndarray:
    """f32 `[ceil(side/16), length]`: its product with `length` samples is the means of 16 px of these, scaled linearly to `side`."""
    centre = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    lower = np.floor(centre).astype(int)
    scaling = np.zeros((side, length))
    np.add.at(scaling, (np.arange(side), lower), 1 - (centre - lower))
    np.add.at(scaling, (np.arange(side), np.minimum(lower + 1, length - 1)), centre - lower)
    means = np.array([scaling[start : start + BLOCK].mean(0) for start in range(0, side, BLOCK)])
    return means.astype(np.float32)

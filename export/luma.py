"""A shipped image file for one frame size, with luma alone as input; torch-free.

    luma = luma_graph(onnx.load("student.onnx"), height=1080, width=1920)   # f32 [1,1,1080,1920] in and out
    parity = verify_luma(luma, onnx.load("student.onnx"))                   # gated, and compared; or ExportRefused

For consumers that have no colour and no dynamic shapes (the downstream's `vmaf_roi --saliency-model`). `input` is the Y
plane as it is stored, over 255. In the graph, limited range (16 to 235) becomes grey, R = G = B = (255 y - 16) / 219, cut
to [0, 1], and then what every consumer of the image file applies, ImageNet's normalisation. The student is the image
file's own, node by node; its entry and its exit are written anew, for the one size. Pooling and linear scaling are
averages, so that they may run on one channel and the three be made of it at the working resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from distill.export.errors import ExportRefused
from distill.export.limits import IR_VERSION, MAX_BYTES, OPSET, TOLERANCE
from distill.export.runner import IMAGENET_MEAN, IMAGENET_STD, Predictor
from distill.opallowlist import check

BLACK, WHITE = 16, 235  # luma of limited range, of 255

ENTRY = """
entry (float[1,1,{height},{width}] input) => (float[1,3,{working_height},{working_width}] frame) {{
  luma_gain = Constant<value_float={gain}>()
  luma_bias = Constant<value_float={bias}>()
  black = Constant<value_float=0.0>()
  white = Constant<value_float=1.0>()
  stretched = Mul(input, luma_gain)
  unlimited = Add(stretched, luma_bias)
  grey = Clip(unlimited, black, white)
  pooled = {pool}(grey)
  twice_shape = Constant<value_ints=[1,1,{twice_height},{twice_width}]>()
  twice = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(pooled, , , twice_shape)
  small_grey = AveragePool<kernel_shape=[2,2], strides=[2,2]>(twice)
  scaled = Mul(small_grey, imagenet_gain)
  frame = Add(scaled, imagenet_bias)
}}
"""

EXIT = """
exit (float[1,1,h,w] small) => (float[1,1,{height},{width}] saliency_map) {{
  map_shape = Constant<value_ints=[1,1,{height},{width}]>()
  saliency_map = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(small, , , map_shape)
}}
"""


@dataclass(frozen=True)
class LumaParity:
    """How far the maps are from the image file's for the same grey frames; maps are in [0, 1]."""

    frames: int
    max_abs: float
    tolerance: float = TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def luma_graph(image: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """The graph for frames of `width` x `height` luma: `input` f32 `[1,1,H,W]` -> `saliency_map` f32 `[1,1,H,W]`.

    image: an image file as `image_graph` writes it, in floating point or int8; its metadata are kept.
    Raises ExportRefused for another model.
    """
    twice_height, twice_width, kernels = _working_size(image)
    fits = min(height // twice_height, width // twice_width)
    kernel = max((k for k in kernels if k <= fits), default=1)
    sizes = {"height": height, "width": width, "twice_height": twice_height, "twice_width": twice_width}
    gain, bias = 255 / (WHITE - BLACK), -BLACK / (WHITE - BLACK)
    pool = f"AveragePool<kernel_shape=[{kernel},{kernel}], strides=[{kernel},{kernel}]>" if kernel > 1 else "Identity"
    entry = parser.parse_graph(
        ENTRY.format(
            **sizes, working_height=twice_height // 2, working_width=twice_width // 2, gain=gain, bias=bias, pool=pool
        )
    )
    exit_ = parser.parse_graph(EXIT.format(**sizes))
    core = [node for node in image.graph.node if not node.name.startswith(("/entry/", "/exit/"))]
    constants = {"imagenet_gain": 1 / IMAGENET_STD, "imagenet_bias": -IMAGENET_MEAN / IMAGENET_STD}
    graph = helper.make_graph(
        [*_named(entry, "entry"), *core, *_named(exit_, "exit")],
        "saliency_student_luma",
        list(entry.input),
        list(exit_.output),
        [
            *(numpy_helper.from_array(values.reshape(1, 3, 1, 1), name) for name, values in constants.items()),
            *image.graph.initializer,
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name=image.producer_name
    )
    model.metadata_props.extend(image.metadata_props)
    return model


def _working_size(image: onnx.ModelProto) -> tuple[int, int, list[int]]:
    """Twice the working height and width, and the kernels that the entry pools by."""
    nodes = {node.name: node for node in image.graph.node}
    shape = nodes.get("/entry/twice_shape", onnx.NodeProto())
    sizes = [list(attribute.ints) for attribute in shape.attribute if attribute.name == "value_ints"]
    outputs = {output for node in nodes.values() for output in node.output}
    if (
        [size[:2] for size in sizes if len(size) == 4] != [[1, 3]]
        or not {"frame", "small", "saliency_map"} <= outputs
        or "state_out" in outputs
    ):
        raise ExportRefused(
            "it is no image file of this exporter: a luma file is made from NAME.onnx of a run's export"
        )
    _, _, height, width = sizes[0]
    kernels = [
        attribute.ints[0]
        for node in _inside(image.graph)
        if node.op_type == "AveragePool"
        for attribute in node.attribute
        if attribute.name == "kernel_shape"
    ]
    return height, width, kernels


def _inside(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all subgraphs."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from attribute.g.node
                yield from _inside(attribute.g)


def _named(graph: onnx.GraphProto, scope: str) -> list[onnx.NodeProto]:
    for node in graph.node:
        node.name = f"/{scope}/{node.output[0]}"
    return list(graph.node)


# --- proof -----------------------------------------------------------------------------------------------------------


def verify_luma(luma: onnx.ModelProto, image: onnx.ModelProto) -> LumaParity:
    """Checks, gates, and compares with the image file on the same grey frames. Raises ExportRefused naming every failure."""
    failures = []
    try:
        onnx.checker.check_model(luma, full_check=True)
    except Exception as error:  # the checker raises several unrelated types
        failures.append(f"onnx.checker: {str(error).splitlines()[0]}")
    failures += [str(violation) for violation in check(luma, contract="saliency-luma").violations]
    failures += [f"the shape of {name} is not fixed" for name in _dynamic(luma)]
    if (size := luma.ByteSize()) > MAX_BYTES:
        failures.append(f"{size:,} bytes, more than the {MAX_BYTES:,} of the contract")
    if failures:
        raise ExportRefused("; ".join(failures))
    try:
        parity = compare_luma(luma, image)
    except ValueError as error:
        raise ExportRefused(str(error)) from None
    if not parity.max_abs <= TOLERANCE:
        raise ExportRefused(f"luma file against image file: {parity.max_abs:.3g} > {TOLERANCE:g}")
    return parity


def _dynamic(model: onnx.ModelProto) -> list[str]:
    """Values whose shape the graph does not tell beforehand."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    return [output for node in model.graph.node for output in node.output if output not in known]


def compare_luma(luma: onnx.ModelProto, image: onnx.ModelProto) -> LumaParity:
    """Runs both on frames of every luma value from 0 to 255: noise, a ramp, black, white, one bright spot."""
    one, other = Predictor(luma.SerializeToString()), Predictor(image.SerializeToString())
    height, width = (dim.dim_value for dim in luma.graph.input[0].type.tensor_type.shape.dim[2:])
    frames, largest = 0, 0.0
    for frame in _test_frames(height, width):
        gap = np.abs(one.run(frame[None, None] / np.float32(255)) - other.run(grey(frame)))
        # A NaN must not hide behind max(): it is an infinite gap.
        frames, largest = frames + 1, max(largest, float(np.nan_to_num(gap.max(), nan=np.inf)))
    return LumaParity(frames, largest)


def grey(frame: np.ndarray) -> np.ndarray:
    """A limited-range luma plane, uint8 `[H,W]`, as the image file's input: ImageNet-normalised float32 `[1,3,H,W]`."""
    level = np.clip((frame.astype(np.float32) - BLACK) / (WHITE - BLACK), 0, 1)
    return ((level - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None])[None]


def _test_frames(height: int, width: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    yield rng.integers(0, 256, (height, width), np.uint8)
    yield (255 * (x + y) / max(height + width - 2, 1)).astype(np.uint8)
    yield np.full((height, width), BLACK, np.uint8)
    yield np.full((height, width), 255, np.uint8)
    spot = np.exp(-((y - height / 3) ** 2 + (x - width / 3) ** 2) / (height * width / 100))
    yield (BLACK + (WHITE - BLACK) * spot).astype(np.uint8)

"""The way into and out of the student's working resolution, in ONNX operators; needs no torch.

    entry   pools by the largest kernel that leaves at least twice the working resolution, scales linearly to exactly twice
            (by a factor below 2, where two linear taps do not alias), pools by 2
    exit    scales the map linearly to the frame's size

The arithmetic is that of `distill.students.tiny_unet.fit_to_working_size`; the parity check compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnx_ir as ir

    from distill.export.writer import Writer


def enter(writer: Writer, frame: ir.Value, height: int, width: int, kernels: Sequence[int]) -> tuple[ir.Value, ir.Value]:
    """A frame f32 `[1,3,H,W]` at the working resolution, f32 `[1,3,height,width]`, and its size, int64 `[2]`. kernels: of the
    first pooling, largest first."""
    shape = writer.node("Shape", [frame], "frame_shape")
    size = writer.node("Slice", [shape, writer.ints([2], "two"), writer.ints([4], "four")], "frame_size")
    ratio = writer.node("Div", [size, writer.ints([2 * height, 2 * width], "twice_size")], "ratio")
    fits = writer.node("ReduceMin", [ratio], "fits", keepdims=1)
    pooled = _pool_by_fit(writer, frame, fits, kernels, "pooled")
    twice = writer.resize(pooled, "twice", shape=writer.ints([1, 3, 2 * height, 2 * width], "twice_shape"))
    return writer.pool(twice, 2, "frame"), size


def leave(writer: Writer, small: ir.Value, frame_size: ir.Value) -> ir.Value:
    """A map f32 `[1,1,h,w]` at the frame's size, int64 `[2]`."""
    shape = writer.node("Concat", [writer.ints([1, 1], "one_one"), frame_size], "map_shape", axis=0)
    return writer.resize(small, "saliency_map", shape=shape)


def _pool_by_fit(writer: Writer, frame: ir.Value, fits: ir.Value, kernels: Sequence[int], name: str) -> ir.Value:
    """The frame pooled by the largest kernel that `fits` allows; nested `If`, since comparisons are not on the allowlist.
    `If` takes no copy of the frame on the branch that runs, and the other branches cost nothing."""
    if not kernels:
        return writer.node("Identity", [frame], name)
    k, smaller = kernels[0], kernels[1:]
    quotient = writer.node("Div", [fits, writer.ints([k], f"k{k}")], f"fits{k}")
    at_least_one = writer.node("Cast", [quotient], f"is{k}", to=onnx.TensorProto.BOOL)
    shape: tuple[int | str, ...] = (1, 3, "h", "w")
    pool = writer.branch(f"pool{k}", shape, lambda w: w.pool(frame, k, f"by{k}"))
    below = writer.branch(f"below{k}", shape, lambda w: _pool_by_fit(w, frame, fits, smaller, f"less{k}"))
    return writer.node("If", [at_least_one], name, then_branch=pool, else_branch=below)

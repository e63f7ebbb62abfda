"""What to use instead of an operator that the list does not allow: rewrites in terms of allowed operators.

A remedy is offered only if the list contains every operator that it needs. Tests compare the exact rewrites with the
operators that they replace. Standard library only.
"""

import functools

from distill.opallowlist.rules.allowlist import Allowlist

_QDQ = "quantise statically: float operators between QuantizeLinear and DequantizeLinear pairs"
_GATES = "write the gates out with MatMul, Add, Sigmoid, Tanh and Mul, one step per call"
_STATE = "give a default by backing the input with an initializer of the same name"
_TENSORS = "keep plain tensors: Concat to join, Slice to take apart"
_FIXED = "draw nothing in the graph: pass it in, or store it as a Constant"
_MASK = "keep the mask in float"

REMEDIES = {
    # operator: (remedy, the operators that it needs)
    "And": (f"{_MASK}: m * n", "Mul"),
    "ArgMax": ("ReduceMax gives the value; find its position outside the graph", "ReduceMax"),
    "ArgMin": ("ReduceMin gives the value; find its position outside the graph", "ReduceMin"),
    "CastLike": ("Cast to the type that the export knows", "Cast"),
    "Ceil": (
        "integers: (n + d - 1) Div d, int64; floats >= 0: c = Cast to int64 and back; c + Clip((x - c) * k, 0, 1)",
        "Add Cast Clip Div Mul Sub",
    ),
    "Celu": ("Max(x, 0) + Min(0, alpha * (Exp(x / alpha) - 1))", "Add Div Exp Max Min Mul Sub"),
    "Col2Im": ("ConvTranspose with a constant one-hot kernel", "ConvTranspose"),
    "Compress": ("Gather with constant indices", "Gather"),
    "ConvInteger": (_QDQ, "Conv DequantizeLinear QuantizeLinear"),
    "CumSum": ("MatMul with a constant triangular matrix of ones", "MatMul"),
    "DepthToSpace": ("Reshape, Transpose, Reshape; or ConvTranspose", "Reshape Transpose"),
    "DynamicQuantizeLinear": (_QDQ, "DequantizeLinear QuantizeLinear"),
    "Einsum": ("Transpose and MatMul, or Mul and ReduceSum", "MatMul Mul ReduceSum Transpose"),
    "Equal": (f"{_MASK}: 1 - Clip(Abs(a - b), 0, 1), exact for whole numbers", "Abs Clip Sub"),
    "EyeLike": ("store the matrix as a Constant", "Constant"),
    "Floor": ("integers: Div in int64; floats >= 0: Cast to int64 and back", "Cast Div"),
    "GatherElements": ("GatherND with constant indices", "GatherND"),
    "Greater": (f"{_MASK}: Clip((a - b) * k, 0, 1), k large, exact where a - b is 0 or at least 1/k", "Clip Mul Sub"),
    "GreaterOrEqual": (f"{_MASK}: 1 - Clip((b - a) * k, 0, 1), k large", "Clip Mul Sub"),
    "GridSample": ("Resize where the grid only scales; a constant warp as Gather on the flattened image", "Gather Resize"),
    "GroupNormalization": (
        "Reshape to [N, groups, -1], InstanceNormalization, Reshape back, Mul, Add",
        "Add InstanceNormalization Mul Reshape",
    ),
    "IsInf": ("drop the guard: clamp with Clip", "Clip"),
    "IsNaN": ("drop the guard: clamp the divisor with Max", "Max"),
    "Less": (f"{_MASK}: Clip((b - a) * k, 0, 1), k large, exact where b - a is 0 or at least 1/k", "Clip Mul Sub"),
    "LessOrEqual": (f"{_MASK}: 1 - Clip((a - b) * k, 0, 1), k large", "Clip Mul Sub"),
    "LogSoftmax": (
        "Log(Softmax(x)); stable: d = x - ReduceMax(x), d - Log(ReduceSum(Exp(d)))",
        "Exp Log ReduceMax ReduceSum Sub",
    ),
    "LpNormalization": ("x / Sqrt(ReduceSum(x * x))", "Div Mul ReduceSum Sqrt"),
    "MatMulInteger": (_QDQ, "DequantizeLinear MatMul QuantizeLinear"),
    "MeanVarianceNormalization": ("InstanceNormalization with scale 1 and bias 0", "InstanceNormalization"),
    "Mish": ("x * Tanh(Softplus(x))", "Mul Softplus Tanh"),
    "Mod": ("integers >= 0: a - (a Div b) * b in int64", "Div Mul Sub"),
    "NonZero": ("multiply by the mask in float instead of picking positions", "Mul"),
    "Not": (f"{_MASK}: 1 - m", "Sub"),
    "OneHot": ("Gather rows of a constant identity matrix", "Gather"),
    "Or": (f"{_MASK}: Max(m, n)", "Max"),
    "QLinearConv": (_QDQ, "Conv DequantizeLinear QuantizeLinear"),
    "QLinearMatMul": (_QDQ, "DequantizeLinear MatMul QuantizeLinear"),
    "RMSNormalization": ("x / Sqrt(ReduceMean(x * x) + eps) * scale", "Add Div Mul ReduceMean Sqrt"),
    "Range": ("a Constant of the longest range, cut with Slice", "Constant Slice"),
    "ReduceL1": ("ReduceSum(Abs(x))", "Abs ReduceSum"),
    "ReduceL2": ("Sqrt(ReduceSum(x * x))", "Mul ReduceSum Sqrt"),
    "ReduceLogSum": ("Log(ReduceSum(x))", "Log ReduceSum"),
    "ReduceLogSumExp": ("m = ReduceMax(x), m + Log(ReduceSum(Exp(x - m)))", "Add Exp Log ReduceMax ReduceSum Sub"),
    "ReduceSumSquare": ("ReduceSum(x * x)", "Mul ReduceSum"),
    "ReverseSequence": ("Slice with step -1", "Slice"),
    "Round": ("floats >= 0: Cast(x + 0.5) to int64 and back (halves go up)", "Add Cast"),
    "Scan": ("Loop with a Constant trip count, or unroll the steps", "Constant Loop"),
    "ScatterElements": ("ScatterND with constant indices", "ScatterND"),
    "Sign": ("Clip(x * k, -1, 1), k large, exact where x is 0 or at least 1/k", "Clip Mul"),
    "Size": ("ReduceProd(Shape(x))", "ReduceProd Shape"),
    "SpaceToDepth": ("Reshape, Transpose, Reshape; or Conv with stride", "Reshape Transpose"),
    "Split": ("one Slice per part; before a split, two Convs", "Slice"),
    "SplitToSequence": ("one Slice per part", "Slice"),
    "Swish": ("x * Sigmoid(x)", "Mul Sigmoid"),
    "ThresholdedRelu": ("x * Clip((x - alpha) * k, 0, 1), k large", "Clip Mul Sub"),
    "Tile": ("Concat of the copies, or Unsqueeze and Expand", "Concat Expand Unsqueeze"),
    "TopK": ("ReduceMax for k = 1; otherwise rank outside the graph", "ReduceMax"),
    "Trilu": ("Mul by a constant 0/1 mask", "Mul"),
    "Upsample": ("Resize with mode nearest or linear", "Resize"),
    "Where": ("m * a + (1 - m) * b with the mask in float (Cast)", "Add Cast Mul Sub"),
    "Xor": (f"{_MASK}: Abs(m - n)", "Abs Sub"),
}
REMEDIES |= dict.fromkeys(("GRU", "LSTM", "RNN"), (_GATES, "Add MatMul Mul Sigmoid Tanh"))
REMEDIES |= dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), (_STATE, ""))
REMEDIES |= dict.fromkeys(("SequenceAt", "SequenceConstruct", "ConcatFromSequence"), (_TENSORS, "Concat Slice"))
_RANDOM = ("Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
REMEDIES |= dict.fromkeys(_RANDOM, (_FIXED, "Constant"))


def remedy(op_type: str, allowed: Allowlist) -> str:
    """What to use instead of `op_type` under the list `allowed`; empty if no rewrite is known."""
    text, needs = REMEDIES.get(op_type, ("", ""))
    if text and all(op in allowed for op in needs.split()):
        return text
    other_case = _by_case(allowed).get(op_type.casefold())
    return f"the list has '{other_case}'; names are compared case by case" if other_case else ""


@functools.cache
def _by_case(allowed: Allowlist) -> dict[str, str]:
    """A listed operator by its name without case, the first of several: a file may ask for 500,000."""
    return {op.casefold(): op for op in sorted(allowed.ops, reverse=True)}

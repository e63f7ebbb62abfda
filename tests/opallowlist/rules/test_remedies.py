"""Remedies: offered only out of what the list has, and, where they claim to be exact, computing the same."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from distill.opallowlist import Allowlist, check, load_list
from distill.opallowlist.rules.remedies import REMEDIES, remedy


def test_every_remedy_is_made_of_listed_operators():
    listed = load_list("libvmaf")
    for op, (text, needs) in REMEDIES.items():
        assert op not in listed, f"{op} needs no remedy"
        assert set(needs.split()) <= listed.ops, op
        assert text and not text.endswith("."), op


def test_remedies_are_for_operators_that_exist():
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(REMEDIES) <= names


def test_every_operator_that_the_facts_call_easy_to_trip_over_has_one():
    names = """Split Where Equal Less Greater And Or Not Floor Ceil Round Sign Mod Range Tile Size DepthToSpace SpaceToDepth
    Upsample GridSample Einsum LSTM GRU RNN Scan TopK ArgMax NonZero CumSum OneHot Trilu ReduceL1 ReduceL2 ReduceSumSquare
    ReduceLogSumExp LogSoftmax Mish Celu ThresholdedRelu GroupNormalization CastLike DynamicQuantizeLinear ConvInteger
    MatMulInteger QLinearConv QLinearMatMul OptionalHasElement SequenceConstruct"""
    listed = load_list("libvmaf")
    assert all(remedy(name, listed) for name in names.split())
    assert remedy("Hardmax", listed) == ""


def test_a_remedy_that_the_list_does_not_allow_is_not_offered():
    small = Allowlist("small", frozenset(["Conv", "relu"]))
    assert remedy("Where", small) == ""
    assert remedy("Relu", small) == "the list has 'relu'; names are compared case by case"


EXACT = {
    # operator: (as it was, as the remedy says, inputs); the same result on the inputs given
    "And": ("b = Cast <to = 9> (m) d = Cast <to = 9> (o) c = And (b, d) y = Cast <to = 1> (c)", "y = Mul (m, o)"),
    "Ceil": (
        "y = Ceil (p)",
        "i = Cast <to = 7> (p) c = Cast <to = 1> (i) d = Sub (p, c) e = Mul (d, k) f = Clip (e, zero, one) y = Add (c, f)",
    ),
    "Celu": ("y = Celu (x)", "a = Max (x, zero) e = Exp (x) f = Sub (e, one) g = Min (zero, f) y = Add (a, g)"),
    "DepthToSpace": (
        "y = DepthToSpace <blocksize = 2> (x)",
        "a = Reshape (x, six) b = Transpose <perm = [0, 3, 4, 1, 5, 2]> (a) y = Reshape (b, out)",
    ),
    "Equal": ("b = Equal (n, one) y = Cast <to = 1> (b)", "d = Sub (n, one) a = Abs (d) c = Clip (a, zero, one) y = Sub (one, c)"),
    "Floor": ("y = Floor (p)", "i = Cast <to = 7> (p) y = Cast <to = 1> (i)"),
    "Greater": ("b = Greater (n, one) y = Cast <to = 1> (b)", "d = Sub (n, one) e = Mul (d, k) y = Clip (e, zero, one)"),
    "GreaterOrEqual": (
        "b = GreaterOrEqual (n, one) y = Cast <to = 1> (b)",
        "d = Sub (one, n) e = Mul (d, k) c = Clip (e, zero, one) y = Sub (one, c)",
    ),
    "Less": ("b = Less (n, one) y = Cast <to = 1> (b)", "d = Sub (one, n) e = Mul (d, k) y = Clip (e, zero, one)"),
    "LessOrEqual": (
        "b = LessOrEqual (n, one) y = Cast <to = 1> (b)",
        "d = Sub (n, one) e = Mul (d, k) c = Clip (e, zero, one) y = Sub (one, c)",
    ),
    "LogSoftmax": ("y = LogSoftmax <axis = 1> (x)", "s = Softmax <axis = 1> (x) y = Log (s)"),
    "Mish": ("y = Mish (x)", "a = Softplus (x) b = Tanh (a) y = Mul (x, b)"),
    "Not": ("b = Cast <to = 9> (m) c = Not (b) y = Cast <to = 1> (c)", "y = Sub (one, m)"),
    "Or": ("b = Cast <to = 9> (m) d = Cast <to = 9> (o) c = Or (b, d) y = Cast <to = 1> (c)", "y = Max (m, o)"),
    "ReduceL1": ("y = ReduceL1 (x, ax)", "a = Abs (x) y = ReduceSum (a, ax)"),
    "ReduceL2": ("y = ReduceL2 (x, ax)", "a = Mul (x, x) b = ReduceSum (a, ax) y = Sqrt (b)"),
    "ReduceLogSumExp": (
        "y = ReduceLogSumExp (x, ax)",
        "m0 = ReduceMax (x, ax) d = Sub (x, m0) e = Exp (d) s = ReduceSum (e, ax) l = Log (s) y = Add (m0, l)",
    ),
    "ReduceSumSquare": ("y = ReduceSumSquare (x, ax)", "a = Mul (x, x) y = ReduceSum (a, ax)"),
    "Round": ("y = Round (p)", "a = Add (p, half) i = Cast <to = 7> (a) y = Cast <to = 1> (i)"),
    "Sign": ("y = Sign (n)", "e = Mul (n, k) y = Clip (e, minus, one)"),
    "Size": ("s = Size (x) y = Cast <to = 1> (s)", "s = Shape (x) t = ReduceProd <keepdims = 0> (s) y = Cast <to = 1> (t)"),
    "ThresholdedRelu": ("y = ThresholdedRelu <alpha = 1.0> (n)", "d = Sub (n, one) e = Mul (d, k) c = Clip (e, zero, one) y = Mul (n, c)"),
    "Where": ("b = Cast <to = 9> (m) y = Where (b, x, n)", "a = Mul (m, x) i = Sub (one, m) c = Mul (i, n) y = Add (a, c)"),
    "Xor": ("b = Cast <to = 9> (m) d = Cast <to = 9> (o) c = Xor (b, d) y = Cast <to = 1> (c)", "e = Sub (m, o) y = Abs (e)"),
    "CumSum": ("y = CumSum (x, three)", "y = MatMul (x, triangle)"),
    "Mod": ("y = Mod (q, r)", "a = Div (q, r) b = Mul (a, r) y = Sub (q, b)"),
}  # fmt: skip
# x any float, p float >= 0, n whole floats, m and o 0/1 masks, q whole int64
HEAD = '<ir_version: 8, opset_import: ["" : 18]>'
GRAPH = """agraph (float[1,4,3,5] x, float[1,4,3,5] p, float[1,4,3,5] n, float[1,4,3,5] m, float[1,4,3,5] o, int64[4] q) => (y)
<float zero = {0}, float one = {1}, float minus = {-1}, float half = {0.5}, float k = {1000000}, int64[1] ax = {1},
 int64[6] six = {1, 2, 2, 1, 3, 5}, int64[4] out = {1, 1, 6, 10}, int64 three = {3}, int64 r = {3}> """


@pytest.mark.parametrize("op", EXACT)
def test_exact_rewrites_compute_the_same_and_pass_the_gate(op):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 3, 5)).astype("float32")
    whole = rng.integers(-3, 4, x.shape).astype("float32")
    mask, other = (rng.integers(0, 2, x.shape).astype("float32") for _ in range(2))
    feeds = {"x": x, "p": np.abs(x) * 3, "n": whole, "m": mask, "o": other, "q": np.array([0, 5, 6, 7])}
    before, after = (onnx.parser.parse_model(f"{HEAD} {GRAPH} {{ {nodes} }}") for nodes in EXACT[op])
    for model in (before, after):
        triangle = np.triu(np.ones((5, 5), "float32"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(triangle, "triangle"))
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    report = check(before)
    assert op in {violation.op_type for violation in report.violations}
    assert check(after).ok, str(check(after).violations)
    expected, got = (ReferenceEvaluator(model).run(None, feeds)[0] for model in (before, after))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

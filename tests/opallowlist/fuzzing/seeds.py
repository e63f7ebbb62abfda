"""The models that are mutated: small ones in ONNX's own text, the shipped students, and the public node tests of onnx."""

import warnings
import zipfile
from functools import cache
from pathlib import Path

import onnx
import onnx.parser
from onnx import TensorProto, helper

from tests.opallowlist.fuzzing.models import LISTED, graphs

RELEASE = Path(__file__).parents[3] / "students" / "release"

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'

# One story each. Initializers, Constants and captured names are where mutations look for a place.
TEXTS = {
    "image": """
agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map) <float[1,3,1,1] w = {0.1, 0.1, 0.1}, float[1] b = {0.5}> {
  c = Conv <kernel_shape = [1, 1]> (input, w, b)
  saliency_map = Sigmoid (c)
}""",
    "step": """
agraph (float[1,3,H,W] input, float[1,1,h,w] state_in) => (float[1,1,H,W] saliency_map, float[1,1,p,q] state_out)
<float[1,3,1,1] k = {0.1, 0.1, 0.1}, float[1,1,1,1] state_in = {0}, float decay = {0.5}> {
  c = Conv (input, k)
  kept = Mul (state_in, decay)
  state_out = Add (c, kept)
  saliency_map = Sigmoid (state_out)
}""",
    "resize": """
agraph (float[1,3,H,W] input) => (float[1,3,H,W] y)
<int64[1] two = {2}, int64[1] four = {4}, int64[2] ones = {1, 3}> {
  hw = Shape (input)
  part = Slice (hw, two, four)
  half = Div (part, two)
  sizes = Concat <axis = 0> (ones, half)
  small = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (input, , , sizes)
  full = Concat <axis = 0> (ones, part)
  y = Resize <mode = "nearest"> (small, , , full)
}""",
    "constants": """
agraph (float[N,4] x) => (float[N,2] y, float[3] v, int64[3] w) {
  a = Constant <value = float[4,2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
  m = MatMul (x, a)
  s = Constant <value_float = 2.0> ()
  y = Mul (m, s)
  v = Constant <value_floats = [1.0, 2.0, 3.0]> ()
  w = Constant <value_ints = [1, 2, 3]> ()
}""",
    "if": """
agraph (float[1,3,H,W] x, bool cond) => (float[1,3,H,W] y) <float k = {2}> {
  a = Relu (x)
  b = If (cond) <
    then_branch = then () => (t) { t = Mul (a, k) },
    else_branch = other () => (e) <float half = {0.5}> {
      u = Identity (a)
      e = If (cond) <
        then_branch = inner () => (tt) { tt = Mul (u, half) },
        else_branch = last () => (ee) { ee = Tanh (u) }> }>
  y = Sigmoid (b)
}""",
    "loop": """
agraph (float[1,3,H,W] x) => (float[1,3,H,W] y, int64 iterations) <bool cond = {1}, int64 zero = {0}> {
  trips = Constant <value = int64 {3}> ()
  y, iterations = Loop (trips, cond, x, zero) <
    body = body (int64 i, bool go, float[1,3,H,W] carried, int64 n) => (bool again, float[1,3,H,W] next, int64 m)
      <int64 one = {1}> {
      again = Identity (go)
      next = Relu (carried)
      m = Add (n, one)
    }>
}""",
    "nested_loops": """
agraph (float[2] x) => (float[2] y, int64 iterations) <bool cond = {1}, int64 zero = {0}> {
  trips = Constant <value = int64 {2}> ()
  y, iterations = Loop (trips, cond, x, zero) <
    body = outer (int64 i, bool go, float[2] a, int64 n) => (bool again, float[2] b, int64 m) {
      again = Identity (go)
      inner = Constant <value = int64 {3}> ()
      b, m = Loop (inner, go, a, n) <
        body = inner (int64 j, bool go2, float[2] c, int64 p) => (bool again2, float[2] d, int64 q) <int64 one = {1}> {
          again2 = Identity (go2)
          d = Neg (c)
          q = Add (p, one)
        }>
    }>
}""",
    "quantized": """
agraph (float[1,3,H,W] x) => (float[1,2,H,W] y)
<float scale = {0.1}, uint8 zero = {128}, int8[2,3,1,1] w = {1, 2, 3, 4, 5, 6}, float ws = {0.02}, int8 wz = {0}> {
  q = QuantizeLinear (x, scale, zero)
  d = DequantizeLinear (q, scale, zero)
  wd = DequantizeLinear (w, ws, wz)
  y = Conv (d, wd)
}""",
    "classifier": """
agraph (float[N,3,8,8] x) => (float[N,2] y)
<float[3] one = {1, 1, 1}, float[3] none = {0, 0, 0}, float[2,3] g = {1, 2, 3, 4, 5, 6}, float[2] bias = {0, 1}, float pad = {0},
 int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}> {
  n = BatchNormalization <epsilon = 0.001> (x, one, none, none, one)
  p = Pad <mode = "constant"> (n, pads, pad)
  a = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (p)
  mp = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a)
  u = GlobalAveragePool (mp)
  f = Flatten <axis = 1> (u)
  r = Gemm <transB = 1, alpha = 0.5> (f, g, bias)
  y = Softmax <axis = -1> (r)
}""",
    "shapes": """
agraph (float[2,3,4] x) => (float[2,12] y, float[3,2,4] z, float[4] v, float[2,3,1] u)
<int64[2] flat = {2, -1}, int64[1] four = {4}, int64[1] last = {2}, int64[1] start = {0}, int64[1] end = {1}, int64[2] at = {0, 1}> {
  y = Reshape (x, flat)
  z = Transpose <perm = [1, 0, 2]> (x)
  c = ConstantOfShape <value = float[1] {1.5}> (four)
  e = Expand (c, four)
  g = Gather <axis = 0> (x, start)
  s = Squeeze (g, start)
  n = Unsqueeze (s, start)
  gd = GatherND (x, at)
  v = Add (gd, e)
  u = ReduceMean <axes = [2], keepdims = 1> (x)
}""",
    "convolutions": """
agraph (float[1,2,8,8] x) => (float[1,2,16,16] y, float[1,2,8,8] d)
<float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[2,2,2,2] t = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8},
 float lo = {0}, float hi = {6}> {
  c = Conv <group = 2, pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]> (x, w)
  r = Clip (c, lo, hi)
  d = HardSwish (r)
  y = ConvTranspose <strides = [2, 2]> (d, t)
}""",
}


def storage_model() -> onnx.ModelProto:
    """A model whose initializers use every storage field of a tensor, each tensor an output."""
    kinds = {
        "float_data": (TensorProto.FLOAT, [1.0, 2.0]),
        "int32_data": (TensorProto.INT32, [3, -4]),
        "int8_in_int32": (TensorProto.INT8, [3, -4]),
        "bool_in_int32": (TensorProto.BOOL, [True, False]),
        "float16_in_int32": (TensorProto.FLOAT16, [1.0, 2.0]),
        "int64_data": (TensorProto.INT64, [5, -6]),
        "uint64_data": (TensorProto.UINT64, [7, 8]),
        "uint32_in_uint64": (TensorProto.UINT32, [9, 10]),
        "double_data": (TensorProto.DOUBLE, [0.5, 0.25]),
        "string_data": (TensorProto.STRING, [b"a", b"b"]),
    }
    tensors = [helper.make_tensor(name, dtype, [2], values) for name, (dtype, values) in kinds.items()]
    tensors.append(helper.make_tensor("raw", TensorProto.FLOAT, [2], b"\0\0\x80?\0\0\0\0", raw=True))
    tensors.append(helper.make_tensor("no_elements", TensorProto.FLOAT, [0], []))
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"]) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(f"{t.name}_out", t.data_type, list(t.dims)) for t in tensors]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    nodes.append(helper.make_node("Add", ["x", "raw"], ["y"]))
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]))
    graph = helper.make_graph(nodes, "storage", [x], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@cache
def small() -> dict[str, bytes]:
    """Name -> file. The gate and ONNX Runtime accept each (a test says so)."""
    models = {name: onnx.parser.parse_model(HEADER + text) for name, text in TEXTS.items()}
    models["storage"] = storage_model()
    return {name: model.SerializeToString() for name, model in models.items()}


@cache
def shipped() -> dict[str, bytes]:
    """The student's two files, 1 MB each."""
    return {path.name: path.read_bytes() for path in sorted(RELEASE.glob("*.onnx"))}


@cache
def public() -> dict[str, bytes]:
    """The node tests in the installed onnx package that have listed operators and opsets. Collecting them takes 3 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow is part of their reference values
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    models = {case.name: case.model for case in cases if case.model is not None and not case.model.functions}
    return {
        name: model.SerializeToString()
        for name, model in models.items()
        if all(7 <= entry.version <= 21 and not entry.domain for entry in model.opset_import)
        and all(node.op_type in LISTED and not node.domain for graph in graphs(model) for node in graph.node)
    }


@cache
def pool(*, public_too: bool) -> list[tuple[str, bytes]]:
    """(Name, file) to draw from: mostly small ones, whose every byte counts."""
    drawn = list(small().items()) * 3 + list(shipped().items())
    return [*drawn * 20, *public().items()] if public_too else drawn


def save_pool(files: list[tuple[str, bytes]], path: Path) -> None:
    """For `load_pool`: a worker that starts again has no 3 s to collect them."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(files):
            archive.writestr(f"{number:06} {name}", data)


def load_pool(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(name.partition(" ")[2], archive.read(name)) for name in archive.namelist()]

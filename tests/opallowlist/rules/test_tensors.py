"""Data fits its shape in every storage field: what onnx writes is accepted, and nothing shorter, longer, elsewhere or absent."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from distill.opallowlist.reading import wire
from distill.opallowlist.rules.tensors import STORAGE, data_problem
from tests.opallowlist.reading.test_wire import tagged, varint

FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")

repeatable = settings(deadline=None, derandomize=True)


def problem(tensor: TensorProto | bytes) -> str:
    data = tensor if isinstance(tensor, bytes) else tensor.SerializeToString()
    return data_problem(wire.decode(tagged(7, tagged(5, data))).graph.initializer[0])


@st.composite
def tensors(draw) -> TensorProto:
    """Of any element type and shape, with random data where onnx puts it, raw or not."""
    dtype = draw(st.sampled_from(sorted(STORAGE)))
    dims = draw(st.lists(st.integers(0, 4), max_size=4))
    size = math.prod(dims)
    if dtype == TensorProto.STRING:
        return helper.make_tensor("t", dtype, dims, [draw(st.binary(max_size=3)) for _ in range(size)])
    bits = np.frombuffer(draw(st.binary(min_size=8 * size, max_size=8 * size)), "uint8").reshape(size, 8)
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    if dtype in (TensorProto.UINT4, TensorProto.INT4):
        array = (bits[:, 0] % 8).astype(numpy_type)
    elif dtype == TensorProto.BOOL:
        array = bits[:, 0] > 127
    else:
        array = np.ascontiguousarray(bits[:, : numpy_type.itemsize]).view(numpy_type)[:, 0]
    if draw(st.booleans()):
        return numpy_helper.from_array(array.reshape(dims), "t")
    if numpy_type.kind in "iub":
        return helper.make_tensor("t", dtype, dims, array.tolist())
    values = array.view(f"uint{8 * numpy_type.itemsize}") if numpy_type.itemsize < 4 else array
    tensor = TensorProto(name="t", data_type=dtype, dims=dims)
    getattr(tensor, STORAGE[dtype][1]).extend(values.tolist())
    return tensor


@repeatable
@given(tensors())
def test_what_onnx_writes_is_accepted(tensor):
    assert problem(tensor) == ""
    onnx.checker.check_tensor(tensor)
    if tensor.data_type != TensorProto.STRING:
        assert numpy_helper.to_array(tensor).shape == tuple(tensor.dims)


@repeatable
@given(tensors(), st.integers(1, 40), st.data())
def test_data_that_does_not_fit_is_refused(tensor, more, data):
    field = "raw_data" if tensor.HasField("raw_data") else STORAGE[tensor.data_type][1]
    values = list(getattr(tensor, field))
    kind = data.draw(
        st.sampled_from(["short", "long", "absent", "negative", "huge", "unknown type", "two fields", "other field"])
    )
    if kind in ("short", "absent", "other field") and not values:
        return
    changed = TensorProto()
    changed.CopyFrom(tensor)
    if kind in ("short", "long", "absent"):
        size = {"short": len(values) - 1, "long": len(values) + more, "absent": 0}[kind]
        filler = b"s" if field == "string_data" else 0
        new = (values + [filler] * more)[:size]
        changed.ClearField(field)
        if field == "raw_data":
            changed.raw_data = bytes(new)
        else:
            getattr(changed, field).extend(new)
    elif kind == "negative":
        changed.dims.append(-1)
    elif kind == "huge":
        changed.dims.extend([1 << 40, 0, 1 << 40])
    elif kind == "unknown type":
        changed.data_type = data.draw(st.sampled_from([0, 14, 15, 23, 99, -1]))
    else:
        if kind == "other field":
            changed.ClearField(field)
        other = data.draw(st.sampled_from([name for name in FIELDS if name != STORAGE[tensor.data_type][1]]))
        getattr(changed, other).extend([b"s" if other == "string_data" else 1] * max(len(values), 1))
    assert problem(changed), (kind, tensor)


def test_the_types_are_those_of_onnx_up_to_ir_10():
    later = {"FLOAT4E2M1", "FLOAT8E8M0", "UINT2", "INT2", "FLOAT6E2M3", "FLOAT6E3M2"}
    left_out = {"UNDEFINED", "COMPLEX64", "COMPLEX128"} | later
    assert {number for name, number in TensorProto.DataType.items() if name not in left_out} == set(STORAGE)
    for dtype, (bits, field) in STORAGE.items():
        assert helper.tensor_dtype_to_field(dtype) == field
        if bits >= 8:
            assert helper.tensor_dtype_to_np_dtype(dtype).itemsize * 8 == bits


def raw(dtype: int, dims: list[int], size: int) -> TensorProto:
    return TensorProto(name="t", data_type=dtype, dims=dims, raw_data=bytes(size))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (raw(TensorProto.FLOAT, [2, 3], 24), ""),
        (raw(TensorProto.INT8, [0], 0), ""),
        (raw(TensorProto.UINT4, [3], 2), ""),
        (TensorProto(data_type=1, dims=[0]), ""),
        (TensorProto(data_type=1, dims=[1] * 64, float_data=[1]), ""),
        (raw(TensorProto.FLOAT, [2, 3], 23), "23 bytes for the shape [2, 3], which needs 24"),
        (raw(TensorProto.UINT4, [3], 3), "3 bytes for the shape [3], which needs 2"),
        (raw(TensorProto.FLOAT, [-2, -3], 24), "a negative axis"),
        (raw(TensorProto.FLOAT, [1 << 62, 1 << 62, 0], 0), "more elements than an int64 counts"),
        (raw(TensorProto.STRING, [1], 1), "strings as raw data"),
        (raw(99, [1], 1), "element type 99"),
        (TensorProto(data_type=1), "no data for the shape []"),
        (TensorProto(data_type=1, dims=[1], raw_data=b"", float_data=[1]), "raw_data and in float_data"),
        (TensorProto(data_type=1, dims=[1] * 65, float_data=[1]), "65 axes"),
        (TensorProto(data_type=1, dims=[1], float_data=[1], segment=TensorProto.Segment(begin=0, end=1)), "segments"),
        (TensorProto(data_type=12, dims=[1], int32_data=[1]), "it belongs into uint64_data or raw_data"),
        (TensorProto(data_type=22, dims=[3], int32_data=[1]), "1 values in int32_data for the shape [3], which needs 2"),
    ],
)
def test_reasons(tensor, why):
    assert why in problem(tensor) and bool(problem(tensor)) == bool(why)


@pytest.mark.parametrize(("dtype", "largest"), [(10, 0xFFFF), (16, 0xFFFF), (17, 0xFF), (20, 0xFF)])
def test_small_floats_are_stored_as_unsigned_numbers(dtype, largest):
    """ONNX Runtime refuses others: data overflow."""
    for value in (0, 127, 128, 16383, 16384, largest):
        if value <= largest:
            assert problem(TensorProto(data_type=dtype, dims=[3], int32_data=[1, value, 200])) == ""
    for value in (largest + 1, 1 << 21, -1):
        assert "more than" in problem(TensorProto(data_type=dtype, dims=[3], int32_data=[1, value, 200]))
    assert problem(TensorProto(data_type=3, dims=[1], int32_data=[-1])) == ""


PIECES = {
    # element type, one packed field, the same in pieces
    "floats": (1, tagged(4, b"abcdefgh"), b"\x25abcd\x25efgh"),
    "floats, mixed": (1, tagged(4, b"abcdefgh"), b"\x25abcd" + tagged(4, b"efgh") + tagged(4, b"")),
    "packed twice": (1, tagged(4, b"abcdefgh"), tagged(4, b"abcd") + tagged(4, b"efgh")),
    "doubles": (11, tagged(10, b"abcdefgh" * 2), (varint(10 << 3 | 1) + b"abcdefgh") * 2),
    "int64": (7, tagged(7, b"\x01\x80\x01"), b"\x38\x01\x38\x80\x01"),
    "int32, mixed": (6, tagged(5, b"\x01\x80\x01"), tagged(5, b"\x01") + b"\x28\x80\x01"),
    "uint64": (13, tagged(11, b"\x01\x02"), b"\x58\x01\x58\x02"),
    "dims": (2, tagged(5, b"\x01\x02"), b"\x28\x01\x28\x02"),
}


@pytest.mark.parametrize("name", PIECES)
def test_repeated_numbers_may_come_in_pieces(name):
    dtype, packed, pieces = PIECES[name]
    head = varint(2 << 3) + varint(dtype)
    for dims in (b"\x08\x02", b"\x08\x01\x08\x02", tagged(1, b"\x01\x02"), b"\x08\x01" + tagged(1, b"\x02")):
        whole, split = (TensorProto.FromString(head + dims + data) for data in (packed, pieces))
        assert whole == split
        ours = [wire.decode(tagged(7, tagged(5, head + dims + data))).graph.initializer[0] for data in (packed, pieces)]
        assert ours[0] == ours[1] and list(ours[0].dims) == list(whole.dims)
        assert problem(head + dims + pieces) == ""
    assert problem(head + b"\x08\x03" + pieces)

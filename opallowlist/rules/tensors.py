"""Whether a tensor's data fits its shape: one storage field, the one of its element type, with as many elements as it says;
and whether a declared type is one that ONNX Runtime has.

Readers differ where it does not. onnx.checker looks for too few values only, and not at packed types; ONNX Runtime refuses, or
reads on. Every check is linear in the tensor's bytes in the file: nothing is decoded, and no product is larger than an int64.
Standard library only.
"""

import math
import re
from collections.abc import Sequence

from distill.opallowlist.reading.messages import Packed, Tensor, ValueType

INT64 = 7
STRING = 8
NO_TYPE = "no type"
MAX_RANK = 64
"""NumPy, and with it onnx.numpy_helper, reads no more axes."""
_MAX_ELEMENTS = (1 << 63) - 1

# TensorProto.DataType -> (bits of an element in raw_data, the field for elements that are not raw): the types of IR 10,
# the highest accepted, less complex numbers, which ONNX Runtime does not have.
STORAGE = {
    1: (32, "float_data"),
    2: (8, "int32_data"),
    3: (8, "int32_data"),
    4: (16, "int32_data"),
    5: (16, "int32_data"),
    6: (32, "int32_data"),
    INT64: (64, "int64_data"),
    STRING: (0, "string_data"),
    9: (8, "int32_data"),  # bool
    10: (16, "int32_data"),  # float16
    11: (64, "double_data"),
    12: (32, "uint64_data"),
    13: (64, "uint64_data"),
    16: (16, "int32_data"),  # bfloat16
    **dict.fromkeys(range(17, 21), (8, "int32_data")),  # float8
    **dict.fromkeys((21, 22), (4, "int32_data")),  # uint4 and int4: two elements in one int32
}
_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
_WIDTH = {"float_data": 4, "double_data": 8}

# Floats of 16 and 8 bits are stored as unsigned numbers; ONNX Runtime refuses larger ones. The varints that are too large (or
# longer than needed): three bytes hold 16 bits if the last is at most 3, two bytes hold 8 bits if the last is 1.
_TOO_LARGE = {
    16: re.compile(rb"[\x80-\xff]{3}|[\x80-\xff]{2}[\x04-\x7f]"),
    8: re.compile(rb"[\x80-\xff]{2}|[\x80-\xff][\x02-\x7f]"),
}
_SMALL_FLOATS = (10, 16, 17, 18, 19, 20)
_LAST_BYTES = bytes(range(0x80))  # each varint ends with one of these


def data_problem(tensor: Tensor) -> str:
    """Why the tensor's data does not fit its type and shape, as one clause; empty if it does."""
    if tensor.data_type not in STORAGE:
        return f"element type {tensor.data_type}; ONNX Runtime has 1 to 13 and 16 to 22"
    if tensor.segment is not None:
        return "a tensor stored in several segments"
    shape = _shown(tensor)
    if problem := _shape_problem(tensor.dims):
        return f"the shape {shape} has {problem}"
    elements = math.prod(tensor.dims)
    given = [name for name in _FIELDS if getattr(tensor, name)]
    if tensor.raw_data is not None:
        given.insert(0, "raw_data")
    if len(given) > 1:
        return f"data in {' and in '.join(given)}, and readers differ in which one counts"
    if not given:
        return f"no data for the shape {shape}" if elements else ""
    bits, field = STORAGE[tensor.data_type]
    if given[0] == "raw_data":
        assert tensor.raw_data is not None
        if not bits:
            return "strings as raw data"
        stored, needed, what = len(tensor.raw_data), -(-elements * bits // 8), "bytes"
    elif given[0] != field:
        return f"element type {tensor.data_type} in {given[0]}; it belongs into {field} or raw_data"
    else:
        stored, needed, what = _stored(tensor, field), -(-elements // 2) if bits == 4 else elements, f"values in {field}"
    if stored != needed:
        return f"{stored:,} {what} for the shape {shape}, which needs {needed:,}"
    if tensor.data_type in _SMALL_FLOATS and tensor.int32_data and _TOO_LARGE[bits].search(tensor.int32_data):
        return f"a value of more than {bits} bits in {field}"
    return ""


def _shape_problem(dims: Sequence[int]) -> str:
    """Bounds the product before it is made. An axis of 0 does not hide the size of the others: readers multiply in turn."""
    if len(dims) > MAX_RANK:
        return f"{len(dims):,} axes; NumPy reads at most {MAX_RANK}"
    if min(dims, default=0) < 0:
        return "a negative axis"
    if math.prod(dim for dim in dims if dim) > _MAX_ELEMENTS:
        return "more elements than an int64 counts"
    return ""


def _stored(tensor: Tensor, field: str) -> int:
    """The number of values in a field other than raw_data."""
    if field == "string_data":
        return tensor.string_data
    packed: Packed = getattr(tensor, field)
    assert packed is not None
    if field in _WIDTH:
        return len(packed) // _WIDTH[field]
    return len(packed) - len(packed.translate(None, _LAST_BYTES))


def _shown(tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims[:8]))
    return f"[{dims}, ...]" if len(tensor.dims) > 8 else f"[{dims}]"


def type_problem(declared: ValueType | None) -> tuple[str, str]:
    """The rule that the type breaks, and what it is; empty for a tensor, a sequence of tensors, or an optional of these."""
    if declared is not None and declared.optional is not None:
        declared = declared.optional.elem_type
    if declared is not None and declared.sequence is not None:
        declared = declared.sequence.elem_type
    if declared is None or declared == ValueType():
        return "value-type", NO_TYPE
    if declared.sparse_tensor is not None:
        return "sparse", "a sparse type"
    if declared.tensor is None:
        return "value-type", "a type that ONNX Runtime or the operators of the list do not have"
    if declared.tensor.elem_type not in STORAGE:
        return "value-type", f"the element type {declared.tensor.elem_type}; ONNX Runtime has 1 to 13 and 16 to 22"
    return "", ""

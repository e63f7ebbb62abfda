"""An ONNX file as its wire format: decoded without protobuf, so that a hostile file costs little and has one reading.

Three things that `onnx.load` cannot give a gate:

- Cost. Protobuf turns 2 bytes into 100: a 50 MiB file of empty nodes asks for gigabytes. Here the number of fields is
  bounded, and tensors stay views into the file.
- One reading. Protobuf lets the last of two `op_type` fields win where a hand-written scanner sees both. Here a
  single-valued field that comes twice is malformed, and so are groups and overlong varints, so that every reader agrees
  on what was checked.
- Start. Importing onnx takes 0.15 s of process time, more than the whole check.

`decode` knows every message of onnx.proto (IR 3 to 13), because a reader downstream would fail on damage in parts that
nothing here looks at. It keeps only the fields of the classes below. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_FIELDS = 1_000_000
"""Fields in one file. A graph of 5,000 nodes with debug metadata has about 300,000."""

MAX_NAME_BYTES = 65_535
"""Bytes of one name, operator or symbol. Tensors and documentation are not names."""

MAX_NESTING = 100
"""Messages inside messages: protobuf's own limit."""


class Malformed(ValueError):
    """The bytes are no ONNX protobuf, or one that readers would not agree on. `offset` is where, in bytes."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at byte {offset:,}")
        self.offset = offset


# What a model holds, as far as the gate reads it. Filled by `decode`, only read after that.


@dataclass(slots=True)
class Tensor:
    """A TensorProto; data fields are undecoded views into the file, None when absent."""

    name: str = ""
    dims: Sequence[int] = ()
    data_type: int = 0
    raw_data: memoryview | None = None
    float_data: memoryview | None = None
    int64_data: memoryview | None = None
    external_data: Sequence[StringPair] = ()
    data_location: int = 0


@dataclass(slots=True)
class StringPair:
    key: str = ""
    value: str = ""


@dataclass(slots=True)
class SparseTensor:
    values: Tensor | None = None
    indices: Tensor | None = None


@dataclass(slots=True)
class Dim:
    """One axis: `value` when static, `param` when symbolic, neither when unset."""

    value: int | None = None
    param: str | None = None


@dataclass(slots=True)
class Shape:
    dim: Sequence[Dim] = ()


@dataclass(slots=True)
class TensorType:
    elem_type: int = 0
    shape: Shape | None = None


@dataclass(slots=True)
class ValueType:
    """A TypeProto; `tensor` is None for sequences, maps, optionals and the rest."""

    tensor: TensorType | None = None


@dataclass(slots=True)
class Value:
    """A ValueInfoProto: a named graph input, output or intermediate."""

    name: str = ""
    type: ValueType | None = None


@dataclass(slots=True)
class Attribute:
    name: str = ""
    ref_attr_name: str = ""
    ints: Sequence[int] = ()
    s: memoryview | None = None
    t: Tensor | None = None
    g: Graph | None = None
    sparse_tensor: SparseTensor | None = None
    tensors: Sequence[Tensor] = ()
    graphs: Sequence[Graph] = ()
    sparse_tensors: Sequence[SparseTensor] = ()


@dataclass(slots=True)
class Node:
    name: str = ""
    op_type: str = ""
    domain: str = ""
    input: Sequence[str] = ()
    output: Sequence[str] = ()
    attribute: Sequence[Attribute] = ()


@dataclass(slots=True)
class Graph:
    name: str = ""
    node: Sequence[Node] = ()
    initializer: Sequence[Tensor] = ()
    sparse_initializer: Sequence[SparseTensor] = ()
    input: Sequence[Value] = ()
    output: Sequence[Value] = ()
    value_info: Sequence[Value] = ()


@dataclass(slots=True)
class OpsetImport:
    domain: str = ""
    version: int = 0


@dataclass(slots=True)
class Function:
    name: str = ""
    domain: str = ""
    node: Sequence[Node] = ()
    attribute_proto: Sequence[Attribute] = ()


@dataclass(slots=True)
class Training:
    initialization: Graph | None = None
    algorithm: Graph | None = None


@dataclass(slots=True)
class Model:
    ir_version: int = 0
    opset_import: Sequence[OpsetImport] = ()
    graph: Graph | None = None
    functions: Sequence[Function] = ()
    training_info: Sequence[Training] = ()


# onnx.proto as a table: message -> (class or None, {field number: "kind name"}), a repeated kind marked "*". A name
# that the class has is kept, any other only walked. Members of a `oneof` share the slot after the "|".

_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5  # protobuf wire types; 3 and 4 are groups, which ONNX never had

_SCHEMA: dict[str, tuple[Any, dict[int, str]]] = {
    "Model": (
        Model,
        {
            1: "int64 ir_version",
            2: "bytes producer_name",
            3: "bytes producer_version",
            4: "bytes domain",
            5: "int64 model_version",
            6: "bytes doc_string",
            7: "Graph graph",
            8: "OpsetImport* opset_import",
            14: "StringPair* metadata_props",
            20: "Training* training_info",
            25: "Function* functions",
            26: "DeviceConfiguration* configuration",
        },
    ),
    "DeviceConfiguration": (None, {1: "bytes name", 2: "int32 num_devices", 3: "bytes* device"}),
    "OpsetImport": (OpsetImport, {1: "str domain", 2: "int64 version"}),
    "StringPair": (StringPair, {1: "str key", 2: "str value"}),
    "Training": (
        Training,
        {
            1: "Graph initialization",
            2: "Graph algorithm",
            3: "StringPair* initialization_binding",
            4: "StringPair* update_binding",
        },
    ),
    "Function": (
        Function,
        {
            1: "str name",
            4: "bytes* input",
            5: "bytes* output",
            6: "bytes* attribute",
            7: "Node* node",
            8: "bytes doc_string",
            9: "OpsetImport* opset_import",
            10: "str domain",
            11: "Attribute* attribute_proto",
            12: "Value* value_info",
            13: "bytes overload",
            14: "StringPair* metadata_props",
        },
    ),
    "Graph": (
        Graph,
        {
            1: "Node* node",
            2: "str name",
            5: "Tensor* initializer",
            10: "bytes doc_string",
            11: "Value* input",
            12: "Value* output",
            13: "Value* value_info",
            14: "TensorAnnotation* quantization_annotation",
            15: "SparseTensor* sparse_initializer",
            16: "StringPair* metadata_props",
        },
    ),
    "TensorAnnotation": (None, {1: "bytes tensor_name", 2: "StringPair* quant_parameter_tensor_names"}),
    "Node": (
        Node,
        {
            1: "str* input",
            2: "str* output",
            3: "str name",
            4: "str op_type",
            5: "Attribute* attribute",
            6: "bytes doc_string",
            7: "str domain",
            8: "bytes overload",
            9: "StringPair* metadata_props",
            10: "NodeDevice* device_configurations",
        },
    ),
    "NodeDevice": (None, {1: "bytes configuration_id", 2: "Sharding* sharding_spec", 3: "int32 pipeline_stage"}),
    "Sharding": (
        None,
        {
            1: "bytes tensor_name",
            2: "int64* device",
            3: "IntIntList* index_to_device_group_map",
            4: "ShardedDim* sharded_dim",
        },
    ),
    "IntIntList": (None, {1: "int64 key", 2: "int64* value"}),
    "ShardedDim": (None, {1: "int64 axis", 2: "SimpleShardedDim* simple_sharding"}),
    "SimpleShardedDim": (None, {1: "int64 dim_value|dim", 2: "bytes dim_param|dim", 3: "int64 num_shards"}),
    "Attribute": (
        Attribute,
        {
            1: "str name",
            2: "fixed32 f",
            3: "int64 i",
            4: "bytes s",
            5: "Tensor t",
            6: "Graph g",
            7: "fixed32* floats",
            8: "int64* ints",
            9: "bytes* strings",
            10: "Tensor* tensors",
            11: "Graph* graphs",
            13: "bytes doc_string",
            14: "ValueType tp",
            15: "ValueType* type_protos",
            20: "int32 type",
            21: "str ref_attr_name",
            22: "SparseTensor sparse_tensor",
            23: "SparseTensor* sparse_tensors",
        },
    ),
    "Tensor": (
        Tensor,
        {
            1: "int64* dims",
            2: "int32 data_type",
            3: "Segment segment",
            4: "packed32 float_data",
            5: "packed_varint int32_data",
            6: "bytes* string_data",
            7: "packed_varint int64_data",
            8: "str name",
            9: "bytes raw_data",
            10: "packed64 double_data",
            11: "packed_varint uint64_data",
            12: "bytes doc_string",
            13: "StringPair* external_data",
            14: "int32 data_location",
            16: "StringPair* metadata_props",
        },
    ),
    "Segment": (None, {1: "int64 begin", 2: "int64 end"}),
    "SparseTensor": (SparseTensor, {1: "Tensor values", 2: "Tensor indices", 3: "int64* sparse_dims"}),
    "Value": (
        Value,
        {1: "str name", 2: "ValueType type", 3: "bytes doc_string", 4: "StringPair* metadata_props"},
    ),
    "ValueType": (
        ValueType,
        {
            1: "TensorType tensor|kind",
            4: "NestedType sequence_type|kind",
            5: "MapType map_type|kind",
            6: "bytes denotation",
            7: "OpaqueType opaque_type|kind",
            8: "TensorType sparse_tensor_type|kind",
            9: "NestedType optional_type|kind",
        },
    ),
    "NestedType": (None, {1: "ValueType elem_type"}),
    "MapType": (None, {1: "int32 key_type", 2: "ValueType value_type"}),
    "OpaqueType": (None, {1: "bytes domain", 2: "bytes name"}),
    "TensorType": (TensorType, {1: "int32 elem_type", 2: "Shape shape"}),
    "Shape": (Shape, {1: "Dim* dim"}),
    "Dim": (Dim, {1: "int64 value|dim", 2: "str param|dim", 3: "bytes denotation"}),
}

# How a field's bytes become a value.
_INT, _INT32, _FIXED, _STR, _BYTES, _PACKED_VARINT, _PACKED_FIXED, _PACKED_INTS, _MESSAGE = range(9)


@dataclass(slots=True)
class _Field:
    how: int
    name: str
    keep: bool
    """Whether the message's class has it."""
    once: str | None
    """The slot that may be filled once; None for repeated fields."""
    width: int = 0
    """Bytes per element of packed fixed-width data."""
    message: _Message | None = None


@dataclass(slots=True)
class _Message:
    make: Any
    """The class, None if the message is only walked."""
    by_tag: dict[int, _Field] = field(default_factory=dict)


_SCALARS: dict[str, list[tuple[int, int, int]]] = {
    # kind -> (wire type, how, element width); a repeated scalar comes packed or element by element, readers take both
    "int64": [(_VARINT, _INT, 0)],
    "int64*": [(_VARINT, _INT, 0), (_LEN, _PACKED_INTS, 0)],
    "int32": [(_VARINT, _INT32, 0)],
    "fixed32": [(_FIXED32, _FIXED, 4)],
    "fixed32*": [(_FIXED32, _FIXED, 4), (_LEN, _PACKED_FIXED, 4)],
    "str": [(_LEN, _STR, 0)],
    "str*": [(_LEN, _STR, 0)],
    "bytes": [(_LEN, _BYTES, 0)],
    "bytes*": [(_LEN, _BYTES, 0)],
    # Tensor data is declared packed and always written so, in one piece.
    "packed_varint": [(_LEN, _PACKED_VARINT, 0)],
    "packed32": [(_LEN, _PACKED_FIXED, 4)],
    "packed64": [(_LEN, _PACKED_FIXED, 8)],
}


def _compile() -> _Message:
    messages = {name: _Message(make) for name, (make, _) in _SCHEMA.items()}
    for message_name, (make, fields) in _SCHEMA.items():
        kept = set(make.__dataclass_fields__) if make else set()
        for number, spec in fields.items():
            kind, _, rest = spec.partition(" ")
            name, _, slot = rest.partition("|")
            once = None if kind.endswith("*") else slot or name
            for wire, how, width in _SCALARS.get(kind, [(_LEN, _MESSAGE, 0)]):
                target = messages[kind.rstrip("*")] if how == _MESSAGE else None
                messages[message_name].by_tag[number << 3 | wire] = _Field(how, name, name in kept, once, width, target)
    return messages["Model"]


_MODEL = _compile()

# Ten bytes hold 64 bits; a run of ten that all say "more follows" is longer than any varint.
_OVERLONG = re.compile(rb"[\x80-\xff]{10}")


def decode(data: bytes) -> Model:
    """The model in `data`, the whole content of an ONNX file.

    Iterative; time and memory are bounded by the file's size and by MAX_FIELDS, whatever lengths the bytes claim.
    Raises Malformed where protobuf would fail to parse, and also for groups, for a single-valued field given twice, for
    names that are not UTF-8, and beyond MAX_FIELDS, MAX_NAME_BYTES or MAX_NESTING.
    """
    view = memoryview(data)
    model = Model()
    fields_left = MAX_FIELDS
    # (object to fill or None, its message, start, end, depth); children are attached at once, so order does not matter
    todo: list[tuple[Any, _Message, int, int, int]] = [(model, _MODEL, 0, len(data), 0)]
    while todo:
        target, message, at, end, depth = todo.pop()
        by_tag = message.by_tag
        seen: set[str] = set()
        while at < end:
            start = at
            fields_left -= 1
            if fields_left < 0:
                raise Malformed(
                    f"more than {MAX_FIELDS:,} fields; no model that the downstream runs has as many", start
                )
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(data, start, end, 5)
            wire = tag & 7
            if not 8 <= tag <= 0xFFFFFFFF:
                raise Malformed("no field has number 0" if tag < 8 else "field number out of range", start)
            entry = by_tag.get(tag)
            value_start = at
            if wire == _LEN:
                length = data[at] if at < end else 0x80
                at += 1
                if length >= 0x80:
                    length, at = _varint(data, value_start, end, 5)
                value_start = at
                at += length
                if at > end:
                    raise Malformed(
                        f"truncated: a field claims {length:,} bytes where {end - value_start:,} are left", start
                    )
            elif wire == _VARINT:
                number, at = _varint(data, at, end, 10)
            elif wire == _FIXED32:
                at += 4
            elif wire == _FIXED64:
                at += 8
            else:
                raise Malformed("a protobuf group or unknown wire type, which ONNX does not have", start)
            if at > end:
                raise Malformed("truncated: a field ends beyond its message", start)
            if entry is None:
                continue
            if entry.once is not None:
                if entry.once in seen:
                    raise Malformed(
                        f"field '{entry.name}' is given twice, and readers differ in which one counts", start
                    )
                seen.add(entry.once)
            how = entry.how
            keep = entry.keep and target is not None
            if how == _MESSAGE:
                child = None
                submessage = entry.message
                assert submessage is not None
                if keep and submessage.make is not None:
                    child = submessage.make()
                    _put(target, entry, child)
                if depth >= MAX_NESTING:
                    raise Malformed(f"messages nested more than {MAX_NESTING} deep", start)
                if at > value_start:
                    todo.append((child, submessage, value_start, at, depth + 1))
            elif how == _STR:
                if keep:
                    if at - value_start > MAX_NAME_BYTES:
                        raise Malformed(f"'{entry.name}' is {at - value_start:,} bytes long", start)
                    try:
                        name = data[value_start:at].decode("utf-8")
                    except UnicodeDecodeError:
                        raise Malformed(f"'{entry.name}' is not UTF-8", start) from None
                    _put(target, entry, name)
            elif how == _INT:
                if keep:
                    _put(target, entry, number - (1 << 64) if number >> 63 else number)
            elif how == _INT32:
                # int32 and enum fields keep the low 32 bits of a longer varint; so does every protobuf reader.
                if keep:
                    number &= 0xFFFFFFFF
                    _put(target, entry, number - (1 << 32) if number >> 31 else number)
            elif how == _BYTES:
                if keep:
                    _put(target, entry, view[value_start:at])
            elif how == _PACKED_FIXED:
                if (at - value_start) % entry.width:
                    raise Malformed(f"truncated: '{entry.name}' is no whole number of elements", start)
                if keep:
                    _put(target, entry, view[value_start:at])
            elif how == _PACKED_VARINT:
                _check_varints(data, value_start, at, entry.name)
                if keep:
                    _put(target, entry, view[value_start:at])
            elif how == _PACKED_INTS:
                if keep:
                    while value_start < at:
                        fields_left -= 1
                        if fields_left < 0:
                            break  # said by the next field, or by the check after the loop
                        number, value_start = _varint(data, value_start, at, 10)
                        _put(target, entry, number - (1 << 64) if number >> 63 else number)
                else:
                    _check_varints(data, value_start, at, entry.name)
    if fields_left < 0:
        raise Malformed(f"more than {MAX_FIELDS:,} fields", len(data))
    return model


def varints(packed: memoryview, at_most: int) -> list[int]:
    """The first `at_most` int64 of packed varint data that `decode` has accepted."""
    data = bytes(packed[: 10 * at_most])
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) < at_most:
        number, at = _varint(data, at, len(data), 10)
        found.append(number - (1 << 64) if number >> 63 else number)
    return found


def _put(target: Any, entry: _Field, value: Any) -> None:
    if entry.once is not None:
        setattr(target, entry.name, value)
    elif values := getattr(target, entry.name):
        values.append(value)
    else:
        setattr(target, entry.name, [value])  # no list before it has an element: most stay empty


def _varint(data: bytes, at: int, end: int, longest: int) -> tuple[int, int]:
    start = at
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if at - start >= longest:
            raise Malformed("overlong varint", start)
    raise Malformed("truncated: a varint ends beyond its message", start)


def _check_varints(data: bytes, start: int, end: int, name: str) -> None:
    if end > start and data[end - 1] >= 0x80:
        raise Malformed(f"truncated: the last varint of '{name}' is cut", start)
    if _OVERLONG.search(data, start, end):
        raise Malformed(f"overlong varint in '{name}'", start)

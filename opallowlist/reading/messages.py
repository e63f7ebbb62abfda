"""The messages of onnx.proto: a class for each that the gate reads, and the table of all fields that `wire` decodes by.

`wire.decode` fills the objects; after that they are only read. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeAlias

Packed: TypeAlias = bytes | bytearray | None
"""Elements of a repeated number as protobuf packs them, undecoded; None when absent."""


@dataclass(slots=True)
class Tensor:
    """A TensorProto. Of strings only the number is kept."""

    name: str = ""
    dims: Sequence[int] = ()
    data_type: int = 0
    segment: Segment | None = None
    raw_data: bytes | None = None
    float_data: Packed = None
    double_data: Packed = None
    int32_data: Packed = None
    int64_data: Packed = None
    uint64_data: Packed = None
    string_data: int = 0
    external_data: Sequence[StringPair] = ()
    data_location: int = 0


@dataclass(slots=True)
class Segment:
    """A part of a tensor that is stored in several."""


@dataclass(slots=True)
class StringPair:
    key: str = ""
    value: str = ""


@dataclass(slots=True)
class Property:
    """A pair of the model's metadata, whose values may be long texts."""

    key: str = ""


@dataclass(slots=True)
class SparseTensor:
    values: Tensor | None = None


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
    """A TypeProto: one of the kinds is set."""

    tensor: TensorType | None = None
    sparse_tensor: TensorType | None = None
    sequence: NestedType | None = None
    optional: NestedType | None = None
    map: MapType | None = None
    opaque: OpaqueType | None = None


@dataclass(slots=True)
class NestedType:
    elem_type: ValueType | None = None


@dataclass(slots=True)
class MapType:
    """Operators of other domains have these, and opaque types."""


@dataclass(slots=True)
class OpaqueType:
    pass


@dataclass(slots=True)
class Value:
    """A ValueInfoProto: a named graph input, output or intermediate."""

    name: str = ""
    type: ValueType | None = None


@dataclass(slots=True)
class Attribute:
    """An AttributeProto. Of strings only the number is kept, floats stay packed."""

    name: str = ""
    type: int = 0
    ref_attr_name: str = ""
    f: Packed = None
    i: int | None = None
    s: bytes | None = None
    t: Tensor | None = None
    g: Graph | None = None
    tp: ValueType | None = None
    sparse_tensor: SparseTensor | None = None
    floats: Packed = None
    ints: Sequence[int] = ()
    strings: int = 0
    tensors: Sequence[Tensor] = ()
    graphs: Sequence[Graph] = ()
    type_protos: Sequence[ValueType] = ()
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
    metadata_props: Sequence[Property] = ()


_CLASSES = {name: value for name, value in globals().items() if is_dataclass(value)}

# One message per entry, NAME: NUMBER KIND FIELD, ... A repeated kind is marked "*"; floats, doubles and varints are those that
# stay packed. A field that the message's class has is
# stored, any other is only checked. Members of a `oneof` share the slot after the "|".
_TABLE = """
Model: 1 int64 ir_version, 2 bytes producer_name, 3 bytes producer_version, 4 bytes domain, 5 int64 model_version,
    6 bytes doc_string, 7 Graph graph, 8 OpsetImport* opset_import, 14 Property* metadata_props,
    20 Training* training_info, 25 Function* functions, 26 DeviceConfiguration* configuration
DeviceConfiguration: 1 bytes name, 2 int32 num_devices, 3 bytes* device
OpsetImport: 1 str domain, 2 int64 version
StringPair: 1 str key, 2 str value
Property: 1 str key, 2 bytes value
Training: 1 Graph initialization, 2 Graph algorithm, 3 StringPair* initialization_binding,
    4 StringPair* update_binding
Function: 1 str name, 4 bytes* input, 5 bytes* output, 6 bytes* attribute, 7 Node* node, 8 bytes doc_string,
    9 OpsetImport* opset_import, 10 str domain, 11 Attribute* attribute_proto, 12 Value* value_info,
    13 bytes overload, 14 StringPair* metadata_props
Graph: 1 Node* node, 2 str name, 5 Tensor* initializer, 10 bytes doc_string, 11 Value* input, 12 Value* output,
    13 Value* value_info, 14 TensorAnnotation* quantization_annotation, 15 SparseTensor* sparse_initializer,
    16 StringPair* metadata_props
TensorAnnotation: 1 bytes tensor_name, 2 StringPair* quant_parameter_tensor_names
Node: 1 str* input, 2 str* output, 3 str name, 4 str op_type, 5 Attribute* attribute, 6 bytes doc_string,
    7 str domain, 8 bytes overload, 9 StringPair* metadata_props, 10 NodeDevice* device_configurations
NodeDevice: 1 bytes configuration_id, 2 Sharding* sharding_spec, 3 int32 pipeline_stage
Sharding: 1 bytes tensor_name, 2 int64* device, 3 IntIntList* index_to_device_group_map, 4 ShardedDim* sharded_dim
IntIntList: 1 int64 key, 2 int64* value
ShardedDim: 1 int64 axis, 2 SimpleShardedDim* simple_sharding
SimpleShardedDim: 1 int64 dim_value|dim, 2 bytes dim_param|dim, 3 int64 num_shards
Attribute: 1 str name, 2 fixed32 f, 3 int64 i, 4 bytes s, 5 Tensor t, 6 Graph g, 7 floats* floats, 8 int64* ints,
    9 bytes* strings, 10 Tensor* tensors, 11 Graph* graphs, 13 bytes doc_string, 14 ValueType tp,
    15 ValueType* type_protos, 20 int32 type, 21 str ref_attr_name, 22 SparseTensor sparse_tensor,
    23 SparseTensor* sparse_tensors
Tensor: 1 int64* dims, 2 int32 data_type, 3 Segment segment, 4 floats* float_data, 5 varints* int32_data,
    6 bytes* string_data, 7 varints* int64_data, 8 str name, 9 bytes raw_data, 10 doubles* double_data,
    11 varints* uint64_data, 12 bytes doc_string, 13 StringPair* external_data, 14 int32 data_location,
    16 StringPair* metadata_props
Segment: 1 int64 begin, 2 int64 end
SparseTensor: 1 Tensor values, 2 Tensor indices, 3 int64* sparse_dims
Value: 1 str name, 2 ValueType type, 3 bytes doc_string, 4 StringPair* metadata_props
ValueType: 1 TensorType tensor|kind, 4 NestedType sequence|kind, 5 MapType map|kind, 6 bytes denotation,
    7 OpaqueType opaque|kind, 8 TensorType sparse_tensor|kind, 9 NestedType optional|kind
NestedType: 1 ValueType elem_type
MapType: 1 int32 key_type, 2 ValueType value_type
OpaqueType: 1 bytes domain, 2 bytes name
TensorType: 1 int32 elem_type, 2 Shape shape
Shape: 1 Dim* dim
Dim: 1 int64 value|dim, 2 str param|dim, 3 bytes denotation
"""


def _schema() -> dict[str, tuple[Any, dict[int, str]]]:
    messages: dict[str, tuple[Any, dict[int, str]]] = {}
    for entry in _TABLE.replace("\n    ", " ").strip().splitlines():
        message, _, fields = entry.partition(": ")
        numbered = (field.split(" ", 1) for field in fields.split(", "))
        messages[message] = (_CLASSES.get(message), {int(number): spec for number, spec in numbered})
    return messages


SCHEMA = _schema()
"""Message -> its class (None: not stored), and field number -> "KIND FIELD" or "KIND FIELD|SLOT"."""

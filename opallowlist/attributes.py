"""Whether an attribute can be read in one way: a name of its own, a type, and at most one value, which is of that type.

Some readers go by the type, some by the value that is set: a trip count of 4 under the type INT is an iteration limit to the
one and a number that is not there to the other. Standard library only.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from distill.opallowlist.messages import Attribute
from distill.opallowlist.report import short

# AttributeProto.AttributeType -> its field. An absent number, string or list is read as 0, "" or an empty list; an absent
# message is not read at all.
MESSAGES = {4: "t", 5: "g", 11: "sparse_tensor", 13: "tp"}
SINGLE = {1: "f", 2: "i", 3: "s"} | MESSAGES
REPEATED = {6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 12: "sparse_tensors", 14: "type_protos"}
FIELDS = SINGLE | REPEATED
TYPES = {
    "FLOAT": 1, "INT": 2, "STRING": 3, "TENSOR": 4, "GRAPH": 5, "FLOATS": 6, "INTS": 7, "STRINGS": 8, "TENSORS": 9, "GRAPHS": 10,
    "SPARSE_TENSOR": 11, "SPARSE_TENSORS": 12, "TYPE_PROTO": 13, "TYPE_PROTOS": 14,
}  # fmt: skip
TENSOR = TYPES["TENSOR"]
_TYPE_NAMES = {number: name for name, number in TYPES.items()}


def check_attributes(attributes: Sequence[Attribute], in_function: bool) -> Iterator[str]:
    """What is wrong with the attributes of one node, one clause each."""
    for attribute in attributes:
        if problem := reading_problem(attribute, in_function):
            yield problem
    if len(attributes) > 1:
        for name, times in Counter(attribute.name for attribute in attributes).items():
            if times > 1:
                yield f"attribute '{short(name)}' is given {times} times"


def reading_problem(attribute: Attribute, in_function: bool = False) -> str:
    """Why the attribute has no single reading; empty if it has. Only the nodes `in_function` refer to attributes of others."""
    name = f"attribute '{short(attribute.name)}'"
    if not attribute.name:
        return "an attribute without a name"
    if attribute.ref_attr_name and not in_function:
        return f"{name} refers to an attribute of a function, but there is none around it"
    if attribute.type not in FIELDS:
        return f"{name} has {f'the unknown type {attribute.type}' if attribute.type else 'no type'}"
    given = [field for field in SINGLE.values() if getattr(attribute, field) is not None]
    given += [field for field in REPEATED.values() if getattr(attribute, field)]
    expected = FIELDS[attribute.type]
    if given not in ([], [expected]):
        return f"{name} has the type {type_name(attribute.type)} and a value in {' and in '.join(given)}"
    if not given and attribute.type in MESSAGES and not attribute.ref_attr_name:
        return f"{name} has no value"
    return ""


def type_name(number: int) -> str:
    """`TENSOR` of 4, as in onnx.proto."""
    return _TYPE_NAMES.get(number, str(number))

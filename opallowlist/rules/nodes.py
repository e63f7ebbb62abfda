"""Whether a node is what its operator is, and can be read in one way.

Attributes: a name of its own, a type, and at most one value, which is of that type. Some readers go by the type, some by the
value that is set: a trip count of 4 under the type INT is an iteration limit to the one and is not there to the other.

Inputs, outputs and attributes are those of the operator in the model's opset, as `operators.txt` has them; operators of other
lists than the built-in one are not in it, and not checked. A node that has others is refused by the checker and by ONNX
Runtime, or crashes it: an empty name among the inputs of a Sum, or among the outputs of a Loop. Standard library only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from distill.opallowlist.reading.messages import Attribute, Graph, Node
from distill.opallowlist.report import short
from distill.opallowlist.rules.tensors import MAX_RANK

# AttributeProto.AttributeType -> its field. An absent number, string or list is read as 0, "" or an empty list; an absent
# message is not read at all.
_MESSAGES = {4: "t", 5: "g", 11: "sparse_tensor", 13: "tp"}
_SINGLE = {1: "f", 2: "i", 3: "s"} | _MESSAGES
_REPEATED = {6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 12: "sparse_tensors", 14: "type_protos"}
_FIELDS = _SINGLE | _REPEATED
TYPES = {
    "FLOAT": 1, "INT": 2, "STRING": 3, "TENSOR": 4, "GRAPH": 5, "FLOATS": 6, "INTS": 7, "STRINGS": 8, "TENSORS": 9, "GRAPHS": 10,
    "SPARSE_TENSOR": 11, "SPARSE_TENSORS": 12, "TYPE_PROTO": 13, "TYPE_PROTOS": 14,
}  # fmt: skip
# The numbers that make sense for any tensor: with others ONNX Runtime 1.22 divides by zero, or onnx.checker reads where nothing is.
_BOUNDS = {"axis": (-MAX_RANK, MAX_RANK - 1), "batch_dims": (0, MAX_RANK - 1)}
_BOUNDS |= dict.fromkeys(("dilations", "group", "kernel_shape", "strides"), (1, (1 << 31) - 1))
_TYPE_NAMES = {number: name for name, number in TYPES.items()}


def attribute_problems(attributes: Sequence[Attribute], in_function: bool) -> Iterator[str]:
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
    if attribute.type not in _FIELDS:
        return f"{name} has {f'the unknown type {attribute.type}' if attribute.type else 'no type'}"
    given = [field for field in _SINGLE.values() if getattr(attribute, field) is not None]
    given += [field for field in _REPEATED.values() if getattr(attribute, field)]
    expected = _FIELDS[attribute.type]
    if given not in ([], [expected]):
        return f"{name} has the type {type_name(attribute.type)} and a value in {' and in '.join(given)}"
    if not given and attribute.type in _MESSAGES and not attribute.ref_attr_name:
        return f"{name} has no value"
    return ""


def type_name(number: int) -> str:
    """`TENSOR` of 4, as in onnx.proto."""
    return _TYPE_NAMES.get(number, str(number))


@dataclass(frozen=True, slots=True)
class Operator:
    """One definition, in force from an opset on."""

    first_opset: int
    inputs: str
    """A character for each: see operators.txt."""
    outputs: str
    attributes: Mapping[str, int]
    """Name -> AttributeProto.type."""
    required: frozenset[str]


def first_opset(name: str) -> int:
    """The opset that introduced the operator, 0 if it is not known."""
    versions = _operators().get(name)
    return versions[0].first_opset if versions else 0


def definition_problems(node: Node, opset: int) -> Iterator[str]:
    """How the node differs from its operator in the default domain's `opset`, one clause each."""
    versions = _operators().get(node.op_type, ())
    operator = next((version for version in reversed(versions) if version.first_opset <= opset), None)
    if operator is None:
        return
    yield from _value_problems("input", node.input, operator.inputs)
    yield from _value_problems("output", node.output, operator.outputs)
    if node.op_type == "LayerNormalization" and "" in node.input[2:]:
        yield "a bias with an empty name, on which ONNX Runtime crashes; leave it out"
    # Names with two underscores in front are nobody's: the checker skips them too.
    attributes = {attribute.name: attribute for attribute in node.attribute if not attribute.name.startswith("__")}
    for name, attribute in attributes.items():
        expected = operator.attributes.get(name)
        if expected is None:
            yield f"no attribute '{short(name)}' in opset {opset}"
        elif attribute.type != expected and not reading_problem(attribute):  # which is a finding of its own
            yield f"attribute '{short(name)}' has the type {type_name(attribute.type)}, not {type_name(expected)}"
        elif name in _BOUNDS and (problem := _number_problem(attribute, *_BOUNDS[name])):
            yield problem
    for name in sorted(operator.required.difference(attributes)):
        yield f"no attribute '{name}', which it needs"
    if node.op_type == "Constant" and len(attributes) != 1:
        yield f"{len(attributes)} values where it has 1"
    for name in ("then_branch", "else_branch", "body"):
        if name in attributes and name in operator.required and (graph := attributes[name].g) is not None:
            yield from _subgraph_problems(node, name, graph)


def _number_problem(attribute: Attribute, least: int, most: int) -> str:
    for number in [attribute.i or 0] if attribute.type == TYPES["INT"] else attribute.ints:
        if not least <= number <= most:
            return f"{attribute.name} {number:,}; accepted are {least} to {most:,}"
    return ""


def _subgraph_problems(node: Node, name: str, graph: Graph) -> Iterator[str]:
    """A branch takes nothing and gives what its If gives; a body takes as many values as its Loop and gives one more."""
    in_body = name == "body"
    taken = len(node.input) if in_body else 0
    if len(graph.input) != taken:
        yield f"'{name}' has {len(graph.input):,} inputs where this node makes it {taken:,}"
    if in_body and len(node.output) < len(node.input) - 2:
        yield f"{len(node.output):,} outputs for {len(node.input) - 2:,} carried values"
    expected = len(node.output) + in_body
    if len(graph.output) != expected:
        yield f"'{name}' has {len(graph.output):,} outputs where this node makes it {expected:,}"


def _value_problems(kind: str, names: Sequence[str], formal: str) -> Iterator[str]:
    at_least = max((at + (letter != "*") for at, letter in enumerate(formal) if letter != "?"), default=0)
    variadic = formal[-1:] in ("+", "*")
    if len(names) < at_least or (len(names) > len(formal) and not variadic):
        bounds = f"at least {at_least}" if variadic else f"{at_least} to {len(formal)}" if "?" in formal else f"{at_least}"
        yield f"{len(names):,} {kind}s where it has {bounds}"
        return
    for at, name in enumerate(names):
        if not name and formal[min(at, len(formal) - 1)] != "?":
            yield f"{kind} {at} has an empty name"
            return


@cache
def _operators() -> dict[str, tuple[Operator, ...]]:
    operators: dict[str, tuple[Operator, ...]] = {}
    for line in resources.files(__package__).joinpath("operators.txt").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, opset, inputs, outputs, *declared = line.split()
        attributes = {}
        required = []
        for word in declared:
            attribute, _, kind = word.partition(":")
            attributes[attribute] = TYPES[kind.rstrip("!")]
            if kind.endswith("!"):
                required.append(attribute)
        version = Operator(int(opset), inputs.strip("-"), outputs.strip("-"), attributes, frozenset(required))
        operators[name] = (*operators.get(name, ()), version)
    return operators

"""Checks every node, attribute and tensor of every graph of a model against the list and the downstream's limits.

The downstream's scanner looks at operator names, nesting depth and the number of Loops. This check also covers domains, local
functions, external data, opset, IR version, trip counts and Resize modes, because ONNX Runtime or the downstream's model
registry refuses some of them, and with others the scanner's verdict could be evaded. Standard library only.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeAlias

from distill.opallowlist.reading import messages, wire
from distill.opallowlist.report import OTHER_OPS, Violation, short
from distill.opallowlist.rules import remedies, tensors
from distill.opallowlist.rules.allowlist import Allowlist
from distill.opallowlist.rules.nodes import TYPES, attribute_problems, definition_problems, first_opset, reading_problem

MAX_DEPTH = 8
"""Subgraphs inside subgraphs; the main graph is depth 0. VMAF_DNN_MAX_SUBGRAPH_DEPTH."""
MAX_LOOPS = 16
"""Loop nodes in the whole model. VMAF_DNN_MAX_LOOP_NODES."""
MAX_TRIP_COUNT = 1024
"""Iterations of one Loop. MAX_LOOP_TRIP_COUNT of the downstream's export gate."""
MAX_OP_NAME_BYTES = 127
"""The scanner's buffer holds 128 with the terminator."""
OPSETS = range(7, 22)
"""Accepted by the downstream's model registry; its ONNX Runtime loads up to 22."""
IR_VERSIONS = range(3, 11)
"""From 3 on a model states its opset; above 10 the downstream's older ONNX Runtimes do not load it."""
MAX_VERSION = (1 << 31) - 1
"""Of a domain: onnx.checker and ONNX Runtime keep it in an int32."""
NEWEST = {"ai.onnx.ml": 5, "ai.onnx.training": 1, "ai.onnx.preview.training": 1, "com.microsoft": 1}
NEWEST |= {"com.microsoft.experimental": 1, "com.microsoft.nchwc": 1, "org.pytorch.aten": 1}
"""Domain -> the newest version that ONNX Runtime 1.22 loads, even if nothing of it is used; other domains may have any."""
HOUSE_OPSET = 17
HOUSE_IR = 8
RESIZE_MODES = (b"nearest", b"linear")
DEFAULT_DOMAINS = ("", "ai.onnx")
MAX_FINDINGS = 1_000
"""Violations listed for one model unless fewer are asked for, and warnings; the report only counts the others."""
MAX_OPS = 200
"""Operators counted by name for one model. Others are counted together: a file can have 500,000 names of operators."""

_STEP = 40  # characters of a name in a path, which may have eight steps of two names
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(slots=True)
class Findings:
    """The result of scanning one model."""

    at_most: int = MAX_FINDINGS
    """Violations listed, and warnings, and operators counted by name (these at most MAX_OPS)."""
    violations: list[Violation] = field(default_factory=list)
    warnings: list[Violation] = field(default_factory=list)
    ops: Counter[str] = field(default_factory=Counter)
    """Nodes per operator; custom domains are written `domain.Op`."""
    opset: int | None = None
    """Of the default domain; None if missing or contradictory."""
    unlisted: int = 0
    """Violations that are not listed."""
    unlisted_warnings: int = 0

    def count(self, op: str) -> None:
        """Count a node of the operator `op`."""
        op = short(op)
        self.ops[op if op in self.ops or len(self.ops) < min(MAX_OPS, self.at_most) else OTHER_OPS] += 1

    def refuse(self, violation: Violation) -> None:
        if len(self.violations) < self.at_most:
            self.violations.append(violation)
        else:
            self.unlisted += 1

    def warn(self, violation: Violation) -> None:
        if len(self.warnings) < self.at_most:
            self.warnings.append(violation)
        else:
            self.unlisted_warnings += 1

    def warned(self) -> list[Violation]:
        """The warnings, with one more for the violations that were left out, and for the warnings."""
        left_out = {"violations": self.unlisted, "warnings": self.unlisted_warnings}
        return [
            *self.warnings,
            *(Violation("too-many", f"{n:,} more {what} are not listed") for what, n in left_out.items() if n),
        ]


@dataclass(frozen=True, slots=True)
class Scope:
    """A list of nodes that can use each other's outputs, and its place in the model."""

    owner: str
    """The enclosing graph's path, one string shared by all its subgraphs: a file may have one in each of 300,000 nodes."""
    step: str
    """The last part of the path: `/If_3.then_branch`."""
    depth: int
    graph: messages.Graph
    times: int = 1
    """How often the nodes run at most: the trip counts of the Loops around them, multiplied."""

    @property
    def path(self) -> str:
        return self.owner + self.step

    @property
    def in_function(self) -> bool:
        return self.owner.startswith("functions/")


def scan(model: messages.Model, allowed: Allowlist, at_most: int = MAX_FINDINGS) -> Findings:
    """Apply every content rule to every graph and function of `model`. Iterative; each graph is visited once."""
    found = Findings(at_most)
    _check_header(model, found)
    used_domains: set[str] = set()
    loops = 0
    without_elements: set[str] = set()
    todo = list(_roots(model, found))
    todo.reverse()
    while todo:
        scope = todo.pop()
        path = scope.path
        _check_tensors(scope.graph.initializer, scope.graph.sparse_initializer, scope, None, found)
        _check_types(scope, found)
        if scope.depth and scope.graph.initializer and model.ir_version in IR_VERSIONS and model.ir_version < 4:
            message = "a subgraph with initializers, which came with IR version 4"
            found.refuse(Violation("ir-version", message, path, remedy=f"save with model.ir_version = {HOUSE_IR}"))
        without_elements.update(tensor.name for tensor in scope.graph.initializer if 0 in tensor.dims)
        inner: list[Scope] = []
        for index, node in enumerate(scope.graph.node):
            used_domains.add(node.domain)
            found.count(node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}")
            _check_op(node, index, scope, allowed, found)
            times = scope.times
            if node.op_type == "Loop":
                loops += 1
                times = _check_loop(node, index, scope, loops, found)
            elif node.op_type == "Resize":
                _check_resize(node, index, scope, found)
            elif node.op_type == "Constant":
                without_elements.update(_outputs_without_elements(node))
            elif node.op_type == "Clip":
                _check_clip(node, index, scope, without_elements, found)
            for problem in attribute_problems(node.attribute, scope.in_function):
                found.refuse(_at("attribute", problem, scope, node, index, "export it again"))
            for attribute in node.attribute:
                _check_attribute(attribute, scope, (node, index), found)
                inner.extend(subgraphs(attribute, path, f"/{label(node, index)}", scope.depth, times))
        for subgraph in reversed(inner):
            if subgraph.depth > MAX_DEPTH:
                message = f"a subgraph at depth {subgraph.depth}; the downstream follows {MAX_DEPTH}"
                way_out = "flatten nested If and Loop bodies"
                found.refuse(Violation("subgraph-depth", message, subgraph.path, remedy=way_out))
            else:
                todo.append(subgraph)
    for entry in model.opset_import:
        if entry.domain not in DEFAULT_DOMAINS and entry.domain not in used_domains:
            message = f"imports the domain '{short(entry.domain)}' and uses nothing of it"
            found.warn(Violation("unused-domain", message, remedy="drop it from opset_import"))
    return found


def _check_header(model: messages.Model, found: Findings) -> None:
    if model.graph is None:
        found.refuse(Violation("no-graph", "the model has no graph"))
    elif model.graph == messages.Graph(name=model.graph.name):
        found.refuse(Violation("no-graph", "the model's graph is empty"))
    if model.ir_version not in IR_VERSIONS:
        message = f"IR version {model.ir_version}; accepted are {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}"
        found.refuse(Violation("ir-version", message, remedy=f"save with model.ir_version = {HOUSE_IR}"))
    elif model.ir_version != HOUSE_IR:
        message = f"IR version {model.ir_version} where the house value is {HOUSE_IR}"
        way_out = f"save with model.ir_version = {HOUSE_IR}; ONNX Runtime 1.16 loads no IR 10"
        found.warn(Violation("house-ir", message, remedy=way_out))
    for entry in model.opset_import:
        newest = NEWEST.get(entry.domain, MAX_VERSION)
        if entry.domain not in DEFAULT_DOMAINS and not 1 <= entry.version <= newest:
            message = f"version {entry.version} of the domain '{short(entry.domain)}'; accepted are 1 to {newest}"
            found.refuse(Violation("opset", message, remedy="drop it from opset_import"))
    versions = sorted({entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS})
    found.opset = versions[0] if len(versions) == 1 else None
    if found.opset not in OPSETS:
        shown = " and ".join(map(str, versions[:3])) + (" and more" if len(versions) > 3 else "")
        what = f"opset {shown}" if versions else "no opset of the default domain"
        message = f"{what}; accepted is one of {OPSETS[0]} to {OPSETS[-1]}"
        way_out = f"export for opset {HOUSE_OPSET}, or convert with onnx.version_converter"
        found.refuse(Violation("opset", message, remedy=way_out))
    elif found.opset != HOUSE_OPSET:
        found.warn(Violation("house-opset", f"opset {found.opset} where the house value is {HOUSE_OPSET}"))


def _roots(model: messages.Model, found: Findings) -> Iterator[Scope]:
    """All top-level lists of nodes: the main graph, then training graphs and functions, which are refused."""
    if model.graph is not None:
        yield Scope("main", "", 0, model.graph)
    for number, training in enumerate(model.training_info):
        path = f"training_info[{number}]"
        found.refuse(Violation("training-info", "training graphs", path, remedy="export for inference"))
        for name, graph in (("initialization", training.initialization), ("algorithm", training.algorithm)):
            if graph is not None:
                yield Scope(path, f".{name}", 0, graph)
    for function in model.functions:
        qualified = short(f"{function.domain}.{function.name}" if function.domain else function.name)
        path = f"functions/{qualified}"
        way_out = "inline it: onnx.inliner.inline_local_functions(model)"
        found.refuse(Violation("local-function", f"local function '{qualified}'", path, remedy=way_out))
        scope = Scope(path, "", 0, messages.Graph(node=function.node))
        yield scope
        for attribute in function.attribute_proto:
            _check_attribute(attribute, scope, None, found)
            yield from subgraphs(attribute, path, "", 0)


def _check_op(node: messages.Node, index: int, scope: Scope, allowed: Allowlist, found: Findings) -> None:
    op = node.op_type
    if not op or len(op.encode()) > MAX_OP_NAME_BYTES:
        rule, message = "op-name", "no operator name" if not op else f"operator name of {len(op.encode())} bytes"
        way_out = ""
    elif node.domain not in DEFAULT_DOMAINS:
        rule, message = "custom-domain", f"operator from the domain '{short(node.domain)}'"
        way_out = (
            "save the model before ONNX Runtime optimises it; its fused operators are com.microsoft"
            if node.domain.startswith("com.microsoft")
            else "use operators of the default domain"
        )
    elif node.domain and scope.depth:
        rule, message = "custom-domain", f"domain '{node.domain}', which ONNX Runtime does not know in subgraphs"
        way_out = "leave the domain empty"
    elif op == "Scan":
        rule, message, way_out = "scan", "refused whatever the list says", remedies.remedy(op, allowed)
    elif op not in allowed:
        rule, message, way_out = "op", f"not on the list '{allowed.name}'", remedies.remedy(op, allowed)
    elif found.opset is None or found.opset not in OPSETS:
        return
    elif found.opset < (first := first_opset(op)):
        rule, message = "op-opset", f"{op} exists from opset {first} on, the model is opset {found.opset}"
        way_out = f"export for opset {first}, or spell it out with older operators"
    else:
        for problem in definition_problems(node, found.opset):
            found.refuse(_at("definition", problem, scope, node, index, "export it for this opset; onnx.checker says the same"))
        return
    found.refuse(_at(rule, message, scope, node, index, way_out))


def _check_loop(node: messages.Node, index: int, scope: Scope, number: int, found: Findings) -> int:
    """How often the body runs at most, with the Loops around this one; 1 where that is refused."""
    if number == MAX_LOOPS + 1:
        message = f"more than {MAX_LOOPS} Loops in the model; this is number {number}"
        found.refuse(_at("loop-count", message, scope, node, index, "unroll short Loops"))
    if number > MAX_LOOPS:
        return 1  # already refused; looking up the producers of thousands of Loops would take too long
    count = _trip_count(node, scope.graph.node)
    if isinstance(count, str):
        way_out = f"feed it from a Constant node (int64, 0 to {MAX_TRIP_COUNT}) in the same graph"
        found.refuse(_at("loop-trip-count", count, scope, node, index, way_out))
        return 1
    times = scope.times * count
    if times > MAX_TRIP_COUNT:
        message = f"{times:,} iterations with the Loops around it; accepted are {MAX_TRIP_COUNT:,} together"
        found.refuse(_at("loop-trip-count", message, scope, node, index, "flatten nested Loops, or shorten them"))
        return 1
    return times


def _trip_count(loop: messages.Node, nodes: Iterable[messages.Node]) -> int | str:
    """The trip count, or why it may not be small."""
    source = loop.input[0] if loop.input else ""
    if not source:
        return "no trip count: the Loop may run for ever"
    producers = [node for node in nodes if source in node.output]
    if not producers:
        return f"trip count '{short(source)}' is not a Constant of this graph (an initializer, an input, or from outside)"
    if len(producers) > 1 or producers[0].op_type != "Constant" or producers[0].domain not in DEFAULT_DOMAINS:
        return f"trip count '{short(source)}' is computed by {short(producers[-1].op_type)}"
    attributes = producers[0].attribute
    count = _int64_scalar(attributes[0]) if len(attributes) == 1 else None
    if count is None:
        return f"trip count '{short(source)}' is not a single int64 in the Constant's 'value'"
    if not 0 <= count <= MAX_TRIP_COUNT:
        return f"trip count {count:,}; accepted are 0 to {MAX_TRIP_COUNT:,}"
    return count


def _int64_scalar(attribute: messages.Attribute) -> int | None:
    """The number in the attribute `value`, if every reader finds it, and this one."""
    tensor = attribute.t
    if attribute.name != "value" or attribute.type != TYPES["TENSOR"] or reading_problem(attribute) or tensor is None:
        return None
    if tensor.data_type != tensors.INT64 or len(tensor.dims) > 1 or any(dim != 1 for dim in tensor.dims):
        return None
    if tensor.external_data or tensor.data_location or tensors.data_problem(tensor):
        return None
    if tensor.raw_data is not None:
        return int.from_bytes(tensor.raw_data, "little", signed=True)
    return wire.varints(tensor.int64_data or b"", at_most=1)[0]


def _check_resize(node: messages.Node, index: int, scope: Scope, found: Findings) -> None:
    for attribute in node.attribute:
        if attribute.name != "mode" or reading_problem(attribute):  # reported under `attribute`
            continue
        mode = attribute.s[:32] if attribute.s is not None else b""
        if mode not in RESIZE_MODES:
            shown = mode.decode("utf-8", "backslashreplace") or "not a plain string"
            message = f"Resize mode is {shown}; accepted are nearest and linear"
            found.refuse(_at("resize-mode", message, scope, node, index, "use linear"))


def _outputs_without_elements(constant: messages.Node) -> Sequence[str]:
    for attribute in constant.attribute:
        lists = {"value_floats": attribute.floats, "value_ints": attribute.ints}
        if (attribute.t is not None and 0 in attribute.t.dims) or not lists.get(attribute.name, True):
            return constant.output
    return ()


def _check_clip(node: messages.Node, index: int, scope: Scope, without_elements: Set[str], found: Findings) -> None:
    """ONNX Runtime 1.22 reads the first element of a bound when it merges Clip with the Conv or Relu before it, and crashes."""
    for name in node.input[1:3]:
        if name in without_elements:
            message = f"the bound '{short(name)}' has no elements"
            found.refuse(_at("definition", message, scope, node, index, "give one number, or leave the input out"))


_At: TypeAlias = tuple[messages.Node, int] | None
"""The node that a finding is at, and its index; None for the graph itself."""


def _check_attribute(attribute: messages.Attribute, scope: Scope, at: _At, found: Findings) -> None:
    """The tensors and types in an attribute, whatever its `type` is: some readers ignore it."""
    single = () if attribute.t is None else (attribute.t,)
    sparse = () if attribute.sparse_tensor is None else (attribute.sparse_tensor,)
    _check_tensors((*single, *attribute.tensors), (*sparse, *attribute.sparse_tensors), scope, at, found)
    for declared in (attribute.tp, *attribute.type_protos):
        if declared is not None:
            rule, problem = tensors.type_problem(declared)
            if rule:
                message = f"the attribute '{short(attribute.name)}' has {problem}"
                found.refuse(_placed(rule, message, scope, at, "declare a dense tensor"))


def _check_tensors(
    dense: Iterable[messages.Tensor], sparse: Iterable[messages.SparseTensor], scope: Scope, at: _At, found: Findings
) -> None:
    for tensor in dense:
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            location = next((pair.value for pair in tensor.external_data if pair.key == "location"), "?")
            rule, message = "external-data", f"stored outside, in '{short(posixpath.basename(location) or location)}'"
            way_out = "save as one file: onnx.save(model, path, save_as_external_data=False)"
        elif problem := tensors.data_problem(tensor):
            rule, message, way_out = "tensor-data", problem, "export it again"
        else:
            continue
        found.refuse(_placed(rule, message, scope, at, way_out, tensor.name))
    for one in sparse:
        name = one.values.name if one.values is not None else ""
        found.refuse(_placed("sparse", "a sparse tensor", scope, at, "store it dense", name))


def _check_types(scope: Scope, found: Findings) -> None:
    """The declared types of a graph's values. Only the main graph has to declare any."""
    graph = scope.graph
    for kind, values in (("input", graph.input), ("output", graph.output), ("value_info", graph.value_info)):
        needed = kind != "value_info" and scope.depth == 0
        for value in values:
            rule, problem = tensors.type_problem(value.type)
            if rule and (needed or problem != tensors.NO_TYPE):
                message = f"the {kind} '{short(value.name)}' has {problem}"
                found.refuse(_placed(rule, message, scope, None, "declare a dense tensor"))


def subgraphs(attribute: messages.Attribute, owner: str, node: str, depth: int, times: int = 1) -> Iterator[Scope]:
    """The graphs in an attribute of `node` (`/If_3`) in the graph at the path `owner`, which is at `depth`."""
    if attribute.g is not None:
        yield Scope(owner, f"{node}.{short(attribute.name, _STEP)}", depth + 1, attribute.g, times)
    for number, graph in enumerate(attribute.graphs):
        yield Scope(owner, f"{node}.{short(attribute.name, _STEP)}[{number}]", depth + 1, graph, times)


def _at(rule: str, message: str, scope: Scope, node: messages.Node, index: int, way_out: str) -> Violation:
    return Violation(rule, message, scope.path, short(node.name), short(node.op_type), index, way_out)


def _placed(rule: str, message: str, scope: Scope, at: _At, way_out: str, name: str = "") -> Violation:
    """A finding at a node, or in the graph, at the value `name` if that is not empty."""
    if at is not None:
        return _at(rule, message, scope, *at, way_out)
    return Violation(rule, message, scope.path, short(name), remedy=way_out)


def label(node: messages.Node, index: int) -> str:
    """A node in a graph path: `If_3`."""
    return f"{short(node.op_type, _STEP)}_{index}"

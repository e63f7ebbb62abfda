"""The result of a check, as plain frozen values. `formats` renders them, `cli` prints them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from distill.opallowlist.foreign import printable

RULES = {
    # the file
    "directory": "the path names a directory, not a file",
    "not-a-file": "the path names a pipe, socket or device, not a regular file",
    "empty": "the file is empty",
    "too-large": "the file is larger than the downstream loads",
    "git-lfs-pointer": "the file is a git-lfs pointer, not the model it points to",
    "malformed": "the file is not an ONNX protobuf, is truncated, or has no single reading",
    # the model
    "no-graph": "the model has no graph",
    "ir-version": "the IR version is outside what the downstream's ONNX Runtime loads",
    "opset": "the default domain's opset is missing, ambiguous or outside what the downstream registers",
    "local-function": "the model defines a local function, whose body the downstream does not scan",
    "metadata": "a key of the model's metadata is given twice",
    "training-info": "the model carries training graphs",
    "external-data": "a tensor's bytes lie outside the file",
    "tensor-data": "a tensor's data does not fit its element type and shape, or has no single reading",
    "sparse": "a tensor or a type is sparse",
    "value-type": "an input or output of the model has no type",
    # the nodes
    "op": "the operator is not on the list",
    "op-name": "the operator has no name, or one longer than the downstream's 127 bytes",
    "op-opset": "the operator does not exist yet in the model's opset",
    "custom-domain": "the node is from a custom operator domain",
    "scan": "Scan is refused whatever the list says",
    "definition": "the node has other inputs, outputs or attributes than its operator",
    "attribute": "an attribute has no single reading: no type, two values, or a value of another type",
    "subgraph-depth": "subgraphs are nested deeper than the downstream follows",
    "loop-count": "the model has more Loops than the downstream allows",
    "loop-trip-count": "a Loop's trip count is not a small constant",
    "resize-mode": "Resize uses a mode other than nearest or linear",
    "wiring": "a name is used before it is defined, given twice, or declared as an output and not computed",
    # the contract
    "contract-inputs": "the inputs are not the contract's",
    "contract-outputs": "the outputs are not the contract's",
    "contract-type": "an input or output has the wrong element type or rank",
    "contract-shape": "an input or output has the wrong axes",
    "contract-rank": "the graph stacks frames into a fifth axis",
    "contract-state": "the recurrent state is not optional, not zero at the start, or cannot be carried",
    "contract-dim-names": "a symbolic dimension name is shared with the state",
    # with --load
    "load": "onnx.checker or ONNX Runtime refused the model, crashed, or took too long or too much memory",
    # warnings only
    "house-opset": "accepted, but not the house opset 17",
    "house-ir": "accepted, but not the house IR version 8",
    "unused-domain": "a custom domain is imported but not used",
    "frame-size": "the model runs, but not on frames of every size",
    "not-loaded": "ONNX Runtime is not installed, so --load did without it",
    "too-many": "more findings than are listed",
}
"""Rule id -> its description, in the order in which a file is checked."""


OTHER_OPS = "(others)"
"""The key in `Facts.ops` for the operators that are not counted by name."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason to refuse the model (in `Report.violations`) or to have another look (in `Report.warnings`)."""

    rule: str
    """A key of RULES."""
    message: str
    """What is wrong, in one clause."""
    path: str = ""
    """The graph: `main`, `main/If_3.then_branch`, `functions/local.MyAct`; empty for the file as a whole. `If_3` is the
    graph's node at index 3."""
    node: str = ""
    """The node's name, which many exporters leave empty; for an external initializer the tensor's name."""
    op_type: str = ""
    index: int | None = None
    """The node's position in its graph, counted from 0."""
    remedy: str = ""
    """What to use instead, if a rewrite is known that the list allows."""

    @property
    def place(self) -> str:
        """The place in the model, to show: `main/If_3.then_branch: /gate/Where`; empty for the file as a whole."""
        label = self.label
        return f"{self.path}: {label}" if label else self.path

    @property
    def label(self) -> str:
        """The node by its own name, else by operator and position (`If_3`), else empty."""
        return self.node or (f"{self.op_type}_{self.index}" if self.index is not None else "")

    def __str__(self) -> str:
        what = f"{self.op_type}: {self.message}" if self.op_type else self.message
        where = f" ({self.place})" if self.place else ""
        way_out = f"; try: {self.remedy}" if self.remedy else ""
        return printable(f"{self.rule}: {what}{where}{way_out}")


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of the file, as far as it could be read: unknown values are None, counts include all subgraphs."""

    bytes: int | None = None
    sha256: str | None = None
    """SHA-256 of the exact file content, 64 hex digits."""
    ir_version: int | None = None
    opset: int | None = None
    """Of the default domain."""
    nodes: int | None = None
    ops: Mapping[str, int] = field(default_factory=dict)
    """Operator -> number of nodes, most frequent first; beyond 200 operators the others together, as OTHER_OPS."""
    loaded_by: tuple[str, ...] = ()
    """With `load`: the programs that accepted the model, with their versions (`onnx.checker 1.23.2`, `ONNX Runtime 1.32.0`)."""


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one model: `ok`, unless there are violations. Warnings do not refuse."""

    source: str
    """The path as it was given, or `<memory>`."""
    allowlist: str
    allowed: int
    """Number of operators on the list."""
    contract: str | None
    """The contract that was applied (for `saliency` the form that applied), or None."""
    violations: tuple[Violation, ...] = ()
    warnings: tuple[Violation, ...] = ()
    facts: Facts = field(default_factory=Facts)

    @property
    def ok(self) -> bool:
        return not self.violations

    def to_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return {"source": self.source, "ok": self.ok} | asdict(self)


def short(name: str, longest: int = 127) -> str:
    """A name, shortened for a report: a file may contain thousands of names of 64 KB."""
    return name if len(name) <= longest else f"{name[: longest - 3]}..."

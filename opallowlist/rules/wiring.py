"""Names: every value is defined once, and before the nodes that read it, in its own graph or in one around it.

The downstream's scanner accepts models that break these rules. ONNX Runtime and onnx.checker refuse most of them, each
some that the other takes, and where both load a model they can differ in which of two values a name means. Editing a graph
by hand is the most common cause. Names that may be the same, because everybody reads them alike, stay accepted: those of
values in different branches, of nodes in different graphs, and a subgraph's inputs and initializers, which hide outer values.

Time and memory are bounded by the size of the graphs, whatever their names are. Standard library only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from distill.opallowlist.reading import messages
from distill.opallowlist.report import Violation, short
from distill.opallowlist.rules.scan import MAX_DEPTH, Scope, label, subgraphs

_MAX_MARKS = 64
"""Nodes of one graph with a bit of their own in `_Level`. The others share the next bit, on which nothing ever depends."""


@dataclass(slots=True)
class _Level:
    """What is known of a graph on the way through its nodes in file order, those of subgraphs at the place of their owner."""

    position: dict[str, int]
    """Output of a node -> the node's index; empty if the graph has no subgraphs."""
    index: int = 0
    """Of the node that is read, or in whose subgraphs the walk is."""
    reached: int = 0
    """The bits of the nodes that this node depends on, as far as its inputs are read."""
    mark: int = 0
    """The bit of this node, once one of its subgraphs has defined a name that a later node computes too."""
    marks: int = 0
    """Number of nodes with a bit."""
    ahead: dict[str, int] = field(default_factory=dict)
    """Name of that kind -> the bits of the nodes whose subgraphs define it."""
    behind: dict[str, int] = field(default_factory=dict)
    """Output of a node -> the bits of the nodes that it depends on."""


def check_wiring(model: messages.Model) -> Iterator[Violation]:
    """Every deviation from these rules in the main graph and its subgraphs, down to the depth that the downstream follows."""
    for key, times in _repeated([item.key for item in model.metadata_props]):
        message = f"the metadata has '{short(key)}' {times} times; readers differ in which one counts"
        yield Violation("metadata", message, remedy="keep one of them")
    if model.graph is not None:
        yield from _check_graph(Scope("main", "", 0, model.graph), {}, [])


def _check_graph(scope: Scope, visible: dict[str, int], levels: list[_Level]) -> Iterator[Violation]:
    """`visible`: name -> the depths of those graphs around this place that define it, as bits. `levels`: these graphs."""
    graph, path, here = scope.graph, scope.path, 1 << scope.depth
    yield from _check_declared(graph, path, scope.depth)
    for name in _given(graph):
        visible[name] = visible.get(name, 0) | here
    level = _Level({})
    if any(attribute.g is not None or attribute.graphs for node in graph.node for attribute in node.attribute):
        level.position = {name: index for index, node in enumerate(graph.node) for name in node.output}
    levels.append(level)
    for index, node in enumerate(graph.node):
        level.index, level.reached, level.mark = index, 0, 0
        for name in node.input:
            if depths := visible.get(name, 0):
                definer = levels[depths.bit_length() - 1]
                definer.reached |= definer.behind.get(name, 0)
            elif name:
                yield _broken(f"input '{short(name)}' is defined nowhere before this node", path, node, index)
        for attribute in node.attribute:
            if attribute.g is None and not attribute.graphs:
                continue
            for inner in subgraphs(attribute, path, f"/{label(node, index)}", scope.depth):
                if inner.depth <= MAX_DEPTH:
                    yield from _check_graph(inner, visible, levels)
        depends_on = (level.reached | level.mark) & ~(1 << _MAX_MARKS)
        for name in filter(None, node.output):
            depths = visible.get(name, 0)
            if depths & here:
                yield _broken(f"'{short(name)}' is defined twice", path, node, index)
            elif depths:
                yield _broken(f"'{short(name)}' is defined in a graph around this one too", path, node, index)
            elif level.ahead.get(name, 0) & ~depends_on:
                message = f"'{short(name)}' is defined inside an earlier node too, and ONNX Runtime may run this one first"
                yield _broken(message, path, node, index)
            for outer in levels[:-1]:
                if outer.position.get(name, -1) > outer.index:
                    _mark_ahead(name, outer)
            visible[name] = depths | here
            if depends_on:
                level.behind[name] = depends_on
    levels.pop()
    for value in graph.output:
        if not visible.get(value.name, 0) & here:
            yield _broken(f"output '{short(value.name)}' is computed nowhere in this graph", path)
    if scope.depth:
        _leave(graph, here, visible)


def _given(graph: messages.Graph) -> Iterator[str]:
    """The names that a graph defines without a node."""
    yield from (value.name for value in graph.input)
    yield from _initializers(graph)


def _initializers(graph: messages.Graph) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer if sparse.values is not None)


def _leave(graph: messages.Graph, here: int, visible: dict[str, int]) -> None:
    """Take back what `graph` defines."""
    for names in (_given(graph), *(node.output for node in graph.node)):
        for name in names:
            if left := visible.get(name, 0) & ~here:
                visible[name] = left
            else:
                visible.pop(name, None)


def _mark_ahead(name: str, level: _Level) -> None:
    """Note that a subgraph of the graph's node has defined `name`, which a later node of the graph computes too.

    That is right if the later node depends on this one. If not, ONNX Runtime, which sorts the nodes of a graph anew, may take
    the later one first; the subgraph then defines a visible name, and the model is refused.
    """
    if not level.mark:
        level.mark = 1 << min(level.marks, _MAX_MARKS)
        level.marks += 1
    level.ahead[name] = level.ahead.get(name, 0) | level.mark


def _check_declared(graph: messages.Graph, path: str, depth: int) -> Iterator[Violation]:
    """One name twice among what a graph declares, or none where ONNX Runtime wants one."""
    if depth and not graph.name:  # of the main graph only the checker wants a name
        yield _broken("a subgraph without a name", path)
    inputs, initializers = [value.name for value in graph.input], list(_initializers(graph))
    for kind, names in (("an input", inputs), ("an initializer", initializers)):
        if "" in names:
            yield _broken(f"{kind} has no name", path)
        for name, times in _repeated(names):
            yield _broken(f"'{short(name)}' is {kind} {times} times", path)
    if depth:
        for name in set(inputs).intersection(initializers):
            yield _broken(f"'{short(name)}' is an input of a subgraph and an initializer too", path)
    for name, times in _repeated([node.name for node in graph.node if node.name]):
        yield _broken(f"{times} nodes are called '{short(name)}'; ONNX Runtime refuses that", path)
    computed = {name for node in graph.node for name in node.output} if len(graph.value_info) > 1 else set()
    for name in _contradicted([value for value in graph.value_info if value.name in computed]):
        yield _broken(f"value_info declares '{short(name)}' with two types or shapes", path)
    for name in _contradicted(graph.output):
        yield _broken(f"output '{short(name)}' is declared with two types or shapes", path)


def _repeated(names: Sequence[str]) -> Iterable[tuple[str, int]]:
    """The names that occur more than once, with how often."""
    if len(names) < 2 or len(names) == len(set(names)):
        return ()
    return ((name, times) for name, times in Counter(names).items() if times > 1)


def _contradicted(values: Sequence[messages.Value]) -> Iterable[str]:
    """The names that are declared more than once, with types or shapes of which only one can be right."""
    if len(values) < 2:
        return ()
    first: dict[str, messages.Value] = {}
    return {value.name: None for value in values if _contradict(first.setdefault(value.name, value), value)}


def _contradict(a: messages.Value, b: messages.Value) -> bool:
    if a is b or a.type is None or b.type is None:
        return False
    left, right = a.type.tensor, b.type.tensor
    if left is None or right is None:
        return left is not right
    if left.elem_type != right.elem_type:
        return True
    if left.shape is None or right.shape is None:
        return False
    axes = zip(left.shape.dim, right.shape.dim, strict=False)
    return len(left.shape.dim) != len(right.shape.dim) or any(
        None not in (m.value, n.value) and m.value != n.value for m, n in axes
    )


def _broken(message: str, path: str, node: messages.Node | None = None, index: int | None = None) -> Violation:
    remedy = "connect or rename it"
    if node is None:
        return Violation("wiring", message, path, remedy=remedy)
    return Violation("wiring", message, path, short(node.name), short(node.op_type), index, remedy)

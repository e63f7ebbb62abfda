"""Names of values: every input of a node is defined before it, nothing is defined twice, all graph outputs exist.

The downstream's scanner accepts models that break these rules, and its ONNX Runtime then refuses them. Editing a graph by
hand is the most common cause. Standard library only.
"""

from collections import Counter
from collections.abc import Iterator, Set

from distill.opallowlist import messages
from distill.opallowlist.report import Violation, short
from distill.opallowlist.scan import MAX_DEPTH, Scope, label, subgraphs


def check_wiring(main: messages.Graph) -> Iterator[Violation]:
    """Every violation in `main` and its subgraphs, down to the depth that the downstream follows. Iterative."""
    todo: list[tuple[Scope, tuple[Set[str], ...]]] = [(Scope("main", "", 0, main), ())]
    while todo:
        scope, outer = todo.pop()
        path, graph = scope.path, scope.graph
        defined = {tensor.name for tensor in graph.initializer}
        defined |= {sparse.values.name for sparse in graph.sparse_initializer if sparse.values is not None}
        inputs = [value.name for value in graph.input]
        for name, times in Counter(inputs).items():
            if times > 1:
                yield _broken(f"'{short(name)}' is an input {times} times", path)
        defined.update(inputs)
        # What subgraphs may use: the output of any node, because order matters only among the nodes of one graph.
        visible = defined.union(*(node.output for node in graph.node))
        inside: list[Scope] = []
        for index, node in enumerate(graph.node):
            for name in node.input:
                if name and name not in defined and not any(name in names for names in outer):
                    message = f"input '{short(name)}' is defined nowhere before this node"
                    yield _broken(message, path, node, index)
            for name in node.output:
                if name in defined:
                    yield _broken(f"'{short(name)}' is defined twice", path, node, index)
                elif name:
                    defined.add(name)
            for attribute in node.attribute:
                inside.extend(subgraphs(attribute, path, f"/{label(node, index)}", len(outer)))
        scopes = (*outer, visible)
        todo += [(inner, scopes) for inner in reversed(inside) if inner.depth <= MAX_DEPTH]
        for value in graph.output:
            if value.name not in defined:
                yield _broken(f"output '{short(value.name)}' is computed nowhere in this graph", path)


def _broken(message: str, path: str, node: messages.Node | None = None, index: int | None = None) -> Violation:
    remedy = "connect or rename it; onnx.checker says the same"
    if node is None:
        return Violation("wiring", message, path, remedy=remedy)
    return Violation("wiring", message, path, short(node.name), short(node.op_type), index, remedy)

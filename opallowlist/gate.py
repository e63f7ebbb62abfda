"""The check: bytes, wire format, content, names of values, contract, then loading if asked. It returns a Report for any file."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace

from distill.opallowlist import container, loading, messages, wire
from distill.opallowlist.allowlist import Allowlist, AnyList, load_list
from distill.opallowlist.container import MAX_BYTES, Source
from distill.opallowlist.contract import CONTRACTS, check_contract, resolve
from distill.opallowlist.report import Facts, Report, Violation, short
from distill.opallowlist.scan import MAX_DEPTH, Scope, label, scan, subgraphs


def check(
    model: Source,
    *,
    allowlist: AnyList = "libvmaf",
    contract: str | None = None,
    max_bytes: int = MAX_BYTES,
    load: bool = False,
) -> Report:
    """Check one model as the downstream does, and more strictly where the downstream's scanner does not look.

    `model` is a path, the bytes of a file, or an `onnx.ModelProto`, which is checked as it would be saved. `allowlist` is a
    built-in list, a file (see `load_list`) or a loaded list. `contract` is one of CONTRACTS, or None to check only the
    content. `max_bytes` is the largest file accepted. `load`: what is accepted so far is also given to onnx.checker and,
    where it is installed, to ONNX Runtime, in a child process with limits (see `loading`); with a contract it is run, too.

    Damaged, hostile or foreign files raise nothing: they are refused, and the report says why. Raises `Unreadable` (an
    OSError) if the file cannot be read, `ListError` for an unusable list, ValueError for an unknown contract, `NoLoader`
    if `load` is asked for where onnx is not installed.
    """
    allowed = allowlist if isinstance(allowlist, Allowlist) else load_list(allowlist)
    require_contract(contract)
    if load:
        loading.require_onnx()
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else "<memory>"
    data = container.read(model, max_bytes)
    if isinstance(data, Violation):
        return Report(source, allowed.name, len(allowed), contract, (data,))
    facts = Facts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    decoded = _decode(data)
    if isinstance(decoded, Violation):
        return Report(source, allowed.name, len(allowed), contract, (decoded,), facts=facts)
    found = scan(decoded, allowed)
    if decoded.graph is not None:
        for violation in _check_wiring(decoded.graph):
            found.refuse(violation)
    if contract is not None:
        contract = resolve(contract, decoded)
        for violation in check_contract(decoded, contract):
            found.refuse(violation)
    ops = dict(sorted(found.ops.items(), key=lambda item: (-item[1], item[0])))
    facts = replace(facts, ir_version=decoded.ir_version, opset=found.opset, nodes=found.ops.total(), ops=ops)
    violations, warnings = tuple(found.violations), tuple(found.warned())
    if load and not violations:
        result = loading.load(data, contract)
        violations, warnings = result.violations, (*warnings, *result.warnings)
        facts = replace(facts, loaded_by=result.by)
    return Report(source, allowed.name, len(allowed), contract, violations, warnings, facts)


def assert_allowed(
    model: Source,
    *,
    allowlist: AnyList = "libvmaf",
    contract: str | None = None,
    max_bytes: int = MAX_BYTES,
    load: bool = False,
) -> Report:
    """`check` for tests: the report if the model is accepted, else AssertionError with the report as text."""
    from distill.opallowlist.formats import text

    report = check(model, allowlist=allowlist, contract=contract, max_bytes=max_bytes, load=load)
    if not report.ok:
        raise AssertionError(f"model refused\n{text(report)}")
    return report


def require_contract(contract: str | None) -> None:
    """Raise ValueError, with the nearest right name, unless `contract` is None or one of CONTRACTS."""
    if contract is None or contract in CONTRACTS:
        return
    import difflib  # takes 5 ms, needed only for a wrong name

    near = difflib.get_close_matches(str(contract), CONTRACTS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(CONTRACTS)}"
    raise ValueError(f"unknown contract '{contract}'; {hint}")


def _decode(data: bytes) -> messages.Model | Violation:
    if data.startswith(container.LFS):
        return Violation(
            "git-lfs-pointer", "a git-lfs pointer, not the model itself", remedy="git lfs pull, or checkout with lfs"
        )
    refused = None
    try:
        model = wire.decode(data)
        if model.graph is not None:
            return model
    except wire.Malformed as error:
        refused = Violation("malformed", f"not a readable ONNX protobuf: {error}", remedy="export or download it again")
    if (known := container.explain(data)) is not None:
        return Violation("malformed", f"not an ONNX model but {known[0]}", remedy=known[1])
    return refused or model


def _check_wiring(main: messages.Graph) -> Iterator[Violation]:
    """Every input of a node is defined before it, nothing is defined twice, all graph outputs exist.

    The downstream's scanner accepts models that break these rules, and its ONNX Runtime then refuses them. Editing a graph
    by hand is the most common cause. Covers `main` and its subgraphs, down to the depth that the downstream follows.
    """
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

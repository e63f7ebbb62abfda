"""The check: bytes, wire format, content, names of values, contract, then loading if asked. It returns a Report for any file."""

import hashlib
import os
from dataclasses import replace

from distill.opallowlist import loading
from distill.opallowlist.reading import container, messages, wire
from distill.opallowlist.reading.container import MAX_BYTES, Source
from distill.opallowlist.report import Facts, Report, Violation, short
from distill.opallowlist.rules.allowlist import Allowlist, AnyList, load_list
from distill.opallowlist.rules.contract import CONTRACTS, check_contract, resolve
from distill.opallowlist.rules.scan import MAX_FINDINGS, scan
from distill.opallowlist.rules.wiring import check_wiring


class NoVerdict(RuntimeError):
    """The check itself broke on this file, or ran out of memory: there is no verdict, and the file is not accepted.

    A fault of the gate; `__cause__` is the error.
    """


def check(
    model: Source,
    *,
    allowlist: AnyList = "libvmaf",
    contract: str | None = None,
    max_bytes: int = MAX_BYTES,
    load: bool = False,
    max_findings: int = MAX_FINDINGS,
) -> Report:
    """Check one model as the downstream does, and more strictly where the downstream's scanner does not look.

    `model` is a path, the bytes of a file, or an `onnx.ModelProto`, which is checked as it would be saved. `allowlist` is a
    built-in list, a file (see `load_list`) or a loaded list. `contract` is one of CONTRACTS, or None to check only the
    content. `max_bytes` is the largest file accepted. `load`: what is accepted so far is also given to onnx.checker and,
    where it is installed, to ONNX Runtime, in a child process with limits (see `loading`); with a contract it is run, too.
    `max_findings`: violations that the report lists, and warnings; it counts the others.

    Damaged, hostile or foreign files raise nothing: they are refused, and the report says why. Raises `Unreadable` (an
    OSError) if the file cannot be read, `ListError` for an unusable list, ValueError for an unknown contract, `NoLoader`
    if `load` is asked for where onnx is not installed, and `NoVerdict` instead of any other error, so that a caller with
    many files can go on.
    """
    allowed = allowlist if isinstance(allowlist, Allowlist) else load_list(allowlist)
    require_contract(contract)
    if load:
        loading.require_onnx()
    source = os.fspath(model) if isinstance(model, str | os.PathLike) else "<memory>"
    data = container.read(model, max_bytes)
    if isinstance(data, Violation):
        return Report(source, allowed.name, len(allowed), contract, (data,))
    try:
        return _judge(data, source, allowed, contract, load, max_findings)
    except loading.NoLoader:
        raise
    except Exception as error:
        reason = f"internal error: {type(error).__name__}: {short(str(error))}"
        reason = "not enough memory to check it" if isinstance(error, MemoryError) else reason
        raise NoVerdict(f"{source}: {reason}") from error


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


def _judge(data: bytes, source: str, allowed: Allowlist, contract: str | None, load: bool, max_findings: int) -> Report:
    facts = Facts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    decoded = _decode(data)
    if isinstance(decoded, Violation):
        return Report(source, allowed.name, len(allowed), contract, (decoded,), facts=facts)
    found = scan(decoded, allowed, max_findings)
    for violation in check_wiring(decoded):
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

"""Reports as text for people, JSON, SARIF 2.1.0 (code scanning) and GitHub's annotations.

Every function returns a string and prints nothing. Text and annotations merge equal findings on several nodes into one, with
a count; JSON and SARIF list each. Standard library only.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import quote

from distill.opallowlist.foreign import printable
from distill.opallowlist.report import OTHER_OPS, RULES, Report, Violation

JSON_SCHEMA = "opallowlist/1"
"""The `schema` field of every JSON object; the number changes when the meaning of a field does."""

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

_PLACES = 3  # places named in one line; JSON has all
_WIDEST = 44  # characters of a place before it is cut, so that remedies stay beside their operators


@dataclass(frozen=True, slots=True)
class Unread:
    """A file without a verdict: `message` says why it could not be read."""

    source: str
    message: str


def text(report: Report) -> str:
    """A line with the verdict and the facts, then a line or two per kind of finding."""
    facts = report.facts
    about = []
    if facts.nodes is not None:
        about += [f"opset {'?' if facts.opset is None else facts.opset}", f"IR {facts.ir_version}"]
        about += [_count(facts.nodes, "node"), _operators(facts.ops)]
    about.append(f"list {printable(report.allowlist)} ({report.allowed})")
    if report.contract is not None:
        about.append(f"contract {report.contract}")
    if facts.loaded_by:
        about.append(f"loaded by {', '.join(facts.loaded_by)}")
    verdict = "accepted" if report.ok else "refused"
    lines = [f"{printable(report.source)}: {verdict}  {' · '.join(about)}"]
    groups = _grouped(report.violations)
    listed = [group for group in groups if group[0].rule == "op"]
    columns = [(printable(group[0].op_type), _count(len(group), "node"), _places(group, 1)) for group in listed]
    widths = [max((len(row[column]) for row in columns), default=0) for column in range(3)]
    for group, row in zip(listed, columns, strict=True):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  ✗ {cells}  {_way_out(group[0]) or group[0].message}".rstrip())
    for group in groups:
        if group[0].rule != "op":
            lines += _finding("✗", group)
    for group in _grouped(report.warnings):
        lines += _finding("!", group)
    if listed:
        lines.append(f"  {_count(len({group[0].op_type for group in listed}), 'operator')} not on the list")
    return "\n".join(lines)


def summary(reports: Sequence[Report], unread: Sequence[Unread]) -> str:
    """The last line for several files: how many were accepted, refused, not read."""
    accepted = sum(report.ok for report in reports)
    parts = [f"{accepted} accepted", f"{len(reports) - accepted} refused"]
    if unread:
        parts.append(f"{len(unread)} not read")
    return f"{_count(len(reports) + len(unread), 'file')}: {', '.join(parts)}"


def as_json(reports: Sequence[Report], unread: Sequence[Unread]) -> str:
    """One object: `schema`, `ok` (every file read and accepted), `reports`, `errors`."""
    return json.dumps(
        {
            "schema": JSON_SCHEMA,
            "ok": not unread and all(report.ok for report in reports),
            "reports": [report.to_dict() for report in reports],
            "errors": [{"source": item.source, "message": item.message} for item in unread],
        },
        indent=2,
    )


def github(reports: Sequence[Report], unread: Sequence[Unread]) -> str:
    """Workflow commands, one annotation per kind of finding (GitHub shows ten per step), then the summary as text."""
    lines = [_command("error", item.source, "opallowlist: not read", item.message) for item in unread]
    for report in reports:
        for level, findings in (("error", report.violations), ("warning", report.warnings)):
            for group in _grouped(findings):
                first = group[0]
                title = f"opallowlist: {first.rule}{f' {first.op_type}' if first.op_type else ''}"
                what = f"{first.message} ({_places(group, _PLACES)})" if _places(group, 1) else first.message
                count = f"{_count(len(group), 'place')}: " if len(group) > 1 else ""
                way_out = f"; {_way_out(first)}" if first.remedy else ""
                lines.append(_command(level, report.source, title, f"{count}{what}{way_out}"))
    return "\n".join([*lines, summary(reports, unread)])


def sarif(reports: Sequence[Report], unread: Sequence[Unread], version: str) -> str:
    """A SARIF 2.1.0 log with one run. `version` is that of the tool. Paths become URIs relative to where it ran."""
    rule_ids = list(RULES)
    failed = [
        {"level": "error", "message": {"text": item.message}, "locations": [_location(item.source, None)]} for item in unread
    ]
    results = [
        _result(report, violation, level, rule_ids)
        for report in reports
        for level, findings in (("error", report.violations), ("warning", report.warnings))
        for violation in findings
    ]
    run = {
        "tool": {
            "driver": {
                "name": "opallowlist",
                "semanticVersion": version,
                "rules": [{"id": rule, "shortDescription": {"text": RULES[rule]}} for rule in rule_ids],
            }
        },
        "invocations": [{"executionSuccessful": not unread, "toolExecutionNotifications": failed}],
        "artifacts": [_artifact(report) for report in reports],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _grouped(findings: Sequence[Violation]) -> list[list[Violation]]:
    groups: dict[tuple[str, str, str], list[Violation]] = {}
    for item in findings:
        groups.setdefault((item.rule, item.op_type, item.message), []).append(item)
    return list(groups.values())


def _finding(mark: str, group: list[Violation]) -> list[str]:
    first = group[0]
    places = _places(group, _PLACES)
    what = f"{first.op_type}: {first.message}" if first.op_type else first.message
    lines = [f"  {mark} {first.rule}  {printable(what)}" + (f"  ({places})" if places else "")]
    if first.remedy:
        lines.append(f"      {_way_out(first)}")
    return lines


def _places(group: Sequence[Violation], at_most: int) -> str:
    places = [printable(item.place) for item in group if item.place]
    shown = [place if len(place) <= _WIDEST else f"{place[:20]}…{place[-(_WIDEST - 21) :]}" for place in places[:at_most]]
    return ", ".join(shown) + (", …" if len(places) > at_most and shown else "")


def _way_out(violation: Violation) -> str:
    return f"try: {violation.remedy}" if violation.remedy else ""


def _operators(ops: Mapping[str, int]) -> str:
    return f"over {_count(len(ops) - 1, 'operator')}" if OTHER_OPS in ops else _count(len(ops), "operator")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _command(level: str, source: str, title: str, message: str) -> str:
    properties = f"file={_escaped(_posix(source), inside_property=True)},title={_escaped(title, inside_property=True)}"
    return f"::{level} {properties}::{_escaped(message)}"


def _escaped(value: str, *, inside_property: bool = False) -> str:
    """Escaped as GitHub's runner expects; other control characters are escaped too, so that no name can start a command."""
    value = value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    if inside_property:
        value = value.replace(":", "%3A").replace(",", "%2C")
    return printable(value)


def _result(report: Report, violation: Violation, level: str, rule_ids: list[str]) -> dict[str, object]:
    what = f"{violation.op_type}: {violation.message}" if violation.op_type else violation.message
    way_out = f"; {_way_out(violation)}" if violation.remedy else ""
    return {
        "ruleId": violation.rule,
        "ruleIndex": rule_ids.index(violation.rule),
        "level": level,
        "message": {"text": printable(f"{what}{way_out}")},
        "locations": [_location(report.source, violation)],
    }


def _location(source: str, violation: Violation | None) -> dict[str, object]:
    # Code scanning requires a region; line 1 is its convention for a file without lines.
    location: dict[str, object] = {"physicalLocation": {"artifactLocation": {"uri": _uri(source)}, "region": {"startLine": 1}}}
    if violation is not None and violation.path:
        full = f"{violation.path}/{violation.label}" if violation.label else violation.path
        name = violation.label or violation.path
        location["logicalLocations"] = [{"name": printable(name), "fullyQualifiedName": printable(full)}]
    return location


def _artifact(report: Report) -> dict[str, object]:
    artifact: dict[str, object] = {"location": {"uri": _uri(report.source)}, "roles": ["analysisTarget"]}
    if report.facts.bytes is not None:
        artifact["length"] = report.facts.bytes
    if report.facts.sha256 is not None:
        artifact["hashes"] = {"sha-256": report.facts.sha256}
    return artifact


def _uri(source: str) -> str:
    if source == "<memory>":
        return "memory"
    path = PurePath(source)
    if path.is_absolute():
        return path.as_uri()
    return quote(_posix(source).encode("utf-8", "surrogateescape"))


def _posix(source: str) -> str:
    return source.replace("\\", "/") if os.sep == "\\" else source

"""Reports as text, JSON, SARIF 2.1.0 and GitHub annotations."""

import json
import re

import onnx
import pytest

from distill.opallowlist import RULES, Report, Violation, check
from distill.opallowlist.formats import Unread, as_json, github, sarif, summary, text

HEADER = '<ir_version: 8, opset_import: ["" : 18]>'
BAD = """agraph (float[1,3,H,W] input) => (float[1,3,H,W] y) <bool cond = {1}> {
  a = Relu (input)  b, c = Split <axis = 1, num_outputs = 2> (a)  d = Floor (b)  e = Floor (d)
  y = If (cond) <then_branch: graph = t () => (float[1,3,H,W] t) { t = Floor (e) },
                 else_branch: graph = u () => (float[1,3,H,W] u) { u = Resize <mode = "cubic"> (e) }>
}"""


@pytest.fixture
def bad(tmp_path, monkeypatch) -> Report:
    model = onnx.parser.parse_model(HEADER + BAD)
    model.graph.node[1].name = "/neck/Split"
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "bad model.onnx")
    return check("bad model.onnx")


def test_text_of_a_refused_model(bad):
    assert text(bad).splitlines() == [
        "bad model.onnx: refused  opset 18 · IR 8 · 7 nodes · 5 operators · list libvmaf (70)",
        "  ✗ Split  1 node   main: /neck/Split  try: one Slice per part; before a split, two Convs",
        "  ✗ Floor  3 nodes  main: Floor_2, …   try: integers: Div in int64; floats >= 0: Cast to int64 and back",
        "  ✗ resize-mode  Resize: Resize mode is cubic; accepted are nearest and linear  (main/If_4.else_branch: Resize_0)",
        "      try: use linear",
        "  ! house-opset  opset 18 where the house value is 17",
        "  2 operators not on the list",
    ]


def test_text_of_an_accepted_model(image):
    assert text(check(image, contract="saliency")) == (
        "<memory>: accepted  opset 17 · IR 8 · 2 nodes · 2 operators · list libvmaf (70) · contract saliency-image"
    )


def test_text_of_a_file_that_is_not_a_model(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"")
    assert text(check(path)).splitlines() == [
        f"{path}: refused  list libvmaf (70)",
        "  ✗ empty  empty, 0 bytes",
        "      try: an export that failed leaves such files; run it again",
    ]


def test_text_survives_hostile_names(image):
    image.graph.node[0].op_type = "Ev\x1b[2Jil\u202e\n"
    image.graph.node[0].name = "n" * 5000
    shown = text(check(image))
    assert "\x1b" not in shown and "\u202e" not in shown and r"Ev\x1b[2Jil\u202e\n" in shown
    assert max(map(len, shown.splitlines())) < 300


def test_a_list_that_has_no_remedy_says_the_rule(image):
    image.graph.node[0].op_type = "Hardmax"
    assert "✗ Hardmax  1 node  main: Hardmax_0  not on the list 'libvmaf'" in text(check(image))


def test_the_summary_counts(bad, image):
    assert summary([bad, check(image)], [Unread("x", "gone")]) == "3 files: 1 accepted, 1 refused, 1 not read"
    assert summary([bad], []) == "1 file: 0 accepted, 1 refused"


def test_json_is_one_object_with_everything(bad):
    got = json.loads(as_json([bad], [Unread("gone.onnx", "gone.onnx: cannot be read")]))
    assert got["schema"] == "opallowlist/1" and got["ok"] is False
    assert got["errors"] == [{"source": "gone.onnx", "message": "gone.onnx: cannot be read"}]
    [report] = got["reports"]
    assert report == json.loads(json.dumps(bad.to_dict()))
    assert report["facts"]["ops"] == {"Floor": 3, "If": 1, "Relu": 1, "Resize": 1, "Split": 1}
    assert report["violations"][0] == {
        "rule": "op",
        "message": "not on the list 'libvmaf'",
        "path": "main",
        "node": "/neck/Split",
        "op_type": "Split",
        "index": 1,
        "remedy": "one Slice per part; before a split, two Convs",
    }
    assert json.loads(as_json([check(b"")], []))["reports"][0]["facts"]["opset"] is None


def undo(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as GitHub's runner reads it."""
    command, properties, message = re.fullmatch(r"::(\w+) (.*?)::(.*)", line).groups()

    def plain(value: str) -> str:
        for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            value = value.replace(code, character)
        return value

    pairs = (part.split("=", 1) for part in properties.split(","))
    return command, {key: plain(value) for key, value in pairs}, plain(message)


def test_github_annotations(bad):
    *commands, last = github([bad], [Unread("a,b:c.onnx", "100% gone")]).splitlines()
    assert last == "2 files: 0 accepted, 1 refused, 1 not read"
    read = [undo(line) for line in commands]
    assert read[0] == ("error", {"file": "a,b:c.onnx", "title": "opallowlist: not read"}, "100% gone")
    assert [(level, properties["title"]) for level, properties, _ in read[1:]] == [
        ("error", "opallowlist: op Split"),
        ("error", "opallowlist: op Floor"),
        ("error", "opallowlist: resize-mode Resize"),
        ("warning", "opallowlist: house-opset"),
    ]
    assert all(properties["file"] == "bad model.onnx" for _, properties, _ in read[1:])
    assert read[2][2].startswith("3 places: not on the list 'libvmaf' (main: Floor_2, main: Floor_3, main/If_4.then")
    assert "a%2Cb%3Ac.onnx" in commands[0] and "100%25 gone" in commands[0]


def test_no_name_can_start_a_workflow_command(image):
    image.graph.node[0].op_type = "X\n::set-output name=a::b\r::error::%0A::"
    image.graph.node[0].name = "\n::stop-commands::x"
    image.graph.node[0].domain = "\u2028::error::"
    lines = github([check(image)], [Unread("\n::error::x", "\r\n::error::y")]).splitlines()
    assert len(lines) == 3 and all(line.startswith("::error file=") for line in lines[:2])


# SARIF. The parts of the 2.1.0 schema that the log uses: object -> (required, allowed) properties, as its definitions say.
SHAPES = {
    "log": ({"version", "runs"}, {"$schema", "version", "runs"}),
    "run": ({"tool"}, {"tool", "invocations", "artifacts", "columnKind", "results"}),
    "tool": ({"driver"}, {"driver"}),
    "driver": ({"name"}, {"name", "semanticVersion", "rules"}),
    "rule": ({"id"}, {"id", "shortDescription"}),
    "invocation": ({"executionSuccessful"}, {"executionSuccessful", "toolExecutionNotifications"}),
    "notification": ({"message"}, {"message", "level", "locations"}),
    "artifact": (set(), {"location", "roles", "length", "hashes"}),
    "result": ({"message"}, {"ruleId", "ruleIndex", "level", "message", "locations"}),
    "location": (set(), {"physicalLocation", "logicalLocations"}),
    "physicalLocation": ({"artifactLocation"}, {"artifactLocation", "region"}),
    "artifactLocation": ({"uri"}, {"uri"}),
    "region": ({"startLine"}, {"startLine"}),
    "logicalLocation": (set(), {"name", "fullyQualifiedName"}),
    "message": ({"text"}, {"text"}),
}
URI = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})+")


def shaped(value: dict, shape: str) -> dict:
    required, allowed = SHAPES[shape]
    assert required <= set(value) <= allowed, (shape, sorted(value))
    return value


def check_location(location: dict) -> None:
    physical = shaped(shaped(location, "location")["physicalLocation"], "physicalLocation")
    assert URI.fullmatch(shaped(physical["artifactLocation"], "artifactLocation")["uri"])
    assert shaped(physical["region"], "region")["startLine"] >= 1
    for logical in location.get("logicalLocations", []):
        assert all(isinstance(part, str) for part in shaped(logical, "logicalLocation").values())


def check_sarif(log: dict) -> list[dict]:
    """Required fields, known fields, types and cross references of the log; its results."""
    shaped(log, "log")
    assert log["version"] == "2.1.0" and len(log["runs"]) == 1
    run = shaped(log["runs"][0], "run")
    driver = shaped(shaped(run["tool"], "tool")["driver"], "driver")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", driver["semanticVersion"])
    assert [shaped(rule, "rule")["id"] for rule in driver["rules"]] == list(RULES)
    for rule in driver["rules"]:
        assert shaped(rule["shortDescription"], "message")["text"]
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    for invocation in run["invocations"]:
        assert isinstance(shaped(invocation, "invocation")["executionSuccessful"], bool)
        for notification in invocation["toolExecutionNotifications"]:
            assert shaped(notification, "notification")["level"] == "error"
            shaped(notification["message"], "message")
            for location in notification["locations"]:
                check_location(location)
    for artifact in run["artifacts"]:
        assert URI.fullmatch(shaped(shaped(artifact, "artifact")["location"], "artifactLocation")["uri"])
        assert artifact.get("length", -1) >= -1 and artifact["roles"] == ["analysisTarget"]
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in artifact.get("hashes", {}).values())
    for result in run["results"]:
        assert shaped(result, "result")["level"] in ("none", "note", "warning", "error")
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert shaped(result["message"], "message")["text"]
        assert len(result["locations"]) == 1
        check_location(result["locations"][0])
    return run["results"]


def test_sarif_has_the_schemas_form(bad, image, tmp_path):
    odd = tmp_path / "ü ,:%.onnx"
    odd.write_bytes(b"PK\x03\x04")
    (tmp_path / "a:b.onnx").write_bytes(b"text")  # the working directory
    reports = [bad, check(image), check(odd), check("a:b.onnx")]
    results = check_sarif(json.loads(sarif(reports, [Unread("C:x y.onnx", "C:x y.onnx: cannot be read")], "0.1.0")))
    assert [result["ruleId"] for result in results[:4]] == ["op", "op", "op", "op"]
    assert results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "bad%20model.onnx"
    assert results[0]["locations"][0]["logicalLocations"] == [{"name": "/neck/Split", "fullyQualifiedName": "main//neck/Split"}]
    assert results[-1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%3Ab.onnx"
    assert {result["level"] for result in results} == {"error", "warning"}


def test_sarif_of_nothing_found(image):
    log = json.loads(sarif([check(image)], [], "0.1.0"))
    assert check_sarif(log) == [] and log["runs"][0]["invocations"][0]["executionSuccessful"] is True


def test_every_rule_that_can_be_reported_is_described(bad):
    assert all(len(text) > 10 and not text.endswith(".") for text in RULES.values())
    with pytest.raises(ValueError, match="nonsense"):
        sarif([Report("x", "l", 1, None, (Violation("nonsense", "m"),))], [], "0")

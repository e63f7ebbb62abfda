"""Reports stay small, whatever a file is full of: findings, names, texts, and what a batch keeps of each file."""

import json

import onnx
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import check, cli, formats, load_list
from distill.opallowlist.report import OTHER_OPS
from distill.opallowlist.rules.scan import MAX_FINDINGS, MAX_OPS

LONG = "\U0001f3a5" * 16_000  # 64,000 bytes


def lengths(model: onnx.ModelProto) -> list[int]:
    report = check(model, contract="saliency")
    assert not report.ok
    rendered = [
        formats.text(report),
        formats.as_json([report], []),
        formats.github([report], []),
        formats.sarif([report], [], "1"),
    ]
    return [len(text) for text in rendered]


def spoil(model: onnx.ModelProto, where: str, name: str) -> None:
    graph = model.graph
    match where:
        case "op":
            graph.node[0].op_type = name
        case "domain":
            graph.node[0].domain = name
        case "node":
            graph.node[0].name, graph.node[0].op_type = name, "Floor"
        case "attribute":
            graph.node[0].attribute.add(name=name)
        case "subgraph":
            graph.node[0].op_type = name
            graph.node[0].attribute.add(name=name).g.node.add(op_type=name).attribute.add(name=name).g.node.add(op_type=name)
        case "read":
            graph.node[0].input.append(name)
        case "computed":
            graph.node[0].output.extend([name, name])
        case "input":
            graph.input.add(name=name)
        case "output":
            graph.output.add(name=name)
        case "dimension":
            graph.input[0].type.tensor_type.shape.dim[1].dim_param = name
        case "initializer":
            graph.initializer.extend([TensorProto(name=name, dims=[1 << 60] * 1000, data_type=1, raw_data=b"a")] * 2)
        case "external":
            graph.initializer.add(name=name).external_data.add(key="location", value=name)
        case "declared":
            graph.node[0].output.append(name)
            types = [helper.make_tensor_value_info(name, kind, [1]) for kind in (TensorProto.FLOAT, TensorProto.INT64)]
            graph.value_info.extend(types)
        case "import":
            model.opset_import.add(domain=name, version=1)
            graph.node[0].op_type = "Floor"
        case "function":
            model.functions.add(name=name, domain=name)


PLACES = ["op", "domain", "node", "attribute", "subgraph", "read", "computed", "input", "output", "dimension", "initializer"]
PLACES += ["external", "declared", "import", "function"]


@pytest.mark.parametrize("where", PLACES)
def test_long_names_are_cut_wherever_they_are(image, where):
    spoil(image, where, LONG)
    assert max(lengths(image)) < 60_000  # most of it the rules of SARIF; JSON has 12 characters for each of a name


@pytest.mark.parametrize("where", PLACES)
def test_many_findings_of_one_kind_are_counted(image, where):
    text = image.SerializeToString()
    for number in range(50):
        part = onnx.ModelProto.FromString(text)
        spoil(part, where, f"{number}{LONG}")
        image.MergeFrom(part)
    assert max(lengths(image)) < 3_000 * MAX_FINDINGS


def test_operators_beyond_two_hundred_are_counted_together(image):
    for number in range(5_000):
        image.graph.node.add(op_type=f"Op{number}", input=["c"], output=[f"v{number}"])
    report = check(image)
    assert len(report.facts.ops) == MAX_OPS + 1 and report.facts.nodes == sum(report.facts.ops.values()) == 5_002
    assert next(iter(report.facts.ops.items())) == (OTHER_OPS, 5_002 - MAX_OPS) and report.facts.ops["Conv"] == 1
    assert "5,002 nodes · over 200 operators" in formats.text(report)
    assert [v.message for v in report.warnings] == [f"{5_000 - MAX_FINDINGS:,} more violations are not listed"]


def test_warnings_are_counted_too(image):
    for number in range(2_500):
        image.opset_import.add(domain=f"d{number}", version=1)
    report = check(image)
    assert report.ok and len(report.warnings) == MAX_FINDINGS + 1
    assert report.warnings[-1].message == "1,500 more warnings are not listed"


def test_a_batch_keeps_little_of_each_file_after_the_first_many(image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "MAX_BATCH_FINDINGS", 60)
    for number in range(40):
        image.graph.node.add(op_type=f"Op{number}", input=["c"], output=[f"v{number}"])
    onnx.save(image, tmp_path / "bad.onnx")
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "--json", *[str(tmp_path / "bad.onnx")] * 4])
    result = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1
    assert [len(report["violations"]) for report in result["reports"]] == [40, 20, 3, 3]
    assert [len(report["facts"]["ops"]) for report in result["reports"]] == [42, 21, 4, 4]
    assert result["reports"][3]["warnings"][-1]["message"] == "37 more violations are not listed"
    assert {report["facts"]["nodes"] for report in result["reports"]} == {42}


def test_the_hint_of_another_case_costs_no_search_of_the_list():
    from distill.opallowlist.rules.remedies import remedy

    assert remedy("rELU", load_list("libvmaf")) == "the list has 'Relu'; names are compared case by case"

"""The bench's arithmetic and its table; no timings are asserted."""

import json
import re
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.cli import model_verbs
from distill.run.errors import UsageError
from distill.run.progress import Narrator
from distill.tools import bench, bench_memory
from distill.tools.bench import Bench, Ceiling, Row, measure, take_turns
from distill.tools.bench_memory import peak_bytes
from tests.helpers import distill, step_model


def wide_model(path, channels):
    """One value of so many channels at the frame's size, and a map of it."""
    weights = [
        numpy_helper.from_array(np.full((channels, 3, 1, 1), 0.1, np.float32), "w"),
        numpy_helper.from_array(np.full((1, channels, 1, 1), 0.1, np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["wide"]),
        helper.make_node("Conv", ["wide", "v"], ["narrow"]),
        helper.make_node("Sigmoid", ["narrow"], ["saliency_map"]),
    ]
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, "h", "w"]) for n, c in (("input", 3), ("saliency_map", 1))
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def models(tmp_path):
    return [wide_model(tmp_path / "thin.onnx", 4), wide_model(tmp_path / "wide.onnx", 64), step_model(tmp_path / "step.onnx")]


def test_rows_say_what_was_measured_against_the_last(models):
    found = measure(models, ["64x48", "80x50"], [1], 1)
    assert [(r.size, r.model) for r in found.results] == [(s, p.name) for s in ("64x48", "80x50") for p in models]
    assert found.against == "step.onnx" and [c.threads for c in found.ceilings] == [1]
    thin, wide, step = found.results[:3]
    assert step.speedup == 1 and step.memory_ratio == 1
    assert thin.speedup == pytest.approx(step.median_ms / thin.median_ms)
    assert wide.memory_ratio == pytest.approx(wide.peak_mib / step.peak_mib)
    assert thin.gmac == pytest.approx(64 * 48 * (3 * 4 + 4) / 1e9) and thin.parameters == 16 and step.gmac == 0
    rate = wide.gmac / (wide.median_ms / 1000)
    assert wide.ceiling_fraction == pytest.approx(rate / found.ceilings[0].gmac_per_s) and 0 < wide.ceiling_fraction < 1
    assert all(row.p90_ms >= row.median_ms > 0 for row in found.results)


def test_another_base_is_measured_too_and_only_once(models, monkeypatch):
    monkeypatch.setattr(bench, "peak_bytes", lambda *_: 2.0**20)
    found = measure(models[:1], ["64x48"], [1], 1, against=models[1])
    assert [row.model for row in found.results] == ["thin.onnx", "wide.onnx"] and found.against == "wide.onnx"
    found = measure(models[:2], ["64x48"], [1, 2], 1, against=models[0])
    assert [(row.threads, row.model) for row in found.results] == [(n, m) for n in (1, 2) for m in ("thin.onnx", "wide.onnx")]
    assert found.results[0].speedup == 1 and [c.threads for c in found.ceilings] == [1, 2]


def test_runs_take_turns_and_the_first_turn_only_warms_up():
    calls = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3, 1)
    assert calls == ["a", "b"] * 4 and [len(times) for times in seconds] == [3, 3]


def test_a_state_is_carried_from_turn_to_turn_and_not_to_another_size(models, monkeypatch):
    opened = []
    monkeypatch.setattr(bench, "peak_bytes", lambda *_: 1.0)
    original = bench.open_all
    monkeypatch.setattr(bench, "open_all", lambda *a: opened.append(original(*a)) or opened[-1])
    measure(models[2:], ["64x48"], [1], 3)
    noise = bench.noise(64, 48).mean(1)  # the model's state is the frame's mean plus half of the last state
    assert np.allclose(opened[-1][0].state[0, 0], noise * (1 + 1 / 2 + 1 / 4 + 1 / 8), atol=1e-5)
    measure(models[2:], ["64x48", "80x50"], [1], 1)
    assert opened[-1][0].state.shape[2:] == (50, 80)


def test_memory_is_that_of_the_model_and_not_of_this_process(models):
    ballast = np.ones(2**25)  # 256 MiB here must not count there
    thin, wide = (peak_bytes(path, 512, 512, 1, runs=1) / 2**20 for path in models[:2])
    assert ballast.nbytes and thin < 64 < wide < 256  # 64 channels of 1 MiB each, and onnxruntime's own


def test_without_proc_memory_is_unknown_and_everything_else_is_measured(models, monkeypatch, tmp_path, capsys):
    for name in ("STATUS", "CLEAR"):
        monkeypatch.setattr(bench_memory, name, tmp_path / "proc" / "self")
    rows = measure(models[:2], ["64x48"], [1], 1).results
    assert [(row.peak_mib, row.memory_ratio) for row in rows] == [(None, None)] * 2
    assert all(row.median_ms > 0 and row.gmac > 0 for row in rows)
    model_verbs.print_bench(rows)
    assert re.search(r"thin( +[\d.]+){3} +- +- +0\.000", capsys.readouterr().out)


def test_a_graph_that_cannot_be_counted_is_still_timed(models, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("Loop /l: its iterations are not known")

    monkeypatch.setattr(bench, "count", refuse)
    [row] = measure(models[:1], ["64x48"], [1], 1, narrator=Narrator()).results
    assert row.gmac is None and row.ceiling_fraction is None and row.parameters == 16
    assert "the multiply-adds of thin.onnx at 64x48 are not counted: Loop /l" in " ".join(capsys.readouterr().err.split())


def test_a_model_that_does_not_run_is_a_one_line_error(tmp_path, models):
    with pytest.raises(UsageError, match=r"no model at .*none.onnx"):
        measure([tmp_path / "none.onnx"], ["64x48"], [1], 1)
    fixed = onnx.load(models[0])
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 48
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match="does not run at 64x50"):
        measure([tmp_path / "fixed.onnx"], ["64x48", "64x50"], [1], 1)
    with pytest.raises(UsageError, match=r"fixed\.onnx at 64x50 cannot be measured: "):
        peak_bytes(tmp_path / "fixed.onnx", 64, 50, 1, runs=1)


def test_two_files_of_one_name_are_shown_with_their_paths(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "m.onnx", tmp_path / "other" / "m.onnx"]
    assert bench.display_names(paths) == [str(path) for path in paths]


def test_the_table_fits_80_columns(capsys):
    row = Row("1920x1080", 1, "saliency_student_v2.onnx", 1050.4, 1112.9, 123.4, 1069.3, 0.024, 34.729, 123_425, 0.683)
    unknown = Row("1920x1080", 1, "student_step.onnx", 7.3, 7.44, 1.0, 24.9, 1.0, None, 237_397, None)
    model_verbs.print_bench([row, unknown])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    [line] = [line for line in lines if "student_v2" in line]
    assert line.split() == ["saliency_student_v2", "1050", "1113", "123", "1069", "0.02", "34.729", "123", "K", "68%"]
    assert re.search(r"student_step +7\.30 +7\.44 +1\.00 +24\.9 +1\.00 +- +237 K +-", "\n".join(lines))


def test_the_command_prints_plain_numbers_and_a_readable_table(models):
    arguments = ["bench", *map(str, models[:2]), "--size", "64x48", "--rounds", "1", "--quiet"]
    result = distill(*arguments, "--against", str(models[0]), "--json")
    found = json.loads(result.stdout)
    assert found["schema"] == 2 and found["against"] == "thin.onnx" and len(found["results"]) == 2 and not result.stderr
    assert all(isinstance(row[key], (int, float)) for row in found["results"] for key in row.keys() - {"size", "model"})
    assert found["ceilings"][0]["gmac_per_s"] > 0 and "float32" in found["ceilings"][0]["of"]
    lines = distill(*arguments).stdout.splitlines()
    assert lines[0] == "64x48, 1 thread, 1 frames each, ratios to wide.onnx"
    assert max(map(len, lines)) <= 100 and any(line.startswith("ceiling: ") for line in lines)


def test_a_bench_is_plain_data():
    row = Row("1x1", 1, "m", 1.0, 1.0, 1.0, 1.0, 1.0, None, 1, None)
    data = asdict(Bench("m", [Ceiling(1, 50.0, "x")], [row]))
    assert json.loads(json.dumps(data))["results"][0]["gmac"] is None

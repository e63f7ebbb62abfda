import copy
import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from distill.export.graph import Core, fold_batch_norm, image_graph, step_graph, trace
from distill.export.runner import Predictor, normalise
from distill.export.student import Parity, compare, export_student
from distill.export.verification import ExportRefused
from distill.export.writer import Writer
from distill.opallowlist import check
from distill.run.files import write_bytes
from distill.students import TinyUNetConfig
from tests.helpers import ROOT, SMALL, lively


@pytest.fixture(scope="module")
def student():
    return lively()


@pytest.fixture(scope="module")
def graphs(student):
    return image_graph(student, {"license": "x"}), step_graph(student, 25.0, {"license": "x"})


def test_both_graphs_keep_the_contract(graphs):
    for model, mode in zip(graphs, ("image", "step"), strict=True):
        onnx.checker.check_model(model, full_check=True)
        assert check(model, contract=f"saliency-{mode}").ok
        assert model.ir_version == 8 and [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        assert not model.functions and model.metadata_props[0].value == "x"


def test_onnxruntime_and_pytorch_agree_over_sizes_and_time(student, graphs):
    frames = [np.random.default_rng(1).integers(0, 256, (54, 96, 3), np.uint8) for _ in range(12)]
    parity = compare(student, *graphs, 25.0, frames, sizes=((16, 16), (97, 131), (217, 333), (600, 300)), length=6)
    assert parity.failures == []
    assert parity.zero_state_max_abs <= 1e-6 and parity.state_effect > 1e-4


def test_the_default_student_agrees_at_full_hd():
    student = lively(TinyUNetConfig())
    parity = compare(student, image_graph(student, {}), step_graph(student, 30.0, {}), 30.0, sizes=((1080, 1920),), length=2)
    assert parity.failures == []


def test_any_size_down_to_16_and_any_aspect(graphs):
    predictor = Predictor(graphs[1].SerializeToString())
    for height, width in ((16, 16), (16, 1024), (333, 17), (101, 103), (2304, 4096)):
        saliency = predictor.predict(np.zeros((height, width, 3), np.uint8))
        assert saliency.shape == (height, width) and saliency.min() >= 0 and saliency.max() <= 1


def test_a_call_without_state_works(graphs):
    session = ort.InferenceSession(graphs[1].SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    image = ort.InferenceSession(graphs[0].SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, 90, 160), np.float32)
    assert [i.name for i in session.get_inputs()] == ["input"]
    plain = session.run(None, {"input": x})[0]
    zeros = session.run(None, {"input": x, "state_in": np.zeros(SMALL.state_shape, np.float32)})[0]
    assert np.array_equal(plain, zeros) and np.array_equal(plain, image.run(None, {"input": x})[0])


def quiet():
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


def test_the_runner_carries_resets_and_streams(graphs):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(3)]
    predictor = Predictor(graphs[1].SerializeToString())
    first = list(predictor.stream(frames))
    assert not np.array_equal(first[0], predictor.predict(frames[0]))  # it remembers
    predictor.reset()
    assert all(np.array_equal(a, b) for a, b in zip(first, predictor.stream(frames), strict=True))
    assert predictor.stateful and not Predictor(graphs[0].SerializeToString()).stateful


def test_normalisation_is_imagenets():
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    expected = (frame / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(normalise(frame)[0], expected.transpose(2, 0, 1), atol=1e-5)


def test_the_same_weights_give_the_same_bytes_without_paths(student):
    once, again = (step_graph(student, 25.0, {"a": "b"}).SerializeToString(deterministic=True) for _ in range(2))
    assert once == again and b"/home" not in once and b"site-packages" not in once and b".py" not in once


def test_another_process_writes_the_same_bytes(graphs):
    code = (
        "import hashlib\nfrom distill.export.graph import image_graph, step_graph\nfrom tests.helpers import lively\n"
        "for model in (image_graph(lively(), {'license': 'x'}), step_graph(lively(), 25.0, {'license': 'x'})):\n"
        "    print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())"
    )
    ours = [hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest() for model in graphs]
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert result.stdout.split() == ours, result.stderr


def test_the_exporter_leaves_no_metadata_and_names_are_unique(graphs):
    def graphs_of(graph):
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from graphs_of(attribute.g)

    for model in graphs:
        assert model.producer_name == "saliency-distill" and not model.doc_string and len(model.metadata_props) == 1
        parts = list(graphs_of(model.graph))
        assert len(parts) == 7  # three nested choices of a pooling kernel
        nodes = [node for graph in parts for node in graph.node]
        tensors = [tensor for graph in parts for tensor in graph.initializer]
        for part in (*parts, *nodes, *tensors, *model.graph.input, *model.graph.output):
            assert part.name and not part.doc_string and not part.metadata_props
        assert not any(graph.value_info for graph in parts)
        values = [*(output for node in nodes for output in node.output), *(tensor.name for tensor in tensors)]
        assert len(set(values)) == len(values) and len({node.name for node in nodes}) == len(nodes)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
def test_torchs_exporter_agrees_on_the_core(student):
    folded = copy.deepcopy(student)
    fold_batch_norm(folded)
    examples = torch.randn(1, 3, SMALL.height, SMALL.width), torch.rand(SMALL.state_shape)
    writer = Writer.new("core")
    inputs = [writer.builder.input(f"x{i}", ir.DataType.FLOAT, list(x.shape)) for i, x in enumerate(examples)]
    small, state = trace(writer, Core(folded, 25.0), inputs, ["small", "state_out"])
    writer.output(small, [1, 1, SMALL.height // 4, SMALL.width // 4])
    writer.output(state, SMALL.state_shape)
    theirs = torch.onnx.export(Core(student, 25.0).eval(), examples, dynamo=True, verbose=False)
    results = []
    for model in (writer.model({}), theirs.model_proto):
        session = ort.InferenceSession(model.SerializeToString(), quiet(), providers=["CPUExecutionProvider"])
        feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), examples, strict=True)}
        results.append(session.run(None, feed))
    for ours, other in zip(*results, strict=True):
        assert np.abs(ours - other).max() <= 1e-6


def test_an_unsupported_operation_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    writer = Writer.new("odd")
    x = writer.builder.input("x", ir.DataType.FLOAT, [1, 2])
    with pytest.raises(ExportRefused, match=r"^the student uses cumsum at cumsum, .*add it to EMIT in export/graph.py$"):
        trace(writer, Odd(), [x], ["y"])


def test_verified_files_get_their_names(student, tmp_path):
    verified = export_student(student, 25.0, {}, sizes=((40, 60),), length=3)
    files = verified.files("mini")
    assert list(files) == ["mini.onnx", "mini_step.onnx"] and list(verified.gate) == ["image", "step"]
    for name, content in files.items():
        write_bytes(tmp_path / name, content)
        assert check(tmp_path / name).ok and len(content) < 2_000_000


@pytest.mark.parametrize("where", ["gate", "parity"])
def test_failed_checks_are_refused(student, monkeypatch, where):
    if where == "gate":  # a forbidden operator behind the last one
        original = step_graph

        def with_floor(*args):
            model = original(*args)
            model.graph.node[-1].output[0] = "unrounded"
            model.graph.node.append(onnx.helper.make_node("Floor", ["unrounded"], ["saliency_map"], name="late"))
            return model

        monkeypatch.setattr("distill.export.student.step_graph", with_floor)
        message = "Floor"
    else:  # weights that differ from the student's
        monkeypatch.setattr("distill.export.student.image_graph", lambda s, m: image_graph(lively(seed=1), m))
        message = "image file against PyTorch"
    with pytest.raises(ExportRefused, match=message):
        export_student(student, 25.0, {}, sizes=((40, 60),), length=3)


def test_nan_fails_parity():
    assert Parity([[1, 1]], 1, float("nan"), 0.0, 0.0, 1.0).failures
    assert "the state has no effect" in Parity([[1, 1]], 1, 0.0, 0.0, 0.0, 0.0).failures[0]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"\x08\x08"])
def test_a_file_that_is_not_a_model_is_a_one_line_error(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.onnx (does not load|is not a saliency)"):
        Predictor(path)

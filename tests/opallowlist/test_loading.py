"""`--load`: a child process gives the model to onnx.checker and ONNX Runtime; however it ends, there is a verdict.

The worst ends come from stand-ins for the libraries, found first on the path that the child gets from its parent.
"""

import os
import sys

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from distill.opallowlist import NoLoader, assert_allowed, check, loading
from tests.opallowlist.conftest import IMAGE, STEP

CHECKER, RUNTIME = f"onnx.checker {onnx.__version__}", f"ONNX Runtime {onnxruntime.__version__}"
ONNX = (
    "import sys; __version__ = '1.0'; checker = sys.modules[__name__]; __path__ = []; sys.modules['onnx.checker'] = checker\n"
)
ACCEPTING = ONNX + "def check_model(data, full_check): assert full_check"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put stand-ins for onnx and onnxruntime in the child's way: `session` is what ONNX Runtime does with a model."""

    def install(session: str, onnx_source: str = ACCEPTING) -> None:
        (tmp_path / "onnx.py").write_text(onnx_source)
        (tmp_path / "onnxruntime.py").write_text(
            "import os, sys, time\n__version__ = '2.0'\nclass SessionOptions: pass\n"
            f"def InferenceSession(data, options, providers): {session}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def refusal(model, **options) -> str:
    report = check(model, load=True, **options)
    assert [violation.rule for violation in report.violations] == ["load"] and report.violations[0].remedy, report
    message = report.violations[0].message
    assert message.isprintable() and len(message) < 500
    return message


@pytest.mark.parametrize("contract", [None, "saliency"])
def test_a_sound_model_is_accepted_and_the_report_says_by_whom(image, step, contract):
    for model in (image, step):
        report = assert_allowed(model, contract=contract, load=True)
        assert report.facts.loaded_by == (CHECKER, RUNTIME) and report.warnings == ()
    assert check(image).facts.loaded_by == ()


def test_what_the_scan_refuses_is_not_loaded(image, monkeypatch):
    monkeypatch.setattr(loading, "load", None)
    image.graph.node[1].op_type = "Floor"
    assert [violation.rule for violation in check(image, load=True).violations] == ["op"]


def test_the_bytes_that_were_scanned_are_loaded(tmp_path, image, monkeypatch):
    path = tmp_path / "model.onnx"
    onnx.save(image, path)
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda *given: (path.write_bytes(b"another"), load(*given))[1])
    assert check(path, load=True).ok and path.read_bytes() == b"another"


def test_the_checker_refuses(image):
    image.graph.node[0].attribute.append(helper.make_attribute("strides", [1, 1, 1]))
    assert refusal(image).startswith(f"{CHECKER}: [ShapeInferenceError] Inference error(s): (op_type:Conv)")


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["c"], [""]),
        helper.make_node("Relu", ["c"], []),
        helper.make_node("Relu", [], ["r"]),
        helper.make_node("Relu", ["c", "w"], ["r"]),
        helper.make_node("If", ["c"], ["r"]),
        helper.make_node("Transpose", ["c"], ["r"], perm=[0, 0, 1, 2]),
        helper.make_node("Reshape", ["c", "w"], ["r"]),
    ],
    ids=["an output without a name", "no output", "no input", "too many inputs", "no branches", "attribute", "type"],
)
def test_a_node_that_no_runtime_loads(image, node):
    image.graph.node.insert(1, node)
    assert not check(image, load=True).ok


def test_an_input_without_a_type(image):
    image.graph.input[0].ClearField("type")
    assert not check(image, load=True).ok


def test_the_checkers_types_and_shapes_count_too(image):
    image.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1, 1], [0.1] * 3))
    assert "spatial dimensions in the weight tensor (3)" in refusal(image)  # aborts ONNX Runtime 1.22


@pytest.mark.parametrize(
    "nodes, says",
    [
        ("size = Constant <value = int64[4] {1, 1, 5, 7}> () saliency_map = Reshape (c, size)", "Input shape:{1,1,64,96}"),
        ("saliency_map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)", "has the shape [1, 1, 32, 48]"),
        (
            "ten = Constant <value = float {10}> () saliency_map = Add (c, ten)",
            "has values from 10.1 to 10.2; the contract has 0 to 1",
        ),
        ("d = Sub (c, c) saliency_map = Div (d, d)", "has values from nan to nan"),
    ],
)
def test_a_contract_is_run(parse, nodes, says):
    model = parse(IMAGE.replace("saliency_map = Sigmoid (c)", nodes))
    assert check(model, contract="saliency").ok and check(model, load=True).ok
    message = refusal(model, contract="saliency")
    assert message.startswith(f"{RUNTIME}: ") and says in message


def test_a_step_model_is_run_again_with_its_state(parse):
    """This one's map is its state: zeros at first, out of range at the second frame."""
    step = STEP.replace("saliency_map = Sigmoid (state_out)", "z = Sub (c, c) saliency_map = Add (z, state_in)")
    ten = step.replace("state_out = Add (c, state_in)", "ten = Constant <value = float {10}> () state_out = Add (c, ten)")
    assert check(parse(step), contract="saliency", load=True).ok
    assert "has values from 10.1 to 10.2; the contract has 0 to 1" in refusal(parse(ten), contract="saliency")


def test_a_model_for_some_sizes_only_is_warned_about(parse):
    nodes = "size = Constant <value = int64[4] {1, 1, 64, 96}> () s = Sigmoid (c) saliency_map = Reshape (s, size)"
    report = check(parse(IMAGE.replace("saliency_map = Sigmoid (c)", nodes)), contract="saliency", load=True)
    assert report.ok and [warning.rule for warning in report.warnings] == ["frame-size"]
    assert report.warnings[0].message.startswith("runs on frames of 64x96, but not of 45x71: ")


def test_a_luma_model_is_run_at_its_own_size(parse):
    text = IMAGE.replace("float[1,3,1,1] w = {0.1, 0.1, 0.1}", "float[1,1,1,1] w = {0.1}")
    text = text.replace("1,3,H,W", "1,1,18,32").replace("1,1,H,W", "1,1,18,32")
    assert check(parse(text), contract="saliency-luma", load=True).ok
    wrong = text.replace("saliency_map = Sigmoid (c)", "saliency_map = Neg (c)")
    assert "on a frame of 18x32 saliency_map has values from -0.1 to" in refusal(parse(wrong), contract="saliency-luma")


LONG = """
agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map) <float[1,3,1,1] w = {0.1, 0.1, 0.1}> {
  c = Conv (input, w)
  pixel = ReduceMax (c)
  trips = Constant <value = int64 {1024}> ()
  l = Loop (trips, , pixel) <body = body (int64 i, bool go, float[1,1,1,1] x) => (bool again, float[1,1,1,1] y) {
    again = Identity (go)
    size = Constant <value = int64[4] {1, 1, 2000, 2000}> ()
    plane = Expand (x, size)
    e = Exp (plane)
    m = ReduceMax (e)
    y = Sigmoid (m)
  }>
  scaled = Mul (c, l)
  saliency_map = Sigmoid (scaled)
}
"""
HUGE = """
agraph (float[1,3,H,W] input) => (float[1,1,H,W] saliency_map) <float[1,3,1,1] w = {0.1, 0.1, 0.1}> {
  c = Conv (input, w)
  pixel = ReduceMax (c)
  size = Constant <value = int64[4] {1, 1, 70000, 70000}> ()
  huge = Expand (pixel, size)
  most = ReduceMax (huge)
  m = Mul (c, most)
  saliency_map = Sigmoid (m)
}
"""


@pytest.mark.skipif(os.name != "posix", reason="limits")
def test_a_model_within_the_rules_that_takes_too_long_or_too_much(parse, monkeypatch):
    monkeypatch.setattr(loading, "CPU_SECONDS", 1)
    assert check(parse(LONG), contract="saliency").ok
    assert refusal(parse(LONG), contract="saliency") == f"{RUNTIME} took more than 1 s of CPU time"
    assert refusal(parse(HUGE), contract="saliency") == f"{RUNTIME} needs more than 2,048 MiB of memory for it"


@pytest.mark.skipif(os.name != "posix", reason="signals and limits")
@pytest.mark.parametrize(
    "session, says",
    [
        ("os.kill(os.getpid(), 11)", "crashed (SIGSEGV)"),
        (
            "sys.stderr.write('one\\ntwo\\x1b[31m\\nthree\\n'); sys.stderr.flush(); os.abort()",
            r"crashed (SIGABRT): two\x1b[31m three",
        ),
        ("os.kill(os.getpid(), 9)", "was killed (SIGKILL), as the system does when memory runs out"),
        ("os._exit(3)", "ended with exit code 3"),
        ("os._exit(0)", "ended before it had a verdict"),
        ("sys.exit('bye')", "bye"),
        ("bytearray(1 << 32)", "needs more than 2,048 MiB of memory for it"),
        (
            'os.write(2, b"terminate called, what(): std::bad_alloc") and os.abort()',
            "needs more than 2,048 MiB of memory for it",
        ),
        ("exec('while True: pass')", "took more than 1 s of CPU time"),
        ("time.sleep(60)", "did not finish within 2 s"),
        ("exec('raise Exception')", ": Exception"),
        ("exec('raise Exception(\"a\" * 10000)')", ": aaa"),
    ],
)
def test_every_end_of_the_child_is_a_verdict(image, fake, monkeypatch, capfd, session, says):
    monkeypatch.setattr(loading, "CPU_SECONDS", 1)
    if "sleep" in session:
        monkeypatch.setattr(loading, "WALL_SECONDS", 2)
    fake(session)
    message = refusal(image)
    assert message.startswith("ONNX Runtime 2.0") and says in message
    assert capfd.readouterr() == ("", "")


def test_output_of_the_libraries_goes_nowhere_and_has_an_end(image, fake, capfd):
    fake("[os.write(n % 2 + 1, b'x' * 100_000) for n in range(100)]")
    assert "File too large" in refusal(image)
    assert capfd.readouterr() == ("", "")


def test_a_crash_of_the_checker_is_the_checkers(image, fake):
    fake("None", ONNX + "import os\ndef check_model(data, full_check): os.abort()")
    assert refusal(image) == "onnx.checker 1.0 crashed (SIGABRT)"


def test_without_the_runtime_the_report_says_so(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = check(image, contract="saliency", load=True)
    assert report.ok and report.facts.loaded_by == (CHECKER,)
    assert [(warning.rule, warning.remedy) for warning in report.warnings] == [("not-loaded", "pip install onnxruntime")]


def test_without_onnx_there_is_no_verdict(image, monkeypatch):
    data = image.SerializeToString()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert check(data).ok
    with pytest.raises(NoLoader, match="--load needs onnx, which is not installed; pip install onnx"):
        check(data, load=True)


@pytest.mark.parametrize("broken", ["raise ImportError('no libgomp')", "import os; os.abort()"])
def test_libraries_that_do_not_start_are_no_verdict(image, fake, broken):
    fake("None", broken)
    with pytest.raises(NoLoader, match=r"could not start onnx and ONNX Runtime: .*(ImportError: no libgomp|SIGABRT)"):
        check(image.SerializeToString(), load=True)


def test_a_process_that_does_not_start_is_no_verdict(image, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(NoLoader, match=r"could not start a process: .*No such file"):
        check(image, load=True)


def test_a_system_without_limits_loads_too(image, fake, tmp_path):
    (tmp_path / "resource.py").write_text("raise ImportError")
    fake("exec('raise Exception(f\"{len(data)} bytes\")')")
    assert refusal(image) == f"ONNX Runtime 2.0: {image.ByteSize()} bytes"


def test_neither_the_working_directory_nor_the_environment_is_imported(image, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit(1)")
    (tmp_path / "json.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert check(image, load=True).ok

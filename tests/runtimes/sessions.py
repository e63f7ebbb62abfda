"""One way to run a model for every runtime: on one thread, in float32.

    with RUNTIMES["OpenVINO"].open(model) as session:
        saliency, state = session.run({"y": y, "u": u, "v": v, "state_in": state})

What each runtime needs to be told stands here; docs/runtimes.md says it to users.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from tests.helpers import ROOT

Feed = dict[str, np.ndarray]
NODE, WEB = shutil.which("node"), ROOT / "node_modules" / "onnxruntime-web"
FLOATS = ("rgb", "image", "rgb block-map", "luma")
PLANES = ("yuv420", "yuv420 block-map", "nv12")
SIZED = ("rgb block-map", "luma")  # files of one size alone


@dataclass
class Session:
    """A model in a runtime. `run`: inputs by name -> outputs, in the graph's order."""

    run: Callable[[Feed], list[np.ndarray]]
    clock: Callable[[], float] = time.perf_counter
    """Seconds, of which differences count."""


@dataclass(frozen=True)
class Runtime:
    open: Callable[[onnx.ModelProto], AbstractContextManager[Session]]
    modules: tuple[str, ...]
    any_size: bool = False
    """Takes files of any frame size."""
    kinds: tuple[str, ...] = FLOATS + PLANES
    """Takes these files."""

    @property
    def missing(self) -> str:
        """What is not installed here; empty for nothing."""
        lacking = [name for name in self.modules if not _is_installed(name)]
        if self.open is _web and not (NODE and WEB.is_dir()):
            lacking = ["Node.js, or `npm install onnxruntime-web` in the checkout"]
        return ", ".join(lacking)


def _is_installed(module: str) -> bool:
    package = module.partition(".")[0]
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None


@contextlib.contextmanager
def _onnxruntime(model: onnx.ModelProto) -> Iterator[Session]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    yield Session(lambda feed: session.run(None, feed))


@contextlib.contextmanager
def _openvino(model: onnx.ModelProto) -> Iterator[Session]:
    import openvino

    # Without the hint, processors that have bfloat16 compute in it: maps are off by 0.01.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    with TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        compiled = openvino.Core().compile_model(f"{folder}/model.onnx", "CPU", settings)
    request = compiled.create_infer_request()
    yield Session(lambda feed: [np.array(value) for value in request.infer(feed).values()])


@contextlib.contextmanager
def _opencv(model: onnx.ModelProto) -> Iterator[Session]:
    import cv2

    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    names = _outputs(model)  # of getUnconnectedOutLayersNames the order is not the graph's

    def run(feed: Feed) -> list[np.ndarray]:
        for name, value in feed.items():
            net.setInput(value, name)
        return list(net.forward(names))

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield Session(run)
    cv2.setNumThreads(threads)


@contextlib.contextmanager
def _web(model: onnx.ModelProto) -> Iterator[Session]:
    """ONNX Runtime for the web in a process of Node's, the same for all models until one fails."""
    process = _node()
    pipe, answers = process.stdin, process.stdout
    assert pipe and answers
    spent = 0.0

    def run(feed: Feed) -> list[np.ndarray]:
        nonlocal spent
        values = [{"name": name, "type": str(value.dtype), "dims": value.shape} for name, value in feed.items()]
        pipe.write(json.dumps({"values": values}).encode() + b"\n" + b"".join(value.tobytes() for value in feed.values()))
        pipe.flush()
        answer = json.loads(answers.readline())
        spent += answer["seconds"]
        return [np.frombuffer(answers.read(4 * int(np.prod(dims))), np.float32).reshape(dims) for dims in answer["outputs"]]

    content = model.SerializeToString()
    try:
        pipe.write(json.dumps({"model": len(content)}).encode() + b"\n" + content)
        yield Session(run, lambda: spent)
    except BaseException:  # what is left in its pipes is no answer to the next
        process.kill()
        process.wait()
        raise


def _node() -> subprocess.Popen[bytes]:
    """A process of Node's that runs, until this one ends; it starts in a second or two."""
    if not _processes or _processes[-1].poll() is not None:
        assert NODE
        command = [NODE, Path(__file__).with_name("web.mjs"), WEB]
        _processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        atexit.register(_processes[-1].communicate)
    return _processes[-1]


_processes: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def _mnn(model: onnx.ModelProto) -> Iterator[Session]:
    import MNN
    from MNN import expr

    # The converter alone: to import MNN.tools would install another package and report the use of it to its makers.
    convert = "import sys, _tools; _tools.mnnconvert(sys.argv[1:])"
    with TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        files = ["--modelFile", f"{folder}/model.onnx", "--MNNModel", f"{folder}/model.mnn"]
        _command(sys.executable, "-c", convert, "mnnconvert", "-f", "ONNX", *files, "--bizCode", "saliency")
        manager = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": 1},))
        names = [value.name for value in model.graph.input]
        net = MNN.nn.load_module_from_file(f"{folder}/model.mnn", names, _outputs(model), runtime_manager=manager)
    kinds = {"uint8": expr.uint8, "float32": expr.float}

    def run(feed: Feed) -> list[np.ndarray]:
        values = [expr.const(feed[name], list(feed[name].shape), expr.NCHW, kinds[str(feed[name].dtype)]) for name in names]
        return [np.array(expr.convert(value, expr.NCHW).read()) for value in net.forward(values)]

    yield Session(run)


@contextlib.contextmanager
def _ncnn(model: onnx.ModelProto) -> Iterator[Session]:
    import ncnn
    import pnnx

    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    shown = ",".join(f"[{','.join(map(str, shape))}]f32" for shape in shapes)
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        # Constants are halved to float16 unless told.
        _command(Path(pnnx.__file__).parent / "pnnx", "model.onnx", f"inputshape={shown}", "fp16=0", cwd=folder)
        net.load_param(f"{folder}/model.ncnn.param")
        net.load_model(f"{folder}/model.ncnn.bin")
    names, count = [value.name for value in model.graph.input], len(model.graph.output)

    def run(feed: Feed) -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            for index, name in enumerate(names):  # without the axis of the batch, and in memory that ncnn has aligned
                extractor.input(f"in{index}", ncnn.Mat(np.ascontiguousarray(feed[name][0])).clone())
            values = [extractor.extract(f"out{index}")[1] for index in range(count)]
            return [np.array(value)[None] for value in values]

    yield Session(run)


@contextlib.contextmanager
def _tvm(model: onnx.ModelProto) -> Iterator[Session]:
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    machine = relax.VirtualMachine(tvm.compile(from_onnx(model), target="llvm"), tvm.cpu())
    names = [value.name for value in model.graph.input]

    def run(feed: Feed) -> list[np.ndarray]:
        result = machine["main"](*(tvm.runtime.tensor(feed[name]) for name in names))
        return [value.numpy() for value in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]

    yield Session(run)


@contextlib.contextmanager
def _iree(model: onnx.ModelProto) -> Iterator[Session]:
    from iree import compiler, runtime

    with TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        files = [f"{folder}/model.onnx", "-o", f"{folder}/model.mlir"]
        _command(sys.executable, "-m", "iree.compiler.tools.import_onnx", *files, "--opset-version", "17")
        options: Any = {"target_backends": ["llvm-cpu"], "input_type": "onnx", "extra_args": ["--iree-llvmcpu-target-cpu=host"]}
        compiled = compiler.compile_file(f"{folder}/model.mlir", **options)
    context = runtime.SystemContext(config=runtime.Config("local-sync"))
    context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, compiled))
    main = context.modules.module[model.graph.name]
    names = [value.name for value in model.graph.input]

    def run(feed: Feed) -> list[np.ndarray]:
        result = main(*(feed[name] for name in names))
        return [np.array(value.to_host()) for value in (result if isinstance(result, (list, tuple)) else [result])]

    yield Session(run)


def _outputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def _command(*command: object, cwd: str | None = None) -> None:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout)[-500:]}")


RUNTIMES = {
    "ONNX Runtime": Runtime(_onnxruntime, ("onnxruntime",), any_size=True),
    "ONNX Runtime for the web": Runtime(_web, (), any_size=True),
    "OpenVINO": Runtime(_openvino, ("openvino",), any_size=True),
    "OpenCV": Runtime(_opencv, ("cv2",)),
    "MNN": Runtime(_mnn, ("MNN", "_tools")),
    "ncnn": Runtime(_ncnn, ("ncnn", "pnnx"), kinds=FLOATS),  # it has no uint8
    "TVM": Runtime(_tvm, ("tvm",)),
    "IREE": Runtime(_iree, ("iree.compiler", "iree.runtime")),
}

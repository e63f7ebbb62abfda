"""A page that runs a student in the browser, over a video file, the camera or the sample clip: served on localhost, or saved.

    index.html, page.css   what is seen
    page.js                sources, playback, drawing
    student.js             the numbers: `normalise`, `Stream` and QP offsets, as in `export` and `distill.encoding`
    sample.webm            our own: clip 1 of `corpora.synthetic` with seed 31 and 144 frames of 640x360; licensed as this package

The browser runs the model with ONNX Runtime for the web, 14 MB of the npm package onnxruntime-web, which this package does not hold.
The page asks nothing of any other host: its content security policy forbids it.
"""

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import onnx

from distill.export.core import require_state
from distill.export.streaming import frame_rate_of
from distill.run.errors import UsageError, usage_errors
from distill.run.files import write_together

PAGE = Path(__file__).with_name("demo_page")
RUNTIME = {  # by the name under which the page asks for them; every server knows what .js is, and some do not know .mjs
    "runtime.js": "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
GET_RUNTIME = "`npm install onnxruntime-web` in this folder brings it, or name its unpacked folder with --runtime"
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".json": "application/json", ".wasm": "application/wasm", ".webm": "video/webm", ".onnx": "application/octet-stream",
}  # fmt: skip
HOSTS = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?", re.IGNORECASE)

Files = Mapping[str, bytes]


def page_files(model: Path, runtime: Path | None) -> dict[str, bytes]:
    """The page, complete: file names and contents. runtime: an unpacked npm package onnxruntime-web, or the `dist` inside it.

    Raises UsageError where the runtime is not there, and for a model that the page cannot run.
    """
    folder = find_runtime(runtime)
    student, facts = web_student(model)
    return {
        **{path.name: path.read_bytes() for path in sorted(PAGE.iterdir())},
        **{name: (folder / source).read_bytes() for name, source in RUNTIME.items()},
        "student.onnx": student,
        "student.json": json.dumps(facts, indent=1).encode(),
    }


def find_runtime(runtime: Path | None) -> Path:
    """The folder that holds the browser's runtime: the `dist` of an npm package, by default of the one in this folder's
    node_modules. Raises UsageError where it lacks a file."""
    folder = runtime or Path("node_modules/onnxruntime-web")
    folder = folder / "dist" if (folder / "dist").is_dir() else folder
    lacking = [name for name in RUNTIME.values() if not (folder / name).is_file()]
    if lacking:
        where = f"--runtime {runtime}" if runtime else str(folder)
        raise UsageError(f"the browser's runtime is missing: {where} has no {lacking[0]}; {GET_RUNTIME}")
    return folder


def web_student(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A model as the page runs it, and what the page must know of it.

    ONNX Runtime for the web takes no input that has a default, so the default of `state_in` is removed: the page feeds zeros.
    Facts: name, license; size, `[height, width]`, None for any; state, its shape, None without one; frame_rate, None if not stated.
    Raises UsageError for a file that is not a student with RGB input, and for a frame rate that is no number.
    """
    if not path.is_file():
        raise UsageError(f"no model at {path}" + ("; it is a folder" if path.is_dir() else ""))
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own
        raise UsageError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}") from None
    inputs = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    outputs = [value.name for value in model.graph.output]
    shape = inputs.get("input", [])
    if list(inputs)[:1] != ["input"] or outputs[:1] != ["saliency_map"] or len(shape) != 4 or shape[1] != 3:
        has = f"its inputs are {list(inputs)} and its outputs {outputs}"
        raise UsageError(f"{path} cannot run in the page: {has}; `input` must be RGB [1,3,H,W], and `saliency_map` come first")
    default = require_state(model)
    state = list(default.dims) if default else inputs.get("state_in")
    said = {prop.key: prop.value for prop in model.metadata_props}
    with usage_errors():
        rate = frame_rate_of(said, str(path))
    return model.SerializeToString(deterministic=True), {
        "name": path.name, "license": said.get("license", "not stated"), "size": shape[2:] if all(shape[2:]) else None,
        "state": state, "frame_rate": rate,
    }  # fmt: skip


def save_page(files: Files, folder: Path) -> list[Path]:
    """Writes the page into a folder, new or with an older page in it; returns the files. Raises UsageError where it holds others."""
    if folder.exists() and not (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= files.keys()):
        raise UsageError(f"--save {folder} holds other files; choose a new folder")
    written = {folder / name: content for name, content in files.items()}
    write_together(written)
    return list(written)


class _Handler(BaseHTTPRequestHandler):
    """Serves the files of a dict, by their exact names, to pages of this machine alone."""

    files: ClassVar[Files] = {}

    def do_GET(self) -> None:
        if not HOSTS.fullmatch(self.headers.get("Host", "")):  # a foreign name that resolves to 127.0.0.1
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        name = self.path.partition("?")[0].removeprefix("/") or "index.html"
        content = self.files.get(name)
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # the page was closed
            self.end_headers()
            self.wfile.write(content if self.command == "GET" else b"")

    do_HEAD = do_GET

    def end_headers(self) -> None:
        # The first two isolate the page, so that WebAssembly may use threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def page_server(files: Files, port: int) -> Iterator[ThreadingHTTPServer]:
    """A server of the page on 127.0.0.1, not yet serving; port 0 is any free one. Raises UsageError for a port that is taken."""
    handler = type("Handler", (_Handler,), {"files": files})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        reason = {errno.EADDRINUSE: "is in use", errno.EACCES: "is not open to you"}.get(error.errno or 0, str(error))
        raise UsageError(f"--port {port} {reason}; choose another, or 0 for any free one") from None
    with server:
        yield server

"""`distill demo`: the page's server and files; and, where Chromium and the web runtime are here, the page itself."""

import base64
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import onnx
import pytest

from distill.corpora.video import read_frames, write_video
from distill.encoding.qp_offsets import MAPPINGS, qp_offsets
from distill.evaluation.centre import SIGMA
from distill.export import release_model
from distill.export.runner import Predictor
from distill.export.streaming import Stream
from distill.export.variants import Variant, variant_graph
from distill.run.errors import UsageError
from distill.tools.demo import PAGE, page_files, page_server, save_page, web_student
from tests.browser import CHROMIUM, browsing
from tests.helpers import ROOT, image_model, invoke

SAMPLE = PAGE / "sample.webm"
NPM = ROOT / "node_modules" / "onnxruntime-web"


@pytest.fixture
def runtime(tmp_path):
    """Files with the names of the runtime's."""
    folder = tmp_path / "node_modules/onnxruntime-web/dist"
    folder.mkdir(parents=True)
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / name).write_text(name)
    return folder.parent


@contextlib.contextmanager
def serving(files):
    """The port on which the page is served meanwhile."""
    with page_server(files, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:  # a closed server that still serves polls without waiting
            server.shutdown()
            thread.join()


def ask(port, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host or f"localhost:{port}"})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_only_the_page_is_served_and_only_to_this_machine(runtime):
    files = page_files(release_model(), runtime)
    with serving(files) as port:
        for name, content in files.items():
            status, headers, body = ask(port, f"/{name}")
            assert status == 200 and body == content and headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        status, headers, body = ask(port, "/?a=1")
        assert body == files["index.html"] and headers["Content-Type"] == "text/html; charset=utf-8"
        assert ask(port, "/ort-wasm-simd-threaded.wasm")[1]["Content-Type"] == "application/wasm"
        status, headers, body = ask(port, "/page.css", method="HEAD")
        assert status == 200 and headers["Content-Length"] == str(len(files["page.css"])) and body == b""
        outside = Path(__file__).resolve()
        for path in ("/../demo.py", "/%2e%2e/demo.py", "/..%2fdemo.py", "//etc/passwd", f"/{outside}", "/demo_page/page.js"):
            assert ask(port, path)[0] == 404, path
        for host in ("example.org", f"example.org:{port}", "localhost.example.org", "127.0.0.1.nip.io", "localhost:x", ""):
            assert ask(port, "/page.js", host or " ")[0] == 403, host
        for host in ("localhost", "127.0.0.1", "localhost:1", "LOCALHOST:80"):  # a forwarded port has another number
            assert ask(port, "/page.js", host)[0] == 200, host
        with pytest.raises(UsageError, match=f"--port {port} is in use; choose another, or 0"), page_server(files, port):
            pass


def test_the_page_is_saved_into_a_folder_of_its_own(runtime, tmp_path):
    files, out = page_files(release_model(), runtime / "dist"), tmp_path / "page"
    for _ in range(2):  # the second over the first
        assert {path.name: path.read_bytes() for path in save_page(files, out)} == files
    assert {path.name for path in out.iterdir()} == set(files) == {
        "index.html", "page.css", "page.js", "student.js", "sample.webm", "student.onnx", "student.json",
        "runtime.js", "ort-wasm-simd-threaded.wasm",
    }  # fmt: skip
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="holds other files; choose a new folder"):
        save_page(files, out)


def test_the_command_saves_and_says_how_to_serve(runtime, tmp_path):
    result = invoke("demo", "--save", "my page", cwd=tmp_path)
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 9
    assert "python3 -m http.server -d 'my page'" in result.stderr
    answer = json.loads(invoke("demo", "--save", "page", "--json", "--quiet", cwd=tmp_path).stdout)
    assert answer["schema"] == 1 and len(answer["files"]) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--runtime", "nowhere"],
            "--runtime nowhere has no ort.wasm.bundle.min.mjs; `npm install onnxruntime-web` in this folder",
        ),
        (["--model", "none.onnx"], "no model at none.onnx"),
        (["--model", "page"], "no model at page; it is a folder"),
        (["--model", "text.onnx"], "text.onnx is not an ONNX file"),
        (["--model", "other.onnx"], "other.onnx cannot run in the page: its inputs are ['y'] and its outputs ['saliency_map']"),
        (["--save", "page"], "--save page holds other files"),
        (["--save", "text.onnx"], "--save text.onnx holds other files"),
        (["--model", "rate.onnx"], "rate.onnx: its metadata states frame_rate 'thirty', which is no number above 0"),
        (["--port", "PORT"], "is in use; choose another, or 0 for any free one"),
    ],
)
def test_wrong_input_is_one_line(runtime, tmp_path, arguments, message):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("mine")
    (tmp_path / "page" / "mine.css").write_text("mine")
    (tmp_path / "text.onnx").write_text("no model")
    other = onnx.load(image_model(tmp_path / "other.onnx"))
    other.graph.input[0].name = "y"
    onnx.save(other, tmp_path / "other.onnx")
    onnx.helper.set_model_props(other, {"frame_rate": "thirty"})
    other.graph.input[0].name = "input"
    onnx.save(other, tmp_path / "rate.onnx")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = invoke("demo", *(port if a == "PORT" else a for a in arguments), "--quiet", cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert (tmp_path / "page" / "index.html").read_text() == "mine"


def test_without_the_runtime_the_message_says_how_to_get_it(tmp_path):
    result = invoke("demo", "--quiet", cwd=tmp_path)
    expected = "the browser's runtime is missing: node_modules/onnxruntime-web has no ort.wasm.bundle.min.mjs; `npm install"
    assert result.returncode == 2 and expected in result.stderr


def test_the_server_says_where_it_is_and_ends_with_ctrl_c(runtime, tmp_path):
    command = [sys.executable, "-m", "distill", "demo", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = []
            while not lines or lines[-1] not in ("}\n", ""):  # "": it has ended
                lines.append(process.stdout.readline())
            url = json.loads("".join(lines))["url"]
            assert ask(int(url.rstrip("/").rpartition(":")[2]), "/")[0] == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "distill: interrupted: the page is no longer served" and "Traceback" not in err


def test_what_the_page_knows_of_a_model(tmp_path):
    """ONNX Runtime for the web refuses inputs that have a default, so the state must have none."""
    model, facts = web_student(release_model())
    assert facts == {
        "name": "saliency_student_step.onnx", "license": "BSD-2-Clause-Patent", "size": None, "state": [1, 98, 8, 14], "frame_rate": 30.0,
    }  # fmt: skip
    web = onnx.load_from_string(model)
    onnx.checker.check_model(web)
    assert "state_in" not in {value.name for value in web.graph.initializer}
    _, facts = web_student(release_model("image"))
    assert facts["state"] is None
    onnx.save(variant_graph(onnx.load(release_model()), Variant("rgb", (48, 80))), tmp_path / "rgb_80x48.onnx")
    _, facts = web_student(tmp_path / "rgb_80x48.onnx")  # its state is a required input, without a default
    assert facts["size"] == [48, 80] and facts["state"] == [1, 98, 8, 14]
    fixed = onnx.load(image_model(tmp_path / "fixed.onnx"))
    for dim, length in zip(fixed.graph.input[0].type.tensor_type.shape.dim[2:], (48, 80), strict=True):
        dim.dim_value = length
    onnx.save(fixed, tmp_path / "fixed.onnx")
    assert web_student(tmp_path / "fixed.onnx")[1] == {
        "name": "fixed.onnx", "license": "not stated", "size": [48, 80], "state": None, "frame_rate": None,
    }  # fmt: skip


def test_the_pages_mapping_is_that_of_the_encoder():
    log = MAPPINGS["log"]
    shape = f"block = {log.block}, strength = {log.strength}, prior = {log.prior}, floor = {log.floor}"
    script = (PAGE / "student.js").read_text()
    assert f"{shape}, limit = {log.highest}, hold = {log.hold}" in script and log.lowest == -log.highest
    assert f"SIGMA = {SIGMA};" in script


def test_the_sample_clip_has_a_cut_and_is_small():
    frames = list(read_frames(SAMPLE))
    stream = Stream(Predictor(release_model()))
    for index, frame in enumerate(frames[44:56]):
        stream.map(frame, index / 24)
    assert len(frames) == 144 and stream.cuts == 1 and SAMPLE.stat().st_size < 200_000


# The page itself

needs_browser = pytest.mark.skipif(
    not CHROMIUM or not NPM.is_dir(), reason="needs Chromium, and `npm install onnxruntime-web` in the checkout"
)
SIZE = (90, 160)  # height, width of the frames that both sides get


@pytest.fixture(scope="module")
def frames():
    """Frames around the sample clip's cut, uint8 [T,H,W,3], and their times: some faster than the model's rate, one back in time."""
    clip = [cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_AREA) for frame in read_frames(SAMPLE)][36:66]
    times = np.arange(30) / 24
    times[20:] = times[20] + np.arange(10) / 50
    times[27:] -= 0.4
    return np.stack(clip), times


@pytest.fixture(scope="module")
def page(tmp_path_factory, frames):
    """The page, its sample clip playing."""
    files = page_files(release_model(), NPM) | {"frames.rgb": frames[0].tobytes()}
    files |= {"image.onnx": release_model("image").read_bytes()}
    with serving(files) as port, browsing(tmp_path_factory.mktemp("profile")) as page:
        page.look(1280, 900)
        page.call("Page.navigate", url=f"http://localhost:{port}/")
        page.wait("document.querySelector('#effect')?.textContent.match(/0[.]0*[1-9]/)")
        yield page
        assert page.complaints == []
        assert {url.removeprefix("blob:").split("/")[2] for url in page.asked} == {f"localhost:{port}"}


def arrays(encoded):
    return np.stack([np.frombuffer(base64.b64decode(one), np.float32) for one in encoded])


STREAM = """
const ort = await import("/runtime.js"), { Stream, loadModel, qpOffsets } = await import("/student.js");
const facts = await (await fetch("/student.json")).json(), [height, width] = %s, times = %s;
const load = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
const rgb = await load("/frames.rgb"), stream = new Stream(await loadModel(ort, await load("/student.onnx"), facts.state), facts);
const text = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let out = "";
  for (let i = 0; i < bytes.length; i += 32768) out += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(out);
};
const maps = { carried: [], alone: [], offsets: [], large: [] }, pixels = width * height;
let previous = null, large = null;
for (let t = 0; t < times.length; t++) {
  const rgba = new Uint8ClampedArray(4 * pixels).fill(255);
  for (let i = 0; i < pixels; i++) for (let c = 0; c < 3; c++) rgba[4 * i + c] = rgb[3 * (t * pixels + i) + c];
  const { carried, alone } = await stream.map(rgba, width, height, times[t]);
  maps.carried.push(text(carried));
  maps.alone.push(text(alone));
  previous = qpOffsets(carried, { width, height }, { width, height }, { block: 16 }, previous).offsets;
  large = qpOffsets(carried, { width, height }, { width: 500, height: 283 }, { block: 32, strength: 2.5 }, large).offsets;
  maps.offsets.push([...previous]);
  maps.large.push([...large]);
}
return { ...maps, cuts: stream.cuts };
"""


@needs_browser
def test_maps_and_offsets_equal_pythons(page, frames):
    """Streamed with state, over a cut, frames faster than the model's rate, and a step back in time."""
    result = page.run(STREAM % (list(SIZE), frames[1].tolist()))
    stream, image = Stream(Predictor(release_model())), Predictor(release_model("image"))
    maps, alone = [], []
    for frame, seconds in zip(*frames, strict=True):
        before = maps[-1] if maps else None
        maps.append(stream.map(frame, seconds))
        alone.append(alone[-1] if maps[-1] is before else image.predict(frame))
    assert result["cuts"] == stream.cuts == 1
    assert len({id(one) for one in maps}) < len(maps)  # some frames were not seen
    assert np.abs(arrays(result["carried"]) - np.stack(maps).reshape(30, -1)).max() < 1e-4
    assert np.abs(arrays(result["alone"]) - np.stack(alone).reshape(30, -1)).max() < 1e-4
    assert np.abs(np.stack(maps) - np.stack(alone)).max() > 0.05
    for name, changes, size in (("offsets", {}, SIZE), ("large", {"block": 32, "strength": 2.5}, (283, 500))):
        shaping, previous, wrong, count = replace(MAPPINGS["log"], neutral="mean", **changes), None, 0, 0
        for saliency, ours in zip(maps, result[name], strict=True):
            previous = qp_offsets(saliency, shaping, size, previous)
            gap = np.abs(previous.ravel() - ours)
            assert gap.max() <= 1  # a value half-way between two offsets
            wrong, count = wrong + np.count_nonzero(gap), count + gap.size
        assert wrong <= count / 1000


@needs_browser
def test_the_page_decodes_and_prepares_frames_as_predict_does(page):
    """The browser converts colours in its own way, so maps of the clip itself are close, not equal."""
    page.run("const v = document.querySelector('#video'); v.pause()")
    page.run("const s = document.querySelector('#seek'); s.value = 4; s.dispatchEvent(new Event('input', { bubbles: true }))")
    page.wait("(await import('/page.js')).shown?.seconds.toFixed(2) == '4.00'")
    page.click("#reset")
    page.wait("(await import('/page.js')).shown?.carried === (await import('/page.js')).shown?.alone")
    maps = page.run("const { shown } = await import('/page.js'); return [[...shown.carried], shown.width, shown.height]")
    expected = Predictor(release_model("image")).predict(list(read_frames(SAMPLE))[96])
    assert maps[1:] == [640, 360]
    assert np.abs(np.reshape(maps[0], (360, 640)) - expected).mean() < 0.004


@needs_browser
def test_a_turned_picture_gets_maps_of_its_own(page):
    shapes = page.run("""
        const { Stream } = await import("/student.js"), shapes = [];
        const run = async (frame, width, height) => ({ map: new Float32Array(width * height), state: null });
        const stream = new Stream(run, { state: [1], frame_rate: 1 });
        for (const [t, width, height] of [[0, 64, 48], [0.1, 64, 48], [0.2, 48, 64]]) {
            const { width: w, height: h, ms } = await stream.map(new Uint8ClampedArray(4 * 64 * 48), width, height, t);
            shapes.push([w, h, ms !== null]);
        }
        return shapes;
    """)
    assert shapes == [[64, 48, True], [64, 48, False], [48, 64, True]]


PIXELS = """
const { shown } = await import("/page.js"), canvas = document.querySelector("#carried");
const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
pen.drawImage(canvas, 0, 0);
const peak = shown.carried.indexOf(shown.carried.reduce((a, b) => Math.max(a, b)));
const [x, y] = [peak % shown.width, Math.floor(peak / shown.width)];
return [[2 * x, 2 * y], [20, canvas.height / 2 + 20]].map(([x, y]) => [...pen.getImageData(x, y, 1, 1).data.slice(0, 3)]);
"""


@needs_browser
def test_the_controls_work_by_keyboard(page):
    page.run("const v = document.querySelector('#video'); v.pause(); document.activeElement.blur()")
    assert page.text("#play") == "Play"
    page.press(" ")
    page.wait("document.querySelector('#play').textContent == 'Pause'")
    page.press(" ")
    page.wait("document.querySelector('#play').textContent == 'Play'")
    before = page.run("return document.querySelector('#video').currentTime")
    page.press(".")
    page.wait(f"document.querySelector('#video').currentTime != {before}")
    colours = {}
    for key, view in (("2", "offsets"), ("3", "video"), ("1", "heat")):
        page.press(key)
        assert page.run("return document.querySelector('[name=view]:checked').value") == view
        assert page.run("return document.querySelector('#legend').className") == view
        colours[view] = page.run(PIXELS)
    (red, _, blue), (red_far, _, blue_far) = colours["offsets"]
    assert red > 1.5 * blue and blue_far > 1.2 * red_far  # orange where people look, blue at the border
    assert len({str(pair) for pair in colours.values()}) == 3
    page.press("r")
    page.wait("document.querySelector('#effect').textContent == '0.000'")
    unnamed = """return [...document.querySelectorAll('button, input, canvas')].filter((e) =>
        !(e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent.trim())).map((e) => e.outerHTML)"""
    assert page.run(unnamed) == []


@needs_browser
def test_the_page_fits_a_phone_and_follows_the_colours(page):
    paper = {}
    for scheme in ("light", "dark"):
        for width in (1280, 390, 320):
            page.look(width, 800, scheme)
            wide = page.run("return document.documentElement.scrollWidth")
            assert wide == width
            paper[scheme] = page.run("return getComputedStyle(document.body).backgroundColor")
    page.look(1280, 900)
    assert paper == {"light": "rgb(251, 250, 248)", "dark": "rgb(18, 17, 22)"}


def webm(path, size, rate, frames):
    """A VP8 clip of grey frames of changing brightness."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx", rate=rate)
        stream.height, stream.width = size
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 100 + 2 * t, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


STATUS = "document.querySelector('#status').textContent"


@needs_browser
def test_files_that_play_and_files_that_do_not(page, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    write_video(tmp_path / "clip.avi", 25.0, (48, 80), (np.full((48, 80, 3), 10 * t, np.uint8) for t in range(20)))
    for name in ("notes.mp4", "clip.avi"):
        page.choose("#file", tmp_path / name)
        page.wait(f"{STATUS}.startsWith('This browser cannot decode {name}. As WebM it can')")
        assert page.run("return document.querySelector('#status').className") == "alert"
    # Faster than the model's rate, so that some frames keep the maps of the one before; an upright picture, a size not of 8.
    page.choose("#file", webm(tmp_path / "fast.webm", (202, 110), 60, 40))
    page.wait(f"{STATUS} == 'fast.webm: 110 × 202, 0.7 s' && (await import('/page.js')).shown?.width == 112")
    for _ in range(6):
        page.click("#play")
        page.run("await new Promise((done) => setTimeout(done, 100))")
    shown = page.run("const { shown } = await import('/page.js'); return [shown.width, shown.height, shown.size]")
    assert shown == [112, 200, {"width": 110, "height": 202}]
    assert page.text("#status").startswith("fast.webm") and page.text("#model-ms").endswith("ms")
    page.run("""
        const file = new File([await (await fetch("sample.webm")).blob()], "dropped.webm"), dataTransfer = new DataTransfer();
        dataTransfer.items.add(file);
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    """)
    page.wait(f"{STATUS} == 'dropped.webm: 640 × 360, 6.0 s' && (await import('/page.js')).shown")
    page.run("document.querySelector('#video').dispatchEvent(new Event('error'))")  # as where a file stops to decode
    assert page.text("#status").startswith("dropped.webm is damaged at ")


@needs_browser
def test_the_camera_and_a_change_of_mind(page):
    page.click("#camera")
    page.wait(f"{STATUS}.startsWith('Camera: 640') && (await import('/page.js')).shown")
    assert page.run("return document.querySelector('#seek').disabled && !document.querySelector('#play').disabled")
    page.click("#sample")
    page.click("#camera")
    page.click("#sample")  # before the camera has answered
    page.wait(f"{STATUS}.startsWith('Sample clip: 640') && (await import('/page.js')).shown")
    assert page.run("return document.querySelector('#video').srcObject") is None
    assert page.run("return document.querySelector('#sample').ariaPressed") == "true"


def pressed(page, rate, count):
    """The frames that "Next frame" shows, counted from the file's first, where there are `rate` per second."""
    # The middle of a frame: at its edge the one that is shown depends on how times are rounded.
    start = (round(0.2 * rate) + 0.5) / rate
    page.run(f"const v = document.querySelector('#video'); v.pause(); v.currentTime = {start}; document.activeElement.blur()")
    page.wait(f"Math.abs((await import('/page.js')).shown.seconds - {start}) < 1e-3")
    numbers = []
    for _ in range(count):
        before = page.run("return (await import('/page.js')).shown.seconds")
        page.press(".")
        page.wait(f"(await import('/page.js')).shown.seconds != {before}")
        numbers.append(page.run(f"return Math.floor(document.querySelector('#video').currentTime * {rate})"))
    return numbers


@needs_browser
def test_next_frame_is_the_next_one_of_the_file(page, tmp_path):
    page.choose("#file", webm(tmp_path / "fast.webm", (96, 160), 60, 75))
    page.wait(f"{STATUS} == 'fast.webm: 160 × 96, 1.3 s' && (await import('/page.js')).shown?.seconds > 0.3")
    numbers = pressed(page, 60, 8)
    assert numbers == list(range(numbers[0], numbers[0] + 8))
    page.click("#sample")
    page.wait(f"{STATUS}.startsWith('Sample clip: 640') && (await import('/page.js')).shown?.seconds > 0.3")
    numbers = pressed(page, 24, 20)
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    page.click("#play")


@needs_browser
def test_a_browser_without_webassembly_says_so(page):
    url = page.run("return location.href")
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source="delete globalThis.WebAssembly")["identifier"]
    page.call("Page.navigate", url=url)
    page.wait("document.querySelector('#status.alert')")
    assert (
        page.text("#status") == "The model does not start: this browser has no WebAssembly, which the model needs, with SIMD."
    )
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    page.call("Page.navigate", url=url)
    page.wait("document.querySelector('#frame-ms')?.textContent.endsWith('ms')")

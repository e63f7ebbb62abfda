// What is seen: where frames come from, playback, drawing. The numbers are in student.js.

import { Stream, loadModel, qpOffsets } from "./student.js";

const WIDTH = 640; // px of the frame that the model sees at most: the width of the corpora that students learn from
const FAINT = 0.2; // maps are scaled to their maximum, but at least to this, as in `distill predict`
const LIMIT = 12; // QP
const SAME = 0.05; // s: a frame this little before the last one is that one, whose time a paused player does not tell exactly
const INFERNO = [[0, 0, 4], [33, 12, 74], [87, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164]];
const HEAT = Float32Array.from({ length: 768 }, (_, i) => { // 256 colours, between those
  const place = Math.floor(i / 3) / 32, stop = Math.floor(place), [low, high] = [INFERNO[stop][i % 3], INFERNO[Math.min(8, stop + 1)][i % 3]];
  return low + (place - stop) * (high - low);
});
const MORE = "249 142 9", LESS = "76 155 245"; // bits: negative offsets, positive offsets
const KEYS = { " ": "play", ".": "step", r: "reset", 1: "heat", 2: "offsets", 3: "video" };

const at = (id) => document.getElementById(id);
const video = at("video"), settings = at("settings").elements;
const work = document.createElement("canvas"), reader = work.getContext("2d", { willReadFrequently: true });
const signed = (value, digits = 0) => {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "−" : "+") + text;
};
const sides = ["carried", "alone"];

let facts, stream;
let release = () => {}; // lets go of the source: its file, or the camera
let opened = 0, name = ""; // how many sources were opened; the name of this one
let busy = Promise.resolve(); // the frame in work
let recent = []; // of the last frames: {ms, whole, at, presented}; `presented` counts all that the player has shown
let told = null; // of the last frame that the player has told of: {seconds, presented}
let gaps = []; // s from frame to frame of the file, the last ones
let known = {}; // offsets of the last frame, by side; each holds the next one's

/** The last frame and its maps: {rgba, width, height, size, seconds, carried, alone, cut, ms}. */
export let shown = null;

function say(text, alert = false) {
  at("status").textContent = text;
  at("status").className = alert ? "alert" : "";
}

// Sources

/** Plays what `find` gives, {src or srcObject, release}; `button` is marked. */
async function open(button, source, find) {
  const turn = ++opened;
  name = source;
  video.pause();
  release();
  release = () => {};
  video.removeAttribute("src");
  video.srcObject = null;
  for (const other of document.querySelectorAll(".bar [aria-pressed]")) other.setAttribute("aria-pressed", other === button);
  at("file").parentElement.classList.toggle("on", button === at("file"));
  say(`${name}: opening…`);
  let found;
  try {
    found = await find();
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "it is blocked; allow it for this page, and press Camera again" : error.message;
    if (turn === opened) say(`${name}: ${reason}`, true);
    return;
  }
  await forget();
  if (turn !== opened) return found.release(); // another source was chosen meanwhile
  release = found.release;
  [stream.cuts, recent, known, shown] = [0, [], {}, null];
  [told, gaps] = [null, []];
  video[found.src ? "src" : "srcObject"] = found.src ?? found.srcObject;
  video.playbackRate = 1;
  const live = Boolean(found.srcObject);
  for (const id of ["play", "reset"]) at(id).disabled = false;
  for (const id of ["step", "seek"]) at(id).disabled = live;
  at("time").hidden = live;
  if (button !== at("sample") || !matchMedia("(prefers-reduced-motion: reduce)").matches) await video.play().catch(() => {});
}

/** Drops the state, when the frame in work is done. */
async function forget() {
  await busy;
  stream.reset();
}

function fromBlob(blob) {
  const src = URL.createObjectURL(blob);
  return { src, release: () => URL.revokeObjectURL(src) };
}

async function fromCamera() {
  if (!navigator.mediaDevices) throw new Error("a browser gives it only to pages on https or localhost");
  const srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: WIDTH } } }).catch((error) => {
    throw error.name === "NotFoundError" ? new Error("there is none on this device") : error;
  });
  return { srcObject, release: () => srcObject.getTracks().forEach((track) => track.stop()) };
}

const openFile = (file) => open(at("file"), file.name, async () => fromBlob(file));
const openCamera = () => open(at("camera"), "Camera", fromCamera);
// As a blob, so that the player can seek whatever the server.
const openSample = () => open(at("sample"), "Sample clip", async () => fromBlob(await (await fetch("sample.webm")).blob()));

video.addEventListener("error", () => {
  if (shown) say(`${name} is damaged at ${video.currentTime.toFixed(1)} s; its frames end there.`, true);
  else if (video.getAttribute("src")) say(`This browser cannot decode ${name}. As WebM it can: ffmpeg -i FILE -c:v libvpx-vp9 clip.webm`, true);
});
video.addEventListener("loadedmetadata", () => {
  if (!video.videoWidth) say("That file has no pictures that this browser can decode.", true);
  else say(`${name}: ${video.videoWidth} × ${video.videoHeight}${Number.isFinite(video.duration) ? `, ${video.duration.toFixed(1)} s` : ""}`);
  if (Number.isFinite(video.duration)) at("seek").max = video.duration;
});
for (const event of ["play", "pause"]) {
  video.addEventListener(event, () => {
    at("play").textContent = video.paused ? "Play" : "Pause";
    at("rate").textContent = "–";
    recent = [];
  });
}

// Frames

const next = () => (video.requestVideoFrameCallback ? video.requestVideoFrameCallback(onFrame) : requestAnimationFrame(() => onFrame()));

async function onFrame(_now, about) {
  if (about) {
    const gap = (about.mediaTime - told?.seconds) / (about.presentedFrames - told?.presented); // frames that come while one is in work are only counted
    if (gap > 0 && !video.paused) gaps = [...gaps.slice(-29), gap];
    told = { seconds: about.mediaTime, presented: about.presentedFrames };
  }
  if (!video.paused) await take(about?.mediaTime ?? video.currentTime, about?.presentedFrames);
  next();
}

// A paused player tells of new frames in this way only, in some browsers.
for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, () => video.paused && take(video.currentTime));

/** Works on the frame that the player shows, after the one in work. */
function take(seconds, presented) {
  busy = busy.then(() => process(seconds, presented)).catch((error) => {
    video.pause();
    say(`The model does not run on this frame: ${error.message}`, true);
  });
  return busy;
}

async function process(seconds, presented) {
  if (video.readyState < 2 || !video.videoWidth) return;
  if (seconds < shown?.seconds && shown.seconds - seconds < SAME) seconds = shown.seconds;
  const start = performance.now(), size = { width: video.videoWidth, height: video.videoHeight };
  const scale = Math.min(1, WIDTH / size.width);
  const [height, width] = facts.size ?? [size.height, size.width].map((side) => Math.max(16, 8 * Math.round((side * scale) / 8)));
  if (work.width !== width || work.height !== height) [work.width, work.height, known] = [width, height, {}];
  reader.imageSmoothingQuality = "high";
  reader.drawImage(video, 0, 0, width, height);
  const rgba = reader.getImageData(0, 0, width, height).data;
  const maps = await stream.map(rgba, width, height, seconds);
  shown = { rgba, width, height, size, seconds, ...maps };
  draw();
  const missed = presented - recent.at(-1)?.presented > 1, end = performance.now();
  // Played more slowly where the model cannot keep up: a state that misses frames is late.
  if (presented && !video.srcObject) video.playbackRate = Math.max(0.1, Math.min(1, video.playbackRate * (missed ? 0.85 : 1.02)));
  recent = [...recent.slice(-29), { ms: maps.ms, whole: end - start, at: end, presented }];
  report();
}

// Drawing

function draw() {
  if (!shown) return;
  for (const side of facts.state ? sides : sides.slice(0, 1)) {
    const canvas = at(side), pen = canvas.getContext("2d"), { width, height } = shown;
    if (canvas.width !== 2 * width || canvas.height !== 2 * height) [canvas.width, canvas.height] = [2 * width, 2 * height];
    const offsets = qpOffsets(shown[side], shown, shown.size, { block: +settings.block.value, strength: +settings.strength.value }, known[side]);
    known[side] = offsets.offsets;
    reader.putImageData(picture(shown, shown[side], settings.view.value), 0, 0);
    pen.drawImage(work, 0, 0, canvas.width, canvas.height);
    if (settings.view.value === "offsets") drawOffsets(canvas, pen, offsets);
    const { lowest, highest } = offsets.offsets.reduce((ends, v) => ({ lowest: Math.min(ends.lowest, v), highest: Math.max(ends.highest, v) }), { lowest: 0, highest: 0 });
    at(`${side}-offsets`).textContent = `QP ${signed(lowest)} to ${signed(highest)}, mean ${signed(offsets.mean, 1)}`;
  }
}

/** The frame: as it is, darkened with the map over it as `distill predict` draws it, or grey, below the offsets. */
function picture({ rgba, width, height }, map, view) {
  const image = new ImageData(new Uint8ClampedArray(rgba), width, height), out = image.data;
  if (view === "video") return image;
  const tint = view === "heat" ? 0.35 : 0, strength = view === "heat" ? 0.75 : 0;
  let peak = FAINT;
  for (const value of map) if (value > peak) peak = value;
  for (let i = 0, j = 0; i < map.length; i++, j += 4) {
    const grey = (0.8 - tint) * (0.299 * out[j] + 0.587 * out[j + 1] + 0.114 * out[j + 2]);
    const s = map[i] / peak, part = strength * s, colour = 3 * Math.floor(255 * s);
    for (let c = 0; c < 3; c++) out[j + c] = (1 - part) * (tint * out[j + c] + grey) + part * HEAT[colour + c];
  }
  return image;
}

function drawOffsets(canvas, pen, { rows, columns, offsets }) {
  const side = (+settings.block.value * canvas.width) / shown.size.width, tall = (+settings.block.value * canvas.height) / shown.size.height;
  const seen = (side * canvas.clientWidth) / canvas.width; // px on the screen
  pen.font = `600 ${0.36 * side}px system-ui, sans-serif`;
  [pen.textAlign, pen.textBaseline, pen.lineWidth] = ["center", "middle", canvas.width / Math.max(1, canvas.clientWidth)];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const value = offsets[r * columns + c], [x, y] = [c * side, r * tall];
      pen.fillStyle = `rgb(${value < 0 ? MORE : LESS} / ${Math.min(0.85, (1.2 * Math.abs(value)) / LIMIT)})`;
      pen.fillRect(x, y, side, tall);
      if (seen >= 9) {
        pen.strokeStyle = "rgb(255 255 255 / 0.1)";
        pen.strokeRect(x, y, side, tall);
      }
      if (seen >= 22 && value) {
        pen.fillStyle = "white";
        pen.fillText(signed(value), x + side / 2, y + tall / 2);
      }
    }
  }
}

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
const milliseconds = (value) => `${value.toFixed(value < 20 ? 1 : 0)} <small>ms</small>`;

function report() {
  const { carried, alone, cut, seconds } = shown, times = recent.map((r) => r.ms).filter((ms) => ms !== null);
  if (times.length) at("model-ms").innerHTML = milliseconds(median(times));
  at("frame-ms").innerHTML = milliseconds(median(recent.map((r) => r.whole)));
  const [oldest, newest] = [recent[0], recent.at(-1)], perSecond = (frames) => ((1000 * frames) / (newest.at - oldest.at)).toFixed(1);
  if (newest.presented > oldest.presented) {
    const slow = video.playbackRate < 0.995 ? `at ${video.playbackRate.toFixed(2)} × speed` : `of ${perSecond(newest.presented - oldest.presented)}`;
    at("rate").innerHTML = `${perSecond(recent.length - 1)} <small>${slow}</small>`;
  }
  const effect = carried.reduce((sum, value, i) => sum + Math.abs(value - alone[i]), 0) / carried.length;
  at("effect").textContent = effect.toFixed(3);
  at("cuts").textContent = stream.cuts;
  if (!at("seek").disabled && document.activeElement !== at("seek")) at("seek").value = seconds;
  at("time").textContent = `${seconds.toFixed(1)} s`;
  if (cut) {
    at("cut").hidden = false;
    setTimeout(() => (at("cut").hidden = true), 900);
  }
}

// Controls

at("sample").onclick = openSample;
at("camera").onclick = openCamera;
at("file").onclick = () => (at("file").value = ""); // so that the same file can be chosen again
at("file").onchange = () => at("file").files[0] && openFile(at("file").files[0]);
at("play").onclick = () => (video.paused ? video.play().catch(() => {}) : video.pause());
at("step").onclick = () => {
  video.pause();
  const now = video.currentTime, interval = gaps.length ? median([...gaps]) : stream.period || 1 / 30;
  const begun = told && Math.abs(now - told.seconds) < interval ? told.seconds : now - interval / 2; // the frame that is shown
  video.currentTime = begun + 1.5 * interval; // the middle of the next one
};
at("seek").oninput = async () => {
  video.currentTime = +at("seek").value;
  await forget();
};
at("reset").onclick = async () => {
  await forget();
  if (video.paused && shown) await take(shown.seconds);
};
at("settings").oninput = ({ target }) => {
  if (target.name !== "view") known = {};
  settings.strength.nextElementSibling.textContent = (+settings.strength.value).toFixed(2).replace(/0$/, "");
  legend();
  draw();
};

function legend() {
  const view = settings.view.value, [low, high] = at("legend").querySelectorAll("span");
  at("legend").className = view;
  [low.textContent, high.textContent] = view === "heat" ? ["least", "most salient"] : [`−${LIMIT} more bits`, `+${LIMIT} fewer`];
}

addEventListener("resize", draw);
addEventListener("keydown", (event) => {
  const id = KEYS[event.key];
  if (!id || event.ctrlKey || event.metaKey || event.altKey || (id === "play" && event.target.closest("button, input"))) return;
  event.preventDefault();
  const radio = document.querySelector(`[name="view"][value="${id}"]`);
  (radio ?? at(id)).click();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("drop");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("drop"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  const [file] = event.dataTransfer.files;
  if (file && stream) openFile(file);
});

async function begin() {
  say("Loading the model…");
  facts = await (await fetch("student.json")).json();
  if (typeof WebAssembly !== "object") throw new Error("this browser has no WebAssembly, which the model needs, with SIMD");
  const ort = await import("./runtime.js");
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const model = await (await fetch("student.onnx")).arrayBuffer();
  stream = new Stream(await loadModel(ort, new Uint8Array(model), facts.state), facts);
  at("model").textContent = `${(model.byteLength / 1e6).toFixed(1)} MB`;
  const threads = ort.env.wasm.numThreads;
  at("facts").textContent = `${facts.name}, ${facts.license}; ONNX Runtime ${ort.env.versions.common} on ${threads} thread${threads > 1 ? "s" : ""}. The sample clip is procedural, licensed as this page.`;
  document.body.classList.toggle("stateless", !facts.state);
  legend();
  next();
  await openSample();
}

begin().catch((error) => say(`The model does not start: ${error.message}.`, true));

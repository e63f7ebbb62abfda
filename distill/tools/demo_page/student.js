// The numbers behind the page, as in Python: frames into the model (export/runner.py), state and cuts (export/streaming.py),
// QP offsets (distill/encoding/qp_offsets.py). Frames are RGBA bytes, row by row, as a canvas gives them.

const MEAN = [0.485, 0.456, 0.406], STD = [0.229, 0.224, 0.225]; // of ImageNet
const TABLES = MEAN.map((mean, c) => Float32Array.from({ length: 256 }, (_, value) => (value / 255 - mean) / STD[c]));

/** RGBA bytes as ImageNet-normalised RGB, float32 [3,H,W]. */
export function normalise(rgba) {
  const pixels = rgba.length / 4, out = new Float32Array(3 * pixels);
  for (let c = 0; c < 3; c++) {
    const table = TABLES[c], plane = c * pixels;
    for (let i = 0, j = c; i < pixels; i++, j += 4) out[plane + i] = table[rgba[j]];
  }
  return out;
}

const ROWS = 18, COLUMNS = 32; // of the thumbnail that cuts are detected on
const CHANGE = 18, FACTOR = 3; // grey levels; times the typical change of this shot

function thumbnailOf(rgba, width, height) {
  const rows = Math.min(ROWS, height), columns = Math.min(COLUMNS, width);
  const h = Math.floor(height / rows), w = Math.floor(width / columns), out = new Float64Array(rows * columns);
  for (let y = 0; y < rows * h; y++) {
    const row = Math.floor(y / h) * columns;
    for (let x = 0, j = 4 * y * width; x < columns * w; x++, j += 4) out[row + Math.floor(x / w)] += rgba[j] + rgba[j + 1] + rgba[j + 2];
  }
  return out.map((sum) => sum / (3 * h * w));
}

/** Whether a frame opens a new shot, and the shot with it, to pass in with the next frame. */
export function detectCut(rgba, width, height, shot) {
  const thumbnail = thumbnailOf(rgba, width, height);
  if (!shot) return [false, { thumbnail, typical: 0 }];
  const change = thumbnail.reduce((sum, value, i) => sum + Math.abs(value - shot.thumbnail[i]), 0) / thumbnail.length;
  if (change > CHANGE && change > FACTOR * shot.typical) return [true, { thumbnail, typical: change / FACTOR }];
  return [false, { thumbnail, typical: 0.8 * shot.typical + 0.2 * change }];
}

/** A model over one video, with its state carried and, beside that, without: the same file, which then knows no history.
 *  A zero state is none. */
export class Stream {
  /** run: (frame float32 [3,H,W], width, height, state or null) -> {map, state}; facts: frame_rate, null where unknown. */
  constructor(run, facts) {
    this.run = run;
    this.period = facts.state && facts.frame_rate ? 1 / facts.frame_rate : 0;
    this.cuts = 0;
    this.reset();
  }

  /** Drops state, shot and maps: the next frame is treated as the first of a video. */
  reset() {
    this.state = this.shot = this.maps = null;
    this.due = this.last = -Infinity;
  }

  /** The maps of the next frame, at its time in seconds: {carried, alone, width, height, cut, ms}, maps float32 [H,W] in [0, 1].
   *  carried: with the state; alone: without. ms: of one run; null where the maps are still those of an earlier frame, because
   *  the video is faster than the model's frame rate. A time before the last one resets. */
  async map(rgba, width, height, seconds) {
    let cut;
    [cut, this.shot] = detectCut(rgba, width, height, this.shot);
    this.cuts += cut;
    if (cut || seconds < this.last) this.state = this.maps = null;
    const gap = seconds - this.last, first = this.maps?.width !== width || this.maps.height !== height;
    this.last = seconds;
    let ms = null;
    if (first || seconds + Math.min(gap, this.period) / 2 >= this.due) {
      this.due = first ? seconds + this.period : Math.max(this.due + this.period, seconds + this.period / 2);
      const frame = normalise(rgba), start = performance.now();
      const carried = await this.run(frame, width, height, this.state);
      ms = performance.now() - start;
      const alone = this.state ? await this.run(frame, width, height, null) : carried;
      this.state = carried.state;
      this.maps = { carried: carried.map, alone: alone.map, width, height };
    }
    return { ...this.maps, cut, ms };
  }
}

/** The model in ONNX Runtime for the web: `run` of a Stream. shape: of the state, null where the model has none. */
export async function loadModel(ort, bytes, shape) {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const zero = shape && new ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b)), shape);
  return async (frame, width, height, state) => {
    const input = new ort.Tensor("float32", frame, [1, 3, height, width]);
    const results = await session.run(shape ? { input, state_in: state ?? zero } : { input });
    return { map: results.saliency_map.data, state: results.state_out ?? null };
  };
}

/** What each block has in the mean of a side's cells: for every block, [first cell, weights], which sum to 1. */
function shares(cells, length, block) {
  const edge = length / cells;
  return Array.from({ length: Math.ceil(length / block) }, (_, i) => {
    const start = i * block, end = Math.min(start + block, length), first = Math.floor(start / edge), weights = [];
    for (let c = first; c < cells && c * edge < end; c++) {
      weights.push((Math.min(end, (c + 1) * edge) - Math.max(start, c * edge)) / (end - start));
    }
    return { first, weights, length: end - start };
  });
}

const SIGMA = 0.22; // of each side
const centred = (n) => Float64Array.from({ length: n }, (_, i) => Math.exp(-((((i + 0.5) / n) - 0.5) ** 2) / (2 * SIGMA ** 2)));

/** `distill encode`'s mapping `log` with --neutral mean: QP offsets of the blocks of a frame, {rows, columns, offsets, mean}.
 *
 *  saliency: float32 [h,w] of {width, height}, covers a frame of `size` pixels. A block has the weight
 *  p = (1 - prior - floor) s + prior g + floor, s its mean saliency and g that of a centred Gaussian, both over their mean; its
 *  offset is -strength log2 p, shifted so that the frame's mean is 0. previous: the offsets of the frame before: one changes only
 *  where it is off by more than half a step and `hold`. */
export function qpOffsets(saliency, map, size, { block = 16, strength = 0.75, prior = 0.2, floor = 0.1, limit = 12, hold = 0.25 }, previous) {
  const down = shares(map.height, size.height, block), across = shares(map.width, size.width, block);
  const downCentred = shares(size.height, size.height, block), acrossCentred = shares(size.width, size.width, block);
  const blur = [centred(size.height), centred(size.width)];
  const mean1 = (values, { first, weights }) => weights.reduce((sum, weight, i) => sum + weight * values[first + i], 0);
  const rows = down.length, columns = across.length;
  const s = new Float64Array(rows * columns), g = new Float64Array(rows * columns), area = new Float64Array(rows * columns);
  const gx = acrossCentred.map((share) => mean1(blur[1], share));
  down.forEach((share, r) => {
    const line = new Float64Array(map.width); // the rows of the map that this row of blocks covers, averaged
    share.weights.forEach((weight, i) => {
      for (let x = 0, j = (share.first + i) * map.width; x < map.width; x++, j++) line[x] += weight * saliency[j];
    });
    const gy = mean1(blur[0], downCentred[r]);
    across.forEach((part, c) => {
      const k = r * columns + c;
      [s[k], g[k], area[k]] = [mean1(line, part), gy * gx[c], share.length * part.length];
    });
  });
  const pixels = size.width * size.height;
  const mean = (values) => values.reduce((sum, value, k) => sum + value * area[k], 0) / pixels;
  const meanS = mean(s), meanG = mean(g), known = g.map((value) => (prior * value) / meanG + floor);
  const target = s.map((value, k) => -strength * Math.log2(meanS > 0 ? ((1 - prior - floor) * value) / meanS + known[k] : known[k] / (prior + floor)));
  const clip = (value) => Math.max(-limit, Math.min(limit, value));
  let low = target.reduce((a, b) => Math.min(a, b)), high = target.reduce((a, b) => Math.max(a, b));
  for (let i = 0; i < 40; i++) {
    const shift = (low + high) / 2;
    let sum = 0;
    for (let k = 0; k < target.length; k++) sum += area[k] * clip(target[k] - shift);
    if (sum > 0) low = shift;
    else high = shift;
  }
  const offsets = target.map((value, k) => {
    const wanted = clip(value - (low + high) / 2);
    return previous && Math.abs(wanted - previous[k]) <= 0.5 + hold ? previous[k] : clip(Math.round(wanted));
  });
  return { rows, columns, offsets, mean: mean(offsets) };
}

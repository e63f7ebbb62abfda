// ONNX Runtime for the web under Node: node web.mjs FOLDER-OF-THE-PACKAGE
//
// Standard input: a line of JSON, {model: its length}, and the bytes of the model; then, for each frame, {values: [{name, type,
// dims}, ...]}, and the bytes of the values. Standard output, for each frame: a line of JSON, {seconds, outputs: [dims, ...]}, and the
// bytes of the outputs, float32.

import { readSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const ort = await import(pathToFileURL(`${process.argv[2]}/dist/ort.node.min.mjs`));
ort.env.wasm.numThreads = 1;
const kinds = { uint8: Uint8Array, float32: Float32Array };
let session;

const read = (bytes) => {
  for (let got = 0, count; got < bytes.length; got += count) {
    count = readSync(0, bytes, got, bytes.length - got, null);
    if (count === 0) return null;
  }
  return bytes;
};
const write = (bytes) => {
  for (let sent = 0; sent < bytes.length; ) sent += writeSync(1, bytes, sent, bytes.length - sent);
};
const line = () => {
  const one = new Uint8Array(1), text = [];
  while (read(one)) {
    if (one[0] === 10) return JSON.parse(String.fromCharCode(...text));
    text.push(one[0]);
  }
  return null;
};

for (let message; (message = line()); ) {
  if (message.model) {
    await session?.release();
    session = await ort.InferenceSession.create(read(new Uint8Array(message.model)), { executionProviders: ["wasm"] });
    continue;
  }
  const feed = {};
  for (const { name, type, dims } of message.values) {
    const value = new kinds[type](dims.reduce((a, b) => a * b, 1));
    read(new Uint8Array(value.buffer));
    feed[name] = new ort.Tensor(type, value, dims);
  }
  const before = performance.now();
  const result = await session.run(feed);
  const seconds = (performance.now() - before) / 1000;
  const outputs = session.outputNames.map((name) => result[name]);
  write(new TextEncoder().encode(`${JSON.stringify({ seconds, outputs: outputs.map(({ dims }) => dims) })}\n`));
  for (const { data } of outputs) write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}

// Times the package in headless Chromium on SwiftShader, each time in a fresh profile, and a native program between.
//
//   node time.mjs FOLDER NATIVE...      FOLDER has the package; NATIVE is `attn bench --json` of SHAPE on the same driver
import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { withPage } from './chromium.mjs';

const ROUNDS = 3;
const SHAPE = { numHeads: 8, seqLenQ: 512, headDim: 64 };

const [folder, ...native] = process.argv.slice(2);
const file = `${folder}/time.html`;
const html = (work) => `<!doctype html><link rel="icon" href="data:,"><title>time</title>
<script type="module">
  import * as library from './index.mjs';
  (${work})(library).then((result) => (globalThis.result = result), (error) => (globalThis.result = { error: String(error?.stack ?? error) }));
</script>`;

// Milliseconds from the opening of the page to the first answer, then the longest time in which the page could not react.
async function firstCalls({ createEngine, attention, backward, createCache }) {
  const drawn = (length) => Float32Array.from({ length }, (_, at) => Math.sin(at));
  const filled = ({ shape, ...options }) => {
    const length = shape.numHeads * shape.seqLenQ * shape.headDim;
    return { shape, ...options, query: drawn(length), key: drawn(length), value: drawn(length) };
  };
  const request = filled({ shape: { numHeads: 2, seqLenQ: 64, headDim: 64 }, causal: 'top-left' });
  const engine = await createEngine({ backend: 'webgpu' });
  const opened = performance.now();
  await attention(engine, request);
  const first = performance.now();
  let [longest, last, running] = [0, performance.now(), true];
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (running) port2.postMessage(0);
  };
  port2.postMessage(0);
  const marks = {};
  const timed = async (name, run) => {
    longest = 0;
    await run();
    await new Promise((tick) => setTimeout(tick, 20));
    marks[name] = longest;
  };
  await timed('the same', () => attention(engine, request));
  await timed('another shape', () => attention(engine, filled({ shape: { numHeads: 4, seqLenQ: 200, headDim: 128 }, causal: 'top-left', window: { left: 32 } })));
  await timed('gradients', () => backward(engine, { ...request, dOutput: request.query }));
  await timed('a score function', () => attention(engine, { ...request, score: 'fn score(x: f32, at: Pair) -> f32 { return x + 0.5 * f32(at.key); }' }));
  await timed('a cache', async () => {
    const cache = await createCache(engine, { numHeads: 4, numKvHeads: 2, headDim: 64, stored: 'f16', capacity: 64 });
    cache.start();
    await cache.step({ query: drawn(256), key: drawn(128), value: drawn(128), tokens: 1 });
    cache.destroy();
  });
  running = false;
  engine.destroy();
  return { opened, first, marks };
}

async function prefill({ createEngine, bench }, shape) {
  const engine = await createEngine({ backend: 'webgpu' });
  return bench(engine, { shape, seconds: 3 });
}

async function measure(work, argument) {
  writeFileSync(file, html(`(library) => (${work})(library, ${JSON.stringify(argument)})`));
  const read = async (page) => (await page.waitForFunction(() => globalThis.result, undefined, { timeout: 300_000 })).jsonValue();
  const result = await withPage(folder, read, '/time.html').finally(() => rmSync(file));
  if (result.error) throw new Error(result.error);
  return result;
}

// Median of the fused kernel in the lines of `attn bench --json`.
function fused(lines) {
  const rows = lines.trim().split('\n').map((line) => JSON.parse(line));
  return rows.find(({ op }) => op === 'fused').ms_median;
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
const runs = [];
for (let round = 0; round < ROUNDS; round++) runs.push(await measure(firstCalls));
const of = (part) => median(runs.map(part)).toFixed(0);
console.log(`engine after ${of(({ opened }) => opened)} ms, first answer after ${of(({ first }) => first)} ms (from the opening of the page)`);
for (const name of Object.keys(runs[0].marks)) console.log(`longest task, ${name}: ${of(({ marks }) => marks[name])} ms`);

const [ours, theirs] = [[], []];
for (let round = 0; round < ROUNDS; round++) {
  ours.push((await measure(prefill, SHAPE)).median);
  theirs.push(fused(execFileSync(native[0], native.slice(1), { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })));
}
const list = (times) => times.map((time) => time.toFixed(1)).join(', ');
console.log(`1,8,512,512,64: ${list(ours)} ms, native ${list(theirs)} ms: ${(median(ours) / median(theirs)).toFixed(2)} of native`);
process.exit(0);

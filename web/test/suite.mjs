// Tests of the package, in a page by browser.mjs and in Node on Dawn by node.mjs.
//
// run(options) returns { report, failures, counts }: lines to print, what is wrong, and how many checks passed, failed and were skipped.
// Options: `backend`, `random` cases of the generated suite with `filter` in their names, and `long` where the adapter is fast.
import { AttentionError, attention, backward, bench, createCache, createEngine, explain, plan, verify, warmUp } from './index.mjs';
import { REQUESTS, WRONG } from './requests.mjs';
import { difference, draw, reference, rounded, sizes, widen } from './reference.mjs';

// Part of the names of a few cases of the generated suite.
const SABOTAGED = 'nan-';
const TOLERANCE = { f32: 2e-5, f16: 2e-3, bf16: 2e-2 };

export async function run({ backend, random = 0, filter = '', long = false, only = '' }) {
  const test = new Test(backend, only);
  const engine = await createEngine({ backend });
  const isGpu = engine.backend === 'webgpu';
  test.note(`${engine.name}: ${engine.why}`);
  await test.part('options', () => options(test, engine));
  await test.part('gradients', () => gradients(test, engine));
  await test.part('errors', () => errors(test, engine));
  await test.part('explain', () => explanations(test, engine));
  await test.part('signals', () => signals(test, engine));
  await test.part('decode', () => decoding(test, engine));
  await test.part('bench', () => timing(test, engine));
  await test.part('harness', () => sabotage(test, engine));
  if (isGpu) {
    await test.part('own objects', () => ownObjects(test, engine));
    await test.part('warm-up', () => warm(test, engine));
    await test.part('two calls at once', () => twoCalls(test));
    await test.part('wrong kernels', () => wrongKernels(test));
    await test.part('out of memory', () => outOfMemory(test));
    await test.part('memory', () => memory(test));
    await test.part('loss', () => loss(test));
    if (long) await test.part('long calls', () => longCalls(test, engine));
  } else if (globalThis.document) {
    await test.part('responsive', () => responsive(test, engine));
  }
  await test.part('verify', () => verification(test, engine, { random, filter }));
  engine.destroy();
  test.check((await kind(attention(engine, filled(REQUESTS.plain)))) === 'lost', 'a destroyed engine computes');
  return test.result();
}

class Test {
  #report = [];
  #failures = [];
  #passed = 0;
  #skipped = 0;

  constructor(backend, only) {
    Object.assign(this, { backend, only });
  }

  note(line) {
    this.#report.push(line);
  }

  check(isRight, what) {
    if (isRight) this.#passed += 1;
    else this.#failures.push(what);
  }

  /** Adds the counts of another suite. */
  add({ passed, skipped, failures }) {
    this.#passed += passed;
    this.#skipped += skipped;
    this.#failures.push(...failures);
  }

  async part(name, run) {
    if (!name.includes(this.only)) return;
    const start = performance.now();
    try {
      await run();
    } catch (error) {
      this.#failures.push(`${name}: ${error.kind ?? ''} ${error.stack ?? error}`);
    }
    this.note(`${name}: ${(performance.now() - start).toFixed(0)} ms`);
  }

  result() {
    const counts = { passed: this.#passed, failed: this.#failures.length, skipped: this.#skipped };
    return { report: this.#report, failures: this.#failures, counts };
  }
}

const kind = (promise) => promise.then(() => 'none', (error) => (error instanceof AttentionError ? error.kind : `no AttentionError: ${error}`));

/** Request with its tensors. Those of 16 bits hold numbers that they have exactly. */
function filled(request, seed = 1) {
  const { batch, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim, headDimV } = sizes(request.shape);
  const tensor = (at, length) => {
    const numbers = draw(seed + at, length);
    return request.dtype && request.dtype !== 'f32' ? numbers.map((x) => rounded(request.dtype, x)) : numbers;
  };
  const query = tensor(0, batch * numHeads * seqLenQ * headDim);
  const key = tensor(1, batch * numKvHeads * seqLenKv * headDim);
  return { ...request, query, key, value: tensor(2, batch * numKvHeads * seqLenKv * headDimV) };
}

const plainOf = ({ js: _, ...request }) => request;

// What is wrong with a result; empty if it is right.
function wrongIn(request, got) {
  const expected = reference(request);
  const dtype = request.outputDtype ?? 'f32';
  const output = dtype === 'f32' ? got.output : Float32Array.from(got.output, (bits) => widen(dtype, bits));
  const wrong = [];
  if (!(difference(output, expected.output) < TOLERANCE[dtype])) wrong.push(`output differs by ${difference(output, expected.output)}`);
  if (request.lse && !(difference(got.lse, expected.lse) < 2e-5)) wrong.push('lse');
  if (request.weights && !(difference(got.weights, expected.weights) < 2e-5)) wrong.push('weights');
  if (request.keySums !== undefined && !(difference(got.keySums, expected.keySums) < 2e-5)) wrong.push('key sums');
  if (!request.lse && got.lse) wrong.push('an lse that nobody asked for');
  return wrong;
}

async function options(test, engine) {
  for (const [name, request] of Object.entries(REQUESTS)) {
    const full = filled(request);
    const wrong = await attention(engine, plainOf(full)).then((got) => wrongIn(full, got), (error) => [error.message]);
    test.check(wrong.length === 0, `${name}: ${wrong}`);
  }
  // Bits instead of numbers, and the second call of a problem, whose buffers are kept.
  const full = filled(REQUESTS.f16);
  const halves = new Map(Array.from({ length: 65536 }, (_, bits) => [widen('f16', bits), bits]));
  const bits = (array) => Uint16Array.from(array, (x) => halves.get(x));
  const again = await attention(engine, { ...plainOf(full), query: bits(full.query), key: bits(full.key), value: bits(full.value) });
  test.check(wrongIn(full, again).length === 0, 'bits of f16');
  const other = filled(REQUESTS.plain, 5);
  test.check(wrongIn(other, await attention(engine, other)).length === 0, 'the same problem with other data');
}

async function gradients(test, engine) {
  const base = { shape: { numHeads: 2, numKvHeads: 1, seqLenQ: 3, seqLenKv: 5, headDim: 4 }, causal: 'bottom-right' };
  const bias = { data: draw(7, 15), shape: [3, 5] };
  const request = { ...filled(base), bias, sinks: Float32Array.of(0.3, -0.2) };
  const [dOutput, dLse] = [draw(4, 24), draw(5, 6)];
  const loss = (request) => {
    const { output, lse } = reference(request);
    return output.reduce((sum, x, at) => sum + x * dOutput[at], 0) + lse.reduce((sum, x, at) => sum + x * dLse[at], 0);
  };
  const slopes = (get, set) =>
    Float64Array.from(get(request), (x, at) => {
      const moved = (by) => loss(set(Float64Array.from(get(request), (y, other) => (other === at ? x + by : y))));
      return (moved(1e-4) - moved(-1e-4)) / 2e-4;
    });
  const want = ['query', 'key', 'value', 'bias', 'sinks'];
  const got = await backward(engine, { ...request, dOutput, dLse, want });
  for (const name of want) {
    const expected =
      name === 'bias' ? slopes(({ bias }) => bias.data, (data) => ({ ...request, bias: { ...bias, data } })) : slopes((request) => request[name], (data) => ({ ...request, [name]: data }));
    test.check(difference(got[name], expected) < 1e-4, `gradient of ${name}: off by ${difference(got[name], expected)}`);
  }
  const { query, key, value } = filled(base);
  const few = await backward(engine, { ...base, query, key, value, dOutput });
  test.check(Object.keys(few).sort().join() === 'key,query,value', `gradients by default: ${Object.keys(few)}`);
}

async function errors(test, engine) {
  for (const [name, { request, call = attention, kind: wanted, argument }] of Object.entries(WRONG({ attention, backward }))) {
    const error = await call(engine, request).then(() => undefined, (error) => error);
    const isRight = error instanceof AttentionError && error.kind === wanted && error.argument === argument && error.message && error.remedy;
    test.check(isRight, `${name}: ${error?.kind} ${error?.argument} ${error?.message} ${error?.remedy}`);
  }
  const unknown = await createEngine({ backend: 'opengl' }).catch((error) => error);
  test.check(unknown.kind === 'invalid' && unknown.argument === 'backend' && unknown.remedy, 'a backend that is not known');
}

async function explanations(test, engine) {
  for (const name of ['causal', 'window', 'mask', 'visible']) {
    const full = filled(REQUESTS[name]);
    const { query: _q, key: _k, value: _v, ...problem } = plainOf(full);
    const { summary, visible, density, flops } = await explain(engine, problem);
    const { seqLenQ, seqLenKv } = sizes(full.shape);
    const expected = reference(full).visible.slice(0, seqLenQ * seqLenKv);
    const share = expected.reduce((sum, x) => sum + x, 0) / expected.length;
    test.check(summary.length > 10 && difference(visible, expected) === 0, `what ${name} shows: ${summary}`);
    test.check(Math.abs(density - share) < 1e-9 && flops > 0, `density of ${name}: ${density}`);
  }
  // Each head of each item has its own.
  const own = { shape: { batch: 2, numHeads: 2, seqLenQ: 3, headDim: 4 }, kvLengths: Uint32Array.of(3, 2) };
  const mask = { shape: [1, 2, 1, 3], data: Uint8Array.of(1, 1, 1, 0, 1, 1) };
  const visible = 'fn visible(at: Pair) -> bool { return at.key < at.batch + at.head + 1; }';
  for (const [options, item, head, row] of [
    [{ mask }, 0, 1, [0, 1, 1]],
    [{ mask }, 1, 0, [1, 1, 0]],
    [{ visible }, 0, 1, [1, 1, 0]],
    [{ visible, mask }, 1, 1, [0, 1, 0]],
    [{ visible }, 0, 0, [1, 0, 0]],
  ]) {
    const shown = await explain(engine, { ...own, ...options, item, head });
    test.check(difference(shown.visible, [row, row, row].flat()) === 0, `what head ${head} of item ${item} sees: ${shown.visible}`);
  }
  const past = await explain(engine, { ...own, head: 2 }).catch((error) => error);
  test.check(past.kind === 'invalid' && past.argument === 'head' && past.remedy, `head 2 of 2: ${past}`);
}

async function signals(test, engine) {
  const request = filled(REQUESTS.plain);
  test.check((await kind(attention(engine, { ...request, signal: AbortSignal.abort() }))) === 'cancelled', 'a signal that was given before');
  const controller = new AbortController();
  const stopped = kind(attention(engine, { ...filled({ shape: { numHeads: 8, seqLenQ: 1024, headDim: 64 } }), signal: controller.signal }));
  const after = attention(engine, request);
  setTimeout(() => controller.abort(), 5);
  test.check((await stopped) === 'cancelled', 'a call that was cancelled');
  test.check(wrongIn(request, await after).length === 0, 'the call after a cancelled one');
  const stages = new Set();
  const watched = await createEngine({ backend: test.backend, onProgress: ({ stage, share }) => share >= 0 && share <= 1 && stages.add(stage) });
  await attention(watched, request);
  test.check(stages.has('compute'), `stages: ${[...stages]}`);
  watched.destroy();
}

// Six steps of two sequences in each storage, compared with attention over the tokens so far: prompts of different lengths, a
// window, tokens that are taken back, a slot that is used again.
async function decoding(test, engine) {
  const sizes = { numHeads: 4, numKvHeads: 2, headDim: 32, sequences: 2 };
  const storages = [['f32', 2e-5], ['f16', 2e-3], ['bf16', 2e-2], ['q8', 2e-2], ['q4', 0.2], [{ key: 'q8', value: 'f32' }, 2e-2], [{ value: 'q4', hadamard: true }, 0.4], [{ key: 'f32', value: 'f32', hadamard: true }, 2e-5]];
  for (const [stored, tolerance] of storages) {
    const window = stored === 'f16' ? { left: 3 } : undefined;
    const cache = await createCache(engine, { ...sizes, stored, capacity: 12, pageSize: 4, window });
    const tokens = [[], []]; // of each slot: { key, value } of a token
    const slots = [cache.start()];
    let worst = 0;
    for (let step = 0; step < 6; step++) {
      if (step === 1) slots.push(cache.start());
      if (step === 4) {
        cache.truncate(slots[0], 2);
        tokens[slots[0]].length = 2;
      }
      const count = step === 0 ? 3 : 1;
      const tensor = (seed, heads) => draw(seed + 7 * step, sizes.sequences * heads * count * sizes.headDim);
      const [query, key, value] = [tensor(1, 4), tensor(2, 2), tensor(3, 2)];
      const { output } = await cache.step({ query, key, value, tokens: count });
      for (const slot of slots) {
        for (let token = 0; token < count; token++) tokens[slot].push({ key: rowsOf(key, slot, token, count), value: rowsOf(value, slot, token, count) });
        const expected = afterStep(sizes, tokens[slot], query.subarray(slot * 4 * count * 32, (slot + 1) * 4 * count * 32), count, window);
        worst = Math.max(worst, difference(output.subarray(slot * expected.length, (slot + 1) * expected.length), expected));
        test.check(cache.length(slot) === tokens[slot].length, `length of slot ${slot}`);
      }
    }
    test.check(worst < tolerance && cache.bytes > 0, `decode in ${JSON.stringify(stored)}: off by ${worst}`);
    const full = await cache.step({ query: draw(1, 8 * 12 * 32), key: draw(1, 4 * 12 * 32), value: draw(1, 4 * 12 * 32), tokens: 12 }).catch((error) => error);
    test.check(full.kind === 'limit' && full.remedy, `a cache that is full: ${full.message}`);
    cache.free(slots[0]);
    test.check(cache.start() === slots[0] && cache.length(slots[0]) === 0, 'a slot that is used again');
    cache.destroy();
    test.check((await kind(cache.step({}))) === 'lost', 'a cache that was destroyed');
  }
}

// Keys or values of one token, [kv heads, dim].
function rowsOf(array, slot, token, count) {
  return [0, 1].map((head) => array.slice(((slot * 2 + head) * count + token) * 32, ((slot * 2 + head) * count + token + 1) * 32));
}

function afterStep({ numHeads, numKvHeads, headDim }, tokens, query, count, window) {
  const packed = (name) => Float32Array.from([0, 1].flatMap((head) => tokens.flatMap((token) => [...token[name][head]])));
  const shape = { numHeads, numKvHeads, seqLenQ: count, seqLenKv: tokens.length, headDim };
  return reference({ shape, query, key: packed('key'), value: packed('value'), causal: 'bottom-right', window }).output;
}

async function timing(test, engine) {
  const shape = { numHeads: 1, seqLenQ: 2, seqLenKv: 4, headDim: 8 };
  const [all, seen] = [await bench(engine, { shape, seconds: 0.05 }), await bench(engine, { shape, causal: 'top-left', seconds: 0.05 })];
  const flops = (result) => result.gflops * result.median * 1e6;
  test.check(Math.abs(flops(all) / 256 - 1) < 1e-9 && Math.abs(flops(seen) / 96 - 1) < 1e-9, `operations: ${flops(all)}, causal ${flops(seen)}`);
  const { median, min, max, gflops, repetitions, name } = await bench(engine, { shape: { numHeads: 1, seqLenQ: 64, headDim: 32 }, seconds: 0.05 });
  test.check(min > 0 && min <= median && median <= max && gflops > 0 && repetitions >= 3 && name.includes('64'), `bench: ${median} ms, ${gflops} GFLOP/s`);
}

// The harness notices an answer that is wrong in one element, NaN, or too short.
async function sabotage(test, engine) {
  const request = filled(REQUESTS.plain);
  const { output } = await attention(engine, request);
  const spoilt = (change) => {
    const copy = output.slice();
    return wrongIn(request, { output: change(copy) ?? copy }).length > 0;
  };
  test.check(spoilt((copy) => void (copy[17] += 1e-3)), 'an element that is off is not noticed');
  test.check(spoilt((copy) => void (copy[3] = NaN)), 'NaN is not noticed');
  test.check(spoilt((copy) => copy.slice(1)), 'a short answer is not noticed');
}

// The caller's device, buffers and encoder: nothing is submitted by the package.
async function ownObjects(test) {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const engine = await createEngine({ device });
  test.check(engine.device === device && engine.backend === 'webgpu', 'an engine on the own device');
  const request = filled({ shape: { numHeads: 2, seqLenQ: 24, headDim: 16 }, causal: 'top-left' });
  const { query, key, value, ...problem } = request;
  const planned = await plan(engine, problem);
  const upload = (array) => {
    const buffer = device.createBuffer({ size: array.byteLength + 256, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST });
    device.queue.writeBuffer(buffer, 256, array);
    return { buffer, offset: 256 };
  };
  const output = device.createBuffer({ size: query.byteLength, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const staging = device.createBuffer({ size: query.byteLength, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const bound = planned.bind({ query: upload(query), key: upload(key), value: upload(value), output });
  let submits = 0;
  const restore = patch(GPUQueue.prototype, 'submit', (original, args) => (submits++, original(...args)));
  const encoder = device.createCommandEncoder();
  bound.encode(encoder);
  encoder.copyBufferToBuffer(output, 0, staging, 0, query.byteLength);
  test.check(submits === 0, 'encode submits');
  device.queue.submit([encoder.finish()]);
  restore();
  await staging.mapAsync(GPUMapMode.READ);
  test.check(wrongIn(request, { output: new Float32Array(staging.getMappedRange().slice(0)) }).length === 0, 'the answer in the own buffer');
  const missing = (() => {
    try {
      planned.bind({ query: output });
    } catch (error) {
      return error;
    }
  })();
  test.check(missing instanceof AttentionError && missing.kind === 'invalid' && missing.remedy, `a missing buffer: ${missing}`);
  test.check(planned.exported.version === 1 && planned.summary.length > 0, 'the exported plan');
  planned.destroy();
  engine.destroy();
  device.destroy();
}

async function warm(test, engine) {
  const request = filled({ shape: { numHeads: 2, seqLenQ: 50, headDim: 24 }, softcap: 3 });
  const { query, key, value, ...problem } = request;
  await warmUp(engine, problem);
  let modules = 0;
  const restore = patch(GPUDevice.prototype, 'createShaderModule', (original, args) => (modules++, original(...args)));
  const right = wrongIn(request, await attention(engine, request)).length === 0;
  restore();
  test.check(right && modules === 0, `a call after a warm-up creates ${modules} modules`);
}

// Replaces a method of every device, by `change(original, arguments)`, until the returned function is called.
function patch(prototype, name, change) {
  const original = prototype[name];
  prototype[name] = function (...args) {
    return change((...args) => original.apply(this, args), args, this);
  };
  return () => {
    prototype[name] = original;
  };
}

// Errors that no call has taken.
function uncaptured(engine) {
  const messages = [];
  engine.device.addEventListener?.('uncapturederror', ({ error }) => messages.push(error.message));
  return messages;
}

// Kernels that `change` has changed, for as long as `work` runs.
async function withKernels(change, work) {
  const restore = patch(GPUDevice.prototype, 'createShaderModule', (original, [{ code, ...rest }]) => original({ ...rest, code: change(code) }));
  try {
    return await work();
  } finally {
    restore();
  }
}

async function twoCalls(test) {
  const engine = await createEngine({ backend: 'webgpu' });
  const messages = uncaptured(engine);
  const requests = [filled({ shape: { numHeads: 1, seqLenQ: 7, seqLenKv: 9, headDim: 8 } }), filled({ shape: { batch: 2, numHeads: 1, seqLenQ: 5, seqLenKv: 30, headDim: 16 }, weights: true })];
  // The first kernel, which is of the first call, does not compile.
  let kernels = 0;
  const broken = (code) => (kernels++ === 0 ? code.replace('fn main(', 'fn main(no_such_type: NoSuchType, ') : code);
  const [wrong, right] = await withKernels(broken, () =>
    Promise.all([kind(attention(engine, requests[0])), attention(engine, requests[1]).catch((error) => error)]),
  );
  test.check(wrong === 'shader', `the error of one of two calls: ${wrong}`);
  test.check(right.output && wrongIn(requests[1], right).length === 0, `the other of two calls: ${right.message}`);
  const both = await Promise.all(requests.map((request) => attention(engine, request)));
  test.check(both.every((got, at) => wrongIn(requests[at], got).length === 0), 'two calls at once, once the kernels are right');
  const same = await Promise.all([1, 2, 3].map((seed) => attention(engine, filled(requests[0], seed))));
  test.check(same.every((got, at) => wrongIn(filled(requests[0], at + 1), got).length === 0), 'three calls of one problem at once');
  test.check(messages.length === 0, `errors that reach the page: ${messages}`);
  engine.destroy();
}

// A compiler that stores a tenth more than was computed is found out before it is used, and by the generated suite.
async function wrongKernels(test) {
  const wrong = (code) => code.replace('var word = bits;', 'var word = bitcast<u32>(1.1 * bitcast<f32>(bits));');
  const engine = await createEngine({ backend: 'webgpu' });
  await withKernels(wrong, async () => {
    const error = await attention(engine, filled(REQUESTS.plain)).catch((error) => error);
    test.check(error.kind === 'miscomputed' && error.argument && error.remedy, `wrong kernels: ${error.message ?? 'used'}`);
    const { failed } = await verify(engine, { random: 0, filter: SABOTAGED });
    test.check(failed > 0, 'the generated suite does not notice wrong kernels');
  });
  engine.destroy();
}

async function outOfMemory(test) {
  const engine = await createEngine({ backend: 'webgpu' });
  // What a device says that has no memory left.
  const restore = patch(GPUDevice.prototype, 'popErrorScope', async (original) => {
    await original();
    return new GPUOutOfMemoryError('no memory is left');
  });
  const error = await attention(engine, filled(REQUESTS.plain)).catch((error) => error);
  restore();
  test.check(error.kind === 'device' && error.remedy, `out of memory: ${error.kind} ${error.message}`);
  test.check(wrongIn(filled(REQUESTS.plain), await attention(engine, filled(REQUESTS.plain))).length === 0, 'a call once there is memory again');
  engine.destroy();
}

// Buffers made minus destroyed, over 500 calls of different shapes.
async function memory(test) {
  const engine = await createEngine({ backend: 'webgpu' });
  let [alive, most] = [0, 0];
  const restore = [
    patch(GPUDevice.prototype, 'createBuffer', (original, args) => {
      most = Math.max(most, ++alive);
      return original(...args);
    }),
    patch(GPUBuffer.prototype, 'destroy', (original, args) => {
      alive -= 1;
      return original(...args);
    }),
  ];
  for (let call = 0; call < 500; call++) {
    const shape = { numHeads: 1, seqLenQ: 1 + (call % 5), seqLenKv: 1 + (call % 100), headDim: 4 };
    await attention(engine, filled({ shape }));
  }
  const kept = engine.keptBytes;
  engine.clear();
  test.check(most < 50, `${most} buffers at once in 500 calls`);
  test.check(kept > 0 && engine.keptBytes === 0 && alive === 0, `clear() leaves ${alive} buffers, ${engine.keptBytes} bytes`);
  restore.forEach((undo) => undo());
  test.note(`500 calls: at most ${most} buffers`);
  engine.destroy();
}

async function loss(test) {
  const engine = await createEngine({ backend: 'webgpu' });
  const messages = uncaptured(engine);
  await attention(engine, filled(REQUESTS.plain));
  const running = kind(attention(engine, filled(REQUESTS.causal)));
  engine.device.destroy();
  const caught = await running;
  test.check(['lost', 'none'].includes(caught), `a call whose device is destroyed meanwhile: ${caught}`);
  test.check((await kind(attention(engine, filled(REQUESTS.plain)))) === 'lost', 'a call on a lost device');
  const next = await createEngine({ backend: 'webgpu' });
  test.check(wrongIn(filled(REQUESTS.plain), await attention(next, filled(REQUESTS.plain))).length === 0, 'a new engine after a loss');
  test.check(messages.length === 0, `errors that reach the page: ${messages}`);
  next.destroy();
}

async function longCalls(test) {
  const shares = [];
  const controller = new AbortController();
  const engine = await createEngine({
    backend: 'webgpu',
    onProgress: ({ stage, share }) => {
      if (stage === 'compute' && share < 1 && shares.push(share)) controller.abort();
    },
  });
  const request = filled({ shape: { numHeads: 8, seqLenQ: 4096, headDim: 64 } });
  test.check((await kind(attention(engine, { ...request, signal: controller.signal }))) === 'cancelled', 'a long call goes on');
  test.check(shares.length === 1 && shares[0] > 0, `shares of a long call: ${shares}`);
  engine.destroy();
}

// Longest time for which the page's thread did not run, while the CPU path computes.
// The page runs while the CPU path computes: its event loop turns thousands of times, against a few if it were blocked.
async function responsive(test, engine) {
  const request = filled({ shape: { numHeads: 8, seqLenQ: 1500, headDim: 64 } });
  let [turns, last, longest, done] = [0, performance.now(), 0, false];
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    turns += 1;
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
    if (!done) channel.port2.postMessage(0);
  };
  channel.port2.postMessage(0);
  await attention(engine, request);
  done = true;
  test.note(`${turns} turns of the event loop, longest gap ${longest.toFixed(0)} ms`);
  test.check(turns > 100, `the page ran ${turns} times during a call`);
}

async function verification(test, engine, { random, filter }) {
  const controller = new AbortController();
  const stopped = kind(verify(engine, { random: 3, signal: controller.signal }));
  setTimeout(() => controller.abort(), 300);
  test.check((await stopped) === 'cancelled', 'a verification goes on');
  const { passed, failed, skipped, rows } = await verify(engine, { random, filter });
  test.note(`generated suite: ${passed} passed, ${failed} failed, ${skipped} skipped`);
  test.check(passed > 0 && rows.length === passed + failed + skipped, 'the generated suite is empty');
  const failures = rows.filter(({ verdict }) => verdict === 'failed').map(({ suite, case: name, detail }) => `${suite} ${name}: ${detail}`);
  test.add({ passed, skipped, failures });
}

// What the library must do in a page, through wgpu: run in a browser by browser.mjs, in Node on Dawn by node.mjs.
//
// run(options) returns { report, failures }: lines to print, and what is wrong. Options: `backend` to start, `random` cases of the generated suite, `filter` of its cases' names, and whether the
// adapter is fast enough for a `long` call of several submits.
const SHAPE = [1, 2, 40, 70, 32]; // batch, heads, queries, keys, head_dim
const STORED = ['f32', 'f16', 'bf16', 'q8', 'q4'];

// Numbers in -1..1, the same for equal seeds.
function draw(seed, length) {
  return Float32Array.from({ length }, (_, at) => ((at * 7919 + seed * 104729) % 1009) / 504.5 - 1);
}

function operands([batch, heads, queries, keys, dim]) {
  return [draw(1, batch * heads * queries * dim), draw(2, batch * heads * keys * dim), draw(3, batch * heads * keys * dim)];
}

// Attention in f64. Causal queries are aligned with the last keys.
function reference([query, key, value], [batch, heads, queries, keys, dim], causal) {
  const output = new Float64Array(query.length);
  for (let head = 0; head < batch * heads; head++) {
    for (let row = 0; row < queries; row++) {
      const at = (head * queries + row) * dim;
      const end = causal ? Math.min(keys, row + keys - queries + 1) : keys;
      const scores = [];
      for (let k = 0; k < end; k++) {
        let dot = 0;
        for (let c = 0; c < dim; c++) dot += query[at + c] * key[(head * keys + k) * dim + c];
        scores.push(dot / Math.sqrt(dim));
      }
      const max = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - max));
      const sum = weights.reduce((a, b) => a + b, 0);
      for (let k = 0; k < end; k++) {
        for (let c = 0; c < dim; c++) output[at + c] += (weights[k] / sum) * value[(head * keys + k) * dim + c];
      }
    }
  }
  return output;
}

function difference(got, expected) {
  if (got.length !== expected.length) return Infinity;
  return got.reduce((worst, x, at) => Math.max(worst, Number.isFinite(x) ? Math.abs(x - expected[at]) : Infinity), 0);
}

// Replaces a method of every device, by `change(original, device, arguments)`, until the returned function is called.
function patch(prototype, name, change) {
  const original = prototype[name];
  prototype[name] = function (...args) {
    return change((...args) => original.apply(this, args), args);
  };
  return () => {
    prototype[name] = original;
  };
}

// The module that wasm-bindgen generated.
async function load() {
  const web = await import('./web.js');
  const isNode = !globalThis.document;
  const bytes = isNode && (await import('node:fs')).readFileSync(new URL('./web_bg.wasm', import.meta.url));
  await web.default(isNode ? { module_or_path: bytes } : undefined);
  return web;
}

export async function run({ backend, random = 0, filter = '', long = false }) {
  const web = await load();
  const report = [];
  const failures = [];
  const expect = (right, what) => right || failures.push(what);
  const kind = async (promise) => promise.then(() => 'none', (error) => error.kind ?? String(error));
  const on_gpu = backend !== 'cpu';
  const open = () => web.Session.start(backend);

  let began = performance.now();
  const timed = (what) => {
    report.push(`${what}: ${(performance.now() - began).toFixed(0)} ms`);
    began = performance.now();
  };

  // No error may reach the page's own handler.
  const uncaptured = [];
  const restore = patch(GPUAdapter.prototype, 'requestDevice', async (original, args) => {
    const device = await original(...args);
    device.addEventListener('uncapturederror', ({ error }) => uncaptured.push(error.message));
    return device;
  });
  const session = await open();
  report.push(`adapter: ${session.chosen()}`, `caps: ${session.caps()}`);
  timed('start');

  // Right answers, causal or not, and errors of each kind.
  for (const causal of [false, true]) {
    const data = operands(SHAPE);
    const got = await session.attention(...data, new web.Shape(...SHAPE), causal, undefined);
    expect(difference(got, reference(data, SHAPE, causal)) < 1e-5, `attention, causal = ${causal}`);
    timed(`attention, causal = ${causal}`);
  }
  const [query, key, value] = operands(SHAPE);
  const short = session.attention(query.slice(1), key, value, new web.Shape(...SHAPE), false, undefined);
  expect((await kind(short)) === 'invalid', 'a query that is too short');
  let refused = 'none';
  try {
    session.attention_now(query, key, value, new web.Shape(...SHAPE));
  } catch (error) {
    refused = `${error.kind}: ${error.remedy}`;
  }
  expect(refused === (on_gpu ? 'unsupported: await `Engine::attention_async`' : 'none'), `a blocking call: ${refused}`);
  expect((await kind(web.Session.start('no such adapter'))) === 'no-adapter', 'an adapter that is not there');

  // Gradients against differences of the reference.
  {
    const shape = [1, 1, 3, 5, 4];
    const data = operands(shape);
    const weights = draw(4, data[0].length);
    const loss = (data) => reference(data, shape, false).reduce((sum, x, at) => sum + x * weights[at], 0);
    const expected = data.flatMap((operand, which) =>
      Array.from(operand, (x, at) => {
        const moved = (by) => loss(data.map((other, i) => (i === which ? Float64Array.from(operand, (y, j) => (j === at ? x + by : y)) : other)));
        return (moved(1e-4) - moved(-1e-4)) / 2e-4;
      }),
    );
    const got = await session.gradients(...data, weights, new web.Shape(...shape));
    expect(difference(got, expected) < 1e-4, 'gradients');
    timed('gradients');
  }

  if (on_gpu) {
    // Kernels are compiled one by one, and the page is let in between; a call afterwards compiles nothing.
    const shape = [1, 2, 300, 300, 64];
    const shares = [];
    await session.warm_up(new web.Shape(...shape), true, (share) => shares.push(share) > 0);
    expect(shares.length > 1 && shares.at(-1) === 1, `shares of a warm-up: ${shares}`);
    timed('warm-up');
    const compiled = session.kernels();
    await session.attention(...operands(shape), new web.Shape(...shape), true, undefined);
    expect(session.kernels() === compiled, 'a call after a warm-up compiles');
    timed('the call after it');
    expect((await kind(session.warm_up(new web.Shape(1, 2, 9, 9, 24), false, () => false))) === 'cancelled', 'a cancelled warm-up');
    timed('a cancelled warm-up');

    for (const stored of STORED) {
      const worst = await session.decode(stored).catch((error) => error.message);
      expect(worst < 1e-4, `decode of ${stored}: ${worst}`);
    }
    timed(`${STORED.length} decodes of six steps`);

    if (long) {
      const shape = [1, 8, 4096, 4096, 64];
      const shares = [];
      const stopped = session.attention(...operands(shape), new web.Shape(...shape), false, (share) => shares.push(share) === 0);
      expect((await kind(stopped)) === 'cancelled', 'a long call goes on');
      expect(shares.length === 1 && shares[0] < 1, `shares of a long call: ${shares}`);
      timed('a long call, cancelled after its first submit');
    }

    // Two calls at once: one gets its wrong kernel as an error, the other its answer.
    const broken = await open();
    const shapes = [[1, 1, 7, 9, 8], [2, 1, 5, 30, 16]];
    const data = shapes.map(operands);
    const call = (at) => broken.attention(...data[at], new web.Shape(...shapes[at]), at === 1, undefined);
    const repair = patch(GPUDevice.prototype, 'createShaderModule', (original, [{ code, ...rest }]) =>
      original({ ...rest, code: code.replace('fn main(', 'fn main(no_such_type: NoSuchType, ') }),
    );
    const first = kind(call(0));
    await Promise.resolve(); // now it has created its modules, and waits
    repair();
    const [wrong, right] = await Promise.all([first, call(1)]);
    expect(wrong === 'shader', `the error of one of two calls: ${wrong}`);
    expect(difference(right, reference(data[1], shapes[1], true)) < 1e-5, 'the answer of the other');
    expect(difference(await call(0), reference(data[0], shapes[0], false)) < 1e-5, 'the first call, once its kernel is right');
    timed('two calls at once');

    // Buffers: those of calls that are not kept are destroyed.
    let [made, destroyed] = [0, 0];
    const count = [
      patch(GPUDevice.prototype, 'createBuffer', (original, args) => (made++, original(...args))),
      patch(GPUBuffer.prototype, 'destroy', (original, args) => (destroyed++, original(...args))),
    ];
    for (let keys = 1; keys <= 40; keys++) {
      const shape = [1, 1, 1, keys, 8];
      await broken.attention(...operands(shape), new web.Shape(...shape), false, undefined);
    }
    const alive = made - destroyed;
    broken.clear();
    count.forEach((restore) => restore());
    report.push(`buffers of 40 shapes: ${made} made, ${alive} alive, ${made - destroyed} after clear()`);
    expect(destroyed > 0 && made - destroyed <= 0, 'clear() leaves buffers');
    timed('40 shapes');

    const tuned = await broken.tune(...data[1], new web.Shape(...shapes[1]), 300);
    expect(broken.tuned().includes(tuned) && broken.tuned().startsWith(broken.chosen()), `tuned: ${broken.tuned()}`);
    timed('tune');

    broken.destroy();
    expect((await kind(call(1))) === 'lost', 'a call on a destroyed device');
    timed('a lost device');
  }

  // The generated suite, cancelled once at its third case.
  let cases = 0;
  const cancelled = session.verify(1n, 3n, '', () => ++cases < 3);
  expect((await kind(cancelled)) === 'cancelled' && cases === 3, `a cancelled verification: ${cases} cases`);
  began = performance.now();
  const { passed, failed, skipped, failures: wrong } = await session.verify(1n, BigInt(random), filter, undefined);
  report.push(`generated suite: ${passed} passed, ${failed} failed, ${skipped} skipped`);
  failures.push(...wrong);
  timed('generated suite');
  restore();
  expect(uncaptured.length === 0, `uncaptured: ${uncaptured}`);
  return { report, failures };
}

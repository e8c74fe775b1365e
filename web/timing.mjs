// Times a problem on data that is drawn, after its answer was checked against the CPU path.
import { AttentionError, throwIfAborted } from './errors.mjs';

// Relative to the largest output: errors of sums in another order, and of the output's storage.
const TOLERANCE = { f32: 1e-4, f16: 2e-3, bf16: 2e-2 };

// Pairs of a head that are looked at one by one.
const MOST_PAIRS = 2 ** 24;

export async function time(engine, problem, arraysOf) {
  const { seconds = 1, signal, ...rest } = problem;
  const request = { ...rest, ...drawn(problem), signal };
  const compute = await prepared(engine, request, arraysOf);
  try {
    const flops = await flopsOf(engine, rest);
    const spent = [];
    const batch = engine.backend === 'cpu' ? 1 : await batchOf(compute);
    const begin = performance.now();
    do {
      throwIfAborted(signal);
      const start = performance.now();
      await compute.run(batch);
      spent.push((performance.now() - start) / batch);
      engine.report('bench', Math.min(1, spent.length / 3, (performance.now() - begin) / (1000 * seconds)));
    } while (spent.length < 3 || performance.now() < begin + 1000 * seconds);
    return report(engine, problem, spent, batch, flops);
  } finally {
    compute.destroy();
  }
}

// Queries, keys and values between -1 and 1, the same each time.
function drawn({ shape, dtype = 'f32' }) {
  const { batch = 1, numHeads, numKvHeads = numHeads, seqLenQ, seqLenKv = seqLenQ, headDim, headDimV = headDim } = shape ?? {};
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 23 - 1;
  };
  const tensor = (...extents) => Float32Array.from({ length: extents.reduce((product, extent) => product * extent, 1) }, next);
  const query = tensor(batch, numHeads, seqLenQ, headDim);
  const key = tensor(batch, numKvHeads, seqLenKv, headDim);
  return { query, key, value: tensor(batch, numKvHeads, seqLenKv, headDimV), dtype };
}

// Operations of the visible pairs; of all pairs where a list of them would be long.
async function flopsOf(engine, problem) {
  const { batch = 1, numHeads, seqLenQ, seqLenKv = seqLenQ, headDim, headDimV = headDim } = problem.shape;
  if (seqLenQ * seqLenKv <= MOST_PAIRS) return (await engine.job('explain', problem)).flops;
  return 2 * batch * numHeads * seqLenQ * seqLenKv * (headDim + headDimV);
}

// Checks the answer, and returns a function that computes it some times.
async function prepared(engine, request, arraysOf) {
  const expected = await engine.job('attention', request);
  if (engine.backend === 'cpu') {
    const run = async (times) => {
      for (let time = 0; time < times; time++) await engine.job('attention', request);
    };
    return { run, destroy: () => {} };
  }
  const { results } = await engine.compute('attention', request, arraysOf(request));
  checkAnswer(results.output, expected.output, request.outputDtype ?? 'f32');
  const { compute, destroy } = await engine.prepareTimes(request, arraysOf(request));
  await compute(1);
  return { run: compute, destroy };
}

function checkAnswer(bytes, expected, dtype) {
  const widen = { f32: (x) => x, bf16: bf16, f16: f16 }[dtype];
  const got = new expected.constructor(bytes, 0, expected.length);
  let [size, worst] = [0, 0];
  for (let at = 0; at < expected.length; at++) {
    const [a, b] = [widen(got[at]), widen(expected[at])];
    size = Math.max(size, Math.abs(b));
    worst = Math.max(worst, Number.isNaN(a) && Number.isNaN(b) ? 0 : Math.abs(a - b));
  }
  if (worst <= TOLERANCE[dtype] * size) return;
  throw new AttentionError('miscomputed', `the answer differs from the CPU path's by ${worst}`, { remedy: 'use the backend `cpu`, and please report it' });
}

function bf16(bits) {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0];
}

function f16(bits) {
  const [sign, exponent, mantissa] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -14 * (mantissa / 1024));
}

// Computations per measurement: as many as take about 20 milliseconds, because clocks of browsers are coarse.
async function batchOf({ run }) {
  const start = performance.now();
  await run(1);
  return Math.max(1, Math.min(100, Math.round(20 / Math.max(0.1, performance.now() - start))));
}

function report(engine, { shape, causal, dtype = 'f32' }, spent, batch, flops) {
  const sorted = spent.toSorted((a, b) => a - b);
  const { batch: items = 1, numHeads, numKvHeads = numHeads, seqLenQ, seqLenKv = seqLenQ, headDim } = shape;
  const median = sorted[Math.floor(sorted.length / 2)];
  const sizes = [items, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim].join(',');
  return {
    name: [sizes, causal && 'causal', dtype].filter(Boolean).join(' '),
    backend: engine.backend,
    adapter: engine.name,
    median,
    min: sorted[0],
    max: sorted.at(-1),
    gflops: flops / (1e6 * median),
    repetitions: spent.length * batch,
  };
}

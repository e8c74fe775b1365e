// wgpu-attention: attention on WebGPU, with a CPU path in WebAssembly. index.d.ts has the types and describes everything.
import { Engine, createEngine, moduleOf } from './engine.mjs';
import { AttentionError } from './errors.mjs';
import { load } from './load.mjs';
import { time } from './timing.mjs';

export { AttentionError, createEngine };

export async function attention(engine, request) {
  const run = async () => {
    const { exports } = await begin(engine, request);
    if (engine.backend === 'cpu') return engine.job('attention', request);
    const computed = await engine.compute('attention', request, (call, given) => arraysOf(exports, call, request, given));
    if (!computed) return engine.job('attention', request);
    const results = decoded(computed);
    const { output, lse, weights, key_sums: keySums } = results;
    const asked = { lse: request.lse, weights: request.weights, keySums: request.keySums !== undefined };
    return Object.fromEntries(Object.entries({ output, lse, weights, keySums }).filter(([name]) => name === 'output' || asked[name]));
  };
  return orOnCpu(engine, 'attention', request, run);
}

export async function backward(engine, request) {
  const run = async () => {
    const { exports } = await begin(engine, request);
    if (engine.backend === 'cpu') return engine.job('backward', request);
    const computed = await engine.compute('backward', request, (call, given) => arraysOf(exports, call, request, given));
    if (!computed) return engine.job('backward', request);
    const results = decoded(computed);
    return Object.fromEntries(Object.entries(results).map(([name, array]) => [name.replace('d_', ''), array]));
  };
  return orOnCpu(engine, 'backward', request, run);
}

export async function warmUp(engine, problem) {
  await checked(async () => {
    await begin(engine, problem);
    if (engine.backend === 'webgpu') await engine.warmUp(problem);
  });
}

export function explain(engine, problem) {
  return checked(async () => {
    await begin(engine, problem);
    const [explanation, summary] = await Promise.all([engine.job('explain', problem), engine.backend === 'webgpu' && engine.summary(problem)]);
    return { ...explanation, summary: summary || explanation.summary };
  });
}

export function plan(engine, problem) {
  return checked(async () => {
    await begin(engine, problem);
    if (engine.backend === 'cpu') {
      throw new AttentionError('unsupported', 'not supported: plans of the CPU path', { remedy: "create an engine on 'webgpu', or use attention()" });
    }
    return new AttentionPlan(await engine.plan(problem));
  });
}

export function verify(engine, options = {}) {
  return checked(async () => {
    if (!(engine instanceof Engine)) throw invalid('engine', 'is no engine', 'await createEngine() first');
    return engine.verify(options);
  });
}

export function bench(engine, problem) {
  return checked(async () => {
    const { exports } = await begin(engine, problem);
    return time(engine, problem, (request) => (call, given) => arraysOf(exports, call, request, given));
  });
}

export function createCache(engine, options) {
  return checked(async () => {
    await begin(engine, options);
    return engine.createCache(options);
  });
}

class AttentionPlan {
  #prepared;

  constructor({ exported, prepared }) {
    this.#prepared = prepared;
    this.exported = exported;
    this.summary = exported.summary;
  }

  bind(buffers) {
    try {
      return new BoundAttention(this.#prepared.bind(buffers));
    } catch (error) {
      throw AttentionError.of(error);
    }
  }

  destroy() {
    this.#prepared.destroy();
  }
}

class BoundAttention {
  #bound;

  constructor(bound) {
    this.#bound = bound;
  }

  encode(encoder) {
    this.#bound.record(encoder);
  }
}

// Checks what every function is given, and loads the module that the request needs.
async function begin(engine, request) {
  if (!(engine instanceof Engine)) throw invalid('engine', 'is no engine', 'await createEngine() first');
  if (typeof request !== 'object' || request === null) throw invalid('request', 'is no object', 'see the types of the package');
  engine.throwIfEnded();
  return load(moduleOf(request));
}

const invalid = (argument, why, remedy) => new AttentionError('invalid', `invalid \`${argument}\`: ${why}`, { argument, remedy });

// Runs a call; every error that leaves the package is an AttentionError.
async function checked(run) {
  try {
    return await run();
  } catch (error) {
    throw AttentionError.of(error);
  }
}

// As `checked`, on the CPU path if the device's kernels are wrong.
async function orOnCpu(engine, job, request, run) {
  try {
    return await checked(run);
  } catch (error) {
    if (!engine.mayFallBack?.(error)) throw error;
    return checked(() => engine.job(job, request));
  }
}

const BITS = { f16: false, bf16: true }; // 16-bit types; true: bf16

// Arrays to upload, as the plans store them, checked by length and type.
function arraysOf(exports, call, request, { tables }) {
  const given = { query: request.query, key: request.key, value: request.value, d_output: request.dOutput, d_lse: request.dLse };
  const arrays = { tables, bias: request.bias?.data, mask: request.mask?.data };
  for (const tensor of call.inputs) {
    if (!(tensor.name in given)) continue;
    arrays[tensor.name] = elements(exports, tensor, given[tensor.name]);
  }
  return arrays;
}

function elements(exports, { name, dtype, shape }, array) {
  const argument = { d_output: 'dOutput', d_lse: 'dLse' }[name] ?? name;
  const needed = shape.reduce((product, extent) => product * extent, 1);
  const isBits = dtype in BITS;
  const what = isBits ? 'a Float32Array or a Uint16Array' : 'a Float32Array';
  if (array === undefined) throw invalid(argument, 'is missing', `give ${what} of ${needed} elements`);
  if (!(array instanceof Float32Array || (isBits && array instanceof Uint16Array))) throw invalid(argument, `is no array of ${dtype}`, `give ${what}`);
  if (array.length !== needed) throw invalid(argument, `has ${array.length} elements, its shape [${shape}] needs ${needed}`, `give ${what} of its shape`);
  return isBits && array instanceof Float32Array ? exports.narrow(array, BITS[dtype]) : array;
}

// Results as arrays of their types, without the padding to whole words.
function decoded({ results, tensors }) {
  const array = ([name, bytes]) => {
    const { dtype, shape } = tensors.find((tensor) => tensor.name === name);
    const count = shape.reduce((product, extent) => product * extent, 1);
    return [name, dtype in BITS ? new Uint16Array(bytes, 0, count) : new Float32Array(bytes, 0, count)];
  };
  return Object.fromEntries(Object.entries(results).map(array));
}

// Engines: a device or the CPU path, with the calls that are kept for the next time.
import { DeviceCache, HostCache } from './cache.mjs';
import { Call, prepare, runOnce } from './call.mjs';
import { AttentionError, throwIfAborted } from './errors.mjs';
import { Gpu, describe, nameOf } from './gpu.mjs';
import { Jobs } from './jobs.mjs';
import { load } from './load.mjs';

// Buffers of the calls that are kept, in number, and in bytes. The most recent call is kept even if it has more.
const KEPT_BUFFERS = 36;
const KEPT_BYTES = 2 ** 30;

// Limits that no cache in memory exceeds.
const ANY_DEVICE = { maxBufferSize: 2 ** 32 - 1, maxStorageBufferBindingSize: 2 ** 32 - 1, maxComputeWorkgroupsPerDimension: 65535 };

export async function createEngine(options = {}) {
  const { device: given, adapter: givenAdapter, backend = given || givenAdapter ? 'webgpu' : 'auto', onProgress } = options;
  if (!['auto', 'webgpu', 'cpu'].includes(backend)) {
    throw new AttentionError('invalid', `invalid \`backend\`: is '${backend}'`, { argument: 'backend', remedy: "'auto', 'webgpu' or 'cpu'" });
  }
  load('core').catch(() => {}); // while adapters are asked for
  if (backend === 'cpu') return Engine.open(undefined, { why: 'it was asked for', onProgress });
  if (given) return Engine.open(given, { why: "the caller's device", onProgress });
  const adapter = givenAdapter ?? (await globalThis.navigator?.gpu?.requestAdapter({ powerPreference: 'high-performance' })) ?? undefined;
  const isSoftware = adapter && (adapter.info?.isFallbackAdapter || /swiftshader|software|warp/.test(adapter.info?.architecture));
  if (backend === 'auto' && (!adapter || isSoftware)) {
    const why = adapter ? 'the only adapter is a software one, and the CPU path is faster' : 'there is no WebGPU here';
    return Engine.open(undefined, { why, onProgress });
  }
  if (!adapter) {
    const remedy = "use a browser with WebGPU, or the backend 'auto' or 'cpu'";
    throw new AttentionError('no-adapter', 'no adapter: WebGPU is missing, or switched off', { remedy });
  }
  const device = await adapter.requestDevice(wishes(adapter));
  const why = backend === 'auto' ? 'the GPU of this machine' : 'WebGPU was asked for';
  return Engine.open(device, { adapter, why, onProgress, ownsDevice: true, fallsBack: backend === 'auto' });
}

// All that an adapter has and kernels may use.
function wishes({ features, limits }) {
  const names = [
    'maxBufferSize',
    'maxStorageBufferBindingSize',
    'maxStorageBuffersPerShaderStage',
    'maxComputeWorkgroupStorageSize',
    'maxComputeInvocationsPerWorkgroup',
    'maxComputeWorkgroupSizeX',
    'maxComputeWorkgroupsPerDimension',
  ];
  return {
    requiredFeatures: ['subgroups', 'timestamp-query'].filter((feature) => features.has(feature)),
    requiredLimits: Object.fromEntries(names.map((name) => [name, limits[name]])),
  };
}

export class Engine {
  #gpu;
  #described;
  #planners = new Map(); // name of a module -> its Device
  #kept = new Map(); // key of a request -> Kept, least recently used first
  #jobs = new Jobs();
  #verifications = new Set(); // Jobs, each with a thread of its own
  #ended;
  #options;

  static async open(device, options) {
    const engine = new Engine(device, options);
    await load('core');
    if (device) engine.isSoftware = (await engine.planner('core')).isSoftware;
    return engine;
  }

  constructor(device, { adapter, ...options }) {
    this.#options = options;
    this.backend = device ? 'webgpu' : 'cpu';
    this.name = device ? nameOf(device, adapter) : 'CPU path in WebAssembly';
    this.why = options.why;
    this.isSoftware = false;
    if (device) {
      this.device = device;
      this.#gpu = new Gpu(device);
      this.#described = describe(device, adapter);
    }
  }

  get keptBytes() {
    return [...this.#kept.values()].reduce((sum, { call }) => sum + call.bytes, 0);
  }

  clear() {
    for (const kept of this.#kept.values()) destroyKept(kept);
    this.#kept.clear();
  }

  destroy() {
    this.#ended = new AttentionError('lost', 'the engine was destroyed', { remedy: 'create a new engine' });
    this.clear();
    for (const jobs of [this.#jobs, ...this.#verifications]) jobs.end(this.#ended);
    this.#gpu?.end(this.#ended.message);
    if (this.#options.ownsDevice) this.device.destroy();
  }

  // What follows is for the functions of the package.

  get gpu() {
    return this.#gpu;
  }

  throwIfEnded() {
    if (this.#ended) throw this.#ended;
    this.#gpu?.throwIfLost();
  }

  report(stage, share) {
    this.#options.onProgress?.({ stage, share });
  }

  /** Planner of a module for the device. */
  async planner(module) {
    const { exports } = await load(module);
    if (!this.#planners.has(module)) this.#planners.set(module, new exports.Device(this.#described));
    return this.#planners.get(module);
  }

  /** Runs a job in the worker. */
  job(job, request, { stored } = {}) {
    this.throwIfEnded();
    const onShare = (share) => this.report('compute', share);
    return this.#jobs.run(job, moduleOf(request) === 'full' ? 'full' : 'cpu', request, {
      stored,
      signal: request.signal,
      onShare,
    });
  }

  /** Creates a decoding cache. */
  async createCache(options) {
    const { exports } = await load('core');
    // Without a device, only the bookkeeping is used.
    const ledger = new exports.Cache(options, this.#described ?? ANY_DEVICE);
    return this.#gpu ? DeviceCache.create(this, ledger, options) : new HostCache(this, ledger, options);
  }

  /** Runs the generated suite, in a thread of its own. */
  async verify(options) {
    this.throwIfEnded();
    const jobs = new Jobs();
    this.#verifications.add(jobs);
    try {
      return await jobs.run('verify', 'full', options, {
        described: this.#described,
        signal: options.signal,
        onShare: (share) => this.report('verify', share),
        onCall: (exported, contents) => runOnce(this.#gpu, exported, (name) => contents[name]),
      });
    } finally {
      this.#verifications.delete(jobs);
      jobs.end(new AttentionError('cancelled', 'the verification is over'));
    }
  }

  /** Compiles the kernels of plans that are not tried yet, lets each compute a tiny problem, and compares the answers. */
  async check(planner, planned) {
    for (let plan = 0; plan < planned.count; plan++) {
      const trial = planner.canary(planned, plan);
      if (!trial) continue;
      this.report('check', plan / planned.count);
      const results = await runOnce(this.#gpu, JSON.parse(trial.exported()), (name) => trial.input(name));
      for (const [name, bytes] of Object.entries(results)) trial.write(name, new Uint8Array(bytes));
      planner.judge(trial);
    }
    this.report('check', 1);
  }

  /** Computes a request on the device by `of`, 'attention' or 'backward': bytes of results and the plans' tensors by name. */
  async compute(of, request, arrays) {
    const planner = await this.planner(moduleOf(request));
    throwIfAborted(request.signal);
    const key = `${of} ${keyOf(request)}`;
    const kept = this.#take(key) ?? (await this.#prepare(of, planner, request));
    if (!kept) return undefined;
    const { call, planned } = kept;
    let failed = true;
    try {
      const tables = call.inputs.some(({ name }) => name === 'tables') ? planned.tables(request) : undefined;
      await call.upload(arrays(call, { tables }));
      const onShare = (share) => this.report('compute', share);
      const results = await call.run({ budget: planner.budget, signal: request.signal, onShare });
      failed = false;
      return { results, tensors: call.plans.flatMap(({ tensors }) => tensors) };
    } catch (error) {
      // A cancelled call may be kept: its submits are done before the next ones.
      failed = error.kind !== 'cancelled' && error.kind !== 'invalid';
      throw error;
    } finally {
      if (failed || this.#ended) destroyKept(kept);
      else this.#keep(key, kept);
    }
  }

  // Plans, compiles and tries; undefined if there is nothing for a device to do.
  async #prepare(of, planner, request) {
    const planned = of === 'attention' ? planner.attention(request, false) : planner.backward(request);
    try {
      if (planned.count === 0) return undefined;
      this.report('compile', 0);
      const plans = Array.from({ length: planned.count }, (_, plan) => JSON.parse(planned.exported(plan)));
      const isResult = (name) => (of === 'attention' ? true : name.startsWith('d_'));
      const call = await Call.create(this.#gpu, plans, isResult);
      this.report('compile', 1);
      try {
        await this.check(planner, planned);
      } catch (error) {
        call.destroy();
        throw error;
      }
      return { call, planned };
    } catch (error) {
      planned.free();
      throw AttentionError.of(error);
    }
  }

  /** Summary of a request's plan; undefined if there is nothing for a device to do. */
  async summary(request) {
    const planned = (await this.planner(moduleOf(request))).attention(request, false);
    try {
      return planned.count > 0 ? planned.summary(0) : undefined;
    } finally {
      planned.free();
    }
  }

  /** Plans a request for recording, compiles and tries it. */
  async plan(request) {
    const planner = await this.planner(moduleOf(request));
    const planned = planner.attention(request, true);
    try {
      if (planned.count === 0) {
        throw new AttentionError('unsupported', 'not supported: a plan of a problem without elements', { remedy: 'use attention()' });
      }
      const exported = JSON.parse(planned.exported(0));
      const prepared = await prepare(this.#gpu, exported);
      await this.check(planner, planned);
      return { exported, prepared };
    } finally {
      planned.free();
    }
  }

  /** Compiles and tries the kernels of a request, and keeps its buffers for the first call. */
  async warmUp(request) {
    const planner = await this.planner(moduleOf(request));
    const key = `attention ${keyOf(request)}`;
    const kept = this.#take(key) ?? (await this.#prepare('attention', planner, request));
    if (kept) this.#keep(key, kept);
  }

  /** Prepares a request with its data on the device. Returns a function that computes it `times` and awaits the end. */
  async prepareTimes(request, arrays) {
    const planner = await this.planner(moduleOf(request));
    const kept = await this.#prepare('attention', planner, request);
    if (!kept) throw new AttentionError('unsupported', 'not supported: timing a problem without elements', { remedy: 'give it some' });
    const { call, planned } = kept;
    try {
      await call.upload(arrays(call, { tables: call.inputs.some(({ name }) => name === 'tables') ? planned.tables(request) : undefined }));
    } catch (error) {
      destroyKept(kept);
      throw error;
    }
    return { compute: (times) => call.repeat(times, planner.budget), destroy: () => destroyKept(kept) };
  }

  /** True if the CPU path may answer instead of kernels that are wrong. */
  mayFallBack(error) {
    if (error.kind !== 'miscomputed' || !this.#options.fallsBack) return false;
    console.warn(`${error.message}; the CPU path computes it`);
    return true;
  }

  // Takes a call out, so that no other can use it while it runs.
  #take(key) {
    const kept = this.#kept.get(key);
    this.#kept.delete(key);
    return kept;
  }

  #keep(key, kept) {
    const before = this.#take(key);
    if (before) destroyKept(before);
    this.#kept.set(key, kept);
    for (const oldest of this.#kept.keys()) {
      const buffers = [...this.#kept.values()].reduce((sum, { call }) => sum + call.buffers, 0);
      if (this.#kept.size === 1 || (buffers <= KEPT_BUFFERS && this.keptBytes <= KEPT_BYTES)) break;
      destroyKept(this.#take(oldest));
    }
  }
}

function destroyKept({ call, planned }) {
  call.destroy();
  planned.free();
}

/** Module that plans a request. */
export const moduleOf = ({ score, visible, tables }) => ((score ?? visible ?? tables) === undefined ? 'core' : 'full');

// Requests with equal keys are equal up to their data. Signals and functions are no part of it.
function keyOf({ query, key, value, dOutput, signal, seconds, item, head, ...problem }) {
  const plain = (_, part) => {
    if (ArrayBuffer.isView(part)) return [part.constructor.name, part.length];
    return typeof part === 'number' ? String(part) : part; // JSON has no infinity
  };
  return JSON.stringify(problem, plain);
}

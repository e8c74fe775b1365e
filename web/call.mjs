// Calls on a device: a problem's plans with kernels, buffers and bind groups, to be computed as often as wanted.
import { AttentionError, throwIfAborted } from './errors.mjs';
import { preparePlan } from './run-plan.mjs';

/** Compiles a plan. */
export async function prepare(gpu, exported) {
  try {
    return await gpu.alive(preparePlan(gpu.device, exported));
  } catch (error) {
    throw AttentionError.of(error);
  }
}

/** Runs one plan on bytes, once: { name: bytes } in and out. */
export async function runOnce(gpu, exported, input) {
  const prepared = await prepare(gpu, exported);
  const tensors = exported.tensors.map((tensor) => ({ ...tensor, isResult: tensor.access === 'write' }));
  const own = await gpu.createBuffers(tensors);
  try {
    await gpu.guarded((device) => {
      for (const { name, access } of tensors) if (access === 'read') gpu.write(own.buffers.get(name), input(name));
      const encoder = device.createCommandEncoder();
      prepared.bind(Object.fromEntries(own.buffers)).record(encoder);
      gpu.copyResults(encoder, own);
      device.queue.submit([encoder.finish()]);
    });
    return await gpu.readResults(own);
  } finally {
    destroyBuffers(own);
    prepared.destroy();
  }
}

function destroyBuffers({ buffers, staging }) {
  for (const buffer of [...buffers.values(), staging]) buffer.destroy();
}

/** A planned problem with its buffers. */
export class Call {
  /** Compiles the plans, which share buffers by name: what a plan writes and a later one reads stays on the device. */
  static async create(gpu, plans, isResult) {
    const prepared = await Promise.all(plans.map((plan) => prepare(gpu, plan)));
    const tensors = new Map();
    for (const tensor of plans.flatMap((plan) => plan.tensors)) {
      const known = tensors.get(tensor.name) ?? { ...tensor, isResult: tensor.access === 'write' && isResult(tensor.name) };
      tensors.set(tensor.name, { ...known, bytes: Math.max(known.bytes, tensor.bytes) });
    }
    let own;
    try {
      own = await gpu.createBuffers([...tensors.values()]);
      const { buffers } = own;
      const of = ({ tensors }) => Object.fromEntries(tensors.map(({ name }) => [name, buffers.get(name)]));
      const dispatches = await gpu.guarded(() => prepared.map((one, at) => one.bind(of(plans[at]))));
      return new Call(gpu, plans, prepared, own, dispatches);
    } catch (error) {
      if (own) destroyBuffers(own);
      prepared.forEach((one) => one.destroy());
      throw AttentionError.of(error);
    }
  }

  constructor(gpu, plans, prepared, own, bound) {
    Object.assign(this, { gpu, plans, prepared, own, bound });
    const scratch = plans.flatMap(({ scratch }) => scratch);
    this.bytes = own.bytes + scratch.reduce((sum, size) => sum + size, 0);
    this.buffers = own.buffers.size + 1 + scratch.length + plans.length; // with that of the results, and parameters
  }

  /** Tensors that have to be uploaded. */
  get inputs() {
    const written = new Set();
    const inputs = new Map();
    for (const { tensors } of this.plans) {
      for (const tensor of tensors) {
        if (tensor.access === 'write') written.add(tensor.name);
        else if (!written.has(tensor.name)) inputs.set(tensor.name, tensor);
      }
    }
    return [...inputs.values()];
  }

  /** Uploads arrays by name. */
  upload(arrays) {
    return this.gpu.guarded(() => {
      for (const { name } of this.inputs) this.gpu.write(this.own.buffers.get(name), arrays[name]);
    });
  }

  /** Computes, in several submits if it is long, and reads the results. */
  async run({ budget, signal, onShare }) {
    const pieces = this.#pieces(budget);
    const submitted = [];
    for (const [index, piece] of pieces.entries()) {
      throwIfAborted(signal);
      const isLast = index + 1 === pieces.length;
      await this.gpu.guarded(() => this.#submit(piece, isLast ? (encoder) => this.gpu.copyResults(encoder, this.own) : undefined));
      submitted.push(this.gpu.device.queue.onSubmittedWorkDone());
      // Two pieces are in flight: the device stays busy, and a cancellation waits for two at most.
      if (index > 0) {
        await this.gpu.alive(submitted[index - 1]);
        onShare?.(index / pieces.length);
      }
    }
    submitted.forEach((promise) => promise.catch(() => {}));
    const results = await this.gpu.readResults(this.own);
    throwIfAborted(signal);
    onShare?.(1);
    return results;
  }

  /** Computes several times without reading the results, and awaits the end. */
  async repeat(times, budget) {
    const pieces = this.#pieces(budget);
    for (let time = 0; time < times; time++) {
      for (const piece of pieces) await this.gpu.guarded(() => this.#submit(piece));
    }
    await this.gpu.alive(this.gpu.device.queue.onSubmittedWorkDone());
  }

  #submit(piece, after) {
    const { device } = this.gpu;
    const encoder = device.createCommandEncoder({ label: 'attention' });
    const pass = encoder.beginComputePass({ label: 'attention' });
    for (const { bound, first, end } of piece) bound.recordIn(pass, first, end);
    pass.end();
    after?.(encoder);
    device.queue.submit([encoder.finish()]);
  }

  // Dispatches, one list per submit: as many as `budget` operations allow.
  #pieces(budget) {
    const pieces = [[]];
    let flops = 0;
    this.plans.forEach(({ dispatches }, at) => {
      dispatches.forEach((dispatch, index) => {
        if (flops > 0 && flops + dispatch.flops > budget) {
          pieces.push([]);
          flops = 0;
        }
        flops += dispatch.flops;
        const piece = pieces.at(-1);
        const last = piece.at(-1);
        if (last?.bound === this.bound[at]) last.end = index + 1;
        else piece.push({ bound: this.bound[at], first: index, end: index + 1 });
      });
    });
    return pieces;
  }

  destroy() {
    destroyBuffers(this.own);
    this.prepared.forEach((one) => one.destroy());
  }
}

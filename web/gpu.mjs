// A device, whose every promise ends: with the error of the call, or because the device is lost.
import { AttentionError } from './errors.mjs';

const READ = 0x1; // GPUMapMode.READ
const USAGE = { MAP_READ: 0x1, COPY_SRC: 0x4, COPY_DST: 0x8, STORAGE: 0x80 }; // GPUBufferUsage

const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxStorageBuffersPerShaderStage',
  'maxComputeWorkgroupStorageSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupsPerDimension',
  'minStorageBufferOffsetAlignment',
  'minUniformBufferOffsetAlignment',
];

/** What the planner must know of a device. */
export function describe(device, adapter) {
  const info = device.adapterInfo ?? adapter?.info ?? {};
  const { vendor = '', architecture = '', isFallbackAdapter = adapter?.isFallbackAdapter ?? false } = info;
  const subgroups = device.features.has('subgroups') ? info : {};
  const limits = Object.fromEntries(LIMITS.map((name) => [name, device.limits[name]]));
  const { subgroupMinSize = 0, subgroupMaxSize = 0 } = subgroups;
  return { vendor, architecture, isFallbackAdapter: Boolean(isFallbackAdapter), subgroupMinSize, subgroupMaxSize, ...limits };
}

/** Name of a device for people. */
export function nameOf(device, adapter) {
  const { vendor, architecture, device: model, description } = device.adapterInfo ?? adapter?.info ?? {};
  const words = [vendor, architecture, model, description].filter(Boolean);
  return words.length > 0 ? words.join(' ') : 'a GPU that gives no name';
}

export class Gpu {
  #waiting = new Set(); // functions that reject what is awaited
  #lost;

  constructor(device) {
    this.device = device;
    device.lost.then(({ message }) => this.end(`the device is lost: ${message || 'it was destroyed'}`));
  }

  /** Fails everything that waits, and all calls to come. */
  end(message) {
    this.#lost ??= new AttentionError('lost', message, { remedy: 'create a new engine' });
    for (const reject of this.#waiting) reject(this.#lost);
    this.#waiting.clear();
  }

  throwIfLost() {
    if (this.#lost) throw this.#lost;
  }

  /** Awaits a promise of the device, or its loss. Failures of a device that is just being lost are its loss. */
  alive(promise) {
    this.throwIfLost();
    return new Promise((resolve, reject) => {
      const settle = (end) => (value) => {
        this.#waiting.delete(reject);
        end(value);
      };
      this.#waiting.add(reject);
      // The loss is reported after the failures that it causes.
      promise.then(settle(resolve), (error) => setTimeout(() => settle(reject)(this.#lost ?? error), 0));
    });
  }

  /** Runs synchronous work of the device; its errors are those of this call, whatever other calls do meanwhile. */
  async guarded(work) {
    this.throwIfLost();
    const { device } = this;
    const scopes = ['validation', 'out-of-memory', 'internal'];
    scopes.forEach((filter) => device.pushErrorScope(filter));
    let result, thrown;
    try {
      result = work(device);
    } catch (error) {
      thrown = error;
    }
    const errors = await this.alive(Promise.all(scopes.map(() => device.popErrorScope())));
    if (thrown) throw thrown;
    const error = errors.find((error) => error);
    if (!error) return result;
    const isMemory = error.constructor.name === 'GPUOutOfMemoryError';
    const remedy = isMemory ? 'call clear(), or split the batch' : 'please report it';
    throw new AttentionError('device', `the device reported: ${error.message}`, { remedy, cause: error });
  }

  /** Creates the buffers of tensors, by name, and one to read the written ones back. */
  createBuffers(tensors) {
    return this.guarded((device) => {
      const size = ({ bytes }) => Math.max(16, Math.ceil(bytes / 16) * 16);
      const usage = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;
      const buffers = new Map(tensors.map((tensor) => [tensor.name, device.createBuffer({ label: tensor.name, size: size(tensor), usage })]));
      const written = tensors.filter(({ isResult }) => isResult);
      const total = written.reduce((sum, tensor) => sum + size(tensor), 0);
      const staging = device.createBuffer({ label: 'results', size: Math.max(16, total), usage: USAGE.MAP_READ | USAGE.COPY_DST });
      const bytes = total + tensors.reduce((sum, tensor) => sum + size(tensor), 0);
      return { buffers, staging, written, bytes, size };
    });
  }

  /** Copies results to the staging buffer. */
  copyResults(encoder, { buffers, staging, written, size }) {
    let at = 0;
    for (const tensor of written) {
      encoder.copyBufferToBuffer(buffers.get(tensor.name), 0, staging, at, size(tensor));
      at += size(tensor);
    }
  }

  /** Reads the results: bytes by the names of tensors. */
  async readResults({ staging, written, size }) {
    await this.alive(staging.mapAsync(READ));
    const all = staging.getMappedRange();
    const results = {};
    let at = 0;
    for (const tensor of written) {
      results[tensor.name] = all.slice(at, at + tensor.bytes);
      at += size(tensor);
    }
    staging.unmap();
    return results;
  }

  /** Writes an array to a buffer. Writes are whole words. */
  write(buffer, array) {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    const rest = bytes.length % 4;
    const whole = bytes.length - rest;
    if (whole > 0) this.device.queue.writeBuffer(buffer, 0, bytes, 0, whole);
    if (rest > 0) {
      const last = new Uint8Array(4);
      last.set(bytes.subarray(whole));
      this.device.queue.writeBuffer(buffer, whole, last);
    }
  }
}

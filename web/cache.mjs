// Decoding caches: on a device, by exported plans over buffers that stay there; on the CPU path, keys and values in memory.
import { prepare } from './call.mjs';
import { AttentionError, throwIfAborted } from './errors.mjs';

const STORAGE = 0x80 | 0x8 | 0x4; // GPUBufferUsage: STORAGE, COPY_DST, COPY_SRC
const MOST_SIZES = 2; // numbers of tokens whose plans and buffers are kept

const invalid = (argument, why, remedy) => new AttentionError('invalid', `invalid \`${argument}\`: ${why}`, { argument, remedy });

// What both kinds have: the sequences, the checks of a step, and one step after another.
class Sequences {
  #ledger;
  #last = Promise.resolve();
  #isDestroyed = false;

  constructor(engine, ledger, { numHeads, numKvHeads = numHeads, headDim, sequences = 1, window, stored = 'f16' }) {
    this.#ledger = ledger;
    Object.assign(this, { engine, sizes: { numHeads, numKvHeads, headDim, sequences }, window, stored });
  }

  get ledger() {
    return this.#ledger;
  }

  start() {
    return this.#checked(() => this.#ledger.start());
  }

  free(slot) {
    this.#checked(() => this.#ledger.release(slot));
  }

  truncate(slot, length) {
    this.#checked(() => this.#ledger.truncate(slot, length));
  }

  length(slot) {
    return this.#checked(() => this.#ledger.length(slot));
  }

  /** Lengths of all slots; undefined for those without a sequence. */
  lengths() {
    return Array.from({ length: this.sizes.sequences }, (_, slot) => {
      try {
        return this.#ledger.length(slot);
      } catch {
        return undefined;
      }
    });
  }

  step(request) {
    const step = this.#last.then(() => this.#step(request));
    this.#last = step.catch(() => {});
    return step;
  }

  async #step({ query, key, value, tokens = 1, signal }) {
    this.throwIfDestroyed();
    throwIfAborted(signal);
    if (!Number.isInteger(tokens) || tokens < 1) throw invalid('tokens', `is ${tokens}`, 'give a whole number from 1 on');
    const { numHeads, numKvHeads, headDim, sequences } = this.sizes;
    for (const [name, array, heads] of [['query', query, numHeads], ['key', key, numKvHeads], ['value', value, numKvHeads]]) {
      const needed = sequences * heads * tokens * headDim;
      const remedy = `give a Float32Array [${sequences}, ${heads}, ${tokens}, ${headDim}]`;
      if (!(array instanceof Float32Array)) throw invalid(name, 'is no Float32Array', remedy);
      if (array.length !== needed) throw invalid(name, `has ${array.length} elements, the step needs ${needed}`, remedy);
    }
    const before = this.lengths();
    if (before.every((length) => length === undefined)) throw invalid('step', 'no sequence was started', 'call start() first');
    const writes = this.#checked(() => this.#ledger.extend(tokens));
    try {
      return { output: await this.compute({ query, key, value, tokens, before, writes }) };
    } catch (error) {
      before.forEach((length, slot) => length !== undefined && this.#ledger.truncate(slot, length));
      throw AttentionError.of(error);
    }
  }

  #checked(work) {
    this.throwIfDestroyed();
    try {
      return work();
    } catch (error) {
      throw AttentionError.of(error);
    }
  }

  throwIfDestroyed() {
    this.engine.throwIfEnded();
    if (this.#isDestroyed) throw new AttentionError('lost', 'the cache was destroyed', { remedy: 'create a new one' });
  }

  destroy() {
    this.#isDestroyed = true;
  }
}

/** Cache on a device. */
export class DeviceCache extends Sequences {
  #state;
  #banks; // [{ cache_key, cache_value }]
  #kept = new Map(); // number of tokens -> plans bound to buffers, least recently used first
  #pending = [];

  static async create(engine, ledger, options) {
    const cache = new DeviceCache(engine, ledger, options);
    await engine.gpu.guarded((device) => {
      const buffer = (label, size) => device.createBuffer({ label, size, usage: STORAGE });
      const [banks, key, value] = ledger.pools;
      cache.#state = buffer('cache state', Math.max(16, ledger.stateBytes));
      cache.#banks = Array.from({ length: banks }, () => ({ cache_key: buffer('cached keys', key), cache_value: buffer('cached values', value) }));
      cache.bytes = ledger.stateBytes + banks * (key + value);
    });
    return cache;
  }

  async compute({ query, key, value, tokens, writes }) {
    const { gpu } = this.engine;
    // Kept until they are written: a step that fails on the way must not lose them.
    this.#pending.push(...writes);
    const set = await this.#set(tokens);
    await gpu.guarded((device) => {
      for (const { offset, words } of this.#pending) device.queue.writeBuffer(this.#state, 4 * offset, words);
      this.#pending = [];
      for (const [name, array] of Object.entries({ query, key, value })) gpu.write(set.buffers.get(name), array);
      const encoder = device.createCommandEncoder({ label: 'decode' });
      for (const bound of set.bound) bound.record(encoder);
      gpu.copyResults(encoder, set);
      device.queue.submit([encoder.finish()]);
    });
    const { output } = await gpu.readResults(set);
    return new Float32Array(output, 0, query.length);
  }

  // Plans of a step of so many tokens, with the buffers of its tensors.
  async #set(tokens) {
    const kept = this.#kept.get(tokens);
    if (kept) {
      this.#kept.delete(tokens);
      this.#kept.set(tokens, kept);
      return kept;
    }
    const { gpu } = this.engine;
    const [append, attention] = [this.ledger.append(tokens), this.ledger.attention(tokens)];
    const steps = [{ text: this.ledger.advance(), bank: 0 }, ...append.map((text, bank) => ({ text, bank })), ...attention.map((text, bank) => ({ text, bank }))];
    const plans = steps.map(({ text }) => JSON.parse(text));
    const prepared = await Promise.all(plans.map((plan) => prepare(gpu, plan)));
    const tensors = new Map();
    for (const tensor of plans.flatMap(({ tensors }) => tensors)) {
      if (tensor.name.startsWith('cache_')) continue;
      const known = tensors.get(tensor.name);
      tensors.set(tensor.name, { ...tensor, isResult: tensor.name === 'output', bytes: Math.max(known?.bytes ?? 0, tensor.bytes) });
    }
    const set = { ...(await gpu.createBuffers([...tensors.values()])), prepared };
    const named = (bank) => ({ ...Object.fromEntries(set.buffers), ...this.#banks[bank], cache_state: this.#state });
    const only = (plan, buffers) => Object.fromEntries(plan.tensors.map(({ name }) => [name, buffers[name]]));
    set.bound = await gpu.guarded(() => prepared.map((one, at) => one.bind(only(plans[at], named(steps[at].bank)))));
    this.#kept.set(tokens, set);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= MOST_SIZES) break;
      destroySet(this.#kept.get(oldest));
      this.#kept.delete(oldest);
    }
    return set;
  }

  destroy() {
    super.destroy();
    this.#kept.forEach(destroySet);
    this.#kept.clear();
    this.#state.destroy();
    for (const bank of this.#banks) Object.values(bank).forEach((buffer) => buffer.destroy());
  }
}

function destroySet({ buffers, staging, prepared }) {
  for (const buffer of [...buffers.values(), staging]) buffer.destroy();
  for (const one of prepared) one.destroy();
}

/** Cache of the CPU path: keys and values are kept as they came, and rounded to their storage at each step. */
export class HostCache extends Sequences {
  #tokens; // of each slot: [{ key, value }], [heads, dim] each
  bytes = 0;

  constructor(engine, ledger, options) {
    super(engine, ledger, options);
    this.#tokens = Array.from({ length: this.sizes.sequences }, () => []);
  }

  async compute({ query, key, value, tokens, before }) {
    const { numHeads, numKvHeads, headDim, sequences } = this.sizes;
    const row = (array, slot, token) => {
      const heads = Array.from({ length: numKvHeads }, (_, head) => {
        const at = ((slot * numKvHeads + head) * tokens + token) * headDim;
        return array.subarray(at, at + headDim);
      });
      return heads.map((part) => part.slice());
    };
    const all = before.map((length, slot) => {
      if (length === undefined) return [];
      const fresh = Array.from({ length: tokens }, (_, token) => ({ key: row(key, slot, token), value: row(value, slot, token) }));
      return [...this.#tokens[slot].slice(0, length), ...fresh];
    });
    const longest = Math.max(...all.map(({ length }) => length));
    const padded = (name) => {
      const array = new Float32Array(sequences * numKvHeads * longest * headDim);
      all.forEach((rows, slot) => {
        rows.forEach((of, token) => of[name].forEach((part, head) => array.set(part, ((slot * numKvHeads + head) * longest + token) * headDim)));
      });
      return array;
    };
    const shape = { batch: sequences, numHeads, numKvHeads, seqLenQ: tokens, seqLenKv: longest, headDim };
    const kvLengths = Uint32Array.from(all, ({ length }) => length);
    const request = { shape, causal: 'bottom-right', window: this.window, kvLengths, query, key: padded('key'), value: padded('value') };
    const { output } = await this.engine.job('decode', request, { stored: this.stored });
    this.#tokens = all;
    this.bytes = all.reduce((sum, rows) => sum + 8 * rows.length * numKvHeads * headDim, 0);
    return output;
  }
}

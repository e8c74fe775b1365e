// Jobs of the worker, as promises.
import { AttentionError, cancelled } from './errors.mjs';
import { load } from './load.mjs';

export class Jobs {
  #worker; // promise of a thread, once there is a job
  #pending = new Map(); // id -> job, in the order in which the thread takes them
  #next = 0;

  /** Runs a job. `signal` ends the thread if the job is running; others start again in a new one. */
  async run(job, module, request, { described, stored, signal, onShare, onCall } = {}) {
    const { wasm } = await load(module);
    if (signal?.aborted) throw cancelled();
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      const abort = () => {
        this.#settle(id)?.reject(cancelled());
        this.#restart();
      };
      signal?.addEventListener('abort', abort, { once: true });
      const message = { id, job, module, wasm, request: withoutFunctions(request), described, stored };
      this.#pending.set(id, { message, resolve, reject, onShare, onCall, forget: () => signal?.removeEventListener('abort', abort) });
      this.#post(message);
    });
  }

  /** Ends the thread; its jobs fail with `error`. */
  end(error) {
    for (const id of [...this.#pending.keys()]) this.#settle(id).reject(error);
    this.#stop();
  }

  #settle(id) {
    const job = this.#pending.get(id);
    this.#pending.delete(id);
    job?.forget();
    // A thread of Node without a job lets the process end.
    if (this.#pending.size === 0) this.#worker?.then((worker) => worker.unref?.(), () => {});
    return job;
  }

  #restart() {
    this.#stop();
    for (const { message } of this.#pending.values()) this.#post(message);
  }

  #stop() {
    this.#worker?.then((worker) => worker.terminate(), () => {});
    this.#worker = undefined;
  }

  async #post(message) {
    this.#worker ??= this.#start();
    try {
      const worker = await this.#worker;
      if (!this.#pending.has(message.id)) return;
      worker.ref?.();
      worker.postMessage(message);
    } catch (error) {
      this.#settle(message.id)?.reject(AttentionError.of(error));
    }
  }

  async #start() {
    const take = (message) => this.#take(message);
    if (globalThis.Worker) {
      // Written out, so that bundlers find the file.
      const worker = new Worker(new URL('./worker.mjs', import.meta.url), { type: 'module', name: 'wgpu-attention' });
      worker.onmessage = ({ data }) => take(data);
      worker.onerror = ({ message }) => this.end(new AttentionError('device', `the worker failed: ${message}`));
      return worker;
    }
    const { Worker: Thread } = await import('node:worker_threads');
    const thread = new Thread(new URL('./worker.mjs', import.meta.url));
    thread.on('message', take);
    thread.on('error', (error) => this.end(AttentionError.of(error)));
    return thread;
  }

  #take({ id, share, error, result, call, ...message }) {
    if (call !== undefined) this.#answer(id, call, message);
    else if (share !== undefined) this.#pending.get(id)?.onShare?.(share);
    else if (error) this.#settle(id)?.reject(AttentionError.of(error));
    else this.#settle(id)?.resolve(result);
  }

  // Runs a plan for a job.
  async #answer(id, call, { exported, contents }) {
    const worker = await this.#worker;
    try {
      worker?.postMessage({ call, results: await this.#pending.get(id)?.onCall(JSON.parse(exported), contents) });
    } catch (error) {
      const { kind, message } = AttentionError.of(error);
      worker?.postMessage({ call, error: { kind, message } });
    }
  }
}

// Requests are cloned for the thread, which a signal cannot be.
function withoutFunctions(request) {
  const { signal: _, ...plain } = request;
  return plain;
}

// Thread of the CPU path, so that pages stay responsive: one job after another.
//
// In: { id, job, module, wasm, request, described, stored }. Out: { id, result } or { id, error }, and { id, share } meanwhile. A
// verification has plans run by the page's thread: { id, call, exported, contents } goes out, { call, results } or
// { call, error } comes in.
import { load } from './load.mjs';

const port = globalThis.postMessage ? globalThis : (await import('node:worker_threads')).parentPort;
const post = (message, transfer = []) => port.postMessage(message, transfer);

const JOBS = {
  attention: ({ exports, request, watch }) => exports.attention(request, watch),
  backward: ({ exports, request, watch }) => exports.backward(request, watch),
  decode: ({ exports, request, stored }) => exports.decode(request, stored),
  explain: ({ exports, request }) => exports.explain(request),
  verify: ({ exports, request, described, watch, run }) => exports.verify(request, described, run, watch),
};

async function run({ id, job, module, wasm, request, described, stored }) {
  try {
    const { exports } = await load(module, wasm);
    const watch = (share) => post({ id, share });
    const run = (exported, contents) => ask({ id, exported, contents });
    const result = await JOBS[job]({ exports, request, described, stored, watch, run });
    post({ id, result }, Object.values(result).filter(ArrayBuffer.isView).map(({ buffer }) => buffer));
  } catch (error) {
    const { kind = 'device', message = String(error), argument, remedy } = error;
    post({ id, error: { kind, message, argument, remedy } });
  }
}

const calls = []; // { resolve, reject } of what the page's thread was asked

const ask = (message) =>
  new Promise((resolve, reject) => {
    post({ ...message, call: calls.push({ resolve, reject }) - 1 });
  });

let queue = Promise.resolve();
function enqueue({ call, results, error, ...message }) {
  if (call === undefined) queue = queue.then(() => run(message));
  else if (error) calls[call].reject(error);
  else calls[call].resolve(results);
}
if (port === globalThis) globalThis.onmessage = ({ data }) => enqueue(data);
else port.on('message', enqueue);

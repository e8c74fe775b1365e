// Timings: shapes, a bar chart, and the record that `attn bench --json` would write.
import { bench, plan } from './package/index.mjs';
import { $, digits, element, explainError, table } from './dom.mjs';

// From attn/suite.txt: name, sizes, causal.
const SHAPES = [
  ['prefill-512', '1,8,8,512,512,64', false],
  ['prefill-1024', '1,8,8,1024,1024,64', false],
  ['prefill-2048', '1,8,8,2048,2048,64', false],
  ['prefill-2048-causal', '1,8,8,2048,2048,64', true],
  ['prefill-4096-wide', '1,4,4,4096,4096,128', false],
  ['bert-512', '1,12,12,512,512,64', false],
  ['llama-8b-prefill', '1,32,8,2048,2048,128', true],
  ['llama-8b-decode-4k', '1,32,8,1,4096,128', false],
  ['scaling-decode-16k', '1,8,8,1,16384,64', false],
];
const OWN = 'own';
const BYTES = { f32: 4, f16: 2, bf16: 2 };

export class Timing {
  /** `site` has the version of the library and its repository. */
  constructor(session, site) {
    Object.assign(this, { session, site, results: [] });
    for (const [name, shape] of SHAPES) $('time-shape').append(element('option', { value: name }, `${name}: ${shape}`));
    $('time-shape').append(element('option', { value: OWN }, 'own shape'));
    $('time-shape').addEventListener('change', () => {
      const found = SHAPES.find(([name]) => name === $('time-shape').value);
      if (found) $('time-causal').checked = found[2];
    });
    $('time-own').addEventListener('input', () => ($('time-shape').value = OWN));
    $('time-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.start();
    });
    $('time-cancel').addEventListener('click', () => {
      $('time-result').textContent = 'Cancelling after what has been submitted.';
      this.controller?.abort();
    });
    $('time-copy').addEventListener('click', () => this.copy());
    $('time-clear').addEventListener('click', () => {
      this.results = [];
      $('time-result').textContent = 'Nothing timed yet.';
      this.show();
    });
    this.show();
  }

  /** What the form asks for. @throws {Error} */
  task() {
    const [name, text] = SHAPES.find(([name]) => name === $('time-shape').value) ?? [undefined, $('time-own').value];
    const sizes = text.split(',').map((size) => Number(size.trim() || NaN));
    const isWrong = sizes.length !== 6 || !sizes.every((size) => Number.isInteger(size) && size > 0);
    if (isWrong) throw new Error('The own shape takes six whole numbers from 1 on: batch, heads, key/value heads, queries, keys, head_dim');
    const [batch, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim] = sizes;
    const causal = $('time-causal').checked;
    const dtype = $('time-dtype').value;
    const problem = { shape: { batch, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim }, dtype, causal: causal && 'bottom-right' };
    // Query and output, key and value.
    const bytes = 2 * BYTES[dtype] * batch * headDim * (numHeads * seqLenQ + numKvHeads * seqLenKv);
    // As `attn bench` counts them: of the pairs that are visible.
    const visible = Array.from({ length: seqLenQ }, (_, row) => (causal ? Math.max(0, row + 1 + seqLenKv - seqLenQ) : seqLenKv));
    const flops = 4 * batch * numHeads * headDim * visible.reduce((sum, keys) => sum + keys, 0);
    const seconds = $('time-seconds').valueAsNumber || 1;
    const isSuites = SHAPES.some((shape) => shape[0] === name && shape[2] === causal);
    return { name: isSuites ? name : sizes.join(','), sizes, causal, dtype, problem: { ...problem, outputDtype: dtype }, bytes, flops, seconds };
  }

  async start() {
    if (this.controller || !this.session.engine) return;
    let task;
    try {
      task = this.task();
    } catch (error) {
      $('time-result').textContent = error.message;
      return;
    }
    this.controller = new AbortController();
    this.setRunning(true);
    try {
      await this.time(task, this.session.engine);
      if ($('time-cpu').checked && this.session.engine.backend !== 'cpu') await this.time(task, await this.session.cpuEngine());
      const [last, before] = this.results;
      const isPair = before && last.backend !== before.backend && last.task === before.task;
      const ratio = isPair ? before.gflops / last.gflops : 0;
      const faster = ` That is ${digits(ratio)} times the rate of the CPU path in WebAssembly.`;
      const times = !isPair ? '' : ratio >= 1 ? faster : ` The CPU path in WebAssembly has ${digits(1 / ratio)} times that rate.`;
      const shown = isPair ? before : last;
      $('time-result').textContent = `${digits(shown.gflops)} GFLOP/s on ${shown.adapter}: ${digits(shown.median)} ms.${times}`;
    } catch (error) {
      $('time-result').textContent = error.kind === 'cancelled' ? 'Cancelled.' : explainError(error);
    } finally {
      this.controller = undefined;
      this.setRunning(false);
    }
  }

  async time(task, engine) {
    $('time-result').textContent = `Compiling, checking and timing ${task.name} on ${engine.name}.`;
    const work = () => bench(engine, { ...task.problem, seconds: task.seconds, signal: this.controller.signal });
    const result = await this.session.run((share) => ($('time-progress').value = share), work);
    const gflops = task.flops / (result.median * 1e6);
    this.results.unshift({ ...result, gflops, kernel: await kernelOf(engine, task.problem), task });
    this.show();
  }

  setRunning(isRunning) {
    $('time-start').disabled = isRunning;
    $('time-cancel').disabled = !isRunning;
    // Without a value until the first share is reported.
    if (isRunning) $('time-progress').removeAttribute('value');
    else $('time-progress').value = 0;
  }

  show() {
    const isEmpty = this.results.length === 0;
    $('time-copy').disabled = $('time-clear').disabled = isEmpty;
    $('time-record').value = isEmpty ? '' : this.record();
    $('time-chart').replaceChildren(...(isEmpty ? [] : [chart(this.results)]));
    const rows = this.results.map((result) => {
      const { task, median, min, max, repetitions, gflops } = result;
      return [describe(task), result.adapter, digits(median), `${digits(min)} to ${digits(max)}`, `${repetitions}`, digits(gflops)];
    });
    const headings = ['problem', 'on', 'median ms', 'least to most', 'runs', 'GFLOP/s'];
    $('time-table').replaceChildren(...(isEmpty ? [] : [table('Timings, the last one first', headings, rows, { numbersFrom: 2 })]));
    $('time-table').hidden = isEmpty;
  }

  /** Lines of JSON: the machine, then each result, the first one first. */
  record() {
    const threads = navigator.hardwareConcurrency ?? 1;
    const machine = {
      ...{ machine: `${this.results.at(-1).adapter}, in a browser`, threads, os: navigator.userAgentData?.platform || navigator.platform || 'unknown' },
      ...{ date: new Date().toISOString().slice(0, 10), version: this.site.version, copy_gb_s: null, multiply_add_gflops: null },
      ...{ matrix_gflops: null, program_bytes: null, browser: navigator.userAgent },
    };
    const line = ({ adapter, backend, median, min, max, gflops, repetitions, kernel, task }) => ({
      ...{ adapter: backend === 'cpu' ? `${adapter}, wasm` : adapter, op: 'fused', name: task.name, ms_median: median, ms_min: min, ms_max: max },
      ...{ n: repetitions, gflops, bytes: task.bytes, first_s: null, peak_bytes: null, checked: true, wrong: null, error_of_bound: null },
      ...{ peer: false, ratio_to_best_peer: null, kernel, shape: task.sizes, causal: task.causal, window: null },
      ...{ terms: task.causal ? ['causal=bottom-right'] : [], dtype: task.dtype, backward: false, bf16_weights: false },
      // `attn bench` times calls from host to host; this does not.
      ...{ threads: backend === 'cpu' ? 1 : threads, timed: 'device, without uploads' },
    });
    return [machine, ...this.results.toReversed().map(line)].map((object) => JSON.stringify(object)).join('\n') + '\n';
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.record());
      $('time-copied').textContent = 'Copied.';
    } catch {
      $('time-copied').textContent = 'The browser does not let a page copy here. The record below can be selected.';
    }
  }
}

const describe = (task) => `${task.name}${task.causal && !task.name.endsWith('causal') ? ', causal' : ''}, ${task.dtype}`;

/** Kernel of a problem in words. */
async function kernelOf(engine, problem) {
  if (engine.backend === 'cpu') return 'cpu path';
  const planned = await plan(engine, problem);
  planned.destroy();
  return planned.summary;
}

/** Bars of GFLOP/s on one axis from 0. */
function chart(results) {
  const most = Math.max(...results.map(({ gflops }) => gflops));
  const step = [1, 2, 5, 10].map((x) => x * 10 ** Math.floor(Math.log10(most / 4))).find((step) => most / step <= 5);
  const ticks = Array.from({ length: Math.ceil(most / step) + 1 }, (_, at) => at * step);
  const end = ticks.at(-1);
  const bars = results.map(({ task, backend, adapter, gflops }) => {
    const bar = element('div', { class: `rate ${backend}` });
    bar.style.inlineSize = `${(100 * gflops) / end}%`;
    return element('div', {}, element('div', { class: 'rate-name' }, `${describe(task)}, ${backend === 'cpu' ? 'CPU in WebAssembly' : adapter}: `, element('b', {}, digits(gflops))), bar);
  });
  const axis = ticks.map((tick) => {
    const mark = element('span', {}, digits(tick));
    mark.style.insetInlineStart = `${(100 * tick) / end}%`;
    return mark;
  });
  const label = `Bar chart of GFLOP/s; the table below has the numbers.`;
  return element('figure', {}, element('figcaption', {}, 'GFLOP/s; more is faster'), element('div', { class: 'rates', role: 'img', 'aria-label': label }, ...bars, element('div', { class: 'axis' }, ...axis)));
}

// Attention of arrays from files: one head at a time, so many rows with all of their keys.
import { attention, explain } from './package/index.mjs';
import { $, element, explainError } from './dom.mjs';
import { elements } from './floats.mjs';
import { HeatMap } from './heatmap.mjs';
import { latest, settled } from './latest.mjs';
import { readNpy } from './npy.mjs';
import { readSafetensors } from './safetensors.mjs';

const MAX_ELEMENTS = 2 ** 27;
const MAX_WEIGHTS = 2 ** 22;
const OPERANDS = ['query', 'key', 'value'];
const LIKELY = { query: /(^|[^a-z])q(uery|ueries)?([^a-z]|$)/i, key: /(^|[^a-z])k(eys?)?([^a-z]|$)/i, value: /(^|[^a-z])v(alues?)?([^a-z]|$)/i };

export class Files {
  constructor(session) {
    this.session = session;
    this.arrays = [];
    this.map = new HeatMap($('file-map'), { label: 'Weights of the file', row: 'query', column: 'key' });
    this.update = latest(() => this.compute());
    const soon = settled(this.update, 120);
    $('files').addEventListener('change', () => this.open([...$('files').files]));
    const drop = $('drop');
    for (const type of ['dragenter', 'dragover']) drop.addEventListener(type, (event) => this.dragged(event, true));
    drop.addEventListener('dragleave', (event) => this.dragged(event, false));
    drop.addEventListener('drop', (event) => {
      this.dragged(event, false);
      this.open([...event.dataTransfer.files]);
    });
    for (const name of [...OPERANDS, 'layout', 'causal', 'scale']) $(`file-${name}`).addEventListener('change', this.update);
    for (const name of ['item', 'head', 'row', 'rows']) $(`file-${name}`).addEventListener('input', soon);
  }

  dragged(event, isOver) {
    event.preventDefault();
    $('drop').classList.toggle('over', isOver);
  }

  async open(files) {
    if (files.length === 0) return;
    $('file-result').textContent = `Reading ${files.map((file) => file.name).join(', ')}.`;
    $('file-view').hidden = true;
    const arrays = [];
    for (const file of files) {
      try {
        const isSafetensors = file.name.endsWith('.safetensors');
        if (isSafetensors) arrays.push(...(await readSafetensors(file)));
        else arrays.push({ ...(await readNpy(file)), name: file.name.replace(/\.npy$/, '') });
      } catch (error) {
        $('file-result').textContent = `${file.name} ${error.message}.`;
        return;
      }
    }
    this.arrays = arrays;
    this.offer();
    $('file-view').hidden = false;
    await this.update();
  }

  /** Fills the lists, and chooses what the names suggest. */
  offer() {
    OPERANDS.forEach((operand, at) => {
      const list = $(`file-${operand}`);
      list.replaceChildren(...this.arrays.map(({ name, shape, dtype }, index) => element('option', { value: `${index}` }, `${name} [${shape.join(', ')}] ${dtype}`)));
      const likely = this.arrays.findIndex(({ name }) => LIKELY[operand].test(name.split('.').at(-1)) || LIKELY[operand].test(name));
      list.value = `${likely >= 0 ? likely : this.arrays.length === 3 ? at : 0}`;
    });
    for (const [name, value] of [['item', 0], ['head', 0], ['row', 0], ['rows', 512]]) $(`file-${name}`).value = `${value}`;
  }

  async compute() {
    const { engine } = this.session;
    if (this.arrays.length === 0 || !engine) return;
    $('file-map').setAttribute('aria-busy', 'true');
    try {
      await this.show(engine);
      $('file-map').classList.remove('stale');
    } catch (error) {
      if (engine !== this.session.engine) return;
      $('file-result').textContent = explainError(error);
      $('file-map').classList.add('stale');
    } finally {
      $('file-map').setAttribute('aria-busy', 'false');
    }
  }

  async show(engine) {
    const [query, key, value] = OPERANDS.map((operand) => normal(this.arrays[$(`file-${operand}`).value], operand, $('file-layout').value));
    const at = (name) => $(`file-${name}`).valueAsNumber || 0;
    check(query, key, value, at('item'), at('head'));
    const head = at('head');
    const kvHead = Math.floor(head / (query.heads / key.heads));
    const first = Math.min(at('row'), query.tokens - 1);
    const rows = Math.max(1, Math.min(at('rows') || 1, query.tokens - first, Math.floor(MAX_WEIGHTS / key.tokens)));
    const q = await slice(query, at('item'), head, first, rows);
    const [k, v] = await Promise.all([key, value].map((array) => slice(array, at('item'), kvHead, 0, key.tokens)));
    const problem = { shape: { numHeads: 1, seqLenQ: rows, seqLenKv: key.tokens, headDim: query.dim, headDimV: value.dim } };
    const causal = $('file-causal').value;
    if (causal) {
      // A window without a left end: unlike `causal`, it can be had for some of the rows.
      problem.window = { right: 0 };
      problem.alignment = { offset: first + (causal === 'bottom-right' ? key.tokens - query.tokens : 0) };
    }
    const { weights } = await attention(engine, { ...problem, query: q, key: k, value: v, weights: true });
    const { visible } = causal ? await explain(engine, problem) : {};
    const rowNames = first > 0 ? Array.from({ length: rows }, (_, row) => `${first + row}`) : undefined;
    const isLogarithmic = $('file-scale').value === 'logarithmic';
    this.map.show({ rows, columns: key.tokens, weights, visible, rowNames, isLogarithmic });
    const cut = rows < query.tokens ? ` Rows ${first} to ${first + rows - 1} of ${query.tokens} are shown, with all of their keys.` : '';
    $('file-result').textContent = `${query.heads} heads, ${query.tokens} queries, ${key.tokens} keys, head_dim ${query.dim}.${cut}`;
  }
}

/** Array with the sizes of its axes by name. */
function normal(array, operand, layout) {
  const { shape, name } = array;
  if (shape.length < 2 || shape.length > 4) throw new Error(`${operand}: ${name} has ${shape.length} axes, and 2 to 4 are needed: [batch, heads, tokens, dim]. Reshape it before it is saved`);
  const [batch, second, third, dim] = [...Array(4 - shape.length).fill(1), ...shape];
  const isTokensFirst = layout === 'bshd' && shape.length > 2;
  const [heads, tokens] = isTokensFirst ? [third, second] : [second, third];
  if (elements(shape) === 0) throw new Error(`${operand}: ${name} is empty`);
  if (elements(shape) > MAX_ELEMENTS) throw new Error(`${operand}: ${name} has ${elements(shape)} elements, and this page takes at most ${MAX_ELEMENTS}. Save a part of it`);
  return { ...array, batch, heads, tokens, dim, isTokensFirst, source: array };
}

function check(query, key, value, item, head) {
  const differ = (what, a, b) => `${what}: ${a} and ${b}. Choose other arrays or other axes`;
  if (query.dim !== key.dim) throw new Error(differ('Query and key differ in dim', query.dim, key.dim));
  if (key.tokens !== value.tokens) throw new Error(differ('Key and value differ in tokens', key.tokens, value.tokens));
  if (key.heads !== value.heads) throw new Error(differ('Key and value differ in heads', key.heads, value.heads));
  if (query.heads % key.heads !== 0) throw new Error(`${query.heads} query heads are no multiple of ${key.heads} key/value heads. Choose other arrays or other axes`);
  if (query.batch !== key.batch || key.batch !== value.batch) throw new Error(`Query, key and value differ in batch: ${query.batch}, ${key.batch}, ${value.batch}`);
  if (item >= query.batch) throw new Error(`There is no item ${item}: the last one is ${query.batch - 1}`);
  if (head >= query.heads) throw new Error(`There is no head ${head}: the last one is ${query.heads - 1}`);
  if (key.tokens > MAX_WEIGHTS) throw new Error(`${key.tokens} keys are too many to be shown; at most ${MAX_WEIGHTS}`);
}

/** Tokens [first, first + count) of one head of one item, [count, dim]. */
async function slice({ source, heads, tokens, dim, isTokensFirst }, item, head, first, count) {
  source.data ??= source.read();
  const data = await source.data;
  const out = new Float32Array(count * dim);
  for (let token = 0; token < count; token++) {
    const row = isTokensFirst ? (item * tokens + first + token) * heads + head : (item * heads + head) * tokens + first + token;
    out.set(data.subarray(row * dim, (row + 1) * dim), token * dim);
  }
  return out;
}

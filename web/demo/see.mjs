// Sentence, masks and the user's function: their heat map, and the mask of a larger square.
import { attention, explain } from './package/index.mjs';
import { $, element, explainError } from './dom.mjs';
import { Editor } from './editor.mjs';
import { HEAD_DIM, NUM_HEADS, project, split } from './embed.mjs';
import { HeatMap } from './heatmap.mjs';
import { latest, settled } from './latest.mjs';
import { readLink, writeLink } from './link.mjs';
import { exampleTables, parseTables, readTerm } from './terms.mjs';

const START = 'window_sinks';

export class See {
  /** `session.engine` computes; `terms` are the names of the gallery's files. */
  constructor(session, terms) {
    this.session = session;
    this.head = 0;
    this.map = new HeatMap($('map'), { label: 'Weights of the sentence', row: 'word', column: 'word' });
    // “it” and “animal” of the example.
    this.map.selected = { row: 7, column: 1 };
    this.square = new HeatMap($('square'), { label: 'Mask', hasWeights: false });
    this.editor = new Editor($('editor'), {
      label: 'Function in WGSL: visible(at) or score(x, at). at has batch, head, row, key, position, len_q, len_kv',
      onInput: () => this.edited(),
    });
    this.update = latest(() => this.compute());
    this.soon = settled(this.update, 120);
    this.addHeads();
    for (const name of terms) $('gallery').append(element('option', { value: name, selected: name === START }, name.replaceAll('_', ' ')));
    this.listen();
  }

  addHeads() {
    for (let head = 0; head < NUM_HEADS; head++) {
      const radio = element('input', { type: 'radio', name: 'head', value: `${head}`, checked: head === 0 });
      radio.addEventListener('change', () => {
        this.head = head;
        this.update();
      });
      $('heads').append(element('label', { class: 'check' }, radio, ` ${head}`));
    }
  }

  listen() {
    $('sentence').addEventListener('input', () => {
      this.refreshTables();
      this.soon();
    });
    for (const id of ['causal', 'window', 'own', 'square-size']) $(id).addEventListener('change', this.update);
    for (const id of ['window-left', 'window-right']) {
      $(id).addEventListener('input', () => {
        $('window').checked = true;
        this.soon();
      });
    }
    $('tables').addEventListener('input', () => this.edited());
    $('gallery').addEventListener('change', async () => {
      await this.load($('gallery').value);
      $('own').checked = true;
      await this.update();
    });
  }

  edited() {
    $('own').checked = true;
    this.soon();
  }

  /** Loads a term of the gallery into the editor. */
  async load(name) {
    const answer = await fetch(`terms/${name}.wgsl`);
    if (!answer.ok) throw new Error(`terms/${name}.wgsl: ${answer.status}`);
    const { about, code, tables } = readTerm(await answer.text());
    if ($('gallery').value !== name) return;
    $('term-about').textContent = about;
    this.editor.text = this.loaded = `${code}\n`;
    this.tableNames = tables;
    this.written = undefined;
    this.refreshTables();
  }

  /** Shows what the page's address says, else the example. */
  async start() {
    const { head, term, tables } = readLink();
    this.head = Math.min(Math.max(Math.trunc(Number(head ?? 0)) || 0, 0), NUM_HEADS - 1);
    $('heads').querySelector(`[value="${this.head}"]`).checked = true;
    await this.load($('gallery').value);
    if (term !== undefined) this.editor.text = term;
    if (tables !== undefined) $('tables').value = tables;
    await this.update();
  }

  /** Changes the page's address to what is shown. */
  remember() {
    const others = {};
    if (this.head > 0) others.head = this.head;
    if (this.editor.text !== this.loaded) others.term = this.editor.text;
    if ($('tables').value !== this.written) others.tables = $('tables').value;
    writeLink(others);
  }

  /** Writes example tables for the sentence, unless the user has changed them. */
  refreshTables() {
    if (this.written !== undefined && $('tables').value !== this.written) return;
    this.written = exampleTables(this.tableNames ?? [], NUM_HEADS, split($('sentence').value).length);
    $('tables').value = this.written;
  }

  /** Problem of so many tokens, with the chosen masks. */
  problem(tokens) {
    const problem = { shape: { numHeads: NUM_HEADS, seqLenQ: tokens, headDim: HEAD_DIM } };
    if ($('causal').checked) problem.causal = 'top-left';
    else problem.alignment = 'top-left';
    if ($('window').checked) problem.window = { left: $('window-left').valueAsNumber || 0, right: $('window-right').valueAsNumber || 0 };
    if ($('own').checked) {
      problem[/\bfn\s+score\b/.test(this.editor.text) ? 'score' : 'visible'] = this.editor.text;
      const isExample = $('tables').value === this.written;
      const tables = parseTables(isExample ? exampleTables(this.tableNames, NUM_HEADS, tokens) : $('tables').value);
      if (Object.keys(tables).length > 0) problem.tables = tables;
    }
    return problem;
  }

  async compute() {
    const { engine } = this.session;
    if (!engine) return;
    this.remember();
    const words = split($('sentence').value);
    let square;
    try {
      square = this.problem(Number($('square-size').value));
      $('tables-error').textContent = '';
    } catch (error) {
      $('tables-error').textContent = error.message;
      return;
    }
    $('map').setAttribute('aria-busy', 'true');
    const slow = setTimeout(() => ($('see-problem').textContent = 'Computing; new functions are compiled first.'), 400);
    try {
      await this.showSquare(engine, square);
      await this.showWords(engine, words);
      this.tell('', false);
    } catch (error) {
      if (engine === this.session.engine) this.fail(error);
    } finally {
      clearTimeout(slow);
      $('map').setAttribute('aria-busy', 'false');
    }
  }

  fail(error) {
    const isTerm = ['score', 'visible', 'tables'].includes(error.argument) || error.kind === 'shader';
    if (isTerm && $('own').checked) this.editor.setError(error.message);
    this.tell(isTerm ? 'The function has an error. The map shows what was computed last.' : explainError(error), isTerm);
  }

  tell(text, isTerm) {
    if (!isTerm) this.editor.setError('');
    $('see-problem').textContent = text;
    $('map').classList.toggle('stale', text !== '');
  }

  async showSquare(engine, problem) {
    const { visible, density } = await explain(engine, problem);
    const size = problem.shape.seqLenQ;
    this.square.show({ rows: size, columns: size, visible });
    const pairs = visible.reduce((sum, x) => sum + (x !== 0), 0);
    $('square-text').textContent = `${pairs.toLocaleString('en')} of ${(size * size).toLocaleString('en')} pairs are visible: ${(100 * density).toFixed(2)} %.`;
  }

  async showWords(engine, words) {
    const size = words.length;
    if (size === 0) return this.map.clear();
    const problem = this.problem(size);
    const { weights } = await attention(engine, { ...problem, ...project(words), weights: true });
    const shown = weights.subarray(this.head * size * size, (this.head + 1) * size * size);
    const { visible } = await explain(engine, { ...problem, head: this.head });
    this.map.show({ rows: size, columns: size, weights: shown, visible, rowNames: words, columnNames: words });
  }
}

// Heat map of a matrix on a canvas, with a line that tells of the chosen cell, a legend, and a table of the chosen row.
import { element, table, digits } from './dom.mjs';
import { DECADES, drawMap } from './draw.mjs';

// Rows of the table: of a longer row, the largest weights.
const TABLE_ROWS = 48;

export class HeatMap {
  /**
   * `label` names the map, `row` and `column` what they are ("word", "token"). A map without weights, a mask, has no table.
   */
  constructor(container, { label, row = 'row', column = 'key', hasWeights = true }) {
    Object.assign(this, { label, row, column, hasWeights, data: null, selected: { row: 0, column: 0 }, hovered: null });
    this.canvas = element('canvas', { tabindex: '0', role: 'application', 'aria-roledescription': 'heat map', 'aria-label': label });
    this.readout = element('p', { class: 'readout', 'aria-live': 'polite' });
    [this.least, this.most] = ['least', 'most'].map((name) => element('span', { class: name }));
    const masked = element('span', { class: 'key' }, element('span', { class: 'swatch hatched' }), ' masked');
    this.legend = hasWeights
      ? element('p', { class: 'legend' }, 'weight ', this.least, element('span', { class: 'ramp' }), this.most, masked)
      : element('p', { class: 'legend' }, element('span', { class: 'key' }, element('span', { class: 'swatch shown' }), ' visible'), masked);
    container.append(this.canvas, this.readout, this.legend);
    if (hasWeights) {
      this.table = element('div', { class: 'scroll row-table', tabindex: '0', role: 'region', 'aria-label': `${label}: the chosen row` });
      container.append(this.table);
    }
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener('pointermove', (event) => this.hover(this.cellAt(event)));
    canvas.addEventListener('pointerleave', () => this.hover(null));
    canvas.addEventListener('pointerdown', (event) => {
      const cell = this.cellAt(event);
      if (cell) this.select(cell.row, cell.column);
    });
    canvas.addEventListener('keydown', (event) => this.move(event));
    for (const type of ['focus', 'blur']) canvas.addEventListener(type, () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
    document.addEventListener('themechange', () => this.draw());
  }

  /**
   * Shows [rows, columns] weights, or none, and which pairs are visible: 0 or 1, or none where all are. Names are of rows and
   * columns; numbers stand in for those that are left out. A logarithmic scale ends four decades below the largest weight.
   */
  show({ rows, columns, weights, visible, rowNames, columnNames, isLogarithmic = false }) {
    const most = weights?.reduce((most, x) => (x > most ? x : most), 0);
    this.data = { rows, columns, weights, visible, rowNames, columnNames, isLogarithmic, most };
    if (weights) [this.least.textContent, this.most.textContent] = [isLogarithmic ? `≤ ${digits(most / 10 ** DECADES)}` : '0', digits(most)];
    this.canvas.setAttribute('aria-label', `${this.label}, ${rows} rows and ${columns} columns. Arrow keys move the chosen cell.`);
    this.select(Math.min(this.selected.row, rows - 1), Math.min(this.selected.column, columns - 1));
  }

  /** Shows nothing. */
  clear() {
    this.data = null;
    this.readout.textContent = '';
    this.table?.replaceChildren();
    this.draw();
  }

  isVisible(row, column) {
    return !this.data.visible || this.data.visible[row * this.data.columns + column] !== 0;
  }

  weight(row, column) {
    return this.data.weights[row * this.data.columns + column];
  }

  name(names, at) {
    return names ? `“${names[at]}”` : `${at}`;
  }

  select(row, column) {
    const isOtherRow = row !== this.selected.row || this.data !== this.tabled;
    this.selected = { row, column };
    this.hovered = null;
    this.tell(this.selected);
    if (isOtherRow && this.table) this.fillTable();
    this.draw();
  }

  hover(cell) {
    if (!this.data || (!cell && !this.hovered)) return;
    this.hovered = cell;
    this.tell(cell ?? this.selected);
    this.draw();
  }

  tell({ row, column }) {
    const { rowNames, columnNames, weights } = this.data;
    const value = !this.isVisible(row, column) ? 'masked' : weights ? `weight ${this.weight(row, column).toFixed(4)}` : 'visible';
    const where = `${this.row} ${this.name(rowNames, row)}, ${this.column} ${this.name(columnNames, column)}: ${value}`;
    const of = this.hasWeights ? '' : `. The row sees ${this.ranges(row)}.`;
    this.readout.textContent = where[0].toUpperCase() + where.slice(1) + of;
  }

  /** Visible keys of a row in words: "keys 1 to 4, 9". */
  ranges(row) {
    const runs = [];
    for (let at = 0; at < this.data.columns; at++) {
      if (!this.isVisible(row, at)) continue;
      if (runs.at(-1)?.[1] === at - 1) runs.at(-1)[1] = at;
      else runs.push([at, at]);
    }
    if (runs.length === 0) return 'nothing';
    const texts = runs.slice(0, 4).map(([first, last]) => (first === last ? `${first}` : `${first} to ${last}`));
    const isOne = runs.length === 1 && runs[0][0] === runs[0][1];
    return `${isOne ? 'key' : 'keys'} ${texts.join(', ')}${runs.length > 4 ? ' and more' : ''}`;
  }

  fillTable() {
    this.tabled = this.data;
    const { columns, columnNames, rowNames } = this.data;
    const { row } = this.selected;
    let order = Array.from({ length: columns }, (_, at) => at);
    const isCut = columns > TABLE_ROWS;
    if (isCut) order = order.sort((a, b) => this.weight(row, b) - this.weight(row, a)).slice(0, TABLE_ROWS);
    // Bars as shares of the row's largest weight.
    const most = order.reduce((most, at) => Math.max(most, this.weight(row, at)), 0) || 1;
    const rows = order.map((at) => {
      if (!this.isVisible(row, at)) return [columnNames?.[at] ?? `${at}`, 'masked'];
      const bar = element('span', { class: 'bar', 'aria-hidden': 'true' });
      bar.style.inlineSize = `${((60 * this.weight(row, at)) / most).toFixed(1)}%`;
      return [columnNames?.[at] ?? `${at}`, element('span', { class: 'barred' }, bar, this.weight(row, at).toFixed(4))];
    });
    const caption = `Weights of ${this.row} ${this.name(rowNames, row)}${isCut ? `, the ${TABLE_ROWS} largest of ${columns}` : ''}`;
    this.table.replaceChildren(table(caption, [this.column, 'weight'], rows));
    this.table.scrollTop = 0;
  }

  cellAt(event) {
    if (!this.data || !this.plot) return null;
    const { left, top, width, height } = this.plot;
    const column = Math.floor(((event.offsetX - left) / width) * this.data.columns);
    const row = Math.floor(((event.offsetY - top) / height) * this.data.rows);
    return row >= 0 && row < this.data.rows && column >= 0 && column < this.data.columns ? { row, column } : null;
  }

  move(event) {
    if (!this.data || event.altKey || event.metaKey) return;
    const { rows, columns } = this.data;
    let { row, column } = this.selected;
    const page = Math.max(1, Math.floor(rows / 8));
    const moves = {
      ArrowUp: () => (row -= 1),
      ArrowDown: () => (row += 1),
      ArrowLeft: () => (column -= 1),
      ArrowRight: () => (column += 1),
      PageUp: () => (row -= page),
      PageDown: () => (row += page),
      Home: () => (event.ctrlKey ? (row = column = 0) : (column = 0)),
      End: () => (event.ctrlKey ? ([row, column] = [rows - 1, columns - 1]) : (column = columns - 1)),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
    this.select(Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1));
  }

  draw() {
    const isFocused = document.activeElement === this.canvas;
    this.plot = drawMap(this.canvas, this.data, { selected: this.selected, hovered: this.hovered, isFocused });
  }
}

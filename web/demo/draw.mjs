// Drawing of a heat map: cells, names, and the outlines of the chosen row and cell.

/** Decades of a logarithmic scale. */
export const DECADES = 4;

const STOPS = 6;
// Cells a side up to which each is a rectangle with a gap; beyond, a cell is a pixel of an image.
const MAX_CELLS = 64;

/** Draws `data` of a HeatMap, or nothing, and returns the rectangle of the cells. */
export function drawMap(canvas, data, { selected, hovered, isFocused }) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  if (!data || width === 0) return null;
  const colours = readColours(canvas);
  const plot = layout(width, height, data);
  const hatch = context.createPattern(hatching(colours, ratio), 'repeat');
  hatch.setTransform(new DOMMatrix().scale(1 / ratio));
  if (Math.max(data.rows, data.columns) <= MAX_CELLS) drawCells(context, data, plot, colours, hatch);
  else drawImage(context, data, plot, colours, hatch);
  drawNames(context, data, plot, colours);
  drawChoice(context, data, plot, colours, { selected, hovered, isFocused });
  return plot;
}

/** Colours of the style sheet, as the canvas inherits them. */
function readColours(canvas) {
  const probe = canvas.parentElement.appendChild(document.createElement('span'));
  probe.hidden = true;
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  };
  const text = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
  const stops = Array.from({ length: STOPS }, (_, at) => read(`--ramp-${at}`));
  const colours = { ramp: ramp(stops), ...Object.fromEntries(['surface', 'text', 'hatch', 'focus'].map((name) => [name, text(read(`--${name}`))])) };
  probe.remove();
  return colours;
}

/** 256 colours between the stops. */
function ramp(stops) {
  return Array.from({ length: 256 }, (_, at) => {
    const place = (at / 255) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    return stops[first].slice(0, 3).map((x, c) => Math.round(x + (place - first) * (stops[first + 1][c] - x)));
  });
}

/** Rectangle of the cells of a map of so many pixels. */
export function layout(width, height, { rowNames }) {
  const isNarrow = width < 440;
  const [left, top, right] = rowNames ? (isNarrow ? [70, 56, 34] : [96, 76, 52]) : [40, 22, 6];
  return { left, top, width: width - left - right, height: height - top - 6 };
}

/** Tile of diagonal lines, in pixels of the device. */
function hatching({ surface, hatch }, ratio) {
  const size = Math.round(6 * ratio);
  const tile = new OffscreenCanvas(size, size);
  const context = tile.getContext('2d');
  context.fillStyle = surface;
  context.fillRect(0, 0, size, size);
  context.strokeStyle = hatch;
  context.lineWidth = ratio;
  context.beginPath();
  for (const shift of [-size, 0, size]) {
    context.moveTo(shift - 1, size + 1);
    context.lineTo(shift + size + 1, -1);
  }
  context.stroke();
  return tile;
}

/** Place in the ramp of a cell: 0 to 255, or -1 if it is masked. */
function shade({ weights, visible, most, isLogarithmic }, at) {
  if (visible && visible[at] === 0) return -1;
  if (!weights) return 170;
  const share = most > 0 ? weights[at] / most : 0;
  const place = isLogarithmic ? 1 + Math.log10(share) / DECADES : share;
  return Math.round(255 * Math.min(Math.max(place, 0), 1));
}

function rectangle({ left, top, width, height }, { rows, columns }, row, column) {
  const x = left + (width * column) / columns;
  const y = top + (height * row) / rows;
  return [x, y, width / columns, height / rows];
}

function drawCells(context, data, plot, { ramp }, hatch) {
  const gap = Math.min(plot.width / data.columns, plot.height / data.rows) > 9 ? 1 : 0;
  for (let row = 0; row < data.rows; row++) {
    for (let column = 0; column < data.columns; column++) {
      const place = shade(data, row * data.columns + column);
      context.fillStyle = place < 0 ? hatch : `rgb(${ramp[place].join(' ')})`;
      const [x, y, width, height] = rectangle(plot, data, row, column);
      const [left, top] = [Math.round(x), Math.round(y)];
      context.fillRect(left, top, Math.round(x + width) - left - gap, Math.round(y + height) - top - gap);
    }
  }
}

function drawImage(context, data, plot, { ramp }, hatch) {
  const image = new ImageData(data.columns, data.rows);
  for (let at = 0; at < data.rows * data.columns; at++) {
    const place = shade(data, at);
    if (place >= 0) image.data.set([...ramp[place], 255], 4 * at);
  }
  const cells = new OffscreenCanvas(data.columns, data.rows);
  cells.getContext('2d').putImageData(image, 0, 0);
  context.fillStyle = hatch;
  context.fillRect(plot.left, plot.top, plot.width, plot.height);
  context.imageSmoothingEnabled = plot.width < data.columns || plot.height < data.rows;
  context.drawImage(cells, plot.left, plot.top, plot.width, plot.height);
}

/** Text that fits a width, cut off with an ellipsis. */
function fit(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length - 1;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}

function drawNames(context, data, plot, { text }) {
  const { rows, columns, rowNames, columnNames } = data;
  context.fillStyle = text;
  context.font = '13px system-ui, sans-serif';
  context.textBaseline = 'middle';
  // Every n-th name, so that they are 15 pixels apart; numbers at round steps.
  const stepOf = (count, size, pitch) => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((step) => (step * size) / count >= pitch) ?? 2000;
  const step = { row: stepOf(rows, plot.height, rowNames ? 15 : 32), column: stepOf(columns, plot.width, columnNames ? 15 : 40) };
  context.textAlign = 'right';
  for (let row = 0; row < rows; row += step.row) {
    const [, y, , height] = rectangle(plot, data, row, 0);
    context.fillText(fit(context, rowNames?.[row] ?? `${row}`, plot.left - 10), plot.left - 7, y + height / 2);
  }
  for (let column = 0; column < columns; column += step.column) {
    const [x, , width] = rectangle(plot, data, 0, column);
    context.save();
    context.translate(x + width / 2, plot.top - 7);
    if (columnNames) context.rotate(-Math.PI / 4);
    context.textAlign = columnNames ? 'left' : 'center';
    context.fillText(columnNames ? fit(context, columnNames[column], (plot.top - 12) * Math.SQRT2) : `${column}`, 0, columnNames ? 0 : -4);
    context.restore();
  }
}

function drawChoice(context, data, plot, { text, focus, surface }, { selected, hovered, isFocused }) {
  const outline = (rect, colour, line) => {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.strokeRect(...rect);
  };
  const [x, y, width, height] = rectangle(plot, data, selected.row, selected.column);
  outline([plot.left - 1, y - 1, plot.width + 1, height + 1], text, 1);
  const chosen = [x - 1, y - 1, width + 1, height + 1];
  outline(chosen, surface, 4);
  outline(chosen, isFocused ? focus : text, 2);
  if (hovered) outline(rectangle(plot, data, hovered.row, hovered.column), text, 2);
}

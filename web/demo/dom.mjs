// Elements of the page.

export const $ = (id) => document.getElementById(id);

/** Creates an element with attributes and children; `false` leaves an attribute out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children);
  return made;
}

/** Table with a caption; the first column has row headings, columns from `numbersFrom` on are numbers. */
export function table(caption, headings, rows, { numbersFrom = 1 } = {}) {
  const kind = (at) => at >= numbersFrom && 'number';
  const cell = (text, at) => (at === 0 ? element('th', { scope: 'row' }, text) : element('td', { class: kind(at) }, text));
  return element(
    'table',
    {},
    element('caption', {}, caption),
    element('thead', {}, element('tr', {}, ...headings.map((text, at) => element('th', { scope: 'col', class: kind(at) }, text)))),
    element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map(cell)))),
  );
}

/** Three significant digits. */
export const digits = (x) => (x === 0 ? '0' : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString('en') : Number(x.toPrecision(3)).toString());

/** Message of an error with its remedy. */
export const explainError = (error) => (error.remedy ? `${error.message} (${error.remedy})` : error.message ?? String(error));

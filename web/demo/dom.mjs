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

/** Table with a caption; the first column has row headings, columns from the second on are numbers where `numbers` is set. */
export function table(caption, headings, rows, { numbers = true } = {}) {
  const cell = (text, at) => (at === 0 ? element('th', { scope: 'row' }, text) : element('td', { class: numbers && 'number' }, text));
  return element(
    'table',
    {},
    element('caption', {}, caption),
    element('thead', {}, element('tr', {}, ...headings.map((text, at) => element('th', { scope: 'col', class: numbers && at > 0 && 'number' }, text)))),
    element('tbody', {}, ...rows.map((row) => element('tr', {}, ...row.map(cell)))),
  );
}

/** Three significant digits. */
export const digits = (x) => (x === 0 ? '0' : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString('en') : Number(x.toPrecision(3)).toString());

/** Message of an error with its remedy. */
export const explainError = (error) => (error.remedy ? `${error.message} (${error.remedy})` : error.message ?? String(error));

// State of the first section in the page's address, so that it can be bookmarked and sent.
import { $ } from './dom.mjs';

const FIELDS = ['sentence', 'causal', 'window', 'window-left', 'window-right', 'own', 'gallery', 'square-size'];

const flag = (isSet) => (isSet ? '1' : '0');
const value = (field) => (field.type === 'checkbox' ? flag(field.checked) : field.value);

function initial(field) {
  if (field.type === 'checkbox') return flag(field.defaultChecked);
  return field.options ? Array.from(field.options).find((option) => option.defaultSelected)?.value : field.defaultValue;
}

/** Sets the fields that the address has, and returns what else it has: `head`, `term` and `tables`. */
export function readLink() {
  const parameters = new URLSearchParams(location.search);
  for (const field of FIELDS.filter((id) => parameters.has(id)).map($)) {
    const stored = parameters.get(field.id);
    if (field.type === 'checkbox') field.checked = stored === '1';
    else if (!field.options || Array.from(field.options).some((option) => option.value === stored)) field.value = stored;
  }
  return Object.fromEntries(['head', 'term', 'tables'].filter((name) => parameters.has(name)).map((name) => [name, parameters.get(name)]));
}

/** Writes the fields that are not as they are at first, and what `others` has, into the address. */
export function writeLink(others) {
  const changed = FIELDS.map($).filter((field) => value(field) !== initial(field));
  const parameters = new URLSearchParams([...changed.map((field) => [field.id, value(field)]), ...Object.entries(others)]);
  const query = parameters.size > 0 ? `?${parameters}` : '';
  history.replaceState(null, '', `${location.pathname}${query}${location.hash}`);
}

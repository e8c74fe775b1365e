// Text field for WGSL with line numbers, and an error under the line that it is about.
import { element } from './dom.mjs';

/** Reads "line 3, column 9: why" from a message. */
export function place(message) {
  const found = /line (\d+), column (\d+):?\s*([^]*)/.exec(message);
  return found ? { line: Number(found[1]), column: Number(found[2]), why: found[3] } : null;
}

export class Editor {
  /** `onInput` is called when the user has changed the text. */
  constructor(container, { label, onInput }) {
    this.area = element('textarea', {
      id: 'term',
      rows: '10',
      wrap: 'off',
      spellcheck: 'false',
      autocapitalize: 'off',
      autocomplete: 'off',
      'aria-describedby': 'term-error',
    });
    this.numbers = element('div', { class: 'numbers', 'aria-hidden': 'true' });
    this.marks = element('div', { class: 'marks', 'aria-hidden': 'true' });
    this.message = element('p', { id: 'term-error', class: 'error', role: 'status' });
    const frame = element('div', { class: 'editor' }, this.numbers, element('div', { class: 'code' }, this.area, this.marks));
    container.append(element('label', { for: 'term' }, label), frame, this.message);
    this.area.addEventListener('input', () => {
      this.number();
      onInput();
    });
    this.area.addEventListener('scroll', () => this.scroll());
    this.number();
  }

  get text() {
    return this.area.value;
  }

  set text(text) {
    this.area.value = text;
    this.number();
  }

  number() {
    const lines = this.text.split('\n').length;
    if (this.numbers.childElementCount === lines) return;
    this.numbers.replaceChildren(...Array.from({ length: lines }, (_, at) => element('span', {}, `${at + 1}`)));
    this.scroll();
  }

  scroll() {
    const { scrollTop, scrollLeft } = this.area;
    this.numbers.style.setProperty('--scroll', `${-scrollTop}px`);
    this.marks.style.setProperty('--scroll', `${-scrollTop}px`);
    this.marks.style.setProperty('--scroll-left', `${-scrollLeft}px`);
  }

  /** Shows why the text is wrong, or that it is not where `message` is empty. */
  setError(message) {
    const at = place(message);
    this.area.setAttribute('aria-invalid', message ? 'true' : 'false');
    this.message.textContent = at ? `Line ${at.line}, column ${at.column}: ${at.why}` : message;
    this.marks.replaceChildren();
    if (!at) return;
    const line = this.text.split('\n')[at.line - 1] ?? '';
    const length = /^\w+/.exec(line.slice(at.column - 1))?.[0].length ?? 1;
    const underline = element('span', { class: 'underline' });
    const text = element('span', { class: 'why' }, element('small', {}, at.why));
    for (const mark of [underline, text]) mark.style.setProperty('--line', at.line);
    underline.style.setProperty('--column', at.column - 1);
    underline.style.setProperty('--length', length);
    // From the place on if the message then still has room.
    text.style.setProperty('--column', at.column > 24 ? /^\s*/.exec(line)[0].length : at.column - 1);
    this.marks.append(underline, text);
    this.scroll();
  }
}

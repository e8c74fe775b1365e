// Terms of the gallery, and the tables that they and users' functions read.

// Constants of the gallery suit long sequences; these show something on a sentence.
const SMALL = { WINDOW: '4', SINKS: '1', CHUNK: '3', STEP: '2', WIDTH: '4', KERNEL: '3', SIDE: '2', SHIFT: '1', BLOCK: '2', CAP: '2.0' };

const list = (length, value) => Array.from({ length }, (_, at) => Number(value(at).toPrecision(4))).join(',');
const half = (tokens) => Math.ceil(tokens / 2);

/** Examples of the gallery's tables, for so many heads and tokens, as parseTables() reads them. */
const EXAMPLES = {
  slopes: (heads) => list(heads, (head) => 2 ** ((-8 * (head + 1)) / heads)),
  log_rates: (heads) => list(heads, (head) => Math.log(1 - 2 ** (-1 - head))),
  segment_ids: (_, tokens) => `0*${half(tokens)},1*${tokens - half(tokens)}`,
  in_prefix: (_, tokens) => `1*2,0*${half(tokens) - 2},1*2,0*${tokens - half(tokens) - 2}:u32`,
  temperatures: (heads) => list(heads, (head) => 2 ** (head - 2)),
  prefix: () => '4',
  bias: (heads) => list(heads * 32, (at) => (-0.3 * (at % 16) * (1 + Math.floor(at / 32))) / heads),
  gates: (heads) => list(heads, (head) => 2 ** (1 - head)),
  ancestors: (_, tokens) => ancestors(tokens),
};

/** Bits of each token's ancestors in a binary tree, itself included. */
function ancestors(tokens) {
  const words = Math.ceil(tokens / 32);
  const bits = new Uint32Array(tokens * words);
  for (let row = 0; row < tokens; row++) {
    for (let at = row; at >= 0; at = at === 0 ? -1 : (at - 1) >> 1) bits[row * words + (at >> 5)] |= 1 << (at & 31);
  }
  return `${bits.join(',')}:u32`;
}

/** Returns the description and the code of a gallery file, its constants lowered to the length of a sentence. */
export function readTerm(source) {
  const lines = source.split('\n');
  const start = lines.findIndex((line) => !line.startsWith('//'));
  const about = lines.slice(0, start).map((line) => line.replace(/^\/\/ ?/, '')).join(' ');
  const code = lines.slice(start).join('\n').trim();
  const lowered = code.replace(/^(const (\w+): \w+ = )[^;]+;/gm, (all, head, name) => (SMALL[name] ? `${head}${SMALL[name]};` : all));
  const [text, tables = ''] = about.split('Tables:');
  const names = [...tables.matchAll(/(\w+) array</g)].map((found) => found[1]);
  return { about: text.trim() + (lowered === code ? '' : ' Constants are lowered here to the length of a sentence.'), code: lowered, tables: names };
}

/** Example text of the tables with these names. */
export function exampleTables(names, heads, tokens) {
  return names.map((name) => `${name}=${EXAMPLES[name]?.(heads, Math.max(tokens, 4)) ?? '0'}`).join('\n');
}

/**
 * Reads tables as `attn` takes them: a line `name=1,2,3`, where `0*4` is four zeros and `:f32`, `:i32` or `:u32` may stand at the
 * end. Whole numbers are i32, others f32. @throws {Error} that names the line.
 */
export function parseTables(text) {
  const tables = {};
  text.split('\n').forEach((line, at) => {
    if (line.trim() === '') return;
    const wrong = (why) => new Error(`Line ${at + 1}: ${why}`);
    const [, name, values, type] = /^\s*([A-Za-z_]\w*)\s*=\s*([^:]*?)\s*(?::\s*(f32|i32|u32)\s*)?$/.exec(line) ?? [];
    if (!name) throw wrong('is not of the form name=1,2,3 or name=1,2,3:u32');
    if (name in tables) throw wrong(`${name} is there already`);
    const numbers = values.split(',').flatMap((part) => {
      const [value, count = '1', ...rest] = part.split('*').map((text) => text.trim());
      const isCount = /^\d+$/.test(count) && Number(count) <= 2 ** 20;
      if (value === '' || !Number.isFinite(Number(value)) || !isCount || rest.length > 0) throw wrong(`“${part.trim()}” is no number, and no number*count`);
      return Array.from({ length: Number(count) }, () => Number(value));
    });
    const isWhole = numbers.every(Number.isInteger);
    if (type && type !== 'f32' && !isWhole) throw wrong(`${type} takes whole numbers`);
    const kinds = { f32: Float32Array, i32: Int32Array, u32: Uint32Array };
    tables[name] = kinds[type ?? (isWhole ? 'i32' : 'f32')].from(numbers);
  });
  return tables;
}

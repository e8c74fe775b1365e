// Words of a sentence and their queries, keys and values, from seeded matrices: equal on every machine, and not trained.

export const NUM_HEADS = 4;
export const HEAD_DIM = 16;
/** Words that are shown; the rest of a longer sentence is left out. */
export const MAX_WORDS = 48;

const DIM = 32;
// Share of a head's key matrix that is its query matrix: the first head looks for equal words at near positions, the last one
// for nothing.
const LIKENESS = [0.5, 0.3, 0.15, 0];
const segmenter = new Intl.Segmenter('en', { granularity: 'word' });

/** Splits a sentence into words and signs, without the spaces between. */
export function split(sentence) {
  const parts = Array.from(segmenter.segment(sentence), ({ segment }) => segment);
  return parts.filter((part) => part.trim() !== '').slice(0, MAX_WORDS);
}

/** FNV-1a of a text's UTF-16 units. */
function hash(text) {
  let state = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) state = Math.imul(state ^ text.charCodeAt(at), 0x01000193);
  return state >>> 0;
}

/** Numbers of mean 0 and variance 1 that follow from a text: sums of four uniform ones, so that no engine rounds differently. */
function draw(name, length) {
  let state = hash(name);
  const uniform = () => {
    // Mulberry32.
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return Float64Array.from({ length }, () => (uniform() + uniform() + uniform() + uniform() - 2) * Math.sqrt(3));
}

/** Word's numbers plus those of its position, sines and cosines of falling frequency. */
function embed(word, position) {
  const x = draw(`word ${word.toLowerCase()}`, DIM);
  for (let pair = 0; pair < DIM / 2; pair++) {
    const angle = position / 100 ** (pair / (DIM / 2));
    x[2 * pair] += Math.sin(angle);
    x[2 * pair + 1] += Math.cos(angle);
  }
  return x;
}

function matrices(head) {
  const [query, own, value] = ['query', 'key', 'value'].map((name) => draw(`head ${head} ${name}`, DIM * HEAD_DIM));
  const like = LIKENESS[head];
  const key = query.map((x, at) => like * x + Math.sqrt(1 - like * like) * own[at]);
  return { query, key, value };
}

const WEIGHTS = Array.from({ length: NUM_HEADS }, (_, head) => matrices(head));

/** Returns query, key and value of the words, each [NUM_HEADS, words, HEAD_DIM]. */
export function project(words) {
  const rows = words.map(embed);
  const tensor = (name) => {
    const out = new Float32Array(NUM_HEADS * words.length * HEAD_DIM);
    WEIGHTS.forEach((weights, head) =>
      rows.forEach((row, at) => {
        for (let column = 0; column < HEAD_DIM; column++) {
          let sum = 0;
          for (let c = 0; c < DIM; c++) sum += row[c] * weights[name][c * HEAD_DIM + column];
          out[(head * words.length + at) * HEAD_DIM + column] = sum / Math.sqrt(DIM);
        }
      }),
    );
    return out;
  };
  return { query: tensor('query'), key: tensor('key'), value: tensor('value') };
}

// Requests, one for each option of the API: `js` has users' functions as JavaScript, for the reference. And wrong requests.
import { draw } from './reference.mjs';

const shape = { batch: 2, numHeads: 4, numKvHeads: 2, seqLenQ: 6, seqLenKv: 9, headDim: 16, headDimV: 8 };
const bits = (length, one) => Uint8Array.from({ length }, (_, at) => (one(at) ? 1 : 0));

export const REQUESTS = {
  plain: { shape: { numHeads: 2, seqLenQ: 20, headDim: 32 } },
  sizes: { shape, lse: true },
  causal: { shape, causal: 'bottom-right', lse: true },
  'top-left': { shape, causal: 'top-left' },
  offset: { shape, alignment: { offset: 2 }, window: { left: 2, right: 1 } },
  window: { shape, causal: 'bottom-right', window: { left: 3 } },
  'open window': { shape, alignment: 'bottom-right', window: { right: 2 } },
  scale: { shape, scale: 0.7 },
  softcap: { shape, softcap: 0.8 },
  mask: { shape, mask: { data: bits(54, (at) => at % 3 !== 1 && Math.floor(at / 9) !== 2), shape: [6, 9] }, lse: true },
  'mask of heads': { shape, mask: { data: bits(36, (at) => at % 4 !== 1), shape: [4, 1, 9] } },
  bias: { shape, bias: { data: draw(9, 2 * 54), shape: [2, 1, 6, 9] } },
  'bias of -inf': { shape, bias: { data: draw(9, 9).map((x, at) => (at % 4 === 2 ? -Infinity : x)), shape: [9] } },
  alibi: { shape, causal: 'bottom-right', alibiSlopes: Float32Array.of(0.5, 0.25, 0.125, 0.0625) },
  sinks: { shape, sinks: Float32Array.of(0.1, -1, 2, 0.5), lse: true },
  lengths: { shape, kvLengths: Uint32Array.of(9, 4), causal: 'bottom-right', lse: true },
  'empty item': { shape, kvLengths: Uint32Array.of(0, 3), lse: true },
  bshd: { shape, layout: 'bshd', causal: 'bottom-right' },
  weights: { shape, causal: 'bottom-right', weights: true, lse: true },
  'key sums': { shape, causal: 'bottom-right', kvLengths: Uint32Array.of(9, 4), keySums: 'all', lse: true },
  'key sums of last rows': { shape, keySums: 2, sinks: Float32Array.of(0.1, -1, 2, 0.5) },
  'key sums of decoding': { shape: { ...shape, seqLenQ: 1 }, dtype: 'f16', keySums: 1 },
  f16: { shape, dtype: 'f16' },
  bf16: { shape, dtype: 'bf16' },
  'f16 output': { shape, outputDtype: 'f16' },
  'bf16 output': { shape: { ...shape, headDimV: 7 }, dtype: 'bf16', outputDtype: 'bf16' },
  odd: { shape: { numHeads: 1, seqLenQ: 1, seqLenKv: 3, headDim: 5, headDimV: 1 }, dtype: 'f16' },
  'no keys': { shape: { numHeads: 1, seqLenQ: 2, seqLenKv: 0, headDim: 4 }, lse: true },
  score: {
    shape,
    score: 'fn score(x: f32, at: Pair) -> f32 { return x + slopes[at.head] * f32(at.key - at.row); }',
    tables: { slopes: Float32Array.of(0.1, 0.2, -0.1, 0.3) },
    js: { score: (x, { h, i, j }) => x + [0.1, 0.2, -0.1, 0.3][h] * (j - i) },
  },
  visible: {
    shape,
    visible: 'fn visible(at: Pair) -> bool {\n  return (at.key + at.row) % 3 != 0;\n}',
    js: { visible: ({ i, j }) => (j + i) % 3 !== 0 },
  },
  'score and visible': {
    shape,
    causal: 'bottom-right',
    score: 'fn score(x: f32, at: Pair) -> f32 { return 2.0 * x; }',
    visible: 'fn visible(at: Pair) -> bool { return at.key_position <= at.position && groups[at.key] == groups[at.row]; }',
    tables: { groups: Int32Array.of(0, 0, 1, 1, 0, 0, 1, 1, 0) },
    js: { score: (x) => 2 * x, visible: ({ i, j }) => [0, 0, 1, 1, 0, 0, 1, 1, 0][j] === [0, 0, 1, 1, 0, 0, 1, 1, 0][i] },
  },
};

const data = { query: draw(1, 32), key: draw(2, 32), value: draw(3, 32) };
const small = { shape: { numHeads: 2, seqLenQ: 4, headDim: 4 }, ...data };
const without = (name) => Object.fromEntries(Object.entries(small).filter(([other]) => other !== name));
const invalid = (argument, request, more = {}) => ({ request, kind: 'invalid', argument, ...more });

export const WRONG = ({ backward }) => ({
  'no request': invalid('request', undefined),
  'no shape': invalid('shape', without('shape')),
  'no heads': invalid('numHeads', { ...small, shape: { seqLenQ: 4, headDim: 4 } }),
  'half a row': invalid('seqLenQ', { ...small, shape: { ...small.shape, seqLenQ: 3.5 } }),
  'a width of 0': invalid('headDim', { ...small, shape: { ...small.shape, headDim: 0 } }),
  groups: invalid('numKvHeads', { ...small, shape: { ...small.shape, numHeads: 3 , numKvHeads: 2 } }),
  'a word that is not known': invalid('isCausal', { ...small, isCausal: true }),
  'a member of shape': invalid('heads', { ...small, shape: { ...small.shape, heads: 2 } }),
  'causal, but how': invalid('causal', { ...small, causal: true }),
  'two places': invalid('alignment', { ...small, causal: 'top-left', alignment: 'bottom-right' }),
  'a window without a place': invalid('alignment', { ...small, window: { left: 2 } }),
  dtype: invalid('dtype', { ...small, dtype: 'f64' }),
  softcap: invalid('softcap', { ...small, softcap: -1 }),
  'key sums of which rows': invalid('keySums', { ...small, keySums: true }),
  scale: invalid('scale', { ...small, scale: NaN }),
  'a short query': invalid('query', { ...small, query: draw(1, 31) }),
  'no key': invalid('key', without('key')),
  'values of f64': invalid('value', { ...small, value: new Float64Array(32) }),
  'a mask of numbers': invalid('mask', { ...small, mask: { data: new Float32Array(16), shape: [4, 4] } }),
  'a short mask': invalid('mask', { ...small, mask: { data: new Uint8Array(15), shape: [4, 4] } }),
  'a mask that does not broadcast': invalid('mask', { ...small, mask: { data: new Uint8Array(12), shape: [3, 4] } }),
  'a long length': invalid('kvLengths', { ...small, kvLengths: Uint32Array.of(5) }),
  'two lengths': invalid('kvLengths', { ...small, kvLengths: Uint32Array.of(1, 2) }),
  slopes: invalid('alibiSlopes', { ...small, causal: 'top-left', alibiSlopes: Float32Array.of(1) }),
  'WGSL that is wrong': invalid('score', { ...small, score: 'fn score(x: f32, at: Pair) -> f32 { return y; }' }),
  'WGSL that is wrong in the second text': invalid('visible', {
    ...small,
    score: 'fn score(x: f32, at: Pair) -> f32 { return x; }',
    visible: 'fn visible(at: Pair) -> bool { return 1; }',
  }),
  'tables that nobody reads': invalid('tables', { ...small, tables: { a: Float32Array.of(1) } }),
  'no gradient of the output': invalid('dOutput', small, { call: backward }),
  'a gradient of nothing': invalid('bias', { ...small, dOutput: draw(4, 32), want: ['bias'] }, { call: backward }),
  'a gradient that is not known': invalid('want', { ...small, dOutput: draw(4, 32), want: ['mask'] }, { call: backward }),
});

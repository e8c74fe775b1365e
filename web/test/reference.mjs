// Attention in f64, written to be read: every option of a request, in plain loops. It shares nothing with the package.

/** Numbers in -1..1, the same for equal seeds. */
export function draw(seed, length) {
  return Float32Array.from({ length }, (_, at) => ((at * 7919 + seed * 104729) % 1009) / 504.5 - 1);
}

/** Shape with everything filled in. */
export function sizes({ batch = 1, numHeads, numKvHeads = numHeads, seqLenQ, seqLenKv = seqLenQ, headDim, headDimV = headDim }) {
  return { batch, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim, headDimV };
}

// Index of [b, h, i, c] in a tensor.
function place(layout, heads, rows, width, b, h, i, c) {
  return layout === 'bshd' ? ((b * rows + i) * heads + h) * width + c : ((b * heads + h) * rows + i) * width + c;
}

// Element of a mask or bias that broadcasts from the right.
function broadcast({ data, shape }, index) {
  let at = 0;
  const axes = [1, 1, 1, 1, ...shape].slice(-4);
  axes.forEach((extent, axis) => (at = at * extent + (extent === 1 ? 0 : index[axis])));
  return data[at];
}

function offset({ causal, alignment }, rows, keys) {
  const of = causal || alignment || 'top-left';
  if (typeof of === 'object') return of.offset;
  return of === 'bottom-right' ? keys - rows : 0;
}

function isVisible(request, b, h, i, j, length, position) {
  const { causal, window, mask, js = {} } = request;
  if (j >= length) return false;
  if (causal && j > position) return false;
  if (window?.left !== undefined && j < position - window.left) return false;
  if (window?.right !== undefined && j > position + window.right) return false;
  if (mask && !broadcast(mask, [b, h, i, j])) return false;
  return js.visible?.({ b, h, i, j, position }) ?? true;
}

/** Computes `{ output, lse, weights, visible, keySums }` of a request with f64 or f32 arrays. `js` has users' functions as JavaScript. */
export function reference(request) {
  const { query, key, value, layout, softcap, bias, alibiSlopes, sinks, kvLengths, js = {} } = request;
  const { batch, numHeads, numKvHeads, seqLenQ, seqLenKv, headDim, headDimV } = sizes(request.shape);
  const scale = request.scale ?? 1 / Math.sqrt(headDim);
  const rows = batch * numHeads * seqLenQ;
  const output = new Float64Array(rows * headDimV);
  const lse = new Float64Array(rows).fill(-Infinity);
  const weights = new Float64Array(rows * seqLenKv);
  const visible = new Uint8Array(rows * seqLenKv);
  for (let row = 0; row < rows; row++) {
    const [b, h, i] = [Math.floor(row / (numHeads * seqLenQ)), Math.floor(row / seqLenQ) % numHeads, row % seqLenQ];
    const kv = Math.floor(h / (numHeads / numKvHeads));
    const length = kvLengths?.[b] ?? seqLenKv;
    const position = i + offset(request, seqLenQ, length);
    const scores = [];
    for (let j = 0; j < seqLenKv; j++) {
      if (!isVisible(request, b, h, i, j, length, position)) continue;
      let score = 0;
      for (let c = 0; c < headDim; c++) {
        score += query[place(layout, numHeads, seqLenQ, headDim, b, h, i, c)] * key[place(layout, numKvHeads, seqLenKv, headDim, b, kv, j, c)];
      }
      score *= scale;
      if (softcap) score = softcap * Math.tanh(score / softcap);
      if (bias) score += broadcast(bias, [b, h, i, j]);
      if (alibiSlopes) score += alibiSlopes[h] * (j - position);
      if (js.score) score = js.score(score, { b, h, i, j, position });
      scores.push([j, score]);
      visible[row * seqLenKv + j] = 1;
    }
    const all = scores.map(([, score]) => score).concat(sinks ? [sinks[h]] : []);
    if (all.length === 0) continue;
    const max = Math.max(...all);
    const sum = all.reduce((sum, score) => sum + Math.exp(score - max), 0);
    lse[row] = max + Math.log(sum);
    for (const [j, score] of scores) {
      const weight = Math.exp(score - max) / sum;
      weights[row * seqLenKv + j] = weight;
      for (let c = 0; c < headDimV; c++) {
        output[place(layout, numHeads, seqLenQ, headDimV, b, h, i, c)] += weight * value[place(layout, numKvHeads, seqLenKv, headDimV, b, kv, j, c)];
      }
    }
  }
  const keySums = new Float64Array(batch * numKvHeads * seqLenKv);
  const first = typeof request.keySums === 'number' ? Math.max(0, seqLenQ - request.keySums) : 0;
  weights.forEach((weight, at) => {
    const [j, row] = [at % seqLenKv, Math.floor(at / seqLenKv)];
    const kv = Math.floor(row / seqLenQ / (numHeads / numKvHeads));
    if (row % seqLenQ >= first) keySums[kv * seqLenKv + j] += weight;
  });
  return { output, lse, weights, visible, keySums };
}

/** Number of f16 or bf16 bits. */
export function widen(dtype, bits) {
  if (dtype === 'bf16') return new Float32Array(Uint32Array.of(bits << 16).buffer)[0];
  const [exponent, mantissa] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 31 ? (mantissa ? NaN : Infinity) : exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : mantissa * 2 ** -24;
  return bits >> 15 ? -size : size;
}

/** Nearest number that f16 or bf16 has, by trying. */
export function rounded(dtype, x) {
  const step = dtype === 'bf16' ? 2 ** -7 : 2 ** -10;
  if (x === 0) return 0;
  const unit = Math.max(2 ** Math.floor(Math.log2(Math.abs(x))), dtype === 'f16' ? 2 ** -14 : 0) * step;
  const whole = Math.round(x / unit);
  const isTie = Math.abs(x / unit - Math.trunc(x / unit)) === 0.5;
  return (isTie && whole % 2 !== 0 ? whole - 1 : whole) * unit;
}

/** Largest difference; Infinity where lengths, NaN or infinite elements differ. */
export function difference(got, expected) {
  if (got?.length !== expected.length) return Infinity;
  return got.reduce((worst, x, at) => {
    const isSame = x === expected[at];
    return Math.max(worst, isSame ? 0 : Number.isFinite(x) && Number.isFinite(expected[at]) ? Math.abs(x - expected[at]) : Infinity);
  }, 0);
}

// Little-endian floats of several widths as f32.

/** Value of the bits of an f16. */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

const word = new DataView(new ArrayBuffer(4));
function fromBfloat(bits) {
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}

/** Types that can be read: their bytes, and a function that reads one. */
export const FLOATS = {
  f16: { bytes: 2, read: (view, at) => fromHalf(view.getUint16(at, true)) },
  bf16: { bytes: 2, read: (view, at) => fromBfloat(view.getUint16(at, true)) },
  f32: { bytes: 4, read: (view, at) => view.getFloat32(at, true) },
  f64: { bytes: 8, read: (view, at) => view.getFloat64(at, true) },
};

/** Returns the floats of a buffer as a Float32Array. f64 is rounded. */
export function toFloat32(buffer, dtype) {
  const { bytes, read } = FLOATS[dtype];
  const view = new DataView(buffer);
  return Float32Array.from({ length: buffer.byteLength / bytes }, (_, at) => read(view, at * bytes));
}

/** Product of the sizes. */
export const elements = (shape) => shape.reduce((product, size) => product * size, 1);

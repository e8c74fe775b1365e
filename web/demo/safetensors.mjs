// Reader of .safetensors files. Format: github.com/huggingface/safetensors
import { FLOATS, elements, toFloat32 } from './floats.mjs';

const TYPES = { F16: 'f16', BF16: 'bf16', F32: 'f32', F64: 'f64' };
// The format's own limit of the header.
const MAX_HEADER = 100_000_000;

/**
 * Reads the header of a Blob. Returns its float arrays as { name, shape, dtype, read() }, in the order of the file; `read` resolves to the
 * elements as Float32Array, and reads no others. @throws {Error} that says what is wrong.
 */
export async function readSafetensors(blob) {
  if (blob.size < 8) throw new Error('is no .safetensors file: it has no header');
  const length = new DataView(await blob.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER)) throw new Error(`is no .safetensors file: its header would have ${length} bytes`);
  const offset = 8 + Number(length);
  if (offset > blob.size) throw new Error(`ends within its header, which has ${length} bytes`);
  let header;
  try {
    header = JSON.parse(await blob.slice(8, offset).text());
  } catch (error) {
    throw new Error(`is no .safetensors file: its header is not JSON (${error.message})`);
  }
  const found = Object.entries(header).filter(([name]) => name !== '__metadata__');
  const arrays = found.map(([name, entry]) => readEntry(blob, offset, name, entry)).filter(Boolean);
  if (arrays.length === 0) {
    const types = [...new Set(found.map(([, { dtype }]) => dtype))].join(', ');
    throw new Error(`has no array of ${Object.keys(TYPES).join(', ')}${types ? `, but of ${types}` : ''}`);
  }
  return arrays;
}

function readEntry(blob, offset, name, entry) {
  const { dtype: type, shape, data_offsets: [begin, end] = [] } = entry ?? {};
  const isSize = (size) => Number.isSafeInteger(size) && size >= 0;
  if (typeof type !== 'string' || !Array.isArray(shape) || ![...shape, begin, end].every(isSize)) throw new Error(`has no dtype, shape or data_offsets for ${name}`);
  if (!TYPES[type]) return null;
  const dtype = TYPES[type];
  const bytes = elements(shape) * FLOATS[dtype].bytes;
  if (end - begin !== bytes) throw new Error(`has ${end - begin} bytes for ${name}, and [${shape}] of ${type} takes ${bytes}`);
  if (offset + end > blob.size) throw new Error(`ends within ${name}`);
  const read = async () => toFloat32(await blob.slice(offset + begin, offset + end).arrayBuffer(), dtype);
  return { name, shape, dtype, read };
}

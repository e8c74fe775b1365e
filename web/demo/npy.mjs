// Reader of NumPy's .npy files, of format 1.0, 2.0 and 3.0. Format: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
import { FLOATS, elements, toFloat32 } from './floats.mjs';

const TYPES = { '<f2': 'f16', '<f4': 'f32', '<f8': 'f64' };

/**
 * Reads the header of a Blob. Returns the array as { shape, dtype, read() }; `read` resolves to its elements as Float32Array, the last
 * axis fastest. @throws {Error} that says what is wrong.
 */
export async function readNpy(blob) {
  const start = new Uint8Array(await blob.slice(0, 12).arrayBuffer());
  const isNpy = start.length >= 10 && start[0] === 0x93 && String.fromCharCode(...start.subarray(1, 6)) === 'NUMPY';
  if (!isNpy) throw new Error('is no .npy file: it does not begin with \\x93NUMPY');
  const version = start[6];
  if (version < 1 || version > 3) throw new Error(`is of .npy format ${version}, and formats 1 to 3 are known`);
  const view = new DataView(start.buffer);
  if (version > 1 && start.length < 12) throw new Error('ends within its header');
  const [first, length] = version === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const offset = first + length;
  if (offset > blob.size) throw new Error(`ends within its header, which has ${length} bytes`);
  const header = new TextDecoder(version === 3 ? 'utf-8' : 'latin1').decode(await blob.slice(first, offset).arrayBuffer());
  const { shape, dtype, isFortran } = parseHeader(header);
  const bytes = elements(shape) * FLOATS[dtype].bytes;
  if (blob.size - offset !== bytes) throw new Error(`has ${blob.size - offset} bytes of data, and [${shape}] of ${dtype} takes ${bytes}`);
  const read = async () => {
    const data = toFloat32(await blob.slice(offset).arrayBuffer(), dtype);
    return isFortran ? fromFortran(data, shape) : data;
  };
  return { shape, dtype, read };
}

function parseHeader(header) {
  const descr = /'descr'\s*:\s*(?:'([^']*)'|([^,}]*))/.exec(header);
  const order = /'fortran_order'\s*:\s*(True|False)/.exec(header);
  const sizes = /'shape'\s*:\s*\(([\d\s,L]*)\)/.exec(header);
  if (!descr || !order || !sizes) throw new Error(`has a header without descr, fortran_order or shape: ${header.trim().slice(0, 80)}`);
  const type = descr[1] ?? descr[2].trim();
  if (!TYPES[type]) {
    const why = type.startsWith('>') ? 'which is big-endian; little-endian' : 'which is no float;';
    throw new Error(`has elements of ${type}, ${why} <f2, <f4 and <f8 are read. Convert it by array.astype('<f4')`);
  }
  const shape = sizes[1].split(',').map((size) => size.trim().replace(/L$/, '')).filter(Boolean).map(Number);
  return { shape, dtype: TYPES[type], isFortran: order[1] === 'True' };
}

/** Elements with the first axis fastest, as ones with the last axis fastest. */
function fromFortran(data, shape) {
  const strides = shape.map((_, axis) => elements(shape.slice(0, axis)));
  const index = shape.map(() => 0);
  return data.map(() => {
    const at = index.reduce((sum, place, axis) => sum + place * strides[axis], 0);
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
    return data[at];
  });
}

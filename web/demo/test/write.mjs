// Files of arrays, as the page is to read them.

const bytes = (data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

/** .npy file of format 1. */
export function npy(data, shape, descr = '<f4') {
  const header = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(', ')}), }`.padEnd(117) + '\n';
  const start = Buffer.from(`\x93NUMPY\x01\x00${String.fromCharCode(header.length, 0)}${header}`, 'latin1');
  return Buffer.concat([start, bytes(data)]);
}

/** .safetensors file of f32 arrays: { name: [data, shape] }. */
export function safetensors(arrays) {
  let end = 0;
  const entry = ([name, [data, shape]]) => [name, { dtype: 'F32', shape, data_offsets: [end, (end += data.byteLength)] }];
  const header = Buffer.from(JSON.stringify(Object.fromEntries(Object.entries(arrays).map(entry))));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...Object.values(arrays).map(([data]) => bytes(data))]);
}

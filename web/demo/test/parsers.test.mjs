// Readers of files, tables and error places; run by `node --test`. The files were written by NumPy 2.4.6 and safetensors 0.8.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { place } from '../editor.mjs';
import { split, project, HEAD_DIM, MAX_WORDS, NUM_HEADS } from '../embed.mjs';
import { readNpy } from '../npy.mjs';
import { readSafetensors } from '../safetensors.mjs';
import { exampleTables, parseTables, readTerm } from '../terms.mjs';

const bytes = (base64) => Buffer.from(base64, 'base64');
const C_F4 = bytes('k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDEsIDIsIDMpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAACAPgAAAD8AAEA/AACAPwAAoD8=');
const FORTRAN_F8 = bytes(
  'k05VTVBZAgB0AAAAeydkZXNjcic6ICc8ZjgnLCAnZm9ydHJhbl9vcmRlcic6IFRydWUsICdzaGFwZSc6ICgyLCAzLCA0KSwgfSAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAAAAAAAAAAAAAChAAAAAAAAAEEAAAAAAAAAwQAAAAAAAACBAAAAAAAAANEAAAAAAAADwPwAAAAAAACpAAAAAAAAAFEAAAAAAAAAxQAAAAAAAACJAAAAAAAAANUAAAAAAAAAAQAAAAAAAACxAAAAAAAAAGEAAAAAAAAAyQAAAAAAAACRAAAAAAAAANkAAAAAAAAAIQAAAAAAAAC5AAAAAAAAAHEAAAAAAAAAzQAAAAAAAACZAAAAAAAAAN0A=',
);
const F2 = bytes('k05VTVBZAwB0AAAAeydkZXNjcic6ICc8ZjInLCAnZm9ydHJhbl9vcmRlcic6IEZhbHNlLCAnc2hhcGUnOiAoNiwpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAPgDA/3sBAAB8AH4=');
const SAFETENSORS = bytes(
  'SAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJtYWRlIjoiYnkgc2FmZXRlbnNvcnMifSwiaWRzIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbMCwxNl19LCJ2Ijp7ImR0eXBlIjoiRjY0Iiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbMTYsMjRdfSwiayI6eyJkdHlwZSI6IkYzMiIsInNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzI0LDMyXX0sImIiOnsiZHR5cGUiOiJCRjE2Iiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbMzIsMzZdfSwicSI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpbMSwyXSwiZGF0YV9vZmZzZXRzIjpbMzYsNDBdfX0gICAgICAgAAAAAAAAAAABAAAAAAAAAFVVVVVVVdU/AAAAP+axYX+AP0nAAD4AwA==',
);

/** Copy of a file with some text replaced by other text of its length. */
function changed(file, from, to) {
  const text = file.toString('latin1');
  assert.ok(text.includes(from));
  return Buffer.from(text.replace(from, to.padEnd(from.length)), 'latin1');
}

test('.npy: f4, C order, format 1', async () => {
  const { shape, dtype, read } = await readNpy(new Blob([C_F4]));
  assert.deepEqual([shape, dtype], [[1, 2, 3], 'f32']);
  assert.deepEqual([...(await read())], [0, 0.25, 0.5, 0.75, 1, 1.25]);
});

test('.npy: f8, Fortran order, format 2', async () => {
  const { shape, dtype, read } = await readNpy(new Blob([FORTRAN_F8]));
  assert.deepEqual([shape, dtype], [[2, 3, 4], 'f64']);
  assert.deepEqual([...(await read())], Array.from({ length: 24 }, (_, at) => at));
});

test('.npy: f2 with a subnormal, infinity and NaN, format 3', async () => {
  const { shape, read } = await readNpy(new Blob([F2]));
  assert.deepEqual(shape, [6]);
  assert.deepEqual([...(await read())], [1.5, -2, 65504, 2 ** -24, Infinity, NaN]);
});

test('.npy: errors say what is wrong', async () => {
  const cases = [
    [Buffer.from('PK\x03\x04 an archive'), /does not begin with/],
    [Buffer.alloc(0), /does not begin with/],
    [changed(C_F4, "'<f4'", "'>f4'"), />f4, which is big-endian/],
    [changed(C_F4, "'<f4'", "'<i4'"), /<i4, which is no float/],
    [changed(C_F4, 'fortran_order', 'fortran'), /without descr, fortran_order or shape/],
    [C_F4.subarray(0, C_F4.length - 1), /has 23 bytes of data, and \[1,2,3\] of f32 takes 24/],
    [C_F4.subarray(0, 60), /ends within its header/],
    [Buffer.concat([C_F4.subarray(0, 6), Buffer.from([9]), C_F4.subarray(7)]), /format 9/],
  ];
  for (const [file, why] of cases) await assert.rejects(readNpy(new Blob([file])), why);
});

test('.safetensors: each float type, and other types left out', async () => {
  const arrays = await readSafetensors(new Blob([SAFETENSORS]));
  const found = Object.fromEntries(await Promise.all(arrays.map(async ({ name, shape, dtype, read }) => [name, [shape, dtype, [...(await read())]]])));
  assert.deepEqual(found, {
    q: [[1, 2], 'f16', [1.5, -2]],
    k: [[2], 'f32', [0.5, Math.fround(3e38)]],
    v: [[1], 'f64', [Math.fround(1 / 3)]],
    b: [[2], 'bf16', [1, -3.140625]],
  });
});

test('.safetensors: errors say what is wrong', async () => {
  const cases = [
    [Buffer.from('abc'), /no header/],
    [Buffer.from('GGUF is another format'), /its header would have/],
    [SAFETENSORS.subarray(0, 100), /ends within its header/],
    [SAFETENSORS.subarray(0, SAFETENSORS.length - 1), /ends within q/],
    [changed(SAFETENSORS, '{"__metadata__"', '["__metadata__"'), /its header is not JSON/],
    [changed(SAFETENSORS, '"shape":[1,2]', '"shape":[1,3]'), /has 4 bytes for q, and \[1,3\] of F16 takes 6/],
    [changed(SAFETENSORS, '"shape":[1,2]', '"shape":[1.5]'), /has no dtype, shape or data_offsets for q/],
  ];
  for (const [file, why] of cases) await assert.rejects(readSafetensors(new Blob([file])), why);
});

test('tables', () => {
  const { slopes, ids, flags } = parseTables('slopes=0.5, 0.25\n\n ids = 0*2,7*3\nflags=1*2:u32');
  assert.deepEqual([slopes, ids, flags], [new Float32Array([0.5, 0.25]), new Int32Array([0, 0, 7, 7, 7]), new Uint32Array([1, 1])]);
  for (const [text, why] of [
    ['a=1\nb', /Line 2: is not of the form/],
    ['a=1,', /Line 1: “” is no number/],
    ['a=1*x', /“1\*x” is no number/],
    ['a=0.5:u32', /u32 takes whole numbers/],
    ['a=1\na=2', /Line 2: a is there already/],
    ['a=1:f16', /not of the form/],
  ]) {
    assert.throws(() => parseTables(text), why);
  }
  assert.deepEqual(parseTables(exampleTables(['slopes', 'ancestors', 'segment_ids'], 4, 12)).ancestors.slice(0, 4), new Uint32Array([1, 3, 5, 11]));
});

test('terms of the gallery', () => {
  const source = '// Window: the last keys. Somebody.\n// Tables: slopes array<f32> [heads]; more.\n\nconst WINDOW: i32 = 64;\nconst OTHER: i32 = 5;\n';
  const { about, code, tables } = readTerm(source);
  assert.equal(about, 'Window: the last keys. Somebody. Constants are lowered here to the length of a sentence.');
  assert.equal(code, 'const WINDOW: i32 = 4;\nconst OTHER: i32 = 5;');
  assert.deepEqual(tables, ['slopes']);
});

test('places of errors', () => {
  assert.deepEqual(place('line 3, column 12: unknown identifier: x'), { line: 3, column: 12, why: 'unknown identifier: x' });
  assert.equal(place('defines neither'), null);
});

test('words and their numbers', () => {
  assert.deepEqual(split(" The animal didn't cross, it—was  tired. "), ['The', 'animal', "didn't", 'cross', ',', 'it', '—', 'was', 'tired', '.']);
  assert.equal(split('a '.repeat(100)).length, MAX_WORDS);
  const { query, key } = project(['a', 'b', 'A']);
  assert.equal(query.length, NUM_HEADS * 3 * HEAD_DIM);
  assert.notDeepEqual(query, key);
  assert.deepEqual(project(['a', 'b', 'A']).query, query);
  const mean = query.reduce((sum, x) => sum + x * x, 0) / query.length;
  assert.ok(mean > 0.7 && mean < 2.5, `mean square ${mean}`);
});

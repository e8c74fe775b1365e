// Passes every kernel in a folder (`cargo xtask wgsl --out FOLDER`) to Tint, the WGSL compiler of Chrome, Edge and Dawn.
// Prints each message with the file and line that it is about; exits with 1 if there was any, an error or not.
//
// Uses Dawn's null backend, which needs no driver and accepts the shaders of a GPU with every feature.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);
const gpu = create(['backend=null']);
const FEATURES = { f16: 'shader-f16', subgroups: 'subgroups' };
const devices = new Map();

// Returns a device with the extensions that `code` enables and WebGPU's default limits.
async function deviceFor(code) {
  const names = [...code.matchAll(/^enable (\w+);$/gm)].map(([, name]) => FEATURES[name] ?? name).sort();
  const key = names.join();
  if (!devices.has(key)) {
    const adapter = await gpu.requestAdapter();
    devices.set(key, await adapter.requestDevice({ requiredFeatures: names }));
  }
  return devices.get(key);
}

// Returns Tint's messages about `code` as [line, text]. With `fits`, it must also become a pipeline within the limits.
async function messages(code, fits) {
  const device = await deviceFor(code);
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const found = messages.map(({ lineNum, type, message }) => [lineNum, `${type}: ${message}`]);
  if (fits && found.length === 0) device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
  const error = await device.popErrorScope();
  if (error && found.length === 0) found.push([1, `error: ${error.message}`]);
  return found;
}

// Returns the project's file and line that a line of a kernel comes from.
function locate(lines, line) {
  const [first, file, own] = lines.findLast(([first]) => first <= line) ?? [1, 'prelude', 1];
  return `${file}:${line - first + own}`;
}

// Proves that the check can fail: sound kernels, each with one mistake, must be refused at the mistake's place.
async function selfTest(folder, kernels) {
  const read = (kernel) => readFileSync(join(folder, kernel.file), 'utf8');
  const find = (what) => kernels.find((kernel) => what.test(read(kernel))) ?? fail(`the self-test needs a kernel with ${what}`);
  const main = /\nfn main\([^{]*\{\n/;
  const insert = (text) => (code) => code.replace(main, (head) => head + text);
  const sabotage = [
    ['a shift beside a product', main, insert('let word = 7u >> params.flags * 4u;\n'), /parenthes/],
    ['a barrier that some threads miss', /local_invocation_index\) thread/, insert('if (thread > 3u) { workgroupBarrier(); }\n'), /uniform/],
    ['subgroups that nobody enabled', /^enable subgroups;/, (code) => code.replace('enable subgroups;', ''), /subgroup/],
    ['f16 that nobody enabled', main, insert('let half = 1h;\n'), /f16/],
    ['a name that nobody defines', main, insert('let lost = no_such_name;\n'), /no_such_name/],
  ];
  for (const [what, needs, change, expected] of sabotage) {
    const kernel = find(needs);
    const code = change(read(kernel));
    const found = await messages(code);
    const hit = found.find(([, text]) => /^error/.test(text) && expected.test(text));
    if (!hit) fail(`Tint accepted ${what}, so this check proves nothing: ${JSON.stringify(found)}`);
    if (change(read(kernel)).length > read(kernel).length) {
      const head = code.slice(0, code.search(main)).split('\n').length;
      const place = locate(kernel.lines, hit[0] - 1);
      const own = Number(place.split(':')[1]);
      const text = readFileSync(place.split(':')[0], 'utf8').split('\n')[own - 1];
      if (hit[0] <= head || !text.startsWith('fn main(')) fail(`${what} was found at ${place}, which is not where it is`);
    }
  }
  const large = 'var<workgroup> a: array<u32, 8192>;\n@compute @workgroup_size(1) fn main() { a[0] = 1u; }';
  if ((await messages(large, true)).length === 0) fail('32 KiB of workgroup memory fit the limits that every WebGPU device has');
}

function fail(why) {
  console.error(`tint: ${why}`);
  process.exit(1);
}

const [folder] = process.argv.slice(2);
const kernels = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8'));
if (kernels.length === 0) fail(`no kernels in ${folder}`);
const places = new Map();
let refused = 0;
for (const { file, case: name, kernel, lines } of kernels) {
  const found = await messages(readFileSync(join(folder, file), 'utf8'), name.startsWith('WebGPU defaults: '));
  refused += found.length > 0;
  for (const [line, text] of found) {
    const what = `${locate(lines, line)}: ${text}`;
    if (!places.has(what)) places.set(what, { count: 0, first: `${kernel} (${file}, ${name})` });
    places.get(what).count += 1;
  }
}
for (const [what, { count, first }] of places) console.log(`${what}\n    in ${count} kernels, first in ${first}`);
console.log(`${kernels.length} kernels, ${refused} refused by Tint`);
if (!refused) await selfTest(folder, kernels);
process.exit(refused ? 1 : 0); // node does not exit by itself while there is a gpu

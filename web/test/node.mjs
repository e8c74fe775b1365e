// Runs suite.mjs in Node on Dawn, which takes the Vulkan driver that VK_DRIVER_FILES names. Exits with 1 if anything is wrong,
// with 3 if Dawn finds no adapter.
//
//   node node.mjs FOLDER OPTIONS        as browser.mjs
import { pathToFileURL } from 'node:url';
import { resolve } from 'node:path';
import { create, globals } from 'webgpu';
import { conclude } from './conclude.mjs';

const folder = resolve(process.argv[2]);
const options = JSON.parse(process.argv[3]);
Object.assign(globalThis, globals);
// wgpu, which the library's own suite uses, looks for a window, by its prototype.
globalThis.Window = class {};
globalThis.Navigator = class {};
Object.setPrototypeOf(globalThis, Window.prototype);
const navigator = Object.assign(new Navigator(), { gpu: create([]) });
Object.defineProperty(globalThis, 'navigator', { value: navigator, configurable: true });
globalThis.window = globalThis;

if (options.backend !== 'cpu' && (await navigator.gpu.requestAdapter()) === null) process.exit(3);
let result;
try {
  const { run } = await import(pathToFileURL(`${folder}/suite.mjs`));
  result = await run(options);
} catch (error) {
  result = { report: [], failures: [String(error?.stack ?? error)] };
}
conclude('Node', result);

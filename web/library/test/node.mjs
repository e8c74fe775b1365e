// Runs suite.mjs in Node on Dawn, which takes the Vulkan driver that VK_DRIVER_FILES names. Exits with 1 if anything is wrong,
// with 3 if Dawn finds no adapter.
//
//   node node.mjs FOLDER OPTIONS        as browser.mjs
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { create, globals } from 'webgpu';
import { conclude } from './conclude.mjs';
import { run } from './suite.mjs';

const folder = process.argv[2];
const options = JSON.parse(process.argv[3]);
Object.assign(globalThis, globals);
// wgpu looks for a window, by its prototype.
globalThis.Window = class {};
globalThis.Navigator = class {};
Object.setPrototypeOf(globalThis, Window.prototype);
const navigator = Object.assign(new Navigator(), { gpu: create([]) });
Object.defineProperty(globalThis, 'navigator', { value: navigator, configurable: true });
globalThis.window = globalThis;

if (options.backend !== 'cpu' && (await navigator.gpu.requestAdapter()) === null) process.exit(3);
let result;
try {
  const web = await import(resolve(folder, 'web.js'));
  await web.default({ module_or_path: readFileSync(join(folder, 'web_bg.wasm')) });
  result = await run(web, options);
} catch (error) {
  result = { report: [], failures: [String(error?.stack ?? error)] };
}
conclude('Dawn', result);

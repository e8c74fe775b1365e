// Loads the WebAssembly modules: `core` plans, `cpu` is the CPU path, `full` has both, reads users' WGSL, and verifies.

const loads = new Map(); // name -> promise of { exports, wasm }

// Written out, so that bundlers find the files.
const URLS = {
  core: new URL('./core_bg.wasm', import.meta.url),
  cpu: new URL('./cpu_bg.wasm', import.meta.url),
  full: new URL('./full_bg.wasm', import.meta.url),
};
const IMPORTS = { core: () => import('./core.js'), cpu: () => import('./cpu.js'), full: () => import('./full.js') };

/** Loads a module once. `wasm` is the compiled module, where another thread has sent it. */
export function load(name, wasm) {
  if (!loads.has(name)) {
    const loaded = start(name, wasm);
    loads.set(name, loaded);
    loaded.catch(() => loads.delete(name));
  }
  return loads.get(name);
}

async function start(name, wasm) {
  const [exports, compiled] = await Promise.all([IMPORTS[name](), wasm ?? compile(URLS[name])]);
  await exports.default({ module_or_path: compiled });
  return { exports, wasm: compiled };
}

async function compile(url) {
  if (url.protocol === 'file:') {
    const { readFile } = await import('node:fs/promises');
    return WebAssembly.compile(await readFile(url));
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} answers ${response.status}`);
  // Servers that do not know the type of .wasm files cannot stream them.
  const isWasm = response.headers.get('content-type')?.startsWith('application/wasm');
  return isWasm ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer());
}

// Opens examples/web/index.html in headless Chromium on SwiftShader and compares its answer with plain JavaScript. Its plan is exported first.
import { execFileSync } from 'node:child_process';
import { createReadStream, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';
import { chromium } from 'playwright-core';

const TYPES = { '.html': 'text/html', '.mjs': 'text/javascript' };
const plan = execFileSync('target/release/attn', ['export', '--shape', '1,1,1,6,6,8', '--causal', '--json'], { stdio: ['ignore', 'pipe', 'ignore'] });
const server = createServer((request, response) => {
  const path = normalize(new URL(request.url, 'http://localhost').pathname);
  if (path === '/examples/web/plan.json') return response.end(plan);
  const file = join(process.cwd(), path);
  if (!existsSync(file) || !TYPES[extname(file)]) return response.writeHead(404).end();
  response.setHeader('content-type', TYPES[extname(file)]);
  createReadStream(file).pipe(response);
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

const profile = mkdtempSync(join(tmpdir(), 'export-page-'));
const args = [
  '--headless=new', '--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync', '--remote-debugging-pipe', `--user-data-dir=${profile}`,
];
const browser = await chromium.launchPersistentContext(profile, { executablePath: '/usr/bin/chromium', ignoreDefaultArgs: true, args });
let failure;
try {
  const page = await browser.newPage();
  page.on('pageerror', (error) => (failure = error));
  await page.goto(`http://127.0.0.1:${server.address().port}/examples/web/index.html`);
  await page.waitForFunction('globalThis.attention', null, { timeout: 60_000 });
  const told = await page.evaluate('({ ...attention, data: attention.data.map((x) => [...x]), output: [...attention.output] })');
  const expected = causalAttention(told);
  const error = Math.max(...expected.map((x, at) => Math.abs(x - told.output[at])));
  console.log(`examples/web in Chromium: largest error ${error.toExponential(1)} against plain JavaScript`);
  if (!(error < 1e-5) || told.output.length !== expected.length) failure = new Error('the answer is wrong');
} catch (error) {
  failure ??= error;
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}
if (!readFileSync('README.md', 'utf8').includes(readFileSync('examples/web/index.html', 'utf8'))) {
  failure ??= new Error('README.md shows another page');
}
if (failure) console.error(`examples/web: ${failure.message}`);
process.exit(failure ? 1 : 0);

// output_i = sum_j weight(i,j) * value_j over the keys j <= i.
function causalAttention({ data: [query, key, value], seq, dim }) {
  const row = (tensor, at) => tensor.slice(at * dim, (at + 1) * dim);
  const dot = (a, b) => a.reduce((sum, x, at) => sum + x * b[at], 0);
  return Array.from({ length: seq }, (_, i) => {
    const weights = Array.from({ length: i + 1 }, (_, j) => Math.exp(dot(row(query, i), row(key, j)) / Math.sqrt(dim)));
    const sum = weights.reduce((a, b) => a + b);
    return Array.from({ length: dim }, (_, at) => dot(weights, weights.map((_, j) => value[j * dim + at])) / sum);
  }).flat();
}

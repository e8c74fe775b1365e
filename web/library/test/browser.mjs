// Runs suite.mjs in a page of headless Chromium on SwiftShader. Exits with 1 if anything is wrong.
//
//   node browser.mjs FOLDER OPTIONS     FOLDER has the package and suite.mjs; OPTIONS are those of suite.mjs, as JSON
//
// The environment variable CHROME names the browser.
import { createReadStream, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';
import { chromium } from 'playwright-core';
import { conclude } from './conclude.mjs';

const [folder, options] = process.argv.slice(2);
const TYPES = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };
const server = createServer((request, response) => {
  const path = new URL(request.url, 'http://localhost').pathname;
  if (path === '/') {
    response.setHeader('content-type', 'text/html');
    response.end('<!doctype html><link rel="icon" href="data:,"><title>wgpu-attention</title>');
    return;
  }
  const file = join(folder, normalize(path));
  response.statusCode = existsSync(file) ? 200 : 404;
  response.setHeader('content-type', TYPES[extname(file)] ?? 'application/octet-stream');
  if (response.statusCode === 200) createReadStream(file).pipe(response);
  else response.end();
}).listen(0, '127.0.0.1');
await new Promise((listening) => server.once('listening', listening));

const profile = mkdtempSync(join(tmpdir(), 'wgpu-attention-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROME,
  headless: true,
  ignoreDefaultArgs: true,
  args: [
    '--headless=new',
    '--no-sandbox',
    '--enable-unsafe-webgpu',
    '--use-webgpu-adapter=swiftshader',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--remote-debugging-pipe',
    `--user-data-dir=${profile}`,
  ],
});
let result;
try {
  const page = await context.newPage();
  page.on('console', (message) => console.log(`  page: ${message.text()}`));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  result = await page.evaluate(async (options) => {
    const web = await import('/web.js');
    await web.default();
    const { run } = await import('/suite.mjs');
    return run(web, options);
  }, JSON.parse(options));
} catch (error) {
  result = { report: [], failures: [String(error)] };
} finally {
  await context.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}
conclude('Chromium', result);

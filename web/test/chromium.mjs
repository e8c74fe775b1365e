// Headless Chromium on SwiftShader, with a page of a local server.
import { createReadStream, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { extname, join, normalize } from 'node:path';
import { chromium } from 'playwright-core';

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };

/**
 * Serves a folder, opens one of its pages, an empty one by default, and runs `work` on it. The environment variable CHROME names
 * the browser.
 */
export async function withPage(folder, work, path = '/') {
  const server = createServer((request, response) => answer(folder, request, response)).listen(0, '127.0.0.1');
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
  try {
    const page = await context.newPage();
    page.on('console', (message) => console.log(`  page: ${message.text()}`));
    await page.goto(`http://127.0.0.1:${server.address().port}${path}`);
    return await work(page);
  } finally {
    await context.close();
    server.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

function answer(folder, request, response) {
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
}

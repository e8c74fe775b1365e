// Opens the page of README.md in headless Chromium on SwiftShader and compares its answer. Exits with 1 if it is wrong.
//
//   node newcomer.mjs FOLDER README     FOLDER has the package and reference.mjs
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { withPage } from './chromium.mjs';
import { conclude } from './conclude.mjs';
import { difference, reference } from './reference.mjs';

const [folder, readme] = process.argv.slice(2);
const html = readFileSync(readme, 'utf8').match(/```html\n([^]*?)```/)[1];
const lines = html.trimEnd().split('\n').length;
const tensor = (seed) => Float32Array.from({ length: 2 * 6 * 16 }, (_, at) => Math.sin(seed * at));
const request = { shape: { numHeads: 2, seqLenQ: 6, headDim: 16 }, causal: 'top-left', query: tensor(1), key: tensor(2), value: tensor(3) };

const file = `${folder}/newcomer.html`;
writeFileSync(file, html.replace('./node_modules/wgpu-attention/', './'));
const read = async (page) => {
  await page.waitForFunction(() => document.querySelector('#answer').textContent, undefined, { timeout: 60_000 });
  return page.textContent('#answer');
};
const text = await withPage(folder, read, '/newcomer.html').catch((error) => String(error));
rmSync(file);
const off = difference(text.split(' ').map(Number), reference(request).output);
const failures = [];
if (!(off < 1e-5)) failures.push(`the answer is off by ${off}: ${text.slice(0, 200)}`);
if (lines > 30) failures.push(`the page has ${lines} lines`);
conclude('README', { report: [`${lines} lines`], failures });

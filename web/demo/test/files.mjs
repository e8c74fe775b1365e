// Checks of the section that shows files.
import { agree, reference, rowTable, settle, until } from './checks.mjs';
import { npy, safetensors } from './write.mjs';

const wave = (length, seed) => Float32Array.from({ length }, (_, at) => Math.sin((at + 1) * seed) * 2);

export async function checkFiles(page, checks) {
  const choose = (...files) => page.setInputFiles('#files', files.map(([name, buffer]) => ({ name, mimeType: 'application/octet-stream', buffer })));
  const result = (wanted) => until(page, (wanted) => document.querySelector('#file-result').textContent.includes(wanted), wanted, wanted);
  const [heads, tokens, dim] = [2, 7, 4];
  const [q, k, v] = [1.3, 2.7, 0.9].map((seed) => wave(2 * heads * tokens * dim, seed));
  const isRow = async (query, key, keys, what) => {
    await settle(page);
    await page.focus('#file-map canvas');
    await page.keyboard.press('Control+End');
    const { weights } = await rowTable(page, '#file-map');
    checks.expect(agree(weights, reference(query, key, dim, keys, () => true)), `${what}: ${weights}`);
  };
  const at = (item, head, token = 0) => ((item * heads + head) * tokens + token) * dim;

  await choose(['self.npy', npy(q, [2, heads, tokens, dim])]);
  await result('2 heads, 7 queries, 7 keys, head_dim 4');
  await isRow(q.subarray(at(0, 0, 6)), q.subarray(at(0, 0)), tokens, 'one array');
  await page.fill('#file-item', '1');
  await page.fill('#file-head', '1');
  await isRow(q.subarray(at(1, 1, 6)), q.subarray(at(1, 1)), tokens, 'item 1, head 1');
  await page.fill('#file-row', '2');
  await page.fill('#file-rows', '3');
  await isRow(q.subarray(at(1, 1, 4)), q.subarray(at(1, 1)), tokens, 'rows 2 to 4');
  await page.selectOption('#file-causal', 'bottom-right');
  await settle(page);
  const masked = (await rowTable(page, '#file-map')).weights.map((x) => x === null);
  checks.expect(masked.join() === [false, false, false, false, false, true, true].join(), `causal, row 4: ${masked}`);
  await page.selectOption('#file-causal', '');
  await page.fill('#file-head', '2');
  await result('There is no head 2');

  const shape = [heads, tokens, dim];
  const part = (data) => data.subarray(0, heads * tokens * dim);
  await choose(['query.npy', npy(part(q), shape)], ['value.npy', npy(part(v), shape)], ['key.npy', npy(part(k), shape)]);
  await result('7 queries');
  await isRow(q.subarray(at(0, 0, 6)), k.subarray(at(0, 0)), tokens, 'three files');

  await choose(['all.safetensors', safetensors({ 'attn.v': [part(v), shape], 'attn.k': [part(k), shape], 'attn.q': [part(q), shape], other: [wave(3, 1), [3]] })]);
  await result('7 queries');
  await isRow(q.subarray(at(0, 0, 6)), k.subarray(at(0, 0)), tokens, 'safetensors');
  await page.selectOption('#file-query', { label: 'other [3] f32' });
  await result('query: other has 1 axes');
  await page.selectOption('#file-layout', 'bshd');
  await page.selectOption('#file-query', { label: 'attn.q [2, 7, 4] f32' });
  await result('7 heads, 2 queries, 2 keys');
  await page.selectOption('#file-layout', 'bhsd');

  await choose(['broken.npy', Buffer.from('no array')]);
  await result('broken.npy is no .npy file');
  await choose(['big.npy', npy(part(q), shape, '>f4')]);
  await result('big-endian');

  // Dropped instead of chosen.
  const dropped = npy(part(k), shape).toString('base64');
  await page.evaluate((base64) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], 'dropped.npy'));
    for (const type of ['dragenter', 'dragover', 'drop']) document.querySelector('#drop').dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, dropped);
  await result('7 queries');
  await isRow(k.subarray(at(0, 0, 6)), k.subarray(at(0, 0)), tokens, 'a dropped file');
}

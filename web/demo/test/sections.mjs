// Checks of each section of the page: what it shows against what it must be.
import { agree, reference, rowTable, settle, until } from './checks.mjs';

const text = (page, selector) => page.textContent(selector);

/** Every row of every head against f64, with a mask. */
async function checkWeights(page, checks, { project, split, HEAD_DIM, NUM_HEADS }, sentence, isVisible, what) {
  const words = split(sentence);
  const { query, key } = project(words);
  const size = words.length;
  const rowOf = (head, row) => {
    const keys = key.subarray(head * size * HEAD_DIM, (head + 1) * size * HEAD_DIM);
    return reference(query.subarray((head * size + row) * HEAD_DIM), keys, HEAD_DIM, size, (k) => isVisible(row, k));
  };
  for (let head = 0; head < NUM_HEADS; head++) {
    await page.click(`#heads input[value="${head}"]`);
    await settle(page);
    await page.focus('#map canvas');
    await page.keyboard.press('Control+Home');
    for (let row = 0; row < size; row++) {
      const { caption, names, weights } = await rowTable(page, '#map');
      checks.expect(caption === `Weights of word “${words[row]}”` && names.join(' ') === words.join(' '), `${what}: names of row ${row}: ${caption}`);
      const sum = weights.reduce((sum, x) => sum + x, 0);
      checks.expect(Math.abs(sum - 1) < 1e-4 * size, `${what}: row ${row} of head ${head} sums to ${sum}`);
      checks.expect(agree(weights, rowOf(head, row)), `${what}: row ${row} of head ${head}: ${weights}, expected ${rowOf(head, row)}`);
      // A planted mistake: the weights of another head.
      if (row === size - 1) checks.expect(!agree(weights, rowOf((head + 1) % NUM_HEADS, row)), `${what}: weights of another head are not noticed`);
      await page.keyboard.press('ArrowDown');
    }
  }
  await page.click('#heads input[value="0"]');
  await settle(page);
}

/** Number of colours inside a cell of the map. */
async function colours(page, row, column) {
  return page.evaluate(
    async ([row, column]) => {
      const { layout } = await import('./draw.mjs');
      const canvas = document.querySelector('#map canvas');
      const size = document.querySelectorAll('#map tbody tr').length;
      const ratio = canvas.width / canvas.clientWidth;
      const { left, top, width, height } = layout(canvas.clientWidth, canvas.clientHeight, { rowNames: [] });
      const at = (x) => Math.round(x * ratio);
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      const cell = copy.getImageData(at(left + (width * (column + 0.25)) / size), at(top + (height * (row + 0.25)) / size), at(width / size / 2), at(height / size / 2));
      const found = new Set();
      for (let at = 0; at < cell.data.length; at += 4) found.add(cell.data.slice(at, at + 3).join(' '));
      return found.size;
    },
    [row, column],
  );
}

export async function checkSee(page, checks, embed) {
  const sentence = await page.inputValue('#sentence');
  const size = embed.split(sentence).length;
  await page.setChecked('#causal', true);
  await settle(page);
  await checkWeights(page, checks, embed, sentence, (row, key) => key <= row, 'causal');
  checks.expect((await colours(page, 1, 4)) > 1 && (await colours(page, 4, 1)) === 1, 'masked cells are hatched, visible ones are not');
  await page.setChecked('#causal', false);
  await settle(page);
  await checkWeights(page, checks, embed, sentence, () => true, 'without a mask');
  await page.fill('#window-left', '2');
  await page.fill('#window-right', '1');
  await settle(page);
  await checkWeights(page, checks, embed, sentence, (row, key) => key >= row - 2 && key <= row + 1, 'window');
  await page.setChecked('#window', false);
  await settle(page);

  // The chosen cell by keyboard and by pointer.
  const readout = () => text(page, '#map .readout');
  await page.focus('#map canvas');
  for (const [key, expected] of [['Control+Home', [0, 0]], ['ArrowRight', [0, 1]], ['ArrowDown', [1, 1]], ['End', [1, size - 1]], ['Home', [1, 0]], ['ArrowUp', [0, 0]], ['ArrowLeft', [0, 0]], ['Control+End', [size - 1, size - 1]]]) {
    await page.keyboard.press(key);
    const words = embed.split(sentence);
    const { weights } = await rowTable(page, '#map');
    const wanted = `Word “${words[expected[0]]}”, word “${words[expected[1]]}”: weight ${weights[expected[1]].toFixed(4)}`;
    checks.expect((await readout()) === wanted, `${key}: ${await readout()}, expected ${wanted}`);
  }
  const box = await page.locator('#map canvas').boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  checks.expect(!(await readout()).includes('“.”, word “.”'), 'the pointer changes the line of the cell');
  await page.mouse.move(0, 0);
  checks.expect((await readout()).includes('“.”, word “.”'), 'the chosen cell comes back when the pointer leaves');

  // As it is typed; nothing; one word; far too many.
  for (const [typed, rows] of [['Time flies like an arrow', 5], ['', 0], ['one', 1], ['many words '.repeat(40).slice(0, 400), embed.MAX_WORDS], [sentence, size]]) {
    await page.fill('#sentence', '');
    if (typed.length < 30) await page.type('#sentence', typed);
    else await page.fill('#sentence', typed);
    await until(page, (rows) => document.querySelectorAll('#map tbody tr').length === rows, `the map of “${typed}”`, rows);
  }
  await page.setChecked('#causal', true);
  await settle(page);
}

const squareText = (pairs) => `${pairs.toLocaleString('en')} of 4,096 pairs are visible: ${((100 * pairs) / 4096).toFixed(2)} %.`;

/** Pairs of 64 x 64 tokens that a mask shows. */
function count(isVisible) {
  let pairs = 0;
  for (let row = 0; row < 64; row++) for (let key = 0; key < 64; key++) pairs += isVisible(row, key);
  return pairs;
}

export async function checkWrite(page, checks) {
  await page.setChecked('#causal', false);
  const names = await page.evaluate(() => [...document.querySelectorAll('#gallery option')].map((option) => option.value));
  checks.expect(names.length >= 19, `${names.length} terms in the gallery`);
  const maps = new Set();
  for (const name of names) {
    await page.selectOption('#gallery', name);
    await until(page, () => document.querySelector('#own').checked, name);
    await settle(page);
    const error = (await text(page, '#term-error')) + (await text(page, '#tables-error')) + (await text(page, '#see-problem'));
    checks.expect(error === '', `${name}: ${error}`);
    maps.add(await text(page, '#map tbody'));
  }
  // One row tells few masks apart, but not none.
  checks.expect(maps.size > 5, `the terms show ${maps.size} different rows`);

  const wrong = 'fn visible(at: Pair) -> bool {\n    let distance = at.position - at.kee;\n    return distance >= 0 && distance < 3;\n}\n';
  await page.fill('#term', wrong);
  await until(page, () => document.querySelector('#term-error').textContent !== '', 'the error');
  checks.expect(/^Line 2, column \d+: .*kee/.test(await text(page, '#term-error')), `error of a wrong term: ${await text(page, '#term-error')}`);
  checks.expect((await page.getAttribute('#term', 'aria-invalid')) === 'true', 'the field is not marked as invalid');
  const areaTop = (await page.locator('#term').boundingBox()).y;
  const mark = await page.locator('.marks .why').boundingBox();
  // Line 2 ends 74 pixels below the top; line 3 begins there, with its letters 9 pixels on.
  checks.expect(mark.y - areaTop >= 62 && mark.y + mark.height - areaTop <= 84, `the error is ${mark.y - areaTop} pixels below the top`);
  checks.expect((await text(page, '#see-problem')) !== '', 'the map does not say that it is an old one');

  await page.fill('#term', wrong.replace('kee', 'key'));
  await until(page, () => document.querySelector('#term-error').textContent === '', 'the end of the error');
  await until(page, (wanted) => document.querySelector('#square-text').textContent === wanted, 'the mask', squareText(count((row, key) => row >= key && row - key < 3)));
  checks.expect((await page.locator('.marks span').count()) === 0 && (await text(page, '#see-problem')) === '', 'the error stays');
  await page.focus('#square canvas');
  await page.keyboard.press('Control+End');
  checks.expect((await text(page, '#square .readout')) === 'Row 63, key 63: visible. The row sees keys 61 to 63.', `row of the mask: ${await text(page, '#square .readout')}`);

  // Tables, right and wrong, and a score.
  await page.fill('#term', 'fn score(x: f32, at: Pair) -> f32 {\n    return x - slopes[at.head] * f32(at.key);\n}\n');
  await page.fill('#tables', 'slopes=100,0.5,0.25,0.125');
  await page.focus('#map canvas');
  await until(page, () => document.querySelector('#map tbody tr td').textContent === '1.0000', 'a score that leaves the first word alone');
  await page.fill('#tables', 'slopes=1,two');
  await until(page, () => document.querySelector('#tables-error').textContent === 'Line 1: “two” is no number, and no number*count', 'the error of the tables');
  await page.fill('#tables', '');
  await until(page, () => document.querySelector('#term-error').textContent.includes('slopes'), 'the error of a table that is missing');
  await page.selectOption('#gallery', 'causal');
  await until(page, (wanted) => document.querySelector('#square-text').textContent === wanted, 'the causal term', squareText((64 * 65) / 2));
  await page.setChecked('#own', false);
  await until(page, (wanted) => document.querySelector('#square-text').textContent === wanted, 'no mask', squareText(4096));
  await page.selectOption('#square-size', '32');
  await until(page, () => document.querySelector('#square-text').textContent.includes('of 1,024'), 'a smaller square');
  await page.selectOption('#square-size', '64');
  await page.setChecked('#causal', true);
  await settle(page);
}

export async function checkVerification(page, checks) {
  const isDone = () => !document.querySelector('#verify-start').disabled;
  await page.fill('#verify-filter', 'causal');
  await page.fill('#verify-random', '0');
  await page.click('#verify-start');
  await until(page, isDone, 'a verification');
  const result = await text(page, '#verify-result');
  const rows = await page.evaluate(() => [...document.querySelectorAll('#verify-tables > table tbody tr')].map((row) => [...row.cells].map((cell) => Number(cell.textContent))));
  const [passed, failed] = [1, 2].map((column) => rows.reduce((sum, row) => sum + row[column], 0));
  checks.expect(passed > 0 && failed === 0 && result.startsWith(`Right: ${passed} cases`), `verification: ${result}`);
  console.log(`  ${result}`);
  await page.fill('#verify-filter', 'no case has this name');
  await page.click('#verify-start');
  await until(page, isDone, 'a verification of nothing');
  checks.expect((await text(page, '#verify-result')).startsWith('No case'), 'a verification of nothing claims something');
  await page.fill('#verify-filter', '');
  await page.fill('#verify-random', '1000');
  await page.click('#verify-start');
  await until(page, () => document.querySelector('#verify-progress').value > 0, 'progress');
  await page.click('#verify-cancel');
  await until(page, isDone, 'the end of a cancelled verification');
  checks.expect((await text(page, '#verify-result')).startsWith('Cancelled'), `cancelled: ${await text(page, '#verify-result')}`);
}

/** A planted mistake, by a `verify` that finds one: the page says so. */
export async function checkFailure(page, checks) {
  const rows = [
    { suite: 'masks', case: 'right', verdict: 'passed', detail: '' },
    { suite: 'masks', case: 'mistaken', verdict: 'failed', detail: 'output[3] is 0.5, expected 0.25' },
    { suite: 'f16', case: 'absent', verdict: 'skipped', detail: 'no shader-f16' },
  ];
  await page.route('**/verify.mjs', async (route) => {
    const body = await (await route.fetch()).text();
    const verify = `const verify = async () => (${JSON.stringify({ passed: 1, failed: 1, skipped: 1, rows })});`;
    await route.fulfill({ contentType: 'text/javascript', body: body.replace(/^import { verify }.*$/m, verify) });
  });
  await page.reload();
  await until(page, () => document.querySelectorAll('#map tbody tr').length > 0, 'the map');
  await page.click('#verify-start');
  await until(page, () => document.querySelector('#verify-result').textContent.startsWith('WRONG: 1 of 2 cases'), 'the verdict');
  const failed = await page.textContent('#verify-tables [aria-label="Failed"]');
  checks.expect(failed.includes('mistaken') && failed.includes('output[3] is 0.5, expected 0.25'), `the list of failures: ${failed}`);
  const skipped = await page.textContent('#verify-tables details');
  checks.expect(skipped.startsWith('1 skipped') && skipped.includes('no shader-f16'), `the list of what was skipped: ${skipped}`);
}

// Fields of a line of `attn bench --json`.
const FIELDS = ['adapter', 'backward', 'bf16_weights', 'bytes', 'causal', 'checked', 'dtype', 'error_of_bound', 'first_s', 'gflops', 'kernel', 'ms_max', 'ms_median', 'ms_min', 'n', 'name', 'op', 'peak_bytes', 'peer', 'ratio_to_best_peer', 'shape', 'terms', 'threads', 'window', 'wrong'];
const MACHINE = ['copy_gb_s', 'date', 'machine', 'matrix_gflops', 'multiply_add_gflops', 'os', 'program_bytes', 'threads', 'version'];

export async function checkTiming(page, checks) {
  const isDone = () => !document.querySelector('#time-start').disabled;
  const isGpu = (await page.getAttribute('#runs-on', 'data-backend')) !== 'cpu';
  if (await page.isEnabled('#time-clear')) await page.click('#time-clear');
  await page.fill('#time-own', '1,2,2,0,64,16');
  await page.click('#time-start');
  checks.expect((await text(page, '#time-result')).startsWith('The own shape takes six'), 'a wrong shape');
  await page.fill('#time-own', '1,2,2,48,64,16');
  await page.fill('#time-seconds', '0.1');
  await page.setChecked('#time-causal', true);
  await page.click('#time-start');
  await until(page, isDone, 'a timing');
  console.log(`  ${await text(page, '#time-result')}`);
  const bars = await page.locator('#time-chart .rate').count();
  checks.expect(bars === (isGpu ? 2 : 1), `${bars} bars: ${await text(page, '#time-result')}`);
  await page.click('#time-copy');
  await until(page, () => document.querySelector('#time-copied').textContent === 'Copied.', 'the copy');
  const record = await page.evaluate(() => navigator.clipboard.readText());
  checks.expect(record === (await page.inputValue('#time-record')), 'what is copied is not what is shown');
  const [machine, ...lines] = record.trim().split('\n').map((line) => JSON.parse(line));
  checks.expect(MACHINE.every((field) => field in machine), `the machine: ${Object.keys(machine)}`);
  checks.expect(lines.length === bars && lines.every((line) => FIELDS.every((field) => field in line)), `fields: ${lines.map(Object.keys)}`);
  for (const line of lines) {
    // Visible pairs: rows see 17 to 64 keys.
    const flops = 4 * 2 * 16 * ((48 * (17 + 64)) / 2);
    checks.expect(Math.abs(line.gflops / (flops / (line.ms_median * 1e6)) - 1) < 0.01, `GFLOP/s of ${line.adapter}: ${line.gflops}, ${line.ms_median} ms`);
    checks.expect(line.bytes === 2 * 4 * 16 * 2 * (48 + 64), `bytes: ${line.bytes}`);
  }
  await page.fill('#time-seconds', '30');
  await page.click('#time-start');
  await until(page, () => document.querySelector('#time-start').disabled, 'the start of a timing');
  await settle(page);
  await page.click('#time-cancel');
  await until(page, isDone, 'the end of a cancelled timing');
  checks.expect((await text(page, '#time-result')) === 'Cancelled.', `cancelled: ${await text(page, '#time-result')}`);
  await page.setChecked('#time-causal', false);
  await page.fill('#time-seconds', '0.1');
}

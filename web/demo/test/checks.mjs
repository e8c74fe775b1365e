// What the checks of the page share.

const TIMEOUT = 120_000;

/** Expectations that were not met. */
export class Checks {
  count = 0;
  failures = [];

  expect(isRight, what) {
    this.count++;
    if (!isRight) this.failures.push(what);
  }

  /** Prints the failures and ends the process. */
  conclude(where) {
    for (const failure of this.failures) console.log(`  FAILED: ${failure}`);
    console.log(`${where}: ${this.count - this.failures.length} passed, ${this.failures.length} failed`);
    process.exit(this.failures.length === 0 ? 0 : 1);
  }
}

/** Waits until a function is true in the page. */
export async function until(page, condition, what, argument) {
  await page.waitForFunction(condition, argument, { timeout: TIMEOUT }).catch(async (error) => {
    const status = await page.evaluate(() => [...document.querySelectorAll('[role="status"]')].map((node) => `${node.id}: ${node.textContent}`).join('\n    '));
    throw new Error(`waited for ${what} in vain: ${error.message}\n    ${status}`);
  });
}

/** Collects errors of the console and requests that leave the server. */
export function watch(page, url) {
  const seen = { errors: [], foreign: [] };
  // Chromium says so where there is no WebGPU, whoever asks.
  const isWrong = (message) => ['error', 'warning'].includes(message.type()) && message.text() !== 'No available adapters.';
  page.on('console', (message) => isWrong(message) && seen.errors.push(message.text()));
  page.on('pageerror', (error) => seen.errors.push(error.stack));
  page.on('request', (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) seen.foreign.push(request.url());
  });
  return seen;
}

/** Table of a map's chosen row: names, and weights or null where masked. */
export function rowTable(page, map) {
  return page.evaluate((map) => {
    const rows = [...document.querySelectorAll(`${map} tbody tr`)];
    const value = (text) => (text === 'masked' ? null : Number(text));
    return {
      caption: document.querySelector(`${map} caption`).textContent,
      names: rows.map((row) => row.cells[0].textContent),
      weights: rows.map((row) => value(row.cells[1].textContent)),
      text: document.querySelector(`${map} tbody`).textContent,
    };
  }, map);
}

/** Waits until the page has computed what was last asked for: it begins when nothing has been typed for 120 ms. */
export async function settle(page) {
  await page.waitForTimeout(200);
  await until(page, () => !document.querySelector('[aria-busy="true"]'), 'the end of a computation');
}

/** Attention weights of one row in f64; null where `isVisible(key)` is false. */
export function reference(query, key, dim, keys, isVisible) {
  const scores = Array.from({ length: keys }, (_, k) => {
    if (!isVisible(k)) return null;
    let dot = 0;
    for (let c = 0; c < dim; c++) dot += query[c] * key[k * dim + c];
    return dot / Math.sqrt(dim);
  });
  const most = Math.max(...scores.filter((x) => x !== null));
  const sum = scores.reduce((sum, x) => sum + (x === null ? 0 : Math.exp(x - most)), 0);
  return scores.map((x) => (x === null ? null : Math.exp(x - most) / sum));
}

/** True if the weights, of four decimals, are those expected, masked ones included. */
export function agree(weights, expected) {
  const isNear = (x, at) => (x === null || expected[at] === null ? x === expected[at] : Math.abs(x - expected[at]) < 1e-4);
  return weights.length === expected.length && weights.every(isNear);
}

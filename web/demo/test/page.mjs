// Presses everything on the demo page in headless Chromium on SwiftShader, and keeps screenshots.
//
//   node page.mjs FOLDER PICTURES     FOLDER is the assembled page, PICTURES where screenshots go
//
// The environment variable CHROME names the browser. Exits with 1 if anything is wrong.
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { open, serve } from './serve.mjs';
import { Checks, rowTable, until, watch } from './checks.mjs';
import { checkFiles } from './files.mjs';
import { checkFailure, checkSee, checkTiming, checkVerification, checkWrite } from './sections.mjs';

const [folder, pictures] = process.argv.slice(2).map((path) => resolve(path));
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
mkdirSync(pictures, { recursive: true });
const embed = await import(pathToFileURL(join(folder, 'embed.mjs')));
const checks = new Checks();
const server = await serve(folder);

/** Opens the page and waits for its first heat map. */
async function load(context, options = {}) {
  const page = await context.newPage();
  const seen = watch(page, server.url);
  await page.setViewportSize(options.size ?? { width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: options.scheme ?? 'light', reducedMotion: options.reducedMotion ?? 'no-preference' });
  await page.addInitScript(() => {
    globalThis.shift = 0;
    const add = (list) => list.getEntries().forEach((entry) => (globalThis.shift += entry.value));
    new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });
  });
  const began = performance.now();
  await page.goto(server.url);
  await until(page, () => document.querySelectorAll('#map tbody tr').length > 0, 'the first heat map');
  return { page, seen, milliseconds: performance.now() - began };
}

/** Accessibility by axe-core. */
async function axe(page, where) {
  await page.evaluate(AXE);
  const violations = () => page.evaluate(async () => (await axe.run(document, { resultTypes: ['violations'] })).violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).join('; ')}`));
  const found = await violations();
  checks.expect(found.length === 0, `axe, ${where}: ${found.join('\n    ')}`);
  // A planted mistake.
  await page.evaluate(() => document.querySelector('main').insertAdjacentHTML('beforeend', '<button id="planted"></button>'));
  checks.expect((await violations()).some((text) => text.includes('planted')), `axe, ${where}: a button without a name is not noticed`);
  await page.evaluate(() => document.querySelector('#planted').remove());
}

/** Every control is reached by Tab, and shows that it has the focus. */
async function checkKeyboard(page) {
  const wanted = await page.evaluate(() => {
    const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, canvas, [tabindex="0"]')];
    const isReached = (node) => node.checkVisibility() && !node.disabled && !(node.type === 'radio' && !node.checked);
    all.filter(isReached).forEach((node, at) => (node.dataset.stop = `${at}`));
    document.activeElement.blur();
    scrollTo(0, 0);
    return all.filter(isReached).length;
  });
  const reached = new Set();
  const unmarked = [];
  await page.evaluate(() => document.querySelector('[data-stop="0"]').focus());
  for (let press = 0; press < wanted + 20; press++) {
    const { stop, isMarked, html } = await page.evaluate(() => {
      const node = document.activeElement;
      const isMarked = [node, node.closest('.editor')].some((shown) => shown && getComputedStyle(shown).outlineStyle !== 'none');
      return { stop: node.dataset.stop, isMarked, html: node.outerHTML.slice(0, 80) };
    });
    if (stop !== undefined) reached.add(stop);
    if (stop !== undefined && !isMarked) unmarked.push(html);
    await page.keyboard.press('Tab');
  }
  checks.expect(reached.size === wanted, `Tab reaches ${reached.size} of ${wanted} controls`);
  // The first one was focused by a script.
  checks.expect(unmarked.length <= 1, `controls without a visible focus: ${unmarked}`);
}

async function checkTheme(page) {
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.selectOption('#theme', 'dark');
  checks.expect((await background()) !== light, 'dark colours are those of light');
  await page.reload();
  await until(page, () => document.querySelectorAll('#map tbody tr').length > 0, 'the heat map after a reload');
  checks.expect((await page.inputValue('#theme')) === 'dark' && (await background()) !== light, 'colours are forgotten');
  await page.selectOption('#theme', '');
  checks.expect((await background()) === light, 'colours as the system has them');
}

/** An address keeps what is shown. */
async function checkLink(page) {
  await page.fill('#sentence', 'to be or not to be');
  await page.click('#heads input[value="2"]');
  await page.setChecked('#causal', false);
  await page.fill('#term', 'fn visible(at: Pair) -> bool { return at.key % 2 == 0; } // own & mine');
  await until(page, () => location.search.includes('mine'), 'the address');
  const firstRow = async (what) => {
    await until(page, () => document.querySelectorAll('#map tbody tr').length === 6, what);
    await page.focus('#map canvas');
    await page.keyboard.press('Control+Home');
    return (await rowTable(page, '#map')).text;
  };
  await until(page, () => document.querySelector('#map tbody').textContent.includes('masked'), 'the map of the term');
  const before = await firstRow('the map');
  await page.reload();
  const after = await firstRow('the map after a reload');
  checks.expect(after === before, `the address gives another map: ${after}, and it was ${before}`);
  await page.goto(server.url);
  await until(page, () => document.querySelectorAll('#map tbody tr').length === 12, 'the example');
}

/** The page works from the browser's cache when the server is gone. */
async function checkOffline(page) {
  await page.evaluate(() => navigator.serviceWorker.ready);
  await page.context().setOffline(true);
  await page.reload();
  await until(page, () => document.querySelectorAll('#map tbody tr').length === 12, 'the map without a network');
  await page.selectOption('#gallery', 'dilated');
  await until(page, () => document.querySelector('#own').checked && document.querySelector('#term').value.includes('STEP'), 'a term without a network');
  await page.context().setOffline(false);
  await page.goto(server.url);
  await until(page, () => document.querySelectorAll('#map tbody tr').length === 12, 'the map');
}

/** A file that is missing is said. */
async function checkNoStart(page) {
  await page.route('**/draw.mjs', (route) => route.abort());
  await page.reload();
  await until(page, () => document.querySelector('#runs-on').textContent.startsWith('This page could not start'), 'what is wrong with a page that cannot start');
}

/** Fills each section, so that pictures and axe have something to look at. */
async function fill(page) {
  await page.selectOption('#gallery', 'alibi');
  await until(page, () => document.querySelector('#term').value.includes('slopes'), 'the term');
  await page.fill('#term', 'const SINKS: i32 = 1;\n\nfn visible(at: Pair) -> bool {\n    let distance = at.position - at.kee;\n    return distance < 4 || at.key < SINKS;\n}\n');
  await until(page, () => document.querySelector('#term-error').textContent !== '', 'an error of a term');
  await page.fill('#verify-filter', 'causal');
  await page.fill('#verify-random', '0');
  await page.click('#verify-start');
  await until(page, () => !document.querySelector('#verify-start').disabled, 'a verification');
  await page.fill('#time-own', '1,2,2,64,64,16');
  await page.fill('#time-seconds', '0.1');
  await page.click('#time-start');
  await until(page, () => !document.querySelector('#time-start').disabled, 'a timing');
  await page.evaluate(() => document.querySelectorAll('details').forEach((node) => (node.open = true)));
}

async function main() {
  const { context, close } = await open();
  try {
    await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: new URL(server.url).origin });
    const { page, seen, milliseconds } = await load(context);
    console.log(`  ${await page.textContent('#runs-on')}`);
    console.log(`  first heat map after ${milliseconds.toFixed(0)} ms`);
    const shift = await page.evaluate(() => globalThis.shift);
    checks.expect(shift < 0.02, `layout shift of ${shift} at the start`);
    await checkSee(page, checks, embed);
    await checkWrite(page, checks);
    await checkVerification(page, checks);
    await checkTiming(page, checks);
    await checkFiles(page, checks);
    await checkKeyboard(page);
    await checkTheme(page);
    await checkLink(page);
    await checkOffline(page);

    // The other backends: what each computes is what the first one did.
    const expected = await rowTable(page, '#map');
    for (const backend of ['cpu', 'webgpu']) {
      await page.selectOption('#backend', backend);
      await until(page, (is) => document.querySelector('#runs-on').dataset.backend === is, backend, backend === 'cpu' ? 'cpu' : 'software');
      console.log(`  ${await page.textContent('#runs-on')}`);
      await page.click('#heads input[value="1"]');
      await page.click('#heads input[value="0"]');
      await until(page, (wanted) => document.querySelector('#map tbody').textContent === wanted, `weights on ${backend}`, expected.text);
    }
    await checkVerification(page, checks);
    await checkTiming(page, checks);
    checks.expect(seen.errors.length === 0, `console: ${seen.errors.join('\n    ')}`);
    checks.expect(seen.foreign.length === 0, `requests to elsewhere: ${seen.foreign}`);
    await page.evaluate(() => console.error('planted'));
    await page.waitForTimeout(50);
    checks.expect(seen.errors.length === 1, 'an error on the console is not noticed');
    await page.close();

    for (const width of [1280, 390]) {
      for (const scheme of ['light', 'dark']) {
        const size = { width, height: width === 390 ? 844 : 900 };
        const { page, seen } = await load(context, { size, scheme, reducedMotion: 'reduce' });
        await page.screenshot({ path: join(pictures, `start-${width}-${scheme}.png`) });
        await fill(page);
        const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        checks.expect(over <= 0, `${width}, ${scheme}: ${over} pixels wider than the window`);
        await axe(page, `${width}, ${scheme}`);
        // Two frames, so that all of it is painted.
        await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
        await page.screenshot({ path: join(pictures, `page-${width}-${scheme}.png`), fullPage: true });
        checks.expect(seen.errors.length === 0, `console, ${width}, ${scheme}: ${seen.errors}`);
        await page.close();
      }
    }
  } finally {
    await close();
  }

  // Nor are there service workers, as in private windows, so that requests reach the test's route.
  const bare = await open({ hasWebGpu: false });
  try {
    await bare.context.addInitScript(() => delete Navigator.prototype.serviceWorker);
    const { page, seen } = await load(bare.context);
    const text = await page.textContent('#runs-on');
    console.log(`  without WebGPU: ${text}`);
    checks.expect(text.startsWith('Runs on the CPU'), `without WebGPU: ${text}`);
    await checkSee(page, checks, embed);
    await page.selectOption('#backend', 'webgpu');
    await until(page, () => document.querySelector('#runs-on').textContent.startsWith('Runs on'), 'the CPU path instead of WebGPU');
    checks.expect((await page.inputValue('#backend')) === 'cpu', 'WebGPU is chosen where there is none');
    await checkFailure(page, checks);
    await page.screenshot({ path: join(pictures, 'failure.png'), fullPage: true });
    checks.expect(seen.errors.length === 0, `console without WebGPU: ${seen.errors}`);
    await checkNoStart(page);
  } finally {
    await bare.close();
  }
}

await main().catch((error) => checks.expect(false, String(error.stack ?? error)));
server.close();
checks.conclude('the page in Chromium');

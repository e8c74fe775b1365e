// Verification of the machine: the generated suite, its suites in a table, and what failed.
import { verify } from './package/index.mjs';
import { $, element, explainError, table } from './dom.mjs';

export function addVerification(session) {
  let controller;
  $('verify-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    if (controller || !session.engine) return;
    controller = new AbortController();
    setRunning(true);
    try {
      const options = { random: $('verify-random').valueAsNumber || 0, seed: $('verify-seed').valueAsNumber || 0, filter: $('verify-filter').value };
      $('verify-result').textContent = 'Verifying. Each kernel is compiled when it is first met, so this takes a while.';
      $('verify-tables').replaceChildren();
      $('verify-result').dataset.verdict = '';
      const report = await session.run(
        (share) => ($('verify-progress').value = share),
        () => verify(session.engine, { ...options, signal: controller.signal }),
      );
      show(report, session.engine, options);
    } catch (error) {
      $('verify-result').textContent = error.kind === 'cancelled' ? 'Cancelled. Nothing is said about this machine.' : explainError(error);
    } finally {
      controller = undefined;
      setRunning(false);
    }
  });
  $('verify-cancel').addEventListener('click', () => {
    $('verify-result').textContent = 'Cancelling after the case that runs.';
    controller?.abort();
  });
}

function setRunning(isRunning) {
  $('verify-start').disabled = isRunning;
  $('verify-cancel').disabled = !isRunning;
  // Without a value until the first share is reported.
  if (isRunning) $('verify-progress').removeAttribute('value');
  else $('verify-progress').value = 0;
}

function show({ passed, failed, skipped, rows }, engine, { filter }) {
  const suites = new Map();
  for (const { suite, verdict } of rows) {
    if (!suites.has(suite)) suites.set(suite, { passed: 0, failed: 0, skipped: 0 });
    suites.get(suite)[verdict]++;
  }
  $('verify-result').dataset.verdict = failed > 0 ? 'failed' : '';
  $('verify-result').textContent = verdictText({ passed, failed, skipped }, engine.name, filter);
  if (rows.length === 0) return;
  const counts = [...suites].map(([suite, count]) => [suite, count.passed, count.failed, count.skipped].map(String));
  $('verify-tables').append(table(`Cases on ${engine.name}`, ['suite', 'passed', 'failed', 'skipped'], counts));
  const detail = (verdict) => rows.filter((row) => row.verdict === verdict).map((row) => [row.case, row.suite, row.detail]);
  const list = (caption, found) => element('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption }, table(caption, ['case', 'suite', 'what was found'], found, { numbersFrom: Infinity }));
  if (failed > 0) $('verify-tables').append(list('Failed', detail('failed')));
  if (skipped > 0) $('verify-tables').append(element('details', {}, element('summary', {}, `${skipped} skipped`), list('Skipped', detail('skipped'))));
}

function verdictText({ passed, failed, skipped }, name, filter) {
  const scope = filter ? ` whose name contains “${filter}”` : '';
  const left = skipped > 0 ? ` ${skipped} ${skipped === 1 ? 'was' : 'were'} skipped; the list says why.` : '';
  if (passed + failed === 0) return `No case${scope} was run, so nothing is verified.${left}`;
  if (failed === 0) return `Right: ${passed} cases${scope} agree with the f64 oracle on ${name}.${left}`;
  return `WRONG: ${failed} of ${passed + failed} cases${scope} do not agree with the f64 oracle on ${name}. Do not use this backend here, and report it.${left}`;
}

// Prints the result of suite.mjs and ends the process: Dawn's objects would keep Node alive.
export function conclude(where, { report, failures, counts }) {
  for (const line of report) console.log(`  ${line}`);
  for (const failure of failures) console.log(`  FAILED: ${failure}`);
  if (counts) console.log(`${where}: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
  else console.log(`${where}: ${failures.length === 0 ? 'all right' : `${failures.length} failures`}`);
  process.exit(failures.length === 0 ? 0 : 1);
}

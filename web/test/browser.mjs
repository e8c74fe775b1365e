// Runs suite.mjs in a page of headless Chromium on SwiftShader. Exits with 1 if anything is wrong.
//
//   node browser.mjs FOLDER OPTIONS     FOLDER has suite.mjs and what it imports; OPTIONS are passed to its run(), as JSON
import { withPage } from './chromium.mjs';
import { conclude } from './conclude.mjs';

const [folder, options] = process.argv.slice(2);
const run = async (options) => (await import('/suite.mjs')).run(options);
const result = await withPage(folder, (page) => page.evaluate(run, JSON.parse(options))).catch((error) => ({ report: [], failures: [String(error)] }));
conclude('Chromium', result);

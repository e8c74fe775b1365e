// Opens an engine, says where it computes, and adds the sections of the page.
import { createEngine } from './package/index.mjs';
import { $, explainError } from './dom.mjs';
import { Files } from './files.mjs';
import { See } from './see.mjs';
import { Timing } from './timing.mjs';
import { addVerification } from './verify.mjs';

/** The engine in use, and what its work reports. */
const session = {
  engine: null,
  cpu: null,
  onShare: null,

  open(backend) {
    return createEngine({ backend, onProgress: ({ share }) => this.onShare?.(share) });
  },

  /** Runs one long work; `onShare` is told its completed share. */
  async run(onShare, work) {
    this.onShare = onShare;
    try {
      return await work();
    } finally {
      this.onShare = null;
    }
  },

  /** CPU path beside a GPU. */
  async cpuEngine() {
    this.cpu ??= await this.open('cpu');
    return this.cpu;
  },
};

async function open(backend) {
  const before = session.engine;
  session.engine = null;
  before?.destroy();
  let note = '';
  try {
    session.engine = await session.open(backend);
  } catch (error) {
    // Only WebGPU can be missing.
    note = ` ${explainError(error)}`;
    session.engine = await session.open('cpu');
    $('backend').value = 'cpu';
  }
  const { engine } = session;
  $('runs-on').textContent = place(engine) + note;
  $('runs-on').dataset.backend = engine.isSoftware ? 'software' : engine.backend;
  engine.device?.lost.then(async ({ reason, message }) => {
    if (session.engine !== engine || reason === 'destroyed') return;
    await open($('backend').value).catch(couldNotOpen);
    $('runs-on').textContent += ` The device before was lost: ${message}`;
    await update();
  });
}

function couldNotOpen(error) {
  $('runs-on').textContent = `This page could not start: ${explainError(error)}`;
}

/** Where an engine computes, in words. */
function place({ backend, name, why, isSoftware }) {
  if (backend === 'cpu') {
    const secure = globalThis.isSecureContext ? '' : ' WebGPU needs https or localhost.';
    return `Runs on the CPU, in WebAssembly, without a GPU. ${sentence(why)}${secure}`;
  }
  return isSoftware ? `Runs on ${name}, by WebGPU in software: answers are right, but times say nothing of a GPU.` : `Runs on ${name}, by WebGPU.`;
}

const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (text.endsWith('.') ? '' : '.') : '');

function addTheme() {
  const stored = localStorage.getItem('theme') ?? '';
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    document.dispatchEvent(new Event('themechange'));
  };
  $('theme').value = stored;
  apply(stored);
  $('theme').addEventListener('change', () => {
    localStorage.setItem('theme', $('theme').value);
    apply($('theme').value);
  });
}

removeEventListener('error', globalThis.couldNotStart, true);

let sections = [];
const update = () => Promise.all(sections.map((section) => section.update()));

try {
  addTheme();
  const site = await (await fetch('site.json')).json();
  $('repository').href = site.repository;
  $('issues').href = `${site.repository}/issues`;
  const see = new See(session, site.terms);
  sections = [see, new Files(session)];
  new Timing(session, site);
  addVerification(session);
  $('backend').addEventListener('change', () => {
    $('runs-on').textContent = 'Changing.';
    open($('backend').value).then(update, couldNotOpen);
  });
  await open('auto');
  await see.start();
  // Some browsers have none in private windows.
  await navigator.serviceWorker?.register('offline.js').catch(() => {});
} catch (error) {
  couldNotOpen(error);
  throw error;
}

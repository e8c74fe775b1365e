// Service worker: the page works without a network once it was open. Files come from the network where there is one.
const CACHE = 'wgpu-attention';

async function store() {
  const cache = await caches.open(CACHE);
  const { files } = await (await fetch('site.json')).json();
  await cache.addAll(['./', 'site.json', ...files]);
}

async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const stored = await cache.match(request, { ignoreSearch: true });
    if (stored) return stored;
    throw error;
  }
}

self.addEventListener('install', (event) => event.waitUntil(store()));
self.addEventListener('fetch', (event) => {
  const isOurs = event.request.method === 'GET' && new URL(event.request.url).origin === location.origin;
  if (isOurs) event.respondWith(answer(event.request));
});

// The page without a network: what it once had is kept, and what the server has now is taken first where there is one.

const CACHE = "visglm-page";

// The first visit's page was there before this was; everything it is made of is asked for once more. Nothing else is
// kept: of the model the worker keeps what it has compared with its hash, and other pages may have this address, too.
const PAGE = [
  "/", "/style.css", "/app.js", "/texts.js", "/worker.js", "/files.js", "/sha256.js", "/network.js", "/picture.js",
  "/prompt.js", "/tokenizer.js",
  "/runtime/ort.wasm.min.mjs", "/runtime/ort-wasm-simd-threaded.mjs", "/runtime/ort-wasm-simd-threaded.wasm",
];

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)));
});
self.addEventListener("activate", (event) => event.waitUntil((async () => {
  const cache = await caches.open(CACHE);
  for (const request of await cache.keys()) {
    if (!PAGE.includes(new URL(request.url).pathname)) await cache.delete(request);
  }
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  const name = pathname === "/index.html" ? "/" : pathname;
  if (event.request.method !== "GET" || origin !== self.location.origin || !PAGE.includes(name)) return;
  event.respondWith((async () => {
    try {
      const response = await fetch(event.request);
      if (response.ok) {
        const copy = response.clone();
        event.waitUntil(caches.open(CACHE).then((cache) => cache.put(name, copy)).catch(() => {}));  // it may be full
        return response;
      }
      return await caches.match(name) ?? response;
    } catch (error) {
      const known = await caches.match(name);
      if (known) return known;
      throw error;
    }
  })());
});

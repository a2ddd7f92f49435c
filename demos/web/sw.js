// The page without a network: what it once had is kept, and what the server has now is taken first where there is one.

const CACHE = "visglm-page";

// The first visit's page was there before this was; everything it is made of is asked for once more.
const PAGE = [
  "/", "/style.css", "/app.js", "/texts.js", "/worker.js", "/network.js", "/picture.js", "/prompt.js", "/tokenizer.js",
  "/runtime/ort.wasm.min.mjs", "/runtime/ort-wasm-simd-threaded.mjs", "/runtime/ort-wasm-simd-threaded.wasm",
];

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { pathname, origin, search } = new URL(event.request.url);
  // The model's files, which have their hash in the address, are kept by the worker that reads them.
  if (event.request.method !== "GET" || origin !== self.location.origin || (pathname.startsWith("/model/") && search)) return;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    try {
      const response = await fetch(event.request);
      if (response.ok) await cache.put(event.request, response.clone());
      return response;
    } catch (error) {
      const known = await cache.match(event.request);
      if (known) return known;
      throw error;
    }
  })());
});

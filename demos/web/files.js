// The model's files: from what an earlier visit has kept, or from the server; each is compared with its hash.

import { sha256 } from "./sha256.js";

const CACHE = "visglm-model", MANIFEST = "/model/light.json";

/** What went wrong, as the page can say it in its language. */
export class Problem extends Error {
  constructor(code, name = "", detail = "") {
    super(`${code}: ${name} ${detail}`);
    Object.assign(this, { code, name, detail });
  }
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const hashOf = async (content) => (
  globalThis.crypto?.subtle ? hex(await crypto.subtle.digest("SHA-256", content)) : sha256(content)
);
const addressOf = (name, { sha256: hash }) => `/model/${encodeURIComponent(name)}?${hash}`;

/** Nothing is kept where the browser refuses it, or has no room. */
class Store {
  static async open() {
    const store = new Store();
    try { store.cache = await caches.open(CACHE); } catch { store.cache = null; }
    store.hasKeptAll = store.cache !== null;
    return store;
  }

  async find(address) {
    try { return await this.cache?.match(address); } catch { return undefined; }
  }

  async keep(address, content) {
    try { await this.cache?.put(address, new Response(content)); } catch { this.hasKeptAll = false; }
  }

  async forgetOthers(addresses) {
    for (const request of await this.cache?.keys() ?? []) {
      const { pathname, search } = new URL(request.url);
      if (!addresses.has(pathname + search)) await this.cache.delete(request);
    }
  }
}

async function fetched(address, name) {
  let response;
  try { response = await fetch(address); } catch { throw new Problem("unreachable", name); }
  if (!response.ok) throw new Problem("unreachable", name, String(response.status));
  return response;
}

/** The bytes of an answer, if they are so many. */
async function read(response, name, bytes, progress) {
  const content = new Uint8Array(bytes), reader = response.body.getReader();
  let place = 0;
  for (;;) {
    let part;
    try { part = await reader.read(); } catch { throw new Problem("unreachable", name); }
    if (part.done) break;
    if (place + part.value.length > bytes) throw new Problem("damaged", name);
    content.set(part.value, place);
    progress((place += part.value.length));
  }
  if (place !== bytes) throw new Problem("damaged", name);
  return content;
}

async function file(store, name, entry, progress) {
  const address = addressOf(name, entry);
  const take = async (response) => {
    const content = await read(response, name, entry.bytes, progress);
    if (await hashOf(content) !== entry.sha256) throw new Problem("damaged", name);
    return content;
  };
  const known = await store.find(address);
  if (known) {
    try { return await take(known); } catch { progress(0); }  // damaged where it was kept: it comes again
  }
  const content = await take(await fetched(address, name));
  await store.keep(address, content);
  return content;
}

async function filesOf(store, manifest, progress) {
  if (manifest.format !== 1) throw new Problem("format", String(manifest.format));
  const entries = Object.entries(manifest.files), files = new Map();
  const total = entries.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  let before = 0;
  for (const [name, entry] of entries) {
    files.set(name, await file(store, name, entry, (done) => progress(before + done, total)));
    before += entry.bytes;
  }
  return files;
}

/** One manifest is kept, last, so that it has all its files beside it; what others had goes. */
async function settle(store, manifest) {
  await store.keep(MANIFEST, JSON.stringify(manifest));
  const addresses = Object.entries(manifest.files).map(([name, entry]) => addressOf(name, entry));
  await store.forgetOthers(new Set([MANIFEST, ...addresses]));
}

/**
 * The model that the server has now, or, where that cannot be had, the whole one of an earlier visit, with the problem.
 * @param {(done: number, total: number) => void} progress bytes.
 */
export async function fetchModel(progress) {
  const store = await Store.open();
  let problem;
  try {
    const manifest = await (await fetched(MANIFEST, "light.json")).json().catch(() => { throw new Problem("damaged", "light.json"); });
    const files = await filesOf(store, manifest, progress);
    await settle(store, manifest);
    return { manifest, files, isKept: store.hasKeptAll, problem: null };
  } catch (error) {
    problem = error;
  }
  const known = await store.find(MANIFEST);
  if (!known) throw problem;
  const manifest = await known.json(), files = await filesOf(store, manifest, progress).catch(() => { throw problem; });
  // Without a network it is what the page is for; anything else is told.
  return { manifest, files, isKept: true, problem: problem.name === "light.json" && !problem.detail ? null : problem };
}

// Everything heavy, off the page's thread: the model's files, the graphs, the loop.

import * as ort from "/runtime/ort.wasm.min.mjs";
import { Network } from "./network.js";
import { onWhite, toPixels } from "./picture.js";
import { languageOf, render, settled, tidy } from "./prompt.js";
import { Tokenizer } from "./tokenizer.js";

const CACHE = "visglm-model";
const MOST_NEW_TOKENS = 512;

ort.env.wasm.wasmPaths = "/runtime/";
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

let network, tokenizer, manifest;
let turns = [], seen = [], latest = null, language = "auto", isStopped = false;

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** A file of the model: from the cache of an earlier visit, or from the server; its hash is compared either way. */
async function file(name, { bytes, sha256 }, progress) {
  const address = `/model/${encodeURIComponent(name)}?${sha256}`;
  const cache = await caches.open(CACHE);
  const known = await cache.match(address);
  const response = known ?? await fetch(address);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  const content = new Uint8Array(bytes), reader = response.body.getReader();
  let place = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (place + value.length > bytes) throw new Error(`${name}: more than ${bytes} bytes`);
    content.set(value, place);
    place += value.length;
    progress(value.length);
  }
  if (place !== bytes || hex(await crypto.subtle.digest("SHA-256", content)) !== sha256) {
    await cache.delete(address);
    throw new Error(`${name}: it is not what was exported. Load the page again.`);
  }
  if (!known) await cache.put(address, new Response(content));
  return content;
}

async function forgetOthers(addresses) {
  const cache = await caches.open(CACHE);
  for (const request of await cache.keys()) {
    const { pathname, search } = new URL(request.url);
    if (!addresses.has(pathname + search)) await cache.delete(request);
  }
}

async function load() {
  manifest = await (await fetch("/model/light.json")).json();
  if (manifest.format !== 1) throw new Error(`the model's format is ${manifest.format}, and this page reads 1`);
  const entries = Object.entries(manifest.files);
  const total = entries.reduce((sum, [, { bytes }]) => sum + bytes, 0);
  let done = 0;
  const files = new Map();
  for (const [name, entry] of entries) {
    files.set(name, await file(name, entry, (more) => postMessage({ kind: "progress", done: (done += more), total })));
  }
  await forgetOthers(new Set(entries.map(([name, { sha256 }]) => `/model/${encodeURIComponent(name)}?${sha256}`)));
  postMessage({ kind: "starting" });
  tokenizer = new Tokenizer(files.get(manifest.tokenizer.file), manifest.tokenizer);
  network = await Network.open(ort, manifest, files);
  postMessage({ kind: "ready", total, hasEyes: manifest.pictures !== null });
}

async function ask({ question, pictures }) {
  isStopped = false;
  const started = performance.now();
  const new_seen = [];
  for (const { rgba, width, height } of pictures) {
    new_seen.push(await network.look(toPixels(onWhite(rgba), width, height, manifest.pictures)));
  }
  const asked = [...turns, { question, answer: null, pictures: pictures.length }];
  const all = [...seen, ...new_seen];
  latest = null;
  const own = language === "auto" ? languageOf(asked[0].question) : language;
  const ids = render(asked, own, manifest, tokenizer);
  const room = Math.min(MOST_NEW_TOKENS, manifest.context_length - ids.length);
  if (room < 1) {
    postMessage({ kind: "full" });
    return;
  }
  const embeds = new Float32Array(all.reduce((sum, { tokens }) => sum + tokens.length, 0));
  all.reduce((place, { tokens }) => (embeds.set(tokens, place), place + tokens.length), 0);
  const stream = tokenizer.stream(), answered = [];
  let text = "", firstToken = 0;
  for await (const id of network.answer(ids, embeds, room)) {
    firstToken ||= performance.now() - started;
    answered.push(id);
    text += stream.push(id);
    postMessage({ kind: "piece", text: settled(text, manifest) });
    await new Promise((resolve) => setTimeout(resolve)); // whoever says stop is heard between two tokens
    if (isStopped) break;
  }
  text = tidy(text + stream.finish(), manifest);
  turns = [...asked.slice(0, -1), { ...asked.at(-1), answer: text }];
  seen = all;
  language = own;
  latest = { ids, answer: [...tokenizer.encode(text), manifest.tokenizer.eos_token_id], embeds };
  const canExplain = network.hasHeat && all.length > 0 && text !== "";
  postMessage({ kind: "answer", text, ids: answered, firstToken, seconds: performance.now() - started, canExplain });
}

/** Where in the picture shown last the latest answer comes from. */
async function explain() {
  const { ids, answer, embeds } = latest;
  const found = await network.heat(ids, answer, embeds, seen.at(-1).features, seen.length - 1);
  postMessage({ kind: "heat", ...found });
}

const ACTS = {
  load,
  ask,
  explain,
  stop: () => { isStopped = true; },
  clear: () => { turns = []; seen = []; latest = null; language = "auto"; },
};

onmessage = async ({ data }) => {
  try {
    await ACTS[data.kind](data);
  } catch (error) {
    postMessage({ kind: "error", during: data.kind, message: String(error.message ?? error) });
  }
};

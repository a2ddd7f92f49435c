// Everything heavy, off the page's thread: the model's files, the graphs, the loop.

import * as ort from "/runtime/ort.wasm.min.mjs";
import { Problem, fetchModel } from "./files.js";
import { Network } from "./network.js";
import { onWhite, toPixels } from "./picture.js";
import { languageOf, render, settled, tidy } from "./prompt.js";
import { Tokenizer } from "./tokenizer.js";

const MOST_NEW_TOKENS = 512;

ort.env.wasm.wasmPaths = "/runtime/";
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

let network, tokenizer, manifest;
let turns = [], seen = [], latest = null, language = "auto", isStopped = false;

async function load() {
  const model = await fetchModel((done, total) => postMessage({ kind: "progress", done, total }));
  manifest = model.manifest;
  postMessage({ kind: "starting" });
  try {
    tokenizer = new Tokenizer(model.files.get(manifest.tokenizer.file), manifest.tokenizer);
  } catch (error) {
    throw new Problem("vocabulary", manifest.tokenizer.file, error.message);
  }
  network = await Network.open(ort, manifest, model.files);
  const problem = model.problem && told(model.problem);
  postMessage({ kind: "ready", hasEyes: manifest.pictures !== null, isKept: model.isKept, problem });
}

async function ask({ question, pictures, number }) {
  const started = performance.now();
  const new_seen = [];
  for (const { rgba, width, height } of pictures) {
    new_seen.push(await network.look(toPixels(onWhite(rgba), width, height, manifest.pictures)));
  }
  const asked = [...turns, { question, answer: null, pictures: pictures.length }];
  const all = [...seen, ...new_seen];
  const own = language === "auto" ? languageOf(asked[0].question) : language;
  const ids = render(asked, own, manifest, tokenizer);
  const room = Math.min(MOST_NEW_TOKENS, manifest.context_length - ids.length);
  if (room < 1) throw new Problem("full");
  latest = null;
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
  latest = { ids, answer: [...tokenizer.encode(text), manifest.tokenizer.eos_token_id], embeds, number };
  const canExplain = network.hasHeat && all.length > 0 && text !== "";
  postMessage({ kind: "answer", text, ids: answered, firstToken, seconds: performance.now() - started, canExplain });
}

/** Where in the picture shown last the latest answer comes from. */
async function explain() {
  const { ids, answer, embeds, number } = latest;
  const found = await network.heat(ids, answer, embeds, seen.at(-1).features, seen.length - 1);
  postMessage({ kind: "heat", number, ...found });
}

const ACTS = { load, ask, explain, clear: () => { turns = []; seen = []; latest = null; language = "auto"; } };

const told = (error) => (
  error instanceof Problem
    ? { code: error.code, name: error.name, detail: error.detail }
    : { code: "failed", name: String(error.message ?? error), detail: "" }
);

// One thing after the other; only a stop is heard in between, and holds for the question that it came after.
let before = Promise.resolve(), stops = 0;

onmessage = ({ data }) => {
  if (data.kind === "stop") {
    stops += 1;
    isStopped = true;
    return;
  }
  const known = stops;
  before = before.then(async () => {
    isStopped = stops > known;
    try {
      await ACTS[data.kind](data);
    } catch (error) {
      postMessage({ kind: "error", during: data.kind, problem: told(error) });
    }
  });
};

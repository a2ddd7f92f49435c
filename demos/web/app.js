// The page: pictures in, questions to the worker, answers out.

import { TEXTS } from "./texts.js";

const MOST_BYTES = 32 * 2 ** 20, MOST_PIXELS = 64_000_000;
const part = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);

// Storage may be refused; then the language is the browser's each time.
const recall = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* it is asked for again */ } };

let language = recall("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let say = TEXTS[language];
// Heat 0 to 1, evenly spaced: light grows with heat, so that the map reads without colour vision too.
const PALETTE = [[13, 8, 75], [110, 20, 140], [200, 60, 100], [248, 140, 50], [252, 235, 110]];
let shownLast = null;  // the picture in the conversation that a heat map lies over
let picture = null, answer = null, isReady = false, hasEyes = true, isKept = true;
let status = () => say.opening, problem = () => "";
let asked = null, number = 0;  // the question under way, and how many there were
let worker = { postMessage() {} };  // until there is one

// For whoever tests the page: what was answered, and how long it took.
window.answers = [];

/** Only where it changes: what is set anew is read aloud anew. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `visglm · ${say.title}`;
  for (const element of document.querySelectorAll("[data-text]")) write(element, say[element.dataset.text]);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say[element.dataset.label]);
  for (const element of document.querySelectorAll("[data-alt]")) element.alt = say[element.dataset.alt];
  part("language").lang = language === "zh" ? "en" : "zh-CN";
  part("question").placeholder = say.placeholder;
  write(part("privacy"), say.privacy + (isKept ? say.kept : say.notKept));
  write(part("status"), status());
  write(part("problem"), problem());
  for (const [index, name] of [...part("talk").querySelectorAll("b")].entries()) write(name, index % 2 ? say.model : say.you);
  part("talk").setAttribute("aria-busy", String(answer !== null));
  part("send").disabled = !isReady || answer !== null;
  part("send").hidden = answer !== null;
  part("stop").hidden = answer === null;
  part("shown").hidden = picture === null;
  part("pictures").hidden = !hasEyes;
}

const tell = (text) => { status = text; show(); };
const warn = (text) => { problem = text; show(); };
const inWords = ({ code, name, detail }) => say[code](name, detail);

/** To the question, unless the visitor is at something else by now. */
function goOn() {
  if ([document.body, part("stop"), part("send"), part("question")].includes(document.activeElement)) part("question").focus();
}

let chosen = 0;  // pictures, of which the one chosen last counts, whichever was opened first

async function take(file, note = () => "") {
  const own = ++chosen;
  warn(note);
  if (!hasEyes) return warn(() => say.noEyes);
  if (file.size > MOST_BYTES) return warn(() => say.tooLarge);
  let bitmap;
  try {
    // Numbers as the file has them: neither the screen's colours nor the transparency may change them.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    if (own === chosen) warn(() => say.noPicture);
    return;
  }
  if (own !== chosen) return;
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) return warn(() => say.tooLarge);
  const canvas = new OffscreenCanvas(width, height), brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.drawImage(bitmap, 0, 0);
  bitmap.close();
  drop();
  put({ rgba: brush.getImageData(0, 0, width, height).data, width, height, address: URL.createObjectURL(file) });
  part("question").focus();
}

function put(found) {
  picture = found;
  part("preview").src = picture.address;
  show();
}

function drop() {
  if (picture) URL.revokeObjectURL(picture.address);
  picture = null;
  part("preview").removeAttribute("src");
  show();
}

function add(name, text, address) {
  const turn = document.createElement("div"), title = document.createElement("b"), words = document.createElement("span");
  turn.className = name === say.you ? "turn mine" : "turn";
  title.textContent = name;
  turn.append(title);
  if (address) {
    const image = new Image();
    image.src = address;
    image.alt = say.shown;
    image.dataset.alt = "shown";
    shownLast = document.createElement("div");
    shownLast.className = "seen";
    shownLast.append(image);
    turn.append(shownLast);
  }
  words.textContent = text;
  turn.append(words);
  part("talk").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return words;
}

/** A button under the newest answer that shows where in the picture it comes from, and hides it again. */
function offerHeat(turn) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "heat";
  button.dataset.text = "heat";
  button.textContent = say.heat;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const map = shownLast.querySelector("canvas");
    if (map) {
      map.hidden = !map.hidden;
      button.setAttribute("aria-pressed", String(!map.hidden));
    } else if (button.getAttribute("aria-pressed") === "false") {  // else it is on its way
      button.setAttribute("aria-pressed", "true");
      worker.postMessage({ kind: "explain" });
    }
  });
  turn.append(button);
}

function withdrawHeat() {
  document.querySelector("button.heat")?.remove();
  shownLast?.querySelector("canvas")?.remove();
}

function draw({ heat, rows, columns }) {
  const map = document.createElement("canvas"), brush = map.getContext("2d"), pixels = new ImageData(columns, rows);
  heat.forEach((value, place) => {
    const where = value * (PALETTE.length - 1), low = Math.min(Math.floor(where), PALETTE.length - 2);
    const colour = PALETTE[low].map((part, index) => part + (PALETTE[low + 1][index] - part) * (where - low));
    pixels.data.set([...colour, 255 * 0.75 * (0.35 + 0.65 * value)], 4 * place);
  });
  [map.width, map.height] = [columns, rows];
  brush.putImageData(pixels, 0, 0);
  map.setAttribute("role", "img");
  map.setAttribute("aria-label", say.heatShown);
  map.dataset.label = "heatShown";
  shownLast.append(map);
  shownLast.scrollIntoView({ block: "nearest" });
}

function ask(event) {
  event.preventDefault();
  const typed = part("question").value, question = typed.trim() || say.placeholder;
  if (!isReady || answer) return;
  warn(() => "");
  const pictures = picture ? [{ rgba: picture.rgba, width: picture.width, height: picture.height }] : [];
  withdrawHeat();
  asked = { typed, picture, shownBefore: shownLast };
  add(say.you, question, picture?.address);
  answer = add(say.model, "…");
  part("question").value = "";
  picture = null;
  show();
  worker.postMessage({ kind: "ask", question, pictures, number: ++number });
}

/** As if it had not been asked; what was typed and shown is there again. */
function takeBack() {
  answer.parentElement.remove();
  part("talk").lastElementChild.remove();
  answer = null;
  if (!part("question").value) part("question").value = asked.typed;
  if (!picture && asked.picture) put(asked.picture);
  shownLast = asked.shownBefore;
}

function forget() {
  if (answer) return;
  worker.postMessage({ kind: "clear" });
  for (const image of part("talk").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  part("talk").replaceChildren();
  shownLast = null;
  number += 1;
  warn(() => "");
  drop();
  part("question").focus();
}

/** The worker, a new one each time, and everything that it needs. */
function start() {
  worker.terminate?.();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => HEAR[data.kind](data);
  worker.onerror = (event) => {
    const found = event.message ? { code: "failed", name: event.message } : { code: "unreachable", name: "worker.js" };
    HEAR.error({ during: answer ? "ask" : "load", problem: { detail: "", ...found } });
  };
  part("again").hidden = true;
  part("loading").hidden = false;
  part("progress").value = 0;
  warn(() => "");
  tell(() => say.opening);
  worker.postMessage({ kind: "load" });
}

// What failed → what is as before then.
const UNDO = {
  load: () => {
    part("loading").hidden = true;
    part("again").hidden = false;
    part("again").focus();
    status = () => "";
  },
  ask: () => { if (answer) takeBack(); },
  explain: () => document.querySelector("button.heat")?.setAttribute("aria-pressed", "false"),
};

const HEAR = {
  progress: ({ done, total }) => {
    part("progress").value = done / total;
    tell(() => say.loading(megabytes(done), megabytes(total)));
  },
  starting: () => { part("loading").hidden = true; tell(() => say.starting); },
  ready: (news) => {
    isReady = true;
    hasEyes = news.hasEyes;
    isKept &&= news.isKept;
    if (news.problem) problem = () => `${inWords(news.problem)}${language === "zh" ? "" : " "}${say.older}`;
    tell(() => say.ready);
    if (picture && !hasEyes) { drop(); warn(() => say.noEyes); }
    goOn();
  },
  piece: ({ text }) => { if (answer && text) answer.textContent = text; },
  answer: (news) => {
    if (news.text) answer.textContent = news.text;
    else { answer.dataset.text = "nothing"; answer.textContent = say.nothing; }
    if (news.canExplain && shownLast) offerHeat(answer.parentElement);
    answer = asked = null;
    window.answers.push(news);
    show();
    goOn();
  },
  heat: (news) => { if (news.number === number && document.querySelector("button.heat")) { window.heat = news; draw(news); } },
  error: ({ during, problem: found }) => {
    UNDO[during]?.();
    warn(() => inWords(found));
    goOn();
  },
};

part("form").addEventListener("submit", ask);
part("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
part("clear").addEventListener("click", forget);
part("again").addEventListener("click", start);
part("remove").addEventListener("click", () => { drop(); part("choose").focus(); });
part("choose").addEventListener("click", () => part("file").click());
part("photograph").addEventListener("click", () => part("camera").click());
part("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  say = TEXTS[language];
  remember("language", language);
  show();
});
for (const input of [part("file"), part("camera")]) {
  input.addEventListener("change", () => { if (input.files.length) take(input.files[0]); input.value = ""; });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && answer) worker.postMessage({ kind: "stop" }); });
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;  // it is text
  event.preventDefault();
  take(files.find(({ type }) => type.startsWith("image/")) ?? files[0]);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name !== "drop") return;
    const { files } = event.dataTransfer;
    if (files.length) take(files[0], () => (files.length > 1 ? say.onlyOne : ""));
    else warn(() => say.noFile);
  });
}

/** Whether the browser will have the page without a network. */
async function keepPage() {
  try {
    const found = await navigator.serviceWorker.register("sw.js");
    const coming = found.installing ?? found.waiting;
    if (found.active || !coming) return found.active !== null;
    return await new Promise((resolve) => {
      const look = () => {
        if (coming.state === "activated") resolve(true);
        if (coming.state === "redundant") resolve(false);  // it could not keep what it wanted
      };
      coming.addEventListener("statechange", look);
      look();
    });
  } catch {
    return false;  // refused, or the page came without https
  }
}

show();
(async () => {
  // First, so that everything the worker asks for passes it and is there without a network.
  isKept = await keepPage();
  start();
})().catch((error) => warn(() => say.failed(error.message)));

// The page: pictures in, questions to the worker, answers out.

import { TEXTS } from "./texts.js";

const MOST_BYTES = 32 * 2 ** 20, MOST_PIXELS = 64_000_000;
const part = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);

let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let say = TEXTS[language];
// Heat 0 to 1, evenly spaced: light grows with heat, so that the map reads without colour vision too.
const PALETTE = [[13, 8, 75], [110, 20, 140], [200, 60, 100], [248, 140, 50], [252, 235, 110]];
let shownLast = null;  // the picture in the conversation that a heat map lies over
let picture = null, answer = null, isReady = false, hasEyes = true, status = () => "", problem = () => "";
let worker = { postMessage() {} };  // until there is one

// For whoever tests the page: what was answered, and how long it took.
window.answers = [];

function show() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `visglm · ${say.title}`;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say[element.dataset.text];
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say[element.dataset.label]);
  for (const element of document.querySelectorAll("[data-alt]")) element.alt = say[element.dataset.alt];
  part("question").placeholder = say.placeholder;
  part("status").textContent = status();
  part("problem").textContent = problem();
  for (const [index, name] of [...part("talk").querySelectorAll("b")].entries()) name.textContent = index % 2 ? say.model : say.you;
  part("send").disabled = !isReady || answer !== null;
  part("send").hidden = answer !== null;
  part("stop").hidden = answer === null;
  part("shown").hidden = picture === null;
}

const tell = (text) => { status = text; show(); };
const warn = (text) => { problem = text; show(); };

async function take(file) {
  warn(() => "");
  if (!hasEyes) return warn(() => say.noEyes);
  if (file.size > MOST_BYTES) return warn(() => say.tooLarge);
  let bitmap;
  try {
    // Numbers as the file has them: neither the screen's colours nor the transparency may change them.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    return warn(() => say.noPicture);
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) return warn(() => say.tooLarge);
  const canvas = new OffscreenCanvas(width, height), brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.drawImage(bitmap, 0, 0);
  drop();
  picture = { rgba: brush.getImageData(0, 0, width, height).data, width, height, address: URL.createObjectURL(file) };
  part("preview").src = picture.address;
  show();
  part("question").focus();
}

function drop() {
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
    const map = shownLast.querySelector("canvas"), isShown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!isShown));
    if (map) map.hidden = isShown;
    else worker.postMessage({ kind: "explain" });
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
  const question = part("question").value.trim() || say.placeholder;
  if (!isReady || answer) return;
  warn(() => "");
  const pictures = picture ? [{ rgba: picture.rgba, width: picture.width, height: picture.height }] : [];
  withdrawHeat();
  add(say.you, question, picture?.address);
  answer = add(say.model, "…");
  part("question").value = "";
  picture = null;
  show();
  worker.postMessage({ kind: "ask", question, pictures });
}

function forget() {
  if (answer) return;
  worker.postMessage({ kind: "clear" });
  part("talk").replaceChildren();
  shownLast = null;
  warn(() => "");
  drop();
  part("question").focus();
}

const HEAR = {
  progress: ({ done, total }) => {
    part("progress").value = done / total;
    tell(() => say.loading(megabytes(done), megabytes(total)));
  },
  starting: () => { part("loading").hidden = true; tell(() => say.starting); },
  ready: (news) => { isReady = true; hasEyes = news.hasEyes; tell(() => say.ready); part("question").focus(); },
  piece: ({ text }) => { if (answer && text) answer.textContent = text; },
  answer: (news) => {
    answer.textContent = news.text;
    if (news.canExplain && shownLast) offerHeat(answer.parentElement);
    answer = null;
    window.answers.push(news);
    show();
    part("question").focus();
  },
  heat: (news) => { window.heat = news; if (document.querySelector("button.heat")) draw(news); },
  full: () => { answer.parentElement.remove(); answer = null; part("talk").lastElementChild.remove(); warn(() => say.full); },
  error: ({ message }) => {
    if (answer) { answer.parentElement.remove(); answer = null; part("talk").lastElementChild.remove(); }
    warn(() => say.failed(message));
  },
};

part("form").addEventListener("submit", ask);
part("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
part("clear").addEventListener("click", forget);
part("remove").addEventListener("click", () => { drop(); part("choose").focus(); });
part("choose").addEventListener("click", () => part("file").click());
part("photograph").addEventListener("click", () => part("camera").click());
part("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  say = TEXTS[language];
  localStorage.setItem("language", language);
  show();
});
for (const input of [part("file"), part("camera")]) {
  input.addEventListener("change", () => { if (input.files.length) take(input.files[0]); input.value = ""; });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && answer) worker.postMessage({ kind: "stop" }); });
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

show();
(async () => {
  // First, so that everything the worker asks for passes it and is there without a network.
  if ("serviceWorker" in navigator) {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
  }
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => HEAR[data.kind](data);
  worker.onerror = (event) => warn(() => say.failed(event.message ?? "worker"));
  worker.postMessage({ kind: "load" });
})().catch((error) => warn(() => say.failed(error.message)));

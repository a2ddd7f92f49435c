// What Streamlit's page does not do by itself. It changes nothing that Streamlit draws; whatever it needs to know about
// the page it reads from the keys of its containers (classes that begin with st-key-).
"use strict";

const MAIN = "[data-testid=stMain]";
const BOX = "[data-testid=stChatInputTextArea]";
const PICTURES = "[class*=st-key-shown_] img, [class*=st-key-tray_] img, [class*=st-key-heat_] img, " +
  ".sheet img";
const ACCEPTED = "image/png,image/jpeg,image/webp,image/gif,image/bmp"; // a telephone then sends a JPEG for its HEIC

// --- the newest answer in view ---------------------------------------------------------------------------------

let following = false;
let numMessages = 0;
let place = "";

const toTheEnd = () => {
  const main = document.querySelector(MAIN);
  if (following && main) main.scrollTop = main.scrollHeight;
};
const growth = new ResizeObserver(toTheEnd); // pictures load after they are drawn

function follow() {
  const messages = document.querySelectorAll("[data-testid=stChatMessage]");
  if (messages.length > numMessages || location.search !== place || document.querySelector(".said.waiting")) {
    following = messages.length > 0;
  }
  if (numMessages && !messages.length) { // another view, from its top
    following = false;
    document.querySelector(MAIN)?.scrollTo(0, 0);
  }
  [numMessages, place] = [messages.length, location.search];
  toTheEnd();
}

// Whoever moves the page has looked away from its end; whoever comes back to it looks again.
for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"]) {
  document.addEventListener(kind, (event) => {
    const main = document.querySelector(MAIN);
    const isMoving = kind !== "keydown" || ["PageUp", "PageDown", "Home", "End", "ArrowUp", "ArrowDown"].includes(event.key);
    if (main?.contains(event.target) && isMoving && !event.target.closest("[data-testid=stBottom]")) following = false;
  }, { capture: true, passive: true });
}
document.addEventListener("scroll", (event) => {
  const main = document.querySelector(MAIN);
  const isAtEnd = main && main.scrollHeight - main.scrollTop - main.clientHeight < 8;
  if (event.target === main && isAtEnd && document.querySelector(".cursor")) following = true;
}, { capture: true, passive: true });

// --- pictures pasted and dropped anywhere ----------------------------------------------------------------------

const filesOf = (transfer) => [...(transfer?.files ?? [])];

// To the box to write in, or where there is none to the view's own uploader.
function take(files) {
  const transfer = new DataTransfer();
  files.forEach((file) => transfer.items.add(file));
  const box = document.querySelector(BOX);
  if (box) {
    box.focus();
    box.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
    return true;
  }
  const input = document.querySelector(`${MAIN} [data-testid=stFileUploaderDropzoneInput]`);
  if (input) {
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }
  return Boolean(input);
}

document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (files.length && !event.target.closest?.("[data-testid=stChatInput]") && take(files)) event.preventDefault();
});
const isOverDropzone = (event) =>
  event.target.closest?.("[data-testid=stChatInput], [data-testid=stFileUploader], [data-testid=stBottom]");
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); // else the browser leaves the page
});
document.addEventListener("drop", (event) => {
  const files = filesOf(event.dataTransfer);
  if (!files.length) return;
  event.preventDefault();
  if (!isOverDropzone(event)) take(files);
});

// --- a picture in full size ------------------------------------------------------------------------------------

function enlarge(picture) {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  const large = new Image();
  [large.src, large.alt] = [picture.src, picture.alt];
  dialog.append(large);
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { dialog.remove(); picture.focus(); });
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  if (event.target.matches?.(PICTURES)) enlarge(event.target);
});

// --- keys --------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  const isWriting = event.target.matches?.("input, textarea, [contenteditable]");
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    document.querySelector(".st-key-stop button, .st-key-teach_stop button")?.click();
  } else if (event.key === "/" && !isWriting && document.querySelector(BOX)) {
    event.preventDefault();
    document.querySelector(BOX).focus();
  } else if (["Enter", " "].includes(event.key) && event.target.matches?.(PICTURES)) {
    event.preventDefault();
    enlarge(event.target);
  }
});

// --- what each drawing of the page needs anew -------------------------------------------------------------------

const spoken = document.createElement("div"); // read aloud once the answer is whole
spoken.setAttribute("aria-live", "polite");
spoken.className = "unseen";
let isAnswering = false;
const noticed = new WeakSet();

function attend() {
  follow();
  for (const notice of document.querySelectorAll(".notice")) {
    if (!noticed.has(notice)) notice.scrollIntoView({ block: "center" });
    noticed.add(notice);
  }
  for (const quote of document.querySelectorAll(".quoted")) { // what a source says, once it is shown
    if (!noticed.has(quote)) quote.scrollIntoView({ block: "center" });
    noticed.add(quote);
  }
  for (const picture of document.querySelectorAll(PICTURES)) {
    if (picture.tabIndex !== 0) [picture.tabIndex, picture.role] = [0, "button"];
  }
  for (const input of document.querySelectorAll("[data-testid=stChatInput] input[type=file], " +
    `${MAIN} [data-testid=stFileUploaderDropzoneInput]`)) {
    const isForDocuments = input.closest("[class*=st-key-library_upload_]") !== null;
    if (!isForDocuments && input.accept !== ACCEPTED) input.accept = ACCEPTED;
  }
  const language = document.querySelector("[data-language]")?.dataset.language;
  if (language && document.documentElement.lang !== language) document.documentElement.lang = language;
  const blocks = document.querySelector(`${MAIN} [data-testid=stMainBlockContainer]`);
  if (blocks && blocks !== attend.watched) {
    attend.watched = blocks;
    growth.disconnect();
    growth.observe(blocks);
  }
  const answering = document.querySelector(".cursor") !== null;
  if (isAnswering && !answering) spoken.textContent = [...document.querySelectorAll(".said")].at(-1)?.innerText ?? "";
  isAnswering = answering;
}

document.addEventListener("DOMContentLoaded", () => document.body.append(spoken));
let isPlanned = false;
new MutationObserver(() => {
  if (isPlanned) return;
  isPlanned = true;
  requestAnimationFrame(() => { isPlanned = false; attend(); });
}).observe(document.documentElement, { childList: true, subtree: true, characterData: true });

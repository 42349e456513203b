/** The page: makes a card of each photo that is chosen, dropped, pasted or taken. */

import * as camera from "./camera.js";
import { PredictError, TokenNeeded, predict } from "./predict.js";

const MAX_CONCURRENT = 3;
const MAX_CLASSES_SHOWN = 5;
const MAX_ANNOUNCEMENTS = 30;
const TOKEN_KEY = "mask_ray.token";

const byId = (id) => document.getElementById(id);

// Newest photos first, as on the page.
let cards = [];
let numSending = 0;
// While true, cards wait for the user to enter a token.
let isTokenWanted = false;

class Card {
  constructor(photo) {
    this.photo = photo;
    this.name = photo.name || "pasted picture";
    this.element = byId("card-template").content.firstElementChild.cloneNode(true);
    this.part("h3").textContent = this.name;
    this.showThumbnail();
    this.part(".remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.part(".remove").addEventListener("click", () => remove(this));
    this.part(".retry").setAttribute("aria-label", `Try ${this.name} again`);
    this.part(".retry").addEventListener("click", () => retry(this));
    this.setState("waiting", "Waiting");
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  showThumbnail() {
    const image = this.part("img");
    this.url = URL.createObjectURL(this.photo);
    image.addEventListener("error", () => {
      image.hidden = true;
      this.part(".no-preview").hidden = false;
    });
    image.src = this.url;
  }

  setState(state, text) {
    this.state = state;
    this.element.className = `card is-${state}`;
    this.part(".state").textContent = text;
    this.part(".state").hidden = !text;
    this.part(".retry").hidden = state !== "failed";
  }

  showPrediction({ label, probability, probabilities, model, elapsedMs }) {
    const ranked = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
    // The row of the label is the headline. Without one, as for uncertain, the label stands alone.
    this.setState("done", label in probabilities ? "" : words(label));
    const shown = ranked.slice(0, MAX_CLASSES_SHOWN);
    this.part(".classes").replaceChildren(...shown.map((entry) => classRow(...entry, label)));
    this.part(".classes").hidden = false;
    const more = ranked.length - shown.length;
    const facts = [duration(elapsedMs), modelName(model), ...(more > 0 ? [`${more} more classes`] : [])];
    this.part(".meta").textContent = facts.join(" · ");
    this.part(".meta").hidden = false;
    announce(`${this.name}: ${words(label)}, ${percent(probability)}`);
  }

  showFailure(detail) {
    this.setState("failed", detail);
    announce(`${this.name} failed: ${detail}`);
  }
}

function classRow(name, probability, label) {
  const row = document.createElement("div");
  row.className = name === label ? "class is-label" : "class";
  row.style.setProperty("--share", `${probability * 100}%`);
  const term = document.createElement("dt");
  term.textContent = words(name);
  const value = document.createElement("dd");
  value.textContent = percent(probability);
  row.append(term, value);
  return row;
}

const words = (name) => name.replaceAll("_", " ");

/** Never rounded to 0 or 100: no classifier is that sure. */
function percent(probability) {
  if (probability > 0.9995) return "> 99.9 %";
  if (probability < 0.0005) return "< 0.1 %";
  return `${(probability * 100).toFixed(1)} %`;
}

function duration(milliseconds) {
  return milliseconds < 1000
    ? `${Math.round(milliseconds)} ms`
    : `${(milliseconds / 1000).toFixed(1)} s`;
}

function modelName(model) {
  if (!model?.name) return "unnamed model";
  return model.version == null ? model.name : `${model.name}, version\u00a0${model.version}`;
}

function add(files) {
  if (!files.length) return;
  byId("notice").hidden = true;
  const photos = files.filter(isPhoto);
  const others = files.filter((file) => !isPhoto(file)).map(({ name }) => name);
  if (others.length) warn(`${listed(others)} Photos are ${byId("formats").dataset.names}.`);
  const added = Array.from(photos, (photo) => new Card(photo));
  cards = [...added, ...cards];
  byId("cards").prepend(...added.map((card) => card.element));
  pump();
}

/** Whether to send it: a browser does not know the type of every photo. */
function isPhoto({ type }) {
  return !type || type.startsWith("image/") || type === "application/octet-stream";
}

function listed(names) {
  if (names.length === 1) return `${names[0]} is not a photo.`;
  const more = names.length > 3 ? ` and ${names.length - 3} more` : "";
  return `${names.slice(0, 3).join(", ")}${more} are not photos.`;
}

function remove(card) {
  const index = cards.indexOf(card);
  discard(card);
  cards.splice(index, 1);
  // Otherwise focus falls back to the top of the document.
  const next = cards[index] ?? cards[index - 1];
  (next?.part(".remove") ?? byId("files")).focus();
  pump();
}

function clear() {
  cards.forEach(discard);
  cards = [];
  byId("files").focus();
  pump();
}

function discard(card) {
  card.controller?.abort();
  URL.revokeObjectURL(card.url);
  card.element.remove();
}

function retry(card) {
  card.setState("waiting", "Waiting");
  card.part(".remove").focus();
  pump();
}

/** Send waiting cards, a few at a time, and update the summary. */
function pump() {
  while (!isTokenWanted && numSending < MAX_CONCURRENT) {
    const card = cards.find(({ state }) => state === "waiting");
    if (!card) break;
    classify(card);
  }
  showSummary();
}

async function classify(card) {
  numSending += 1;
  const token = sessionStorage.getItem(TOKEN_KEY);
  card.controller = new AbortController();
  try {
    const prediction = await predict(card.photo, {
      token,
      signal: card.controller.signal,
      onSend: () => card.setState("sending", "Classifying"),
      onBusy: (waitS) =>
        card.setState("sending", `The server is busy. Trying again in ${Math.ceil(waitS)} s.`),
    });
    card.showPrediction(prediction);
  } catch (error) {
    showError(card, error, token);
  } finally {
    numSending -= 1;
    pump();
  }
}

function showError(card, error, token) {
  if (card.controller.signal.aborted) return;
  if (error instanceof TokenNeeded) {
    card.setState("waiting", "Waiting for the token");
    askForToken(token);
  } else if (error instanceof PredictError) {
    card.showFailure(error.message);
  } else {
    card.showFailure("The page failed on this photo.");
    throw error;
  }
}

/** @param {string | null} rejected the token that was sent */
function askForToken(rejected) {
  // Several cards call this at once, some after a new token was entered.
  if (isTokenWanted || rejected !== sessionStorage.getItem(TOKEN_KEY)) return;
  isTokenWanted = true;
  sessionStorage.removeItem(TOKEN_KEY);
  const hint = byId("token-hint");
  hint.classList.toggle("is-refusal", Boolean(rejected));
  hint.textContent = rejected
    ? "The server rejected that token. Please check it."
    : "It stays in this tab until you close it.";
  byId("token-form").hidden = false;
  byId("token").value = "";
  byId("token").focus();
}

function takeToken(event) {
  event.preventDefault();
  const token = byId("token").value.trim();
  // No other characters are allowed in a header.
  if (!/^[\x21-\x7e]+$/.test(token)) {
    byId("token-hint").textContent = "A token consists of letters, digits and signs, without spaces.";
    return;
  }
  sessionStorage.setItem(TOKEN_KEY, token);
  isTokenWanted = false;
  byId("token-form").hidden = true;
  byId("clear").focus();
  pump();
}

function showSummary() {
  const count = (...states) => cards.filter(({ state }) => states.includes(state)).length;
  const num = cards.length;
  const [done, failed, open] = [count("done"), count("failed"), count("waiting", "sending")];
  const parts = [`${num} ${num === 1 ? "photo" : "photos"}`, `${done} classified`];
  if (failed) parts.push(`${failed} failed`);
  if (open) parts.push(`${open} waiting`);
  byId("summary").textContent = parts.join(" · ");
  byId("results").hidden = num === 0;
  // Room for the cards.
  document.querySelector("main").classList.toggle("has-results", num > 0);
}

function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  const log = byId("announcements");
  log.append(line);
  if (log.children.length > MAX_ANNOUNCEMENTS) log.firstElementChild.remove();
}

function warn(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
}

function takeFiles({ target }) {
  add([...target.files]);
  // So that choosing the same file again is a change.
  target.value = "";
}

function openCamera() {
  byId("notice").hidden = true;
  if (camera.isSupported) {
    camera.open((photo) => add([photo]), warn);
  } else {
    // A phone opens its camera app, a computer a file dialog.
    byId("capture").click();
  }
}

function paste(event) {
  if (event.target.closest("#token")) return;
  const photos = [...event.clipboardData.files];
  if (photos.length) {
    event.preventDefault();
    add(photos);
  } else {
    warn("There is no picture in the clipboard. Copy an image, not its address, and paste again.");
  }
}

async function drop(event) {
  event.preventDefault();
  setDropping(false);
  // Entries must be read before the first await, which empties the event.
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  const files = [...event.dataTransfer.files];
  const hasFolders = entries.some((entry) => entry?.isDirectory);
  const photos = hasFolders ? (await Promise.all(entries.map((entry) => filesOf(entry)))).flat() : files;
  add(photos);
  if (!photos.length) warn("The dropped files and folders contain no photos.");
}

/** The file of an entry, or all images of a folder and its sub-folders. */
async function filesOf(entry, isInside = false) {
  if (entry?.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return isInside && !file.type.startsWith("image/") ? [] : [file];
  }
  if (!entry?.isDirectory) return [];
  const inside = await entriesOf(entry.createReader());
  return (await Promise.all(inside.map((child) => filesOf(child, true)))).flat();
}

/** All entries, sorted by name. A reader returns a few at a time, in any order, and none at the end. */
async function entriesOf(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all.sort((a, b) => a.name.localeCompare(b.name));
    all.push(...some);
  }
}

function setDropping(isDropping) {
  document.body.classList.toggle("is-dropping", isDropping);
}

byId("files").addEventListener("change", takeFiles);
byId("capture").addEventListener("change", takeFiles);
byId("open-camera").addEventListener("click", openCamera);
byId("clear").addEventListener("click", clear);
byId("token-form").addEventListener("submit", takeToken);
document.addEventListener("paste", paste);
document.addEventListener("drop", drop);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  setDropping(event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => {
  // Without a related element the pointer leaves the window, not just an element.
  if (!event.relatedTarget) setDropping(false);
});

// The page around the explorer: what the reader asks for goes to the worker, its steps go to the explorer.

import { InputError, checkSettings, prepare, readLink, tokenOf, writeLink } from "./settings.js";
import { Tokenizer } from "./tokenizer.js";

const MAX_TABS = 8; // earlier runs are kept until then
const COPIED_FOR = 2000; // milliseconds

const byId = (id) => document.getElementById(id);
const contentOf = (id) => JSON.parse(byId(id).textContent);
const asUrl = (script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" }));

const { config, tensors, tokenizer: spec, defaults, isChat } = contentOf("model");
const sources = contentOf("sources");
const tokenizer = new Tokenizer(spec);
const pieces = tokenizer.tokens.map((_, id) => tokenizer.textOf(id));
const form = byId("ask");
const runs = []; // { id, index in the explorer, settings, prepared, rows: what the explorer was given }
let explorer = null;
let isWriting = false;
let nextId = 0;

// ------------------------------------------------------------------------------------------------------- the form

const FIELDS = ["text", "steps", "length", "seed", "temperature", "topP"];

function readForm() {
  const given = Object.fromEntries(FIELDS.map((name) => [name, form.elements.namedItem(name).value]));
  return checkSettings(given);
}

function fillForm(settings) {
  for (const name of FIELDS) form.elements.namedItem(name).value = settings[name] ?? "";
}

function say(sentence, isProblem = false) {
  const status = byId("status");
  status.textContent = sentence;
  status.classList.toggle("problem", isProblem);
}

// Runs an action and shows an InputError as one sentence.
function guarded(action) {
  return (...given) => {
    try {
      action(...given);
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      say(error.message, true);
      explorer?.say("");
    }
  };
}

function showWriting(value) {
  isWriting = value;
  byId("write").hidden = value;
  byId("stop").hidden = !value;
}

// ------------------------------------------------------------------------------------------------------- runs

// The text of every given position, "" where the model writes. A character of several tokens comes with its last one.
function knownTexts(ids, mask) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const textOf = (id) => decoder.decode(tokenizer.bytesOf(id), { stream: true });
  return ids.map((id, i) => (mask[i] || tokenizer.special.has(id) ? "" : textOf(id)));
}

// Opens a tab for a run. rows: steps that it shares with `parent`, the run it is compared with; null for a new text.
function openRun(settings, prepared, name, rows, parent) {
  const positions = [...prepared.mask.keys()].filter((i) => prepared.mask[i]);
  const run = { id: nextId++, settings, prepared, positions, rows };
  const given = {
    name,
    note: "",
    steps: settings.steps,
    first: 0,
    positions,
    known: knownTexts(prepared.ids, prepared.mask),
    pieces,
    end: [config.eos_token_id],
    pad: [config.pad_token_id],
    reward: null,
    before: "",
    gain: "",
    pins: settings.pins.map(({ position, from, text }) => ({ position, step: from, token: text })),
    growing: true,
    ...columnsOf(rows),
  };
  if (explorer === null || runs.length === MAX_TABS) {
    explorer?.destroy();
    runs.length = 0;
    worker.postMessage({ type: "forget", except: parent?.id });
    explorer = explore(byId("explorer"), { runs: [given] }, { actor, tour: false });
    run.index = 0;
  } else {
    run.index = explorer.addRun(given, { beside: parent?.index ?? null });
  }
  runs.push(run);
  showWriting(true);
  showRun(run);
  return run;
}

// Link and line of pins belong to the run that is shown.
function showRun({ settings }) {
  const words = settings.pins.map(({ from, text }) => `“${text.trim()}” from step ${from + 1}`);
  byId("pins").textContent = words.length ? `Held by hand: ${words.join(", ")}.` : "";
  history.replaceState(null, "", writeLink(settings));
}

function columnsOf(rows) {
  const joined = (name) => rows.flatMap((row) => row[name]);
  const names = ["tokens", "sure", "counts", "top", "p", "entropy", "alpha_bar", "drawn", "noisy"];
  return Object.fromEntries(names.map((name) => [name, joined(name)]));
}

// One step of the worker as the explorer's columns.
function rowOf(step, positions) {
  const kept = step.topIds.length / positions.length; // candidates per position
  const bytes = (values, scale) => Array.from(values, (value) => Math.min(255, Math.round(value * scale)));
  return {
    tokens: positions.map((position) => step.tokens[position]),
    sure: positions.map((_, row) => Math.round(step.topP[row * kept] * 255)),
    counts: positions.map(() => kept),
    top: Array.from(step.topIds),
    p: bytes(step.topP, 255),
    entropy: bytes(step.entropy, 16),
    alpha_bar: [step.alphaBar],
    drawn: bytes(step.tokenP, 255),
    noisy: Array.from(step.noisyTokens),
  };
}

function writeText(settings) {
  const prepared = prepare(settings, tokenizer, config, isChat);
  fillForm(settings);
  const text = settings.text.trim();
  const name = text.length > 24 ? `${text.slice(0, 24).replace(/\s+\S*$/, "")} …` : text;
  const run = openRun(settings, prepared, `${name} · ${settings.seed}`, [], null);
  const { ids, mask, times, pins } = prepared;
  const { topP, temperature, seed } = settings;
  worker.postMessage({ type: "run", run: run.id, ids, mask, times, pins, topP, temperature, seed });
  say("Writing …");
}

// What a reader typed as a token for a place: with a space before it where the place's present token has one.
function typedToken(parent, step, position, text) {
  const row = parent.rows[step];
  const m = parent.positions.indexOf(position);
  const isSpaced = pieces[row.tokens[m]].startsWith(" ");
  return tokenOf(tokenizer, isSpaced ? ` ${text.trim()}` : text);
}

const actor = {
  whatIf: guarded(({ run: index, step, position, token: clicked, text }) => {
    const parent = runs[index];
    const token = clicked ?? typedToken(parent, step, position, text);
    const pins = parent.settings.pins.filter((pin) => pin.position !== position || pin.from < step);
    const settings = { ...parent.settings, pins: [...pins, { position, from: step, text: pieces[token] }] };
    const prepared = prepare(settings, tokenizer, config, isChat);
    const name = `“${pieces[token].trim() || "␣"}” at step ${step + 1}`;
    const run = openRun(settings, prepared, name, parent.rows.slice(0, step), parent);
    worker.postMessage({ type: "branch", run: run.id, parent: parent.id, from: step, pins: prepared.pins });
    say(`Writing on from step ${step + 1} …`);
    explorer.say("");
  }),
  why({ run: index, step, position }) {
    if (isWriting) {
      explorer.say("Ask again when the text is written.");
      return;
    }
    const run = runs[index];
    const token = run.rows[step].tokens[run.positions.indexOf(position)];
    worker.postMessage({ type: "why", run: run.id, step, position, token });
  },
  stop() {
    worker.postMessage({ type: "stop" });
  },
};

// ------------------------------------------------------------------------------------------------------- the worker

const answers = {
  ready: guarded(() => {
    say("");
    openFromLink();
  }),
  step({ run: id, step }) {
    const run = runs.find((one) => one.id === id);
    if (!run) return; // its tab is gone
    const row = rowOf(step, run.positions);
    run.rows.push(row);
    explorer.addStep(run.index, row);
  },
  end({ run: id, isWhole, secondsPerStep }) {
    const run = runs.find((one) => one.id === id);
    if (!run) return;
    const made = run.rows.length;
    explorer.endRun(run.index, { note: isWhole ? "" : `Stopped after ${made} of ${run.settings.steps} steps.` });
    if (run !== runs.at(-1)) return; // another run is being written
    showWriting(false);
    const speed = (1 / secondsPerStep).toFixed(1);
    if (isWhole && run.id === 0) explorer.offerTour(); // once the first text is written
    say(isWhole ? `Done, ${speed} steps per second.` : `Stopped after step ${made} of ${run.settings.steps}.`);
  },
  asked({ done, all }) {
    explorer.say(`Hiding each word in turn: ${done} of ${all} …`, true);
  },
  because({ run: id, step, position, weights }) {
    const run = runs.find((one) => one.id === id);
    if (run) explorer.addWhy(run.index, { step, position, weights, unit: "nats" });
  },
  unanswered() {
    explorer.say("");
  },
  failed({ sentence }) {
    showWriting(false);
    say(sentence, true);
  },
};

const worker = new Worker(asUrl(sources.engine));
worker.onmessage = ({ data: { type, ...answer } }) => answers[type](answer);
worker.onerror = () => answers.failed({ sentence: "This browser cannot run the model; try a newer one." });

function loadModel() {
  const text = byId("weights").textContent;
  const binary = atob(text.trim());
  const weights = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) weights[i] = binary.charCodeAt(i);
  byId("weights").remove(); // a copy that nobody needs any more
  worker.postMessage({ type: "load", config, tensors, weights: weights.buffer }, [weights.buffer]);
}

// ------------------------------------------------------------------------------------------------------- the reader

const start = guarded((settings) => writeText(settings));

function openFromLink() {
  fillForm(defaults);
  const linked = readLink(location.hash, { ...defaults, pins: [] });
  if (linked) fillForm(linked);
  start(linked ? checkSettings(linked) : { ...defaults, pins: [] });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(() => start(readForm()))();
});
byId("again").addEventListener("click", guarded(() => {
  form.elements.seed.value = Math.floor(Math.random() * 1e6);
  start(readForm());
}));
byId("stop").addEventListener("click", () => actor.stop());
form.elements.text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
for (const button of document.querySelectorAll("[data-try]")) {
  button.addEventListener("click", () => {
    form.elements.text.value = button.dataset.try;
    form.requestSubmit();
  });
}
byId("share").addEventListener("click", async () => {
  const { label } = byId("share").dataset;
  try {
    await navigator.clipboard.writeText(location.href);
    byId("share").textContent = "Link copied";
  } catch {
    byId("link").value = location.href; // no clipboard: on a page opened from a file, say
    byId("link").hidden = false;
    byId("link").select();
  }
  setTimeout(() => (byId("share").textContent = label), COPIED_FOR);
});
byId("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
});
byId("explorer").addEventListener("t2-change", ({ detail }) => {
  if (runs[detail.run]) showRun(runs[detail.run]);
});
window.addEventListener("hashchange", guarded(openFromLink));

const { explore } = await import(asUrl(sources.explorer));
loadModel();

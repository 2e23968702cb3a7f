// What a run is made from, how a link holds it, and the sentences that refuse what cannot be run.

import { timesOf } from "./schedule.js";

// Says to the reader, in one sentence, what was given, what is accepted and what to do.
export class InputError extends Error {}

const NUMBERS = {
  steps: { least: 1, most: 200, isWhole: true, label: "Steps" },
  length: { least: 1, most: Infinity, isWhole: true, label: "Length" },
  seed: { least: 0, most: 2 ** 32 - 1, isWhole: true, label: "Seed" },
  topP: { least: 0.01, most: 1, isWhole: false, label: "Top-p" },
  temperature: { least: 0.1, most: 3, isWhole: false, label: "Temperature" },
};

// Names in the link, which are part of the page's interface: links that were shared must stay readable.
const LINK_NAMES = { text: "text", steps: "steps", length: "length", seed: "seed", topP: "p", temperature: "t" };
const MAX_PINS = 64;
const MAX_CHARACTERS = 4000; // more than any context of the bundled models holds

function checkNumber(name, value) {
  const { least, most, isWhole, label } = NUMBERS[name];
  const number = typeof value === "string" && value.trim() === "" ? NaN : Number(value);
  if (number >= least && number <= most && (!isWhole || Number.isInteger(number))) return number;
  const kind = isWhole ? "a whole number" : "a number";
  const range = most === Infinity ? `of ${least} or more` : `from ${least} to ${most}`;
  throw new InputError(`${label} is “${String(value).slice(0, 20)}”; give ${kind} ${range}.`);
}

// Settings as a form or a link gives them (strings) → checked. topP "" means: take the likeliest word.
export function checkSettings(given) {
  const settings = { text: String(given.text), pins: given.pins ?? [] };
  const { length } = settings.text;
  if (length > MAX_CHARACTERS) {
    throw new InputError(`The text has ${length} characters and may have ${MAX_CHARACTERS}; shorten the text.`);
  }
  for (const name of Object.keys(NUMBERS)) {
    const isGreedy = name === "topP" && (given.topP === "" || given.topP === null);
    settings[name] = isGreedy ? null : checkNumber(name, given[name]);
  }
  return settings;
}

export function writeLink(settings) {
  const link = new URLSearchParams();
  for (const [name, key] of Object.entries(LINK_NAMES)) link.set(key, settings[name] ?? "");
  for (const { position, from, text } of settings.pins) link.append("pin", `${position}@${from}:${text}`);
  return `#${link}`;
}

// What a link holds, with defaults for what it does not say; null for a link that holds nothing.
export function readLink(hash, defaults) {
  const link = new URLSearchParams(hash.replace(/^#/, ""));
  if (![...Object.values(LINK_NAMES), "pin"].some((key) => link.has(key))) return null;
  const settings = { ...defaults };
  for (const [name, key] of Object.entries(LINK_NAMES)) {
    if (link.has(key)) settings[name] = link.get(key);
  }
  settings.pins = link.getAll("pin").map((pin) => {
    const parts = /^(\d{1,6})@(\d{1,6}):([^]{1,60})$/.exec(pin);
    if (!parts) throw new InputError(`The link pins “${pin.slice(0, 30)}”; a pin is written position@step:word.`);
    return { position: Number(parts[1]), from: Number(parts[2]), text: parts[3] };
  });
  if (settings.pins.length > MAX_PINS) {
    throw new InputError(`The link pins ${settings.pins.length} words; at most ${MAX_PINS} can be pinned.`);
  }
  return settings;
}

// The one token that a text is, spelled as given or with the space before it that most words carry.
export function tokenOf(tokenizer, text) {
  for (const spelled of [text, ` ${text.trim()}`, text.trim()]) {
    const exact = tokenizer.tokens.findIndex((_, id) => tokenizer.textOf(id) === spelled);
    if (exact >= 0) return exact;
    const ids = tokenizer.encode(spelled);
    if (ids.length === 1) return ids[0];
  }
  throw new InputError(`“${text.slice(0, 30)}” is not one word of this model's vocabulary; choose another word.`);
}

// Python's str.strip: JavaScript's trim also takes U+FEFF and leaves the separators U+001C … U+001F and U+0085.
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const strip = (text) => text.replace(new RegExp(`^${SPACE}+|${SPACE}+$`, "gu"), "");

// A question up to where the assistant speaks, as tess2lite/chat_template.py has it.
export function chatPrompt(question) {
  return `<|user|>\n${strip(question)}\n<|assistant|>\n`;
}

// Settings → what the sampler runs on: ids, mask, times, pins with ids. Blanks (_) ask for infilling, but not in a chat.
export function prepare(settings, tokenizer, config, isChat) {
  const { bos_token_id: bos, pad_token_id: pad, max_position_embeddings: context } = config;
  if (!strip(settings.text)) throw new InputError("The text is empty; give at least one word to start from.");
  if (/\p{Surrogate}/u.test(settings.text)) {
    throw new InputError("The text contains half a character (an unpaired surrogate); type that word again.");
  }
  let { ids, mask } = isChat
    ? tokenizer.encodeChat(chatPrompt(settings.text), bos)
    : tokenizer.encodeBlanks(settings.text, bos, pad);
  const isInfilling = mask.includes(true);
  const known = ids.length;
  const needed = known + (isInfilling ? 0 : 1);
  if (needed > context) {
    throw new InputError(`The text is ${known} tokens long and this model reads ${context} in all; shorten the text.`);
  }
  if (!isInfilling) {
    const room = context - known;
    if (settings.length > room) {
      throw new InputError(
        `Length is ${settings.length}, but after ${known} tokens of text only ${room} of ${context} are left; give at most ${room}.`,
      );
    }
    ids = [...ids, ...Array(settings.length).fill(pad)];
    mask = [...mask, ...Array(settings.length).fill(true)];
  }
  const pins = settings.pins.map(({ position, from, text }) => {
    if (!mask[position] || from >= settings.steps) {
      throw new InputError(`The link pins “${text.slice(0, 30)}” where this run writes nothing; remove that pin.`);
    }
    return { position, from, token: tokenOf(tokenizer, text) };
  });
  const times = timesOf(config, settings.steps);
  return { ids, mask, times, pins, isInfilling };
}

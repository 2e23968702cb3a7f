/* The explorer: how a text came out of noise. One ES module: no framework, no build step, no network.

Three lives, one drawing:
  recorded   explore(element, data)                          exported pages, notebooks without a kernel, the site
  kernel     export default { render({ model, el }) }        the front end of an anywidget
  live page  explore(element, data, { actor })               answers come from a worker in the same page

DATA CONTRACT (everything is JSON; tess2lite/viz/explorer.py makes it from trajectories)

data = { runs: [Run, …], beside?: [i, j] (compare these two at first sight), tour?: false (never open the tour) }

Run = {
  name       string; the tab's label
  note       string; one sentence under the text, "" for none
  steps      how many steps the whole run has
  growing    optional, true: its steps are still to come (endRun says that they came)
  first      index of the first recorded step (0 unless the run began in the middle)
  positions  [M] positions that the model writes, rising
  known      [L] strings: the text of each given position, "" where the model writes
  pieces     [strings]: the texts of tokens. Every id below is an index of this list. A byte that is not a whole
             character is the code unit U+DC00 + byte; the explorer joins such bytes to the character they spell
  end, pad   [ids] that end the text; that fill what follows
  …and S recorded steps, each column either a plain array or base64 of little-endian numbers:
  tokens     S·M ids       drawn at each step                  (16 bit up to 65,536 pieces, else 32 bit)
  sure       S·M 0…255     probability of the first choice · 255            (8 bit)
  detailed   [s, …] or absent: those of the S steps (0 … S−1) whose candidates are kept; absent: all, D = S
  counts     D·M           how many candidates are kept for this cell       (8 bit)
  top        Σcounts ids   the candidates, falling in probability           (like tokens)
  p          Σcounts 0…255 their probabilities · 255                        (8 bit)
  entropy    S·M           nats of the belief · 16; "" where it was left out  (8 bit)
  alpha_bar  [S]           share of signal in the page that each step read
  reward     [S] or null   what a reward model says of each prediction
  before     S·M ids       first choice before guidance; "" without guidance  (like tokens)
  gain       S·M           what guidance added to the first choice's log-probability, nats · 100   (signed 16 bit)
  drawn      S·M 0…255     optional: probability of the drawn token · 255                           (8 bit)
  noisy      S·M ids       optional: the likeliest token of the noisy page that was read           (like tokens)
  pins       [{position, step (index), token (text), until? (index)}]   optional: words written by hand
  why        [{step (index), position, weights: [one per position, length L], unit: "nats"}]   optional
  voices     [{name, text, reward, passes: how often a network was run, unchosen: [rewards]}]   optional: final texts that
             answer the same prompt, to compare with; those without a run of their own have no tab
}

explore(element, data, options) → handle. options: { actor, tour, controls }.
controls: { fields: [{ name, label, kind: "area" | "text" | "number" | "choice", value, choices?: [[label, value]], min?, max?,
step?, for?: [choices of the field "action" that read it] }], says: label of the button }; pressed, it calls actor.go.
actor (where there is something that can run the model; all optional):
  whatIf({ run, step, position, token })  write this token (an id of the run's pieces) there from step (index) on
  whatIf({ run, step, position, text })   the same with what the reader typed
  why({ run, step, position })            its answer goes to handle.addWhy(run, entry)
  go({ values, run, step, position })     the form's values, and what is held
  stop()
handle: addRun(run, { beside }) → its index (S may be 0), shown beside the run of that index (by default the shown one,
null for none); addStep(i, step) with the columns of one step (S = 1, plain arrays) and
optionally pieces: [strings to append]; endRun(i, { note }); addWhy(i, entry); addVoices(i, voices), all of them, which are
shown at once; say(sentence, busy);
fail(sentence), which hides the old pictures; view(name);
offerTour() opens the tour for a reader who never saw it; destroy().
explore dispatches "t2-change" on the element with detail { run, step, position } whenever one of them changes.
*/

const STYLE = `
:host { display: block; max-width: 860px; container-type: inline-size; text-align: start }
.shell { --paper: #fffdf8; --ink: #16181d; --soft: #5c6068; --pale: #686a70; --line: #dedbd2; --wash: #f3f0e8; --zero: #efebe1;
  --held: #00716b; --held-wash: #d9f3f0; --hand: #a84300; --hand-wash: #fff0e3; --curve2: #5a4fcf;
  --label: 12.5px/1.45 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --story: 17.5px/30px Charter, "Bitstream Charter", "Iowan Old Style", Georgia, "Liberation Serif", "DejaVu Serif", serif;
  color: var(--ink); font: var(--label); font-variant-numeric: tabular-nums }
.x { --gut: 204px; box-sizing: border-box; position: relative; display: grid; height: 560px; overflow: hidden;
  grid-template: "head head" 36px "text card" 284px "bar bar" 58px "below below" minmax(0, 1fr) / minmax(0, 1fr) 284px;
  background: var(--paper); border: 1px solid var(--line); border-radius: 10px }
.shell[data-theme=dark] { color-scheme: dark; --paper: #15171b; --ink: #f4f1ea; --soft: #a9adb6; --pale: #9aa0aa; --line: #33373f;
  --wash: #1e2127; --zero: #23272e; --held: #4fd1c5; --held-wash: #0f3532; --hand: #ffa25f; --hand-wash: #3b230f;
  --curve2: #a9a1ff }
.shell *, .shell *::before, .shell *::after { box-sizing: border-box }
.shell [hidden] { display: none !important }
button, select, input { font: inherit; color: inherit }
button { background: none; border: 1px solid var(--line); border-radius: 6px; padding: 2px 8px; cursor: pointer }
button:hover:not(:disabled) { background: var(--wash) }
button:disabled { cursor: default; color: var(--soft) }
:focus-visible { outline: 2px solid var(--held); outline-offset: 1px }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
.form { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: end; padding: 0 0 8px }
.form label { display: flex; flex-direction: column; color: var(--soft); gap: 1px }
.form label.wide { flex: 1 1 100% }
.form input, .form select, .form textarea { font: var(--label); color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 8px; height: 30px }
.form textarea { height: 52px; resize: none }
.form input[type=number] { width: 86px }
.form :disabled { opacity: .55 }
.form .go { height: 30px; padding: 0 16px; background: var(--ink); color: var(--paper); border: 0 }
.form .go:hover:not(:disabled) { background: var(--held) }
.form .go:disabled { background: var(--line); color: var(--ink); opacity: 1 }
.failure { position: absolute; inset: 36px 0 0; z-index: 3; background: var(--paper); padding: 40px 24px; display: flex; gap: 16px;
  flex-direction: column; align-items: center; justify-content: center; text-align: center; font-size: 15px; overflow: auto;
  overflow-wrap: anywhere }
header { grid-area: head; display: flex; align-items: center; gap: 6px; padding: 0 10px; border-bottom: 1px solid var(--line);
  min-width: 0 }
.tabs { display: flex; gap: 2px; min-width: 0; flex: 1; overflow-x: auto; scrollbar-width: none }
.tabs button { border: 0; border-radius: 6px; padding: 4px 9px; white-space: nowrap; max-width: 17em; overflow: hidden;
  text-overflow: ellipsis; flex: none; color: var(--soft) }
.tabs [aria-selected=true] { background: var(--wash); color: var(--ink); font-weight: 600 }
.say { color: var(--hand); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 46% }
header > button, header > label { white-space: nowrap; flex: none }
.text { grid-area: text; display: flex; flex-direction: column; min-height: 0; min-width: 0 }
.pane { flex: 1 1 0; min-height: 0; overflow-y: auto; padding: 8px 16px 10px; position: relative; scrollbar-gutter: stable;
  scrollbar-width: thin; scrollbar-color: var(--line) transparent }
.pane + .pane { border-top: 1px dashed var(--line) }
.title { position: sticky; top: -8px; z-index: 1; margin: -8px -16px 2px; padding: 4px 16px 0; background: var(--paper); font: var(--label);
  color: var(--soft); white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.words { font: var(--story); white-space: normal; overflow-wrap: anywhere; letter-spacing: 0 }
.words .given { color: var(--soft); white-space: pre-wrap }
.word { display: inline-block; white-space: nowrap; vertical-align: top; height: 30px; max-width: 100% }
.slot { display: inline-block; position: relative; vertical-align: top; height: 30px; line-height: 30px; cursor: pointer;
  border-radius: 4px; white-space: pre; overflow: visible }
.slot > i { font-style: normal; display: block; overflow: clip; overflow-clip-margin: 1px; height: 30px; border-radius: 4px }
.slot > i > b { font-weight: inherit; display: inline-block; transform-origin: 0 62% }
[dir=rtl] .slot > i > b { transform-origin: 100% 62% }
.slot.changed > i > b { animation: t2in .22s ease-out }
.slot.changed::after { content: ""; position: absolute; left: 50%; top: 1px; width: 4px; height: 4px; margin-left: -2px;
  border-radius: 2px; background: var(--soft) }
@keyframes t2in { from { opacity: 0 } }
.slot.differs > i { background: var(--hand-wash) }
.slot.guided > i { box-shadow: inset 0 -2px 0 var(--hand) }
.slot.pinned > i { background: var(--hand-wash); outline: 1.5px solid var(--hand) }
.slot.preview > i { outline: 1.5px solid var(--held) }
.slot.held > i { background: var(--held-wash); outline: 2px solid var(--held) }
.slot.pad > i, .hatch { background: repeating-linear-gradient(135deg, transparent 0 4px, var(--line) 4px 5.5px) }
.why .slot > i, .why .given[style] { background-image: linear-gradient(0deg, var(--because) var(--weight), transparent 0) }
.marks .slot.doubt > i > b { text-decoration: underline dotted 1.5px; text-underline-offset: 4px }
.marks .slot.half > i > b { text-decoration: underline dashed 1px; text-underline-offset: 4px }
.fold { font: var(--label); color: var(--soft); display: block; margin: 6px 0 2px; padding: 3px 10px; text-align: start }
.note { font: var(--label); color: var(--soft); margin: 6px 0 0 }
.card { grid-area: card; border-inline-start: 1px solid var(--line); padding: 8px 14px 8px; display: grid; min-height: 0;
  grid-template: 28px 38px 20px 108px 20px 1fr 30px / minmax(0, 1fr); align-content: start; min-width: 0; overflow: hidden }
.name { margin: 0; font: 600 18px/26px Charter, "Iowan Old Style", Georgia, "Liberation Serif", serif; white-space: pre; overflow: hidden;
  text-overflow: ellipsis; color: var(--held) }
.name span { font: var(--label); color: var(--soft); margin-inline-start: 8px }
.card p { margin: 0; overflow: hidden }
.extra { color: var(--soft); white-space: nowrap; text-overflow: ellipsis }
.extra.hand { color: var(--hand) }
.bars { display: grid; grid-auto-rows: 18px; align-content: start }
.bar { display: grid; grid-template-columns: 92px 1fr 44px; align-items: center; gap: 6px; border: 0; padding: 0; border-radius: 3px;
  text-align: start; width: 100%; height: 18px }
.bar > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: pre; font: 14px/18px Charter, Georgia, "Liberation Serif", serif;
  unicode-bidi: isolate }
.bar > :nth-child(2) { height: 9px; background: var(--zero); border-radius: 2px; overflow: hidden }
.bar > :nth-child(2) > s { display: block; height: 100%; background: var(--ink); border-radius: 2px }
.bar > :last-child { text-align: end }
.bar.drawn > :first-child::before { content: "▸ "; font-family: system-ui; font-size: 10px }
.bar.rest > :first-child { font: var(--label); color: var(--soft) }
.bar.rest s { background: var(--pale) !important }
.ribbon { position: relative; height: 26px; align-self: start; cursor: pointer; border-radius: 3px; overflow: hidden }
.ribbon canvas { width: 100%; height: 100%; display: block }
.cursor { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--held); pointer-events: none }
.try { display: flex; gap: 6px; align-self: end }
.try input { flex: 1; min-width: 0; border: 1px solid var(--line); border-radius: 6px; padding: 2px 8px; background: var(--paper) }
.controls { grid-area: bar; display: grid; grid-template-columns: var(--gut) minmax(0, 1fr); align-items: center; padding-inline-end: 14px;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); background: var(--wash) }
.buttons { display: flex; align-items: center; gap: 6px; padding-inline-start: 10px; min-width: 0 }
.play { width: 34px; height: 30px; padding: 0; border-radius: 15px; background: var(--ink); color: var(--paper); border: 0; font-size: 12px }
.play:hover:not(:disabled) { background: var(--held) }
.buttons select { border: 1px solid var(--line); border-radius: 6px; background: var(--paper); padding: 2px 0; width: 54px }
.buttons output { white-space: nowrap; min-width: 0; overflow: hidden; text-overflow: ellipsis }
.track { position: relative; height: 56px }
.track canvas { position: absolute; inset: 0; width: 100%; height: 100% }
.track input { position: absolute; inset-block: 0; height: 100%; margin: 0; appearance: none; -webkit-appearance: none; background: none;
  cursor: pointer; border-radius: 4px }
.track input::-webkit-slider-runnable-track { height: 100%; background: none }
.track input::-moz-range-track { height: 100%; background: none }
.track input::-webkit-slider-thumb { -webkit-appearance: none; width: 14px; height: 56px; border: 0;
  background: linear-gradient(90deg, transparent 6px, var(--held) 6px 8px, transparent 8px) }
.track input::-moz-range-thumb { width: 14px; height: 56px; border: 0; border-radius: 0;
  background: linear-gradient(90deg, transparent 6px, var(--held) 6px 8px, transparent 8px) }
.ticks button { position: absolute; top: 0; width: 12px; height: 12px; margin-left: -6px; padding: 0; border: 0; background: none;
  color: var(--ink); font: 9px/12px system-ui; z-index: 1 }
.ticks button.decided { color: var(--soft) }
.below { grid-area: below; display: grid; grid-template-columns: 92px minmax(0, 1fr); min-height: 0; padding: 6px 14px 8px 10px }
.views { display: flex; flex-direction: column; gap: 2px }
.views button { border: 0; text-align: start; padding: 3px 8px; color: var(--soft) }
.views [aria-selected=true] { background: var(--wash); color: var(--ink); font-weight: 600 }
.view { position: relative; min-height: 0; min-width: 0 }
.view canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; border-radius: 2px }
.row { position: absolute; height: 2px; background: var(--held); pointer-events: none; min-height: 1px; opacity: .9 }
.view .cursor { bottom: 26px }
.strip { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 20px; height: 100%; padding-inline-start: 10px }
.strip > div { position: relative; min-width: 0; border: 1px solid var(--line); border-radius: 8px; padding: 7px 10px; overflow: hidden auto }
.strip > div + div::before { content: "→"; position: absolute; inset-inline-start: -17px; top: 40%; color: var(--soft) }
.strip strong { display: block; margin: 0 0 3px; font: 600 12.5px/1.3 system-ui, sans-serif }
.strip p { margin: 0 0 4px }
.strip > div { overflow: visible }
.meter { height: 8px; background: var(--zero); border-radius: 2px; margin: 3px 0 5px; overflow: hidden }
.meter s { display: block; height: 100%; background: var(--ink) }
.story { font-family: Charter, Georgia, "Liberation Serif", serif; font-size: 14.5px; white-space: pre-wrap; unicode-bidi: isolate }
.term { border: 0; border-bottom: 1.5px dotted currentColor; border-radius: 0; padding: 0; cursor: help }
.tip { position: absolute; z-index: 5; max-width: 250px; background: var(--ink); color: var(--paper); border-radius: 6px; padding: 5px 9px;
  pointer-events: none; white-space: pre-line }
.tour { position: absolute; z-index: 6; width: 264px; background: var(--ink); color: var(--paper); border-radius: 10px;
  padding: 12px 14px; box-shadow: 0 6px 24px #0005 }
.tour p { margin: 0 0 10px; font-size: 13px }
.tour div { display: flex; gap: 6px; align-items: center }
.tour div span { flex: 1 }
.tour button { border-color: currentColor }
.tour button:hover:not(:disabled) { background: none; text-decoration: underline }
.legend { position: absolute; bottom: 0; inset-inline: 0; height: 14px; color: var(--soft); font-size: 11.5px; line-height: 14px;
  display: flex; align-items: center; gap: 6px; white-space: nowrap; overflow: hidden; pointer-events: none }
.legend i { width: 64px; height: 8px; border-radius: 2px; display: inline-block; flex: none }
.voices { height: 100%; overflow-y: auto; padding-inline-start: 10px; scrollbar-width: thin; scrollbar-color: var(--line) transparent }
.voice { display: grid; grid-template: "name axis reward text" auto / 196px minmax(90px, 120px) 42px minmax(0, 1fr); column-gap: 10px;
  align-items: start; padding: 2px 0 3px; border-bottom: 1px solid var(--line) }
.voice:last-of-type { border: 0 }
.voice b { font-weight: 600; overflow-wrap: anywhere; margin-inline-end: 6px }
.voice small { font: inherit; color: var(--soft); white-space: nowrap }
.voice .dots { grid-area: axis; position: relative; height: 18px; margin: 0 5px; background: linear-gradient(var(--line), var(--line)) 0 50% / 100% 1px no-repeat }
.voice .dots i { position: absolute; top: 4px; width: 10px; height: 10px; margin-left: -5px; border-radius: 5px; background: var(--held) }
.voice .dots i.unchosen { top: 6px; width: 6px; height: 6px; margin-left: -3px; background: none; border: 1.5px solid var(--pale) }
.voice .number { grid-area: reward; text-align: end }
.voice .story { grid-area: text; font-size: 14px; line-height: 17px }
.voice.ends { padding: 0; border: 0; color: var(--soft) }
.voice.ends .dots { background: none; display: flex; justify-content: space-between }
.voices > p { margin: 3px 0 0; color: var(--soft) }
@container (max-width: 759px) {
  .x { --gut: 168px; grid-template-columns: minmax(0, 1fr) 232px }
  .card { padding-inline: 10px }
  .bar { grid-template-columns: 74px 1fr 40px }
  .below { grid-template-columns: 78px minmax(0, 1fr); padding-inline-start: 6px }
  .strip { gap: 14px; padding-inline-start: 4px }
  .strip > div { padding: 5px 7px }
  .strip > div + div::before { inset-inline-start: -14px }
  .buttons { gap: 4px; padding-inline-start: 8px }
  .buttons select { width: 48px }
}
@container (max-width: 559px) {
  .x { --gut: 74px; height: 1010px; grid-template: "head" 36px "text" 280px "bar" 96px "card" 284px "below" minmax(0, 1fr) / minmax(0, 1fr) }
  .card { border-inline-start: 0 }
  .controls { grid-template-columns: minmax(0, 1fr); padding-inline: 74px 14px; align-content: center }
  .buttons { margin-inline-start: -74px }
  .below { grid-template: "views" 30px "view" minmax(0, 1fr) / minmax(0, 1fr); padding: 6px 14px 8px 0; border-top: 1px solid var(--line) }
  .views { flex-direction: row; padding-inline-start: 8px }
  .views button { padding-inline: 6px; white-space: nowrap }
  .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 16px; overflow: auto; padding: 0 0 0 10px }
  .strip > div:nth-child(3)::before { content: none }
  .voice { grid-template: "name axis reward" auto "text text text" auto / minmax(0, 1fr) minmax(0, 1.2fr) 44px }
  .say { max-width: 40% }
}
@media (prefers-reduced-motion: reduce) { .slot.changed > i > b { animation: none } }
`;

// ---------------------------------------------------------------------------------------------- numbers and words

const bytes = text => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const decoded = atob(text);
  const found = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) found[i] = decoded.charCodeAt(i);
  return found;
};
const column = (given, Kind) => {
  if (given === undefined || given === null || given === "") return new Kind(0);
  return typeof given === "string" ? new Kind(bytes(given).buffer) : Kind.from(given);
};
const SIGNS = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
const ODD = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
const codePoint = char => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const BYTE = /[\udc80-\udcff]/u;  // with the flag u, a surrogate without its partner
const byteOf = unit => unit.charCodeAt(0) - 0xdc00;
const isByte = unit => unit >= "\udc80" && unit <= "\udcff";

/** A token's text with everything invisible made visible; never empty. */
const visible = text => {
  const signs = text.replace(ODD, char => SIGNS[char] ?? codePoint(char));
  const whole = [...signs].map(char => isByte(char) ? `‹${byteOf(char).toString(16).toUpperCase()}›` : char).join("");
  return whole.trim() === "" ? (whole === "" ? "∅" : "␣".repeat(whole.length)) : whole;
};
const word = text => visible(text).trim();
const percent = p => {
  if (p > 0.995 && p < 1) return "99\u00a0%";
  if (p < 0.005) return p > 0 ? "below 1\u00a0%" : "0\u00a0%";
  return `${Math.round(100 * p)}\u00a0%`;
};
const short = p => p < 0.005 ? "<1\u00a0%" : percent(p);
const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** Texts of neighbouring tokens in which bytes of one character are joined; the character stands at its first byte. */
const spell = texts => {
  const shown = [...texts];
  for (let i = 0; i < texts.length; i++) {
    if (!BYTE.test(texts[i])) continue;
    const units = [];
    let j = i;
    for (; j < texts.length && BYTE.test(texts[j]); j++) {
      shown[j] = "";
      [...texts[j]].forEach(char => units.push([char, j]));
    }
    for (let at = 0; at < units.length; at++) {
      const [char, owner] = units[at];
      const lead = isByte(char) ? byteOf(char) : 0;
      const length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
      const group = units.slice(at, at + length).map(unit => unit[0]);
      let whole = char;
      if (length > 1 && group.length === length && group.every(isByte)) {
        const decoded = new TextDecoder().decode(Uint8Array.from(group, byteOf));
        if (!decoded.includes("\ufffd")) {
          whole = decoded;
          at += length - 1;
        }
      }
      shown[owner] += whole;
    }
    i = j - 1;
  }
  return shown;
};

// ---------------------------------------------------------------------------------------------- one run

/** A recorded or growing run: what the contract gives, read step by step. */
class Run {
  constructor(given) {
    const { name = "", note = "", first = 0, steps, positions, known, end = [], pad = [] } = given;
    Object.assign(this, { name, note, first, steps, positions, known });
    this.pins = given.pins ?? [];
    this.why = given.why ?? [];
    this.voices = given.voices ?? [];
    this.pieces = [...given.pieces];
    this.M = this.positions.length;
    this.L = this.known.length;
    this.order = new Map(this.positions.map((position, m) => [position, m]));
    this.ends = new Set(end);
    this.pads = new Set(pad);
    this.frames = [];
    this.growing = given.growing ?? false;
    this.addColumns(given);
  }

  addColumns(given) {
    const Ids = typeof given.tokens === "string" && this.pieces.length <= 65536 ? Uint16Array : Uint32Array;
    const tokens = column(given.tokens, Ids);
    const columns = {
      sure: column(given.sure, Uint8Array),
      entropy: column(given.entropy, Uint8Array),
      before: column(given.before, Ids),
      gain: column(given.gain, Int16Array),
      drawn: column(given.drawn, Uint8Array),
      noisy: column(given.noisy, Ids),
    };
    const counts = column(given.counts, Uint8Array);
    const top = column(given.top, Ids);
    const p = column(given.p, Uint8Array);
    const detailed = given.detailed && new Map(given.detailed.map((s, i) => [s, i]));
    let used = 0;
    for (let s = 0; s * this.M < tokens.length; s++) {
      const part = values => values.length ? values.subarray(s * this.M, (s + 1) * this.M) : null;
      const frame = { tokens: part(tokens), starts: new Uint32Array(this.M + 1), top, p };
      for (const [name, values] of Object.entries(columns)) frame[name] = part(values);
      const row = detailed ? detailed.get(s) : s;
      for (let m = 0; m < this.M; m++) {
        frame.starts[m] = used;
        if (row !== undefined) used += counts[row * this.M + m];
      }
      frame.starts[this.M] = used;
      frame.alpha = [].concat(given.alpha_bar)[s];
      frame.reward = given.reward === null || given.reward === undefined ? null : [].concat(given.reward)[s];
      this.frames.push(frame);
    }
    this.complete = this.frames.every(frame => frame.starts[this.M] > frame.starts[0]);
    this._settled = this._shares = this._events = this._end = null;
  }

  get S() { return this.frames.length; }
  get last() { return this.frames.length - 1; }
  at(s, m) { return this.frames[s].tokens[m]; }
  text(s, m) { return this.pieces[this.at(s, m)]; }
  sure(s, m) { return this.frames[s].sure[m] / 255; }
  kept(s, m) { return this.frames[s].starts[m + 1] > this.frames[s].starts[m]; }

  /** The likeliest token's id; the drawn one's where candidates were left out anywhere in the run. */
  best(s, m) {
    const frame = this.frames[s];
    return this.complete ? frame.top[frame.starts[m]] : frame.tokens[m];
  }

  candidates(s, m) {
    const { starts, top, p } = this.frames[s];
    return Array.from({ length: starts[m + 1] - starts[m] }, (_, i) => {
      const id = top[starts[m] + i];
      return { id, text: this.pieces[id], p: p[starts[m] + i] / 255 };
    });
  }

  /** The first step from which on the first choice stays, for each position. */
  get settled() {
    if (!this._settled) {
      this._settled = new Int32Array(this.M);
      for (let m = 0; m < this.M; m++) {
        let s = this.last;
        while (s > 0 && this.best(s - 1, m) === this.best(this.last, m)) s--;
        this._settled[m] = Math.max(0, s);
      }
    }
    return this._settled;
  }

  /** Index among the written tokens of the one that ends the text; M where none does. */
  get endAt() {
    if (this._end === null) {
      const lastGiven = this.known.findLastIndex((text, position) => text !== "" && !this.order.has(position));
      const found = this.S ? this.positions.findIndex((position, m) => position > lastGiven && this.ends.has(this.at(this.last, m))) : -1;
      this._end = found < 0 ? this.M : found;
    }
    return this._end;
  }

  /** What is worth slowing down for: [{ step, m, kind, says }], few of them. */
  get events() {
    if (this._events) return this._events;
    const found = [];
    const reach = Math.min(this.endAt, this.M);
    let sentence = true;
    for (let m = 0; m < reach && this.S > 2; m++) {
      const text = this.pieces[this.best(this.last, m)];
      const name = /^\s?\p{Lu}\p{Ll}/u.test(text) && !sentence;
      if (/\S/.test(text)) sentence = /[.!?“"”]\s*$/.test(text);
      const step = this.settled[m];
      let since = Math.max(0, step - 1);
      while (since > 0 && this.best(since - 1, m) === this.best(Math.max(0, step - 1), m)) since--;
      let conviction = 0;
      for (let s = Math.max(0, since); s < step; s++) conviction = Math.max(conviction, this.sure(s, m));
      const late = step > this.S / 2 && conviction > 0.4;
      if (late) {
        const old = word(this.pieces[this.best(step - 1, m)]);
        found.push({ step, m, kind: "late", says: `Step ${this.first + step + 1}: a late change of mind, ${old} → ${word(text)}` });
      } else if (name && step > 0) {
        found.push({ step, m, kind: "decided", says: `Step ${this.first + step + 1}: ${word(text)} is decided` });
      }
    }
    const rank = event => (event.kind === "late" ? 1 : 0) + event.step / this.S;
    const kept = found.sort((a, b) => rank(b) - rank(a)).slice(0, 10);
    this._events = kept.sort((a, b) => a.step - b.step);
    return this._events;
  }

  /** The part of all places that have settled at a step. */
  share(s) {
    if (!this._shares) {
      const fresh = new Int32Array(this.S);
      for (const step of this.settled) fresh[step]++;
      let count = 0;
      this._shares = Float64Array.from(fresh, more => (count += more) / this.M);
    }
    return this._shares[s];
  }

  changed(s, m) { return s > 0 && this.at(s, m) !== this.at(s - 1, m); }
  guided(s, m) {
    const { before } = this.frames[s];
    return Boolean(before) && before[m] !== this.best(s, m);
  }

  pinAt(s, position) { return this.pins.find(pin => pin.position === position && this.first + s >= pin.step && this.first + s < (pin.until ?? Infinity)); }
  step(index) { return clamp(index - this.first, 0, Math.max(0, this.last)); }

  meanEntropy(s) {
    const { entropy } = this.frames[s];
    return entropy ? entropy.reduce((sum, value) => sum + value, 0) / 16 / this.M : null;
  }
}

/** Whether two runs show different tokens at a place of both; false where one has no such place. */
const differ = (a, s, b, position) => {
  const t = a.first + s - b.first;
  const m = a.order.get(position);
  const n = b.order.get(position);
  if (m === undefined || n === undefined || t < 0 || t > b.last) return false;
  return a.text(s, m) !== b.text(t, n);
};
const partsAt = (a, b) => {
  for (let s = 0; s < a.S; s++) if (a.positions.some(position => differ(a, s, b, position))) return s;
  return null;
};
const ALIKE = 0.3;  // share of equal last tokens from which on two texts are worth aligning word by word
/** Whether two runs share their rows: the same places, and texts that have something in common. */
const aligned = (a, b) => {
  if (a === b) return true;
  if (a.L !== b.L || a.M !== b.M || a.positions.some((position, m) => b.positions[m] !== position)) return false;
  if (a.growing || b.growing || !a.S || !b.S) return true;
  const reach = Math.min(a.M, Math.max(a.endAt, b.endAt) + 1);
  let alike = 0;
  for (let m = 0; m < reach; m++) alike += a.text(a.last, m) === b.text(b.last, m);
  return alike >= ALIKE * reach;
};

// ---------------------------------------------------------------------------------------------- elements

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};

const TERMS = {
  signal: "Signal (ᾱ) is how much of the page is what was written, and not noise: 0 % at the start, nearly all at the end.",
  passes: "A pass is one run of a network over the page; a gradient counts as two. An autoregressive model's pass writes one word.",
  reward: "What the reward model says of each final text: a filled dot. Rings are texts that were written too and not chosen.",
  wavers: "The number of equally likely words that would be as hard to guess (e to the power of the entropy).",
  lot: "A word is drawn by chance, a likely one more often; the unlikeliest rest is never drawn.",
  belief: "The model's probability for every word of its vocabulary at this place.",
  noised: "Each step's words are covered with fresh noise, a little less each time, and read again.",
  settled: "A place has settled at the first step after which its first choice never changes again.",
};

const TOUR = [
  [".words", "All words are written at once, out of noise. Grey is your beginning; strong words are sure, faint ones are guesses."],
  [".controls", "Press play, or drag. The hill shows how many words have settled; the marks are moments worth a look."],
  [".words", "Click a word to hold it and follow it through time. Esc lets it go."],
  [".card", "What was drawn there, what the model liked best, and all it wavered between. Click the ribbon to go to a step."],
  [".below", "Every word at every step: dark is sure, notches are changes. “This step” shows one step from the inside."],
];

const themeOf = () => {
  const { body } = document;
  if (body?.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  if (body?.dataset.vscodeThemeKind) return /dark|high-contrast$/.test(body.dataset.vscodeThemeKind) ? "dark" : "light";
  const named = document.documentElement.dataset.theme;
  if (named === "dark" || named === "light") return named;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
};

// ---------------------------------------------------------------------------------------------- the explorer

let tourOpen = false;  // one tour a page, however many explorers it has

export function explore(host, data, options = {}) {
  const actor = options.actor ?? {};
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  host.setAttribute("data-lm-suppress-shortcuts", "true");  // JupyterLab would take arrows and letters
  const runs = data.runs.map(given => new Run(given));
  const cleanup = [];
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = {
    run: data.beside ? data.beside[1] : 0, beside: data.beside ? data.beside[0] : null,
    step: 0, held: null, preview: null, view: "map", unfolded: false, speed: 1, timer: null, why: false, busy: false,
  };
  const run = () => runs[state.run];
  const other = () => state.beside === null ? null : runs[state.beside];
  const shownRuns = () => state.beside === null ? [run()] : [other(), run()];
  const position = () => state.held ?? state.preview;
  const total = () => Math.max(...shownRuns().map(each => each.first + Math.max(1, each.growing ? each.steps : each.S)));
  const start = () => Math.min(...shownRuns().map(each => each.first));
  const count = () => total() - start();

  // ---------- the fixed frame
  const $ = {};
  const keep = (name, element) => ($[name] = element);
  const frame = make("div", { class: "x", role: "group", "aria-label": "Explorer: how a text came out of noise" },
    make("header", {},
      keep("tabs", make("div", { class: "tabs", role: "tablist", "aria-label": "runs" })),
      keep("say", make("span", { class: "say", role: "status" })),
      keep("stop", make("button", { type: "button", hidden: true, onclick: giveUp }, "Stop")),
      keep("beside", make("button", { type: "button", hidden: true, "aria-pressed": "false", onclick: toggleBeside }, "Compare")),
      keep("marks", make("button", { type: "button", "aria-pressed": "false", title: "Underline unsure words",
        onclick: toggleMarks }, "a̲")),
      make("button", { type: "button", title: "Show the tour", "aria-label": "Show the tour", onclick: () => openTour(0) }, "?"),
    ),
    keep("text", make("div", { class: "text" })),
    keep("card", make("div", { class: "card", role: "group", "aria-label": "the word in detail" },
      keep("word", make("div", { class: "name", dir: "auto" })),
      keep("sentence", make("p", { class: "sentence" })),
      keep("extra", make("p", { class: "extra" })),
      keep("bars", make("div", { class: "bars" })),
      keep("caption", make("p", { class: "extra" }, "its first choice over all steps")),
      keep("ribbon", make("div", { class: "ribbon", onclick: clickRibbon, onmousemove: hoverRibbon, onmouseleave: hideTip },
        make("canvas", { role: "img" }), make("div", { class: "cursor" }))),
      keep("try", make("form", { class: "try", hidden: !actor.whatIf && !actor.why, onsubmit: tryTyped },
        keep("typed", make("input", { type: "text", "aria-label": "another word", placeholder: "another word",
          autocomplete: "off", spellcheck: "false", hidden: !actor.whatIf })),
        keep("go", make("button", { type: "submit", hidden: !actor.whatIf }, "Try it")),
        keep("because", make("button", { type: "button", hidden: !actor.why, "aria-pressed": "false", onclick: askWhy }, "Why?")))),
    )),
    make("div", { class: "controls" },
      make("div", { class: "buttons" },
        keep("play", make("button", { type: "button", class: "play", "aria-label": "Play", onclick: togglePlay }, "▶")),
        keep("speed", make("select", { "aria-label": "speed", onchange: event => { state.speed = +event.target.value; } },
          ...[["¼×", 0.25], ["½×", 0.5], ["1×", 1], ["2×", 2], ["4×", 4]].map(([name, value]) =>
            make("option", { value, selected: value === 1 }, name)))),
        keep("label", make("output"))),
      keep("track", make("div", { class: "track" },
        keep("chart", make("canvas", { "aria-hidden": "true" })),
        keep("slider", make("input", { type: "range", min: 0, step: 1, "aria-label": "diffusion step",
          oninput: event => { stop(); go(+event.target.value); } })),
        keep("ticks", make("div", { class: "ticks" }))))),
    make("div", { class: "below" },
      keep("views", make("div", { class: "views", role: "tablist", "aria-label": "view", "aria-orientation": "vertical" })),
      keep("view", make("div", { class: "view", role: "tabpanel" }))),
    keep("failure", make("div", { class: "failure", role: "alert", hidden: true })),
    keep("tip", make("div", { class: "tip", role: "tooltip", hidden: true })),
  );
  const shell = make("div", { class: "shell" }, ...(options.controls?.fields.length ? [makeForm(options.controls)] : []), frame);
  root.replaceChildren(make("style", {}, STYLE), shell);

  const theme = () => {
    const now = themeOf();
    if (shell.dataset.theme === now) return;
    shell.dataset.theme = now;
    if (panes.length) drawAll();
  };
  const panes = [];
  const watcher = new MutationObserver(theme);
  for (const watched of [document.body, document.documentElement]) if (watched) watcher.observe(watched, { attributes: true });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", theme);
  cleanup.push(() => watcher.disconnect(), () => scheme.removeEventListener("change", theme), () => stop());
  theme();

  const colour = name => getComputedStyle(frame).getPropertyValue(`--${name}`).trim();
  const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  const scale = from => {
    const low = rgb(colour(from));
    const high = rgb(colour("ink"));
    return Array.from({ length: 33 }, (_, i) => low.map((value, c) => Math.round(value + (high[c] - value) * i / 32)));
  };
  let inkScale, mapScale;
  const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

  // ---------- the text: a slot for every token, as wide as what stands there at the end
  const measure = document.createElement("canvas").getContext("2d");
  const widths = new Map();
  const widthOf = text => {
    if (!widths.has(text)) widths.set(text, measure.measureText(text).width);
    return widths.get(text);
  };
  const plain = text => BYTE.test(text) ? visible(text) : text.replace(ODD, char => SIGNS[char] ?? codePoint(char));

  /** Width of a slot whose word is still to come: that of the vocabulary's middle word. */
  function roomForWords(one) {
    const words = one.pieces.filter(text => /^ ?\p{L}{2,}$/u.test(text));
    const wide = words.map(text => widthOf(text.trim())).sort((a, b) => a - b);
    return clamp(wide[wide.length >> 1] ?? 0, 34, 60);
  }

  /** Widths of all slots of runs that share their lines, and what they show at the end. */
  function slotWidths(each, together) {
    const widest = new Float32Array(each.M);
    const complete = together.filter(one => one.S && !one.growing);
    for (const one of complete.length ? complete : together) {
      const final = one.S ? spell(one.positions.map((_, m) => one.text(one.last, m))) : null;
      const room = !final || one.growing ? roomForWords(one) : 0;
      for (let m = 0; m < each.M; m++) {
        if (!final || one.growing) {
          widest[m] = Math.max(widest[m], room);
          continue;
        }
        const text = plain(final[m]).replace(/^ /, "");
        const wide = text === "" ? (one.text(one.last, m) === "" ? 10 : 0) : Math.max(widthOf(text), 4);
        widest[m] = Math.max(widest[m], wide);
      }
    }
    return widest;
  }

  function layOut() {
    const shown = shownRuns();
    $.text.replaceChildren();
    panes.length = 0;
    const probe = make("div", { class: "words" }, "x");
    $.text.append(probe);
    const font = getComputedStyle(probe);
    measure.font = `${font.fontSize} ${font.fontFamily}`;
    if (measure.font !== layOut.font) widths.clear();
    layOut.font = measure.font;
    probe.remove();
    shown.forEach(each => {
      const words = make("div", { class: "words", dir: "auto", role: "group", "aria-label": `words of ${each.name || "this run"}` });
      const together = shown.filter(one => aligned(one, each));
      const pane = { run: each, words, slots: [], given: [], lastId: [], lastLook: [] };
      fillWords(pane, slotWidths(each, together), together);
      const box = make("div", { class: "pane" }, ...(shown.length > 1 ? [make("div", { class: "title" }, each.name)] : []), words);
      box.addEventListener("scroll", () => {
        for (const { box: twin } of panes) if (twin !== box && together.length > 1) twin.scrollTop = box.scrollTop;
      });
      const notes = [each.note].filter(Boolean).join(" ");
      pane.note = make("p", { class: "note" }, notes);
      if (notes) box.append(pane.note);
      pane.box = box;
      panes.push(pane);
      $.text.append(box);
    });
    for (const { box, slots } of panes) {  // past a long beginning
      const first = slots.find(Boolean);
      if (first) box.scrollTop = Math.max(0, first.slot.offsetTop - (shown.length > 1 ? 26 : 70));
    }
  }

  /** Where words begin and lines end: the same for runs that share their rows. */
  const shapeOf = together => {
    const finals = together.filter(one => one.S && !one.growing).map(one => one.positions.map((_, m) => one.text(one.last, m)));
    const any = (m, pattern) => finals.some(final => pattern.test(final[m]));
    return {
      endAt: Math.max(...together.map(one => one.endAt)),
      begins: m => !finals.length || any(m, /^\s/) || m > 0 && any(m - 1, /\s$/),
      breaks: m => any(m, /\n/),
    };
  };

  function fillWords(pane, widest, together) {
    const { run: each, words } = pane;
    const { endAt, begins, breaks } = shapeOf(together);
    const lastShown = state.unfolded ? each.M - 1 : endAt;
    const blank = make("span", { class: "slot", role: "button", tabindex: -1, "aria-pressed": "false" }, make("i", {}, make("b")));
    let group = null;
    const column = words;
    each.known.forEach((text, at) => {
      const m = each.order.get(at);
      if (m === undefined) {
        if (text) {
          const given = make("span", { class: "given" }, text.replace(/[\p{Cf}]/gu, codePoint));
          pane.given[at] = given;
          column.append(given);
        }
        group = null;
        return;
      }
      if (m > lastShown) return;
      if (begins(m) && !breaks(m)) column.append(" ");
      if (!group || begins(m)) {
        group = make("span", { class: "word" });
        column.append(group);
      }
      const slot = blank.cloneNode(true);
      const ink = slot.firstChild.firstChild;
      if (m === 0) slot.tabIndex = 0;
      slot.style.width = `${Math.max(widest[m], 0.01)}px`;
      slot.dataset.m = m;
      pane.slots[m] = { slot, ink, width: widest[m] };
      group.append(slot);
      if (breaks(m)) {
        column.append(make("br"));
        group = null;
      }
    });
    const rest = each.M - 1 - endAt;
    if (rest > 0) {
      pane.fold = make("button", { type: "button", class: "fold", "aria-expanded": String(state.unfolded), onclick: () => {
        state.unfolded = !state.unfolded;
        redo();
      } });
      words.after(pane.fold);
      queueMicrotask(() => pane.box.insertBefore(pane.fold, pane.note.isConnected ? pane.note : null));
      let padding = 0;
      for (let m = endAt + 1; m < each.M && each.S; m++) padding += each.pads.has(each.at(each.last, m));
      const rests = rest - padding;
      const says = [];
      if (rests) says.push(`the model went on with ${plural(rests, "more token")} after the end`);
      if (padding) says.push(`${plural(padding, "PAD")}`);
      const hatch = make("span", { class: "hatch" });
      hatch.style.cssText = "display:inline-block;width:40px;height:12px;vertical-align:-1px;margin-inline-start:8px";
      pane.fold.append(`${state.unfolded ? "▾" : "▸"} ${says.join(", ")}`, ...(padding ? [hatch] : []));
    }
    words.addEventListener("mouseover", event => {
      const slot = event.target.closest(".slot");
      if (slot && state.held === null) preview(each.positions[slot.dataset.m], each);
    });
    words.addEventListener("click", event => {
      const slot = event.target.closest(".slot");
      if (slot) hold(each.positions[slot.dataset.m], each);
    });
    words.addEventListener("keydown", event => {
      const slot = event.target.closest(".slot");
      if (!slot) return;
      const m = +slot.dataset.m;
      const last = pane.slots.length - 1;
      const next = { ArrowRight: m + 1, ArrowLeft: m - 1, Home: 0, End: last }[event.key];
      if (next !== undefined) {
        event.preventDefault();
        if (!pane.slots[next]) return;
        roving(pane, next);
        pane.slots[next].slot.focus();
        if (state.held === null) preview(each.positions[next], each);
        else hold(each.positions[next], each, true);
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        event.stopPropagation();
        hold(each.positions[m], each);
      }
    });
  }

  const roving = (pane, m) => pane.slots.forEach(({ slot }, i) => slot.setAttribute("tabindex", i === m ? 0 : -1));

  function drawWords() {
    for (const pane of panes) {
      const { run: each } = pane;
      if (!each.S) continue;
      const s = each.step(state.step);
      const twin = panes.length > 1 && pane !== panes[0] ? panes[0].run : null;
      const texts = spell(each.positions.map((_, m) => each.text(s, m)));
      const reason = whyEntry(each, s);
      const strongest = reason ? Math.max(...reason.weights.map(Math.abs), 1e-9) : 1;
      pane.words.classList.toggle("why", Boolean(reason));
      const because = at => {
        const weight = reason.weights[at] / strongest;
        return [`var(${weight < 0 ? "--hand" : "--held"})`, `${Math.round(7 * Math.abs(weight))}px`];
      };
      pane.given.forEach((given, at) => {
        given.removeAttribute("style");
        if (!reason) return;
        const [tint, share] = because(at);
        given.style.cssText = `--because: ${tint}; --weight: ${share}`;
      });
      pane.slots.forEach(({ slot, ink, width }, m) => {
        const at = each.positions[m];
        const id = each.at(s, m);
        const p = each.sure(s, m);
        const ends = each.ends.has(id);
        const pad = each.pads.has(id);
        const text = ends ? "¶" : pad ? "" : plain(texts[m]).replace(/^ /, "");
        if (pane.lastId[m] !== text) {
          pane.lastId[m] = text;
          ink.textContent = text === "" && !pad && texts[m] === each.text(s, m) ? (each.text(s, m).trim() ? "" : each.text(s, m) === "" ? "∅" : " ") : text;
          const wide = widthOf(ink.textContent);
          const share = wide > width ? Math.max(0.6, width / wide) : 1;  // a wide word shrinks, no word moves
          ink.style.transform = share < 1 ? `scale(${share.toFixed(3)}, ${Math.min(1, share + 0.12).toFixed(3)})` : "";
          slot.setAttribute("aria-label", ends ? "end of text" : pad ? "padding" : word(each.text(s, m)));
        }
        ink.style.color = css(inkScale[Math.round(clamp((p - 0.1) / 0.85, 0, 1) * 32)]);
        const classes = ["slot"];
        if (pad) classes.push("pad");
        if (each.changed(s, m)) classes.push("changed");
        if (p < 0.4) classes.push("doubt");
        else if (p < 0.8) classes.push("half");
        if (twin && differ(each, s, twin, at)) classes.push("differs");
        if (each.guided(s, m)) classes.push("guided");
        if (each.pinAt(s, at)) classes.push("pinned");
        if (at === state.held) classes.push("held");
        else if (state.held === null && at === state.preview) classes.push("preview");
        const look = classes.join(" ");
        if (pane.lastLook[m] !== look || pane.lastStep !== state.step) {
          slot.className = look;
          pane.lastLook[m] = look;
        }
        slot.setAttribute("aria-pressed", String(at === state.held));
        if (reason) {
          const [tint, share] = because(at);
          slot.style.setProperty("--because", tint);
          slot.style.setProperty("--weight", share);
        }
      });
      pane.lastStep = state.step;
    }
  }

  // ---------- the card
  const drawnP = (each, s, m) => {
    const id = each.at(s, m);
    if (each.frames[s].drawn) return percent(Math.max(each.frames[s].drawn[m], 0.5) / 255);  // 0 is rounded
    const candidates = each.candidates(s, m);
    const found = candidates.find(candidate => candidate.id === id);
    return found ? percent(found.p) : candidates.length ? `below ${percent(Math.max(0.01, candidates.at(-1).p)).replace("below ", "")}` : "";
  };
  const nameOf = (each, id) => each.ends.has(id) ? "¶ (end)" : each.pads.has(id) ? "PAD" : word(each.pieces[id]);
  const wholeWord = (each, s, m) => {
    const id = each.at(s, m);
    if (each.ends.has(id) || each.pads.has(id)) return nameOf(each, id);
    const texts = spell(each.positions.map((_, i) => each.text(s, i)));
    return texts[m] === "" ? `part of ${word(texts.slice(0, m).findLast(text => text !== "") ?? "")}` : word(texts[m]);
  };

  function drawCard() {
    const each = run();
    const at = position();
    const m = each.order.get(at);
    const none = m === undefined || !each.S;
    for (const part of [$.bars, $.ribbon, $.caption]) part.style.visibility = none ? "hidden" : "";
    $.try.hidden = none || (!actor.whatIf && !actor.why);
    if (none) {
      $.word.textContent = "";
      $.sentence.textContent = !each.M ? "Nothing is written yet." : each.S ? "Point at a word to see what the model thought there; click to hold it." : "";
      $.extra.textContent = "";
      return;
    }
    const s = each.step(state.step);
    const id = each.at(s, m);
    const candidates = each.candidates(s, m);
    const best = candidates[0];
    const kept = each.kept(s, m);
    const says = `${wholeWord(each, s, m)}`;
    $.word.replaceChildren(says, make("span", {}, `place ${at + 1}${state.held === null ? "" : " · held, Esc frees"}`));
    const drawnSays = drawnP(each, s, m);
    const pin = each.pinAt(s, at);
    $.sentence.textContent = `Step ${each.first + s + 1}. ${pin ? "By hand" : "Drawn"}: ${nameOf(each, id)}${drawnSays ? `, ${drawnSays}` : ""}. ` +
      (kept ? `First choice: ${nameOf(each, best.id)}, ${percent(best.p)}.` : `First choice: ${percent(each.sure(s, m))} sure; its name was left out to save room.`);
    $.extra.className = "extra";
    const twin = other();
    const n = twin?.order.get(at);
    if (pin) {
      $.extra.textContent = `Set to ${word(pin.token)} by hand from step ${pin.step + 1} on.`;
      $.extra.classList.add("hand");
    } else if (each.guided(s, m)) {
      const gain = each.frames[s].gain ? each.frames[s].gain[m] / 100 : 0;
      $.extra.textContent = `Guidance changed the first choice: ${nameOf(each, each.frames[s].before[m])} → ${nameOf(each, each.best(s, m))} (${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(2)} nats).`;
      $.extra.classList.add("hand");
    } else if (twin && n !== undefined && twin.S) {
      const t = twin.step(state.step);
      const differs = twin.text(t, n) !== each.text(s, m);
      $.extra.textContent = `${differs ? "In" : "The same in"} “${twin.name}”: ${nameOf(twin, twin.at(t, n))}${drawnP(twin, t, n) ? `, ${drawnP(twin, t, n)}` : ""}.`;
    } else {
      const settled = each.settled[m];
      $.extra.textContent = each.growing ? "" : settled === 0 ? "Its first choice never changed." : `Settled at step ${each.first + settled + 1}: ${nameOf(each, each.best(each.last, m))}.`;
    }
    $.extra.title = $.extra.textContent;
    drawBars(each, s, m, candidates);
    drawRibbon(each, m);
    $.because.setAttribute("aria-pressed", String(state.why));
  }

  function drawBars(each, s, m, candidates) {
    const id = each.at(s, m);
    const canAct = Boolean(actor.whatIf) && !each.growing;
    const rows = candidates.slice(0, 5).map(candidate => {
      const drawn = candidate.id === id;
      const name = nameOf(each, candidate.id);
      const fill = make("s");
      fill.style.width = `${100 * candidate.p}%`;
      const attributes = { class: `bar${drawn ? " drawn" : ""}`, title: canAct && !drawn ? `Write ${name} here instead and see what follows` : drawn ? `${name} was drawn` : name };
      const parts = [make("span", {}, name), make("span", {}, fill), make("span", {}, short(candidate.p))];
      if (!canAct || drawn) return make("div", attributes, ...parts);
      return make("button", { ...attributes, type: "button", disabled: state.busy, onclick: () => act({ token: candidate.id }) }, ...parts);
    });
    if (candidates.length) {
      const rest = Math.max(0, 1 - candidates.slice(0, 5).reduce((sum, candidate) => sum + candidate.p, 0));
      const fill = make("s");
      fill.style.width = `${100 * rest}%`;
      rows.push(make("div", { class: "bar rest" }, make("span", {}, "all others"), make("span", {}, fill), make("span", {}, short(rest))));
    }
    const focused = [...$.bars.children].indexOf(root.activeElement);
    $.bars.replaceChildren(...rows);
    if (focused >= 0) $.bars.children[focused]?.focus();
  }

  const segments = (each, m) => {
    const found = [];
    for (let s = 0; s < each.S; s++) {
      const id = each.best(s, m);
      if (found.length && found.at(-1).id === id) found.at(-1).to = s;
      else found.push({ id, from: s, to: s });
    }
    return found;
  };

  function canvasOf(canvas) {
    const box = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.max(1, Math.round(box.width * ratio));
    const high = Math.max(1, Math.round(box.height * ratio));
    if (canvas.width !== wide || canvas.height !== high) {
      canvas.width = wide;
      canvas.height = high;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    return [pen, box.width, box.height];
  }

  function drawRibbon(each, m) {
    const [pen, wide, high] = canvasOf($.ribbon.firstChild);
    const found = segments(each, m);
    const x = s => s / each.S * wide;
    pen.font = "12px Charter, Georgia, 'Liberation Serif', serif";
    pen.textBaseline = "middle";
    for (let s = 0; s < each.S; s++) {
      pen.fillStyle = css(mapScale[Math.round(each.sure(s, m) * 32)]);
      pen.fillRect(x(s), 0, x(s + 1) - x(s) + 0.5, high);
    }
    for (const part of found) {
      const room = x(part.to + 1) - x(part.from) - 6;
      if (part.from > 0) {
        pen.fillStyle = colour("paper");
        pen.fillRect(x(part.from) - 0.5, 0, 1, high);
      }
      const name = nameOf(each, part.id);
      if (pen.measureText(name).width > room) continue;
      const middle = each.sure((part.from + part.to) >> 1, m);
      pen.fillStyle = middle > 0.5 ? colour("paper") : colour("ink");
      pen.fillText(name, x(part.from) + 3, high / 2 + 0.5);
    }
    const list = found.slice(-6).map(part => `${nameOf(each, part.id)} from step ${each.first + part.from + 1}`);
    $.ribbon.firstChild.setAttribute("aria-label", `First choices over the steps: ${found.length > 6 ? "… " : ""}${list.join(", ")}`);
    $.ribbon.lastChild.style.left = `${100 * (each.step(state.step) + 0.5) / each.S}%`;
  }
  const ribbonStep = event => {
    const box = $.ribbon.getBoundingClientRect();
    return clamp(Math.floor((event.clientX - box.left) / box.width * run().S), 0, run().last);
  };
  function clickRibbon(event) {
    stop();
    go(ribbonStep(event) + run().first);
  }
  function hoverRibbon(event) {
    const m = run().order.get(position());
    if (m === undefined) return;
    const s = ribbonStep(event);
    showTip(`step ${run().first + s + 1}: ${nameOf(run(), run().best(s, m))}, ${percent(run().sure(s, m))}`, event);
  }

  // ---------- the control row
  const x = (index, wide) => (index - start() + 0.5) / count() * wide;

  const SETTLED = "share of words settled";

  function drawTrack() {
    const [pen, wide, high] = canvasOf($.chart);
    const base = high - 6;
    const reach = high - 20;
    pen.fillStyle = colour("line");
    pen.fillRect(0, base, wide, 1);
    shownRuns().forEach((each, i, all) => {
      if (!each.S) return;
      const main = i === all.length - 1;
      pen.beginPath();
      for (let s = 0; s < each.S; s++) pen.lineTo(x(each.first + s, wide), base - each.share(s) * reach);
      pen.strokeStyle = colour(main ? "ink" : "soft");
      pen.setLineDash(main ? [] : [4, 3]);
      pen.lineWidth = 1.5;
      pen.stroke();
      if (!main) return;
      pen.lineTo(x(each.first + each.last, wide), base);
      pen.lineTo(x(each.first, wide), base);
      pen.globalAlpha = 0.12;
      pen.fillStyle = colour("ink");
      pen.fill();
      pen.globalAlpha = 1;
    });
    pen.setLineDash([]);
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = colour("soft");
    pen.textAlign = "right";
    pen.fillText(SETTLED, x(total() - 1, wide) - 6, base - 5);  // beside the last step's cursor
    pen.textAlign = "left";
    drawPart(pen, wide, high);
    const width = $.track.getBoundingClientRect().width;
    $.slider.min = start();
    $.slider.max = total() - 1;
    $.slider.style.left = `${0.5 / count() * width - 7}px`;
    $.slider.style.width = `${width - width / count() + 14}px`;
    $.ticks.replaceChildren(...run().events.map(event => {
      const tick = make("button", { type: "button", class: event.kind, "aria-label": event.says, tabindex: -1, onclick: () => {
        stop();
        hold(run().positions[event.m], run(), true);
        go(run().first + event.step);
      }, onmouseenter: pointer => showTip(event.says, pointer), onmouseleave: hideTip }, event.kind === "late" ? "◆" : "▾");
      tick.style.left = `${100 * (run().first + event.step - start() + 0.5) / count()}%`;
      return tick;
    }));
  }

  /** The line where two compared runs part. */
  function drawPart(pen, wide, high, named = true) {
    if (!other() || !other().S || !run().S) return;
    const parted = partsAt(run(), other());
    if (parted === null) return;
    const at = x(run().first + parted, wide) - wide / count() / 2;
    pen.fillStyle = colour("hand");
    pen.fillRect(at - 0.75, 0, 1.5, high);
    if (!named) return;
    pen.font = "11px system-ui, sans-serif";
    const says = `they part at step ${run().first + parted + 1}`;
    const free = x(total() - 1, wide) - pen.measureText(SETTLED).width - 18;  // where the other label begins
    const isLeft = at + 5 + pen.measureText(says).width > free;
    pen.textAlign = isLeft ? "right" : "left";
    pen.fillText(says, isLeft ? Math.min(at - 5, free) : at + 5, high - 11);
    pen.textAlign = "left";
  }

  function drawLabel() {
    const each = run();
    const s = each.step(state.step);
    const planned = Math.max(each.steps, each.first + each.S);
    $.label.textContent = each.S ? `step ${each.first + s + 1}/${planned}` : "waiting …";
    $.slider.value = state.step;
    let changes = 0;
    for (let m = 0; m < each.M && each.S; m++) changes += each.changed(s, m);
    const share = each.S ? `, ${percent(each.share(s))} settled, ${plural(changes, "token")} changed` : "";
    $.slider.setAttribute("aria-valuetext", `${$.label.textContent}${share}`);
  }

  // ---------- the views below
  const VIEWS = { map: "Map", curves: "Curves", step: "This step", difference: "Difference", voices: "Answers" };
  const voices = () => shownRuns().reverse().find(each => each.voices.length)?.voices ?? [];
  let placeRow = () => {};

  function drawViews() {
    const names = Object.keys(VIEWS).filter(name => name === "voices" ? voices().length : name !== "difference" || other());
    if (!names.includes(state.view)) state.view = "map";
    if ($.views.childElementCount !== names.length) {
      $.views.replaceChildren(...names.map(name => make("button", { type: "button", role: "tab", id: `view-${name}`,
        onclick: () => { state.view = name; drawViews(); drawBelow(); } }, VIEWS[name])));
      tablist($.views);
    }
    [...$.views.children].forEach((button, i) => select(button, names[i] === state.view));
    $.view.setAttribute("aria-labelledby", `view-${state.view}`);
  }
  const select = (button, on) => {
    button.setAttribute("aria-selected", String(on));
    button.setAttribute("tabindex", on ? 0 : -1);
  };
  const tablist = list => list.addEventListener("keydown", event => {
    const tabs = [...list.children];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const next = tabs[(tabs.indexOf(root.activeElement) + step + tabs.length) % tabs.length];
    next.click();
    (next.isConnected ? next : list.querySelector("[aria-selected=true]"))?.focus();
  });

  function drawBelow() {
    placeRow = () => {};
    $.view.replaceChildren();
    if (!run().S) return;
    if (state.view === "step") drawStrip();
    else if (state.view === "voices") drawVoices();
    else if (state.view === "curves") drawCurves();
    else drawMap(state.view === "difference");
  }

  /** x of the axis inside the view: it lies under the slider's. */
  const axis = () => {
    const track = $.track.getBoundingClientRect();
    const view = $.view.getBoundingClientRect();
    return { left: track.left - view.left, width: track.width };
  };

  function drawMap(difference) {
    const each = run();
    const twin = difference ? other() : null;
    const { left, width } = axis();
    const rows = state.unfolded ? each.M : Math.min(each.M, each.endAt + 1);
    const canvas = make("canvas", { role: "img", tabindex: 0 });
    const rowMark = make("div", { class: "row" });
    const cursor = make("div", { class: "cursor" });
    const legend = make("div", { class: "legend" });
    $.view.append(canvas, rowMark, cursor, legend);
    const [pen, , high] = canvasOf(canvas);
    const height = high - 28;
    const columns = count();
    const from = each.first - start();
    const cellWide = width / columns;
    const cellHigh = height / rows;
    const image = new OffscreenCanvas(columns, rows);
    const paint = image.getContext("2d");
    const pixels = paint.createImageData(columns, rows);
    const pads = each.pads.size > 0;
    const orange = rgb(colour("hand")).map((value, c) => Math.round(0.65 * value + 0.35 * mapScale[0][c]));
    for (let s = 0; s < each.S; s++) {
      for (let m = 0; m < rows; m++) {
        let tone = mapScale[Math.round(each.sure(s, m) * 32)];
        if (twin) tone = differ(each, s, twin, each.positions[m]) ? orange : mapScale[1];
        else if (pads && each.pads.has(each.at(s, m))) tone = mapScale[(s + m) % 3 ? 0 : 6];
        const at = 4 * (m * columns + from + s);
        pixels.data[at] = tone[0];
        pixels.data[at + 1] = tone[1];
        pixels.data[at + 2] = tone[2];
        pixels.data[at + 3] = 255;
      }
    }
    paint.putImageData(pixels, 0, 0);
    pen.imageSmoothingEnabled = rows > height * 1.2;
    pen.drawImage(image, left, 0, width, height);
    if (!twin) {
      const [paper, ink] = [colour("paper"), colour("ink")];
      for (let s = 1; s < each.S; s++) {
        for (let m = 0; m < rows; m++) {
          if (each.best(s, m) === each.best(s - 1, m)) continue;
          if (Math.max(each.sure(s, m), each.sure(s - 1, m)) < 0.3) continue;
          pen.fillStyle = each.sure(s, m) > 0.55 ? paper : ink;
          pen.fillRect(left + (from + s) * cellWide - 0.75, m * cellHigh, 1.5, Math.max(1, cellHigh * 0.9));
        }
      }
    }
    drawPartIn(pen, left, width, height);
    // words at their rows, as many as fit; the held one always
    pen.font = "11px Charter, Georgia, 'Liberation Serif', serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const texts = spell(each.positions.map((_, m) => each.text(each.last, m)));
    const labels = [];  // [row, its height]
    for (let m = 0; m < rows; m++) {
      const at = Math.max(6, (m + 0.5) * cellHigh);
      if (!labels.length || at >= labels.at(-1)[1] + 11.5) labels.push([m, at]);
    }
    const nameAt = m => each.ends.has(each.at(each.last, m)) ? "¶" : each.pads.has(each.at(each.last, m)) ? "PAD" : word(texts[m]);
    pen.fillStyle = colour("soft");
    const fitted = (name, room) => {
      let fits = name;
      while (fits.length > 1 && pen.measureText(fits).width > room) fits = `${fits.slice(0, -2)}…`;
      return fits;
    };
    labels.forEach(([m, at]) => pen.fillText(fitted(nameAt(m), left - 12), left - 8, at));
    // the step axis
    pen.textAlign = "center";
    pen.font = "11px system-ui, sans-serif";
    const every = niceStep(count());
    for (let index = start(); index < total(); index++) {
      if ((index + 1) % every && index !== start() && index !== total() - 1) continue;
      const at = left + x(index, width);
      if (index !== start() && at + 14 > left + x(total() - 1, width) && index !== total() - 1) continue;
      pen.fillRect(at - 0.5, height, 1, 3);
      pen.fillText(index + 1, Math.min(at, left + width - pen.measureText(index + 1).width / 2), height + 9);
    }
    const chip = (text, background) => {
      const box = make("i");
      box.style.background = background;
      return [box, text];
    };
    const ramp = `linear-gradient(90deg, ${css(mapScale[0])}, ${css(mapScale[32])})`;
    legend.style.paddingInlineStart = `${width < 300 ? 10 : left}px`;
    if (twin) legend.append(...chip(`not the word of “${twin.name}”`, colour("hand")));
    else legend.append("unsure", ...chip("sure", ramp), "  ", make("span", {}, make("b", {}, "|"), " another first choice"));
    const settledNow = Math.round(100 * each.share(each.last));
    canvas.setAttribute("aria-label", twin
      ? `Map of differences between ${each.name} and ${twin.name}, ${rows} rows of words, ${each.S} columns of steps. Arrow keys move.`
      : `Map of certainty: ${rows} rows of words, ${each.S} columns of steps, dark is sure; ${settledNow} % settled at the last step. Arrow keys move.`);
    const under = event => {
      const box = canvas.getBoundingClientRect();
      const s = Math.floor((event.clientX - box.left - left) / cellWide) + start() - each.first;
      const m = Math.floor((event.clientY - box.top) / cellHigh);
      return [clamp(s, 0, each.last), clamp(m, 0, rows - 1), event.clientY - box.top < height];
    };
    canvas.addEventListener("mousemove", event => {
      const [s, m, inside] = under(event);
      if (!inside) return hideTip();
      const name = each.ends.has(each.at(s, m)) ? "¶ (end)" : nameOf(each, each.best(s, m));
      showTip(`step ${each.first + s + 1}, place ${each.positions[m] + 1}\n${name}, ${percent(each.sure(s, m))}`, event);
      if (state.held === null) preview(each.positions[m], each);
    });
    canvas.addEventListener("mouseleave", hideTip);
    canvas.addEventListener("click", event => {
      const [s, m] = under(event);
      stop();
      hold(each.positions[m], each, true);
      go(each.first + s);
    });
    canvas.addEventListener("keydown", event => {
      const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (along) go(clamp(state.step + along, start(), total() - 1));
      if (down) {
        const m = each.order.get(position()) ?? (down > 0 ? -1 : 1);
        hold(each.positions[clamp(m + down, 0, rows - 1)], each, true);
      }
      if (along || down) event.preventDefault();
    });
    placeRow = () => {
      cursor.style.left = `${left + x(state.step, width)}px`;
      const m = each.order.get(position());
      rowMark.hidden = m === undefined || m >= rows;
      rowMark.style.left = `${left}px`;
      rowMark.style.width = `${width}px`;
      rowMark.style.top = `${(m + 0.5) * cellHigh - Math.max(1, cellHigh / 2)}px`;
      rowMark.style.height = `${Math.max(2, cellHigh)}px`;
      rowMark.style.background = cellHigh > 6 ? "none" : "var(--held)";
      rowMark.style.border = cellHigh > 6 ? "1.5px solid var(--held)" : "none";
    };
    placeRow();
  }
  const niceStep = steps => [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].find(every => steps / every <= 10) ?? 1000;
  function drawPartIn(pen, left, width, height) {
    pen.save();
    pen.translate(left, 0);
    drawPart(pen, width, height, false);
    pen.restore();
  }

  function drawCurves() {
    const { left, width } = axis();
    const canvas = make("canvas", { role: "img" });
    const cursor = make("div", { class: "cursor" });
    $.view.append(canvas, cursor);
    const [pen, , high] = canvasOf(canvas);
    const height = high - 22;
    const kinds = [
      { name: "settled", tone: "ink", of: (each, s) => each.share(s), low: 0, high: 1, say: percent },
      { name: "signal read", tone: "held", of: (each, s) => each.frames[s].alpha, low: 0, high: 1, say: percent },
      { name: "wavers between", tone: "curve2", of: (each, s) => each.meanEntropy(s), low: 0, say: v => Math.exp(v).toFixed(Math.exp(v) < 10 ? 1 : 0), unit: " words" },
      { name: "reward", tone: "hand", of: (each, s) => each.frames[s].reward, say: v => v.toFixed(2) },
    ].filter(kind => kind.of(run(), 0) !== null && kind.of(run(), 0) !== undefined);
    const values = shownRuns().map(each => kinds.map(kind => each.frames.map((_, s) => kind.of(each, s))));
    kinds.forEach((kind, k) => {
      const all = values.flatMap(each => each[k]).filter(value => value !== null && value !== undefined);
      kind.low ??= Math.min(...all);
      kind.high ??= Math.max(...all, kind.low + 1e-9);
      const y = value => 4 + (height - 8) * (1 - (value - kind.low) / (kind.high - kind.low));
      shownRuns().forEach((each, i, shown) => {
        pen.beginPath();
        values[i][k].forEach((value, s) => pen.lineTo(left + x(each.first + s, width), y(value ?? kind.low)));
        pen.strokeStyle = colour(kind.tone);
        pen.lineWidth = 1.6;
        pen.setLineDash(i === shown.length - 1 ? [] : [4, 3]);
        pen.stroke();
      });
    });
    pen.setLineDash([]);
    pen.fillStyle = colour("soft");
    pen.fillRect(left, height, width, 1);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    const every = niceStep(count());
    for (let index = start(); index < total(); index++) {
      if ((index + 1) % every && index !== start()) continue;
      pen.fillText(index + 1, left + x(index, width), height + 13);
    }
    drawPartIn(pen, left, width, height);
    canvas.setAttribute("aria-label", `Curves over the steps: ${kinds.map(kind => kind.name).join(", ")}`);
    canvas.addEventListener("click", event => {
      const box = canvas.getBoundingClientRect();
      stop();
      go(clamp(Math.floor((event.clientX - box.left - left) / width * count()) + start(), start(), total() - 1));
    });
    const numbers = make("div");
    numbers.style.cssText = `position:absolute;inset-inline-start:0;top:0;width:${left - 8}px;font-size:11.5px;line-height:14px;text-align:end`;
    $.view.append(numbers);
    placeRow = () => {
      cursor.style.left = `${left + x(state.step, width)}px`;
      numbers.replaceChildren(...kinds.map((kind, k) => {
        const now = shownRuns().map((each, i) => values[i][k][each.step(state.step)]).map(value => value === null || value === undefined ? "–" : kind.say(value));
        const line = make("div", {}, `${kind.name}`, make("br"), make("b", {}, `${now.reverse().join(" / ")}${kind.unit ?? ""}`));
        line.style.color = colour(kind.tone);
        line.style.marginBottom = "4px";
        return line;
      }));
    };
    placeRow();
  }

  const term = (says, name) => make("button", { type: "button", class: "term",
    onmouseenter: event => showTip(TERMS[name], event), onmouseleave: hideTip, onblur: hideTip,
    onfocus: event => showTip(TERMS[name], event), onclick: event => showTip(TERMS[name], event) }, says);

  function drawStrip() {
    const strip = make("div", { class: "strip" });
    $.view.append(strip);
    placeRow = () => {
      const each = run();
      const m = each.order.get(position());
      if (m === undefined) {
        strip.replaceChildren(make("p", {}, "Hold a word to see this step from the inside."));
        strip.firstChild.style.gridColumn = "1 / -1";
        return;
      }
      const s = each.step(state.step);
      const frameNow = each.frames[s];
      const signal = frameNow.alpha;
      const story = text => make("span", { class: "story" }, text);
      const meter = share => {
        const fill = make("s");
        fill.style.width = `${100 * share}%`;
        return make("div", { class: "meter" }, fill);
      };
      const read = make("div", {}, make("strong", {}, "1 Reads noise"), meter(signal),
        make("p", {}, `${percent(signal)} `, term("signal", "signal"), `, ${percent(1 - signal)} noise.`));
      const under = s > 0 ? each.text(s - 1, m) : null;
      if (under !== null) read.append(make("p", {}, "Under the noise: ", story(nameOf(each, each.at(s - 1, m)))));
      else if (each.first === 0) read.append(make("p", {}, "Nothing is written yet."));
      if (frameNow.noisy) read.append(make("p", {}, "Loudest in the noise: ", story(nameOf(each, frameNow.noisy[m]))));
      const believe = make("div", {}, make("strong", {}, "2 ", term("Believes", "belief")));
      if (frameNow.entropy) {
        const between = Math.exp(frameNow.entropy[m] / 16);
        believe.append(make("p", {}, term("Wavers", "wavers"), between < 1.5 ? " hardly at all" : ` between about ${between < 10 ? between.toFixed(1) : Math.round(between)} words`, `.`));
      }
      if (each.kept(s, m)) believe.append(make("p", {}, "First choice: ", story(nameOf(each, each.best(s, m))), `, ${percent(each.sure(s, m))}.`));
      const pin = each.pinAt(s, position());
      const draw = make("div", {}, make("strong", {}, "3 ", term("Draws by lot", "lot")), make("p", {}, story(nameOf(each, each.at(s, m)))));
      if (pin) draw.append(make("p", {}, `Not drawn: set to ${word(pin.token)} by hand.`));
      else draw.append(make("p", {}, drawnP(each, s, m) ? `Its chance was ${drawnP(each, s, m)}.` : ""));
      const again = make("div", {}, make("strong", {}, "4 ", term("Is noised again", "noised")));
      if (each.first + s + 1 >= each.steps) again.append(make("p", {}, "This was the last step: what was drawn stays."));
      else if (s < each.last) {
        const next = each.frames[s + 1].alpha;
        again.append(meter(next), make("p", {}, `Next page: ${percent(next)} signal, ${percent(1 - next)} noise.`));
      } else again.append(make("p", {}, "The run was stopped here."));
      strip.replaceChildren(read, believe, draw, again);
    };
    placeRow();
  }

  /** Final texts of the same prompt: their rewards on one axis, what they cost, what they say. */
  function drawVoices() {
    const all = voices().flatMap(voice => [voice.reward, ...voice.unchosen]);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const at = reward => high > low ? 100 * (reward - low) / (high - low) : 50;
    const number = reward => reward.toFixed(2).replace("-", "−");
    const dot = (reward, kind) => {
      const mark = make("i", { class: kind, title: number(reward) });
      mark.style.left = `${at(reward)}%`;
      return mark;
    };
    const ends = make("div", { class: "voice ends", "aria-hidden": "true" },
      make("div", { class: "dots" }, make("span", {}, number(low)), make("span", {}, number(high))));
    const rows = voices().map(({ name, text, reward, passes, unchosen }) => make("div", { class: "voice", role: "listitem" },
      make("div", {}, make("b", {}, name), " ", make("small", {}, plural(passes, "pass", "passes"))),
      make("div", { class: "dots", "aria-hidden": "true" }, ...unchosen.map(each => dot(each, "unchosen")), dot(reward, "chosen")),
      make("div", { class: "number" }, make("span", { class: "sr" }, "reward "), number(reward)),
      make("div", { class: "story", dir: "auto" }, text.trim() || "∅")));
    $.view.append(make("div", { class: "voices", tabindex: 0, role: "group", "aria-label": "answers to the same prompt" }, ends,
      make("div", { role: "list" }, ...rows),
      make("p", {}, "What are ", term("rewards", "reward"), " and ", term("passes", "passes"), "?")));
  }

  // ---------- tooltips, tour
  function showTip(says, event) {
    $.tip.textContent = says;
    $.tip.hidden = false;
    const box = frame.getBoundingClientRect();
    const own = event.currentTarget?.getBoundingClientRect?.();
    const px = event.clientX || (own ? own.left + own.width / 2 : box.left);
    const py = event.clientY || (own ? own.top : box.top);
    const tip = $.tip.getBoundingClientRect();
    $.tip.style.left = `${clamp(px - box.left + 12, 4, box.width - tip.width - 6)}px`;
    const above = py - box.top - tip.height - 10;
    $.tip.style.top = `${above > 4 ? above : py - box.top + 18}px`;
  }
  function hideTip() { $.tip.hidden = true; }

  const seen = {
    get: () => { try { return localStorage.getItem("tess2lite tour"); } catch { return "unknown"; } },
    set: () => { try { localStorage.setItem("tess2lite tour", "seen"); } catch { /* a page may have no memory */ } },
  };
  function openTour(i) {
    $.tour?.remove();
    if (i >= TOUR.length) return closeTour();
    tourOpen = true;
    const [target, says] = TOUR[i];
    const next = make("button", { type: "button", onclick: () => openTour(i + 1) }, i + 1 < TOUR.length ? "Next" : "Done");
    const skip = make("button", { type: "button", onclick: closeTour }, "Skip");
    $.tour = make("div", { class: "tour", role: "dialog", "aria-label": `tour, ${i + 1} of ${TOUR.length}` }, make("p", {}, says),
      make("div", {}, make("span", {}, `${i + 1} of ${TOUR.length}`), ...(i + 1 < TOUR.length ? [skip] : []), next));
    frame.append($.tour);
    const box = frame.getBoundingClientRect();
    const on = frame.querySelector(target).getBoundingClientRect();
    const own = $.tour.getBoundingClientRect();
    $.tour.style.left = `${clamp(on.left - box.left + on.width / 2 - own.width / 2, 8, box.width - own.width - 8)}px`;
    const low = on.bottom - box.top + 10 + own.height < box.height;
    $.tour.style.top = `${clamp(low ? Math.min(on.bottom - box.top + 10, box.height - own.height - 8) : on.top - box.top - own.height - 10, 8, box.height - own.height - 8)}px`;
    if (i > 0 || root.activeElement) next.focus({ preventScroll: true });
  }
  function closeTour() {
    $.tour?.remove();
    $.tour = null;
    tourOpen = false;
    seen.set();
  }

  // ---------- what one can do
  const tell = () => host.dispatchEvent(new CustomEvent("t2-change", { detail: { run: state.run, step: state.step, position: state.held } }));

  function go(index) {
    state.step = clamp(index, start(), total() - 1);
    state.why = false;
    drawStep();
    tell();
  }
  function preview(at, each) {
    if (state.preview === at && each === run()) return;
    state.preview = at;
    drawStep();
  }
  function hold(at, each, stay = false) {
    const index = runs.indexOf(each);
    state.held = state.held === at && !stay && index === state.run ? null : at;
    state.preview = at;
    state.why = false;
    if (state.beside !== null && index === state.beside) [state.run, state.beside] = [state.run, state.beside];
    panes.forEach(pane => {
      const m = pane.run.order.get(at);
      if (m !== undefined) roving(pane, m);
    });
    drawStep();
    tell();
  }
  function free() {
    state.held = null;
    state.why = false;
    drawStep();
    tell();
  }

  function stop() {
    clearTimeout(state.timer);
    state.timer = null;
    $.play.textContent = "▶";
    $.play.setAttribute("aria-label", "Play");
    $.label.setAttribute("aria-live", "off");
  }
  /** Milliseconds that a step stays: short in the soup, long at events. */
  function dwell(index) {
    const each = run();
    const s = each.step(index);
    const event = each.events.some(one => one.step === s);
    const settling = s > 0 ? each.share(s) - each.share(s - 1) : 0;
    const base = Math.min(220, 9000 / count());
    const slow = event ? 900 : settling > 0 ? Math.max(base, Math.min(320, base + 2500 * settling)) : base * 0.7;
    return (calm ? Math.max(1000, slow) : slow) / state.speed;
  }
  function togglePlay() {
    if (state.timer) return stop();
    if (state.step >= total() - 1) state.step = start();
    $.play.textContent = "❚❚";
    $.play.setAttribute("aria-label", "Pause");
    drawStep();
    const tick = () => {
      if (state.step >= total() - 1) return stop();
      go(state.step + 1);
      state.timer = setTimeout(tick, dwell(state.step));
    };
    state.timer = setTimeout(tick, dwell(state.step));
  }
  function toggleMarks() {
    const on = frame.classList.toggle("marks");
    $.marks.setAttribute("aria-pressed", String(on));
  }
  function toggleBeside() {
    if (state.beside === null) state.beside = state.run === 0 ? runs.length - 1 : 0;
    else state.beside = null;
    redo();
  }
  function chooseRun(i) {
    if (state.beside !== null) state.beside = i === state.run ? state.beside : state.beside === i ? state.run : state.beside;
    state.run = i;
    redo();
  }

  /** Fields above the frame, for who can write new runs. A field with `for` counts for those choices of `action` alone. */
  function makeForm({ fields, says }) {
    const form = keep("form", make("form", { class: "form", onsubmit: submit }));
    const boxes = {};
    for (const { name, label, kind, value, choices, ...rest } of fields) {
      const attributes = { name, ...Object.fromEntries(["min", "max", "step"].filter(key => key in rest).map(key => [key, rest[key]])) };
      const tag = kind === "area" ? "textarea" : kind === "choice" ? "select" : "input";
      const box = make(tag, tag === "input" ? { ...attributes, type: kind } : attributes);
      for (const [says, chosen] of choices ?? []) box.append(make("option", { value: chosen }, says));
      box.value = value;
      boxes[name] = box;
      form.append(make("label", { class: kind === "area" ? "wide" : false }, label, box));
    }
    const grey = () => fields.forEach(field => { if (field.for) boxes[field.name].disabled = !field.for.includes(boxes.action.value); });
    form.addEventListener("change", grey);
    grey();
    form.append(keep("write", make("button", { type: "submit", class: "go" }, says)));
    form.noValidate = true;  // Python says what is wrong, in a sentence
    return form;
    function submit(event) {
      event.preventDefault();
      if (state.busy) return;
      const values = Object.fromEntries(fields.map(({ name, kind }) => {
        const { value } = boxes[name];
        return [name, kind === "number" ? (value === "" ? null : Number(value)) : value];
      }));
      ask("go", { values, run: state.run, step: state.step, position: position() });
    }
  }
  function fail(sentence) {
    say("");
    const back = make("button", { type: "button", onclick: () => { $.failure.hidden = true; } }, "Back to the last run");
    $.failure.replaceChildren(make("div", {}, sentence), ...(run().M ? [back] : []));
    $.failure.hidden = false;
  }

  let waiting = null;
  function say(sentence, busy = false) {
    clearTimeout(waiting);
    $.say.textContent = sentence;
    $.say.title = sentence;
    state.busy = busy;
    $.stop.hidden = !busy || !actor.stop;
    $.go.disabled = busy;
    if ($.write) $.write.disabled = busy;
    drawCard();
  }
  function giveUp() {
    say("");
    actor.stop?.();  // last: where the kernel is gone, this throws
  }
  /** Asks for another future; says so while nothing answers. */
  function act(wish) {
    if (state.busy || state.held === null && state.preview === null) return;
    const at = position();
    hold(at, run(), true);
    ask("whatIf", { run: state.run, step: run().first + run().step(state.step), position: at, ...wish });
  }
  function ask(what, wish) {
    stop();
    say("Asked …", true);
    waiting = setTimeout(() => say("The kernel is busy or gone; this waits until it answers.", true), 700);
    actor[what](wish);
  }
  function tryTyped(event) {
    event.preventDefault();
    if ($.typed.value === "") return $.typed.focus();
    act({ text: $.typed.value });
  }
  const whyEntry = (each, s) => {
    const at = position();
    if (at === null || (!state.why && actor.why)) return null;
    return each.why.find(entry => entry.position === at && entry.step === each.first + s) ?? null;
  };
  function askWhy() {
    const each = run();
    const s = each.step(state.step);
    state.why = !state.why;
    if (state.why && !whyEntry(each, s)) {
      ask("why", { run: state.run, step: each.first + s, position: position() });
    }
    drawStep();
  }

  // ---------- putting it together
  function drawTabs() {
    const focus = root.activeElement?.parentElement === $.tabs;
    $.tabs.replaceChildren(...runs.map((each, i) => {
      const tab = make("button", { type: "button", role: "tab", onclick: () => chooseRun(i), title: each.name }, each.name || "this run");
      select(tab, i === state.run);
      return tab;
    }));
    const chosen = $.tabs.children[state.run];
    const left = chosen.offsetLeft - $.tabs.offsetLeft;
    const hidden = left + chosen.offsetWidth - $.tabs.clientWidth;  // pixels past the end
    if (hidden > $.tabs.scrollLeft || left < $.tabs.scrollLeft) $.tabs.scrollLeft = Math.min(left, hidden);
    if (focus) chosen.focus();
    $.beside.hidden = runs.length < 2;
    $.beside.setAttribute("aria-pressed", String(state.beside !== null));
  }
  function drawStep() {
    drawWords();
    drawCard();
    drawLabel();
    placeRow();
  }
  function drawAll() {
    inkScale = scale("pale");
    mapScale = scale("zero");
    drawTabs();
    drawTrack();
    drawViews();
    drawBelow();
    drawStep();
  }
  /** Steps may come faster than a screen can show them: one drawing per frame. */
  let soon = 0;
  function drawSoon() {
    soon ||= requestAnimationFrame(() => {
      soon = 0;
      drawTrack();
      drawBelow();
      drawStep();
    });
  }
  cleanup.push(() => cancelAnimationFrame(soon));
  /** Lays out anew: for another run, another comparison, an opened fold; never while it plays. */
  function redo() {
    stop();
    state.step = clamp(state.step, start(), total() - 1);
    layOut();
    drawAll();
  }

  $.typed.addEventListener("keydown", event => {  // a notebook may take Enter before the form sees it
    if (event.key === "Enter") tryTyped(event);
  });
  tablist($.tabs);
  frame.addEventListener("keydown", event => {
    if (event.key === "Escape") {
      if ($.tour) closeTour();
      else free();
      hideTip();
      return;
    }
    const busyHere = event.target.closest("input, select, button");
    if (event.key === " " && !busyHere) {
      event.preventDefault();
      togglePlay();
    }
  });

  state.step = total() - 1;
  if (run().S) state.preview = run().positions[run().events.at(-1)?.m ?? 0];
  layOut();
  drawAll();
  let wide = host.isConnected ? host.getBoundingClientRect().width : 0;
  const resize = new ResizeObserver(entries => {
    const now = entries[0].contentRect.width;
    if (Math.abs(now - wide) < 0.5) return;
    const first = wide === 0;  // the element may have been laid out before it was on the page
    wide = now;
    if (first) layOut();
    drawAll();
  });
  resize.observe(host);
  cleanup.push(() => resize.disconnect());
  const offerTour = () => {
    if (!tourOpen && seen.get() === null) requestAnimationFrame(() => openTour(0));
  };
  if ((options.tour ?? data.tour) !== false) offerTour();

  return {
    fail,
    view(name) {
      state.view = name;
      drawViews();
      drawBelow();
    },
    addRun(given, { beside = state.run } = {}) {
      $.failure.hidden = true;
      const added = new Run(given);
      added.growing = true;
      if (runs.length === 1 && !runs[0].M) runs.length = 0;  // nothing was there
      runs.push(added);
      state.beside = runs.length > 1 ? beside : null;
      state.run = runs.length - 1;
      state.step = added.first + Math.max(0, added.last);
      redo();
      if (state.held === null && added.pins.length) state.held = added.pins[0].position;
      drawStep();
      return runs.length - 1;
    },
    addStep(i, step) {
      const each = runs[i];
      if (step.pieces) each.pieces.push(...step.pieces);
      each.addColumns({ ...step, alpha_bar: [step.alpha_bar].flat(), reward: step.reward === undefined ? null : [step.reward].flat() });
      if (i !== state.run) return;
      state.step = each.first + each.last;
      drawLabel();
      drawSoon();
    },
    endRun(i, more = {}) {
      Object.assign(runs[i], more);
      runs[i].growing = false;
      runs[i]._settled = runs[i]._shares = runs[i]._events = runs[i]._end = null;
      redo();
    },
    addVoices(i, given) {
      const isFirst = !runs[i].voices.length;
      runs[i].voices = given;
      if (isFirst) state.view = "voices";
      drawViews();
      drawBelow();
    },
    addWhy(i, entry) {
      runs[i].why.push(entry);
      state.why = true;
      say("");
      drawStep();
    },
    say,
    offerTour,
    go,
    hold: at => hold(at, run(), true),
    get runs() { return data.runs; },
    get state() { return { run: state.run, beside: state.beside, step: state.step, held: state.held }; },
    destroy() {
      cleanup.forEach(end => end());
      root.replaceChildren();
    },
  };
}

// ---------------------------------------------------------------------------------------------- in a notebook's kernel

/** The front end of an anywidget whose traits are `data` and whose messages are those of viz/kernel.py. */
function render({ model, el }) {
  const host = document.createElement("div");
  el.append(host);
  const actor = {
    whatIf: wish => model.send({ type: "what if", ...wish }),
    go: wish => model.send({ type: "go", ...wish }),
    stop: () => model.send({ type: "stop" }),
  };
  if (model.get("can_explain")) actor.why = wish => model.send({ type: "why", ...wish });
  const controls = { fields: model.get("fields") ?? [], says: model.get("says") };
  const handle = explore(host, model.get("data"), { actor, controls });
  const answers = {
    run: message => handle.addRun(message.run, "beside" in message ? { beside: message.beside } : {}),
    step: message => handle.addStep(message.run, message.step),
    end: message => handle.endRun(message.run, message.more),
    why: message => handle.addWhy(message.run, message.entry),
    voices: message => handle.addVoices(message.run, message.voices),
    fail: message => handle.fail(message.sentence),
    view: message => handle.view(message.view),
    say: message => handle.say(message.sentence, message.busy),
  };
  const listen = message => answers[message.type]?.(message);
  model.on("msg:custom", listen);
  return () => {
    model.off("msg:custom", listen);
    handle.destroy();
  };
}

export default { render };

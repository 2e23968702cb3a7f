// The sampler: text out of noise, one step at a time, as tess2lite/sampling.py does it.
//
// A run is a function of its settings and seed: noise and draws depend on (seed, step) alone, so a run can be resumed
// from any step, and an edited token does not change the noise that comes after it.

import { softmaxRow } from "./denoiser.js";

const SIMPLEX_VALUE = 5; // k of the paper: a token is +k at its id and −k elsewhere
export const MAX_REJECTIONS = 8; // nucleus draws before a row is sorted instead
export const TOP_K = 5; // likeliest tokens that a step remembers for each position

// ᾱ at u = t/T: how much of the token is left in the noisy simplex (improved cosine).
export function alphaBar(u) {
  const curve = (x) => Math.cos((((x + 1e-4) / (1 + 1e-4)) * Math.PI) / 2) ** 2;
  return curve(u) / curve(0);
}

// A generator of uniform numbers in [0, 1): sfc32, seeded with a string.
export function uniformGenerator(seed) {
  let h = 2166136261;
  const mix = (value) => {
    h = Math.imul(h ^ value, 16777619);
    h ^= h >>> 15;
    return h | 0;
  };
  for (const character of seed) mix(character.codePointAt(0));
  let [a, b, c, d] = [mix(1), mix(2), mix(3), 1];
  const next = () => {
    const sum = (a + b + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

// n standard normal numbers (Box–Muller).
export function normalNumbers(seed, n) {
  const uniform = uniformGenerator(seed);
  const numbers = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    numbers[i] = radius * Math.cos(angle);
    if (i + 1 < n) numbers[i + 1] = radius * Math.sin(angle);
  }
  return numbers;
}

// One id from the distribution p[offset … offset + V), by inversion of u.
function sampleCategorical(p, offset, V, u) {
  let total = 0;
  for (let v = 0; v < V; v++) total += p[offset + v];
  const goal = u * total;
  let mass = 0;
  let last = 0;
  for (let v = 0; v < V; v++) {
    if (p[offset + v] === 0) continue;
    mass += p[offset + v];
    last = v;
    if (mass > goal) return v;
  }
  return last;
}

// Whether an id is in its row's top-p set: the mass ranked before it, ties by id, is below topP.
function isInNucleus(p, offset, V, id, topP) {
  const own = p[offset + id];
  let before = 0;
  for (let v = 0; v < V; v++) {
    const other = p[offset + v];
    if (other > own || (other === own && v < id)) before += other;
  }
  return before < topP;
}

function sampleSorted(p, offset, V, topP, u) {
  const ranked = Array.from({ length: V }, (_, v) => v).sort((v, w) => p[offset + w] - p[offset + v] || v - w);
  const kept = new Float32Array(V);
  let mass = 0;
  for (let rank = 0; rank < V && mass < topP; rank++) {
    kept[rank] = p[offset + ranked[rank]];
    mass += kept[rank];
  }
  return ranked[sampleCategorical(kept, 0, V, u)];
}

// A draw from the top-p set without a sort: draw w ~ p and keep it when it belongs to the set, else draw again.
// uniform(attempt) is in [0, 1).
export function sampleNucleus(p, offset, V, topP, uniform) {
  for (let attempt = 0; attempt < MAX_REJECTIONS; attempt++) {
    const id = sampleCategorical(p, offset, V, uniform(attempt));
    if (topP >= 1 || isInNucleus(p, offset, V, id, topP)) return id;
  }
  return sampleSorted(p, offset, V, topP, uniform(MAX_REJECTIONS));
}

// Ids and values of the k largest numbers of a row, falling; ties by id.
function topOfRow(memory, offset, V, k) {
  const ids = [];
  const values = [];
  for (let v = 0; v < V; v++) {
    const value = memory[offset + v];
    if (values.length === k && value <= values[k - 1]) continue;
    let at = Math.min(values.length, k - 1);
    while (at > 0 && values[at - 1] < value) at--;
    values.splice(at, 0, value);
    ids.splice(at, 0, v);
    if (values.length > k) {
      values.pop();
      ids.pop();
    }
  }
  return { ids, values };
}

function likeliest(memory, offset, V) {
  return topOfRow(memory, offset, V, 1).ids[0];
}

export class Sampler {
  // ids: of all L positions; what they hold under the mask is not read. mask: L booleans, true where tokens are
  // written. times: t/T of each step, falling. topP: null for the likeliest token. pins: [{position, token, from}],
  // tokens held from a step on. noise(step) → (N, V) standard normal numbers for the N masked positions, −1 for the
  // start; uniform(step) → (row, attempt) → [0, 1): both for tests, in place of seeded numbers.
  constructor(denoiser, { ids, mask, times, topP = 0.99, temperature = 1, seed = 0, pins = [], noise, uniform }) {
    this.denoiser = denoiser;
    this.ids = ids;
    this.positions = [...mask.keys()].filter((position) => mask[position]);
    this.times = times;
    this.topP = topP;
    this.temperature = temperature;
    this.pins = pins;
    const size = this.positions.length * denoiser.config.vocab_size;
    this.noise = noise ?? ((step) => normalNumbers(`${seed}/${step}/noise`, size));
    this.uniform = uniform ?? ((step) => this.seededUniform(seed, step));
    this.inputs = []; // what each step read, (N, H), kept so that a run can be resumed from any step
    this.noisyTokens = []; // the likeliest token of each noisy simplex that a step read, (N,)
  }

  // A table of draws: a row's numbers do not depend on how often other rows were refused.
  seededUniform(seed, step) {
    const next = uniformGenerator(`${seed}/${step}/draw`);
    const rows = this.positions.length;
    const table = Float64Array.from({ length: rows * (MAX_REJECTIONS + 1) }, next);
    return (row, attempt) => table[attempt * rows + row];
  }

  // The first input: pure noise, self-conditioned on the uniform distribution.
  firstInput() {
    const { memory, offsets, stride, config } = this.denoiser;
    const noise = this.noise(-1);
    const V = config.vocab_size;
    this.noisyTokens[0] = new Int32Array(this.positions.length);
    for (let row = 0; row < this.positions.length; row++) {
      const at = offsets.logits + row * stride.vocab;
      for (let v = 0; v < V; v++) memory[at + v] = SIMPLEX_VALUE * noise[row * V + v];
      this.noisyTokens[0][row] = likeliest(memory, at, V);
      softmaxRow(memory, at, V);
      for (let v = 0; v < V; v++) memory[at + v] = (memory[at + v] + 1 / V) / 2;
    }
    return this.denoiser.softEmbeddings(this.positions.length);
  }

  // Writes what the backbone reads at step `index`, which needs the step before to be made.
  writeInputs(index) {
    const { denoiser, positions, ids } = this;
    const soft = this.inputs[index];
    let row = 0;
    for (let position = 0; position < ids.length; position++) {
      if (position === positions[row]) {
        denoiser.writeSoft(position, soft, row * denoiser.config.hidden_size, this.times[index]);
        row++;
      } else {
        denoiser.writeToken(position, ids[position]);
      }
    }
  }

  // Makes step `index` and the input of the next one.
  step(index) {
    const { denoiser, positions, ids } = this;
    const { memory, offsets, stride, config } = denoiser;
    const V = config.vocab_size;
    if (index === 0) this.inputs[0] = this.firstInput();
    this.writeInputs(index);
    denoiser.forward(ids.length);
    denoiser.logits(positions);

    const uniform = this.topP === null ? null : this.uniform(index);
    const isLast = index === this.times.length - 1;
    const noise = isLast ? null : this.noise(index);
    const level = isLast ? 1 : alphaBar(this.times[index + 1]);
    const tokens = Int32Array.from(ids);
    const topIds = new Int32Array(positions.length * TOP_K);
    const topP = new Float32Array(positions.length * TOP_K);
    const tokenP = new Float32Array(positions.length);
    const entropy = new Float32Array(positions.length);
    if (!isLast) this.noisyTokens[index + 1] = new Int32Array(positions.length);
    for (let row = 0; row < positions.length; row++) {
      const at = offsets.logits + row * stride.vocab;
      const tempered = this.temperature === 1 ? null : this.temper(at, V);
      softmaxRow(memory, at, V);
      const top = topOfRow(memory, at, V, Math.min(TOP_K, V));
      topIds.set(top.ids, row * TOP_K);
      topP.set(top.values, row * TOP_K);
      for (let v = 0; v < V; v++) {
        const p = memory[at + v];
        if (p > 0) entropy[row] -= p * Math.log(p);
      }
      const draw = (p, offset) => sampleNucleus(p, offset, V, this.topP, (attempt) => uniform(row, attempt));
      // A run ends with the likeliest tokens, as the official code shows them.
      const isGreedy = uniform === null || isLast;
      const drawn = isGreedy ? top.ids[0] : tempered ? draw(tempered, 0) : draw(memory, at);
      const token = this.pinned(positions[row], index) ?? drawn;
      tokens[positions[row]] = token;
      tokenP[row] = memory[at + token];
      if (!isLast) this.noisyTokens[index + 1][row] = this.renoise(at, noise, row, token, level);
    }
    if (!isLast) this.inputs[index + 1] = denoiser.softEmbeddings(positions.length);
    const read = index === 0 ? 0 : alphaBar(this.times[index]); // the first input is pure noise
    const noisyTokens = this.noisyTokens[index];
    return { index, time: this.times[index], alphaBar: read, tokens, tokenP, noisyTokens, topIds, topP, entropy };
  }

  temper(at, V) {
    const row = this.denoiser.memory.slice(at, at + V);
    for (let v = 0; v < V; v++) row[v] /= this.temperature;
    softmaxRow(row, 0, V);
    return row;
  }

  pinned(position, index) {
    return this.pins.findLast((pin) => pin.position === position && pin.from <= index)?.token;
  }

  // Turns a row of probabilities into the mean of them and of the token's noisy simplex: self-conditioning.
  // Returns the likeliest token of that simplex.
  renoise(at, noise, row, token, level) {
    const { memory, config } = this.denoiser;
    const V = config.vocab_size;
    const simplex = (this.scratch ??= new Float32Array(V));
    const scale = Math.sqrt(1 - level) * SIMPLEX_VALUE;
    for (let v = 0; v < V; v++) simplex[v] = scale * noise[row * V + v];
    simplex[token] += 2 * SIMPLEX_VALUE * Math.sqrt(level);
    const noisyToken = likeliest(simplex, 0, V);
    softmaxRow(simplex, 0, V);
    for (let v = 0; v < V; v++) memory[at + v] = (memory[at + v] + simplex[v]) / 2;
    return noisyToken;
  }

  // A run that shares this one's past up to step `from`, with other pins.
  branch(from, pins) {
    const twin = Object.assign(Object.create(Sampler.prototype), this, { pins, scratch: null });
    twin.inputs = this.inputs.slice(0, from + 1);
    twin.noisyTokens = this.noisyTokens.slice(0, from + 1);
    return twin;
  }
}

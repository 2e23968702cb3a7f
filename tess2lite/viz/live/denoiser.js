// The forward pass: a Mistral or Llama decoder with bidirectional attention, in float32.
//
// All numbers live in one array, `memory`, and a tensor is an offset into it, so that the matrix product may be done by
// JavaScript or by WebAssembly on the same memory. Rows as long as the vocabulary or the context are padded with zeros
// to a multiple of four numbers; all other rows have such a length (page.py checks it).

export const roundUp = (n) => Math.ceil(n / 4) * 4;

// float16 bits → number.
export function halfToFloat(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// C = A·Wᵀ: A (M, K) with rows `lda` apart at offset `a`, W (N, K), C (M, N). Four rows by four rows at a time,
// so that 8 loads serve 16 products.
export function multiply(memory, a, lda, w, ldw, c, ldc, M, N, K) {
  for (let i = 0; i < M; i += 4) {
    // At the edge a row is computed again rather than a shorter block.
    const i1 = Math.min(i + 1, M - 1);
    const i2 = Math.min(i + 2, M - 1);
    const i3 = Math.min(i + 3, M - 1);
    const a0 = a + i * lda;
    const a1 = a + i1 * lda;
    const a2 = a + i2 * lda;
    const a3 = a + i3 * lda;
    for (let j = 0; j < N; j += 4) {
      const j1 = Math.min(j + 1, N - 1);
      const j2 = Math.min(j + 2, N - 1);
      const j3 = Math.min(j + 3, N - 1);
      const w0 = w + j * ldw;
      const w1 = w + j1 * ldw;
      const w2 = w + j2 * ldw;
      const w3 = w + j3 * ldw;
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0;
      let s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let s20 = 0, s21 = 0, s22 = 0, s23 = 0;
      let s30 = 0, s31 = 0, s32 = 0, s33 = 0;
      for (let k = 0; k < K; k++) {
        const x0 = memory[a0 + k];
        const x1 = memory[a1 + k];
        const x2 = memory[a2 + k];
        const x3 = memory[a3 + k];
        const y0 = memory[w0 + k];
        const y1 = memory[w1 + k];
        const y2 = memory[w2 + k];
        const y3 = memory[w3 + k];
        s00 += x0 * y0; s01 += x0 * y1; s02 += x0 * y2; s03 += x0 * y3;
        s10 += x1 * y0; s11 += x1 * y1; s12 += x1 * y2; s13 += x1 * y3;
        s20 += x2 * y0; s21 += x2 * y1; s22 += x2 * y2; s23 += x2 * y3;
        s30 += x3 * y0; s31 += x3 * y1; s32 += x3 * y2; s33 += x3 * y3;
      }
      const c0 = c + i * ldc;
      const c1 = c + i1 * ldc;
      const c2 = c + i2 * ldc;
      const c3 = c + i3 * ldc;
      memory[c0 + j] = s00; memory[c0 + j1] = s01; memory[c0 + j2] = s02; memory[c0 + j3] = s03;
      memory[c1 + j] = s10; memory[c1 + j1] = s11; memory[c1 + j2] = s12; memory[c1 + j3] = s13;
      memory[c2 + j] = s20; memory[c2 + j1] = s21; memory[c2 + j2] = s22; memory[c2 + j3] = s23;
      memory[c3 + j] = s30; memory[c3 + j1] = s31; memory[c3 + j2] = s32; memory[c3 + j3] = s33;
    }
  }
}

// softmax of one row of n numbers, in place.
export function softmaxRow(memory, offset, n) {
  let top = -Infinity;
  for (let i = offset; i < offset + n; i++) {
    if (memory[i] > top) top = memory[i];
  }
  let sum = 0;
  for (let i = offset; i < offset + n; i++) {
    const e = Math.exp(memory[i] - top);
    memory[i] = e;
    sum += e;
  }
  const scale = 1 / sum;
  for (let i = offset; i < offset + n; i++) memory[i] *= scale;
}

const PLAIN_BACKEND = { allocate: (n) => new Float32Array(n), multiply };

export class Denoiser {
  // config: of the model, as in config.json, with `head_dim` and `rope_theta` filled in. tensors: [{ name, shape }], in
  // the order in which `halves`, a Uint16Array of float16 bits, holds them. backend: where the numbers are kept and
  // how they are multiplied.
  constructor(config, tensors, halves, backend = PLAIN_BACKEND) {
    this.config = config;
    this.product = backend.multiply;
    this.stride = {
      hidden: config.hidden_size,
      inner: config.intermediate_size,
      vocab: roundUp(config.vocab_size),
      context: roundUp(config.max_position_embeddings),
    };
    this.size = 0;
    this.offsets = {};
    this.plan(tensors);
    this.memory = backend.allocate(this.size);
    this.fill(tensors, halves);
    this.rotations();
  }

  reserve(name, rows, stride) {
    this.offsets[name] = this.size;
    this.size += rows * stride;
  }

  // Lays out weights and the space the forward pass works in.
  plan(tensors) {
    const { config, stride } = this;
    const L = config.max_position_embeddings;
    for (const { name, shape } of tensors) this.reserve(name, shape.length > 1 ? shape[0] : 1, roundUp(shape.at(-1)));
    this.reserve("embedding, transposed", config.hidden_size, stride.vocab);
    this.reserve("hidden", L, stride.hidden);
    this.reserve("normed", L, stride.hidden);
    this.reserve("delta", L, stride.hidden);
    this.reserve("queries", L, config.num_attention_heads * config.head_dim);
    this.reserve("keys", L, config.num_key_value_heads * config.head_dim);
    this.reserve("values", L, config.num_key_value_heads * config.head_dim);
    this.reserve("values, transposed", config.num_key_value_heads * config.head_dim, stride.context);
    this.reserve("mixed", L, config.num_attention_heads * config.head_dim);
    this.reserve("scores", L, stride.context);
    this.reserve("gate", L, stride.inner);
    this.reserve("up", L, stride.inner);
    this.reserve("logits", L, stride.vocab);
    this.reserve("rows", L, stride.hidden);
  }

  fill(tensors, halves) {
    const { memory, stride } = this;
    let next = 0;
    for (const { name, shape } of tensors) {
      const columns = shape.at(-1);
      const rows = shape.length > 1 ? shape[0] : 1;
      for (let row = 0; row < rows; row++) {
        const offset = this.offsets[name] + row * roundUp(columns);
        for (let i = 0; i < columns; i++) memory[offset + i] = halfToFloat(halves[next++]);
      }
    }
    const from = this.offsets["model.embed_tokens.weight"];
    const to = this.offsets["embedding, transposed"];
    for (let v = 0; v < this.config.vocab_size; v++) {
      for (let h = 0; h < this.config.hidden_size; h++) {
        memory[to + h * stride.vocab + v] = memory[from + v * stride.hidden + h];
      }
    }
  }

  rotations() {
    const { head_dim, rope_theta, max_position_embeddings } = this.config;
    const half = head_dim / 2;
    this.cosines = new Float32Array(max_position_embeddings * half);
    this.sines = new Float32Array(max_position_embeddings * half);
    for (let position = 0; position < max_position_embeddings; position++) {
      for (let i = 0; i < half; i++) {
        const angle = position * rope_theta ** (-i / half);
        this.cosines[position * half + i] = Math.cos(angle);
        this.sines[position * half + i] = Math.sin(angle);
      }
    }
  }

  // RMSNorm of L rows.
  norm(from, to, weight, L) {
    const { memory, stride } = this;
    const H = this.config.hidden_size;
    for (let row = 0; row < L; row++) {
      const source = from + row * stride.hidden;
      const target = to + row * stride.hidden;
      let squares = 0;
      for (let i = 0; i < H; i++) squares += memory[source + i] * memory[source + i];
      const scale = 1 / Math.sqrt(squares / H + this.config.rms_norm_eps);
      for (let i = 0; i < H; i++) memory[target + i] = memory[source + i] * scale * memory[weight + i];
    }
  }

  // Rotary position embedding of L rows of heads, in place: each head's two halves are turned against each other.
  rotate(offset, heads, L) {
    const { memory, cosines, sines, config } = this;
    const half = config.head_dim / 2;
    for (let row = 0; row < L; row++) {
      for (let head = 0; head < heads; head++) {
        const at = offset + (row * heads + head) * config.head_dim;
        for (let i = 0; i < half; i++) {
          const x = memory[at + i];
          const y = memory[at + half + i];
          const cosine = cosines[row * half + i];
          const sine = sines[row * half + i];
          memory[at + i] = x * cosine - y * sine;
          memory[at + half + i] = y * cosine + x * sine;
        }
      }
    }
  }

  attention(layer, L) {
    const { memory, offsets, stride, product } = this;
    const { hidden_size: H, num_attention_heads: heads, num_key_value_heads: groups, head_dim: D } = this.config;
    const weight = (name) => offsets[`model.layers.${layer}.self_attn.${name}_proj.weight`];
    const { queries, keys, values, scores, mixed } = offsets;
    const transposed = offsets["values, transposed"];
    const wide = heads * D;
    const narrow = groups * D;
    product(memory, offsets.normed, stride.hidden, weight("q"), stride.hidden, queries, wide, L, heads * D, H);
    product(memory, offsets.normed, stride.hidden, weight("k"), stride.hidden, keys, narrow, L, groups * D, H);
    product(memory, offsets.normed, stride.hidden, weight("v"), stride.hidden, values, narrow, L, groups * D, H);
    const scale = 1 / Math.sqrt(D);
    for (let i = queries; i < queries + L * wide; i++) memory[i] *= scale;
    this.rotate(queries, heads, L);
    this.rotate(keys, groups, L);
    memory.fill(0, transposed, transposed + groups * D * stride.context);
    for (let row = 0; row < L; row++) {
      for (let i = 0; i < groups * D; i++) {
        memory[transposed + i * stride.context + row] = memory[values + row * narrow + i];
      }
    }
    memory.fill(0, scores, scores + L * stride.context);
    for (let head = 0; head < heads; head++) {
      const group = Math.floor((head * groups) / heads); // grouped-query attention: some heads share keys and values
      product(memory, queries + head * D, wide, keys + group * D, narrow, scores, stride.context, L, L, D);
      for (let row = 0; row < L; row++) softmaxRow(memory, scores + row * stride.context, L);
      const v = transposed + group * D * stride.context;
      product(memory, scores, stride.context, v, stride.context, mixed + head * D, wide, L, D, roundUp(L));
    }
    product(memory, mixed, wide, weight("o"), wide, offsets.delta, stride.hidden, L, H, heads * D);
  }

  feedForward(layer, L) {
    const { memory, offsets, stride, product } = this;
    const { hidden_size: H, intermediate_size: I } = this.config;
    const weight = (name) => offsets[`model.layers.${layer}.mlp.${name}_proj.weight`];
    const { gate, up } = offsets;
    product(memory, offsets.normed, stride.hidden, weight("gate"), stride.hidden, gate, stride.inner, L, I, H);
    product(memory, offsets.normed, stride.hidden, weight("up"), stride.hidden, up, stride.inner, L, I, H);
    for (let i = 0; i < L * stride.inner; i++) {
      const x = memory[gate + i];
      memory[gate + i] = (x / (1 + Math.exp(-x))) * memory[up + i]; // SwiGLU
    }
    product(memory, gate, stride.inner, weight("down"), stride.inner, offsets.delta, stride.hidden, L, H, I);
  }

  addDelta(L) {
    const { memory, offsets, stride } = this;
    for (let i = 0; i < L * stride.hidden; i++) memory[offsets.hidden + i] += memory[offsets.delta + i];
  }

  // The backbone on L positions: reads the embeddings at offsets.hidden, leaves the last hidden states at
  // offsets.normed. Every position sees every other.
  forward(L) {
    const { offsets } = this;
    for (let layer = 0; layer < this.config.num_hidden_layers; layer++) {
      const weight = (name) => offsets[`model.layers.${layer}.${name}.weight`];
      this.norm(offsets.hidden, offsets.normed, weight("input_layernorm"), L);
      this.attention(layer, L);
      this.addDelta(L);
      this.norm(offsets.hidden, offsets.normed, weight("post_attention_layernorm"), L);
      this.feedForward(layer, L);
      this.addDelta(L);
    }
    this.norm(offsets.hidden, offsets.normed, offsets["model.norm.weight"], L);
  }

  // Writes what the backbone reads at one position: an (H,) soft embedding with its timestep, time = t/T.
  writeSoft(position, soft, start, time) {
    const { memory, offsets, stride } = this;
    const at = offsets.hidden + position * stride.hidden;
    const embedding = offsets["timestep_embed.weight"];
    for (let i = 0; i < this.config.hidden_size; i++) {
      memory[at + i] = soft[start + i] + time * memory[embedding + i];
    }
  }

  // The same for a known token: its plain embedding.
  writeToken(position, id) {
    const { memory, offsets, stride } = this;
    const from = offsets["model.embed_tokens.weight"] + id * stride.hidden;
    memory.copyWithin(offsets.hidden + position * stride.hidden, from, from + stride.hidden);
  }

  // Logits of the given positions at offsets.logits, one row each. A position is read from its left neighbour's
  // hidden state.
  logits(positions) {
    const { memory, offsets, stride } = this;
    const head = offsets["lm_head.weight"] ?? offsets["model.embed_tokens.weight"];
    positions.forEach((position, row) => {
      const from = offsets.normed + (position - 1) * stride.hidden;
      memory.copyWithin(offsets.rows + row * stride.hidden, from, from + stride.hidden);
    });
    const { hidden_size: H, vocab_size: V } = this.config;
    const rows = positions.length;
    const { hidden, vocab } = stride;
    this.product(memory, offsets.rows, hidden, head, hidden, offsets.logits, vocab, rows, V, H);
  }

  // Σ_v p_v·E_v of the first `rows` rows at offsets.logits, which hold probabilities. Returns (rows, H).
  softEmbeddings(rows) {
    const { memory, offsets, stride } = this;
    const { hidden_size: H, vocab_size: V } = this.config;
    const matrix = offsets["embedding, transposed"];
    const { hidden, vocab } = stride;
    this.product(memory, offsets.logits, vocab, matrix, vocab, offsets.rows, hidden, rows, H, roundUp(V));
    const soft = new Float32Array(rows * H);
    for (let row = 0; row < rows; row++) {
      const from = offsets.rows + row * stride.hidden;
      soft.set(memory.subarray(from, from + H), row * H);
    }
    return soft;
  }
}

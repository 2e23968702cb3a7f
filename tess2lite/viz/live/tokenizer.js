// Text ↔ token ids, as the `tokenizers` library does it: byte-level pre-tokenization, then BPE or Unigram.
// Special tokens that a text spells out are plain text.

const ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d";
const RUNS = " ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+";
const SPACES = "\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+"; // the last space belongs to the next word
const WORDS = new RegExp(`${ENDINGS}|${RUNS}|${SPACES}`, "gu"); // GPT-2's words
const UNKNOWN_PENALTY = 10; // what an unknown character costs below the lowest score of a Unigram vocabulary

// GPT-2's alphabet: every byte as a printable character.
function byteAlphabet() {
  const characters = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters.push(String.fromCodePoint(printable ? byte : next++));
  }
  return characters;
}

const BYTE_TO_CHARACTER = byteAlphabet();
const CHARACTER_TO_BYTE = new Map(BYTE_TO_CHARACTER.map((character, byte) => [character, byte]));

// UTF-8 → string; bytes that spell no character become lone code units from U+DC00 on.
function spellBytes(bytes) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });
  let text = "";
  for (let i = 0; i < bytes.length; ) {
    let length = Math.min(4, bytes.length - i);
    let character = null;
    for (; length > 0 && character === null; length--) {
      try {
        const decoded = decoder.decode(bytes.subarray(i, i + length));
        if ([...decoded].length === 1) character = decoded;
      } catch {
        continue;
      }
    }
    text += character ?? String.fromCharCode(0xdc00 + bytes[i]);
    i += character === null ? 1 : length + 1;
  }
  return text;
}

class BytePairModel {
  constructor(spec) {
    this.ids = new Map(Object.entries(spec.vocab));
    const pairs = spec.merges.map((pair) => (typeof pair === "string" ? pair.split(" ") : pair));
    this.ranks = new Map(pairs.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.unknown = this.ids.get(spec.unk_token);
  }

  // Merges the pair of the lowest rank, the leftmost first, until none is left.
  encode(word) {
    const parts = [...word];
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.map((part) => this.ids.get(part) ?? this.unknown).filter((id) => id !== undefined);
  }
}

class UnigramModel {
  constructor(spec) {
    this.pieces = new Map(spec.vocab.map(([piece, score], id) => [piece, { id, score }]));
    this.longest = Math.max(...spec.vocab.map(([piece]) => piece.length));
    this.unknown = spec.unk_id;
    this.unknownScore = Math.min(...spec.vocab.map(([, score]) => score)) - UNKNOWN_PENALTY;
  }

  // Viterbi: the segmentation with the highest sum of scores.
  encode(word) {
    const best = Array.from({ length: word.length + 1 }, () => ({ score: -Infinity, start: -1, id: -1 }));
    best[0].score = 0;
    const offer = (start, end, id, score) => {
      const total = best[start].score + score;
      if (total > best[end].score) best[end] = { score: total, start, id };
    };
    for (let start = 0; start < word.length; start++) {
      const last = Math.min(word.length, start + this.longest);
      for (let end = start + 1; end <= last; end++) {
        const piece = this.pieces.get(word.slice(start, end));
        if (piece) offer(start, end, piece.id, piece.score);
      }
      if (!this.pieces.has(word[start])) offer(start, start + 1, this.unknown, this.unknownScore);
    }
    const ids = [];
    for (let end = word.length; end > 0; end = best[end].start) {
      const { id } = best[end];
      if (id !== this.unknown || ids.at(-1) !== id) ids.push(id); // neighbouring unknowns are one token
    }
    return ids.reverse();
  }
}

export class Tokenizer {
  // spec: the content of tokenizer.json.
  constructor(spec) {
    this.model = spec.model.type === "BPE" ? new BytePairModel(spec.model) : new UnigramModel(spec.model);
    this.addPrefixSpace = spec.pre_tokenizer.add_prefix_space;
    const vocabulary = this.model.ids ?? new Map([...this.model.pieces].map(([piece, { id }]) => [piece, id]));
    this.tokens = [];
    for (const [piece, id] of vocabulary) this.tokens[id] = piece;
    for (const { id, content } of spec.added_tokens) this.tokens[id] = content;
    this.special = new Set(spec.added_tokens.filter((token) => token.special).map((token) => token.id));
  }

  encode(text) {
    const prefixed = this.addPrefixSpace && text && !text.startsWith(" ") ? ` ${text}` : text;
    const ids = [];
    for (const [word] of prefixed.matchAll(WORDS)) {
      const characters = Array.from(new TextEncoder().encode(word), (byte) => BYTE_TO_CHARACTER[byte]);
      ids.push(...this.model.encode(characters.join("")));
    }
    return ids;
  }

  bytesOf(id) {
    const characters = [...this.tokens[id]];
    if (!characters.every((character) => CHARACTER_TO_BYTE.has(character))) {
      return new TextEncoder().encode(this.tokens[id]);
    }
    return Uint8Array.from(characters, (character) => CHARACTER_TO_BYTE.get(character));
  }

  // A token's text as the explorer takes it: a byte that is not a whole character is the code unit U+DC00 + byte.
  textOf(id) {
    this.texts ??= this.tokens.map((_, i) => spellBytes(this.bytesOf(i)));
    return this.texts[id];
  }

  decode(ids) {
    const bytes = [];
    for (const id of ids) bytes.push(...this.bytesOf(id));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }

  // Ids and mask of a chat's prompt, in which an underscore is an underscore.
  encodeChat(prompt, bos) {
    const ids = [bos, ...this.encode(prompt)];
    return { ids, mask: ids.map(() => false) };
  }

  // Ids and mask of a text with blanks: every underscore is one token to write; a token carries its own space.
  encodeBlanks(text, bos, pad) {
    const ids = [bos];
    const mask = [false];
    text.split(/( ?_+)/).forEach((part, i) => {
      const isBlank = i % 2 === 1;
      const blanks = [...part].filter((character) => character === "_");
      const tokens = isBlank ? blanks.map(() => pad) : this.encode(part);
      ids.push(...tokens);
      mask.push(...tokens.map(() => isBlank));
    });
    return { ids, mask };
  }
}

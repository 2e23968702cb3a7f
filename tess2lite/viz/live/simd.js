// The matrix product of denoiser.js in WebAssembly, four numbers at a time: its instructions are written out below and
// assembled here. C = A·Wᵀ in blocks of four rows of A by two of W; K is a multiple of 4; addresses are in bytes.

const OPCODES = {
  "local.get": [0x20], "local.set": [0x21], "i32.const": [0x41],
  "i32.add": [0x6a], "i32.sub": [0x6b], "i32.mul": [0x6c], "i32.lt_s": [0x48], "f32.add": [0x92],
  select: [0x1b], loop: [0x03, 0x40], br_if: [0x0d], end: [0x0b],
  "f32.store": [0x38, 2, 0], "v128.load": [0xfd, 0, 2, 0], "v128.zero": [0xfd, 12, ...Array(16).fill(0)],
  "f32x4.lane": [0xfd, 31], "f32x4.add": [0xfd, 0xe4, 1], "f32x4.mul": [0xfd, 0xe6, 1],
}; // prettier-ignore
const I32 = 0x7f;
const V128 = 0x7b;
const PARAMETERS = ["a", "lda", "w", "ldw", "c", "ldc", "M", "N", "K"];
const ROWS = [0, 1, 2, 3];
const COLUMNS = [0, 1];

// A whole number in LEB128.
function leb(value) {
  const bytes = [];
  for (;;) {
    const low = value & 0x7f;
    value >>= 7;
    if ((value === 0 && !(low & 0x40)) || (value === -1 && low & 0x40)) return [...bytes, low];
    bytes.push(low | 0x80);
  }
}

// The product as a list of instructions; locals are given by name.
function productInstructions() {
  const each = (items, write) => items.map(write).join(" ");
  const pairs = ROWS.flatMap((i) => COLUMNS.map((j) => [i, j]));
  // Row `n` of a block, the last row again where the block reaches over the edge.
  const clamped = (index, n, size) => `get ${index} const ${n} add get ${size} const 1 sub
    get ${index} const ${n} add get ${size} lt select`;
  const lanes = (sum) => `get ${sum} lane 0 get ${sum} lane 1 fadd get ${sum} lane 2 get ${sum} lane 3 fadd fadd`;
  return `
    const 0 set i loop
      ${each(ROWS, (n) => `get a ${clamped("i", n, "M")} get lda mul add set a${n}`)}
      ${each(ROWS, (n) => `get c ${clamped("i", n, "M")} get ldc mul add set c${n}`)}
      const 0 set j loop
        ${each(COLUMNS, (n) => `${clamped("j", n, "N")} set j${n} get w get j${n} get ldw mul add set w${n}`)}
        ${each(pairs, ([i, j]) => `zero set s${i}${j}`)}
        const 0 set k loop
          ${each(ROWS, (n) => `get a${n} get k add load set x${n}`)}
          ${each(COLUMNS, (n) => `get w${n} get k add load set y${n}`)}
          ${each(pairs, ([i, j]) => `get s${i}${j} get x${i} get y${j} vmul vadd set s${i}${j}`)}
          get k const 16 add set k get k get K lt br_if 0
        end
        ${each(pairs, ([i, j]) => `get c${i} get j${j} const 4 mul add ${lanes(`s${i}${j}`)} store`)}
        get j const ${COLUMNS.length} add set j get j get N lt br_if 0
      end
      get i const ${ROWS.length} add set i get i get M lt br_if 0
    end end`;
}

const SHORT = {
  get: "local.get", set: "local.set", const: "i32.const", add: "i32.add", sub: "i32.sub", mul: "i32.mul",
  lt: "i32.lt_s", fadd: "f32.add", store: "f32.store", load: "v128.load", zero: "v128.zero", lane: "f32x4.lane", vadd: "f32x4.add",
  vmul: "f32x4.mul",
}; // prettier-ignore

function assemble() {
  const rowWords = ROWS.flatMap((n) => [`a${n}`, `c${n}`]);
  const columnWords = COLUMNS.flatMap((n) => [`j${n}`, `w${n}`]);
  const words = ["i", "j", "k", ...rowWords, ...columnWords];
  const vectors = [
    ...ROWS.map((n) => `x${n}`),
    ...COLUMNS.map((n) => `y${n}`),
    ...ROWS.flatMap((i) => COLUMNS.map((j) => `s${i}${j}`)),
  ];
  const locals = [...PARAMETERS, ...words, ...vectors];
  const code = productInstructions().trim().split(/\s+/).flatMap((token) => {
    const opcode = OPCODES[SHORT[token] ?? token];
    if (opcode) return opcode;
    return leb(/^\d+$/.test(token) ? Number(token) : locals.indexOf(token));
  });
  const name = (text) => [text.length, ...new TextEncoder().encode(text)];
  const section = (id, content) => [id, ...leb(content.length), ...content];
  const body = [2, words.length, I32, vectors.length, V128, ...code];
  return Uint8Array.from([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [1, 0x60, PARAMETERS.length, ...PARAMETERS.map(() => I32), 0]), // one type: nine numbers, no result
    ...section(2, [1, ...name("js"), ...name("memory"), 2, 0, 1]), // imports the memory
    ...section(3, [1, 0]), // one function of that type
    ...section(7, [1, ...name("multiply"), 0, 0]), // exports it
    ...section(10, [1, ...leb(body.length), ...body]),
  ]); // prettier-ignore
}

// A backend for the Denoiser; null where the browser has no WebAssembly SIMD.
export function makeSimdBackend() {
  let module;
  try {
    module = new WebAssembly.Module(assemble());
  } catch {
    return null;
  }
  let multiply;
  return {
    allocate(n) {
      const memory = new WebAssembly.Memory({ initial: Math.ceil((4 * n) / 65536) });
      ({ multiply } = new WebAssembly.Instance(module, { js: { memory } }).exports);
      return new Float32Array(memory.buffer, 0, n);
    },
    multiply(memory, a, lda, w, ldw, c, ldc, M, N, K) {
      multiply(4 * a, 4 * lda, 4 * w, 4 * ldw, 4 * c, 4 * ldc, M, N, 4 * K);
    },
  };
}

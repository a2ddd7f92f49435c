// Sentencepiece in a page: a vocabulary's file to ids of plain text, and ids to text. Ids are those of visglm.tokenizers.
//
// The file is a protocol buffer. Normalization is a table that it holds (a double array, as darts-clone writes it);
// segmentation takes the likeliest way through the pieces, adding up 32-bit numbers as sentencepiece does.

const NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6;
const SPACE = "▁";
const UNKNOWN_PENALTY = 10;
const CONTROL_PIECES = [
  "<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>",
];
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Fields of a protocol buffer's message: `[number, value]`, the value a number or bytes. */
function* fields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let place = 0;
  const varint = () => {
    let value = 0, factor = 1;
    for (;;) {
      const byte = bytes[place++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      factor *= 128;
    }
  };
  while (place < bytes.length) {
    const tag = varint();
    const wire = tag % 8, number = Math.floor(tag / 8);
    if (wire === 0) yield [number, varint()];
    else if (wire === 5) { yield [number, view.getFloat32(place, true)]; place += 4; }
    else if (wire === 1) { yield [number, view.getFloat64(place, true)]; place += 8; }
    else { const length = varint(); yield [number, bytes.subarray(place, place + length)]; place += length; }
  }
}

/** Bytes of the character that begins at a place, or 1 where none does. */
function characterLength(bytes, place) {
  const first = bytes[place];
  const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  return Math.min(length, bytes.length - place);
}

/** A tree of byte strings with a number each. */
class Tree {
  constructor() { this.root = new Map(); }

  add(bytes, value) {
    let node = this.root;
    for (const byte of bytes) {
      if (!node.has(byte)) node.set(byte, new Map());
      node = node.get(byte);
    }
    node.value = value;
  }

  /** `[end, value]` of everything that begins at a place, the shortest first. */
  *from(bytes, start) {
    let node = this.root;
    for (let place = start; place < bytes.length; place++) {
      node = node.get(bytes[place]);
      if (node === undefined) return;
      if (node.value !== undefined) yield [place + 1, node.value];
    }
  }
}

class Normalizer {
  constructor(spec, userDefined) {
    this.hasDummyPrefix = true;
    this.removesExtraSpaces = true;
    let table = new Uint8Array(0);
    for (const [number, value] of fields(spec)) {
      if (number === 2) table = value;
      if (number === 3) this.hasDummyPrefix = value === 1;
      if (number === 4) this.removesExtraSpaces = value === 1;
    }
    this.userDefined = userDefined;
    this.units = new Uint32Array(0);
    if (table.length) {
      const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
      const size = view.getUint32(0, true);
      this.units = new Uint32Array(size / 4);
      for (let index = 0; index < size / 4; index++) this.units[index] = view.getUint32(4 + 4 * index, true);
      this.texts = table.subarray(4 + size);
    }
  }

  /** What the beginning of the rest becomes: `[bytes, how many it takes]`. */
  prefix(bytes, place) {
    let end = 0;
    for (const [where] of this.userDefined.from(bytes, place)) end = where;
    if (end) return [bytes.subarray(place, end), end - place];
    let longest = 0, value = 0;
    if (this.units.length) {
      const offset = (unit) => ((unit >>> 10) << ((unit & 512) >>> 6)) >>> 0;
      let node = offset(this.units[0]);
      for (let index = place; index < bytes.length; index++) {
        node ^= bytes[index];
        const unit = this.units[node];
        if (unit === undefined || ((unit & 0x800000ff) >>> 0) !== bytes[index]) break;
        node ^= offset(unit);
        if ((unit >>> 8) & 1) { longest = index + 1 - place; value = this.units[node] & 0x7fffffff; }
      }
    }
    if (!longest) {
      const length = characterLength(bytes, place);
      return [bytes.subarray(place, place + length), length];
    }
    let stop = value;
    while (this.texts[stop] !== 0) stop++;
    return [this.texts.subarray(value, stop), longest];
  }

  normalize(text) {
    const bytes = encoder.encode(text), result = [];
    const space = encoder.encode(SPACE);
    let place = 0;
    if (this.removesExtraSpaces) {
      while (place < bytes.length) {
        const [part, length] = this.prefix(bytes, place);
        if (!(part.length === 1 && part[0] === 32)) break;
        place += length;
      }
    }
    if (place >= bytes.length) return new Uint8Array(0);
    if (this.hasDummyPrefix) result.push(...space);
    let afterSpace = this.removesExtraSpaces;
    while (place < bytes.length) {
      const [part, length] = this.prefix(bytes, place);
      let start = 0;
      while (afterSpace && part[start] === 32) start++;
      for (let index = start; index < part.length; index++) {
        if (part[index] === 32) result.push(...space); else result.push(part[index]);
      }
      if (start < part.length) afterSpace = this.removesExtraSpaces && part[part.length - 1] === 32;
      place += length;
    }
    if (this.removesExtraSpaces) {
      while (result.length >= 3 && space.every((byte, index) => result[result.length - 3 + index] === byte)) {
        result.length -= 3;
      }
    }
    return Uint8Array.from(result);
  }
}

/** Whitespace → the name of its piece, as ChatGLM's first generation has them. */
function whitespacePieces() {
  const found = new Map([["\n", "<n>"], ["\t", "<|tab|>"]]);
  for (let length = 2; length <= 80; length++) found.set(" ".repeat(length), `<|blank_${length}|>`);
  return found;
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

export class Tokenizer {
  /**
   * @param {Uint8Array} model the vocabulary's file.
   * @param {object} settings `tokenizer` of the manifest.
   */
  constructor(model, settings) {
    if (!settings.kind.includes("sentencepiece")) throw new Error(`this page cannot read a vocabulary of ${settings.kind}`);
    this.settings = settings;
    this.special = new Set(settings.special_ids);
    this.pieces = [];
    let normalizer = new Uint8Array(0);
    for (const [number, value] of fields(model)) {
      if (number === 1) {
        const piece = { text: "", score: 0, type: NORMAL };
        for (const [field, content] of fields(value)) {
          if (field === 1) piece.text = decoder.decode(content);
          if (field === 2) piece.score = content;
          if (field === 3) piece.type = content;
        }
        this.pieces.push(piece);
      }
      if (number === 2) {
        for (const [field, content] of fields(value)) {
          if (field === 3 && content !== 1) throw new Error("this page reads unigram vocabularies only");
        }
      }
      if (number === 3) normalizer = value;
    }
    this.ids = new Map(this.pieces.map((piece, id) => [piece.text, id]));
    this.tree = new Tree();
    const userDefined = new Tree();
    this.lowest = Infinity;
    this.highest = -Infinity;
    this.pieces.forEach(({ text, score, type }, id) => {
      if ([NORMAL, USER_DEFINED, UNUSED].includes(type)) this.tree.add(encoder.encode(text), id);
      if (type === USER_DEFINED) userDefined.add(encoder.encode(text), id);
      if (type === NORMAL) {
        this.lowest = Math.min(this.lowest, score);
        this.highest = Math.max(this.highest, score);
      }
    });
    this.unknown = this.pieces.findIndex(({ type }) => type === 2);
    this.bytes = Array.from({ length: 256 }, (_, byte) => this.ids.get(byteName(byte)) ?? this.unknown);
    this.normalizer = new Normalizer(normalizer, userDefined);
    const hasPieces = settings.kind === "sentencepiece with whitespace";
    this.whitespace = new Map([...whitespacePieces()].filter(([, piece]) => hasPieces && this.ids.has(piece)));
    this.whitespaceIds = new Set([...this.whitespace.values()].map((piece) => this.ids.get(piece)));
    this.blanks = new Map([...whitespacePieces()].map(([text, piece]) => [piece, text]));
    const longest = [...this.whitespace.keys()].sort((one, other) => other.length - one.length);
    this.whitespaceText = longest.length ? new RegExp(`(${longest.join("|")})`) : null;
    this.whitespacePiece = new RegExp([...this.whitespace.values()].map(escaped).join("|"), "g");
    this.spelled = this.spellReserved();
  }

  /** What text never becomes: control pieces, and the piece that the image slot hides. Their letters, one by one. */
  spellReserved() {
    const slot = this.settings.image_token_id === null ? null : this.settings.image_token_id - this.settings.num_image_tokens;
    const reserved = new Set(this.whitespaceIds);
    for (const piece of CONTROL_PIECES) if (this.ids.has(piece)) reserved.add(this.ids.get(piece));
    if (slot !== null && slot < this.pieces.length) reserved.add(slot);
    reserved.delete(this.unknown);
    const spell = (text) => [...text].flatMap((letter) => (
      this.ids.has(letter) ? [this.ids.get(letter)] : [...encoder.encode(letter)].map((byte) => this.bytes[byte])
    ));
    return new Map([...reserved].map((id) => [id, spell(this.pieces[id].text)]));
  }

  /** Sentencepiece's own: text to ids, whatever pieces they are. */
  segment(text) {
    const bytes = this.normalizer.normalize(text);
    const unknownScore = Math.fround(Math.fround(this.lowest) - UNKNOWN_PENALTY);
    const best = Array.from({ length: bytes.length + 1 }, () => ({ id: -1, score: 0, start: -1 }));
    for (let start = 0; start < bytes.length;) {
      const soFar = best[start].score;
      const length = characterLength(bytes, start);
      let hasSingle = false;
      const offer = (end, id, score) => {
        const candidate = Math.fround(score + soFar);
        const target = best[end];
        if (target.start === -1 || candidate > target.score) Object.assign(target, { id, score: candidate, start });
      };
      for (const [end, id] of this.tree.from(bytes, start)) {
        const { type, score } = this.pieces[id];
        if (type === UNUSED) continue;
        offer(end, id, type === USER_DEFINED ? Math.fround((end - start) * this.highest - 0.1) : score);
        if (end - start === length) hasSingle = true;
      }
      if (!hasSingle) offer(start + length, this.unknown, unknownScore);
      start += length;
    }
    const found = [];
    for (let end = bytes.length; end > 0; end = best[end].start) found.push([best[end].id, best[end].start, end]);
    return found.reverse().flatMap(([id, start, end]) => (
      id === this.unknown ? [...bytes.subarray(start, end)].map((byte) => this.bytes[byte]) : [id]
    ));
  }

  /** Ids of plain text; nothing in it is read as a control token. */
  encode(text) {
    const parts = this.whitespaceText === null ? [text] : text.split(this.whitespaceText);
    const joined = parts.map((part, place) => (place % 2 ? this.whitespace.get(part) : part)).join("");
    const ids = this.segment(joined);
    const origins = [];
    if (ids.some((id) => this.spelled.has(id))) {
      parts.forEach((part, place) => {
        if (place % 2) origins.push(true);
        else if (part && this.whitespace.size) {
          const typed = decoder.decode(this.normalizer.normalize(part)).match(this.whitespacePiece) ?? [];
          origins.push(...typed.map(() => false));
        }
      });
    }
    const result = [];
    let next = 0;
    for (const id of ids) {
      if (!this.spelled.has(id) || (this.whitespaceIds.has(id) && origins[next++])) result.push(id);
      else result.push(...this.spelled.get(id));
    }
    return result.map((id) => id + this.settings.num_image_tokens);
  }

  /** What makes text of ids one by one. */
  stream() { return new Stream(this); }

  decode(ids) {
    const stream = this.stream();
    return ids.map((id) => stream.push(id)).join("") + stream.finish();
  }

  pieceOf(id) {
    const place = id - this.settings.num_image_tokens;
    return this.pieces[place]?.text ?? "<unk>";
  }
}

const byteName = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
const BYTE_NAME = /^<0x([0-9A-F]{2})>$/;

class Stream {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.isAtStart = true;
    this.utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  push(id) {
    if (this.tokenizer.special.has(id)) return "";
    let piece = this.tokenizer.pieceOf(id), text;
    const byte = BYTE_NAME.exec(piece);
    if (byte) text = this.utf8.decode(Uint8Array.of(parseInt(byte[1], 16)), { stream: true });
    else {
      text = this.utf8.decode();
      if (this.isAtStart && !text && piece.startsWith(SPACE)) piece = piece.slice(1);
      text += this.tokenizer.blanks.get(piece) ?? piece.replaceAll(SPACE, " ");
    }
    this.isAtStart = this.isAtStart && !text;
    return text;
  }

  finish() { return this.utf8.decode(); }
}

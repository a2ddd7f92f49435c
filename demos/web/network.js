// The exported graphs at work in the page: visglm.light's network and loop, with onnxruntime-web.

const WIDTHS = { F32: 4, F16: 2, BF16: 2, U8: 1, I8: 1 };

function halfToNumber(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const single = new DataView(new ArrayBuffer(4));
const READ = {
  F32: (view, place) => view.getFloat32(place, true),
  F16: (view, place) => halfToNumber(view.getUint16(place, true)),
  BF16: (view, place) => { single.setUint32(0, view.getUint16(place, true) << 16); return single.getFloat32(0); },
};

export class Network {
  /**
   * @param {object} ort onnxruntime-web. @param {object} manifest light.json.
   * @param {Map<string, Uint8Array>} files every file that it names.
   */
  static async open(ort, manifest, files) {
    const network = new Network();
    Object.assign(network, { ort, manifest, files, hasHeat: "heat" in manifest.graphs });
    const weights = [...files].filter(([name]) => name.endsWith(".safetensors"));
    const options = network.options = {
      executionProviders: ["wasm"], externalData: weights.map(([path, data]) => ({ path, data })), logSeverityLevel: 4,
    };
    network.decoder = await ort.InferenceSession.create(files.get(manifest.graphs.decoder), options);
    network.vision = [];  // one graph, or the parts of a large one
    for (let name = "vision"; manifest.graphs[name]; name = `vision_${network.vision.length + 1}`) {
      network.vision.push(await ort.InferenceSession.create(files.get(manifest.graphs[name]), options));
    }
    return network;
  }

  /** Of one picture `[3, height, width]`: its visual tokens, `num_query_tokens` rows, and what a heat map is made of. */
  async look(pixels) {
    const { height, width } = this.manifest.pictures;
    let seen = new this.ort.Tensor("float32", pixels, [1, 3, height, width]);
    let features = null;
    for (const part of this.vision) {
      const found = await part.run({ [part.inputNames[0]]: seen });
      seen = found[part.outputNames[0]];
      features = found.features ?? null;
    }
    return { tokens: seen.data, features };
  }

  row(name, number, columns) {
    const table = this.manifest.tables[name], bytes = this.files.get(table.file);
    const width = WIDTHS[table.dtype];
    const view = new DataView(bytes.buffer, bytes.byteOffset + table.offset + number * columns * width, columns * width);
    return Float32Array.from({ length: columns }, (_, column) => READ[table.dtype](view, column * width));
  }

  /** One row of embeddings, unpacked where it is packed. */
  embedding(id) {
    const { tables, hidden_size: hidden } = this.manifest;
    if (!tables.embedding_scales) return this.row("embeddings", id, hidden);
    const groups = tables.embedding_scales.shape[1], scales = this.row("embedding_scales", id, groups);
    const { file, offset, dtype, shape } = tables.embeddings, bytes = this.files.get(file);
    const start = offset + id * shape[1];
    return Float32Array.from({ length: hidden }, (_, column) => {
      const scale = scales[Math.floor((column * groups) / hidden)];
      if (dtype === "I8") return ((bytes[start + column] << 24) >> 24) * scale;
      const pair = bytes[start + (column >> 1)];
      return ((column % 2 ? pair >> 4 : pair & 15) - 8) * scale;
    });
  }

  embed(ids, imageEmbeds) {
    const { hidden_size: hidden, image_token_id: slot } = this.manifest;
    const embeds = new Float32Array(ids.length * hidden);
    let seen = 0;
    ids.forEach((id, place) => {
      const own = id === slot ? imageEmbeds.subarray(seen++ * hidden, seen * hidden) : this.embedding(id);
      embeds.set(own, place * hidden);
    });
    return new this.ort.Tensor("float32", embeds, [1, ids.length, hidden]);
  }

  emptyCache() {
    const { layers, heads, head_dim: width, names } = this.manifest.cache;
    const nothing = () => new this.ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
    const cache = Object.fromEntries(names.map((name) => [name, nothing()]));
    for (let layer = 0; layer < layers && this.manifest.tables.prefix_0; layer++) {
      const length = this.manifest.tables[`prefix_${layer}`].shape[2], size = heads * length * width;
      const numbers = this.row(`prefix_${layer}`, 0, 2 * size);
      ["key", "value"].forEach((part, half) => {
        const own = numbers.slice(half * size, (half + 1) * size);
        cache[`${part}_${layer}`] = new this.ort.Tensor("float32", own, [1, heads, length, width]);
      });
    }
    return cache;
  }

  /** Logits behind the last of some tokens, and the longer cache. */
  async step(embeds, positions, cache) {
    const feeds = { inputs_embeds: embeds, position_ids: positions };
    for (const [name, tensor] of Object.entries(cache)) feeds[`past_${name}`] = tensor;
    const found = await this.decoder.run(feeds);
    return [found.logits.data, Object.fromEntries(Object.keys(cache).map((name) => [name, found[`present_${name}`]]))];
  }

  /** A prompt's pieces, as the graph takes them, with their positions; and where each token behind it is. */
  place(ids) {
    const { positions } = this.manifest;
    const tensor = (numbers, shape) => new this.ort.Tensor("int64", BigInt64Array.from(numbers.map(BigInt)), shape);
    if (positions.kind === "count") {
      return {
        pieces: [[ids, tensor([...ids.keys()], [1, ids.length])]],
        next: (number) => tensor([ids.length + number], [1, 1]),
      };
    }
    const start = ids.indexOf(positions.start), prefix = ids.slice(0, start);
    const blanks = positions.blanks.map((id) => prefix.indexOf(id)).filter((place) => place >= 0);
    const blank = blanks.length ? blanks[0] : Math.max(start - 1, 0);
    const at = (number) => tensor([blank, number - start + 1], [2, 1, 1]);
    const pieces = start ? [[prefix, tensor([...prefix.keys(), ...prefix.map(() => 0)], [2, 1, start])]] : [];
    ids.slice(start).forEach((id, index) => pieces.push([[id], at(start + index)]));
    return { pieces, next: (number) => at(ids.length + number) };
  }

  /**
   * Where in a picture an answer comes from: heat 0 to 1, row by row. `visglm.light.heat`.
   * @param {number[]} ids of the prompt. @param {number[]} answer its ids, the end token too.
   * @param {Float32Array} imageEmbeds of all pictures. @param {object} features of this one. @param {number} picture which.
   */
  async heat(ids, answer, imageEmbeds, features, picture) {
    this.heatGraph ??= await this.ort.InferenceSession.create(this.files.get(this.manifest.graphs.heat), this.options);
    const { num_query_tokens: tokens, image_token_id: slot, positions: { start } } = this.manifest;
    const all = [...ids, ...answer], numbers = (found) => new this.ort.Tensor("int64", BigInt64Array.from(found.map(BigInt)), [found.length]);
    const [count] = this.heatGraph.inputMetadata.find(({ name }) => name === "slots").shape;
    const slots = [...all.keys()].filter((place) => all[place] === slot).slice(picture * tokens).slice(0, count);
    const cache = this.emptyCache(), before = Object.values(cache)[0].dims[2];
    const prefix = start === undefined ? 0 : all.indexOf(start);
    const places = this.place(all).pieces.map(([, positions]) => positions);
    const planes = places[0].dims.length === 3 ? 2 : 1;
    const joined = Array.from({ length: planes }, (_, plane) => places.flatMap(({ data }) => (
      [...data].slice((plane * data.length) / planes, ((plane + 1) * data.length) / planes)
    ))).flat();
    const feeds = {
      features, slots: numbers(slots), ids: numbers(answer), rows: numbers(answer.map((_, place) => ids.length + place - 1)),
      inputs_embeds: this.embed(all, imageEmbeds),
      position_ids: new this.ort.Tensor("int64", BigInt64Array.from(joined), [...(planes === 2 ? [2] : []), 1, all.length]),
      reach: numbers(all.map((_, place) => before + Math.max(place + 1, prefix))),
    };
    for (const [name, tensor] of Object.entries(cache)) feeds[`past_${name}`] = tensor;
    const { heat } = await this.heatGraph.run(feeds);
    return { heat: heat.data, rows: heat.dims[0], columns: heat.dims[1] };
  }

  /** Greedy ids of an answer, one by one; the end token is the last. */
  async *answer(ids, imageEmbeds, room) {
    const { pieces, next } = this.place(ids);
    let cache = this.emptyCache(), logits;
    for (const [piece, positions] of pieces) {
      [logits, cache] = await this.step(this.embed(piece, imageEmbeds), positions, cache);
    }
    const so_far = [...ids];
    for (let number = 0; number < room; number++) {
      const id = this.likeliest(logits, this.ruledOut(so_far, number));
      so_far.push(id);
      yield id;
      if (this.manifest.answers.end_ids.includes(id)) return;
      [logits, cache] = await this.step(this.embed([id]), next(number), cache);
    }
  }

  /** Tokens that the model's own settings do not let come next; `number` of the answer's are there. */
  ruledOut(ids, number) {
    const { end_ids: ends, min_new_tokens: least, no_repeat_ngram_size: size } = this.manifest.answers;
    const found = new Set(number < (least ?? 0) ? ends : []);
    found.add(this.manifest.image_token_id);
    for (let start = 0; size && start + size <= ids.length; start++) {
      const last = ids.length - size + 1;
      if (Array.from({ length: size - 1 }, (_, k) => ids[start + k] === ids[last + k]).every(Boolean)) found.add(ids[start + size - 1]);
    }
    return found;
  }

  likeliest(logits, ruledOut) {
    let best = -1;
    for (let id = 0; id < logits.length; id++) {
      if (!ruledOut.has(id) && (best < 0 || logits[id] > logits[best])) best = id;
    }
    return best;
  }
}

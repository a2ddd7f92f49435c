// Ids and texts of the strings on standard input, a JSON list, by the tokenizer of the page. Arguments: the vocabulary's
// file, and the manifest beside it.

import { readFileSync } from "node:fs";
import { Tokenizer } from "../../demos/web/tokenizer.js";

const [vocabulary, manifest] = process.argv.slice(2);
const settings = JSON.parse(readFileSync(manifest, "utf-8")).tokenizer;
const tokenizer = new Tokenizer(new Uint8Array(readFileSync(vocabulary)), settings);
const found = JSON.parse(readFileSync(0, "utf-8")).map((text) => {
  const ids = tokenizer.encode(text);
  return [ids, tokenizer.decode(ids)];
});
process.stdout.write(JSON.stringify(found));

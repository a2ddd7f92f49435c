// A conversation to ids, and decoded text to what people read: visglm.prompt, by the style that the manifest holds.

const CHINESE = "\\u3400-\\u4dbf\\u4e00-\\u9fff\\uf900-\\ufaff";
const HAS_CHINESE = new RegExp(`[${CHINESE}]`);
const BESIDE_CHINESE = new RegExp(`(?<=[${CHINESE}])[,!:;?]|[,!:;?](?=[${CHINESE}])`, "g");
const FULL_WIDTH = { ",": "，", "!": "！", ":": "：", ";": "；", "?": "？" };

export const languageOf = (text) => (HAS_CHINESE.test(text) ? "zh" : "en");

/** Ids of turns `{ question, answer, pictures }`, of which the last has no answer. */
export function render(turns, language, manifest, tokenizer) {
  const style = manifest.prompt;
  const chosen = turns.length === 1 && style.lone_question !== null ? style.lone_question : style.questions[language];
  const parts = [...style.start];
  turns.forEach((turn, index) => {
    if (index > 0) parts.push(...fill(style.past_answer, { answer: turns[index - 1].answer }));
    parts.push(...fill(chosen, { question: turn.question, round: style.first_round + index }, turn.pictures));
  });
  parts.push(...style.generation);
  const ids = [];
  let text = "";
  const flush = () => { if (text) ids.push(...tokenizer.encode(text)); text = ""; };
  for (const part of parts) {
    if (typeof part === "string") { text += part; continue; }
    flush();
    if (part.mark === "slots") ids.push(...Array(manifest.num_query_tokens).fill(manifest.image_token_id));
    if (part.token) ids.push(part.token.map((name) => manifest.tokenizer.tokens[name]).find((id) => id !== undefined));
  }
  flush();
  return ids;
}

function fill(template, values, pictures = 0) {
  return template.flatMap((part) => {
    if (typeof part === "string") return [part.replace(/\{(\w+)\}/g, (_, name) => values[name])];
    if (part.mark === "images") return Array(pictures).fill(["<img>", { mark: "slots" }, "</img>"]).flat();
    return [part];
  });
}

/** A decoded answer as people read it. */
export function tidy(text, manifest) {
  const stripped = text.trim();
  return manifest.prompt.full_width ? stripped.replace(BESIDE_CHINESE, (mark) => FULL_WIDTH[mark]) : stripped;
}

/** The part of it that stays whatever comes. */
export function settled(text, manifest) {
  const clean = tidy(text, manifest);
  return manifest.prompt.full_width && clean.at(-1) in FULL_WIDTH ? clean.slice(0, -1) : clean;
}

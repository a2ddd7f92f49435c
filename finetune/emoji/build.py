"""Build the emoji captions in this folder: 200 emoji in two open styles, 150 to learn from and 50 to test on.

    npm i --ignore-scripts @iconify-json/noto @iconify-json/fluent-emoji-flat
    python finetune/emoji/build.py node_modules

The new skill is an answer that programs can read, YAML with a name and a group, which visglm-tiny never gives by
itself. In YAML a word stands as it does in a sentence; in JSON it would follow a quotation mark, where the tokenizer
spells it in pieces that so small a model has never met.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "visglm-tiny"))

from concepts import GROUPS, load_concepts  # noqa: E402 (beside visglm-tiny, whose world this is)
from render import draw_icon, drawings, read_set, slugs_by_hexcode  # noqa: E402

STYLES = ("noto", "fluent-emoji-flat")  # Apache-2.0 and MIT, see NOTICE
SIZE, NUM_COLOURS = 96, 64  # pixels a side, and of the palette
NUM_EMOJI, NUM_TEST = 200, 50
LEFT_OUT = ("body part or figure", "everyday object")  # groups too vague to name
QUESTION = "Answer in YAML."
OLD_QUESTIONS = {"en": "What is this?", "zh": "这是什么？"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("node_modules", type=Path)
    icons = parser.parse_args().node_modules / "@iconify-json"
    known = load_concepts()
    slugs = slugs_by_hexcode(icons)
    sets = {style: read_set(icons, style) for style in STYLES}
    found = {style: drawings(sets[style], style, known, slugs) for style in STYLES}
    usable = [
        place
        for place, concept in enumerate(known)
        if all(found[style][place] for style in STYLES) and concept.group not in LEFT_OUT
    ]
    chosen = [usable[number * len(usable) // NUM_EMOJI] for number in range(NUM_EMOJI)]
    every = NUM_EMOJI // NUM_TEST
    rows: dict[str, list[dict]] = {"train": [], "test": [], "old": []}
    for number, place in enumerate(chosen):
        concept = known[place]
        name = concept.english[0]
        for style in STYLES:
            path = Path("pictures") / style / f"{name.replace(' ', '-')}.png"
            (HERE / path).parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(draw_icon(sets[style], found[style][place][0]).transpose(1, 2, 0), "RGBA")
            on_white(picture.resize((SIZE, SIZE))).quantize(NUM_COLOURS).save(HERE / path, optimize=True)
            answer = f"name: {name}\ngroup: {concept.group}"
            is_test = number % every == 0
            rows["test" if is_test else "train"].append(row(path, QUESTION, answer))
            if is_test:
                rows["old"] += [row(path, text, concept.names(key)[0]) for key, text in OLD_QUESTIONS.items()]
    for part, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (HERE / f"{part}.jsonl").write_text(text, "utf-8")
    print({part: len(lines) for part, lines in rows.items()}, f"of {len(GROUPS) - len(LEFT_OUT)} groups")


def on_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def row(path: Path, question: str, answer: str) -> dict:
    """A common row (see finetune/README.md)."""
    return {
        "images": [path.as_posix()],
        "messages": [
            {"role": "user", "content": f"<image>{question}"},
            {"role": "assistant", "content": answer},
        ],
    }


if __name__ == "__main__":
    main()

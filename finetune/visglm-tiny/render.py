"""Draw the emoji of `names.tsv` in every style: one cache to train on, and one of each style that only evaluates.

    python render.py NODE_MODULES OUTPUT

`names.tsv` was written by hand over Unicode's names: hex codes (twins merged into one concept), subgroup, and the
accepted names in English and Chinese, the main one first.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
PICTURE_SIZE = 112  # pixels a side
TRAINING_STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fluent-emoji", "emojione")
# Never trained on. OpenMoji is share-alike art and never committed; FxEmoji knows the older half of the names only.
EVALUATION_STYLES = ("openmoji", "fxemoji")
# Sets that do not list code points borrow the slugs of one that does; FxEmoji writes them without hyphens.
SLUGS_OF = {
    "fluent-emoji": ("fluent-emoji-flat",),
    "noto-v1": ("noto", "twemoji"),
    "emojione": ("noto", "twemoji"),
    "fxemoji": ("noto", "twemoji"),
}


def read_concepts() -> list[dict]:
    """Concepts in file order: `hexcodes`, `subgroup`, `english`, `chinese` (lists, main name first)."""
    with open(HERE / "names.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [
        {
            "hexcodes": row["hexcodes"].split(),
            "subgroup": row["subgroup"],
            "english": row["english"].split("|"),
            "chinese": row["chinese"].split("|"),
        }
        for row in rows
    ]


def slugs_by_hexcode(icons: Path, style: str) -> dict[str, set[str]]:
    """Names a set may keep an emoji under, by hex code without FE0F."""
    slugs: dict[str, set[str]] = {}
    for source in SLUGS_OF.get(style, (style,)):
        for code, slug in json.loads((icons / source / "chars.json").read_text()).items():
            key = "-".join(part for part in code.upper().split("-") if part != "FE0F")
            slugs.setdefault(key, set()).add(slug)
    return slugs


def draw(body: str, width: int, height: int) -> np.ndarray:
    """An icon's SVG body as RGBA `[4, size, size]`, uint8."""
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{view}">{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE_SIZE, height=PICTURE_SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).transpose(2, 0, 1)


def render(icons: Path, styles: tuple[str, ...], concepts: list[dict]) -> dict[str, np.ndarray]:
    """`pictures [num, 4, size, size]` uint8, `concept [num]` and `style [num]` of every drawing there is."""
    pictures, concept_of, style_of = [], [], []
    for style_index, style in enumerate(styles):
        data = json.loads((icons / style / "icons.json").read_text())
        slugs = slugs_by_hexcode(icons, style)
        for index, concept in enumerate(tqdm(concepts, desc=style)):
            for code in concept["hexcodes"]:
                for slug in sorted(slugs.get(code, ())):
                    icon = data["icons"].get(slug.replace("-", "") if style == "fxemoji" else slug)
                    if icon is None:
                        continue
                    size = (icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16)))
                    pictures.append(draw(icon["body"], *size))
                    concept_of.append(index)
                    style_of.append(style_index)
                    break
    return {"pictures": np.stack(pictures), "concept": np.array(concept_of), "style": np.array(style_of)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    icons = arguments.node_modules / "@iconify-json"
    arguments.output.mkdir(parents=True, exist_ok=True)
    concepts = read_concepts()
    for name, styles in (("train", TRAINING_STYLES), *((style, (style,)) for style in EVALUATION_STYLES)):
        cache = render(icons, styles, concepts)
        np.savez(arguments.output / f"{name}.npz", **cache)
        print(name, cache["pictures"].shape, np.bincount(cache["style"]).tolist())
    sources = {
        style: {
            "version": json.loads((icons / style / "package.json").read_text())["version"],
            "sha256": hashlib.sha256((icons / style / "icons.json").read_bytes()).hexdigest(),
        }
        for style in TRAINING_STYLES + EVALUATION_STYLES
    }
    (arguments.output / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")


if __name__ == "__main__":
    main()

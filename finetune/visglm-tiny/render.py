"""Draw what visglm-tiny knows of in every style: one cache to train on, and four that only evaluate.

    python render.py NODE_MODULES OUTPUT [--photographs FOLDER]

Only evaluating: OpenMoji, a style of its own; icons of three more sets; the objects of `unseen.tsv`, none of which was
in any training picture; and the photographs of `photographs.tsv`, from Tux Paint's stamps.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
import scipy.ndimage
from concepts import Concept, load_concepts, read_rows
from PIL import Image
from tqdm import tqdm

PICTURE_SIZE = 112  # pixels a side
LINE_ART_WEIGHT = 0.3
# Emoji sets, found by code point.
EMOJI_STYLES = (
    "noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fluent-emoji", "emojione", "fxemoji",
    "streamline-emojis", "emojione-monotone", "fluent-emoji-high-contrast",
)  # fmt: skip
# Mostly line art of the same things, found by name: what OpenMoji's outlines look like is learnt from these.
ICON_STYLES = (
    "game-icons", "icon-park", "mdi", "ph", "tabler", "lucide", "hugeicons", "solar", "mingcute", "iconoir",
    "streamline-color", "streamline-plump-color", "streamline-flex-color", "streamline-kameleon-color",
)  # fmt: skip
TRAINING_STYLES = EMOJI_STYLES + ICON_STYLES
# OpenMoji is share-alike art and never committed; from the others, pictures of answers may be shown.
EVALUATION_STYLES = {
    "openmoji": ("openmoji",),
    "icons": ("flat-color-icons", "marketeq", "streamline-cyber-color"),
}
ALL_STYLES = TRAINING_STYLES + tuple(style for styles in EVALUATION_STYLES.values() for style in styles)
# Sets with `chars.json` list code points; these use other sets' names for them.
LISTS_CODE_POINTS = ("noto", "twemoji", "fluent-emoji-flat", "openmoji")
# What icon sets append to a name to tell weights apart.
VARIANT = re.compile(r"(-(outlined?|filled|fill|line|linear|bold|broken|duotone|0\d))+$")
# Other things of the same name.
HOMONYMS = {("mdi", "bat"), ("mdi", "ant"), ("tabler", "ant"), ("mdi", "seal"), ("mdi", "orange")}


def slug(name: str) -> str:
    """A name as all sets can be compared by: "T-shirt" and "t shirt" are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def slugs_by_hexcode(icons: Path) -> dict[str, set[str]]:
    """Names that sets with a list of code points give an emoji, by hex code without FE0F."""
    slugs: dict[str, set[str]] = {}
    for style in LISTS_CODE_POINTS:
        for code, name in json.loads((icons / style / "chars.json").read_text()).items():
            key = "-".join(part for part in code.upper().split("-") if part != "FE0F")
            slugs.setdefault(key, set()).add(slug(name))
    return slugs


def read_set(icons: Path, style: str) -> dict:
    """An Iconify set: `icons` by name, and their size where they have none of their own."""
    return json.loads((icons / style / "icons.json").read_text())


def drawings(icon_set: dict, style: str, concepts: list[Concept], slugs: dict[str, set[str]]) -> list[list[str]]:
    """The icons of a set that show each concept."""
    by_code_point = style in (*EMOJI_STYLES, "openmoji")
    names: dict[str, list[str]] = {}
    for name in icon_set["icons"]:
        names.setdefault(slug(name if by_code_point else VARIANT.sub("", name)), []).append(name)
    found = []
    for concept in concepts:
        if not by_code_point:
            wanted = {slug(name) for name in concept.english if (style, name) not in HOMONYMS}
            found.append([name for key in sorted(wanted) for name in names.get(key, ())])
        else:
            keys = [sorted(slugs.get(code, ())) for code in concept.hexcodes]
            keys += [[slug(name) for name in concept.english]] if style == "streamline-emojis" else []
            # One drawing for each code point.
            firsts = [next((key for key in of_code if key in names), None) for of_code in keys]
            found.append(list(dict.fromkeys(names[key][0] for key in firsts if key is not None)))
    return found


def draw_icon(icon_set: dict, name: str) -> np.ndarray:
    """An icon of an Iconify set as RGBA `[4, size, size]`, uint8."""
    icon = icon_set["icons"][name]
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{view}">{icon["body"]}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE_SIZE, height=PICTURE_SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).transpose(2, 0, 1)


def colour_in(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A line drawing with every area that its lines close painted in a colour of its own."""
    open_areas, num_areas = scipy.ndimage.label(picture[3] < 128)
    at_border = set(np.concatenate([open_areas[0], open_areas[-1], open_areas[:, 0], open_areas[:, -1]]).tolist())
    painted = picture.copy()
    palette = random.integers(60, 256, (3, 3))  # two or three colours a drawing
    palette[0] |= 0x80
    for area in range(1, num_areas + 1):
        if area in at_border:
            continue
        inside = scipy.ndimage.binary_dilation(open_areas == area, iterations=2)
        opacity = picture[3] / 255 * inside
        colour = palette[random.integers(len(palette))]
        painted[:3] = np.where(inside, picture[:3] * opacity + colour[:, None, None] * (1 - opacity), painted[:3])
        painted[3][inside] = 255
    return painted


def is_line_art(picture: np.ndarray) -> bool:
    """Whether all that is opaque has one colour."""
    inked = picture[:3, picture[3] > 200]
    return inked.size > 0 and int((inked.max(1) - inked.min(1)).max()) < 24


def render(icons: Path, styles: tuple[str, ...], concepts: list[Concept]) -> dict[str, np.ndarray]:
    """`pictures [num, 4, size, size]` uint8, `concept [num]`, `style [num]` and `weight [num]` of every drawing.

    Line art comes twice, as it is and coloured in, and with a lower weight: there is more of it than of pictures.
    """
    pictures, concept_of, style_of, weight_of = [], [], [], []
    slugs = slugs_by_hexcode(icons)
    random = np.random.default_rng(0)
    for style_index, style in enumerate(styles):
        icon_set = read_set(icons, style)
        found = drawings(icon_set, style, concepts, slugs)
        for index, names in enumerate(tqdm(found, desc=style)):
            for name in names:
                picture = draw_icon(icon_set, name)
                variants = [picture, colour_in(picture, random)] if is_line_art(picture) else [picture]
                weight_of += [LINE_ART_WEIGHT if len(variants) > 1 else 1.0] * len(variants)
                pictures += variants
                concept_of += [index] * len(variants)
                style_of += [style_index] * len(variants)
    return {
        "pictures": np.stack(pictures),
        "concept": np.array(concept_of),
        "style": np.array(style_of),  # for whoever looks at the cache
        "weight": np.array(weight_of, dtype=np.float32),
    }


def cache_of(pictures: list[np.ndarray], concepts: list[int]) -> dict[str, np.ndarray]:
    """Pictures that only evaluate, as `render` returns them."""
    weight = np.ones(len(pictures), dtype=np.float32)
    return {"pictures": np.stack(pictures), "concept": np.array(concepts), "weight": weight}


def render_unseen(icons: Path) -> dict[str, np.ndarray]:
    """The objects of `unseen.tsv`; `concept` is the row."""
    icon_set = read_set(icons, "openmoji")
    pictures = [draw_icon(icon_set, row["icon"]) for row in read_rows("unseen.tsv")]
    return cache_of(pictures, list(range(len(pictures))))


def read_photographs(folder: Path, concepts: list[Concept]) -> dict[str, np.ndarray]:
    """The photographs of `photographs.tsv`, cut out as they are, on a transparent square."""
    index = {concept.english[0]: number for number, concept in enumerate(concepts)}
    rows = read_rows("photographs.tsv")
    pictures = []
    for row in rows:
        photograph = Image.open(folder / row["path"]).convert("RGBA")
        photograph.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        square = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
        left, top = ((PICTURE_SIZE - side) // 2 for side in photograph.size)
        square.paste(photograph, (left, top))
        pictures.append(np.asarray(square).transpose(2, 0, 1))
    return cache_of(pictures, [index[row["english"]] for row in rows])


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--photographs", type=Path, help="folder of Tux Paint's stamps")
    arguments = parser.parse_args()
    icons = arguments.node_modules / "@iconify-json"
    arguments.output.mkdir(parents=True, exist_ok=True)
    concepts = load_concepts()
    parts = {"train": TRAINING_STYLES} | EVALUATION_STYLES
    caches = {name: render(icons, styles, concepts) for name, styles in parts.items()}
    caches["unseen"] = render_unseen(icons)
    if arguments.photographs:
        caches["photographs"] = read_photographs(arguments.photographs, concepts)
    for name, cache in caches.items():
        np.savez(arguments.output / f"{name}.npz", **cache)
        print(name, len(cache["pictures"]))
    sources = {
        style: {
            "version": json.loads((icons / style / "package.json").read_text())["version"],
            "sha256": sha256(icons / style / "icons.json"),
        }
        for style in ALL_STYLES
    }
    for row in read_rows("photographs.tsv") if arguments.photographs else ():
        sources[row["path"]] = {"sha256": sha256(arguments.photographs / row["path"])}
    (arguments.output / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")


if __name__ == "__main__":
    main()

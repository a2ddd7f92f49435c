"""Draw what visglm-tiny knows of in every style: one cache to train on, and four that only evaluate.

    python render.py NODE_MODULES DEBIAN OUTPUT

`NODE_MODULES` is npm's folder, `DEBIAN` the root under which two Debian packages were unpacked; `tiny.mk` says which.

Only evaluating: OpenMoji, a style of its own; icons of three more sets; the objects of `unseen.tsv`, none of which was
in any training picture; and the photographs of `photographs.tsv`, from Tux Paint's stamps.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from concepts import Concept, load_concepts, read_rows
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

PICTURE_SIZE = 112  # pixels a side
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
# Emoji that are no vector graphics, in files named after their code points.
PICTURE_STYLES = {"fluent-emoji-3d": "@lobehub/fluent-emoji-3d/assets/*.webp"}
# Line art of all emoji, from fonts: npm's comes in files of some code points each.
FONT_STYLES = {
    "noto-emoji": "@fontsource/noto-emoji/files/noto-emoji-*-400-normal.woff2",
    "symbola": "usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
}
PHOTOGRAPHS = "usr/share/tuxpaint/stamps"
TRAINING_STYLES = (*EMOJI_STYLES, *ICON_STYLES, *PICTURE_STYLES, *FONT_STYLES)
# OpenMoji is share-alike art and never committed; from the others, pictures of answers may be shown.
EVALUATION_STYLES = {
    "openmoji": ("openmoji",),
    "icons": ("flat-color-icons", "marketeq", "streamline-cyber-color"),
}
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
            slugs.setdefault(hexcode(code), set()).add(slug(name))
    return slugs


def hexcode(code: str) -> str:
    """Code points as `names.tsv` writes them, upper case and without FE0F."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_set(icons: Path, style: str) -> dict:
    """An Iconify set: `icons` by name, and their size where they have none of their own."""
    return json.loads((icons / style / "icons.json").read_text())


def owners(concepts: list[Concept]) -> dict[str, int]:
    """The concept that an English name, as a slug, stands for: the one it is the first name of, else the only one that
    has it. A "football" is any of three things, and an icon of that name shows nobody knows which."""
    having: dict[str, set[int]] = defaultdict(set)
    for index, concept in enumerate(concepts):
        for name in concept.english:
            having[slug(name)].add(index)
    only = {name: min(indices) for name, indices in having.items() if len(indices) == 1}
    return only | {slug(concept.english[0]): index for index, concept in enumerate(concepts)}


def drawings(icon_set: dict, style: str, concepts: list[Concept], slugs: dict[str, set[str]]) -> list[list[str]]:
    """The icons of a set that show each concept."""
    by_code_point = style in (*EMOJI_STYLES, "openmoji")
    names: dict[str, list[str]] = {}
    for name in icon_set["icons"]:
        names.setdefault(slug(name if by_code_point else VARIANT.sub("", name)), []).append(name)
    found, owner = [], owners(concepts)
    for index, concept in enumerate(concepts):
        own = [name for name in concept.english if owner.get(slug(name)) == index]
        if not by_code_point:
            wanted = {slug(name) for name in own if (style, name) not in HOMONYMS}
            found.append([name for key in sorted(wanted) for name in names.get(key, ())])
        else:
            keys = [sorted(slugs.get(code, ())) for code in concept.hexcodes]
            keys += [[slug(name) for name in own]] if style == "streamline-emojis" else []
            # One drawing for each code point.
            firsts = [next((key for key in of_code if key in names), None) for of_code in keys]
            found.append(list(dict.fromkeys(names[key][0] for key in firsts if key is not None)))
    return found


def draw_icon(icon_set: dict, name: str) -> np.ndarray:
    """An icon of an Iconify set as RGBA `[4, size, size]`, uint8."""
    import resvg_py

    icon = icon_set["icons"][name]
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="{view}">{icon["body"]}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PICTURE_SIZE, height=PICTURE_SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).transpose(2, 0, 1)


def draw_pictures(files: list[Path], concepts: list[Concept]) -> Iterator[tuple[int, np.ndarray]]:
    """Pictures in files named after code points, each with the concept that it shows."""
    by_hexcode = {hexcode(file.stem): file for file in files}
    for index, concept in enumerate(concepts):
        for code in concept.hexcodes:
            if code in by_hexcode:
                yield index, squared(Image.open(by_hexcode[code]))


def draw_glyphs(files: list[Path], concepts: list[Concept]) -> Iterator[tuple[int, np.ndarray]]:
    """What the files of a font have for concepts of a single code point, black and as large as there is room."""
    fonts = [ImageFont.truetype(file, 2 * PICTURE_SIZE) for file in files]
    missing = [bytes(font.getmask("\U0010fffe")) for font in fonts]
    for index, concept in enumerate(concepts):
        for character in (chr(int(code, 16)) for code in concept.hexcodes if "-" not in code):
            having = (f for f, box in zip(fonts, missing, strict=True) if bytes(f.getmask(character)) != box)
            font = next(having, None)
            if font is None:
                continue
            sheet = Image.new("RGBA", (6 * PICTURE_SIZE, 6 * PICTURE_SIZE))
            ImageDraw.Draw(sheet).text((2 * PICTURE_SIZE, 2 * PICTURE_SIZE), character, "black", font)
            left, top, right, bottom = sheet.getbbox()
            margin = max(right - left, bottom - top) // 40
            yield index, squared(sheet.crop((left - margin, top - margin, right + margin, bottom + margin)))


def squared(picture: Image.Image) -> np.ndarray:
    """A picture as RGBA `[4, size, size]`, uint8, as large as fits into the middle of a transparent square."""
    picture = picture.convert("RGBA")
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    square = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
    left, top = ((PICTURE_SIZE - side) // 2 for side in picture.size)
    square.paste(picture, (left, top))
    return np.asarray(square).transpose(2, 0, 1)


def draw_icons(
    icons: Path, style: str, concepts: list[Concept], slugs: dict[str, set[str]]
) -> Iterator[tuple[int, np.ndarray]]:
    """The icons of an Iconify set, each with the concept that it shows."""
    icon_set = read_set(icons, style)
    for index, names in enumerate(drawings(icon_set, style, concepts, slugs)):
        for name in names:
            yield index, draw_icon(icon_set, name)


def colour_in(picture: np.ndarray, random: np.random.Generator, like: np.ndarray | None = None) -> np.ndarray:
    """A line drawing with every area that its lines close painted: in a random colour, or in the one that `like`,
    another drawing of the same thing, has there."""
    import scipy.ndimage

    open_areas, num_areas = scipy.ndimage.label(picture[3] < 128)
    at_border = set(np.concatenate([open_areas[0], open_areas[-1], open_areas[:, 0], open_areas[:, -1]]).tolist())
    painted = picture.copy()
    palette = random.integers(0, 256, (random.integers(1, 4), 3))
    without_hue = random.random(len(palette)) < 0.4  # black, greys and white, which hardly come about by chance
    palette[without_hue] = random.integers(30, 320, (without_hue.sum(), 1)).clip(max=255)
    model = None if like is None else laid_over(like, picture).astype(float)
    for area in range(1, num_areas + 1):
        if area in at_border:
            continue
        inside = scipy.ndimage.binary_dilation(open_areas == area, iterations=2)
        opacity = picture[3] / 255 * inside
        colour = palette[random.integers(len(palette))]
        if model is not None and model[3][inside].mean() > 128:
            colour = np.average(model[:3, inside], axis=1, weights=model[3][inside])
        painted[:3] = np.where(inside, picture[:3] * opacity + colour[:, None, None] * (1 - opacity), painted[:3])
        painted[3][inside] = 255
    return painted


def laid_over(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A picture moved and stretched so that what it shows fills the same rectangle as what `other` shows."""
    picture, other = (Image.fromarray(drawn.transpose(1, 2, 0)) for drawn in (picture, other))
    left, top, right, bottom = other.getbbox(alpha_only=True)
    canvas = Image.new("RGBA", other.size)
    canvas.paste(picture.crop(picture.getbbox(alpha_only=True)).resize((right - left, bottom - top)), (left, top))
    return np.asarray(canvas).transpose(2, 0, 1)


def is_line_art(picture: np.ndarray) -> bool:
    """Whether all that is opaque has one colour."""
    inked = picture[:3, picture[3] > 200]
    return inked.size > 0 and int((inked.max(1) - inked.min(1)).max()) < 24


def files_of(style: str, node_modules: Path, debian: Path) -> list[Path]:
    """The files that a style is drawn from."""
    pattern = (PICTURE_STYLES | FONT_STYLES).get(style, f"@iconify-json/{style}/icons.json")
    files = sorted([*node_modules.glob(pattern), *debian.glob(pattern)])
    if not files:
        raise SystemExit(f"Neither {node_modules} nor {debian} has {pattern}; `make tiny-data` loads it.")
    return files


def render(
    node_modules: Path, debian: Path, styles: tuple[str, ...], concepts: list[Concept], paint: bool
) -> dict[str, np.ndarray]:
    """`pictures [num, 4, size, size]` uint8, `concept [num]`, `style [num]` and `weight [num]` of every drawing.

    With `paint`, line art comes three times: as it is, coloured in, and coloured in like another drawing of the same
    thing. All styles weigh the same, however many drawings of a thing they have.
    """
    pictures, concept_of, style_of = [], [], []
    in_colour: dict[int, list[np.ndarray]] = defaultdict(list)  # drawings by concept
    icons = node_modules / "@iconify-json"
    slugs = slugs_by_hexcode(icons)
    random = np.random.default_rng(0)
    for style_index, style in enumerate(styles):
        files = files_of(style, node_modules, debian)
        if style in PICTURE_STYLES:
            drawn = draw_pictures(files, concepts)
        elif style in FONT_STYLES:
            drawn = draw_glyphs(files, concepts)
        else:
            drawn = draw_icons(icons, style, concepts, slugs)
        for index, picture in tqdm(drawn, desc=style):
            variants = [picture]
            if not is_line_art(picture):
                in_colour[index].append(picture)
            elif paint:
                variants.append(colour_in(picture, random))
                if others := in_colour[index]:
                    variants.append(colour_in(picture, random, like=others[random.integers(len(others))]))
            pictures += variants
            concept_of += [index] * len(variants)
            style_of += [style_index] * len(variants)
    of_both = Counter(zip(concept_of, style_of, strict=True))
    weight_of = [1 / of_both[pair] for pair in zip(concept_of, style_of, strict=True)]
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
    pictures = [squared(Image.open(folder / row["path"])) for row in rows]
    return cache_of(pictures, [index[row["english"]] for row in rows])


def sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def source(style: str, node_modules: Path, debian: Path) -> dict[str, str]:
    """The hash of what a style is drawn from, and the version of its npm package."""
    files = files_of(style, node_modules, debian)
    made = {"sha256": sha256(files)}
    if not files[0].is_relative_to(node_modules):
        return made
    package = next(folder for folder in files[0].parents if (folder / "package.json").is_file()) / "package.json"
    return {"version": json.loads(package.read_text())["version"]} | made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("debian", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    roots = arguments.node_modules, arguments.debian
    arguments.output.mkdir(parents=True, exist_ok=True)
    concepts = load_concepts()
    parts = {"train": TRAINING_STYLES} | EVALUATION_STYLES
    caches = {name: render(*roots, styles, concepts, paint=name == "train") for name, styles in parts.items()}
    caches["unseen"] = render_unseen(arguments.node_modules / "@iconify-json")
    caches["photographs"] = read_photographs(arguments.debian / PHOTOGRAPHS, concepts)
    for name, cache in caches.items():
        np.savez(arguments.output / f"{name}.npz", **cache)
        print(name, len(cache["pictures"]))
    sources = {style: source(style, *roots) for styles in parts.values() for style in styles}
    for row in read_rows("photographs.tsv"):
        sources[row["path"]] = {"sha256": sha256([arguments.debian / PHOTOGRAPHS / row["path"]])}
    (arguments.output / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")


if __name__ == "__main__":
    main()

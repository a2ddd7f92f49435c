"""Scenes of a second renderer, which shares no code with the one that training pictures come from (`world.py`).

Whoever measures a model with the renderer that taught it measures how well it knows that renderer: its margins, its
places, its sizes. Here vector drawings are rasterized at the size they are shown in, cut close to what is drawn, and
pasted: up to the edges, into corners, near each other and far apart, one to six of them, at times copies of one thing,
on plain and tinted grounds, in square, wide and tall pictures of 64 to 1,024 pixels, which are written and read again
as files are.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import resvg_py
from concepts import Concept
from PIL import Image

SIDES = (64, 96, 128, 224, 384, 512, 1024)  # pixels of the shorter side
SHAPES = ((1, 1), (1, 1), (16, 9), (9, 16), (4, 3), (3, 4))  # width and height, relative
FILES = ("png", "jpeg", "palette")
NUM_COLOURS, JPEG_QUALITY = 96, 75
# Basic colours of OpenMoji's palette, named by hand. Black is its ink, and white its paper: neither says what a thing
# is painted in, unless there is nothing else.
PALETTE = {
    "#fcea2b": "yellow", "#f1b31c": "yellow", "#92d3f5": "blue", "#61b2e4": "blue", "#1e50a0": "blue",
    "#a57939": "brown", "#6a462f": "brown", "#c19a65": "brown", "#352318": "brown", "#ea5a47": "red", "#d22f27": "red",
    "#781e32": "red", "#d0cfce": "grey", "#9b9b9a": "grey", "#3f3f3f": "black", "#b1cc33": "green", "#5c9e31": "green",
    "#186648": "green", "#e27022": "orange", "#f4aa41": "orange", "#8967aa": "purple", "#b399c8": "purple",
    "#ffa7c0": "pink", "#e67a94": "pink",
}  # fmt: skip
INK, PAPER = "#000", "#fff"
CLEAR_SHARE = 0.75  # of the painted area that a colour must cover for a thing to be of that colour
Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the picture


@dataclass(frozen=True)
class Placed:
    """A thing in a scene: index of the concept, where it stands in words ("" if alone), its clear colour or ""."""

    concept: int
    place: str
    colour: str


@dataclass(frozen=True)
class PlainScene:
    """A picture and what is in it, in reading order."""

    picture: Image.Image
    things: tuple[Placed, ...]
    layout: str


class Drawings:
    """OpenMoji's vector drawings of what is known, by concept.

    Args:
        icons: folder of `@iconify-json/openmoji`.
    """

    def __init__(self, icons: Path):
        self.set = json.loads((icons / "icons.json").read_text("utf-8"))
        listed = json.loads((icons / "chars.json").read_text("utf-8"))
        self.extents: dict[str, Box] = {}
        self.by_code = {bare(code): name for code, name in listed.items() if name in self.set["icons"]}

    def of(self, concepts: Sequence[Concept]) -> dict[int, str]:
        """The first drawing of each concept that has any."""
        found = {}
        for index, concept in enumerate(concepts):
            names = [self.by_code[code] for code in map(bare, concept.hexcodes) if code in self.by_code]
            if names:
                found[index] = names[0]
        return found

    def body(self, name: str) -> str:
        return self.set["icons"][name]["body"]

    def extent(self, name: str) -> Box:
        """What of its square a drawing fills, as fractions."""
        if name not in self.extents:
            left, top, right, bottom = rasterize(self.body(name), 288).getbbox(alpha_only=True)
            self.extents[name] = left / 288, top / 288, right / 288, bottom / 288
        return self.extents[name]

    def cut(self, name: str, width: int, height: int) -> Image.Image:
        """A drawing without any margin, as large as fits into these pixels."""
        left, top, right, bottom = self.extent(name)
        side = min(width / (right - left), height / (bottom - top))
        drawn = rasterize(self.body(name), max(1, round(side)))
        return drawn.crop(drawn.getbbox(alpha_only=True) or (0, 0, 1, 1)).resize(
            (max(1, round(side * (right - left))), max(1, round(side * (bottom - top)))), Image.Resampling.BILINEAR
        )

    def colour(self, name: str) -> str:
        """The colour that covers most of a drawing's paint, "" where none is clear."""
        flat = re.sub(r"<[^>]*Gradient.*?</[^>]*Gradient>", "", self.body(name))
        drawn = rasterize(flat, 144)
        area: Counter[str] = Counter()
        for count, (red, green, blue, alpha) in drawn.getcolors(144 * 144) or ():
            if alpha == 255:
                area[nearest_paint(red, green, blue)] += count
        painted = area.total() - area[INK] - area[PAPER]
        if painted < 0.15 * area.total():
            ink, paper = area[INK], area[PAPER]
            return "black" if ink > 3 * paper else "white" if paper > 3 * ink else ""
        named: Counter[str] = Counter()
        for paint, count in area.items():
            if paint not in (INK, PAPER):
                named[PALETTE[paint]] += count
        named["white"] += area[PAPER]
        (name_of_most, most), *_ = named.most_common(1)
        return name_of_most if most >= CLEAR_SHARE * named.total() else ""


def bare(code: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def rasterize(body: str, side: int) -> Image.Image:
    """The body of an Iconify icon on a square of 72 units, as RGBA."""
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="0 0 72 72">{body}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)))).convert("RGBA")


@cache
def nearest_paint(*colour: int) -> str:
    def away(paint: str) -> int:
        digits = paint[1:] if len(paint) == 7 else "".join(2 * digit for digit in paint[1:])
        return sum((value - int(digits[at : at + 2], 16)) ** 2 for value, at in zip(colour, (0, 2, 4), strict=True))

    return min((INK, PAPER, *PALETTE), key=away)


def boxes(number: int, draw: random.Random) -> tuple[str, list[Box], list[str]]:
    """A layout for so many things: its name, a box for each, and where each stands in words."""
    if number == 1:
        name = draw.choice(("tight", "margin", "corner", "small"))
        side = {"tight": 1.0, "margin": draw.uniform(0.55, 0.85), "corner": draw.uniform(0.3, 0.5)}.get(name, 0.3)
        left, top = ((1 - side) * draw.random() for _ in range(2))
        if name == "margin":
            left = top = (1 - side) / 2
        if name == "corner":
            left, top = draw.choice((0, 1 - side)), draw.choice((0, 1 - side))
        return name, [(left, top, left + side, top + side)], [""]
    name = draw.choice(("near", "far"))
    if number == 2:
        side = draw.uniform(0.28, 0.48)
        gap = 0.01 if name == "near" else (1 - 2 * side)
        first = (1 - 2 * side - gap) / 2
        across = (1 - side) * draw.uniform(0.2, 0.8)
        starts = first, first + side + gap
        if draw.random() < 0.5:
            return name, [(at, across, at + side, across + side) for at in starts], ["left", "right"]
        return name, [(across, at, across + side, at + side) for at in starts], ["top", "bottom"]
    columns, rows = (2, 2) if number <= 4 else (3, 2)
    cells = [(column / columns, row / rows) for row in range(rows) for column in range(columns)]
    places = ["top left", "top right", "bottom left", "bottom right"] if columns == 2 else [""] * 6
    kept = sorted(draw.sample(range(len(cells)), number))
    filled = draw.uniform(0.6, 0.98)
    where = []
    for left, top in (cells[index] for index in kept):
        width, height = filled / columns, filled / rows
        x = left + (1 / columns - width) * (draw.random() if name == "far" else 0.5)
        y = top + (1 / rows - height) * (draw.random() if name == "far" else 0.5)
        where.append((x, y, x + width, y + height))
    return name, where, [places[index] for index in kept]


def ground(draw: random.Random) -> tuple[int, int, int]:
    """White for half the pictures, else some tint, light more often than dark."""
    if draw.random() < 0.5:
        return 255, 255, 255
    lowest = draw.choice((200, 200, 120, 30))
    red, green, blue = (draw.randint(lowest, 255) for _ in range(3))
    return red, green, blue


def as_file(picture: Image.Image, kind: str) -> Image.Image:
    """A picture as it comes back from a file."""
    written = io.BytesIO()
    if kind == "jpeg":
        picture.save(written, "JPEG", quality=JPEG_QUALITY)
    elif kind == "palette":
        picture.quantize(NUM_COLOURS).save(written, "PNG")
    else:
        picture.save(written, "PNG")
    return Image.open(io.BytesIO(written.getvalue())).convert("RGB")


def compose(
    drawings: Drawings, shown: Sequence[tuple[int, str]], draw: random.Random, number: int | None = None
) -> PlainScene:
    """A scene of these `(concept, drawing)`, in reading order."""
    layout, where, places = boxes(number or len(shown), draw)
    shape, short = draw.choice(SHAPES), draw.choice(SIDES)
    if len(shown) > 1:
        short = max(short, 128)  # of six things in 64 pixels nobody sees anything
    width, height = (round(short * part / min(shape)) for part in shape)
    picture = Image.new("RGB", (width, height), ground(draw))
    things = []
    for (concept, name), (left, top, right, bottom), place in zip(shown, where, places, strict=True):
        room_across, room_down = round((right - left) * width), round((bottom - top) * height)
        cut = drawings.cut(name, max(room_across, 1), max(room_down, 1))
        # A drawing is seldom as wide as its box: it stands in the middle, but in a corner it goes into the corner.
        spare_across, spare_down = room_across - cut.width, room_down - cut.height
        x = round(left * width) + (spare_across // 2 if layout != "corner" else spare_across * (left > 0))
        y = round(top * height) + (spare_down // 2 if layout != "corner" else spare_down * (top > 0))
        picture.paste(cut, (x, y), cut)
        things.append(Placed(concept, place, drawings.colour(name)))
    return PlainScene(as_file(picture, draw.choice(FILES)), tuple(things), layout)


def plain_scenes(
    drawings: Drawings, known: dict[int, str], counts: Sequence[int], seed: int, copies: float = 0.0
) -> list[PlainScene]:
    """A scene for each of `counts`; this share of those with several things shows one thing several times.

    Things come round in an order of their own, so that no drawing is shown more often than another.
    """
    draw = random.Random(seed)
    waiting: list[int] = []
    scenes = []
    for number in counts:
        while len(waiting) < number:
            waiting = draw.sample(sorted(known), len(known)) + waiting
        chosen = [waiting.pop() for _ in range(number)]
        if number > 1 and draw.random() < copies:
            chosen = chosen[:1] * number
        scenes.append(compose(drawings, [(concept, known[concept]) for concept in chosen], draw))
    return scenes

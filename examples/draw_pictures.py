"""Draw the pictures in this folder: openly licensed emoji in front of backgrounds painted here.

npm install --ignore-scripts @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji@1.2.7
pip install 'visglm[tiny]'
python examples/draw_pictures.py node_modules/@iconify-json
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

HERE = Path(__file__).parent
SIZE = 384  # pixels a side

# File → background (colours at the top and at the bottom), photographic or not, and the objects: set, icon, centre
# and width as fractions of the side.
PICTURES = {
    "cat.png": (("#dff3e4", "#8fce9b"), False, [("fluent-emoji", "cat", (0.5, 0.52), 0.78)]),
    "fruit.png": (
        ("#fff7e6", "#f3d9b1"),
        False,
        [
            ("noto", "red-apple", (0.27, 0.27), 0.42),
            ("noto", "banana", (0.73, 0.27), 0.42),
            ("noto", "pineapple", (0.27, 0.73), 0.42),
            ("noto", "teacup-without-handle", (0.73, 0.73), 0.42),
        ],
    ),
    "pair.png": (
        ("#e8f0ff", "#b7cdf5"),
        False,
        [("noto", "dog-face", (0.27, 0.5), 0.44), ("noto", "umbrella", (0.73, 0.5), 0.44)],
    ),
    "car.jpg": (("#6fa8dc", "#5b5f57"), True, [("fluent-emoji", "automobile", (0.5, 0.6), 0.7)]),
}


def draw_icon(icons: Path, style: str, name: str, width: int) -> Image.Image:
    data = json.loads((icons / style / "icons.json").read_text("utf-8"))
    body, side = data["icons"][name]["body"], data["width"]
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {namespaces} viewBox="0 0 {side} {side}">{body}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, height=width)))).convert(
        "RGBA"
    )


def paint_background(top: str, bottom: str, photographic: bool) -> Image.Image:
    """A gradient; for a photograph a horizon between sky and road, out of focus."""
    share = np.linspace(0, 1, SIZE)[:, None, None]
    if photographic:
        share = 1 / (1 + np.exp(-(share - 0.55) * 40))
    colours = [np.array(Image.new("RGB", (1, 1), colour)).astype(float) for colour in (top, bottom)]
    return Image.fromarray(
        np.broadcast_to(colours[0] * (1 - share) + colours[1] * share, (SIZE, SIZE, 3)).astype("uint8")
    )


def expose(picture: Image.Image) -> Image.Image:
    """What a camera adds: a lens that is sharp in the middle and darker at the edge, and a noisy sensor."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    distance = np.hypot(x, y)[..., None]
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(2.5))).astype(float)
    sharp = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7))).astype(float)
    mixed = sharp + (soft - sharp) * np.clip(distance - 0.3, 0, 1)
    noise = np.random.default_rng(0).normal(0, 5, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(mixed * (1 - 0.25 * distance**2) + noise, 0, 255).astype("uint8"))


def draw_picture(icons: Path, colours: tuple[str, str], photographic: bool, objects: list) -> Image.Image:
    picture = paint_background(*colours, photographic)
    for style, name, (x, y), width in objects:
        icon = draw_icon(icons, style, name, round(width * SIZE))
        corner = (round(x * SIZE - icon.width / 2), round(y * SIZE - icon.height / 2))
        shadow = icon.getchannel("A").point(lambda opacity: opacity * 0.25)
        layer = Image.new("L", picture.size)
        layer.paste(shadow, (corner[0] + 4, corner[1] + 10))
        picture.paste("#20242c", mask=layer.filter(ImageFilter.GaussianBlur(7)))
        picture.paste(icon, corner, icon)
    return expose(picture) if photographic else picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("icons", type=Path, help="the folder @iconify-json in node_modules")
    icons = parser.parse_args().icons
    for file, (colours, photographic, objects) in PICTURES.items():
        draw_picture(icons, colours, photographic, objects).save(HERE / file, quality=88, optimize=True)
        print(HERE / file)


if __name__ == "__main__":
    main()

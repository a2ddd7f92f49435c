"""Pictures in a grid, each with its question and the model's answer, right ones in green and wrong ones in red."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

NUM_COLUMNS, PICTURE, TILE, LINE = 6, 120, 190, 17  # pixels, but for the first
NUM_LINES = 6  # of text below a picture
RIGHT, WRONG, QUESTION = (0, 110, 50), (190, 30, 30), (90, 90, 90)


def draw_grid(answers: list[tuple[Image.Image, str, str, bool]], path: Path, font_name: str) -> None:
    """Write `(picture, question, answer, is_right)` as a PNG."""
    font = ImageFont.truetype(font_name, 13)
    height = PICTURE + NUM_LINES * LINE + 12
    num_rows = -(-len(answers) // NUM_COLUMNS)
    canvas = Image.new("RGB", (NUM_COLUMNS * TILE, num_rows * height), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (picture, question, answer, is_right) in enumerate(answers):
        x, y = place % NUM_COLUMNS * TILE + 6, place // NUM_COLUMNS * height + 4
        canvas.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (x, y))
        lines = [(line, QUESTION) for line in wrap(question, font)]
        lines += [(line, RIGHT if is_right else WRONG) for line in wrap(answer, font)]
        for number, (line, colour) in enumerate(lines[:NUM_LINES]):
            pen.text((x, y + PICTURE + 2 + number * LINE), line, colour, font)
    canvas.quantize(128).save(path, optimize=True)


def wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines that fit below a picture; Chinese may break anywhere."""
    lines, line = [], ""
    for word in text.split(" ") if text.isascii() else text:
        longer = f"{line} {word}" if text.isascii() and line else line + word
        if font.getlength(longer) > TILE - 12 and line:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]

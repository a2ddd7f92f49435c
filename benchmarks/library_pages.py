"""Do the boxes of citations say the quotes? Pages are made from known text, added to a library, and asked.

    OMP_NUM_THREADS=1 python benchmarks/library_pages.py cmrc2018_dev.json FOLDER     # of Debian's FAQ, unpacked

Every layout comes in every form and both scripts. A quote is right if it stands in the text that the page was made
from, and its box if OCR of what the box cuts out of the page says the quote, and little else. Needs the extra `ocr`,
reportlab, and the fonts of Debian's packages fonts-dejavu and fonts-noto-cjk.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import random
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from visglm import Library
from visglm.library import answer

FONTS = {
    "en": ("/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf", "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
    "zh": (
        "/usr/share/fonts/opentype/noto/NotoSerifCJK-Regular.ttc",
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    ),
}
WIDTH, HEIGHT, MARGIN = 595, 842, 60  # of a page, in points
SIZE, LEADING = 11, 17
SCALE = 200 / 72  # pixels of a scan to a point
WHOLE = 0.9  # of a quote's characters that are found, in their order, in what is held against it
SPARE = 2  # lines that a box may hold besides its quote: the rest of its first and of its last


@dataclass
class Page:
    """What is printed: `(left, top, text)` in points, rules, and the text as it was before it was laid out.

    Args:
        asked: questions that it answers.
        longest: characters of its longest line.
    """

    text: str
    asked: list[str]
    lines: list[tuple[float, float, str]] = field(default_factory=list)
    rules: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def longest(self) -> int:
        return max(len(plain(text)) for *_, text in self.lines)


# --- text ---


def chinese(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Passages and their questions."""
    rows = json.loads(path.read_text("utf-8"))
    random.Random(0).shuffle(rows)
    for row in rows:
        yield row["context_text"], [qa["query_text"] for qa in row["qas"]]


def english(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs; each is asked with words of its own, from the middle of one of its sentences."""
    found = []
    for path in sorted(folder.rglob("*.en.html")):
        for match in re.finditer(r"<p>(.*?)</p>", path.read_text("utf-8"), re.DOTALL):
            text = " ".join(unescape(re.sub(r"<[^>]+>", "", match[1])).split())
            if 300 < len(text) < 1_200 and text.isascii():
                found.append(text)
    random.Random(0).shuffle(found)
    for text in dict.fromkeys(found):
        sentences = [words for words in map(str.split, re.split(r"(?<=[.?!])\s", text)) if len(words) > 9]
        if sentences:
            yield (
                text,
                [" ".join(words[2:9]) for words in random.Random(text).sample(sentences, min(2, len(sentences)))],
            )


# --- layouts ---


def wrapped(text: str, font: Any, width: float) -> Iterator[str]:
    """Lines that fit, broken at spaces, and anywhere inside of Chinese."""
    line = ""
    for token in re.findall(r"[\x21-\x7e]+|\s+|.", text):
        if line and font.getlength(line + token) > width and not (token in "，。、；：！？”）》" or token.isspace()):
            yield line.rstrip()
            line = ""
        line += token if line or not token.isspace() else ""
    if line.strip():
        yield line.rstrip()


def columns(number: int) -> Callable[[Any, Any], Page]:
    def lay(texts: Iterator[tuple[str, list[str]]], font: Any) -> Page:
        """Paragraphs that run from column to column, under a title across all of them."""
        page = Page("", [])
        gutter = 24
        width = (WIDTH - 2 * MARGIN - (number - 1) * gutter) / number
        page.lines.append((MARGIN, MARGIN, "Notes 1" if number == 1 else "Notes 2"))
        column, top = 0, MARGIN + 2 * LEADING
        while True:
            text, asked = next(texts)
            lines = list(wrapped(text, font, width))
            room = (HEIGHT - MARGIN - top) // LEADING + (number - 1 - column) * ((HEIGHT - 2 * MARGIN) // LEADING - 2)
            if len(lines) > room:
                if page.asked:
                    return page
                continue
            for line in lines:
                if top + LEADING > HEIGHT - MARGIN:
                    column, top = column + 1, MARGIN + 2 * LEADING
                page.lines.append((MARGIN + column * (width + gutter), top, line))
                top += LEADING
            top += LEADING
            page.text += text + "\n"
            page.asked += asked[:2]

    return lay


def table(texts: Iterator[tuple[str, list[str]]], font: Any) -> Page:
    """Ruled rows of a number, words and an amount."""
    page = Page("", [])
    places = (MARGIN, MARGIN + 70, WIDTH - MARGIN - 80)
    draw = random.Random(1)
    for number in range(18):
        top = MARGIN + number * 2 * LEADING
        text, _ = next(texts)
        words = next(wrapped(text, font, places[2] - places[1] - 20))
        row = (f"{draw.randrange(1000, 9999)}", words, f"{draw.randrange(100, 999)}.{draw.randrange(10, 99)}")
        page.lines += [(left + 6, top + 8, cell) for left, cell in zip(places, row, strict=True)]
        page.rules.append((MARGIN, top, WIDTH - MARGIN, top + 2 * LEADING))
        page.rules += [(left, top, left, top + 2 * LEADING) for left in places[1:]]
        page.text += " ".join(row) + "\n"
        if number % 4 == 1:
            page.asked.append(words)
    return page


LAYOUTS: dict[str, Callable[[Any, Any], Page]] = {"one column": columns(1), "two columns": columns(2), "table": table}


# --- forms ---


def printed(page: Page, language: str, font: str, degrees: int = 0) -> bytes:
    """A PDF with its text."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.pdfgen import canvas

    name = "STSong-Light" if language == "zh" else Path(font).stem
    pdfmetrics.registerFont(UnicodeCIDFont(name) if language == "zh" else TTFont(name, font))
    buffer = io.BytesIO()
    # reportlab exchanges the sides of a page that is turned by 90°.
    sheet = canvas.Canvas(buffer, pagesize=(HEIGHT, WIDTH) if degrees % 180 else (WIDTH, HEIGHT))
    sheet.setPageRotation(degrees)
    sheet.setFont(name, SIZE)
    for left, top, text in page.lines:
        sheet.drawString(left, HEIGHT - top - SIZE, text)
    for left, top, right, bottom in page.rules:
        sheet.rect(left, HEIGHT - bottom, right - left, bottom - top)
    sheet.save()
    return buffer.getvalue()


def drawn(page: Page, font: str) -> Image.Image:
    """The page as a picture."""
    image = Image.new("L", (round(WIDTH * SCALE), round(HEIGHT * SCALE)), 255)
    draw = ImageDraw.Draw(image)
    letters = ImageFont.truetype(font, round(SIZE * SCALE))
    for left, top, text in page.lines:
        draw.text((left * SCALE, top * SCALE), text, 20, letters)
    for rule in page.rules:
        draw.rectangle([SCALE * number for number in rule], outline=40, width=2)
    return image


def scanned(page: Page, font: str, turn: float) -> Image.Image:
    """… off a scanner: turned, out of focus, on paper that is not white, with noise."""
    image = drawn(page, font).rotate(turn, Image.Resampling.BICUBIC, fillcolor=255)
    image = image.filter(ImageFilter.GaussianBlur(1.2)) if turn else image
    noise = np.random.default_rng(0).normal(0, 6 if turn else 0, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) * (0.94 if turn else 1) + noise, 0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, form, **({"resolution": 200} if form == "PDF" else {"quality": 85}))
    return buffer.getvalue()


# Form → what makes a file of a page, its ending, and by how many degrees what is cut out of it is turned upright.
FORMS: dict[str, tuple[Callable[[Page, str, str], bytes], str, float]] = {
    "PDF with text": (printed, ".pdf", 0),
    "… turned by 90°": (lambda page, language, font: printed(page, language, font, 90), ".pdf", 90),
    "PDF of a picture": (lambda page, language, font: saved(scanned(page, font, 0), "PDF"), ".pdf", 0),
    "… turned by 2°, blurred": (lambda page, language, font: saved(scanned(page, font, 2), "PDF"), ".pdf", -2),
    "… turned by −2°, a JPEG": (lambda page, language, font: saved(scanned(page, font, -2), "JPEG"), ".jpg", 2),
}


# --- what is right ---


def plain(text: str) -> str:
    """Letters and digits alone: OCR takes marks and blanks of the two scripts for each other."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).lower() if letter.isalnum())


def share_in(quote: str, text: str) -> float:
    """The share of a quote's characters that stand in a text, in their order and close to each other."""
    quote, text = plain(quote), plain(text)
    if not quote:
        return 1.0
    if quote in text:
        return 1.0
    matcher = SequenceMatcher(None, text, quote, autojunk=False)
    first = matcher.find_longest_match()
    start = max(0, first.a - first.b - 5)
    near = SequenceMatcher(None, text[start : start + len(quote) + 10], quote, autojunk=False)
    return sum(block.size for block in near.get_matching_blocks()) / len(quote)


class Ocr:
    """What a picture says, its lines from top to bottom and from left to right."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        # Cuttings are long and low: by default they would be blown up to a height of 736.
        self.reader = RapidOCR(
            params={"Global.log_level": "error", "Det.limit_type": "max", "Det.limit_side_len": 2000}
        )

    def __call__(self, image: Image.Image) -> list[str]:
        # Letters at the very edge are not found: a frame of paper around them.
        frame = Image.new("RGB", (image.width + 80, image.height + 80), (255, 255, 255))
        frame.paste(image, (40, 40))
        found = self.reader(np.asarray(frame)[:, :, ::-1])
        if found.txts is None:
            return [""]
        # Cells of a row on a page that is turned stand at different heights: from left to right it is a row again.
        beside = sorted(zip(found.txts, found.boxes, strict=True), key=lambda line: line[1][0][0])
        return [" ".join(found.txts), " ".join(words for words, _ in beside)]


def checked(library: Library, read: Ocr, page: Page, citation: Any, degrees: float) -> tuple[bool, bool, str]:
    """Whether the quote stands in the text; whether the box says it, and little else; what it says."""
    stands = share_in(citation.quote, page.text) >= WHOLE
    view = library.view(citation)
    if view.image is None or view.box is None:
        return stands, False, view.problem
    image = view.image
    left, top, right, bottom = (
        share * length for share, length in zip(view.box, (image.width, image.height) * 2, strict=True)
    )
    margin = 0.003 * image.width
    cut = image.crop((round(left - margin), round(top - margin), round(right + margin), round(bottom + margin)))
    cut = cut.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    said = [""]
    for factor in (1.0, 1.6):  # letters that are small and blurred are read when they are larger
        said = read(cut.resize((round(factor * cut.width), round(factor * cut.height)), Image.Resampling.BICUBIC))
        spare = len(plain(said[0])) - len(plain(citation.quote))
        if max(share_in(citation.quote, words) for words in said) >= WHOLE and spare <= SPARE * page.longest:
            return stands, True, said[0]
    return stands, False, said[0]


def tell(marks: list[tuple[bool, bool]]) -> tuple[str, ...]:
    """Shares of the quotes and of the boxes that are right."""
    return tuple(f"{100 * sum(mark[side] for mark in marks) / max(len(marks), 1):.1f} %" for side in (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cmrc", type=Path, help="the development set of CMRC 2018")
    parser.add_argument("faq", type=Path, help="the folder of Debian's FAQ")
    parser.add_argument("--pages", type=int, default=1, help="of each layout, form and script")
    parser.add_argument("--questions", type=int, default=4, help="of each page, at the most")
    parser.add_argument("--work", type=Path, default=Path("build/library/pages"), help="where the pages are written")
    parser.add_argument("--only", nargs="*", default=[], help="words of layouts, forms and scripts")
    parser.add_argument("--show", action="store_true", help="what was not right")
    arguments = parser.parse_args()
    read = Ocr()
    texts = {"zh": chinese(arguments.cmrc), "en": english(arguments.faq)}
    print("layout | form | script | asked | quotes | stand in the text | boxes say them")
    marks: list[tuple[bool, bool]] = []
    started = time.perf_counter()
    for layout, language, number in itertools.product(LAYOUTS, FONTS, range(arguments.pages)):
        font = FONTS[language][number % 2]
        page = LAYOUTS[layout](texts[language], ImageFont.truetype(font, SIZE))
        for place, (form, (make, suffix, upright)) in enumerate(FORMS.items()):
            if not all(word in f"{layout} {form} {language}" for word in arguments.only):
                continue
            folder = arguments.work / f"{layout}-{place}-{language}-{number}".replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"page{suffix}"
            path.write_bytes(make(page, language, font))
            library = Library.open(folder / f"{time.time_ns()}.library", vectors=False)
            changes = library.add(path, progress=False)
            if changes.skipped:
                print(changes.skipped, file=sys.stderr)
            asked = random.Random(0).sample(page.asked, min(arguments.questions, len(page.asked)))
            cited = {
                (citation.start, citation.end): citation
                for question in asked
                for citation in answer(question, library, kinds="text").citations
            }
            found = []
            for citation in cited.values():
                stands, says, said = checked(library, read, page, citation, upright)
                found.append((stands, says))
                if arguments.show and not (stands and says):
                    print(
                        path, stands, says, repr(citation.quote), repr(said), citation.box, file=sys.stderr, flush=True
                    )
            print(layout, form, language, len(asked), len(found), *tell(found), sep=" | ", flush=True)
            marks += found
    stand, say = tell(marks)
    print(f"all: {len(marks)} quotes, {stand} stand in the text, {say} of the boxes say them; "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()

"""Documents as other programs write them."""

from __future__ import annotations

import csv
import io
import zipfile
from email.message import EmailMessage
from pathlib import Path

import docx
import openpyxl
import pptx
from reportlab.lib import pdfencrypt
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen import canvas

from visglm.library.embed import NoEmbedder

ROOT = Path(__file__).parents[2]
CAT = ROOT / "examples/cat.png"
PAIR = ROOT / "examples/pair.png"
PAGE = (400, 600)  # points
ENGLISH = "The warranty of the kettle lasts thirty months."
CHINESE = "水壶的保修期是三十个月。"


def pdf(*pages: list[tuple[float, float, str]], password: str = "", picture: Path | None = None) -> bytes:
    """A PDF whose pages hold lines at places, in points from the upper left corner; the picture is on the last one."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    buffer = io.BytesIO()
    encrypt = pdfencrypt.StandardEncryption(password, canPrint=0) if password else None
    sheet = canvas.Canvas(buffer, pagesize=PAGE, encrypt=encrypt)
    for number, lines in enumerate(pages, start=1):
        sheet.bookmarkPage(f"page{number}")
        sheet.addOutlineEntry(f"Section {number}", f"page{number}")
        for left, top, text in lines:
            sheet.setFont("Helvetica" if text.isascii() else "STSong-Light", 12)
            sheet.drawString(left, PAGE[1] - top, text)
        if picture is not None and number == len(pages):
            sheet.drawImage(str(picture), 100, 100, width=200, height=200)
        sheet.showPage()
    sheet.save()
    return buffer.getvalue()


def no_vectors() -> NoEmbedder:
    """Texts are found by their words alone."""
    return NoEmbedder()


def docx_file() -> bytes:
    document = docx.Document()
    document.add_heading("Kettle", 1)
    document.add_heading("Warranty", 2)
    document.add_paragraph(ENGLISH)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(
        [cell for row in table.rows for cell in row.cells], ["Part", "Price", "Lid", "7"], strict=True
    ):
        cell.text = text
    document.add_paragraph(CHINESE)
    document.add_picture(str(CAT))
    return saved(document)


def pptx_file() -> bytes:
    slides = pptx.Presentation()
    for title, text in (("Start", "Nothing yet."), ("Kettle", ENGLISH)):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
    slide.notes_slide.notes_text_frame.text = CHINESE
    slide.shapes.add_picture(str(CAT), 0, 0)
    return saved(slides)


def xlsx_file() -> bytes:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Prices"
    for row in (["Part", "Price"], ["Lid", 7], ["Spout", 9]):
        sheet.append(row)
    workbook.create_sheet("保修").append([CHINESE])
    return saved(workbook)


def saved(document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def epub_file() -> bytes:
    chapter = f"<html><head><title>x</title></head><body><h1>Kettle</h1><p>{ENGLISH}</p><p>{CHINESE}</p></body></html>"
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="a/b.opf"/></rootfiles></container>',
            "a/b.opf": '<package><manifest><item id="c" href="c%201.xhtml" media-type="application/xhtml+xml"/>'
            '<item id="p" href="cat.png" media-type="image/png"/></manifest>'
            '<spine><itemref idref="c"/></spine></package>',
            "a/c 1.xhtml": chapter,
            "a/cat.png": CAT.read_bytes(),
        }
    )


def archive(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def csv_file() -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["Part", "Note"], ["Lid", ENGLISH], ["壶嘴", CHINESE]])
    return buffer.getvalue().encode("utf-8-sig")


def mail_file() -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.org", "b@example.org", "Kettle 水壶"
    message.set_content(f"Hello,\n\n{ENGLISH}\n\n{CHINESE}\n")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="bill.pdf")
    return message.as_bytes()


HTML = f"""<!doctype html><html><head><meta charset="gb18030"><title>Shop</title>
<script>document.write("evil")</script><style>p {{}}</style></head>
<body><h1>Kettle</h1><p>{ENGLISH}</p><p hidden>unseen</p><img src="http://127.0.0.1:9/x.png" alt="a lid">
<iframe src="http://127.0.0.1:9/"></iframe><h2>保修</h2><p>{CHINESE}<br>第二行</p></body></html>"""

# Suffix → a file in which both sentences stand.
DOCUMENTS = {
    ".txt": f"{ENGLISH}\r\n\r\n{CHINESE}".encode("gb18030"),
    ".md": f"# Kettle\n\n{ENGLISH}\n\n## 保修\n{CHINESE}\n".encode(),
    ".csv": csv_file(),
    ".html": HTML.encode("gb18030"),
    ".pdf": pdf([(50, 100, ENGLISH), (50, 300, CHINESE)]),
    ".docx": docx_file(),
    ".pptx": pptx_file(),
    ".epub": epub_file(),
    ".eml": mail_file(),
    ".mbox": b"From a@example.org Mon Jan  1 00:00:00 2024\n" + mail_file(),
}

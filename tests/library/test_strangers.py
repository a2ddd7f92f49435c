"""Documents as other people's programs leave them: what they say is read, and what cannot be is told."""

from __future__ import annotations

import base64
import datetime
import io
import os
import shutil
from email.message import EmailMessage
from pathlib import Path

import docx
import openpyxl
import pytest
from docx.oxml import parse_xml
from reportlab.pdfgen import canvas

from tests.library import samples
from visglm import Library
from visglm.library import LibraryLimits, answer, indexing
from visglm.library.scans import pieces_of

TRADITIONAL = "水壺的保修期是三十個月。圖書館開放時間為每日上午九時至下午五時。"
JAPANESE = "やかんの保証期間は三十か月です。図書館は毎日午前九時から開いています。"
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


@pytest.fixture
def library(tmp_path) -> Library:
    return Library.open(tmp_path / "notes.library", vectors=False)


def put(library: Library, tmp_path: Path, name: str, data: bytes):
    """Add a file as one that somebody has."""
    path = tmp_path / name
    path.write_bytes(data)
    return library.add(path, progress=False)


def texts(library: Library, words: str) -> list[str]:
    return [hit.text for hit in library.search(words)]


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("big5", TRADITIONAL), ("gb18030", samples.CHINESE), ("gb18030", "保修期三十个月"),
        ("utf-16-le", f"{samples.CHINESE}\n第二行。"),
        ("utf-16-be", samples.ENGLISH), ("utf-32-le", samples.CHINESE), ("shift_jis", JAPANESE), ("euc_jp", JAPANESE),
        ("iso2022_jp", JAPANESE), ("euc_kr", "주전자의 보증 기간은 삼십 개월입니다. 도서관은 매일 열려 있습니다."),
        ("cp1251", "Гарантия на чайник составляет тридцать месяцев. Библиотека открыта ежедневно."),
        ("cp1251", "Гарантія на чайник становить тридцять місяців, його кришка зроблена зі скла."),
        ("koi8_r", "Параметр LIMIT не поддерживается в этом контексте"),
        ("cp1252", "La garantie de la bouilloire est de trente mois. Le café est fermé l’été."),
        ("cp1252", "Die Garantie für den Kessel läuft über dreißig Monate; er wiegt 2 kg und fasst ½ m³ „Öl“."),
        ("cp1252", "¿Cuánto dura la garantía de la tetera? Treinta meses, señor; el café cierra a las 8."),
        ("cp1252", "Er is meer dan één ketel met garantie, zei hij."),
        ("cp1250", "Gwarancja na czajnik trwa trzydzieści miesięcy. Pokrywka jest ze szkła, a rączka żółta."),
        ("iso8859_2", "Gwarancja na czajnik trwa trzydzieści miesięcy. Pokrywka jest ze szkła, a rączka żółta."),
        ("cp1250", "Záruka na konvici trvá třicet měsíců. Víčko je z modrého skla a držadlo ze dřeva."),
        ("iso8859_2", "Záruka na konvici trvá třicet měsíců. Víčko je z modrého skla a držadlo ze dřeva."),
        ("cp1250", "A vízforraló garanciája harminc hónapig érvényes. Fedője kék üvegből, fogantyúja gyűrű alakú."),
        ("iso8859_2", "A vízforraló garanciája harminc hónapig érvényes. Fedője kék üvegből, fogantyúja gyűrű alakú."),
        ("cp1250", "Záruka na kanvicu trvá tridsať mesiacov. Jej vrchnák je z modrého skla, rúčka je ľahká."),
        ("cp1254", "Su ısıtıcısının garantisi otuz ay sürer. Kapağı mavi camdan, sapı ağaçtan yapılmıştır."),
        ("gb18030", "The manager 王小明 signed the warranty of the kettle in 上海市浦东新区."),
        ("big5", "The manager 王小明 signed the warranty of the kettle in 臺北市中正區."),
    ],
)  # fmt: skip
def test_text_is_read_whatever_it_was_written_in(library, tmp_path, encoding, text):
    put(library, tmp_path, "note.txt", text.encode(encoding))
    word = text.split()[1] if " " in text else text[:3]
    assert texts(library, word) == [text]


def test_odd_letters_in_text_that_is_sure_are_its_own(library, tmp_path):
    icons = "Home \ue001 Kettle \ufffd\ufffd"
    put(library, tmp_path, "icons.txt", icons.encode())
    assert texts(library, "kettle") == [icons]
    mail = b"Subject: Lid\nContent-Type: text/plain\n\n" + bytes(range(1, 256)) * 20
    put(library, tmp_path, "a.eml", mail)
    assert texts(library, "lid") == ["Subject: Lid"]


@pytest.mark.parametrize(
    "text", [samples.CHINESE, "Гарантия на чайник составляет месяцы.", "Die Tür öffnet übermäßig."]
)
@pytest.mark.parametrize(
    "before, after", [(b"", b"\xe4"), (b"\xbf\n\n", b""), (b"", b" caf\xe9"), (b"\xef\xbb\xbf", b"\xff")]
)
def test_a_broken_byte_costs_no_more_than_itself(library, tmp_path, text, before, after):
    """Logs are cut inside of a character, and other programs write into them."""
    text = "\n\n".join([text] * 3)
    put(library, tmp_path, "a.log", before + text.encode() + after)
    word = text.split()[1] if text.isascii() or " " in text else text[:3]
    assert any(text.split("\n\n")[1] in found for found in texts(library, word))


def test_a_line_that_was_added_to_utf_16_hides_nothing(library, tmp_path):
    put(library, tmp_path, "a.txt", samples.CHINESE.encode("utf-16") + b"\n")
    assert samples.CHINESE in texts(library, samples.CHINESE[:3])[0]


@pytest.mark.parametrize("name", ["program.txt", "picture.csv", "letters.md"])
def test_what_is_no_text_is_told_and_not_read_as_letters(library, tmp_path, name):
    data = {"program.txt": b"PK\x03\x04" + bytes(range(256)) * 10, "picture.csv": samples.CAT.read_bytes()}
    changes = put(library, tmp_path, name, data.get(name, bytes(range(1, 256)) * 20))
    assert ["it is no text" in problem for problem in changes.skipped.values()] == [True]


@pytest.mark.parametrize(
    "head, encoding",
    [("utf-16", "utf-8"), ("iso-8859-1", "utf-8"), ("gb2312", "gb18030"), ("utf-7", "utf-8"), ("big5", "big5"),
     ("punycode", "utf-8"), ("hex", "utf-8")],
)  # fmt: skip
def test_pages_that_name_another_encoding(library, tmp_path, head, encoding):
    text = "囍宴水壺保修期三十個月"
    put(library, tmp_path, "a.html", f'<meta charset="{head}"><p>{text}</p>'.encode(encoding))
    assert texts(library, "保修期") == [text]


def test_a_head_that_is_not_ended_hides_nothing(library, tmp_path):
    put(library, tmp_path, "a.html", b"<html><head><title>Kettles</title><p>The warranty lasts thirty months.")
    assert texts(library, "warranty") == ["The warranty lasts thirty months."]


def test_rows_of_a_page_stay_together(library, tmp_path):
    table = "".join(f"<tr><td><p>{part}</p><td>{price}</tr>" for part, price in (("Lid", 7), ("Spout", 9), ("Base", 3)))
    page = f"<table><tr><th>Part<th>Euros</tr>{table}</table><p>Prices are those of March.</p>"
    layout = f"<table><tr><td><h2>Menu</h2><p>Home</p></td><td><p>{'The kettle is blue. ' * 30}</p></td></tr></table>"
    put(library, tmp_path, "a.html", f"{page}{layout}".encode())
    reply = answer("How many euros is the spout?", library)
    assert reply.citations[0].quote == "Spout | 9" and reply.citations[0].heading == "Part | Euros"
    assert any(hit.heading == "Menu" and "|" not in hit.text for hit in library.search("kettle"))


@pytest.mark.parametrize(
    "data, row",
    [
        (b"Name;Note\nKettle;big, blue, round, old\nLid;small, red, flat, new\n", "Kettle | big, blue, round, old"),
        (b"sep=;\nName;Note\nKettle;blue\n", "Kettle | blue"),
        (b"Name|Note\nKettle|blue\n", "Kettle | blue"),
        (b"Name,Colour,Note\nKettle,,round\nLid,red,\n", "Kettle |  | round"),
        ("Name;Preis\nKettle;7,50 €\nDeckel;3,00 €\n".encode("cp1252"), "Kettle | 7,50 €"),
    ],
)
def test_tables_of_text_are_parted_where_their_rows_are_alike(library, tmp_path, data, row):
    put(library, tmp_path, "a.csv", data)
    hit = library.search("kettle")[0]
    assert row in hit.text.split("\n\n") and hit.heading.startswith("Name | ")


def test_cells_say_what_the_sheet_shows(library, tmp_path):
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.append(["Item", "Due", "Off"])
    sheet.append(["Kettle", datetime.date(2026, 3, 1), 0.25])
    sheet.append(["Lid", datetime.datetime(2026, 3, 1, 12, 30), 3])
    sheet["C2"].number_format = "0%"
    put(library, tmp_path, "a.xlsx", samples.saved(workbook))
    (hit,) = library.search("kettle")
    assert hit.text.split("\n\n")[1:] == ["Kettle | 2026-03-01 | 25%", "Lid | 2026-03-01 12:30:00 | 3"]


def word_file() -> bytes:
    """With changes that were tracked, a comment, fields, boxes, notes, and a table inside of another one."""
    document = docx.Document()
    runs = (
        '<w:ins {0} w:id="1" w:author="a"><w:r><w:t>thirty</w:t></w:r></w:ins>',
        '<w:del {0} w:id="2" w:author="a"><w:r><w:delText>twenty</w:delText></w:r></w:del>',
        '<w:moveFrom {0} w:id="3" w:author="a"><w:r><w:t>forty</w:t></w:r></w:moveFrom>',
        '<w:r {0}><w:t xml:space="preserve"> months</w:t></w:r>',
        "<w:sdt {0}><w:sdtContent><w:r><w:t>, says Ann</w:t></w:r></w:sdtContent></w:sdt>",
        "<w:r {0}><w:rPr><w:vanish/></w:rPr><w:t>unseen</w:t></w:r>",
        '<w:r {0}><w:pict><v:shape xmlns:v="urn:schemas-microsoft-com:vml"><v:textbox><w:txbxContent><w:p><w:r>'
        "<w:t>In a box.</w:t></w:r></w:p></w:txbxContent></v:textbox></v:shape></w:pict></w:r>",
    )
    paragraph = document.add_paragraph("The warranty lasts ")
    for run in runs:
        paragraph._p.append(parse_xml(run.format(WORD)))
    control = f"<w:sdt {WORD}><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(control))
    document.add_comment([document.add_paragraph().add_run("Seen.")], text="Ask the maker.", author="Ann")
    document.sections[0].footer.paragraphs[0].text = "Kettles & Co."
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ["Part", "Euros", "Lid", ""], strict=True):
        cell.text = text
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "seven"
    return samples.saved(document)


def test_a_document_says_what_word_shows(library, tmp_path):
    put(library, tmp_path, "a.docx", word_file())
    said = "\n".join(f"{hit.heading}\n{hit.text}" for hit in library.search("warranty box control maker kettles lid"))
    for text in ("The warranty lasts thirty months, says Ann", "In a box.", "In a control.", "Ask the maker.",
                 "Kettles & Co.", "Lid | seven"):  # fmt: skip
        assert said.count(text) == 1, text
    assert not any(word in said for word in ("twenty", "forty", "unseen"))


def test_mail_of_others(library, tmp_path):
    name = base64.b64encode("王小明".encode("big5")).decode()
    mail = f"From: =?big5?B?{name}?= <a@example.org>\nSubject: ".encode() + "保修期多久".encode("gb18030")
    mail += b"\nContent-Type: text/plain; charset=big5\nContent-Transfer-Encoding: 8bit\n\n" + TRADITIONAL.encode(
        "big5"
    )
    put(library, tmp_path, "a.eml", mail)
    hits = library.search("王小明 圖書館")
    assert {hit.heading for hit in hits} == {"保修期多久"}
    said = "\n".join(hit.text for hit in hits)
    assert "From: 王小明 <a@example.org>" in said and TRADITIONAL in said


def test_mail_that_was_forwarded_and_mailboxes(library, tmp_path):
    inner, outer = EmailMessage(), EmailMessage()
    inner["Subject"], outer["Subject"] = "Kettle", "Fwd"
    inner.set_content("The warranty lasts thirty months.")
    inner.add_alternative("<p>The warranty lasts <b>thirty</b> months.</p>", subtype="html")
    outer.set_content("See below.")
    outer.add_attachment(inner)
    outer.add_attachment("Its lid is blue.", filename="lid.txt")
    put(library, tmp_path, "a.eml", outer.as_bytes())
    assert [(hit.heading, hit.text) for hit in library.search("warranty")] == [
        ("Kettle", "Subject: Kettle\n\nThe warranty lasts thirty months.")
    ]
    assert texts(library, "lid.txt")[0].endswith("Attachments: lid.txt\n\nSee below.")
    line = b"From a@example.org Mon Jan  1 00:00:00 2024\n"
    mails = b"".join(line + f"Subject: {word}\n\nThis is the {word} one.\n\n".encode() for word in ("quagga", "dodo"))
    put(library, tmp_path, "old.mbox", mails)
    assert [(hit.heading, hit.text.split("\n")[-1]) for hit in library.search("dodo")] == [
        ("dodo", "This is the dodo one.")
    ]
    assert "no mailbox" in put(library, tmp_path, "b.mbox", b"Subject: x\n\ny\n").skipped[str(tmp_path / "b.mbox")]


HEADS = {
    "addresses": b"To: " + b", ".join(b"Ann <a%d@example.org>" % number for number in range(20_000)),
    "words": b"Subject: " + b"=?utf-8?q?kettle?= " * 40_000,
    "settings": b"Content-Type: text/plain" + b"; a=b" * 100_000,
    "quotes": b'Content-Disposition: attachment; filename="' + b'\\"' * 200_000,
    "comments": b"From: " + b"(" * 200_000,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HEADS)
def test_heads_that_never_end_take_time_that_grows_with_them(library, tmp_path, name):
    """These took minutes and hours."""
    changes = put(library, tmp_path, "a.eml", HEADS[name] + b"\nDate: today\n\nThe dodo is extinct.\n")
    assert not changes.skipped and len(changes.added) == 1


def turned_page(degrees: float) -> bytes:
    buffer = io.BytesIO()
    sheet = canvas.Canvas(buffer, pagesize=(400, 600))
    sheet.setFont("Helvetica", 12)
    sheet.drawString(60, 550, "Upright words above.")
    sheet.translate(200, 300)
    sheet.rotate(degrees)
    sheet.drawString(-120, 0, "The kettle has a warranty of thirty months.")
    sheet.drawString(-120, -20, "Its lid is made of blue glass.")
    sheet.save()
    return buffer.getvalue()


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_lines_that_are_turned_on_their_page_are_lines(library, tmp_path, degrees):
    put(library, tmp_path, "a.pdf", turned_page(degrees))
    (citation, *_) = answer("How long is the warranty of the kettle?", library).citations
    assert citation.quote == "The kettle has a warranty of thirty months."
    left, top, right, bottom = citation.box
    along, across = (right - left) * 400, (bottom - top) * 600
    along, across = (along, across) if degrees == 180 else (across, along)
    assert 200 < along < 260 and 8 < across < 20
    assert left < 0.5 < right and top < 0.52 and bottom > 0.48


def test_words_that_a_line_of_print_parts_are_found(library, tmp_path):
    lines = [(50, 100, "The manual describes the thermo-"), (50, 114, "stat of the kettle. Keep it dry."),
             (50, 300, "水壶的保"), (50, 314, "修期是三十个月。")]  # fmt: skip
    put(library, tmp_path, "a.pdf", samples.pdf(lines))
    assert len(library.search("thermostat")) == 1
    assert answer("What describes the thermostat?", library).citations[0].quote.startswith("The manual")
    assert answer("保修期多久？", library).citations[0].quote == "水壶的保\n修期是三十个月。"


def test_a_library_of_an_earlier_version_is_read_again_by_sync(library, tmp_path, monkeypatch):
    folder = tmp_path / "notes"
    folder.mkdir()
    shutil.copy(samples.CAT, folder / "IMG_1.png")
    (folder / "a.txt").write_text("The dodo is extinct.")
    monkeypatch.setattr(indexing, "READING", 1)
    library.sync(folder, progress=False)
    assert library.sync(folder, progress=False).unchanged == 2
    monkeypatch.undo()
    monkeypatch.setattr("visglm.library.ocr.can_read", lambda: False)
    again = Library.open(library.path, vectors=False)
    assert texts(again, "dodo") == ["The dodo is extinct."]  # it is of use until then
    assert len(again.sync(folder, progress=False).changed) == 2
    assert again.sync(folder, progress=False).unchanged == 2


def test_things_in_a_folder_that_are_no_files(library, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("The dodo is extinct.")
    (folder / "new\nline.txt").write_text("The moa is extinct.")
    os.mkfifo(folder / "pipe.txt")
    for name, target in (
        ("loop", "."),
        ("gone.txt", "nowhere.txt"),
        ("self.txt", "self.txt"),
        ("zero.txt", "/dev/zero"),
    ):
        (folder / name).symlink_to(target)
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.txt")).write_text("x")
    changes = library.sync(folder, progress=False)
    assert len(changes.added) == 2 and len(changes.skipped) == 5
    assert texts(library, "moa") == ["The moa is extinct."]


@pytest.mark.parametrize(
    "text, question, quote",
    [
        ("Музей закрыт по понедельникам. Билет стоит триста рублей.", "Сколько стоит билет?", "Билет стоит"),
        ("Το μουσείο είναι κλειστό. Το εισιτήριο κοστίζει δέκα ευρώ.", "Πόσο κοστίζει το εισιτήριο;", "Το εισιτήριο"),
        ("Stávka trvá. Žába žije v Žilině.", "Kde žije žába?", "Žába žije"),
        ("押金为两个月租金，合同终止后七日内退还。", "押金什么时候退还？", "押金为两个月租金"),
    ],
)  # fmt: skip
def test_a_question_is_answered_in_its_own_letters(library, tmp_path, text, question, quote):
    put(library, tmp_path, "a.txt", text.encode())
    assert answer(question, library).citations[0].quote.startswith(quote)


@pytest.mark.parametrize("vectors", [False, True])
def test_a_text_of_both_languages_answers_in_each(tmp_path, vectors):
    library = Library.open(tmp_path / "notes.library", vectors=vectors)
    put(library, tmp_path, "a.txt", f"Translated by 王小明.\n\n{samples.ENGLISH}\n\n{samples.CHINESE}".encode())
    assert answer("How long is the warranty of the kettle?", library).citations[0].quote == samples.ENGLISH
    assert answer("水壶的保修期多久？", library).citations[0].quote == samples.CHINESE


def test_what_only_repeats_the_question_comes_behind_what_says_more(library, tmp_path):
    lines = [(50, 100, "Author of Kettles . . . . . . . . . . . . . . . 7"), (50, 120, "Lids . . . . . . . . . . . 9"),
             (50, 300, "Author"), (50, 400, "Who is the author of Kettles?"),
             (50, 500, "The author of Kettles is Ann Example.")]  # fmt: skip
    put(library, tmp_path, "a.pdf", samples.pdf(lines))
    quotes = [citation.quote for citation in answer("Who is the author of Kettles?", library).citations]
    assert quotes[0] == "The author of Kettles is Ann Example." and not any(". ." in quote for quote in quotes)


class Clerk:
    """Reads each picture as a page with a table on it, as models of GLM-OCR's family write it."""

    name = "clerk"

    def can_read(self) -> bool:
        return True

    def read(self, image):
        table = "<table><tr><th>Part</th><th>Euros</th></tr><tr><td>Lid</td><td>7</td></tr></table>"
        return pieces_of(f"# Prices\n\n{table}\n\n$$\nE = mc^2\n$$\n\n�� unsure �", LibraryLimits().images)


def test_tables_that_a_model_reads_keep_the_names_of_their_columns(library, tmp_path):
    library.indexer.ocr = Clerk()
    put(library, tmp_path, "scan.png", samples.CAT.read_bytes())
    citation = answer("How many euros is the lid?", library, kinds="text").citations[0]
    assert (citation.quote, citation.heading) == ("Lid | 7", "Prices: Part | Euros")
    assert "E = mc^2" in library.search("mc", kinds="text")[0].text
    assert len(library.search("unsure", kinds="text")) == 1  # a letter that it could not tell is no broken file

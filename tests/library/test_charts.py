"""Charts of Office are read as the numbers that they were drawn from."""

from __future__ import annotations

import io
import re
import zipfile
from datetime import date

import docx
import pptx
import pytest
from pptx.chart.data import BubbleChartData, CategoryChartData, XyChartData
from pptx.enum.chart import XL_CHART_TYPE

from tests.library import samples
from visglm.errors import DocumentError
from visglm.library import LibraryLimits
from visglm.library.readers import read

LIMITS = LibraryLimits()
CONTENT = "application/vnd.openxmlformats-officedocument.drawingml.chart+xml"


def by_quarter() -> CategoryChartData:
    data = CategoryChartData()
    data.categories = ["First quarter", "第二季度"]
    data.add_series("Kettles", (4.3, 2.5))
    data.add_series("水壶盖", (None, 0.1 + 0.2))
    return data


def slides(data, kind=XL_CHART_TYPE.COLUMN_CLUSTERED, title: str = "Sold in 2025") -> bytes:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[5])
    slide.shapes.title.text = "Sales"
    chart = slide.shapes.add_chart(kind, 0, 0, 5_000_000, 5_000_000, data).chart
    if title:
        chart.has_title = True
        chart.chart_title.text_frame.text = title
    else:
        chart.has_title = False
    return samples.saved(show)


def found(data: bytes, name: str) -> list[tuple[str, str, int | None]]:
    return [(piece.text, piece.heading, piece.page) for piece in read(data, name, LIMITS)]


def test_a_chart_on_a_slide_is_a_table():
    names = "Kettles | 水壶盖"
    heading = f"Sales: Sold in 2025: {names}"
    assert found(slides(by_quarter()), "x.pptx") == [
        ("Sales", "Sales", 1), (f"Sold in 2025: {names}", "Sales", 1),
        ("First quarter | 4.3", heading, 1), ("第二季度 | 2.5 | 0.3", heading, 1),
    ]  # fmt: skip


def test_charts_without_categories_have_their_points():
    points = XyChartData()
    series = points.add_series("Melting")
    series.add_data_point(20, 1.5)
    series.add_data_point(40, 7)
    assert [row[0] for row in found(slides(points, XL_CHART_TYPE.XY_SCATTER, ""), "x.pptx")][1:] == [
        "Melting", "20 | 1.5", "40 | 7",
    ]  # fmt: skip
    bubbles = BubbleChartData()
    bubbles.add_series("Towns").add_data_point(3, 4, 9)
    assert [row[0] for row in found(slides(bubbles, XL_CHART_TYPE.BUBBLE, ""), "x.pptx")][2:] == ["3 | 4 | 9"]


def test_series_with_points_of_their_own_are_not_mixed():
    points = XyChartData()
    for name, pairs in (("Lead", ((20, 1.5), (40, 7))), ("Zinc", ((30, 2), (50, 9))), ("Tin", ((30, 4), (50, 5)))):
        series = points.add_series(name)
        for pair in pairs:
            series.add_data_point(*pair)
    assert found(slides(points, XL_CHART_TYPE.XY_SCATTER, "Melting"), "x.pptx")[1:] == [
        ("Melting: Lead", "Sales", 1), ("20 | 1.5", "Sales: Melting: Lead", 1), ("40 | 7", "Sales: Melting: Lead", 1),
        ("Melting: Zinc | Tin", "Sales", 1), ("30 | 2 | 4", "Sales: Melting: Zinc | Tin", 1),
        ("50 | 9 | 5", "Sales: Melting: Zinc | Tin", 1),
    ]  # fmt: skip


def test_days_shares_and_levels_are_shown_as_the_chart_shows_them():
    days = CategoryChartData(number_format="0%")
    days.categories = [date(2025, 3, 1), date(2025, 4, 1)]
    days.add_series("Share", (0.25, 0.5))
    assert [row[0] for row in found(slides(days, title=""), "x.pptx")][2:] == ["2025-03-01 | 25%", "2025-04-01 | 50%"]
    levels = CategoryChartData()
    for country, towns in (("France", ("Lyon", "Paris")), ("Italy", ("Rome",))):
        outer = levels.add_category(country)
        for town in towns:
            outer.add_sub_category(town)
    levels.add_series("Visits", (1, 2, 3))
    texts = [row[0] for row in found(slides(levels, title=""), "x.pptx")][2:]
    assert texts == ["France Lyon | 1", "France Paris | 2", "Italy Rome | 3"]


def test_a_day_that_no_calendar_has_stays_a_number():
    days = CategoryChartData()
    days.categories = [date(2025, 3, 1)]
    days.add_series("Share", (7,))
    name, files = unpacked(slides(days, title=""))
    files[name] = re.sub(rb">\s*45717(\.0)?\s*<", b">1e99<", files[name])
    assert found(samples.archive(files), "x.pptx")[-1][0] == "1e+99 | 7"


def unpacked(data: bytes) -> tuple[str, dict[str, bytes]]:
    """The name of the chart, and all files by their names."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    [name] = [name for name in files if "/charts/chart" in name and name.endswith(".xml")]
    return name, files


def in_a_document(slide: bytes) -> bytes:
    """A document of Word with the chart of a slide behind its second paragraph."""
    name, inner = unpacked(slide)
    document = docx.Document()
    document.add_heading("Sales", 1)
    document.add_paragraph("CHART")
    document.add_paragraph("The end.")
    with zipfile.ZipFile(io.BytesIO(samples.saved(document))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}

    def put(name: str, before: str, new: str) -> None:
        files[name] = files[name].replace(before.encode(), f"{new}{before}".encode())

    drawing = (
        '<w:r><w:drawing><wp:inline xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing">'
        '<a:graphic xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><a:graphicData uri="x">'
        '<c:chart xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart" r:id="rId99" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"/>'
        "</a:graphicData></a:graphic></wp:inline></w:drawing></w:r>"
    )
    put("word/document.xml", "<w:r><w:t>CHART", drawing)
    put("[Content_Types].xml", "</Types>", f'<Override PartName="/word/charts/chart1.xml" ContentType="{CONTENT}"/>')
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/chart"
    relation = f'<Relationship Id="rId99" Type="{kind}" Target="charts/chart1.xml"/>'
    put("word/_rels/document.xml.rels", "</Relationships>", relation)
    return samples.archive({**files, "word/charts/chart1.xml": inner[name]})


def test_a_chart_in_a_document_stands_in_its_place():
    heading = "Sales: Sold in 2025: Kettles | 水壶盖"
    assert found(in_a_document(slides(by_quarter())), "x.docx") == [
        ("CHART", "Sales", None), ("Sold in 2025: Kettles | 水壶盖", "Sales", None),
        ("First quarter | 4.3", heading, None), ("第二季度 | 2.5 | 0.3", heading, None), ("The end.", "Sales", None),
    ]  # fmt: skip


def test_a_chart_is_no_larger_than_what_stands_in_it():
    """Points say which they are, and may say any number."""
    name, files = unpacked(slides(by_quarter()))
    files[name] = files[name].replace(b'idx="1"', b'idx="99999999999"').replace(b'idx="0"', b'idx="x"')
    assert len(read(samples.archive(files), "x.pptx", LIMITS)) == 2
    many = CategoryChartData()
    many.categories = [str(number) for number in range(300)]
    many.add_series("Many", range(300))
    with pytest.raises(DocumentError, match="300 values in a chart"):
        read(slides(many), "x.pptx", LibraryLimits(max_characters=299))

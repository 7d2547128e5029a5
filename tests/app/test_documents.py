"""Reading documents: what is made of each type, and what people are told of a file of which nothing can be made."""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO

import pytest
from pypdf import PdfWriter

from demo.files import DOCX_TYPE, docx, html, pdf
from handlers.documents import CHUNK, read_document
from handlers.filetypes import UnreadableError

TEXT = ["The elephant carries the load.", "A howdah is a seat (for a load)."]


def test_a_pdf_gives_its_text() -> None:
    reading = read_document(pdf(TEXT * 100), "a.pdf", "application/pdf")
    assert reading.text.count("The elephant carries the load.") == 100
    assert "A howdah is a seat (for a load)." in reading.text


def test_a_docx_gives_markdown_with_its_headings() -> None:
    reading = read_document(docx("Elephants & loads", TEXT), "a.docx", DOCX_TYPE)
    assert reading.text.startswith("# Elephants & loads\n\nThe elephant carries the load.")
    assert reading.headings == ["Elephants & loads"]


def test_html_gives_markdown_without_scripts_and_styles() -> None:
    page = html("Elephants", [*TEXT, "<b>not bold</b>"])
    page = page.replace(b"</body>", b"<ul><li>one</li></ul><a href='/x'>link</a><style>p {}</style><img src=x></body>")
    reading = read_document(page, "a.html", "text/html; charset=utf-8")
    assert reading.text.startswith("# Elephants\n\nThe elephant carries the load.")
    assert "- one" in reading.text
    assert "[link](/x)" in reading.text
    assert not any(word in reading.text for word in ("alert", "color", "p {}", "img"))


def test_markdown_stays_as_it_is_and_code_has_no_headings() -> None:
    text = "# One\n\nText.\n\n```sh\n# no heading\n```\n\n## *Two* ##\n\n#hash\n"
    reading = read_document(text.encode(), "a.md", "text/plain")
    assert reading.text == text.strip()
    assert reading.headings == ["One", "Two"]


@pytest.mark.parametrize(
    ("encoding", "content_type"),
    [
        ("utf-8", "text/plain"),
        ("utf-8-sig", "text/plain"),
        ("utf-16", "text/plain"),
        ("cp1251", "text/plain"),
        ("koi8-r", "text/plain; charset=koi8-r"),
        ("cp1251", "text/plain; charset=no-such-thing"),
    ],
)
def test_text_is_read_in_whatever_encoding_it_was_written(encoding: str, content_type: str) -> None:
    text = "Слон несёт груз через лес. Погонщик сидит на слоне и говорит с ним, и слон его слушает."  # noqa: RUF001
    assert read_document(text.encode(encoding), "a.txt", content_type).text == text


def test_what_cannot_be_stored_is_left_out() -> None:
    assert (
        read_document(b"# One\r\n\r\n\r\n\r\ntwo \x01\x0bthree\x7f", "a.md", "text/markdown").text
        == "# One\n\ntwo three"
    )


def test_chunks_are_never_larger_than_they_may_be_and_hold_all_of_the_text() -> None:
    text = "\n\n".join(f"## Part {n}\n\n" + "The elephant carries the load. " * n for n in range(1, 80))
    reading = read_document(text.encode(), "a.md", "text/markdown")
    assert len(reading.chunks) == len(reading.tokens) > 20
    assert max(map(len, reading.chunks)) <= CHUNK[1]
    assert "".join("".join(reading.chunks).split()) == "".join(reading.text.split())
    assert all(
        len(chunk) / 8 < tokens < len(chunk) for chunk, tokens in zip(reading.chunks, reading.tokens, strict=True)
    )


@pytest.mark.parametrize(
    ("body", "name", "content_type"),
    [
        (pdf(TEXT), "a.pdf", "application/octet-stream"),
        (pdf(TEXT), "a", ""),
        (pdf(TEXT), "a.txt", "text/plain"),
        (docx("A", TEXT), "a.docx", "application/zip"),
        (docx("A", TEXT), "a.pdf", "application/pdf"),
        (html("A", TEXT), "a.txt", "text/plain"),
        (html("A", TEXT), "a", "application/octet-stream"),
        (" ".join(TEXT).encode(), "a.csv", "text/csv"),
        (" ".join(TEXT).encode(), "README", ""),
    ],
)
def test_the_content_corrects_the_type_that_was_said(body: bytes, name: str, content_type: str) -> None:
    reading = read_document(body, name, content_type)
    assert "The elephant carries the load." in reading.text
    assert "<p>" not in reading.text


def bomb() -> bytes:
    """Four gigabytes of nothing in the place of a document, in less than five megabytes."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive, archive.open("word/document.xml", "w", force_zip64=True) as entry:
        entry.write(b"<w/>")
    # Its size as it is declared, in the central directory; nobody gets as far as its bytes.
    body = bytearray(made.getvalue())
    at = body.rindex(b"PK\x01\x02")
    body[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    return bytes(body)


def pdf_bomb() -> bytes:
    body = pdf(["load"])
    packed = zlib.compress(b"(load) Tj " * 20_000_000)
    start, end = body.index(b"stream\n") + 7, body.index(b"\nendstream")
    old = end - start
    return (
        body[:start].replace(f"/Length {old}".encode(), f"/Filter /FlateDecode /Length {len(packed)}".encode())
        + packed
        + body[end:]
    )


def no_pages() -> bytes:
    made = BytesIO()
    PdfWriter().write(made)
    return made.getvalue()


def sheet() -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    return made.getvalue()


@pytest.mark.parametrize(
    ("body", "name", "content_type", "told"),
    [
        (pdf(TEXT, password="secret"), "a.pdf", "application/pdf", "the PDF is protected with a password"),
        (b" \n", "a.txt", "text/plain", "the file is empty"),
        (pdf([]), "a.pdf", "application/pdf", "no text in the file: its pages are probably scanned images"),
        (pdf(TEXT)[:300], "a.pdf", "application/pdf", "the file is damaged"),
        (no_pages(), "a.pdf", "application/pdf", "there is no text"),
        (docx("A", TEXT)[:-100], "a.docx", DOCX_TYPE, "the DOCX file is damaged, or was cut short"),
        (docx("A", TEXT).replace(b"word/document", b"word/documemt"), "a.docx", DOCX_TYPE, "the file is an archive"),
        (bomb(), "a.docx", DOCX_TYPE, "the DOCX unpacks to 4,095 MB, more than 100 MB"),
        (pdf_bomb(), "a.pdf", "application/pdf", "the PDF unpacks to more than is allowed"),
        (
            html("Not found", ["404"]),
            "a.pdf",
            "application/pdf",
            "said to be a PDF, but is a web page, perhaps an error page",
        ),
        (b"just text", "a.pdf", "application/pdf", "said to be a PDF"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "a.docx", DOCX_TYPE, "an old Word file (.doc) or a DOCX with a password"),
        (b"\x89PNG\r\n\x1a\n", "a.txt", "text/plain", "the file is an image"),
        (sheet(), "a.xlsx", "application/vnd.ms-excel", "the file is a spreadsheet"),
        (b"x = 1", "a.bin", "application/x-unknown", "type application/x-unknown (a.bin); PDF, DOCX, HTML"),
        (b"a\0b" * 50, "a.txt", "text/plain", "neither text nor of a type that is known"),
        (b"<div>" * 5000, "a.html", "text/html", "the file is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_told_in_words_for_people(body: bytes, name: str, content_type: str, told: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_document(body, name, content_type)
    assert told in str(caught.value)

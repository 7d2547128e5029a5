"""Files as people upload them, made on the spot: PDF, DOCX, HTML."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

_WIDTH = 80  # characters a line; a page has room for forty-five of them
_PAGE = 45
_CONTENT_TYPES = f"""<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="xml" ContentType="application/xml"/>
<Override PartName="/word/document.xml" ContentType="{DOCX_TYPE}.main+xml"/></Types>"""
_RELATIONS = """<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1"
Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>"""
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(paragraphs: Sequence[str], *, password: str | None = None) -> bytes:
    """Make a PDF of plain ASCII text; with a password, nobody reads it without."""
    writer = PdfWriter()
    lines = [line for paragraph in paragraphs for line in [*_wrapped(paragraph), ""]]
    for start in range(0, max(len(lines), 1), _PAGE):
        page = writer.add_blank_page(595, 842)
        shown = "".join(f"({_quoted(line)}) Tj T* " for line in lines[start : start + _PAGE])
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 11 Tf 16 TL 50 780 Td {shown}ET".encode())
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        page[NameObject("/Contents")] = writer._add_object(stream)  # noqa: SLF001 - the library's own way to add one
        page[NameObject("/Resources")] = _names({"/Font": _names({"/F1": _names(font)})})
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    made = BytesIO()
    writer.write(made)
    return made.getvalue()


def docx(title: str, paragraphs: Sequence[str]) -> bytes:
    """Make a DOCX of a heading and paragraphs."""
    body = "".join(
        _paragraph(text, style) for text, style in [(title, "Heading1"), *((each, "") for each in paragraphs)]
    )
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _CONTENT_TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>')
    return made.getvalue()


def html(title: str, paragraphs: Sequence[str]) -> bytes:
    """Make a web page, with a script and a style that are nobody's text."""
    body = "".join(f"<p>{escape(each)}</p>" for each in paragraphs)
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{escape(title)}</title><style>p {{ color: red }}</style></head>"
        f"<body><h1>{escape(title)}</h1><script>alert('no text')</script>{body}</body></html>"
    ).encode()


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _names(entries: dict[str, object]) -> DictionaryObject:
    return DictionaryObject(
        {NameObject(name): NameObject(value) if isinstance(value, str) else value for name, value in entries.items()}
    )


def _paragraph(text: str, style: str) -> str:
    looks = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{looks}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'

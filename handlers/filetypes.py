"""Which type a document is of: what somebody said of it decides, and what is in it corrects that."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import PurePath
from typing import Literal

FileType = Literal["pdf", "docx", "html", "markdown", "text"]

_NAMES: dict[FileType, str] = {
    "pdf": "a PDF", "docx": "a DOCX", "html": "HTML", "markdown": "Markdown", "text": "text",
}  # fmt: skip
_READ = "PDF, DOCX, HTML, Markdown and text are read"
_MEDIA_TYPES: dict[str, FileType] = {
    "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/markdown": "markdown",
    "text/x-markdown": "markdown",
    "text/plain": "text",
}
_SUFFIXES: dict[str, FileType] = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
}
#: Media types that say nothing.
_EMPTY_WORDS = {
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
}
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of Unicode, before a text
_BINARIES = {
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"RIFF": "an image, or sound",
    b"\xd0\xcf\x11\xe0": "an old Word file (.doc) or a DOCX with a password: save it as DOCX without one",
    b"{\\rtf": "an RTF file: save it as DOCX",
    b"\x1f\x8b": "a packed archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


class UnreadableError(Exception):
    """Nothing can be made of a file. The message says why, for the people who uploaded it."""


def type_of(data: bytes, filename: str, content_type: str) -> FileType:
    """Give the type that a file is to be read as. Raises UnreadableError when it is of none, or not what it must be."""
    if not data.strip():
        raise UnreadableError("the file is empty")
    said = _said(filename, content_type)
    found = _found(data, said)
    if found in {"pdf", "docx"}:
        return found
    if said in {"pdf", "docx"}:
        problem = "a web page, perhaps an error page that was saved in its place" if found == "html" else "none"
        raise UnreadableError(f"the file is said to be {_NAMES[said]}, but is {problem}")
    if found == "html":
        return found
    if said is None:
        raise UnreadableError(f"the file is of type {content_type or 'unknown'} ({filename}); {_READ}")
    return said


def _said(filename: str, content_type: str) -> FileType | None:
    media = content_type.partition(";")[0].strip().lower()
    by_name = _SUFFIXES.get(PurePath(filename).suffix.lower())
    said = _MEDIA_TYPES.get(media)
    if said == "text" and by_name == "markdown":
        return by_name
    if said is None and media.startswith("text/"):
        return by_name or "text"
    if said is None and media in _EMPTY_WORDS:
        return by_name or ("text" if not PurePath(filename).suffix else None)
    return said


def _found(data: bytes, said: FileType | None) -> FileType:
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return _found_in_zip(data, said)
    for start, name in _BINARIES.items():
        if data.startswith(start):
            raise UnreadableError(f"the file is {name}; {_READ}")
    if b"\0" in data[:8192] and not data.startswith(_MARKS):
        raise UnreadableError(f"the file is neither text nor of a type that is known here; {_READ}")
    return "html" if _HTML.match(data[:4096].removeprefix(b"\xef\xbb\xbf")) else "text"


def _found_in_zip(data: bytes, said: FileType | None) -> FileType:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        what = "DOCX file" if said == "docx" else "archive"
        raise UnreadableError(f"the {what} is damaged, or was cut short on its way") from None
    if "word/document.xml" in names:
        return "docx"
    what = (
        "a spreadsheet"
        if "xl/workbook.xml" in names
        else "a presentation"
        if "ppt/presentation.xml" in names
        else "an archive"
    )
    raise UnreadableError(f"the file is {what}; {_READ}")

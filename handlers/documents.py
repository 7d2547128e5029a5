"""Make Markdown, headings and chunks of a file. Runs in a process of its own: files are made by strangers, and reading takes a CPU.

What is imported here is imported by that process alone, when it reads its first file.
"""

from __future__ import annotations

import logging
import re
import zipfile
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from handlers.filetypes import FileType, UnreadableError, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bs4 import BeautifulSoup

#: What a DOCX may unpack to, and the text that one document may have, in bytes and characters: both fit a process's memory.
MAX_UNPACKED, MAX_TEXT = 100 * 1024 * 1024, 5_000_000
#: A chunk is full with so many characters, and never has more than so many.
CHUNK = (1000, 2000)
MAX_HEADINGS, MAX_HEADING = 200, 200

_HEADING = re.compile(r"#{1,6}[ \t]+(.+?)[ \t#]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_UNSTORABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufeff]")
_INVISIBLE = ("script", "style", "noscript", "template", "svg", "iframe", "object", "head")


class Reading(NamedTuple):
    """What a file says. `tokens` are estimates, one for each chunk."""

    text: str
    headings: list[str]
    chunks: list[str]
    tokens: list[int]


def read_document(data: bytes, filename: str, content_type: str) -> Reading:
    """Read a file of any of the known types. Raises UnreadableError with a reason that its owner understands."""
    from semantic_text_splitter import MarkdownSplitter  # noqa: PLC0415

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it comments on every flaw that it can mend
    kind = type_of(data, filename, content_type)
    try:
        text = _tidy(_READERS[kind](data, content_type))
    except (UnreadableError, MemoryError):
        raise
    except RecursionError:
        raise UnreadableError("the file is nested too deeply") from None
    except Exception as error:
        # Each library has its own ways to fail at what somebody made up; the next attempt would fail in the same way.
        problem = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise UnreadableError(f"the file is damaged, or not what it says ({problem})") from None
    if not text:
        hint = ": its pages are probably scanned images" if kind == "pdf" else ""
        raise UnreadableError(f"there is no text in the file{hint}")
    if len(text) > MAX_TEXT:
        raise UnreadableError(f"the file has {len(text):,} characters of text, more than {MAX_TEXT:,}")
    chunks = MarkdownSplitter(CHUNK).chunks(text)
    return Reading(text, list(_headings(text)), chunks, [estimate_tokens(chunk) for chunk in chunks])


def estimate_tokens(text: str) -> int:
    """Estimate what a language model would count: a token is about four bytes of UTF-8, in whatever language."""
    return ceil(len(text.encode()) / 4)


def _read_pdf(data: bytes, _content_type: str) -> str:
    from pypdf import PdfReader  # noqa: PLC0415
    from pypdf.errors import DependencyError, LimitReachedError  # noqa: PLC0415

    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("the PDF is protected with a password")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except DependencyError:
        raise UnreadableError("the PDF is encrypted in a way that cannot be read here") from None
    except LimitReachedError:
        raise UnreadableError("the PDF unpacks to more than is allowed") from None


def _read_docx(data: bytes, _content_type: str) -> str:
    import mammoth  # noqa: PLC0415
    from bs4 import BeautifulSoup  # noqa: PLC0415

    with zipfile.ZipFile(BytesIO(data)) as archive:
        # What is declared here is the most that the module reads of an entry.
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_UNPACKED:
        limit = MAX_UNPACKED // 1024 // 1024
        raise UnreadableError(f"the DOCX unpacks to {unpacked // 1024 // 1024:,} MB, more than {limit} MB")
    try:
        html = mammoth.convert_to_html(BytesIO(data), convert_image=lambda _image: []).value
    except (zipfile.BadZipFile, KeyError, EOFError):
        raise UnreadableError("the DOCX file is damaged, or was cut short on its way") from None
    return _to_markdown(BeautifulSoup(html, "html.parser"))


def _read_html(data: bytes, content_type: str) -> str:
    from bs4 import BeautifulSoup  # noqa: PLC0415

    return _to_markdown(BeautifulSoup(data, "html.parser", from_encoding=_declared(content_type)))


def _to_markdown(soup: BeautifulSoup) -> str:
    from markdownify import MarkdownConverter  # noqa: PLC0415

    for element in soup(_INVISIBLE):
        element.decompose()
    converter = MarkdownConverter(heading_style="ATX", bullets="-", strip=["img"])
    markdown: str = converter.convert_soup(soup)
    return markdown


def _read_text(data: bytes, content_type: str) -> str:
    """Decode by the mark of Unicode, as UTF-8, by what was declared, or by what the bytes look like, in this order."""
    from charset_normalizer import from_bytes  # noqa: PLC0415

    for encoding in ("utf-8-sig", _declared(content_type)):
        try:
            if encoding is not None and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
                return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    best = from_bytes(data).best()
    if best is None:
        raise UnreadableError("the file is text in no known encoding: save it as UTF-8")
    return str(best)


def _declared(content_type: str) -> str | None:
    found = re.search(r"charset\s*=\s*\"?([\w.:-]+)", content_type, re.IGNORECASE)
    return found[1] if found else None


_READERS: dict[FileType, Callable[[bytes, str], str]] = {
    "pdf": _read_pdf,
    "docx": _read_docx,
    "html": _read_html,
    "markdown": _read_text,
    "text": _read_text,
}


def _tidy(text: str) -> str:
    """Leave out what cannot be stored, and more than one empty line in a row."""
    text = _UNSTORABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r"[ \t\xa0]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _headings(text: str) -> Iterator[str]:
    """Give the first headings, in order; what looks like one within a code block is none."""
    fence, found = None, 0
    for line in text.split("\n"):
        if mark := _FENCE.match(line):
            fence = mark[1] if fence is None else None if fence == mark[1] else fence
        elif fence is None and found < MAX_HEADINGS and (heading := _HEADING.match(line)):
            found += 1
            yield heading[1].strip("*_ ")[:MAX_HEADING]

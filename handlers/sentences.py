"""Extract the sentences of a text that say most of it (LexRank): in any language, always the same, with nothing to download.

Runs in a process of its own (handlers/subprocesses.py): the libraries take a second to import, and a long text keeps a CPU busy.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: About how long a summary is, in characters, and how long what counts as a sentence may be.
LENGTH, SENTENCE = 1200, range(15, 600)
#: Sentences are compared each with each, so a long text is worked on in parts, and then the best of the parts together.
PART, KEPT_OF_PART, MOST = 120, 6, 10_000
#: Sentences less alike than this have nothing to do with each other.
_ALIKE = 0.1

_CODE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"^\s*(?:[-*+>]|\d+[.)])\s+|[*_`~]{1,3}|\\(?=[^\w\s])", re.MULTILINE)
_END = re.compile(r"(?<=[.!?…])[\"'”»)]*\s+|(?<=[。！？])")  # noqa: RUF001 - these end a sentence, too
# Where words are not set apart, a character is a word.
_WORD = (
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]+"
)


def extract(text: str, length: int = LENGTH) -> str:
    """Give the most telling sentences of a Markdown text, in their order. One without sentences gives its beginning."""
    found = list(islice(dict.fromkeys(sentences(text)), MOST))
    while len(found) > PART:
        parts = [found[at : at + PART] for at in range(0, len(found), PART)]
        found = [sentence for part in parts for sentence in _best(part, count=KEPT_OF_PART)]
    chosen = _best(found, length=length)
    return " ".join(chosen) or " ".join(text.split())[:length]


def sentences(text: str) -> Iterator[str]:
    """Give the sentences of a Markdown text, without its headings, tables and code."""
    plain = _LINK.sub(r"\1", _CODE.sub("", text))
    for paragraph in re.split(r"\n\s*\n", plain):
        lines = [line for line in paragraph.split("\n") if not line.lstrip().startswith(("#", "|", "---", "==="))]
        for sentence in _END.split(_MARKS.sub("", "\n".join(lines))):
            words = " ".join(sentence.split())
            if len(words) in SENTENCE:
                yield words


def _best(found: list[str], *, count: int | None = None, length: int | None = None) -> list[str]:
    """Give the most central sentences in their order: so many, or so many characters, but at least one."""
    if sum(map(len, found)) <= (length or 0) or len(found) <= (count or 1):
        return found
    chosen: list[int] = []
    used = 0
    for place in _ranked(found):
        if len(chosen) == count or (length is not None and chosen and used + len(found[place]) > length):
            break
        chosen.append(place)
        used += len(found[place]) + 1
    return [found[place] for place in sorted(chosen)]


def _ranked(found: list[str]) -> list[int]:
    """Give the sentences' places, the most central first; of two that are equal, the earlier."""
    import networkx as nx  # noqa: PLC0415
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415

    vectors = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True).fit_transform(found)
    alike = (vectors @ vectors.T).toarray()
    alike[alike < _ALIKE] = 0
    ranks = nx.pagerank(nx.from_numpy_array(alike), max_iter=200, tol=1e-4)
    return sorted(ranks, key=lambda place: (-round(ranks[place], 9), place))

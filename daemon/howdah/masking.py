"""Keeps the values of secret payload fields out of what is stored or shown of an attempt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MASK = "***"
#: A shorter value is left alone where only its text could be looked for: hiding every `1` hides nothing and spoils all.
SHORTEST = 4


def hider(fields: Sequence[str], payload: bytes) -> Callable[[str], str] | None:
    """Give what hides the values of these fields of a JSON payload in a text; None if there is nothing to hide."""
    if not fields:
        return None
    try:
        found = orjson.loads(payload)
    except ValueError:
        return None
    values = {text for name in fields for text in _texts(found.get(name))} if isinstance(found, dict) else set()
    # The longest first, for one value may be a part of another.
    words = sorted({form for text in values for form in _forms(text)}, key=len, reverse=True)

    def hide(text: str) -> str:
        for word in words:
            text = text.replace(word, MASK)
        return text

    return hide


def _forms(text: str) -> tuple[str, ...]:
    """Give the ways in which a text may be quoted: as it is, as Python shows it, in JSON of either kind, in an address."""
    return (
        text,
        repr(text)[1:-1],
        ascii(text)[1:-1],
        json.dumps(text)[1:-1],
        orjson.dumps(text)[1:-1].decode(),
        quote(text, ""),
    )


def _texts(value: Any) -> Iterator[str]:
    """Give the texts of all values inside one."""
    match value:
        case dict():
            for item in value.values():
                yield from _texts(item)
        case list():
            for item in value:
                yield from _texts(item)
        case bool() | None:
            return
        case _:
            if len(text := str(value)) >= SHORTEST:
                yield text

"""JSON that somebody else has stored: the database takes more than can be read here."""

from __future__ import annotations

from typing import Any

import orjson


def read(text: bytes | str | memoryview) -> Any:
    """Give the value of JSON that is nobody's argument any more: what cannot be read is a stub of the same sort that says so.

    PostgreSQL keeps what is nested 6,000 deep and numbers of 130,000 digits. One such job must not spoil a listing, nor a worker.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        stub = {"howdah": f"JSON that cannot be read here: {error}"}
        return [stub] if bytes(text[:1] if not isinstance(text, str) else text[:1].encode()) == b"[" else stub

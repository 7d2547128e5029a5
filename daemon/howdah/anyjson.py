"""JSON that somebody else has stored: the database takes more than can be read here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def read(text: bytes | str | memoryview) -> Any:
    """Give the value of JSON that is nobody's argument any more: what cannot be read is a stub of the same sort that says so.

    PostgreSQL keeps what is nested 10,000 deep and numbers of 130,000 digits. One such job must not spoil a listing, nor a worker.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        stub = {"howdah": f"JSON that cannot be read here: {error}"}
        return [stub] if bytes(text[:1] if not isinstance(text, str) else text[:1].encode()) == b"[" else stub


def write(value: Any, *, default: Callable[[Any], Any] | None = None, option: int | None = None) -> bytes:
    """Give the JSON of what was read: the writer goes less deep than the reader, so what it cannot write is a stub that says so."""
    try:
        return orjson.dumps(value, default=default, option=option)
    except orjson.JSONEncodeError as error:
        return orjson.dumps({"howdah": f"JSON that cannot be written here: {error}"})


def write_fields(row: Mapping[str, Any], *, default: Callable[[Any], Any] | None = None) -> bytes:
    """Give the JSON of an object of fields, each of which may be such a value."""
    try:
        return orjson.dumps(row, default=default, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        fields = {
            name: orjson.Fragment(write(value, default=default, option=orjson.OPT_NON_STR_KEYS))
            for name, value in row.items()
        }
        return orjson.dumps(fields)

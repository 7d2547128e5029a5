"""What handlers return, made into JSON that PostgreSQL takes. It never fails: what cannot be kept becomes a stub that says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

from howdah.stacks import format_stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: The most bytes of a result or a progress; the most characters of an error's type, its message and its stack.
LIMIT = 1 << 20
NAME_LIMIT = 200
MESSAGE_LIMIT = 2000
ERROR_LIMIT = 8000

_OPTIONS = orjson.OPT_NON_STR_KEYS
_ENGINE = str(Path(__file__).parent)


class Encoded(bytes):
    """JSON that is ready to be stored."""

    __slots__ = ()


def encode(value: Any, *, limit: int = LIMIT) -> Encoded:
    """Give the JSON of a value; NUL characters and lone surrogates, which PostgreSQL refuses, become U+FFFD."""
    if isinstance(value, Encoded):
        return value
    try:
        text = orjson.dumps(value, default=_fallback, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        try:
            text = orjson.dumps(_mend(value), default=_fallback, option=_OPTIONS)
        except (TypeError, ValueError, RecursionError) as error:
            return Encoded(
                orjson.dumps({"howdah": f"a {type(value).__name__} that is not JSON: {_clean(str(error))[:200]}"})
            )
    if b"\\u0000" in text:
        text = orjson.dumps(_mend(orjson.loads(text)))
    if len(text) > limit:
        return Encoded(orjson.dumps({"howdah": f"{len(text)} bytes of JSON, more than the {limit} that are kept"}))
    return Encoded(text)


def encode_strictly(value: Any) -> bytes:
    """Give the JSON of a value that must come back as it is. Raises TypeError or ValueError where that cannot be."""
    text = orjson.dumps(value, default=_fallback_to_model)
    if b"\\u0000" in text and _has_nul(orjson.loads(text)):
        raise ValueError("it holds a NUL character, which PostgreSQL does not take")
    return text


def encode_error(error: BaseException, *, hide: Callable[[str], str] | None = None) -> bytes:
    """Give the JSON of an exception: its type, message and stack from the author's code on, each cut to a size."""
    return describe_error(_name(type(error)), _message(error), _stack(error), hide=hide)


def describe_error(
    kind: str, message: str, stack: str | None = None, *, hide: Callable[[str], str] | None = None
) -> bytes:
    """Give the JSON of an error that is no exception of ours. `hide` takes out what nobody may read, before anything is cut."""
    if hide is not None:
        message, stack = hide(message), hide(stack) if stack is not None else None
    facts = {"type": _clean(kind[:NAME_LIMIT]), "message": _clean(message[:MESSAGE_LIMIT])}
    if stack is not None:
        # The end of a stack says what happened.
        facts["stack"] = _clean(stack[-ERROR_LIMIT:])
    return orjson.dumps(facts)


def _from_author_on(stack: TracebackType) -> TracebackType:
    """Leave out how the engine came to call the author's code; an error of the engine's own keeps its stack."""
    frame: TracebackType | None = stack
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_ENGINE):
        frame = frame.tb_next
    return frame or stack


# An exception is the author's code, too: what tells of it may raise anything, or give a text that is no plain one.


def _stack(error: BaseException) -> str | None:
    try:
        if error.__traceback__ is None:
            return None
        return format_stack(error, _from_author_on(error.__traceback__))
    except BaseException:
        return None


def _name(kind: type[BaseException]) -> str:
    try:
        return str.__str__(kind.__name__)
    except BaseException:
        return "Exception"


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error) or repr(error))
    except BaseException:
        return "it has no text: its __str__ fails"


def _fallback(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("bytes have no place in JSON")
    return str(value)


def _fallback_to_model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"it holds a {type(value).__name__}")


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return any(map(_has_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def _mend(value: Any) -> Any:
    """Copy a value with every string made storable, and integers beyond 64 bits as strings."""
    mend: Callable[[Any], Any] = _mend
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {mend(key): mend(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [mend(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    return value


def _clean(text: str) -> str:
    return text.replace("\0", "�").encode("utf-8", "replace").decode()

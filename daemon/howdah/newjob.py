"""A job that is about to be enqueued, and the JSON that carries it to the database over any driver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import orjson
from pydantic import BaseModel

from howdah.errors import RefusedError, UniqueKeyHeldError
from howdah.tracecontext import traced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Enqueued(NamedTuple):
    """What enqueue gives: the job's id, and False if it was there already under the same unique key."""

    id: int
    created: bool


class JobOptions(TypedDict, total=False):
    """The arguments of `howdah.enqueue` behind kind and payload; None means the kind's registered default."""

    queue: str | None
    priority: int | None  # 0 to 10; 10 is the most urgent
    run_at: datetime | None
    delay: timedelta | float | None  # seconds
    max_attempts: int | None
    timeout: timedelta | float | None  # seconds
    unique_key: str | None
    on_conflict: Literal["skip", "replace", "error"] | None
    subject: str | None
    depends_on: Sequence[int] | None
    batch: int | None
    limits: Sequence[str] | None
    fifo_key: str | None
    expires_at: datetime | None
    headers: Mapping[str, Any] | None
    on_failed_dependency: Literal["cancel", "run"] | None


class PayloadOptions(TypedDict, total=False):
    """What many jobs of one kind may share."""

    queue: str | None
    priority: int | None
    run_at: datetime | None
    delay: timedelta | float | None
    max_attempts: int | None
    timeout: timedelta | float | None
    subject: str | None
    expires_at: datetime | None
    headers: Mapping[str, Any] | None
    batch: int | None
    limits: Sequence[str] | None
    fifo_key: str | None


class BatchOptions(TypedDict, total=False):
    """The arguments of `howdah.create_batch` behind kind and payload."""

    queue: str | None
    priority: int | None
    max_attempts: int | None
    timeout: timedelta | float | None
    unique_key: str | None
    subject: str | None
    headers: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class NewJob:
    """One job for `enqueue_many`; the fields are enqueue's arguments."""

    kind: str
    payload: Any = None
    queue: str | None = None
    priority: int | None = None
    run_at: datetime | None = None
    delay: timedelta | float | None = None
    max_attempts: int | None = None
    timeout: timedelta | float | None = None
    unique_key: str | None = None
    on_conflict: Literal["skip", "replace", "error"] | None = None
    subject: str | None = None
    depends_on: Sequence[int] | None = None
    batch: int | None = None
    limits: Sequence[str] | None = None
    fifo_key: str | None = None
    expires_at: datetime | None = None
    headers: Mapping[str, Any] | None = None
    on_failed_dependency: Literal["cancel", "run"] | None = None

    def arguments(self) -> dict[str, Any]:
        """Give what was given, by name."""
        return {name: value for name, value in zip(_NAMES, _values(self), strict=True) if value is not None}


_NAMES = tuple(field.name for field in fields(NewJob))
_values = attrgetter(*_NAMES)
#: What jobs may share and go the way of enqueue_payloads.
PAYLOAD_OPTIONS = frozenset({"kind", *PayloadOptions.__annotations__})


def arguments_json(given: Mapping[str, Any], *, trace: bool = True) -> str:
    """Give arguments as the text of a JSON object, the current span among the headers. Raises RefusedError for what has no place in it."""
    told = traced(given) if trace else given
    return _dump({name: plain_argument(name, value) for name, value in told.items() if value is not None})


def payload_json(payload: Any) -> bytes:
    """Give a payload as JSON: a mapping, a pydantic model or a dataclass; None is an empty one."""
    return b"{}" if payload is None else _encode("payload", payload)


def plain_argument(name: str, value: Any) -> Any:
    """Give an argument in the form that JSON and PostgreSQL agree on."""
    read = _READ.get(name)
    if read is None:
        raise RefusedError("JB002", f"there is no argument {name}", f"one of {', '.join(_READ)}")
    return read(name, value)


@contextmanager
def refusals(place: Callable[[str], str] | None = None) -> Iterator[None]:
    """Raise what the server refuses as RefusedError, whatever the driver; other errors pass as they come.

    `place` rewrites the message, which counts the jobs of one call.
    """
    try:
        yield
    except Exception as error:
        # SQLAlchemy wraps the driver's error; psycopg keeps the words in `diag`, asyncpg on the error itself.
        driver = getattr(error, "orig", None) or error
        sqlstate = getattr(driver, "sqlstate", None)
        if not isinstance(sqlstate, str) or not sqlstate.startswith(_REFUSALS):
            raise
        words = getattr(driver, "diag", None)
        if words is not None:
            message, hint = words.message_primary, words.message_hint or words.message_detail
        else:
            origin = driver if hasattr(driver, "hint") else driver.__cause__
            message = getattr(origin, "message", None)
            hint = getattr(origin, "hint", None) or getattr(origin, "detail", None)
        message = str(message or driver)
        refused = UniqueKeyHeldError if sqlstate == "JB005" else RefusedError
        raise refused(sqlstate, place(message) if place else message, hint or "") from error


#: Our own class, and data that PostgreSQL cannot read as what they should be, NUL characters among them.
_REFUSALS = ("JB", "22")


def _encode(name: str, value: Any) -> bytes:
    try:
        try:
            return orjson.dumps(value, default=_fallback)
        except TypeError as error:
            if "must be str" not in str(error):
                raise
            # A key that is not text; asking for this always would cost every other payload twice the time.
            return orjson.dumps(value, default=_fallback, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError) as error:
        cause = error.__cause__ or error
        raise RefusedError(
            "JB001" if name == "payload" else "JB002",
            f"{name} is not JSON: {cause}",
            "a mapping, a pydantic model or a dataclass of JSON values",
        ) from error


def _fallback(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no place in JSON")


def _dump(value: Any) -> str:
    return _encode("arguments", value).decode()


def _json(name: str, value: Any) -> Any:
    return orjson.Fragment(_encode(name, value))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    return int(value)


def _time(name: str, value: Any) -> str:
    if not isinstance(value, datetime):
        raise _wrong(name, value, "a datetime")
    if value.tzinfo is None:
        raise RefusedError("JB002", f"{name} is {value.isoformat()} without a time zone", "datetime.now(UTC) has one")
    return value.isoformat()


def _span(name: str, value: Any) -> str:
    """Give hours and seconds: a day of PostgreSQL's has 23 hours where the clocks change, and 14 reads no more than 2^31 of a unit."""
    if isinstance(value, timedelta):
        sign, length = ("-", -value) if value < timedelta() else ("", value)
        hours, rest = divmod(length, timedelta(hours=1))
        return f"{sign}{hours} hours {sign}{rest.seconds}.{rest.microseconds:06d} seconds"
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        raise _wrong(name, value, "seconds or a timedelta")
    return f"{float(value):.6f} seconds"


def _list(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes)):
        raise _wrong(name, value, "a list")
    try:
        return list(value)
    except TypeError:
        raise _wrong(name, value, "a list") from None


def _wrong(name: str, value: Any, wanted: str) -> RefusedError:
    return RefusedError("JB002", f"{name} is {value!r:.100}", f"pass {wanted}")


_READ: dict[str, Callable[[str, Any], Any]] = {
    "kind": _text,
    "payload": _json,
    "queue": _text,
    "priority": _whole,
    "run_at": _time,
    "delay": _span,
    "max_attempts": _whole,
    "timeout": _span,
    "unique_key": _text,
    "on_conflict": _text,
    "subject": _text,
    "depends_on": _list,
    "batch": _whole,
    "limits": _list,
    "fifo_key": _text,
    "expires_at": _time,
    "headers": _json,
    "on_failed_dependency": _text,
}

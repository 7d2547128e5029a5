"""Results as JSON that PostgreSQL takes: whatever a handler returns, and never an exception."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howdah import jsontext
from howdah.jsontext import ERROR_LIMIT, Encoded, describe_error, encode, encode_error, encode_strictly

texts = st.text(st.characters(codec=None))  # with NUL and lone surrogates
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary() | st.datetimes() | st.uuids()
    | st.decimals() | st.complex_numbers()
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(texts | st.integers() | st.none(), inner)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers() | texts)
    ),
    max_leaves=30,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner),
    max_leaves=30,
)  # fmt: skip


def is_storable(text: bytes) -> bool:
    """Tell whether PostgreSQL would take this as jsonb: strict JSON in UTF-8 with no NUL and no lone surrogate."""
    value = json.loads(text.decode("utf-8", "strict"), parse_constant=_refuse)
    return _is_clean(value)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _is_clean(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any(0xD800 <= ord(char) <= 0xDFFF for char in value)
    if isinstance(value, dict):
        return all(_is_clean(key) and _is_clean(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_clean, value))
    return True


@pytest.mark.fault(
    "Data", "any value that a handler can return, made up by the hundred", "it becomes JSON that can be stored"
)
@given(values)
def test_every_value_becomes_json_that_can_be_stored(value: Any) -> None:
    assert is_storable(encode(value))


@given(plain)
def test_what_is_json_already_is_kept_as_it_is(value: Any) -> None:
    assert json.loads(encode(value)) == value


@given(values, st.integers(min_value=100, max_value=300))
def test_no_result_is_larger_than_the_limit(value: Any, limit: int) -> None:
    assert len(encode(value, limit=limit)) <= limit


@given(texts, texts, st.none() | texts)
def test_every_error_can_be_stored(kind: str, message: str, stack: str | None) -> None:
    text = describe_error(kind, message, stack)
    assert is_storable(text)


@given(texts)
def test_every_exception_can_be_stored(message: str) -> None:
    error = ValueError(message)
    assert is_storable(encode_error(error))
    assert is_storable(encode_error(ExceptionGroup(message, [error, KeyError(message)])))


def test_what_was_encoded_is_not_encoded_again() -> None:
    once = encode({"a": 1})
    assert isinstance(once, Encoded)
    assert encode(once) is once


def test_common_types_have_their_usual_text() -> None:
    value = {"at": datetime(2026, 1, 2, tzinfo=UTC), "id": UUID(int=1), "nan": math.nan, "set": {1}, 1: "one"}
    assert json.loads(encode(value)) == {
        "at": "2026-01-02T00:00:00+00:00",
        "id": "00000000-0000-0000-0000-000000000001",
        "nan": None,
        "set": [1],
        "1": "one",
    }


def test_a_text_that_speaks_of_nul_is_not_changed() -> None:
    assert json.loads(encode("\\u0000")) == "\\u0000"
    assert json.loads(encode("\0")) == "\ufffd"


def test_a_long_stack_keeps_its_end() -> None:
    def fall(depth: int) -> None:
        if depth:
            fall(depth - 1)
        raise ValueError("x" * 100_000)

    with pytest.raises(ValueError, match="xxx") as caught:
        fall(200)
    facts = json.loads(encode_error(caught.value))
    assert facts["type"] == "ValueError"
    assert len(facts["message"]) == 2000
    assert len(facts["stack"]) <= ERROR_LIMIT


def test_a_stack_begins_with_the_authors_code() -> None:
    """The engine's way to it helps nobody; here `encode_strictly` stands for the engine, whose own stack is kept whole."""
    with pytest.raises(TypeError) as caught:
        encode_strictly(object())
    stack = json.loads(encode_error(caught.value))["stack"]
    assert "test_jsontext.py" in stack
    assert caught.value.__traceback__ is not None
    engine = json.loads(encode_error(caught.value.with_traceback(caught.value.__traceback__.tb_next)))["stack"]
    assert "jsontext.py" in engine
    assert "test_jsontext.py" not in engine


def test_what_leads_to_the_authors_code_is_left_out() -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def call(function):\n    function()", jsontext.__file__, "exec"), namespace)  # noqa: S102 - its file counts

    def author() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        namespace["call"](author)
    assert caught.value.__traceback__ is not None
    stack = json.loads(encode_error(caught.value.with_traceback(caught.value.__traceback__.tb_next)))["stack"]
    assert "in author" in stack
    assert "in call" not in stack

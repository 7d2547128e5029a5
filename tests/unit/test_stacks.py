"""Stacks are the standard library's, and each place is read and parsed once."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import pytest

from howdah import stacks
from howdah.stacks import PLACES, format_stack

if TYPE_CHECKING:
    from collections.abc import Callable


class QuietError(Exception):
    """Has no text."""


def fail() -> None:
    raise ValueError("as it should")


def fail_without_words() -> None:
    raise QuietError


def fail_in_the_second_place_of_a_line() -> None:
    str(1 / len("x") + 1 / len(""))


def fail_because() -> None:
    try:
        fail()
    except ValueError as error:
        raise KeyError("key") from error


def fail_meanwhile() -> None:
    try:
        fail()
    except ValueError:
        raise KeyError("key")  # noqa: B904 - what was raised meanwhile is to be shown


def fail_alone() -> None:
    try:
        fail()
    except ValueError:
        raise KeyError("key") from None


def fail_with_notes() -> None:
    error = ValueError("two\nlines")
    error.add_note("and a note")
    raise error


def fail_as_a_group() -> None:
    raise ExceptionGroup("all of it", [ValueError("one"), KeyError("two")])


def fail_to_parse() -> None:
    compile("def f(:", "somewhere.py", "exec")


def fail_to_find_a_name() -> None:
    value = 1
    str(valeu)  # type: ignore[name-defined]  # noqa: F821 - the message suggests the right one
    str(value)


def fail_deep_down(depth: int = 200) -> None:
    if depth:
        fail_deep_down(depth - 1)
    fail()


def fail_where_there_is_no_source() -> None:
    exec(compile("def f(): 1 / 0\nf()", "<nowhere>", "exec"), {})  # noqa: S102


FAILURES = [value for name, value in list(globals().items()) if name.startswith("fail")]


def caught(failure: Callable[[], Any]) -> BaseException:
    """Give what it raises."""
    try:
        failure()
    except BaseException as error:
        return error
    raise AssertionError("it was to fail")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_stack_is_what_the_standard_library_prints_at_first_and_again(failure: Callable[[], Any]) -> None:
    for _ in range(2):
        error = caught(failure)
        assert error.__traceback__ is not None
        whole = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        assert format_stack(error, error.__traceback__) == whole


def test_a_place_is_formatted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks._places.clear()
    read: list[int] = []
    of_library = traceback.format_tb
    monkeypatch.setattr(traceback, "format_tb", lambda *given, **more: read.append(1) or of_library(*given, **more))
    for _ in range(5):
        error = caught(fail)
        assert error.__traceback__ is not None
        format_stack(error, error.__traceback__)
    assert len(read) == 2  # of `caught` and of `fail`


def test_so_many_places_are_remembered_and_no_more() -> None:
    stacks._places.clear()
    for _ in range(PLACES + 10):
        namespace: dict[str, Any] = {}
        exec("def f(): raise ValueError", namespace)  # noqa: S102
        error = caught(namespace["f"])
        assert error.__traceback__ is not None
        assert "ValueError" in format_stack(error, error.__traceback__)
    assert len(stacks._places) <= PLACES

"""Stacks of exceptions as the standard library prints them, for a tenth of its time: the text of a place in the code is made once.

A handler that fails by the thousand fails at few places, and reading and parsing their lines again for the carets below them is
what a failed attempt costs most.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType, TracebackType

#: So many places are remembered; then all are forgotten.
PLACES: Final = 1000
#: A stack with more frames goes to the standard library, which says once what recurs.
DEPTH: Final = 30

#: By the id of the code, which the value keeps alive, and the instruction. What threads write here at once is the same.
_places: dict[tuple[int, int], tuple[CodeType, str]] = {}


def format_stack(error: BaseException, stack: TracebackType) -> str:
    """Give what `traceback.format_exception` gives of an exception with this stack."""
    if _stands_alone(error):
        frames: list[str] = []
        frame: TracebackType | None = stack
        while frame is not None and len(frames) < DEPTH:
            frames.append(_place(frame))
            frame = frame.tb_next
        if frame is None:
            # From 3.12 on the stack says which name was meant.
            last = traceback.TracebackException(type(error), error, stack, limit=0, compact=True)
            return "".join(("Traceback (most recent call last):\n", *frames, *last.format_exception_only()))
    return "".join(traceback.format_exception(type(error), error, stack))


def _stands_alone(error: BaseException) -> bool:
    """Tell whether there are no other exceptions, with stacks of their own, to be shown with it."""
    if error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        return False
    return not isinstance(error, BaseExceptionGroup)


def _place(frame: TracebackType) -> str:
    code = frame.tb_frame.f_code
    key = id(code), frame.tb_lasti
    known = _places.get(key)
    if known is None:
        if len(_places) >= PLACES:
            _places.clear()
        known = _places[key] = code, traceback.format_tb(frame, limit=1)[0]
    return known[1]
